//! From a tree to what has to be fetched, a bounded stretch of the disk at a time.

use crate::error::Result;
use crate::repository::fetch::Want;
use crate::repository::tree::TreeReader;
use crate::repository::{PointDisk, Repository};
use std::ops::Range;
use std::sync::Arc;
use tidegate_protocol::limits::{FAN_OUT, LEAF_BYTES};
use tidegate_protocol::page::Leaf;

/// Wants held in memory together: some 25 MB, the data of about 5 GiB of disk. A frame that two
/// stretches need is fetched twice.
const WANTS_MAX: usize = 250_000;

/// A stretch of a disk: what it needs, in disk order, and where it is zero.
pub(super) struct Stretch {
    /// Its range on the disk.
    pub(super) range: Range<u64>,
    /// Data, in disk order. Adjacent slices of one chunk are one want.
    pub(super) wants: Vec<Want>,
    /// Zeros, in disk order, adjacent ones joined.
    pub(super) holes: Vec<Range<u64>>,
}

/// Walks a disk from front to back.
pub(super) struct Walk {
    tree: TreeReader,
    size_bytes: u64,
    group: u64,
}

impl Walk {
    pub(super) fn new(repository: &Arc<Repository>, disk: &PointDisk) -> Self {
        Self {
            tree: TreeReader::new(repository, disk),
            size_bytes: disk.size_bytes,
            group: 0,
        }
    }

    /// The next stretch; `None` at the end. Stretches follow each other without gap.
    pub(super) async fn next(&mut self) -> Result<Option<Stretch>> {
        const GROUP_BYTES: u64 = LEAF_BYTES * FAN_OUT as u64;
        let start = self.group * GROUP_BYTES;
        if self.group >= self.tree.groups() {
            return Ok(None);
        }
        let mut stretch = Stretch::at(start);
        while self.group < self.tree.groups() && stretch.wants.len() < WANTS_MAX {
            for leaf in self.tree.group(self.group).await? {
                let at = leaf.range().start;
                stretch.hole(stretch.range.end..at);
                stretch.leaf(at, &self.tree.read_leaf(&leaf).await?);
            }
            self.group += 1;
            let end = (self.group * GROUP_BYTES).min(self.size_bytes);
            stretch.hole(stretch.range.end..end);
        }
        Ok(Some(stretch))
    }
}

impl Stretch {
    /// An empty one that begins at `start`.
    pub(super) fn at(start: u64) -> Self {
        Self {
            range: start..start,
            wants: Vec::new(),
            holes: Vec::new(),
        }
    }

    /// Appends a leaf that begins at `at`.
    pub(super) fn leaf(&mut self, at: u64, leaf: &Leaf) {
        let mut start = at;
        for extent in &leaf.extents {
            let end = start + u64::from(extent.length);
            match &extent.slice {
                None => self.hole(start..end),
                Some(slice) => self.want(Want {
                    disk_offset: start,
                    length: extent.length,
                    chunk: slice.chunk,
                    offset: slice.offset,
                    location: slice.location,
                }),
            }
            start = end;
        }
        self.range.end = self.range.end.max(start);
    }

    fn want(&mut self, want: Want) {
        self.range.end = want.disk_offset + u64::from(want.length);
        match self.wants.last_mut() {
            // A chunk that crosses the edge of two leaves is one want again.
            Some(last)
                if last.chunk == want.chunk
                    && last.location == want.location
                    && last.disk_offset + u64::from(last.length) == want.disk_offset
                    && last.offset.checked_add(last.length) == Some(want.offset) =>
            {
                last.length += want.length;
            }
            _ => self.wants.push(want),
        }
    }

    pub(super) fn hole(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.range.end = range.end;
        match self.holes.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.holes.push(range),
        }
    }
}
