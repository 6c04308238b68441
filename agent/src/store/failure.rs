//! Why an attempt failed, and whether trying again can help.
//!
//! Reads the object store library's errors, whose variants say less than the causes they carry:
//! an [`Answer`] of an HTTP server, an HTTP client's error, or the operating system's.

use super::answer::{Answer, NoCredentials};
use super::fault::{Fault, InjectedFault};
use crate::error::Kind;
use crate::link::LinkError;
use object_store::Error as StoreError;
use object_store::client::HttpError;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::time::Duration;
use tidegate_protocol::wire::Status;

/// What an attempt, or all attempts together, failed of.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reason: Reason,
    cause: Option<Box<dyn StdError + Send + Sync>>,
    /// The pause that the store asks for before the next attempt.
    pub(super) retry_after: Option<Duration>,
    /// How many attempts were made; set by the loop around them.
    pub(super) attempts: u32,
    /// How long they took together; set by the loop around them.
    pub(super) elapsed: Duration,
}

/// The reasons an operation can fail of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// The object is not there, or (where the store does not tell) its bucket.
    ObjectMissing,
    BucketMissing,
    /// A create-only PUT found an object.
    Exists,
    Denied,
    /// No answer, or "later": trying again may help.
    Unavailable,
    NoSpace,
    Unsupported,
    WrongRegion,
    /// The asked range starts after the object's end.
    OutOfRange,
    /// The object is larger than the caller takes.
    TooLarge {
        found_bytes: u64,
        bytes_max: u64,
    },
    /// The object ends before the asked range does.
    TooShort {
        expected_bytes: u64,
        found_bytes: u64,
    },
    /// The body ended before the length that was announced.
    CutOff {
        expected_bytes: u64,
        found_bytes: u64,
    },
    Other,
}

impl Reason {
    pub(super) const fn kind(self) -> Kind {
        match self {
            Self::ObjectMissing | Self::BucketMissing => Kind::Missing,
            Self::Exists => Kind::Conflict,
            Self::Denied => Kind::Denied,
            Self::Unavailable => Kind::Unavailable,
            Self::NoSpace => Kind::NoSpace,
            Self::Unsupported => Kind::Unsupported,
            Self::WrongRegion => Kind::Config,
            Self::OutOfRange
            | Self::TooLarge { .. }
            | Self::TooShort { .. }
            | Self::CutOff { .. } => Kind::Corrupt,
            Self::Other => Kind::Io,
        }
    }
}

impl Failure {
    pub(super) const fn new(reason: Reason) -> Self {
        Self {
            reason,
            cause: None,
            retry_after: None,
            attempts: 1,
            elapsed: Duration::ZERO,
        }
    }

    /// No answer within `waited`.
    pub(super) fn timed_out(waited: Duration) -> Self {
        let text = format!("no answer within {:.1} s", waited.as_secs_f64());
        Self {
            cause: Some(io::Error::new(io::ErrorKind::TimedOut, text).into()),
            ..Self::new(Reason::Unavailable)
        }
    }

    pub(super) const fn has_cause(&self) -> bool {
        self.cause.is_some()
    }

    /// The cause to show below the message, with the number of attempts where there were several, or could
    /// have been.
    pub(super) fn into_cause(self) -> Option<Box<dyn StdError + Send + Sync>> {
        // A missing object and a wrong size are said completely by the message.
        let is_self_explaining = matches!(
            self.reason,
            Reason::ObjectMissing
                | Reason::TooLarge { .. }
                | Reason::TooShort { .. }
                | Reason::CutOff { .. }
        );
        let cause = self.cause.filter(|_| !is_self_explaining)?;
        if self.attempts <= 1 && self.reason != Reason::Unavailable {
            return Some(cause);
        }
        Some(Box::new(GaveUp {
            attempts: self.attempts,
            elapsed: self.elapsed,
            cause,
        }))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Some(cause) => write!(f, "{cause}"),
            None => write!(f, "{:?}", self.reason),
        }
    }
}

/// Says what was tried; its source is the last cause.
#[derive(Debug)]
struct GaveUp {
    attempts: u32,
    elapsed: Duration,
    cause: Box<dyn StdError + Send + Sync>,
}

impl fmt::Display for GaveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "gave up after {} {} in {:.1} s",
            self.attempts,
            if self.attempts == 1 {
                "attempt"
            } else {
                "attempts"
            },
            self.elapsed.as_secs_f64()
        )
    }
}

impl StdError for GaveUp {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(self.cause.as_ref())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let retry_after = retry_after(&error);
        let reason = match &error {
            StoreError::NotFound { .. } => Reason::ObjectMissing,
            StoreError::AlreadyExists { .. } => Reason::Exists,
            StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => {
                Reason::Denied
            }
            StoreError::NotSupported { .. } | StoreError::NotImplemented { .. } => {
                Reason::Unsupported
            }
            other => reason_of_chain(other),
        };
        Self {
            cause: Some(essence(error)),
            retry_after,
            ..Self::new(reason)
        }
    }
}

fn retry_after(error: &StoreError) -> Option<Duration> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(cause) = next {
        if let Some(answer) = cause.downcast_ref::<Answer>() {
            return answer.retry_after;
        }
        if let Some(LinkError::Answered { retry_after, .. }) = cause.downcast_ref::<LinkError>() {
            return *retry_after;
        }
        if let Some(fault) = cause.downcast_ref::<InjectedFault>()
            && let Fault::Throttle(pause) = fault.fault()
        {
            return Some(*pause);
        }
        next = cause.source();
    }
    None
}

