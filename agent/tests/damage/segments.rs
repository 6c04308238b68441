//! Index segments that are lost: the next backup names their packs anew and stores nothing twice for it,
//! on a machine that had read them as on one that never did.
//!
//! What a machine has read it does not read again: that a segment is lost it learns from whoever did come
//! upon it, a verify or a new machine, by the log.

use crate::lab::{TiledDisk, copy, only, request, told, try_back_up};
use crate::repair::{DUE, NOT_DUE, assert_all_restore, back_up, bad_packs, damaged_objects};
use crate::world::{
    Cache, Edit, LAST_POINT, PACK_BYTES, POINTS, World, delete, look_through, packs_of, read,
    segments_of, settings, write,
};
use object_store::memory::InMemory;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tidegate_agent::recover::note_damage;
use tidegate_agent::replicate::BackupSummary;
use tidegate_agent::repository::Repository;
use tidegate_agent::store::fault::{FaultStore, Operation};
use tidegate_agent::store::{Store, StoreSettings};
use tidegate_protocol::ids::{PackId, PageId, SegmentId};
use tidegate_protocol::pack::{Footer, PackKind};
use tidegate_protocol::record::{Body, PacksFoundBad};
use tidegate_protocol::{ChunkId, record};

/// The repository as a host opens it, and the calls that this takes.
async fn host(
    world: &World,
    bucket: &Arc<InMemory>,
    cache: &Path,
    settings: &StoreSettings,
) -> (Arc<FaultStore>, Arc<Repository>) {
    let store = Store::from_object_store(bucket.clone(), "", "bucket", settings);
    let (store, calls) = store.with_faults(settings);
    let keys = copy(&world.lab.keys.host);
    let repository = Repository::open(store, keys, cache).await.unwrap();
    (calls, Arc::new(repository))
}

/// Has a machine that never saw the repository look through it, and note what it finds. Returns what that is.
async fn found_by_verify(world: &World, bucket: &Arc<InMemory>) -> Vec<String> {
    let cache = tempfile::tempdir().unwrap();
    let stranger = world.open(bucket.clone(), cache.path()).await.unwrap();
    let report = look_through(&stranger).await.unwrap();
    let damages = report.damages.len() as u64;
    assert_eq!(note_damage(&stranger, &report).await.unwrap(), damages);
    assert_eq!(note_damage(&stranger, &report).await.unwrap(), 0);
    let objects = report.damages.into_iter().map(|damage| damage.object);
    objects.collect()
}

/// A backup of an unchanged disk costs its record, and nothing else.
async fn assert_cheap(world: &World, bucket: &Arc<InMemory>, cache: &Path) {
    let (calls, repository) = host(world, bucket, cache, &settings()).await;
    calls.clear_calls();
    back_up(world, &repository, NOT_DUE).await;
    let calls = calls.calls();
    assert_eq!(only(&calls, Operation::Put).len(), 1, "{}", told(&calls));
    assert_eq!(calls.len(), 1, "{}", told(&calls));
}

/// Ways to lose one segment, or all.
async fn losses(world: &World) -> Vec<Edit> {
    let segments = segments_of(&world.bucket).await;
    assert_eq!(segments.len(), POINTS);
    let mut edits = vec![Edit::Cut(segments.clone())];
    for segment in segments {
        edits.push(Edit::Delete(segment.clone()));
        edits.push(Edit::Truncate(segment.clone()));
        edits.push(Edit::Flip(segment));
    }
    edits
}

