//! Checkpoints: the state that a log prefix amounts to, so that readers need not replay it all.
//!
//! ```text
//! checkpoint = front | blocks
//! front      = fixed | table | Ed25519 signature 64 over "tidegate 1 checkpoint" | fixed | table
//! fixed      = "TGLC" | version u8 | number u64 | record hash 32 | salt 32 | certificate 121
//!              | block count u32
//! table      = for each block: length u32 | BLAKE3 of the block as stored 32
//! block      = AES-256-GCM(message, nonce = ordinal, associated data = fixed) | tag
//! ```
//!
//! Only a maintenance or restore key may sign one: a reader that starts from a checkpoint believes
//! it, and a host must not be able to forge an expiry that way. Hosts hold the key that seals the
//! blocks, so it is the signed hashes that vouch for them. Blocks are bounded and the front is
//! small: a checkpoint is fetched, checked and applied block by block, whatever its size.

use crate::aead::TAG_BYTES;
use crate::codec::{Reader, length_u32, message};
use crate::error::FormatError;
use crate::ids::RecordHash;
use crate::keys::{Certificate, Keys, Level};
use crate::limits::{CHECKPOINT_BLOCK_BYTES_MAX, CHECKPOINT_BLOCKS_MAX};
use crate::record::{
    self, HoldSet, KeyChanged, LOG_PREFIX, PackSize, PacksBundled, PointCommitted, RunAnnounced,
    VolumeOpened,
};
use prost::Message;

const OBJECT: &str = "log checkpoint";
const MAGIC: [u8; 4] = *b"TGLC";
const VERSION: u8 = 1;
const CONTEXT: &str = "tidegate 1 log checkpoint block";
const NAME: &str = "checkpoint-";
const SIGNED_PREFIX: &[u8] = b"tidegate 1 checkpoint";
const FIXED_BYTES: usize = 4 + 1 + 8 + 32 + 32 + Certificate::BYTES + 4;
const TABLE_ENTRY_BYTES: usize = 4 + 32;
const SIGNATURE_BYTES: usize = 64;

/// Most bytes that a front can take: enough to fetch to be sure to have it.
pub const FRONT_BYTES_MAX: usize =
    FIXED_BYTES + CHECKPOINT_BLOCKS_MAX as usize * TABLE_ENTRY_BYTES + SIGNATURE_BYTES;

/// Where the checkpoint of record `number` stands.
pub fn object_key(number: u64) -> String {
    format!("{LOG_PREFIX}{NAME}{number:020}")
}

/// The number of the checkpoint that stands at `key`.
pub fn number_of(key: &str) -> Option<u64> {
    let digits = key.strip_prefix(LOG_PREFIX)?.strip_prefix(NAME)?;
    record::number_of(&format!("{LOG_PREFIX}{digits}"))
}

