//! Errors at the engine's boundary.
//!
//! An [`Error`] says which object was concerned, what was expected and what to do about it; its
//! [`Kind`] is what programs act upon (retry, exit code, status). Modules may keep small closed
//! enums of their own inside; what leaves the engine is this type.

use std::error::Error as StdError;
use std::fmt;

/// The engine's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Settings, arguments or names are wrong: correct them.
    Config,
    /// The named thing is not there.
    Missing,
    /// Stored bytes are not what their name, checksum or signature promises.
    Corrupt,
    /// A key, a credential or a right is lacking.
    Denied,
    /// The store or a peer did not answer in time: try again later.
    Unavailable,
    /// No space left on the device named.
    NoSpace,
    /// The disk image or device given as input is damaged, hostile or not a disk.
    BadInput,
    /// Somebody else got there first, or the state moved on: look and decide again.
    Conflict,
    /// Not possible with this version, store or machine: install or upgrade what is named.
    Unsupported,
    /// The operator asked to stop.
    Interrupted,
    /// An operation of the operating system failed for another reason.
    Io,
    /// A broken promise inside tidegate itself: report it.
    Bug,
}

impl Kind {
    /// The documented exit code of a command that ends with this kind.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Bug | Self::Io => 1,
            Self::Config => 2,
            Self::Missing => 3,
            Self::Corrupt => 4,
            Self::Denied => 5,
            Self::Unavailable => 6,
            Self::NoSpace => 7,
            Self::BadInput => 8,
            Self::Conflict => 9,
            Self::Unsupported => 10,
            Self::Interrupted => 130,
        }
    }

    /// A stable word for machine-readable output.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Missing => "missing",
            Self::Corrupt => "corrupt",
            Self::Denied => "denied",
            Self::Unavailable => "unavailable",
            Self::NoSpace => "no-space",
            Self::BadInput => "bad-input",
            Self::Conflict => "conflict",
            Self::Unsupported => "unsupported",
            Self::Interrupted => "interrupted",
            Self::Io => "io",
            Self::Bug => "bug",
        }
    }

    /// All kinds.
    pub const ALL: [Self; 12] = [
        Self::Config,
        Self::Missing,
        Self::Corrupt,
        Self::Denied,
        Self::Unavailable,
        Self::NoSpace,
        Self::BadInput,
        Self::Conflict,
        Self::Unsupported,
        Self::Interrupted,
        Self::Io,
        Self::Bug,
    ];

    /// The kind that [`as_str`](Self::as_str) writes so.
    pub fn from_word(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// An error with its kind, the object it concerns, advice, and the chain of causes.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    what: String,
    advice: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind`; `what` names the object and says what was expected and what was found.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            what: what.into(),
            advice: None,
            source: None,
        }))
    }

    /// Adds what the operator should do.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.0.advice = Some(advice.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// An operating system error on the named object; its kind follows from the error code.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let kind = match source.kind() {
            K::NotFound => Kind::Missing,
            K::PermissionDenied => Kind::Denied,
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge => Kind::NoSpace,
            K::ReadOnlyFilesystem => Kind::Denied,
            _ => Kind::Io,
        };
        let error = Self::new(kind, what).caused_by(source);
        match kind {
            Kind::NoSpace => error.advise("free some space there, then run the command again"),
            _ => error,
        }
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// What the operator should do, if there is something.
    pub fn advice(&self) -> Option<&str> {
        self.0.advice.as_deref()
    }

    /// The message followed by its causes, colon separated, on one line.
    pub fn chain(&self) -> String {
        let mut text = self.0.what.clone();
        let mut next = StdError::source(self);
        while let Some(cause) = next {
            let cause_text = cause.to_string();
            // Libraries often repeat their cause in their own message.
            if !text.ends_with(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            next = cause.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.what)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.chain())?;
        match &self.0.advice {
            Some(advice) => write!(f, " ({advice})"),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.0.source {
            Some(source) => Some(source.as_ref()),
            None => None,
        }
    }
}
