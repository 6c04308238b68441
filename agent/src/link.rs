//! The link: hosts speak to gateways over QUIC, as `protocol/WIRE.md` says.
//!
//! | Part | Purpose |
//! |---|---|
//! | [`identity`] | a host's key and certificates; who is believed |
//! | `endpoint` | sockets, windows and times of QUIC connections |
//! | [`congestion`] | how fast to send |
//! | `frames` | heads and messages on streams |
//! | [`client`] | the host's end: dialling, failing over, requests |
//!
//! What a request does to a repository is the business of the two ends: [`crate::store`] on the host,
//! `gateway` beside the bucket.

pub mod client;
pub mod congestion;
pub(crate) mod endpoint;
pub(crate) mod frames;
pub mod identity;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tidegate_protocol::FormatError;
use tidegate_protocol::wire::Status;

/// Where a host's key and certificates are unless it is said otherwise.
pub const DEFAULT_IDENTITY: &str = "/etc/tidegate/identity";

/// Most bytes a second to send; may be changed while it is in use, by any of its clones.
#[derive(Debug, Clone, Default)]
pub struct RateCap(Arc<AtomicU64>);

impl RateCap {
    /// From now on; none: as many as the line takes.
    pub fn set(&self, bytes_per_second_max: Option<u64>) {
        let rate = bytes_per_second_max.map_or(0, |rate| rate.max(1));
        self.0.store(rate, Ordering::Relaxed);
    }

    /// At the moment.
    pub fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }
}

impl PartialEq for RateCap {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

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
