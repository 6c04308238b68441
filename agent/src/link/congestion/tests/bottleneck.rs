//! A bottleneck on a virtual clock: one queue with a rate and a bound, a delay to each side, random
//! loss; and senders that treat their controller as quinn does (its pacer, its loss
//! detection, its probes after a silence).
//!
//! Not a network simulator: paths keep their order, acknowledgements are not lost, and every
//! datagram is acknowledged by itself. Invariant: the same seed gives the same run.

use super::super::Congestion;
use super::super::cubic::Cubic;
use super::super::delivery::lossy;
use super::super::model::Model;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

pub(super) const PACKET_BYTES: u64 = 1400;

/// What the path is from some moment on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Path {
    pub(super) rate: f64,
    pub(super) rtt: Duration,
    pub(super) queue_bytes: f64,
    /// Share of datagrams lost at random.
    pub(super) loss: f64,
    /// The delay wanders between nothing and this, in each direction together.
    pub(super) jitter: Duration,
}

impl Path {
    /// Megabits, milliseconds, and a queue in products of both.
    pub(super) fn new(mbit: f64, rtt_ms: u64, queue_bdp: f64) -> Self {
        let rtt = Duration::from_millis(rtt_ms);
        let rate = mbit * 125_000.0;
        Self {
            rate,
            rtt,
            queue_bytes: queue_bdp * rate * rtt.as_secs_f64(),
            loss: 0.0,
            jitter: Duration::ZERO,
        }
    }

    pub(super) fn with_loss(mut self, loss: f64) -> Self {
        self.loss = loss;
        self
    }

    pub(super) fn with_jitter(mut self, jitter_ms: u64) -> Self {
        self.jitter = Duration::from_millis(jitter_ms);
        self
    }
}

/// What a sender obeys.
enum Control {
    Ours(Box<Model>),
    /// A loss-based flow: slow start, then CUBIC.
    LossBased {
        slow_start: u64,
        cubic: Option<Cubic>,
    },
}

impl Control {
    fn window(&self) -> u64 {
        match self {
            Self::Ours(model) => model.window_bytes(),
            Self::LossBased { slow_start, cubic } => cubic
                .as_ref()
                .map_or(*slow_start, |cubic| cubic.window_bytes(PACKET_BYTES)),
        }
    }
}

struct Sent {
    number: u64,
    at: Instant,
    open: bool,
}

/// A sender and what it has seen.
pub(super) struct Flow {
    control: Control,
    starts_at: Duration,
    /// Bytes that the application has produced after so long.
    supply: fn(Duration) -> u64,
    sent: VecDeque<Sent>,
    sent_bytes: u64,
    retransmit_bytes: u64,
    in_flight_bytes: u64,
    app_limited: bool,
    srtt: Duration,
    tokens: f64,
    tokens_at: Instant,
    send_wanted: bool,
    last_heard: Instant,
    /// (when, bytes arrived in all, round trip), for each datagram acknowledged.
    pub(super) history: Vec<(Duration, u64, Duration)>,
    pub(super) delivered_bytes: u64,
    pub(super) lost_bytes: u64,
}

impl Flow {
    pub(super) fn ours(mode: Congestion, starts_at: Duration, base: Instant) -> Self {
        let model = Model::new(mode, base, 1400);
        Self::new(Control::Ours(Box::new(model)), starts_at, base)
    }

    pub(super) fn loss_based(starts_at: Duration, base: Instant) -> Self {
        let control = Control::LossBased {
            slow_start: 10 * PACKET_BYTES,
            cubic: None,
        };
        Self::new(control, starts_at, base)
    }

    pub(super) fn supplied(mut self, supply: fn(Duration) -> u64) -> Self {
        self.supply = supply;
        self
    }

    fn new(control: Control, starts_at: Duration, base: Instant) -> Self {
        Self {
            control,
            starts_at,
            supply: |_| u64::MAX,
            sent: VecDeque::new(),
            sent_bytes: 0,
            retransmit_bytes: 0,
            in_flight_bytes: 0,
            app_limited: false,
            srtt: Duration::from_millis(333),
            tokens: 0.0,
            tokens_at: base,
            send_wanted: false,
            last_heard: base + starts_at,
            history: Vec::new(),
            delivered_bytes: 0,
            lost_bytes: 0,
        }
    }

    /// Bytes a second that arrived between two moments.
    pub(super) fn goodput(&self, from_s: f64, to_s: f64) -> f64 {
        let until = |seconds: f64| {
            let limit = Duration::from_secs_f64(seconds);
            let after = self.history.partition_point(|(at, ..)| *at <= limit);
            after.checked_sub(1).map_or(0, |last| self.history[last].1)
        };
        lossy(until(to_s) - until(from_s)) / (to_s - from_s)
    }

