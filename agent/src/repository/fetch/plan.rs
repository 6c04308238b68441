//! Which ranges to read for what is wanted. Pure: no I/O.
//!
//! First by pack ([`plan_reads`]): in pack order, with small gaps read over rather than asked around. Then reads
//! of packs that lie near each other in a bundle become one request ([`join`]).

use std::collections::HashMap;
use std::ops::Range;
use tidegate_protocol::ids::{ChunkId, PackId};
use tidegate_protocol::pack::Location;

/// Largest range of one read: large enough that the request's own cost does not count, small enough
/// that several fit into memory.
pub const READ_BYTES_MAX: u64 = 16 << 20;

/// Bytes that are read for nothing rather than to send another request: what a line of 100 MB/s
/// moves in 5 ms.
const GAP_BYTES: u64 = 512 << 10;

/// Beyond one request a pack, another is allowed for each such stretch: the cost that is promised.
const STRETCH_BYTES: u64 = 8 << 20;

/// Part of a chunk that somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// Where it goes on the disk, in bytes.
    pub disk_offset: u64,
    /// Its length in bytes.
    pub length: u32,
    /// The chunk.
    pub chunk: ChunkId,
    /// Where it begins in the chunk, in bytes.
    pub offset: u32,
    /// Where the chunk lies.
    pub location: Location,
}

impl Want {
    /// Where the wanted part lies in the frame's raw content.
    pub(super) fn place_in_frame(&self) -> Range<usize> {
        let start = self.location.offset_in_frame as usize + self.offset as usize;
        start..start + self.length as usize
    }
}

/// One ranged read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// The pack.
    pub pack: PackId,
    /// The range of its bytes.
    pub range: Range<u64>,
    /// The wants that it serves, as a range of the sorted list.
    pub wants: Range<usize>,
}

/// What one request brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Haul {
    /// The object it is read from: a pack, or a bundle of several.
    pub object: PackId,
    /// The range of its bytes.
    pub range: Range<u64>,
    /// What is in it, and where in it each begins.
    pub reads: Vec<(u64, Read)>,
}

/// Joins reads of packs that lie near each other in a bundle; `places` says which do lie in one, and where
/// in it.
pub(super) fn join(reads: Vec<Read>, places: &HashMap<PackId, (PackId, Range<u64>)>) -> Vec<Haul> {
    let mut hauls: Vec<Haul> = reads
        .into_iter()
        .map(|read| {
            let at = |(bundle, place): &(PackId, Range<u64>)| {
                let end = place.start.checked_add(read.range.end)?;
                let start = place.start + read.range.start;
                (end <= place.end).then_some((*bundle, start..end))
            };
            let own = || (read.pack, read.range.clone());
            let (object, range) = places.get(&read.pack).and_then(at).unwrap_or_else(own);
            let reads = vec![(0, read)];
            Haul {
                object,
                range,
                reads,
            }
        })
        .collect();
    hauls.sort_by_key(|haul| (haul.object, haul.range.start));
    hauls.dedup_by(|next, before| {
        let is_near = before.object == next.object
            && next.range.start <= before.range.end.saturating_add(GAP_BYTES)
            && next.range.end - before.range.start <= READ_BYTES_MAX;
        if is_near {
            let offset = next.range.start - before.range.start;
            let moved = next.reads.drain(..).map(|(at, read)| (offset + at, read));
            before.reads.extend(moved);
            before.range.end = before.range.end.max(next.range.end);
        }
        is_near
    });
    hauls
}

/// Sorts `wants` by pack and place, and plans the reads that serve them.
pub(super) fn plan_reads(wants: &mut [Want]) -> Vec<Read> {
    wants.sort_unstable_by_key(|want| {
        let at = &want.location;
        (
            at.pack,
            at.frame_offset,
            at.offset_in_frame,
            want.disk_offset,
        )
    });
    let mut reads = Vec::new();
    let mut start = 0;
    for group in wants.chunk_by(|a, b| a.location.pack == b.location.pack) {
        plan_pack(group, start, &mut reads);
        start += group.len();
    }
    reads
}

