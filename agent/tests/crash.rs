//! The engine when the store fails: the process dies at every store operation in turn, answers get
//! lost, single requests fail; and what the log says meanwhile is heeded.
//!
//! After each failure the repository is opened afresh, with the cache that the dead process left and
//! with an empty one. Every point that was committed restores bit-exact, a new backup succeeds, and
//! nothing is found wanting.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod lab;

use lab::{MemoryDisk, MemoryTarget, copy, copy_all};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tidegate_agent::chunk::ChunkerParams;
use tidegate_agent::clock;
use tidegate_agent::recover::{RestoreMode, RestoreSettings, VerifySettings, restore_disk, verify};
use tidegate_agent::replicate::{
    BackupRequest, BackupSettings, BackupSummary, DiskToBackUp, backup,
};
use tidegate_agent::repository::{NewKeys, Point, Repository};
use tidegate_agent::retention::Keep;
use tidegate_agent::store::fault::{Call, Fault, FaultStore, Operation};
use tidegate_agent::store::{Store, StoreSettings};
use tidegate_agent::target::Target;
use tidegate_agent::{Kind, Result};
use tidegate_protocol::ids::{PackId, RecordHash};
use tidegate_protocol::keys::Keys;
use tidegate_protocol::limits::RECORD_BYTES_MAX;
use tidegate_protocol::record::Role;
use tidegate_protocol::record::{self, Body, Head, PacksCondemned, PacksSwept};
use tokio_util::sync::CancellationToken;

const CHUNKER: ChunkerParams = ChunkerParams::BlockAligned {
    chunk_bytes_min: 16 << 10,
    chunk_bytes_avg: 32 << 10,
    chunk_bytes_max: 64 << 10,
    eof_cut_bytes_min: 0,
};

/// More than the operations of any job here; a matrix that gets there has lost its way.
const OPERATIONS_MAX: u64 = 200;

/// Random bytes: nothing in them compresses or repeats.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// Some six packs of data at [`PACK_BYTES`].
fn first_disk() -> Vec<u8> {
    noise(1_500_000, 1)
}

/// The same with some two packs of it changed, and longer.
fn second_disk() -> Vec<u8> {
    let mut disk = first_disk();
    disk[200_000..600_000].copy_from_slice(&noise(400_000, 2));
    disk.extend(noise(10_000, 3));
    disk
}

const PACK_BYTES: u32 = 256 << 10;

fn request(content: &[u8]) -> BackupRequest {
    request_noticing(content, Arc::new(|| {}))
}

fn request_noticing(content: &[u8], on_read: Arc<dyn Fn() + Send + Sync>) -> BackupRequest {
    BackupRequest {
        machine: "web".to_owned(),
        disks: vec![DiskToBackUp {
            name: "disk".to_owned(),
            source: MemoryDisk::noticing(content, on_read),
            format: "raw".to_owned(),
            role: Role::Disk,
        }],
        host: "test".to_owned(),
        moment: None,
        keep: Keep::WithoutEnd,
        dry_run: false,
        settings: BackupSettings {
            workers: 1,
            compression_level: 1,
            pack_bytes: PACK_BYTES,
            // One at a time, so that the nth operation is the same one each time.
            uploads_in_flight: 1,
            ..BackupSettings::default()
        },
    }
}

async fn back_up(repository: &Arc<Repository>, content: &[u8]) -> Result<BackupSummary> {
    let stop = CancellationToken::new();
    backup(repository, request(content), Arc::default(), stop).await
}

/// Time-outs of a test that wants to see failures, not to sit them out.
fn impatient() -> StoreSettings {
    StoreSettings {
        request_timeout: Duration::from_millis(100),
        operation_deadline: Duration::from_millis(4),
        backoff_first: Duration::from_millis(2),
        backoff_max: Duration::from_millis(2),
        ..StoreSettings::default()
    }
}

