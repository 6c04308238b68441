//! Checkpoints: the state that a log prefix amounts to, so that readers need not replay it all.
//!
//! ```text
//! checkpoint = "TGLC" | version u8 | number u64 | record hash 32 | salt 32 | certificate 121
//!              | block count u32 | block lengths u32 … | blocks | Ed25519 signature 64
//! block      = AES-256-GCM(message, nonce = ordinal, associated data = all before the blocks) | tag
//! signature  over the BLAKE3 of all before it
//! ```
//!
//! Only a maintenance or restore key may sign one: a reader that starts from a checkpoint believes
//! it, and a host must not be able to forge an expiry that way. Blocks are bounded, so that a
//! checkpoint is read and written in pieces whatever the repository's size.

use crate::aead::TAG_BYTES;
use crate::codec::{Reader, length_u32, message};
use crate::error::FormatError;
use crate::ids::RecordHash;
use crate::keys::{Certificate, Keys, Level};
use crate::limits::{CHECKPOINT_BLOCK_BYTES_MAX, CHECKPOINT_BLOCKS_MAX};
use crate::record::{
    HoldSet, KeyChanged, LOG_PREFIX, PackSize, PointCommitted, RunAnnounced, VolumeOpened,
};
use prost::Message;

const OBJECT: &str = "log checkpoint";
const MAGIC: [u8; 4] = *b"TGLC";
const VERSION: u8 = 1;
const CONTEXT: &str = "tidegate 1 log checkpoint block";
const NAME: &str = "checkpoint-";
const FIXED_BYTES: usize = 4 + 1 + 8 + 32 + 32 + Certificate::BYTES + 4;
const SIGNATURE_BYTES: usize = 64;

/// Where the checkpoint of record `number` stands.
pub fn object_key(number: u64) -> String {
    format!("{LOG_PREFIX}{NAME}{number:020}")
}

/// The number of the checkpoint that stands at `key`.
pub fn number_of(key: &str) -> Option<u64> {
    let digits = key.strip_prefix(LOG_PREFIX)?.strip_prefix(NAME)?;
    let plain = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

/// Part of a repository's state. A reader adds up all blocks.
#[derive(Clone, PartialEq, Message)]
pub struct Block {
    /// Live points, with the number of the record that committed each.
    #[prost(message, repeated, tag = "1")]
    pub points: Vec<NumberedPoint>,
    /// Live index segments.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub segments: Vec<Vec<u8>>,
    /// Runs that were announced and have not ended.
    #[prost(message, repeated, tag = "3")]
    pub runs: Vec<RunAnnounced>,
    /// Holds that stand.
    #[prost(message, repeated, tag = "4")]
    pub holds: Vec<HoldSet>,
    /// Condemned packs.
    #[prost(bytes = "vec", repeated, tag = "5")]
    pub condemned: Vec<Vec<u8>>,
    /// Packs found bad.
    #[prost(bytes = "vec", repeated, tag = "6")]
    pub bad: Vec<Vec<u8>>,
    /// Keys made and revoked.
    #[prost(message, repeated, tag = "7")]
    pub keys: Vec<KeyChanged>,
    /// The newest opening of every volume.
    #[prost(message, repeated, tag = "8")]
    pub volumes: Vec<VolumeOpened>,
    /// Packs that were swept: a slow writer must still learn of it.
    #[prost(bytes = "vec", repeated, tag = "9")]
    pub swept: Vec<Vec<u8>>,
    /// Tree packs of points that have expired, until they are swept.
    #[prost(message, repeated, tag = "10")]
    pub tree_packs: Vec<PackSize>,
}

/// A point and where the log committed it.
#[derive(Clone, PartialEq, Message)]
pub struct NumberedPoint {
    /// Number of its record.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// The record's time, Unix time in nanoseconds.
    #[prost(fixed64, tag = "2")]
    pub time_unix_ns: u64,
    /// What it said.
    #[prost(message, optional, tag = "3")]
    pub point: Option<PointCommitted>,
}

/// Encodes a checkpoint of the state after record `number`.
pub fn encode(
    number: u64,
    hash: RecordHash,
    blocks: &[Block],
    salt: [u8; 32],
    keys: &Keys,
) -> Result<Vec<u8>, FormatError> {
    may_sign(keys.level())?;
    let mut out = MAGIC.to_vec();
    out.push(VERSION);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&hash.0);
    out.extend_from_slice(&salt);
    out.extend_from_slice(&keys.identity().certificate.encode());
    out.extend_from_slice(&length_u32(blocks.len()).to_le_bytes());
    for block in blocks {
        let length = block.encoded_len();
        if length > CHECKPOINT_BLOCK_BYTES_MAX as usize {
            return Err(Reader::new(OBJECT, &[]).range("block length", length as u64));
        }
        out.extend_from_slice(&length_u32(length + TAG_BYTES).to_le_bytes());
    }
    let front = out.clone();
    let key = keys.metadata_seal_key(CONTEXT, &salt);
    for (ordinal, block) in (0..).zip(blocks) {
        out.extend_from_slice(&key.seal(ordinal, &front, &block.encode_to_vec()));
    }
    let signature = keys.identity().signing.sign(blake3::hash(&out).as_bytes());
    out.extend_from_slice(&signature);
    Ok(out)
}

