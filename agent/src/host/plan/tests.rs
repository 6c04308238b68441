//! The planner on a virtual clock. [`World`] does what the service does: it starts what the plan says,
//! lets it run, and writes the history.
#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::host::config::Settings;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
/// A Monday at noon, UTC.
const NOON: u64 = 1_767_614_400 * SECOND;

fn policy(text: &str) -> Arc<Policy> {
    let text = format!("[policy.p]\n{text}\n");
    let settings = Settings::parse(&text, Path::new("/")).unwrap();
    Arc::clone(&settings.policies["p"])
}

fn berlin() -> TimeZone {
    TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
}

fn at(text: &str) -> u64 {
    let moment: Timestamp = text.parse().unwrap();
    u64::try_from(moment.as_nanosecond()).unwrap()
}

struct World {
    now: u64,
    zone: TimeZone,
    concurrency: usize,
    machines: BTreeMap<String, Known>,
    /// Every start: when by the wall clock, when by true time, which.
    started: Vec<(u64, u64, String)>,
    true_time: u64,
}

struct Known {
    policy: Arc<Policy>,
    history: History,
    /// When it began, and by true time when it will be done.
    running: Option<(u64, u64)>,
    lasts: u64,
    fails: bool,
    together: Option<&'static str>,
}

impl World {
    fn new(concurrency: usize) -> Self {
        Self {
            now: NOON,
            zone: TimeZone::UTC,
            concurrency,
            machines: BTreeMap::new(),
            started: Vec::new(),
            true_time: 0,
        }
    }

    fn with(mut self, name: &str, policy: &Arc<Policy>, lasts: u64) -> Self {
        let known = Known {
            policy: Arc::clone(policy),
            history: History {
                first_seen_unix_ns: self.now,
                ..History::default()
            },
            running: None,
            lasts,
            fails: false,
            together: None,
        };
        self.machines.insert(name.to_owned(), known);
        self
    }

    fn plan(&self) -> Plan {
        let machines: Vec<Machine<'_>> = self
            .machines
            .iter()
            .map(|(name, known)| Machine {
                name,
                policy: &known.policy,
                history: &known.history,
                standing: match known.running {
                    Some((began, _)) => Standing::Running(began),
                    None => Standing::Idle,
                },
                together: known.together,
            })
            .collect();
        plan(self.now, &self.zone, self.concurrency, &machines)
    }

    fn tick(&mut self, step: u64) {
        self.now += step;
        self.true_time += step;
        for known in self.machines.values_mut() {
            if let Some((began, done)) = known.running
                && done <= self.true_time
            {
                known.running = None;
                let history = &mut known.history;
                history.ended_unix_ns = Some(self.now);
                if known.fails {
                    history.failures += 1;
                    continue;
                }
                history.counted_unix_ns = Some(began);
                history.point_unix_ns = Some(began);
                history.took = Some(Duration::from_nanos(known.lasts));
                history.failures = 0;
            }
        }
        for start in self.plan().start {
            let known = self.machines.get_mut(&start.machine).unwrap();
            assert!(known.running.is_none(), "{} runs twice", start.machine);
            known.running = Some((self.now, self.true_time + known.lasts));
            self.started.push((self.now, self.true_time, start.machine));
        }
        let running = self
            .machines
            .values()
            .filter(|known| known.running.is_some());
        // A group larger than the room has it all for itself.
        let grouped = self.machines.values().filter(|it| it.together.is_some());
        assert!(running.count() <= self.concurrency.max(grouped.count()));
    }

    fn pass(&mut self, time: u64, step: u64) {
        for _ in 0..time / step {
            self.tick(step);
        }
    }

    /// True times of the starts of a machine.
    fn starts(&self, name: &str) -> Vec<u64> {
        let of = self
            .started
            .iter()
            .filter(|(_, _, machine)| machine == name);
        of.map(|(_, true_time, _)| *true_time).collect()
    }
}

