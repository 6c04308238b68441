//! The files that a VMDK names as its extents.
//!
//! Not a reader of VMDK images: it finds the lines of a descriptor that QEMU would take for extents,
//! and rather one line more than one less. The invariant: after [`check_extents`], every extent is a
//! plain file name beside the descriptor, in reach, and so are the extents of extents.

use super::graph::Reach;
use super::{Image, open_disk, read_up_to};
use crate::error::{Error, Kind, Result};
use std::fs::File;
use std::path::{Path, PathBuf};

/// As much of a descriptor as QEMU reads.
const DESCRIPTOR_BYTES_MAX: usize = 1 << 20;
/// Where a sparse extent's header says at which sector its embedded descriptor begins.
const DESCRIPTOR_SECTOR_AT: usize = 28;
/// How deep extents may hold descriptors of their own. VMware never does that.
const DEPTH_MAX: usize = 4;

/// Checks all extents of the VMDK at `path`, a descriptor file or a sparse extent, and names them.
pub(super) fn check_extents(path: &Path, reach: &Reach) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    check(path, reach, DEPTH_MAX, &mut found)?;
    Ok(found)
}

fn check(path: &Path, reach: &Reach, depth: usize, checked: &mut Vec<PathBuf>) -> Result<()> {
    let file = open_disk(path)?;
    let descriptor = descriptor(&file)
        .map_err(|error| Error::io(format!("cannot read {}", path.display()), error))?;
    for Extent { name, bytes_min } in extents(&descriptor) {
        let plain = std::str::from_utf8(name).ok().filter(|name| {
            !name.is_empty() && !name.contains(['/', ':', '\0']) && *name != "." && *name != ".."
        });
        let Some(plain) = plain else {
            return Err(Error::new(
                Kind::Denied,
                format!(
                    "{} names the extent {:?}, which is no plain file name",
                    path.display(),
                    String::from_utf8_lossy(name)
                ),
            )
            .advise("put the extents beside the descriptor and name them without a folder"));
        };
        let extent = reach.check(&path.with_file_name(plain), path)?;
        // An embedded descriptor names the very file that it stands in.
        if extent == path {
            continue;
        }
        if depth == 0 {
            return Err(Error::new(
                Kind::BadInput,
                format!("{} has extents within extents", path.display()),
            ));
        }
        let found = Image::look(&extent)?.size_bytes;
        if found < bytes_min {
            // QEMU would read what is missing as zeros.
            return Err(Error::new(
                Kind::BadInput,
                format!(
                    "{} is cut off: expected {bytes_min} bytes, found {found}",
                    extent.display()
                ),
            )
            .advise("copy the image again from where it came"));
        }
        check(&extent, reach, depth - 1, checked)?;
        checked.push(extent);
    }
    Ok(())
}

/// The text that QEMU could take for this file's descriptor: empty for a flat extent.
fn descriptor(file: &File) -> std::io::Result<Vec<u8>> {
    let head = read_up_to(file, 0, 512)?;
    if !head.starts_with(b"KDMV") {
        return read_up_to(file, 0, DESCRIPTOR_BYTES_MAX);
    }
    let sector = head
        .get(DESCRIPTOR_SECTOR_AT..)
        .and_then(<[u8]>::first_chunk)
        .map_or(0, |bytes| u64::from_le_bytes(*bytes));
    match sector.checked_mul(512) {
        Some(0) | None => Ok(Vec::new()),
        // Past any file's end: nothing there.
        Some(offset) if offset > i64::MAX as u64 - DESCRIPTOR_BYTES_MAX as u64 => Ok(Vec::new()),
        Some(offset) => read_up_to(file, offset, DESCRIPTOR_BYTES_MAX),
    }
}

/// One line such as `RW 4192256 SPARSE "disk-s001.vmdk"` or `RW 8192 FLAT "disk-flat.vmdk" 128`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Extent<'a> {
    pub(crate) name: &'a [u8],
    /// How long the file must be at least, in bytes, where the line tells.
    pub(crate) bytes_min: u64,
}

