//! The controller: a pure state machine from sends, acknowledgements and losses to a window.
//!
//! The phases, and why, are told in [`super`]. Nothing in here reads a clock. Invariant, after every event:
//! the window is between `WINDOW_MIN_PACKETS` datagrams and `WINDOW_MAX_BYTES`, and at most the phase's gain
//! times rate times least RTT, plus what short paths are allowed, but for a floor that CUBIC would
//! have too.

use super::Congestion;
use super::cubic::{Cubic, whole};
use super::delivery::{Delivery, Sample, lossy};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Before anything is known. A round trip carries it, paced: 7 Mbit/s at 150 ms. With RFC 6928's
/// ten datagrams, a path of 300 ms would take a second longer to fill.
pub(super) const WINDOW_START_BYTES: u64 = 128 << 10;
/// RFC 9002 says two; four keep acknowledgements coming that are sent for every second datagram.
const WINDOW_MIN_PACKETS: u64 = 4;
/// While a queue drains: enough to see the round trip.
const WINDOW_DRAIN_PACKETS: u64 = 16;
/// 10 Gbit/s for 400 ms. Above 4 GiB quinn does not pace.
const WINDOW_MAX_BYTES: u64 = 512 << 20;
/// Datagrams that wait for their acknowledgement at the receiver, or for each other in a burst.
const WINDOW_SLACK_PACKETS: u64 = 3;

/// Doubles, for the rate known is that of a round trip ago and grew since (2 / ln 2, as in BBR).
const GAIN_START: f64 = 2.89;
/// While a queue shows in `Start`. What is known of it is a round trip old: without this, the queue would get
/// more than the whole path holds.
const GAIN_START_QUEUED: f64 = 1.25;
const GAIN_CRUISE: f64 = 1.12;
const GAIN_PROBE: f64 = 1.2;
const GAIN_CLIMB: f64 = 1.5;
const GAIN_DRAIN: f64 = 0.85;
const GAIN_DRAIN_DEEP: f64 = 0.5;
/// After heavy loss or an ECN mark.
const GAIN_RESTRAINED: f64 = 1.0;
/// Queue allowed on short paths, for a gain one above one: 5 ms in `Cruise`.
const QUEUE_PER_GAIN: Duration = Duration::from_millis(42);

/// In `Start`: so many batches of acknowledgements in a row, each with an RTT so far above the least, show a
/// queue.
const QUEUED_BATCHES: u32 = 8;
const QUEUED_GAIN: f64 = 1.06;
const QUEUED_MIN: Duration = Duration::from_millis(4);
/// A round that did not bring that much is a sign of a full path.
const START_GROWTH: f64 = 1.25;
/// So many such rounds are proof, also when no queue is seen.
const START_STALLS_MAX: u8 = 3;
/// Later: growth that is worth climbing after.
const CLIMB_GROWTH: f64 = 1.1;
const CRUISE_ROUNDS: u64 = 6;
const RATES_ROUNDS: usize = 10;

/// A least RTT is believed so long.
const LEAST_AGE_MAX: Duration = Duration::from_secs(10);
/// Samples so little above count as the least seen again.
const LEAST_TOLERANCE: f64 = 1.05;
/// A round whose every RTT was that far above the least had a queue all the time.
const CROWDED_GAIN: f64 = 1.25;
const CROWDED_MIN: Duration = Duration::from_millis(12);
/// A round with an RTT so little above the least had none for a moment.
const EMPTY_GAIN: f64 = 1.06;
/// Ours lets the queue empty in each cycle of eight or nine rounds. When it did not in two, somebody else
/// is in it.
const EMPTY_ROUNDS_MAX: u32 = 18;
const EMPTY_MIN: Duration = Duration::from_millis(1);
/// So many such rounds in a row call for a drain, and so many for the conclusion that the queue is not ours.
const CROWDED_DRAIN: u32 = 3;
const CROWDED_CONTENDED: u32 = 5;

/// Loss of less is not congestion; judged over at least so many datagrams.
const LOSS_TOLERATED: f64 = 0.10;
const LOSS_JUDGED_PACKETS: u64 = 64;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// Doubling. `best` is the rate that was the last to be a growth.
    Start {
        best: f64,
        stalls: u8,
    },
    /// Letting a queue go. `reached`: since when no more than the gain is under way.
    Drain {
        deep: bool,
        reached: Option<Instant>,
        rounds: u8,
    },
    /// `rate_before`: what the rate was when it began.
    Cruise {
        rounds_left: u64,
        rate_before: f64,
    },
    Probe {
        rate_before: f64,
        climbing: bool,
    },
}

