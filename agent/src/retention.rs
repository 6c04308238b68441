//! How long recovery points are kept, and which of them may be given up.
//!
//! Two pure decisions, which read no clock and no store. [`Keep::until`] is taken by the host when a point
//! is committed, and stands in its record from then on. [`decide`] is taken by whoever holds a key that may
//! expire points. What it is not: a count. «The last seven» would be pushed out by a flood of new points, or
//! by some that are dated into the future; a time that was promised is pushed out by nothing.
//!
//! Invariants: no point goes before the time in its record, none that is on hold, and of each machine
//! three stay whatever their time (see [`Why`]). A clock that runs behind gives up too little, one that
//! has jumped ahead gives up no more than what a month without any backup would have.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;
use tidegate_protocol::ids::PointId;

/// How far past the newest record of a point a clock is believed. Beyond it nobody can tell a repository
/// that nobody writes to from a clock that has jumped, and the first can wait for a person.
pub const CLOCK_AHEAD_MAX: Duration = Duration::from_secs(31 * 86_400);

/// How far a clock may be behind the newest record of a point, for times to be counted by it. A host whose
/// clock has lost its battery would else make points that are past their time from the beginning.
pub const CLOCK_BEHIND_MAX: Duration = Duration::from_secs(31 * 86_400);

/// True where no time may be counted by that clock: a new point is kept without an end.
pub fn is_far_behind(clock_unix_ns: u64, newest_record_unix_ns: u64) -> bool {
    let behind = newest_record_unix_ns.saturating_sub(clock_unix_ns);
    Duration::from_nanos(behind) > CLOCK_BEHIND_MAX
}

/// What a point says of itself, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its name.
    pub point: PointId,
    /// Its machine.
    pub machine: String,
    /// The log record that committed it.
    pub number: u64,
    /// The moment it holds, Unix time in nanoseconds.
    pub taken_unix_ns: u64,
    /// Until when it is kept, Unix time in nanoseconds; 0 without an end.
    pub keep_until_unix_ns: u64,
}

/// How long new points of a machine are kept.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Keep {
    /// Without an end.
    #[default]
    WithoutEnd,
    /// Each as long.
    For(Duration),
    /// The first ones of a period longer than the others.
    ByPeriod(Box<ByPeriod>),
}

/// How long points are kept, by how rare they are.
#[derive(Debug, Clone, PartialEq)]
pub struct ByPeriod {
    /// Every point.
    pub all: Duration,
    /// The first of each period, none shorter than one before it.
    pub firsts: Vec<(Period, Duration)>,
    /// Where periods begin.
    pub zone: TimeZone,
}

/// A stretch of the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Period {
    /// An hour of the clock; the one that is struck twice in autumn is two.
    Hour,
    /// A day.
    Day,
    /// A week, from Monday on.
    Week,
    /// A month.
    Month,
    /// A year.
    Year,
}

impl Period {
    /// All, the shortest first.
    pub const ALL: [Self; 5] = [Self::Hour, Self::Day, Self::Week, Self::Month, Self::Year];

    /// What a policy calls the time for which the first one of each is kept.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Hour => "hourly",
            Self::Day => "daily",
            Self::Week => "weekly",
            Self::Month => "monthly",
            Self::Year => "yearly",
        }
    }

    /// Which one of its sort a moment is in: equal for two moments of one, and for no others.
    fn of(self, moment: Timestamp, zone: &TimeZone) -> (i64, i64) {
        let local = moment.to_zoned(zone.clone());
        match self {
            Self::Hour => {
                let offset = i64::from(local.offset().seconds());
                ((moment.as_second() + offset).div_euclid(3600), offset)
            }
            Self::Day => (local.year().into(), local.day_of_year().into()),
            Self::Week => {
                let week = local.date().iso_week_date();
                (week.year().into(), week.week().into())
            }
            Self::Month => (local.year().into(), local.month().into()),
            Self::Year => (local.year().into(), 0),
        }
    }
}

