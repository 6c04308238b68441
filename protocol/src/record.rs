//! Log records: the only truth about order.
//!
//! ```text
//! record = "TGLR" | version u8 | kind u16 | number u64 | hash of the record before 32
//!          | time u64 (Unix, nanoseconds) | nonce 32 | certificate 121 | body length u32
//!          | body: AES-256-GCM(message, nonce 0, associated data = all before) | tag
//!          | Ed25519 signature 64 over all before
//! ```
//!
//! A record is appended by a create-only PUT of the next number. The chain and the signatures are
//! checked without keys; the body is sealed under the metadata key. A record whose signature does
//! not hold, whose kind its signer's level may not append, whose number is not that of its place, or
//! whose body does not open or breaks a rule, is **void**: every reader skips it, but it keeps its
//! number and the next record is chained to its bytes. Two things stop a reader instead: a sound
//! record that does not continue the one before it (one of the two was replaced), and a record
//! signed as it should be but of a version or kind that this program does not know
//! ([`FormatError::needs_newer_program`]).
//!
//! The body's key is derived from the metadata key and the hash of all that stands before the body:
//! a writer that loses the race for a number and encodes again seals under another key, even where
//! it keeps its nonce.

mod body;

pub use body::{
    ChunksRelocated, Consistency, Disk, Evidence, HoldLifted, HoldSet, IndexMerged, KeyChanged,
    PackSize, PacksBundled, PacksCondemned, PacksFoundBad, PacksSwept, PointCommitted,
    PointExpired, Role, RunAnnounced, StoredPageRef, Together, Totals, Tracking, VolumeOpened,
    pack_ids, point_id, point_ids, run_id, segment_ids,
};

use crate::aead::SealKey;
use crate::codec::{Reader, at_most, length_u32, message};
use crate::error::FormatError;
use crate::ids::{RecordHash, RepositoryId};
use crate::keys::{Certificate, Keys, Level, VerifyingKey};
use crate::limits::RECORD_BYTES_MAX;
use prost::Message;

const OBJECT: &str = "log record";
const MAGIC: [u8; 4] = *b"TGLR";
const VERSION: u8 = 1;
const CONTEXT: &str = "tidegate 1 log record body";
const SIGNATURE_BYTES: usize = 64;

/// Where records and checkpoints stand.
pub const LOG_PREFIX: &str = "log/";

/// Where record `number` stands. Twenty digits: names sort as numbers do.
pub fn object_key(number: u64) -> String {
    format!("{LOG_PREFIX}{number:020}")
}

/// The number of the record that stands at `key`.
pub fn number_of(key: &str) -> Option<u64> {
    let digits = key.strip_prefix(LOG_PREFIX)?;
    let plain = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = plain.then(|| digits.parse().ok()).flatten();
    number.filter(|number| *number >= FIRST_NUMBER)
}

/// The number of the first record.
pub const FIRST_NUMBER: u64 = 1;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $tag:literal, $word:literal, [$($level:ident),+];)+) => {
        /// What a record says. The tags are for ever.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Kind {
            $($(#[$doc])* $name,)+
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The tag in stored records.
            pub const fn tag(self) -> u16 {
                match self {
                    $(Self::$name => $tag,)+
                }
            }

            /// The kind's name for people and audit output.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)+
                }
            }

            const fn action(self) -> &'static str {
                match self {
                    $(Self::$name => concat!("append a record of the kind ", $word),)+
                }
            }

            /// Whether a key of that level may append this kind.
            pub const fn may_be_signed_by(self, level: Level) -> bool {
                match self {
                    $(Self::$name => matches!(level, $(Level::$level)|+),)+
                }
            }
        }

        /// A record's content, by kind.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(clippy::large_enum_variant, reason = "most are points, and few live at once")]
        pub enum Body {
            $($(#[$doc])* $name($name),)+
        }

        impl Body {
            /// The kind.
            pub const fn kind(&self) -> Kind {
                match self {
                    $(Self::$name(_) => Kind::$name,)+
                }
            }

            /// Checks all that can be checked without the log.
            fn check(&self) -> Result<(), FormatError> {
                match self {
                    $(Self::$name(body) => body.check(),)+
                }
            }

            fn encode(&self) -> Vec<u8> {
                match self {
                    $(Self::$name(body) => body.encode_to_vec(),)+
                }
            }

            fn decode(kind: Kind, bytes: &[u8]) -> Result<Self, FormatError> {
                Ok(match kind {
                    $(Kind::$name => Self::$name(message(OBJECT, bytes)?),)+
                })
            }
        }
    };
}

