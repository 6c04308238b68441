//! Where each disk goes, and whether it may be written there.

use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use tidegate_agent::format::Format;
use tidegate_agent::{Error, Kind, Result};

/// What the operator asked for.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub(super) format: Option<Format>,
    pub(super) subformat: Option<String>,
    pub(super) in_place: bool,
    pub(super) overwrite: bool,
    /// One disk only: `--to` may be a file.
    pub(super) one: bool,
}

/// How a disk is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Destination {
    /// A new raw image.
    New { path: PathBuf, overwrite: bool },
    /// An existing raw image or device, made equal.
    InPlace { path: PathBuf },
    /// A new image of another format.
    Convert {
        path: PathBuf,
        format: Format,
        subformat: Option<String>,
        overwrite: bool,
    },
}

impl Destination {
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::New { path, .. } | Self::InPlace { path } | Self::Convert { path, .. } => path,
        }
    }

    pub(super) fn format(&self) -> Format {
        match self {
            Self::Convert { format, .. } => *format,
            _ => Format::Raw,
        }
    }
}

/// A destination for each of `disks`, or the reason why one must not be written.
pub(super) fn choose(to: &Path, disks: Vec<String>, wish: &Wish) -> Result<Vec<Destination>> {
    let found = look(to)?;
    let is_folder = found.as_ref().is_some_and(Metadata::is_dir)
        || to.as_os_str().as_encoded_bytes().ends_with(b"/");
    if wish.one && !is_folder {
        return Ok(vec![judge(to.to_owned(), wish)?]);
    }
    if !is_folder && found.is_some() {
        return Err(Error::new(
            Kind::Config,
            format!(
                "{} is not a folder, and the point has several disks: {}",
                to.display(),
                disks.join(", ")
            ),
        )
        .advise("name a folder, or one disk with --disk"));
    }
    if found.is_none() {
        if wish.in_place {
            return Err(not_there(to));
        }
        std::fs::create_dir_all(to).map_err(|error| {
            Error::io(format!("cannot make the folder {}", to.display()), error)
        })?;
    }
    let suffix = wish.format.unwrap_or(Format::Raw).as_str();
    disks
        .into_iter()
        .map(|disk| {
            // Names come from the repository: one that leaves the folder must not.
            if disk.is_empty() || disk.contains('/') || disk.starts_with('.') {
                return Err(Error::new(
                    Kind::Corrupt,
                    format!("the point names a disk {disk:?}, which cannot become a file name"),
                )
                .advise("name the file yourself: --disk NAME --to FILE"));
            }
            judge(to.join(format!("{disk}.{suffix}")), wish)
        })
        .collect()
}

fn judge(path: PathBuf, wish: &Wish) -> Result<Destination> {
    let format = wish
        .format
        .or_else(|| Format::from_suffix(&path))
        .unwrap_or(Format::Raw);
    if wish.subformat.is_some() && format == Format::Raw {
        return Err(Error::new(
            Kind::Config,
            format!("{}: raw has no --subformat", path.display()),
        ));
    }
    let Some(found) = look(&path)? else {
        return match (wish.in_place, format) {
            (true, _) => Err(not_there(&path)),
            (false, Format::Raw) => Ok(Destination::New {
                path,
                overwrite: false,
            }),
            (false, format) => Ok(Destination::Convert {
                path,
                format,
                subformat: wish.subformat.clone(),
                overwrite: false,
            }),
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
        (false, true, format) => Ok(Destination::Convert {
            path,
            format,
            subformat: wish.subformat.clone(),
            overwrite: true,
        }),
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
        in_place: false,
        overwrite: false,
        one: true,
    };

    fn one(to: &Path, wish: &Wish) -> Result<Destination> {
        choose(to, vec!["root".to_owned()], wish).map(|mut all| all.remove(0))
    }

    #[test]
    fn the_suffix_names_the_format_and_the_option_outranks_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.qcow2");
        let found = one(&path, &PLAIN).unwrap();
        assert_eq!(found.format(), Format::Qcow2);
        let raw = Wish {
            format: Some(Format::Raw),
            ..PLAIN
        };
        let found = one(&path, &raw).unwrap();
        assert_eq!(
            found,
            Destination::New {
                path,
                overwrite: false
            }
        );
        let found = one(&folder.path().join("disk"), &PLAIN).unwrap();
        assert_eq!(found.format(), Format::Raw);
    }

    #[test]
    fn nothing_that_exists_is_written_to_unasked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.raw");
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(one(&path, &PLAIN).unwrap_err().kind(), Kind::Conflict);
        let in_place = Wish {
            in_place: true,
            ..PLAIN
        };
        assert_eq!(
            one(&path, &in_place).unwrap(),
            Destination::InPlace { path: path.clone() }
        );
        let overwrite = Wish {
            overwrite: true,
            ..PLAIN
        };
        assert_eq!(
            one(&path, &overwrite).unwrap(),
            Destination::New {
                path,
                overwrite: true
            }
        );
        let qcow2 = folder.path().join("b.qcow2");
        std::fs::write(&qcow2, "").unwrap();
        assert_eq!(one(&qcow2, &in_place).unwrap_err().kind(), Kind::Config);
        let missing = folder.path().join("none.raw");
        assert_eq!(one(&missing, &in_place).unwrap_err().kind(), Kind::Missing);
    }

    #[test]
    fn special_files_are_no_disks() {
        assert_eq!(
            one(Path::new("/dev/null"), &PLAIN).unwrap_err().kind(),
            Kind::Config
        );
    }

    #[test]
    fn several_disks_go_into_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let several = Wish {
            one: false,
            format: Some(Format::Vmdk),
            ..PLAIN
        };
        let disks = vec!["root".to_owned(), "data".to_owned()];
        let to = folder.path().join("new");
        let found = choose(&to, disks.clone(), &several).unwrap();
        let paths: Vec<_> = found.iter().map(Destination::path).collect();
        assert_eq!(paths, [to.join("root.vmdk"), to.join("data.vmdk")]);
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(
            choose(&file, disks, &several).unwrap_err().kind(),
            Kind::Config
        );
    }

    #[test]
    fn a_disk_name_cannot_leave_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["../x", "/etc/passwd", "..", ""] {
            let error = choose(folder.path(), vec![name.to_owned()], &PLAIN).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{name}");
        }
    }
}
