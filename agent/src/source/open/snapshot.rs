//! A disk whose snapshots stand in a chain of images, each holding what was written after the one
//! below it: external snapshots of libvirt, `qemu-img create -b`, `blockdev-snapshot`.
//!
//! Not a tracker: which bytes changed since a point is told by the images that they stand in. Which disk of
//! which point an image is the content of is remembered by who asks, with a seal of inodes, sizes and times
//! of last writing, of this file and of all below it. The invariant: what was written to after its point
//! was made, by whatever, is not believed; then all is read and compared, and why is said.

use super::graph::{Graph, Layer, Reach};
use super::{Changes, Image, OpenSettings, serve};
use crate::error::{Error, Kind, Result};
use crate::format::Format;
use crate::source::{RawSource, Source, SourceReader, Tracking, WithoutTracking};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tidegate_protocol::ids::PointId;

/// More than a tick of the clock by which file systems tell time (the kernel's `CONFIG_HZ`: 10 ms at most).
const TICK: Duration = Duration::from_millis(20);

/// What is remembered of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// The disk whose content it is.
    pub disk: String,
    /// The point at which it is.
    pub point: PointId,
    /// What its files were like then.
    pub seal: [u8; 32],
}

/// What is known of images and of points.
pub trait Memory {
    /// What is remembered of the image of that path, which has no links in it.
    fn of(&self, image: &Path) -> Option<Remembered>;

    /// Whether a point can be continued.
    fn is_standing(&self, point: PointId) -> bool;
}

/// An image that nobody writes to any more.
pub struct Snapshot {
    /// Its content, and what changed since the newest point that is known of an image below it.
    source: Arc<dyn Source>,
    /// What the disk is called at that point.
    known_as: Option<String>,
    /// The lowest image of its chain, by which the disk is the same at all its snapshots.
    pub base: PathBuf,
    files: Files,
}

/// What is to be remembered of an image when the point that it is read for is committed.
pub struct Stamp {
    path: PathBuf,
    disk: String,
    seal: [u8; 32],
}

/// The image's state when it was opened.
#[derive(Clone)]
struct Files {
    layers: Vec<Vec<PathBuf>>,
    path: PathBuf,
    /// None where one of the files is a device, whose writes leave no time.
    seal: Option<[u8; 32]>,
}

/// Opens a snapshot, read-only.
///
/// # Errors
/// As [`open_source`](super::open_source).
pub fn open_snapshot(
    path: &Path,
    settings: &OpenSettings,
    memory: &impl Memory,
) -> Result<Snapshot> {
    let format = Image::look(path)?.choose(settings.format)?;
    let reach = Reach::new(path, &settings.backing_folders)?;
    let graph = Graph::resolve(path, format, &reach)?;
    if !settings.skip_check && format != Format::Raw {
        graph.check()?;
    }
    let layers = graph.layers();
    let all: Vec<Vec<PathBuf>> = layers.iter().map(Layer::files).collect();
    // Before anything that is remembered of the files is believed: who writes later breaks it.
    let files = Files {
        seal: seal(&all)?,
        path: layers.first().map_or(path, Layer::path).to_owned(),
        layers: all,
    };
    // What is written from here on has another time than what was written before.
    std::thread::sleep(TICK);
    let base = layers.last().map_or(path, Layer::path).to_owned();
    let (changes, known_as) = match continued(layers, &files, memory) {
        Ok((changes, disk)) => (changes, Some(disk)),
        Err(why) => (Changes::Lost(why), None),
    };
    let source: Arc<dyn Source> = match (format, changes) {
        // It has nothing below it: what continues a point is as it was then.
        (Format::Raw, Changes::Layers { since, .. }) => Arc::new(Unchanged {
            source: RawSource::open(path)?,
            since,
        }),
        (Format::Raw, Changes::Lost(why)) => {
            Arc::new(WithoutTracking::new(Arc::new(RawSource::open(path)?), &why))
        }
        (_, changes) => Arc::new(serve(&graph, changes)?),
    };
    Ok(Snapshot {
        source: Arc::new(Sealed {
            source,
            files: files.clone(),
        }),
        known_as,
        base,
        files,
    })
}

