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
                let line = meter.describe(progress.snapshot(), started.elapsed());
                output.note(&format!("{name}: {line}"));
            }
        });
        return Shown {
            task: Some(task),
            bar: None,
        };
    }
    let bar = output.bars().add(ProgressBar::new(0));
    if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:24} {percent:>3} %  {wide_msg}")
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

/// Counters over time → what to say about them.
struct Meter {
    job: Job,
    /// What was done at which time, oldest first, not older than [`WINDOW`].
    seen: VecDeque<(Duration, u64)>,
}

impl Meter {
    fn new(job: Job) -> Self {
        Self {
            job,
            seen: VecDeque::from([(Duration::ZERO, 0)]),
        }
    }

    fn describe(&mut self, now: Snapshot, elapsed: Duration) -> String {
        self.seen.push_back((elapsed, now.done_bytes));
        while self.seen.len() > 2
            && self
                .seen
                .front()
                .is_some_and(|(at, _)| elapsed.saturating_sub(*at) > WINDOW)
        {
            self.seen.pop_front();
        }
        let mut parts = vec![format!(
            "{} of {}",
            text::size(now.done_bytes),
            text::size(now.total_bytes)
        )];
        match self.job {
            Job::Backup => {
                parts.push(format!("read {}", text::size(now.read_bytes)));
                parts.push(format!("new {}", text::size(now.new_bytes)));
                parts.push(format!("stored {}", text::size(now.stored_bytes)));
                let known_bytes = now.read_bytes.saturating_sub(now.new_bytes);
                parts.push(format!(
                    "{} known",
                    text::share(known_bytes, now.read_bytes)
                ));
            }
            Job::Restore => {
                parts.push(format!("fetched {}", text::size(now.stored_bytes)));
                if now.kept_bytes > 0 {
                    parts.push(format!("kept {}", text::size(now.kept_bytes)));
                }
            }
            Job::Verify => parts.push(format!("fetched {}", text::size(now.stored_bytes))),
        }
        if let Some((rate, left)) = self.pace(now) {
            parts.push(rate);
            parts.extend(left.map(|left| format!("{} left", text::duration(left))));
        }
        parts.join(", ")
    }

    /// The rate of the last [`WINDOW`], and how long the rest takes at that rate.
    fn pace(&self, now: Snapshot) -> Option<(String, Option<Duration>)> {
        let (first_at, first_bytes) = *self.seen.front()?;
        let (last_at, last_bytes) = *self.seen.back()?;
        let seconds = last_at.saturating_sub(first_at).as_secs_f64();
        if seconds <= 0.0 {
            return None;
        }
        let moved_bytes = last_bytes.saturating_sub(first_bytes);
        let left_bytes = now.total_bytes.saturating_sub(now.done_bytes);
        #[expect(clippy::cast_precision_loss, reason = "for a person to read")]
        let left = (moved_bytes > 0)
            .then(|| {
                Duration::try_from_secs_f64(left_bytes as f64 * seconds / moved_bytes as f64).ok()
            })
            .flatten();
        Some((text::rate(moved_bytes, seconds), left))
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
            "100.0 MiB of 1000.0 MiB, read 80.0 MiB, new 20.0 MiB, stored 10.0 MiB, 75 % known, \
             10.0 MiB/s, 1 min 30 s left"
        );
    }

    #[test]
    fn the_rate_forgets_what_is_long_past() {
        let mut meter = Meter::new(Job::Restore);
        meter.describe(at(500 * MIB, 0, 0), Duration::from_secs(10));
        meter.describe(at(500 * MIB, 0, 0), Duration::from_secs(20));
        let line = meter.describe(at(510 * MIB, 0, 0), Duration::from_secs(30));
        assert!(line.contains("512.0 KiB/s"), "{line}");
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
