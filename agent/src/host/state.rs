//! The history of runs, in one SQLite file below the service's state folder.
//!
//! A thread of its own owns the file: the service hands it rows and never waits for a disk. What the
//! file is not: needed. The invariants:
//!
//! - **Backups go on without it.** Where the file cannot be written (no space, a read-only disk), the
//!   rows wait in memory, the trouble is logged and shown by `tidegate status`, and each further
//!   moment tries again. Where it is damaged, it is put aside and made anew.
//! - **A kill loses nothing that was written.** A run stands in it from its beginning; one without an
//!   end, found at the start, was interrupted.
//! - **It does not grow for ever**: each machine keeps its newest [`RUNS_KEPT`] runs.

mod file;

use crate::error::{Error, Result};
use crate::host::plan::History;
use crate::live::LeftOut;
use crate::replicate::DiskTracking;
use file::StateFile;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Runs of a machine that are kept.
pub const RUNS_KEPT: u32 = 500;

/// For how many hours it is remembered what a machine's runs came to: a week.
pub const HOURS_KEPT: u64 = 7 * 24;
const HOUR_NS: u64 = 3_600_000_000_000;

/// How soon what could not be written is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(5);

/// Rows on their way to the thread. It gathers them at once, so that they only wait for its start.
const ROWS_IN_FLIGHT: usize = 4096;

/// Rows that wait for a disk; past it the oldest runs are forgotten.
const ROWS_WAITING_MAX: usize = 10_000;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It made a point.
    Ok,
    /// It did not, and why is in its error.
    Failed,
    /// The service was stopped or killed meanwhile.
    Interrupted,
    /// The operator cancelled it.
    Cancelled,
}

impl Outcome {
    /// The same word as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
            Self::Cancelled => "cancelled",
        }
    }

    fn from_str(text: &str) -> Option<Self> {
        [Self::Ok, Self::Failed, Self::Interrupted, Self::Cancelled]
            .into_iter()
            .find(|outcome| outcome.as_str() == text)
    }
}

/// A run, as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRow {
    /// Its name, hexadecimal.
    pub run: String,
    /// The machine.
    pub machine: String,
    /// The repository's name in the configuration.
    pub repository: String,
    /// When it began, Unix time in nanoseconds.
    pub started_unix_ns: u64,
    /// When it ended.
    pub ended_unix_ns: Option<u64>,
    /// How it ended; none while it runs.
    pub outcome: Option<Outcome>,
    /// The recovery point it made.
    pub point: Option<String>,
    /// The moment that the machine's newest point holds, as far as this run learnt of it.
    pub point_unix_ns: Option<u64>,
    /// Bytes read from the disks.
    pub read_bytes: u64,
    /// Bytes that the repository did not have.
    pub new_bytes: u64,
    /// Bytes uploaded.
    pub stored_bytes: u64,
    /// Why it failed: the error's kind, and its text.
    pub error: Option<Fault>,
    /// What went wrong without failing it.
    pub warning: Option<String>,
    /// Of a machine that was read as its hypervisor runs it: what came of freezing and tracking.
    #[serde(default)]
    pub frozen: Option<FrozenRow>,
}

/// What came of freezing a machine and of tracking its changes, as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrozenRow {
    /// What the point is worth to the software in the machine: offline, crash or application.
    pub consistency: String,
    /// How long writes of the guest may have waited, in nanoseconds.
    pub held_ns: u64,
    /// What is known of each disk's tracker.
    pub tracking: Vec<DiskTracking>,
    /// What looks like a disk and is not in the point, and why.
    pub left_out: Vec<LeftOut>,
}

/// What the runs of a machine that ended within one hour came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hour {
    /// Runs.
    pub runs: u64,
    /// Requests to the store of those that made a point.
    pub requests: u64,
    /// Blocks of 4 KiB that trackers called unchanged, and that were compared.
    pub audited_blocks: u64,
    /// Chunks among them that had changed.
    pub false_chunks: u64,
    /// The longest time that writes of the guest may have waited, in nanoseconds.
    pub held_ns_max: u64,
}

impl Hour {
    fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.requests += other.requests;
        self.audited_blocks += other.audited_blocks;
        self.false_chunks += other.false_chunks;
        self.held_ns_max = self.held_ns_max.max(other.held_ns_max);
    }
}