#[test]
fn a_new_machine_runs_at_once_and_then_on_the_hour() {
    let mut world = World::new(1).with("a", &policy("every = '1h'"), MINUTE);
    world.pass(10 * MINUTE, MINUTE);
    assert_eq!(world.starts("a"), [MINUTE]);
    world.pass(3 * HOUR, MINUTE);
    let starts = world.starts("a");
    assert_eq!(starts, [MINUTE, HOUR, 2 * HOUR, 3 * HOUR]);
}

#[test]
fn a_new_machine_on_a_schedule_waits_for_it() {
    let mut world = World::new(1).with("a", &policy("schedule = '30 14 * * *'"), MINUTE);
    world.pass(2 * HOUR, MINUTE);
    assert!(world.started.is_empty());
    world.pass(HOUR, MINUTE);
    assert_eq!(world.starts("a"), [150 * MINUTE]);
}

#[test]
fn missed_runs_are_caught_up_by_one() {
    for text in ["every = '1h'", "schedule = '0 * * * *'", "rpo = '1h'"] {
        let mut world = World::new(1).with("a", &policy(text), MINUTE);
        world.pass(2 * HOUR + 10 * MINUTE, MINUTE);
        let before = world.started.len();
        // Ten hours during which nobody planned.
        world.now += 10 * HOUR + 30 * MINUTE;
        let plan = world.plan();
        assert_eq!(plan.start[0].why, Why::CaughtUp, "{text}");
        world.pass(15 * MINUTE, MINUTE);
        assert_eq!(world.started.len(), before + 1, "{text}");
    }
}

#[test]
fn the_longest_overdue_by_its_own_promise_goes_first() {
    let hourly = policy("every = '1h'");
    let daily = policy("every = '1d'");
    let history = |point| History {
        first_seen_unix_ns: NOON - 100 * HOUR,
        counted_unix_ns: Some(point),
        point_unix_ns: Some(point),
        ..History::default()
    };
    // Two hours are twice the promise of one, 30 hours five quarters of the other's.
    let (late_hourly, late_daily) = (history(NOON - 2 * HOUR), history(NOON - 30 * HOUR));
    let machine = |name, policy, history, standing| Machine {
        name,
        policy,
        history,
        standing,
        together: None,
    };
    let mut machines = [
        machine("daily", &*daily, &late_daily, Standing::Idle),
        machine("hourly", &*hourly, &late_hourly, Standing::Idle),
    ];
    let names = |of: &[Upcoming]| of.iter().map(|up| up.machine.clone()).collect::<Vec<_>>();
    let planned = plan(NOON, &TimeZone::UTC, 1, &machines);
    assert_eq!(names(&planned.start), ["hourly"]);
    assert_eq!(names(&planned.waiting), ["daily"]);
    // What the operator asks for goes before.
    machines[0].standing = Standing::Requested(NOON - SECOND);
    let planned = plan(NOON, &TimeZone::UTC, 1, &machines);
    assert_eq!(names(&planned.start), ["daily"]);
    // And nothing goes where there is no room.
    machines[0].standing = Standing::Running(NOON);
    let planned = plan(NOON, &TimeZone::UTC, 1, &machines);
    assert_eq!(names(&planned.start), [""; 0]);
    assert_eq!(names(&planned.waiting), ["hourly"]);
}

#[test]
fn requests_go_in_the_order_they_came() {
    let policy = policy("every = '1h'");
    let history = History {
        first_seen_unix_ns: NOON,
        counted_unix_ns: Some(NOON),
        ..History::default()
    };
    let machines = [("a", NOON + 2), ("b", NOON + 1)].map(|(name, asked)| Machine {
        name,
        policy: &policy,
        history: &history,
        standing: Standing::Requested(asked),
        together: None,
    });
    let planned = plan(NOON + SECOND, &TimeZone::UTC, 1, &machines);
    assert_eq!(planned.start[0].machine, "b");
    assert_eq!(planned.waiting[0].machine, "a");
}