/// What one round trip has shown.
#[derive(Debug, Clone, Copy)]
struct Round {
    /// Ends with the acknowledgement of a datagram sent when so much was delivered.
    ends_at_bytes: u64,
    /// The highest sample that was not limited by the application; 0 = none.
    rate: f64,
    rtt_min: Duration,
    marked: bool,
}

#[derive(Debug, Clone, Copy)]
struct LeastRtt {
    rtt: Duration,
    seen_at: Instant,
}

/// The state of one path.
#[derive(Debug, Clone)]
pub(super) struct Model {
    mode: Congestion,
    mtu: u64,
    delivery: Delivery,
    phase: Phase,
    round: Round,
    /// The rates of the last rounds that count, newest last.
    rates: VecDeque<f64>,
    least: Option<LeastRtt>,
    /// The window is at least this in `Start`.
    start_bytes: u64,
    /// Delivered and lost since loss was judged last.
    judged_from_bytes: u64,
    lost_bytes: u64,
    /// Heavy loss or a mark was seen; the queue is not fed until a probe has gone well.
    restrained: bool,
    /// Batches of acknowledgements in a row that showed a queue.
    queued_batches: u32,
    /// Rounds in a row that had a queue all the time.
    crowded_rounds: u32,
    /// Since the queue was seen empty last, and what the window was then.
    rounds_since_empty: u32,
    alone_window_bytes: u64,
    /// Somebody else fills the queue.
    contended: bool,
    cubic: Option<Cubic>,
    /// As it was said last.
    in_flight_bytes: u64,
    window_bytes: u64,
}

impl Model {
    pub(super) fn new(mode: Congestion, now: Instant, mtu: u16) -> Self {
        Self {
            mode,
            mtu: u64::from(mtu),
            delivery: Delivery::new(now),
            phase: Phase::Start {
                best: 0.0,
                stalls: 0,
            },
            round: Round::new(0),
            rates: VecDeque::new(),
            least: None,
            start_bytes: WINDOW_START_BYTES,
            judged_from_bytes: 0,
            lost_bytes: 0,
            restrained: false,
            queued_batches: 0,
            crowded_rounds: 0,
            rounds_since_empty: 0,
            alone_window_bytes: WINDOW_START_BYTES,
            contended: false,
            cubic: None,
            in_flight_bytes: 0,
            window_bytes: WINDOW_START_BYTES,
        }
    }

    /// Bytes that may be in flight.
    pub(super) fn window_bytes(&self) -> u64 {
        self.window_bytes
    }

    /// Datagrams leave.
    pub(super) fn on_sent(&mut self, now: Instant) {
        self.delivery.on_sent(now);
    }

    /// A datagram has arrived. Batches end with [`Self::on_end_acks`].
    pub(super) fn on_ack(&mut self, sent_at: Instant, bytes: u64) {
        self.delivery.on_ack(sent_at, bytes);
    }

    /// All acknowledgements that came at `now` were given. `app_limited`: before them, there was
    /// nothing to send although the window allowed it.
    pub(super) fn on_end_acks(&mut self, now: Instant, in_flight_bytes: u64, app_limited: bool) {
        self.in_flight_bytes = in_flight_bytes;
        let Some(sample) = self.delivery.end_batch(now, in_flight_bytes, app_limited) else {
            return;
        };
        self.see(now, sample);
        if sample.delivered_before_bytes >= self.round.ends_at_bytes {
            self.end_round();
        }
        self.step_drain(now, sample, in_flight_bytes);
        self.probe_aged_rtt(now);
        self.grow_cubic(now, sample, app_limited);
        self.set_window();
    }

