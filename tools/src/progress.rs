//! What a running job has done so far, on stderr.
//!
//! A bar where stderr is a terminal, a line every ten seconds otherwise, nothing with `--quiet`.
//! [`Meter`] turns counters into figures and knows no clock; [`show`] drives it.

use crate::output::Output;
use crate::text;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tidegate_agent::progress::{Progress, Snapshot};
use tokio::task::JoinHandle;

/// How often a bar is drawn.
const BAR_EVERY: Duration = Duration::from_millis(200);
/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Over how long rates are taken: long enough to be steady, short enough to follow a slow-down.
const WINDOW: Duration = Duration::from_secs(20);

/// Which job it is: what its counters mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Job {
    Backup,
    Restore,
    Verify,
    Bundle,
}

/// Shows progress until it is dropped.
pub(crate) struct Shown {
    task: Option<JoinHandle<()>>,
    bar: Option<ProgressBar>,
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// Shows `progress` until the value returned is dropped. `name` is what is being worked on.
pub(crate) fn show(output: &Output, job: Job, name: &str, progress: &Arc<Progress>) -> Shown {
    if output.is_quiet() {
        return Shown {
            task: None,
            bar: None,
        };
    }
    let progress = Arc::clone(progress);
    let started = Instant::now();
    let mut meter = Meter::new(job);
    if !std::io::stderr().is_terminal() {
        let output = output.clone();
        let name = name.to_owned();
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(LINE_EVERY);
            ticks.tick().await;
            loop {
                ticks.tick().await;
                let now = progress.snapshot();
                let line = meter.describe(now, started.elapsed());
                output.note(&format!(
                    "{name}: {} of {}, {line}",
                    text::size(now.done_bytes),
                    text::size(now.total_bytes)
                ));
            }
        });
        return Shown {
            task: Some(task),
            bar: None,
        };
    }
    let bar = output.bars().add(ProgressBar::new(0));
    if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:16} {percent:>3} %  {wide_msg}")
    {
        bar.set_style(style);
    }
    bar.set_prefix(name.to_owned());
    let shown = bar.clone();
    let task = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(BAR_EVERY);
        loop {
            ticks.tick().await;
            let now = progress.snapshot();
            shown.set_length(now.total_bytes);
            shown.set_position(now.done_bytes);
            shown.set_message(meter.describe(now, started.elapsed()));
        }
    });
    Shown {
        task: Some(task),
        bar: Some(bar),
    }
}

/// Counters over time → what to say about them, the most wanted first: terminals are narrow.
struct Meter {
    job: Job,
    /// Oldest first, not older than [`WINDOW`].
    seen: VecDeque<(Duration, Snapshot)>,
}

impl Meter {
    fn new(job: Job) -> Self {
        Self {
            job,
            seen: VecDeque::from([(Duration::ZERO, Snapshot::default())]),
        }
    }

    fn describe(&mut self, now: Snapshot, elapsed: Duration) -> String {
        self.seen.push_back((elapsed, now));
        while self.seen.len() > 2
            && self
                .seen
                .front()
                .is_some_and(|(at, _)| elapsed.saturating_sub(*at) > WINDOW)
        {
            self.seen.pop_front();
        }
        let mut parts = self.pace(now);
        match self.job {
            Job::Backup => {
                let known_bytes = now.read_bytes.saturating_sub(now.new_bytes);
                parts.push(format!("read {}", text::size(now.read_bytes)));
                parts.push(format!(
                    "{} known",
                    text::share(known_bytes, now.read_bytes)
                ));
                parts.push(format!("new {}", text::size(now.new_bytes)));
                parts.push(format!("stored {}", text::size(now.stored_bytes)));
            }
            Job::Restore => {
                parts.push(format!("fetched {}", text::size(now.stored_bytes)));
                if now.kept_bytes > 0 {
                    parts.push(format!("kept {}", text::size(now.kept_bytes)));
                }
            }
            Job::Verify => parts.push(format!("fetched {}", text::size(now.stored_bytes))),
            Job::Bundle => parts.push(format!("written {}", text::size(now.stored_bytes))),
        }
        parts.join(", ")
    }

    /// The rate of the last [`WINDOW`], holes not counted, and how long the rest takes as it went.
    fn pace(&self, now: Snapshot) -> Vec<String> {
        let (Some((first_at, first)), Some((last_at, _))) = (self.seen.front(), self.seen.back())
        else {
            return Vec::new();
        };
        let seconds = last_at.saturating_sub(*first_at).as_secs_f64();
        if seconds <= 0.0 {
            return Vec::new();
        }
        let moved_bytes = self.moved(&now).saturating_sub(self.moved(first));
        let mut parts = vec![text::rate(moved_bytes, seconds)];
        let done_bytes = now.done_bytes.saturating_sub(first.done_bytes);
        let left_bytes = now.total_bytes.saturating_sub(now.done_bytes);
        if done_bytes > 0 {
            #[expect(clippy::cast_precision_loss, reason = "for a person to read")]
            let left = left_bytes as f64 * seconds / done_bytes as f64;
            if let Ok(left) = Duration::try_from_secs_f64(left) {
                parts.push(format!("{} left", text::duration(left)));
            }
        }
        parts
    }

    /// The bytes that take the time.
    fn moved(&self, at: &Snapshot) -> u64 {
        match self.job {
            Job::Backup => at.read_bytes,
            Job::Restore => at.stored_bytes + at.kept_bytes,
            Job::Verify => at.stored_bytes,
            Job::Bundle => at.done_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(done_bytes: u64, read_bytes: u64, new_bytes: u64) -> Snapshot {
        Snapshot {
            total_bytes: 1000 * MIB,
            done_bytes,
            read_bytes,
            new_bytes,
            stored_bytes: new_bytes / 2,
            kept_bytes: 0,
        }
    }

    #[test]
    fn a_backup_tells_rate_rest_and_dedupe() {
        let mut meter = Meter::new(Job::Backup);
        let line = meter.describe(at(100 * MIB, 80 * MIB, 20 * MIB), Duration::from_secs(10));
        assert_eq!(
            line,
            "8.0 MiB/s, 1 min 30 s left, read 80.0 MiB, 75 % known, new 20.0 MiB, stored 10.0 MiB"
        );
    }

    #[test]
    fn the_rate_forgets_what_is_long_past() {
        let mut meter = Meter::new(Job::Backup);
        meter.describe(at(500 * MIB, 500 * MIB, 0), Duration::from_secs(10));
        meter.describe(at(500 * MIB, 500 * MIB, 0), Duration::from_secs(20));
        let line = meter.describe(at(510 * MIB, 510 * MIB, 0), Duration::from_secs(30));
        assert!(line.starts_with("512.0 KiB/s"), "{line}");
    }

    #[test]
    fn holes_make_no_rate() {
        let mut meter = Meter::new(Job::Restore);
        let line = meter.describe(at(900 * MIB, 0, 20 * MIB), Duration::from_secs(10));
        assert!(line.starts_with("1.0 MiB/s"), "{line}");
    }

    #[test]
    fn nothing_done_makes_no_promise() {
        let mut meter = Meter::new(Job::Verify);
        assert!(!meter.describe(at(0, 0, 0), Duration::ZERO).contains("left"));
        assert!(
            !meter
                .describe(at(0, 0, 0), Duration::from_secs(5))
                .contains("left")
        );
    }
}
