//! The frames of the link between hosts and gateways, as `WIRE.md` has them.
//!
//! ```text
//! request = kind u8 | priority u8 | length u32 | message | body
//! answer  = status u8 | length u32 | message | body or parts
//! part    = length u32 | message
//! ```
//!
//! Heads have fixed sizes and messages stand behind their length, so a reader always knows how much
//! it may take before it takes it. What a body is follows from the kind; its bytes are not this
//! module's business. Decoders here read what strangers sent: they never panic, and allocate nothing
//! that the bytes at hand do not justify.

mod known;
mod message;

pub use known::{chunk_ids, decode_known, encode_known};
pub use message::{
    AppendRequest, DeleteRequest, FollowPart, FollowRequest, GetAnswer, GetRequest, HaveAnswer,
    HaveRequest, HelloAnswer, HelloRequest, JoinAnswer, JoinRequest, ListEntry, ListPart,
    ListRequest, Nothing, Problem, PutRequest, RenewAnswer, RenewRequest, SizeAnswer, SizeRequest,
    StatusAnswer, StatusRequest, WireMessage,
};

use crate::codec::Reader;
use crate::error::FormatError;
use crate::ids::{PackId, SegmentId, SlotId};
use crate::limits::{PACK_BYTES_MAX, RECORD_BYTES_MAX, SMALL_OBJECT_BYTES_MAX};
use crate::{checkpoint, descriptor, record};

/// The application protocol of the link, in TLS's sense (ALPN).
pub const ALPN: &[u8] = b"tidegate/1";

/// The application protocol by which a host without a certificate joins.
pub const ALPN_JOIN: &[u8] = b"tidegate-join/1";

/// Largest message of a request, an answer or a part.
pub const MESSAGE_BYTES_MAX: u32 = 1 << 20;

/// Most chunk ids in one *have*: half a gigabyte of disk, and an answer that fits a message.
pub const HAVE_IDS_MAX: usize = 16_384;

/// Longest key or prefix of an object, in bytes.
pub const KEY_BYTES_MAX: usize = 255;

/// Most entries in a part of a listing.
pub const LIST_ENTRIES_MAX: usize = 1000;

/// Largest object of one *put*.
pub const PUT_BYTES_MAX: u64 = PACK_BYTES_MAX as u64;

/// Most features in a hello.
pub const FEATURES_MAX: usize = 64;