kinds! {
    /// A recovery point exists.
    PointCommitted = 1, "point committed", [Host, Restore];
    /// Recovery points are given up.
    PointExpired = 2, "point expired", [Maintenance, Restore];
    /// Recovery points must not be given up.
    HoldSet = 3, "hold set", [Maintenance, Restore];
    /// A hold ends.
    HoldLifted = 4, "hold lifted", [Maintenance, Restore];
    /// Packs that no live point needs: writers stop deduplicating against them.
    PacksCondemned = 5, "packs condemned", [Maintenance, Restore];
    /// Condemned packs that are deleted from now on, or rescued.
    PacksSwept = 6, "packs swept", [Maintenance, Restore];
    /// Chunks have a new place; the old packs can be condemned.
    ChunksRelocated = 7, "chunks relocated", [Restore];
    /// Packs that are missing or do not hash to their name: their chunks are uploaded anew.
    PacksFoundBad = 8, "packs found bad", [Host, Maintenance, Restore];
    /// Index segments were replaced by others of the same content.
    IndexMerged = 9, "index merged", [Maintenance, Restore];
    /// A writable volume was opened: older epochs are fenced.
    VolumeOpened = 10, "volume opened", [Restore];
    /// A signing key was certified or revoked, or a slot was made or removed.
    KeyChanged = 11, "key changed", [Restore];
    /// What a drill, a verify or a scrub found.
    Evidence = 12, "evidence", [Maintenance, Restore];
    /// Segments of a run that is still under way: prune leaves their packs alone.
    RunAnnounced = 13, "run announced", [Host, Maintenance, Restore];
    /// Packs lie in another object, one after the other: their own objects can be deleted.
    PacksBundled = 14, "packs bundled", [Maintenance, Restore];
}

impl Kind {
    /// The kind with that tag.
    pub fn from_tag(tag: u16) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.tag() == tag)
    }
}

/// What the next record is chained to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Number of the last record; 0 in an empty log.
    pub number: u64,
    /// Hash of its stored bytes.
    pub hash: RecordHash,
}

impl Head {
    /// The head of an empty log.
    pub const EMPTY: Self = Self {
        number: FIRST_NUMBER - 1,
        hash: RecordHash::NONE,
    };
}

/// Encodes the record that follows `head`. `nonce` is drawn at random for this very record: it
/// goes into the body's key, and tells a writer whose answer was lost its own record from another's.
/// Fails where a reader would hold the record void: a kind that these keys may not append, a body
/// that breaks a rule, or one that is too large.
pub fn encode(
    body: &Body,
    head: &Head,
    time_unix_ns: u64,
    nonce: [u8; 32],
    keys: &Keys,
) -> Result<Vec<u8>, FormatError> {
    let identity = keys.identity();
    check_right(body.kind(), keys.level())?;
    body.check()?;
    let number = head
        .number
        .checked_add(1)
        .ok_or_else(|| Reader::new(OBJECT, &[]).range("number", head.number))?;
    let plain = body.encode();
    let mut out = MAGIC.to_vec();
    out.push(VERSION);
    out.extend_from_slice(&body.kind().tag().to_le_bytes());
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&head.hash.0);
    out.extend_from_slice(&time_unix_ns.to_le_bytes());
    out.extend_from_slice(&nonce);
    out.extend_from_slice(&identity.certificate.encode());
    out.extend_from_slice(&length_u32(plain.len() + crate::aead::TAG_BYTES).to_le_bytes());
    let sealed = body_key(keys, &out).seal(0, &out, &plain);
    out.extend_from_slice(&sealed);
    let signature = identity.signing.sign(&out);
    out.extend_from_slice(&signature);
    at_most(OBJECT, &out, RECORD_BYTES_MAX.into())?;
    Ok(out)
}

fn body_key(keys: &Keys, front: &[u8]) -> SealKey {
    keys.metadata_seal_key(CONTEXT, blake3::hash(front).as_bytes())
}

fn check_right(kind: Kind, level: Level) -> Result<(), FormatError> {
    if kind.may_be_signed_by(level) {
        return Ok(());
    }
    Err(FormatError::Right {
        level: level.as_str(),
        action: kind.action(),
    })
}

