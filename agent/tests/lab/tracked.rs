//! A disk in memory that is written to, knows what changed since its last recovery point, and counts
//! what of it is read.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tidegate_agent::Result;
use tidegate_agent::source::{Source, SourceReader, Tracking};
use tidegate_protocol::ids::PointId;

const BLOCK_BYTES: u64 = 4096;

/// Blocks that are not zero, by their number.
type Blocks = BTreeMap<u64, Arc<[u8]>>;

/// The disk as its machine sees it.
pub struct TrackedDisk {
    blocks: Blocks,
    size_bytes: u64,
    /// What was written to since the point, widened to `granularity_bytes`.
    changed: Vec<Range<u64>>,
    tracking: Tracking,
    granularity_bytes: u64,
}

/// The disk at one moment.
#[derive(Clone)]
pub struct Frozen {
    blocks: Arc<Blocks>,
    size_bytes: u64,
    changed: Arc<Vec<Range<u64>>>,
    tracking: Tracking,
    pub read_bytes: Arc<AtomicU64>,
}

impl TrackedDisk {
    pub fn new(size_bytes: u64, granularity_bytes: u64) -> Self {
        Self {
            blocks: Blocks::new(),
            size_bytes,
            changed: Vec::new(),
            tracking: Tracking::Untracked,
            granularity_bytes,
        }
    }

    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Bytes of the map, each change once.
    pub fn changed_bytes(&self) -> u64 {
        joined(&self.changed)
            .iter()
            .map(|range| range.end - range.start)
            .sum()
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut at = offset;
        let end = offset + bytes.len() as u64;
        while at < end {
            let (number, within) = (at / BLOCK_BYTES, (at % BLOCK_BYTES) as usize);
            let count = (BLOCK_BYTES as usize - within).min((end - at) as usize);
            let mut block = match self.blocks.get(&number) {
                Some(block) => block.to_vec(),
                None => vec![0; BLOCK_BYTES as usize],
            };
            let from = (at - offset) as usize;
            block[within..within + count].copy_from_slice(&bytes[from..from + count]);
            if block.iter().all(|byte| *byte == 0) {
                self.blocks.remove(&number);
            } else {
                self.blocks.insert(number, block.into());
            }
            at += count as u64;
        }
        let grain = self.granularity_bytes;
        let wide = offset / grain * grain..(end.div_ceil(grain) * grain).min(self.size_bytes);
        if !wide.is_empty() {
            self.changed.push(wide);
        }
    }

    /// What a tracker that lies does not know of.
    pub fn write_unseen(&mut self, offset: u64, bytes: &[u8]) {
        let changed = self.changed.len();
        self.write(offset, bytes);
        self.changed.truncate(changed);
    }

    /// New bytes behind the end are zeros, and no change that anybody tracks.
    pub fn grow(&mut self, by: u64) {
        self.size_bytes += by;
    }

    pub fn lose_tracking(&mut self, why: &str) {
        self.tracking = Tracking::Lost(why.to_owned());
    }

    pub fn stop_tracking(&mut self) {
        self.tracking = Tracking::Untracked;
    }

    /// From now on changes are those since `point`.
    pub fn committed(&mut self, point: PointId) {
        self.changed.clear();
        self.tracking = Tracking::Since(point);
    }

    pub fn freeze(&self) -> Frozen {
        Frozen {
            blocks: Arc::new(self.blocks.clone()),
            size_bytes: self.size_bytes,
            changed: Arc::new(joined(&self.changed)),
            tracking: self.tracking.clone(),
            read_bytes: Arc::default(),
        }
    }

    pub fn content(&self) -> Vec<u8> {
        let mut content = vec![0; self.size_bytes as usize];
        for (number, block) in &self.blocks {
            let start = (number * BLOCK_BYTES) as usize;
            let length = block.len().min(content.len() - start);
            content[start..start + length].copy_from_slice(&block[..length]);
        }
        content
    }
}

/// In order, each byte once.
fn joined(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut ranges = ranges.to_vec();
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

fn inside(ranges: impl Iterator<Item = Range<u64>>, window: &Range<u64>) -> Vec<Range<u64>> {
    ranges
        .map(|range| range.start.max(window.start)..range.end.min(window.end))
        .filter(|range| !range.is_empty())
        .collect()
}

impl Source for Frozen {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn describe(&self) -> String {
        "a disk that is tracked".to_owned()
    }

    fn reader(&self) -> Result<Box<dyn SourceReader>> {
        Ok(Box::new(self.clone()))
    }

    fn tracking(&self) -> Tracking {
        self.tracking.clone()
    }
}

impl SourceReader for Frozen {
    fn allocation(&mut self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        let numbers = range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES);
        let blocks = self.blocks.range(numbers);
        let all: Vec<_> = blocks
            .map(|(number, _)| number * BLOCK_BYTES..(number + 1) * BLOCK_BYTES)
            .collect();
        Ok(inside(joined(&all).into_iter(), &range))
    }

    fn changes(&mut self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        assert!(matches!(self.tracking, Tracking::Since(_)));
        Ok(inside(self.changed.iter().cloned(), &range))
    }

    fn prefetch(&mut self, _: Range<u64>) {}

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset + buffer.len() as u64;
        assert!(end <= self.size_bytes);
        self.read_bytes
            .fetch_add(buffer.len() as u64, Ordering::Relaxed);
        buffer.fill(0);
        let numbers = offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        for (number, block) in self.blocks.range(numbers) {
            let start = number * BLOCK_BYTES;
            let part = start.max(offset)..(start + BLOCK_BYTES).min(end);
            let to = (part.start - offset) as usize..(part.end - offset) as usize;
            let from = (part.start - start) as usize..(part.end - start) as usize;
            buffer[to].copy_from_slice(&block[from]);
        }
        Ok(())
    }
}
