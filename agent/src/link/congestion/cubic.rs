//! The window that CUBIC (RFC 9438) would have: the measure of what a loss-based flow takes.
//!
//! Not the controller: [`super::model`] uses it as a ceiling (`fair`), and as a floor while a
//! loss-based flow keeps the queue full (`throughput`). Slow start is the model's; this begins with
//! the first loss, or where the model says. Invariant: the window falls at most once a round trip.

use super::delivery::lossy;
use std::time::{Duration, Instant};

/// RFC 9438: multiplicative decrease, aggressiveness, and what they make the additive increase of
/// the Reno-friendly region (section 4.3).
const BETA: f64 = 0.7;
const C: f64 = 0.4;
const RENO_ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);

#[derive(Debug, Clone)]
pub(super) struct Cubic {
    /// In segments, as all of the RFC.
    window: f64,
    window_max: f64,
    reno_window: f64,
    /// When this stretch of growth began, and how long it takes to come back to `window_max`.
    epoch: Option<Instant>,
    plateau_after: f64,
    /// Losses of datagrams sent before belong to a reduction that was made.
    reduced_at: Option<Instant>,
}

impl Cubic {
    /// Grows on from `window_bytes`, which was reached without loss.
    pub(super) fn from_window(window_bytes: u64, mtu: u64) -> Self {
        let window = lossy(window_bytes) / lossy(mtu);
        Self {
            window,
            window_max: window,
            reno_window: window,
            epoch: None,
            plateau_after: 0.0,
            reduced_at: None,
        }
    }

    pub(super) fn window_bytes(&self, mtu: u64) -> u64 {
        whole(self.window * lossy(mtu))
    }

    /// `bytes` were acknowledged while this window, and nothing else, held the sender back.
    pub(super) fn on_ack(&mut self, now: Instant, bytes: u64, rtt: Duration, mtu: u64) {
        let epoch = *self.epoch.get_or_insert(now);
        let acked = lossy(bytes) / lossy(mtu);
        self.reno_window += RENO_ALPHA * acked / self.window;
        let ahead = (now.saturating_duration_since(epoch) + rtt).as_secs_f64();
        let cubic = C * (ahead - self.plateau_after).powi(3) + self.window_max;
        let target = cubic.clamp(self.window, 1.5 * self.window);
        self.window += (target - self.window) * acked / self.window;
        self.window = self.window.max(self.reno_window);
    }

    /// Time in which the sender was held back by something else does not count.
    pub(super) fn pause(&mut self) {
        if self.epoch.take().is_some() {
            self.aim();
        }
    }

    /// A datagram sent at `sent_at` was lost.
    pub(super) fn on_loss(&mut self, now: Instant, sent_at: Instant) {
        if self.reduced_at.is_some_and(|reduced| sent_at <= reduced) {
            return;
        }
        self.reduced_at = Some(now);
        // Fast convergence: who was pushed back below the last maximum makes room.
        self.window_max = if self.window < self.window_max {
            self.window * (1.0 + BETA) / 2.0
        } else {
            self.window
        };
        self.window = (self.window * BETA).max(2.0);
        self.reno_window = self.window;
        self.epoch = None;
        self.aim();
    }

    fn aim(&mut self) {
        self.window_max = self.window_max.max(self.window);
        self.reno_window = self.window;
        self.plateau_after = ((self.window_max - self.window) / C).cbrt();
    }
}

/// A reckoned number of bytes, rounded down; negative ones are none.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates, as wanted"
)]
pub(super) fn whole(bytes: f64) -> u64 {
    bytes as u64
}
