//! Packs: immutable objects of sealed frames, named by the hash of their bytes.
//!
//! ```text
//! header  = "TGPK" | version u8 | kind u8 (1 data, 2 tree) | key length u16 | repository 16
//!           | salt 32 | sealed pack key (data packs only)
//! frames  = frame …
//! footer  = AES-256-GCM(table, nonce = 0, associated data = header) | tag   (a key of its own)
//! table   = frame count u32 | frames: stored length u32, raw length u32, items u32
//!           | items: id 32, length u32
//! trailer = footer length u32 | "TGPE"
//! ```
//!
//! A data pack's key is drawn for it and sealed by HPKE to the repository's data key: hosts write
//! content that they cannot read back. A tree pack's key follows from the metadata key and the salt.
//! The footer is always sealed under the metadata key (and the salt), so that maintenance can
//! rebuild the index without reading content.

use crate::aead::{SealKey, TAG_BYTES};
use crate::codec::{Reader, at_most, length_u32};
use crate::error::FormatError;
use crate::frame;
use crate::ids::{PackId, RepositoryId};
use crate::keys::{Keys, SealPublicKey, Secret};
use crate::limits::{
    CHUNK_BYTES_MAX, FRAME_BYTES_MAX, FRAME_BYTES_MIN, FRAME_RAW_BYTES_MAX, PACK_BYTES_MAX,
    PACK_ITEMS_MAX, PAGE_BYTES_MAX,
};

const OBJECT: &str = "pack";
const MAGIC: [u8; 4] = *b"TGPK";
const TRAILER_MAGIC: [u8; 4] = *b"TGPE";
const VERSION: u8 = 1;
const INFO: &[u8] = b"tidegate 1 pack key";
const CONTEXT_FOOTER: &str = "tidegate 1 pack footer";
const CONTEXT_TREE: &str = "tidegate 1 tree pack frames";
const SEALED_KEY_BYTES: u16 = 80;
const HEADER_FIXED_BYTES: usize = 4 + 1 + 1 + 2 + 16 + 32;
const TABLE_FRAME_BYTES: usize = 12;
const TABLE_ITEM_BYTES: usize = 36;

/// Bytes of the trailer.
pub const TRAILER_BYTES: usize = 8;

/// Most bytes that a header can take: enough to fetch to be sure to have it.
pub const HEADER_BYTES_MAX: usize = HEADER_FIXED_BYTES + SEALED_KEY_BYTES as usize;

const _: () =
    assert!(SEALED_KEY_BYTES as usize == SealPublicKey::ENCAPSULATED_BYTES + 32 + TAG_BYTES);

/// What a pack's frames hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PackKind {
    /// Chunks of disks, sealed to the data key.
    Data,
    /// Tree pages, sealed under the metadata key.
    Tree,
}

impl PackKind {
    const fn tag(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::Tree => 2,
        }
    }

    const fn sealed_key_bytes(self) -> u16 {
        match self {
            Self::Data => SEALED_KEY_BYTES,
            Self::Tree => 0,
        }
    }

    /// Largest chunk or page.
    const fn item_bytes_max(self) -> u32 {
        match self {
            Self::Data => CHUNK_BYTES_MAX,
            Self::Tree => PAGE_BYTES_MAX,
        }
    }
}

/// Where a chunk or page lies: enough to fetch, open and check it with one ranged read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Location {
    /// The pack.
    pub pack: PackId,
    /// Where its frame begins in the pack, in bytes.
    pub frame_offset: u32,
    /// The frame's stored length in bytes, tag included.
    pub frame_bytes: u32,
    /// Where it begins in the frame's raw content, in bytes.
    pub offset_in_frame: u32,
    /// Its raw length in bytes.
    pub length: u32,
}

impl Location {
    /// The frame's range in the pack.
    pub fn frame_range(&self) -> std::ops::Range<u64> {
        let start = u64::from(self.frame_offset);
        start..start + u64::from(self.frame_bytes)
    }

