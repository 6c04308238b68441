//! What the next backup of a machine mends by itself, and what it costs to look.
//!
//! All that was ever backed up is still on the machine's disk here, and its cache is there unless said
//! otherwise. What a restore, a backup or a verify comes upon is noted in the log; what is gone, a
//! backup finds by a listing once a day.

use crate::lab::{ExpectingTarget, TILE_BYTES, only, request, restore, told, try_back_up};
use crate::world::{Cache, Edit, PACK_BYTES, World, look_through, packs_of, settings};
use object_store::memory::InMemory;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tidegate_agent::Kind;
use tidegate_agent::recover::{export, note_damage};
use tidegate_agent::replicate::BackupSummary;
use tidegate_agent::repository::Repository;
use tidegate_agent::source::Source;
use tidegate_agent::store::Store;
use tidegate_agent::store::fault::{Fault, FaultStore, Operation};
use tidegate_protocol::ids::PackId;
use tidegate_protocol::pack::PackKind;

/// Longer than any test takes: no listing is due.
pub(crate) const NOT_DUE: Duration = Duration::from_secs(24 * 60 * 60);
pub(crate) const DUE: Duration = Duration::ZERO;

pub(crate) async fn back_up(
    world: &World,
    repository: &Arc<Repository>,
    listing_age_max: Duration,
) -> BackupSummary {
    let mut request = request("web", Arc::new(world.next_disk()), Some(PACK_BYTES));
    request.settings.listing_age_max = listing_age_max;
    try_back_up(repository, request).await.unwrap()
}

/// The objects that a machine which has never seen the repository finds damaged.
pub(crate) async fn damaged_objects(world: &World, bucket: &Arc<InMemory>) -> Vec<String> {
    let cache = tempfile::tempdir().unwrap();
    let elsewhere = world.open(bucket.clone(), cache.path()).await.unwrap();
    let report = look_through(&elsewhere).await.unwrap();
    assert!(report.complete && report.segments > 0);
    report
        .damages
        .into_iter()
        .map(|damage| damage.object)
        .collect()
}

/// All points, on a machine that has never seen the repository.
pub(crate) async fn assert_all_restore(world: &World, bucket: &Arc<InMemory>) {
    let cache = tempfile::tempdir().unwrap();
    let elsewhere = world.open(bucket.clone(), cache.path()).await.unwrap();
    assert_eq!(world.restore_all(&elsewhere, &[]).await.unwrap(), [""; 0]);
    let newest = elsewhere.points(None).unwrap().pop().unwrap();
    let target = ExpectingTarget::new(&world.next_disk());
    restore(&elsewhere, newest.disk(None).unwrap(), target.clone())
        .await
        .unwrap();
    target.assert_complete();
}