/// Part of a repository's state. A reader adds up all blocks.
#[derive(Clone, PartialEq, Message)]
pub struct Block {
    /// Live points, with the number of the record that committed each.
    #[prost(message, repeated, tag = "1")]
    pub points: Vec<NumberedPoint>,
    /// Index segments, but for bad ones.
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
    /// Index segments found bad: nobody reads them, and who has not yet done so looks for what they named.
    #[prost(bytes = "vec", repeated, tag = "11")]
    pub bad_segments: Vec<Vec<u8>>,
    /// Bundles, in the order of their records.
    #[prost(message, repeated, tag = "12")]
    pub bundles: Vec<PacksBundled>,
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

impl Block {
    /// The rules that each part had to keep as a record.
    fn check(&self) -> Result<(), FormatError> {
        for numbered in &self.points {
            match &numbered.point {
                Some(point) => point.check()?,
                None => {
                    return Err(FormatError::Message {
                        object: OBJECT,
                        detail: "a point is missing from its entry".to_owned(),
                    });
                }
            }
        }
        record::segment_ids(&self.segments)?;
        self.runs.iter().try_for_each(RunAnnounced::check)?;
        self.holds.iter().try_for_each(HoldSet::check)?;
        record::pack_ids(&self.condemned)?;
        record::pack_ids(&self.bad)?;
        record::segment_ids(&self.bad_segments)?;
        self.keys.iter().try_for_each(KeyChanged::check)?;
        self.volumes.iter().try_for_each(VolumeOpened::check)?;
        record::pack_ids(&self.swept)?;
        self.bundles.iter().try_for_each(PacksBundled::check)?;
        self.tree_packs.iter().try_for_each(PackSize::check)
    }
}

/// Encodes a checkpoint of the state after record `number`. `salt` is drawn at random for this very
/// checkpoint and never used again: it yields the key. Maintenance and restore level only.
pub fn encode(
    number: u64,
    hash: RecordHash,
    blocks: &[Block],
    salt: [u8; 32],
    keys: &Keys,
) -> Result<Vec<u8>, FormatError> {
    may_sign(keys.level())?;
    if blocks.len() > CHECKPOINT_BLOCKS_MAX as usize {
        return Err(out_of_range("block count", blocks.len() as u64));
    }
    let mut out = MAGIC.to_vec();
    out.push(VERSION);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&hash.0);
    out.extend_from_slice(&salt);
    out.extend_from_slice(&keys.identity().certificate.encode());
    out.extend_from_slice(&length_u32(blocks.len()).to_le_bytes());
    let fixed = out.clone();
    let key = keys.metadata_seal_key(CONTEXT, &salt);
    let mut sealed = Vec::new();
    for (ordinal, block) in (0..).zip(blocks) {
        block.check()?;
        let length = block.encoded_len();
        if length > CHECKPOINT_BLOCK_BYTES_MAX as usize {
            return Err(out_of_range("block length", length as u64));
        }
        let from = sealed.len();
        sealed.append(&mut block.encode_to_vec());
        key.seal_tail(ordinal, &fixed, &mut sealed, from);
        let stored = &sealed[from..];
        out.extend_from_slice(&length_u32(stored.len()).to_le_bytes());
        out.extend_from_slice(blake3::hash(stored).as_bytes());
    }
    let signature = keys.identity().signing.sign(&signed_bytes(&out));
    out.extend_from_slice(&signature);
    out.append(&mut sealed);
    Ok(out)
}

/// The signed part of a checkpoint: what it takes in, and the place and hash of every block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Front {
    /// The last record it takes in.
    pub number: u64,
    /// That record's hash.
    pub hash: RecordHash,
    /// Who signed it. Whether that key was revoked is for the caller to know.
    pub writer: Certificate,
    salt: [u8; 32],
    fixed: Vec<u8>,
    bytes: u64,
    table: Vec<(u32, [u8; 32])>,
}

impl Front {
    /// Decodes what stands at the beginning of `bytes`, which may go on; checks certificate,
    /// signature and right.
    pub fn decode(bytes: &[u8], keys: &Keys) -> Result<Self, FormatError> {
        let mut reader = Reader::new(OBJECT, bytes);
        reader.magic(MAGIC)?;
        let version = reader.u8()?;
        let number = reader.u64()?;
        let hash = RecordHash(reader.array()?);
        let salt = reader.array()?;
        let writer = Certificate::decode(&reader.array()?)?;
        let count = reader.u32()?;
        if count > CHECKPOINT_BLOCKS_MAX {
            return Err(reader.range("block count", count.into()));
        }
        let mut table = Vec::with_capacity(count as usize);
        for _ in 0..count {
            table.push((reader.u32()?, reader.array()?));
        }
        let signed = reader.position();
        let signature: [u8; SIGNATURE_BYTES] = reader.array()?;
        writer.verify(keys.root_public(), keys.repository())?;
        writer
            .public
            .verify(OBJECT, &signed_bytes(&bytes[..signed]), &signature)?;
        Reader::new(OBJECT, &[version]).version(VERSION)?;
        may_sign(writer.level)?;
        let block_bytes_max = CHECKPOINT_BLOCK_BYTES_MAX + length_u32(TAG_BYTES);
        if let Some((length, _)) = table.iter().find(|(length, _)| *length > block_bytes_max) {
            return Err(out_of_range("block length", (*length).into()));
        }
        Ok(Self {
            number,
            hash,
            writer,
            salt,
            fixed: bytes[..FIXED_BYTES].to_vec(),
            bytes: reader.position() as u64,
            table,
        })
    }

