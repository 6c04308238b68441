//! The link over long, lossy and shared paths, beside other ways to decide how much is under way.
//!
//! Every contender uploads without end through the same path ([`crate::relay`]), one after the other,
//! each on a path of its own: our controller, quinn's CUBIC and BBR under the same QUIC settings, and
//! the kernel's TCP with CUBIC. Goodput is what the receiving application has read; how much a
//! round trip is inflated is the time that packets waited in the bottleneck's queue, which the path itself
//! measures, alike for all.
//!
//! There is no store behind these. Whole backups through such a path, and those of a disk of which little has
//! changed, are sections of their own ([`backups`]): the real programs, beside restic and an upload over HTTPS.
//!
//! Writes `benches/WAN.md`. Needs root, and two CPUs that have nothing else to do: the figures of 500 Mbit/s
//! are the machine's otherwise.

mod backups;
mod page;
mod quic;
mod site;
mod tcp;

use crate::relay::{Relay, Seen, Shape};
use anyhow::Result;
use quic::Controller;
use site::Programs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tidegate_agent::link::congestion::Congestion;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Length of an upload of the table
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(11..))]
    seconds: u64,
    /// Length of two flows beside each other; the first third is not counted
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(15..))]
    shared_seconds: u64,
    /// Size of the images of whole backups
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..))]
    backup_mib: u64,
    /// When a whole backup is broken off
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(1..))]
    backup_seconds: u64,
    /// The peers that `benches/peers` has fetched; without restic among them it is left out
    #[arg(long, value_name = "FOLDER")]
    peers: Option<PathBuf>,
    /// Only paths and sections (shared, whole backups, changed disk) whose name has this in it
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Only contenders whose name has this in it
    #[arg(long, value_name = "TEXT", default_value = "")]
    contender: String,
    /// Which packets are lost
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The results, as a page of Markdown
    #[arg(long, value_name = "FILE", default_value = "benches/WAN.md")]
    out: PathBuf,
}

/// Who uploads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contender {
    Quic(Controller),
    KernelTcp,
}

const OURS: Contender = Contender::Quic(Controller::Ours(Congestion::Throughput));
const OURS_FAIR: Contender = Contender::Quic(Controller::Ours(Congestion::Fair));
const CONTENDERS: [Contender; 4] = [
    OURS,
    Contender::Quic(Controller::QuinnCubic),
    Contender::Quic(Controller::QuinnBbr),
    Contender::KernelTcp,
];

impl Contender {
    fn name(self) -> &'static str {
        match self {
            Self::Quic(Controller::Ours(Congestion::Throughput)) => "tidegate",
            Self::Quic(Controller::Ours(Congestion::Fair)) => "tidegate, fair",
            Self::Quic(Controller::QuinnCubic) => "quinn CUBIC",
            Self::Quic(Controller::QuinnBbr) => "quinn BBR",
            Self::KernelTcp => "TCP CUBIC",
        }
    }
}

/// A path of the table.
#[derive(Debug, Clone)]
struct Path {
    name: String,
    shapes: Vec<(Duration, Shape)>,
}

/// Megabits a second, milliseconds, and a queue in products of both.
fn shape(mbit: f64, rtt_ms: u64, queue_bdp: f64) -> Shape {
    let rtt = Duration::from_millis(rtt_ms);
    let rate = mbit * 125_000.0;
    Shape {
        rate,
        rtt,
        queue_bytes: (queue_bdp * rate * rtt.as_secs_f64()).max(15_000.0),
        loss: 0.0,
        jitter: Duration::ZERO,
        overtaking: false,
    }
}

fn paths(seconds: u64) -> Vec<Path> {
    let base = shape(200.0, 150, 1.0);
    let one = |name: &str, shape: Shape| Path {
        name: name.to_owned(),
        shapes: vec![(Duration::ZERO, shape)],
    };
    let jitter = Shape {
        jitter: Duration::from_millis(20),
        ..base
    };
    let mut paths: Vec<Path> = [0.0, 0.001, 0.01, 0.03]
        .into_iter()
        .map(|loss| {
            let name = format!("200 Mbit/s, 150 ms, {} % loss", loss * 100.0);
            one(&name, Shape { loss, ..base })
        })
        .collect();
    paths.extend([
        one("50 ms", shape(200.0, 50, 1.0)),
        one("300 ms", shape(200.0, 300, 1.0)),
        one("20 Mbit/s", shape(20.0, 150, 1.0)),
        one("500 Mbit/s", shape(500.0, 150, 1.0)),
        one("queue of 0.25", shape(200.0, 150, 0.25)),
        one("queue of 4", shape(200.0, 150, 4.0)),
        one("20 ms jitter", jitter),
        one(
            "20 ms jitter, packets overtake",
            Shape {
                overtaking: true,
                ..jitter
            },
        ),
        Path {
            name: "rate halved, then doubled".to_owned(),
            shapes: vec![
                (Duration::ZERO, base),
                (
                    Duration::from_secs(seconds * 2 / 5),
                    Shape {
                        rate: base.rate / 2.0,
                        ..base
                    },
                ),
                (Duration::from_secs(seconds * 7 / 10), base),
            ],
        },
    ]);
    paths
}