#[test]
fn a_promise_alone_is_kept() {
    let mut world = World::new(1).with("a", &policy("rpo = '1h'\njitter = '10m'"), 20 * MINUTE);
    let mut oldest = 0;
    for _ in 0..24 * 60 {
        world.tick(MINUTE);
        if let Some(point) = world.machines["a"].history.point_unix_ns {
            oldest = oldest.max(world.now - point);
        }
    }
    assert!(oldest <= HOUR, "{} min", oldest / MINUTE);
    // And not by running all the time.
    assert!(world.started.len() <= 24 * 3, "{}", world.started.len());
}

#[test]
fn failures_pause_for_longer_each_time_up_to_the_pace() {
    let mut world = World::new(1).with("a", &policy("every = '4h'"), SECOND);
    world.machines.get_mut("a").unwrap().fails = true;
    world.pass(12 * HOUR, SECOND);
    let starts = world.starts("a");
    let pauses: Vec<u64> = starts
        .windows(2)
        .map(|pair| (pair[1] - pair[0]) / MINUTE)
        .collect();
    assert_eq!(pauses[..7], [1, 2, 4, 8, 16, 32, 60]);
    // Where the pace is faster, it is kept.
    let mut world = World::new(1).with("a", &policy("every = '5m'"), SECOND);
    world.machines.get_mut("a").unwrap().fails = true;
    world.pass(2 * HOUR, SECOND);
    let starts = world.starts("a");
    assert!(
        starts
            .windows(2)
            .all(|pair| pair[1] - pair[0] <= 5 * MINUTE + 5 * SECOND)
    );
    // Who gets well again is back on the beat.
    world.machines.get_mut("a").unwrap().fails = false;
    world.pass(HOUR, SECOND);
    assert_eq!(world.machines["a"].history.failures, 0);
}

#[test]
fn failing_machines_leave_room_for_others() {
    let policy = policy("every = '1h'");
    let mut world = World::new(1)
        .with("bad", &policy, MINUTE)
        .with("good", &policy, MINUTE);
    world.machines.get_mut("bad").unwrap().fails = true;
    world.pass(24 * HOUR, MINUTE);
    assert!(
        world.starts("good").len() >= 23,
        "{:?}",
        world.starts("good").len()
    );
}

#[test]
fn an_interrupted_run_is_due_at_once_unless_it_is_so_each_time() {
    let policy = policy("schedule = '0 0 * * *'");
    let mut history = History {
        first_seen_unix_ns: NOON - HOUR,
        ended_unix_ns: Some(NOON),
        interruptions: 1,
        ..History::default()
    };
    let due = |history: &History| {
        let machine = Machine {
            name: "a",
            policy: &policy,
            history,
            standing: Standing::Idle,
            together: None,
        };
        next(&machine, NOON, &TimeZone::UTC).unwrap()
    };
    assert_eq!(due(&history), (NOON, Why::Interrupted));
    history.interruptions = 3;
    assert_eq!(due(&history), (NOON + 2 * MINUTE, Why::Interrupted));
}

#[test]
fn schedules_follow_the_wall_clock_over_both_changes_of_it() {
    let policy = policy("schedule = '30 2 * * *'");
    let zone = berlin();
    let next = |from: &str| {
        let next = moment_after(&policy.rhythm, at(from), &zone).unwrap();
        Timestamp::from_nanosecond(next.into()).unwrap().to_string()
    };
    // Winter and summer.
    assert_eq!(next("2026-01-10T12:00:00Z"), "2026-01-11T01:30:00Z");
    assert_eq!(next("2026-07-10T12:00:00.5Z"), "2026-07-11T00:30:00Z");
    // 2:30 does not exist on 29 March; the night is not left out.
    let spring = next("2026-03-28T12:00:00Z");
    assert!(
        ("2026-03-29T00:30:00Z".."2026-03-29T02:00:01Z").contains(&spring.as_str()),
        "{spring}"
    );
    assert_eq!(next("2026-03-29T03:00:00Z"), "2026-03-30T00:30:00Z");
    // It is there twice on 25 October; the night has one run.
    let autumn = next("2026-10-24T12:00:00Z");
    assert!(autumn.starts_with("2026-10-25T0"), "{autumn}");
    assert_eq!(next(&autumn), "2026-10-26T01:30:00Z");
}

