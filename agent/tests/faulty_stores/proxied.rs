//! The clients' own paths: an HTTP proxy that fails, before a real S3 and a real Azure server.

use crate::life::{Verb, assert_given_up, attempt, chosen, lives_through_it, living};
use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tidegate_agent::store::{Environment, Store, StoreSettings};
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

/// A life for each seed, through the proxy, at a place of its own in the store.
async fn lives(proxy: &FaultyProxy, open: impl Fn(&str) -> Store, seeds: u64) -> HashSet<String> {
    let met: Arc<Mutex<HashSet<String>>> = Arc::default();
    for seed in 0..seeds {
        println!("seed {seed}");
        let first = proxy.calls().len() as u64;
        let faults_met = Arc::clone(&met);
        proxy.script(move |call| {
            let fault = chosen(seed, call.ordinal - first, &survivable())?;
            faults_met.lock().unwrap().insert(format!("{fault:?}"));
            Some(fault)
        });
        let store = open(&format!("seed-{seed}"));
        lives_through_it(&store).await;
        proxy.heal();
        assert!(store.requests().retries > 3, "{:?}", store.requests());
    }
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
    let proxy = FaultyProxy::before(server.port());
    let environment = server.environment().with("AWS_ENDPOINT_URL", proxy.url());
    let open =
        |prefix: &str| Store::open_in(&server.location(prefix), &settings(), &environment).unwrap();
    let met = lives(&proxy, open, SEEDS).await;
    // The mix was one.
    assert!(met.len() >= survivable().len() - 2, "{met:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_on_azure_lives_through_all_that_can_be_survived() {
    let server = AzureServer::start();
    let proxy = FaultyProxy::before(server.port());
    let environment = server.environment_at(&proxy.url());
    let open =
        |prefix: &str| Store::open_in(&server.location(prefix), &settings(), &environment).unwrap();
    lives(&proxy, open, 1).await;
}

fn impatient() -> StoreSettings {
    StoreSettings {
        request_timeout: Duration::from_millis(200),
        operation_deadline: Duration::from_millis(800),
        bytes_per_second_min: 1 << 30,
        backoff_first: Duration::from_millis(5),
        backoff_max: Duration::from_millis(50),
        ..StoreSettings::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_for_good_is_given_up_and_says_what_was_tried() {
    let server = S3Server::start();
    let proxy = FaultyProxy::before(server.port());
    let environment: Environment = server.environment().with("AWS_ENDPOINT_URL", proxy.url());
    let open = |settings: &StoreSettings| {
        Store::open_in(&server.location("one"), settings, &environment).unwrap()
    };
    let living = living(&open(&test_settings())).await;
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
        (HttpFault::StallBefore, "no answer within 0.2 s"),
        (HttpFault::StallAfter, "no answer within 0.2 s"),
        (HttpFault::CutOff(10), unreadable),
        (HttpFault::Slow(20), "no answer within 0.2 s"),
    ];
    for (fault, last) in cases {
        for (verb, method) in [(Verb::Backup, "PUT"), (Verb::Restore, "GET")] {
            let is_of_bodies = matches!(fault, HttpFault::CutOff(_) | HttpFault::Slow(_));
            if is_of_bodies && method != "GET" {
                continue;
            }
            let context = format!("{fault:?}, {verb:?}");
            // Opening is not what is tested: that has its time.
            let store = open(&impatient());
            let begin = || {
                let fault = fault.clone();
                proxy.script(move |call| {
                    let meant = call.method == method && call.target.contains("/packs/");
                    meant.then(|| fault.clone())
                });
            };
            let error = attempt(verb, &store, &living, begin).await.unwrap_err();
            assert_given_up(&error, last, &context);
            proxy.heal();
        }
    }
    // It was the server alone.
    attempt(Verb::Restore, &open(&test_settings()), &living, || {})
        .await
        .unwrap();
}
