//! A wide area network between two network namespaces: rate, delay, queue, loss and jitter for every IP
//! packet, be it QUIC, TCP or anything else. It stands in for tc's netem, which many kernels lack.
//!
//! Each end is a TUN device in a namespace of its own; a thread between them lets packets wait as a
//! path would. Both directions have the same shape. Nothing is left behind: namespaces and devices go
//! with the process. Needs root.
//!
//! Not a simulation: it runs in real time, so a machine that is too slow shows (`late`). Invariant:
//! the same seed loses the same packets of the same sequence.

mod namespace;
mod queue;

pub(crate) use namespace::Namespace;
use queue::{Queue, Verdict};

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Largest packet; the devices' MTU.
const PACKET_BYTES_MAX: usize = 1500;
/// Packets read from one side before the other has its turn.
const TURN_PACKETS: usize = 64;

/// What a path is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// IP bytes a second.
    pub(crate) rate: f64,
    /// Both ways together, without queue and jitter.
    pub(crate) rtt: Duration,
    /// What waits at most for its turn, in IP bytes.
    pub(crate) queue_bytes: f64,
    /// Share of packets lost at random, each way.
    pub(crate) loss: f64,
    /// Additional delay each way, from nothing up to this.
    pub(crate) jitter: Duration,
    /// Jitter is drawn for each packet, so that packets overtake each other; otherwise it wanders.
    pub(crate) overtaking: bool,
}

/// What the relay saw in the direction left to right.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// When, and how long a packet waited in the queue; one packet in eight.
    pub(crate) waits: Vec<(Duration, Duration)>,
    /// Packets that went through; that were lost at random; that found the queue full.
    pub(crate) passed: u64,
    pub(crate) lost: u64,
    pub(crate) overflowed: u64,
    /// The longest time by which a packet left too late: how far this machine is from the shape.
    pub(crate) late_max: Duration,
}

/// A running path.
pub(crate) struct Relay {
    pub(crate) left: Namespace,
    pub(crate) right: Namespace,
    started: Instant,
    shared: Arc<Shared>,
    thread: JoinHandle<Result<Seen>>,
}

/// What the relay's thread and its owner both hold.
#[derive(Debug)]
struct Shared {
    /// From when on the path is what; ascending.
    shapes: Mutex<Vec<(Duration, Shape)>>,
    /// IP bytes that were let through: left to right, right to left.
    passed_bytes: [AtomicU64; 2],
    stop: AtomicBool,
}

/// The addresses of the two ends.
pub(crate) const LEFT: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 98, 76, 1);
pub(crate) const RIGHT: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 98, 76, 2);

impl Relay {
    /// A path whose shape changes at the times given, counted from now; the first time is zero.
    pub(crate) fn start(shapes: Vec<(Duration, Shape)>, seed: u64) -> Result<Self> {
        let (left, left_tun) = Namespace::with_tun(LEFT, RIGHT)?;
        let (right, right_tun) = Namespace::with_tun(RIGHT, LEFT)?;
        let started = Instant::now();
        let shared = Arc::new(Shared {
            shapes: Mutex::new(shapes),
            passed_bytes: [AtomicU64::new(0), AtomicU64::new(0)],
            stop: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || carry([left_tun, right_tun], &of_thread, seed, started))?;
        Ok(Self {
            left,
            right,
            started,
            shared,
            thread,
        })
    }

    /// Since the path began; the clock of its shapes and of what it has seen.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// From now on the path is `shape`.
    pub(crate) fn reshape(&self, shape: Shape) {
        let mut shapes = self.shared.shapes();
        let now = self.elapsed();
        shapes.retain(|(from, _)| *from <= now);
        shapes.push((now, shape));
    }

    /// IP bytes let through by now: left to right, and back. What is under way is among them, what was
    /// lost or found the queue full is not.
    pub(crate) fn passed_bytes(&self) -> [u64; 2] {
        [0, 1].map(|side: usize| self.shared.passed_bytes[side].load(Ordering::Relaxed))
    }

    /// Ends the path.
    pub(crate) fn stop(self) -> Result<Seen> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow::anyhow!("the relay panicked"))?
    }
}

impl Shared {
    fn shapes(&self) -> std::sync::MutexGuard<'_, Vec<(Duration, Shape)>> {
        // A list of shapes is whole at every moment.
        self.shapes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shape(&self, now: Duration) -> Shape {
        let shapes = self.shapes();
        let known = shapes.partition_point(|(from, _)| *from <= now);
        shapes[known.saturating_sub(1)].1
    }
}

fn carry(tuns: [OwnedFd; 2], shared: &Shared, seed: u64, started: Instant) -> Result<Seen> {
    namespace::hurry();
    let mut queues = [Queue::new(seed), Queue::new(!seed)];
    let mut spare: Vec<Vec<u8>> = Vec::new();
    let mut seen = Seen::default();
    while !shared.stop.load(Ordering::Relaxed) {
        let mut now = started.elapsed();
        let shape = shared.shape(now);
        for (side, queue) in queues.iter_mut().enumerate() {
            queue.reshape(now, shape);
            for _ in 0..TURN_PACKETS {
                let mut packet = spare.pop().unwrap_or_default();
                packet.resize(PACKET_BYTES_MAX, 0);
                match rustix::io::read(&tuns[side], &mut packet) {
                    Ok(bytes) => packet.truncate(bytes),
                    Err(Errno::AGAIN | Errno::INTR) => {
                        spare.push(packet);
                        break;
                    }
                    Err(error) => return Err(error).context("reading from a TUN device"),
                }
                let bytes = packet.len() as u64;
                let verdict = queue.admit(now, packet);
                if matches!(verdict, Verdict::Waits(_)) {
                    shared.passed_bytes[side].fetch_add(bytes, Ordering::Relaxed);
                }
                if side == 0 {
                    match verdict {
                        Verdict::Waits(wait) => {
                            seen.passed += 1;
                            if seen.passed % 8 == 0 {
                                seen.waits.push((now, wait));
                            }
                        }
                        Verdict::Lost => seen.lost += 1,
                        Verdict::Overflowed => seen.overflowed += 1,
                    }
                }
            }
        }
        for side in 0..2 {
            now = started.elapsed();
            while let Some((due, packet)) = queues[side].due(now) {
                seen.late_max = seen.late_max.max(now.saturating_sub(due));
                // The other end takes what it can: a full socket buffer there is its own affair.
                let _ = rustix::io::write(&tuns[1 - side], &packet);
                spare.push(packet);
            }
        }
        let next = queues.iter().filter_map(Queue::next_due).min();
        let wait = next.map_or(Duration::from_millis(50), |due| {
            due.saturating_sub(started.elapsed())
        });
        wait_for(&tuns, wait.min(Duration::from_millis(50)))?;
    }
    Ok(seen)
}

fn wait_for(tuns: &[OwnedFd; 2], wait: Duration) -> Result<()> {
    let mut fds =
        [0, 1].map(|side: usize| PollFd::from_borrowed_fd(tuns[side].as_fd(), PollFlags::IN));
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(wait.subsec_nanos()),
    };
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("waiting for packets"),
    }
}
