//! Holes in files, and who else has a disk file open: the few system calls that [`source`] and
//! [`target`] share.
//!
//! Not a file abstraction: it works on `std::fs::File` and keeps no state. Its invariant: a range
//! that it does not report as data reads as zeros, and a file that has become shorter is an error,
//! never a hole.
//!
//! [`source`]: crate::source
//! [`target`]: crate::target

use crate::error::{Error, Kind, Result};
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The extents inside `range` that may hold data: sorted, disjoint, not empty, clipped.
///
/// `range` must lie inside the file. Files and devices that cannot tell answer with the whole of
/// `range`. The file's cursor moves, which nobody else may rely on; positioned reads and writes go
/// on undisturbed.
///
/// # Errors
/// [`Kind::BadInput`] when the file has become shorter than `range`.
pub(crate) fn data_extents(file: &File, path: &Path, range: Range<u64>) -> Result<Vec<Range<u64>>> {
    let mut extents = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Past the last data: a hole up to the end, unless the end itself has moved.
            Err(Errno::NXIO) => {
                ensure_reaches(file, path, range.end)?;
                break;
            }
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                extents.push(at..range.end);
                break;
            }
            Err(error) => return Err(seek_error(path, at, error)),
        };
        if data >= range.end {
            break;
        }
        let hole = match rustix::fs::seek(file, SeekFrom::Hole(data)) {
            // Neither the file's new, nearer end nor a confused file system may shorten an extent
            // to nothing.
            Ok(hole) if hole > data => hole.min(range.end),
            Ok(_) | Err(Errno::NXIO) => range.end,
            Err(error) => return Err(seek_error(path, data, error)),
        };
        extents.push(data..hole);
        at = hole;
    }
    Ok(extents)
}

/// Fails when the file ends before `end`.
fn ensure_reaches(file: &File, path: &Path, end: u64) -> Result<()> {
    let length =
        rustix::fs::seek(file, SeekFrom::End(0)).map_err(|error| seek_error(path, end, error))?;
    if length < end {
        return Err(became_shorter(path, end, length));
    }
    Ok(())
}

fn seek_error(path: &Path, at: u64, error: Errno) -> Error {
    Error::io(
        format!("cannot look for holes in {} at offset {at}", path.display()),
        error.into(),
    )
}

fn became_shorter(path: &Path, end: u64, length: u64) -> Error {
    Error::new(
        Kind::BadInput,
        format!(
            "{} became shorter while it was read: expected at least {end} bytes, found {length}",
            path.display()
        ),
    )
    .advise("take the image out of use, or read a snapshot of it")
}

/// Fills `buffer` from `offset`.
///
/// # Errors
/// [`Kind::BadInput`] with the offset and what was found when the file ends too early.
pub(crate) fn read_exact_at(
    file: &File,
    path: &Path,
    mut offset: u64,
    mut buffer: &mut [u8],
) -> Result<()> {
    let (start, wanted) = (offset, buffer.len());
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => {
                return Err(Error::new(
                    Kind::BadInput,
                    format!(
                        "{} ends at offset {offset}: expected {wanted} bytes at offset {start}, \
                         found {}",
                        path.display(),
                        wanted - buffer.len(),
                    ),
                )
                .advise("take the image out of use, or read a snapshot of it"));
            }
            Ok(count) => {
                offset += count as u64;
                buffer = buffer.split_at_mut(count).1;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(Error::io(
                    format!(
                        "cannot read {} bytes of {} at offset {offset}",
                        buffer.len(),
                        path.display()
                    ),
                    error,
                ));
            }
        }
    }
    Ok(())
}

/// Writes all of `bytes` at `offset`.
pub(crate) fn write_all_at(file: &File, path: &Path, offset: u64, bytes: &[u8]) -> Result<()> {
    file.write_all_at(bytes, offset).map_err(|error| {
        Error::io(
            format!(
                "cannot write {} bytes to {} at offset {offset}",
                bytes.len(),
                path.display()
            ),
            error,
        )
    })
}

/// Makes `range` read as zeros: by a hole where file system or device can, by writing zeros
/// elsewhere. `unit_bytes` is what the file's holes must be aligned to (a device's logical block).
///
/// The file's length does not change; `range` must lie inside it.
pub(crate) fn zero(file: &File, path: &Path, range: Range<u64>, unit_bytes: u64) -> Result<()> {
    let inner_start = range.start.next_multiple_of(unit_bytes).min(range.end);
    let inner_end = (range.end - range.end % unit_bytes).max(inner_start);
    write_zeros(file, path, range.start..inner_start)?;
    if !punch(file, path, inner_start..inner_end)? {
        write_zeros(file, path, inner_start..inner_end)?;
    }
    write_zeros(file, path, inner_end..range.end)
}

/// Punches a hole, or zeroes the range in the device; false when neither is possible here.
fn punch(file: &File, path: &Path, range: Range<u64>) -> Result<bool> {
    if range.is_empty() {
        return Ok(true);
    }
    // Both calls promise zeros to later readers. Devices that cannot unmap to zeros refuse the
    // first; the second lets the kernel or the device write them.
    let ways = [
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
    ];
    for way in ways {
        match retry(|| rustix::fs::fallocate(file, way, range.start, range.end - range.start)) {
            Ok(()) => return Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => {}
            Err(error) => {
                return Err(Error::io(
                    format!(
                        "cannot zero bytes {} to {} of {}",
                        range.start,
                        range.end,
                        path.display()
                    ),
                    error.into(),
                ));
            }
        }
    }
    Ok(false)
}

fn write_zeros(file: &File, path: &Path, range: Range<u64>) -> Result<()> {
    /// One write's worth of zeros.
    const ZEROS: &[u8] = &[0; 256 << 10];
    let mut at = range.start;
    while at < range.end {
        let count =
            usize::try_from(range.end - at).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
        write_all_at(file, path, at, &ZEROS[..count])?;
        at += count as u64;
    }
    Ok(())
}

/// What a running QEMU does with an image, as its locks tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QemuUse {
    /// Any use, also reading.
    Any,
    /// Writing.
    Writing,
}

/// True when another process holds QEMU's advisory lock for `usage` on the image.
///
/// QEMU (and qemu-img) place a shared lock on one byte for every permission that they hold: byte
/// 100 for consistent reading, 101 for writing, then unchanged writing, resizing. A file system
/// without locks answers false.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the lock constants are small numbers whose C type differs from the field's"
)]
pub(crate) fn in_use_by_qemu(file: &File, usage: QemuUse) -> bool {
    let (start, length) = match usage {
        QemuUse::Any => (100, 8),
        QemuUse::Writing => (101, 1),
    };
    // SAFETY: an all-zero `flock` is a valid value of this plain C structure.
    let mut probe: libc::flock = unsafe { std::mem::zeroed() };
    probe.l_type = libc::F_WRLCK as _;
    probe.l_whence = libc::SEEK_SET as _;
    probe.l_start = start;
    probe.l_len = length;
    // `rustix::process::fcntl_getlk` cannot be used: QEMU's locks belong to open files, the kernel
    // reports their owner as -1, and rustix takes that for a broken promise.
    //
    // SAFETY: the descriptor is open for the whole call, and `F_GETLK` takes a pointer to one
    // `flock`, which it only fills in.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &raw mut probe) };
    answer == 0 && probe.l_type != libc::F_UNLCK as libc::c_short
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            outcome => return outcome,
        }
    }
}
