//! The messages: protobuf with tags written out. A field that is not known is passed over.

use super::{
    FEATURES_MAX, HAVE_IDS_MAX, KEY_BYTES_MAX, LIST_ENTRIES_MAX, MESSAGE_BYTES_MAX, PUT_BYTES_MAX,
};
use crate::codec::{self, at_most};
use crate::error::FormatError;
use crate::limits::{NAME_BYTES_MAX, RECORD_BYTES_MAX};
use prost::Message;

/// Largest certificate or certificate request, DER: some ten times what ours take.
const CERTIFICATE_BYTES_MAX: usize = 8 << 10;

/// Certificates of a chain.
const CHAIN_MAX: usize = 4;

/// Longest text of a problem, in bytes; more is cut off by whoever writes it.
pub(super) const PROBLEM_BYTES_MAX: usize = 4 << 10;

/// A message of the wire: what it is called in errors, and its rules.
pub trait WireMessage: Message + Default {
    /// What it is called in errors.
    const NAME: &'static str;

    /// Refuses what breaks a rule of the wire.
    fn check(&self) -> Result<(), FormatError>;

    /// Reads and checks it.
    fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        at_most(Self::NAME, bytes, MESSAGE_BYTES_MAX.into())?;
        let message: Self = codec::message(Self::NAME, bytes)?;
        message.check()?;
        Ok(message)
    }
}

fn length_at_most(
    object: &'static str,
    field: &'static str,
    found: usize,
    most: usize,
) -> Result<(), FormatError> {
    match found <= most {
        true => Ok(()),
        false => Err(out_of_range(object, field, found as u64)),
    }
}

const fn out_of_range(object: &'static str, field: &'static str, found: u64) -> FormatError {
    FormatError::Range {
        object,
        field,
        found,
    }
}

/// A key as the wire takes it: not empty, of plain characters. Whether anything stands there is
/// another question.
fn plain_key(object: &'static str, key: &str) -> Result<(), FormatError> {
    length_at_most(object, "key", key.len(), KEY_BYTES_MAX)?;
    let is_plain = key.split('/').all(|segment| {
        !segment.is_empty()
            && !segment.starts_with('.')
            && segment
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    });
    match is_plain {
        true => Ok(()),
        false => Err(FormatError::Message {
            object,
            detail: format!("{key:?} is no key"),
        }),
    }
}

fn plain_prefix(object: &'static str, prefix: &str) -> Result<(), FormatError> {
    match prefix {
        "" => Ok(()),
        _ => plain_key(object, prefix.strip_suffix('/').unwrap_or(prefix)),
    }
}

