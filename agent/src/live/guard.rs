//! Somebody who thaws a guest when whoever froze it is not there to do it any more, or takes too long.
//!
//! | What befalls | Who thaws |
//! |---|---|
//! | the moment takes longer than ten seconds | the guard |
//! | the freezing program dies or is killed | the guard, at once |
//! | it is killed with all its children, as a service by systemd | who is told to: [`thaw_left`] reads the notes |
//! | not even that | the next freeze of that machine, which thaws first what it finds frozen |
//!
//! A guard is a child process, started before the guest is frozen: the same program, told to be one. It
//! waits at a pipe whose other end the freezing program holds; the end of the pipe means that this one
//! died. The invariant: from before a guest is frozen until it is thawed there is a guard and, where a
//! folder for them is given, a note.

mod note;

pub use note::thaw_left;

use self::note::Note;
use super::guest_agent::GuestAgent;
use super::libvirt::Libvirt;
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result};
use rustix::fd::AsFd as _;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStdin, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

/// The longest that a guest's file systems are frozen: Windows allows ten seconds too.
const HELD_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a guard tries to thaw before it gives up: libvirt's daemon may be starting again. Who waits for all that
/// our program says waits for the guard too.
const GUARD_TIME_MAX: Duration = Duration::from_secs(120);
/// Between two attempts: at first, and at most.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// The first argument of a guard; the second one is its [`Post`].
const VERB: &str = "thaw-guard";
/// What the freezing program says when the guest is thawed.
const DONE: &[u8] = b"d";
/// This program, also where its file was replaced since.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// The program that can be a guard.
static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// To be called first in a program that freezes guests: makes it its own guard. Where it was started as
/// one it is that, and what is returned is how it ended.
pub fn be_one_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().as_deref() == Some(OsStr::new(VERB)) {
        return Some(guard(&arguments.next().unwrap_or_default()));
    }
    set_program(OWN_PROGRAM.into());
    None
}

/// Says which program can be a guard; the first one counts.
pub fn set_program(program: PathBuf) {
    PROGRAM.get_or_init(|| program);
}

/// How a guest is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Way {
    /// By its agent, at this socket.
    Agent(PathBuf),
    /// By the libvirt at `uri`.
    Domain { uuid: String, uri: Option<String> },
}

/// What a guard is told.
#[derive(Debug, Serialize, Deserialize)]
struct Post {
    way: Way,
    /// To be taken away when the guest is thawed.
    note: Option<PathBuf>,
}

/// A guard at its post. Dropped, it thaws.
pub(super) struct Guard {
    child: Child,
    pipe: ChildStdin,
    note: Option<Note>,
}

impl Guard {
    /// Thaws by the agent of this connection to `socket`: QEMU listens to one at a time.
    pub(super) async fn over_agent(
        agent: &GuestAgent,
        socket: &Path,
        notes: Option<&Path>,
    ) -> Result<Self> {
        let connection = agent.as_fd().try_clone_to_owned();
        let connection =
            connection.map_err(|error| Error::io("cannot hand a connection to a guard", error))?;
        Self::start(Way::Agent(socket.to_owned()), notes, connection.into()).await
    }

    /// Thaws a domain of libvirt.
    pub(super) async fn over_libvirt(
        libvirt: &Libvirt,
        uuid: &str,
        notes: Option<&Path>,
    ) -> Result<Self> {
        let way = Way::Domain {
            uuid: uuid.to_owned(),
            uri: libvirt.uri().map(str::to_owned),
        };
        Self::start(way, notes, Stdio::null()).await
    }

    async fn start(way: Way, notes: Option<&Path>, connection: Stdio) -> Result<Self> {
        let program = PROGRAM.get().ok_or_else(|| {
            let text = "guests are frozen by programs that can be their own guard only";
            Error::new(Kind::Bug, text)
        })?;
        let note = match notes.map(Path::to_owned) {
            Some(folder) => {
                let way = way.clone();
                Some(blocking(move || Note::write(&folder, &way)).await?)
            }
            None => None,
        };
        let post = Post {
            way,
            note: note.as_ref().map(Note::path),
        };
        let post = serde_json::to_string(&post)
            .map_err(|error| Error::new(Kind::Bug, "a guard cannot be told").caused_by(error))?;
        let cannot = |error| Error::io("cannot start a guard for the frozen guest", error);
        let started = Command::new(program)
            .args([VERB, &post])
            .stdin(Stdio::piped())
            .stdout(connection)
            // A Ctrl-C is for us alone.
            .process_group(0)
            .spawn();
        let mut child = match started {
            Ok(child) => child,
            Err(error) => {
                remove(note).await;
                return Err(cannot(error));
            }
        };
        let pipe = child.stdin.take();
        let pipe = pipe.ok_or_else(|| Error::new(Kind::Bug, "a guard has no pipe"))?;
        Ok(Self { child, pipe, note })
    }

