//! The door itself, over memory and a folder, with faults. Suites that need real servers are in
//! `tests/store_conformance.rs`.

use super::fault::{Fault, FaultStore, Operation};
use super::*;
use futures::TryStreamExt;
use std::time::Duration;

/// Retries without waiting, so that tests are quick.
fn impatient() -> StoreSettings {
    StoreSettings {
        request_timeout: Duration::from_millis(200),
        operation_deadline: Duration::from_secs(1),
        backoff_first: Duration::from_millis(1),
        backoff_max: Duration::from_millis(5),
        ..StoreSettings::default()
    }
}

fn faulty() -> (Arc<FaultStore>, Store) {
    let faults = Arc::new(FaultStore::new(Arc::new(InMemory::new())));
    let store = Store::from_object_store(faults.clone(), "some/prefix", "faulty", &impatient());
    (faults, store)
}

fn folder() -> (tempfile::TempDir, Store) {
    let parent = tempfile::tempdir().unwrap();
    let root = parent.path().join("made/by/the/first/put");
    let store = Store::open(root.to_str().unwrap(), &StoreSettings::default()).unwrap();
    (parent, store)
}

async fn keys(store: &Store, prefix: &str, after: Option<&str>) -> Vec<String> {
    let entries: Vec<Entry> = store.list(prefix, after).try_collect().await.unwrap();
    entries.into_iter().map(|entry| entry.key).collect()
}

/// The first `n` calls of `operation` meet `fault`.
fn first(
    n: usize,
    operation: Operation,
    fault: Fault,
) -> impl FnMut(&fault::Call) -> Option<Fault> {
    let mut left = n;
    move |call| {
        if call.operation != operation || left == 0 {
            return None;
        }
        left -= 1;
        Some(fault.clone())
    }
}

#[tokio::test]
async fn a_lost_answer_comes_back_as_exists() {
    let (faults, store) = faulty();
    faults.script(first(1, Operation::Put, Fault::LoseAnswer));
    let created = store
        .create("log/1", Bytes::from_static(b"mine"))
        .await
        .unwrap();
    assert_eq!(created, Created::Exists);
    assert_eq!(store.get("log/1", 10).await.unwrap(), "mine");
    let counts = store.requests();
    assert_eq!((counts.puts, counts.retries, counts.bytes_up), (2, 1, 8));
}

#[tokio::test]
async fn a_lost_request_is_sent_again() {
    let (faults, store) = faulty();
    for fault in [Fault::Lose, Fault::Stall] {
        let key = format!("log/{fault:?}");
        faults.script(first(2, Operation::Put, fault));
        let created = store
            .create(&key, Bytes::from_static(b"mine"))
            .await
            .unwrap();
        assert_eq!(created, Created::New);
    }
}

#[tokio::test]
async fn an_operation_ends_at_its_deadline_and_says_what_was_tried() {
    let (faults, store) = faulty();
    faults.script(|_| Some(Fault::Lose));
    let started = std::time::Instant::now();
    let error = store.create("log/1", Bytes::new()).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(3));
    assert_eq!(error.kind(), Kind::Unavailable);
    let text = error.chain();
    assert!(text.contains("log/1 in faulty"), "{text}");
    assert!(text.contains("gave up after"), "{text}");
    assert!(text.contains("injected fault Lose"), "{text}");
    assert!(store.requests().puts > 10, "{:?}", store.requests());
}

#[tokio::test]
async fn a_store_that_never_answers_is_given_up() {
    let (faults, store) = faulty();
    faults.script(|_| Some(Fault::Stall));
    let error = store.get("log/1", 1).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(
        error.chain().contains("no answer within 0.2 s"),
        "{}",
        error.chain()
    );
    let error = store.list("log", None).try_next().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
}

