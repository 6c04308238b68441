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
//! - **Machines of a group that is frozen together start at once or not at all.** One that still runs
//!   is waited for, once and for two periods of the policy; where a group is larger than the room it takes it
//!   all; and while the next one in turn has no room, nobody behind it starts.

use super::config::{Policy, Rhythm};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// The longest pause after a failure.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(3600);

/// How far ahead of the clock a history may be: clocks are corrected by seconds all the time.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// How long a group waits for one of its machines that still runs.
const GROUP_WAITS_PERIODS: u64 = 2;

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
    /// It is being backed up, since this moment.
    Running(u64),
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
    /// The group that it is frozen together with.
    pub together: Option<&'a str>,
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
    /// Another machine of its group is due, and they are frozen together.
    Together,
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
    /// The group that it starts with, and is frozen together with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub together: Option<String>,
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
        .filter(|machine| matches!(machine.standing, Standing::Running(_)))
        .count();
    let mut room = concurrency.saturating_sub(running);
    let mut plan = Plan::default();
    let mut units: Vec<Unit> = Vec::new();
    let mut groups: BTreeMap<&str, Vec<&Machine<'_>>> = BTreeMap::new();
    for machine in machines {
        if let Some(group) = machine.together {
            groups.entry(group).or_default().push(machine);
        } else if let Some(upcoming) = upcoming(machine, now_unix_ns, zone) {
            match upcoming.due_unix_ns <= now_unix_ns {
                true => units.push(Unit::of(
                    urgency(machine, now_unix_ns, zone),
                    vec![upcoming],
                )),
                false => plan.later.push(upcoming),
            }
        }
    }
    for (group, members) in groups {
        together(group, &members, now_unix_ns, zone, &mut units, &mut plan);
    }
    units.sort_by(|x, y| {
        (x.asked.cmp(&y.asked))
            .then(y.urgency.total_cmp(&x.urgency))
            .then_with(|| x.runs[0].machine.cmp(&y.runs[0].machine))
    });
    let mut is_blocked = false;
    for unit in units {
        let alone = running == 0 && plan.start.is_empty();
        let size = unit.runs.len();
        is_blocked |= size > room && !alone;
        if is_blocked {
            plan.waiting.extend(unit.runs);
        } else {
            room = room.saturating_sub(size);
            plan.start.extend(unit.runs);
        }
    }
    plan.later
        .sort_by(|x, y| (x.due_unix_ns, &x.machine).cmp(&(y.due_unix_ns, &y.machine)));
    plan
}

/// Runs that start at once or not at all.
struct Unit {
    /// Whom the operator asked for comes first, in the order of asking.
    asked: u64,
    urgency: f64,
    /// At least one.
    runs: Vec<Upcoming>,
}

impl Unit {
    fn of(urgency: f64, runs: Vec<Upcoming>) -> Self {
        let asked = runs.iter().filter(|run| run.why == Why::Requested);
        Self {
            asked: asked.map(|run| run.due_unix_ns).min().unwrap_or(u64::MAX),
            urgency,
            runs,
        }
    }
}

/// The runs of a group that is frozen together.
fn together(
    group: &str,
    members: &[&Machine<'_>],
    now: u64,
    zone: &TimeZone,
    units: &mut Vec<Unit>,
    plan: &mut Plan,
) {
    let runs: Vec<(f64, Upcoming)> = members
        .iter()
        .filter_map(|machine| Some((urgency(machine, now, zone), upcoming(machine, now, zone)?)))
        .collect();
    let is_due = |run: &Upcoming| run.due_unix_ns <= now;
    // What was asked for, or goes wrong, is one machine's own affair.
    let is_regular =
        |run: &Upcoming| !matches!(run.why, Why::Requested | Why::Retry | Why::Interrupted);
    let due = runs
        .iter()
        .filter(|(_, run)| is_due(run) && is_regular(run));
    let Some(due_unix_ns) = due.clone().map(|(_, run)| run.due_unix_ns).min() else {
        for (urgency, run) in runs {
            match is_due(&run) {
                true => units.push(Unit::of(urgency, vec![run])),
                false => plan.later.push(run),
            }
        }
        return;
    };
    let urgency = runs.iter().map(|(urgency, _)| *urgency);
    let urgency = urgency.fold(0.0, f64::max);
    let runs: Vec<Upcoming> = runs
        .into_iter()
        .map(|(_, run)| Upcoming {
            why: match is_due(&run) {
                true => run.why,
                false => Why::Together,
            },
            due_unix_ns: run.due_unix_ns.min(due_unix_ns),
            together: Some(group.to_owned()),
            ..run
        })
        .collect();
    let patience = members
        .first()
        .and_then(|machine| period_after(machine.policy, due_unix_ns, zone))
        .map_or(0, |period| {
            nanos(period).saturating_mul(GROUP_WAITS_PERIODS)
        });
    let last = members.iter().filter_map(|it| it.history.counted_unix_ns);
    let last = last.max();
    // Once is enough: who runs since before the others' last moment has been waited for.
    let is_awaited = |machine: &&Machine<'_>| match machine.standing {
        Standing::Running(since) => last.is_none_or(|last| last <= since),
        Standing::Idle | Standing::Requested(_) => false,
    };
    match now < due_unix_ns.saturating_add(patience) && members.iter().any(is_awaited) {
        true => plan.waiting.extend(runs),
        false => units.push(Unit::of(urgency, runs)),
    }
}

/// When a machine is due; none where it runs already or will never be.
fn upcoming(machine: &Machine<'_>, now: u64, zone: &TimeZone) -> Option<Upcoming> {
    if matches!(machine.standing, Standing::Running(_)) {
        return None;
    }
    // Schedules exist that never come again.
    let (due_unix_ns, why) = next(machine, now, zone)?;
    Some(Upcoming {
        machine: machine.name.to_owned(),
        due_unix_ns,
        why,
        together: None,
    })
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
    // Those of a group are spread by its name, which is to say not at all among themselves.
    let spread = spread(machine.together.unwrap_or(name), policy.jitter);
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