    /// The round trip that so large a share of the datagrams did not exceed, between two moments.
    pub(super) fn rtt_quantile(&self, from_s: f64, to_s: f64, share: f64) -> Duration {
        let window = from_s..to_s;
        let mut rtts: Vec<Duration> = self
            .history
            .iter()
            .filter(|(at, ..)| window.contains(&at.as_secs_f64()))
            .map(|(.., rtt)| *rtt)
            .collect();
        rtts.sort_unstable();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        let index = ((rtts.len() as f64 - 1.0) * share) as usize;
        rtts[index]
    }

    pub(super) fn window_bytes(&self) -> u64 {
        self.control.window()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Send(usize),
    Ack(usize, u64),
    /// Looks whether everything has gone silent.
    Silence(usize),
}

/// Everything at once.
pub(super) struct World {
    base: Instant,
    /// What the path is, from when on.
    paths: Vec<(Duration, Path)>,
    pub(super) flows: Vec<Flow>,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    order: u64,
    free_at: Instant,
    arrived_at: Vec<Instant>,
    random: u64,
}

impl World {
    pub(super) fn new(seed: u64, paths: Vec<(Duration, Path)>, base: Instant) -> Self {
        Self {
            base,
            paths,
            flows: Vec::new(),
            events: BinaryHeap::new(),
            order: 0,
            free_at: base,
            arrived_at: Vec::new(),
            random: seed,
        }
    }

    pub(super) fn add(&mut self, flow: Flow) {
        let index = self.flows.len();
        let at = self.base + flow.starts_at;
        self.flows.push(flow);
        self.arrived_at.push(self.base);
        self.at(at, Event::Send(index));
        self.at(at + Duration::from_millis(500), Event::Silence(index));
    }

    /// Runs until so long after the beginning.
    pub(super) fn run(&mut self, until: Duration) {
        let end = self.base + until;
        while let Some(Reverse((now, _, event))) = self.events.pop() {
            if now > end {
                self.at(now, event);
                return;
            }
            match event {
                Event::Send(flow) => {
                    self.flows[flow].send_wanted = false;
                    self.send(flow, now);
                }
                Event::Ack(flow, number) => {
                    self.acknowledge(flow, number, now);
                    self.send(flow, now);
                }
                Event::Silence(flow) => self.silence(flow, now),
            }
        }
    }

    fn at(&mut self, when: Instant, event: Event) {
        self.order += 1;
        self.events.push(Reverse((when, self.order, event)));
    }

    fn path(&self, now: Instant) -> Path {
        let elapsed = now.saturating_duration_since(self.base);
        let known = self.paths.partition_point(|(from, _)| *from <= elapsed);
        self.paths[known - 1].1
    }

    fn chance(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        lossy((mixed ^ (mixed >> 31)) >> 11) / lossy(1 << 53)
    }

    /// Sends what the application, the window and the pacer allow.
    fn send(&mut self, index: usize, now: Instant) {
        loop {
            let flow = &mut self.flows[index];
            let elapsed = now.saturating_duration_since(self.base + flow.starts_at);
            if (flow.supply)(elapsed) < flow.sent_bytes - flow.retransmit_bytes + PACKET_BYTES {
                flow.app_limited = true;
                self.wake(index, now + Duration::from_millis(1));
                return;
            }
            flow.app_limited = false;
            let window = flow.control.window();
            if flow.in_flight_bytes + PACKET_BYTES >= window {
                return;
            }
            if let Some(wait) = pace(flow, window, now) {
                self.wake(index, now + wait);
                return;
            }
            self.transmit(index, now);
        }
    }

    fn wake(&mut self, index: usize, at: Instant) {
        if !std::mem::replace(&mut self.flows[index].send_wanted, true) {
            self.at(at, Event::Send(index));
        }
    }

    fn transmit(&mut self, index: usize, now: Instant) {
        let path = self.path(now);
        let flow = &mut self.flows[index];
        let number = flow.sent_bytes / PACKET_BYTES;
        flow.sent_bytes += PACKET_BYTES;
        flow.in_flight_bytes += PACKET_BYTES;
        flow.tokens -= lossy(PACKET_BYTES);
        flow.sent.push_back(Sent {
            number,
            at: now,
            open: true,
        });
        if let Control::Ours(model) = &mut flow.control {
            model.on_sent(now);
        }
        let lost = self.chance() < path.loss;
        let waiting = self.free_at.saturating_duration_since(now).as_secs_f64() * path.rate;
        if lost || path.rate <= 0.0 || waiting + lossy(PACKET_BYTES) > path.queue_bytes {
            return;
        }
        let service = Duration::from_secs_f64(lossy(PACKET_BYTES) / path.rate);
        self.free_at = self.free_at.max(now) + service;
        let jitter = self.jitter(path, now);
        // A wandering delay does not let a datagram overtake another.
        let arrives = (self.free_at + path.rtt + jitter).max(self.arrived_at[index]);
        self.arrived_at[index] = arrives;
        self.at(arrives, Event::Ack(index, number));
    }