    /// Refuses a place where no chunk (or page) can lie, so that nobody asks the store for it.
    pub(crate) fn check(&self, object: &'static str, kind: PackKind) -> Result<(), FormatError> {
        let out_of_range = |field, found: u64| {
            Err(FormatError::Range {
                object,
                field,
                found,
            })
        };
        if !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&self.frame_bytes) {
            return out_of_range("frame length", self.frame_bytes.into());
        }
        if self.frame_range().end > u64::from(PACK_BYTES_MAX) {
            return out_of_range("frame end", self.frame_range().end);
        }
        if self.length == 0 || self.length > kind.item_bytes_max() {
            return out_of_range("length", self.length.into());
        }
        let end = u64::from(self.offset_in_frame) + u64::from(self.length);
        if end > u64::from(FRAME_RAW_BYTES_MAX) {
            return out_of_range("end in frame", end);
        }
        Ok(())
    }
}

/// Fresh randomness for one pack. Not `Clone`: a pack key is never used for a second pack.
pub struct PackRandom {
    /// The header's salt.
    pub salt: [u8; 32],
    /// A data pack's key.
    pub key: Secret,
    /// Randomness for HPKE.
    pub seed: Secret,
}

/// Writes one pack in memory.
pub struct PackWriter {
    kind: PackKind,
    header: Vec<u8>,
    bytes: Vec<u8>,
    hasher: blake3::Hasher,
    hashed: usize,
    frames_key: SealKey,
    footer_key: SealKey,
    frames: Vec<[u32; 3]>,
    items: Vec<([u8; 32], u32)>,
}

