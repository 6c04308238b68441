//! QEMU's tools as child processes: the one door to image formats.
//!
//! Not a wrapper of their options: who needs a tool builds its command here and keeps the child.
//! The invariants: formats are parsed in a child, never in this process; every child is confined to
//! its task ([`confine`]) before it runs a line of QEMU's; no child outlives us, also when we are
//! killed; what it says is bounded, and so is the time that an answer may take.

mod confine;

pub(crate) use confine::{Readable, Task};

use crate::error::{Error, Kind, Result};
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What is kept of a child's messages, in bytes.
const MESSAGES_BYTES_MAX: u64 = 64 << 10;
/// What is read of an answer on a child's standard output, in bytes.
const OUTPUT_BYTES_MAX: u64 = 16 << 20;

/// A tool of the Debian package `qemu-utils`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tool {
    /// `qemu-img`
    Img,
    /// `qemu-nbd`
    Nbd,
}

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Self::Img => "qemu-img",
            Self::Nbd => "qemu-nbd",
        }
    }

    /// Where the tool is installed.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] where it is not on the `PATH`.
    pub(crate) fn find(self, purpose: &str) -> Result<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        find(self.name(), &path).ok_or_else(|| {
            Error::new(
                Kind::Unsupported,
                format!("{purpose} needs {}, which is not installed", self.name()),
            )
            .advise("install the package qemu-utils (Debian, Ubuntu) or qemu-img (Fedora, RHEL)")
        })
    }

    /// A command that runs this tool as the module's document promises, for `task` and able to read
    /// `readable`. `purpose` stands in the message when the tool is not installed.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] without the tool on the `PATH`.
    pub(crate) fn command(
        self,
        purpose: &str,
        task: Task<'_>,
        readable: &Readable,
    ) -> Result<Command> {
        let mut command = Command::new(self.find(purpose)?);
        // Messages are read by us: in one language. A group of its own keeps a Ctrl-C for us alone,
        // so that we can end in order.
        command.env("LC_ALL", "C").process_group(0);
        confine::confine(&mut command, task, readable)?;
        Ok(command)
    }
}

/// A folder that only we can enter, for a socket; it goes when dropped.
pub(crate) fn private_folder() -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix("tidegate-")
        .permissions(std::fs::Permissions::from_mode(0o700))
        .tempdir()
        .map_err(|error| Error::io("cannot make a temporary folder", error))
}

fn find(name: &str, path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .map(|folder| folder.join(name))
        .find(|program| {
            rustix::fs::access(program, rustix::fs::Access::EXEC_OK).is_ok() && program.is_file()
        })
}

/// Calls `spawn` on a thread that lives as long as this process.
///
/// The kernel sends the parent's death signal when the *thread* that forked ends, so a child that
/// was started on a short-lived thread would be killed with it.
pub(crate) fn on_lasting_thread<T: Send + 'static>(
    spawn: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    type Job = Box<dyn FnOnce() + Send>;
    static THREAD: OnceLock<Mutex<Option<SyncSender<Job>>>> = OnceLock::new();

    let gone = || Error::new(Kind::Bug, "the thread that starts child processes is gone");
    let thread = THREAD.get_or_init(|| {
        let (sender, jobs) = sync_channel::<Job>(0);
        let started = std::thread::Builder::new()
            .name("children".to_owned())
            .spawn(move || jobs.iter().for_each(|job| job()));
        Mutex::new(started.is_ok().then_some(sender))
    });
    let (answer, answers) = sync_channel(1);
    let job: Job = Box::new(move || {
        // Nobody waits any more only if the caller has panicked.
        let _ = answer.send(spawn());
    });
    match &*thread.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(sender) => sender.send(job).map_err(|_| gone())?,
        None => return Err(gone()),
    }
    answers.recv().map_err(|_| gone())
}

/// A running child, killed when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    name: String,
    messages: Arc<Mutex<Vec<u8>>>,
    listener: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts `command`. Standard input is closed, standard error is kept for messages.
    pub(crate) fn start(mut command: Command, stdout: Stdio) -> Result<Self> {
        let name = Path::new(command.get_program())
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::piped());
        let spawned = on_lasting_thread(move || command.spawn())?;
        let mut child =
            spawned.map_err(|error| Error::io(format!("cannot start {name}"), error))?;
        let messages = Arc::new(Mutex::new(Vec::new()));
        let listener = child.stderr.take().map(|stderr| {
            let messages = Arc::clone(&messages);
            std::thread::spawn(move || keep_messages(stderr, &messages))
        });
        Ok(Self {
            child,
            name,
            messages,
            listener,
        })
    }

    /// Its number.
    #[cfg(test)]
    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child's standard output, once.
    pub(crate) fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Its exit status, if it has ended.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .map_err(|error| Error::io(format!("cannot wait for {}", self.name), error))
    }

    /// Waits until it has ended, at most until `deadline`.
    pub(crate) fn ended_by(&mut self, deadline: Instant) -> Result<Option<ExitStatus>> {
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// What it said on standard error, without its own name in front. Complete once it has ended.
    pub(crate) fn messages(&mut self) -> String {
        if let Ok(Some(_)) = self.child.try_wait()
            && let Some(listener) = self.listener.take()
        {
            let _ = listener.join();
        }
        let bytes = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        cleaned(&self.name, &bytes)
    }
}

