//! A file or device that is being filled, and goes to the disk meanwhile.
//!
//! Left alone, the page cache keeps what is written until there is too much of it, or until the final
//! fsync: the disk idles while a restore unpacks, and the restore while the disk writes. So every so
//! many bytes the disk is told to begin, and the cache to let go of what has reached it: nobody reads that
//! soon, and a disk's worth of it would push out what the host's machines have there. Not a promise of
//! durability: that is the final fsync's alone, which has little left to do.
//!
//! Writing past the cache (`O_DIRECT`) was measured as well: a disk restored from several generations
//! comes in pieces of some ten KiB, which the cache gathers and the disk would have to take one by one.

use crate::error::{Error, Result};
use crate::sparse;
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};
use rustix::io::Errno;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes after which the disk is told to begin: enough for it to sort, little enough to overlap.
const BEGIN_EVERY_BYTES: u64 = 128 << 20;

/// A file open for writing.
#[derive(Debug)]
pub(super) struct Filling {
    file: File,
    written_bytes: AtomicU64,
}

impl Filling {
    pub(super) fn new(file: File) -> Self {
        Self {
            file,
            written_bytes: AtomicU64::new(0),
        }
    }

    /// The file, as it was taken.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Makes room for what is about to be written. Where there is not enough, all of it is given back:
    /// the ranges become holes. `path` is for the error.
    pub(super) fn reserve(&self, path: &Path, ranges: &[Range<u64>]) -> Result<()> {
        for (number, range) in ranges.iter().enumerate() {
            let length = range.end - range.start;
            match fallocate(&self.file, FallocateFlags::KEEP_SIZE, range.start, length) {
                Ok(()) => {}
                Err(error @ (Errno::NOSPC | Errno::DQUOT)) => {
                    for range in &ranges[..=number] {
                        sparse::zero(&self.file, path, range.clone(), 1)?;
                    }
                    let what = format!("cannot make room for {length} bytes in {}", path.display());
                    return Err(Error::io(what, error.into()));
                }
                // Not every file system can; writing shows what is really wrong.
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Writes `bytes` at `offset`; `path` is for the error.
    pub(super) fn write_all_at(&self, path: &Path, offset: u64, bytes: &[u8]) -> Result<()> {
        sparse::write_all_at(&self.file, path, offset, bytes)?;
        let length = bytes.len() as u64;
        let before = self.written_bytes.fetch_add(length, Ordering::Relaxed);
        if before / BEGIN_EVERY_BYTES != (before + length) / BEGIN_EVERY_BYTES {
            // Begins to write what is dirty, and drops what is clean. A hint: where it is not taken, the
            // fsync does all the work.
            let _ = fadvise(&self.file, 0, None, Advice::DontNeed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use std::os::unix::fs::MetadataExt;

    /// Room is made where it was asked for, and nowhere else; it reads as zeros until it is written.
    #[test]
    fn reserved_room_is_taken_and_reads_as_zeros() {
        let folder = tempfile::tempdir_in(".").unwrap();
        let path = folder.path().join("image");
        let file = File::create_new(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        let target = Filling::new(file);
        target
            .reserve(&path, &[0..1 << 20, (10 << 20)..(12 << 20)])
            .unwrap();
        let taken_bytes = target.file().metadata().unwrap().blocks() * 512;
        assert!(taken_bytes <= 4 << 20, "{taken_bytes} bytes");
        let place = (11 << 20) + 512;
        target.write_all_at(&path, place, &[7; 5000]).unwrap();
        let read = std::fs::read(&path).unwrap();
        assert_eq!(read.len(), 64 << 20);
        let start = usize::try_from(place).unwrap();
        assert!(read[start..start + 5000].iter().all(|byte| *byte == 7));
        assert_eq!(read.iter().filter(|byte| **byte != 0).count(), 5000);
    }
}
