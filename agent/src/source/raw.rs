//! Raw images: regular files and block devices, read natively.
//!
//! Not a snapshot: whoever opens a disk here has frozen it, or accepts what is read. The invariants:
//! a source is never written to; its size is the size at opening, and a file that has become shorter
//! is an error, never zeros; nothing is mapped into memory, so no change from outside can kill us.

use super::{Source, SourceReader};
use crate::error::{Error, Kind, Result};
use crate::sparse::{self, QemuUse};
use rustix::fs::Advice;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A raw disk image in a regular file, or a block device.
#[derive(Debug)]
pub struct RawSource {
    disk: Arc<Disk>,
}

#[derive(Debug)]
struct Disk {
    path: PathBuf,
    file: File,
    size_bytes: u64,
}

impl RawSource {
    /// Opens `path` read-only.
    ///
    /// # Errors
    /// [`Kind::BadInput`] for a directory, pipe, socket or character device; [`Kind::Conflict`]
    /// when a running QEMU has the image open for writing.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open_disk(path)?;
        if sparse::in_use_by_qemu(&file, QemuUse::Writing) {
            return Err(Error::new(
                Kind::Conflict,
                format!("{} is being written by a running QEMU", path.display()),
            )
            .advise("shut the machine down, or back up a snapshot of the disk"));
        }
        // Seeking to the end gives the size of block devices too, where metadata says 0.
        let size_bytes = (&file).seek(SeekFrom::End(0)).map_err(|error| {
            Error::io(format!("cannot find the size of {}", path.display()), error)
        })?;
        Ok(Self {
            disk: Arc::new(Disk {
                path: path.to_owned(),
                file,
                size_bytes,
            }),
        })
    }
}

/// Opens what may hold a disk, read-only, and refuses everything else before it can block.
pub(super) fn open_disk(path: &Path) -> Result<File> {
    let cannot = |error| Error::io(format!("cannot open {}", path.display()), error);
    // Asked twice: before opening, because merely opening a tape or a modem has effects; after it,
    // because the name may mean something else by then.
    ensure_disk(path, std::fs::metadata(path).map_err(cannot)?.file_type())?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(cannot)?;
    ensure_disk(path, file.metadata().map_err(cannot)?.file_type())?;
    Ok(file)
}

fn ensure_disk(path: &Path, found: std::fs::FileType) -> Result<()> {
    if found.is_file() || found.is_block_device() {
        return Ok(());
    }
    let found = if found.is_dir() {
        "a directory"
    } else if found.is_fifo() {
        "a pipe"
    } else if found.is_socket() {
        "a socket"
    } else if found.is_char_device() {
        "a character device"
    } else {
        "something else"
    };
    Err(Error::new(
        Kind::BadInput,
        format!(
            "{} is no disk: expected an image file or a block device, found {found}",
            path.display()
        ),
    )
    .advise("name the image file itself"))
}

impl Source for RawSource {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes
    }

    fn describe(&self) -> String {
        self.disk.path.display().to_string()
    }

    fn reader(&self) -> Result<Box<dyn SourceReader>> {
        Ok(Box::new(RawReader {
            disk: Arc::clone(&self.disk),
        }))
    }
}

/// Readers share one open file: positioned reads do not disturb each other, and a file renamed
/// over the path meanwhile cannot mix two disks.
struct RawReader {
    disk: Arc<Disk>,
}

impl SourceReader for RawReader {
    fn allocation(&mut self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        let Disk {
            path,
            file,
            size_bytes,
        } = &*self.disk;
        let clipped = range.start..range.end.min(*size_bytes);
        sparse::data_extents(file, path, clipped)
    }

    fn prefetch(&mut self, range: Range<u64>) {
        let end = range.end.min(self.disk.size_bytes);
        if let Some(length) = NonZeroU64::new(end.saturating_sub(range.start)) {
            // A hint: where it fails, reading is merely slower.
            let _ =
                rustix::fs::fadvise(&self.disk.file, range.start, Some(length), Advice::WillNeed);
        }
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        sparse::read_exact_at(&self.disk.file, &self.disk.path, offset, buffer)
    }
}