    /// Datagrams, the newest sent at `sent_at`, are lost (`lost_bytes`) or were marked (0).
    /// `persistent`: everything was lost for several time-outs.
    pub(super) fn on_loss(
        &mut self,
        now: Instant,
        sent_at: Instant,
        persistent: bool,
        lost_bytes: u64,
    ) {
        if persistent {
            self.start_over();
            return;
        }
        self.lost_bytes += lost_bytes;
        self.round.marked |= lost_bytes == 0;
        if self.cubic.is_none() && self.mode == Congestion::Fair {
            // In a drain more is still under way than the window is.
            let window = self.window_bytes.max(self.in_flight_bytes);
            self.cubic = Some(Cubic::from_window(window, self.mtu));
        }
        if let Some(cubic) = &mut self.cubic {
            cubic.on_loss(now, sent_at);
        }
        if self.mode == Congestion::Fair && matches!(self.phase, Phase::Start { .. }) {
            self.drain(false);
        }
        self.set_window();
    }

    pub(super) fn on_mtu_update(&mut self, mtu: u16) {
        self.mtu = u64::from(mtu);
        self.set_window();
    }

    /// Takes a sample in.
    fn see(&mut self, now: Instant, sample: Sample) {
        self.round.rtt_min = self.round.rtt_min.min(sample.rtt);
        match &mut self.least {
            Some(least) if sample.rtt > least.rtt.mul_f64(LEAST_TOLERANCE) => {}
            Some(least) => {
                least.rtt = least.rtt.min(sample.rtt);
                least.seen_at = now;
            }
            None => {
                self.least = Some(LeastRtt {
                    rtt: sample.rtt,
                    seen_at: now,
                });
            }
        }
        let is_queued = self
            .least
            .is_some_and(|least| above(sample.rtt, least, QUEUED_GAIN, QUEUED_MIN));
        self.queued_batches = if is_queued {
            self.queued_batches + 1
        } else {
            0
        };
        // A sender that had nothing to send proves that the path is so fast, and not that it is so slow.
        if !sample.app_limited || sample.rate > self.rate() {
            self.round.rate = self.round.rate.max(sample.rate);
        }
    }

    fn end_round(&mut self) {
        let ended = std::mem::replace(&mut self.round, Round::new(self.delivery.delivered_bytes()));
        let crowded = self.is_crowded(ended.rtt_min);
        if ended.rate > 0.0 {
            if crowded {
                // The queue stood all the time: this is the bottleneck's rate, not a lower bound of it.
                let recent = self.rates.len().saturating_sub(1);
                self.rates.drain(..recent);
            }
            if self.rates.len() == RATES_ROUNDS {
                self.rates.pop_front();
            }
            self.rates.push_back(ended.rate);
        }
        if crowded && !matches!(self.phase, Phase::Start { .. }) {
            self.crowded_rounds += 1;
        } else {
            self.crowded_rounds = 0;
        }
        let empty = self
            .least
            .is_some_and(|least| ended.rtt_min <= least.rtt.mul_f64(EMPTY_GAIN) + EMPTY_MIN);
        self.rounds_since_empty = if empty {
            0
        } else {
            self.rounds_since_empty + 1
        };
        if empty {
            self.alone_window_bytes = self.target_bytes(GAIN_CRUISE);
        }
        self.contended = self.crowded_rounds >= CROWDED_CONTENDED || self.contended && !empty;
        let congested = self.judge_loss(ended);
        self.step(ended, crowded, congested);
    }

    /// Whether since the last judgement too much was lost.
    fn judge_loss(&mut self, ended: Round) -> bool {
        let arrived = self.delivery.delivered_bytes() - self.judged_from_bytes;
        let sent = arrived + self.lost_bytes;
        if sent < LOSS_JUDGED_PACKETS * self.mtu {
            return ended.marked;
        }
        let heavy = lossy(self.lost_bytes) >= LOSS_TOLERATED * lossy(sent);
        self.judged_from_bytes = self.delivery.delivered_bytes();
        self.lost_bytes = 0;
        if heavy && ended.rate > 0.0 {
            self.rates.clear();
            self.rates.push_back(ended.rate);
        }
        heavy || ended.marked
    }