/// An error, as it is remembered and told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// [`Kind::as_str`](crate::Kind::as_str).
    pub kind: String,
    /// The message and its causes.
    pub message: String,
    /// What to do about it.
    pub advice: Option<String>,
}

impl From<&Error> for Fault {
    fn from(error: &Error) -> Self {
        Self {
            kind: error.kind().as_str().to_owned(),
            message: error.chain(),
            advice: error.advice().map(str::to_owned),
        }
    }
}

/// A machine, as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineRow {
    /// Its name.
    pub machine: String,
    /// When it was first known.
    pub first_seen_unix_ns: u64,
    /// Since when its images are gone, where they are.
    pub gone_unix_ns: Option<u64>,
}

/// What was remembered of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remembered {
    /// For the planner.
    pub history: History,
    /// Since when its images are gone.
    pub gone_unix_ns: Option<u64>,
    /// Its last run.
    pub last: Option<RunRow>,
    /// Its last run that made a point.
    pub last_ok: Option<RunRow>,
    /// What its runs came to, by hours since 1970.
    pub hours: BTreeMap<u64, Hour>,
}

impl Remembered {
    /// Counts a run that has ended. Says what its hour came to.
    pub fn count(&mut self, ended_unix_ns: u64, run: &Hour) -> (u64, Hour) {
        let number = ended_unix_ns / HOUR_NS;
        // Also what a clock ahead has left in the future.
        self.hours
            .retain(|hour, _| number.abs_diff(*hour) < HOURS_KEPT);
        let hour = self.hours.entry(number).or_default();
        hour.add(run);
        (number, *hour)
    }

    /// What its runs came to within that many hours up to now, the one that has begun counted whole.
    pub fn within(&self, now_unix_ns: u64, hours: u64) -> Hour {
        let now = now_unix_ns / HOUR_NS;
        let mut sum = Hour::default();
        for (_, hour) in self.hours.range((now + 1).saturating_sub(hours)..=now) {
            sum.add(hour);
        }
        sum
    }

    /// Takes a run that has ended into account.
    pub fn add(&mut self, run: RunRow) {
        let history = &mut self.history;
        history.ended_unix_ns = run.ended_unix_ns;
        // The newest that any run has seen; also the operator makes points.
        if run.point_unix_ns.is_some() {
            history.point_unix_ns = run.point_unix_ns;
        }
        match run.outcome {
            Some(Outcome::Ok) => {
                let took = run
                    .ended_unix_ns
                    .unwrap_or(0)
                    .saturating_sub(run.started_unix_ns);
                history.took = Some(Duration::from_nanos(took));
                history.counted_unix_ns = Some(run.started_unix_ns);
                history.failures = 0;
                history.interruptions = 0;
                self.last_ok = Some(run.clone());
            }
            Some(Outcome::Cancelled) => {
                history.counted_unix_ns = Some(run.started_unix_ns);
                history.failures = 0;
                history.interruptions = 0;
            }
            Some(Outcome::Failed) => {
                history.failures = history.failures.saturating_add(1);
                history.interruptions = 0;
            }
            Some(Outcome::Interrupted) => {
                history.interruptions = history.interruptions.saturating_add(1);
            }
            None => {}
        }
        self.last = Some(run);
    }
}

enum Row {
    Run(Box<RunRow>),
    Hour(String, u64, Hour),
    Machine(MachineRow),
    Forget(String),
}