#[test]
fn jitter_spreads_machines_and_keeps_each_in_its_place() {
    let spread_out = policy("every = '1h'\njitter = '30m'");
    let names: Vec<String> = (0..50).map(|number| format!("vm{number}")).collect();
    let spreads: Vec<u64> = names
        .iter()
        .map(|name| spread(name, spread_out.jitter) / MINUTE)
        .collect();
    assert!(spreads.iter().all(|spread| *spread < 30));
    let different: std::collections::BTreeSet<_> = spreads.iter().collect();
    assert!(different.len() > 15, "{spreads:?}");
    let mut world = World::new(50);
    for name in &names {
        world = world.with(name, &spread_out, SECOND);
    }
    world.pass(5 * HOUR, MINUTE);
    for name in &names {
        let starts = world.starts(name);
        assert!(
            starts[2..].windows(2).all(|pair| pair[1] - pair[0] == HOUR),
            "{name}: {starts:?}"
        );
    }
}

#[test]
fn a_clock_that_is_set_back_makes_one_run_and_no_pause() {
    for text in ["every = '1h'", "schedule = '0 * * * *'", "rpo = '1h'"] {
        let mut world = World::new(1).with("a", &policy(text), MINUTE);
        world.pass(5 * HOUR + 10 * MINUTE, MINUTE);
        let before = world.started.len();
        world.now -= 72 * HOUR;
        assert_eq!(world.plan().start[0].why, Why::Clock, "{text}");
        world.pass(5 * MINUTE, MINUTE);
        assert_eq!(world.started.len(), before + 1, "{text}");
        world.pass(5 * HOUR, MINUTE);
        let runs = world.started.len() - before;
        assert!(
            (4..=11).contains(&runs),
            "{text}: {runs} runs in five hours"
        );
    }
}

#[test]
fn a_small_correction_of_the_clock_goes_unnoticed() {
    let mut world = World::new(1).with("a", &policy("every = '1h'"), MINUTE);
    world.pass(5 * HOUR, MINUTE);
    let before = world.started.len();
    world.now -= 30 * SECOND;
    world.pass(5 * MINUTE, MINUTE);
    assert_eq!(world.started.len(), before);
}

proptest! {
    /// Whatever the clock does, runs neither pile up nor stay away: each machine, in any stretch of
    /// true time without a jump, runs at its pace; and each jump costs it at most two runs.
    #[test]
    fn clocks_may_jump(
        jumps in prop::collection::vec((1_u64..300, -100_000_i64..100_000), 0..8),
        rhythm in prop::sample::select(vec!["every = '1h'", "schedule = '7 * * * *'", "rpo = '2h'", "every = '10m'\njitter='5m'"]),
        concurrency in 1_usize..3,
    ) {
        let policy = policy(rhythm);
        let mut world = World::new(concurrency)
            .with("a", &policy, MINUTE)
            .with("b", &policy, 2 * MINUTE);
        for (minutes, seconds) in &jumps {
            world.pass(minutes * MINUTE, MINUTE);
            world.now = world.now.saturating_add_signed(seconds * 1_000_000_000);
        }
        world.pass(10 * HOUR, MINUTE);
        let pace = match rhythm {
            "every = '1h'" | "schedule = '7 * * * *'" => (HOUR, HOUR),
            "rpo = '2h'" => (30 * MINUTE, 2 * HOUR),
            _ => (10 * MINUTE, 10 * MINUTE),
        };
        for name in ["a", "b"] {
            let starts = world.starts(name);
            let most = world.true_time / pace.0 + 2 + 2 * jumps.len() as u64;
            prop_assert!(starts.len() as u64 <= most, "{name}: {} runs, at most {most}", starts.len());
            for pair in starts.windows(2) {
                prop_assert!(pair[1] - pair[0] <= 2 * pace.1 + 10 * MINUTE, "{name} stalled: {pair:?}");
            }
            let last = starts.last().copied().unwrap_or(0);
            prop_assert!(world.true_time - last <= 2 * pace.1 + 10 * MINUTE, "{name} stalls");
        }
    }
}

