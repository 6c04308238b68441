//! The promises a backend must keep. Each check gets a repository of its own.

use bytes::Bytes;
use futures::TryStreamExt;
use tidegate_agent::error::Kind;
use tidegate_agent::store::fault::{Fault, Operation};
use tidegate_agent::store::{Created, Entry, Store};
use tidegate_agent::testing::test_settings;

const MIB: u64 = 1024 * 1024;

/// Runs all checks; `open` opens the empty repository at a prefix.
pub(crate) async fn run(open: impl Fn(&str) -> Store) {
    macro_rules! check {
        ($($name:ident),* $(,)?) => {$(
            eprintln!("checking: {}", stringify!($name));
            $name(open(stringify!($name))).await;
        )*};
    }
    check![
        creates_once,
        reads_what_was_written_at_once,
        reads_ranges_exactly,
        refuses_what_is_larger_than_expected,
        stores_empty_objects,
        stores_large_objects,
        lists_in_order_by_folder_and_from_a_key,
        lists_beyond_one_page,
        keeps_to_its_prefix,
        deletes_what_is_there_and_what_is_not,
        says_what_is_missing,
        lets_one_of_sixteen_racers_win,
        tells_the_truth_after_lost_answers,
        counts_its_requests,
        passes_the_probe,
    ];
}

/// Bytes that differ everywhere, so that a wrong offset shows.
fn pattern(length: u64) -> Bytes {
    (0..length)
        .map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8)
        .collect()
}

async fn keys(store: &Store, prefix: &str, after: Option<&str>) -> Vec<String> {
    let entries: Vec<Entry> = store.list(prefix, after).try_collect().await.unwrap();
    entries.into_iter().map(|entry| entry.key).collect()
}

async fn put(store: &Store, key: &str, bytes: &'static [u8]) {
    let created = store.create(key, Bytes::from_static(bytes)).await.unwrap();
    assert_eq!(created, Created::New, "{key}");
}

async fn creates_once(store: Store) {
    put(&store, "log/1", b"first").await;
    for other in ["second", "first"] {
        let created = store.create("log/1", Bytes::from(other)).await.unwrap();
        assert_eq!(created, Created::Exists);
    }
    assert_eq!(store.get("log/1", 100).await.unwrap(), "first");
    store
        .create_named_by_content("log/1", Bytes::from_static(b"first"))
        .await
        .unwrap();
}

async fn reads_what_was_written_at_once(store: Store) {
    for n in 0..20 {
        let key = format!("log/{n}");
        assert_eq!(store.size(&key).await.unwrap(), None);
        put(&store, &key, b"x").await;
        assert_eq!(store.get(&key, 1).await.unwrap(), "x");
        assert_eq!(store.size(&key).await.unwrap(), Some(1));
        assert_eq!(keys(&store, "log", None).await.len(), n + 1);
    }
}

async fn reads_ranges_exactly(store: Store) {
    let pack = pattern(100_000);
    store
        .create_named_by_content("packs/aa/1", pack.clone())
        .await
        .unwrap();
    for range in [
        0..1,
        0..100_000,
        99_999..100_000,
        4096..8192,
        12_345..54_321,
    ] {
        let found = store.get_range("packs/aa/1", range.clone()).await.unwrap();
        let expected = &pack[range.start as usize..range.end as usize];
        assert!(found == expected, "{range:?}");
    }
    assert_eq!(store.get_range("packs/aa/1", 5..5).await.unwrap(), "");
    // Across the end, from the end, and beyond it.
    for range in [99_999..100_001, 100_000..100_001, 200_000..300_000] {
        let error = store
            .get_range("packs/aa/1", range.clone())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{range:?}: {error:?}");
        let text = error.to_string();
        assert!(
            text.contains("packs/aa/1 in ") && text.contains("found 100000"),
            "{text}"
        );
    }
}

async fn refuses_what_is_larger_than_expected(store: Store) {
    store
        .create_named_by_content("index/1", pattern(5 * MIB))
        .await
        .unwrap();
    let before = store.requests().bytes_down;
    let error = store.get("index/1", 5 * MIB - 1).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error:?}");
    assert_eq!(store.requests().bytes_down, before, "the body was read");
    assert_eq!(
        store.get("index/1", 5 * MIB).await.unwrap().len() as u64,
        5 * MIB
    );
}

