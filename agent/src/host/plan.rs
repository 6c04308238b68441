//! Which machine is backed up next, and when: a pure function of policies, histories and the time.
//!
//! No clock, no I/O, no chance: what it says can be printed, and is (`tidegate status --plan`). Times
//! are Unix nanoseconds of the wall clock. The invariants:
//!
//! - **A machine never runs twice at once**, and no more machines run than have room.
//! - **Missed runs are caught up by one**: a moment is due when it lies after the last run that
//!   counts, however many moments lie there.
//! - **A clock that was set neither stalls nor storms.** Set forward, what was missed is caught up.
//!   Set back, what a history says of the future cannot be: it counts as not known, and such a
//!   machine is due once, now; that run then stands in the history with the new time.
//! - **Nobody starves**: of those that are due, who has waited longest by the measure of its own
//!   promise goes first. Failures pause for longer each time, so that they do not use up the room.

use super::config::{Policy, Rhythm};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::time::Duration;

/// The longest pause after a failure.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(3600);

/// How far ahead of the clock a history may be: clocks are corrected by seconds all the time.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// The measure of promises where a schedule has no next moment.
const DAY: Duration = Duration::from_secs(86_400);

/// What is known of a machine's runs. All moments are Unix time in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// When the service first knew of the machine.
    pub first_seen_unix_ns: u64,
    /// When the last run began that counts: one that made a point, or that the operator cancelled.
    pub counted_unix_ns: Option<u64>,
    /// The moment that the newest point holds.
    pub point_unix_ns: Option<u64>,
    /// When the last run ended, however it did.
    pub ended_unix_ns: Option<u64>,
    /// How long the last run took that made a point.
    pub took: Option<Duration>,
    /// Runs that failed since one counted.
    pub failures: u32,
    /// Runs that were interrupted since one counted or failed.
    pub interruptions: u32,
}

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing.
    Idle,
    /// It is being backed up.
    Running,
    /// The operator asked for a run, at this moment.
    Requested(u64),
}

/// A machine as the planner sees it.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its policy.
    pub policy: &'a Policy,
    /// Its runs.
    pub history: &'a History,
    /// What it is doing.
    pub standing: Standing,
}

/// Why a run is due when it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// The policy says so.
    Policy,
    /// At least one run was missed.
    CaughtUp,
    /// The machine has never been backed up.
    First,
    /// After a failure.
    Retry,
    /// The last run was interrupted.
    Interrupted,
    /// The clock was set back behind what the history says.
    Clock,
    /// The operator asked for it.
    Requested,
}

/// A run to come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upcoming {
    /// The machine.
    pub machine: String,
    /// When it is due, Unix time in nanoseconds.
    pub due_unix_ns: u64,
    /// Why then.
    pub why: Why,
}

/// What to do now, and when to ask again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Runs to start now, the most urgent first.
    pub start: Vec<Upcoming>,
    /// Runs that are due and have no room, the most urgent first.
    pub waiting: Vec<Upcoming>,
    /// Runs that are not due yet, the next one first.
    pub later: Vec<Upcoming>,
}

impl Plan {
    /// When the next run is due that is not due yet.
    pub fn wake_unix_ns(&self) -> Option<u64> {
        self.later.first().map(|next| next.due_unix_ns)
    }
}

