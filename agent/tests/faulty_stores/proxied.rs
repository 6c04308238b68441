//! The clients' own paths: an HTTP proxy that fails, before a real S3 and a real Azure server.

use crate::life::{Verb, assert_given_up, attempt, chosen, each, lives_through_it, living};
use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tidegate_agent::store::{Store, StoreSettings};
use tidegate_agent::testing::{AzureServer, FaultyProxy, HttpFault, S3Server, test_settings};

const SEEDS: u64 = 3;

fn refuse(status: &'static str, code: &'static str, retry_after: Option<u32>) -> HttpFault {
    HttpFault::Refuse {
        status,
        code,
        retry_after,
    }
}

/// All that can be survived, with its chances in a thousand. Those that cost a time-out are rare.
fn survivable() -> Vec<(HttpFault, u64)> {
    vec![
        (
            refuse("500 Internal Server Error", "InternalError", None),
            30,
        ),
        (refuse("503 Slow Down", "SlowDown", None), 30),
        (refuse("503 Service Unavailable", "ServerBusy", Some(1)), 5),
        (refuse("429 Too Many Requests", "TooManyRequests", None), 20),
        (HttpFault::ResetBefore, 30),
        (HttpFault::ResetAfter, 40),
        (HttpFault::StallBefore, 3),
        (HttpFault::StallAfter, 6),
        (HttpFault::CutOff(0), 10),
        (HttpFault::CutOff(100), 20),
        (HttpFault::Slow(1 << 20), 20),
        (HttpFault::Repeat, 30),
        (HttpFault::RepeatLate(Duration::from_millis(30)), 30),
    ]
}

/// A life for each seed, each through a proxy and at a place of its own. Returns the faults that were
/// met.
async fn lives(port: u16, open: impl Fn(&str, &str) -> Store, seeds: u64) -> HashSet<String> {
    let met: Arc<Mutex<HashSet<String>>> = Arc::default();
    each(0..seeds, |seed| {
        let proxy = FaultyProxy::before(port);
        let store = open(&proxy.url(), &format!("seed-{seed}"));
        let (seed, met) = (*seed, Arc::clone(&met));
        proxy.script(move |call| {
            let fault = chosen(seed, call.ordinal, &survivable())?;
            met.lock().unwrap().insert(format!("{fault:?}"));
            Some(fault)
        });
        async move {
            lives_through_it(&store).await;
            assert!(store.requests().retries > 3, "{:?}", store.requests());
            drop(proxy);
        }
    })
    .await;
    let met = met.lock().unwrap();
    met.clone()
}

/// Patient enough for a busy machine, and no more.
fn settings() -> StoreSettings {
    StoreSettings {
        request_timeout: Duration::from_secs(3),
        ..test_settings()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_on_s3_lives_through_all_that_can_be_survived() {
    let server = S3Server::start();
    let open = |proxy: &str, prefix: &str| {
        let environment = server.environment().with("AWS_ENDPOINT_URL", proxy);
        Store::open_in(&server.location(prefix), &settings(), &environment).unwrap()
    };
    let met = lives(server.port(), open, SEEDS).await;
    // The mix was one.
    assert!(met.len() >= survivable().len() - 2, "{met:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_on_azure_lives_through_all_that_can_be_survived() {
    let server = AzureServer::start();
    let open = |proxy: &str, prefix: &str| {
        let environment = server.environment_at(proxy);
        Store::open_in(&server.location(prefix), &settings(), &environment).unwrap()
    };
    lives(server.port(), open, 1).await;
}

fn impatient() -> StoreSettings {
    StoreSettings {
        request_timeout: Duration::from_millis(500),
        operation_deadline: Duration::from_secs(3),
        bytes_per_second_min: 1 << 30,
        backoff_first: Duration::from_millis(5),
        backoff_max: Duration::from_millis(50),
        ..StoreSettings::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_for_good_is_given_up_and_says_what_was_tried() {
    let server = S3Server::start();
    let patient = server.open("one");
    let living = living(&patient).await;
    let unreadable = "no answer from the store";
    let cases = [
        (
            refuse("500 Internal Server Error", "InternalError", None),
            "the store answered 500 InternalError (the proxy says so)",
        ),
        (
            refuse("503 Slow Down", "SlowDown", None),
            "the store answered 503 SlowDown (the proxy says so)",
        ),
        (
            refuse("503 Service Unavailable", "ServerBusy", Some(0)),
            "503 ServerBusy (the proxy says so), to be asked again after 0 s",
        ),
        (HttpFault::ResetBefore, unreadable),
        (HttpFault::ResetAfter, unreadable),
        (HttpFault::StallBefore, "no answer within 0.5 s"),
        (HttpFault::StallAfter, "no answer within 0.5 s"),
        (HttpFault::CutOff(10), unreadable),
        (HttpFault::Slow(20), "no answer within 0.5 s"),
    ];
    let all = cases.iter().flat_map(|(fault, last)| {
        let is_of_bodies = matches!(fault, HttpFault::CutOff(_) | HttpFault::Slow(_));
        let verbs = [(Verb::Backup, "PUT"), (Verb::Restore, "GET")];
        let verbs = verbs
            .into_iter()
            .filter(move |(_, method)| !is_of_bodies || *method == "GET");
        verbs.map(move |(verb, method)| (fault, *last, verb, method))
    });
    each(all, |&(fault, last, verb, method)| {
        let proxy = FaultyProxy::before(server.port());
        let environment = server.environment().with("AWS_ENDPOINT_URL", proxy.url());
        let store = Store::open_in(&server.location("one"), &impatient(), &environment).unwrap();
        let (fault, living) = (fault.clone(), &living);
        async move {
            // Opening is not what is tested.
            let begin = || {
                proxy.script(move |call| {
                    let meant = call.method == method && call.target.contains("/packs/");
                    meant.then(|| fault.clone())
                });
            };
            let error = attempt(verb, &store, living, begin).await.unwrap_err();
            assert_given_up(&error, last);
        }
    })
    .await;
    // It was the wire alone.
    attempt(Verb::Restore, &patient, &living, || {})
        .await
        .unwrap();
}
