//! Log records: the only truth about order.
//!
//! ```text
//! record = "TGLR" | version u8 | kind u16 | number u64 | hash of the record before 32
//!          | time u64 (Unix, nanoseconds) | nonce 32 | certificate 121 | body length u32
//!          | body: AES-256-GCM(message, key from the nonce, associated data = all before) | tag
//!          | Ed25519 signature 64 over all before
//! ```
//!
//! A record is appended by a create-only PUT of the next number. The chain and the signatures are
//! checked without keys; the body is sealed under the metadata key. A record whose signature does
//! not hold, or whose kind its signer's level may not append, is **void**: every reader skips it,
//! but it keeps its number and the next record is chained to its bytes.

use crate::codec::{Reader, fixed, length_u32, message};
use crate::error::FormatError;
use crate::ids::{PackId, PageId, PointId, RecordHash, RunId, SegmentId};
use crate::keys::{Certificate, Keys, Level, VerifyingKey};
use crate::pack::Location;
use crate::page::PageRef;
use crate::{limits, page};
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
    plain.then(|| digits.parse().ok()).flatten()
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

            /// Whether a key of that level may append this kind.
            pub const fn may_be_signed_by(self, level: Level) -> bool {
                match self {
                    $(Self::$name => matches!(level, $(Level::$level)|+),)+
                }
            }
        }

        /// A record's content, by kind.
        #[derive(Debug, Clone, PartialEq)]
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
    RunAnnounced = 13, "run announced", [Host, Restore];
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
/// yields the body's key, and tells a writer whose answer was lost its own record from another's.
pub fn encode(
    body: &Body,
    head: &Head,
    time_unix_ns: u64,
    nonce: [u8; 32],
    keys: &Keys,
) -> Vec<u8> {
    let identity = keys.identity();
    let plain = body.encode();
    let mut out = MAGIC.to_vec();
    out.push(VERSION);
    out.extend_from_slice(&body.kind().tag().to_le_bytes());
    out.extend_from_slice(&(head.number + 1).to_le_bytes());
    out.extend_from_slice(&head.hash.0);
    out.extend_from_slice(&time_unix_ns.to_le_bytes());
    out.extend_from_slice(&nonce);
    out.extend_from_slice(&identity.certificate.encode());
    out.extend_from_slice(&length_u32(plain.len() + crate::aead::TAG_BYTES).to_le_bytes());
    let sealed = keys
        .metadata_seal_key(CONTEXT, &nonce)
        .seal(0, &out, &plain);
    out.extend_from_slice(&sealed);
    let signature = identity.signing.sign(&out);
    out.extend_from_slice(&signature);
    out
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
    /// [`Self::number`] and [`Self::previous`] with its own head. An error means a void record.
    pub fn decode(
        bytes: &[u8],
        root: &VerifyingKey,
        keys_repository: crate::RepositoryId,
    ) -> Result<Self, FormatError> {
        if bytes.len() > limits::RECORD_BYTES_MAX as usize {
            return Err(Reader::new(OBJECT, bytes).range("length", bytes.len() as u64));
        }
        let mut reader = Reader::new(OBJECT, bytes);
        reader.magic(MAGIC)?;
        reader.version(VERSION)?;
        let tag = reader.u16()?;
        let kind = Kind::from_tag(tag).ok_or_else(|| reader.tag("kind", tag.into()))?;
        let number = reader.u64()?;
        let previous = RecordHash(reader.array()?);
        let time_unix_ns = reader.u64()?;
        let nonce = reader.array()?;
        let writer = Certificate::decode(&reader.array()?)?;
        let length = reader.u32()? as usize;
        let start = reader.position();
        reader.take(length)?;
        let signed = reader.position();
        let signature: [u8; SIGNATURE_BYTES] = reader.array()?;
        reader.end()?;
        writer.verify(root, keys_repository)?;
        writer.public.verify(OBJECT, &bytes[..signed], &signature)?;
        if !kind.may_be_signed_by(writer.level) {
            return Err(FormatError::Right {
                level: writer.level.as_str(),
                action: kind.as_str(),
            });
        }
        Ok(Self {
            kind,
            number,
            previous,
            time_unix_ns,
            nonce,
            writer,
            body: start..signed,
        })
    }

    /// Opens the body. `bytes` is what the header was decoded from.
    pub fn open_body(&self, bytes: &[u8], keys: &Keys) -> Result<Body, FormatError> {
        let (front, sealed) = match (bytes.get(..self.body.start), bytes.get(self.body.clone())) {
            (Some(front), Some(sealed)) => (front, sealed),
            _ => return Err(Reader::new(OBJECT, bytes).range("length", bytes.len() as u64)),
        };
        let plain = keys
            .metadata_seal_key(CONTEXT, &self.nonce)
            .open(OBJECT, 0, front, sealed)?;
        Body::decode(self.kind, &plain)
    }
}

