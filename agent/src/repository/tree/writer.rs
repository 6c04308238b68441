//! Writes the trees of one run's disks into tree packs, from the leaves up.
//!
//! Leaves arrive in any order. An inner page is written as soon as its last child is known, so that
//! memory holds only what is under way. Pages are gathered into frames; a page's place is known once
//! its frame is in a pack, and the pack's name only when the pack is full: until then references to
//! it stand as [`PackId::OWN`], which is what they are for pages of the same pack.
//!
//! Delta pages, which are laid over a tree, are written to the same packs.
//!
//! Where an inner page has the very children that the parent point's page had, that page is referred
//! to again: an unchanged disk writes nothing.

use crate::error::{Error, Kind, Result};
use crate::repository::refused;
use std::collections::HashMap;
use std::sync::Arc;
use tidegate_protocol::frame::PayloadEncoder;
use tidegate_protocol::ids::{PackId, PageId};
use tidegate_protocol::keys::Keys;
use tidegate_protocol::limits::FAN_OUT;
use tidegate_protocol::pack::{Location, PackKind, PackRandom, PackWriter, SealedPack};
use tidegate_protocol::page::{Delta, Inner, PageRef};

/// Raw bytes of pages sealed together.
const FRAME_RAW_BYTES: usize = 256 << 10;

/// zstd level for pages: they are few, and mostly hashes.
const COMPRESSION_LEVEL: i32 = 3;

/// Stands for the level of delta pages, which are on none.
const DELTA_LEVEL: u8 = u8::MAX;

/// What a leaf came to.
#[derive(Debug)]
pub enum LeafContent {
    /// Nothing but zeros.
    Hole,
    /// The parent point's page, again.
    Same(PageRef),
    /// A new page.
    New(PageId, Vec<u8>),
}

/// Looks up the parent point's inner pages.
pub trait OldTree {
    /// The inner page of the disk with that number, of `level`, at `index`.
    fn inner(
        &mut self,
        disk: usize,
        level: u8,
        index: u64,
    ) -> Result<Option<(PageRef, Arc<Inner>)>>;
}

/// What a writer ended with.
pub struct WrittenTrees {
    /// Every disk's root; `None` is all hole.
    pub roots: Vec<Option<PageRef>>,
    /// Every disk's delta pages that were given, in that order.
    pub deltas: Vec<Vec<PageRef>>,
    /// Pages written.
    pub pages: u64,
}

/// Writes trees.
pub struct TreeWriter<'a, F> {
    keys: &'a Keys,
    pack_bytes: usize,
    random: F,
    disks: Vec<DiskTree>,
    encoder: PayloadEncoder,
    frame: Vec<u8>,
    in_frame: Vec<Pending>,
    pack: Option<PackWriter>,
    /// Names of the packs so far; the open one is not among them.
    closed: Vec<PackId>,
    finished: Vec<SealedPack>,
    pages: u64,
}

struct DiskTree {
    /// Pages on each level, leaves first.
    counts: Vec<u64>,
    nodes: HashMap<(u8, u64), Node>,
    root: Option<Option<Child>>,
    deltas: Vec<Child>,
}

struct Node {
    missing: usize,
    children: Vec<Option<Child>>,
}

/// A page that has its place, in a finished pack or in the open one.
#[derive(Clone, Copy)]
struct Child {
    page: PageRef,
    /// The pack it was written to by this writer; `None` for a page of the parent point.
    written_to: Option<usize>,
}

struct Pending {
    disk: usize,
    /// [`DELTA_LEVEL`] of a delta page.
    level: u8,
    index: u64,
    id: PageId,
    offset: usize,
    length: usize,
}

impl<'a, F: FnMut() -> Result<PackRandom>> TreeWriter<'a, F> {
    /// A writer for disks of these sizes, in bytes. `random` is asked once for each pack.
    pub fn new(keys: &'a Keys, disk_bytes: &[u64], pack_bytes: usize, random: F) -> Result<Self> {
        let encoder = PayloadEncoder::new(COMPRESSION_LEVEL)
            .map_err(|error| Error::io("cannot make a compressor", error))?;
        Ok(Self {
            keys,
            pack_bytes,
            random,
            disks: disk_bytes
                .iter()
                .map(|&bytes| DiskTree::new(bytes))
                .collect(),
            encoder,
            frame: Vec::with_capacity(FRAME_RAW_BYTES),
            in_frame: Vec::new(),
            pack: None,
            closed: Vec::new(),
            finished: Vec::new(),
            pages: 0,
        })
    }