/// Decides which runs start at `now_unix_ns`, when at most `concurrency` may run.
pub fn plan(
    now_unix_ns: u64,
    zone: &TimeZone,
    concurrency: usize,
    machines: &[Machine<'_>],
) -> Plan {
    let running = machines
        .iter()
        .filter(|machine| machine.standing == Standing::Running)
        .count();
    let room = concurrency.saturating_sub(running);
    let mut due = Vec::new();
    let mut plan = Plan::default();
    for machine in machines {
        if machine.standing == Standing::Running {
            continue;
        }
        // Schedules exist that never come again.
        let Some((due_unix_ns, why)) = next(machine, now_unix_ns, zone) else {
            continue;
        };
        let upcoming = Upcoming {
            machine: machine.name.to_owned(),
            due_unix_ns,
            why,
        };
        match due_unix_ns <= now_unix_ns {
            true => due.push((urgency(machine, now_unix_ns, zone), upcoming)),
            false => plan.later.push(upcoming),
        }
    }
    due.sort_by(|(a, x), (b, y)| {
        let asked = |of: &Upcoming| match of.why {
            Why::Requested => Reverse(u64::MAX - of.due_unix_ns),
            _ => Reverse(0),
        };
        asked(x)
            .cmp(&asked(y))
            .then(b.total_cmp(a))
            .then_with(|| x.machine.cmp(&y.machine))
    });
    plan.later
        .sort_by(|x, y| (x.due_unix_ns, &x.machine).cmp(&(y.due_unix_ns, &y.machine)));
    let mut due: Vec<Upcoming> = due.into_iter().map(|(_, upcoming)| upcoming).collect();
    plan.waiting = due.split_off(room.min(due.len()));
    plan.start = due;
    plan
}

/// When a machine that does not run is due, and why.
fn next(machine: &Machine<'_>, now: u64, zone: &TimeZone) -> Option<(u64, Why)> {
    if let Standing::Requested(at) = machine.standing {
        return Some((at.min(now), Why::Requested));
    }
    let History {
        counted_unix_ns,
        ended_unix_ns,
        failures,
        interruptions,
        ..
    } = *machine.history;
    let (regular, why) = match regular(machine, now, zone) {
        None if failures + interruptions == 0 => return None,
        None => (0, Why::Policy),
        Some(due) => due,
    };
    let ended = ended_unix_ns
        .filter(|ended| !is_future(*ended, now, &machine.policy.rhythm))
        .unwrap_or(0);
    let paused = |times| ended.saturating_add(nanos(pause(machine.policy, times)));
    if interruptions > 0 {
        // At once the first time. Whoever is interrupted each time may be what kills the service.
        return Some((paused(interruptions - 1 + failures), Why::Interrupted));
    }
    if failures > 0 {
        return Some((regular.max(paused(failures)), Why::Retry));
    }
    let missed = counted_unix_ns.is_some()
        && period_after(machine.policy, regular, zone)
            .is_some_and(|period| regular.saturating_add(nanos(period)) <= now);
    match why {
        Why::Policy if missed => Some((regular, Why::CaughtUp)),
        _ => Some((regular, why)),
    }
}

/// When the policy wants a run, without regard to failures.
fn regular(machine: &Machine<'_>, now: u64, zone: &TimeZone) -> Option<(u64, Why)> {
    let Machine {
        name,
        policy,
        history,
        ..
    } = *machine;
    let rhythm = &policy.rhythm;
    let last = history
        .counted_unix_ns
        .unwrap_or(history.first_seen_unix_ns);
    if is_future(last, now, rhythm) {
        return Some((now, Why::Clock));
    }
    if history.counted_unix_ns.is_none() && !matches!(rhythm, Rhythm::Schedule(..)) {
        return Some((history.first_seen_unix_ns.min(now), Why::First));
    }
    let spread = spread(name, policy.jitter);
    let due = match rhythm {
        Rhythm::Every(_) | Rhythm::Schedule(..) => {
            moment_after(rhythm, last.saturating_sub(spread), zone)?.saturating_add(spread)
        }
        Rhythm::Rpo(rpo) => {
            let from = history
                .point_unix_ns
                .filter(|point| !is_future(*point, now, rhythm))
                .map_or(last, |point| point.max(last));
            let rpo_ns = nanos(*rpo);
            // Room for the run itself, which makes the point when it ends; and for a second try.
            let took = history.took.map_or(0, nanos);
            let lead = (took + took / 2).max(rpo_ns / 4) + spread.min(rpo_ns / 4);
            from.saturating_add(rpo_ns - lead.min(rpo_ns / 4 * 3))
        }
    };
    let why = match history.counted_unix_ns {
        None => Why::First,
        Some(_) => Why::Policy,
    };
    Some((due, why))
}

/// The first moment of the rhythm after `unix_ns`, before it is spread.
fn moment_after(rhythm: &Rhythm, unix_ns: u64, zone: &TimeZone) -> Option<u64> {
    match rhythm {
        Rhythm::Every(period) | Rhythm::Rpo(period) => {
            let period = nanos(*period).max(1);
            (unix_ns / period).checked_add(1)?.checked_mul(period)
        }
        Rhythm::Schedule(cron, _) => {
            // Whole seconds: a fraction is not looked at by the search, and would be carried along.
            let seconds = i64::try_from(unix_ns / 1_000_000_000).ok()?;
            let after = Timestamp::from_second(seconds).ok()?.to_zoned(zone.clone());
            let next = cron.find_next_occurrence(&after, false).ok()?;
            u64::try_from(next.timestamp().as_nanosecond()).ok()
        }
    }
}

/// From a moment of the rhythm to the next one.
fn period_after(policy: &Policy, moment: u64, zone: &TimeZone) -> Option<Duration> {
    match &policy.rhythm {
        Rhythm::Every(period) | Rhythm::Rpo(period) => Some(*period),
        rhythm @ Rhythm::Schedule(..) => {
            let next = moment_after(rhythm, moment, zone)?;
            Some(Duration::from_nanos(next.saturating_sub(moment)))
        }
    }
}

/// For how long the machine has been without a new point, by the measure of its promise.
fn urgency(machine: &Machine<'_>, now: u64, zone: &TimeZone) -> f64 {
    let history = machine.history;
    let since = history.point_unix_ns.unwrap_or(history.first_seen_unix_ns);
    let age = Duration::from_nanos(now.saturating_sub(since));
    let promise = machine
        .policy
        .rpo
        .or_else(|| period_after(machine.policy, now, zone))
        .unwrap_or(DAY);
    age.as_secs_f64() / promise.as_secs_f64().max(0.001)
}

/// The pause after that many failures in a row. Not longer than the policy's own pace: what fails is
/// tried at least as often as what succeeds.
fn pause(policy: &Policy, failures: u32) -> Duration {
    let Some(doublings) = failures.checked_sub(1) else {
        return Duration::ZERO;
    };
    let pace = match &policy.rhythm {
        Rhythm::Every(period) | Rhythm::Rpo(period) => *period,
        Rhythm::Schedule(..) => RETRY_PAUSE_MAX,
    };
    let most = RETRY_PAUSE_MAX.min(pace).max(policy.retry_after);
    let factor = 2_u32.saturating_pow(doublings.min(16));
    policy.retry_after.saturating_mul(factor).min(most)
}

/// True of a moment that has not been yet, as far as the clock can be believed.
fn is_future(moment: u64, now: u64, rhythm: &Rhythm) -> bool {
    let slack = match rhythm {
        Rhythm::Every(period) | Rhythm::Rpo(period) => CLOCK_SLACK.min(*period),
        Rhythm::Schedule(..) => CLOCK_SLACK,
    };
    moment > now.saturating_add(nanos(slack))
}

/// A machine's own part of the jitter, the same each time.
fn spread(name: &str, jitter: Duration) -> u64 {
    match nanos(jitter) {
        0 => 0,
        jitter => xxhash_rust::xxh3::xxh3_64(name.as_bytes()) % jitter,
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
