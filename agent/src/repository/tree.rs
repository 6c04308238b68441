//! A disk's tree: walking one, writing a new one.

mod writer;

pub use writer::{LeafContent, OldTree, TreeWriter, WrittenTrees};

use super::{PointDisk, Repository};
use crate::error::{Error, Kind, Result};
use quick_cache::sync::Cache;
use std::sync::Arc;
use tidegate_protocol::ids::PackId;
use tidegate_protocol::limits::{FAN_OUT, LEAF_BYTES};
use tidegate_protocol::page::{Inner, Leaf, PageRef};

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
        }
    }

    /// How many leaves the disk has, holes included.
    pub fn leaves(&self) -> u64 {
        self.leaves
    }

    /// The page of `level` (0 is a leaf) at `index` in its level; `None` is all hole, or outside.
    pub async fn page(&self, level: u8, index: u64) -> Result<Option<PageRef>> {
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

    /// The inner page of `level` at `index`, with its reference.
    pub async fn inner(&self, level: u8, index: u64) -> Result<Option<(PageRef, Arc<Inner>)>> {
        match self.page(level, index).await? {
            Some(page) if level > 0 => {
                Ok(Some((page, self.read_inner(&page, level, index).await?)))
            }
            _ => Ok(None),
        }
    }

    /// The leaf at `index`, with its reference; `None` is all hole.
    pub async fn leaf(&self, index: u64) -> Result<Option<(PageRef, Leaf)>> {
        match self.page(0, index).await? {
            Some(page) => Ok(Some((page, self.read_leaf(index, &page).await?))),
            None => Ok(None),
        }
    }

    /// References of the leaves that hold data within one group of [`FAN_OUT`] leaves, with their
    /// indices. Groups are numbered from 0; see [`Self::groups`].
    pub async fn group(&self, group: u64) -> Result<Vec<(u64, PageRef)>> {
        if self.levels == 0 {
            return Ok(self.root.map(|page| (0, page)).into_iter().collect());
        }
        let Some((_, inner)) = self.inner(1, group).await? else {
            return Ok(Vec::new());
        };
        let first = group * FAN_OUT as u64;
        Ok((first..)
            .zip(&inner.children)
            .filter_map(|(index, child)| child.map(|page| (index, page)))
            .collect())
    }

    /// The pack of the last page on the way to a group of leaves that could be found: where the
    /// group cannot be read, this is why.
    pub async fn pack_above(&self, group: u64) -> Option<PackId> {
        let mut last = None;
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

    /// Reads the leaf at `index` by its reference. It must cover just what the disk has there.
    pub async fn read_leaf(&self, index: u64, page: &PageRef) -> Result<Leaf> {
        let leaf = self.repository.leaf(page).await?;
        let expected = (self.size_bytes.saturating_sub(index * LEAF_BYTES)).min(LEAF_BYTES);
        self.covers(page, leaf.length(), expected)?;
        Ok(leaf)
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