async fn stores_empty_objects(store: Store) {
    put(&store, "log/1", b"").await;
    assert_eq!(
        store
            .create("log/1", Bytes::from_static(b"x"))
            .await
            .unwrap(),
        Created::Exists
    );
    assert_eq!(store.get("log/1", 0).await.unwrap(), "");
    assert_eq!(store.size("log/1").await.unwrap(), Some(0));
    let error = store.get_range("log/1", 0..1).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error:?}");
}

/// Larger than any pack, and than what HTTP stacks buffer.
async fn stores_large_objects(store: Store) {
    let pack = pattern(40 * MIB);
    store
        .create_named_by_content("packs/aa/1", pack.clone())
        .await
        .unwrap();
    assert_eq!(store.size("packs/aa/1").await.unwrap(), Some(40 * MIB));
    assert!(store.get("packs/aa/1", 40 * MIB).await.unwrap() == pack);
    let range = 39 * MIB + 1..40 * MIB;
    let found = store.get_range("packs/aa/1", range.clone()).await.unwrap();
    assert!(found == pack[range.start as usize..]);
}

async fn lists_in_order_by_folder_and_from_a_key(store: Store) {
    for key in [
        "log/3",
        "log/1",
        "log/2",
        "packs/ab/2",
        "packs/aa/1",
        "repository",
        "logs/1",
    ] {
        put(&store, key, b"12345").await;
    }
    let all = [
        "log/1",
        "log/2",
        "log/3",
        "logs/1",
        "packs/aa/1",
        "packs/ab/2",
        "repository",
    ];
    assert_eq!(keys(&store, "", None).await, all);
    assert_eq!(keys(&store, "log", None).await, ["log/1", "log/2", "log/3"]);
    assert_eq!(
        keys(&store, "log/", None).await,
        ["log/1", "log/2", "log/3"]
    );
    assert_eq!(keys(&store, "packs/ab", None).await, ["packs/ab/2"]);
    assert_eq!(keys(&store, "log", Some("log/1")).await, ["log/2", "log/3"]);
    assert_eq!(
        keys(&store, "log", Some("log/15")).await,
        ["log/2", "log/3"]
    );
    assert_eq!(keys(&store, "log", Some("log/3")).await, [""; 0]);
    assert_eq!(
        keys(&store, "packs", Some("packs/aa/1")).await,
        ["packs/ab/2"]
    );
    assert_eq!(keys(&store, "nothing", None).await, [""; 0]);
    let entries: Vec<Entry> = store.list("log", None).try_collect().await.unwrap();
    assert!(
        entries.iter().all(|entry| entry.size_bytes == 5),
        "{entries:?}"
    );
}

/// The clouds answer with a thousand keys a page.
async fn lists_beyond_one_page(store: Store) {
    let expected: Vec<String> = (0..1100).map(|n| format!("log/{n:020}")).collect();
    for batch in expected.chunks(16) {
        let puts = batch.iter().map(|key| store.create(key, Bytes::new()));
        for created in futures::future::join_all(puts).await {
            assert_eq!(created.unwrap(), Created::New);
        }
    }
    assert_eq!(keys(&store, "log", None).await, expected);
    assert_eq!(
        keys(&store, "log", Some(&expected[1049])).await,
        &expected[1050..]
    );
}

async fn keeps_to_its_prefix(store: Store) {
    put(&store, "log/1", b"x").await;
    assert_eq!(
        keys(&store, "", None).await,
        ["log/1"],
        "other repositories' keys are listed"
    );
}

async fn deletes_what_is_there_and_what_is_not(store: Store) {
    put(&store, "packs/aa/1", b"x").await;
    store.delete("packs/aa/1").await.unwrap();
    store.delete("packs/aa/1").await.unwrap();
    assert_eq!(store.size("packs/aa/1").await.unwrap(), None);
    assert_eq!(keys(&store, "packs", None).await, [""; 0]);
    put(&store, "packs/aa/1", b"y").await;
}

async fn says_what_is_missing(store: Store) {
    put(&store, "log/1", b"x").await;
    for error in [
        store.get("log/2", 1).await.unwrap_err(),
        store.get_range("log/2", 0..1).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::Missing);
        let expected = format!("object log/2 in {} is not there", store.label());
        assert_eq!(error.chain(), expected);
    }
    assert_eq!(store.requests().retries, 0);
}

