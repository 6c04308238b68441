//! The engine as a whole, in memory and in local folders: what goes out comes back bit-exact.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod lab;

use lab::{Lab, MemoryDisk, MemoryTarget, copy};
use std::path::Path;
use std::sync::Arc;
use tidegate_agent::progress::Progress;
use tidegate_agent::recover::{
    RestoreMode, RestoreSettings, RestoreSummary, VerifySettings, diff, export, restore_disk,
    verify,
};
use tidegate_agent::replicate::{
    BackupRequest, BackupSettings, BackupSummary, DiskToBackUp, Mode, backup,
};
use tidegate_agent::repository::{PointDisk, Repository, Selector};
use tidegate_agent::retention::Keep;
use tidegate_agent::target::Target;
use tidegate_agent::{Error, Kind, Result};
use tidegate_protocol::keys::Level;
use tidegate_protocol::record::Role;
use tokio_util::sync::CancellationToken;

/// Reproducible content: data that compresses somewhat, with holes and repeats.
fn content(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    for (number, block) in bytes.chunks_mut(64 << 10).enumerate() {
        let number = number as u64;
        match (number + seed) % 7 {
            0 | 1 => {}
            2 => fill(block, 1000 + number % 3),
            _ => fill(block, seed * 1_000_003 + number),
        }
    }
    bytes
}

fn fill(block: &mut [u8], seed: u64) {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut reader = hasher.finalize_xof();
    for half in block.chunks_mut(4096) {
        let middle = half.len() / 2;
        reader.fill(&mut half[..middle]);
    }
}

fn request(machine: &str, disks: &[(&str, Vec<u8>)]) -> BackupRequest {
    BackupRequest {
        machine: machine.to_owned(),
        disks: disks
            .iter()
            .map(|(name, content)| DiskToBackUp {
                name: (*name).to_owned(),
                source: MemoryDisk::of(content),
                format: "raw".to_owned(),
                role: Role::Disk,
            })
            .collect(),
        host: "test".to_owned(),
        moment: None,
        keep: Keep::WithoutEnd,
        dry_run: false,
        settings: BackupSettings {
            pack_bytes: 4 << 20,
            ..BackupSettings::default()
        },
    }
}

async fn back_up(repository: &Arc<Repository>, machine: &str, content: &[u8]) -> BackupSummary {
    let request = request(machine, &[("disk", content.to_vec())]);
    backup(
        repository,
        request,
        Arc::default(),
        CancellationToken::new(),
    )
    .await
    .unwrap()
}

async fn restore_to(
    repository: &Arc<Repository>,
    disk: &PointDisk,
    target: &Arc<MemoryTarget>,
    mode: RestoreMode,
) -> Result<RestoreSummary> {
    let settings = RestoreSettings {
        verify: true,
        ..RestoreSettings::default()
    };
    let progress = Arc::new(Progress::default());
    let stop = CancellationToken::new();
    let target: Arc<dyn Target> = Arc::clone(target) as _;
    restore_disk(repository, disk, target, mode, &settings, progress, stop).await
}