#[tokio::test]
async fn what_retrying_cannot_cure_is_not_retried() {
    let (faults, store) = faulty();
    faults.script(|_| Some(Fault::Refuse));
    let error = store.create("log/1", Bytes::new()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    faults.crash_after(0);
    assert_eq!(store.size("log/1").await.unwrap_err().kind(), Kind::Io);
    assert_eq!(store.delete("log/1").await.unwrap_err().kind(), Kind::Io);
    assert_eq!(faults.calls().len(), 3);
}

#[tokio::test]
async fn bodies_that_end_early_are_read_again_and_then_called_truncated() {
    let (faults, store) = faulty();
    store
        .create_named_by_content("packs/a", Bytes::from(vec![7; 1000]))
        .await
        .unwrap();
    faults.script(first(1, Operation::Get, Fault::CutOff(10)));
    assert_eq!(store.get("packs/a", 1000).await.unwrap().len(), 1000);
    faults.script(first(100, Operation::Get, Fault::CutOff(10)));
    let error = store.get_range("packs/a", 100..200).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert_eq!(
        error.to_string(),
        "object packs/a in faulty is truncated: 3 of 3 answers ended early, the last after 10 \
         of 100 bytes"
    );
}

#[tokio::test]
async fn a_body_that_ends_early_after_other_failures_is_no_truncated_object() {
    let (faults, store) = faulty();
    store
        .create_named_by_content("packs/a", Bytes::from(vec![7; 1000]))
        .await
        .unwrap();
    let mut script = [Fault::Lose, Fault::Lose, Fault::Lose, Fault::CutOff(10)].into_iter();
    faults.script(move |_| script.next());
    assert_eq!(store.get("packs/a", 1000).await.unwrap().len(), 1000);
}

#[tokio::test]
async fn an_interrupted_listing_goes_on_after_its_last_key() {
    let (faults, store) = faulty();
    let expected: Vec<String> = (0..50).map(|n| format!("log/{n:04}")).collect();
    for key in &expected {
        store
            .create_named_by_content(key, Bytes::new())
            .await
            .unwrap();
    }
    // Each request breaks off after 7 keys: the eighth gets the last one.
    faults.script(|call| (call.operation == Operation::List).then_some(Fault::CutOff(7)));
    let found: Vec<String> = store
        .list("log", None)
        .take(49)
        .map_ok(|entry| entry.key)
        .try_collect()
        .await
        .unwrap();
    assert_eq!(found, &expected[..49]);
    assert_eq!(store.requests().lists, 7);
}

#[tokio::test]
async fn a_folder_keeps_nothing_but_whole_objects() {
    let (parent, store) = folder();
    assert_eq!(keys(&store, "", None).await, [""; 0]);
    assert_eq!(
        store.get("repository", 1).await.unwrap_err().kind(),
        Kind::Missing
    );
    assert_eq!(store.size("repository").await.unwrap(), None);
    let pack = Bytes::from(vec![1; 100_000]);
    assert_eq!(
        store.create("packs/ab/1", pack.clone()).await.unwrap(),
        Created::New
    );
    assert_eq!(
        store.create("packs/ab/1", Bytes::new()).await.unwrap(),
        Created::Exists
    );
    assert_eq!(store.get("packs/ab/1", 100_000).await.unwrap(), pack);
    let files: Vec<_> = std::fs::read_dir(parent.path().join("made/by/the/first/put/packs/ab"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(files, ["1"]);
}

#[tokio::test]
async fn a_folder_lists_in_the_order_of_keys_and_hides_unfinished_files() {
    let (parent, store) = folder();
    for key in ["a/b", "a-b", "a/c/d", "a.b", "b", "a/b-c", "a/b0"] {
        store
            .create_named_by_content(key, Bytes::from_static(b"x"))
            .await
            .unwrap();
    }
    let root = parent.path().join("made/by/the/first/put");
    std::fs::write(root.join("a/.put-1-2-3"), b"unfinished").unwrap();
    let mut sorted = ["a-b", "a.b", "a/b", "a/b-c", "a/b0", "a/c/d", "b"];
    sorted.sort_unstable();
    assert_eq!(keys(&store, "", None).await, sorted);
    for (n, key) in sorted.iter().enumerate() {
        assert_eq!(
            keys(&store, "", Some(key)).await,
            &sorted[n + 1..],
            "after {key}"
        );
    }
    assert_eq!(keys(&store, "a", Some("a/b0")).await, ["a/c/d"]);
    assert_eq!(keys(&store, "a/b", None).await, [""; 0]);
}

#[tokio::test]
async fn a_file_in_place_of_the_folder_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let location = file.path().to_str().unwrap();
    let error = Store::open(location, &StoreSettings::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::BadInput);
}

#[tokio::test]
async fn keys_cannot_leave_the_repository() {
    let store = Store::memory();
    for key in [
        "", "/a", "a/", "../a", "a/../b", "a//b", ".hidden", "a b", "a%2Fb", "a\0b",
    ] {
        let error = store.get(key, 1).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Bug, "{key:?}");
    }
    assert_eq!(store.requests().total(), 0);
}

#[tokio::test]
async fn ranges_are_exact_or_corrupt() {
    let (_parent, folder) = folder();
    for store in [Store::memory(), folder] {
        store
            .create_named_by_content("packs/a", Bytes::from_static(b"0123456789"))
            .await
            .unwrap();
        assert_eq!(store.get_range("packs/a", 3..7).await.unwrap(), "3456");
        assert_eq!(
            store.get_range("packs/a", 0..10).await.unwrap(),
            "0123456789"
        );
        assert_eq!(store.get_range("packs/a", 10..10).await.unwrap(), "");
        for range in [9..11, 10..11, 20..30] {
            let error = store.get_range("packs/a", range.clone()).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{range:?}");
            assert!(error.to_string().contains("found 10"), "{error}");
        }
        let error = store.get_range("packs/b", 0..1).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Missing);
        let error = store.get("packs/a", 9).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error:?}");
    }
}

#[tokio::test]
async fn good_stores_pass_the_probe_and_keep_nothing_of_it() {
    let (_parent, folder) = folder();
    for store in [Store::memory(), folder] {
        store.probe_create_only().await.unwrap();
        assert_eq!(keys(&store, "", None).await, [""; 0]);
    }
}

#[tokio::test]
async fn the_probe_survives_lost_answers() {
    for nth in 0..12 {
        let (faults, store) = faulty();
        faults.script(move |call| (call.ordinal == nth).then_some(Fault::LoseAnswer));
        store.probe_create_only().await.unwrap();
    }
}
