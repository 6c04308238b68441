//! A disk's tree: walking one, writing a new one.
//!
//! Whoever walks sees what delta pages have laid over it: leaves come as they read now.

pub mod overlay;
mod writer;

pub use writer::{LeafContent, OldTree, TreeWriter, WrittenTrees};

use super::{PointDisk, Repository};
use crate::error::{Error, Kind, Result};
use overlay::{Run, inside, lay_over, leaf_of, runs_of};
use quick_cache::sync::Cache;
use std::ops::Range;
use std::sync::Arc;
use tidegate_protocol::ids::{PackId, PageId};
use tidegate_protocol::limits::{FAN_OUT, LEAF_BYTES};
use tidegate_protocol::page::{Extent, Inner, Leaf, PageRef, Slice};
use tokio::sync::OnceCell;

/// Inner pages kept in memory: 64 of them span 64 GiB of disk.
const INNER_PAGES_MAX: usize = 64;

/// Reads a disk's tree, in any order. Shared by threads.
pub struct TreeReader {
    repository: Arc<Repository>,
    root: Option<PageRef>,
    levels: u8,
    size_bytes: u64,
    leaves: u64,
    inner: Cache<(u8, u64), Arc<Inner>>,
    deltas: Vec<PageRef>,
    /// What all delta pages come to.
    over: OnceCell<Vec<Run<Option<Slice>>>>,
}

/// A leaf, before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeafRef {
    /// Its place in the disk, counted in leaves.
    pub index: u64,
    /// Its page in the tree; `None` is a hole there.
    page: Option<PageRef>,
    /// True where delta pages say something else of it.
    is_overlaid: bool,
}

impl LeafRef {
    /// The page that says all of it; none where it is a hole, or delta pages say something else.
    pub fn whole_page(&self) -> Option<PageRef> {
        self.page.filter(|_| !self.is_overlaid)
    }

    /// The pack that its page lies in, if the tree has one.
    pub fn pack(&self) -> Option<PackId> {
        self.page.map(|page| page.location.pack)
    }

    /// Where it lies on the disk, in bytes; the last one may end before.
    pub fn range(&self) -> Range<u64> {
        self.index * LEAF_BYTES..(self.index + 1) * LEAF_BYTES
    }
}

/// Leaves that a disk of `size_bytes` has.
pub fn leaf_count(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(LEAF_BYTES)
}

impl TreeReader {
    /// A reader of that disk's tree.
    pub fn new(repository: &Arc<Repository>, disk: &PointDisk) -> Self {
        Self {
            repository: Arc::clone(repository),
            root: disk.root,
            levels: disk.levels,
            size_bytes: disk.size_bytes,
            leaves: leaf_count(disk.size_bytes),
            inner: Cache::new(INNER_PAGES_MAX),
            deltas: disk.deltas.clone(),
            over: OnceCell::new(),
        }
    }

    /// The root, without what lies over the tree; `None` is all hole.
    pub fn root(&self) -> Option<PageRef> {
        self.root
    }

    /// The delta pages over the tree, the oldest first.
    pub fn delta_pages(&self) -> &[PageRef] {
        &self.deltas
    }

    /// How many leaves the disk has, holes included.
    pub fn leaves(&self) -> u64 {
        self.leaves
    }

    /// What delta pages say, in the order of the disk, without what they hide of each other.
    pub async fn overlaid(&self) -> Result<&[Run<Option<Slice>>]> {
        let over = self.over.get_or_try_init(async || {
            let mut over = Vec::new();
            for page in &self.deltas {
                let delta = self.repository.delta(page).await?;
                let runs = delta.extents.iter().filter_map(|extent| {
                    let run = Run {
                        range: extent.start..extent.end(),
                        content: extent.slice,
                    };
                    run.within(&(0..self.size_bytes))
                });
                over = lay_over(&over, &runs.collect::<Vec<_>>());
            }
            Ok::<_, Error>(over)
        });
        over.await.map(Vec::as_slice)
    }

    /// The page of `level` (0 is a leaf) at `index` in its level, as the tree has it; `None` is all
    /// hole, or outside.
    async fn page(&self, level: u8, index: u64) -> Result<Option<PageRef>> {
        let per_page = (FAN_OUT as u64).pow((self.levels.saturating_sub(level)).into());
        if level > self.levels || index / per_page > 0 {
            return Ok(None);
        }
        let mut page = self.root;
        let mut at = self.levels;
        while at > level {
            let Some(found) = page else { return Ok(None) };
            let below = index / (FAN_OUT as u64).pow((at - 1 - level).into());
            let inner = self.read_inner(&found, at, below / FAN_OUT as u64).await?;
            let child = usize::try_from(below % FAN_OUT as u64).unwrap_or(FAN_OUT);
            page = inner.children.get(child).copied().flatten();
            at -= 1;
        }
        Ok(page)
    }

    /// The name of the page over one group of [`FAN_OUT`] leaves, where it says all of them: groups
    /// of one name are equal.
    pub async fn group_name(&self, group: u64) -> Result<Option<PageId>> {
        const GROUP_BYTES: u64 = LEAF_BYTES * FAN_OUT as u64;
        let range = group * GROUP_BYTES..(group + 1) * GROUP_BYTES;
        if !inside(self.overlaid().await?, &range).is_empty() {
            return Ok(None);
        }
        Ok(self.page(1, group).await?.map(|page| page.id))
    }