/// A record's plain part, checked without keys but for the root's public half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What the record says.
    pub kind: Kind,
    /// Its number.
    pub number: u64,
    /// The hash of the record before it.
    pub previous: RecordHash,
    /// When it was written, by the writer's clock: for people, never for decisions of safety.
    pub time_unix_ns: u64,
    /// Drawn at random by its writer.
    pub nonce: [u8; 32],
    /// Who wrote it.
    pub writer: Certificate,
    body: std::ops::Range<usize>,
}

impl Header {
    /// Decodes; checks certificate, signature and right, but not the chain: a reader compares
    /// [`Self::number`] and [`Self::previous`] with its own head. An error means a void record,
    /// unless it says [`FormatError::needs_newer_program`].
    pub fn decode(
        bytes: &[u8],
        root: &VerifyingKey,
        repository: RepositoryId,
    ) -> Result<Self, FormatError> {
        let signed = Signed::decode(bytes, root, repository)?;
        // Only now, so that nobody without a certified key can make readers ask for an upgrade.
        Reader::new(OBJECT, &[signed.version]).version(VERSION)?;
        let kind = Kind::from_tag(signed.kind).ok_or_else(|| FormatError::Feature {
            object: OBJECT,
            feature: format!("record kind {}", signed.kind),
        })?;
        check_right(kind, signed.writer.level)?;
        Ok(Self {
            kind,
            number: signed.number,
            previous: signed.previous,
            time_unix_ns: signed.time_unix_ns,
            nonce: signed.nonce,
            writer: signed.writer,
            body: signed.body,
        })
    }

    /// Who signed a record, also one whose version or kind is not known: a reader that is told to
    /// upgrade ([`FormatError::needs_newer_program`]) asks first whether that key was revoked.
    pub fn writer_of(
        bytes: &[u8],
        root: &VerifyingKey,
        repository: RepositoryId,
    ) -> Result<Certificate, FormatError> {
        Signed::decode(bytes, root, repository).map(|signed| signed.writer)
    }

    /// Opens the body and checks all that can be checked in it. `bytes` is what the header was
    /// decoded from. An error means a void record.
    pub fn open_body(&self, bytes: &[u8], keys: &Keys) -> Result<Body, FormatError> {
        let (front, sealed) = match (bytes.get(..self.body.start), bytes.get(self.body.clone())) {
            (Some(front), Some(sealed)) => (front, sealed),
            _ => return Err(Reader::new(OBJECT, bytes).range("length", bytes.len() as u64)),
        };
        let plain = body_key(keys, front).open(OBJECT, 0, front, sealed)?;
        let body = Body::decode(self.kind, &plain)?;
        body.check()?;
        Ok(body)
    }
}

/// The parts of a record under a sound certificate and signature. This layout holds for every
/// version under this magic.
struct Signed {
    version: u8,
    kind: u16,
    number: u64,
    previous: RecordHash,
    time_unix_ns: u64,
    nonce: [u8; 32],
    writer: Certificate,
    body: std::ops::Range<usize>,
}

impl Signed {
    fn decode(
        bytes: &[u8],
        root: &VerifyingKey,
        repository: RepositoryId,
    ) -> Result<Self, FormatError> {
        at_most(OBJECT, bytes, RECORD_BYTES_MAX.into())?;
        let mut reader = Reader::new(OBJECT, bytes);
        reader.magic(MAGIC)?;
        let version = reader.u8()?;
        let kind = reader.u16()?;
        let number = reader.u64()?;
        let previous = RecordHash(reader.array()?);
        let time_unix_ns = reader.u64()?;
        let nonce = reader.array()?;
        let writer = Certificate::decode(&reader.array()?)?;
        let length = reader.u32()? as usize;
        let start = reader.position();
        reader.take(length)?;
        let body = start..reader.position();
        let signature: [u8; SIGNATURE_BYTES] = reader.array()?;
        reader.end()?;
        writer.verify(root, repository)?;
        writer
            .public
            .verify(OBJECT, &bytes[..body.end], &signature)?;
        Ok(Self {
            version,
            kind,
            number,
            previous,
            time_unix_ns,
            nonce,
            writer,
            body,
        })
    }
}

#[cfg(test)]
mod tests;