async fn lets_one_of_sixteen_racers_win(store: Store) {
    for round in 0..3 {
        let key = format!("log/{round}");
        let racers = (0..16).map(|racer| {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move {
                let body = Bytes::from(format!("racer {racer}").repeat(1000));
                (store.create(&key, body.clone()).await.unwrap(), body)
            })
        });
        let outcomes: Vec<(Created, Bytes)> = futures::future::join_all(racers)
            .await
            .into_iter()
            .map(Result::unwrap)
            .collect();
        let winners: Vec<&Bytes> = outcomes
            .iter()
            .filter(|(created, _)| *created == Created::New)
            .map(|(_, body)| body)
            .collect();
        assert_eq!(winners.len(), 1, "round {round}");
        assert_eq!(store.get(&key, 100_000).await.unwrap(), winners[0]);
    }
}

/// Each operation takes effect, its answer is lost, and it is tried again.
async fn tells_the_truth_after_lost_answers(store: Store) {
    let (store, faults) = store.with_faults(&test_settings());
    let lose_first = |operation: Operation| {
        let mut is_lost = false;
        faults.script(move |call| {
            let lose = call.operation == operation && !is_lost;
            is_lost |= lose;
            lose.then_some(Fault::LoseAnswer)
        });
    };
    lose_first(Operation::Put);
    let created = store
        .create("log/1", Bytes::from_static(b"mine"))
        .await
        .unwrap();
    assert_eq!(created, Created::Exists, "the first attempt took effect");
    lose_first(Operation::Put);
    store
        .create_named_by_content("packs/1", Bytes::from_static(b"pack"))
        .await
        .unwrap();
    lose_first(Operation::Get);
    assert_eq!(store.get("log/1", 4).await.unwrap(), "mine");
    lose_first(Operation::Head);
    assert_eq!(store.size("log/1").await.unwrap(), Some(4));
    lose_first(Operation::List);
    assert_eq!(keys(&store, "", None).await, ["log/1", "packs/1"]);
    lose_first(Operation::Delete);
    store.delete("log/1").await.unwrap();
    assert_eq!(keys(&store, "", None).await, ["packs/1"]);
    assert_eq!(store.requests().retries, 6);
}

async fn counts_its_requests(store: Store) {
    let before = store.requests();
    put(&store, "log/1", b"12345").await;
    store.get("log/1", 5).await.unwrap();
    store.get_range("log/1", 1..3).await.unwrap();
    store.size("log/1").await.unwrap();
    keys(&store, "log", None).await;
    store.delete("log/1").await.unwrap();
    let after = store.requests();
    assert_eq!(after.puts - before.puts, 1);
    assert_eq!(after.gets - before.gets, 2);
    assert_eq!(after.heads - before.heads, 1);
    assert_eq!(after.lists - before.lists, 1);
    assert_eq!(after.deletes - before.deletes, 1);
    assert_eq!(after.bytes_up - before.bytes_up, 5);
    assert_eq!(after.bytes_down - before.bytes_down, 7);
    assert_eq!(after.retries, before.retries);
    assert_eq!(after.total() - before.total(), 6);
}

async fn passes_the_probe(store: Store) {
    store.probe_create_only().await.unwrap();
    assert_eq!(
        keys(&store, "", None).await,
        [""; 0],
        "probe objects are left behind"
    );
}

/// What every operation but a HEAD says where the bucket is not there.
pub(crate) async fn bucket_is_missing(store: &Store, label: &str) {
    for error in [
        store.create("log/1", Bytes::new()).await.unwrap_err(),
        store.get("log/1", 1).await.unwrap_err(),
        store.list("log", None).try_next().await.unwrap_err(),
        store.probe_create_only().await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::Missing, "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains(label) && text.contains("the bucket or container"),
            "{text}"
        );
        assert!(error.advice().is_some());
    }
}

/// What every operation says to wrong credentials: the text names what to set, and no secret.
pub(crate) async fn access_is_denied(store: &Store, [secret, variable]: &[&str; 2]) {
    for error in [
        store.create("log/1", Bytes::new()).await.unwrap_err(),
        store.get("log/1", 1).await.unwrap_err(),
        store.get_range("log/1", 0..1).await.unwrap_err(),
        store.size("log/1").await.unwrap_err(),
        store.list("log", None).try_next().await.unwrap_err(),
        store.delete("log/1").await.unwrap_err(),
        store.probe_create_only().await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), Kind::Denied, "{error:?}");
        assert!(error.advice().unwrap().contains(variable), "{error:?}");
        assert!(!format!("{error:?}{store:?}").contains(secret), "{error:?}");
    }
    assert_eq!(store.requests().retries, 0);
}
