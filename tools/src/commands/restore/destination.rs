//! Where each disk goes, and whether it may be written there.

use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use tidegate_agent::format::Format;
use tidegate_agent::target::ConvertSettings;
use tidegate_agent::{Error, Kind, Result};

/// What the operator asked for.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub(super) format: Option<Format>,
    pub(super) subformat: Option<String>,
    pub(super) compress: bool,
    pub(super) in_place: bool,
    pub(super) overwrite: bool,
}

/// How a disk is written.
#[derive(Debug, Clone)]
pub(super) enum Destination {
    /// A new raw image.
    New { path: PathBuf, overwrite: bool },
    /// An existing raw image or device, made equal.
    InPlace { path: PathBuf },
    /// A new image of another format.
    Convert { path: PathBuf, how: ConvertSettings },
}

impl Destination {
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::New { path, .. } | Self::InPlace { path } | Self::Convert { path, .. } => path,
        }
    }

    pub(super) fn format(&self) -> Format {
        match self {
            Self::Convert { how, .. } => how.format,
            _ => Format::Raw,
        }
    }
}

impl Wish {
    fn convert(&self, path: PathBuf, format: Format, size_bytes: u64) -> Result<Destination> {
        let how = ConvertSettings {
            format,
            subformat: self.subformat.clone(),
            compress: self.compress,
            overwrite: self.overwrite,
        };
        how.check(size_bytes)?;
        Ok(Destination::Convert { path, how })
    }
}

/// A disk to be restored.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub(super) name: String,
    pub(super) size_bytes: u64,
}

/// What [`choose`] decided. Nothing was written yet.
#[derive(Debug)]
pub(super) struct Chosen {
    /// A folder that is not there yet.
    pub(super) new_folder: Option<PathBuf>,
    /// One for each disk.
    pub(super) destinations: Vec<Destination>,
}

/// A destination for each of `disks`, or the reason why one must not be written.
pub(super) fn choose(to: &Path, disks: &[Disk], wish: &Wish) -> Result<Chosen> {
    let found = look(to)?;
    let is_folder = found.as_ref().is_some_and(Metadata::is_dir)
        || to.as_os_str().as_encoded_bytes().ends_with(b"/");
    if let ([disk], false) = (disks, is_folder) {
        return Ok(Chosen {
            new_folder: None,
            destinations: vec![judge(to.to_owned(), disk.size_bytes, wish)?],
        });
    }
    if !is_folder && (found.is_some() || Format::from_suffix(to).is_some()) {
        let names: Vec<_> = disks.iter().map(|disk| disk.name.as_str()).collect();
        return Err(Error::new(
            Kind::Config,
            format!(
                "{} is not a folder, and the point has several disks: {}",
                to.display(),
                names.join(", ")
            ),
        )
        .advise("name a folder, or one disk with --disk"));
    }
    if found.is_none() && wish.in_place {
        return Err(not_there(to));
    }
    let suffix = wish.format.unwrap_or(Format::Raw);
    let destinations = disks.iter().map(|disk| {
        let name = &disk.name;
        // Names come from the repository: one that leaves the folder must not.
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(Error::new(
                Kind::Corrupt,
                format!("the point names a disk {name:?}, which cannot become a file name"),
            )
            .advise("name the file yourself: --disk NAME --to FILE"));
        }
        judge(to.join(format!("{name}.{suffix}")), disk.size_bytes, wish)
    });
    Ok(Chosen {
        destinations: destinations.collect::<Result<_>>()?,
        new_folder: found.is_none().then(|| to.to_owned()),
    })
}

fn judge(path: PathBuf, size_bytes: u64, wish: &Wish) -> Result<Destination> {
    let format = wish
        .format
        .or_else(|| Format::from_suffix(&path))
        .unwrap_or(Format::Raw);
    if format == Format::Raw && (wish.subformat.is_some() || wish.compress) {
        return Err(Error::new(
            Kind::Config,
            format!(
                "{} is to be raw, which has neither --subformat nor --compress",
                path.display()
            ),
        ));
    }
    let Some(found) = look(&path)? else {
        return match (wish.in_place, format) {
            (true, _) => Err(not_there(&path)),
            (false, Format::Raw) => Ok(Destination::New {
                path,
                overwrite: false,
            }),
            (false, format) => wish.convert(path, format, size_bytes),
        };
    };
    let kind = found.file_type();
    if kind.is_block_device() {
        if format != Format::Raw && wish.format.is_some() {
            return Err(Error::new(
                Kind::Config,
                format!("{} is a device: it can hold raw only", path.display()),
            ));
        }
        if !wish.in_place && !wish.overwrite {
            return Err(Error::new(
                Kind::Conflict,
                format!(
                    "{} is a device, and what it holds would be lost",
                    path.display()
                ),
            )
            .advise("give --in-place if that is what you want"));
        }
        return Ok(Destination::InPlace { path });
    }
    if !kind.is_file() {
        return Err(Error::new(
            Kind::Config,
            format!(
                "{} cannot hold a disk: expected a file or a block device",
                path.display()
            ),
        ));
    }
    match (wish.in_place, wish.overwrite, format) {
        (true, _, Format::Raw) => Ok(Destination::InPlace { path }),
        (true, _, _) => Err(Error::new(
            Kind::Config,
            format!(
                "{} is to be restored in place, which works on raw images only, and it is {format}",
                path.display()
            ),
        )
        .advise("use --overwrite to write it anew, or --format raw if it is raw in truth")),
        (false, true, Format::Raw) => Ok(Destination::New {
            path,
            overwrite: true,
        }),
        (false, true, format) => wish.convert(path, format, size_bytes),
        (false, false, _) => Err(Error::new(
            Kind::Conflict,
            format!("{} exists", path.display()),
        )
        .advise(
            "name another file; or give --in-place to make it equal to the point, or --overwrite \
             to replace it",
        )),
    }
}

