//! Small packs of quick cycles are put together: every point is what it was, for who knows of it and who
//! does not yet, wherever the program dies, and whatever becomes of the bundle.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod lab;

use futures::TryStreamExt;
use lab::{
    Frozen, KIB, Lab, MIB, MemoryDisk, MemoryTarget, TrackedDisk, only, request, restore,
    try_back_up,
};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tidegate_agent::progress::Progress;
use tidegate_agent::recover::{VerifySettings, restore_plan, verify};
use tidegate_agent::replicate::{BackupRequest, BackupSettings, BackupSummary, Mode, backup};
use tidegate_agent::repository::{BundleSettings, Bundled, Merged, Point, Repository};
use tidegate_agent::store::Created;
use tidegate_agent::store::fault::{Fault, FaultStore, Operation};
use tidegate_agent::{Error, Kind, Result};
use tidegate_protocol::ids::PackId;
use tidegate_protocol::record::{Body, PacksBundled, PacksFoundBad, RunAnnounced};
use tokio_util::sync::CancellationToken;

const CYCLES: u64 = 12;

/// A machine that is backed up in quick cycles.
struct Quick {
    lab: Lab,
    disk: TrackedDisk,
    repository: Arc<Repository>,
    /// What the disk held at each point.
    points: Vec<Vec<u8>>,
}

impl Quick {
    async fn new() -> Self {
        Self::of(CYCLES).await
    }

    async fn of(cycles: u64) -> Self {
        let lab = Lab::in_memory().await;
        let repository = lab.open().await;
        let mut disk = TrackedDisk::new(4 * MIB, 4 * KIB);
        disk.write(0, &noise(0, 2 << 20));
        let mut quick = Self {
            lab,
            disk,
            repository,
            points: Vec::new(),
        };
        quick.cycle(&quick.repository.clone()).await;
        for number in 0..cycles {
            quick
                .disk
                .write(number * 300 * KIB, &noise(number + 1, 9000));
            quick.cycle(&quick.repository.clone()).await;
        }
        quick
    }

    async fn cycle(&mut self, repository: &Arc<Repository>) -> BackupSummary {
        self.cycle_with(repository, BackupSettings::default()).await
    }

    async fn cycle_with(
        &mut self,
        repository: &Arc<Repository>,
        settings: BackupSettings,
    ) -> BackupSummary {
        repository.refresh().await.unwrap();
        let frozen: Frozen = self.disk.freeze();
        let mut request = request("web", Arc::new(frozen), None);
        request.settings = settings;
        let stop = CancellationToken::new();
        let made = backup(repository, request, Arc::default(), stop).await;
        let made = made.unwrap();
        self.disk.committed(made.point.unwrap());
        self.points.push(self.disk.content());
        made
    }

    async fn segments(&self) -> usize {
        let entries = self.lab.store.list("index/", None);
        let entries: Vec<_> = entries.try_collect().await.unwrap();
        entries.len()
    }

    async fn packs(&self) -> Vec<PackId> {
        let entries = self.lab.store.list("packs/", None);
        let entries: Vec<_> = entries.try_collect().await.unwrap();
        let ids = entries
            .iter()
            .map(|entry| PackId::from_object_key(&entry.key));
        ids.map(Option::unwrap).collect()
    }

    /// Every point is what it was, and nothing is found wanting.
    async fn assert_whole(&self, repository: &Arc<Repository>, context: &str) {
        let points = repository.points(None).unwrap();
        assert_eq!(points.len(), self.points.len(), "{context}");
        for (point, expected) in points.iter().zip(&self.points) {
            assert!(content(repository, point).await == *expected, "{context}");
        }
        let settings = VerifySettings::default();
        let stop = CancellationToken::new();
        let report = verify(repository, &points, &settings, Arc::default(), stop)
            .await
            .unwrap();
        assert!(report.complete, "{context}: {report:?}");
        assert!(report.damages.is_empty(), "{context}: {report:?}");
    }

