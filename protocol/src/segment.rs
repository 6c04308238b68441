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
use crate::codec::{Reader, at_most, length_u32};
use crate::error::FormatError;
use crate::ids::{ChunkId, PackId, RepositoryId, SegmentId};
use crate::keys::Keys;
use crate::limits::{SEGMENT_BLOCK_ENTRIES, SEGMENT_BYTES_MAX, SEGMENT_ENTRIES_MAX};
use crate::pack::{Location, PackKind};
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
    /// Encodes; entries are sorted and of entries with one id the first is kept. `salt` is drawn at
    /// random for this very segment and never used again: it yields the key. Fails when a location's
    /// pack is not in `packs`, or when a reader would refuse what stands here.
    pub fn encode(
        &mut self,
        keys: &Keys,
        salt: [u8; 32],
    ) -> Result<(SegmentId, Vec<u8>), FormatError> {
        self.entries.sort_by_key(|(id, _)| *id);
        self.entries.dedup_by_key(|(id, _)| *id);
        if self.entries.len() as u64 > SEGMENT_ENTRIES_MAX {
            return Err(out_of_range("entries", self.entries.len() as u64));
        }
        let pack_numbers: HashMap<PackId, u32> = (0..)
            .zip(&self.packs)
            .map(|(number, (id, _))| (*id, number))
            .collect();
        let mut frame_numbers = HashMap::new();
        let mut frames = Vec::new();
        let mut frame_of_entry = Vec::with_capacity(self.entries.len());
        for (_, location) in &self.entries {
            location.check(OBJECT, PackKind::Data)?;
            let pack = pack_numbers
                .get(&location.pack)
                .ok_or_else(|| FormatError::Message {
                    object: OBJECT,
                    detail: format!("it does not list pack {}", location.pack),
                })?;
            let frame = [*pack, location.frame_offset, location.frame_bytes];
            let number = *frame_numbers.entry(frame).or_insert_with(|| {
                frames.push(frame);
                length_u32(frames.len() - 1)
            });
            frame_of_entry.push(number);
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
        let blocks = self
            .entries
            .chunks(SEGMENT_BLOCK_ENTRIES)
            .zip(frame_of_entry.chunks(SEGMENT_BLOCK_ENTRIES));
        for (entries, frames) in blocks {
            plain.clear();
            for ((id, location), frame) in entries.iter().zip(frames) {
                plain.extend_from_slice(&id.0);
                for number in [*frame, location.offset_in_frame, location.length] {
                    plain.extend_from_slice(&number.to_le_bytes());
                }
            }
            part(&mut out, &plain);
        }
        at_most(OBJECT, &out, SEGMENT_BYTES_MAX)?;
        Ok((SegmentId::of(&out), out))
    }

    /// Decodes a whole segment. That `bytes` hash to the name under which they were found is for
    /// the caller to check ([`SegmentId::of`]).
    pub fn decode(bytes: &[u8], keys: &Keys) -> Result<Self, FormatError> {
        at_most(OBJECT, bytes, SEGMENT_BYTES_MAX)?;
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
        let entry_count = usize::try_from(entry_count)
            .ok()
            .filter(|_| entry_count <= SEGMENT_ENTRIES_MAX)
            .ok_or_else(|| reader.range("entries", entry_count))?;
        let header = &bytes[..HEADER_BYTES];
        let key = keys.metadata_seal_key(CONTEXT, &salt);
        let mut ordinal = 0;
        let mut part = |reader: &mut Reader<'_>, length: usize| {
            let sealed = reader.take(length.saturating_add(TAG_BYTES))?;
            ordinal += 1;
            key.open(OBJECT, ordinal - 1, header, sealed)
        };
        // Counts are checked against the bytes at hand, and opened with them as associated data,
        // before anything is allocated for them.
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
            // Checked with each entry that lies in it.
            frames.push((pack, fields.u32()?, fields.u32()?));
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
                location.check(OBJECT, PackKind::Data)?;
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

fn out_of_range(field: &'static str, found: u64) -> FormatError {
    FormatError::Range {
        object: OBJECT,
        field,
        found,
    }
}

#[cfg(test)]
mod tests {
    //! Segments that a holder of the metadata key has sealed, whatever is in them.
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::keys::{Level, RepositorySecret, Secret};
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn keys() -> Keys {
        let secret = RepositorySecret(Secret([1; 32]));
        secret.issue(Level::Host, RepositoryId([2; 16]), Secret([3; 32]), 0)
    }

    fn seal(keys: &Keys, counts: (u32, u32, u64), parts: &[Vec<u8>]) -> Vec<u8> {
        let salt = [4; 32];
        let mut out = MAGIC.to_vec();
        out.push(VERSION);
        out.extend_from_slice(&keys.repository().0);
        out.extend_from_slice(&salt);
        out.extend_from_slice(&counts.0.to_le_bytes());
        out.extend_from_slice(&counts.1.to_le_bytes());
        out.extend_from_slice(&counts.2.to_le_bytes());
        let header = out.clone();
        let key = keys.metadata_seal_key(CONTEXT, &salt);
        for (ordinal, part) in (0..).zip(parts) {
            out.extend_from_slice(&key.seal(ordinal, &header, part));
        }
        out
    }

    fn frame(pack: u32, offset: u32, length: u32) -> Vec<u8> {
        [pack, offset, length].map(u32::to_le_bytes).concat()
    }

    fn entry(id: u8, frame: u32, offset: u32, length: u32) -> Vec<u8> {
        [
            &[id; 32][..],
            &[frame, offset, length].map(u32::to_le_bytes).concat(),
        ]
        .concat()
    }

    #[test]
    fn sealed_segments_are_checked_all_the_same() {
        let keys = keys();
        let pack = [[9; 36]].concat();
        let sound = frame(0, 152, 5000);
        let decode =
            |counts, parts: &[Vec<u8>]| Segment::decode(&seal(&keys, counts, parts), &keys);
        let two = [entry(1, 0, 0, 4096), entry(2, 0, 4096, 1)].concat();
        assert!(decode((1, 1, 2), &[pack.clone(), sound.clone(), two.clone()]).is_ok());
        let order = [entry(2, 0, 0, 4096), entry(1, 0, 4096, 1)].concat();
        let twice = [entry(1, 0, 0, 4096), entry(1, 0, 4096, 1)].concat();
        for (reason, counts, frames, entries) in [
            (
                "a pack that is not listed",
                (1, 1, 2),
                frame(1, 152, 5000),
                two.clone(),
            ),
            (
                "a frame past the largest pack",
                (1, 1, 2),
                frame(0, u32::MAX, 5000),
                two.clone(),
            ),
            ("an empty frame", (1, 1, 2), frame(0, 152, 0), two.clone()),
            (
                "a frame that is not listed",
                (1, 1, 1),
                sound.clone(),
                entry(1, 1, 0, 1),
            ),
            (
                "a chunk past the largest frame",
                (1, 1, 1),
                sound.clone(),
                entry(1, 0, u32::MAX, 1),
            ),
            (
                "an empty chunk",
                (1, 1, 1),
                sound.clone(),
                entry(1, 0, 0, 0),
            ),
            ("entries out of order", (1, 1, 2), sound.clone(), order),
            ("a chunk with two places", (1, 1, 2), sound.clone(), twice),
            (
                "fewer entries than there are",
                (1, 1, 1),
                sound.clone(),
                two.clone(),
            ),
            (
                "more entries than there are",
                (1, 1, 3),
                sound.clone(),
                two.clone(),
            ),
            (
                "entries beyond all memory",
                (1, 1, SEGMENT_ENTRIES_MAX),
                sound.clone(),
                two.clone(),
            ),
            (
                "more than a segment holds",
                (1, 1, u64::MAX),
                sound.clone(),
                two.clone(),
            ),
            (
                "packs beyond all memory",
                (u32::MAX, 1, 2),
                sound.clone(),
                two.clone(),
            ),
            ("frames beyond all memory", (1, u32::MAX, 2), sound, two),
        ] {
            assert!(
                decode(counts, &[pack.clone(), frames, entries]).is_err(),
                "{reason}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn sealed_nonsense_is_an_error(
            packs in vec(any::<[u8; 36]>(), 0..3),
            frames in vec((0..3_u32, any::<u32>(), any::<u32>()), 0..4),
            entries in vec((any::<u8>(), 0..4_u32, 0..1_u32 << 24, 0..1_u32 << 23), 0..6),
        ) {
            let keys = keys();
            let counts = (length_u32(packs.len()), length_u32(frames.len()), entries.len() as u64);
            let mut parts = vec![
                packs.concat(),
                frames.iter().flat_map(|&(pack, offset, length)| frame(pack, offset, length)).collect(),
            ];
            if !entries.is_empty() {
                parts.push(entries.iter().flat_map(|&(id, number, offset, length)| entry(id, number, offset, length)).collect());
            }
            if let Ok(segment) = Segment::decode(&seal(&keys, counts, &parts), &keys) {
                for (_, location) in &segment.entries {
                    prop_assert!(location.check("test", PackKind::Data).is_ok());
                }
            }
        }
    }
}
