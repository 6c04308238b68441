//! The descriptor: the object `repository`, written once, that says what this repository is.
//!
//! Create-only and signed by the root key. Whoever holds a key knows the root's public half, so a
//! descriptor put in its place by somebody else is found out.

use crate::codec::{Reader, at_most, fixed, length_u32, message};
use crate::error::FormatError;
use crate::ids::RepositoryId;
use crate::keys::{Keys, SealPublicKey, SigningKey, VerifyingKey};
use crate::limits::{BLOCK_BYTES, CHUNK_BYTES_MAX, SMALL_OBJECT_BYTES_MAX};
use prost::Message;

/// Where the descriptor stands.
pub const OBJECT_KEY: &str = "repository";

/// The newest format version that this program reads and the one it writes.
pub const FORMAT_VERSION: u32 = 1;

const OBJECT: &str = "repository descriptor";
const MAGIC: [u8; 4] = *b"TGRD";
const VERSION: u8 = 1;

/// Features that this program knows. A descriptor that names another one is refused.
const FEATURES_KNOWN: [&str; 0] = [];

/// How disks are cut into chunks. Belongs to the repository: two hosts must cut alike to share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkerParams {
    /// Content-defined, at block boundaries.
    BlockAligned {
        /// No cut by hash before this many bytes; a multiple of 4 KiB. Only holes, ends of files
        /// and the edges of ranges make shorter chunks.
        chunk_bytes_min: u32,
        /// Past the minimum, one cut by hash is expected in this many bytes; a power of two, from
        /// 4 KiB up, not above the maximum.
        chunk_bytes_avg: u32,
        /// A cut at this length at the latest; a multiple of 4 KiB, at most [`CHUNK_BYTES_MAX`].
        chunk_bytes_max: u32,
        /// With this many bytes in hand, a block whose last eight bytes are zero ends the chunk: it
        /// most likely is the tail of a file, so that chunks start where files start. A multiple of
        /// 4 KiB not above the maximum; 0 turns it off.
        eof_cut_bytes_min: u32,
    },
    /// Chunks of one size, for comparison and for guests that write in large fixed units. Only a
    /// chunk that is zero as a whole is a hole.
    Fixed {
        /// A power of two from 4 KiB to [`CHUNK_BYTES_MAX`].
        chunk_bytes: u32,
    },
}

impl ChunkerParams {
    /// Checks the bounds named at each field.
    pub fn validate(&self) -> Result<(), FormatError> {
        let check = |field, bytes: u32, sound: bool| {
            if sound && bytes.is_multiple_of(BLOCK_BYTES) && bytes <= CHUNK_BYTES_MAX {
                return Ok(());
            }
            Err(FormatError::Range {
                object: OBJECT,
                field,
                found: bytes.into(),
            })
        };
        match *self {
            Self::BlockAligned {
                chunk_bytes_min: min,
                chunk_bytes_avg: avg,
                chunk_bytes_max: max,
                eof_cut_bytes_min: eof,
            } => {
                check("largest chunk size", max, max >= BLOCK_BYTES)?;
                check("least chunk size", min, min >= BLOCK_BYTES && min <= max)?;
                let avg_sound = avg >= BLOCK_BYTES && avg <= max && avg.is_power_of_two();
                check("average chunk size", avg, avg_sound)?;
                check("least end-of-file cut", eof, eof <= max)
            }
            Self::Fixed { chunk_bytes } => {
                let sound = chunk_bytes >= BLOCK_BYTES && chunk_bytes.is_power_of_two();
                check("chunk size", chunk_bytes, sound)
            }
        }
    }

    /// The longest chunk these parameters can make, in bytes.
    pub const fn chunk_bytes_max(&self) -> u32 {
        match *self {
            Self::BlockAligned {
                chunk_bytes_max, ..
            } => chunk_bytes_max,
            Self::Fixed { chunk_bytes } => chunk_bytes,
        }
    }

    /// The shortest chunk these parameters cut, in bytes; the last one of a run may be shorter.
    pub const fn chunk_bytes_min(&self) -> u32 {
        match *self {
            Self::BlockAligned {
                chunk_bytes_min, ..
            } => chunk_bytes_min,
            Self::Fixed { chunk_bytes } => chunk_bytes,
        }
    }

    /// The smallest unit that is told apart as hole or data: a block, or a whole fixed chunk.
    pub const fn grain_bytes(&self) -> u64 {
        match *self {
            Self::BlockAligned { .. } => BLOCK_BYTES as u64,
            Self::Fixed { chunk_bytes } => chunk_bytes as u64,
        }
    }
}

/// What a repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Its name.
    pub repository: RepositoryId,
    /// When it was made, Unix time in nanoseconds.
    pub created_unix_ns: u64,
    /// How disks are cut.
    pub chunker: ChunkerParams,
    /// To whom disk content is sealed.
    pub data_public: SealPublicKey,
    /// Who certifies keys.
    pub root_public: VerifyingKey,
}

