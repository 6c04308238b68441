//! A program of the operator's, run beside a backup.
//!
//! It gets an environment of its own: nothing of the service's, whose variables may hold secrets. It
//! leads a process group; where it takes too long, or the run is stopped, the whole group is asked to
//! end and then killed. What it says goes to the log. Invariant: whatever it does, waiting for it ends.

use crate::error::{Error, Kind, Result};
use crate::host::config::Hook;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Between asking and killing.
const END_GRACE: Duration = Duration::from_secs(5);
/// How long output is waited for after the program has ended: others may hold its pipe open.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);
/// Longest line that goes to the log, in bytes.
const LINE_BYTES_MAX: usize = 1024;
/// Lines of one hook that go to the log.
const LINES_MAX: usize = 200;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs a hook to its end.
///
/// # Errors
/// [`Kind::Unavailable`] where it did not end in time, [`Kind::Interrupted`] after `stop`,
/// [`Kind::Io`] where it failed; else why it could not be started.
pub(super) async fn run(
    hook: &Hook,
    environment: &[(&'static str, String)],
    stop: &CancellationToken,
) -> Result<()> {
    let Some((program, arguments)) = hook.command.split_first() else {
        return Ok(());
    };
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Error::io(format!("cannot run the hook {program}"), error))?;
    let outputs = [
        child.stdout.take().map(|pipe| to_log(program, pipe)),
        child.stderr.take().map(|pipe| to_log(program, pipe)),
    ];
    let ended = tokio::select! {
        status = child.wait() => Ok(status),
        () = tokio::time::sleep(hook.timeout) => Err(Error::new(
            Kind::Unavailable,
            format!("the hook {program} did not end within {} s and was ended", hook.timeout.as_secs()),
        )
        .advise("raise its timeout, or mend it")),
        () = stop.cancelled() => Err(Error::new(
            Kind::Interrupted,
            format!("the hook {program} was ended, as the run was stopped"),
        )),
    };
    if ended.is_err() {
        end(&mut child).await;
    }
    let said = gather(outputs).await;
    let status =
        ended?.map_err(|error| Error::io(format!("cannot wait for the hook {program}"), error))?;
    match status.success() {
        true => Ok(()),
        false => Err(failure(program, status, &said)),
    }
}

fn failure(program: &str, status: ExitStatus, said: &str) -> Error {
    let colon = if said.is_empty() { "" } else { ": " };
    Error::new(
        Kind::Io,
        format!("the hook {program} failed ({status}){colon}{said}"),
    )
    .advise("its output is in the log of the service")
}

/// Asks the group to end, then kills it. The child is not waited for before that: as long as it is
/// not, its number names no other group.
async fn end(child: &mut Child) {
    let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    if let Some(group) = group {
        // It may have ended by itself just now.
        let _ = kill_process_group(group, Signal::TERM);
        let has_ended = async {
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
            while let Ok(None) = waitid(WaitId::Pid(group), look) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let _ = tokio::time::timeout(END_GRACE, has_ended).await;
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait().await;
}

/// What the program said last, on standard error rather than on standard output.
async fn gather(outputs: [Option<JoinHandle<String>>; 2]) -> String {
    let mut said = String::new();
    for output in outputs.into_iter().flatten() {
        let aborting = output.abort_handle();
        match tokio::time::timeout(OUTPUT_GRACE, output).await {
            Ok(Ok(last)) if !last.is_empty() => said = last,
            Ok(_) => {}
            Err(_) => aborting.abort(),
        }
    }
    said
}

/// Copies lines to the log; the last one is the result.
fn to_log(program: &str, pipe: impl AsyncRead + Unpin + Send + 'static) -> JoinHandle<String> {
    let program = program.to_owned();
    let span = tracing::Span::current();
    let copy = async move {
        let mut reader = BufReader::with_capacity(4096, pipe);
        let (mut line, mut last, mut lines) = (Vec::new(), String::new(), 0_usize);
        loop {
            let (taken, whole) = match reader.fill_buf().await {
                Ok([]) | Err(_) => (0, true),
                Ok(bytes) => {
                    let end = bytes.iter().position(|byte| *byte == b'\n');
                    let text = &bytes[..end.unwrap_or(bytes.len())];
                    let room = LINE_BYTES_MAX.saturating_sub(line.len());
                    line.extend_from_slice(&text[..room.min(text.len())]);
                    (text.len() + usize::from(end.is_some()), end.is_some())
                }
            };
            reader.consume(taken);
            if whole && !line.is_empty() {
                last = printable(&line);
                line.clear();
                lines += 1;
                if lines <= LINES_MAX {
                    tracing::info!(hook = program, "{last}");
                }
            }
            if taken == 0 {
                return last;
            }
        }
    };
    tokio::spawn(tracing::Instrument::instrument(copy, span))
}

fn printable(line: &[u8]) -> String {
    String::from_utf8_lossy(line)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect::<String>()
        .trim_end()
        .to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::time::Instant;

    fn shell(script: &str, seconds: u64) -> Hook {
        Hook {
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            timeout: Duration::from_secs(seconds),
        }
    }

    async fn run_script(script: &str, seconds: u64, stop: &CancellationToken) -> Result<()> {
        let environment = [("TIDEGATE_MACHINE", "web01".to_owned())];
        run(&shell(script, seconds), &environment, stop).await
    }

    #[tokio::test]
    async fn it_knows_its_machine_and_nothing_of_the_service() {
        let never = CancellationToken::new();
        // Cargo sets the other for this very process.
        let script = "test \"$TIDEGATE_MACHINE\" = web01 && test -z \"$CARGO_MANIFEST_DIR\"";
        run_script(script, 60, &never).await.unwrap();
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    }

    #[tokio::test]
    async fn a_failure_says_what_it_said_last() {
        let never = CancellationToken::new();
        let error = run_script("echo one; echo two >&2; exit 3", 60, &never)
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains("exit status: 3): two"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn one_that_hangs_is_ended_with_all_that_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("alive");
        // The grandchild ignores the request to end, and writes as long as it lives.
        let script = format!(
            "trap '' TERM; (while :; do echo x >> {}; sleep 0.05; done) & sleep 1000",
            file.display()
        );
        let never = CancellationToken::new();
        let error = run_script(&script, 1, &never).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        let size = || std::fs::metadata(&file).unwrap().len();
        let before = size();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(size(), before, "something is alive");
    }

    #[tokio::test]
    async fn a_stop_ends_it() {
        let stop = CancellationToken::new();
        stop.cancel();
        let started = Instant::now();
        let error = run_script("sleep 1000", 900, &stop).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Interrupted);
        assert!(started.elapsed() < Duration::from_secs(500));
    }

    #[tokio::test]
    async fn endless_output_does_no_harm() {
        let never = CancellationToken::new();
        let script = "head -c 50000000 /dev/zero; yes | head -n 100000";
        run_script(script, 300, &never).await.unwrap();
    }
}
