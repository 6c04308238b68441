//! What a gateway knows of chunks: the ids asked, and the entries of the answer.
//!
//! ```text
//! entry = 0 | 1, pack varint, frame's offset varint, frame's length varint,
//!             offset in frame varint, length varint
//! ```
//!
//! *pack* counts in the answer's packs. One entry for each id, in the order asked.

use super::{HaveAnswer, HaveRequest};
use crate::codec::{Reader, length_u32, put_varint};
use crate::error::FormatError;
use crate::ids::{ChunkId, PackId};
use crate::pack::{Location, PackKind};
use std::collections::HashMap;

const OBJECT: &str = "have's answer";
const ID_BYTES: usize = 32;

impl HaveRequest {
    /// Asks for these.
    pub fn new(chunks: impl Iterator<Item = ChunkId>) -> Self {
        let mut ids = Vec::new();
        for chunk in chunks {
            ids.extend_from_slice(&chunk.0);
        }
        Self { ids }
    }
}

/// The ids asked for.
pub fn chunk_ids(request: &HaveRequest) -> impl ExactSizeIterator<Item = ChunkId> + '_ {
    request.ids.chunks_exact(ID_BYTES).map(|bytes| {
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(bytes);
        ChunkId(id)
    })
}

/// The answer: where each of the chunks asked for lies, `None` for those that are not known.
pub fn encode_known(known: &[Option<Location>]) -> HaveAnswer {
    let mut answer = HaveAnswer::default();
    let mut numbers: HashMap<PackId, u32> = HashMap::new();
    for location in known {
        let Some(location) = location else {
            answer.entries.push(0);
            continue;
        };
        let next = length_u32(numbers.len());
        let number = *numbers.entry(location.pack).or_insert_with(|| {
            answer.packs.extend_from_slice(&location.pack.0);
            next
        });
        answer.entries.push(1);
        for value in [
            number,
            location.frame_offset,
            location.frame_bytes,
            location.offset_in_frame,
            location.length,
        ] {
            put_varint(&mut answer.entries, value);
        }
    }
    answer
}

/// What an answer says of the `asked` chunks. Refuses a place where no chunk can lie.
pub fn decode_known(
    answer: &HaveAnswer,
    asked: usize,
) -> Result<Vec<Option<Location>>, FormatError> {
    let packs = answer.packs.as_slice();
    if !packs.len().is_multiple_of(ID_BYTES) {
        return Err(FormatError::Range {
            object: OBJECT,
            field: "packs",
            found: packs.len() as u64,
        });
    }
    // Each entry takes a byte at least: a list of that size is justified by what is at hand.
    let mut known = Vec::with_capacity(asked.min(answer.entries.len()));
    let mut reader = Reader::new(OBJECT, &answer.entries);
    for _ in 0..asked {
        known.push(match reader.u8()? {
            0 => None,
            1 => Some(location(&mut reader, packs)?),
            tag => return Err(reader.tag("entry", tag.into())),
        });
    }
    reader.end()?;
    Ok(known)
}

fn location(reader: &mut Reader<'_>, packs: &[u8]) -> Result<Location, FormatError> {
    let number = reader.varint("pack")?;
    let pack = packs
        .chunks_exact(ID_BYTES)
        .nth(number as usize)
        .ok_or_else(|| reader.range("pack", number.into()))?;
    let mut id = [0; ID_BYTES];
    id.copy_from_slice(pack);
    let location = Location {
        pack: PackId(id),
        frame_offset: reader.varint("frame's offset")?,
        frame_bytes: reader.varint("frame's length")?,
        offset_in_frame: reader.varint("offset in frame")?,
        length: reader.varint("length")?,
    };
    location.check(OBJECT, PackKind::Data)?;
    Ok(location)
}