    /// The inner page of `level` at `index`, with its reference, as the tree has it.
    pub async fn inner(&self, level: u8, index: u64) -> Result<Option<(PageRef, Arc<Inner>)>> {
        match self.page(level, index).await? {
            Some(page) if level > 0 => {
                Ok(Some((page, self.read_inner(&page, level, index).await?)))
            }
            _ => Ok(None),
        }
    }

    /// The leaf at `index`, with its reference; `None` is all hole.
    pub async fn leaf(&self, index: u64) -> Result<Option<(LeafRef, Leaf)>> {
        match self.leaf_ref(index).await? {
            Some(leaf) => Ok(Some((leaf, self.read_leaf(&leaf).await?))),
            None => Ok(None),
        }
    }

    /// The same without reading it.
    pub async fn leaf_ref(&self, index: u64) -> Result<Option<LeafRef>> {
        let leaf = LeafRef {
            index,
            page: self.page(0, index).await?,
            is_overlaid: false,
        };
        let is_overlaid = !inside(self.overlaid().await?, &leaf.range()).is_empty();
        Ok((leaf.page.is_some() || is_overlaid).then_some(LeafRef {
            is_overlaid,
            ..leaf
        }))
    }

    /// The leaves that may hold data within one group of [`FAN_OUT`] leaves, in order. Groups are
    /// numbered from 0; see [`Self::groups`].
    pub async fn group(&self, group: u64) -> Result<Vec<LeafRef>> {
        let first = group * FAN_OUT as u64;
        let pages: Vec<Option<PageRef>> = if self.levels == 0 {
            vec![self.root]
        } else {
            match self.inner(1, group).await? {
                Some((_, inner)) => inner.children.clone(),
                None => Vec::new(),
            }
        };
        let last = (first + FAN_OUT as u64).min(self.leaves);
        let over = inside(
            self.overlaid().await?,
            &(first * LEAF_BYTES..last * LEAF_BYTES),
        );
        let mut leaves = Vec::new();
        for index in first..last {
            let number = usize::try_from(index - first).unwrap_or(usize::MAX);
            let leaf = LeafRef {
                index,
                page: pages.get(number).copied().flatten(),
                is_overlaid: false,
            };
            let is_overlaid = !inside(&over, &leaf.range()).is_empty();
            if leaf.page.is_some() || is_overlaid {
                leaves.push(LeafRef {
                    is_overlaid,
                    ..leaf
                });
            }
        }
        Ok(leaves)
    }

    /// The pack of the last page on the way to a group of leaves that could be found: where the
    /// group cannot be read, this is why.
    pub async fn pack_above(&self, group: u64) -> Option<PackId> {
        let mut last = None;
        if self.overlaid().await.is_err() {
            for page in &self.deltas {
                if self.repository.delta(page).await.is_err() {
                    return Some(page.location.pack);
                }
            }
        }
        for level in (1..=self.levels).rev() {
            let index = group / (FAN_OUT as u64).pow(u32::from(level) - 1);
            match self.page(level, index).await {
                Ok(Some(page)) => last = Some(page.location.pack),
                _ => break,
            }
        }
        last
    }

    /// How many groups of leaves the disk has.
    pub fn groups(&self) -> u64 {
        self.leaves.div_ceil(FAN_OUT as u64)
    }

    /// Reads a leaf by its reference. Its page must cover just what the disk has there.
    pub async fn read_leaf(&self, leaf: &LeafRef) -> Result<Leaf> {
        let start = leaf.range().start;
        let length = self.size_bytes.saturating_sub(start).min(LEAF_BYTES);
        let below = match &leaf.page {
            None => Leaf {
                // At most a leaf long.
                extents: vec![Extent {
                    length: u32::try_from(length).unwrap_or(u32::MAX),
                    slice: None,
                }],
            },
            Some(page) => {
                let below = self.repository.leaf(page).await?;
                self.covers(page, below.length(), length)?;
                below
            }
        };
        if !leaf.is_overlaid {
            return Ok(below);
        }
        let over = inside(self.overlaid().await?, &(start..start + length));
        Ok(leaf_of(&lay_over(&runs_of(&below, start), &over)))
    }

    async fn read_inner(&self, page: &PageRef, level: u8, index: u64) -> Result<Arc<Inner>> {
        if let Some(inner) = self.inner.get(&(level, index)) {
            return Ok(inner);
        }
        let inner = Arc::new(self.repository.inner(page, level).await?);
        let below = self
            .leaves
            .div_ceil((FAN_OUT as u64).pow(u32::from(level) - 1));
        let expected = below
            .saturating_sub(index * FAN_OUT as u64)
            .min(FAN_OUT as u64);
        self.covers(page, inner.children.len() as u64, expected)?;
        self.inner.insert((level, index), Arc::clone(&inner));
        Ok(inner)
    }

    /// A page is sound by itself and still may not belong where it was found.
    fn covers(&self, page: &PageRef, found: u64, expected: u64) -> Result<()> {
        if found == expected {
            return Ok(());
        }
        let what = format!("a page covers {found} where {expected} were expected");
        let error = Error::new(Kind::Corrupt, what);
        Err(self
            .repository
            .damaged(&page.location.pack.object_key(), error))
    }
}
