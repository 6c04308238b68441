//! Congestion control of the link: how many bytes may be under way.
//!
//! quinn's CUBIC takes every lost datagram for a full queue: at 150 ms and 0.1 % of random loss it
//! moves a hundredth of the link. Ours believes the *delivery rate* instead. It measures how fast the
//! path delivers and its least round trip, and keeps a little more than their product under way: the link
//! stays full, the queue short, and loss that comes from the medium costs what it takes and no more.
//!
//! ```text
//!            rate grows no more               queue gone
//!   Start ───────────────────────► Drain ─────────────────► Cruise ◄─┐ rounds pass
//!  ×2 a round (× 2.9)                ▲ × 0.85 (or 0.5)       × 1.12 ──┘
//!     ▲                              │                          │ 6–8 rounds, or the rate grows
//!     │ all lost for                 │  rate did not grow       ▼
//!     │ several time-outs            └──────────────────────  Probe ──┐ rate grew: on, × 1.5
//!   (any phase)                                            × 1.2  ◄───┘
//! ```
//!
//! - **Window only.** quinn paces at 1.25 × window / smoothed RTT and has no other lever; so a gain is
//!   a gain of the window, and a queue of at most `gain − 1` round trips is the price. On short paths a
//!   few milliseconds of queue are allowed whatever the gain: below CoDel's target (RFC 8289) a queue
//!   hurts nobody, and thread scheduling alone takes longer than a round trip there.
//! - **The rate** is the highest sample of ten rounds. A round in which the queue never emptied has
//!   shown the bottleneck's own rate, so older, higher ones are dropped at once: a link that becomes
//!   slower is followed in two rounds.
//! - **The start** believes the first queue that shows, within its round: eight batches of acknowledgements, each
//!   later than the least RTT allows. It then grows no further until the round has shown what it was.
//! - **Application-limited** samples may raise the rate and never lower it, and their rounds do not age it.
//! - **Loss below a tenth of a round is not congestion.** Above, the rate is what was delivered, and
//!   until the next probe went well the queue is not fed.
//! - **The least RTT** is seen anew in each `Drain`. When it was not for ten seconds (the route changed, or
//!   others hold the queue), half a window is withheld for a moment, and what is seen then is the least.
//! - **Loss-based neighbours.** While the queue stays, although ours is not in it, somebody fills it
//!   on purpose. [`Congestion::Throughput`] then keeps at least the window that CUBIC would have in its place;
//!   [`Congestion::Fair`] never has more than that one, whoever is there.
//! - **ECN** marks are taken for what they say: the queue is not fed until the next probe.
//! - **Another path**: a changed address builds a new controller; a changed port alone (a NAT's rebinding)
//!   keeps this one's state.
//!
//! Sources: BBR (draft-ietf-ccwg-bbr) for rate samples, rounds and the filter; Copa (NSDI 2018) for telling
//! loss-based neighbours by a queue that never empties; CUBIC (RFC 9438); RFC 9002 §7.6 for persistent
//! congestion. It is measured by `tidegate-benches wan`.
//!
//! Not a rate limit: that one is [`super::cap`], at the socket. Invariant: no clock and no randomness in
//! here; time comes in with each event, so tests run it on a virtual clock.

mod cubic;
mod delivery;
mod model;
#[cfg(test)]
mod tests;

use model::Model;
use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

/// How a connection shares a bottleneck with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Congestion {
    /// Fills the path whatever its random loss. Beside loss-based flows it takes at least their
    /// share, and most of a bottleneck whose queue is short.
    #[default]
    Throughput,
    /// Never takes more than a loss-based flow (CUBIC) in its place would; on paths with random loss
    /// it is therefore as slow as those are.
    Fair,
}

/// Makes a controller for each new path.
#[derive(Debug, Clone, Copy)]
pub struct CongestionFactory(pub Congestion);

impl ControllerFactory for CongestionFactory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Adapter(Model::new(self.0, now, current_mtu)))
    }
}

/// The model behind quinn's trait: passes events on, decides nothing.
#[derive(Debug, Clone)]
struct Adapter(Model);

impl Controller for Adapter {
    fn on_sent(&mut self, now: Instant, _bytes: u64, _last_packet_number: u64) {
        self.0.on_sent(now);
    }

    fn on_ack(
        &mut self,
        _now: Instant,
        sent: Instant,
        bytes: u64,
        _app_limited: bool,
        _rtt: &RttEstimator,
    ) {
        self.0.on_ack(sent, bytes);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        _largest_packet_num_acked: Option<u64>,
    ) {
        self.0.on_end_acks(now, in_flight, app_limited);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.0
            .on_loss(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.0.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.0.window_bytes()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        model::WINDOW_START_BYTES
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
