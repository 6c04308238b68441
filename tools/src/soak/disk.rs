//! A disk as the model has it: plain blocks in memory, shared between versions. What it is not: clever.
//!
//! Invariant: no block that is kept is all zero, so that two disks of the same content are equal.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use tidegate_agent::Result;
use tidegate_agent::source::{Source, SourceReader};
use tidegate_agent::target::Target;

pub(crate) const BLOCK_BYTES: u64 = 4096;
const BLOCK: usize = 4096;

type Block = Arc<[u8; BLOCK]>;

/// A disk's content. A clone is a snapshot, and costs a pointer a block.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Disk {
    size_bytes: u64,
    blocks: BTreeMap<u64, Block>,
}

impl Disk {
    pub(crate) fn new(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            blocks: BTreeMap::new(),
        }
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Bytes of blocks that are not all zero.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK_BYTES
    }

    pub(crate) fn resize(&mut self, size_bytes: u64) {
        if size_bytes < self.size_bytes {
            self.zero(size_bytes..self.size_bytes);
        }
        self.size_bytes = size_bytes;
    }

    /// Writes what fits on the disk.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut rest = bytes;
        for (number, within) in parts(offset..self.end(offset, bytes.len() as u64)) {
            let (part, left) = rest.split_at(within.len());
            rest = left;
            let block = self
                .blocks
                .entry(number)
                .or_insert_with(|| Arc::new([0; BLOCK]));
            Arc::make_mut(block)[within].copy_from_slice(part);
            self.drop_if_zero(number);
        }
    }

    pub(crate) fn zero(&mut self, range: Range<u64>) {
        let end = range.end.min(self.size_bytes);
        let first = range.start / BLOCK_BYTES;
        let touched: Vec<u64> = self
            .blocks
            .range(first..end.div_ceil(BLOCK_BYTES).max(first))
            .map(|(number, _)| *number)
            .collect();
        for number in touched {
            let start = number * BLOCK_BYTES;
            let within = within(start, range.start.max(start)..end.min(start + BLOCK_BYTES));
            if let Some(block) = self.blocks.get_mut(&number) {
                Arc::make_mut(block)[within].fill(0);
            }
            self.drop_if_zero(number);
        }
    }

    /// Fills `buffer` from `offset`; what lies behind the end reads as zeros.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) {
        let mut rest = buffer;
        for (number, within) in parts(offset..offset + rest.len() as u64) {
            let (part, left) = rest.split_at_mut(within.len());
            rest = left;
            match self.blocks.get(&number) {
                Some(block) => part.copy_from_slice(&block[within]),
                None => part.fill(0),
            }
        }
    }

    /// Where data may stand, in blocks, within `range`.
    pub(crate) fn data(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut found: Vec<Range<u64>> = Vec::new();
        let first = range.start / BLOCK_BYTES;
        let last = range.end.div_ceil(BLOCK_BYTES).max(first);
        for (number, _) in self.blocks.range(first..last) {
            let start = (number * BLOCK_BYTES).max(range.start);
            let end = ((number + 1) * BLOCK_BYTES)
                .min(range.end)
                .min(self.size_bytes);
            match found.last_mut() {
                _ if start >= end => {}
                Some(last) if last.end == start => last.end = end,
                _ => found.push(start..end),
            }
        }
        found
    }

    /// The first byte in `range` at which the two differ.
    pub(crate) fn first_difference(&self, other: &Self, range: &Range<u64>) -> Option<u64> {
        let first = range.start / BLOCK_BYTES;
        let last = range.end.div_ceil(BLOCK_BYTES).max(first);
        let mut numbers: Vec<u64> = self.blocks.range(first..last).map(|(n, _)| *n).collect();
        numbers.extend(other.blocks.range(first..last).map(|(n, _)| *n));
        numbers.sort_unstable();
        numbers.dedup();
        let zeros: Block = Arc::new([0; BLOCK]);
        for number in numbers {
            let a = self.blocks.get(&number).unwrap_or(&zeros);
            let b = other.blocks.get(&number).unwrap_or(&zeros);
            if Arc::ptr_eq(a, b) {
                continue;
            }
            let differs = (0_u64..)
                .zip(a.iter().zip(b.iter()))
                .find(|(at, (a, b))| range.contains(&(number * BLOCK_BYTES + at)) && a != b);
            if let Some((at, _)) = differs {
                return Some(number * BLOCK_BYTES + at);
            }
        }
        None
    }

    /// True where all of `range` is zero.
    pub(crate) fn is_zero(&self, range: &Range<u64>) -> bool {
        self.first_difference(&Self::new(self.size_bytes), range)
            .is_none()
    }

    fn end(&self, offset: u64, length: u64) -> u64 {
        offset
            .saturating_add(length)
            .min(self.size_bytes)
            .max(offset)
    }

    fn drop_if_zero(&mut self, number: u64) {
        if self
            .blocks
            .get(&number)
            .is_some_and(|block| **block == [0; BLOCK])
        {
            self.blocks.remove(&number);
        }
    }
}

/// The blocks that a range touches, and what it touches of each.
fn parts(range: Range<u64>) -> impl Iterator<Item = (u64, Range<usize>)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let number = at / BLOCK_BYTES;
        let start = number * BLOCK_BYTES;
        let end = range.end.min(start + BLOCK_BYTES);
        let part = within(start, at..end);
        at = end;
        Some((number, part))
    })
}