/// Backs a disk up as a machine of which there is no point yet: only the index knows its chunks.
async fn back_up_stranger(repository: &Arc<Repository>, disk: TiledDisk) -> BackupSummary {
    let mut request = request("db", Arc::new(disk), Some(PACK_BYTES));
    request.settings.listing_age_max = NOT_DUE;
    try_back_up(repository, request).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_never_read_a_lost_segment_writes_it_anew() {
    let world = World::new().await;
    for edit in losses(&world).await {
        let bucket = edit.of(&world.bucket).await;
        let cache = world.cache(Cache::Fresh);
        let (_, repository) = host(&world, &bucket, cache.path(), &settings()).await;
        let disk = world.points[POINTS - 1].1.clone();
        let summary = back_up_stranger(&repository, disk).await;
        assert_eq!(summary.new_bytes, 0, "{edit:?}");
        assert_eq!(damaged_objects(&world, &bucket).await, [""; 0], "{edit:?}");
        back_up(&world, &repository, NOT_DUE).await;
        assert_eq!(damaged_objects(&world, &bucket).await, [""; 0], "{edit:?}");
        assert_all_restore(&world, &bucket).await;
        drop(repository);
        assert_cheap(&world, &bucket, cache.path()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_is_lost_before_all_have_read_it_is_searched_for_at_once() {
    let world = World::new().await;
    let bucket = Arc::new(world.bucket.fork());
    let caches = [world.cache(Cache::Warm), world.cache(Cache::Warm)];
    let (_, one) = host(&world, &bucket, caches[0].path(), &settings()).await;
    let before = segments_of(&bucket).await;
    back_up(&world, &one, NOT_DUE).await;
    delete(&bucket, &fresh_segment(&bucket, &before).await).await;
    // No listing is due here, and one is made.
    let (calls, other) = host(&world, &bucket, caches[1].path(), &settings()).await;
    calls.clear_calls();
    let summary = back_up_stranger(&other, world.next_disk()).await;
    let calls = calls.calls();
    assert_eq!(summary.new_bytes, 0, "{}", told(&calls));
    assert_eq!(only(&calls, Operation::List).len(), 2, "{}", told(&calls));
    assert_eq!(damaged_objects(&world, &bucket).await, [""; 0]);
    // The newest tree is one that this machine has not seen yet.
    back_up(&world, &other, NOT_DUE).await;
    drop(other);
    assert_cheap(&world, &bucket, caches[1].path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_had_read_a_lost_segment_learns_of_it_by_the_log() {
    let world = World::new().await;
    for edit in losses(&world).await {
        let bucket = edit.of(&world.bucket).await;
        let lost = edit.names();
        let cache = world.cache(Cache::Warm);
        let (_, repository) = host(&world, &bucket, cache.path(), &settings()).await;
        // Even a listing of the packs does not tell.
        back_up(&world, &repository, DUE).await;
        drop(repository);
        let mut found = found_by_verify(&world, &bucket).await;
        found.sort();
        let mut expected: Vec<_> = lost
            .iter()
            .filter(|name| name.starts_with("index/"))
            .collect();
        expected.sort();
        assert!(found.iter().eq(expected), "{edit:?}: {found:?}");
        // Noted, and not made good yet: it is still damage.
        assert_eq!(damaged_objects(&world, &bucket).await.len(), found.len());

        let (calls, repository) = host(&world, &bucket, cache.path(), &settings()).await;
        calls.clear_calls();
        let summary = back_up(&world, &repository, NOT_DUE).await;
        let calls = calls.calls();
        assert_eq!(summary.packs, 0, "{}", told(&calls));
        // The segment, the point.
        assert_eq!(only(&calls, Operation::Put).len(), 2, "{}", told(&calls));
        assert_eq!(only(&calls, Operation::List).len(), 0, "{}", told(&calls));
        assert_eq!(damaged_objects(&world, &bucket).await, [""; 0], "{edit:?}");
        assert_all_restore(&world, &bucket).await;
        drop(repository);
        assert_cheap(&world, &bucket, cache.path()).await;

        // Who comes later never asks for it, and finds nothing left to do.
        let later = world.cache(Cache::Fresh);
        let (calls, repository) = host(&world, &bucket, later.path(), &settings()).await;
        let summary = back_up(&world, &repository, NOT_DUE).await;
        let calls = calls.calls();
        assert_eq!(summary.packs, 0, "{}", told(&calls));
        assert_eq!(only(&calls, Operation::Put).len(), 1, "{}", told(&calls));
        let is_lost = |key: &String| lost.contains(key);
        assert!(
            !calls.iter().any(|call| is_lost(&call.key)),
            "{}",
            told(&calls)
        );
        drop(repository);
        assert_cheap(&world, &bucket, later.path()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_segment_is_no_damage_where_another_says_the_same() {
    let world = World::new().await;
    let lost = segments_of(&world.bucket).await.swap_remove(0);
    let bucket = Edit::Delete(lost.clone()).of(&world.bucket).await;
    assert_eq!(found_by_verify(&world, &bucket).await, [lost]);
    // Two machines that know of the loss, and not of each other's backup, write it anew. The first stores
    // data too, which only its segment names.
    let caches = [world.cache(Cache::Warm), world.cache(Cache::Warm)];
    let (_, one) = host(&world, &bucket, caches[0].path(), &settings()).await;
    let (_, other) = host(&world, &bucket, caches[1].path(), &settings()).await;
    let before = segments_of(&bucket).await;
    assert!(back_up(&world, &one, NOT_DUE).await.packs > 0);
    let of_one = fresh_segment(&bucket, &before).await;
    let before = segments_of(&bucket).await;
    let unchanged = Arc::new(world.points[POINTS - 1].1.clone());
    let summary = try_back_up(&other, request("web", unchanged, Some(PACK_BYTES)))
        .await
        .unwrap();
    assert_eq!(summary.packs, 0);
    let of_other = fresh_segment(&bucket, &before).await;

    let without_other = Edit::Delete(of_other.clone()).of(&bucket).await;
    assert_eq!(damaged_objects(&world, &without_other).await, [""; 0]);
    let without_one = Edit::Delete(of_one.clone()).of(&bucket).await;
    assert_eq!(
        damaged_objects(&world, &without_one).await,
        [of_one.as_str()]
    );
    let without_both = Edit::Cut(vec![of_one, of_other]).of(&bucket).await;
    assert_eq!(damaged_objects(&world, &without_both).await.len(), 2);
}

/// The one segment that came since `before`.
async fn fresh_segment(bucket: &InMemory, before: &[String]) -> String {
    let mut fresh = segments_of(bucket).await;
    fresh.retain(|segment| !before.contains(segment));
    assert_eq!(fresh.len(), 1, "{fresh:?}");
    fresh.swap_remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_of_a_lost_segment_that_are_damaged_too_are_stored_anew() {
    let world = World::new().await;
    let lost = segments_of(&world.bucket).await.swap_remove(0);
    let pack = packs_of(&world.bucket, PackKind::Data).await.swap_remove(0);
    let mut bytes = read(&world.bucket, &pack).await;
    // In the footer, which only who makes a segment reads.
    let at = bytes.len() - 30;
    bytes[at] ^= 1;
    let flipped = Edit::Replace(pack.clone(), bytes);
    for (edit, known) in [
        (&flipped, Cache::Fresh),
        (&flipped, Cache::Warm),
        (&Edit::Delete(pack.clone()), Cache::Warm),
    ] {
        let context = format!("{known:?}");
        let bucket = edit.of(&world.bucket).await;
        delete(&bucket, &lost).await;
        let cache = world.cache(known);
        let (_, repository) = host(&world, &bucket, cache.path(), &settings()).await;
        let id = SegmentId::from_object_key(&lost).unwrap();
        let noted = PacksFoundBad {
            packs: Vec::new(),
            reason: "test".to_owned(),
            segments: vec![id.0.to_vec()],
        };
        let noted = Body::PacksFoundBad(noted);
        repository.append(|_| Ok(noted.clone())).await.unwrap();
        let summary = back_up(&world, &repository, NOT_DUE).await;
        assert_eq!(bad_packs(&repository), [pack.as_str()], "{context}");
        // The disk was read once.
        assert!(summary.read_bytes <= summary.virtual_bytes, "{summary:?}");
        assert_eq!(damaged_objects(&world, &bucket).await, [""; 0], "{context}");
        assert_all_restore(&world, &bucket).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_assigned_to_a_lost_segment() {
    let world = World::new().await;
    let lost = segments_of(&world.bucket).await.swap_remove(0);
    let bucket = Edit::Delete(lost.clone()).of(&world.bucket).await;
    found_by_verify(&world, &bucket).await;
    let cache = world.cache(Cache::Warm);
    let (_, repository) = host(&world, &bucket, cache.path(), &settings()).await;
    let index = repository.index().await.unwrap();
    let orphans = || -> Vec<PackId> {
        let orphans = index.orphans().unwrap();
        orphans.iter().map(|pack| pack.id).collect()
    };
    let released = orphans();
    assert!(!released.is_empty());
    // As a run does that stored the segment just before somebody found it lost.
    let id = SegmentId::from_object_key(&lost).unwrap();
    index.assign_segment(&released, id).unwrap();
    assert_eq!(orphans(), released);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_were_stored_anew_are_found_again_without_their_segment() {
    let world = World::new().await;
    let pack = packs_of(&world.bucket, PackKind::Tree).await.swap_remove(0);
    let bucket = Edit::Delete(pack.clone()).of(&world.bucket).await;
    let warm = world.cache(Cache::Warm);
    let (_, repository) = host(&world, &bucket, warm.path(), &settings()).await;
    let before = segments_of(&bucket).await;
    let unchanged = Arc::new(world.points[POINTS - 1].1.clone());
    let mut request = request("web", unchanged, Some(PACK_BYTES));
    request.settings.listing_age_max = DUE;
    try_back_up(&repository, request).await.unwrap();
    assert_eq!(damaged_objects(&world, &bucket).await, [""; 0]);
    // It names no data, and only it says where the first point's pages are now.
    let segment = fresh_segment(&bucket, &before).await;
    delete(&bucket, &segment).await;
    let mut found = damaged_objects(&world, &bucket).await;
    found.sort();
    assert_eq!(found, [segment, pack]);

    let cache = world.cache(Cache::Fresh);
    let (_, repository) = host(&world, &bucket, cache.path(), &settings()).await;
    back_up(&world, &repository, NOT_DUE).await;
    assert_eq!(damaged_objects(&world, &bucket).await, [""; 0]);
    assert_all_restore(&world, &bucket).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_says_which_segments_are_lost() {
    let world = World::new().await;
    let lost = segments_of(&world.bucket).await.swap_remove(0);
    let bucket = Edit::Flip(lost.clone()).of(&world.bucket).await;
    assert_eq!(found_by_verify(&world, &bucket).await, [lost.as_str()]);
    let folder = tempfile::tempdir().unwrap();
    let repository = world.open(bucket.clone(), folder.path()).await.unwrap();
    let noted = repository.write_checkpoint().await.unwrap();
    assert_eq!(noted, LAST_POINT + 1);
    // Nothing but the checkpoint tells.
    delete(&bucket, &record::object_key(1)).await;

    let cache = world.cache(Cache::Fresh);
    let (calls, repository) = host(&world, &bucket, cache.path(), &settings()).await;
    assert_eq!(back_up(&world, &repository, NOT_DUE).await.packs, 2);
    let calls = calls.calls();
    assert!(
        !calls.iter().any(|call| call.key == lost),
        "{}",
        told(&calls)
    );
    assert_eq!(damaged_objects(&world, &bucket).await, [""; 0]);
    assert_all_restore(&world, &bucket).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_else_stands_among_the_packs_does_no_harm() {
    let world = World::new().await;
    let segments = segments_of(&world.bucket).await;
    // A run that went nowhere, its packs and its segment; and objects that are none of ours.
    let of_last = packs_of_last_point(&world).await;
    assert_eq!(of_last.len(), 2);
    let cut = Edit::Cut(vec![record::object_key(LAST_POINT)]);
    let bucket = cut.of(&world.bucket).await;
    delete(&bucket, &segments[0]).await;
    let (key, _) = &of_last[0];
    let sound = read(&bucket, key).await;
    let mut newer = sound.clone();
    newer[4] = 200;
    for bytes in [
        Vec::new(),
        b"no pack".to_vec(),
        vec![0xff; 300_000],
        newer,
        sound[..sound.len() / 2].to_vec(),
    ] {
        write(&bucket, &PackId::of(&bytes).object_key(), &bytes).await;
    }
    write(&bucket, "packs/README", b"not even a name").await;

    let cache = world.cache(Cache::Fresh);
    let (_, repository) = host(&world, &bucket, cache.path(), &settings()).await;
    let summary = back_up(&world, &repository, NOT_DUE).await;
    // Its disk is that of the cut point and one tile more: the pack that was left behind is of use.
    let index = repository.index().await.unwrap();
    for (key, kind) in &of_last {
        let bytes = read(&bucket, key).await;
        let id = PackId::from_object_key(key).unwrap();
        let footer = Footer::open(&bytes, repository.keys()).unwrap();
        for (item, location) in footer.locations(id) {
            let found = index.reader().unwrap().anywhere(&ChunkId(item)).unwrap();
            match kind {
                PackKind::Data => assert_eq!(found, Some(location)),
                PackKind::Tree => assert_eq!(found, None, "page {}", PageId(item)),
            }
        }
    }
    assert_eq!(summary.packs, 2, "{summary:?}");
    assert_eq!(damaged_objects(&world, &bucket).await, [""; 0]);
    drop(repository);
    assert_cheap(&world, &bucket, cache.path()).await;
}

/// The packs that came with the last point.
async fn packs_of_last_point(world: &World) -> Vec<(String, PackKind)> {
    let cut = Edit::Cut(vec![record::object_key(LAST_POINT)]);
    let bucket = cut.of(&world.bucket).await;
    // What a backup of the last disk stores when the point before it is the newest.
    let cache = tempfile::tempdir().unwrap();
    let elsewhere = world.open(bucket, cache.path()).await.unwrap();
    elsewhere.index().await.unwrap();
    let catalogue = elsewhere.catalogue();
    let named: Vec<_> = catalogue.expected_packs(None, 1000).unwrap();
    let mut found = Vec::new();
    for kind in [PackKind::Data, PackKind::Tree] {
        for key in packs_of(&world.bucket, kind).await {
            if !named.iter().any(|pack| pack.id.object_key() == key) {
                found.push((key, kind));
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mending_that_dies_anywhere_is_done_again() {
    /// More operations than any of these backups makes.
    const OPERATIONS_MAX: u64 = 60;
    let impatient = StoreSettings {
        operation_deadline: Duration::from_millis(4),
        backoff_first: Duration::from_millis(2),
        backoff_max: Duration::from_millis(2),
        ..StoreSettings::default()
    };
    type Crash = fn(&FaultStore, u64);
    let crashes: [(&str, Crash); 2] = [
        ("before", FaultStore::crash_after),
        ("after", FaultStore::crash_after_effect),
    ];
    let world = World::new().await;
    let segments = segments_of(&world.bucket).await;
    for (when, crash) in crashes {
        let mut died = 0;
        for number in 0..OPERATIONS_MAX {
            let context = format!("dead {when} operation {number}");
            let bucket = Edit::Cut(segments.clone()).of(&world.bucket).await;
            let cache = world.cache(Cache::Fresh);
            let (faults, repository) = host(&world, &bucket, cache.path(), &impatient).await;
            crash(&faults, number);
            let mut request = request("web", Arc::new(world.next_disk()), Some(PACK_BYTES));
            request.settings.listing_age_max = NOT_DUE;
            let done = try_back_up(&repository, request).await;
            drop(repository);
            let (_, repository) = host(&world, &bucket, cache.path(), &settings()).await;
            back_up(&world, &repository, NOT_DUE).await;
            assert_eq!(damaged_objects(&world, &bucket).await, [""; 0], "{context}");
            assert_all_restore(&world, &bucket).await;
            if done.is_ok() {
                break;
            }
            died += 1;
        }
        assert!((12..OPERATIONS_MAX).contains(&died), "{when}: {died}");
    }
}
