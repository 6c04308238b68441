//! Index segments: immutable, sorted tables from chunk id to location, named by their hash.
//!
//! ```text
//! header = "TGIX" | version u8 | repository 16 | salt 32 | packs u32 | frames u32 | entries u64
//! parts  = AES-256-GCM parts, nonce = ordinal, associated data = header:
//!          part 0: packs (id 32 | bytes u32), part 1: frames (pack u32 | offset u32 | length u32),
//!          parts 2…: blocks of up to 4096 entries (id 32 | frame u32 | offset in frame u32 | length u32)
//! ```
//!
//! Entries are sorted by id and have one size, and every part's place follows from the header: an id
//! can be looked up in place by interpolation, one block read at a time.

use crate::aead::TAG_BYTES;
use crate::codec::{Reader, length_u32};
use crate::error::FormatError;
use crate::ids::{ChunkId, PackId, RepositoryId, SegmentId};
use crate::keys::Keys;
use crate::limits::{PACK_BYTES_MAX, SEGMENT_BLOCK_ENTRIES, SEGMENT_ENTRIES_MAX};
use crate::pack::Location;
use std::collections::HashMap;

const OBJECT: &str = "index segment";
const MAGIC: [u8; 4] = *b"TGIX";
const VERSION: u8 = 1;
const CONTEXT: &str = "tidegate 1 index segment";
const HEADER_BYTES: usize = 4 + 1 + 16 + 32 + 4 + 4 + 8;
const PACK_ENTRY_BYTES: usize = 36;
const FRAME_ENTRY_BYTES: usize = 12;
const ENTRY_BYTES: usize = 44;

/// A segment's content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Segment {
    /// The packs it speaks of, with their sizes in bytes.
    pub packs: Vec<(PackId, u32)>,
    /// Chunks and where they lie, sorted by id.
    pub entries: Vec<(ChunkId, Location)>,
}

