//! How long to wait for a store, and how often to try again.
//!
//! These are bounds, not tuning: they decide when "slow" becomes "not there".

use crate::link::client::LinkSettings;
use std::time::Duration;

/// Time-outs and retries of a [`Store`](super::Store).
#[derive(Debug, Clone, PartialEq)]
pub struct StoreSettings {
    /// How long to wait for a connection to be made. Default 15 s.
    pub connect_timeout: Duration,
    /// How long to wait for an answer to a request, and for each further part of a body.
    /// Moving bytes gets more, by [`bytes_per_second_min`](Self::bytes_per_second_min). Default
    /// 60 s: stores under load have been seen to think for half a minute.
    pub request_timeout: Duration,
    /// The slowest transfer that is still progress: sending or receiving `n` bytes is given
    /// `n / bytes_per_second_min` longer. Default 128 KiB/s: a pack of 32 MiB gets 4 minutes more,
    /// so four at once go through a line of 4 Mbit/s.
    pub bytes_per_second_min: u64,
    /// After how long an operation is given up, all its attempts together; where bytes are sent,
    /// twice the addition above is added, so that the first attempt is never the only one. A body
    /// that is being received by then is read to its end. Default 5 minutes: longer than a
    /// fail-over or a restart of a store takes, shorter than an operator waits for a sign of life.
    pub operation_deadline: Duration,
    /// The pause before the first retry. Pauses double, with jitter. Default 100 ms.
    pub backoff_first: Duration,
    /// The longest pause between two attempts. Default 15 s.
    pub backoff_max: Duration,
    /// How to speak to gateways, where the store is behind some.
    pub link: LinkSettings,
}

impl StoreSettings {
    /// What sending or receiving `bytes` may take on the slowest line that is still accepted.
    pub(super) fn transfer_allowance(&self, bytes: u64) -> Duration {
        Duration::from_secs(bytes / self.bytes_per_second_min.max(1))
    }
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(15),
            request_timeout: Duration::from_secs(60),
            bytes_per_second_min: 128 * 1024,
            operation_deadline: Duration::from_secs(300),
            backoff_first: Duration::from_millis(100),
            backoff_max: Duration::from_secs(15),
            link: LinkSettings::default(),
        }
    }
}
