//! A new image file, written sparsely.
//!
//! Not a converter: it writes raw images only. The invariant: under its final name there is the
//! whole durable image or nothing of ours; until [`Target::finish`] the bytes stand in
//! `<path>.tidegate-partial`, which stays behind when a restore is interrupted, so that it can be
//! resumed. At most one process writes to a partial file, held by a lock that dies with it.

use super::Target;
use super::filling::Filling;
use crate::durable;
use crate::error::{Error, Kind, Result};
use crate::sparse;
use rustix::fs::{CWD, FlockOperation, RenameFlags};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What an unfinished target's name ends with.
pub const PARTIAL_SUFFIX: &str = ".tidegate-partial";

/// Where the target of `path` stands until it is finished: beside it, so that the last rename stays
/// within one file system.
///
/// # Errors
/// [`Kind::Config`] when `path` names no file (`/`, `..`).
pub fn partial_path(path: &Path) -> Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(Error::new(
            Kind::Config,
            format!("{} does not name a file", path.display()),
        )
        .advise("give the new image a file name"));
    };
    let mut name = name.to_owned();
    name.push(PARTIAL_SUFFIX);
    Ok(path.with_file_name(name))
}

/// Starts a new sparse raw image of `size_bytes` that will be named `path`. Only its owner may read
/// it.
///
/// # Errors
/// [`Kind::Conflict`] when `path` exists and `overwrite` is false, or when an unfinished target
/// stands there.
pub fn create_file(path: &Path, size_bytes: u64, overwrite: bool) -> Result<Box<dyn Target>> {
    let partial = claim(path, overwrite)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&partial)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => unfinished(&partial),
            _ => Error::io(format!("cannot create {}", partial.display()), error),
        })?;
    lock(&file, &partial)?;
    set_length(&file, &partial, size_bytes).inspect_err(|_| {
        // Nothing is in it yet: do not leave it in the way of the next attempt.
        let _ = std::fs::remove_file(&partial);
    })?;
    Ok(Box::new(FileTarget {
        file: Filling::new(file),
        partial,
        path: path.to_owned(),
        overwrite,
        fresh: true,
    }))
}

/// Takes up the unfinished target of `path` that an interrupted restore left behind. What it holds
/// is not believed: [`Target::reads_zero`] is false.
///
/// # Errors
/// [`Kind::Missing`] when there is none; [`Kind::Conflict`] when another process is writing it, when
/// `path` exists and `overwrite` is false, or when it was begun for a disk of another size.
pub fn resume_partial(path: &Path, size_bytes: u64, overwrite: bool) -> Result<Box<dyn Target>> {
    let partial = claim(path, overwrite)?;
    let cannot = |error| Error::io(format!("cannot open {}", partial.display()), error);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(&partial)
        .map_err(cannot)?;
    lock(&file, &partial)?;
    let found = file.metadata().map_err(cannot)?;
    if found.is_file() && found.len() == 0 {
        // Whoever made it was killed before it had its length.
        set_length(&file, &partial, size_bytes)?;
    } else if !found.is_file() || found.len() != size_bytes {
        return Err(Error::new(
            Kind::Conflict,
            format!(
                "{} was begun for another disk: expected a file of {size_bytes} bytes, found {} bytes",
                partial.display(),
                found.len()
            ),
        )
        .advise("delete it, then restore from the beginning"));
    }
    Ok(Box::new(FileTarget {
        file: Filling::new(file),
        partial,
        path: path.to_owned(),
        overwrite,
        fresh: false,
    }))
}

fn set_length(file: &File, partial: &Path, size_bytes: u64) -> Result<()> {
    file.set_len(size_bytes).map_err(|error| {
        Error::io(
            format!("cannot make {} {size_bytes} bytes long", partial.display()),
            error,
        )
    })
}