    /// The guest is thawed.
    pub(super) async fn dismiss(mut self) {
        // One that has ended already has thawed, which harms nobody.
        let _ = self.pipe.write_all(DONE).await;
        drop(self.pipe);
        let _ = tokio::time::timeout(HELD_TIME_MAX, self.child.wait()).await;
        remove(self.note).await;
    }
}

async fn remove(note: Option<Note>) {
    let Some(note) = note else {
        return;
    };
    if let Err(error) = blocking(move || note.remove()).await {
        tracing::warn!(
            error = error.chain(),
            "a guest is noted as frozen, and is not"
        );
    }
}

impl Way {
    /// Thaws the guest, and says how many file systems were frozen.
    async fn thaw(&self) -> Result<u64> {
        match self {
            Self::Agent(socket) => GuestAgent::connect(socket).await?.thaw().await,
            Self::Domain { uuid, uri } => Libvirt::new(uri.clone()).thaw(uuid).await,
        }
    }

    /// Tries for that long, at least once. A guest that does not run any more has nothing frozen.
    async fn insist<T: Future<Output = Result<u64>>>(
        &self,
        time_max: Duration,
        mut thaw: impl FnMut() -> T,
    ) -> Result<u64> {
        let begun = Instant::now();
        let mut pause = PAUSE_MIN;
        loop {
            let error = match thaw().await {
                Ok(thawed) => return Ok(thawed),
                Err(error) => error,
            };
            match (self, error.kind()) {
                // Nobody listens at the socket, or it is gone.
                (Self::Agent(_), Kind::Missing | Kind::Io)
                | (Self::Domain { .. }, Kind::Missing) => {
                    return Ok(0);
                }
                _ if begun.elapsed() + pause > time_max => return Err(error),
                _ => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

/// The guard itself.
fn guard(post: &OsStr) -> ExitCode {
    let post: Option<Post> = post
        .to_str()
        .and_then(|text| serde_json::from_str(text).ok());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = match (post, runtime) {
        (Some(post), Ok(runtime)) => runtime.block_on(watch(&post)),
        (None, _) => Err(Error::new(Kind::Config, "this is for tidegate itself")),
        (_, Err(error)) => Err(Error::io("cannot start a runtime", error)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to be told by another way.
            let _ = writeln!(
                std::io::stderr(),
                "a guest may still be frozen: {}",
                error.chain()
            );
            ExitCode::FAILURE
        }
    }
}

async fn watch(post: &Post) -> Result<()> {
    // Whoever ends us with the service would leave the guest frozen.
    let ignored = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ];
    let _ignored: Vec<_> = ignored.into_iter().map(signal).collect();
    if wait().await? {
        return Ok(());
    }
    let thawed = match &post.way {
        Way::Agent(_) => post.way.insist(GUARD_TIME_MAX, thaw_as_handed).await?,
        Way::Domain { .. } => post.way.insist(GUARD_TIME_MAX, || post.way.thaw()).await?,
    };
    if let Some(note) = &post.note {
        Note::at(note).remove()?;
    }
    let _ = writeln!(
        std::io::stderr(),
        "a guest that nobody thawed was thawed by its guard: {thawed} file systems"
    );
    Ok(())
}

/// Whether the guest was thawed without us.
async fn wait() -> Result<bool> {
    let cannot = |error| Error::io("a guard cannot read from its pipe", error);
    let stdin = std::io::stdin().as_fd().try_clone_to_owned();
    let stdin = File::from(stdin.map_err(cannot)?);
    let mut pipe = pipe::Receiver::from_file(stdin).map_err(cannot)?;
    let mut said = [0; 1];
    let heard = tokio::time::timeout(HELD_TIME_MAX, pipe.read(&mut said)).await;
    Ok(matches!(heard, Ok(Ok(1))))
}

/// Thaws by the connection that a guard was handed.
async fn thaw_as_handed() -> Result<u64> {
    let cannot = |error| Error::io("a guard has no connection to the agent", error);
    let stdout = std::io::stdout().as_fd().try_clone_to_owned();
    let stream = std::os::unix::net::UnixStream::from(stdout.map_err(cannot)?);
    stream.set_nonblocking(true).map_err(cannot)?;
    let stream = UnixStream::from_std(stream).map_err(cannot)?;
    GuestAgent::greet(stream).await?.thaw().await
}
