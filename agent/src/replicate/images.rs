//! Image files → the disks of a machine, named after their files.

use super::DiskToBackUp;
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result};
use crate::format::Format;
use crate::name;
use crate::repository::Repository;
use crate::source::{Memory, OpenSettings, Remembered, Source, Stamp, open_snapshot, open_source};
use std::collections::HashSet;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tidegate_protocol::ids::PointId;
use tidegate_protocol::record::Role;

/// Opens the images; each disk is named after its file, with a number behind it where two are alike.
///
/// # Errors
/// As [`open_source`]; [`Kind::Config`] where no name can be made from a path.
pub async fn open_images(images: &[PathBuf], how: &OpenSettings) -> Result<Vec<DiskToBackUp>> {
    let names = disk_names(images)?;
    let mut disks = Vec::with_capacity(images.len());
    for (name, path) in names.into_iter().zip(images) {
        let (path, how) = (path.clone(), how.clone());
        let (source, format) = blocking(move || {
            let source: Arc<dyn Source> = Arc::from(open_source(&path, &how)?);
            Ok((source, format_of(&path, how.format)))
        })
        .await?;
        disks.push(DiskToBackUp {
            name,
            source,
            format: format.to_string(),
            role: Role::Disk,
        });
    }
    Ok(disks)
}

/// The same of snapshots, images that nobody writes to any more, as disks of `machine`; each disk is
/// named after the lowest image of its chain, and where an image below it is known to be the content of a
/// point, what was written since is known too. The stamps are for [`remember`].
///
/// # Errors
/// As [`open_images`], and as the repository's local state.
pub async fn open_snapshots(
    repository: &Arc<Repository>,
    machine: &str,
    images: &[PathBuf],
    how: &OpenSettings,
) -> Result<(Vec<DiskToBackUp>, Vec<Stamp>)> {
    repository.refresh().await?;
    let memory = Arc::new(Images::of(repository, machine)?);
    let mut snapshots = Vec::with_capacity(images.len());
    for path in images {
        let (path, how, memory) = (path.clone(), how.clone(), Arc::clone(&memory));
        let open = move || {
            let format = format_of(&path, how.format);
            Ok((open_snapshot(&path, &how, &*memory)?, format))
        };
        snapshots.push(blocking(open).await?);
    }
    let bases: Vec<PathBuf> = snapshots.iter().map(|(it, _)| it.base.clone()).collect();
    let named = disk_names(&bases)?.into_iter().zip(snapshots);
    let mut stamps = Vec::with_capacity(images.len());
    let disks = named.map(|(name, (snapshot, format))| {
        let (source, stamp) = snapshot.named(&name);
        stamps.extend(stamp);
        DiskToBackUp {
            name,
            source,
            format: format.to_string(),
            role: Role::Disk,
        }
    });
    Ok((disks.collect(), stamps))
}

/// Remembers of images that they are the content of `point`, which was committed. Where that cannot be,
/// the next backup reads all.
pub async fn remember(repository: &Arc<Repository>, stamps: Vec<Stamp>, point: PointId) {
    let repository = Arc::clone(repository);
    let remembered = blocking(move || {
        for stamp in stamps {
            let (image, remembered) = stamp.at(point);
            repository.catalogue().set_image(&image, &remembered)?;
        }
        Ok(())
    });
    if let Err(error) = remembered.await {
        tracing::warn!(
            error = error.chain(),
            "the next backup will read all of the disks"
        );
    }
}

/// What is known here of images, and the points of a machine.
pub(super) struct Images {
    repository: Arc<Repository>,
    standing: HashSet<PointId>,
}

impl Images {
    pub(super) fn of(repository: &Arc<Repository>, machine: &str) -> Result<Self> {
        let points = repository.points(Some(machine))?;
        Ok(Self {
            repository: Arc::clone(repository),
            standing: points.iter().map(|point| point.id).collect(),
        })
    }
}

impl Memory for Images {
    fn of(&self, image: &Path) -> Option<Remembered> {
        let known = self.repository.catalogue().image(image);
        known.unwrap_or_else(|error| {
            tracing::warn!(
                error = error.chain(),
                "what is known of images cannot be read"
            );
            None
        })
    }

    fn is_standing(&self, point: PointId) -> bool {
        self.standing.contains(&point)
    }
}

/// The name that an image gives to its disk, and to its machine where it has no other.
///
/// # Errors
/// [`Kind::Config`] where no name can be made from the path.
pub fn name_of(image: &Path) -> Result<String> {
    name::from_path(image).ok_or_else(|| {
        Error::new(
            Kind::Config,
            format!("no name can be made from {}", image.display()),
        )
        .advise("give the image a file name; or name the machine")
    })
}

/// This host's name, for the record.
pub fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// The format that an image was opened as: by [`crate::format::choose`], one that opened without
/// being asked for is what its name says.
fn format_of(path: &Path, asked: Option<Format>) -> Format {
    let is_device = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
    let named = (!is_device).then(|| Format::from_suffix(path)).flatten();
    asked.or(named).unwrap_or(Format::Raw)
}

/// A name for each image, its stem, made unique by a number where two are alike.
fn disk_names(images: &[PathBuf]) -> Result<Vec<String>> {
    let mut taken = HashSet::new();
    let mut names = Vec::with_capacity(images.len());
    for image in images {
        let stem = name_of(image)?;
        let name = (1_u64..)
            .map(|number| match number {
                1 => stem.clone(),
                _ => format!("{stem}-{number}"),
            })
            .find(|name| !taken.contains(name))
            .unwrap_or_else(|| stem.clone());
        taken.insert(name.clone());
        names.push(name);
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn disks_are_named_after_their_files_and_never_alike() {
        let images = ["a/disk.raw", "b/disk.qcow2", "disk-2.raw", "c/disk.vhd"].map(PathBuf::from);
        assert_eq!(
            disk_names(&images).unwrap(),
            ["disk", "disk-2", "disk-2-2", "disk-3"]
        );
    }
}
