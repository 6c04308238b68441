//! Writes past the page cache.
//!
//! A restore writes every byte once and reads none of them: through the page cache each byte would be
//! copied once more, push out what the host's machines have there, and be written to the disk only
//! when the cache is full or at the final fsync. So large aligned pieces go to the disk at once
//! (`O_DIRECT`); the rest goes through the cache, which gathers it.
//!
//! Not a promise of durability: that is the final fsync's, for both ways. Where the file system or the
//! device does not take such writes, everything goes through the cache.

use crate::error::Result;
use crate::sparse;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Alignment of place, length and memory that every device takes: the page.
const ALIGNMENT: usize = 4096;

/// Pieces below this are left to the page cache: a disk asked for many small writes one by one is slower
/// than one that gets them sorted.
const DIRECT_BYTES_MIN: usize = 64 << 10;

/// A file or device open for writing both ways.
#[derive(Debug)]
pub(super) struct DirectFile {
    file: File,
    direct: Option<File>,
    /// Set when a direct write was refused for its shape.
    refused: AtomicBool,
}

impl DirectFile {
    /// Takes a file that is open for writing.
    pub(super) fn new(file: File) -> Self {
        // The very file that is open, whatever its name means by now.
        let direct = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_DIRECT | libc::O_NONBLOCK)
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
            .ok();
        Self {
            file,
            direct,
            refused: AtomicBool::new(false),
        }
    }

    /// The file, as it was taken.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Writes `bytes` at `offset`; `path` is for the error.
    pub(super) fn write_all_at(&self, path: &Path, offset: u64, bytes: &[u8]) -> Result<()> {
        let written = self.write_direct(offset, bytes);
        match bytes.get(written..) {
            Some(rest) if !rest.is_empty() => {
                sparse::write_all_at(&self.file, path, offset + written as u64, rest)
            }
            _ => Ok(()),
        }
    }

    /// How many bytes from the front went past the cache. What an error left unwritten is tried again
    /// through the cache, which then gives the error its name.
    fn write_direct(&self, offset: u64, bytes: &[u8]) -> usize {
        let Some(direct) = &self.direct else {
            return 0;
        };
        let is_aligned = offset.is_multiple_of(ALIGNMENT as u64)
            && bytes.as_ptr().align_offset(ALIGNMENT) == 0
            && bytes.len() >= DIRECT_BYTES_MIN;
        if !is_aligned || self.refused.load(Ordering::Relaxed) {
            return 0;
        }
        let whole = bytes.len() - bytes.len() % ALIGNMENT;
        match direct.write_at(&bytes[..whole], offset) {
            // A short write ends wherever it likes; the cache wants no alignment.
            Ok(written) => written,
            Err(error) => {
                if error.kind() == std::io::ErrorKind::InvalidInput {
                    self.refused.store(true, Ordering::Relaxed);
                }
                0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// Pieces of every alignment of place, length and memory, in an order that mixes both ways on
    /// neighbouring pages.
    #[test]
    fn both_ways_write_the_same_file() {
        let folder = tempfile::tempdir_in(".").unwrap();
        let path = folder.path().join("image");
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        let mut expected = vec![0; 8 << 20];
        file.set_len(expected.len() as u64).unwrap();
        let target = DirectFile::new(file);
        let mut source = vec![0; 2 << 20];
        blake3::Hasher::new().finalize_xof().fill(&mut source);
        let front = source.as_ptr().align_offset(ALIGNMENT);
        let mut direct = 0;
        for (number, length) in [4096, 65536, 65537, 66048, 262_144, 1_000_000, 131_072]
            .into_iter()
            .enumerate()
        {
            for shift in [0, 512, 1] {
                for place in [0, 4096, 512, 1, 3 << 20] {
                    let at = (number << 20) / 2 + place;
                    let bytes = &source[front + shift..front + shift + length];
                    direct += target.write_direct(at as u64, bytes);
                    target.write_all_at(&path, at as u64, bytes).unwrap();
                    expected[at..at + length].copy_from_slice(bytes);
                }
            }
        }
        assert!(std::fs::read(&path).unwrap() == expected);
        if target.direct.is_some() && !target.refused.load(Ordering::Relaxed) {
            assert!(direct > 0, "nothing went past the cache");
        }
    }
}
