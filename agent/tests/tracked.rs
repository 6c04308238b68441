//! Backups that read only what changed: what they come to, what they cost, and what happens when the
//! changes, or the point that they continue, cannot be relied on.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod lab;

use futures::TryStreamExt;
use lab::{Frozen, GIB, KIB, Lab, MIB, MemoryTarget, TrackedDisk, only, restore, told};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tidegate_agent::format::Format;
use tidegate_agent::progress::Progress;
use tidegate_agent::recover::{VerifySettings, diff, export, note_damage, verify};
use tidegate_agent::replicate::{
    BackupRequest, BackupSettings, BackupSummary, DiskToBackUp, Mode, backup,
};
use tidegate_agent::repository::{Point, Repository};
use tidegate_agent::retention::Keep;
use tidegate_agent::source::{Memory, OpenSettings, Remembered, Source, Tracking, open_snapshot};
use tidegate_agent::store::fault::Operation;
use tidegate_agent::{Kind, Result};
use tidegate_protocol::ids::PointId;
use tidegate_protocol::record::Role;
use tokio_util::sync::CancellationToken;

fn request(disk: &Frozen, laid_extents_max: u64) -> BackupRequest {
    BackupRequest {
        machine: "db01".to_owned(),
        disks: vec![DiskToBackUp {
            name: "vda".to_owned(),
            source: Arc::new(disk.clone()),
            format: "qcow2".to_owned(),
            role: Role::Disk,
        }],
        host: "test".to_owned(),
        moment: None,
        keep: Keep::WithoutEnd,
        dry_run: false,
        settings: BackupSettings {
            pack_bytes: 4 << 20,
            laid_extents_max,
            ..BackupSettings::default()
        },
    }
}

async fn back_up(
    repository: &Arc<Repository>,
    disk: &mut TrackedDisk,
    laid_extents_max: u64,
) -> (BackupSummary, Frozen) {
    let frozen = disk.freeze();
    let request = request(&frozen, laid_extents_max);
    let stop = CancellationToken::new();
    let summary = backup(repository, request, Arc::default(), stop)
        .await
        .unwrap();
    disk.committed(summary.point.unwrap());
    (summary, frozen)
}

async fn content(repository: &Arc<Repository>, point: &Point) -> Vec<u8> {
    let disk = point.disk(None).unwrap();
    let target = MemoryTarget::holding(vec![0; disk.size_bytes as usize], true);
    restore(repository, disk, target.clone()).await.unwrap();
    target.content()
}

async fn assert_sound(repository: &Arc<Repository>) {
    let points = repository.points(None).unwrap();
    let settings = VerifySettings::default();
    let stop = CancellationToken::new();
    let report = verify(
        repository,
        &points,
        &settings,
        Arc::new(Progress::default()),
        stop,
    )
    .await
    .unwrap();
    assert!(report.damages.is_empty(), "{:?}", report.damages);
}

/// Numbers and bytes that follow from a seed.
struct Dice(blake3::OutputReader);

impl Dice {
    fn of(seed: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        Self(hasher.finalize_xof())
    }

    fn within(&mut self, range: Range<u64>) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        range.start + u64::from_le_bytes(bytes) % (range.end - range.start)
    }
}

fn random(rng: &mut Dice, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    rng.0.fill(&mut bytes);
    bytes
}

/// What a guest may do between two points.
fn live_on(disk: &mut TrackedDisk, rng: &mut Dice) {
    for _ in 0..rng.within(0..4) {
        let size = disk.size_bytes();
        match rng.within(0..6) {
            // Blocks all over the disk.
            0 | 1 => {
                for _ in 0..rng.within(1..60) {
                    let at = rng.within(0..size / 512) * 512;
                    let length = (512 * rng.within(1..17)).min(size - at);
                    let bytes = random(rng, length);
                    disk.write(at, &bytes);
                }
            }
            // A file.
            2 => {
                let at = rng.within(0..size / 4096) * 4096;
                let length = rng.within(1..3 * MIB).min(size - at);
                let bytes = random(rng, length);
                disk.write(at, &bytes);
            }
            // A part of it is discarded.
            3 => {
                let at = rng.within(0..size);
                let length = rng.within(1..6 * MIB).min(size - at);
                disk.write(at, &vec![0; length as usize]);
            }
            // The same content once more, elsewhere.
            4 => {
                let bytes = vec![7; 300 * KIB as usize];
                let at = rng.within(0..(size - 300 * KIB) / 4096) * 4096;
                disk.write(at, &bytes);
            }
            // The very last bytes.
            _ => {
                let bytes = random(rng, 700);
                disk.write(size - 700, &bytes);
            }
        }
    }
}

