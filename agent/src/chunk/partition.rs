//! Partition phase: where the block grids of the file systems inside a disk lie.
//!
//! Old partition tables start partitions at sector 63, and then every block of the file system
//! straddles two blocks of the disk. The chunker follows the partition instead. Only this is read
//! from the tables; a wrong answer costs dedupe, never data. Hence the leniency: what is not sane is
//! taken for unpartitioned, checksums and the backup table are not looked at, and no table is an
//! error (only a failing read is).
//!
//! Bounded whatever the disk holds: at most [`PARTITIONS_MAX`] partitions, about as many small reads,
//! no recursion. Regions cover the disk, in order, without gap or overlap.

use super::BLOCK_BYTES;
use crate::error::Result;
use std::ops::Range;

/// Partitions looked at; Linux itself names no more than 256 on a disk.
pub const PARTITIONS_MAX: usize = 256;

/// A part of the disk whose file system has one block grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First byte on the disk.
    pub start: u64,
    /// The byte behind the last.
    pub end: u64,
    /// Blocks start at disk offsets that leave this remainder modulo 4096.
    pub phase: u64,
}

const SECTOR_BYTES: u64 = 512;
const SECTOR: usize = 512;

/// Reads the partition table through `read` (offset, buffer to fill; always inside the disk) and
/// returns the disk's regions. Neighbours of equal phase are one region, so the disk of our time is
/// one region of phase 0; a disk of size zero has none.
///
/// # Errors
/// Those of `read` only.
pub fn regions(
    disk_bytes: u64,
    read: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
) -> Result<Vec<Region>> {
    let partitions = if disk_bytes < 2 * SECTOR_BYTES {
        Vec::new()
    } else {
        partitions(disk_bytes, read)?
    };
    Ok(tile(disk_bytes, partitions))
}

/// One region of phase 0: a disk whose table is not to be followed.
pub fn whole(disk_bytes: u64) -> Vec<Region> {
    tile(disk_bytes, Vec::new())
}

/// Covers the disk with regions: the partitions that are sane, phase 0 elsewhere.
fn tile(disk_bytes: u64, mut partitions: Vec<Range<u64>>) -> Vec<Region> {
    partitions.retain(|p| p.start > 0 && p.start < p.end && p.end <= disk_bytes);
    partitions.sort_unstable_by_key(|p| (p.start, p.end));
    let mut regions: Vec<Region> = Vec::new();
    let mut at = 0;
    for partition in partitions {
        // Of two that overlap, the first counts: at most one of them is real.
        if partition.start < at {
            continue;
        }
        let phase = partition.start % BLOCK_BYTES as u64;
        append(&mut regions, at..partition.start, 0);
        append(&mut regions, partition.clone(), phase);
        at = partition.end;
    }
    append(&mut regions, at..disk_bytes, 0);
    regions
}

fn append(regions: &mut Vec<Region>, range: Range<u64>, phase: u64) {
    if range.is_empty() {
        return;
    }
    match regions.last_mut() {
        Some(last) if last.phase == phase => last.end = range.end,
        _ => regions.push(Region {
            start: range.start,
            end: range.end,
            phase,
        }),
    }
}

/// The partitions that the disk's table names, sane or not.
fn partitions(
    disk_bytes: u64,
    read: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
) -> Result<Vec<Range<u64>>> {
    let mut sector = [0; SECTOR];
    read(0, &mut sector)?;
    let Some(primary) = BootRecord::parse(&sector) else {
        return Ok(Vec::new());
    };
    if primary.entries.iter().any(Entry::is_protective) {
        // A protective entry belongs to a GUID table; other entries beside it are for old firmware.
        return guid_partitions(disk_bytes, read);
    }
    let mut found = Vec::new();
    for entry in &primary.entries {
        if entry.is_extended() {
            logical_partitions(disk_bytes, entry.start_bytes(0), read, &mut found)?;
        } else if entry.is_used() {
            found.push(entry.range(0));
        }
    }
    Ok(found)
}

