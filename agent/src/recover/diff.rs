//! What changed between two points: their trees are compared by page names, so that what they share
//! is never read.

use crate::error::Result;
use crate::repository::tree::{LeafRef, TreeReader};
use crate::repository::{PointDisk, Repository};
use serde::Serialize;
use std::cmp::Ordering;
use std::sync::Arc;
use tidegate_protocol::ids::ChunkId;
use tidegate_protocol::limits::{FAN_OUT, LEAF_BYTES};
use tidegate_protocol::page::Leaf;

/// A run of bytes that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DiffExtent {
    /// Where it begins on the disk, in bytes.
    pub start: u64,
    /// Its length in bytes.
    pub length: u64,
    /// How it differs.
    pub kind: DiffKind,
}

/// How a run of bytes differs from the first point to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DiffKind {
    /// Other data, or data where there were zeros.
    Changed,
    /// Zeros where there was data.
    Zeroed,
    /// Behind the first one's end.
    Added,
    /// Behind the second one's end.
    Removed,
}

/// What changed from `from` to `to`, in disk order, adjacent runs joined. Chunk by chunk: a run may
/// hold bytes that happen to be equal within a chunk that is not.
pub async fn diff(
    repository: &Arc<Repository>,
    from: &PointDisk,
    to: &PointDisk,
) -> Result<Vec<DiffExtent>> {
    let (a, b) = (
        TreeReader::new(repository, from),
        TreeReader::new(repository, to),
    );
    let common = from.size_bytes.min(to.size_bytes);
    let mut found = Vec::new();
    for group in 0..a.groups().min(b.groups()) {
        // Equal inner pages are equal all the way down.
        let names = (a.group_name(group).await?, b.group_name(group).await?);
        if names.0.is_some() && names.0 == names.1 {
            continue;
        }
        let (leaves_a, leaves_b) = (a.group(group).await?, b.group(group).await?);
        let first = group * FAN_OUT as u64;
        for index in first..first + FAN_OUT as u64 {
            let at = |leaves: &[LeafRef]| {
                leaves
                    .binary_search_by_key(&index, |leaf| leaf.index)
                    .ok()
                    .map(|found| leaves[found])
            };
            let refs = (at(&leaves_a), at(&leaves_b));
            if refs == (None, None) || is_one_page(refs) {
                continue;
            }
            let mut sides = (Leaf::default(), Leaf::default());
            if let Some(leaf) = refs.0 {
                sides.0 = a.read_leaf(&leaf).await?;
            }
            if let Some(leaf) = refs.1 {
                sides.1 = b.read_leaf(&leaf).await?;
            }
            compare(index * LEAF_BYTES, common, &sides.0, &sides.1, &mut found);
        }
    }
    let tail = match from.size_bytes.cmp(&to.size_bytes) {
        Ordering::Less => Some((to.size_bytes, DiffKind::Added)),
        Ordering::Equal => None,
        Ordering::Greater => Some((from.size_bytes, DiffKind::Removed)),
    };
    found.extend(tail.map(|(end, kind)| DiffExtent {
        start: common,
        length: end - common,
        kind,
    }));
    Ok(found)
}

/// True where one page says all of both leaves.
fn is_one_page(leaves: (Option<LeafRef>, Option<LeafRef>)) -> bool {
    let name = |leaf: Option<LeafRef>| Some(leaf?.whole_page()?.id);
    match (name(leaves.0), name(leaves.1)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

/// A position in a leaf's extents.
struct Cursor<'a> {
    leaf: &'a Leaf,
    extent: usize,
    within: u32,
}

impl Cursor<'_> {
    /// Bytes left of the present extent, and what they are: chunk and offset, or zeros. Behind the
    /// end there are zeros without end.
    fn now(&self) -> (u64, Option<(ChunkId, u32)>) {
        match self.leaf.extents.get(self.extent) {
            None => (u64::MAX, None),
            Some(extent) => (
                u64::from(extent.length - self.within),
                extent
                    .slice
                    .map(|slice| (slice.chunk, slice.offset.saturating_add(self.within))),
            ),
        }
    }

    fn advance(&mut self, by: u64) {
        let Some(extent) = self.leaf.extents.get(self.extent) else {
            return;
        };
        self.within += u32::try_from(by).unwrap_or(u32::MAX);
        if self.within >= extent.length {
            self.extent += 1;
            self.within = 0;
        }
    }
}

/// Compares two leaves that begin at `start`, up to `end` of the disk.
fn compare(start: u64, end: u64, a: &Leaf, b: &Leaf, found: &mut Vec<DiffExtent>) {
    let cursor = |leaf| Cursor {
        leaf,
        extent: 0,
        within: 0,
    };
    let (mut left, mut right) = (cursor(a), cursor(b));
    let mut at = start;
    loop {
        let ((bytes_a, content_a), (bytes_b, content_b)) = (left.now(), right.now());
        let length = bytes_a.min(bytes_b).min(end.saturating_sub(at));
        if length == 0 || bytes_a.min(bytes_b) == u64::MAX {
            return;
        }
        let kind = match (content_a, content_b) {
            (None, None) => None,
            (Some(_), None) => Some(DiffKind::Zeroed),
            (a, b) => (a != b).then_some(DiffKind::Changed),
        };
        if let Some(kind) = kind {
            match found.last_mut() {
                Some(last) if last.kind == kind && last.start + last.length == at => {
                    last.length += length;
                }
                _ => found.push(DiffExtent {
                    start: at,
                    length,
                    kind,
                }),
            }
        }
        left.advance(length);
        right.advance(length);
        at += length;
    }
}