/// A finished pack.
pub struct SealedPack {
    /// Its name.
    pub id: PackId,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl PackWriter {
    /// Begins a pack. `buffer` is reused when it has capacity.
    pub fn new(
        kind: PackKind,
        keys: &Keys,
        random: PackRandom,
        mut buffer: Vec<u8>,
    ) -> Result<Self, FormatError> {
        let PackRandom { salt, key, seed } = random;
        buffer.clear();
        buffer.extend_from_slice(&MAGIC);
        buffer.push(VERSION);
        buffer.push(kind.tag());
        buffer.extend_from_slice(&kind.sealed_key_bytes().to_le_bytes());
        buffer.extend_from_slice(&keys.repository().0);
        buffer.extend_from_slice(&salt);
        let frames_key = match kind {
            PackKind::Data => {
                let sealed = keys.data_public().seal(INFO, &buffer, &key.0, &seed)?;
                buffer.extend_from_slice(&sealed);
                SealKey::new(&key.0)
            }
            PackKind::Tree => keys.metadata_seal_key(CONTEXT_TREE, &salt),
        };
        Ok(Self {
            kind,
            header: buffer.clone(),
            bytes: buffer,
            hasher: blake3::Hasher::new(),
            hashed: 0,
            frames_key,
            footer_key: keys.metadata_seal_key(CONTEXT_FOOTER, &salt),
            frames: Vec::new(),
            items: Vec::new(),
        })
    }

    /// Appends a frame made by [`frame::PayloadEncoder`]; `items` are the ids and raw lengths of
    /// what it holds, in order and without gaps. Returns where the frame lies. A frame that a
    /// reader would refuse is refused here, and leaves the pack as it was.
    pub fn push(
        &mut self,
        payload: &[u8],
        items: impl IntoIterator<Item = ([u8; 32], u32)>,
    ) -> Result<std::ops::Range<u32>, FormatError> {
        let start = self.bytes.len();
        let before = self.items.len();
        self.items.extend(items);
        let frame = match self.table_entry(payload, before) {
            Ok(frame) => frame,
            Err(error) => {
                self.items.truncate(before);
                return Err(error);
            }
        };
        self.frames.push(frame);
        frame::seal(&self.frames_key, &self.header, payload, &mut self.bytes);
        // Hash while the frame is still in cache.
        self.hasher.update(&self.bytes[self.hashed..]);
        self.hashed = self.bytes.len();
        Ok(length_u32(start)..length_u32(self.bytes.len()))
    }

    /// The table's line for a frame of `payload` that holds the items from `before` on.
    fn table_entry(&self, payload: &[u8], before: usize) -> Result<[u32; 3], FormatError> {
        let out_of_range = |field, found| FormatError::Range {
            object: OBJECT,
            field,
            found,
        };
        let items = &self.items[before..];
        let raw_bytes = frame_raw_bytes(OBJECT, self.kind, items)?;
        if frame::raw_bytes_of(payload) != Some(raw_bytes) {
            return Err(out_of_range("frame length", raw_bytes.into()));
        }
        let stored = payload.len() + frame::FRAME_OVERHEAD_BYTES;
        if stored > FRAME_BYTES_MAX as usize {
            return Err(out_of_range("frame length", stored as u64));
        }
        if self.items.len() > PACK_ITEMS_MAX as usize {
            return Err(out_of_range("item count", self.items.len() as u64));
        }
        let table =
            4 + (self.frames.len() + 1) * TABLE_FRAME_BYTES + self.items.len() * TABLE_ITEM_BYTES;
        let pack = self.bytes.len() + stored + table + TAG_BYTES + TRAILER_BYTES;
        if pack > PACK_BYTES_MAX as usize {
            return Err(out_of_range("pack length", pack as u64));
        }
        Ok([length_u32(stored), raw_bytes, length_u32(items.len())])
    }

    /// Bytes so far, without footer.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True when no frame was appended.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Chunks or pages so far.
    pub fn items(&self) -> usize {
        self.items.len()
    }

    /// Appends footer and trailer.
    pub fn finish(mut self) -> SealedPack {
        let mut table = Vec::with_capacity(
            4 + self.frames.len() * TABLE_FRAME_BYTES + self.items.len() * TABLE_ITEM_BYTES,
        );
        table.extend_from_slice(&length_u32(self.frames.len()).to_le_bytes());
        for frame in &self.frames {
            for number in frame {
                table.extend_from_slice(&number.to_le_bytes());
            }
        }
        for (id, length) in &self.items {
            table.extend_from_slice(id);
            table.extend_from_slice(&length.to_le_bytes());
        }
        let footer = self.footer_key.seal(0, &self.header, &table);
        self.bytes.extend_from_slice(&footer);
        self.bytes
            .extend_from_slice(&length_u32(footer.len()).to_le_bytes());
        self.bytes.extend_from_slice(&TRAILER_MAGIC);
        self.hasher.update(&self.bytes[self.hashed..]);
        SealedPack {
            id: PackId(*self.hasher.finalize().as_bytes()),
            bytes: self.bytes,
        }
    }
}

/// A pack's header as read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackHeader {
    /// What the frames hold.
    pub kind: PackKind,
    /// The repository it was made for.
    pub repository: RepositoryId,
    salt: [u8; 32],
    bytes: Vec<u8>,
}