/// Messages of the child `name` on one line, without anything that a terminal would obey.
pub(crate) fn cleaned(name: &str, said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let prefix = format!("{name}: ");
    let lines: Vec<_> = text
        .lines()
        .map(|line| line.strip_prefix(&prefix).unwrap_or(line).trim())
        .filter(|line| !line.is_empty())
        .collect();
    lines
        .join("; ")
        .escape_debug()
        .to_string()
        .replace("\\'", "'")
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

/// Keeps the beginning of what a child says, and drains the rest so that the child never blocks.
fn keep_messages(mut stderr: impl Read, messages: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 4096];
    let mut room = MESSAGES_BYTES_MAX;
    loop {
        match stderr.read(&mut buffer) {
            Ok(0) => return,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
            Ok(count) => {
                let keep = usize::try_from(room).unwrap_or(usize::MAX).min(count);
                room -= keep as u64;
                messages
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend_from_slice(&buffer[..keep]);
            }
        }
    }
}

/// What a child that has ended left behind.
#[derive(Debug)]
pub(crate) struct Finished {
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// Its answer.
    pub(crate) stdout: Vec<u8>,
    /// The beginning of its messages.
    pub(crate) messages: String,
}

/// Runs a command to its end, within `time_max`. `object` is what it is asked about.
pub(crate) fn run(command: Command, object: &str, time_max: Duration) -> Result<Finished> {
    let deadline = Instant::now() + time_max;
    let mut running = Running::start(command, Stdio::piped())?;
    let reader = running.take_stdout().map(|stdout| {
        std::thread::spawn(move || {
            let mut output = Vec::new();
            stdout
                .take(OUTPUT_BYTES_MAX)
                .read_to_end(&mut output)
                .map(|_| output)
        })
    });
    let Some(status) = running.ended_by(deadline)? else {
        return Err(Error::new(
            Kind::Unavailable,
            format!(
                "{} did not answer about {object} within {} s",
                running.name,
                time_max.as_secs()
            ),
        ));
    };
    match reader.map(JoinHandle::join) {
        Some(Ok(Ok(stdout))) => Ok(Finished {
            status,
            stdout,
            messages: running.messages(),
        }),
        _ => Err(Error::new(
            Kind::Io,
            format!("cannot read what {} says about {object}", running.name),
        )),
    }
}

/// Runs a command that must succeed, and gives its answer.
pub(crate) fn ask(command: Command, object: &str, time_max: Duration) -> Result<Vec<u8>> {
    let finished = run(command, object, time_max)?;
    if !finished.status.success() {
        return Err(failure(object, &finished.messages, Some(finished.status)));
    }
    Ok(finished.stdout)
}

/// The error for a tool that failed on `object`.
pub(crate) fn failure(object: &str, messages: &str, status: Option<ExitStatus>) -> Error {
    let says = match (messages, status) {
        ("", Some(status)) => format!("QEMU ended with {status} and said nothing"),
        ("", None) => "QEMU said nothing".to_owned(),
        (messages, _) => messages.to_owned(),
    };
    let has = |text: &str| messages.contains(text);
    let error = |kind, what: &str| Error::new(kind, format!("{object} {what}: {says}"));
    if has("Failed to get") && has("lock") {
        error(Kind::Conflict, "is in use")
            .advise("shut the machine down, or back up a snapshot of the disk")
    } else if has("Permission denied") {
        error(Kind::Denied, "cannot be opened")
    } else if has("No space left") {
        error(Kind::NoSpace, "cannot be written").advise("free some space there")
    } else if has("No such file or directory") {
        error(Kind::Missing, "or a file that it names is missing")
    } else if has("unsupported") || has("Unsupported") || has("not supported") {
        error(Kind::Unsupported, "uses what this QEMU cannot read")
    } else {
        error(Kind::BadInput, "is damaged or not what it seems")
    }
}
