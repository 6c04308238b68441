//! Runs of a disk laid over others: pure, for delta pages over leaves and for changes over both.

use std::ops::Range;
use tidegate_protocol::limits::LEAF_BYTES;
use tidegate_protocol::page::{Extent, Leaf, Slice};

/// A run of a disk's bytes and what they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run<T> {
    /// Where it lies on the disk, in bytes; not empty.
    pub range: Range<u64>,
    /// What it is, from its first byte on.
    pub content: T,
}

/// Content of which a part can be named.
pub trait Advance: Copy {
    /// What begins `by` bytes later.
    fn advanced(self, by: u64) -> Self;
}

impl Advance for Option<Slice> {
    fn advanced(self, by: u64) -> Self {
        // Chunks are far below 4 GiB.
        let by = u32::try_from(by).unwrap_or(u32::MAX);
        self.map(|slice| Slice {
            offset: slice.offset.saturating_add(by),
            ..slice
        })
    }
}

impl<T: Advance> Run<T> {
    /// The part of it inside `range`, if there is any.
    pub fn within(&self, range: &Range<u64>) -> Option<Self> {
        let part = self.range.start.max(range.start)..self.range.end.min(range.end);
        (!part.is_empty()).then(|| Self {
            content: self.content.advanced(part.start - self.range.start),
            range: part,
        })
    }
}

/// What is seen from above: all of `above`, and of `below` what it leaves free. Both are in the order
/// of the disk, none over another of the same side; so is the result.
pub fn lay_over<T: Advance>(below: &[Run<T>], above: &[Run<T>]) -> Vec<Run<T>> {
    let mut seen = Vec::with_capacity(below.len() + above.len());
    let mut above = above.iter().peekable();
    for run in below {
        let mut at = run.range.start;
        while at < run.range.end {
            // What ends before this run has been seen already, or is seen now.
            let Some(next) = above.peek() else {
                seen.extend(run.within(&(at..run.range.end)));
                break;
            };
            if next.range.start >= run.range.end {
                seen.extend(run.within(&(at..run.range.end)));
                break;
            }
            seen.extend(run.within(&(at..next.range.start)));
            at = at.max(next.range.end);
            if next.range.end <= run.range.end {
                seen.extend(above.next().cloned());
            } else {
                // It goes on over the next run below.
                break;
            }
        }
    }
    seen.extend(above.cloned());
    seen
}

/// The runs inside `range`, clipped to it.
pub fn inside<T: Advance>(runs: &[Run<T>], range: &Range<u64>) -> Vec<Run<T>> {
    let first = runs.partition_point(|run| run.range.end <= range.start);
    runs.get(first..)
        .unwrap_or_default()
        .iter()
        .take_while(|run| run.range.start < range.end)
        .filter_map(|run| run.within(range))
        .collect()
}

/// A leaf's extents as runs; it begins at `start`.
pub fn runs_of(leaf: &Leaf, start: u64) -> Vec<Run<Option<Slice>>> {
    let mut at = start;
    leaf.extents
        .iter()
        .map(|extent| {
            let range = at..at + u64::from(extent.length);
            at = range.end;
            Run {
                range,
                content: extent.slice,
            }
        })
        .collect()
}

/// Runs without gaps, from a leaf's beginning on, as a leaf. Adjacent holes are joined.
pub fn leaf_of(runs: &[Run<Option<Slice>>]) -> Leaf {
    let mut leaf = Leaf::default();
    for run in runs {
        // At most a leaf long.
        let length = u32::try_from((run.range.end - run.range.start).min(LEAF_BYTES)).unwrap_or(0);
        match leaf.extents.last_mut() {
            Some(last) if last.slice.is_none() && run.content.is_none() => last.length += length,
            _ => leaf.extents.push(Extent {
                length,
                slice: run.content,
            }),
        }
    }
    leaf
}

#[cfg(test)]
mod tests;
