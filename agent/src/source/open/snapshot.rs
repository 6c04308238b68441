//! A disk whose snapshots stand in a chain of images, each holding what was written after the one
//! below it: external snapshots of libvirt, `qemu-img create -b`, `blockdev-snapshot`.
//!
//! Not a tracker: which bytes changed since a point is told by the images that they stand in. Which point
//! an image is the content of is remembered on its file, in the extended attribute
//! `user.tidegate.point`: the repository, the point, and a seal of sizes and times of last writing, of
//! this file and of all below it. The invariant: what was written to after its point was made, by
//! whatever, is not believed; then all is read and compared, and why is said.

use super::graph::{Graph, Layer, Reach};
use super::{Changes, Image, OpenSettings, serve};
use crate::error::{Error, Kind, Result};
use crate::format::Format;
use crate::source::{RawSource, Source, SourceReader, Tracking, WithoutTracking};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tidegate_protocol::ids::{PointId, RepositoryId};

/// The extended attribute.
const ATTRIBUTE: &str = "user.tidegate.point";
/// What it begins with: what follows are repository, point and seal, in hexadecimal.
const VERSION: &str = "1";
/// More than any that we write.
const STAMP_BYTES_MAX: usize = 256;

/// An image that nobody writes to any more.
pub struct Snapshot {
    /// Its content, and what changed since the newest point that is known of an image below it.
    pub source: Arc<dyn Source>,
    /// The lowest image of its chain, by which the disk is the same at all its snapshots.
    pub base: PathBuf,
    /// To be given to it when its point is committed.
    pub stamp: Stamp,
}

/// The image's state when it was opened.
#[derive(Clone)]
pub struct Stamp {
    layers: Vec<Vec<PathBuf>>,
    path: PathBuf,
    seal: Option<blake3::Hash>,
}

/// Opens a snapshot, read-only. `is_standing` tells points that can be continued.
///
/// # Errors
/// As [`open_source`](super::open_source).
pub fn open_snapshot(
    path: &Path,
    settings: &OpenSettings,
    repository: RepositoryId,
    is_standing: impl Fn(PointId) -> bool,
) -> Result<Snapshot> {
    let format = Image::look(path)?.choose(settings.format)?;
    let reach = Reach::new(path, &settings.backing_folders)?;
    let graph = Graph::resolve(path, format, &reach)?;
    if !settings.skip_check && format != Format::Raw {
        graph.check()?;
    }
    let layers = graph.layers();
    let files: Vec<Vec<PathBuf>> = layers.iter().map(Layer::files).collect();
    // Before anything that is said of the files is believed: who writes later breaks it.
    let stamp = Stamp {
        seal: seal(&files)?,
        path: path.to_owned(),
        layers: files,
    };
    let changes = continued(layers, &stamp.layers, repository, is_standing);
    let base = layers.last().map_or(path, Layer::path).to_owned();
    let source: Arc<dyn Source> = match format {
        Format::Raw => {
            let why = "a raw image does not tell what was written since";
            Arc::new(WithoutTracking::new(Arc::new(RawSource::open(path)?), why))
        }
        _ => Arc::new(serve(&graph, changes)?),
    };
    Ok(Snapshot {
        source: Arc::new(Sealed {
            source,
            stamp: stamp.clone(),
        }),
        base,
        stamp,
    })
}

/// How many images, from the topmost on, hold what was written since which point.
fn continued(
    layers: &[Layer],
    files: &[Vec<PathBuf>],
    repository: RepositoryId,
    is_standing: impl Fn(PointId) -> bool,
) -> Changes {
    let mut why = None;
    for (count, layer) in layers.iter().enumerate() {
        let Some(said) = Said::of(layer.path()) else {
            continue;
        };
        let name = layer.path().display();
        if said.repository != repository || !is_standing(said.point) {
            why.get_or_insert(format!("{name} is the content of a point that is not here"));
            continue;
        }
        if seal(&files[count..]).ok().flatten() != Some(said.seal) {
            why.get_or_insert(format!("{name} was written after its point was made"));
            continue;
        }
        // Beyond the end of an image in between, what stands below it is not seen any more.
        let sizes = layers[..=count].iter().rev().map(Layer::size_bytes);
        if !sizes.is_sorted() {
            why.get_or_insert(format!("an image above {name} is smaller"));
            continue;
        }
        return Changes::Layers {
            count: u32::try_from(count).unwrap_or(u32::MAX),
            since: said.point,
        };
    }
    Changes::Lost(why.unwrap_or_else(|| {
        "no image of its chain is known to be the content of a point".to_owned()
    }))
}