/// The partial name for `path`, when `path` may be taken.
pub(super) fn claim(path: &Path, overwrite: bool) -> Result<PathBuf> {
    let partial = partial_path(path)?;
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_file() && overwrite => {}
        Ok(found) if found.is_file() => return Err(exists(path)),
        Ok(_) => {
            return Err(Error::new(
                Kind::Config,
                format!(
                    "{} cannot become an image: expected a new name or a regular file, found \
                     something else",
                    path.display()
                ),
            )
            .advise("name a new file; to write onto an existing device, restore in place"));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(Error::io(
                format!("cannot look at {}", path.display()),
                error,
            ));
        }
    }
    Ok(partial)
}

fn exists(path: &Path) -> Error {
    Error::new(Kind::Conflict, format!("{} exists already", path.display()))
        .advise("choose another name, restore in place, or ask to overwrite it")
}

pub(super) fn unfinished(partial: &Path) -> Error {
    Error::new(
        Kind::Conflict,
        format!(
            "{} is there already: another restore is running or was interrupted",
            partial.display()
        ),
    )
    .advise("resume it, or delete that file to start again")
}

/// Makes us the only writer of `partial`, a file or a folder.
pub(super) fn lock(file: &File, partial: &Path) -> Result<()> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            return Err(Error::new(
                Kind::Conflict,
                format!("{} is being written by another process", partial.display()),
            )
            .advise("wait until that restore has ended"));
        }
        // A file system without locks: the exclusive creation is all there is.
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOLCK | Errno::INVAL) => return Ok(()),
        Err(error) => {
            return Err(Error::io(
                format!("cannot lock {}", partial.display()),
                error.into(),
            ));
        }
    }
    // Whoever held the lock a moment ago may have finished and renamed this very file.
    let ours = file
        .metadata()
        .map_err(|error| Error::io(format!("cannot look at {}", partial.display()), error))?;
    match std::fs::symlink_metadata(partial) {
        Ok(named) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => Ok(()),
        _ => Err(Error::new(
            Kind::Conflict,
            format!("{} was taken away by another process", partial.display()),
        )
        .advise("look at what stands there now, then run the command again")),
    }
}

/// Gives the finished, durable file at `partial` the name `path`, durably.
pub(super) fn publish(partial: &Path, path: &Path, overwrite: bool) -> Result<()> {
    let cannot = |error: std::io::Error| {
        Error::io(
            format!("cannot rename {} to {}", partial.display(), path.display()),
            error,
        )
    };
    if overwrite {
        std::fs::rename(partial, path).map_err(cannot)?;
    } else {
        match rustix::fs::renameat_with(CWD, partial, CWD, path, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(exists(path)),
            // File systems that cannot rename without replacing (NFS, some FUSE) can still link
            // without replacing.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                std::fs::hard_link(partial, path).map_err(|error| match error.kind() {
                    std::io::ErrorKind::AlreadyExists => exists(path),
                    _ => cannot(error),
                })?;
                std::fs::remove_file(partial).map_err(cannot)?;
            }
            Err(error) => return Err(cannot(error.into())),
        }
    }
    let folder = durable::folder_of(path);
    durable::fsync_folder(folder)
        .map_err(|error| Error::io(format!("cannot make {} durable", folder.display()), error))
}

#[derive(Debug)]
struct FileTarget {
    file: Filling,
    partial: PathBuf,
    path: PathBuf,
    overwrite: bool,
    /// Nobody wrote to this file before us.
    fresh: bool,
}

impl Target for FileTarget {
    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    fn reads_zero(&self) -> bool {
        self.fresh
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        sparse::read_exact_at(self.file.file(), &self.partial, offset, buffer)
    }

    fn allocation(&self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        sparse::data_extents(self.file.file(), &self.partial, range)
    }

    fn reserve(&self, ranges: &[Range<u64>]) -> Result<()> {
        self.file.reserve(&self.partial, ranges)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(&self.partial, offset, bytes)
    }

    fn write_zeros(&self, range: Range<u64>) -> Result<()> {
        sparse::zero(self.file.file(), &self.partial, range, 1)
    }

    fn finish(&self) -> Result<()> {
        self.file.file().sync_all().map_err(|error| {
            Error::io(
                format!("cannot make {} durable", self.partial.display()),
                error,
            )
        })?;
        publish(&self.partial, &self.path, self.overwrite)
    }
}
