//! The whole engine over a store that fails as its script says.

use crate::lab::Tile;
use crate::life::{
    LAG, Verb, assert_given_up, attempt, back_up, chosen, each, lives_through_it, living, open,
    verify_all,
};
use object_store::memory::InMemory;
use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tidegate_agent::Kind;
use tidegate_agent::store::fault::{Fault, Operation};
use tidegate_agent::store::{Store, StoreSettings};

/// A life each.
const SEEDS: u64 = 24;

/// All that can be survived, with its chances in a thousand. Those that cost a time-out are rare.
fn survivable() -> Vec<(Fault, u64)> {
    vec![
        (Fault::Lose, 30),
        (Fault::LoseAnswer, 40),
        (Fault::Stall, 5),
        (Fault::StallAnswer, 10),
        (Fault::Delay(Duration::from_millis(20)), 20),
        (Fault::CutOff(0), 10),
        (Fault::CutOff(3), 10),
        (Fault::CutOff(4000), 10),
        (Fault::Throttle(Duration::from_millis(5)), 30),
        (Fault::Repeat, 30),
        (Fault::RepeatLate(Duration::from_millis(30)), 30),
        (Fault::Slow(1 << 20), 10),
        (Fault::Lag(LAG), 100),
    ]
}

fn store(request_timeout: Duration, operation_deadline: Duration) -> Store {
    let settings = StoreSettings {
        request_timeout,
        operation_deadline,
        backoff_first: Duration::from_millis(1),
        backoff_max: Duration::from_millis(20),
        ..StoreSettings::default()
    };
    let inner = Arc::new(InMemory::new());
    Store::from_object_store(inner, "", "bucket", &settings)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_lives_through_all_that_can_be_survived() {
    let met: Arc<Mutex<HashSet<String>>> = Arc::default();
    let settings = StoreSettings {
        request_timeout: Duration::from_millis(500),
        operation_deadline: Duration::from_secs(60),
        backoff_first: Duration::from_millis(1),
        backoff_max: Duration::from_millis(20),
        ..StoreSettings::default()
    };
    each(0..SEEDS, |seed| {
        let (store, faults) = Store::memory().with_faults(&settings);
        let (seed, met) = (*seed, Arc::clone(&met));
        faults.script(move |call| {
            let fault = chosen(seed, call.ordinal, &survivable())?;
            met.lock().unwrap().insert(format!("{fault:?}"));
            Some(fault)
        });
        async move {
            lives_through_it(&store).await;
            assert!(store.requests().retries > 3, "{:?}", store.requests());
        }
    })
    .await;
    // The mix was one.
    let met = met.lock().unwrap();
    for (fault, _) in survivable() {
        assert!(met.contains(&format!("{fault:?}")), "no {fault:?} was met");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_for_good_is_given_up_and_says_what_was_tried() {
    let patient = store(Duration::from_secs(60), Duration::from_secs(300));
    let living = living(&patient).await;
    let impatient = StoreSettings {
        request_timeout: Duration::from_millis(60),
        operation_deadline: Duration::from_millis(500),
        bytes_per_second_min: 1 << 30,
        backoff_first: Duration::from_millis(5),
        backoff_max: Duration::from_millis(40),
        ..StoreSettings::default()
    };
    let hour = Duration::from_secs(3600);
    let cases = [
        (Fault::Lose, "injected fault Lose"),
        (Fault::LoseAnswer, "injected fault LoseAnswer"),
        (Fault::Stall, "no answer within 0.1 s"),
        (Fault::StallAnswer, "no answer within 0.1 s"),
        (Fault::Delay(hour), "no answer within 0.1 s"),
        (
            Fault::Throttle(Duration::from_millis(40)),
            "injected fault Throttle",
        ),
        (Fault::Slow(20), "no answer within 0.1 s"),
    ];
    let verbs = [
        (Verb::Open, Operation::List),
        (Verb::Open, Operation::Get),
        (Verb::Backup, Operation::List),
        (Verb::Backup, Operation::Put),
        (Verb::Restore, Operation::Get),
        (Verb::Verify, Operation::List),
        (Verb::Verify, Operation::Get),
    ];
    let all = cases.iter().flat_map(|(fault, last)| {
        let verbs = verbs.iter().filter(|(_, operation)| {
            !matches!(fault, Fault::Slow(_)) || *operation == Operation::Get
        });
        verbs.map(move |(verb, operation)| (fault, *last, *verb, *operation))
    });
    each(all, |&(fault, last, verb, operation)| {
        let (store, faults) = patient.with_faults(&impatient);
        let (fault, living) = (fault.clone(), &living);
        async move {
            let begin = || {
                faults.script(move |call| {
                    // The descriptor opens no repository that is not there.
                    let meant = call.operation == operation && call.key != "repository";
                    meant.then(|| fault.clone())
                });
            };
            let error = attempt(verb, &store, living, begin).await.unwrap_err();
            assert_given_up(&error, last);
            // It was the store alone.
            faults.heal();
            attempt(Verb::Restore, &store, living, || {}).await.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_beyond_the_deadline_is_not_waited_for() {
    let patient = store(Duration::from_secs(60), Duration::from_secs(300));
    let living = living(&patient).await;
    let settings = StoreSettings {
        operation_deadline: Duration::from_secs(30),
        ..StoreSettings::default()
    };
    let (store, faults) = patient.with_faults(&settings);
    let begin = || faults.script(|_| Some(Fault::Throttle(Duration::from_secs(3600))));
    let error = attempt(Verb::Restore, &store, &living, begin)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(
        error.chain().contains("gave up after 1 attempt in"),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_always_break_off_are_called_truncated() {
    let patient = store(Duration::from_secs(60), Duration::from_secs(300));
    let living = living(&patient).await;
    let (store, faults) = patient.with_faults(&StoreSettings::default());
    let begin = || {
        faults.script(|call| {
            let meant = call.operation == Operation::Get && call.key.starts_with("packs/");
            meant.then_some(Fault::CutOff(5))
        });
    };
    let error = attempt(Verb::Restore, &store, &living, begin)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error:?}");
    let text = error.chain();
    assert!(
        text.contains("packs/") && text.contains("3 of 3 answers ended early"),
        "{text}"
    );
    assert!(error.advice().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_lags_behind_the_log_holds_nobody_up() {
    let patient = store(Duration::from_secs(60), Duration::from_secs(300));
    let living = living(&patient).await;
    let (store, faults) = patient.with_faults(&StoreSettings::default());
    let behind = open(&store, &living.keys.restore, living.cache.path());
    let behind = behind.await.unwrap();
    // Another host appends what the listing will not show.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = open(&patient, &living.keys.host, elsewhere.path()).await;
    let other = other.unwrap();
    for round in 0..3 {
        let changed = living.disk.with([(round, Tile::Data(9000 + round))]);
        back_up(&other, &changed).await.unwrap();
    }
    faults.script(|call| {
        (call.operation == Operation::List).then_some(Fault::Lag(Duration::from_secs(3600)))
    });
    back_up(&behind, &living.disk).await.unwrap();
    assert_eq!(behind.points(None).unwrap().len(), 5);
    // Nor are points missed that this machine knows to be there.
    let report = verify_all(&behind).await.unwrap();
    assert!(
        report.points == 5 && report.damages.is_empty(),
        "{report:?}"
    );
}
