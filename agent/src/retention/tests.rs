//! Both decisions against what they should come to, said in another way.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;
const HOUR: u64 = 3600 * SECOND;
const DAY: u64 = 24 * HOUR;

fn at(text: &str) -> u64 {
    let moment: Timestamp = text.parse().unwrap();
    u64::try_from(moment.as_nanosecond()).unwrap()
}

fn berlin() -> TimeZone {
    TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
}

/// Its clocks are put forward by half an hour.
fn lord_howe() -> TimeZone {
    TimeZone::posix("<+1030>-10:30<+11>-11,M10.1.0,M4.1.0").unwrap()
}

fn days(days: u64) -> Duration {
    Duration::from_secs(days * 86_400)
}

fn rule(zone: TimeZone) -> Keep {
    Keep::ByPeriod(Box::new(ByPeriod {
        all: days(1),
        firsts: vec![
            (Period::Hour, days(3)),
            (Period::Day, days(14)),
            (Period::Week, days(56)),
            (Period::Month, days(366)),
            (Period::Year, days(7 * 366)),
        ],
        zone,
    }))
}

fn kept(nth: u8, taken_unix_ns: u64, keep_until_unix_ns: u64) -> Kept {
    Kept {
        point: PointId([nth; 16]),
        machine: "m".to_owned(),
        number: nth.into(),
        taken_unix_ns,
        keep_until_unix_ns,
    }
}

/// A calendar's name for the period, as it is written down.
fn name_of(period: Period, unix_ns: u64, zone: &TimeZone) -> String {
    let local = moment(unix_ns).unwrap().to_zoned(zone.clone());
    let format = match period {
        Period::Hour => "%Y-%m-%d %H %z",
        Period::Day => "%Y-%m-%d",
        Period::Week => "%G-W%V",
        Period::Month => "%Y-%m",
        Period::Year => "%Y",
    };
    local.strftime(format).to_string()
}

#[test]
fn the_longest_of_what_fits_counts() {
    let keep = rule(berlin());
    let mut points = Vec::new();
    for (taken, length) in [
        // The first of all, then of its day, its hour, and of nothing.
        ("2026-10-20T08:10:00Z", 7 * 366),
        ("2026-10-20T08:20:00Z", 1),
        ("2026-10-20T09:20:00Z", 3),
        // 00:30 of the next day there.
        ("2026-10-20T22:30:00Z", 14),
        // The night in which 02:00 comes twice: hour by hour, and the day begins once.
        ("2026-10-24T22:30:00Z", 14),
        ("2026-10-25T00:30:00Z", 3),
        ("2026-10-25T01:30:00Z", 3),
        ("2026-10-25T01:45:00Z", 1),
        // Monday, a month, and the week that belongs to both years.
        ("2026-10-26T12:00:00Z", 56),
        ("2026-10-31T23:00:00Z", 366),
        ("2026-12-28T00:00:00Z", 366),
        ("2026-12-31T22:59:59Z", 14),
        ("2026-12-31T23:00:00Z", 7 * 366),
        ("2027-01-02T12:00:00Z", 14),
    ] {
        let until = keep.until(at(taken), &points);
        assert_eq!((until - at(taken)) / DAY, length, "{taken}");
        points.push(kept(u8::try_from(points.len()).unwrap(), at(taken), until));
    }
}

#[test]
fn others_stand_for_a_period_only_where_they_are_kept_as_long() {
    let keep = rule(TimeZone::UTC);
    let now = at("2026-05-13T12:00:00Z");
    let length = |others: &[Kept]| (keep.until(now, others) - now) / DAY;
    assert_eq!(length(&[]), 7 * 366);
    // By hand, for an hour; and without an end.
    assert_eq!(length(&[kept(1, now - HOUR, now)]), 7 * 366);
    assert_eq!(length(&[kept(1, now - 100 * DAY, 0)]), 366);
    // Under an older policy, which kept the months' for half a year.
    assert_eq!(length(&[kept(1, now - DAY, now + 180 * DAY)]), 7 * 366);
    // One that speaks of the future takes nobody's place.
    assert_eq!(length(&[kept(1, now + SECOND, 0)]), 7 * 366);
    assert_eq!(length(&[kept(1, now, 0)]), 1);
}