/// What the applications at the far end had read, and what the path saw.
struct Run {
    shapes: Vec<(Duration, Shape)>,
    /// When each flow began to send.
    began: Vec<Duration>,
    /// When, and bytes of each flow until then.
    arrived: Vec<(Duration, Vec<u64>)>,
    seen: Seen,
}

impl Run {
    /// Bytes of a flow that arrived between two moments.
    fn bytes(&self, flow: usize, from: Duration, to: Duration) -> f64 {
        let until = |limit: Duration| {
            let after = self.arrived.partition_point(|(at, _)| *at <= limit);
            after
                .checked_sub(1)
                .map_or(0, |last| self.arrived[last].1[flow])
        };
        #[expect(clippy::cast_precision_loss, reason = "a figure")]
        let bytes = (until(to) - until(from)) as f64;
        bytes
    }

    /// What the bottleneck could have carried meanwhile.
    fn capacity(&self, from: Duration, to: Duration) -> f64 {
        let ends = self.shapes.iter().skip(1).map(|(at, _)| *at).chain([to]);
        self.shapes
            .iter()
            .zip(ends)
            .map(|((begins, shape), ends)| {
                shape.rate * ends.min(to).saturating_sub(from.max(*begins)).as_secs_f64()
            })
            .sum()
    }

    fn end(&self) -> Duration {
        self.arrived.last().map_or(Duration::ZERO, |(at, _)| *at)
    }

    /// The share of the bottleneck that a flow had between two moments.
    fn share(&self, flow: usize, from: Duration, to: Duration) -> f64 {
        self.bytes(flow, from, to) / self.capacity(from, to)
    }

    /// By how much of the least round trip the queue made it longer, for so large a share of packets.
    fn inflation(&self, from: Duration, quantile: f64) -> f64 {
        let mut waits: Vec<Duration> = self
            .seen
            .waits
            .iter()
            .filter(|(at, _)| *at >= from)
            .map(|(_, wait)| *wait)
            .collect();
        waits.sort_unstable();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        let index = (waits.len().saturating_sub(1) as f64 * quantile) as usize;
        let wait = waits.get(index).copied().unwrap_or_default();
        wait.as_secs_f64() / self.shapes[0].1.rtt.as_secs_f64()
    }
}

enum Flow {
    Quic(quic::Upload),
    Tcp(tcp::Upload),
}

/// Uploads through a path: each contender begins so long after the first.
fn upload(
    shapes: &[(Duration, Shape)],
    contenders: &[(Contender, Duration)],
    length: Duration,
    seed: u64,
) -> Result<Run> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let relay = Relay::start(shapes.to_vec(), seed)?;
    let mut flows = Vec::new();
    let counters: Vec<Arc<AtomicU64>> = contenders.iter().map(|_| Arc::default()).collect();
    let mut began = Vec::new();
    let mut arrived = Vec::new();
    let mut first = None;
    loop {
        let now = relay.elapsed();
        let running = first.map_or(Duration::ZERO, |first| now.saturating_sub(first));
        if running >= length {
            break;
        }
        if let Some((contender, after)) = contenders.get(flows.len())
            && running >= *after
        {
            let (port, counter) = (4433 + u16::try_from(flows.len())?, &counters[flows.len()]);
            let flow = match contender {
                Contender::Quic(controller) => {
                    let connecting =
                        quic::Upload::connect(&relay, *controller, port, Arc::clone(counter));
                    let mut flow = runtime.block_on(connecting)?;
                    let _inside = runtime.enter();
                    flow.begin();
                    Flow::Quic(flow)
                }
                Contender::KernelTcp => {
                    let mut flow = tcp::Upload::connect(&relay, port, Arc::clone(counter))?;
                    flow.begin()?;
                    Flow::Tcp(flow)
                }
            };
            flows.push(flow);
            began.push(relay.elapsed());
            first.get_or_insert(relay.elapsed());
        }
        std::thread::sleep(Duration::from_millis(20));
        let bytes = counters.iter().map(|c| c.load(Ordering::Relaxed)).collect();
        arrived.push((relay.elapsed(), bytes));
    }
    let seen = relay.stop()?;
    for flow in flows {
        match flow {
            Flow::Quic(flow) => runtime.block_on(flow.end()),
            Flow::Tcp(flow) => flow.end(),
        }
    }
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(Run {
        shapes: shapes.to_vec(),
        began,
        arrived,
        seen,
    })
}

/// What is said of one upload that had the path to itself.
#[derive(Debug, Clone, Copy)]
struct Figures {
    /// Shares of the link: after five seconds, and over the first ten.
    started: f64,
    early: f64,
    /// Shares of the least round trip, after five seconds.
    median: f64,
    p95: f64,
    overflowed: u64,
    late: Duration,
}

const START: Duration = Duration::from_secs(5);
const EARLY: Duration = Duration::from_secs(10);