/// What an image says of itself.
struct Said {
    repository: RepositoryId,
    point: PointId,
    seal: blake3::Hash,
}

impl Said {
    /// Nothing, where it says nothing that we would have written.
    fn of(path: &Path) -> Option<Self> {
        let mut value = [0; STAMP_BYTES_MAX];
        let length = rustix::fs::getxattr(path, ATTRIBUTE, &mut value[..]).ok()?;
        Self::parse(std::str::from_utf8(value.get(..length)?).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split(' ').collect();
        let [VERSION, repository, point, seal] = parts[..] else {
            return None;
        };
        let (mut repository_id, mut point_id) = ([0; 16], [0; 16]);
        hex::decode_to_slice(repository, &mut repository_id).ok()?;
        hex::decode_to_slice(point, &mut point_id).ok()?;
        Some(Self {
            repository: RepositoryId(repository_id),
            point: PointId(point_id),
            seal: blake3::Hash::from_hex(seal).ok()?,
        })
    }

    fn text(&self) -> String {
        let (repository, point) = (hex::encode(self.repository.0), hex::encode(self.point.0));
        format!("{VERSION} {repository} {point} {}", self.seal.to_hex())
    }
}

impl Stamp {
    /// Remembers on the image that it is the content of a committed point. Blocking.
    ///
    /// # Errors
    /// [`Kind::Conflict`] where it was written while it was read; [`Kind::Unsupported`] of a block device,
    /// whose writes leave no time; else as the file system says, which may have no extended attributes.
    pub fn remember(&self, repository: RepositoryId, point: PointId) -> Result<()> {
        let name = self.path.display();
        let Some(before) = self.seal else {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "{name} or an image below it is a block device: when it was last written cannot be told"
                ),
            ));
        };
        self.check()?;
        let said = Said {
            repository,
            point,
            seal: before,
        };
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&self.path, ATTRIBUTE, said.text().as_bytes(), flags).map_err(
            |error| {
                let what = format!("cannot remember on {name} which point it is");
                Error::io(what, error.into())
            },
        )
    }

    /// Nobody has written since; of block devices that cannot be told.
    fn check(&self) -> Result<()> {
        if self.seal.is_some() && seal(&self.layers)? != self.seal {
            let name = self.path.display();
            return Err(Error::new(
                Kind::Conflict,
                format!("{name} or an image below it was written while it was read: a point of it would hold a mixture"),
            )
            .advise("back up when nobody writes to it; of a machine that runs: --vm or --qmp"));
        }
        Ok(())
    }
}

/// What an image holds, of which a point is made only where nobody has written meanwhile.
struct Sealed {
    source: Arc<dyn Source>,
    stamp: Stamp,
}

impl Source for Sealed {
    fn size_bytes(&self) -> u64 {
        self.source.size_bytes()
    }

    fn describe(&self) -> String {
        self.source.describe()
    }

    fn reader(&self) -> Result<Box<dyn SourceReader>> {
        self.source.reader()
    }

    fn tracking(&self) -> Tracking {
        self.source.tracking()
    }

    fn check_unwritten(&self) -> Result<()> {
        self.stamp.check()
    }
}

/// Sizes and times of last writing of all files; none where one of them is a device.
fn seal(layers: &[Vec<PathBuf>]) -> Result<Option<blake3::Hash>> {
    let mut hasher = blake3::Hasher::new();
    for files in layers {
        hasher.update(&(files.len() as u64).to_le_bytes());
        for file in files {
            let found = std::fs::metadata(file)
                .map_err(|error| Error::io(format!("cannot look at {}", file.display()), error))?;
            if found.file_type().is_block_device() {
                return Ok(None);
            }
            hasher.update(&found.size().to_le_bytes());
            hasher.update(&found.mtime().to_le_bytes());
            hasher.update(&found.mtime_nsec().to_le_bytes());
        }
    }
    Ok(Some(hasher.finalize()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_an_image_says_of_itself_is_read_as_written_and_nothing_else() {
        let said = Said {
            repository: RepositoryId([1; 16]),
            point: PointId([2; 16]),
            seal: blake3::hash(b"files"),
        };
        let text = said.text();
        assert!(text.len() <= STAMP_BYTES_MAX);
        let again = Said::parse(&text).unwrap();
        assert_eq!(
            (again.repository, again.point, again.seal),
            (said.repository, said.point, said.seal)
        );
        for wrong in [
            "",
            "1",
            &text[2..],
            &text.replacen('1', "2", 1),
            &format!("{text} more"),
            &text[..text.len() - 1],
            &text.replace("02", "zz"),
        ] {
            assert!(Said::parse(wrong).is_none(), "{wrong}");
        }
    }
}