impl Segment {
    /// Encodes; entries are sorted and duplicates dropped. Every location's pack must be in `packs`.
    pub fn encode(&mut self, keys: &Keys, salt: [u8; 32]) -> (SegmentId, Vec<u8>) {
        self.entries.sort_unstable_by_key(|(id, _)| *id);
        self.entries.dedup_by_key(|(id, _)| *id);
        let pack_numbers: HashMap<PackId, u32> = (0..)
            .zip(&self.packs)
            .map(|(number, (id, _))| (*id, number))
            .collect();
        let mut frame_numbers = HashMap::new();
        let mut frames = Vec::new();
        for (_, location) in &self.entries {
            let pack = pack_numbers.get(&location.pack).copied();
            debug_assert!(pack.is_some(), "a location outside the segment's packs");
            let frame = [
                pack.unwrap_or(u32::MAX),
                location.frame_offset,
                location.frame_bytes,
            ];
            frame_numbers.entry(frame).or_insert_with(|| {
                frames.push(frame);
                length_u32(frames.len() - 1)
            });
        }
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC);
        out.push(VERSION);
        out.extend_from_slice(&keys.repository().0);
        out.extend_from_slice(&salt);
        out.extend_from_slice(&length_u32(self.packs.len()).to_le_bytes());
        out.extend_from_slice(&length_u32(frames.len()).to_le_bytes());
        out.extend_from_slice(&(self.entries.len() as u64).to_le_bytes());
        let header = out.clone();
        let key = keys.metadata_seal_key(CONTEXT, &salt);
        let mut ordinal = 0;
        let mut part = |out: &mut Vec<u8>, plain: &[u8]| {
            out.extend_from_slice(&key.seal(ordinal, &header, plain));
            ordinal += 1;
        };
        let mut plain = Vec::new();
        for (id, bytes) in &self.packs {
            plain.extend_from_slice(&id.0);
            plain.extend_from_slice(&bytes.to_le_bytes());
        }
        part(&mut out, &plain);
        plain.clear();
        for number in frames.iter().flatten() {
            plain.extend_from_slice(&number.to_le_bytes());
        }
        part(&mut out, &plain);
        for block in self.entries.chunks(SEGMENT_BLOCK_ENTRIES) {
            plain.clear();
            for (id, location) in block {
                let pack = pack_numbers.get(&location.pack).copied();
                let frame = [
                    pack.unwrap_or(u32::MAX),
                    location.frame_offset,
                    location.frame_bytes,
                ];
                plain.extend_from_slice(&id.0);
                for number in [
                    frame_numbers[&frame],
                    location.offset_in_frame,
                    location.length,
                ] {
                    plain.extend_from_slice(&number.to_le_bytes());
                }
            }
            part(&mut out, &plain);
        }
        (SegmentId::of(&out), out)
    }

    /// Decodes a whole segment.
    pub fn decode(bytes: &[u8], keys: &Keys) -> Result<Self, FormatError> {
        let mut reader = Reader::new(OBJECT, bytes);
        reader.magic(MAGIC)?;
        reader.version(VERSION)?;
        let repository = RepositoryId(reader.array()?);
        if repository != keys.repository() {
            return Err(FormatError::Foreign {
                object: OBJECT,
                expected: keys.repository().to_string(),
                found: repository.to_string(),
            });
        }
        let salt: [u8; 32] = reader.array()?;
        let pack_count = reader.u32()? as usize;
        let frame_count = reader.u32()? as usize;
        let entry_count = reader.u64()?;
        if entry_count > SEGMENT_ENTRIES_MAX {
            return Err(reader.range("entries", entry_count));
        }
        let entry_count = entry_count as usize;
        let header = &bytes[..HEADER_BYTES];
        let key = keys.metadata_seal_key(CONTEXT, &salt);
        let mut ordinal = 0;
        let mut part = |reader: &mut Reader<'_>, length: usize| {
            let sealed = reader.take(length.saturating_add(TAG_BYTES))?;
            ordinal += 1;
            key.open(OBJECT, ordinal - 1, header, sealed)
        };
        // Lengths are checked against the bytes at hand before anything is allocated.
        let plain = part(&mut reader, pack_count.saturating_mul(PACK_ENTRY_BYTES))?;
        let mut fields = Reader::new(OBJECT, &plain);
        let mut packs = Vec::with_capacity(pack_count);
        for _ in 0..pack_count {
            packs.push((PackId(fields.array()?), fields.u32()?));
        }
        let plain = part(&mut reader, frame_count.saturating_mul(FRAME_ENTRY_BYTES))?;
        let mut fields = Reader::new(OBJECT, &plain);
        let mut frames = Vec::with_capacity(frame_count);
        for _ in 0..frame_count {
            let number = fields.u32()?;
            let &(pack, _) = packs
                .get(number as usize)
                .ok_or_else(|| fields.range("pack number", number.into()))?;
            let (offset, length) = (fields.u32()?, fields.u32()?);
            if u64::from(offset) + u64::from(length) > PACK_BYTES_MAX.into() {
                return Err(fields.range("frame end", offset.into()));
            }
            frames.push((pack, offset, length));
        }
        let mut entries = Vec::with_capacity(entry_count.min(reader.remaining() / ENTRY_BYTES));
        let mut left = entry_count;
        while left > 0 {
            let count = left.min(SEGMENT_BLOCK_ENTRIES);
            let plain = part(&mut reader, count * ENTRY_BYTES)?;
            let mut fields = Reader::new(OBJECT, &plain);
            for _ in 0..count {
                let id = ChunkId(fields.array()?);
                let number = fields.u32()?;
                let &(pack, frame_offset, frame_bytes) = frames
                    .get(number as usize)
                    .ok_or_else(|| fields.range("frame number", number.into()))?;
                let location = Location {
                    pack,
                    frame_offset,
                    frame_bytes,
                    offset_in_frame: fields.u32()?,
                    length: fields.u32()?,
                };
                location.check(OBJECT)?;
                if entries.last().is_some_and(|(last, _)| *last >= id) {
                    return Err(fields.range("order of entries", entries.len() as u64));
                }
                entries.push((id, location));
            }
            left -= count;
        }
        reader.end()?;
        Ok(Self { packs, entries })
    }
}
