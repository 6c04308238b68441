//! Where a snapshot keeps what the guest overwrites, and how much of it there may be.
//!
//! The files have no name: they are handed to QEMU open, so it needs no right to the folder, and
//! the system takes their space back when QEMU lets go of them, whoever is killed. The invariant:
//! the snapshot is given up before the folder's file system has less than the reserve left for
//! everybody else. Between two looks, and when we are dead, each file is bounded by QEMU.

use crate::error::{Error, Kind, Result};
use rustix::fs::fstatvfs;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The least that a snapshot may be allowed, in bytes: an empty image and a few writes.
pub const SCRATCH_BYTES_MIN: u64 = 16 << 20;
/// Limits of files are multiples of it, in bytes: a cluster of their format.
const LIMIT_ALIGNMENT_BYTES: u64 = 64 << 10;

/// Room for a machine's snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScratchSettings {
    /// A folder on a file system with room.
    pub folder: PathBuf,
    /// The most that one machine's snapshot may take there, in bytes; at least [`SCRATCH_BYTES_MIN`].
    pub bytes_max: u64,
    /// What must stay free there for everybody else, in bytes.
    pub reserve_bytes: u64,
}

/// The scratch files of one snapshot.
#[derive(Debug)]
pub(super) struct Scratch {
    settings: ScratchSettings,
    files: Vec<Part>,
}

/// What to do where there is no folder.
pub(super) const NEEDED: &str =
    "make it, open to this program, or name another: --scratch DIR, or service.scratch_dir";

#[derive(Debug)]
struct Part {
    file: File,
    disk: String,
    limit_bytes: u64,
}

impl Scratch {
    /// Checks that there is room at all.
    pub(super) fn new(settings: ScratchSettings) -> Result<Self> {
        if settings.bytes_max < SCRATCH_BYTES_MIN {
            return Err(Error::new(
                Kind::Config,
                format!(
                    "{} bytes of scratch space are too few: {SCRATCH_BYTES_MIN} at least",
                    settings.bytes_max
                ),
            ));
        }
        let scratch = Self {
            settings,
            files: Vec::new(),
        };
        let folder = File::open(&scratch.settings.folder).map_err(|error| {
            Error::io(
                format!(
                    "cannot open the scratch folder {}",
                    scratch.settings.folder.display()
                ),
                error,
            )
            .advise(NEEDED)
        })?;
        match scratch.lacking(&folder)? {
            None => Ok(scratch),
            Some(why) => Err(no_space(why)),
        }
    }

    /// A file for a disk: itself, and the most that it may become, in bytes.
    pub(super) fn file(&mut self, disk: &str, disk_bytes: u64) -> Result<(&File, u64)> {
        let file = tempfile::tempfile_in(&self.settings.folder).map_err(|error| {
            Error::io(
                format!(
                    "cannot make a scratch file in {}",
                    self.settings.folder.display()
                ),
                error,
            )
        })?;
        // What the image format adds: an eighth of a thousandth, and its head.
        let whole = disk_bytes.saturating_add(disk_bytes / 1024 + (4 << 20));
        let limit_bytes = whole.min(self.settings.bytes_max);
        let limit_bytes = limit_bytes - limit_bytes % LIMIT_ALIGNMENT_BYTES;
        self.files.push(Part {
            file,
            disk: disk.to_owned(),
            limit_bytes,
        });
        let part = &self.files[self.files.len() - 1];
        Ok((&part.file, limit_bytes))
    }

    /// Why the snapshot has to be given up, where it has to.
    pub(super) fn exceeded(&self) -> Result<Option<String>> {
        let mut used_bytes = 0_u64;
        for part in &self.files {
            let used = part.used_bytes()?;
            // The last cluster may not fit any more.
            if used + LIMIT_ALIGNMENT_BYTES > part.limit_bytes {
                return Ok(Some(format!(
                    "the snapshot of disk {} has filled its {} bytes of scratch space",
                    part.disk, part.limit_bytes
                )));
            }
            used_bytes += used;
        }
        if used_bytes > self.settings.bytes_max {
            return Ok(Some(format!(
                "the snapshot takes {used_bytes} bytes of scratch space, of {} allowed",
                self.settings.bytes_max
            )));
        }
        match self.files.first() {
            Some(part) => self.lacking(&part.file),
            None => Ok(None),
        }
    }

    /// Lets go of the files.
    pub(super) fn close(&mut self) {
        self.files.clear();
    }

    fn lacking(&self, there: &File) -> Result<Option<String>> {
        lacking(&self.settings, there)
    }
}

/// Why there is no room where `there` is, if there is none.
pub(super) fn lacking(settings: &ScratchSettings, there: &File) -> Result<Option<String>> {
    let folder = &settings.folder;
    let room = fstatvfs(there).map_err(|error| cannot_look(folder, error.into()))?;
    let free_bytes = room.f_bavail.saturating_mul(room.f_frsize);
    // Without room for a cluster it is full, whatever is to stay free.
    let reserve_bytes = settings.reserve_bytes.max(LIMIT_ALIGNMENT_BYTES);
    Ok((free_bytes < reserve_bytes).then(|| {
        format!(
            "the scratch folder {} has {free_bytes} bytes left, and {reserve_bytes} are to stay free",
            folder.display(),
        )
    }))
}

impl Part {
    fn used_bytes(&self) -> Result<u64> {
        let metadata = self
            .file
            .metadata()
            .map_err(|error| cannot_look(Path::new("a scratch file"), error))?;
        Ok(metadata.blocks().saturating_mul(512))
    }
}

fn cannot_look(at: &Path, error: std::io::Error) -> Error {
    Error::io(format!("cannot look at {}", at.display()), error)
}

/// The error of a snapshot that there is no room for.
pub(super) fn no_space(why: String) -> Error {
    Error::new(Kind::NoSpace, why).advise(
        "give the snapshot more scratch space, or a folder with more room; the machine itself goes on unharmed",
    )
}
