//! Raw images as the benches see them: a file and the extents that the file system has allocated.

use anyhow::{Context, Result};
use rustix::fs::{SeekFrom, seek};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

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
        while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
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
        anyhow::ensure!(
            !paths.is_empty(),
            "{} holds no *.raw file; benches/images makes some",
            folder.display()
        );
        paths.iter().map(|path| Self::open(path)).collect()
    }

    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file
            .read_exact_at(buffer, offset)
            .with_context(|| format!("read {} at {offset}", self.path.display()))
    }
}
