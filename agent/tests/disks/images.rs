//! A sample disk and images made of it.

use super::{MIB, run, sample_disk, text};
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tidegate_agent::error::Result;
use tidegate_agent::format::Format;
use tidegate_agent::source::{OpenSettings, Source, open_source};

pub const SIZE: u64 = 67 * MIB + 512;

pub struct Lab {
    pub folder: TempDir,
}

impl Lab {
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        sample_disk(&folder.path().join("disk.raw"), SIZE, 1);
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Converts the sample to `format` with `options`.
    pub fn convert(&self, name: &str, format: &str, options: &str) -> PathBuf {
        let image = self.path(name);
        let mut arguments = vec!["convert", "-f", "raw", "-O", format];
        if !options.is_empty() {
            arguments.extend(["-o", options]);
        }
        let disk = self.path("disk.raw");
        arguments.extend([text(&disk), text(&image)]);
        run("qemu-img", &arguments);
        image
    }
}

pub fn open(path: &Path) -> Result<Box<dyn Source>> {
    open_source(path, &OpenSettings::default())
}

pub fn open_as(path: &Path, format: Format) -> Result<Box<dyn Source>> {
    let settings = OpenSettings {
        format: Some(format),
        ..OpenSettings::default()
    };
    open_source(path, &settings)
}