/// Time-outs under which one failure is survived.
fn patient() -> StoreSettings {
    StoreSettings {
        request_timeout: Duration::from_millis(300),
        operation_deadline: Duration::from_secs(20),
        backoff_first: Duration::from_millis(1),
        backoff_max: Duration::from_millis(5),
        ..StoreSettings::default()
    }
}

struct Lab {
    store: Store,
    faults: Arc<FaultStore>,
    keys: NewKeys,
    cache: tempfile::TempDir,
}

impl Lab {
    /// A repository in memory behind faults.
    async fn new(settings: &StoreSettings) -> Self {
        let (store, faults) = Store::memory().with_faults(settings);
        let keys = init(&store).await.unwrap();
        Self {
            store,
            faults,
            keys,
            cache: tempfile::tempdir().unwrap(),
        }
    }

    async fn open(&self) -> Arc<Repository> {
        open(&self.store, &self.keys.restore, self.cache.path())
            .await
            .unwrap()
    }

    /// After a failure: all points but the last are known; `finished` is what the backup that was
    /// under way would have made, and may be there or not. Both caches, restores, verify, and
    /// another backup.
    async fn check(&self, before: &[Vec<u8>], finished: &[u8], context: &str) {
        self.faults.heal();
        let empty = tempfile::tempdir().unwrap();
        for cache in [empty.path(), self.cache.path()] {
            let repository = open(&self.store, &self.keys.restore, cache).await.unwrap();
            let points = repository.points(None).unwrap();
            let mut expected: Vec<&[u8]> = before.iter().map(Vec::as_slice).collect();
            assert!(
                (expected.len()..=expected.len() + 2).contains(&points.len()),
                "{context}: {} points",
                points.len()
            );
            expected.resize(points.len(), finished);
            assert_points(&repository, &points, &expected, context).await;
        }
        // With the cache that the dead process left, then with an empty one.
        for cache in [self.cache.path(), tempfile::tempdir().unwrap().path()] {
            let repository = open(&self.store, &self.keys.restore, cache).await.unwrap();
            back_up(&repository, finished).await.unwrap();
            let points = repository.points(None).unwrap();
            let last = &points[points.len() - 1..];
            assert_points(&repository, last, &[finished], context).await;
        }
    }
}

async fn init(store: &Store) -> Result<NewKeys> {
    let mut saved = None;
    Repository::init(store, CHUNKER, |keys| {
        saved = Some(copy_all(keys));
        Ok(())
    })
    .await?;
    Ok(saved.unwrap())
}

async fn open(store: &Store, keys: &Keys, cache: &Path) -> Result<Arc<Repository>> {
    let repository = Repository::open(store.clone(), copy(keys), cache).await?;
    Ok(Arc::new(repository))
}

async fn assert_points(
    repository: &Arc<Repository>,
    points: &[Point],
    expected: &[&[u8]],
    context: &str,
) {
    assert_eq!(points.len(), expected.len(), "{context}");
    for (point, expected) in points.iter().zip(expected) {
        assert!(
            restored(repository, point).await == *expected,
            "{context}: {}",
            point.id
        );
    }
    let settings = VerifySettings::default();
    let stop = CancellationToken::new();
    let report = verify(repository, points, &settings, Arc::default(), stop)
        .await
        .unwrap();
    assert!(
        report.complete && report.damages.is_empty(),
        "{context}: {report:?}"
    );
}

async fn restored(repository: &Arc<Repository>, point: &Point) -> Vec<u8> {
    let disk = point.disk(None).unwrap();
    let size = usize::try_from(disk.size_bytes).unwrap();
    let target = MemoryTarget::holding(vec![0; size], true);
    restore_disk(
        repository,
        disk,
        Arc::clone(&target) as Arc<dyn Target>,
        RestoreMode::New,
        &RestoreSettings::default(),
        Arc::default(),
        CancellationToken::new(),
    )
    .await
    .unwrap();
    target.content()
}