/// The innermost cause we know how to read decides.
fn reason_of_chain(error: &StoreError) -> Reason {
    let mut reason = Reason::Other;
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(cause) = next {
        if let Some(answer) = cause.downcast_ref::<Answer>() {
            return reason_of_answer(answer);
        } else if cause.is::<NoCredentials>() {
            return Reason::Denied;
        } else if let Some(error) = cause.downcast_ref::<LinkError>() {
            return reason_of_link(error);
        } else if let Some(fault) = cause.downcast_ref::<InjectedFault>() {
            return match fault.fault() {
                Fault::Refuse => Reason::Denied,
                Fault::Crash | Fault::CrashAfter => Reason::Other,
                _ => Reason::Unavailable,
            };
        } else if cause.is::<HttpError>() {
            // A request that got no readable answer, whatever the library calls it.
            reason = Reason::Unavailable;
        } else if let Some(error) = cause.downcast_ref::<io::Error>()
            && reason == Reason::Other
        {
            reason = reason_of_io(error);
        }
        next = cause.source();
    }
    reason
}

fn reason_of_answer(answer: &Answer) -> Reason {
    match answer.status {
        _ if answer.bucket_is_missing() => Reason::BucketMissing,
        _ if answer.code_is(&["QuotaExceeded", "XMinioStorageFull"]) => Reason::NoSpace,
        400 if answer.code_is(&["ExpiredToken", "InvalidToken", "TokenRefreshRequired"]) => {
            Reason::Denied
        }
        400 if answer.code_is(&["AuthorizationHeaderMalformed"]) => Reason::WrongRegion,
        301 | 302 | 307 | 308 => Reason::WrongRegion,
        401 | 403 => Reason::Denied,
        408 | 425 | 429 => Reason::Unavailable,
        409 if answer.code_is(&["BlobImmutableDueToPolicy", "BlobImmutableDueToLegalHold"]) => {
            Reason::Denied
        }
        409 => Reason::Unavailable,
        416 => Reason::OutOfRange,
        501 => Reason::Unsupported,
        507 => Reason::NoSpace,
        500..=599 => Reason::Unavailable,
        _ => Reason::Other,
    }
}

fn reason_of_link(error: &LinkError) -> Reason {
    match error {
        LinkError::Lost(_) | LinkError::Unreachable(_) | LinkError::Stopped => Reason::Unavailable,
        LinkError::Denied(_) => Reason::Denied,
        LinkError::Malformed(_) => Reason::Other,
        LinkError::Answered { status, .. } => match status {
            Status::Busy | Status::Store | Status::Leaving | Status::Behind => Reason::Unavailable,
            Status::Missing => Reason::ObjectMissing,
            Status::Exists => Reason::Exists,
            Status::Range => Reason::OutOfRange,
            Status::Denied | Status::Revoked => Reason::Denied,
            Status::Unknown => Reason::Unsupported,
            Status::Ok
            | Status::Ready
            | Status::Malformed
            | Status::Large
            | Status::Hash
            | Status::Refused => Reason::Other,
        },
    }
}

pub(super) fn reason_of_io(error: &io::Error) -> Reason {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Reason::NoSpace,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Reason::Denied,
        io::ErrorKind::TimedOut => Reason::Unavailable,
        io::ErrorKind::Unsupported => Reason::Unsupported,
        _ => Reason::Other,
    }
}

/// The part of a library's error that tells the operator something: the server's answer, or the
/// operating system's, without the library's wrapping (which repeats whole bodies and URLs).
fn essence(error: StoreError) -> Box<dyn StdError + Send + Sync> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(&error);
    while let Some(cause) = next {
        if let Some(answer) = cause.downcast_ref::<Answer>() {
            return Box::new(answer.clone());
        }
        if cause.is::<NoCredentials>() {
            return Box::new(NoCredentials);
        }
        if let Some(http) = cause.downcast_ref::<HttpError>()
            && let Some(text) = innermost_text(http)
        {
            return text.into();
        }
        next = cause.source();
    }
    match error {
        StoreError::Generic { source, .. } => source,
        other => Box::new(other),
    }
}

/// "connection refused" and the like, where the HTTP client buries it; `None` to keep looking.
fn innermost_text(error: &HttpError) -> Option<String> {
    let mut innermost: &(dyn StdError + 'static) = error;
    while let Some(cause) = innermost.source() {
        if cause.is::<Answer>() || cause.is::<NoCredentials>() {
            return None;
        }
        innermost = cause;
    }
    Some(format!("no answer from the store: {innermost}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_operating_system_keep_their_meaning() {
        for (kind, reason) in [
            (io::ErrorKind::StorageFull, Reason::NoSpace),
            (io::ErrorKind::QuotaExceeded, Reason::NoSpace),
            (io::ErrorKind::ReadOnlyFilesystem, Reason::Denied),
            (io::ErrorKind::TimedOut, Reason::Unavailable),
            (io::ErrorKind::InvalidData, Reason::Other),
        ] {
            let error = StoreError::Generic {
                store: "folder",
                source: io::Error::from(kind).into(),
            };
            assert_eq!(Failure::from(error).reason, reason, "{kind:?}");
        }
    }
}