    /// The phase after a round.
    fn step(&mut self, ended: Round, crowded: bool, congested: bool) {
        let rate = self.rate();
        if congested {
            self.restrained = true;
            if !matches!(self.phase, Phase::Drain { .. }) {
                self.drain(false);
            }
            return;
        }
        match self.phase {
            Phase::Start { best, stalls } => {
                if ended.rate >= best * START_GROWTH {
                    self.phase = Phase::Start {
                        best: ended.rate,
                        stalls: 0,
                    };
                } else if ended.rate > 0.0 && (crowded || stalls + 1 >= START_STALLS_MAX) {
                    self.drain(false);
                } else if ended.rate > 0.0 {
                    self.phase = Phase::Start {
                        best,
                        stalls: stalls + 1,
                    };
                }
            }
            Phase::Cruise {
                rounds_left,
                rate_before,
            } => {
                if !crowded && rate >= rate_before * CLIMB_GROWTH {
                    self.phase = Phase::Probe {
                        rate_before: rate,
                        climbing: !self.restrained,
                    };
                } else if crowded && self.crowded_rounds.is_multiple_of(CROWDED_DRAIN) {
                    self.drain(false);
                } else if rounds_left == 0 {
                    self.phase = Phase::Probe {
                        rate_before: rate,
                        climbing: false,
                    };
                } else if ended.rate > 0.0 {
                    self.phase = Phase::Cruise {
                        rounds_left: rounds_left - 1,
                        rate_before,
                    };
                }
            }
            Phase::Probe { rate_before, .. } => {
                self.restrained = false;
                if !crowded && rate >= rate_before * CLIMB_GROWTH {
                    self.phase = Phase::Probe {
                        rate_before: rate,
                        climbing: true,
                    };
                } else {
                    self.drain(false);
                }
            }
            Phase::Drain {
                deep,
                reached,
                rounds,
            } => {
                self.phase = Phase::Drain {
                    deep,
                    reached,
                    rounds: rounds.saturating_add(1),
                };
                // Less than the gain is under way for two rounds, as far as we can tell: enough.
                if rounds >= 2 && reached.is_none() && !deep {
                    self.cruise();
                }
            }
        }
    }

    fn drain(&mut self, deep: bool) {
        self.phase = Phase::Drain {
            deep,
            reached: None,
            rounds: 0,
        };
    }

    fn cruise(&mut self) {
        // Flows that share a path must not keep step; what was delivered differs between them.
        let stagger = self.delivery.delivered_bytes() / self.mtu % 3;
        self.phase = Phase::Cruise {
            rounds_left: CRUISE_ROUNDS + stagger,
            rate_before: self.rate(),
        };
    }

    /// A drain ends when the queue had time to go and the path was seen without it.
    fn step_drain(&mut self, now: Instant, sample: Sample, in_flight_bytes: u64) {
        let Phase::Drain {
            deep,
            reached,
            rounds,
        } = self.phase
        else {
            return;
        };
        let (Some(least), gain) = (self.least, if deep { GAIN_DRAIN_DEEP } else { GAIN_DRAIN })
        else {
            return self.cruise();
        };
        let Some(reached) = reached else {
            if in_flight_bytes <= self.target_bytes(gain) + WINDOW_SLACK_PACKETS * self.mtu {
                self.phase = Phase::Drain {
                    deep,
                    reached: Some(now),
                    rounds,
                };
            }
            return;
        };
        let held = now.saturating_duration_since(reached);
        if !deep {
            if held >= least.rtt / 8 {
                self.cruise();
            }
            return;
        }
        // The first datagrams sent into the emptied path come back after a round trip.
        if held >= least.rtt.mul_f64(1.25) || held >= sample.rtt {
            self.least = Some(LeastRtt {
                rtt: self.round.rtt_min.min(sample.rtt),
                seen_at: now,
            });
            self.crowded_rounds = 0;
            self.cruise();
        }
    }

    /// A least RTT that was not seen for long may be history.
    fn probe_aged_rtt(&mut self, now: Instant) {
        let aged = self
            .least
            .is_some_and(|least| now.saturating_duration_since(least.seen_at) >= LEAST_AGE_MAX);
        let busy = matches!(
            self.phase,
            Phase::Start { .. } | Phase::Drain { deep: true, .. }
        );
        if aged && !busy {
            self.drain(true);
        }
    }

    fn grow_cubic(&mut self, now: Instant, sample: Sample, idle: bool) {
        if self.mode == Congestion::Throughput && !self.contended {
            self.cubic = None;
            return;
        }
        if self.contended && self.cubic.is_none() {
            // Ours has shrunk since in vain.
            self.cubic = Some(Cubic::from_window(self.alone_window_bytes, self.mtu));
        }
        let Some(cubic) = &mut self.cubic else {
            return;
        };
        if idle || cubic.window_bytes(self.mtu) > self.window_bytes {
            cubic.pause();
        } else {
            cubic.on_ack(now, sample.acked_bytes, sample.rtt, self.mtu);
        }
    }

