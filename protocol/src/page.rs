//! Tree pages: a disk as a tree of pages, leaves of extents under inner pages.
//!
//! ```text
//! page    = kind u8 (1 leaf, 2 inner, 3 delta) | logical length u32 | logical | hints
//! leaf    : logical = extents: 0 hole: length; 1 slice: length, chunk id 32, offset in the chunk
//!           hints   = pack count, pack ids 32 …, then for each slice in order
//!                     0: pack number, frame offset, frame bytes, offset in frame, chunk length
//!                     1: chunk length (same frame as the slice before, right behind its chunk)
//!                     2: (the same chunk as the slice before)
//! inner   : logical = level u8 | child count u16 | children: 0 hole; 1 page id 32
//!           hints   = as for a leaf, one for each child that is a page
//! delta   : logical = chunk count, chunk ids 32 …, extents: gap, length, 0 hole | n-th chunk, offset in it
//!           hints   = as for a leaf, one for each chunk
//! ```
//!
//! Numbers without a width are LEB128. A hint's pack id of 32 zero bytes stands for the pack that the
//! page itself lies in: a page cannot name the hash of bytes that it is part of.
//! A page's id is the keyed hash of `kind | logical`:
//! **locations are hints, not identity**, so a page keeps its name when prune moves a chunk, and two
//! points share the pages of what did not change. A subtree that is all hole has no page at all.

mod delta;

pub use delta::{Delta, DeltaExtent};

use crate::codec::{Reader, length_u32, put_varint};
use crate::error::FormatError;
use crate::ids::{ChunkId, PackId, PageId};
use crate::keys::Keys;
use crate::limits::{
    DISK_BYTES_MAX, FAN_OUT, LEAF_BYTES, LEAF_EXTENTS_MAX, PAGE_BYTES_MAX, TREE_LEVELS_MAX,
};
use crate::pack::{Location, PackKind};

const OBJECT: &str = "tree page";
const KIND_LEAF: u8 = 1;
const KIND_INNER: u8 = 2;
const KIND_DELTA: u8 = 3;
const EXTENT_HOLE: u8 = 0;
const EXTENT_SLICE: u8 = 1;
const HINT_FULL: u8 = 0;
const HINT_NEXT: u8 = 1;
const HINT_SAME: u8 = 2;

/// A page's name and where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRef {
    /// The keyed hash of its logical content.
    pub id: PageId,
    /// Where its bytes lie in a tree pack.
    pub location: Location,
}

/// Part of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slice {
    /// The chunk.
    pub chunk: ChunkId,
    /// Where the part begins in the chunk, in bytes.
    pub offset: u32,
    /// Where the whole chunk lies.
    pub location: Location,
}

/// A run of a disk's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Length in bytes, above zero.
    pub length: u32,
    /// What the bytes are; `None` reads as zeros.
    pub slice: Option<Slice>,
}

/// A leaf: the extents of one [`LEAF_BYTES`] stretch of a disk, in order and without gaps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leaf {
    /// The extents.
    pub extents: Vec<Extent>,
}

impl Leaf {
    /// Length of what the extents cover, in bytes.
    pub fn length(&self) -> u64 {
        self.extents
            .iter()
            .map(|extent| u64::from(extent.length))
            .sum()
    }

    /// True when nothing but holes is in it: such a leaf has no page.
    pub fn is_hole(&self) -> bool {
        self.extents.iter().all(|extent| extent.slice.is_none())
    }