fn alone(path: &Path, contender: Contender, arguments: &Arguments) -> Result<Figures> {
    let length = Duration::from_secs(arguments.seconds);
    let run = upload(
        &path.shapes,
        &[(contender, Duration::ZERO)],
        length,
        arguments.seed,
    )?;
    let began = run.began[0];
    Ok(Figures {
        started: run.share(0, began + START, run.end()),
        early: run.share(0, began, began + EARLY),
        median: run.inflation(began + START, 0.5),
        p95: run.inflation(began + START, 0.95),
        overflowed: run.seen.overflowed,
        late: run.seen.late_max,
    })
}

/// Two flows on one bottleneck.
struct Shared {
    queue_bdp: f64,
    contenders: [Contender; 2],
    shares: [f64; 2],
    median: f64,
}

fn shared(queue_bdp: f64, contenders: [Contender; 2], arguments: &Arguments) -> Result<Shared> {
    let shape = shape(100.0, 50, queue_bdp);
    let run = upload(
        &[(Duration::ZERO, shape)],
        &[
            (contenders[0], Duration::ZERO),
            (contenders[1], Duration::from_secs(3)),
        ],
        Duration::from_secs(arguments.shared_seconds),
        arguments.seed,
    )?;
    let from = Duration::from_secs(arguments.shared_seconds / 3);
    Ok(Shared {
        queue_bdp,
        contenders,
        shares: [0, 1].map(|flow| run.share(flow, from, run.end())),
        median: run.inflation(from, 0.5),
    })
}

/// What there is to say by now.
#[derive(Default)]
struct Results {
    paths: Vec<page::Row>,
    pairs: Vec<Shared>,
    whole: Vec<backups::Row>,
    changed: Vec<backups::Row>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut results = Results::default();
    let section = |name: &str| name.contains(&arguments.only);
    // What is missing is better said now than after half an hour.
    let programs = match section(WHOLE) || section(CHANGED) {
        true => Some(Programs::find(arguments.peers.as_deref())?),
        false => None,
    };
    alone_on_paths(arguments, &mut results)?;
    if section("shared") {
        beside_each_other(arguments, &mut results)?;
    }
    if let Some(programs) = &programs {
        backups_on_paths(programs, arguments, &mut results)?;
    }
    publish(&results, arguments)?;
    println!("{}", arguments.out.display());
    Ok(())
}

fn backups_on_paths(
    programs: &Programs,
    arguments: &Arguments,
    results: &mut Results,
) -> Result<()> {
    let section = |name: &str| name.contains(&arguments.only);
    let work = site::work_folder()?;
    if section(WHOLE) {
        backups::whole(programs.clone(), work.path(), arguments, |row| {
            tell(WHOLE, &row);
            results.whole.push(row);
            publish(results, arguments)
        })?;
    }
    if section(CHANGED) {
        backups::changed(programs.clone(), work.path(), arguments, |row| {
            tell(CHANGED, &row);
            results.changed.push(row);
            publish(results, arguments)
        })?;
    }
    Ok(())
}

/// Names of sections, for `--only`.
const WHOLE: &str = "whole backups";
const CHANGED: &str = "changed disk";

fn tell(section: &str, row: &backups::Row) {
    eprintln!(
        "{section}: {} % loss: {}: {:.3} of the line, {:?}",
        row.loss * 100.0,
        row.sender.name(),
        row.share(),
        row.upload
    );
}

fn alone_on_paths(arguments: &Arguments, results: &mut Results) -> Result<()> {
    let wanted = |contender: &Contender| contender.name().contains(&arguments.contender);
    for path in paths(arguments.seconds) {
        if !path.name.contains(&arguments.only) {
            continue;
        }
        let mut figures = Vec::new();
        for contender in CONTENDERS.into_iter().filter(wanted) {
            let got = alone(&path, contender, arguments)?;
            eprintln!("{}: {}: {got:.3?}", path.name, contender.name());
            figures.push((contender, got));
        }
        results.paths.push((path.name, figures));
        publish(results, arguments)?;
    }
    Ok(())
}

fn beside_each_other(arguments: &Arguments, results: &mut Results) -> Result<()> {
    for queue_bdp in [0.25, 1.0, 4.0] {
        for contenders in [
            [OURS, OURS],
            [OURS, Contender::KernelTcp],
            [Contender::KernelTcp, OURS],
            [OURS_FAIR, Contender::KernelTcp],
            [Contender::KernelTcp, OURS_FAIR],
            [Contender::KernelTcp, Contender::KernelTcp],
        ] {
            let got = shared(queue_bdp, contenders, arguments)?;
            eprintln!(
                "queue of {queue_bdp}: {} {:.2}, {} {:.2}",
                contenders[0].name(),
                got.shares[0],
                contenders[1].name(),
                got.shares[1]
            );
            results.pairs.push(got);
            publish(results, arguments)?;
        }
    }
    Ok(())
}

/// Writes the page with what there is by now: a run takes long.
fn publish(results: &Results, arguments: &Arguments) -> Result<()> {
    if arguments.only.is_empty() && arguments.contender.is_empty() {
        std::fs::write(&arguments.out, page::write(results, arguments)?)?;
    }
    Ok(())
}