impl Descriptor {
    /// Encodes and signs with the root key.
    pub fn encode(&self, root: &SigningKey) -> Vec<u8> {
        let (block_aligned, fixed) = match self.chunker {
            ChunkerParams::BlockAligned {
                chunk_bytes_min,
                chunk_bytes_avg,
                chunk_bytes_max,
                eof_cut_bytes_min,
            } => (
                Some(BlockAlignedMessage {
                    chunk_bytes_min,
                    chunk_bytes_avg,
                    chunk_bytes_max,
                    eof_cut_bytes_min,
                }),
                None,
            ),
            ChunkerParams::Fixed { chunk_bytes } => (None, Some(FixedMessage { chunk_bytes })),
        };
        let body = DescriptorMessage {
            format_version: FORMAT_VERSION,
            features: Vec::new(),
            repository: self.repository.0.to_vec(),
            created_unix_ns: self.created_unix_ns,
            block_aligned,
            fixed,
            data_public: self.data_public.0.to_vec(),
            root_public: self.root_public.0.to_vec(),
        }
        .encode_to_vec();
        let mut out = MAGIC.to_vec();
        out.push(VERSION);
        out.extend_from_slice(&length_u32(body.len()).to_le_bytes());
        out.extend_from_slice(&body);
        let signature = root.sign(&out);
        out.extend_from_slice(&signature);
        out
    }

    /// Checks that this is the descriptor of the repository that `keys` belong to, and that both
    /// name the same root key and the same data key: content sealed to another data key could never
    /// be restored.
    pub fn check_keys(&self, keys: &Keys) -> Result<(), FormatError> {
        if self.repository != keys.repository() {
            return Err(FormatError::Foreign {
                object: "key",
                expected: self.repository.to_string(),
                found: keys.repository().to_string(),
            });
        }
        if self.root_public != *keys.root_public() || self.data_public != keys.data_public() {
            return Err(FormatError::Signature { object: OBJECT });
        }
        Ok(())
    }

    /// Decodes and checks the signature of the root key that the descriptor itself names: whoever
    /// has keys then asks [`Self::check_keys`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        at_most(OBJECT, bytes, SMALL_OBJECT_BYTES_MAX.into())?;
        let mut reader = Reader::new(OBJECT, bytes);
        reader.magic(MAGIC)?;
        reader.version(VERSION)?;
        let length = reader.u32()? as usize;
        let body = reader.take(length)?;
        let signed = reader.position();
        let signature: [u8; 64] = reader.array()?;
        reader.end()?;
        let body: DescriptorMessage = message(OBJECT, body)?;
        // Version and features come first: what a newer program signs may be anything else.
        if body.format_version == 0 || body.format_version > FORMAT_VERSION {
            return Err(FormatError::Version {
                object: OBJECT,
                found: body.format_version,
                supported: FORMAT_VERSION,
            });
        }
        if let Some(feature) = body
            .features
            .iter()
            .find(|feature| !FEATURES_KNOWN.contains(&feature.as_str()))
        {
            return Err(FormatError::Feature {
                object: OBJECT,
                feature: feature.clone(),
            });
        }
        let root_public = VerifyingKey(fixed(OBJECT, "root public key", &body.root_public)?);
        root_public.verify(OBJECT, &bytes[..signed], &signature)?;
        let chunker = match (body.block_aligned, body.fixed) {
            (Some(params), None) => ChunkerParams::BlockAligned {
                chunk_bytes_min: params.chunk_bytes_min,
                chunk_bytes_avg: params.chunk_bytes_avg,
                chunk_bytes_max: params.chunk_bytes_max,
                eof_cut_bytes_min: params.eof_cut_bytes_min,
            },
            (None, Some(params)) => ChunkerParams::Fixed {
                chunk_bytes: params.chunk_bytes,
            },
            _ => {
                return Err(FormatError::Message {
                    object: OBJECT,
                    detail: "it names not exactly one chunker".to_owned(),
                });
            }
        };
        chunker.validate()?;
        Ok(Self {
            repository: RepositoryId(fixed(OBJECT, "repository", &body.repository)?),
            created_unix_ns: body.created_unix_ns,
            chunker,
            data_public: SealPublicKey(fixed(OBJECT, "data public key", &body.data_public)?),
            root_public,
        })
    }
}

#[derive(Clone, PartialEq, Message)]
struct DescriptorMessage {
    #[prost(uint32, tag = "1")]
    format_version: u32,
    #[prost(string, repeated, tag = "2")]
    features: Vec<String>,
    #[prost(bytes = "vec", tag = "3")]
    repository: Vec<u8>,
    #[prost(fixed64, tag = "4")]
    created_unix_ns: u64,
    #[prost(message, optional, tag = "5")]
    block_aligned: Option<BlockAlignedMessage>,
    #[prost(message, optional, tag = "6")]
    fixed: Option<FixedMessage>,
    #[prost(bytes = "vec", tag = "7")]
    data_public: Vec<u8>,
    #[prost(bytes = "vec", tag = "8")]
    root_public: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct BlockAlignedMessage {
    #[prost(uint32, tag = "1")]
    chunk_bytes_min: u32,
    #[prost(uint32, tag = "2")]
    chunk_bytes_avg: u32,
    #[prost(uint32, tag = "3")]
    chunk_bytes_max: u32,
    #[prost(uint32, tag = "4")]
    eof_cut_bytes_min: u32,
}

#[derive(Clone, PartialEq, Message)]
struct FixedMessage {
    #[prost(uint32, tag = "1")]
    chunk_bytes: u32,
}
