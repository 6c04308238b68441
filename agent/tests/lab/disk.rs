//! A disk of tiles, each a hole or known by a number from which its bytes follow, and a target that
//! compares what it is given with such a disk: gigabytes cost neither memory nor file space.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tidegate_agent::source::{Source, SourceReader};
use tidegate_agent::target::Target;
use tidegate_agent::{Error, Kind, Result};

/// The unit in which a [`TiledDisk`] is described.
pub const TILE_BYTES: u64 = 64 << 10;

const BLOCK_BYTES: u64 = 4096;

/// What stands in a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tile {
    /// Zeros, reported as not allocated.
    Hole,
    /// Bytes that do not compress and end like a file does, different for each number.
    Data(u64),
}

/// A tile's share of what was asked for.
enum Part<'a> {
    Data(&'a [u8]),
    /// So many.
    Zeros(usize),
}

/// Takes a part, with the place where it begins in what was asked for.
type TakePart<'a> = dyn FnMut(usize, Part<'_>) + 'a;

type Layout = Arc<dyn Fn(u64) -> Tile + Send + Sync>;

/// A disk whose tiles are computed from their index.
#[derive(Clone)]
pub struct TiledDisk {
    tiles: u64,
    layout: Layout,
    changed: Arc<BTreeMap<u64, Tile>>,
    cache: Arc<Mutex<HashMap<u64, Arc<[u8]>>>>,
}

/// Tiles of content kept, shared by all versions of a disk.
const CACHED_TILES_MAX: usize = 4096;

impl TiledDisk {
    pub fn new(size_bytes: u64, layout: impl Fn(u64) -> Tile + Send + Sync + 'static) -> Self {
        assert!(size_bytes.is_multiple_of(TILE_BYTES));
        Self {
            tiles: size_bytes / TILE_BYTES,
            layout: Arc::new(layout),
            changed: Arc::default(),
            cache: Arc::default(),
        }
    }

    /// The same disk with some tiles replaced.
    pub fn with(&self, tiles: impl IntoIterator<Item = (u64, Tile)>) -> Self {
        let mut changed = (*self.changed).clone();
        changed.extend(tiles);
        Self {
            changed: Arc::new(changed),
            ..self.clone()
        }
    }

    pub fn tile(&self, index: u64) -> Tile {
        self.changed
            .get(&index)
            .copied()
            .unwrap_or_else(|| (self.layout)(index))
    }

    /// Bytes that are not holes.
    pub fn data_bytes(&self) -> u64 {
        let data = (0..self.tiles).filter(|index| self.tile(*index) != Tile::Hole);
        data.count() as u64 * TILE_BYTES
    }

    fn bytes_of(&self, number: u64) -> Arc<[u8]> {
        let mut cache = self.cache.lock().unwrap();
        if let Some(bytes) = cache.get(&number) {
            return Arc::clone(bytes);
        }
        let mut bytes = vec![0; TILE_BYTES as usize];
        let mut hasher = blake3::Hasher::new();
        hasher.update(&number.to_le_bytes());
        hasher
            .finalize_xof()
            .fill(&mut bytes[..TILE_BYTES as usize - 8]);
        let bytes: Arc<[u8]> = bytes.into();
        if cache.len() >= CACHED_TILES_MAX {
            cache.clear();
        }
        cache.insert(number, Arc::clone(&bytes));
        bytes
    }

    /// Calls `part` with each tile's share of `length` bytes at `offset`.
    fn parts(&self, offset: u64, length: u64, part: &mut TakePart<'_>) {
        let mut at = offset;
        while at < offset + length {
            let start = (at % TILE_BYTES) as usize;
            let count = (TILE_BYTES as usize - start).min((offset + length - at) as usize);
            let place = (at - offset) as usize;
            match self.tile(at / TILE_BYTES) {
                Tile::Hole => part(place, Part::Zeros(count)),
                Tile::Data(number) => {
                    part(
                        place,
                        Part::Data(&self.bytes_of(number)[start..start + count]),
                    );
                }
            }
            at += count as u64;
        }
    }
}

impl Source for TiledDisk {
    fn size_bytes(&self) -> u64 {
        self.tiles * TILE_BYTES
    }

    fn describe(&self) -> String {
        "a disk of tiles".to_owned()
    }

    fn reader(&self) -> Result<Box<dyn SourceReader>> {
        Ok(Box::new(self.clone()))
    }
}

impl SourceReader for TiledDisk {
    fn allocation(&mut self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        let mut extents: Vec<Range<u64>> = Vec::new();
        for index in range.start / TILE_BYTES..range.end.div_ceil(TILE_BYTES) {
            if self.tile(index) == Tile::Hole {
                continue;
            }
            let start = (index * TILE_BYTES).max(range.start);
            let end = ((index + 1) * TILE_BYTES).min(range.end);
            match extents.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => extents.push(start..end),
            }
        }
        Ok(extents)
    }

    fn prefetch(&mut self, _: Range<u64>) {}

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let length = buffer.len() as u64;
        self.parts(offset, length, &mut |place, part| match part {
            Part::Data(bytes) => buffer[place..place + bytes.len()].copy_from_slice(bytes),
            Part::Zeros(zeros) => buffer[place..place + zeros].fill(0),
        });
        Ok(())
    }
}

/// A new target that knows what it should be given: any wrong byte, and any byte written twice, is
/// an error.
pub struct ExpectingTarget {
    expected: TiledDisk,
    written_bytes: AtomicU64,
    written_blocks: Mutex<Vec<u64>>,
}

impl ExpectingTarget {
    pub fn new(expected: &TiledDisk) -> Arc<Self> {
        let words = expected.size_bytes().div_ceil(BLOCK_BYTES * 64) as usize;
        Arc::new(Self {
            expected: expected.clone(),
            written_bytes: AtomicU64::new(0),
            written_blocks: Mutex::new(vec![0; words]),
        })
    }

    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// Every byte of data has arrived. What was not written reads as zeros, and is holes.
    #[track_caller]
    pub fn assert_complete(&self) {
        assert_eq!(self.written_bytes(), self.expected.data_bytes());
    }
}

impl Target for ExpectingTarget {
    fn describe(&self) -> String {
        "a target that knows".to_owned()
    }

    fn reads_zero(&self) -> bool {
        true
    }

    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<()> {
        Err(Error::new(Kind::Bug, "nothing is kept here to be read"))
    }

    fn allocation(&self, _: Range<u64>) -> Result<Vec<Range<u64>>> {
        Ok(Vec::new())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut wrong = None;
        let length = bytes.len() as u64;
        self.expected
            .parts(offset, length, &mut |place, part| match part {
                Part::Data(expected) if bytes[place..place + expected.len()] == *expected => {}
                _ => wrong = Some(offset + place as u64),
            });
        if let Some(at) = wrong {
            return Err(Error::new(Kind::Bug, format!("wrong bytes at {at}")));
        }
        let mut blocks = self.written_blocks.lock().unwrap();
        for block in offset / BLOCK_BYTES..(offset + length).div_ceil(BLOCK_BYTES) {
            let (word, bit) = ((block / 64) as usize, 1 << (block % 64));
            if blocks[word] & bit != 0 {
                let at = block * BLOCK_BYTES;
                return Err(Error::new(Kind::Bug, format!("{at} was written twice")));
            }
            blocks[word] |= bit;
        }
        self.written_bytes.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    fn write_zeros(&self, range: Range<u64>) -> Result<()> {
        Err(Error::new(
            Kind::Bug,
            format!("zeros were written to a new target at {range:?}"),
        ))
    }

    fn finish(&self) -> Result<()> {
        Ok(())
    }
}
