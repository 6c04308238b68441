//! What backups and restores cost in requests, counted at the store, and that sparse disks cost
//! nothing for what they do not hold.
//!
//! The promises: an unchanged disk costs one log record and no pack; a restore, from opening the
//! repository with an empty cache on, makes at most (stored bytes / 8 MiB + packs + 10) GETs.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod lab;

use lab::{
    ExpectingTarget, GIB, KIB, Lab, MIB, TIB, TILE_BYTES, Tile, TiledDisk, back_up, newest, only,
    request, restore, told, try_back_up,
};
use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tidegate_agent::replicate::Mode;
use tidegate_agent::source::{RawSource, Source};
use tidegate_agent::store::fault::{Call, Operation};
use tidegate_agent::target::create_file;

/// Restores the newest point as a machine does that has never seen the repository, into a target
/// that checks every byte, and asserts what it may cost. The packs that count are those that the
/// restore read: what else the repository holds excuses nothing.
async fn restores_at_the_promised_cost(lab: &Lab, expected: &TiledDisk) {
    let cache = tempfile::tempdir().unwrap();
    lab.calls.clear_calls();
    let repository = lab.try_open(cache.path()).await.unwrap();
    let disk = newest(&repository);
    let target = ExpectingTarget::new(expected);
    restore(&repository, &disk, target.clone()).await.unwrap();
    target.assert_complete();

    let calls = lab.calls.calls();
    let gets = only(&calls, Operation::Get);
    let packs: HashSet<&str> = gets
        .iter()
        .map(|call| call.key.as_str())
        .filter(|key| key.contains("packs/"))
        .collect();
    let mut stored_bytes = 0;
    for pack in &packs {
        stored_bytes += lab.store.size(pack).await.unwrap().unwrap();
    }
    let allowed = stored_bytes / (8 * MIB) + packs.len() as u64 + 10;
    assert!(
        gets.len() as u64 <= allowed,
        "{} GETs, at most {allowed} are promised for {stored_bytes} bytes in {} packs:\n{}",
        gets.len(),
        packs.len(),
        told(&calls)
    );
    assert!(only(&calls, Operation::Put).is_empty());
    assert!(only(&calls, Operation::Head).is_empty());
}