macro_rules! tags {
    (
        $(#[$about:meta])* $type:ident;
        $($(#[$doc:meta])* $name:ident = $tag:literal, $word:literal;)+
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $type {
            $($(#[$doc])* $name,)+
        }

        impl $type {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The tag on the wire.
            pub const fn tag(self) -> u8 {
                match self {
                    $(Self::$name => $tag,)+
                }
            }

            /// The word for people, metrics and logs.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)+
                }
            }

            /// What has that tag, if this program knows it.
            pub const fn from_tag(tag: u8) -> Option<Self> {
                match tag {
                    $($tag => Some(Self::$name),)+
                    _ => None,
                }
            }
        }
    };
}

tags! {
    /// What a request asks. The tags are for ever.
    Kind;
    /// The first request of a connection: who speaks, and about which repository.
    Hello = 1, "hello";
    /// Which of these chunks are known, and where they lie.
    Have = 2, "have";
    /// Create an object.
    Put = 3, "put";
    /// Read an object or a range of it.
    Get = 4, "get";
    /// How large an object is.
    Size = 5, "size";
    /// Objects by the byte order of their keys.
    List = 6, "list";
    /// Append a record to the log.
    Append = 7, "append";
    /// The records of the log from a number on, those that are there and those that come.
    Follow = 8, "follow";
    /// Delete an object that the log has given up.
    Delete = 9, "delete";
    /// How the gateway is.
    Status = 10, "status";
    /// A new certificate before the present one expires.
    Renew = 11, "renew";
    /// A first certificate for a token; only by [`ALPN_JOIN`].
    Join = 12, "join";
}

/// Who goes first where several want the line. The tags are for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Priority {
    /// Somebody waits for a disk.
    Restore,
    /// A standby follows.
    Replication,
    /// All else.
    #[default]
    Backup,
}

impl Priority {
    /// The tag on the wire.
    pub const fn tag(self) -> u8 {
        match self {
            Self::Restore => 0,
            Self::Replication => 1,
            Self::Backup => 2,
        }
    }

    /// What it means; a tag that this program does not know comes last.
    pub const fn from_tag(tag: u8) -> Self {
        match tag {
            0 => Self::Restore,
            1 => Self::Replication,
            _ => Self::Backup,
        }
    }
}

tags! {
    /// What became of a request. The tags are for ever; one that this program does not know is a refusal.
    Status;
    /// Done, and durable where something was written.
    Ok = 0, "ok";
    /// There is an object by that name.
    Exists = 1, "exists";
    /// There is none.
    Missing = 2, "missing";
    /// The object ends before the range does, or is larger than asked for.
    Range = 3, "range";
    /// The host has no right to that.
    Denied = 4, "denied";
    /// The host's certificate was revoked.
    Revoked = 5, "revoked";
    /// The request breaks a rule of the wire.
    Malformed = 6, "malformed";
    /// A kind or feature that the gateway does not know.
    Unknown = 7, "unknown";
    /// Beyond a limit.
    Large = 8, "large";
    /// The object is not the one of its name, or the record does not hold.
    Hash = 9, "hash";
    /// The record's number does not follow the head of the log.
    Behind = 10, "behind";
    /// Too much under way: later, or elsewhere.
    Busy = 11, "busy";
    /// The store does not answer, or refuses for now.
    Store = 12, "store";
    /// The store refuses for good.
    Refused = 13, "refused";
    /// The gateway is being stopped: elsewhere.
    Leaving = 14, "leaving";
    /// No answer yet: there is room for the request's body, and it is waited for.
    Ready = 15, "ready";
}

/// Why a stream was reset or a connection closed, as QUIC's application error code. The tags are for
/// ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Close {
    /// Done.
    Done,
    /// Its side wants no more of it.
    Stopped,
    /// The peer broke a rule of the wire.
    Malformed,
    /// The peer let too much time pass.
    Slow,
    /// The gateway is being stopped.
    Leaving,
    /// The peer may not be here.
    Denied,
    /// The host's certificate was revoked.
    Revoked,
}

impl Close {
    /// The code on the wire.
    pub const fn code(self) -> u32 {
        match self {
            Self::Done => 0,
            Self::Stopped => 1,
            Self::Malformed => 2,
            Self::Slow => 3,
            Self::Leaving => 4,
            Self::Denied => 5,
            Self::Revoked => 6,
        }
    }

    /// What a code means, if this program knows it.
    pub const fn from_code(code: u64) -> Option<Self> {
        Some(match code {
            0 => Self::Done,
            1 => Self::Stopped,
            2 => Self::Malformed,
            3 => Self::Slow,
            4 => Self::Leaving,
            5 => Self::Denied,
            6 => Self::Revoked,
            _ => return None,
        })
    }
}

/// What stands before a request's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHead {
    /// The kind's tag: one that is not known is answered by [`Status::Unknown`].
    pub kind_tag: u8,
    /// Who goes first.
    pub priority: Priority,
    /// How many bytes of message follow.
    pub message_bytes: u32,
}

impl RequestHead {
    /// Its size on the wire.
    pub const BYTES: usize = 6;

    /// Reads it. A length beyond [`MESSAGE_BYTES_MAX`] is refused.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<Self, FormatError> {
        let mut reader = Reader::new("request", bytes);
        let kind_tag = reader.u8()?;
        let priority = Priority::from_tag(reader.u8()?);
        let message_bytes = message_length(&mut reader)?;
        Ok(Self {
            kind_tag,
            priority,
            message_bytes,
        })
    }

    /// The kind, if this program knows it.
    pub const fn kind(&self) -> Option<Kind> {
        Kind::from_tag(self.kind_tag)
    }
}