    /// Encodes and names. Refuses what [`Self::decode`] would refuse.
    pub fn encode(&self, keys: &Keys) -> Result<(PageId, Vec<u8>), FormatError> {
        let mut logical = Vec::with_capacity(self.extents.len() * 40);
        let mut bounds = LeafBounds::default();
        for extent in &self.extents {
            bounds.admit(extent)?;
            match &extent.slice {
                None => {
                    logical.push(EXTENT_HOLE);
                    put_varint(&mut logical, extent.length);
                }
                Some(slice) => {
                    logical.push(EXTENT_SLICE);
                    put_varint(&mut logical, extent.length);
                    logical.extend_from_slice(&slice.chunk.0);
                    put_varint(&mut logical, slice.offset);
                }
            }
        }
        let slices = self
            .extents
            .iter()
            .filter_map(|extent| extent.slice.as_ref());
        let hints = encode_hints(slices.map(|slice| (slice.chunk.0, slice.location)));
        Ok(assemble(keys, KIND_LEAF, &logical, &hints))
    }

    /// Decodes the page that `page` speaks of and checks that it hashes to its id.
    pub fn decode(bytes: &[u8], page: &PageRef, keys: &Keys) -> Result<Self, FormatError> {
        let (logical, hints) = open(bytes, KIND_LEAF, &page.id, keys)?;
        let mut reader = Reader::new(OBJECT, logical);
        let mut extents: Vec<Extent> = Vec::new();
        let mut bounds = LeafBounds::default();
        let mut hints = HintReader::new(hints, page.location.pack)?;
        while reader.remaining() > 0 {
            let tag = reader.u8()?;
            let length = reader.varint("extent length")?;
            let slice = match tag {
                EXTENT_HOLE => None,
                EXTENT_SLICE => {
                    let chunk = ChunkId(reader.array()?);
                    let offset = reader.varint("slice offset")?;
                    let location = hints.next(chunk.0, PackKind::Data)?;
                    Some(Slice {
                        chunk,
                        offset,
                        location,
                    })
                }
                other => return Err(reader.tag("extent", other.into())),
            };
            let extent = Extent { length, slice };
            bounds.admit(&extent)?;
            extents.push(extent);
        }
        hints.end()?;
        Ok(Self { extents })
    }
}

/// What the extents of a leaf may add up to: one rule for writer and reader.
#[derive(Default)]
struct LeafBounds {
    extents: usize,
    covered: u64,
}

impl LeafBounds {
    fn admit(&mut self, extent: &Extent) -> Result<(), FormatError> {
        let out_of_range = |field, found| FormatError::Range {
            object: OBJECT,
            field,
            found,
        };
        self.extents += 1;
        if self.extents > LEAF_EXTENTS_MAX {
            return Err(out_of_range("extents", self.extents as u64));
        }
        self.covered += u64::from(extent.length);
        if extent.length == 0 || self.covered > LEAF_BYTES {
            return Err(out_of_range("extent length", extent.length.into()));
        }
        if let Some(slice) = &extent.slice {
            slice.location.check(OBJECT, PackKind::Data)?;
            let end = u64::from(slice.offset) + u64::from(extent.length);
            if end > u64::from(slice.location.length) {
                return Err(out_of_range("slice end", end));
            }
        }
        Ok(())
    }
}

/// An inner page: up to [`FAN_OUT`] children.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inner {
    /// Levels below: 1 when the children are leaves.
    pub level: u8,
    /// The children in order; `None` is all hole.
    pub children: Vec<Option<PageRef>>,
}

impl Inner {
    /// Encodes and names. Refuses what [`Self::decode`] would refuse.
    pub fn encode(&self, keys: &Keys) -> Result<(PageId, Vec<u8>), FormatError> {
        check_inner(self.level, self.children.len())?;
        let mut logical = vec![self.level];
        logical.extend_from_slice(&length_u32(self.children.len()).to_le_bytes()[..2]);
        for child in self.children.iter().flatten() {
            child.location.check(OBJECT, PackKind::Tree)?;
        }
        for child in &self.children {
            match child {
                None => logical.push(EXTENT_HOLE),
                Some(child) => {
                    logical.push(EXTENT_SLICE);
                    logical.extend_from_slice(&child.id.0);
                }
            }
        }
        let pages = self.children.iter().flatten();
        let hints = encode_hints(pages.map(|child| (child.id.0, child.location)));
        Ok(assemble(keys, KIND_INNER, &logical, &hints))
    }