type Crash = fn(&FaultStore, u64);

const CRASHES: [(&str, Crash); 2] = [
    ("before", FaultStore::crash_after),
    ("after", FaultStore::crash_after_effect),
];

#[tokio::test(flavor = "multi_thread")]
async fn an_init_that_dies_anywhere_leaves_nothing_or_a_repository() {
    for (when, crash) in CRASHES {
        let mut survived = false;
        for number in 0..OPERATIONS_MAX {
            let context = format!("init, dead {when} operation {number}");
            let (store, faults) = Store::memory().with_faults(&impatient());
            crash(&faults, number);
            let mut saved = None;
            let made = Repository::init(&store, CHUNKER, |keys| {
                saved = Some(copy_all(keys));
                Ok(())
            })
            .await;
            faults.heal();
            let cache = tempfile::tempdir().unwrap();
            let opened = match &saved {
                Some(keys) => open(&store, &keys.restore, cache.path()).await.ok(),
                None => None,
            };
            match opened {
                Some(repository) => {
                    back_up(&repository, &first_disk()).await.expect(&context);
                    let taken = init(&store).await.err().expect(&context);
                    assert_eq!(taken.kind(), Kind::Conflict, "{context}");
                }
                None => {
                    assert!(made.is_err(), "{context}");
                    let keys = init(&store).await.expect(&context);
                    let repository = open(&store, &keys.restore, cache.path()).await;
                    back_up(&repository.expect(&context), &first_disk())
                        .await
                        .expect(&context);
                }
            }
            if made.is_ok() {
                survived = true;
                break;
            }
        }
        assert!(survived, "init makes no end of operations");
    }
}

