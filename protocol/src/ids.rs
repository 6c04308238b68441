//! Names: fixed-size identifiers, each a type of its own.

use crate::limits::RECORD_BYTES_MAX;
use std::fmt;
use std::str::FromStr;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $length:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $length]);

        impl $name {
            /// Length in bytes.
            pub const BYTES: usize = $length;

            /// The bytes.
            pub const fn as_bytes(&self) -> &[u8; $length] {
                &self.0
            }

            /// Takes a slice of exactly the right length.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// The first eight hexadecimal digits: enough for a person to tell two apart.
            pub fn short(&self) -> String {
                hex::encode(&self.0[..4])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl FromStr for $name {
            type Err = hex::FromHexError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let mut bytes = [0; $length];
                hex::decode_to_slice(text, &mut bytes)?;
                Ok(Self(bytes))
            }
        }
    };
}

id!(
    /// Name of a chunk: keyed BLAKE3-256 of its plaintext under the repository's id key.
    ChunkId, 32
);
id!(
    /// Name of a pack: BLAKE3-256 of its stored bytes. Anyone can check it without a key.
    PackId, 32
);
id!(
    /// Name of a tree page: keyed BLAKE3-256 of its logical content.
    PageId, 32
);
id!(
    /// Name of an index segment: BLAKE3-256 of its stored bytes.
    SegmentId, 32
);
id!(
    /// BLAKE3-256 of a log record's stored bytes: what the next record is chained to.
    RecordHash, 32
);
id!(
    /// A repository, drawn at random when it is made.
    RepositoryId, 16
);
id!(
    /// A recovery point, drawn at random when it is committed.
    PointId, 16
);
id!(
    /// A key slot, drawn at random when it is made.
    SlotId, 16
);
id!(
    /// A signing key's short name: the first 16 bytes of the BLAKE3 of its public half.
    KeyId, 16
);
id!(
    /// One run of a writer, drawn at random when it starts.
    RunId, 16
);
id!(
    /// A moment at which several machines were frozen together, drawn at random.
    MomentId, 16
);
id!(
    /// One enrolment of a host with a fleet of gateways, drawn at random when the host is invited.
    EnrolmentId, 16
);

impl PackId {
    /// In a page's hints: the pack that the page itself lies in.
    pub const OWN: Self = Self([0; 32]);

    /// Names stored bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Where the pack stands in the repository.
    pub fn object_key(&self) -> String {
        let name = self.to_string();
        format!("packs/{}/{name}", &name[..2])
    }

    /// The pack that stands at `key`.
    pub fn from_object_key(key: &str) -> Option<Self> {
        let (_, name) = key.strip_prefix("packs/")?.split_once('/')?;
        name.parse().ok().filter(|id: &Self| id.object_key() == key)
    }
}

impl SegmentId {
    /// Names stored bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Where the segment stands in the repository.
    pub fn object_key(&self) -> String {
        format!("index/{self}")
    }

    /// The segment that stands at `key`.
    pub fn from_object_key(key: &str) -> Option<Self> {
        let id: Self = key.strip_prefix("index/")?.parse().ok()?;
        (id.object_key() == key).then_some(id)
    }
}

impl RecordHash {
    /// The hash before the first record of a log.
    pub const NONE: Self = Self([0; 32]);

    /// Hashes a record's stored bytes: the first [`RECORD_BYTES_MAX`] + 1 of them. Whoever can write
    /// to the bucket can put an object of any size in a record's place; it is void, but the record
    /// after it must be chained to it, and no reader should have to fetch it whole for that.
    pub fn of(bytes: &[u8]) -> Self {
        let length = bytes.len().min(RECORD_BYTES_MAX as usize + 1);
        Self(*blake3::hash(&bytes[..length]).as_bytes())
    }
}

impl SlotId {
    /// Where the slot stands in the repository.
    pub fn object_key(&self) -> String {
        format!("keys/{self}")
    }

    /// The slot that stands at `key`.
    pub fn from_object_key(key: &str) -> Option<Self> {
        let id: Self = key.strip_prefix("keys/")?.parse().ok()?;
        (id.object_key() == key).then_some(id)
    }
}
