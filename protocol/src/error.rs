//! Why bytes are not what they should be.

/// What a decoder or an opener found wrong. `object` names the kind of thing that was read
/// ("pack footer"); which stored object it came from is known to the caller, who adds its name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Fewer bytes than the format needs.
    #[error(
        "{object} is truncated: {needed} bytes were expected at offset {offset}, {found} are there"
    )]
    Truncated {
        /// What was read.
        object: &'static str,
        /// Where the missing bytes begin.
        offset: usize,
        /// Bytes expected from there on.
        needed: usize,
        /// Bytes found from there on.
        found: usize,
    },
    /// More bytes than the format accounts for.
    #[error("{object} has {extra} bytes too many")]
    Trailing {
        /// What was read.
        object: &'static str,
        /// Bytes left over.
        extra: usize,
    },
    /// The first bytes are not those of the format.
    #[error("not a {object}: its first bytes are {found}")]
    Magic {
        /// What was expected.
        object: &'static str,
        /// The first bytes, in hexadecimal.
        found: String,
    },
    /// Written by a version that this program does not know.
    #[error("{object} has format version {found}, this program reads up to {supported}")]
    Version {
        /// What was read.
        object: &'static str,
        /// Its version.
        found: u32,
        /// The highest version that can be read.
        supported: u32,
    },
    /// Needs a feature that this program does not know.
    #[error("{object} needs the feature {feature:?}, which this program does not have")]
    Feature {
        /// What was read.
        object: &'static str,
        /// The unknown feature's name.
        feature: String,
    },
    /// A field holds a value outside its range.
    #[error("{object}: {field} is {found}, which is outside its range")]
    Range {
        /// What was read.
        object: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        found: u64,
    },
    /// An unknown tag where only known ones may stand.
    #[error("{object}: {field} has the unknown tag {found}")]
    Tag {
        /// What was read.
        object: &'static str,
        /// The field.
        field: &'static str,
        /// The tag.
        found: u64,
    },
    /// A message that does not decode.
    #[error("{object} does not decode: {detail}")]
    Message {
        /// What was read.
        object: &'static str,
        /// The decoder's words.
        detail: String,
    },
    /// The seal does not open: other key, or changed bytes.
    #[error("{object} does not open: it was changed, or sealed with another key")]
    Unauthentic {
        /// What was read.
        object: &'static str,
    },
    /// A signature does not hold.
    #[error("{object}: the signature does not hold")]
    Signature {
        /// What was read.
        object: &'static str,
    },
    /// Content that does not hash to its name.
    #[error("{object} does not hash to its name: expected {expected}, found {found}")]
    Hash {
        /// What was read.
        object: &'static str,
        /// The name.
        expected: String,
        /// The hash of what is there.
        found: String,
    },
    /// Belongs to another repository.
    #[error("{object} belongs to repository {found}, not to {expected}")]
    Foreign {
        /// What was read.
        object: &'static str,
        /// The repository at hand.
        expected: String,
        /// The one named.
        found: String,
    },
    /// A key of this level may not do that.
    #[error("a key of level {level} may not {action}")]
    Right {
        /// The level's name.
        level: &'static str,
        /// What was tried.
        action: &'static str,
    },
    /// zstd refused the bytes.
    #[error("{object} does not decompress: {detail}")]
    Compression {
        /// What was read.
        object: &'static str,
        /// zstd's words.
        detail: String,
    },
}

impl FormatError {
    /// True when the bytes are sound as far as can be told, but a newer program wrote them: whoever
    /// reads on without understanding them must not write, expire or delete anything.
    pub fn needs_newer_program(&self) -> bool {
        match self {
            Self::Version {
                found, supported, ..
            } => found > supported,
            Self::Feature { .. } => true,
            _ => false,
        }
    }
}