    /// Where the blocks lie in the object, in order.
    pub fn block_ranges(&self) -> impl Iterator<Item = std::ops::Range<u64>> {
        let mut start = self.bytes;
        self.table.iter().map(move |(length, _)| {
            let range = start..start + u64::from(*length);
            start = range.end;
            range
        })
    }

    /// Length of the whole object in bytes.
    pub fn object_bytes(&self) -> u64 {
        let blocks = self.table.iter().map(|(length, _)| u64::from(*length));
        self.bytes + blocks.sum::<u64>()
    }

    /// Checks and opens one block, as it stands at its place of [`Self::block_ranges`].
    pub fn open_block(
        &self,
        ordinal: u32,
        stored: &[u8],
        keys: &Keys,
    ) -> Result<Block, FormatError> {
        let Some((length, hash)) = self.table.get(ordinal as usize) else {
            return Err(out_of_range("block", ordinal.into()));
        };
        if stored.len() != *length as usize {
            return Err(out_of_range("block length", stored.len() as u64));
        }
        let found = blake3::hash(stored);
        if found != *hash {
            return Err(FormatError::Hash {
                object: OBJECT,
                expected: hex::encode(hash),
                found: found.to_hex().to_string(),
            });
        }
        let key = keys.metadata_seal_key(CONTEXT, &self.salt);
        let plain = key.open(OBJECT, ordinal, &self.fixed, stored)?;
        let block: Block = message(OBJECT, &plain)?;
        block.check()?;
        Ok(block)
    }
}

/// A whole checkpoint in memory: front checked, blocks opened one at a time.
#[derive(Debug)]
pub struct Checkpoint<'a> {
    /// The last record it takes in.
    pub number: u64,
    /// That record's hash.
    pub hash: RecordHash,
    /// The signed part.
    pub front: Front,
    blocks: Vec<&'a [u8]>,
}

impl<'a> Checkpoint<'a> {
    /// Decodes and checks certificate, signature, right and length.
    pub fn decode(bytes: &'a [u8], keys: &Keys) -> Result<Self, FormatError> {
        let front = Front::decode(bytes, keys)?;
        let mut reader = Reader::new(OBJECT, bytes);
        // At most `FRONT_BYTES_MAX`, and there: it has just been read.
        reader.take(usize::try_from(front.bytes).unwrap_or(usize::MAX))?;
        let mut blocks = Vec::with_capacity(front.table.len());
        for (length, _) in &front.table {
            blocks.push(reader.take(*length as usize)?);
        }
        reader.end()?;
        Ok(Self {
            number: front.number,
            hash: front.hash,
            front,
            blocks,
        })
    }

    /// Checks and opens the blocks, one at a time.
    pub fn blocks(&self, keys: &Keys) -> impl Iterator<Item = Result<Block, FormatError>> {
        (0..)
            .zip(&self.blocks)
            .map(move |(ordinal, stored)| self.front.open_block(ordinal, stored, keys))
    }
}

fn signed_bytes(front: &[u8]) -> Vec<u8> {
    [SIGNED_PREFIX, front].concat()
}

