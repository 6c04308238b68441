//! One direction of a path: when a packet leaves it, if at all.
//!
//! No I/O and no clock. Invariant: without `overtaking`, packets leave in the order they came.

use super::Shape;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// How often wandering jitter takes another direction.
const WANDER_STEP_SECONDS: f64 = 0.040;

pub(super) enum Verdict {
    /// Passes, after so long in the queue.
    Waits(Duration),
    Lost,
    Overflowed,
}

pub(super) struct Queue {
    shape: Option<Shape>,
    random: u64,
    seed: u64,
    /// When the link will have sent all that was admitted.
    free_at: Duration,
    last_due: Duration,
    order: u64,
    packets: BinaryHeap<Reverse<(Duration, u64, Vec<u8>)>>,
}

impl Queue {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            shape: None,
            random: seed,
            seed,
            free_at: Duration::ZERO,
            last_due: Duration::ZERO,
            order: 0,
            packets: BinaryHeap::new(),
        }
    }

    /// From now on the path is `shape`; what waits leaves at the new rate.
    pub(super) fn reshape(&mut self, now: Duration, shape: Shape) {
        if let Some(before) = self.shape.replace(shape)
            && (before.rate - shape.rate).abs() > 1.0
        {
            let backlog = self.free_at.saturating_sub(now);
            self.free_at = now + backlog.mul_f64(before.rate / shape.rate);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a packet is small")]
    pub(super) fn admit(&mut self, now: Duration, packet: Vec<u8>) -> Verdict {
        let Some(shape) = self.shape else {
            return Verdict::Lost;
        };
        if self.chance() < shape.loss {
            return Verdict::Lost;
        }
        let bytes = packet.len() as f64;
        let wait = self.free_at.saturating_sub(now);
        if wait.as_secs_f64() * shape.rate + bytes > shape.queue_bytes {
            return Verdict::Overflowed;
        }
        self.free_at = now + wait + Duration::from_secs_f64(bytes / shape.rate);
        let jitter = if shape.overtaking {
            self.chance()
        } else {
            self.wander(now)
        };
        let mut due = self.free_at + shape.rtt / 2 + shape.jitter.mul_f64(jitter);
        if !shape.overtaking {
            due = due.max(self.last_due);
        }
        self.last_due = due;
        self.order += 1;
        self.packets.push(Reverse((due, self.order, packet)));
        Verdict::Waits(wait)
    }

    /// The next packet that should have left by `now`, and since when.
    pub(super) fn due(&mut self, now: Duration) -> Option<(Duration, Vec<u8>)> {
        if self.next_due()? > now {
            return None;
        }
        self.packets
            .pop()
            .map(|Reverse((due, _, packet))| (due, packet))
    }

    pub(super) fn next_due(&self) -> Option<Duration> {
        self.packets.peek().map(|Reverse((due, ..))| *due)
    }

    /// Straight lines between random heights.
    fn wander(&self, now: Duration) -> f64 {
        let steps = now.as_secs_f64() / WANDER_STEP_SECONDS;
        let share = steps.fract();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count of steps"
        )]
        let step = steps as u64;
        let height = |step: u64| unit(mix(self.seed ^ step.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        height(step) * (1.0 - share) + height(step + 1) * share
    }

    fn chance(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        unit(mix(self.random))
    }
}

/// SplitMix64's finish.
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[expect(clippy::cast_precision_loss, reason = "53 bits")]
fn unit(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 53) as f64
}
