//! Leaves on their way from the cutting thread to the tree: some of their chunks may not have a
//! place yet.

use crate::error::Result;
use crate::repository::refused;
use crate::repository::tree::LeafContent;
use crate::repository::tree::overlay::{Advance, Run};
use std::ops::Range;
use tidegate_protocol::ids::ChunkId;
use tidegate_protocol::keys::Keys;
use tidegate_protocol::limits::LEAF_BYTES;
use tidegate_protocol::pack::Location;
use tidegate_protocol::page::{Extent, Leaf, Slice};

/// What a run of a disk's bytes came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Zeros.
    Hole,
    /// A chunk that has a place, or part of one.
    Known(Slice),
    /// A chunk of this run whose pack has no name yet, or part of one.
    Pending { chunk: ChunkId, offset: u32 },
}

/// A run of bytes and what it came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DraftExtent {
    pub(super) length: u64,
    pub(super) part: Part,
}

/// A leaf as the cutting thread leaves it.
#[derive(Debug)]
pub(super) enum LeafDraft {
    /// Nothing is missing.
    Ready(LeafContent),
    /// Some chunks have no place yet.
    Waiting(Vec<DraftExtent>),
}

/// Collects a span's parts in order.
#[derive(Default)]
pub(super) struct SpanDraft {
    extents: Vec<DraftExtent>,
}

impl SpanDraft {
    /// Appends zeros.
    pub(super) fn hole(&mut self, length: u64) {
        if length == 0 {
            return;
        }
        match self.extents.last_mut() {
            Some(last) if last.part == Part::Hole => last.length += length,
            _ => self.extents.push(DraftExtent {
                length,
                part: Part::Hole,
            }),
        }
    }

    /// Appends a whole chunk.
    pub(super) fn chunk(&mut self, length: u64, part: Part) {
        self.extents.push(DraftExtent { length, part });
    }

    /// What was collected, as runs of the disk. `start` is where it begins.
    pub(super) fn into_runs(self, start: u64) -> impl Iterator<Item = Run<Part>> {
        let mut at = start;
        self.extents.into_iter().map(move |extent| {
            let range = at..at + extent.length;
            at = range.end;
            Run {
                range,
                content: extent.part,
            }
        })
    }

    /// Parts what was collected at the leaves' boundaries. `start` is where the span begins, on one.
    pub(super) fn into_leaves(self, start: u64) -> Vec<(u64, Vec<DraftExtent>)> {
        let mut leaves: Vec<(u64, Vec<DraftExtent>)> = Vec::new();
        let mut at = start;
        for extent in self.extents {
            let mut done = 0;
            while done < extent.length {
                let index = at / LEAF_BYTES;
                let room = (index + 1) * LEAF_BYTES - at;
                let length = room.min(extent.length - done);
                let part = extent.part.advanced(done);
                match leaves.last_mut() {
                    Some((last, extents)) if *last == index => {
                        extents.push(DraftExtent { length, part });
                    }
                    _ => leaves.push((index, vec![DraftExtent { length, part }])),
                }
                done += length;
                at += length;
            }
        }
        leaves
    }
}

impl Part {
    /// True where `next` is what follows this part's first `length` bytes.
    pub(super) fn goes_on_with(self, length: u64, next: Self) -> bool {
        self.advanced(length) == next
    }
}

impl Advance for Part {
    // Chunks are far below 4 GiB.
    fn advanced(self, by: u64) -> Self {
        let by = u32::try_from(by).unwrap_or(u32::MAX);
        match self {
            Self::Hole => Self::Hole,
            Self::Known(slice) => Self::Known(Slice {
                offset: slice.offset.saturating_add(by),
                ..slice
            }),
            Self::Pending { chunk, offset } => Self::Pending {
                chunk,
                offset: offset.saturating_add(by),
            },
        }
    }
}

/// The finished leaf, if every chunk has a place; `place` finds the pending ones.
pub(super) fn settle(
    extents: &[DraftExtent],
    mut place: impl FnMut(&ChunkId) -> Option<Location>,
) -> Option<Leaf> {
    let mut leaf = Leaf {
        extents: Vec::with_capacity(extents.len()),
    };
    for extent in extents {
        let slice = match extent.part {
            Part::Hole => None,
            Part::Known(slice) => Some(slice),
            Part::Pending { chunk, offset } => Some(Slice {
                chunk,
                offset,
                location: place(&chunk)?,
            }),
        };
        leaf.extents.push(Extent {
            // A leaf's extents are at most a leaf long.
            length: u32::try_from(extent.length).unwrap_or(u32::MAX),
            slice,
        });
    }
    Some(leaf)
}

/// A finished leaf as the tree takes it.
pub(super) fn content(leaf: &Leaf, keys: &Keys) -> Result<LeafContent> {
    if leaf.is_hole() {
        return Ok(LeafContent::Hole);
    }
    let (id, bytes) = leaf.encode(keys).map_err(refused)?;
    Ok(LeafContent::New(id, bytes))
}

/// True when two leaves say the same, wherever their chunks lie.
pub(super) fn same_content(a: &Leaf, b: &Leaf) -> bool {
    a.extents.len() == b.extents.len()
        && a.extents.iter().zip(&b.extents).all(|(a, b)| {
            a.length == b.length
                && a.slice.map(|slice| (slice.chunk, slice.offset))
                    == b.slice.map(|slice| (slice.chunk, slice.offset))
        })
}

/// Whole chunks of a parent's leaves by their place on the disk, for comparing at equal offsets.
#[derive(Default)]
pub(super) struct ParentChunks {
    chunks: Vec<(Range<u64>, Slice)>,
    next: usize,
}

impl ParentChunks {
    /// Takes the next leaf, which begins at `start` on the disk.
    pub(super) fn add(&mut self, start: u64, leaf: &Leaf) {
        let mut at = start;
        for extent in &leaf.extents {
            let end = at + u64::from(extent.length);
            if let Some(slice) = extent.slice {
                match self.chunks.last_mut() {
                    // A chunk that crosses a leaf's edge stands in both leaves.
                    Some((range, last))
                        if range.end == at
                            && last.chunk == slice.chunk
                            && u64::from(slice.offset)
                                == u64::from(last.offset) + (range.end - range.start) =>
                    {
                        range.end = end;
                    }
                    _ => self.chunks.push((at..end, slice)),
                }
            }
            at = end;
        }
    }

    /// The whole chunk that stood at exactly this range. Ranges must be asked for in order.
    pub(super) fn at(&mut self, range: &Range<u64>) -> Option<&Slice> {
        while self.chunks.get(self.next)?.0.start < range.start {
            self.next += 1;
        }
        let (stood, slice) = self.chunks.get(self.next)?;
        let whole =
            slice.offset == 0 && u64::from(slice.location.length) == range.end - range.start;
        (*stood == *range && whole).then_some(slice)
    }
}