impl PackHeader {
    /// Reads the header at the front of `bytes`, which may go on.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(OBJECT, bytes);
        reader.magic(MAGIC)?;
        reader.version(VERSION)?;
        let kind = match reader.u8()? {
            1 => PackKind::Data,
            2 => PackKind::Tree,
            other => return Err(reader.tag("kind", other.into())),
        };
        let key_bytes = reader.u16()?;
        if key_bytes != kind.sealed_key_bytes() {
            return Err(reader.range("key length", key_bytes.into()));
        }
        let repository = RepositoryId(reader.array()?);
        let salt = reader.array()?;
        reader.take(key_bytes.into())?;
        let length = reader.position();
        Ok(Self {
            kind,
            repository,
            salt,
            bytes: bytes[..length].to_vec(),
        })
    }

    /// Length in bytes: where the first frame begins.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never: a header has a fixed part.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The key that opens the frames. Data packs need the restore level.
    pub fn frames_key(&self, keys: &Keys) -> Result<FramesKey, FormatError> {
        if self.repository != keys.repository() {
            return Err(FormatError::Foreign {
                object: OBJECT,
                expected: keys.repository().to_string(),
                found: self.repository.to_string(),
            });
        }
        let key = match self.kind {
            PackKind::Tree => keys.metadata_seal_key(CONTEXT_TREE, &self.salt),
            PackKind::Data => {
                let (front, sealed) = self.bytes.split_at(HEADER_FIXED_BYTES);
                let opened = keys.data_private()?.open("pack key", INFO, front, sealed)?;
                let key = opened
                    .as_slice()
                    .try_into()
                    .map_err(|_| FormatError::Range {
                        object: "pack key",
                        field: "length",
                        found: opened.len() as u64,
                    })?;
                SealKey::new(key)
            }
        };
        Ok(FramesKey {
            key,
            header: self.bytes.clone(),
        })
    }
}

/// What opens the frames of one pack.
pub struct FramesKey {
    key: SealKey,
    header: Vec<u8>,
}

impl FramesKey {
    /// Opens the frame that stands at `frame_offset` of the pack; the content stays in `opener`
    /// until its next use. What is taken out of it must still be checked against its name.
    pub fn open<'a>(
        &self,
        opener: &'a mut frame::FrameOpener,
        frame_offset: u32,
        frame: &[u8],
    ) -> Result<&'a [u8], FormatError> {
        opener.open(&self.key, &self.header, frame_offset, frame)
    }
}

/// One frame of a footer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FooterFrame {
    /// Where the frame lies in the pack, in bytes.
    pub range: std::ops::Range<u32>,
    /// Ids and raw lengths of what it holds, in order.
    pub items: Vec<([u8; 32], u32)>,
}

/// A pack's table of contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// The frames, in order.
    pub frames: Vec<FooterFrame>,
}

impl Footer {
    /// Opens the footer of a whole pack.
    pub fn open(pack: &[u8], keys: &Keys) -> Result<Self, FormatError> {
        let header = PackHeader::decode(pack)?;
        let range = footer_range(pack.len() as u64, trailer_of(pack)?)?;
        let outside = || Reader::new(OBJECT, pack).range("footer length", range.end - range.start);
        let sealed = usize::try_from(range.start)
            .ok()
            .filter(|start| *start >= header.len())
            .zip(usize::try_from(range.end).ok())
            .and_then(|(start, end)| pack.get(start..end))
            .ok_or_else(outside)?;
        Self::open_part(&header, sealed, keys, range.start)
    }

