//! How fast the path delivers: samples of delivery rate and round-trip time, from sends and
//! acknowledgements.
//!
//! The method is that of draft-ietf-ccwg-bbr, "Delivery Rate Samples": a sample is what was
//! delivered between the sending of a packet and its acknowledgement, over the longer of the time
//! the sending and the time the acknowledging of it took. Acknowledgements that arrive in a bunch
//! therefore never look like a faster path.
//!
//! Not a decision about anything. Invariant: a sample never claims more than was acknowledged
//! in its interval, and no sample spans less than a round trip.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Sends that are remembered at most. More than a window of datagrams sent one by one; what is
/// older is forgotten, which costs a sample and nothing else.
const SENDS_MAX: usize = 65_536;

/// What was known when a datagram was sent.
#[derive(Debug, Clone, Copy)]
struct Snapshot {
    sent_at: Instant,
    /// Bytes delivered until then, and when the last of them were acknowledged.
    delivered_bytes: u64,
    delivered_at: Instant,
    /// When the datagram was sent whose acknowledgement was the last before.
    acked_sent_at: Instant,
    app_limited: bool,
}

/// What a batch of acknowledgements says of the path.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    /// Bytes a second, acknowledged.
    pub(super) rate: f64,
    /// Of the newest datagram acknowledged; with the delay of the receiver's acknowledgement.
    pub(super) rtt: Duration,
    /// The sender had nothing more to send for some time of it: the path may be faster.
    pub(super) app_limited: bool,
    /// Bytes that had been delivered when the newest datagram was sent: tells rounds apart.
    pub(super) delivered_before_bytes: u64,
    /// Acknowledged by this batch.
    pub(super) acked_bytes: u64,
}

/// Counts what is delivered.
#[derive(Debug, Clone)]
pub(super) struct Delivery {
    delivered_bytes: u64,
    delivered_at: Instant,
    acked_sent_at: Instant,
    /// Sends are limited by the application until this much is delivered.
    app_limited_until_bytes: u64,
    /// Nothing is in flight: the next send begins a new stretch.
    idle: bool,
    /// By time of sending; oldest first.
    sends: VecDeque<Snapshot>,
    /// The newest datagram of the batch of acknowledgements that is coming in.
    newest_acked_sent_at: Option<Instant>,
    acked_bytes: u64,
}

impl Delivery {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            delivered_bytes: 0,
            delivered_at: now,
            acked_sent_at: now,
            app_limited_until_bytes: 0,
            idle: true,
            sends: VecDeque::new(),
            newest_acked_sent_at: None,
            acked_bytes: 0,
        }
    }

    /// Datagrams leave.
    pub(super) fn on_sent(&mut self, now: Instant) {
        if self.idle {
            // What was silence before is no slowness of the path.
            self.delivered_at = now;
            self.acked_sent_at = now;
            self.idle = false;
        }
        if self.sends.back().is_some_and(|last| last.sent_at >= now) {
            return;
        }
        if self.sends.len() >= SENDS_MAX {
            self.sends.pop_front();
        }
        self.sends.push_back(Snapshot {
            sent_at: now,
            delivered_bytes: self.delivered_bytes,
            delivered_at: self.delivered_at,
            acked_sent_at: self.acked_sent_at,
            app_limited: self.app_limited_until_bytes > self.delivered_bytes,
        });
    }

    /// A datagram sent at `sent_at` has arrived.
    pub(super) fn on_ack(&mut self, sent_at: Instant, bytes: u64) {
        self.delivered_bytes += bytes;
        self.acked_bytes += bytes;
        self.newest_acked_sent_at = self.newest_acked_sent_at.max(Some(sent_at));
    }

    /// All acknowledgements that came at `now` are counted.
    pub(super) fn end_batch(
        &mut self,
        now: Instant,
        in_flight_bytes: u64,
        app_limited: bool,
    ) -> Option<Sample> {
        let sent_at = self.newest_acked_sent_at.take();
        let sample = sent_at.and_then(|sent_at| self.sample(now, sent_at));
        self.acked_bytes = 0;
        self.delivered_at = now;
        self.idle = in_flight_bytes == 0;
        if app_limited {
            self.app_limited_until_bytes = self.delivered_bytes + in_flight_bytes.max(1);
        }
        sample
    }

    /// Bytes delivered so far.
    pub(super) fn delivered_bytes(&self) -> u64 {
        self.delivered_bytes
    }

    fn sample(&mut self, now: Instant, sent_at: Instant) -> Option<Sample> {
        // Older sends, should they still be acknowledged, say nothing that a newer one has not said.
        while self.sends.front().is_some_and(|s| s.sent_at < sent_at) {
            self.sends.pop_front();
        }
        let before = *self.sends.front().filter(|s| s.sent_at == sent_at)?;
        self.acked_sent_at = self.acked_sent_at.max(sent_at);
        let sending = sent_at.saturating_duration_since(before.acked_sent_at);
        let acking = now.saturating_duration_since(before.delivered_at);
        let seconds = sending.max(acking).as_secs_f64();
        if seconds <= 0.0 {
            return None;
        }
        Some(Sample {
            rate: lossy(self.delivered_bytes - before.delivered_bytes) / seconds,
            rtt: now.saturating_duration_since(sent_at),
            app_limited: before.app_limited,
            delivered_before_bytes: before.delivered_bytes,
            acked_bytes: self.acked_bytes,
        })
    }
}

/// Bytes as a number to reckon with: exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "exact for any window")]
pub(super) fn lossy(bytes: u64) -> f64 {
    bytes as f64
}