/// The door to the thread that owns the file.
pub struct State {
    rows: Option<SyncSender<Row>>,
    trouble: Arc<Mutex<Option<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl State {
    /// Opens the file in `folder`, or makes it; says what it remembers. Runs without an end are ended
    /// as interrupted, at `now_unix_ns`. Where the file cannot be opened nothing is remembered, and it
    /// is tried again in the background. Blocks.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn open(folder: &Path, now_unix_ns: u64) -> Result<(Self, BTreeMap<String, Remembered>)> {
        let opened = StateFile::open(folder).and_then(|file| {
            let interrupted = file.interrupt(now_unix_ns)?;
            if interrupted > 0 {
                tracing::warn!(
                    runs = interrupted,
                    "runs that were under way when the service ended were interrupted"
                );
            }
            let remembered = file.load()?;
            Ok((file, remembered))
        });
        let trouble: Arc<Mutex<Option<String>>> = Arc::default();
        let (file, remembered) = match opened {
            Ok((file, remembered)) => (Some(file), remembered),
            Err(error) => {
                tell(&trouble, Some(&error));
                (None, BTreeMap::new())
            }
        };
        let (rows, taken) = sync_channel(ROWS_IN_FLIGHT);
        let writer = Writer {
            folder: folder.to_owned(),
            file,
            waiting: Vec::new(),
            trouble: Arc::clone(&trouble),
        };
        let thread = std::thread::Builder::new()
            .name("tidegate-state".to_owned())
            .spawn(move || writer.run(&taken))
            .map_err(|error| Error::io("cannot start a thread", error))?;
        let state = Self {
            rows: Some(rows),
            trouble,
            thread: Some(thread),
        };
        Ok((state, remembered))
    }

    /// Remembers a run: its beginning, and later the same with its end.
    pub fn save_run(&self, run: RunRow) {
        self.send(Row::Run(Box::new(run)));
    }

    /// Remembers what an hour of a machine came to so far.
    pub fn save_hour(&self, machine: &str, number: u64, hour: Hour) {
        self.send(Row::Hour(machine.to_owned(), number, hour));
    }

    /// Remembers a machine.
    pub fn save_machine(&self, machine: MachineRow) {
        self.send(Row::Machine(machine));
    }

    /// Forgets a machine and its runs.
    pub fn forget(&self, machine: &str) {
        self.send(Row::Forget(machine.to_owned()));
    }

    /// Why the newest rows are not on disk, where they are not.
    pub fn trouble(&self) -> Option<String> {
        self.trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Writes what can be written, and closes the file. Blocks.
    pub fn close(mut self) {
        self.rows = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that keeps the history broke down");
        }
    }

    fn send(&self, row: Row) {
        // Full: the disk hangs. Waiting for it would stop the backups too.
        if let Some(rows) = &self.rows
            && rows.try_send(row).is_err()
        {
            tracing::error!("the history of runs is not being written: its disk hangs");
        }
    }
}

struct Writer {
    folder: std::path::PathBuf,
    file: Option<StateFile>,
    waiting: Vec<Row>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Writer {
    fn run(mut self, rows: &Receiver<Row>) {
        loop {
            let open = match rows.recv_timeout(RETRY_EVERY) {
                Ok(row) => {
                    self.waiting.push(row);
                    true
                }
                Err(RecvTimeoutError::Timeout) => true,
                Err(RecvTimeoutError::Disconnected) => false,
            };
            self.waiting.extend(rows.try_iter());
            if self.waiting.len() > ROWS_WAITING_MAX {
                let excess = self.waiting.len() - ROWS_WAITING_MAX;
                self.waiting.drain(..excess);
            }
            let was_well = self
                .trouble
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .is_none();
            if !self.waiting.is_empty() || !was_well || self.file.is_none() {
                match self.write() {
                    Ok(()) if was_well => {}
                    Ok(()) => {
                        tell(&self.trouble, None);
                        tracing::info!("the history of runs is being written again");
                    }
                    Err(error) => tell(&self.trouble, Some(&error)),
                }
            }
            if !open {
                return;
            }
        }
    }

    fn write(&mut self) -> Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(StateFile::open(&self.folder)?),
        };
        let written = file.save(&self.waiting);
        match &written {
            Ok(()) => self.waiting.clear(),
            // A file that went bad under us is opened anew, which puts it aside.
            Err(error) if error.kind() == crate::Kind::Corrupt => self.file = None,
            Err(_) => {}
        }
        written
    }
}

/// Says loudly that there is trouble, once for each new sort of it.
fn tell(trouble: &Mutex<Option<String>>, error: Option<&Error>) {
    let text = error.map(Error::chain);
    let mut known = trouble.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(text) = &text
        && *known != Some(text.clone())
    {
        tracing::error!(
            error = text,
            "the history of runs cannot be written: backups go on, and after a restart the last runs will not be known"
        );
    }
    *known = text;
}

#[cfg(test)]
mod tests;