    /// Decodes the page that `page` speaks of; checks that it hashes to its id and stands on `level`.
    pub fn decode(
        bytes: &[u8],
        page: &PageRef,
        level: u8,
        keys: &Keys,
    ) -> Result<Self, FormatError> {
        let (logical, hints) = open(bytes, KIND_INNER, &page.id, keys)?;
        let mut reader = Reader::new(OBJECT, logical);
        let found = reader.u8()?;
        if found != level {
            return Err(reader.range("level", found.into()));
        }
        let count = usize::from(reader.u16()?);
        check_inner(level, count)?;
        let mut hints = HintReader::new(hints, page.location.pack)?;
        let mut children = Vec::with_capacity(count);
        for _ in 0..count {
            children.push(match reader.u8()? {
                EXTENT_HOLE => None,
                EXTENT_SLICE => {
                    let id = PageId(reader.array()?);
                    let location = hints.next(id.0, PackKind::Tree)?;
                    Some(PageRef { id, location })
                }
                other => return Err(reader.tag("child", other.into())),
            });
        }
        reader.end()?;
        hints.end()?;
        Ok(Self { level, children })
    }
}

fn check_inner(level: u8, children: usize) -> Result<(), FormatError> {
    let out_of_range = |field, found| FormatError::Range {
        object: OBJECT,
        field,
        found,
    };
    if level == 0 || level > TREE_LEVELS_MAX {
        return Err(out_of_range("level", level.into()));
    }
    if children == 0 || children > FAN_OUT {
        return Err(out_of_range("children", children as u64));
    }
    Ok(())
}

/// Levels of inner pages over the leaves of a disk of `disk_bytes`; `None` above
/// [`DISK_BYTES_MAX`]. A disk of one leaf has none.
pub fn tree_levels(disk_bytes: u64) -> Option<u8> {
    if disk_bytes > DISK_BYTES_MAX {
        return None;
    }
    let mut level = 0;
    while page_span_bytes(level) < disk_bytes {
        level += 1;
    }
    Some(level)
}

/// Bytes of disk that a page of `level` covers (0 is a leaf).
pub fn page_span_bytes(level: u8) -> u64 {
    LEAF_BYTES * (FAN_OUT as u64).pow(level.min(TREE_LEVELS_MAX).into())
}

fn assemble(keys: &Keys, kind: u8, logical: &[u8], hints: &[u8]) -> (PageId, Vec<u8>) {
    let mut named = Vec::with_capacity(1 + logical.len());
    named.push(kind);
    named.extend_from_slice(logical);
    let id = keys.page_id(&named);
    let mut bytes = Vec::with_capacity(5 + logical.len() + hints.len());
    bytes.push(kind);
    bytes.extend_from_slice(&length_u32(logical.len()).to_le_bytes());
    bytes.extend_from_slice(logical);
    bytes.extend_from_slice(hints);
    (id, bytes)
}

fn open<'a>(
    bytes: &'a [u8],
    kind: u8,
    id: &PageId,
    keys: &Keys,
) -> Result<(&'a [u8], &'a [u8]), FormatError> {
    if bytes.len() > PAGE_BYTES_MAX as usize {
        return Err(FormatError::Range {
            object: OBJECT,
            field: "length",
            found: bytes.len() as u64,
        });
    }
    let mut reader = Reader::new(OBJECT, bytes);
    let found = reader.u8()?;
    if found != kind {
        return Err(reader.tag("kind", found.into()));
    }
    let length = reader.u32()? as usize;
    let logical = reader.take(length)?;
    let hints = reader.take(reader.remaining())?;
    let mut named = Vec::with_capacity(1 + logical.len());
    named.push(kind);
    named.extend_from_slice(logical);
    let found = keys.page_id(&named);
    if found != *id {
        return Err(FormatError::Hash {
            object: OBJECT,
            expected: id.to_string(),
            found: found.to_string(),
        });
    }
    Ok((logical, hints))
}