fn pack_puts(calls: &[Call]) -> usize {
    calls
        .iter()
        .filter(|call| call.operation == Operation::Put && call.key.contains("packs/"))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_disk_of_4_gib_costs_one_log_record_and_no_pack() {
    let lab = Lab::in_memory().await;
    // All of it allocated; 32 MiB of it different.
    let disk = TiledDisk::new(4 * GIB, |index| Tile::Data(index % 512));
    let first = back_up(&lab.open().await, Arc::new(disk.clone())).await;
    assert_eq!(first.allocated_bytes, 4 * GIB);
    assert!(first.new_bytes < 64 * MIB, "{first:?}");
    assert!(pack_puts(&lab.calls.calls()) >= 2, "data and tree");

    // Another process of the same host: nothing is left in memory of the first.
    let repository = lab.open().await;
    lab.calls.clear_calls();
    let second = back_up(&repository, Arc::new(disk.clone())).await;
    let calls = lab.calls.calls();
    assert_eq!(calls.len(), 1, "{}", told(&calls));
    assert_eq!(calls[0].operation, Operation::Put);
    assert!(calls[0].key.starts_with("log/"), "{}", told(&calls));
    assert!(calls[0].bytes < 4 * KIB, "{} bytes", calls[0].bytes);
    assert_eq!(second.mode, Mode::Incremental);
    assert_eq!(second.requests, 1);
    assert_eq!(second.read_bytes, 4 * GIB);
    assert_eq!(second.chunks, first.chunks);
    assert_eq!(
        (second.packs, second.new_bytes, second.stored_bytes),
        (0, 0, 0)
    );

    restores_at_the_promised_cost(&lab, &disk).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_restore_makes_few_requests() {
    let lab = Lab::in_memory().await;
    // Data and holes in turn, so that the disk's order is not simply that of the packs.
    let disk = TiledDisk::new(512 * MIB, |index| match index % 5 {
        0 | 3 => Tile::Hole,
        _ => Tile::Data(index),
    });
    let summary = back_up(&lab.open().await, Arc::new(disk.clone())).await;
    assert!(summary.packs >= 10, "{summary:?}");
    restores_at_the_promised_cost(&lab, &disk).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_of_the_newest_of_many_increments_makes_few_requests() {
    let lab = Lab::in_memory().await;
    let repository = lab.open().await;
    let mut disk = TiledDisk::new(128 * MIB, Tile::Data);
    back_up(&repository, Arc::new(disk.clone())).await;
    let tiles = 128 * MIB / TILE_BYTES;
    for round in 1..=12_u64 {
        // Scattered by a step that shares no divisor with the number of tiles.
        let places = (0..60).map(|number| (round * 1009 + number * 677) % tiles);
        let numbered: Vec<_> = places
            .map(|place| (place, Tile::Data(round * 1_000_000 + place)))
            .collect();
        disk = disk.with(numbered);
        let summary = back_up(&repository, Arc::new(disk.clone())).await;
        assert_eq!(summary.mode, Mode::Incremental);
        assert!(summary.new_bytes < 12 * MIB, "{summary:?}");
    }
    restores_at_the_promised_cost(&lab, &disk).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_needs_only_the_ends_of_many_packs_makes_few_requests() {
    let lab = Lab::in_memory().await;
    let repository = lab.open().await;
    // Each round fills a pack of 3 MiB, of which the next rounds leave the last tiles only: the
    // pack's key, at its front, is far from all that is needed.
    const ROUND_TILES: u64 = 48;
    const ROUNDS: u64 = 24;
    let mut disk = TiledDisk::new(256 * MIB, |_| Tile::Hole);
    for round in 0..ROUNDS {
        let kept = round * 4;
        let tiles = (0..ROUND_TILES).map(|number| {
            let place = match number < ROUND_TILES - 4 {
                true => 2048 + number,
                false => kept + number + 4 - ROUND_TILES,
            };
            (place, Tile::Data(1 + round * ROUND_TILES + number))
        });
        let tiles: Vec<_> = tiles.collect();
        disk = disk.with(tiles);
        back_up(&repository, Arc::new(disk.clone())).await;
    }
    disk = disk.with((0..ROUND_TILES).map(|number| (2048 + number, Tile::Hole)));
    back_up(&repository, Arc::new(disk.clone())).await;
    // A long log is replayed a record at a time: what stands for it is the checkpoint.
    repository.write_checkpoint().await.unwrap();
    restores_at_the_promised_cost(&lab, &disk).await;
}

/// Makes a sparse raw image with pseudo-random data in the given places.
fn sparse_image(path: &Path, size_bytes: u64, data: &[(u64, u64)]) {
    let file = File::create_new(path).unwrap();
    file.set_len(size_bytes).unwrap();
    for (offset, length) in data {
        let mut bytes = vec![0; *length as usize];
        blake3::Hasher::new()
            .update(&offset.to_le_bytes())
            .finalize_xof()
            .fill(&mut bytes);
        file.write_all_at(&bytes, *offset).unwrap();
    }
}

/// Compares two images through what each says it holds: outside of that both are zeros.
fn assert_same_data(a: &Path, b: &Path) {
    let (left, right) = (RawSource::open(a).unwrap(), RawSource::open(b).unwrap());
    assert_eq!(left.size_bytes(), right.size_bytes());
    let (mut left_reader, mut right_reader) = (left.reader().unwrap(), right.reader().unwrap());
    let all = 0..left.size_bytes();
    let mut extents = left_reader.allocation(all.clone()).unwrap();
    extents.extend(right_reader.allocation(all).unwrap());
    for extent in extents {
        let length = (extent.end - extent.start) as usize;
        let (mut x, mut y) = (vec![0; length], vec![0; length]);
        left_reader.read_at(extent.start, &mut x).unwrap();
        right_reader.read_at(extent.start, &mut y).unwrap();
        assert!(
            x == y,
            "{} and {} differ in {extent:?}",
            a.display(),
            b.display()
        );
    }
}

/// Backs a raw image of 2 TiB up twice, in seconds, restores it to a sparse file, and compares.
async fn two_tib_go_out_and_come_back(data: &[(u64, u64)]) {
    let folder = tempfile::tempdir().unwrap();
    let (image, back) = (
        folder.path().join("disk.raw"),
        folder.path().join("back.raw"),
    );
    sparse_image(&image, 2 * TIB, data);
    let data_bytes: u64 = data.iter().map(|(_, length)| length).sum();
    let lab = Lab::in_memory().await;
    let repository = lab.open().await;
    let started = Instant::now();
    let source = || Arc::new(RawSource::open(&image).unwrap());
    let summary = try_back_up(&repository, request("big", source(), None))
        .await
        .unwrap();
    assert_eq!(summary.virtual_bytes, 2 * TIB);
    // File systems allocate in units of their own; zeros in them are holes again.
    assert!(summary.read_bytes < data_bytes + 8 * MIB, "{summary:?}");
    assert_eq!(summary.new_bytes, data_bytes);
    assert!(
        summary.stored_bytes < data_bytes + data_bytes / 16 + MIB,
        "{summary:?}"
    );
    lab.calls.clear_calls();
    let again = try_back_up(&repository, request("big", source(), None))
        .await
        .unwrap();
    assert_eq!(again.requests, 1);
    assert_eq!(lab.calls.calls().len(), 1);

    let disk = newest(&repository);
    let target = create_file(&back, disk.size_bytes, false).unwrap();
    let target: Arc<dyn tidegate_agent::target::Target> = target.into();
    let restored = restore(&repository, &disk, Arc::clone(&target))
        .await
        .unwrap();
    assert_eq!(restored.written_bytes, data_bytes);
    target.finish().unwrap();
    let took = started.elapsed();
    assert!(took < Duration::from_secs(60), "took {took:?}");
    assert_same_data(&image, &back);
    let taken = std::os::unix::fs::MetadataExt::blocks(&back.metadata().unwrap()) * 512;
    assert!(taken < data_bytes + 8 * MIB, "{taken} bytes on disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tib_of_nothing_take_seconds() {
    two_tib_go_out_and_come_back(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tib_with_a_little_take_seconds() {
    // At both ends, across the edges of a span, of an inner page's reach, and in between.
    two_tib_go_out_and_come_back(&[
        (0, MIB),
        (64 * MIB - 128 * KIB, 256 * KIB),
        (GIB - 64 * KIB, 128 * KIB),
        (256 * GIB - 32 * KIB, 64 * KIB),
        (TIB + 7 * MIB, 3 * MIB),
        (2 * TIB - 192 * KIB, 192 * KIB),
    ])
    .await;
}
