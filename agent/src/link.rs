//! The link: hosts speak to gateways over QUIC, as `protocol/WIRE.md` says.
//!
//! | Part | Purpose |
//! |---|---|
//! | [`identity`] | a host's key and certificates; who is believed |
//! | [`congestion`] | how fast to send |
//! | [`cap`] | no faster than this |
//! | [`transport`] | QUIC's settings, and why; sockets |
//! | `endpoint` | what the two ends change of them |
//! | `frames` | heads and messages on streams |
//! | [`client`] | the host's end: dialling, failing over, requests |
//!
//! What a request does to a repository is the business of the two ends: [`crate::store`] on the host,
//! `gateway` beside the bucket.

pub mod cap;
pub mod client;
pub mod congestion;
pub(crate) mod endpoint;
pub(crate) mod frames;
pub mod identity;
pub mod transport;

use std::time::Duration;
use tidegate_protocol::FormatError;
use tidegate_protocol::wire::Status;

/// Where a host's key and certificates are unless it is said otherwise: with the state of the service, not
/// with its configuration, as it renews them.
pub const DEFAULT_IDENTITY: &str = "/var/lib/tidegate/identity";

/// Why a request came to nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// The gateway answered, and not with `ok`.
    #[error("the gateway says {}: {text}", status.as_str())]
    Answered {
        /// What it said.
        status: Status,
        /// Its words.
        text: String,
        /// When it would be asked again.
        retry_after: Option<Duration>,
    },
    /// The connection broke: nothing is known of the request.
    #[error("the connection to the gateway was lost: {0}")]
    Lost(String),
    /// No gateway could be reached.
    #[error("no gateway could be reached: {0}")]
    Unreachable(String),
    /// The other end wants no more of the stream, or has broken it off.
    #[error("the gateway broke the request off")]
    Stopped,
    /// The other end broke a rule of the wire.
    #[error("the other end does not keep to the protocol: {0}")]
    Malformed(String),
    /// This end has no right to be there, or the other is not who it should be.
    #[error("{0}")]
    Denied(String),
}

impl From<FormatError> for LinkError {
    fn from(error: FormatError) -> Self {
        Self::Malformed(error.to_string())
    }
}