/// A recovery point exists.
#[derive(Clone, PartialEq, Message)]
pub struct PointCommitted {
    /// [`PointId`].
    #[prost(bytes = "vec", tag = "1")]
    pub point: Vec<u8>,
    /// The machine, as the operator names it.
    #[prost(string, tag = "2")]
    pub machine: String,
    /// The machine's disks at this point.
    #[prost(message, repeated, tag = "3")]
    pub disks: Vec<Disk>,
    /// The [`PointId`] it was compared with; empty for a first one.
    #[prost(bytes = "vec", tag = "4")]
    pub parent: Vec<u8>,
    /// A [`Consistency`] tag.
    #[prost(uint32, tag = "5")]
    pub consistency: u32,
    /// The moment of the disks that this point holds, Unix time in nanoseconds.
    #[prost(fixed64, tag = "6")]
    pub taken_unix_ns: u64,
    /// When the run was done, Unix time in nanoseconds.
    #[prost(fixed64, tag = "7")]
    pub finished_unix_ns: u64,
    /// [`SegmentId`]s that index this run's new chunks.
    #[prost(bytes = "vec", repeated, tag = "8")]
    pub segments: Vec<Vec<u8>>,
    /// The tree packs that this run wrote.
    #[prost(message, repeated, tag = "9")]
    pub tree_packs: Vec<PackSize>,
    /// The [`RunId`] that ends with this point.
    #[prost(bytes = "vec", tag = "10")]
    pub run: Vec<u8>,
    /// The host that wrote it, as it names itself.
    #[prost(string, tag = "11")]
    pub host: String,
    /// What the run moved.
    #[prost(message, optional, tag = "12")]
    pub totals: Option<Totals>,
}

/// What a run moved, in bytes unless said otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Totals {
    /// Sum of the disks' sizes.
    #[prost(uint64, tag = "1")]
    pub virtual_bytes: u64,
    /// Bytes that are not holes.
    #[prost(uint64, tag = "2")]
    pub allocated_bytes: u64,
    /// Bytes read from the source.
    #[prost(uint64, tag = "3")]
    pub read_bytes: u64,
    /// Bytes of chunks that the repository did not have.
    #[prost(uint64, tag = "4")]
    pub new_bytes: u64,
    /// Bytes uploaded.
    #[prost(uint64, tag = "5")]
    pub stored_bytes: u64,
    /// Chunks seen (a count).
    #[prost(uint64, tag = "6")]
    pub chunks: u64,
}

/// A disk of a recovery point.
#[derive(Clone, PartialEq, Message)]
pub struct Disk {
    /// Its name within the machine.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its size in bytes.
    #[prost(uint64, tag = "2")]
    pub size_bytes: u64,
    /// The root page; absent when the whole disk is hole.
    #[prost(message, optional, tag = "3")]
    pub root: Option<StoredPageRef>,
    /// The format of the image it was read from, for people.
    #[prost(string, tag = "4")]
    pub source_format: String,
}

