//! Somebody who thaws a guest when whoever froze it is not there to do it any more, or takes too long.
//!
//! A child process, started before the guest is frozen: the same program, told to be a guard. It waits
//! at a pipe whose other end the freezing program holds; the end of the pipe means that this one died,
//! and a guest is never held longer than ten seconds. Then the guard thaws. What it cannot
//! survive is a kill of both at once; so whoever freezes next thaws first what is found frozen.

use super::guest_agent::GuestAgent;
use super::libvirt::Libvirt;
use crate::error::{Error, Kind, Result};
use rustix::fd::AsFd as _;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStdin, Command};
use tokio::signal::unix::{SignalKind, signal};

/// The longest that a guest's file systems are frozen: Windows allows ten seconds too.
const HELD_TIME_MAX: Duration = Duration::from_secs(10);
/// How often a guard tries to thaw before it gives up.
const TRIES: u32 = 5;
/// The first argument of a guard.
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
        return Some(guard(&arguments.collect::<Vec<_>>()));
    }
    set_program(OWN_PROGRAM.into());
    None
}

/// Says which program can be a guard; the first one counts.
pub fn set_program(program: PathBuf) {
    PROGRAM.get_or_init(|| program);
}

/// A guard at its post. Dropped, it thaws.
pub(super) struct Guard {
    child: Child,
    pipe: ChildStdin,
}

impl Guard {
    /// Thaws by the agent of this connection.
    pub(super) fn over_agent(agent: &GuestAgent) -> Result<Self> {
        let connection = agent.as_fd().try_clone_to_owned();
        let connection =
            connection.map_err(|error| Error::io("cannot hand a connection to a guard", error))?;
        Self::start(&[], connection.into())
    }

    /// Thaws a domain of libvirt.
    pub(super) fn over_libvirt(libvirt: &Libvirt, uuid: &str) -> Result<Self> {
        let mut arguments: Vec<OsString> = vec![uuid.into()];
        arguments.extend(libvirt.uri().map(Into::into));
        Self::start(&arguments, Stdio::null())
    }

    fn start(arguments: &[OsString], connection: Stdio) -> Result<Self> {
        let program = PROGRAM.get().ok_or_else(|| {
            let text = "guests are frozen by programs that can be their own guard only";
            Error::new(Kind::Bug, text)
        })?;
        let cannot = |error| Error::io("cannot start a guard for the frozen guest", error);
        let mut child = Command::new(program)
            .arg(VERB)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(connection)
            // A Ctrl-C is for us alone.
            .process_group(0)
            .spawn()
            .map_err(cannot)?;
        let pipe = child.stdin.take();
        let pipe = pipe.ok_or_else(|| Error::new(Kind::Bug, "a guard has no pipe"))?;
        Ok(Self { child, pipe })
    }

    /// The guest is thawed.
    pub(super) async fn dismiss(mut self) {
        // One that has ended already has thawed, which harms nobody.
        let _ = self.pipe.write_all(DONE).await;
        drop(self.pipe);
        let _ = tokio::time::timeout(HELD_TIME_MAX, self.child.wait()).await;
    }
}

/// The guard itself.
fn guard(arguments: &[OsString]) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(watch(arguments)),
        Err(error) => Err(Error::io("cannot start a runtime", error)),
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

async fn watch(arguments: &[OsString]) -> Result<()> {
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
    let mut outcome = Ok(0);
    for pause in 1..=TRIES {
        outcome = thaw(arguments).await;
        if outcome.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_secs(pause.into())).await;
    }
    let thawed = outcome?;
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

async fn thaw(arguments: &[OsString]) -> Result<u64> {
    let text = |argument: &OsString| argument.to_string_lossy().into_owned();
    match arguments {
        [] => {
            let cannot = |error| Error::io("a guard has no connection to the agent", error);
            let stdout = std::io::stdout().as_fd().try_clone_to_owned();
            let stream = std::os::unix::net::UnixStream::from(stdout.map_err(cannot)?);
            stream.set_nonblocking(true).map_err(cannot)?;
            let stream = UnixStream::from_std(stream).map_err(cannot)?;
            GuestAgent::greet(stream).await?.thaw().await
        }
        [uuid, uri @ ..] => {
            let libvirt = Libvirt::new(uri.first().map(text));
            libvirt.thaw(&text(uuid)).await
        }
    }
}