    /// Straight lines between random heights, one each 40 ms.
    fn jitter(&self, path: Path, now: Instant) -> Duration {
        let elapsed = now.saturating_duration_since(self.base).as_secs_f64() / 0.040;
        let height = |step: f64| ((step * 12.9898).sin() * 43_758.545).rem_euclid(1.0);
        let (step, share) = (elapsed.floor(), elapsed.fract());
        path.jitter
            .mul_f64(height(step) * (1.0 - share) + height(step + 1.0) * share)
    }

    fn acknowledge(&mut self, index: usize, number: u64, now: Instant) {
        let elapsed = now.saturating_duration_since(self.base);
        let flow = &mut self.flows[index];
        flow.last_heard = now;
        let Some(first) = flow.sent.front().map(|sent| sent.number) else {
            return;
        };
        let place = number
            .checked_sub(first)
            .and_then(|place| usize::try_from(place).ok());
        let Some(sent) = place.and_then(|place| flow.sent.get_mut(place)) else {
            return;
        };
        if !std::mem::replace(&mut sent.open, false) {
            return;
        }
        let sent_at = sent.at;
        let rtt = now.saturating_duration_since(sent_at);
        flow.in_flight_bytes -= PACKET_BYTES;
        flow.delivered_bytes += PACKET_BYTES;
        flow.history.push((elapsed, flow.delivered_bytes, rtt));
        match &mut flow.control {
            Control::Ours(model) => {
                model.on_ack(sent_at, PACKET_BYTES);
                model.on_end_acks(now, flow.in_flight_bytes, flow.app_limited);
            }
            Control::LossBased {
                cubic: Some(cubic), ..
            } => cubic.on_ack(now, PACKET_BYTES, rtt, PACKET_BYTES),
            Control::LossBased { slow_start, .. } => *slow_start += PACKET_BYTES,
        }
        flow.srtt = if flow.history.len() == 1 {
            rtt
        } else {
            (flow.srtt * 7 + rtt) / 8
        };
        detect_loss(flow, number, now);
    }

    /// After a silence of several round trips, two datagrams are sent whatever the window is.
    fn silence(&mut self, index: usize, now: Instant) {
        let flow = &self.flows[index];
        let patience = flow.srtt * 3 + Duration::from_millis(25);
        if flow.in_flight_bytes > 0 && now >= flow.last_heard + patience {
            self.transmit(index, now);
            self.transmit(index, now);
        }
        self.at(now + patience, Event::Silence(index));
    }
}

/// quinn's pacer: 1.25 windows a smoothed round trip, in bursts of 2 ms.
fn pace(flow: &mut Flow, window: u64, now: Instant) -> Option<Duration> {
    let a_second = 1.25 * lossy(window) / flow.srtt.as_secs_f64();
    let capacity =
        (a_second / 1.25 * 0.002).clamp(lossy(10 * PACKET_BYTES), lossy(256 * PACKET_BYTES));
    let elapsed = now.saturating_duration_since(flow.tokens_at).as_secs_f64();
    flow.tokens_at = now;
    flow.tokens = (flow.tokens + elapsed * a_second).min(capacity);
    (flow.tokens < lossy(PACKET_BYTES))
        .then(|| Duration::from_secs_f64((capacity - flow.tokens) / a_second))
}

/// RFC 9002: three later ones were acknowledged; persistent when all of several time-outs is gone.
fn detect_loss(flow: &mut Flow, acked: u64, now: Instant) {
    let mut lost_bytes = 0;
    let mut newest = None;
    let mut run_from: Option<(u64, Instant)> = None;
    let mut longest = Duration::ZERO;
    for sent in flow.sent.iter_mut().take_while(|s| s.number + 3 <= acked) {
        if !std::mem::replace(&mut sent.open, false) {
            continue;
        }
        lost_bytes += PACKET_BYTES;
        newest = Some(sent.at);
        let (next, since) = run_from.unwrap_or((sent.number, sent.at));
        let since = if next == sent.number { since } else { sent.at };
        run_from = Some((sent.number + 1, since));
        longest = longest.max(sent.at.saturating_duration_since(since));
    }
    while flow.sent.front().is_some_and(|sent| !sent.open) {
        flow.sent.pop_front();
    }
    let Some(sent_at) = newest else { return };
    flow.in_flight_bytes -= lost_bytes;
    flow.lost_bytes += lost_bytes;
    flow.retransmit_bytes += lost_bytes;
    let persistent = longest > 3 * (flow.srtt * 2 + Duration::from_millis(25));
    match &mut flow.control {
        Control::Ours(model) => model.on_loss(now, sent_at, persistent, lost_bytes),
        Control::LossBased { slow_start, cubic } => cubic
            .get_or_insert_with(|| Cubic::from_window(*slow_start, PACKET_BYTES))
            .on_loss(now, sent_at),
    }
}