impl Disk {
    /// The root page, checked, and the tree's levels.
    pub fn tree(&self) -> Result<(Option<PageRef>, u8), FormatError> {
        let levels = page::tree_levels(self.size_bytes).ok_or(FormatError::Range {
            object: OBJECT,
            field: "disk size",
            found: self.size_bytes,
        })?;
        let root = self.root.as_ref().map(StoredPageRef::decode).transpose()?;
        Ok((root, levels))
    }
}

/// A [`PageRef`] as stored.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct StoredPageRef {
    /// [`PageId`].
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    /// [`PackId`].
    #[prost(bytes = "vec", tag = "2")]
    pub pack: Vec<u8>,
    /// As in [`Location`].
    #[prost(uint32, tag = "3")]
    pub frame_offset: u32,
    /// As in [`Location`].
    #[prost(uint32, tag = "4")]
    pub frame_bytes: u32,
    /// As in [`Location`].
    #[prost(uint32, tag = "5")]
    pub offset_in_frame: u32,
    /// As in [`Location`].
    #[prost(uint32, tag = "6")]
    pub length: u32,
}

impl StoredPageRef {
    /// For storing.
    pub fn encode(page: &PageRef) -> Self {
        Self {
            id: page.id.0.to_vec(),
            pack: page.location.pack.0.to_vec(),
            frame_offset: page.location.frame_offset,
            frame_bytes: page.location.frame_bytes,
            offset_in_frame: page.location.offset_in_frame,
            length: page.location.length,
        }
    }

    /// Checked.
    pub fn decode(&self) -> Result<PageRef, FormatError> {
        let location = Location {
            pack: PackId(fixed(OBJECT, "pack", &self.pack)?),
            frame_offset: self.frame_offset,
            frame_bytes: self.frame_bytes,
            offset_in_frame: self.offset_in_frame,
            length: self.length,
        };
        location.check(OBJECT)?;
        Ok(PageRef {
            id: PageId(fixed(OBJECT, "page", &self.id)?),
            location,
        })
    }
}

/// A pack and its size.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PackSize {
    /// [`PackId`].
    #[prost(bytes = "vec", tag = "1")]
    pub pack: Vec<u8>,
    /// Size in bytes.
    #[prost(uint64, tag = "2")]
    pub bytes: u64,
}

/// What a point's disks are worth to the software on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Consistency {
    /// The image was not in use.
    Offline,
    /// As after a power cut.
    Crash,
    /// The guest had flushed and frozen its file systems.
    Application,
}

impl Consistency {
    /// The tag in stored records.
    pub const fn tag(self) -> u32 {
        match self {
            Self::Offline => 1,
            Self::Crash => 2,
            Self::Application => 3,
        }
    }

    /// The name for a tag.
    pub const fn name_of(tag: u32) -> &'static str {
        match tag {
            1 => "offline",
            2 => "crash",
            3 => "application",
            _ => "unknown",
        }
    }
}

/// Recovery points are given up.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PointExpired {
    /// [`PointId`]s.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub points: Vec<Vec<u8>>,
    /// Why, for the audit.
    #[prost(string, tag = "2")]
    pub reason: String,
}

/// Recovery points must not be given up.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct HoldSet {
    /// Name of the hold, 16 random bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub hold: Vec<u8>,
    /// [`PointId`]s.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub points: Vec<Vec<u8>>,
    /// Why, for the audit.
    #[prost(string, tag = "3")]
    pub reason: String,
    /// When it ends by itself, Unix time in nanoseconds; 0 never.
    #[prost(fixed64, tag = "4")]
    pub until_unix_ns: u64,
}

/// A hold ends.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct HoldLifted {
    /// Name of the hold.
    #[prost(bytes = "vec", tag = "1")]
    pub hold: Vec<u8>,
    /// Why, for the audit.
    #[prost(string, tag = "2")]
    pub reason: String,
}

/// Packs that no live point needs.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PacksCondemned {
    /// [`PackId`]s.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub packs: Vec<Vec<u8>>,
}

