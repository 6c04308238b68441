//! From a span of the disk to the ranges that are read and cut on their own.
//!
//! Pure arithmetic: no bytes are seen here.

use super::BLOCK_BYTES;
use super::partition::Region;
use std::ops::Range;

/// Splits `span` into the ranges that are cut on their own, each with a fresh state: in order,
/// disjoint, not empty, covering the span.
///
/// A range never crosses from one region to another. Where a span starts off its region's block
/// grid, the bytes up to the grid are a range of their own (shorter than a block), so every other
/// range starts on the grid and the [`Cutter`](super::Cutter) need not know of phases. Bytes of the
/// span that no region names count as on the disk's own grid.
pub fn cut_ranges(span: Range<u64>, regions: &[Region]) -> Vec<Range<u64>> {
    let mut ranges = Vec::with_capacity(4);
    let mut at = span.start;
    for region in regions {
        if region.end <= at {
            continue;
        }
        if region.start >= span.end {
            break;
        }
        push_on_grid(&mut ranges, at..region.start.min(span.end), 0);
        at = at.max(region.start);
        push_on_grid(&mut ranges, at..region.end.min(span.end), region.phase);
        at = region.end.min(span.end);
    }
    push_on_grid(&mut ranges, at..span.end, 0);
    ranges
}

/// Appends `range`, parted at the first block boundary of the grid of `phase`.
fn push_on_grid(ranges: &mut Vec<Range<u64>>, range: Range<u64>, phase: u64) {
    const BLOCK: u64 = BLOCK_BYTES as u64;
    if range.is_empty() {
        return;
    }
    let lead = (phase % BLOCK + BLOCK - range.start % BLOCK) % BLOCK;
    let grid = range.start.saturating_add(lead);
    if lead > 0 && grid < range.end {
        ranges.push(range.start..grid);
        ranges.push(grid..range.end);
    } else {
        ranges.push(range);
    }
}

/// What of `range` (one of [`cut_ranges`]) has to be read, given the source's allocated extents
/// (sorted; see [`SourceReader::allocation`](crate::source::SourceReader::allocation)): in order,
/// disjoint, not touching. All else is hole.
///
/// Each run starts on the range's grid of `grain_bytes`
/// ([`ChunkerParams::grain_bytes`](super::ChunkerParams::grain_bytes)) and ends on it or with the
/// range, so cutting every run on its own gives the very pieces that cutting the whole range would
/// give: the grains between are zero, and a hole ends a chunk.
pub fn allocated_runs(
    range: Range<u64>,
    allocation: &[Range<u64>],
    grain_bytes: u64,
) -> Vec<Range<u64>> {
    let grain = grain_bytes.max(1);
    let mut runs: Vec<Range<u64>> = Vec::with_capacity(allocation.len());
    for extent in allocation {
        let from = extent.start.max(range.start);
        let to = extent.end.min(range.end);
        if from >= to {
            continue;
        }
        let start = range.start + (from - range.start) / grain * grain;
        let end =
            (range.start + (to - range.start).div_ceil(grain).saturating_mul(grain)).min(range.end);
        match runs.last_mut() {
            Some(run) if start <= run.end => run.end = run.end.max(end),
            _ => runs.push(start..end),
        }
    }
    runs
}