    /// Takes the leaf at `index` of the disk with that number.
    pub fn leaf(
        &mut self,
        disk: usize,
        index: u64,
        content: LeafContent,
        old: &mut impl OldTree,
    ) -> Result<()> {
        match content {
            LeafContent::Hole => self.place(disk, 0, index, None, old),
            LeafContent::Same(page) => {
                let child = Child {
                    page,
                    written_to: None,
                };
                self.place(disk, 0, index, Some(child), old)
            }
            LeafContent::New(id, bytes) => self.page(disk, 0, index, id, &bytes, old),
        }
    }

    /// Keeps the parent point's tree for the disk with that number, which is given no leaves then.
    pub fn keep(&mut self, disk: usize, root: Option<PageRef>) {
        if let Some(tree) = self.disks.get_mut(disk) {
            tree.root = Some(root.map(|page| Child {
                page,
                written_to: None,
            }));
        }
    }

    /// Takes a delta page of the disk with that number, the older ones first.
    pub fn delta(&mut self, disk: usize, delta: &Delta, old: &mut impl OldTree) -> Result<()> {
        let (id, bytes) = delta.encode(self.keys).map_err(refused)?;
        self.page(disk, DELTA_LEVEL, 0, id, &bytes, old)
    }

    /// Packs that were filled since the last call.
    pub fn take_finished(&mut self) -> Vec<SealedPack> {
        std::mem::take(&mut self.finished)
    }

    /// Writes what is left. All leaves of all disks must have been given.
    pub fn finish(mut self, old: &mut impl OldTree) -> Result<(WrittenTrees, Vec<SealedPack>)> {
        while !self.in_frame.is_empty() {
            self.flush_frame(old)?;
        }
        self.close_pack();
        let mut roots = Vec::with_capacity(self.disks.len());
        let mut deltas = Vec::with_capacity(self.disks.len());
        for disk in &self.disks {
            let pages = disk.deltas.iter().map(|child| self.reference(child));
            deltas.push(pages.collect::<Result<_>>()?);
            let root = match (&disk.root, disk.counts.first()) {
                (Some(root), _) => *root,
                (None, Some(0)) => None,
                (None, _) => return Err(incomplete()),
            };
            roots.push(root.map(|child| self.reference(&child)).transpose()?);
        }
        let trees = WrittenTrees {
            roots,
            deltas,
            pages: self.pages,
        };
        Ok((trees, self.finished))
    }

    /// A page's place, as pages of the open pack must write it.
    fn reference(&self, child: &Child) -> Result<PageRef> {
        let mut page = child.page;
        if let Some(number) = child.written_to {
            page.location.pack = match self.closed.get(number) {
                Some(pack) => *pack,
                None if number == self.closed.len() => PackId::OWN,
                None => return Err(incomplete()),
            };
        }
        Ok(page)
    }

    fn page(
        &mut self,
        disk: usize,
        level: u8,
        index: u64,
        id: PageId,
        bytes: &[u8],
        old: &mut impl OldTree,
    ) -> Result<()> {
        while !self.frame.is_empty() && self.frame.len() + bytes.len() > FRAME_RAW_BYTES {
            self.flush_frame(old)?;
        }
        self.in_frame.push(Pending {
            disk,
            level,
            index,
            id,
            offset: self.frame.len(),
            length: bytes.len(),
        });
        self.frame.extend_from_slice(bytes);
        self.pages += 1;
        Ok(())
    }

    fn flush_frame(&mut self, old: &mut impl OldTree) -> Result<()> {
        let pages = std::mem::take(&mut self.in_frame);
        let mut pack = match self.pack.take() {
            Some(pack) => pack,
            None => PackWriter::new(PackKind::Tree, self.keys, (self.random)()?, Vec::new())
                .map_err(|error| {
                    Error::new(Kind::Bug, "a tree pack cannot be begun").caused_by(error)
                })?,
        };
        let items = pages.iter().map(|page| (page.id.0, bounded(page.length)));
        let payload = self.encoder.encode(&self.frame);
        let range = pack.push(payload, items).map_err(refused)?;
        self.frame.clear();
        let full = pack.len() >= self.pack_bytes;
        let number = self.closed.len();
        self.pack = Some(pack);
        if full {
            self.close_pack();
        }
        for page in pages {
            let location = Location {
                pack: PackId::OWN,
                frame_offset: range.start,
                frame_bytes: range.end - range.start,
                offset_in_frame: bounded(page.offset),
                length: bounded(page.length),
            };
            let child = Child {
                page: PageRef {
                    id: page.id,
                    location,
                },
                written_to: Some(number),
            };
            self.place(page.disk, page.level, page.index, Some(child), old)?;
        }
        Ok(())
    }

