//! Reading only what changed.
//!
//! Runs of at least a chunk are cut like any other data. Shorter ones, mostly single blocks all over
//! the disk, are gathered into chunks: one for each block would fill the index.

use super::super::draft::{DraftExtent, LeafDraft, ParentChunks, Part, SpanDraft};
use super::{Disk, FRAME_RAW_BYTES, Made, Parent, Worker};
use crate::chunk;
use crate::error::{Error, Kind, Result};
use crate::repository::tree::LeafContent;
use crate::repository::tree::overlay::{Advance, Run, inside, lay_over, runs_of};
use crate::source::SourceReader;
use std::ops::Range;
use std::sync::atomic::Ordering;
use tidegate_protocol::limits::{BLOCK_BYTES, LEAF_BYTES};

/// Scattered blocks on their way into one chunk.
#[derive(Default)]
pub(super) struct Gathered {
    bytes: Vec<u8>,
    /// Where each piece of it belongs, in the order of `bytes`.
    places: Vec<(usize, Range<u64>)>,
}

/// What changed on a disk and has got its chunks.
#[derive(Default)]
pub(super) struct Found {
    /// By the disk's number, in any order.
    runs: Vec<(usize, Run<Part>)>,
}

impl Worker<'_> {
    /// Reads what changed in a span and keeps what came of it until it is [laid](Self::lay).
    pub(super) fn changed(
        &mut self,
        disk: usize,
        reader: &mut dyn SourceReader,
        span: &Range<u64>,
        changes: &[Range<u64>],
    ) -> Result<()> {
        let (Some(first), Some(last), Some(content)) =
            (changes.first(), changes.last(), self.shared.disks.get(disk))
        else {
            return Ok(());
        };
        let grain = self.params.grain_bytes();
        // Widened to the grid, whichever it is, a change begins and ends less than a grain further.
        let hull = first.start.saturating_sub(grain).max(span.start)
            ..last.end.saturating_add(grain).min(span.end);
        let allocation = reader.allocation(hull)?;
        for range in chunk::cut_ranges(span.clone(), &content.regions) {
            for run in chunk::allocated_runs(range, changes, grain) {
                let mut at = run.start;
                for data in chunk::allocated_runs(run.clone(), &allocation, grain) {
                    self.found(disk, at..data.start, Part::Hole);
                    at = data.end;
                    if data.end - data.start < u64::from(self.params.chunk_bytes_min()) {
                        self.gather(disk, reader, data)?;
                    } else {
                        let mut draft = SpanDraft::default();
                        let start = data.start;
                        self.run_of_data(reader, data, &mut ParentChunks::default(), &mut draft)?;
                        for run in draft.into_runs(start) {
                            self.found.runs.push((disk, run));
                        }
                    }
                }
                self.found(disk, at..run.end, Part::Hole);
            }
        }
        Ok(())
    }

    fn found(&mut self, disk: usize, range: Range<u64>, content: Part) {
        if !range.is_empty() {
            self.found.runs.push((disk, Run { range, content }));
        }
    }

    /// Takes a run that is shorter than a chunk. Blocks of zeros become holes.
    fn gather(
        &mut self,
        disk: usize,
        reader: &mut dyn SourceReader,
        run: Range<u64>,
    ) -> Result<()> {
        let length = usize::try_from(run.end - run.start).unwrap_or(usize::MAX);
        if self.gathered.bytes.len() + length > FRAME_RAW_BYTES {
            self.close_gathered()?;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let Some(bytes) = buffer.get_mut(..length) else {
            return Err(Error::new(Kind::Bug, "a short run is longer than a window"));
        };
        reader.read_at(run.start, bytes)?;
        self.finished.totals.read_bytes += bytes.len() as u64;
        self.shared.progress.add_read(bytes.len() as u64);
        let mut at = run.start;
        for block in bytes.chunks(BLOCK_BYTES as usize) {
            let place = at..at + block.len() as u64;
            at = place.end;
            if chunk::is_zero(block) {
                self.found(disk, place, Part::Hole);
                continue;
            }
            self.gathered.bytes.extend_from_slice(block);
            match self.gathered.places.last_mut() {
                Some((last, range)) if *last == disk && range.end == place.start => {
                    range.end = place.end;
                }
                _ => self.gathered.places.push((disk, place)),
            }
        }
        self.buffer = buffer;
        Ok(())
    }

    /// Makes a chunk of what was gathered.
    fn close_gathered(&mut self) -> Result<()> {
        if self.gathered.places.is_empty() {
            return Ok(());
        }
        let Gathered { mut bytes, places } = std::mem::take(&mut self.gathered);
        let mut part = self.find_or_store(&bytes)?;
        for (disk, range) in places {
            let length = range.end - range.start;
            self.found(disk, range, part);
            part = part.advanced(length);
        }
        bytes.clear();
        self.gathered.bytes = bytes;
        Ok(())
    }

    /// Hands on what was found so far, to be laid over the trees.
    pub(super) fn lay(&mut self) -> Result<()> {
        self.close_gathered()?;
        let found = std::mem::take(&mut self.found.runs);
        if found.is_empty() {
            return Ok(());
        }
        for (_, run) in &found {
            if let Part::Known(slice) = run.content {
                self.refer_to(slice.location.pack);
            }
        }
        self.send(Made::Laid { runs: found })
    }

    /// The leaves of a span of which only what changed is read; the rest is the parent point's.
    pub(super) fn rewritten(
        &mut self,
        number: usize,
        disk: &Disk,
        reader: &mut dyn SourceReader,
        span: &Range<u64>,
    ) -> Result<Vec<(u64, LeafDraft)>> {
        let Some(parent) = &disk.parent else {
            return Err(Error::new(Kind::Bug, "changes without a parent point"));
        };
        if parent.damaged.load(Ordering::Relaxed) {
            return self.compared(disk, reader, span);
        }
        let changes = changes_with_growth(reader, span, parent.size_bytes)?;
        let old = match self.old_leaves(disk, parent, span, &changes) {
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Missing) => {
                parent.damaged.store(true, Ordering::Relaxed);
                tracing::warn!(
                    error = error.chain(),
                    "the parent point's tree cannot be read: reading all of the disk"
                );
                return self.compared(disk, reader, span);
            }
            old => old?,
        };
        // What is gathered is complete only when the span is.
        self.changed(number, reader, span, &changes)?;
        self.close_gathered()?;
        let found = std::mem::take(&mut self.found.runs);
        let mut runs: Vec<_> = found.into_iter().map(|(_, run)| run).collect();
        runs.sort_unstable_by_key(|run| run.range.start);
        let mut leaves = Vec::with_capacity(old.len());
        for (index, old) in old {
            let draft = match old {
                Old::Stays(content) => LeafDraft::Ready(content),
                Old::Below(below) => {
                    let above = inside(&runs, &leaf_range(index, disk.size_bytes));
                    self.leaf(extents_of(&lay_over(&below, &above)), None)?
                }
            };
            leaves.push((index, draft));
        }
        Ok(leaves)
    }

    /// The parent point's leaves of a span: those that stay as they are are not read.
    fn old_leaves(
        &self,
        disk: &Disk,
        parent: &Parent,
        span: &Range<u64>,
        changes: &[Range<u64>],
    ) -> Result<Vec<(u64, Old)>> {
        let mut leaves = Vec::new();
        for index in span.start / LEAF_BYTES..span.end.div_ceil(LEAF_BYTES) {
            let range = leaf_range(index, disk.size_bytes);
            let leaf_ref = self.shared.runtime.block_on(parent.tree.leaf_ref(index))?;
            let same = match leaf_ref {
                None => Some(LeafContent::Hole),
                Some(leaf) => leaf.whole_page().map(LeafContent::Same),
            };
            if let Some(same) = same
                // Widened to blocks, a change reaches into its neighbours, with what stood there before.
                && clipped(changes, &range).is_empty()
            {
                leaves.push((index, Old::Stays(same)));
                continue;
            }
            let below = match leaf_ref {
                Some(leaf) => {
                    let leaf = self.shared.runtime.block_on(parent.tree.read_leaf(&leaf))?;
                    let runs = runs_of(&leaf, range.start).into_iter().map(|run| Run {
                        range: run.range,
                        content: run.content.map_or(Part::Hole, Part::Known),
                    });
                    runs.collect()
                }
                None => {
                    let known = range.start..range.end.min(parent.size_bytes);
                    let hole = Run {
                        range: known,
                        content: Part::Hole,
                    };
                    if hole.range.is_empty() {
                        Vec::new()
                    } else {
                        vec![hole]
                    }
                }
            };
            leaves.push((index, Old::Below(below)));
        }
        Ok(leaves)
    }
}