/// Weeks at the ends of years, where no other period is in the way.
#[test]
fn a_week_may_belong_to_two_years() {
    let keep = Keep::ByPeriod(Box::new(ByPeriod {
        all: days(1),
        firsts: vec![(Period::Week, days(9))],
        zone: TimeZone::UTC,
    }));
    let mut points = Vec::new();
    for (taken, length) in [
        // Week 1 of 2025, and week 1 of 2026, which begins in 2025.
        ("2025-01-02T12:00:00Z", 9),
        ("2025-12-30T12:00:00Z", 9),
        ("2026-01-02T12:00:00Z", 1),
        // Week 53 of 2026 goes on in 2027.
        ("2026-12-30T12:00:00Z", 9),
        ("2027-01-02T12:00:00Z", 1),
        ("2027-01-04T00:00:00Z", 9),
    ] {
        let until = keep.until(at(taken), &points);
        assert_eq!((until - at(taken)) / DAY, length, "{taken}");
        points.push(kept(u8::try_from(points.len()).unwrap(), at(taken), until));
    }
}

#[test]
fn lengths_end_where_time_does() {
    let keep = Keep::For(days(100 * 366));
    assert_eq!(keep.until(u64::MAX - 1, &[]), u64::MAX);
    assert_eq!(rule(berlin()).until(u64::MAX, &[]), u64::MAX);
    assert_eq!(Keep::For(days(1)).until(0, &[]), DAY);
    assert_eq!(Keep::WithoutEnd.until(5, &[]), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Some months of points over a change of the clocks: in the order of time, the first of a period is
    /// the first one that a calendar calls so.
    #[test]
    fn firsts_are_what_a_calendar_calls_so(
        half in any::<bool>(),
        steps in proptest::collection::vec((0_u32..4, 1_u64..3600), 1..120),
    ) {
        let zone = if half { lord_howe() } else { berlin() };
        let Keep::ByPeriod(rule) = rule(zone.clone()) else { unreachable!() };
        let keep = Keep::ByPeriod(rule.clone());
        // Near the changes of both zones; a step is up to an hour, a day, eleven days or forty.
        let mut now = at("2026-03-28T20:00:00Z");
        let mut points: Vec<Kept> = Vec::new();
        for (nth, (scale, step)) in (0_u8..).zip(steps) {
            now += step * SECOND * [1, 24, 270, 960][scale as usize];
            let is_first = |period| {
                let name = name_of(period, now, &zone);
                !points.iter().any(|point| name_of(period, point.taken_unix_ns, &zone) == name)
            };
            let length = rule.firsts.iter().rev().find(|(period, _)| is_first(*period));
            let expected = length.map_or(rule.all, |(_, length)| *length);
            let until = keep.until(now, &points);
            prop_assert_eq!(Duration::from_nanos(until - now), expected, "{} {}", nth, now);
            points.push(kept(nth, now, until));
            // In whatever order they are told.
            points.rotate_left(1);
        }
    }

    /// Each point for itself, by the words of the format.
    #[test]
    fn what_goes_and_what_stays(
        points in proptest::collection::vec((0_u8..3, 0_u64..12, 0_u64..60, any::<bool>()), 0..24),
        held in proptest::collection::hash_map(0_u8..24, 0_u64..60, 0..5),
        clock in 0_u64..80,
        newest in 0_u64..20,
        trust_clock in any::<bool>(),
        turn in 0_usize..24,
    ) {
        let mut points: Vec<(Kept, bool)> = (1_u8..)
            .zip(points)
            .map(|(nth, (machine, taken, length, damaged))| {
                let until = match length { 0 => 0, length => (taken + length) * DAY };
                let point = Kept { machine: machine.to_string(), ..kept(nth, taken * DAY, until) };
                (point, damaged)
            })
            .collect();
        let turn = turn.min(points.len());
        points.rotate_left(turn);
        let facts = Facts {
            points: points.iter().map(|(point, _)| point.clone()).collect(),
            held: held.iter().map(|(nth, until)| (PointId([*nth; 16]), until * DAY)).collect(),
            damaged: points.iter().filter(|(_, damaged)| *damaged).map(|(point, _)| point.point).collect(),
            newest_record_unix_ns: newest * DAY,
            clock_unix_ns: clock * DAY,
            trust_clock,
        };
        let decision = decide(&facts);
        let now = if trust_clock { clock } else { clock.min(newest + 31) } * DAY;
        for (point, damaged) in &points {
            let peers = || points.iter().filter(|(other, _)| other.machine == point.machine);
            let moment = |point: &Kept| (point.taken_unix_ns, point.number);
            let is_past = point.keep_until_unix_ns != 0 && point.keep_until_unix_ns <= now;
            let hold = facts.held.get(&point.point);
            let is_held = hold.is_some_and(|until| *until == 0 || *until > now);
            let outdone = peers().any(|(other, _)| moment(other) > moment(point))
                && peers().any(|(other, _)| other.number > point.number)
                && (*damaged || peers().any(|(other, damaged)| !damaged && moment(other) > moment(point)));
            let goes = decision.goes.iter().any(|gone| gone == point);
            prop_assert_eq!(goes, is_past && !is_held && outdone, "{:?}", point);
            let by_clock = point.keep_until_unix_ns != 0 && point.keep_until_unix_ns <= facts.clock_unix_ns;
            let stays = decision.stays.iter().any(|(stayed, _)| stayed == point);
            prop_assert_eq!(stays, by_clock && !goes, "{:?}", point);
        }
        prop_assert!(decision.goes.is_sorted_by_key(|point| (point.taken_unix_ns, point.number)));
    }
}

#[test]
fn a_clock_without_a_battery_is_not_counted_by() {
    assert!(is_far_behind(0, 400 * DAY));
    assert!(is_far_behind(400 * DAY, 432 * DAY));
    // Late, ahead, or the first of all.
    assert!(!is_far_behind(400 * DAY, 431 * DAY));
    assert!(!is_far_behind(400 * DAY, 0));
}

#[test]
fn each_reason_to_stay_is_told() {
    let point = |nth, taken: u64, until: u64| kept(nth, taken * DAY, until * DAY);
    let facts = Facts {
        points: vec![
            point(1, 1, 2),
            point(2, 2, 3),
            point(3, 3, 4),
            point(4, 400, 401),
            point(5, 4, 5),
            point(6, 5, 400),
        ],
        held: [(PointId([2; 16]), 0), (PointId([1; 16]), 10 * DAY)].into(),
        damaged: [PointId([4; 16]), PointId([6; 16]), PointId([5; 16])].into(),
        newest_record_unix_ns: 20 * DAY,
        clock_unix_ns: 500 * DAY,
        trust_clock: false,
    };
    let told = |decision: &Decision| {
        let number = |point: &Kept| point.number;
        let stays = decision
            .stays
            .iter()
            .map(|(point, why)| (number(point), *why));
        (
            decision.goes.iter().map(number).collect::<Vec<_>>(),
            stays.collect::<Vec<_>>(),
        )
    };
    assert_eq!(
        told(&decide(&facts)),
        (
            vec![1, 5],
            vec![
                (2, Why::Held(0)),
                (3, Why::NewestSound),
                (6, Why::Newest),
                (4, Why::Newest)
            ]
        )
    );
    // Without 6 the last in the log is 5, and what the clock alone says stays for that.
    let facts = Facts {
        points: vec![point(1, 1, 2), point(5, 4, 300), point(7, 9, 0)],
        held: HashMap::new(),
        damaged: HashSet::new(),
        ..facts
    };
    assert_eq!(told(&decide(&facts)), (vec![1], vec![(5, Why::Clock)]));
    let facts = Facts {
        trust_clock: true,
        ..facts
    };
    assert_eq!(told(&decide(&facts)), (vec![1, 5], vec![]));
}
