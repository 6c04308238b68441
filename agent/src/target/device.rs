//! An existing block device or image file, written in place.
//!
//! Not recognisable as unfinished: what stood there is being replaced block by block, which is what
//! the operator asked for. The invariants: a device or image that is in use is refused; nothing
//! behind the disk's size is written; an image that is larger than the disk is refused, because it
//! is most likely the wrong one.

use super::Target;
use super::filling::Filling;
use crate::error::{Error, Kind, Result};
use crate::sparse::{self, QemuUse};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Opens `path`, a block device or a raw image file, to make it hold a disk of `size_bytes`.
///
/// A shorter image file grows. A longer device keeps what lies behind the disk.
///
/// # Errors
/// [`Kind::Missing`] when nothing is there; [`Kind::Conflict`] when it is mounted or open in QEMU
/// or in another restore; [`Kind::NoSpace`] when the device is too small; [`Kind::Config`] when the
/// image is larger than the disk, or neither file nor device.
pub fn open_in_place(path: &Path, size_bytes: u64) -> Result<Box<dyn Target>> {
    let cannot = |error| Error::io(format!("cannot open {}", path.display()), error);
    let kind = std::fs::metadata(path).map_err(cannot)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::new(
            Kind::Config,
            format!(
                "{} cannot hold a disk: expected an image file or a block device",
                path.display()
            ),
        ));
    }
    // On a block device O_EXCL (without O_CREAT) fails when it is mounted or part of a volume.
    let exclusive = if kind.is_block_device() {
        libc::O_EXCL
    } else {
        0
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(exclusive | libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::ResourceBusy => in_use(path, "mounted or held by a volume"),
            _ => cannot(error),
        })?;
    if file.metadata().map_err(cannot)?.file_type() != kind {
        return Err(in_use(path, "being replaced by something else"));
    }
    if sparse::in_use_by_qemu(&file, QemuUse::Any) {
        return Err(in_use(path, "open in QEMU"));
    }
    // Any other failure is a file system without locks, which has nothing to say.
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK)
    {
        return Err(in_use(path, "locked by another process"));
    }
    let found_bytes = (&file).seek(SeekFrom::End(0)).map_err(cannot)?;
    let unit_bytes = if kind.is_block_device() {
        ensure_fits(path, size_bytes, found_bytes)?;
        // Every logical block size divides the page.
        rustix::fs::ioctl_blksszget(&file)
            .map_or(4096, u64::from)
            .max(512)
    } else {
        fit(&file, path, size_bytes, found_bytes)?;
        1
    };
    Ok(Box::new(InPlace {
        file: Filling::new(file),
        path: path.to_owned(),
        unit_bytes,
    }))
}

fn in_use(path: &Path, how: &str) -> Error {
    Error::new(Kind::Conflict, format!("{} is {how}", path.display()))
        .advise("shut down what uses it, then run the command again")
}

fn ensure_fits(path: &Path, size_bytes: u64, found_bytes: u64) -> Result<()> {
    if found_bytes < size_bytes {
        return Err(Error::new(
            Kind::NoSpace,
            format!(
                "{} is too small: the disk has {size_bytes} bytes, the device {found_bytes}",
                path.display()
            ),
        )
        .advise("enlarge the device, or choose another"));
    }
    Ok(())
}

fn fit(file: &File, path: &Path, size_bytes: u64, found_bytes: u64) -> Result<()> {
    if found_bytes > size_bytes {
        return Err(Error::new(
            Kind::Config,
            format!(
                "{} is larger than the disk: expected at most {size_bytes} bytes, found \
                 {found_bytes}",
                path.display()
            ),
        )
        .advise("make sure that it is the right image, then cut it to size with truncate(1)"));
    }
    file.set_len(size_bytes).map_err(|error| {
        Error::io(
            format!("cannot make {} {size_bytes} bytes long", path.display()),
            error,
        )
    })
}

#[derive(Debug)]
struct InPlace {
    file: Filling,
    path: PathBuf,
    /// What holes must be aligned to.
    unit_bytes: u64,
}

impl Target for InPlace {
    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    fn reads_zero(&self) -> bool {
        false
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        sparse::read_exact_at(self.file.file(), &self.path, offset, buffer)
    }

    fn allocation(&self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        sparse::data_extents(self.file.file(), &self.path, range)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(&self.path, offset, bytes)
    }

    fn write_zeros(&self, range: Range<u64>) -> Result<()> {
        sparse::zero(self.file.file(), &self.path, range, self.unit_bytes)
    }

    fn finish(&self) -> Result<()> {
        self.file.file().sync_all().map_err(|error| {
            Error::io(
                format!("cannot make {} durable", self.path.display()),
                error,
            )
        })
    }
}