pub(crate) fn bad_packs(repository: &Repository) -> Vec<String> {
    let packs = repository.catalogue().lost_packs().unwrap();
    packs.iter().map(PackId::object_key).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_is_found_by_a_backup_and_stored_anew() {
    let world = World::new().await;
    for kind in [PackKind::Data, PackKind::Tree] {
        for pack in packs_of(&world.bucket, kind).await {
            for edit in [Edit::Delete(pack.clone()), Edit::Truncate(pack.clone())] {
                let bucket = edit.of(&world.bucket).await;
                let folder = world.cache(Cache::Warm);
                let repository = world.open(bucket.clone(), folder.path()).await.unwrap();
                back_up(&world, &repository, DUE).await;
                assert_eq!(bad_packs(&repository), [pack.as_str()], "{edit:?}");
                assert_eq!(damaged_objects(&world, &bucket).await, [""; 0], "{edit:?}");
                assert_all_restore(&world, &bucket).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_verify_finds_is_stored_anew_after_it() {
    let world = World::new().await;
    for kind in [PackKind::Data, PackKind::Tree] {
        let pack = packs_of(&world.bucket, kind).await.swap_remove(0);
        let bucket = Edit::Flip(pack.clone()).of(&world.bucket).await;
        let folder = world.cache(Cache::Warm);
        let repository = world.open(bucket.clone(), folder.path()).await.unwrap();
        // Nothing but reading it all tells.
        back_up(&world, &repository, DUE).await;
        assert_eq!(bad_packs(&repository), [""; 0]);
        assert_eq!(damaged_objects(&world, &bucket).await, [pack.as_str()]);

        let report = look_through(&repository).await.unwrap();
        let touched: usize = report
            .damages
            .iter()
            .map(|damage| damage.touches.len())
            .sum();
        assert!(touched >= 4, "{report:?}");
        assert_eq!(note_damage(&repository, &report).await.unwrap(), 1);
        assert_eq!(note_damage(&repository, &report).await.unwrap(), 0);
        back_up(&world, &repository, NOT_DUE).await;
        assert_eq!(damaged_objects(&world, &bucket).await, [""; 0], "{kind:?}");
        assert_all_restore(&world, &bucket).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_restore_comes_upon_is_noted_for_the_next_backup() {
    let world = World::new().await;
    for kind in [PackKind::Data, PackKind::Tree] {
        let pack = packs_of(&world.bucket, kind).await.swap_remove(0);
        let bucket = Edit::Flip(pack.clone()).of(&world.bucket).await;
        let elsewhere = tempfile::tempdir().unwrap();
        let stranger = world.open(bucket.clone(), elsewhere.path()).await.unwrap();
        let point = stranger.points(None).unwrap().pop().unwrap();
        let target = ExpectingTarget::new(&world.points[2].1);
        let error = restore(&stranger, point.disk(None).unwrap(), target)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.chain().contains(&pack), "{error:?}");
        assert_eq!(bad_packs(&stranger), [pack.as_str()]);

        let folder = world.cache(Cache::Warm);
        let repository = world.open(bucket.clone(), folder.path()).await.unwrap();
        back_up(&world, &repository, NOT_DUE).await;
        assert_eq!(damaged_objects(&world, &bucket).await, [""; 0], "{kind:?}");
        assert_all_restore(&world, &bucket).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_comes_upon_a_damaged_tree_mends_it_without_the_old_cache() {
    let world = World::new().await;
    // Of the first point; the later ones have leaves in it, and roots of their own.
    let pack = packs_of(&world.bucket, PackKind::Tree).await.swap_remove(0);
    let bucket = Edit::Flip(pack.clone()).of(&world.bucket).await;
    let empty = world.cache(Cache::Fresh);
    let repository = world.open(bucket.clone(), empty.path()).await.unwrap();
    let summary = back_up(&world, &repository, NOT_DUE).await;
    assert!(summary.reason.contains("damaged"), "{summary:?}");
    assert_eq!(bad_packs(&repository), [pack.as_str()]);

    let report = look_through(&repository).await.unwrap();
    let touched: Vec<_> = report
        .damages
        .iter()
        .flat_map(|damage| &damage.touches)
        .map(|touched| touched.point.clone())
        .collect();
    assert_eq!(touched, [world.points[0].0.to_string()], "{report:?}");
}

/// A store over the bucket that records its calls.
async fn recorded(
    world: &World,
    bucket: &Arc<InMemory>,
    cache: &Path,
) -> (Arc<FaultStore>, Arc<Repository>) {
    let store = Store::from_object_store(bucket.clone(), "", "bucket", &settings());
    let (store, calls) = store.with_faults(&settings());
    let keys = crate::lab::copy(&world.lab.keys.restore);
    let repository = Repository::open(store, keys, cache).await.unwrap();
    (calls, Arc::new(repository))
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_costs_a_listing_a_day_and_mending_is_done_once() {
    let world = World::new().await;
    let bucket = Arc::new(world.bucket.fork());
    let folder = world.cache(Cache::Warm);
    let (calls, repository) = recorded(&world, &bucket, folder.path()).await;
    back_up(&world, &repository, NOT_DUE).await;
    for (age_max, listings) in [(NOT_DUE, 0), (DUE, 1), (NOT_DUE, 0)] {
        calls.clear_calls();
        back_up(&world, &repository, age_max).await;
        let calls = calls.calls();
        assert_eq!(
            only(&calls, Operation::List).len(),
            listings,
            "{}",
            told(&calls)
        );
        assert_eq!(only(&calls, Operation::Put).len(), 1, "{}", told(&calls));
        assert_eq!(calls.len(), listings + 1, "{}", told(&calls));
    }
    // Lost, mended, and from then on as cheap as before.
    let pack = packs_of(&bucket, PackKind::Tree).await.swap_remove(0);
    let bucket = Edit::Delete(pack).of(&bucket).await;
    drop(repository);
    let (calls, repository) = recorded(&world, &bucket, folder.path()).await;
    for (packs, puts) in [(2, 5), (0, 1), (0, 1)] {
        calls.clear_calls();
        let summary = back_up(&world, &repository, DUE).await;
        let calls = calls.calls();
        assert_eq!(summary.packs, packs, "{}", told(&calls));
        // The record of the loss, the pages of the lost pack, the new tree, a segment, the point.
        assert_eq!(only(&calls, Operation::Put).len(), puts, "{}", told(&calls));
    }
    assert_eq!(damaged_objects(&world, &bucket).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_lags_behind_condemns_nothing() {
    let world = World::new().await;
    let bucket = Arc::new(world.bucket.fork());
    let folder = world.cache(Cache::Warm);
    let (calls, repository) = recorded(&world, &bucket, folder.path()).await;
    calls.script(|call| {
        let is_of_packs = call.operation == Operation::List && call.key == "packs";
        is_of_packs.then_some(Fault::Lag(Duration::from_secs(24 * 60 * 60)))
    });
    back_up(&world, &repository, DUE).await;
    assert!(calls.count(Operation::Head) > 5, "{}", told(&calls.calls()));
    assert_eq!(bad_packs(&repository), [""; 0]);
    // Nor does a verify take it for damage.
    let report = look_through(&repository).await.unwrap();
    assert!(report.damages.is_empty(), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_reads_what_is_sound_beside_what_is_damaged() {
    let world = World::new().await;
    let pack = packs_of(&world.bucket, PackKind::Data).await.swap_remove(0);
    let bucket = Edit::Flip(pack.clone()).of(&world.bucket).await;
    let cache = world.cache(Cache::Fresh);
    let repository = world.open(bucket, cache.path()).await.unwrap();
    let (point, expected) = &world.points[2];
    let found = repository.points(None).unwrap();
    let found = found.iter().find(|found| found.id == *point).unwrap();
    let shown = export(&repository, found.disk(None).unwrap()).unwrap();
    let mut reader = expected.reader().unwrap();
    let mut tile = vec![0; TILE_BYTES as usize];
    let mut damaged = 0;
    // From front to back, so that it reads ahead over what is damaged.
    for offset in (0..expected.size_bytes()).step_by(tile.len()) {
        match shown.read(offset, TILE_BYTES as u32).await {
            Ok(bytes) => {
                reader.read_at(offset, &mut tile).unwrap();
                assert!(bytes == tile, "at {offset}");
            }
            Err(error) => {
                assert!(error.chain().contains(&pack), "{error:?}");
                damaged += 1;
            }
        }
    }
    // A frame is 256 KiB, and no tile lies in more than two.
    assert!((1..=5).contains(&damaged), "{damaged}");
    assert_eq!(bad_packs(&repository), [pack.as_str()]);
}
