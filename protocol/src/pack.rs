//! Packs: immutable objects of sealed frames, named by the hash of their bytes.
//!
//! ```text
//! header  = "TGPK" | version u8 | kind u8 (1 data, 2 tree) | key length u16 | repository 16
//!           | salt 32 | sealed pack key (data packs only)
//! frames  = frame …
//! footer  = AES-256-GCM(table, nonce = 0, associated data = header) | tag
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
use crate::codec::{Reader, length_u32};
use crate::error::FormatError;
use crate::frame;
use crate::ids::{PackId, RepositoryId};
use crate::keys::{Keys, SealPublicKey, Secret};
use crate::limits::{FRAME_RAW_BYTES_MAX, PACK_BYTES_MAX, PACK_ITEMS_MAX};

const OBJECT: &str = "pack";
const MAGIC: [u8; 4] = *b"TGPK";
const TRAILER_MAGIC: [u8; 4] = *b"TGPE";
const VERSION: u8 = 1;
const INFO: &[u8] = b"tidegate 1 pack key";
const CONTEXT_FOOTER: &str = "tidegate 1 pack footer";
const CONTEXT_TREE: &str = "tidegate 1 tree pack frames";
const SEALED_KEY_BYTES: usize = SealPublicKey::ENCAPSULATED_BYTES + 32 + TAG_BYTES;
const HEADER_FIXED_BYTES: usize = 4 + 1 + 1 + 2 + 16 + 32;

/// Bytes of the trailer.
pub const TRAILER_BYTES: usize = 8;

/// Most bytes that a header can take: enough to fetch to be sure to have it.
pub const HEADER_BYTES_MAX: usize = HEADER_FIXED_BYTES + SEALED_KEY_BYTES;

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
}

/// Where a chunk or page lies: enough to fetch, open and check it with one ranged read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Location {
    /// The pack.
    pub pack: PackId,
    /// Where its frame begins in the pack, in bytes.
    pub frame_offset: u32,
    /// The frame's stored length in bytes, ordinal and tag included.
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

    pub(crate) fn check(&self, object: &'static str) -> Result<(), FormatError> {
        let out_of_range = |field, found: u64| {
            Err(FormatError::Range {
                object,
                field,
                found,
            })
        };
        if self.frame_range().end > u64::from(PACK_BYTES_MAX) {
            return out_of_range("frame end", self.frame_range().end);
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
        let key_bytes = match kind {
            PackKind::Data => SEALED_KEY_BYTES,
            PackKind::Tree => 0,
        };
        buffer.extend_from_slice(&MAGIC);
        buffer.push(VERSION);
        buffer.push(kind.tag());
        buffer.extend_from_slice(&(key_bytes as u16).to_le_bytes());
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

    /// Appends a frame made by [`frame::encode_payload`]; `items` are the ids and raw lengths of
    /// what it holds, in order and without gaps. Returns where the frame lies.
    pub fn push(
        &mut self,
        payload: &[u8],
        items: impl IntoIterator<Item = ([u8; 32], u32)>,
    ) -> std::ops::Range<u32> {
        let start = self.bytes.len();
        let ordinal = length_u32(self.frames.len());
        frame::seal(
            &self.frames_key,
            ordinal,
            &self.header,
            payload,
            &mut self.bytes,
        );
        let before = self.items.len();
        self.items.extend(items);
        let raw_bytes = self.items[before..]
            .iter()
            .map(|(_, length)| length)
            .sum::<u32>();
        self.frames.push([
            length_u32(self.bytes.len() - start),
            raw_bytes,
            length_u32(self.items.len() - before),
        ]);
        // Hash while the frame is still in cache.
        self.hasher.update(&self.bytes[self.hashed..]);
        self.hashed = self.bytes.len();
        length_u32(start)..length_u32(self.bytes.len())
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
        let mut table = Vec::with_capacity(8 + self.frames.len() * 12 + self.items.len() * 36);
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
        let key_bytes = usize::from(reader.u16()?);
        let expected = match kind {
            PackKind::Data => SEALED_KEY_BYTES,
            PackKind::Tree => 0,
        };
        if key_bytes != expected {
            return Err(reader.range("key length", key_bytes as u64));
        }
        let repository = RepositoryId(reader.array()?);
        let salt = reader.array()?;
        reader.take(key_bytes)?;
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
    /// Opens a frame; the content stays in `opener` until its next use.
    pub fn open<'a>(
        &self,
        opener: &'a mut frame::FrameOpener,
        frame: &[u8],
    ) -> Result<&'a [u8], FormatError> {
        opener.open(&self.key, &self.header, frame)
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
        let (start, end) = (range.start as usize, range.end as usize);
        if start < header.len() {
            return Err(Reader::new(OBJECT, pack).range("footer length", (end - start) as u64));
        }
        Self::open_part(&header, &pack[start..end], keys, range.start)
    }

    /// Opens a footer that was fetched on its own; `footer_offset` is where it begins in the pack.
    pub fn open_part(
        header: &PackHeader,
        sealed: &[u8],
        keys: &Keys,
        footer_offset: u64,
    ) -> Result<Self, FormatError> {
        const OBJECT: &str = "pack footer";
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
        if u64::from(count) * 12 > reader.remaining() as u64 {
            return Err(reader.range("frame count", count.into()));
        }
        let mut lengths = Vec::with_capacity(count as usize);
        for _ in 0..count {
            lengths.push((reader.u32()?, reader.u32()?, reader.u32()?));
        }
        let mut start = header.len() as u64;
        let mut total = 0_u64;
        let mut frames = Vec::with_capacity(lengths.len());
        for (stored, raw, count) in lengths {
            total += u64::from(count);
            if total > PACK_ITEMS_MAX.into() || u64::from(count) * 36 > reader.remaining() as u64 {
                return Err(reader.range("item count", count.into()));
            }
            let mut items = Vec::with_capacity(count as usize);
            let mut sum = 0_u64;
            for _ in 0..count {
                let id = reader.array()?;
                let length = reader.u32()?;
                sum += u64::from(length);
                items.push((id, length));
            }
            let end = start + u64::from(stored);
            if sum != u64::from(raw) || raw > FRAME_RAW_BYTES_MAX || end > footer_offset {
                return Err(reader.range("frame length", raw.into()));
            }
            // Both are below the footer's offset, which is below the largest pack.
            frames.push(FooterFrame {
                range: start as u32..end as u32,
                items,
            });
            start = end;
        }
        if start != footer_offset {
            return Err(reader.range("end of frames", start));
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

fn trailer_of(pack: &[u8]) -> Result<&[u8; TRAILER_BYTES], FormatError> {
    pack.last_chunk().ok_or(FormatError::Truncated {
        object: OBJECT,
        offset: 0,
        needed: TRAILER_BYTES,
        found: pack.len(),
    })
}