/// A leaf of the parent point.
enum Old {
    /// Nothing of it changed.
    Stays(LeafContent),
    /// What may lie below changes; shorter than the leaf where the disk has grown.
    Below(Vec<Run<Part>>),
}

fn leaf_range(index: u64, disk_bytes: u64) -> Range<u64> {
    index * LEAF_BYTES..((index + 1) * LEAF_BYTES).min(disk_bytes)
}

/// The parts of `ranges` (in order, disjoint) inside `window`.
pub(super) fn clipped(ranges: &[Range<u64>], window: &Range<u64>) -> Vec<Range<u64>> {
    let first = ranges.partition_point(|range| range.end <= window.start);
    let inside = ranges.get(first..).unwrap_or_default().iter();
    inside
        .take_while(|range| range.start < window.end)
        .map(|range| range.start.max(window.start)..range.end.min(window.end))
        .collect()
}

/// What changed in a span, and what the disk has grown by since it had `old_bytes`: that was never
/// written to, as far as its map may know.
fn changes_with_growth(
    reader: &mut dyn SourceReader,
    span: &Range<u64>,
    old_bytes: u64,
) -> Result<Vec<Range<u64>>> {
    let mut changes = reader.changes(span.clone())?;
    if old_bytes < span.end {
        let grown = old_bytes.max(span.start)..span.end;
        changes.retain(|range| range.start < grown.start);
        if let Some(last) = changes.last_mut() {
            last.end = last.end.min(grown.start);
        }
        changes.push(grown);
    }
    Ok(changes)
}

/// Runs of a leaf, without gaps, as its extents.
fn extents_of(runs: &[Run<Part>]) -> Vec<DraftExtent> {
    let mut extents: Vec<DraftExtent> = Vec::with_capacity(runs.len());
    for run in runs {
        let length = run.range.end - run.range.start;
        match extents.last_mut() {
            Some(last) if last.part.goes_on_with(last.length, run.content) => {
                last.length += length;
            }
            _ => extents.push(DraftExtent {
                length,
                part: run.content,
            }),
        }
    }
    extents
}
