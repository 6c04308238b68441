//! Image formats: their names, and how they are told apart.
//!
//! Not parsers: this looks at magic numbers only, and bytes alone test it. The invariant: what a
//! guest wrote into its disk never decides how the host opens the file (see [`choose`]).

use crate::error::{Error, Kind, Result};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// A disk image format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// The disk's bytes and nothing else; also block devices.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
    /// VMware's, in all its sub-formats.
    Vmdk,
    /// Virtual PC's and old Hyper-V's: dynamic and fixed.
    Vhd,
    /// Hyper-V's.
    Vhdx,
}

impl Format {
    /// All formats.
    pub const ALL: [Self; 5] = [Self::Raw, Self::Qcow2, Self::Vmdk, Self::Vhd, Self::Vhdx];

    /// The name that operators use: `raw`, `qcow2`, `vmdk`, `vhd`, `vhdx`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
        }
    }

    /// The name of QEMU's driver.
    pub const fn qemu_name(self) -> &'static str {
        match self {
            Self::Vhd => "vpc",
            other => other.as_str(),
        }
    }

    /// The format that a file's suffix promises. `.img` and the like promise nothing: they name raw
    /// and qcow2 images alike.
    pub fn from_suffix(path: &Path) -> Option<Self> {
        let suffix = path.extension()?.to_str()?.to_ascii_lowercase();
        match suffix.as_str() {
            "raw" => Some(Self::Raw),
            "qcow2" => Some(Self::Qcow2),
            "vmdk" => Some(Self::Vmdk),
            "vhd" | "vpc" => Some(Self::Vhd),
            "vhdx" => Some(Self::Vhdx),
            _ => None,
        }
    }

    /// The format that an image's first and last bytes look like: at least the first sector and the
    /// last one, where there are so many. [`Format::Raw`] when they look like nothing.
    pub fn of_magic(head: &[u8], tail: &[u8]) -> Self {
        if head.starts_with(b"QFI\xfb") {
            Self::Qcow2
        } else if head.starts_with(b"KDMV") || head.starts_with(b"COWD") || is_descriptor(head) {
            Self::Vmdk
        } else if head.starts_with(b"vhdxfile") {
            Self::Vhdx
        } else if head.starts_with(VHD_COOKIE) || vhd_footer(tail).is_some() {
            Self::Vhd
        } else {
            Self::Raw
        }
    }
}

/// The first bytes of a VHD's footer, and of the copy at a dynamic VHD's start.
const VHD_COOKIE: &[u8] = b"conectix";

/// The footer in an image's last sector. Very old ones are a byte short.
fn vhd_footer(tail: &[u8]) -> Option<&[u8]> {
    [512, 511].into_iter().find_map(|bytes| {
        let footer = tail.get(tail.len().checked_sub(bytes)?..)?;
        footer.starts_with(VHD_COOKIE).then_some(footer)
    })
}

/// True for a VHD that holds only its difference from a parent, which QEMU would read as a fixed one.
pub(crate) fn is_differencing_vhd(head: &[u8], tail: &[u8]) -> bool {
    /// Where a footer names its kind, and the number of this one.
    const KIND_AT: usize = 60;
    const DIFFERENCING: [u8; 4] = [0, 0, 0, 4];
    let copy = head.starts_with(VHD_COOKIE).then_some(head);
    copy.into_iter()
        .chain(vhd_footer(tail))
        .any(|footer| footer.get(KIND_AT..KIND_AT + 4) == Some(&DIFFERENCING))
}

/// True for a VMDK descriptor file: text whose first line that is no comment is a version. A comment
/// in front is VMware's signature.
fn is_descriptor(head: &[u8]) -> bool {
    for line in head.split(|&byte| byte == b'\n') {
        let line = line.trim_ascii();
        if line.starts_with(b"# Disk DescriptorFile") {
            return true;
        }
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        return line.starts_with(b"version=");
    }
    false
}