macro_rules! message {
    (
        $(#[$doc:meta])*
        $name:ident, $word:literal { $($(#[$meta:meta])* $field:ident: $type:ty,)* }
        $check:expr
    ) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Message)]
        pub struct $name {
            $($(#[$meta])* pub $field: $type,)*
        }

        impl WireMessage for $name {
            const NAME: &'static str = $word;

            fn check(&self) -> Result<(), FormatError> {
                let check: fn(&Self) -> Result<(), FormatError> = $check;
                check(self)
            }
        }
    };
}

message! {
    /// Nothing to say.
    Nothing, "empty message" {}
    |_| Ok(())
}

message! {
    /// Why a request was not done.
    Problem, "problem" {
        /// What was expected, what was found, what to do; for people.
        #[prost(string, tag = "1")]
        text: String,
        /// After how many milliseconds to come back; 0: it is not worth it, or any time.
        #[prost(uint32, tag = "2")]
        retry_after_ms: u32,
    }
    |problem| length_at_most("problem", "text", problem.text.len(), PROBLEM_BYTES_MAX)
}

message! {
    /// The first request of a connection.
    HelloRequest, "hello" {
        /// The host's program and version, for people.
        #[prost(string, tag = "1")]
        program: String,
        /// Features that the host would use.
        #[prost(uint32, repeated, tag = "2")]
        features: Vec<u32>,
        /// The repository, as the gateway's configuration calls it.
        #[prost(string, tag = "3")]
        repository: String,
    }
    |hello| {
        length_at_most("hello", "program", hello.program.len(), NAME_BYTES_MAX)?;
        length_at_most("hello", "features", hello.features.len(), FEATURES_MAX)?;
        length_at_most("hello", "repository", hello.repository.len(), NAME_BYTES_MAX)
    }
}

message! {
    /// What was agreed.
    HelloAnswer, "hello's answer" {
        /// The gateway's program and version, for people.
        #[prost(string, tag = "1")]
        program: String,
        /// Those of the offered features that are used.
        #[prost(uint32, repeated, tag = "2")]
        features: Vec<u32>,
        /// The repository's id.
        #[prost(bytes = "vec", tag = "3")]
        repository_id: Vec<u8>,
        /// What the host is called.
        #[prost(string, tag = "4")]
        host: String,
        /// What it may do in this repository, as in ENROLMENT.md.
        #[prost(uint32, tag = "5")]
        rights: u32,
        /// How many requests may stand side by side.
        #[prost(uint32, tag = "6")]
        requests_max: u32,
    }
    |hello| {
        length_at_most("hello's answer", "program", hello.program.len(), NAME_BYTES_MAX)?;
        length_at_most("hello's answer", "features", hello.features.len(), FEATURES_MAX)?;
        length_at_most("hello's answer", "host", hello.host.len(), NAME_BYTES_MAX)?;
        if hello.repository_id.len() != 16 {
            let found = hello.repository_id.len() as u64;
            return Err(out_of_range("hello's answer", "repository id", found));
        }
        match hello.requests_max {
            0 => Err(out_of_range("hello's answer", "requests", 0)),
            _ => Ok(()),
        }
    }
}

message! {
    /// Which of these chunks are known.
    HaveRequest, "have" {
        /// Chunk ids of 32 bytes, one behind the other.
        #[prost(bytes = "vec", tag = "1")]
        ids: Vec<u8>,
    }
    |have| {
        let bytes = have.ids.len();
        if bytes == 0 || !bytes.is_multiple_of(32) || bytes / 32 > HAVE_IDS_MAX {
            return Err(out_of_range("have", "ids", bytes as u64));
        }
        Ok(())
    }
}

message! {
    /// Where they lie; see [`super::decode_known`].
    HaveAnswer, "have's answer" {
        /// Pack ids of 32 bytes, one behind the other.
        #[prost(bytes = "vec", tag = "1")]
        packs: Vec<u8>,
        /// An entry for each id asked.
        #[prost(bytes = "vec", tag = "2")]
        entries: Vec<u8>,
    }
    |_| Ok(())
}

message! {
    /// Create an object; its bytes are the body.
    PutRequest, "put" {
        /// Its key.
        #[prost(string, tag = "1")]
        key: String,
        /// Its length in bytes.
        #[prost(uint64, tag = "2")]
        length: u64,
    }
    |put| {
        plain_key("put", &put.key)?;
        match put.length > PUT_BYTES_MAX {
            true => Err(out_of_range("put", "length", put.length)),
            false => Ok(()),
        }
    }
}

message! {
    /// Read an object or a range of it.
    GetRequest, "get" {
        /// Its key.
        #[prost(string, tag = "1")]
        key: String,
        /// The first byte.
        #[prost(uint64, tag = "2")]
        start: u64,
        /// Behind the last byte; nothing: to the object's end.
        #[prost(uint64, optional, tag = "3")]
        end: Option<u64>,
    }
    |get| {
        plain_key("get", &get.key)?;
        match get.end {
            Some(end) if end <= get.start => Err(out_of_range("get", "end", end)),
            _ => Ok(()),
        }
    }
}

message! {
    /// What is read; its bytes are the body.
    GetAnswer, "get's answer" {
        /// The object's size in bytes.
        #[prost(uint64, tag = "1")]
        size: u64,
        /// The first byte that follows.
        #[prost(uint64, tag = "2")]
        start: u64,
        /// Behind the last byte that follows.
        #[prost(uint64, tag = "3")]
        end: u64,
    }
    |get| match get.start <= get.end && get.end <= get.size {
        true => Ok(()),
        false => Err(out_of_range("get's answer", "end", get.end)),
    }
}

message! {
    /// How large an object is.
    SizeRequest, "size" {
        /// Its key.
        #[prost(string, tag = "1")]
        key: String,
    }
    |size| plain_key("size", &size.key)
}

message! {
    /// An object's size.
    SizeAnswer, "size's answer" {
        /// In bytes.
        #[prost(uint64, tag = "1")]
        size: u64,
    }
    |_| Ok(())
}

message! {
    /// Objects in the byte order of their keys.
    ListRequest, "list" {
        /// The folder; empty: all.
        #[prost(string, tag = "1")]
        prefix: String,
        /// Only keys after this one; empty: all.
        #[prost(string, tag = "2")]
        after: String,
    }
    |list| {
        plain_prefix("list", &list.prefix)?;
        plain_prefix("list", &list.after)
    }
}

message! {
    /// Some objects of a listing.
    ListPart, "part of a listing" {
        /// In the byte order of their keys.
        #[prost(message, repeated, tag = "1")]
        entries: Vec<ListEntry>,
    }
    |part| length_at_most("part of a listing", "entries", part.entries.len(), LIST_ENTRIES_MAX)
}

/// An object of a listing.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ListEntry {
    /// Its key.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Its size in bytes.
    #[prost(uint64, tag = "2")]
    pub size: u64,
}

message! {
    /// Append a record to the log; its bytes are the body.
    AppendRequest, "append" {
        /// Its number.
        #[prost(uint64, tag = "1")]
        number: u64,
        /// Its length in bytes.
        #[prost(uint32, tag = "2")]
        length: u32,
    }
    |append| {
        if append.number == 0 {
            return Err(out_of_range("append", "number", 0));
        }
        match append.length > RECORD_BYTES_MAX {
            true => Err(out_of_range("append", "length", append.length.into())),
            false => Ok(()),
        }
    }
}

message! {
    /// The records of the log after a number.
    FollowRequest, "follow" {
        /// The last record that the host has; 0: none.
        #[prost(uint64, tag = "1")]
        after: u64,
        /// Whether to go on with those that come.
        #[prost(bool, tag = "2")]
        wait: bool,
    }
    |_| Ok(())
}

message! {
    /// A record that stands in the log; its bytes follow the part.
    FollowPart, "part of the log" {
        /// Its number.
        #[prost(uint64, tag = "1")]
        number: u64,
        /// Its length in bytes.
        #[prost(uint32, tag = "2")]
        length: u32,
    }
    |part| match part.length > RECORD_BYTES_MAX + 1 {
        true => Err(out_of_range("part of the log", "length", part.length.into())),
        false => Ok(()),
    }
}

message! {
    /// Delete an object that the log has given up.
    DeleteRequest, "delete" {
        /// Its key.
        #[prost(string, tag = "1")]
        key: String,
    }
    |delete| plain_key("delete", &delete.key)
}

message! {
    /// How is the gateway?
    StatusRequest, "status" {}
    |_| Ok(())
}

message! {
    /// How the gateway is.
    StatusAnswer, "status' answer" {
        /// Its program and version, for people.
        #[prost(string, tag = "1")]
        program: String,
        /// For how many seconds it has been running.
        #[prost(uint64, tag = "2")]
        up_seconds: u64,
        /// Connections of hosts.
        #[prost(uint32, tag = "3")]
        connections: u32,
        /// Requests under way.
        #[prost(uint32, tag = "4")]
        requests: u32,
        /// The number of the last record it knows of the connection's repository.
        #[prost(uint64, tag = "5")]
        head: u64,
        /// Whether the store answered when it was last asked.
        #[prost(bool, tag = "6")]
        store_answers: bool,
    }
    |status| length_at_most("status' answer", "program", status.program.len(), NAME_BYTES_MAX)
}

message! {
    /// A new certificate before the present one expires.
    RenewRequest, "renew" {
        /// A certificate request (PKCS #10, RFC 2986), DER.
        #[prost(bytes = "vec", tag = "1")]
        request: Vec<u8>,
    }
    |renew| length_at_most("renew", "request", renew.request.len(), CERTIFICATE_BYTES_MAX)
}

message! {
    /// The host's new certificate and those above it.
    RenewAnswer, "renew's answer" {
        /// DER, the host's first.
        #[prost(bytes = "vec", repeated, tag = "1")]
        certificates: Vec<Vec<u8>>,
    }
    |renew| chain("renew's answer", &renew.certificates)
}

message! {
    /// A first certificate for a token.
    JoinRequest, "join" {
        /// The invite's id, 16 bytes.
        #[prost(bytes = "vec", tag = "1")]
        id: Vec<u8>,
        /// The invite's secret, 32 bytes.
        #[prost(bytes = "vec", tag = "2")]
        secret: Vec<u8>,
        /// A certificate request (PKCS #10, RFC 2986), DER.
        #[prost(bytes = "vec", tag = "3")]
        request: Vec<u8>,
    }
    |join| {
        if join.id.len() != 16 {
            return Err(out_of_range("join", "id", join.id.len() as u64));
        }
        if join.secret.len() != 32 {
            return Err(out_of_range("join", "secret", join.secret.len() as u64));
        }
        length_at_most("join", "request", join.request.len(), CERTIFICATE_BYTES_MAX)
    }
}

message! {
    /// The host's certificate and those above it.
    JoinAnswer, "join's answer" {
        /// DER, the host's first.
        #[prost(bytes = "vec", repeated, tag = "1")]
        certificates: Vec<Vec<u8>>,
        /// What the host is called.
        #[prost(string, tag = "2")]
        host: String,
    }
    |join| {
        length_at_most("join's answer", "host", join.host.len(), NAME_BYTES_MAX)?;
        chain("join's answer", &join.certificates)
    }
}

fn chain(object: &'static str, certificates: &[Vec<u8>]) -> Result<(), FormatError> {
    if certificates.is_empty() || certificates.len() > CHAIN_MAX {
        return Err(out_of_range(
            object,
            "certificates",
            certificates.len() as u64,
        ));
    }
    certificates.iter().try_for_each(|certificate| {
        length_at_most(
            object,
            "certificate",
            certificate.len(),
            CERTIFICATE_BYTES_MAX,
        )
    })
}

impl Problem {
    /// A problem in words; what is longer than a problem can be is cut off.
    pub fn new(text: &str, retry_after_ms: u32) -> Self {
        let mut end = text.len().min(PROBLEM_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Self {
            text: text[..end].to_owned(),
            retry_after_ms,
        }
    }
}