impl Keep {
    /// Until when a point taken at that moment is kept, Unix time in nanoseconds; 0 without an end.
    /// `others` are the live points of its machine.
    ///
    /// A point is the first of a period when no other one of it, taken before, is kept as long as the
    /// first of that period should be: one made by hand for an hour does not stand for the day's.
    pub fn until(&self, taken_unix_ns: u64, others: &[Kept]) -> u64 {
        let after = |taken_unix_ns: u64, length: Duration| {
            let length = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
            taken_unix_ns.saturating_add(length)
        };
        let rule = match self {
            Self::WithoutEnd => return 0,
            Self::For(length) => return after(taken_unix_ns, *length),
            Self::ByPeriod(rule) => rule,
        };
        let firsts = rule.firsts.iter().filter(|(period, length)| {
            let Some(now) = moment(taken_unix_ns) else {
                return false;
            };
            let this = period.of(now, &rule.zone);
            !others.iter().any(|other| {
                other.taken_unix_ns <= taken_unix_ns
                    && (other.keep_until_unix_ns == 0
                        || other.keep_until_unix_ns >= after(other.taken_unix_ns, *length))
                    && moment(other.taken_unix_ns)
                        .is_some_and(|taken| period.of(taken, &rule.zone) == this)
            })
        });
        let longest = firsts.map(|(_, length)| *length).max();
        after(
            taken_unix_ns,
            longest.map_or(rule.all, |long| long.max(rule.all)),
        )
    }
}

fn moment(unix_ns: u64) -> Option<Timestamp> {
    Timestamp::from_nanosecond(unix_ns.into()).ok()
}

/// What a decision is taken on.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// All live points.
    pub points: Vec<Kept>,
    /// Points on hold, and until when, Unix time in nanoseconds; 0 without an end.
    pub held: HashMap<PointId, u64>,
    /// Points of which parts are known to be lost.
    pub damaged: HashSet<PointId>,
    /// The time of the newest record that committed one of the points, Unix time in nanoseconds.
    pub newest_record_unix_ns: u64,
    /// What the clock says, Unix time in nanoseconds.
    pub clock_unix_ns: u64,
    /// Believe the clock however far it is ahead of the newest record.
    pub trust_clock: bool,
}

/// Why a point that is past its time stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is on hold, until that moment (Unix time in nanoseconds; 0 without an end).
    Held(u64),
    /// It is the machine's newest, by its moment or by its place in the log.
    Newest,
    /// It is the newest of which no part is known to be lost.
    NewestSound,
    /// It is past its time by a clock that is not believed that far.
    Clock,
}

/// What was decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// Points to give up, the oldest first.
    pub goes: Vec<Kept>,
    /// Points that stay though they are past their time, the oldest first.
    pub stays: Vec<(Kept, Why)>,
}

/// Which points may be given up, and which stay though their time has passed.
pub fn decide(facts: &Facts) -> Decision {
    let ahead_max = u64::try_from(CLOCK_AHEAD_MAX.as_nanos()).unwrap_or(u64::MAX);
    let believed = facts.newest_record_unix_ns.saturating_add(ahead_max);
    let now = match facts.trust_clock {
        true => facts.clock_unix_ns,
        false => facts.clock_unix_ns.min(believed),
    };
    let has_passed = |until: u64, now: u64| until != 0 && until <= now;
    let lasting = lasting(facts);
    let mut decision = Decision::default();
    for point in &facts.points {
        let until = point.keep_until_unix_ns;
        if !has_passed(until, facts.clock_unix_ns) {
            continue;
        }
        let held = facts.held.get(&point.point).copied();
        let why = match (held, lasting.get(&point.point)) {
            (Some(end), _) if !has_passed(end, now) => Why::Held(end),
            (_, Some(why)) => *why,
            _ if !has_passed(until, now) => Why::Clock,
            _ => {
                decision.goes.push(point.clone());
                continue;
            }
        };
        decision.stays.push((point.clone(), why));
    }
    decision
        .goes
        .sort_by_key(|point| (point.taken_unix_ns, point.number));
    decision
        .stays
        .sort_by_key(|(point, _)| (point.taken_unix_ns, point.number));
    decision
}

/// Of each machine what stays whatever its time. By its moment and by its place in the log: the first is
/// what a host said, which may have been wrong by years.
fn lasting(facts: &Facts) -> HashMap<PointId, Why> {
    let mut machines: BTreeMap<&str, Vec<&Kept>> = BTreeMap::new();
    for point in &facts.points {
        machines.entry(&point.machine).or_default().push(point);
    }
    let mut lasting = HashMap::new();
    for points in machines.into_values() {
        let by_moment = |point: &&&Kept| (point.taken_unix_ns, point.number);
        let is_sound = |point: &&&Kept| !facts.damaged.contains(&point.point);
        let sound = points.iter().filter(is_sound).max_by_key(by_moment);
        lasting.extend(sound.map(|point| (point.point, Why::NewestSound)));
        let newest = points.iter().max_by_key(by_moment);
        let last = points.iter().max_by_key(|point| point.number);
        let newest = newest.into_iter().chain(last);
        lasting.extend(newest.map(|point| (point.point, Why::Newest)));
    }
    lasting
}

#[cfg(test)]
mod tests;