/// A checkpoint as read: signature and right checked, blocks opened one at a time.
#[derive(Debug)]
pub struct Checkpoint<'a> {
    /// The last record it takes in.
    pub number: u64,
    /// That record's hash.
    pub hash: RecordHash,
    front: &'a [u8],
    salt: [u8; 32],
    blocks: Vec<&'a [u8]>,
}

impl<'a> Checkpoint<'a> {
    /// Decodes and checks certificate, signature and right.
    pub fn decode(bytes: &'a [u8], keys: &Keys) -> Result<Self, FormatError> {
        let mut reader = Reader::new(OBJECT, bytes);
        reader.magic(MAGIC)?;
        reader.version(VERSION)?;
        let number = reader.u64()?;
        let hash = RecordHash(reader.array()?);
        let salt = reader.array()?;
        let writer = Certificate::decode(&reader.array()?)?;
        let count = reader.u32()?;
        if count > CHECKPOINT_BLOCKS_MAX {
            return Err(reader.range("block count", count.into()));
        }
        let mut lengths = Vec::new();
        for _ in 0..count {
            lengths.push(reader.u32()?);
        }
        let front = &bytes[..FIXED_BYTES + lengths.len() * 4];
        let mut blocks = Vec::with_capacity(lengths.len());
        for length in lengths {
            blocks.push(reader.take(length as usize)?);
        }
        let signed = reader.position();
        let signature: [u8; SIGNATURE_BYTES] = reader.array()?;
        reader.end()?;
        writer.verify(keys.root_public(), keys.repository())?;
        may_sign(writer.level)?;
        writer.public.verify(
            OBJECT,
            blake3::hash(&bytes[..signed]).as_bytes(),
            &signature,
        )?;
        Ok(Self {
            number,
            hash,
            front,
            salt,
            blocks,
        })
    }

    /// Opens the blocks, one at a time.
    pub fn blocks(&self, keys: &Keys) -> impl Iterator<Item = Result<Block, FormatError>> {
        let key = keys.metadata_seal_key(CONTEXT, &self.salt);
        (0..).zip(&self.blocks).map(move |(ordinal, sealed)| {
            let plain = key.open(OBJECT, ordinal, self.front, sealed)?;
            message(OBJECT, &plain)
        })
    }
}

fn may_sign(level: Level) -> Result<(), FormatError> {
    match level {
        Level::Maintenance | Level::Restore => Ok(()),
        Level::Host => Err(FormatError::Right {
            level: level.as_str(),
            action: "write a checkpoint",
        }),
    }
}
