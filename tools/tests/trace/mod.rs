//! Runs the real program under `ptrace` and shows every call by which it changes a file, right
//! before it takes effect and right after: a watcher may let it go on, or kill the process there.
//!
//! Counted over all threads of the process, in the order in which the kernel was asked. A process
//! that is killed before a call has made all changes before it, and not that one. What it is not: a
//! way to see changes made through a memory mapping (the program makes none but SQLite's `-shm`
//! file, which is void when no process holds it) or by `io_uring`, which is refused.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "shared by several test programs, each of which uses a part; a panic is how tests fail"
)]

mod call;
pub mod power;

pub use call::{Call, FileId, What};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// When a call is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Nothing of it has happened.
    Begins,
    /// It is over, with this result; of an opened file, which one it was.
    Ends { result: i64, opened: Option<FileId> },
}

/// What becomes of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Go,
    /// It dies before the call.
    Kill,
    /// It dies after half of the bytes that the call was to write.
    KillHalfway,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Exited(i32),
    Killed,
}

/// `PTRACE_GET_SYSCALL_INFO`'s word for the stop before a call.
const ENTRY: u8 = 1;

/// Runs `command` to its end, or to the end that `watch` makes of it. Calls on files below `root`
/// are shown; nothing else is.
#[expect(clippy::zombie_processes, reason = "reaped by the loop that traces it")]
pub fn run(
    mut command: Command,
    root: &Path,
    mut watch: impl FnMut(&Call, Moment) -> Verdict,
) -> End {
    let root = root.canonicalize().unwrap();
    // SAFETY: between fork and exec one system call is made, and no memory is touched.
    unsafe {
        command.pre_exec(|| ptrace::traceme().map_err(std::io::Error::from));
    }
    let child = command.spawn().unwrap();
    let main = Pid::from_raw(i32::try_from(child.id()).unwrap());
    // Only children of this thread: others run processes of their own.
    let ours = Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD);
    let stopped = waitpid(main, ours).unwrap();
    assert_eq!(stopped, WaitStatus::Stopped(main, Signal::SIGTRAP), "exec");
    ptrace::setoptions(
        main,
        Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_EXITKILL,
    )
    .unwrap();
    resume(main, None);

    let mut under_way: HashMap<Pid, Call> = HashMap::new();
    let mut end = None;
    let mut dying = false;
    let mut calls = 0;
    loop {
        match waitpid(None, ours) {
            Err(Errno::ECHILD) => break,
            Err(Errno::EINTR) => {}
            Err(error) => panic!("waiting for the traced process: {error}"),
            Ok(WaitStatus::Exited(pid, code)) if pid == main => end = Some(End::Exited(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == main => {
                assert!(dying, "the program was killed by {signal}");
                end = Some(End::Killed);
            }
            Ok(WaitStatus::PtraceSyscall(thread)) if !dying => {
                let verdict = match is_entry(thread) {
                    Some(true) => match Call::decode(thread, &root, calls) {
                        Some(call) => {
                            calls += 1;
                            let verdict = watch(&call, Moment::Begins);
                            if verdict == Verdict::KillHalfway {
                                call::halve(thread);
                            }
                            under_way.insert(thread, call);
                            verdict
                        }
                        None => Verdict::Go,
                    },
                    Some(false) => match under_way.remove(&thread) {
                        Some(call) if call.halved => Verdict::Kill,
                        Some(call) => {
                            let (result, opened) = call.outcome(thread);
                            watch(&call, Moment::Ends { result, opened })
                        }
                        None => Verdict::Go,
                    },
                    None => Verdict::Go,
                };
                match verdict {
                    Verdict::Go => resume(thread, None),
                    Verdict::KillHalfway => {
                        if let Some(call) = under_way.get_mut(&thread) {
                            call.halved = true;
                        }
                        resume(thread, None);
                    }
                    Verdict::Kill => {
                        dying = true;
                        kill(main, Signal::SIGKILL).unwrap();
                    }
                }
            }
            // A new thread begins with a stop that is nobody's signal.
            Ok(WaitStatus::Stopped(thread, Signal::SIGSTOP)) => resume(thread, None),
            Ok(WaitStatus::Stopped(thread, signal)) => resume(thread, Some(signal)),
            Ok(status) => {
                if let (Some(thread), false) = (
                    status.pid(),
                    matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..)),
                ) {
                    resume(thread, None);
                }
            }
        }
    }
    end.expect("the process ended")
}

/// Lets a thread go on to its next stop. One that was killed meanwhile needs nothing.
fn resume(thread: Pid, signal: Option<Signal>) {
    match ptrace::syscall(thread, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => panic!("resuming thread {thread}: {error}"),
    }
}

/// Whether the thread stands before a call or behind it; `None` when it is gone.
fn is_entry(thread: Pid) -> Option<bool> {
    match ptrace::syscall_info(thread) {
        Ok(info) => Some(info.op == ENTRY),
        Err(Errno::ESRCH) => None,
        Err(error) => panic!("looking at thread {thread}: {error}"),
    }
}
