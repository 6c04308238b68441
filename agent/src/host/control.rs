//! The control socket: what the operator's command line and the service say to each other.
//!
//! JSON lines over a Unix socket: one request, then replies until the last one, then the end. Every
//! line carries the version. Not a network protocol: who may speak is decided by the kernel (the
//! socket's mode) and by the peer's credentials (`server`). The invariants: no line is read past its
//! bound, and unknown requests and versions are answered, not guessed at.

mod client;
mod peer;
mod server;

pub use client::{Client, error_of};
pub(super) use server::{Listener, serve};

use super::plan::{Upcoming, Why};
use super::state::{Fault, RunRow};
use crate::progress::Snapshot;
use serde::{Deserialize, Serialize};

/// The version of what is said here.
pub const VERSION: u32 = 1;

/// Longest request, in bytes.
const REQUEST_BYTES_MAX: u64 = 64 << 10;
/// Longest reply, in bytes: a status of ten thousand machines.
const REPLY_BYTES_MAX: u64 = 64 << 20;

/// A line, either way.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Line<T> {
    version: u32,
    #[serde(flatten)]
    said: T,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Request {
    /// How machines are; answered by [`Reply::Status`].
    Status,
    /// Runs to come; answered by [`Reply::Plan`].
    Plan,
    /// Read the configuration file again; answered by [`Reply::Done`].
    Reload,
    /// Back a machine up as soon as there is room; answered by [`Reply::Done`], or with `wait` by
    /// [`Reply::Waiting`] and [`Reply::Running`] as it goes and [`Reply::Ended`] at the end.
    Run {
        /// The machine.
        machine: String,
        /// Tell how it goes.
        #[serde(default)]
        wait: bool,
    },
    /// Stop the run of a machine, or take back the request for one; answered by [`Reply::Done`].
    Cancel {
        /// The machine.
        machine: String,
    },
}

/// What is answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// How machines are.
    Status(Box<Status>),
    /// Runs to come.
    Plan {
        /// Those that are due and wait for room, the most urgent first; then the others by time.
        upcoming: Vec<Upcoming>,
    },
    /// What was asked was done.
    Done {
        /// In words.
        message: String,
    },
    /// The run waits for room.
    Waiting,
    /// The run is under way.
    Running {
        /// Its name.
        run: String,
        /// How far it has come.
        progress: Snapshot,
    },
    /// The run has ended.
    Ended {
        /// What came of it.
        run: Box<RunRow>,
    },
    /// What was asked was not done.
    Error {
        /// Why.
        fault: Fault,
    },
}

/// How the service and its machines are.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The service's version.
    pub tidegate: String,
    /// This host's name.
    pub host: String,
    /// The configuration file.
    pub configuration: String,
    /// Now, Unix time in nanoseconds.
    pub now_unix_ns: u64,
    /// Why the configuration file was refused at the last reload, where it was.
    pub reload_trouble: Option<Fault>,
    /// Why the history of runs cannot be written, where it cannot.
    pub history_trouble: Option<String>,
    /// Machines that are backed up, by name.
    pub machines: Vec<MachineStatus>,
    /// Machines that are in no group.
    pub unprotected: Vec<String>,
    /// What looks like an oversight, for people.
    pub remarks: Vec<String>,
}

/// How a machine is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MachineStatus {
    /// Its name.
    pub machine: String,
    /// Its group, policy and repository; empty where it is gone.
    pub group: String,
    /// Its policy.
    pub policy: String,
    /// Its repository.
    pub repository: String,
    /// Its images; or its domain, or its monitor.
    pub images: Vec<String>,
    /// What it is doing.
    pub standing: MachineStanding,
    /// The promise of its policy: the greatest age of its newest point, in seconds.
    pub rpo_promised_seconds: Option<f64>,
    /// The age of its newest point, in seconds; none without a point.
    pub rpo_achieved_seconds: Option<f64>,
    /// Whether the promise is kept; none where there is none, or the machine is newer than it.
    pub rpo_kept: Option<bool>,
    /// The last run that ended.
    pub last: Option<RunRow>,
    /// The last run that made a point.
    pub last_ok: Option<RunRow>,
    /// The run to come; none while it runs.
    pub next_unix_ns: Option<u64>,
    /// Why then.
    pub next_why: Option<Why>,
    /// The run under way.
    pub running: Option<Running>,
    /// What its trackers were worth over the last seven days.
    pub audit: AuditStatus,
    /// Requests to the store that its runs made, an hour, over the last day.
    pub requests_per_hour: f64,
    /// The longest time that writes of its guest may have waited for a snapshot, over the last day, in
    /// seconds.
    pub held_seconds_max: f64,
    /// Bytes of disk a second that the run under way deals with, or the last good one did.
    pub bytes_per_second: Option<f64>,
}

/// What comparing at random what trackers call unchanged has come to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AuditStatus {
    /// Blocks of 4 KiB that were compared.
    pub blocks: u64,
    /// Chunks among them that had changed: more than none, and the tracker is wrong.
    pub false_chunks: u64,
    /// The chance that a tracker which keeps quiet about one block in a thousand would have been caught.
    pub caught_probability: f64,
}

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineStanding {
    /// Nothing; its next run is not due.
    Idle,
    /// It is due, and there is no room.
    Waiting,
    /// It is being backed up.
    Running,
    /// A pattern found its images earlier, and does not any more.
    Gone,
}

/// A run under way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Running {
    /// Its name.
    pub run: String,
    /// When it began, Unix time in nanoseconds.
    pub started_unix_ns: u64,
    /// How far it has come.
    pub progress: Snapshot,
}