/// Lets a backup of `content` die at every operation in turn, on top of points of `before`.
async fn backup_dies_everywhere(before: &[Vec<u8>], content: &[u8], what: &str) {
    for (when, crash) in CRASHES {
        let mut failures = 0;
        for number in 0..OPERATIONS_MAX {
            let context = format!("{what}, dead {when} operation {number}");
            let lab = Lab::new(&impatient()).await;
            let repository = lab.open().await;
            for content in before {
                back_up(&repository, content).await.unwrap();
            }
            drop(repository);
            crash(&lab.faults, number);
            let made = match open(&lab.store, &lab.keys.restore, lab.cache.path()).await {
                Ok(repository) => back_up(&repository, content).await.map(drop),
                Err(error) => Err(error),
            };
            let was_made = made.is_ok();
            lab.check(before, content, &context).await;
            if was_made {
                break;
            }
            failures += 1;
        }
        assert!(failures > 5, "{what}: only {failures} operations");
        assert!(
            failures < OPERATIONS_MAX,
            "{what} makes no end of operations"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_backup_that_dies_anywhere_costs_nothing_but_itself() {
    backup_dies_everywhere(&[], &first_disk(), "first backup").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incremental_that_dies_anywhere_costs_nothing_but_itself() {
    backup_dies_everywhere(&[first_disk()], &second_disk(), "incremental").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_dies_anywhere_changes_nothing() {
    for (when, crash) in CRASHES {
        for number in 0..3 {
            let context = format!("checkpoint, dead {when} operation {number}");
            let lab = Lab::new(&impatient()).await;
            let repository = lab.open().await;
            back_up(&repository, &first_disk()).await.unwrap();
            crash(&lab.faults, number);
            let written = repository.write_checkpoint().await;
            assert_eq!(written.is_ok(), number > 0, "{context}");
            drop(repository);
            lab.check(&[first_disk()], &second_disk(), &context).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_run_goes_on_from_what_had_landed() {
    let lab = Lab::new(&impatient()).await;
    let repository = lab.open().await;
    // Dies at its fourth pack: three have landed.
    dies_at_its_fourth_pack(&lab.faults);
    back_up(&repository, &first_disk()).await.unwrap_err();
    drop(repository);
    lab.faults.heal();
    let repository = lab.open().await;
    let landed = 3 * u64::from(PACK_BYTES);
    let summary = back_up(&repository, &first_disk()).await.unwrap();
    let expected = first_disk().len() as u64 - landed;
    assert!(summary.new_bytes <= expected, "{summary:?}");
    // A pack that had landed and is gone again is found out before anything refers to it.
    let lab = Lab::new(&impatient()).await;
    let repository = lab.open().await;
    dies_at_its_fourth_pack(&lab.faults);
    back_up(&repository, &first_disk()).await.unwrap_err();
    drop(repository);
    lab.faults.heal();
    let first = first_pack(&lab.faults.calls());
    lab.store.delete(&first.object_key()).await.unwrap();
    lab.check(&[], &first_disk(), "a landed pack was deleted")
        .await;
}

fn dies_at_its_fourth_pack(faults: &FaultStore) {
    let mut packs = 0;
    faults.script(move |call| {
        packs += u32::from(call.operation == Operation::Put && call.key.starts_with("packs/"));
        (packs == 4).then_some(Fault::Crash)
    });
}

/// The packs that were put, in order.
fn packs_put(calls: &[Call]) -> Vec<PackId> {
    calls
        .iter()
        .filter(|call| call.operation == Operation::Put)
        .filter_map(|call| PackId::from_object_key(&call.key))
        .collect()
}

fn first_pack(calls: &[Call]) -> PackId {
    packs_put(calls)[0]
}

/// Runs one backup for each of its operations, with `fault` at that operation.
async fn survives_one(fault: &Fault, only: Option<Operation>) {
    for number in 0..OPERATIONS_MAX {
        let lab = Lab::new(&patient()).await;
        back_up(&lab.open().await, &first_disk()).await.unwrap();
        lab.faults.clear_calls();
        let (mut at, mut struck) = (0, false);
        let was_struck = Arc::new(Mutex::new(false));
        let (strike, told) = (fault.clone(), Arc::clone(&was_struck));
        lab.faults.script(move |call| {
            if struck || only.is_some_and(|only| only != call.operation) {
                return None;
            }
            struck = at == number;
            at += 1;
            *told.lock().unwrap() = struck;
            struck.then(|| strike.clone())
        });
        let context = format!("{fault:?} at operation {number}");
        let repository = open(&lab.store, &lab.keys.restore, lab.cache.path())
            .await
            .expect(&context);
        back_up(&repository, &second_disk()).await.expect(&context);
        lab.faults.heal();
        let elsewhere = tempfile::tempdir().unwrap();
        let repository = open(&lab.store, &lab.keys.restore, elsewhere.path())
            .await
            .unwrap();
        let points = repository.points(None).unwrap();
        let expected = [first_disk(), second_disk()];
        let expected: Vec<&[u8]> = expected.iter().map(Vec::as_slice).collect();
        assert_points(&repository, &points, &expected, &context).await;
        if !*was_struck.lock().unwrap() {
            assert!(number > 3, "only {number} operations");
            return;
        }
    }
    panic!("no end of operations");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_makes_no_second_point() {
    survives_one(&Fault::LoseAnswer, Some(Operation::Put)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_request_is_sent_again() {
    survives_one(&Fault::Lose, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_stalls_is_sent_again() {
    survives_one(&Fault::Stall, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_init_with_lost_answers_is_whole() {
    for number in 0..OPERATIONS_MAX {
        let (store, faults) = Store::memory().with_faults(&patient());
        let mut puts = 0;
        faults.script(move |call| {
            puts += u64::from(call.operation == Operation::Put);
            (call.operation == Operation::Put && puts == number + 1).then_some(Fault::LoseAnswer)
        });
        let keys = init(&store).await.unwrap();
        let total = faults.count(Operation::Put) as u64;
        faults.heal();
        let cache = tempfile::tempdir().unwrap();
        let repository = open(&store, &keys.restore, cache.path()).await.unwrap();
        assert_eq!(
            repository.key_list().await.unwrap().len(),
            3,
            "answer {number} of {total} lost"
        );
        if number > total {
            return;
        }
    }
    panic!("no end of operations");
}

/// What a maintenance job on another machine appends: first one list of packs is condemned, then
/// swept and deleted.
async fn sweep(store: &Store, keys: &Keys, packs: &[PackId]) {
    let cache = tempfile::tempdir().unwrap();
    let maintenance = open(store, keys, cache.path()).await.unwrap();
    let ids: Vec<Vec<u8>> = packs.iter().map(|pack| pack.0.to_vec()).collect();
    let condemned = Body::PacksCondemned(PacksCondemned { packs: ids.clone() });
    maintenance.append(|_| Ok(condemned.clone())).await.unwrap();
    let swept = Body::PacksSwept(PacksSwept {
        packs: ids,
        rescued: Vec::new(),
    });
    maintenance.append(|_| Ok(swept.clone())).await.unwrap();
    for pack in packs {
        store.delete(&pack.object_key()).await.unwrap();
    }
}

/// Has `packs` swept while a backup is under way that refers to them, and checks that what it makes
/// does not need them.
async fn swept_meanwhile(lab: &Lab, packs: Vec<PackId>, content: &[u8]) -> BackupSummary {
    let repository = lab.open().await;
    let once = Mutex::new(Some((
        lab.store.clone(),
        copy(&lab.keys.maintenance),
        packs,
    )));
    let on_read = Arc::new(move || {
        if let Some((store, keys, packs)) = once.lock().unwrap().take() {
            // A cutting thread is reading: outside of any runtime.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(sweep(&store, &keys, &packs));
        }
    });
    let request = request_noticing(content, on_read);
    let stop = CancellationToken::new();
    let summary = backup(&repository, request, Arc::default(), stop)
        .await
        .unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let fresh = open(&lab.store, &lab.keys.restore, elsewhere.path())
        .await
        .unwrap();
    for repository in [&repository, &fresh] {
        let points = repository.points(None).unwrap();
        let last = &points[points.len() - 1..];
        assert_points(repository, last, &[content], "swept meanwhile").await;
    }
    // Another host finds all of it known.
    let again = back_up(&fresh, content).await.unwrap();
    assert_eq!((again.new_bytes, again.packs), (0, 0), "{again:?}");
    summary
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_swept_under_a_running_backup_is_uploaded_again() {
    for (number, take) in [1, 3, usize::MAX].into_iter().enumerate() {
        let lab = Lab::new(&patient()).await;
        let first = back_up(&lab.open().await, &first_disk()).await.unwrap();
        let packs = packs_put(&lab.faults.calls());
        let swept: Vec<_> = packs.iter().copied().take(take).collect();
        let summary = swept_meanwhile(&lab, swept, &first_disk()).await;
        assert!(summary.new_bytes > 0, "case {number}: {summary:?}");
        assert!(summary.new_bytes <= first.new_bytes, "case {number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_of_its_own_that_is_swept_is_uploaded_again() {
    let lab = Arc::new(Lab::new(&patient()).await);
    let repository = lab.open().await;
    // A prune that keeps no grace takes the run's first pack away when the last one is put.
    let (store, keys) = (lab.store.clone(), copy(&lab.keys.maintenance));
    let mut own = None;
    let mut waiting = Some((store, keys));
    lab.faults.script(move |call| {
        if call.operation != Operation::Put {
            return None;
        }
        match (own, PackId::from_object_key(&call.key)) {
            (None, Some(pack)) => own = Some(pack),
            (Some(pack), None) if call.key.starts_with("index/") => {
                if let Some((store, keys)) = waiting.take() {
                    std::thread::spawn(move || {
                        let runtime = tokio::runtime::Builder::new_current_thread()
                            .enable_all()
                            .build()
                            .unwrap();
                        runtime.block_on(sweep(&store, &keys, &[pack]));
                    });
                    // Time for the sweep, before the run goes on to its commit.
                    return Some(Fault::Delay(Duration::from_millis(250)));
                }
            }
            _ => {}
        }
        None
    });
    let summary = back_up(&repository, &first_disk()).await.unwrap();
    assert!(
        summary.new_bytes > first_disk().len() as u64,
        "{summary:?}: nothing was uploaded twice"
    );
    let points = repository.points(None).unwrap();
    assert_points(&repository, &points, &[&first_disk()], "own pack swept").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn condemned_packs_are_deduplicated_against_no_more() {
    let lab = Lab::new(&patient()).await;
    back_up(&lab.open().await, &first_disk()).await.unwrap();
    let condemned = packs_put(&lab.faults.calls());
    let maintenance = tempfile::tempdir().unwrap();
    let keys = &lab.keys.maintenance;
    let maintenance = open(&lab.store, keys, maintenance.path()).await.unwrap();
    let body = Body::PacksCondemned(PacksCondemned {
        packs: condemned.iter().map(|pack| pack.0.to_vec()).collect(),
    });
    maintenance.append(|_| Ok(body.clone())).await.unwrap();
    let empty = tempfile::tempdir().unwrap();
    let repository = open(&lab.store, &lab.keys.restore, empty.path())
        .await
        .unwrap();
    let summary = back_up(&repository, &first_disk()).await.unwrap();
    assert_eq!(summary.new_bytes, first_disk().len() as u64);
    // Once they are swept and gone, the new point is whole.
    sweep(&lab.store, &lab.keys.maintenance, &condemned).await;
    for cache in [
        empty.path(),
        lab.cache.path(),
        tempfile::tempdir().unwrap().path(),
    ] {
        let repository = open(&lab.store, &lab.keys.restore, cache).await.unwrap();
        let points = repository.points(None).unwrap();
        // The first point had no rescue: this sweep keeps no rule.
        let standing = &points[1..];
        let expected = vec![first_disk(); standing.len()];
        let expected: Vec<&[u8]> = expected.iter().map(Vec::as_slice).collect();
        assert_points(&repository, standing, &expected, "after the sweep").await;
        let again = back_up(&repository, &first_disk()).await.unwrap();
        assert_eq!(again.new_bytes, 0);
    }
}

/// The head of the log, as one finds it in the store.
async fn head_of(store: &Store) -> Head {
    let mut number = 0;
    while store
        .size(&record::object_key(number + 1))
        .await
        .unwrap()
        .is_some()
    {
        number += 1;
    }
    let bytes = store
        .get(&record::object_key(number), 1 << 30)
        .await
        .unwrap();
    Head {
        number,
        hash: RecordHash::of(&bytes),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_signed_by_too_low_a_level_are_void() {
    let lab = Lab::new(&patient()).await;
    back_up(&lab.open().await, &first_disk()).await.unwrap();
    let packs = packs_put(&lab.faults.calls());
    let swept = Body::PacksSwept(PacksSwept {
        packs: packs.iter().map(|pack| pack.0.to_vec()).collect(),
        rescued: Vec::new(),
    });
    // The engine does not write it, and neither does the format.
    let host = open(&lab.store, &lab.keys.host, lab.cache.path())
        .await
        .unwrap();
    let refused = host.append(|_| Ok(swept.clone())).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Denied);
    let head = head_of(&lab.store).await;
    assert!(record::encode(&swept, &head, 0, [7; 32], &lab.keys.host).is_err());
    // So a host that has been taken over writes it by itself: as a maintenance key would, but under
    // its own certificate and signature.
    let nonce = clock::random().unwrap();
    let bytes = record::encode(&swept, &head, 0, nonce, &lab.keys.maintenance).unwrap();
    let forged = resigned(&bytes, &lab.keys.host);
    let key = record::object_key(head.number + 1);
    let _ = lab.store.create(&key, forged.into()).await.unwrap();
    // And somebody without any key puts rubbish in the place of the next ones, one of it larger
    // than a record may be.
    let _ = lab
        .store
        .create(&record::object_key(head.number + 2), "rubbish".into())
        .await
        .unwrap();
    let large = vec![0; RECORD_BYTES_MAX as usize + 4096];
    let _ = lab
        .store
        .create(&record::object_key(head.number + 3), large.into())
        .await
        .unwrap();
    for cache in [lab.cache.path(), tempfile::tempdir().unwrap().path()] {
        let repository = open(&lab.store, &lab.keys.restore, cache).await.unwrap();
        assert!(repository.catalogue().unusable_packs().unwrap().is_empty());
        let again = back_up(&repository, &first_disk()).await.unwrap();
        assert_eq!(again.new_bytes, 0);
        let points = repository.points(None).unwrap();
        let expected = vec![first_disk(); points.len()];
        let expected: Vec<&[u8]> = expected.iter().map(Vec::as_slice).collect();
        assert_points(&repository, &points, &expected, "void records").await;
    }
}

/// Where the certificate stands in a record, by the format's document.
const CERTIFICATE_AT: usize = 4 + 1 + 2 + 8 + 32 + 8 + 32;

/// The record under the certificate and signature of `keys`.
fn resigned(bytes: &[u8], keys: &Keys) -> Vec<u8> {
    let certificate = keys.identity().certificate.encode();
    let mut bytes = bytes[..bytes.len() - 64].to_vec();
    bytes[CERTIFICATE_AT..CERTIFICATE_AT + certificate.len()].copy_from_slice(&certificate);
    let signature = keys.identity().signing.sign(&bytes);
    bytes.extend_from_slice(&signature);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_a_newer_program_stops_the_reader() {
    let lab = Lab::new(&patient()).await;
    let head = head_of(&lab.store).await;
    let body = Body::PacksCondemned(PacksCondemned::default());
    let nonce = clock::random().unwrap();
    let mut bytes = record::encode(&body, &head, 0, nonce, &lab.keys.maintenance).unwrap();
    bytes[5..7].copy_from_slice(&999_u16.to_le_bytes());
    let newer = resigned(&bytes, &lab.keys.maintenance);
    let key = record::object_key(head.number + 1);
    let _ = lab.store.create(&key, newer.into()).await.unwrap();
    let refused = open(&lab.store, &lab.keys.restore, lab.cache.path()).await;
    assert_eq!(refused.err().unwrap().kind(), Kind::Unsupported);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_made_up_number_is_an_error_and_no_panic() {
    let lab = Lab::new(&patient()).await;
    let key = record::object_key(u64::MAX);
    let _ = lab.store.create(&key, "rubbish".into()).await.unwrap();
    let refused = open(&lab.store, &lab.keys.restore, lab.cache.path()).await;
    assert_eq!(refused.err().unwrap().kind(), Kind::Corrupt);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_processes_make_the_same_cache_at_once() {
    let lab = Arc::new(Lab::new(&patient()).await);
    let cache = Arc::new(tempfile::tempdir().unwrap());
    let opened: Vec<_> = (0..12)
        .map(|_| {
            let (lab, cache) = (Arc::clone(&lab), Arc::clone(&cache));
            tokio::spawn(async move {
                let repository = open(&lab.store, &lab.keys.host, cache.path())
                    .await
                    .unwrap();
                back_up(&repository, &first_disk()[..100_000])
                    .await
                    .unwrap();
            })
        })
        .collect();
    for task in opened {
        task.await.unwrap();
    }
    let repository = lab.open().await;
    let points = repository.points(None).unwrap();
    let disk = &first_disk()[..100_000];
    assert_points(&repository, &points, &[disk; 12], "twelve processes").await;
    let ids: BTreeSet<_> = points.iter().map(|point| point.number).collect();
    assert_eq!(ids.len(), 12);
}