fn out_of_range(field: &'static str, found: u64) -> FormatError {
    FormatError::Range {
        object: OBJECT,
        field,
        found,
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

#[cfg(test)]
mod tests {
    //! Checkpoints that a certified holder has signed, whatever is in them.
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::ids::RepositoryId;
    use crate::keys::{RepositorySecret, Secret};
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn keys() -> Keys {
        let secret = RepositorySecret(Secret([1; 32]));
        secret.issue(
            Level::Maintenance,
            RepositoryId([2; 16]),
            Secret([3; 32]),
            0,
        )
    }

    /// Signs any bytes as blocks; `claim` changes what the table says of each length.
    fn sign(keys: &Keys, blocks: &[Vec<u8>], claim: impl Fn(u32) -> u32) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.push(VERSION);
        out.extend_from_slice(&[7; 8 + 32]);
        out.extend_from_slice(&[8; 32]);
        out.extend_from_slice(&keys.identity().certificate.encode());
        out.extend_from_slice(&length_u32(blocks.len()).to_le_bytes());
        let fixed = out.clone();
        let key = keys.metadata_seal_key(CONTEXT, &[8; 32]);
        let mut sealed = Vec::new();
        for (ordinal, block) in (0..).zip(blocks) {
            let block = key.seal(ordinal, &fixed, block);
            out.extend_from_slice(&claim(length_u32(block.len())).to_le_bytes());
            out.extend_from_slice(blake3::hash(&block).as_bytes());
            sealed.extend(block);
        }
        let signature = keys.identity().signing.sign(&signed_bytes(&out));
        out.extend_from_slice(&signature);
        out.extend(sealed);
        out
    }

    fn read(bytes: &[u8], keys: &Keys) -> Result<Vec<Block>, FormatError> {
        let checkpoint = Checkpoint::decode(bytes, keys)?;
        checkpoint.blocks(keys).collect()
    }

    #[test]
    fn signed_checkpoints_are_checked_all_the_same() {
        let keys = keys();
        let sound = Block {
            swept: vec![vec![9; 32]],
            ..Block::default()
        };
        let bytes = sign(&keys, &[sound.encode_to_vec()], |length| length);
        assert_eq!(read(&bytes, &keys), Ok(vec![sound.clone()]));
        for claim in [0, 1, 15, u32::MAX] {
            let bytes = sign(&keys, &[sound.encode_to_vec()], |_| claim);
            assert!(read(&bytes, &keys).is_err(), "{claim}");
        }
        let nameless = Block {
            swept: vec![Vec::new()],
            ..Block::default()
        };
        let pointless = Block {
            points: vec![NumberedPoint::default()],
            ..Block::default()
        };
        for broken in [nameless, pointless] {
            let bytes = sign(&keys, &[broken.encode_to_vec()], |length| length);
            assert!(read(&bytes, &keys).is_err());
            assert!(encode(1, RecordHash::NONE, &[broken], [0; 32], &keys).is_err());
        }
        // More blocks than there may be, and a count that no object has room for.
        let many = vec![Vec::new(); CHECKPOINT_BLOCKS_MAX as usize + 1];
        assert!(read(&sign(&keys, &many, |length| length), &keys).is_err());
        let many = vec![Block::default(); CHECKPOINT_BLOCKS_MAX as usize + 1];
        assert!(encode(1, RecordHash::NONE, &many, [0; 32], &keys).is_err());
        let most = vec![Block::default(); CHECKPOINT_BLOCKS_MAX as usize];
        let bytes = encode(1, RecordHash::NONE, &most, [0; 32], &keys).unwrap();
        assert_eq!(
            read(&bytes, &keys).unwrap().len(),
            CHECKPOINT_BLOCKS_MAX as usize
        );
        let front = Front::decode(&bytes[..FRONT_BYTES_MAX], &keys).unwrap();
        assert_eq!(front.object_bytes(), bytes.len() as u64);
    }

    #[test]
    fn blocks_do_not_change_places() {
        let keys = keys();
        let block = |tag| Block {
            swept: vec![vec![tag; 32]],
            ..Block::default()
        };
        let bytes = encode(1, RecordHash::NONE, &[block(1), block(2)], [0; 32], &keys).unwrap();
        let front = Front::decode(&bytes, &keys).unwrap();
        let stored: Vec<&[u8]> = front
            .block_ranges()
            .map(|range| {
                &bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
            })
            .collect();
        assert_eq!(front.open_block(1, stored[1], &keys), Ok(block(2)));
        assert!(front.open_block(0, stored[1], &keys).is_err());
        assert!(front.open_block(2, stored[1], &keys).is_err());
        assert!(front.open_block(1, &stored[1][1..], &keys).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn signed_nonsense_is_refused_or_sound(blocks in vec(vec(any::<u8>(), 0..60), 0..3)) {
            let keys = keys();
            if let Ok(blocks) = read(&sign(&keys, &blocks, |length| length), &keys) {
                prop_assert!(encode(1, RecordHash::NONE, &blocks, [0; 32], &keys).is_ok());
            }
        }
    }
}
