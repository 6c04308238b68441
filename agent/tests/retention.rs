//! How long points are kept, in whole repositories: what a commit says, what expires by it, who may, and
//! what happens between a decision and its record.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod lab;

use jiff::tz::TimeZone;
use lab::{Lab, MemoryDisk, MemoryTarget, request, restore, try_back_up};
use std::sync::Arc;
use std::time::Duration;
use tidegate_agent::replicate::Moment;
use tidegate_agent::repository::{ExpireScope, Repository, Selector};
use tidegate_agent::retention::{ByPeriod, Keep, Period, Why};
use tidegate_agent::source::Source;
use tidegate_agent::store::fault::{Call, Fault, Operation};
use tidegate_agent::{Kind, clock};
use tidegate_protocol::ids::PointId;
use tidegate_protocol::record::{Body, Consistency, HoldLifted, HoldSet, PacksFoundBad};

const DAY: u64 = 86_400_000_000_000;

/// How long a record is held up on its way: longer than another host needs for one, on a machine with
/// much else to do.
const LATE: Duration = Duration::from_secs(6);

fn days(days: u64) -> Duration {
    Duration::from_nanos(days * DAY)
}

fn content(seed: u8) -> Vec<u8> {
    let block = |number: u8| blake3::hash(&[seed, number]).as_bytes().repeat(2048);
    (0..8).flat_map(block).collect()
}

fn disk(seed: u8) -> Arc<dyn Source> {
    MemoryDisk::of(&content(seed))
}

/// A point of `machine` taken some days ago, kept as told.
async fn point(
    repository: &Arc<Repository>,
    machine: &str,
    nth: u8,
    age: u64,
    keep: Keep,
) -> PointId {
    let mut request = request(machine, disk(nth), None);
    let point = PointId([nth; 16]);
    request.moment = Some(Moment {
        point,
        taken_unix_ns: clock::now_unix_ns() - age * DAY,
        consistency: Consistency::Crash,
        together: None,
    });
    request.keep = keep;
    try_back_up(repository, request).await.unwrap();
    point
}

async fn hold(repository: &Repository, name: u8, points: &[PointId], until_unix_ns: u64) {
    let hold = HoldSet {
        hold: vec![name; 16],
        points: points.iter().map(|point| point.0.to_vec()).collect(),
        reason: "a restore".to_owned(),
        until_unix_ns,
    };
    repository
        .append(|_| Ok(Body::HoldSet(hold.clone())))
        .await
        .unwrap();
}

fn names(repository: &Repository) -> Vec<PointId> {
    let points = repository.points(None).unwrap();
    points.iter().map(|point| point.id).collect()
}