fn encode_hints(locations: impl Iterator<Item = ([u8; 32], Location)>) -> Vec<u8> {
    let mut packs: Vec<PackId> = Vec::new();
    let mut body = Vec::new();
    let mut before: Option<([u8; 32], Location)> = None;
    for (id, location) in locations {
        match before {
            Some(last) if last == (id, location) => body.push(HINT_SAME),
            Some((_, last)) if follows(&last, &location) => {
                body.push(HINT_NEXT);
                put_varint(&mut body, location.length);
            }
            _ => {
                // Nearly always one of the last few packs.
                let number = match packs.iter().rposition(|pack| *pack == location.pack) {
                    Some(number) => number,
                    None => {
                        packs.push(location.pack);
                        packs.len() - 1
                    }
                };
                body.push(HINT_FULL);
                for field in [
                    length_u32(number),
                    location.frame_offset,
                    location.frame_bytes,
                    location.offset_in_frame,
                    location.length,
                ] {
                    put_varint(&mut body, field);
                }
            }
        }
        before = Some((id, location));
    }
    let mut out = Vec::with_capacity(5 + packs.len() * 32 + body.len());
    put_varint(&mut out, length_u32(packs.len()));
    for pack in packs {
        out.extend_from_slice(&pack.0);
    }
    out.extend_from_slice(&body);
    out
}

fn follows(last: &Location, next: &Location) -> bool {
    last.pack == next.pack
        && last.frame_offset == next.frame_offset
        && last.frame_bytes == next.frame_bytes
        && last.offset_in_frame.checked_add(last.length) == Some(next.offset_in_frame)
}

struct HintReader<'a> {
    reader: Reader<'a>,
    packs: Vec<PackId>,
    last: Option<([u8; 32], Location)>,
}

impl<'a> HintReader<'a> {
    /// `own` is the pack that the page lies in.
    fn new(bytes: &'a [u8], own: PackId) -> Result<Self, FormatError> {
        let mut reader = Reader::new(OBJECT, bytes);
        let count = reader.varint("pack count")?;
        if u64::from(count) * 32 > reader.remaining() as u64 {
            return Err(reader.range("pack count", count.into()));
        }
        let mut packs = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let pack = PackId(reader.array()?);
            packs.push(if pack == PackId::OWN { own } else { pack });
        }
        Ok(Self {
            reader,
            packs,
            last: None,
        })
    }

    fn next(&mut self, id: [u8; 32], kind: PackKind) -> Result<Location, FormatError> {
        let reader = &mut self.reader;
        let tag = reader.u8()?;
        let location = match (tag, self.last) {
            (HINT_FULL, _) => {
                let number = reader.varint("pack number")?;
                let pack = *self
                    .packs
                    .get(number as usize)
                    .ok_or_else(|| reader.range("pack number", number.into()))?;
                Location {
                    pack,
                    frame_offset: reader.varint("frame offset")?,
                    frame_bytes: reader.varint("frame bytes")?,
                    offset_in_frame: reader.varint("offset in frame")?,
                    length: reader.varint("length")?,
                }
            }
            (HINT_NEXT, Some((_, last))) => Location {
                offset_in_frame: last.offset_in_frame.saturating_add(last.length),
                length: reader.varint("length")?,
                ..last
            },
            (HINT_SAME, Some((last_id, last))) if last_id == id => last,
            (other, _) => return Err(reader.tag("hint", other.into())),
        };
        location.check(OBJECT, kind)?;
        self.last = Some((id, location));
        Ok(location)
    }

    fn end(self) -> Result<(), FormatError> {
        self.reader.end()
    }
}

#[cfg(test)]
mod tests;
