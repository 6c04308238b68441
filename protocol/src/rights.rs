//! What an enrolled host may ask a gateway for, in one repository.
//!
//! Not the levels of keys ([`crate::keys::Level`]): those say what a signature is worth to whoever
//! reads the log, these what a gateway does for whom. A host needs both. The bits are for ever: they
//! stand in invites and on the wire.

use crate::error::FormatError;
use std::fmt;
use std::str::FromStr;

const OBJECT: &str = "rights";

/// One right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Right {
    /// To make recovery points: read trees, index and log, ask what is known, store new objects,
    /// append what a backup appends.
    Backup,
    /// To read recovery points back, and append what a restore appends: holds, evidence, damage.
    Restore,
    /// To keep the repository in order: append records of every kind, store checkpoints, delete what
    /// the log has given up.
    Maintenance,
    /// To see how things stand, and nothing of what is stored.
    Monitor,
}

impl Right {
    /// All rights, by rising bit.
    pub const ALL: [Self; 4] = [
        Self::Backup,
        Self::Restore,
        Self::Maintenance,
        Self::Monitor,
    ];

    /// The bit in stored formats and on the wire.
    pub const fn bit(self) -> u32 {
        match self {
            Self::Backup => 1,
            Self::Restore => 2,
            Self::Maintenance => 4,
            Self::Monitor => 8,
        }
    }

    /// The word for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::Maintenance => "maintenance",
            Self::Monitor => "monitor",
        }
    }
}

/// A set of rights. The empty one allows nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Rights(u32);

impl Rights {
    /// No right at all.
    pub const NONE: Self = Self(0);

    /// The set with one right.
    pub const fn of(right: Right) -> Self {
        Self(right.bit())
    }

    /// The set with the rights of both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the right is in the set. No right contains another.
    pub const fn has(self, right: Right) -> bool {
        self.0 & right.bit() != 0
    }

    /// Whether nothing is in the set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The rights in the set, by rising bit.
    pub fn iter(self) -> impl Iterator<Item = Right> {
        Right::ALL.into_iter().filter(move |right| self.has(*right))
    }

    /// The bits in stored formats and on the wire.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The set of these bits.
    ///
    /// # Errors
    /// [`FormatError::Tag`] where a bit is set that names no right: to do less than was meant would
    /// go unseen, to do more is out of the question.
    pub fn from_bits(bits: u32) -> Result<Self, FormatError> {
        let known = Right::ALL.into_iter().map(Right::bit).sum::<u32>();
        match bits & !known {
            0 => Ok(Self(bits)),
            _ => Err(FormatError::Tag {
                object: OBJECT,
                field: "bits",
                found: bits.into(),
            }),
        }
    }
}

impl fmt::Display for Rights {
    /// As [`FromStr`] takes them: words with commas between them; nothing for no right.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.iter().map(Right::as_str).collect();
        f.write_str(&words.join(","))
    }
}

impl FromStr for Rights {
    type Err = FormatError;

    /// Words with commas between them, at least one.
    fn from_str(text: &str) -> Result<Self, FormatError> {
        text.split(',').try_fold(Self::NONE, |rights, word| {
            Right::ALL
                .into_iter()
                .find(|right| right.as_str() == word.trim())
                .map(|right| rights.and(Self::of(right)))
                .ok_or_else(|| FormatError::Message {
                    object: OBJECT,
                    detail: format!(
                        "{:?} is none of backup, restore, maintenance, monitor",
                        word.trim()
                    ),
                })
        })
    }
}