fn packs(lab: &Lab) -> usize {
    let puts = lab.calls.calls();
    puts.iter()
        .filter(|call| call.operation == Operation::Put && call.key.contains("packs/"))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn points_go_when_their_time_has_passed_and_nothing_else_does() {
    let lab = Lab::in_memory().await;
    let repository = lab.open().await;
    let day = || Keep::For(days(1));
    let first = point(&repository, "web", 1, 10, day()).await;
    let held = point(&repository, "web", 2, 9, day()).await;
    let held_once = point(&repository, "web", 3, 8, day()).await;
    let for_ever = point(&repository, "web", 4, 7, Keep::WithoutEnd).await;
    let young = point(&repository, "web", 5, 6, Keep::For(days(7))).await;
    let last = point(&repository, "web", 6, 5, day()).await;
    let only = point(&repository, "db", 7, 400, day()).await;
    let until = |nth: usize| repository.points(None).unwrap()[nth].keep_until_unix_ns;
    let taken = |nth: usize| repository.points(None).unwrap()[nth].taken_unix_ns;
    assert_eq!(until(1), taken(1) + DAY);
    assert_eq!(until(4), 0);
    hold(&repository, 1, &[held], 0).await;
    hold(&repository, 2, &[held_once], clock::now_unix_ns() - 1).await;
    hold(&repository, 3, &[held_once, held], 1).await;

    // Who may only back up cannot, and nothing is changed by the try.
    let (cache, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let host = lab.open_as(&lab.keys.host, other.path()).await;
    let head = host.catalogue().head().unwrap();
    let everything = ExpireScope::default();
    let refused = host.expire(&everything).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Denied, "{refused}");
    host.refresh().await.unwrap();
    assert_eq!(host.catalogue().head().unwrap(), head);

    let gateway = lab.open_as(&lab.keys.maintenance, cache.path()).await;
    let of = |machine: &str| ExpireScope {
        machine: Some(machine.to_owned()),
        ..ExpireScope::default()
    };
    let planned = gateway.plan_expiry(&everything).unwrap();
    assert_eq!(gateway.expire(&of("db")).await.unwrap().goes, []);
    assert_eq!(gateway.catalogue().head().unwrap(), head);
    let (stored, before) = (packs(&lab), lab.calls.count(Operation::Delete));
    let done = gateway.expire(&everything).await.unwrap();
    assert_eq!(done, planned);
    let gone: Vec<_> = done.goes.iter().map(|kept| kept.point).collect();
    assert_eq!(gone, [first, held_once]);
    let stays: Vec<_> = done
        .stays
        .iter()
        .map(|(kept, why)| (kept.point, *why))
        .collect();
    let expected = [
        (only, Why::Newest),
        (held, Why::Held(0)),
        (last, Why::Newest),
    ];
    assert_eq!(stays, expected);
    // One record, for all of them; and no object is gone or made besides.
    assert_eq!(gateway.catalogue().head().unwrap().number, head.number + 1);
    assert_eq!(
        (packs(&lab), lab.calls.count(Operation::Delete)),
        (stored, before)
    );
    assert_eq!(gateway.expire(&everything).await.unwrap().goes, []);
    assert_eq!(gateway.catalogue().head().unwrap().number, head.number + 1);

    // Everybody reads it, also from a checkpoint; what is left is whole.
    gateway.write_checkpoint().await.unwrap();
    let new = tempfile::tempdir().unwrap();
    let stranger = lab.try_open(new.path()).await.unwrap();
    repository.refresh().await.unwrap();
    for repository in [&repository, &stranger] {
        assert_eq!(names(repository), [only, held, for_ever, young, last]);
        let told = repository.catalogue().kept(None).unwrap();
        let until = |point| {
            told.iter()
                .find(|kept| kept.point == point)
                .unwrap()
                .keep_until_unix_ns
        };
        assert_eq!(until(held), planned.stays[1].0.keep_until_unix_ns);
        assert_eq!(until(for_ever), 0);
        for (name, seed) in [(held, 2), (last, 6)] {
            let point = repository.point(name).unwrap().unwrap();
            let target = MemoryTarget::holding(vec![0; 8 << 16], true);
            restore(repository, point.disk(None).unwrap(), target.clone())
                .await
                .unwrap();
            assert_eq!(target.content(), content(seed), "{name}");
        }
    }

    // Who asks for one that is gone hears what became of it, where that is known.
    let of_that_name = Selector::Id(held_once.to_string()[..8].to_owned());
    let error = repository.resolve("web", &of_that_name).unwrap_err();
    assert_eq!(error.kind(), Kind::Missing);
    assert!(error.to_string().contains("it was expired at 2"), "{error}");
    assert_eq!(
        stranger.resolve("web", &of_that_name).unwrap_err().kind(),
        Kind::Missing
    );

    // A hold that is lifted holds no longer.
    for hold in [1, 3] {
        let lifted = HoldLifted {
            hold: vec![hold; 16],
            reason: String::new(),
        };
        let lift = |_: &Repository| Ok(Body::HoldLifted(lifted.clone()));
        gateway.append(lift).await.unwrap();
    }
    let done = gateway.expire(&everything).await.unwrap();
    assert_eq!(done.goes.len(), 1);
    assert_eq!(names(&gateway), [only, for_ever, young, last]);
}

/// How long a point is kept depends on the others of its machine: on all that stand before it in the log,
/// also those of which its writer did not know when it began.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_counts_what_stands_before_it_in_the_log() {
    let lab = Lab::in_memory().await;
    let keep = || {
        Keep::ByPeriod(Box::new(ByPeriod {
            all: days(1),
            firsts: vec![(Period::Year, days(100))],
            zone: TimeZone::UTC,
        }))
    };
    let here = lab.open().await;
    let cache = tempfile::tempdir().unwrap();
    let there = lab.open_as(&lab.keys.host, cache.path()).await;
    // The first try at a record waits; another host's lands before it.
    lab.calls.clear_calls();
    let mut waits = true;
    lab.calls.script(move |call| {
        let is_record = call.operation == Operation::Put && call.key.contains("log/");
        (is_record && std::mem::take(&mut waits)).then_some(Fault::Delay(LATE))
    });
    let slow = tokio::spawn({
        let there = Arc::clone(&there);
        async move { point(&there, "web", 1, 0, keep()).await }
    });
    let is_record = |call: &Call| call.operation == Operation::Put && call.key.contains("log/");
    while !lab.calls.calls().iter().any(is_record) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Taken earlier, in the same year but for the first minute of one.
    let mut request = request("web", disk(2), None);
    let slow_taken = clock::now_unix_ns();
    request.moment = Some(Moment {
        point: PointId([2; 16]),
        taken_unix_ns: slow_taken - 60_000_000_000,
        consistency: Consistency::Crash,
        together: None,
    });
    request.keep = keep();
    try_back_up(&here, request).await.unwrap();
    slow.await.unwrap();
    here.refresh().await.unwrap();
    let lengths: Vec<_> = here.points(Some("web")).unwrap();
    let lengths = lengths
        .iter()
        .map(|point| (point.keep_until_unix_ns - point.taken_unix_ns) / DAY);
    assert_eq!(lengths.collect::<Vec<_>>(), [100, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_that_comes_between_decision_and_record_is_seen() {
    let lab = Lab::in_memory().await;
    let repository = lab.open().await;
    let old = point(&repository, "web", 1, 10, Keep::For(days(1))).await;
    point(&repository, "web", 2, 0, Keep::WithoutEnd).await;
    let cache = tempfile::tempdir().unwrap();
    let gateway = lab.open_as(&lab.keys.maintenance, cache.path()).await;
    lab.calls.clear_calls();
    let mut waits = true;
    lab.calls.script(move |call| {
        let is_record = call.operation == Operation::Put && call.key.contains("log/");
        (is_record && std::mem::take(&mut waits)).then_some(Fault::Delay(LATE))
    });
    let expiring = tokio::spawn({
        let gateway = Arc::clone(&gateway);
        async move { gateway.expire(&ExpireScope::default()).await }
    });
    while lab.calls.count(Operation::Put) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    hold(&repository, 9, &[old], 0).await;
    let done = expiring.await.unwrap().unwrap();
    assert_eq!(done.goes, []);
    assert_eq!(done.stays[0].1, Why::Held(0));
    repository.refresh().await.unwrap();
    assert!(repository.point(old).unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_stays_while_the_newer_ones_are_known_to_be_damaged() {
    let lab = Lab::in_memory().await;
    let repository = lab.open().await;
    let oldest = point(&repository, "web", 1, 10, Keep::For(days(1))).await;
    let sound = point(&repository, "web", 2, 9, Keep::For(days(1))).await;
    let damaged = point(&repository, "web", 3, 8, Keep::For(days(1))).await;
    let newest = point(&repository, "web", 4, 7, Keep::For(days(1))).await;
    let lose = |point| {
        let point = repository.point(point).unwrap().unwrap();
        point
            .disk(None)
            .unwrap()
            .root
            .unwrap()
            .location
            .pack
            .0
            .to_vec()
    };
    let bad = PacksFoundBad {
        packs: vec![lose(damaged), lose(newest)],
        ..PacksFoundBad::default()
    };
    let note = |_: &Repository| Ok(Body::PacksFoundBad(bad.clone()));
    repository.append(note).await.unwrap();
    let done = repository.expire(&ExpireScope::default()).await.unwrap();
    let gone: Vec<_> = done.goes.iter().map(|kept| kept.point).collect();
    assert_eq!(gone, [oldest, damaged]);
    assert_eq!(names(&repository), [sound, newest]);
    assert_eq!(done.stays[0].1, Why::NewestSound);
}