/// A partition that begins at sector 63, off the grid of blocks.
fn with_old_partition(disk: &mut TrackedDisk) {
    let mut table = [0; 512];
    table[446 + 4] = 0x83;
    table[446 + 8..446 + 12].copy_from_slice(&63_u32.to_le_bytes());
    let sectors = (disk.size_bytes() / 512 - 63) as u32;
    table[446 + 12..446 + 16].copy_from_slice(&sectors.to_le_bytes());
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    disk.write(0, &table);
}

async fn history(seed: u64, granularity_bytes: u64, laid_extents_max: u64, off_grid: bool) {
    let rng = &mut Dice::of(seed);
    let lab = Lab::in_memory().await;
    let mut disk = TrackedDisk::new(69 * MIB + 1000, granularity_bytes);
    if off_grid {
        with_old_partition(&mut disk);
    }
    let bytes = random(rng, 5 * MIB);
    disk.write(3 * MIB, &bytes);
    disk.write(61 * MIB, &bytes);
    let mut expected = Vec::new();
    for cycle in 0..16 {
        // Now and then the cache is another one: as after a disaster, or on another host.
        let cache = tempfile::tempdir().unwrap();
        let repository = match cycle % 5 {
            3 => lab.try_open(cache.path()).await.unwrap(),
            _ => lab.open().await,
        };
        if cycle == 9 {
            disk.lose_tracking("the map is gone");
        }
        if cycle == 6 || cycle == 12 {
            disk.grow(rng.within(1..9 * MIB));
        }
        let changed = disk.changed_bytes();
        let (summary, frozen) = back_up(&repository, &mut disk, laid_extents_max).await;
        let told = &summary.tracking[0];
        if [0, 9].contains(&cycle) {
            assert!(!told.tracked, "{seed} {cycle}: {told:?}");
        } else {
            assert!(told.tracked, "{seed} {cycle}: {told:?}");
            assert_eq!(summary.mode, Mode::Incremental);
            // Widened to blocks, and with the partition table.
            let reads = frozen.read_bytes.load(Ordering::Relaxed);
            let allowed = 2 * changed + 2 * MIB;
            assert!(reads < allowed, "{seed} {cycle}: {reads} of {allowed}");
        }
        expected.push(disk.content());
        live_on(&mut disk, rng);
    }
    let repository = lab.open().await;
    let points = repository.points(None).unwrap();
    assert_eq!(points.len(), expected.len());
    for (cycle, (point, expected)) in points.iter().zip(&expected).enumerate() {
        let found = content(&repository, point).await;
        let at = found.iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!(at, None, "{seed}: point {cycle} differs");
        assert_eq!(found.len(), expected.len(), "{seed} {cycle}");
    }
    assert_sound(&repository).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_point_of_a_history_holds_its_moment() {
    history(1, 4096, u64::MAX, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_it_does_with_a_coarse_map_and_a_partition_off_the_grid() {
    history(2, 64 * KIB, u64::MAX, true).await;
    history(3, 512, u64::MAX, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_it_does_when_trees_are_written_again_often() {
    history(4, 4096, 150, true).await;
    history(5, 4096, 0, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_changed_costs_one_log_record() {
    let lab = Lab::in_memory().await;
    let rng = &mut Dice::of(11);
    let mut disk = TrackedDisk::new(40 * GIB, 4096);
    let bytes = random(rng, 3 * MIB);
    disk.write(9 * GIB, &bytes);
    let repository = lab.open().await;
    back_up(&repository, &mut disk, u64::MAX).await;
    disk.write(30 * GIB, &bytes[..4096]);
    back_up(&repository, &mut disk, u64::MAX).await;
    lab.calls.clear_calls();
    let (summary, frozen) = back_up(&repository, &mut disk, u64::MAX).await;
    let calls = lab.calls.calls();
    let puts = only(&calls, Operation::Put);
    assert_eq!(puts.len(), 1, "{}", told(&calls));
    assert!(puts[0].key.contains("log/"));
    assert!(only(&calls, Operation::List).len() <= 1, "{}", told(&calls));
    assert_eq!(summary.packs, 0);
    assert!(
        frozen.read_bytes.load(Ordering::Relaxed) < MIB,
        "{summary:?}"
    );
    let points = repository.points(None).unwrap();
    assert_eq!(points[1].disks[0].deltas, points[2].disks[0].deltas);
    assert_eq!(points[1].disks[0].deltas.len(), 1);
}

/// Random writes of a database: 1 % of the blocks of 8 GiB, and no two beside each other.
#[tokio::test(flavor = "multi_thread")]
async fn scattered_blocks_cost_little_more_than_themselves() {
    let lab = Lab::in_memory().await;
    let rng = &mut Dice::of(12);
    let mut disk = TrackedDisk::new(8 * GIB, 4096);
    let repository = lab.open().await;
    let bytes = random(rng, MIB);
    disk.write(GIB, &bytes);
    back_up(&repository, &mut disk, u64::MAX).await;
    for _ in 0..8 * GIB / 4096 / 100 {
        let block = rng.within(0..8 * GIB / 4096);
        let bytes = random(rng, 4096);
        disk.write(block * 4096, &bytes);
    }
    let changed = disk.changed_bytes();
    lab.calls.clear_calls();
    let (summary, frozen) = back_up(&repository, &mut disk, u64::MAX).await;
    let uploaded: u64 = summary.stored_bytes;
    assert!(uploaded >= changed, "random bytes do not compress");
    assert!(
        uploaded * 100 <= changed * 105,
        "{uploaded} bytes uploaded for {changed}"
    );
    let reads = frozen.read_bytes.load(Ordering::Relaxed);
    assert!(reads <= changed + MIB, "{reads} bytes read for {changed}");
    // The index does not grow by an entry a block.
    assert!(summary.chunks <= changed / 4096 / 32, "{summary:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_since_an_older_point_continue_that_one() {
    let lab = Lab::in_memory().await;
    let rng = &mut Dice::of(13);
    let repository = lab.open().await;
    let mut disk = TrackedDisk::new(9 * MIB, 4096);
    let bytes = random(rng, MIB);
    disk.write(0, &bytes);
    let (first, _) = back_up(&repository, &mut disk, u64::MAX).await;
    // Somebody makes a point by hand meanwhile, of another state.
    let mut other = TrackedDisk::new(9 * MIB, 4096);
    other.write(4 * MIB, &bytes);
    let (by_hand, _) = back_up(&repository, &mut other, u64::MAX).await;
    assert_ne!(first.point, by_hand.point);
    disk.write(8 * MIB, &bytes[..5000]);
    let (second, _) = back_up(&repository, &mut disk, u64::MAX).await;
    assert!(second.tracking[0].tracked, "{second:?}");
    let points = repository.points(None).unwrap();
    assert_eq!(points[2].parent, first.point);
    assert!(content(&repository, &points[2]).await == disk.content());
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_since_an_unknown_point_are_not_used() {
    let lab = Lab::in_memory().await;
    let repository = lab.open().await;
    let mut disk = TrackedDisk::new(MIB, 4096);
    disk.write(0, &[1; 5000]);
    back_up(&repository, &mut disk, u64::MAX).await;
    disk.write(MIB / 2, &[2; 5000]);
    disk.committed(tidegate_protocol::ids::PointId([9; 16]));
    let (summary, _) = back_up(&repository, &mut disk, u64::MAX).await;
    assert!(!summary.tracking[0].tracked);
    assert!(
        summary.reason.contains("since point 09090909"),
        "{}",
        summary.reason
    );
    let points = repository.points(None).unwrap();
    assert!(content(&repository, &points[1]).await == disk.content());
}

/// An image is believed to be what it was, as long as nobody has written to it.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_written_meanwhile_is_not_believed() {
    let lab = Lab::in_memory().await;
    let repository = lab.open().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let content = random(&mut Dice::of(15), MIB);
    std::fs::write(&path, &content).unwrap();
    let write = |byte: u8| {
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[byte; 4096], 8192).unwrap();
    };
    let how = OpenSettings {
        format: Some(Format::Raw),
        ..OpenSettings::default()
    };
    let back_up = async |source: Arc<dyn Source>| {
        let mut request = request(&TrackedDisk::new(0, 4096).freeze(), u64::MAX);
        request.disks[0].source = source;
        let stop = CancellationToken::new();
        backup(&repository, request, Arc::default(), stop).await
    };
    let (source, stamp) = open_snapshot(&path, &how, &Told(None))
        .unwrap()
        .named("vda");
    let first = back_up(source).await.unwrap();
    let (image, remembered) = stamp.unwrap().at(first.point.unwrap());
    assert_eq!(image, path.canonicalize().unwrap());

    // Nobody has: nothing is read, but what is looked at all the same.
    let told = Told(Some((remembered.clone(), &|| {})));
    let (source, _) = open_snapshot(&path, &how, &told).unwrap().named("vda");
    let second = back_up(source).await.unwrap();
    assert!(second.tracking[0].tracked, "{second:?}");
    assert!(second.read_bytes < MIB / 2, "{second:?}");
    // As another disk it is read.
    let (source, _) = open_snapshot(&path, &how, &told).unwrap().named("vdb");
    let third = back_up(source).await.unwrap();
    assert!(
        third.reason.contains("was that of the disk vda"),
        "{third:?}"
    );
    assert_eq!(third.read_bytes, MIB);

    let refused = |done: Result<BackupSummary>| {
        let error = done.unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict, "{error}");
        assert!(error.to_string().contains("was written while"), "{error}");
    };
    let while_told = Told(Some((remembered.clone(), &|| write(1))));
    let (source, _) = open_snapshot(&path, &how, &while_told)
        .unwrap()
        .named("vda");
    refused(back_up(source).await);
    let (source, _) = open_snapshot(&path, &how, &Told(None))
        .unwrap()
        .named("vda");
    write(2);
    refused(back_up(source).await);
    // Another file in its place.
    let other = folder.path().join("other.raw");
    std::fs::write(&other, random(&mut Dice::of(16), MIB)).unwrap();
    let time = std::fs::metadata(&path).unwrap().modified().unwrap();
    let (_, stamp) = open_snapshot(&path, &how, &Told(None))
        .unwrap()
        .named("vda");
    let (_, remembered) = stamp.unwrap().at(first.point.unwrap());
    let file = std::fs::File::options().write(true).open(&other).unwrap();
    file.set_modified(time).unwrap();
    std::fs::rename(&other, &path).unwrap();
    let told = Told(Some((remembered, &|| {})));
    let (source, _) = open_snapshot(&path, &how, &told).unwrap().named("vda");
    assert!(matches!(source.tracking(), Tracking::Lost(_)));
    assert_eq!(repository.points(None).unwrap().len(), 3);
}

/// What is remembered, and what happens while it is asked for.
struct Told<'a>(Option<(Remembered, &'a dyn Fn())>);

impl Memory for Told<'_> {
    fn of(&self, _: &Path) -> Option<Remembered> {
        self.0.as_ref().map(|(remembered, meanwhile)| {
            meanwhile();
            remembered.clone()
        })
    }

    fn is_standing(&self, _: PointId) -> bool {
        true
    }
}

/// What was taken over unseen must be sound: a pack that is gone makes the next run look at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_pack_of_the_parent_is_noticed_and_made_good() {
    let lab = Lab::in_memory().await;
    let rng = &mut Dice::of(14);
    let mut disk = TrackedDisk::new(20 * MIB, 4096);
    let bytes = random(rng, 6 * MIB);
    disk.write(0, &bytes);
    back_up(&lab.open().await, &mut disk, u64::MAX).await;
    disk.write(19 * MIB, &bytes[..9000]);
    back_up(&lab.open().await, &mut disk, u64::MAX).await;
    let packs: Vec<_> = lab.store.list("packs", None).try_collect().await.unwrap();
    let largest = packs.iter().max_by_key(|entry| entry.size_bytes).unwrap();
    lab.store.delete(&largest.key).await.unwrap();
    let repository = lab.open().await;
    disk.write(18 * MIB, &bytes[..9000]);
    let frozen = disk.freeze();
    let mut again = request(&frozen, u64::MAX);
    // The daily look at what is there.
    again.settings.listing_age_max = std::time::Duration::ZERO;
    let stop = CancellationToken::new();
    let summary = backup(&repository, again, Arc::default(), stop)
        .await
        .unwrap();
    assert!(!summary.tracking[0].tracked, "{summary:?}");
    assert!(
        summary.reason.contains("lost or damaged"),
        "{}",
        summary.reason
    );
    disk.committed(summary.point.unwrap());
    // From here on tracking is enough again.
    disk.write(17 * MIB, &bytes[..9000]);
    let (summary, _) = back_up(&repository, &mut disk, u64::MAX).await;
    assert!(summary.tracking[0].tracked, "{summary:?}");
    let points = repository.points(None).unwrap();
    for point in &points[2..] {
        assert!(content(&repository, point).await.len() == 20 << 20);
    }
    assert!(content(&repository, &points[3]).await == disk.content());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_over_a_tree_is_seen_by_diff_and_export() {
    let lab = Lab::in_memory().await;
    let rng = &mut Dice::of(15);
    let repository = lab.open().await;
    let mut disk = TrackedDisk::new(30 * MIB, 4096);
    let bytes = random(rng, 12 * MIB);
    disk.write(0, &bytes);
    back_up(&repository, &mut disk, u64::MAX).await;
    disk.write(5 * MIB, &bytes[..4096]);
    disk.write(29 * MIB, &bytes[..8192]);
    disk.write(2 * MIB, &[0; 4096]);
    back_up(&repository, &mut disk, u64::MAX).await;
    let points = repository.points(None).unwrap();
    let disks: Vec<_> = points
        .iter()
        .map(|point| point.disk(None).unwrap())
        .collect();
    let found: Vec<_> = diff(&repository, disks[0], disks[1])
        .await
        .unwrap()
        .into_iter()
        .map(|extent| (extent.start, extent.length))
        .collect();
    assert_eq!(found, [(2 * MIB, 4096), (5 * MIB, 4096), (29 * MIB, 8192)]);
    let shown = export(&repository, disks[1]).unwrap();
    let expected = disk.content();
    for at in [0, 2 * MIB - 4096, 5 * MIB - 100, 29 * MIB - 1, 12 * MIB] {
        let read = shown.read(at, 20_000).await.unwrap();
        let at = at as usize;
        assert!(read == expected[at..at + 20_000], "{at}");
    }
    let map = shown.allocation(28 * MIB..30 * MIB).await.unwrap();
    assert_eq!(
        map,
        [
            (28 * MIB..29 * MIB, false),
            (29 * MIB..29 * MIB + 8192, true),
            (29 * MIB + 8192..30 * MIB, false),
        ]
    );
}

/// Places are drawn at random: so many that none is left out.
const EVERYWHERE: u32 = 20_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_tracker_that_lies_is_caught_by_an_audit() {
    let rng = &mut Dice::of(16);
    for (unseen_at, what) in [(3 * MIB, "in a chunk"), (11 * MIB, "in a hole")] {
        let lab = Lab::in_memory().await;
        let repository = lab.open().await;
        let mut disk = TrackedDisk::new(12 * MIB, 4096);
        let bytes = random(rng, 8 * MIB);
        disk.write(0, &bytes);
        back_up(&repository, &mut disk, u64::MAX).await;
        // An honest one is believed, and what was compared is told and recorded.
        disk.write(MIB, &bytes[..4096]);
        let (summary, _) = audited(&repository, &mut disk, EVERYWHERE).await;
        let told = &summary.tracking[0];
        assert!(told.tracked && told.audited_blocks > 500, "{told:?}");
        assert_eq!(told.false_chunks, 0);
        disk.write(2 * MIB, &bytes[..4096]);
        disk.write_unseen(unseen_at, &bytes[..4096]);
        // Without an audit nobody notices.
        let (summary, _) = audited(&repository, &mut disk, 0).await;
        assert!(summary.tracking[0].tracked);
        let points = repository.points(None).unwrap();
        assert!(content(&repository, &points[2]).await != disk.content());
        // A full audit does, and the point is right again.
        let (summary, _) = audited(&repository, &mut disk, EVERYWHERE).await;
        let told = &summary.tracking[0];
        assert!(!told.tracked && told.false_chunks > 0, "{what}: {told:?}");
        assert!(
            summary.reason.contains("its tracker is wrong"),
            "{}",
            summary.reason
        );
        let points = repository.points(None).unwrap();
        assert!(content(&repository, &points[3]).await == disk.content());
        let recorded = points[3].disks[0].tracking.as_ref().unwrap();
        assert!(!recorded.believed && recorded.false_chunks > 0);
    }
}

async fn audited(
    repository: &Arc<Repository>,
    disk: &mut TrackedDisk,
    audit_ppm: u32,
) -> (BackupSummary, Frozen) {
    let frozen = disk.freeze();
    let mut request = request(&frozen, u64::MAX);
    request.settings.audit_ppm = audit_ppm;
    let stop = CancellationToken::new();
    let summary = backup(repository, request, Arc::default(), stop)
        .await
        .unwrap();
    disk.committed(summary.point.unwrap());
    (summary, frozen)
}

/// A delta page that is gone is damage like any other, and is said to be.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_delta_page_is_told() -> Result<()> {
    let lab = Lab::in_memory().await;
    let repository = lab.open().await;
    let mut disk = TrackedDisk::new(30 * MIB, 4096);
    disk.write(0, &[5; 40_000]);
    back_up(&repository, &mut disk, u64::MAX).await;
    disk.write(5 * MIB, &[6; 4096]);
    back_up(&repository, &mut disk, u64::MAX).await;
    let points = repository.points(None)?;
    let page = points[1].disks[0].deltas[0];
    lab.store.delete(&page.location.pack.object_key()).await?;
    let cache = tempfile::tempdir().unwrap();
    let stranger = lab.try_open(cache.path()).await?;
    let settings = VerifySettings::default();
    let stop = CancellationToken::new();
    let report = verify(&stranger, &points, &settings, Arc::default(), stop).await?;
    let pack = page.location.pack.object_key();
    let told = report.damages.iter().find(|damage| damage.object == pack);
    let touches = &told.expect("the pack is named").touches;
    assert!(
        touches
            .iter()
            .any(|touched| touched.point == points[1].id.to_string())
    );
    assert!(
        touches
            .iter()
            .all(|touched| touched.point != points[0].id.to_string())
    );
    // This machine has kept the page: once it knows, the next backup stores it anew, and does not go
    // on from what is damaged.
    assert_eq!(note_damage(&stranger, &report).await?, 1);
    disk.write(6 * MIB, &[7; 4096]);
    let repository = lab.open().await;
    let (summary, _) = back_up(&repository, &mut disk, u64::MAX).await;
    assert!(!summary.tracking[0].tracked, "{summary:?}");
    let cache = tempfile::tempdir().unwrap();
    let stranger = lab.try_open(cache.path()).await?;
    assert_sound(&stranger).await;
    Ok(())
}
