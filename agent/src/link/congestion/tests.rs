//! The controller in each of its phases, on a virtual clock.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod bottleneck;

use super::Congestion::{self, Fair, Throughput};
use bottleneck::{Flow, PACKET_BYTES, Path, World};
use std::time::{Duration, Instant};

const SEED: u64 = 7;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// One flow of ours on a path that changes at the times given.
fn alone(mode: Congestion, paths: Vec<(Duration, Path)>, until_s: u64) -> Flow {
    let base = Instant::now();
    let mut world = World::new(SEED, paths, base);
    world.add(Flow::ours(mode, Duration::ZERO, base));
    world.run(seconds(until_s));
    world.flows.remove(0)
}

/// Goodput from `from_s` on, as a share of the link, is at least `share`; and RTTs are bounded.
fn assert_full(what: &str, flow: &Flow, path: Path, from_s: f64, to_s: f64, share: f64) {
    let got = flow.goodput(from_s, to_s) / path.rate;
    let median = flow.rtt_quantile(from_s, to_s, 0.5).as_secs_f64() / path.rtt.as_secs_f64();
    let p95 = flow.rtt_quantile(from_s, to_s, 0.95).as_secs_f64() / path.rtt.as_secs_f64();
    println!("{what}: {got:.3} of the link, RTT ×{median:.2}, p95 ×{p95:.2} (seed {SEED})");
    assert!(got >= share, "{what}: {got} of the link (seed {SEED})");
    assert!(
        median <= 1.25 && p95 <= 1.30,
        "{what}: RTT ×{median}, p95 ×{p95} (seed {SEED})"
    );
}

#[test]
fn fills_links_of_all_kinds_and_keeps_the_queue_short() {
    for (mbit, rtt_ms) in [
        (50.0, 150),
        (50.0, 50),
        (50.0, 300),
        (5.0, 150),
        (150.0, 50),
    ] {
        for queue in [0.25, 1.0, 4.0] {
            let path = Path::new(mbit, rtt_ms, queue);
            let flow = alone(Throughput, vec![(Duration::ZERO, path)], 12);
            let what = format!("{mbit} Mbit/s, {rtt_ms} ms, queue {queue}");
            assert_full(&what, &flow, path, 4.0, 12.0, 0.93);
            let early = flow.goodput(0.0, 10.0) / path.rate;
            println!("    first ten seconds {early:.3}");
            assert!(early >= 0.75, "{what}: {early}");
        }
    }
}

#[test]
fn random_loss_costs_itself_and_no_more() {
    for loss in [0.001, 0.01, 0.03] {
        let path = Path::new(50.0, 150, 1.0).with_loss(loss);
        let flow = alone(Throughput, vec![(Duration::ZERO, path)], 12);
        assert_full(&format!("loss {loss}"), &flow, path, 3.0, 12.0, 0.92);
    }
}