/// What stands before an answer's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerHead {
    /// What became of the request.
    pub status: Status,
    /// How many bytes of message follow.
    pub message_bytes: u32,
}

impl AnswerHead {
    /// Its size on the wire.
    pub const BYTES: usize = 5;

    /// Reads it. A length beyond [`MESSAGE_BYTES_MAX`] is refused.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<Self, FormatError> {
        let mut reader = Reader::new("answer", bytes);
        let status = Status::from_tag(reader.u8()?).unwrap_or(Status::Refused);
        let message_bytes = message_length(&mut reader)?;
        Ok(Self {
            status,
            message_bytes,
        })
    }
}

/// The size of what stands before a part's message.
pub const PART_HEAD_BYTES: usize = 4;

/// Reads what stands before a part's message: how many bytes of it follow.
pub fn decode_part_head(bytes: &[u8; PART_HEAD_BYTES]) -> Result<u32, FormatError> {
    message_length(&mut Reader::new("part", bytes))
}

fn message_length(reader: &mut Reader<'_>) -> Result<u32, FormatError> {
    let length = reader.u32()?;
    match length {
        0..=MESSAGE_BYTES_MAX => Ok(length),
        _ => Err(reader.range("message length", length.into())),
    }
}

/// A request up to its body. Fails where a reader would refuse it.
pub fn encode_request<M: WireMessage>(
    kind: Kind,
    priority: Priority,
    message: &M,
) -> Result<Vec<u8>, FormatError> {
    encode(&[kind.tag(), priority.tag()], message)
}

/// An answer up to its body. Fails where a reader would refuse it.
pub fn encode_answer<M: WireMessage>(status: Status, message: &M) -> Result<Vec<u8>, FormatError> {
    encode(&[status.tag()], message)
}

/// A part of an answer. Fails where a reader would refuse it.
pub fn encode_part<M: WireMessage>(message: &M) -> Result<Vec<u8>, FormatError> {
    encode(&[], message)
}

fn encode<M: WireMessage>(tags: &[u8], message: &M) -> Result<Vec<u8>, FormatError> {
    message.check()?;
    let length = message.encoded_len();
    let out_of_range = || FormatError::Range {
        object: M::NAME,
        field: "message length",
        found: length as u64,
    };
    let message_bytes = u32::try_from(length).map_err(|_| out_of_range())?;
    if message_bytes > MESSAGE_BYTES_MAX {
        return Err(out_of_range());
    }
    let mut out = Vec::with_capacity(tags.len() + 4 + length);
    out.extend_from_slice(tags);
    out.extend_from_slice(&message_bytes.to_le_bytes());
    out.extend_from_slice(&message.encode_to_vec());
    Ok(out)
}

/// What stands at a key of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// The repository's descriptor.
    Descriptor,
    /// A key slot.
    Slot(SlotId),
    /// A pack.
    Pack(PackId),
    /// An index segment.
    Segment(SegmentId),
    /// A log record, by its number.
    Record(u64),
    /// A checkpoint, by the number of the last record it knows.
    Checkpoint(u64),
}

impl Object {
    /// What stands at `key`; nothing that a repository knows, for all else.
    pub fn at(key: &str) -> Option<Self> {
        if key == descriptor::OBJECT_KEY {
            return Some(Self::Descriptor);
        }
        let named = SlotId::from_object_key(key)
            .map(Self::Slot)
            .or_else(|| PackId::from_object_key(key).map(Self::Pack))
            .or_else(|| SegmentId::from_object_key(key).map(Self::Segment))
            .or_else(|| record::number_of(key).map(Self::Record));
        named.or_else(|| checkpoint::number_of(key).map(Self::Checkpoint))
    }

    /// How large it can be where it comes by the wire.
    pub const fn bytes_max(self) -> u64 {
        match self {
            Self::Descriptor | Self::Slot(_) => SMALL_OBJECT_BYTES_MAX as u64,
            Self::Record(_) => RECORD_BYTES_MAX as u64,
            Self::Pack(_) | Self::Segment(_) | Self::Checkpoint(_) => PUT_BYTES_MAX,
        }
    }
}