/// A range as the block that begins at `start` counts it.
fn within(start: u64, range: Range<u64>) -> Range<usize> {
    let place = |at: u64| {
        usize::try_from(at.saturating_sub(start))
            .unwrap_or(BLOCK)
            .min(BLOCK)
    };
    place(range.start)..place(range.end)
}

/// How a source tells where its data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Allocation {
    /// Block by block.
    Exact,
    /// In stretches of 64 KiB.
    Coarse,
    /// Everything may be data.
    All,
}

/// A snapshot to back up, and what happens whenever it is read.
pub(crate) struct Frozen {
    pub(crate) disk: Disk,
    pub(crate) allocation: Allocation,
    pub(crate) on_read: Arc<dyn Fn() + Send + Sync>,
}

impl Source for Frozen {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn describe(&self) -> String {
        "a disk of the model".to_owned()
    }

    fn reader(&self) -> Result<Box<dyn SourceReader>> {
        Ok(Box::new(FrozenReader {
            disk: self.disk.clone(),
            allocation: self.allocation,
            on_read: Arc::clone(&self.on_read),
        }))
    }
}

struct FrozenReader {
    disk: Disk,
    allocation: Allocation,
    on_read: Arc<dyn Fn() + Send + Sync>,
}

impl SourceReader for FrozenReader {
    fn allocation(&mut self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        const COARSE: u64 = 64 << 10;
        Ok(match self.allocation {
            Allocation::All => vec![range],
            Allocation::Exact => self.disk.data(&range),
            Allocation::Coarse => {
                let mut found: Vec<Range<u64>> = Vec::new();
                for data in self.disk.data(&range) {
                    let start = (data.start / COARSE * COARSE).max(range.start);
                    let end = (data.end.div_ceil(COARSE) * COARSE).min(range.end);
                    match found.last_mut() {
                        Some(last) if last.end >= start => last.end = end,
                        _ => found.push(start..end),
                    }
                }
                found
            }
        })
    }

    fn prefetch(&mut self, _: Range<u64>) {}

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        (self.on_read)();
        self.disk.read(offset, buffer);
        Ok(())
    }
}

/// A target in memory.
pub(crate) struct Onto {
    disk: Mutex<Disk>,
    reads_zero: bool,
}

impl Onto {
    /// A target that holds `disk` to begin with.
    pub(crate) fn holding(disk: Disk) -> Arc<Self> {
        Arc::new(Self {
            reads_zero: disk.data_bytes() == 0,
            disk: Mutex::new(disk),
        })
    }

    pub(crate) fn disk(&self) -> Disk {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Target for Onto {
    fn describe(&self) -> String {
        "a target in memory".to_owned()
    }

    fn reads_zero(&self) -> bool {
        self.reads_zero
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.lock().read(offset, buffer);
        Ok(())
    }

    fn allocation(&self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        Ok(self.lock().data(&range))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.lock().write(offset, bytes);
        Ok(())
    }

    fn write_zeros(&self, range: Range<u64>) -> Result<()> {
        self.lock().zero(range);
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// Against a plain vector of bytes.
    #[test]
    fn a_disk_is_a_vector_of_bytes() {
        let mut disk = Disk::new(20_000);
        let mut plain = vec![0_u8; 20_000];
        let mut random = crate::soak::history::Random::new(1);
        for round in 0..2000_u64 {
            let offset = random.below(plain.len() as u64 + 1);
            let length = random.below(9000).min(plain.len() as u64 - offset);
            let range = usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap();
            match random.below(8) {
                0 => {
                    let size = random.below(30_000);
                    disk.resize(size);
                    plain.resize(usize::try_from(size).unwrap(), 0);
                }
                1 | 2 => {
                    disk.zero(offset..offset + length);
                    plain[range].fill(0);
                }
                _ => {
                    let bytes = vec![u8::try_from(round % 200).unwrap(); range.len()];
                    disk.write(offset, &bytes);
                    plain[range].copy_from_slice(&bytes);
                }
            }
            let mut read = vec![1; plain.len()];
            disk.read(0, &mut read);
            assert!(read == plain, "round {round}");
            let mut covered = vec![0; plain.len()];
            for data in disk.data(&(0..disk.size_bytes())) {
                let range =
                    usize::try_from(data.start).unwrap()..usize::try_from(data.end).unwrap();
                covered[range.clone()].copy_from_slice(&plain[range]);
            }
            assert!(
                covered == plain,
                "round {round}: data outside of what is told"
            );
            let mut same = Disk::new(disk.size_bytes());
            same.write(0, &plain);
            assert!(same == disk, "round {round}: a block of zeros is kept");
        }
    }

    #[test]
    fn the_first_difference_is_found() {
        let mut a = Disk::new(100_000);
        a.write(50_000, &[1; 100]);
        let mut b = a.clone();
        assert_eq!(a.first_difference(&b, &(0..100_000)), None);
        b.write(50_050, &[2]);
        assert_eq!(a.first_difference(&b, &(0..100_000)), Some(50_050));
        assert_eq!(a.first_difference(&b, &(0..50_050)), None);
        b.write(9, &[2]);
        assert_eq!(a.first_difference(&b, &(0..100_000)), Some(9));
    }
}
