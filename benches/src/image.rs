//! Raw images as the benches see them: a file and the extents that the file system has allocated.

use anyhow::{Context, Result, ensure};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const WINDOW_BYTES: usize = 1 << 20;

/// An open raw image.
pub(crate) struct Image {
    path: PathBuf,
    file: File,
    /// Virtual size.
    pub(crate) bytes: u64,
    /// What is allocated: sorted, disjoint.
    pub(crate) allocation: Vec<Range<u64>>,
}

impl Image {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let bytes = file.metadata()?.len();
        let mut allocation = Vec::new();
        let mut at = 0;
        loop {
            let start = match seek(&file, SeekFrom::Data(at)) {
                Ok(start) => start,
                // Nothing but a hole up to the end.
                Err(Errno::NXIO) => break,
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("ask {} for its extents", path.display()));
                }
            };
            let end = seek(&file, SeekFrom::Hole(start))?;
            allocation.push(start..end);
            at = end;
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            bytes,
            allocation,
        })
    }

    /// The `*.raw` files of a folder, by name.
    pub(crate) fn open_folder(folder: &Path) -> Result<Vec<Self>> {
        let entries =
            std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
        let mut paths = entries
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<Vec<_>>>()?;
        paths.retain(|path| path.extension().is_some_and(|suffix| suffix == "raw"));
        paths.sort();
        ensure!(
            !paths.is_empty(),
            "{} holds no *.raw file; benches/images makes some",
            folder.display()
        );
        paths.iter().map(|path| Self::open(path)).collect()
    }

    /// Where it was opened.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads all of it, so that it is in the page cache.
    pub(crate) fn warm(&self) -> Result<()> {
        let mut buffer = vec![0; WINDOW_BYTES];
        for window in self.windows(WINDOW_BYTES as u64) {
            let buffer = &mut buffer[..usize::try_from(window.end - window.start)?];
            self.read_at(window.start, buffer)?;
        }
        Ok(())
    }

    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file
            .read_exact_at(buffer, offset)
            .with_context(|| format!("read {} at {offset}", self.path.display()))
    }

    /// What is allocated, in windows of at most `window_bytes`.
    pub(crate) fn windows(&self, window_bytes: u64) -> Vec<Range<u64>> {
        let mut windows = Vec::new();
        for extent in &self.allocation {
            let mut at = extent.start;
            while at < extent.end {
                let end = (at + window_bytes).min(extent.end);
                windows.push(at..end);
                at = end;
            }
        }
        windows
    }

    /// Hands every block of 4 KiB that is not zero to `consume`, in order.
    pub(crate) fn each_block(&self, consume: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut buffer = vec![0; WINDOW_BYTES];
        for window in self.windows(WINDOW_BYTES as u64) {
            let buffer = &mut buffer[..usize::try_from(window.end - window.start)?];
            self.read_at(window.start, buffer)?;
            for block in buffer.chunks(4096) {
                if block.iter().any(|&byte| byte != 0) {
                    consume(block)?;
                }
            }
        }
        Ok(())
    }

    /// Fails unless the file at `path` has the same size and the same bytes.
    pub(crate) fn ensure_equal(&self, path: &Path) -> Result<()> {
        let other = Self::open(path)?;
        ensure!(
            self.bytes == other.bytes,
            "{} has {} bytes, expected {}",
            path.display(),
            other.bytes,
            self.bytes
        );
        // What neither has allocated is zero in both.
        let mut buffers = (vec![0; WINDOW_BYTES], vec![0; WINDOW_BYTES]);
        for image in [self, &other] {
            for window in image.windows(WINDOW_BYTES as u64) {
                let length = usize::try_from(window.end - window.start)?;
                self.read_at(window.start, &mut buffers.0[..length])?;
                other.read_at(window.start, &mut buffers.1[..length])?;
                ensure!(
                    buffers.0[..length] == buffers.1[..length],
                    "{} differs between byte {} and {}",
                    path.display(),
                    window.start,
                    window.end
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::Image;
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::path::{Path, PathBuf};

    /// A sparse file that holds `bytes` at the given offsets.
    fn file(folder: &Path, name: &str, length: u64, data: &[(u64, &[u8])]) -> PathBuf {
        let path = folder.join(name);
        let file = File::create_new(&path).unwrap();
        file.set_len(length).unwrap();
        for (offset, bytes) in data {
            file.write_all_at(bytes, *offset).unwrap();
        }
        path
    }

    #[test]
    fn every_difference_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name, length, data: &[(u64, &[u8])]| file(folder.path(), name, length, data);
        let length = 5 << 20;
        let image = Image::open(&path("image", length, &[(3 << 20, b"data")])).unwrap();

        let zeros = vec![0; 1 << 20];
        let same = path("same", length, &[(0, &zeros), (3 << 20, b"data")]);
        image.ensure_equal(&same).unwrap();
        for different in [
            path("longer", length + 1, &[(3 << 20, b"data")]),
            path("other", length, &[(3 << 20, b"dato")]),
            path("lost", length, &[]),
            path("more", length, &[(3 << 20, b"data"), (length - 1, b"x")]),
        ] {
            assert!(image.ensure_equal(&different).is_err(), "{different:?}");
        }
    }

    #[test]
    fn only_blocks_that_are_not_zero_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(
            folder.path(),
            "image",
            (1 << 20) + 100,
            &[(0, &[0; 4096]), (8192 + 4095, b"x"), (1 << 20, b"tail")],
        );
        let mut lengths = Vec::new();
        Image::open(&path)
            .unwrap()
            .each_block(&mut |block| {
                lengths.push(block.len());
                Ok(())
            })
            .unwrap();
        assert_eq!(lengths, [4096, 100]);
    }
}