impl Snapshot {
    /// It as the disk of that name, and what is to be remembered of it: nothing of devices. Where the point
    /// that it continues knows it by another name, all is read.
    pub fn named(self, disk: &str) -> (Arc<dyn Source>, Option<Stamp>) {
        let source = match self.known_as {
            Some(known_as) if known_as != disk => {
                let why = format!("its image was that of the disk {known_as}");
                Arc::new(WithoutTracking::new(self.source, &why))
            }
            _ => self.source,
        };
        let stamp = self.files.seal.map(|seal| Stamp {
            path: self.files.path,
            disk: disk.to_owned(),
            seal,
        });
        (source, stamp)
    }
}

/// How many images, from the topmost on, hold what was written since which point, and what the disk is
/// called there; or why that is not known.
fn continued(
    layers: &[Layer],
    files: &Files,
    memory: &impl Memory,
) -> Result<(Changes, String), String> {
    if files.seal.is_none() {
        return Err("a block device does not tell when it was last written".to_owned());
    }
    let mut why = None;
    for (count, layer) in layers.iter().enumerate() {
        let Some(known) = memory.of(layer.path()) else {
            continue;
        };
        let name = layer.path().display();
        if !memory.is_standing(known.point) {
            why.get_or_insert(format!("{name} is the content of a point that is not here"));
            continue;
        }
        if seal(&files.layers[count..]).ok().flatten() != Some(known.seal) {
            why.get_or_insert(format!("{name} was written after its point was made"));
            continue;
        }
        // Beyond the end of an image in between, what stands below it is not seen any more.
        let sizes = layers[..=count].iter().rev().map(Layer::size_bytes);
        if !sizes.is_sorted() {
            why.get_or_insert(format!("an image above {name} is smaller"));
            continue;
        }
        let changes = Changes::Layers {
            count: u32::try_from(count).unwrap_or(u32::MAX),
            since: known.point,
        };
        return Ok((changes, known.disk));
    }
    Err(why.unwrap_or_else(|| {
        "no image of its chain is known to be the content of a point".to_owned()
    }))
}

impl Stamp {
    /// Which image, and what of it, now that it is the content of a committed point.
    pub fn at(self, point: PointId) -> (PathBuf, Remembered) {
        let Self { path, disk, seal } = self;
        (path, Remembered { disk, point, seal })
    }
}

impl Files {
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
    files: Files,
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
        self.files.check()
    }
}

/// A disk that is as it was at a point.
struct Unchanged {
    source: RawSource,
    since: PointId,
}

impl Source for Unchanged {
    fn size_bytes(&self) -> u64 {
        self.source.size_bytes()
    }

    fn describe(&self) -> String {
        self.source.describe()
    }

    fn reader(&self) -> Result<Box<dyn SourceReader>> {
        Ok(Box::new(UnchangedReader(self.source.reader()?)))
    }

    fn tracking(&self) -> Tracking {
        Tracking::Since(self.since)
    }
}

struct UnchangedReader(Box<dyn SourceReader>);

impl SourceReader for UnchangedReader {
    fn allocation(&mut self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        self.0.allocation(range)
    }

    fn changes(&mut self, _: Range<u64>) -> Result<Vec<Range<u64>>> {
        Ok(Vec::new())
    }

    fn prefetch(&mut self, range: Range<u64>) {
        self.0.prefetch(range);
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.0.read_at(offset, buffer)
    }
}

/// What tells that one of the files was written, or is another; none where one of them is a device.
fn seal(layers: &[Vec<PathBuf>]) -> Result<Option<[u8; 32]>> {
    let mut hasher = blake3::Hasher::new();
    for files in layers {
        hasher.update(&(files.len() as u64).to_le_bytes());
        for file in files {
            // Opening makes a file system of the network ask its server, in place of its own memory (nfs(5),
            // close-to-open). What has become a pipe meanwhile holds nobody up.
            let found = File::options()
                .read(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(file)
                .and_then(|file| file.metadata())
                .map_err(|error| Error::io(format!("cannot look at {}", file.display()), error))?;
            if found.file_type().is_block_device() {
                return Ok(None);
            }
            hasher.update(&found.ino().to_le_bytes());
            hasher.update(&found.size().to_le_bytes());
            hasher.update(&found.mtime().to_le_bytes());
            hasher.update(&found.mtime_nsec().to_le_bytes());
        }
    }
    Ok(Some(*hasher.finalize().as_bytes()))
}
