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
    packets: BinaryHeap<Reverse<Packet>>,
}

/// Ordered by when it leaves the path, then by when it came.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    due: Duration,
    order: u64,
    /// When the link will have sent it; it is on its way from then on.
    sent_at: Duration,
    bytes: Vec<u8>,
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
            let slower = before.rate / shape.rate;
            let later = |at: Duration| match at.checked_sub(now) {
                Some(backlog) => now + backlog.mul_f64(slower),
                None => at,
            };
            self.free_at = later(self.free_at);
            self.last_due = Duration::ZERO;
            let mut packets = std::mem::take(&mut self.packets).into_vec();
            packets.sort_unstable_by_key(|Reverse(packet)| packet.order);
            for Reverse(packet) in &mut packets {
                let on_its_way = packet.due.saturating_sub(packet.sent_at);
                packet.sent_at = later(packet.sent_at);
                packet.due = packet.sent_at + on_its_way;
                if !shape.overtaking {
                    packet.due = packet.due.max(self.last_due);
                }
                self.last_due = packet.due;
            }
            self.packets = packets.into();
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
        self.packets.push(Reverse(Packet {
            due,
            order: self.order,
            sent_at: self.free_at,
            bytes: packet,
        }));
        Verdict::Waits(wait)
    }

    /// The next packet that should have left by `now`, and since when.
    pub(super) fn due(&mut self, now: Duration) -> Option<(Duration, Vec<u8>)> {
        if self.next_due()? > now {
            return None;
        }
        self.packets
            .pop()
            .map(|Reverse(packet)| (packet.due, packet.bytes))
    }

    pub(super) fn next_due(&self) -> Option<Duration> {
        self.packets.peek().map(|Reverse(packet)| packet.due)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

    use super::{Queue, Shape, Verdict};
    use std::time::Duration;

    const PACKET_BYTES: usize = 1000;

    /// A packet takes a millisecond, a way 50 ms; ten packets may wait.
    fn shape() -> Shape {
        Shape {
            rate: 1e6,
            rtt: ms(100),
            queue_bytes: 10.0 * 1000.0,
            loss: 0.0,
            jitter: Duration::ZERO,
            overtaking: false,
        }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn queue(shape: Shape) -> Queue {
        let mut queue = Queue::new(7);
        queue.reshape(Duration::ZERO, shape);
        queue
    }

    /// A packet that carries its number.
    fn packet(number: u32) -> Vec<u8> {
        let mut packet = vec![0; PACKET_BYTES];
        packet[..4].copy_from_slice(&number.to_le_bytes());
        packet
    }

    /// What has left the path: when, and which.
    fn left(queue: &mut Queue) -> Vec<(Duration, u32)> {
        std::iter::from_fn(|| queue.due(Duration::MAX))
            .map(|(due, packet)| (due, u32::from_le_bytes(packet[..4].try_into().unwrap())))
            .collect()
    }

    /// Rounded: rates are floating point.
    fn near(found: Duration, expected: Duration) {
        assert!(
            found.abs_diff(expected) < Duration::from_micros(1),
            "{found:?} is not {expected:?}"
        );
    }

    /// Packets at a tenth of the rate, so that none waits for another.
    fn spread(queue: &mut Queue, packets: u32) -> u32 {
        let lost = (0..packets).filter(|number| {
            let verdict = queue.admit(ms(10) * *number, packet(*number));
            matches!(verdict, Verdict::Lost)
        });
        u32::try_from(lost.count()).unwrap()
    }

    #[test]
    fn packets_leave_at_the_rate_after_half_a_round_trip() {
        let mut queue = queue(shape());
        for number in 0..10 {
            let Verdict::Waits(wait) = queue.admit(ms(5), packet(number)) else {
                panic!("packet {number} does not pass");
            };
            near(wait, ms(number.into()));
        }
        near(queue.next_due().unwrap(), ms(5 + 1 + 50));
        assert!(queue.due(ms(5 + 50)).is_none());
        for (due, number) in left(&mut queue) {
            near(due, ms(5 + u64::from(number + 1) + 50));
        }
    }

    #[test]
    fn a_path_that_was_idle_has_not_saved_its_rate() {
        let mut queue = queue(shape());
        queue.admit(ms(0), packet(0));
        queue.admit(ms(1000), packet(1));
        queue.admit(ms(1000), packet(2));
        let left = left(&mut queue);
        near(left[1].0, ms(1000 + 1 + 50));
        near(left[2].0, ms(1000 + 2 + 50));
    }

    #[test]
    fn a_full_queue_takes_nothing_until_a_packet_has_left_it() {
        let mut queue = queue(shape());
        for number in 0..10 {
            let verdict = queue.admit(ms(0), packet(number));
            assert!(matches!(verdict, Verdict::Waits(_)), "{number}");
        }
        assert!(matches!(
            queue.admit(ms(0), packet(10)),
            Verdict::Overflowed
        ));
        // It is bytes that count: a small one finds no room either, where all of it is taken.
        assert!(matches!(queue.admit(ms(0), vec![0]), Verdict::Overflowed));
        assert!(matches!(
            queue.admit(Duration::from_micros(1001), packet(11)),
            Verdict::Waits(_)
        ));
        let numbers: Vec<u32> = left(&mut queue).iter().map(|(_, number)| *number).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11]);
    }

    #[test]
    fn the_share_that_is_lost_is_the_one_that_was_asked_for() {
        for (loss, least, most) in [(0.0, 0, 0), (0.01, 900, 1100), (1.0, 100_000, 100_000)] {
            let mut queue = queue(Shape { loss, ..shape() });
            let lost = spread(&mut queue, 100_000);
            assert!((least..=most).contains(&lost), "{lost} at {loss}");
            assert_eq!(left(&mut queue).len(), 100_000 - lost as usize);
        }
    }

    #[test]
    fn a_seed_loses_the_same_packets_and_another_seed_others() {
        let numbers = |seed| {
            let mut queue = Queue::new(seed);
            let loss = 0.1;
            queue.reshape(Duration::ZERO, Shape { loss, ..shape() });
            spread(&mut queue, 1000);
            left(&mut queue)
        };
        assert_eq!(numbers(1), numbers(1));
        assert_ne!(numbers(1), numbers(2));
    }

    #[test]
    fn wandering_jitter_keeps_its_bound_and_the_order() {
        // It falls by more than the time between two packets, so that the later would overtake.
        let jitter = ms(200);
        let mut queue = queue(Shape { jitter, ..shape() });
        for number in 0..5000 {
            queue.admit(ms(1) * number, packet(number));
        }
        let left = left(&mut queue);
        assert!(left.iter().map(|(_, number)| *number).eq(0..5000));
        let extra: Vec<Duration> = delays(&left, 1).collect();
        assert!(extra.iter().all(|extra| *extra <= jitter), "{extra:?}");
        assert!(*extra.iter().max().unwrap() > ms(190));
        assert!(*extra.iter().min().unwrap() < ms(20));
    }

    #[test]
    fn overtaking_jitter_keeps_its_bound_and_not_the_order() {
        let (jitter, overtaking) = (ms(20), true);
        let mut queue = queue(Shape {
            jitter,
            overtaking,
            ..shape()
        });
        spread(&mut queue, 5000);
        let left = left(&mut queue);
        assert!(left.is_sorted_by_key(|(due, _)| *due));
        assert!(!left.is_sorted_by_key(|(_, number)| *number));
        let extra: Vec<Duration> = delays(&left, 10).collect();
        assert!(extra.iter().all(|extra| *extra <= jitter), "{extra:?}");
        assert!(*extra.iter().max().unwrap() > ms(19));
        assert!(*extra.iter().min().unwrap() < ms(1));
    }

    /// By how much packets that came so many milliseconds apart were later than without jitter.
    fn delays(left: &[(Duration, u32)], apart_ms: u32) -> impl Iterator<Item = Duration> {
        // Rounded away: rates are floating point.
        left.iter().map(move |(due, number)| {
            let slack = Duration::from_micros(1);
            (*due - slack).saturating_sub(ms(1 + 50) + ms(1) * apart_ms * *number)
        })
    }

    #[test]
    fn a_shorter_path_lets_no_packet_overtake_those_under_way() {
        let mut queue = queue(shape());
        queue.admit(ms(0), packet(0));
        let rtt = ms(10);
        queue.reshape(ms(10), Shape { rtt, ..shape() });
        queue.admit(ms(10), packet(1));
        queue.admit(ms(60), packet(2));
        let left = left(&mut queue);
        near(left[0].0, ms(51));
        near(left[1].0, ms(51));
        near(left[2].0, ms(60 + 1 + 5));
        assert!(left.iter().map(|(_, number)| *number).eq(0..3));
    }

    #[test]
    fn what_waits_goes_on_at_the_new_rate() {
        for (rate, then_ms) in [(0.5e6, 8 * 2), (2e6, 8 / 2)] {
            let mut queue = queue(shape());
            for number in 0..10 {
                queue.admit(ms(0), packet(number));
            }
            // Two have gone, eight wait.
            queue.reshape(ms(2), Shape { rate, ..shape() });
            let Verdict::Waits(wait) = queue.admit(ms(2), packet(10)) else {
                panic!("there is room for two");
            };
            near(wait, ms(then_ms));
            // Those on their way are not touched; the one that came last is sent last.
            let left = left(&mut queue);
            assert!(left.iter().map(|(_, number)| *number).eq(0..11));
            near(left[0].0, ms(1 + 50));
            near(left[1].0, ms(2 + 50));
            near(left[9].0, ms(2 + then_ms + 50));
            near(left[10].0, ms(2 + then_ms + 50) + ms(then_ms) / 8);
        }
    }

    #[test]
    fn a_faster_link_lets_no_packet_overtake_those_that_wait() {
        for seed in 0..5 {
            let mut queue = Queue::new(seed);
            let slow = Shape {
                jitter: ms(200),
                queue_bytes: 1e6,
                ..shape()
            };
            queue.reshape(Duration::ZERO, slow);
            // Twice what the link sends: half of it waits.
            for number in 0..400 {
                queue.admit(Duration::from_micros(500) * number, packet(number));
            }
            let rate = 1e8;
            queue.reshape(ms(200), Shape { rate, ..slow });
            let left = left(&mut queue);
            assert!(left.iter().map(|(_, number)| *number).eq(0..400), "{seed}");
        }
    }

    #[test]
    fn no_shape_is_no_path() {
        let verdict = Queue::new(1).admit(Duration::ZERO, packet(0));
        assert!(matches!(verdict, Verdict::Lost));
    }
}