    fn close_pack(&mut self) {
        if let Some(pack) = self.pack.take() {
            let sealed = pack.finish();
            self.closed.push(sealed.id);
            self.finished.push(sealed);
        }
    }

    /// Gives a page (or hole) to the inner page above it, and writes that when it is complete.
    fn place(
        &mut self,
        disk: usize,
        level: u8,
        index: u64,
        child: Option<Child>,
        old: &mut impl OldTree,
    ) -> Result<()> {
        let Some(tree) = self.disks.get_mut(disk) else {
            return Err(incomplete());
        };
        if level == DELTA_LEVEL {
            tree.deltas.extend(child);
            return Ok(());
        }
        if usize::from(level) + 1 >= tree.counts.len() {
            tree.root = Some(child);
            return Ok(());
        }
        let above = (level + 1, index / FAN_OUT as u64);
        let slot = usize::try_from(index % FAN_OUT as u64).unwrap_or(0);
        let expected = tree.children(above.0, above.1);
        let node = tree.nodes.entry(above).or_insert_with(|| Node {
            missing: expected,
            children: vec![None; expected],
        });
        if let Some(place) = node.children.get_mut(slot) {
            *place = child;
        }
        node.missing = node.missing.saturating_sub(1);
        if node.missing > 0 {
            return Ok(());
        }
        match tree.nodes.remove(&above) {
            Some(node) => self.inner(disk, above.0, above.1, &node.children, old),
            None => Err(incomplete()),
        }
    }

    fn inner(
        &mut self,
        disk: usize,
        level: u8,
        index: u64,
        children: &[Option<Child>],
        old: &mut impl OldTree,
    ) -> Result<()> {
        if children.iter().all(Option::is_none) {
            return self.place(disk, level, index, None, old);
        }
        let unchanged = children
            .iter()
            .flatten()
            .all(|child| child.written_to.is_none());
        if unchanged && let Some((page, inner)) = old.inner(disk, level, index)? {
            let same = children.iter().map(|child| child.map(|child| child.page));
            if same.eq(inner.children.iter().copied()) {
                let child = Child {
                    page,
                    written_to: None,
                };
                return self.place(disk, level, index, Some(child), old);
            }
        }
        // References to the open pack hold only for pages of that pack: make sure that this page
        // goes there, by having room for it before its content is fixed. Flushing may complete other
        // inner pages, which take room again.
        let longest = 16 + children.len() * 128;
        while !self.frame.is_empty() && self.frame.len() + longest > FRAME_RAW_BYTES {
            self.flush_frame(old)?;
        }
        let page = Inner {
            level,
            children: children
                .iter()
                .map(|child| child.map(|child| self.reference(&child)).transpose())
                .collect::<Result<_>>()?,
        };
        let (id, bytes) = page.encode(self.keys).map_err(refused)?;
        self.page(disk, level, index, id, &bytes, old)
    }
}

impl DiskTree {
    fn new(bytes: u64) -> Self {
        let mut counts = vec![super::leaf_count(bytes)];
        while let Some(&count) = counts.last()
            && count > 1
        {
            counts.push(count.div_ceil(FAN_OUT as u64));
        }
        Self {
            counts,
            nodes: HashMap::new(),
            root: None,
            deltas: Vec::new(),
        }
    }

    fn children(&self, level: u8, index: u64) -> usize {
        let below = self
            .counts
            .get(usize::from(level) - 1)
            .copied()
            .unwrap_or(0);
        let first = index * FAN_OUT as u64;
        usize::try_from(below.saturating_sub(first).min(FAN_OUT as u64)).unwrap_or(FAN_OUT)
    }
}

fn bounded(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn incomplete() -> Error {
    Error::new(Kind::Bug, "a disk's tree was not given all of its leaves")
}

#[cfg(test)]
mod tests;