pub(crate) fn extents(descriptor: &[u8]) -> impl Iterator<Item = Extent<'_>> {
    descriptor.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut words = line
            .split(|byte| byte.is_ascii_whitespace() || *byte == 0x0b)
            .filter(|word| !word.is_empty());
        if words.next() != Some(b"RW") {
            return None;
        }
        let sectors = number(words.next());
        let is_flat = matches!(words.next(), Some(b"FLAT" | b"VMFS"));
        let quote = line.iter().position(|&byte| byte == b'"')?;
        let name = &line[quote + 1..];
        let end = name
            .iter()
            .position(|&byte| byte == b'"' || byte == b'\r')
            .unwrap_or(name.len());
        let (name, behind) = name.split_at(end);
        let first = number(behind.get(1..).map(<[u8]>::trim_ascii));
        // A sparse extent's own tables tell, and are checked elsewhere.
        let bytes_min = if is_flat {
            first.saturating_add(sectors).saturating_mul(512)
        } else {
            0
        };
        Some(Extent { name, bytes_min })
    })
}

/// A decimal number, 0 where there is none.
fn number(word: Option<&[u8]>) -> u64 {
    word.and_then(|word| std::str::from_utf8(word).ok())
        .and_then(|word| word.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use proptest::prelude::*;
    use tempfile::TempDir;

    #[test]
    fn extents_are_found_in_descriptors() {
        let text = b"# Disk DescriptorFile\nversion=1\nRW 4192256 SPARSE \"a b-s001.vmdk\"\n\
                     \x0b\tRW 1 FLAT \"flat.vmdk\" 3\r\nRDONLY 1 ZERO\nddb.x = \"y\"\nRW 1 FLAT \"cut";
        let expected = [
            (b"a b-s001.vmdk".as_slice(), 0),
            (b"flat.vmdk", 4 * 512),
            (b"cut", 512),
        ]
        .map(|(name, bytes_min)| Extent { name, bytes_min });
        assert_eq!(extents(text).collect::<Vec<_>>(), expected);
    }

    fn reach(image: &Path) -> Reach {
        Reach::new(image, &[]).unwrap()
    }

    #[test]
    fn extents_elsewhere_are_refused() {
        let folder = TempDir::new().unwrap();
        let image = folder.path().join("a.vmdk");
        for (name, kind) in [
            ("/etc/shadow", Kind::Denied),
            ("../x", Kind::Denied),
            ("nbd:unix:x", Kind::Denied),
            ("json:{}", Kind::Denied),
            ("", Kind::Denied),
            ("link", Kind::Denied),
            ("missing", Kind::Missing),
            ("folder", Kind::BadInput),
        ] {
            std::fs::write(&image, format!("version=1\nRW 8 FLAT \"{name}\" 0\n")).unwrap();
            let _ = std::os::unix::fs::symlink("/etc/passwd", folder.path().join("link"));
            let _ = std::fs::create_dir(folder.path().join("folder"));
            let reach = Reach::new(&image, &[]).unwrap();
            assert_eq!(
                check_extents(&image, &reach).unwrap_err().kind(),
                kind,
                "{name}"
            );
        }
        // A flat extent that has lost its end.
        std::fs::write(folder.path().join("flat"), [1; 1023]).unwrap();
        std::fs::write(&image, "version=1\nRW 1 FLAT \"flat\" 1\n").unwrap();
        let error = check_extents(&image, &reach(&image)).unwrap_err();
        assert_eq!(error.kind(), Kind::BadInput);
        assert!(error.to_string().contains("1024"), "{error}");
        std::fs::write(folder.path().join("flat"), [1; 1024]).unwrap();
        check_extents(&image, &reach(&image)).unwrap();
        // An extent that is a descriptor again, of itself.
        std::fs::write(folder.path().join("b"), "RW 8 SPARSE \"c\"\n").unwrap();
        std::fs::write(folder.path().join("c"), "RW 8 SPARSE \"b\"\n").unwrap();
        std::fs::write(&image, "version=1\nRW 8 SPARSE \"b\"\n").unwrap();
        let reach = Reach::new(&image, &[]).unwrap();
        assert_eq!(
            check_extents(&image, &reach).unwrap_err().kind(),
            Kind::BadInput
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..600), sparse: bool,
        ) {
            let folder = TempDir::new().unwrap();
            let image = folder.path().join("a.vmdk");
            let magic: &[u8] = if sparse { b"KDMV" } else { b"RW \"" };
            std::fs::write(&image, [magic, &bytes].concat()).unwrap();
            let _ = check_extents(&image, &reach(&image));
        }
    }
}
