//! A local folder under kills and races of whole processes.
#![allow(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use futures::TryStreamExt;
use std::process::{Command, Stdio};
use std::time::Duration;
use tidegate_agent::store::{Created, Entry, Store, StoreSettings};

/// Names the folder to the child processes of these tests.
const FOLDER: &str = "TIDEGATE_TEST_FOLDER";

const OBJECT_BYTES: usize = 3_000_000;

fn open() -> Store {
    Store::open(&std::env::var(FOLDER).unwrap(), &StoreSettings::default()).unwrap()
}

/// This very program, running one of the ignored tests below on `folder`.
fn child(test: &str, folder: &std::path::Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "--ignored",
            "--exact",
            test,
            "--nocapture",
            "--test-threads=1",
        ])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

#[test]
fn a_kill_leaves_whole_objects_or_none() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..8 {
        let mut writer = child("writes_until_killed", folder.path()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(60 + 23 * round));
        writer.kill().unwrap();
        writer.wait().unwrap();
    }
    let store = Store::open(folder.path().to_str().unwrap(), &StoreSettings::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let entries: Vec<Entry> = runtime
        .block_on(store.list("", None).try_collect())
        .unwrap();
    assert!(!entries.is_empty(), "nothing was written before the kills");
    assert!(
        entries
            .iter()
            .all(|entry| entry.size_bytes == OBJECT_BYTES as u64),
        "{entries:?}"
    );
    // Not even hidden leftovers.
    let files = std::fs::read_dir(folder.path().join("packs"))
        .unwrap()
        .count();
    assert_eq!(files, entries.len());
}

#[tokio::test]
#[ignore = "run by a_kill_leaves_whole_objects_or_none"]
async fn writes_until_killed() {
    let store = open();
    let body = Bytes::from(vec![7; OBJECT_BYTES]);
    for n in 0.. {
        let key = format!("packs/{}-{n}", std::process::id());
        store
            .create_named_by_content(&key, body.clone())
            .await
            .unwrap();
    }
}

#[test]
fn of_several_processes_one_creates_each_key() {
    let folder = tempfile::tempdir().unwrap();
    let racers: Vec<_> = (0..4)
        .map(|_| child("races_for_keys", folder.path()).spawn().unwrap())
        .collect();
    let mut winners = vec![0; RACE_KEYS];
    for racer in racers {
        let output = racer.wait_with_output().unwrap();
        assert!(output.status.success());
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            if let Some(key) = line.strip_prefix("won ") {
                winners[key.parse::<usize>().unwrap()] += 1;
            }
        }
    }
    assert_eq!(winners, vec![1; RACE_KEYS]);
}

const RACE_KEYS: usize = 200;

#[tokio::test]
#[ignore = "run by of_several_processes_one_creates_each_key"]
#[allow(clippy::print_stdout, reason = "tells its parent what it won")]
async fn races_for_keys() {
    let store = open();
    for key in 0..RACE_KEYS {
        let body = Bytes::from(std::process::id().to_string());
        if store.create(&format!("log/{key}"), body).await.unwrap() == Created::New {
            println!("\nwon {key}");
        }
    }
}
