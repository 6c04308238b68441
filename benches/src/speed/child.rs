//! Child processes and what they cost.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What one process, with those it waited for, used.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) wall: Duration,
    /// User and system.
    pub(crate) cpu: Duration,
    /// The largest resident set it ever had.
    pub(crate) rss_bytes_peak: u64,
}

/// Runs `command` to its end; fails, with what it said on stderr, unless it succeeds. Returns its
/// cost and its stdout.
pub(crate) fn run(mut command: Command) -> Result<(Cost, String)> {
    // Files, not pipes: nobody has to read along.
    let mut stdout = tempfile::tempfile()?;
    let mut stderr = tempfile::tempfile()?;
    command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?);
    let begin = Instant::now();
    let child = command
        .spawn()
        .with_context(|| format!("start {}", command.get_program().display()))?;
    let (status, usage) = wait4(child.id())?;
    let wall = begin.elapsed();
    if status != 0 {
        bail!(
            "{command:?} ended with wait status {status:#x}: {}",
            text(&mut stderr)?.trim()
        );
    }
    let cost = Cost {
        wall,
        cpu: cpu(&usage),
        // Linux counts in KiB.
        rss_bytes_peak: u64::try_from(usage.ru_maxrss).unwrap_or(0) << 10,
    };
    Ok((cost, text(&mut stdout)?))
}

fn text(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Waits for a child of ours; the standard library does not tell what it used.
pub(crate) fn wait4(pid: u32) -> Result<(i32, libc::rusage)> {
    let pid = libc::pid_t::try_from(pid)?;
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both pointers are to live memory of the right type, all of it written or zero.
        let waited = unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) };
        if waited == pid {
            // SAFETY: rusage is plain integers, zeroed above.
            return Ok((status, unsafe { usage.assume_init() }));
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error).context("wait for a child");
        }
    }
}

/// User and system time.
pub(crate) fn cpu(usage: &libc::rusage) -> Duration {
    duration(usage.ru_utime) + duration(usage.ru_stime)
}

fn duration(time: libc::timeval) -> Duration {
    Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0))
        + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
}
