//! The controller in each of its phases, on a virtual clock.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod bottleneck;

use super::Congestion::{self, Fair, Throughput};
use bottleneck::{Flow, Path, World};
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
    // What the path itself adds is no queue.
    let jitter = path.jitter.as_secs_f64() / path.rtt.as_secs_f64();
    println!("{what}: {got:.3} of the link, RTT ×{median:.2}, p95 ×{p95:.2} (seed {SEED})");
    assert!(got >= share, "{what}: {got} of the link (seed {SEED})");
    assert!(
        median <= 1.25 && p95 <= 1.30 + jitter,
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
        (200.0, 300),
    ] {
        for queue in [0.25, 1.0, 4.0] {
            let path = Path::new(mbit, rtt_ms, queue);
            let flow = alone(Throughput, vec![(Duration::ZERO, path)], 13);
            let what = format!("{mbit} Mbit/s, {rtt_ms} ms, queue {queue}");
            assert_full(&what, &flow, path, 5.0, 13.0, 0.93);
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

#[test]
fn start_doubles_until_the_link_is_full() {
    let path = Path::new(200.0, 150, 4.0);
    let flow = alone(Throughput, vec![(Duration::ZERO, path)], 5);
    // 128 KiB doubled five times is the path's product: full within seven round trips.
    let started = flow.goodput(1.05, 1.65) / path.rate;
    assert!(started > 0.9, "{started} of the link after seven rounds");
    // Overshoot ends as soon as the queue is seen: no more than what half a doubling is too much.
    let worst = flow.rtt_quantile(0.0, 5.0, 1.0);
    assert!(worst < path.rtt.mul_f64(2.3), "{worst:?}");
}

#[test]
fn a_slower_link_is_followed_at_once_and_a_faster_one_soon() {
    let slow = Path::new(25.0, 150, 2.0);
    let fast = Path::new(50.0, 150, 1.0);
    let flow = alone(
        Throughput,
        vec![
            (Duration::ZERO, fast),
            (seconds(6), slow),
            (seconds(12), fast),
        ],
        18,
    );
    assert_full("halved, two seconds later", &flow, slow, 8.0, 12.0, 0.93);
    assert_full("doubled, two seconds later", &flow, fast, 14.0, 18.0, 0.93);
}

#[test]
fn jitter_is_no_congestion() {
    let path = Path::new(50.0, 150, 1.0).with_jitter(20);
    let flow = alone(Throughput, vec![(Duration::ZERO, path)], 12);
    assert_full("jitter", &flow, path, 3.0, 12.0, 0.90);
}

#[test]
fn heavy_loss_is_congestion_and_passes() {
    let clean = Path::new(50.0, 100, 1.0);
    let lossy = clean.with_loss(0.30);
    let flow = alone(
        Throughput,
        vec![
            (Duration::ZERO, clean),
            (seconds(5), lossy),
            (seconds(10), clean),
        ],
        20,
    );
    let backed_off = flow.goodput(8.0, 10.0) / clean.rate;
    println!("under 30 % loss {backed_off:.3}");
    assert!(backed_off < 0.1, "gave way: {backed_off}");
    assert_full("three seconds later", &flow, clean, 13.0, 20.0, 0.90);
}

#[test]
fn a_policer_is_not_hammered() {
    // No queue to speak of: what is too much is dropped.
    let path = Path::new(50.0, 100, 0.1);
    let flow = alone(Throughput, vec![(Duration::ZERO, path)], 15);
    assert_full("policer", &flow, path, 3.0, 15.0, 0.85);
    let sent = flow.delivered_bytes + flow.lost_bytes;
    let lost = flow.lost_bytes * 100 / sent;
    println!("policer: {lost} % lost");
    assert!(lost <= 10, "{lost} % lost");
}

#[test]
fn an_outage_ends_in_a_new_start() {
    let path = Path::new(50.0, 100, 1.0);
    let mut cut = path;
    cut.rate = 0.0;
    let base = Instant::now();
    let paths = vec![
        (Duration::ZERO, path),
        (seconds(5), cut),
        (seconds(15), path),
    ];
    let mut world = World::new(SEED, paths, base);
    world.add(Flow::ours(Throughput, Duration::ZERO, base));
    let mut windows = Vec::new();
    for ms in (0..25_000).step_by(10) {
        world.run(Duration::from_millis(ms));
        windows.push((ms, world.flows[0].window_bytes()));
    }
    let least = windows
        .iter()
        .filter(|(ms, _)| *ms > 15_000)
        .map(|(_, w)| w);
    assert!(
        *least.min().unwrap() < 10_000,
        "no full window into the unknown"
    );
    let flow = &world.flows[0];
    assert!(flow.goodput(6.0, 15.0) < 1.0);
    assert_full("after the outage", flow, path, 19.0, 25.0, 0.93);
}

#[test]
fn a_longer_route_is_learnt_and_a_shorter_one_at_once() {
    let near = Path::new(50.0, 50, 4.0);
    let far = Path::new(50.0, 150, 4.0);
    let flow = alone(
        Throughput,
        vec![
            (Duration::ZERO, near),
            (seconds(5), far),
            (seconds(30), near),
        ],
        40,
    );
    let meanwhile = flow.goodput(6.0, 17.0) / far.rate;
    println!("while the least RTT is wrong {meanwhile:.3}");
    assert!(meanwhile > 0.3, "{meanwhile}");
    assert_full("longer, learnt", &flow, far, 20.0, 30.0, 0.90);
    assert_full("shorter", &flow, near, 32.0, 40.0, 0.90);
}

#[test]
fn an_idle_application_lowers_nothing() {
    let path = Path::new(50.0, 100, 1.0);
    let base = Instant::now();
    let mut world = World::new(SEED, vec![(Duration::ZERO, path)], base);
    // Four seconds all it can, twenty at a megabyte in ten seconds, then all again.
    world.add(
        Flow::ours(Throughput, Duration::ZERO, base).supplied(|elapsed| {
            let ms = u64::try_from(elapsed.as_millis()).unwrap();
            match ms {
                0..4000 => 6250 * ms,
                4000..24_000 => 25_000_000 + 100 * (ms - 4000),
                _ => 27_000_000 + 6250 * (ms - 24_000),
            }
        }),
    );
    world.run(seconds(4));
    let full = world.flows[0].window_bytes();
    world.run(seconds(24));
    let idle = world.flows[0].window_bytes();
    assert!(idle * 10 > full * 7, "{full} fell to {idle}");
    world.run(seconds(30));
    let flow = &world.flows[0];
    let again = flow.goodput(24.2, 25.2) / path.rate;
    println!("after idleness, first second: {again:.3}");
    assert!(again > 0.85, "{again} of the link in the first second");
}

#[test]
fn the_aged_least_rtt_is_probed_without_losing_goodput() {
    // Two flows keep each other's queue standing; a third comes late and has never seen the path empty.
    let path = Path::new(50.0, 100, 4.0);
    let base = Instant::now();
    let mut world = World::new(SEED, vec![(Duration::ZERO, path)], base);
    for start in [0, 1, 8] {
        world.add(Flow::ours(Throughput, seconds(start), base));
    }
    world.run(seconds(50));
    let all: f64 = world.flows.iter().map(|f| f.goodput(20.0, 50.0)).sum();
    let shares: Vec<f64> = world
        .flows
        .iter()
        .map(|f| f.goodput(20.0, 50.0) / path.rate)
        .collect();
    let median = world.flows[2].rtt_quantile(20.0, 50.0, 0.5);
    println!(
        "three of ours: {shares:.3?}, RTT {median:?} of {:?}",
        path.rtt
    );
    assert!(all / path.rate > 0.93, "{shares:?}");
    assert!(shares.iter().all(|share| *share > 0.2), "{shares:?}");
    assert!(median < path.rtt.mul_f64(1.35), "{median:?}");
}

/// The share of the link that ours gets beside one loss-based flow, and theirs.
fn beside_loss_based(mode: Congestion, queue_bdp: f64) -> (f64, f64) {
    let path = Path::new(50.0, 50, queue_bdp);
    let base = Instant::now();
    let mut world = World::new(SEED, vec![(Duration::ZERO, path)], base);
    world.add(Flow::ours(mode, Duration::ZERO, base));
    world.add(Flow::loss_based(seconds(2), base));
    world.run(seconds(60));
    let [ours, theirs] =
        [0, 1].map(|flow: usize| world.flows[flow].goodput(10.0, 60.0) / path.rate);
    println!("{mode:?} beside CUBIC, queue {queue_bdp}: {ours:.3} and {theirs:.3}");
    (ours, theirs)
}

#[test]
fn shares_with_a_loss_based_flow() {
    // The longer the queue, the more a flow gets that fills it.
    for (queue, least) in [(0.25, 0.5), (1.0, 0.33), (4.0, 0.12)] {
        let (ours, theirs) = beside_loss_based(Throughput, queue);
        assert!(ours >= least, "throughput, queue {queue}: {ours}");
        assert!(
            theirs >= 0.15,
            "throughput, queue {queue}: {theirs} for them"
        );
        assert!(ours + theirs > 0.95);
        let (ours, theirs) = beside_loss_based(Fair, queue);
        assert!(theirs >= 0.5, "fair, queue {queue}: {theirs} for them");
        assert!(ours >= 0.05, "fair, queue {queue}: {ours}");
    }
}

#[test]
fn fair_alone_fills_a_clean_link_and_gives_way_to_loss() {
    let path = Path::new(50.0, 100, 1.0);
    let flow = alone(Fair, vec![(Duration::ZERO, path)], 15);
    assert_full("fair, clean", &flow, path, 3.0, 15.0, 0.93);
    let lossy = path.with_loss(0.01);
    let flow = alone(Fair, vec![(Duration::ZERO, lossy)], 15);
    let share = flow.goodput(5.0, 15.0) / path.rate;
    println!("fair, 1 % loss: {share:.3}");
    assert!(share < 0.5, "{share}");
}