/// Condemned packs that are deleted from now on, or rescued.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PacksSwept {
    /// [`PackId`]s that are deleted after this record.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub packs: Vec<Vec<u8>>,
    /// [`PackId`]s that a newer point uses: condemned no longer.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub rescued: Vec<Vec<u8>>,
}

/// Chunks have a new place.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ChunksRelocated {
    /// [`SegmentId`]s that say where the chunks are now.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub segments: Vec<Vec<u8>>,
}

/// Packs that are missing or do not hash to their name.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PacksFoundBad {
    /// [`PackId`]s.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub packs: Vec<Vec<u8>>,
    /// What was found, for the audit.
    #[prost(string, tag = "2")]
    pub reason: String,
}

/// Index segments were replaced.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct IndexMerged {
    /// [`SegmentId`]s that are read no longer.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub removed: Vec<Vec<u8>>,
    /// [`SegmentId`]s that stand for them.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub added: Vec<Vec<u8>>,
}

/// A writable volume was opened.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct VolumeOpened {
    /// Name of the volume, 16 random bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub volume: Vec<u8>,
    /// Counts openings: an older epoch may not commit any more.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// The [`PointId`] it starts from.
    #[prost(bytes = "vec", tag = "3")]
    pub point: Vec<u8>,
    /// The machine its points belong to.
    #[prost(string, tag = "4")]
    pub machine: String,
}

/// A signing key was certified or revoked, or a slot was made or removed.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct KeyChanged {
    /// [`crate::ids::KeyId`].
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// The level's tag.
    #[prost(uint32, tag = "2")]
    pub level: u32,
    /// What the operator calls it.
    #[prost(string, tag = "3")]
    pub label: String,
    /// True when the key is void from the next record on.
    #[prost(bool, tag = "4")]
    pub revoked: bool,
    /// The [`crate::ids::SlotId`] that holds it; empty for a key file.
    #[prost(bytes = "vec", tag = "5")]
    pub slot: Vec<u8>,
}

/// What a drill, a verify or a scrub found.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Evidence {
    /// "verify", "scrub" or "drill".
    #[prost(string, tag = "1")]
    pub activity: String,
    /// [`PointId`]s concerned.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub points: Vec<Vec<u8>>,
    /// True when nothing was found wanting.
    #[prost(bool, tag = "3")]
    pub passed: bool,
    /// The report, as JSON.
    #[prost(string, tag = "4")]
    pub report: String,
}

/// Segments of a run that is still under way.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RunAnnounced {
    /// [`RunId`].
    #[prost(bytes = "vec", tag = "1")]
    pub run: Vec<u8>,
    /// The machine.
    #[prost(string, tag = "2")]
    pub machine: String,
    /// [`SegmentId`]s that have landed since the run's last announcement.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub segments: Vec<Vec<u8>>,
    /// True when the run ends without a point.
    #[prost(bool, tag = "4")]
    pub abandoned: bool,
}

macro_rules! id_list {
    ($(#[$doc:meta])* $name:ident, $id:ident) => {
        $(#[$doc])*
        pub fn $name(list: &[Vec<u8>]) -> Result<Vec<$id>, FormatError> {
            list.iter()
                .map(|bytes| fixed(OBJECT, stringify!($name), bytes).map($id))
                .collect()
        }
    };
}

id_list!(
    /// Pack names of a message, checked.
    pack_ids, PackId
);
id_list!(
    /// Segment names of a message, checked.
    segment_ids, SegmentId
);
id_list!(
    /// Point names of a message, checked.
    point_ids, PointId
);

/// A run's name of a message, checked.
pub fn run_id(bytes: &[u8]) -> Result<RunId, FormatError> {
    fixed(OBJECT, "run", bytes).map(RunId)
}

/// A point's name of a message, checked.
pub fn point_id(bytes: &[u8]) -> Result<PointId, FormatError> {
    fixed(OBJECT, "point", bytes).map(PointId)
}