    /// The same of a machine without a cache.
    async fn assert_whole_anew(&self, context: &str) {
        let cache = tempfile::tempdir().unwrap();
        let repository = self.lab.try_open(cache.path()).await.unwrap();
        self.assert_whole(&repository, context).await;
    }

    async fn keeper(&self, cache: &Path) -> Arc<Repository> {
        self.lab.open_as(&self.lab.keys.maintenance, cache).await
    }
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

async fn content(repository: &Arc<Repository>, point: &Point) -> Vec<u8> {
    let disk = point.disk(None).unwrap();
    let target = MemoryTarget::holding(vec![0; disk.size_bytes as usize], true);
    restore(repository, disk, target.clone()).await.unwrap();
    target.content()
}

/// All small packs at once, and nobody is waited for.
fn at_once() -> BundleSettings {
    BundleSettings {
        small_bytes: 1 << 20,
        count_min: 2,
        grace: Duration::ZERO,
        ..BundleSettings::default()
    }
}

async fn put_together(repository: &Arc<Repository>) -> Result<Bundled> {
    let stop = CancellationToken::new();
    let settings = at_once();
    repository
        .bundle(&settings, &Progress::default(), &stop)
        .await
}

async fn merge(repository: &Arc<Repository>) -> Result<Merged> {
    let stop = CancellationToken::new();
    repository.merge_segments(&at_once(), &stop).await
}

fn cache() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn small_packs_become_one_and_every_point_is_what_it_was() {
    let mut quick = Quick::new().await;
    let before = quick.packs().await;
    let own = cache();
    let keeper = quick.keeper(own.path()).await;
    let planned = keeper.plan_bundles(&at_once()).await.unwrap();
    assert_eq!(quick.packs().await, before);
    let done = put_together(&keeper).await.unwrap();
    assert_eq!(done, planned);
    // A data pack and a tree pack each cycle, and the first point's tree pack.
    assert_eq!((done.bundles, done.packs), (1, 2 * CYCLES + 1), "{done:?}");
    assert_eq!(quick.packs().await.len(), before.len() + 1);
    quick.assert_whole_anew("both are there").await;

    let old = cache();
    let stale = quick.lab.try_open(old.path()).await.unwrap();
    let again = put_together(&keeper).await.unwrap();
    assert_eq!(
        (again.bundles, again.deleted),
        (0, 2 * CYCLES + 1),
        "{again:?}"
    );
    assert_eq!(quick.packs().await.len(), 2);
    // One that knows, one that has not read the log since, and one that wrote them all.
    quick.assert_whole_anew("bundled").await;
    quick.assert_whole(&stale, "read the log before").await;
    quick.assert_whole(&quick.repository, "its writer").await;
    let idle = put_together(&keeper).await.unwrap();
    assert_eq!(idle, Bundled::default());

    // Cycles go on from there, and a listing finds nothing lost.
    quick.disk.write(MIB, &noise(77, 5000));
    let (writer, settings) = (
        quick.repository.clone(),
        BackupSettings {
            listing_age_max: Duration::ZERO,
            ..BackupSettings::default()
        },
    );
    let made = quick.cycle_with(&writer, settings).await;
    assert_eq!(made.mode, Mode::Incremental);
    assert!(made.read_bytes < 100 * KIB, "{made:?}");
    assert!(writer.catalogue().lost_packs().unwrap().is_empty());
    quick.assert_whole_anew("a cycle later").await;

    // A checkpoint says it too.
    keeper.refresh().await.unwrap();
    keeper.write_checkpoint().await.unwrap();
    quick.lab.calls.clear_calls();
    quick.assert_whole_anew("from a checkpoint").await;
    let calls = quick.lab.calls.calls();
    let read = only(&calls, Operation::Get);
    assert!(
        !read
            .iter()
            .any(|call| call.key == "log/00000000000000000002")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_knows_nothing_of_the_bundle_reads_the_log() {
    let mut quick = Quick::new().await;
    let own = cache();
    let keeper = quick.keeper(own.path()).await;
    for _ in 0..2 {
        put_together(&keeper).await.unwrap();
    }
    // A restore under way does not begin with the log.
    let points = quick.repository.points(None).unwrap();
    let last = points.last().unwrap();
    assert!(content(&quick.repository, last).await == *quick.points.last().unwrap());
    quick.disk.write(MIB, &noise(78, 5000));
    quick.cycle(&quick.repository.clone()).await;
    let other = cache();
    let behind = quick.lab.try_open(other.path()).await.unwrap();
    for _ in 0..2 {
        put_together(&keeper).await.unwrap();
    }
    // Nor does a look for what is lost, which is not what was bundled.
    let request = request("db", Arc::new(quick.disk.freeze()), None);
    let settings = BackupSettings {
        listing_age_max: Duration::ZERO,
        ..BackupSettings::default()
    };
    let request = BackupRequest {
        settings,
        ..request
    };
    let stop = CancellationToken::new();
    backup(&behind, request, Arc::default(), stop)
        .await
        .unwrap();
    assert!(behind.catalogue().lost_packs().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_dies_anywhere_costs_nothing_and_is_taken_up() {
    type Crash = fn(&FaultStore, u64);
    let crashes: [(&str, Crash); 2] = [
        ("before", FaultStore::crash_after),
        ("after", FaultStore::crash_after_effect),
    ];
    for (when, crash) in crashes {
        for number in 0.. {
            let context = format!("dead {when} operation {number}");
            let quick = Quick::of(3).await;
            let own = cache();
            let keeper = quick.keeper(own.path()).await;
            crash(&quick.lab.calls, number);
            let done = async {
                for _ in 0..2 {
                    put_together(&keeper).await?;
                    merge(&keeper).await?;
                }
                Ok::<_, Error>(())
            };
            let done = done.await;
            drop(keeper);
            quick.lab.calls.heal();
            // All the rest is the same for each.
            if number % 5 == 0 || done.is_ok() {
                quick.assert_whole_anew(&context).await;
            }
            let keeper = quick.keeper(own.path()).await;
            for _ in 0..2 {
                put_together(&keeper).await.expect(&context);
                merge(&keeper).await.expect(&context);
            }
            assert_eq!(quick.packs().await.len(), 2, "{context}");
            // One that nothing names may be left, of the run that died.
            assert!(quick.segments().await <= 2, "{context}");
            quick.assert_whole_anew(&context).await;
            if done.is_ok() {
                // Each of seven packs is read, and deleted.
                assert!(number > 14, "{context}");
                break;
            }
        }
    }
}

/// The one object that was written last.
async fn bundle_of(quick: &Quick, before: &[PackId]) -> PackId {
    let packs = quick.packs().await;
    *packs.iter().find(|pack| !before.contains(pack)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_did_not_arrive_whole_is_not_the_only_copy() {
    let quick = Quick::new().await;
    let before = quick.packs().await;
    let own = cache();
    let keeper = quick.keeper(own.path()).await;
    quick.lab.calls.script(move |call| {
        let is_bundle = call.operation == Operation::Put && call.key.starts_with("packs/");
        is_bundle.then_some(Fault::Flip(70_000))
    });
    put_together(&keeper).await.unwrap();
    quick.lab.calls.heal();
    let bundle = bundle_of(&quick, &before).await;
    let again = put_together(&keeper).await.unwrap();
    assert_eq!(again.deleted, 0, "{again:?}");
    assert_eq!(quick.packs().await.len(), before.len() + 1);
    // Gone altogether, it is not missed yet.
    quick.lab.store.delete(&bundle.object_key()).await.unwrap();
    quick
        .assert_whole_anew("the bundle is gone, the packs are not")
        .await;
}

/// Requests are what a restore waits for: packs that lie together come together. Each is still judged by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_is_read_in_one_piece_and_its_damage_is_that_of_one_pack() {
    let quick = Quick::new().await;
    let before = quick.packs().await;
    let mut data = None;
    for pack in &before {
        let bytes = quick.lab.store.size(&pack.object_key()).await.unwrap();
        // With the 9000 bytes of a cycle.
        if (9000..100 * KIB).contains(&bytes.unwrap()) {
            data = Some(*pack);
        }
    }
    let own = cache();
    let keeper = quick.keeper(own.path()).await;
    put_together(&keeper).await.unwrap();
    let bundle = bundle_of(&quick, &before).await;
    put_together(&keeper).await.unwrap();

    let new = cache();
    let anew = quick.lab.try_open(new.path()).await.unwrap();
    let points = anew.points(None).unwrap();
    let last = points.last().unwrap();
    let plan = restore_plan(&anew, last.disk(None).unwrap()).await.unwrap();
    // The first backup's own pack, and the bundle.
    assert_eq!((plan.packs, plan.requests), (CYCLES + 1, 2), "{plan:?}");
    quick.lab.calls.clear_calls();
    let disk = last.disk(None).unwrap();
    let target = MemoryTarget::holding(vec![0; 4 << 20], true);
    let done = restore(&anew, disk, target.clone()).await.unwrap();
    assert!(target.content() == *quick.points.last().unwrap());
    assert_eq!(done.fetched_bytes, plan.fetched_bytes);
    let calls = quick.lab.calls.calls();
    let read = only(&calls, Operation::Get);
    let key = bundle.object_key();
    assert_eq!(read.iter().filter(|call| call.key == key).count(), 1);

    let pack = data.unwrap();
    let (_, place) = keeper.catalogue().bundled(pack).unwrap().unwrap();
    let mut bytes = quick.lab.store.get(&key, u64::MAX).await.unwrap().to_vec();
    bytes[usize::try_from(place.end - 100).unwrap()] ^= 1;
    quick.lab.store.delete(&key).await.unwrap();
    let created = quick.lab.store.create(&key, bytes.into()).await.unwrap();
    assert_eq!(created, Created::New);
    let stop = CancellationToken::new();
    let settings = VerifySettings::default();
    let report = verify(&anew, &points, &settings, Arc::default(), stop)
        .await
        .unwrap();
    assert_eq!(report.damages.len(), 1, "{report:?}");
    assert_eq!(report.damages[0].object, pack.object_key(), "{report:?}");
    assert!(content(&anew, &points[0]).await == quick.points[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_bundle_is_noted_by_its_packs_and_stored_anew_as_far_as_it_can_be() {
    let mut quick = Quick::new().await;
    let before = quick.packs().await;
    let own = cache();
    let keeper = quick.keeper(own.path()).await;
    put_together(&keeper).await.unwrap();
    let bundle = bundle_of(&quick, &before).await;
    put_together(&keeper).await.unwrap();
    quick.lab.store.delete(&bundle.object_key()).await.unwrap();
    let settings = BackupSettings {
        listing_age_max: Duration::ZERO,
        ..BackupSettings::default()
    };
    let writer = quick.repository.clone();
    let made = quick.cycle_with(&writer, settings).await;
    let lost = writer.catalogue().lost_packs().unwrap();
    assert_eq!(lost.len() as u64, 2 * CYCLES + 1);
    assert!(!lost.contains(&bundle));
    assert!(!made.tracking[0].tracked, "{made:?}");
    let points = writer.points(None).unwrap();
    let last = points.last().unwrap();
    let new = cache();
    let anew = quick.lab.try_open(new.path()).await.unwrap();
    assert!(content(&anew, last).await == *quick.points.last().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_or_given_up_is_left_out() {
    let quick = Quick::new().await;
    let own = cache();
    let keeper = quick.keeper(own.path()).await;
    let packs = quick.packs().await;
    let mut small = Vec::new();
    for pack in &packs {
        let size = quick.lab.store.size(&pack.object_key()).await.unwrap();
        if size.unwrap() < 100 * KIB {
            small.push(*pack);
        }
    }
    let bad = PacksFoundBad {
        packs: vec![small[0].0.to_vec()],
        ..PacksFoundBad::default()
    };
    keeper
        .append(|_| Ok(Body::PacksFoundBad(bad.clone())))
        .await
        .unwrap();
    let damaged = small[1].object_key();
    quick.lab.calls.script(move |call| {
        (call.operation == Operation::Get && call.key == damaged).then_some(Fault::Flip(9))
    });
    let done = put_together(&keeper).await.unwrap();
    assert_eq!(done.packs, 2 * CYCLES + 1 - 2, "{done:?}");
    quick.lab.calls.heal();
    let lost = keeper.catalogue().lost_packs().unwrap();
    assert_eq!(lost, [small[0], small[1]].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_record_of_a_pack_counts() {
    let quick = Quick::new().await;
    let own = cache();
    let keeper = quick.keeper(own.path()).await;
    put_together(&keeper).await.unwrap();
    let pack = |quick: &Quick, id: PackId| quick.repository.catalogue().bundled(id).unwrap();
    quick.repository.refresh().await.unwrap();
    let small = quick.packs().await;
    let (first, place) = small
        .iter()
        .find_map(|id| pack(&quick, *id).map(|place| (*id, place)))
        .unwrap();
    let other = PacksBundled {
        bundle: vec![9; 32],
        packs: vec![tidegate_protocol::record::PackSize {
            pack: first.0.to_vec(),
            bytes: 5,
        }],
    };
    keeper
        .append(|_| Ok(Body::PacksBundled(other.clone())))
        .await
        .unwrap();
    quick.repository.refresh().await.unwrap();
    assert_eq!(pack(&quick, first), Some(place.clone()));
    keeper.write_checkpoint().await.unwrap();
    let new = cache();
    let anew = quick.lab.try_open(new.path()).await.unwrap();
    assert_eq!(anew.catalogue().bundled(first).unwrap(), Some(place));
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_may_not_and_where_nothing_can_be_deleted_it_is_said() {
    let quick = Quick::new().await;
    let own = cache();
    let host = quick.lab.open_as(&quick.lab.keys.host, own.path()).await;
    let error = put_together(&host).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    let own = cache();
    let keeper = quick.keeper(own.path()).await;
    quick
        .lab
        .calls
        .script(|call| (call.operation == Operation::Delete).then_some(Fault::Refuse));
    put_together(&keeper).await.unwrap();
    let error = put_together(&keeper).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert!(error.chain().contains("delete"), "{}", error.chain());
}

/// Two at once: who comes second has made its bundle for nothing, and no pack is in two.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_at_once_one_is_too_late() {
    let quick = Quick::new().await;
    let caches = [cache(), cache()];
    let slow = quick.keeper(caches[0].path()).await;
    let quicker = quick.keeper(caches[1].path()).await;
    let mut held = false;
    quick.lab.calls.script(move |call| {
        let is_bundle = call.operation == Operation::Put && call.key.starts_with("packs/");
        let is_first = is_bundle && !held;
        held |= is_bundle;
        is_first.then_some(Fault::Delay(Duration::from_secs(1)))
    });
    let (late, first) = tokio::join!(put_together(&slow), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        put_together(&quicker).await
    });
    let (late, first) = (late.unwrap(), first.unwrap());
    assert_eq!((late.packs, first.packs), (0, 2 * CYCLES + 1));
    put_together(&slow).await.unwrap();
    assert_eq!(quick.packs().await.len(), 2);
    quick.assert_whole_anew("two at once").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn small_segments_become_one_that_says_the_same() {
    let mut quick = Quick::new().await;
    let own = cache();
    let keeper = quick.keeper(own.path()).await;
    let old = cache();
    let stale = quick.lab.try_open(old.path()).await.unwrap();
    let content = quick.disk.content();
    let whole = |machine: &str| request(machine, MemoryDisk::of(&content), None);
    // What is cut anew is not what was gathered from scattered blocks.
    try_back_up(&quick.repository, whole("first"))
        .await
        .unwrap();
    let before = quick.segments().await as u64;
    assert_eq!(before, CYCLES + 2);
    let done = merge(&keeper).await.unwrap();
    assert_eq!((done.segments, done.written), (before, 1), "{done:?}");
    let again = merge(&keeper).await.unwrap();
    assert_eq!((again.segments, again.deleted), (0, before), "{again:?}");
    assert_eq!(quick.segments().await, 1);
    assert_eq!(merge(&keeper).await.unwrap(), Merged::default());

    // Who comes anew finds every chunk by it, and so does who had read the old ones.
    let new = cache();
    let anew = quick.lab.try_open(new.path()).await.unwrap();
    for (number, repository) in [&anew, &stale, &quick.repository].into_iter().enumerate() {
        repository.refresh().await.unwrap();
        let made = try_back_up(repository, whole("other")).await.unwrap();
        assert_eq!(made.new_bytes, 0, "{number}: {made:?}");
        let bad = repository.catalogue().bad_segments().unwrap();
        assert!(bad.is_empty(), "{number}");
    }
    // The merged one is lost like any other: what it said is written anew.
    let entries = quick.lab.store.list("index/", None);
    let entries: Vec<_> = entries.try_collect().await.unwrap();
    quick.lab.store.delete(&entries[0].key).await.unwrap();
    let new = cache();
    let anew = quick.lab.try_open(new.path()).await.unwrap();
    quick.disk.write(MIB, &noise(79, 5000));
    quick.cycle(&anew).await;
    let new = cache();
    let anew = quick.lab.try_open(new.path()).await.unwrap();
    let made = try_back_up(&anew, whole("third")).await.unwrap();
    assert_eq!(made.new_bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_of_a_run_under_way_and_places_that_differ_stay_by_themselves() {
    let quick = Quick::of(2).await;
    let own = cache();
    let keeper = quick.keeper(own.path()).await;
    // Two machines that knew nothing of each other have stored the same.
    let caches = [cache(), cache()];
    let one = quick
        .lab
        .open_as(&quick.lab.keys.host, caches[0].path())
        .await;
    let other = quick
        .lab
        .open_as(&quick.lab.keys.host, caches[1].path())
        .await;
    other.index().await.unwrap();
    let disk = noise(4711, 1 << 20);
    let mut packs = Vec::new();
    for (machine, repository) in [("a", &one), ("b", &other)] {
        quick.lab.calls.clear_calls();
        let made = try_back_up(repository, request(machine, MemoryDisk::of(&disk), None)).await;
        assert!(made.unwrap().new_bytes > 0);
        let calls = quick.lab.calls.calls();
        let puts = only(&calls, Operation::Put).into_iter();
        let largest = puts.max_by_key(|call| call.bytes).unwrap();
        packs.push(PackId::from_object_key(&largest.key).unwrap());
    }
    keeper.refresh().await.unwrap();
    let segments = keeper.catalogue().segments().unwrap();
    assert_eq!(segments.len(), 5);
    let run = RunAnnounced {
        run: vec![7; 16],
        machine: "c".to_owned(),
        segments: vec![segments[0].0.to_vec()],
        abandoned: false,
    };
    one.append(|_| Ok(Body::RunAnnounced(run.clone())))
        .await
        .unwrap();
    let done = merge(&keeper).await.unwrap();
    let stays = keeper.catalogue().segments().unwrap();
    assert!(stays.contains(&segments[0]));
    // Of the twins one, unless it is the run's.
    assert!((3..=4).contains(&done.segments), "{done:?}");
    // Both places are known all the same: either machine is restored by the other's.
    for (machine, pack) in [("a", packs[0]), ("b", packs[1])] {
        let bytes = quick
            .lab
            .store
            .get(&pack.object_key(), 4 << 20)
            .await
            .unwrap();
        quick.lab.store.delete(&pack.object_key()).await.unwrap();
        let new = cache();
        let anew = quick.lab.try_open(new.path()).await.unwrap();
        let point = anew.newest_point(machine).unwrap().unwrap();
        assert!(content(&anew, &point).await == disk, "{machine}");
        let again = quick.lab.store.create(&pack.object_key(), bytes).await;
        let _ = again.unwrap();
    }
}