fn plan_pack(group: &[Want], first: usize, reads: &mut Vec<Read>) {
    let Some(last) = group.last() else { return };
    let before = reads.len();
    let mut gap = GAP_BYTES;
    loop {
        plan_with_gap(group, first, gap, reads);
        let allowed = 1 + last.location.frame_range().end / STRETCH_BYTES;
        // The pack's key takes a request of its own where the first read does not bring it.
        let apart = reads.get(before).is_some_and(|read| read.range.start > 0);
        let used = (reads.len() - before) as u64 + u64::from(apart);
        if used <= allowed || gap > READ_BYTES_MAX {
            return;
        }
        // Scattered wants, or far from the key: fewer, longer reads.
        reads.truncate(before);
        gap *= 2;
    }
}

fn plan_with_gap(group: &[Want], first: usize, gap: u64, reads: &mut Vec<Read>) {
    let mut open: Option<Read> = None;
    for (number, want) in (first..).zip(group) {
        let frame = want.location.frame_range();
        match &mut open {
            Some(read)
                if frame.start <= read.range.end.saturating_add(gap)
                    && frame.end.max(read.range.end) - read.range.start <= READ_BYTES_MAX =>
            {
                read.range.end = read.range.end.max(frame.end);
                read.wants.end = number + 1;
            }
            _ => {
                reads.extend(open.take());
                // The pack's header has its key: take it along where it is near.
                let near = frame.start <= gap && frame.end <= READ_BYTES_MAX;
                let start = if number == first && near {
                    0
                } else {
                    frame.start
                };
                open = Some(Read {
                    pack: want.location.pack,
                    range: start..frame.end,
                    wants: number..number + 1,
                });
            }
        }
    }
    reads.extend(open);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const MIB: u64 = 1 << 20;

    fn pack(number: u8) -> PackId {
        PackId([number; 32])
    }

    fn read(number: u8, range: Range<u64>) -> Read {
        Read {
            pack: pack(number),
            range,
            wants: 0..1,
        }
    }

    #[test]
    fn packs_that_lie_near_each_other_in_a_bundle_come_together() {
        let bundle = pack(99);
        let places: HashMap<_, _> = [
            (1, 0..MIB),
            (2, MIB..2 * MIB),
            (3, 2 * MIB..6 * MIB),
            (4, 6 * MIB..30 * MIB),
        ]
        .map(|(number, place)| (pack(number), (bundle, place)))
        .into();
        let reads = vec![
            read(1, 0..100),
            read(2, 50..MIB),
            // By itself, more than a gap behind.
            read(3, 3 * MIB..4 * MIB),
            // Together with the one before it would be too much.
            read(4, 0..16 * MIB),
            read(5, 0..100),
            // Outside the place that it is said to have.
            read(2, MIB..MIB + 1),
        ];
        let hauls = join(reads.clone(), &places);
        let told: Vec<_> = hauls
            .iter()
            .map(|haul| {
                let parts: Vec<_> = haul.reads.iter().map(|(at, it)| (*at, it.pack)).collect();
                (haul.object, haul.range.clone(), parts)
            })
            .collect();
        assert_eq!(
            told,
            [
                (pack(2), MIB..MIB + 1, vec![(0, pack(2))]),
                (pack(5), 0..100, vec![(0, pack(5))]),
                (bundle, 0..100, vec![(0, pack(1))]),
                (bundle, MIB + 50..2 * MIB, vec![(0, pack(2))]),
                (bundle, 5 * MIB..6 * MIB, vec![(0, pack(3))]),
                (bundle, 6 * MIB..22 * MIB, vec![(0, pack(4))]),
            ]
        );
        let near = vec![read(1, MIB - 10..MIB), read(2, 50..100), read(3, 0..10)];
        let hauls = join(near, &places);
        let parts = |haul: &Haul| {
            haul.reads
                .iter()
                .map(|(at, it)| (*at, it.pack))
                .collect::<Vec<_>>()
        };
        assert_eq!(hauls[0].range, MIB - 10..MIB + 100);
        assert_eq!(parts(&hauls[0]), [(0, pack(1)), (60, pack(2))]);
        assert_eq!(hauls[1].range, 2 * MIB..2 * MIB + 10);
    }
}