async fn restored(repository: &Arc<Repository>, machine: &str, selector: &Selector) -> Vec<u8> {
    let point = repository.resolve(machine, selector).unwrap();
    let disk = point.disk(None).unwrap();
    let target = MemoryTarget::holding(vec![0; usize::try_from(disk.size_bytes).unwrap()], true);
    restore_to(repository, disk, &target, RestoreMode::New)
        .await
        .unwrap();
    target.content()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_out_comes_back() {
    let lab = Lab::in_memory().await;
    let repository = lab.open().await;
    const MIB: usize = 1 << 20;
    // Around the sizes of block, leaf and span, and sizes that are no multiple of anything.
    for (number, size) in [
        0,
        1,
        511,
        4095,
        4096,
        4097,
        4 * MIB - 1,
        4 * MIB,
        4 * MIB + 1,
        64 * MIB - 5,
        64 * MIB,
        64 * MIB + 4097,
        130 * MIB + 77,
    ]
    .into_iter()
    .enumerate()
    {
        let machine = format!("m{number}");
        let disk = content(size, 5);
        back_up(&repository, &machine, &disk).await;
        assert!(
            restored(&repository, &machine, &Selector::Latest).await == disk,
            "size {size}"
        );
    }
    let report = verify(
        &repository,
        &repository.points(None).unwrap(),
        &VerifySettings::default(),
        Arc::default(),
        CancellationToken::new(),
    )
    .await
    .unwrap();
    assert!(report.complete);
    assert!(report.damages.is_empty(), "{report:?}");
    assert_eq!(report.chunks, report.checked_chunks);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_disk_costs_one_record_and_no_pack() {
    let lab = Lab::in_memory().await;
    let repository = lab.open().await;
    let disk = content(80 << 20, 1);
    let first = back_up(&repository, "web", &disk).await;
    assert_eq!(first.mode, Mode::Full);
    assert!(first.packs > 1);
    let before = lab.store.requests();
    let second = back_up(&repository, "web", &disk).await;
    let after = lab.store.requests();
    assert_eq!(second.mode, Mode::Incremental);
    assert_eq!(
        (second.packs, second.new_bytes, second.stored_bytes),
        (0, 0, 0)
    );
    assert_eq!(after.puts - before.puts, 1, "one log record");
    assert_eq!(after.gets - before.gets, 0);
    assert_eq!(second.chunks, first.chunks);
    // Its image may be called otherwise by now: the machine has no other disk.
    let renamed = request("web", &[("snapshot-2", disk.clone())]);
    let third = backup(
        &repository,
        renamed,
        Arc::default(),
        CancellationToken::new(),
    )
    .await
    .unwrap();
    assert_eq!((third.packs, third.stored_bytes), (0, 0), "{third:?}");
    assert!(!third.reason.contains("has no disk"), "{}", third.reason);
    // Another process with an empty cache finds the same.
    let elsewhere = tempfile::tempdir().unwrap();
    let repository = lab.open_as(&lab.keys.host, elsewhere.path()).await;
    let fourth = back_up(&repository, "web", &disk).await;
    assert_eq!((fourth.packs, fourth.new_bytes), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_run_stores_it_does_not_read_back() {
    let lab = Lab::in_memory().await;
    let repository = lab.open().await;
    back_up(&repository, "other", &content(1 << 20, 1)).await;
    let before = lab.store.requests();
    let summary = back_up(&repository, "web", &content(30 << 20, 2)).await;
    assert!(summary.packs > 1);
    back_up(&repository, "third", &content(2 << 20, 3)).await;
    let after = lab.store.requests();
    assert_eq!(after.gets - before.gets, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_costs_the_change_and_older_points_stay() {
    let lab = Lab::in_memory().await;
    let repository = lab.open().await;
    let first = content(100 << 20, 1);
    back_up(&repository, "web", &first).await;
    let mut second = first.clone();
    second[70_000_000..70_300_000].fill(7);
    second[20_000_000..30_000_000].fill(0);
    let summary = back_up(&repository, "web", &second).await;
    assert!(summary.new_bytes < 1_000_000, "{summary:?}");
    // Grown and shrunk.
    let mut third = second.clone();
    third.resize(140 << 20, 9);
    back_up(&repository, "web", &third).await;
    let fourth = third[..50 << 20].to_vec();
    let summary = back_up(&repository, "web", &fourth).await;
    assert!(summary.new_bytes < 200_000, "{summary:?}");
    let points = repository.points(Some("web")).unwrap();
    for (point, content) in points.iter().zip([&first, &second, &third, &fourth]) {
        let selector = Selector::Id(point.id.to_string());
        assert!(restored(&repository, "web", &selector).await == *content);
    }
    let (a, b) = (points[0].disk(None).unwrap(), points[1].disk(None).unwrap());
    let changes = diff(&repository, a, b).await.unwrap();
    // Every byte that differs lies in a run that is named.
    let mut named = vec![false; first.len()];
    for change in &changes {
        let start = usize::try_from(change.start).unwrap();
        named[start..start + usize::try_from(change.length).unwrap()].fill(true);
    }
    assert!((0..first.len()).all(|at| first[at] == second[at] || named[at]));
    assert!(named.iter().filter(|named| **named).count() < 11_000_000);
    assert!(diff(&repository, a, a).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn in_place_fetches_only_what_differs_and_writes_zeros_where_zeros_belong() {
    let lab = Lab::in_memory().await;
    let repository = lab.open().await;
    let disk = content(60 << 20, 3);
    back_up(&repository, "web", &disk).await;
    let point = repository.resolve("web", &Selector::Latest).unwrap();
    let mut damaged = disk.clone();
    damaged[10_000_000..10_100_000].fill(0xee);
    let hole = disk
        .chunks(64 << 10)
        .position(|block| block.iter().all(|byte| *byte == 0))
        .unwrap()
        * (64 << 10);
    damaged[hole + 100] = 1;
    let target = MemoryTarget::holding(damaged, false);
    let summary = restore_to(
        &repository,
        point.disk(None).unwrap(),
        &target,
        RestoreMode::InPlace,
    )
    .await
    .unwrap();
    assert!(target.content() == disk);
    assert!(summary.written_bytes < 400_000, "{summary:?}");
    assert!(summary.zeroed_bytes > 0);
    // A new target that is full of rubbish and cannot promise zeros.
    let target = MemoryTarget::holding(vec![0x55; disk.len()], false);
    restore_to(
        &repository,
        point.disk(None).unwrap(),
        &target,
        RestoreMode::New,
    )
    .await
    .unwrap();
    assert!(target.content() == disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_disks_and_machines_share_what_they_have_in_common() {
    let lab = Lab::in_memory().await;
    let repository = lab.open_as(&lab.keys.host, lab.cache.path()).await;
    let (a, b) = (content(70 << 20, 1), content(30 << 20, 2));
    let both = request("twins", &[("root", a.clone()), ("data", a.clone())]);
    let summary = backup(&repository, both, Arc::default(), CancellationToken::new())
        .await
        .unwrap();
    assert!(summary.new_bytes < summary.allocated_bytes / 2 + (1 << 20));
    let other = back_up(&repository, "other", &a).await;
    assert_eq!(other.new_bytes, 0);
    back_up(&repository, "third", &b).await;
    let reader = lab.open().await;
    let point = reader.resolve("twins", &Selector::Latest).unwrap();
    assert_eq!(point.disks.len(), 2);
    assert_eq!(point.disk(None).unwrap_err().kind(), Kind::Config);
    assert!(restored(&reader, "third", &Selector::Latest).await == b);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_reads_like_the_disk() {
    let lab = Lab::in_memory().await;
    let repository = lab.open().await;
    let disk = content((40 << 20) + 1234, 9);
    back_up(&repository, "web", &disk).await;
    let point = repository.resolve("web", &Selector::Latest).unwrap();
    let export = export(&repository, point.disk(None).unwrap()).unwrap();
    assert_eq!(export.size_bytes(), disk.len() as u64);
    let mut at = 0_usize;
    let mut step = 1_usize;
    while at < disk.len() {
        let length = step.min(disk.len() - at);
        let read = export
            .read(at as u64, u32::try_from(length).unwrap())
            .await
            .unwrap();
        assert!(read == disk[at..at + length], "at {at}");
        at += length;
        step = (step * 7 + 13) % (3 << 20) + 1;
    }
    for (range, data) in export.allocation(0..disk.len() as u64).await.unwrap() {
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        assert!(data || disk[range].iter().all(|byte| *byte == 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_key_backs_up_and_cannot_read() {
    let lab = Lab::in_memory().await;
    let repository = lab.open_as(&lab.keys.host, lab.cache.path()).await;
    let disk = content(20 << 20, 1);
    back_up(&repository, "web", &disk).await;
    let again = back_up(&repository, "web", &disk).await;
    assert_eq!(again.mode, Mode::Incremental);
    let point = repository.resolve("web", &Selector::Latest).unwrap();
    let target = MemoryTarget::holding(vec![0; disk.len()], true);
    let refused = restore_to(
        &repository,
        point.disk(None).unwrap(),
        &target,
        RestoreMode::New,
    )
    .await;
    assert_eq!(refused.unwrap_err().kind(), Kind::Denied);
    assert!(export(&repository, point.disk(None).unwrap()).is_err());
    let report = verify(
        &repository,
        &[point],
        &VerifySettings::default(),
        Arc::default(),
        CancellationToken::new(),
    )
    .await
    .unwrap();
    assert!(!report.complete && report.damages.is_empty());
    let maintenance = tempfile::tempdir().unwrap();
    let repository = lab.open_as(&lab.keys.maintenance, maintenance.path()).await;
    assert_eq!(repository.points(None).unwrap().len(), 2);
    let refused = backup(
        &repository,
        request("web", &[("disk", disk)]),
        Arc::default(),
        CancellationToken::new(),
    )
    .await;
    assert_eq!(refused.unwrap_err().kind(), Kind::Denied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_stores_nothing() {
    let lab = Lab::in_memory().await;
    let repository = lab.open().await;
    let before = lab.store.requests().puts;
    let mut dry = request("web", &[("disk", content(20 << 20, 1))]);
    dry.dry_run = true;
    let summary = backup(&repository, dry, Arc::default(), CancellationToken::new())
        .await
        .unwrap();
    assert_eq!(summary.point, None);
    assert!(summary.new_bytes > 0 && summary.stored_bytes > 0);
    assert_eq!(lab.store.requests().puts, before);
    assert!(repository.points(None).unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_keys_are_refused_and_their_records_void() {
    let lab = Lab::in_memory().await;
    let repository = lab.open().await;
    let mut extra = None;
    let info = repository
        .key_add_file(Level::Host, "hv2", |keys| {
            extra = Some(copy(keys));
            Ok(())
        })
        .await
        .unwrap();
    let extra = extra.unwrap();
    let cache = tempfile::tempdir().unwrap();
    let host = lab.open_as(&extra, cache.path()).await;
    back_up(&host, "web", &content(1 << 20, 1)).await;
    repository.key_remove(&info.key.to_string()).await.unwrap();
    let refused = Repository::open(lab.store.clone(), copy(&extra), cache.path()).await;
    assert_eq!(refused.err().map(|error| error.kind()), Some(Kind::Denied));
    // The process that was open already is refused as soon as it reads the log.
    let refused = backup(
        &host,
        request("web", &[("disk", content(1 << 20, 2))]),
        Arc::default(),
        CancellationToken::new(),
    )
    .await;
    assert_eq!(refused.unwrap_err().kind(), Kind::Denied);
    repository.refresh().await.unwrap();
    assert_eq!(repository.points(None).unwrap().len(), 1);
    let listed = repository.key_list().await.unwrap();
    assert_eq!(listed.len(), 4);
    assert!(listed.iter().any(|key| key.label == "hv2" && key.revoked));
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_writers_share_a_repository() {
    let lab = Arc::new(Lab::in_memory().await);
    let mut tasks = Vec::new();
    for number in 0..8_u64 {
        let lab = Arc::clone(&lab);
        tasks.push(tokio::spawn(async move {
            let cache = tempfile::tempdir().unwrap();
            let repository = lab.open_as(&lab.keys.host, cache.path()).await;
            let mut disk = content(10 << 20, 1);
            disk[..4096].fill(u8::try_from(number).unwrap() + 1);
            let machine = format!("m{number}");
            back_up(&repository, &machine, &disk).await;
            (machine, disk)
        }));
    }
    let mut made = Vec::new();
    for task in tasks {
        made.push(task.await.unwrap());
    }
    let repository = lab.open().await;
    assert_eq!(repository.points(None).unwrap().len(), 8);
    for (machine, disk) in made {
        assert!(restored(&repository, &machine, &Selector::Latest).await == disk);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_stands_for_the_log_before_it() {
    let lab = Lab::in_memory().await;
    let repository = lab.open().await;
    let disk = content(5 << 20, 1);
    back_up(&repository, "web", &disk).await;
    repository.write_checkpoint().await.unwrap();
    back_up(&repository, "web", &content(5 << 20, 2)).await;
    let before = lab.store.requests().gets;
    let cache = tempfile::tempdir().unwrap();
    let fresh = lab.open_as(&lab.keys.restore, cache.path()).await;
    // Descriptor, checkpoint, its record, and the one record after it.
    assert_eq!(lab.store.requests().gets - before, 4);
    assert_eq!(fresh.points(None).unwrap().len(), 2);
    assert_eq!(fresh.key_list().await.unwrap().len(), 3);
    let again = back_up(&fresh, "web", &disk).await;
    assert_eq!(again.new_bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_cache_is_built_anew() {
    let lab = Lab::in_memory().await;
    let disk = content(9 << 20, 1);
    back_up(&lab.open().await, "web", &disk).await;
    let folder = lab
        .cache
        .path()
        .join(lab.keys.restore.repository().to_string());
    std::fs::write(
        folder.join("catalogue.sqlite"),
        b"this is no database, but it is long enough to be taken for one",
    )
    .unwrap();
    std::fs::remove_dir_all(folder.join("tree")).unwrap();
    let repository = lab.open().await;
    assert!(restored(&repository, "web", &Selector::Latest).await == disk);
    let again = back_up(&repository, "web", &disk).await;
    assert_eq!(again.new_bytes, 0);
    let repository =
        Repository::rebuild_cache(lab.store.clone(), copy(&lab.keys.restore), lab.cache.path())
            .await
            .unwrap();
    assert_eq!(repository.points(None).unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_run_goes_on_from_what_an_interrupted_one_left() {
    let lab = Lab::in_memory().await;
    let repository = lab.open().await;
    let disk = content(120 << 20, 4);
    let stop = CancellationToken::new();
    let progress = Arc::new(Progress::default());
    let watched = Arc::clone(&progress);
    let stopping = stop.clone();
    tokio::spawn(async move {
        while watched.snapshot().stored_bytes == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        stopping.cancel();
    });
    let stopped = backup(
        &repository,
        request("web", &[("disk", disk.clone())]),
        progress,
        stop,
    )
    .await;
    let landed = match stopped {
        Err(error) => {
            assert_eq!(error.kind(), Kind::Interrupted);
            assert!(repository.points(None).unwrap().is_empty());
            true
        }
        // It may have been faster than the stop.
        Ok(_) => false,
    };
    let summary = back_up(&repository, "web", &disk).await;
    if landed {
        assert!(summary.new_bytes < 60 << 20, "{summary:?}");
    }
    assert!(restored(&repository, "web", &Selector::Latest).await == disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_named_and_mapped_to_what_it_touches() {
    let folder = tempfile::tempdir().unwrap();
    let lab = Lab::in_folder(folder.path()).await;
    let repository = lab.open().await;
    let disk = content(40 << 20, 6);
    back_up(&repository, "web", &disk).await;
    let mut packs: Vec<_> = walk(&folder.path().join("packs"));
    packs.sort_by_key(|path| std::fs::metadata(path).unwrap().len());
    let largest = packs.pop().unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&largest, &bytes).unwrap();
    let points = repository.points(None).unwrap();
    let report = verify(
        &repository,
        &points,
        &VerifySettings::default(),
        Arc::default(),
        CancellationToken::new(),
    )
    .await
    .unwrap();
    assert_eq!(report.damages.len(), 1, "{report:?}");
    let damage = &report.damages[0];
    assert!(
        damage
            .object
            .ends_with(largest.file_name().unwrap().to_str().unwrap())
    );
    assert!(!damage.touches.is_empty());
    assert_eq!(damage.touches[0].machine, "web");
    let target = MemoryTarget::holding(vec![0; disk.len()], true);
    let refused: Error = restore_to(
        &repository,
        points[0].disk(None).unwrap(),
        &target,
        RestoreMode::New,
    )
    .await
    .unwrap_err();
    assert_eq!(refused.kind(), Kind::Corrupt);
    assert!(refused.to_string().contains("packs/"), "{refused:?}");
    // What was written is right: nothing unchecked went to the target.
    let written = target.content();
    for (a, b) in written.chunks(4096).zip(disk.chunks(4096)) {
        assert!(a == b || a.iter().all(|byte| *byte == 0));
    }
    std::fs::remove_file(&largest).unwrap();
    let report = verify(
        &repository,
        &points,
        &VerifySettings::default(),
        Arc::default(),
        CancellationToken::new(),
    )
    .await
    .unwrap();
    assert_eq!(report.damages.len(), 1);
    assert_eq!(report.damages[0].found, "it is missing");
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(walk(&path));
        } else {
            found.push(path);
        }
    }
    found
}
