//! Delta pages: extents that are laid over a tree, so that a scattered change costs an extent and not a
//! leaf.

use super::{HintReader, KIND_DELTA, OBJECT, PageRef, Slice, assemble, encode_hints, open};
use crate::codec::{Reader, length_u32, put_varint, put_varint_long};
use crate::error::FormatError;
use crate::ids::{ChunkId, PageId};
use crate::keys::Keys;
use crate::limits::{DELTA_EXTENTS_MAX, DISK_BYTES_MAX};
use crate::pack::PackKind;
use std::collections::HashMap;

/// A run of a disk's bytes that says something else than the tree below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeltaExtent {
    /// Where it begins on the disk, in bytes.
    pub start: u64,
    /// Length in bytes, above zero.
    pub length: u32,
    /// What the bytes are; `None` reads as zeros.
    pub slice: Option<Slice>,
}

impl DeltaExtent {
    /// Where it ends on the disk, in bytes.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.length.into())
    }
}

/// Extents in the order of the disk, none over another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    /// The extents.
    pub extents: Vec<DeltaExtent>,
}

impl Delta {
    /// Encodes and names. Refuses what [`Self::decode`] would refuse.
    pub fn encode(&self, keys: &Keys) -> Result<(PageId, Vec<u8>), FormatError> {
        let mut chunks = Vec::new();
        let mut numbers: HashMap<ChunkId, u32> = HashMap::new();
        let mut body = Vec::with_capacity(self.extents.len() * 12);
        let mut bounds = DeltaBounds::default();
        for extent in &self.extents {
            let gap = extent
                .start
                .checked_sub(bounds.end)
                .ok_or_else(|| out_of_range("extent start", extent.start))?;
            bounds.admit(extent)?;
            put_varint_long(&mut body, gap);
            put_varint(&mut body, extent.length);
            match &extent.slice {
                None => put_varint(&mut body, 0),
                Some(slice) => {
                    let number = *numbers.entry(slice.chunk).or_insert_with(|| {
                        chunks.push((slice.chunk.0, slice.location));
                        length_u32(chunks.len())
                    });
                    put_varint(&mut body, number);
                    put_varint(&mut body, slice.offset);
                }
            }
        }
        let mut logical = Vec::with_capacity(5 + chunks.len() * 32 + body.len());
        put_varint(&mut logical, length_u32(chunks.len()));
        for (chunk, _) in &chunks {
            logical.extend_from_slice(chunk);
        }
        logical.extend_from_slice(&body);
        let hints = encode_hints(chunks.into_iter());
        Ok(assemble(keys, KIND_DELTA, &logical, &hints))
    }

    /// Decodes the page that `page` speaks of and checks that it hashes to its id.
    pub fn decode(bytes: &[u8], page: &PageRef, keys: &Keys) -> Result<Self, FormatError> {
        let (logical, hints) = open(bytes, KIND_DELTA, &page.id, keys)?;
        let mut reader = Reader::new(OBJECT, logical);
        let mut hints = HintReader::new(hints, page.location.pack)?;
        let chunks = chunks(&mut reader, &mut hints)?;
        let mut extents = Vec::new();
        let mut bounds = DeltaBounds::default();
        let mut used = 0;
        while reader.remaining() > 0 {
            let gap = reader.varint_long("gap")?;
            let length = reader.varint("extent length")?;
            let slice = match reader.varint("chunk number")? {
                0 => None,
                number => {
                    // In the order of their first use: one content, one name.
                    if number > used + 1 {
                        return Err(reader.range("chunk number", number.into()));
                    }
                    used = used.max(number);
                    let (chunk, location) = *chunks
                        .get(number as usize - 1)
                        .ok_or_else(|| reader.range("chunk number", number.into()))?;
                    let offset = reader.varint("slice offset")?;
                    Some(Slice {
                        chunk,
                        offset,
                        location,
                    })
                }
            };
            let extent = DeltaExtent {
                start: bounds.end.saturating_add(gap),
                length,
                slice,
            };
            bounds.admit(&extent)?;
            extents.push(extent);
        }
        if used as usize != chunks.len() {
            return Err(reader.range("chunks", chunks.len() as u64));
        }
        hints.end()?;
        Ok(Self { extents })
    }
}

/// The chunks that the extents name by number, each once.
fn chunks(
    reader: &mut Reader<'_>,
    hints: &mut HintReader<'_>,
) -> Result<Vec<(ChunkId, crate::pack::Location)>, FormatError> {
    let count = reader.varint("chunks")?;
    if u64::from(count) * 32 > reader.remaining() as u64 || count as usize > DELTA_EXTENTS_MAX {
        return Err(reader.range("chunks", count.into()));
    }
    let mut chunks = Vec::with_capacity(count as usize);
    let mut seen = HashMap::with_capacity(count as usize);
    for number in 0..count {
        let chunk = ChunkId(reader.array()?);
        if seen.insert(chunk, number).is_some() {
            return Err(reader.range("chunk named twice", number.into()));
        }
        chunks.push((chunk, hints.next(chunk.0, PackKind::Data)?));
    }
    Ok(chunks)
}

/// What the extents of a delta page may be: one rule for writer and reader.
#[derive(Default)]
struct DeltaBounds {
    extents: usize,
    /// Where the last one ended.
    end: u64,
}

impl DeltaBounds {
    fn admit(&mut self, extent: &DeltaExtent) -> Result<(), FormatError> {
        self.extents += 1;
        if self.extents > DELTA_EXTENTS_MAX {
            return Err(out_of_range("extents", self.extents as u64));
        }
        if extent.length == 0 || extent.end() > DISK_BYTES_MAX {
            return Err(out_of_range("extent end", extent.end()));
        }
        if let Some(slice) = &extent.slice {
            slice.location.check(OBJECT, PackKind::Data)?;
            let end = u64::from(slice.offset) + u64::from(extent.length);
            if end > u64::from(slice.location.length) {
                return Err(out_of_range("slice end", end));
            }
        }
        self.end = extent.end();
        Ok(())
    }
}

fn out_of_range(field: &'static str, found: u64) -> FormatError {
    FormatError::Range {
        object: OBJECT,
        field,
        found,
    }
}