    /// Opens a footer that was fetched on its own; `footer_offset` is where it begins in the pack.
    pub fn open_part(
        header: &PackHeader,
        sealed: &[u8],
        keys: &Keys,
        footer_offset: u64,
    ) -> Result<Self, FormatError> {
        const OBJECT: &str = "pack footer";
        at_most(OBJECT, sealed, PACK_BYTES_MAX.into())?;
        if footer_offset > PACK_BYTES_MAX.into() {
            return Err(Reader::new(OBJECT, sealed).range("offset", footer_offset));
        }
        if header.repository != keys.repository() {
            return Err(FormatError::Foreign {
                object: OBJECT,
                expected: keys.repository().to_string(),
                found: header.repository.to_string(),
            });
        }
        let table = keys.metadata_seal_key(CONTEXT_FOOTER, &header.salt).open(
            OBJECT,
            0,
            &header.bytes,
            sealed,
        )?;
        let mut reader = Reader::new(OBJECT, &table);
        let count = reader.u32()?;
        if u64::from(count) * TABLE_FRAME_BYTES as u64 > reader.remaining() as u64 {
            return Err(reader.range("frame count", count.into()));
        }
        let mut lengths = Vec::with_capacity(count as usize);
        for _ in 0..count {
            lengths.push((reader.u32()?, reader.u32()?, reader.u32()?));
        }
        let mut start = length_u32(header.len());
        let mut total = 0_u64;
        let mut frames = Vec::with_capacity(lengths.len());
        for (stored, raw, count) in lengths {
            total += u64::from(count);
            let count_max = reader.remaining() / TABLE_ITEM_BYTES;
            if total > PACK_ITEMS_MAX.into() || u64::from(count) > count_max as u64 {
                return Err(reader.range("item count", count.into()));
            }
            let mut items = Vec::with_capacity(count as usize);
            for _ in 0..count {
                items.push((reader.array()?, reader.u32()?));
            }
            if frame_raw_bytes(OBJECT, header.kind, &items)? != raw {
                return Err(reader.range("raw length", raw.into()));
            }
            if !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&stored) {
                return Err(reader.range("frame length", stored.into()));
            }
            // Checked at every frame: below the footer's offset, which is below the largest pack.
            let end = start + stored;
            if u64::from(end) > footer_offset {
                return Err(reader.range("frame end", end.into()));
            }
            frames.push(FooterFrame {
                range: start..end,
                items,
            });
            start = end;
        }
        if u64::from(start) != footer_offset {
            return Err(reader.range("end of frames", start.into()));
        }
        reader.end()?;
        Ok(Self { frames })
    }

    /// Ids and locations of everything in the pack.
    pub fn locations(&self, pack: PackId) -> impl Iterator<Item = ([u8; 32], Location)> {
        self.frames.iter().flat_map(move |frame| {
            let mut offset_in_frame = 0;
            frame.items.iter().map(move |&(id, length)| {
                let location = Location {
                    pack,
                    frame_offset: frame.range.start,
                    frame_bytes: frame.range.end - frame.range.start,
                    offset_in_frame,
                    length,
                };
                offset_in_frame += length;
                (id, location)
            })
        })
    }
}

/// Where the footer lies in a pack of `pack_bytes`, by its trailer.
pub fn footer_range(
    pack_bytes: u64,
    trailer: &[u8; TRAILER_BYTES],
) -> Result<std::ops::Range<u64>, FormatError> {
    let mut reader = Reader::new("pack trailer", trailer);
    let length = u64::from(reader.u32()?);
    reader.magic(TRAILER_MAGIC)?;
    if pack_bytes > PACK_BYTES_MAX.into() {
        return Err(reader.range("pack length", pack_bytes));
    }
    let end = pack_bytes.saturating_sub(TRAILER_BYTES as u64);
    match end.checked_sub(length) {
        Some(start) => Ok(start..end),
        None => Err(reader.range("footer length", length)),
    }
}

/// The sum of a frame's items: neither the frame nor an item may be empty or above its bound.
fn frame_raw_bytes(
    object: &'static str,
    kind: PackKind,
    items: &[([u8; 32], u32)],
) -> Result<u32, FormatError> {
    let out_of_range = |field, found: u64| FormatError::Range {
        object,
        field,
        found,
    };
    let mut sum = 0_u64;
    for &(_, length) in items {
        if length == 0 || length > kind.item_bytes_max() {
            return Err(out_of_range("item length", length.into()));
        }
        sum += u64::from(length);
    }
    u32::try_from(sum)
        .ok()
        .filter(|sum| (1..=FRAME_RAW_BYTES_MAX).contains(sum))
        .ok_or_else(|| out_of_range("raw length", sum))
}

fn trailer_of(pack: &[u8]) -> Result<&[u8; TRAILER_BYTES], FormatError> {
    pack.last_chunk().ok_or(FormatError::Truncated {
        object: OBJECT,
        offset: 0,
        needed: TRAILER_BYTES,
        found: pack.len(),
    })
}

#[cfg(test)]
mod tests;