/// Machines `a`, `b` and `c` of one group, and `z` by itself.
fn group_of_three(policy: &Arc<Policy>, concurrency: usize, c_lasts: u64) -> World {
    let mut world = World::new(concurrency)
        .with("a", policy, 2 * SECOND)
        .with("b", policy, 2 * SECOND)
        .with("c", policy, c_lasts)
        .with("z", policy, 2 * SECOND);
    for name in ["a", "b", "c"] {
        world.machines.get_mut(name).unwrap().together = Some("shop");
    }
    world
}

/// By when they started, in seconds: which machines.
fn starts(world: &World) -> BTreeMap<u64, String> {
    let mut starts: BTreeMap<u64, String> = BTreeMap::new();
    for (_, at, name) in &world.started {
        starts.entry(at / SECOND).or_default().push_str(name);
    }
    starts
}

#[test]
fn a_group_starts_at_once_or_not_at_all() {
    // With room, without, and with jitter, which must not part them.
    for (text, concurrency) in [
        ("every = '1m'", 8),
        ("every = '1m'", 2),
        ("every = '1m'\njitter = '30s'", 3),
    ] {
        let mut world = group_of_three(&policy(text), concurrency, 5 * SECOND);
        world.pass(10 * MINUTE, SECOND);
        let starts = starts(&world);
        let of_group = |names: &String| names.contains(['a', 'b', 'c']);
        let groups: Vec<_> = starts.values().filter(|names| of_group(names)).collect();
        assert!((9..=11).contains(&groups.len()), "{text}: {starts:?}");
        for names in groups {
            assert!(names.contains("abc"), "{text}, {concurrency}: {starts:?}");
        }
        let alone = starts.values().filter(|names| names.contains('z')).count();
        assert!(
            (9..=11).contains(&alone),
            "{text}, {concurrency}: {starts:?}"
        );
    }
}

#[test]
fn a_group_waits_for_one_that_still_runs_but_not_for_ever() {
    let mut world = group_of_three(&policy("every = '1m'"), 8, 90 * SECOND);
    world.pass(10 * MINUTE, SECOND);
    for names in starts(&world).values().filter(|names| names.contains('a')) {
        assert!(names.contains("abc"), "{:?}", starts(&world));
    }
    let mut world = group_of_three(&policy("every = '1m'"), 8, HOUR);
    world.pass(10 * MINUTE, SECOND);
    let starts = starts(&world);
    let without: Vec<_> = starts
        .values()
        .filter(|names| names.contains("ab") && !names.contains("abc"))
        .collect();
    assert!(without.len() >= 6, "{starts:?}");
}

#[test]
fn a_request_or_a_retry_is_one_machines_own_affair() {
    let policy = policy("every = '1h'");
    let history = History {
        first_seen_unix_ns: NOON,
        counted_unix_ns: Some(NOON + SECOND),
        point_unix_ns: Some(NOON + SECOND),
        ended_unix_ns: Some(NOON + 2 * SECOND),
        ..History::default()
    };
    let failed = History {
        failures: 1,
        ..history.clone()
    };
    let machine = |name, history, standing| Machine {
        name,
        policy: &policy,
        history,
        standing,
        together: Some("shop"),
    };
    let asked = Standing::Requested(NOON + MINUTE);
    let all = [
        machine("a", &history, asked),
        machine("b", &history, Standing::Idle),
    ];
    let plan = plan(NOON + MINUTE, &TimeZone::UTC, 2, &all);
    assert_eq!(plan.start.len(), 1);
    assert_eq!(
        (plan.start[0].why, &plan.start[0].together),
        (Why::Requested, &None)
    );
    assert_eq!(plan.later.len(), 1);
    // And who failed comes along when the group's time is there.
    let all = [
        machine("a", &failed, Standing::Idle),
        machine("b", &history, Standing::Idle),
    ];
    let plan = super::plan(NOON + HOUR, &TimeZone::UTC, 2, &all);
    let started: Vec<_> = plan
        .start
        .iter()
        .map(|run| run.together.as_deref())
        .collect();
    assert_eq!(started, [Some("shop"); 2], "{plan:?}");
}