    /// Everything was lost: what was known of the path holds no more.
    fn start_over(&mut self) {
        self.phase = Phase::Start {
            best: 0.0,
            stalls: 0,
        };
        self.rates.clear();
        self.round = Round::new(self.delivery.delivered_bytes());
        self.least = None;
        self.start_bytes = WINDOW_MIN_PACKETS * self.mtu;
        self.judged_from_bytes = self.delivery.delivered_bytes();
        self.lost_bytes = 0;
        self.crowded_rounds = 0;
        self.contended = false;
        self.cubic = None;
        self.set_window();
    }

    fn set_window(&mut self) {
        let wanted = match self.phase {
            Phase::Start { .. } if self.queued_batches >= QUEUED_BATCHES => {
                self.target_bytes(GAIN_START_QUEUED).max(self.start_bytes)
            }
            Phase::Start { .. } => self.target_bytes(GAIN_START).max(self.start_bytes),
            Phase::Drain { deep: true, .. } => self.drain_bytes(GAIN_DRAIN_DEEP),
            Phase::Drain { deep: false, .. } => self.drain_bytes(GAIN_DRAIN),
            Phase::Cruise { .. } if self.restrained => self.target_bytes(GAIN_RESTRAINED),
            Phase::Cruise { .. } => self.target_bytes(GAIN_CRUISE),
            Phase::Probe { .. } if self.restrained => self.target_bytes(GAIN_CRUISE),
            Phase::Probe { climbing: true, .. } => self.target_bytes(GAIN_CLIMB),
            Phase::Probe { .. } => self.target_bytes(GAIN_PROBE),
        };
        let deep = matches!(self.phase, Phase::Drain { deep: true, .. });
        let cubic = self
            .cubic
            .as_ref()
            .map(|cubic| cubic.window_bytes(self.mtu));
        let shared = match self.mode {
            Congestion::Throughput if deep => wanted,
            Congestion::Throughput => wanted.max(cubic.unwrap_or(0)).max(self.held_bytes()),
            Congestion::Fair if self.contended && !deep => cubic.unwrap_or(wanted),
            Congestion::Fair => wanted.min(cubic.unwrap_or(wanted)),
        };
        self.window_bytes = shared.clamp(WINDOW_MIN_PACKETS * self.mtu, WINDOW_MAX_BYTES);
    }

    /// What is not given up to those who keep the queue from emptying.
    fn held_bytes(&self) -> u64 {
        if self.contended || self.rounds_since_empty >= EMPTY_ROUNDS_MAX {
            self.alone_window_bytes
        } else {
            0
        }
    }

    fn drain_bytes(&self, gain: f64) -> u64 {
        self.target_bytes(gain)
            .max(WINDOW_DRAIN_PACKETS * self.mtu)
            .min(self.target_bytes(GAIN_CRUISE))
    }

    /// What is under way at `gain`.
    fn target_bytes(&self, gain: f64) -> u64 {
        let Some(least) = self.least else {
            return 0;
        };
        let seconds = least.rtt.as_secs_f64();
        let queue = (gain - 1.0).max(0.0) * QUEUE_PER_GAIN.as_secs_f64();
        let product = self.rate() * (gain * seconds).max(seconds.mul_add(gain.min(1.0), queue));
        whole(product) + WINDOW_SLACK_PACKETS * self.mtu
    }

    /// Bytes a second, the highest of the last rounds.
    fn rate(&self) -> f64 {
        let rounds = self.rates.iter().copied().fold(0.0, f64::max);
        rounds.max(self.round.rate)
    }

    fn is_crowded(&self, rtt_min: Duration) -> bool {
        self.least
            .is_some_and(|least| above(rtt_min, least, CROWDED_GAIN, CROWDED_MIN))
    }
}

/// Whether it exceeds the least by a factor, and by no less than so much.
fn above(rtt: Duration, least: LeastRtt, gain: f64, least_excess: Duration) -> bool {
    rtt >= least.rtt.mul_f64(gain).max(least.rtt + least_excess)
}

impl Round {
    fn new(ends_at_bytes: u64) -> Self {
        Self {
            ends_at_bytes,
            rate: 0.0,
            rtt_min: Duration::MAX,
            marked: false,
        }
    }
}