/// Follows the chain of extended boot records that starts at `chain_start`: each names one logical
/// partition, relative to itself, and the next record, relative to the chain's start.
fn logical_partitions(
    disk_bytes: u64,
    chain_start: u64,
    read: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
    found: &mut Vec<Range<u64>>,
) -> Result<()> {
    let mut sector = [0; SECTOR];
    let mut at = chain_start;
    // The bound also ends a chain that bites its own tail; its repetitions overlap and fall out.
    while found.len() < PARTITIONS_MAX {
        if at == 0 || !lies_inside(at, SECTOR_BYTES, disk_bytes) {
            break;
        }
        read(at, &mut sector)?;
        let Some(record) = BootRecord::parse(&sector) else {
            break;
        };
        let [logical, next, ..] = record.entries;
        if !logical.is_used() || logical.is_extended() {
            break;
        }
        found.push(logical.range(at));
        if !next.is_extended() {
            break;
        }
        at = next.start_bytes(chain_start);
    }
    Ok(())
}

/// A boot record with a table of four partitions.
struct BootRecord {
    entries: [Entry; 4],
}

#[derive(Clone, Copy)]
struct Entry {
    kind: u8,
    start_sector: u32,
    sectors: u32,
}

impl BootRecord {
    /// `None` where the sector is none: no signature, or a table that no tool would write, as when
    /// the boot sector of a file system stands there.
    fn parse(sector: &[u8; SECTOR]) -> Option<Self> {
        if sector[510..] != [0x55, 0xaa] {
            return None;
        }
        let (table, _) = sector[446..510].as_chunks::<16>();
        let mut entries = [Entry::EMPTY; 4];
        for (entry, raw) in entries.iter_mut().zip(table) {
            // Active or not; all else is code or text.
            if raw[0] & 0x7f != 0 {
                return None;
            }
            *entry = Entry {
                kind: raw[4],
                start_sector: u32::from_le_bytes([raw[8], raw[9], raw[10], raw[11]]),
                sectors: u32::from_le_bytes([raw[12], raw[13], raw[14], raw[15]]),
            };
        }
        Some(Self { entries })
    }
}

impl Entry {
    const EMPTY: Self = Self {
        kind: 0,
        start_sector: 0,
        sectors: 0,
    };

    fn is_used(&self) -> bool {
        self.kind != 0 && self.sectors != 0
    }

    fn is_protective(&self) -> bool {
        self.kind == 0xee
    }

    fn is_extended(&self) -> bool {
        self.is_used() && matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    fn start_bytes(&self, base: u64) -> u64 {
        base.saturating_add(u64::from(self.start_sector) * SECTOR_BYTES)
    }

    fn range(&self, base: u64) -> Range<u64> {
        let start = self.start_bytes(base);
        start..start.saturating_add(u64::from(self.sectors) * SECTOR_BYTES)
    }
}

/// The partitions of a GUID table on 512-byte sectors. On sectors of 4 KiB every partition starts on
/// the disk's own grid, so there is nothing to learn from the table and it is not looked for.
fn guid_partitions(
    disk_bytes: u64,
    read: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
) -> Result<Vec<Range<u64>>> {
    let mut header = [0; SECTOR];
    read(SECTOR_BYTES, &mut header)?;
    if !header.starts_with(b"EFI PART") {
        return Ok(Vec::new());
    }
    let entries_start = le_u64(&header, 72).saturating_mul(SECTOR_BYTES);
    let entries = (le_u32(&header, 80) as usize).min(PARTITIONS_MAX);
    let entry_bytes = le_u32(&header, 84) as usize;
    // The standard says 128 times a power of two; nobody has seen another than 128.
    if !(128..=4096).contains(&entry_bytes) || !entry_bytes.is_power_of_two() {
        return Ok(Vec::new());
    }
    let table_bytes = entries * entry_bytes; // at most 1 MiB, by the bounds above
    if !lies_inside(entries_start, table_bytes as u64, disk_bytes) {
        return Ok(Vec::new());
    }
    let mut table = vec![0; table_bytes];
    read(entries_start, &mut table)?;
    Ok(table
        .chunks_exact(entry_bytes)
        .filter(|entry| entry[..16] != [0; 16])
        .map(|entry| {
            let first = le_u64(entry, 32);
            let last = le_u64(entry, 40);
            first.saturating_mul(SECTOR_BYTES)..last.saturating_add(1).saturating_mul(SECTOR_BYTES)
        })
        .collect())
}

/// Whether `count` bytes at `start` lie on the disk, also on one that ends where numbers end.
fn lies_inside(start: u64, count: u64, disk_bytes: u64) -> bool {
    start
        .checked_add(count)
        .is_some_and(|end| end <= disk_bytes)
}

/// The caller's slice is long enough; anything else reads as zero.
fn le_u64(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|bytes| bytes.first_chunk())
        .map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn le_u32(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|bytes| bytes.first_chunk())
        .map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests;