fn look(path: &Path) -> Result<Option<Metadata>> {
    match std::fs::metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(
            format!("cannot look at {}", path.display()),
            error,
        )),
    }
}

fn not_there(path: &Path) -> Error {
    Error::new(
        Kind::Missing,
        format!(
            "{} is to be restored in place, and is not there",
            path.display()
        ),
    )
    .advise("leave out --in-place to make a new image")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const PLAIN: Wish = Wish {
        format: None,
        subformat: None,
        compress: false,
        in_place: false,
        overwrite: false,
    };
    const IN_PLACE: Wish = Wish {
        in_place: true,
        ..PLAIN
    };
    const OVERWRITE: Wish = Wish {
        overwrite: true,
        ..PLAIN
    };

    fn disk(name: &str) -> Disk {
        Disk {
            name: name.to_owned(),
            size_bytes: 1 << 20,
        }
    }

    fn one(to: &Path, wish: &Wish) -> Result<Destination> {
        choose(to, &[disk("root")], wish).map(|mut chosen| chosen.destinations.remove(0))
    }

    #[test]
    fn the_suffix_names_the_format_and_the_option_outranks_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.qcow2");
        assert_eq!(one(&path, &PLAIN).unwrap().format(), Format::Qcow2);
        let raw = Wish {
            format: Some(Format::Raw),
            ..PLAIN
        };
        assert!(matches!(
            one(&path, &raw).unwrap(),
            Destination::New {
                overwrite: false,
                ..
            }
        ));
        let found = one(&folder.path().join("disk"), &PLAIN).unwrap();
        assert_eq!(found.format(), Format::Raw);
    }

    #[test]
    fn nothing_that_exists_is_written_to_unasked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.raw");
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(one(&path, &PLAIN).unwrap_err().kind(), Kind::Conflict);
        assert!(matches!(
            one(&path, &IN_PLACE).unwrap(),
            Destination::InPlace { .. }
        ));
        assert!(matches!(
            one(&path, &OVERWRITE).unwrap(),
            Destination::New {
                overwrite: true,
                ..
            }
        ));
        let qcow2 = folder.path().join("b.qcow2");
        std::fs::write(&qcow2, "").unwrap();
        assert_eq!(one(&qcow2, &PLAIN).unwrap_err().kind(), Kind::Conflict);
        assert_eq!(one(&qcow2, &IN_PLACE).unwrap_err().kind(), Kind::Config);
        let missing = folder.path().join("none.raw");
        assert_eq!(one(&missing, &IN_PLACE).unwrap_err().kind(), Kind::Missing);
    }

    #[test]
    fn special_files_are_no_disks() {
        assert_eq!(
            one(Path::new("/dev/null"), &PLAIN).unwrap_err().kind(),
            Kind::Config
        );
    }

    #[test]
    fn a_size_that_the_format_cannot_hold_is_found_out_first() {
        let folder = tempfile::tempdir().unwrap();
        let odd = Disk {
            name: "root".to_owned(),
            size_bytes: 1000,
        };
        let error = choose(&folder.path().join("a.vhd"), &[odd], &PLAIN).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
    }

    #[test]
    fn several_disks_go_into_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let vmdk = Wish {
            format: Some(Format::Vmdk),
            ..PLAIN
        };
        let disks = [disk("root"), disk("data")];
        let to = folder.path().join("new");
        let chosen = choose(&to, &disks, &vmdk).unwrap();
        let paths: Vec<_> = chosen.destinations.iter().map(Destination::path).collect();
        assert_eq!(paths, [to.join("root.vmdk"), to.join("data.vmdk")]);
        assert_eq!(chosen.new_folder, Some(to));
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        for wrong in [file, folder.path().join("disks.raw")] {
            let error = choose(&wrong, &disks, &vmdk).unwrap_err();
            assert_eq!(error.kind(), Kind::Config, "{}", wrong.display());
        }
    }

    #[test]
    fn a_disk_name_cannot_leave_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["../x", "/etc/passwd", "..", ""] {
            let error = choose(folder.path(), &[disk(name)], &PLAIN).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{name}");
        }
    }
}