/// How an image is opened, from what the operator `asked` for, the file's suffix (`named`), and what
/// its magic number `looks` like.
///
/// A guest writes what it likes into a raw disk, also the header of a qcow2 image whose backing file
/// is a secret of the host; so magic alone never makes an image anything but raw. The rule:
///
/// 1. what the operator asks for holds;
/// 2. a block device is raw, and so is a file named `.raw`, whatever they look like;
/// 3. a file whose suffix names another format must look like it;
/// 4. a file whose suffix names nothing is raw if it looks like nothing; else the operator decides.
pub fn choose(
    path: &Path,
    is_device: bool,
    asked: Option<Format>,
    looks: Format,
) -> Result<Format> {
    let named = if is_device {
        Some(Format::Raw)
    } else {
        Format::from_suffix(path)
    };
    match (asked, named) {
        (Some(asked), _) => Ok(asked),
        (None, Some(Format::Raw)) => Ok(Format::Raw),
        (None, Some(named)) if named == looks => Ok(named),
        (None, Some(named)) => Err(Error::new(
            Kind::BadInput,
            format!(
                "{} is named as {named}, but looks like {looks}: truncated, damaged, or misnamed",
                path.display()
            ),
        )
        .advise("if the image is sound, say what it is with --format")),
        (None, None) if looks == Format::Raw => Ok(Format::Raw),
        (None, None) => Err(Error::new(
            Kind::Config,
            format!(
                "{} looks like {looks}, but its name does not say so; a guest could have written \
                 that into a raw disk",
                path.display()
            ),
        )
        .advise(format!(
            "say what it is: --format {looks}, or --format raw to take its bytes as they are"
        ))),
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.to_ascii_lowercase().as_str() {
            "vpc" => Ok(Self::Vhd),
            name => Self::ALL
                .into_iter()
                .find(|format| format.as_str() == name)
                .ok_or_else(|| {
                    Error::new(
                        Kind::Config,
                        format!(
                            "{text:?} is no image format: expected raw, qcow2, vmdk, vhd or vhdx"
                        ),
                    )
                }),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn names_read_back() {
        for format in Format::ALL {
            assert_eq!(format.to_string().parse::<Format>().unwrap(), format);
            assert_eq!(format.qemu_name().parse::<Format>().unwrap(), format);
            let path = format!("/a/disk.{}", format.as_str().to_uppercase());
            assert_eq!(Format::from_suffix(Path::new(&path)), Some(format));
        }
        assert_eq!("vdi".parse::<Format>().unwrap_err().kind(), Kind::Config);
        assert_eq!(Format::from_suffix(Path::new("disk.img")), None);
        assert_eq!(Format::from_suffix(Path::new("qcow2")), None);
    }

    #[test]
    fn magic_numbers_are_found_in_their_places() {
        let sector = |place: usize, magic: &[u8]| {
            let mut sector = vec![0; 512];
            sector[place..place + magic.len()].copy_from_slice(magic);
            sector
        };
        let none = sector(0, b"");
        for (head, tail, format) in [
            (sector(0, b"QFI\xfb"), none.clone(), Format::Qcow2),
            (sector(1, b"QFI\xfb"), none.clone(), Format::Raw),
            (sector(0, b"KDMV"), none.clone(), Format::Vmdk),
            (
                sector(0, b"# Disk DescriptorFile\n"),
                none.clone(),
                Format::Vmdk,
            ),
            (sector(0, b"\n# x\nversion=1\n"), none.clone(), Format::Vmdk),
            (
                sector(0, b"# a script\nset -e\n"),
                none.clone(),
                Format::Raw,
            ),
            (sector(0, b"vhdxfile"), none.clone(), Format::Vhdx),
            (sector(0, b"conectix"), none.clone(), Format::Vhd),
            (none.clone(), sector(0, b"conectix"), Format::Vhd),
            (none.clone(), sector(1, b"conectix"), Format::Vhd),
            (none.clone(), sector(2, b"conectix"), Format::Raw),
            (vec![], vec![], Format::Raw),
            (vec![b'Q'], vec![b'c'], Format::Raw),
        ] {
            assert_eq!(Format::of_magic(&head, &tail), format);
        }
        let mut parentless = sector(0, b"conectix");
        parentless[63] = 3;
        assert!(!is_differencing_vhd(&parentless, &none));
        parentless[63] = 4;
        assert!(is_differencing_vhd(&parentless, &none));
        assert!(is_differencing_vhd(&none, &parentless));
    }

    #[test]
    fn a_guest_does_not_choose_its_format() {
        let rule = |name: &str, device, asked, looks| {
            choose(Path::new(name), device, asked, looks).map_err(|error| error.kind())
        };
        use Format::{Qcow2, Raw, Vhd};
        assert_eq!(rule("/dev/sda", true, None, Qcow2), Ok(Raw));
        assert_eq!(rule("/dev/disk.qcow2", true, None, Qcow2), Ok(Raw));
        assert_eq!(rule("/dev/sda", true, Some(Qcow2), Qcow2), Ok(Qcow2));
        assert_eq!(rule("a.raw", false, None, Qcow2), Ok(Raw));
        assert_eq!(rule("a.qcow2", false, None, Qcow2), Ok(Qcow2));
        assert_eq!(rule("a.qcow2", false, None, Raw), Err(Kind::BadInput));
        assert_eq!(rule("a.qcow2", false, None, Vhd), Err(Kind::BadInput));
        assert_eq!(rule("a.img", false, None, Raw), Ok(Raw));
        assert_eq!(rule("a.img", false, None, Qcow2), Err(Kind::Config));
        assert_eq!(rule("a.img", false, Some(Raw), Qcow2), Ok(Raw));
        assert_eq!(rule("a", false, None, Vhd), Err(Kind::Config));
    }
}
