//! Restoring a disk onto a target.

use super::wants::{Stretch, Walk};
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;
use crate::repository::fetch::{FetchSettings, Sink, Want};
use crate::repository::{PointDisk, Repository, local_denied};
use crate::target::Target;
use serde::Serialize;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tidegate_protocol::keys::ChunkNamer;
use tokio_util::sync::CancellationToken;

/// Bytes of a target that are read at a time to see whether they are zero.
const ZERO_WINDOW_BYTES: u64 = 4 << 20;

/// Wants compared with the target in one go.
const COMPARE_BATCH: usize = 1024;

/// How a restore goes about its work.
#[derive(Debug, Clone)]
pub struct RestoreSettings {
    /// Reads in flight; each takes up to 16 MiB of memory, and opens and writes what it brings.
    pub fetches_in_flight: usize,
    /// Read the target back at the end and compare all of it.
    pub verify: bool,
}

impl Default for RestoreSettings {
    fn default() -> Self {
        Self {
            fetches_in_flight: 4,
            verify: false,
        }
    }
}

/// What may be assumed of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestoreMode {
    /// Nothing of it is worth keeping.
    New,
    /// It may hold much of the disk already: read it, fetch only what differs, write zeros where
    /// zeros belong.
    InPlace,
}

/// What a restore came to.
#[derive(Debug, Clone, Serialize)]
pub struct RestoreSummary {
    /// The disk.
    pub disk: String,
    /// Its size in bytes.
    pub virtual_bytes: u64,
    /// Bytes of it that are not holes.
    pub data_bytes: u64,
    /// Bytes fetched from the store.
    pub fetched_bytes: u64,
    /// Bytes written to the target.
    pub written_bytes: u64,
    /// Bytes of the target that were made zero.
    pub zeroed_bytes: u64,
    /// Bytes that the target held already.
    pub kept_bytes: u64,
    /// Requests sent to the store.
    pub requests: u64,
    /// How long it took.
    pub seconds: f64,
}

/// What a restore onto a new target would do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RestorePlan {
    /// The disk's size in bytes.
    pub virtual_bytes: u64,
    /// Bytes of it that are not holes.
    pub data_bytes: u64,
    /// Bytes that would be fetched.
    pub fetched_bytes: u64,
    /// Packs that would be read.
    pub packs: u64,
    /// Ranged reads of them.
    pub requests: u64,
}

/// Restores a disk, and notes in the log which packs it found missing or damaged, also where the disk
/// could be restored in spite of that. The target is complete and checked when this returns, but not yet durable:
/// see [`Target::finish`].
///
/// # Errors
/// [`Kind::Interrupted`] after `stop`: the target then holds part of the disk, and a restore in
/// place goes on from there.
pub async fn restore_disk(
    repository: &Arc<Repository>,
    disk: &PointDisk,
    target: Arc<dyn Target>,
    mode: RestoreMode,
    settings: &RestoreSettings,
    progress: Arc<Progress>,
    stop: CancellationToken,
) -> Result<RestoreSummary> {
    let done = restore(repository, disk, target, mode, settings, progress, &stop).await;
    if !stop.is_cancelled() {
        repository.note_suspects("restore").await;
    }
    done
}

async fn restore(
    repository: &Arc<Repository>,
    disk: &PointDisk,
    target: Arc<dyn Target>,
    mode: RestoreMode,
    settings: &RestoreSettings,
    progress: Arc<Progress>,
    stop: &CancellationToken,
) -> Result<RestoreSummary> {
    let started = std::time::Instant::now();
    let requests_before = repository.store().requests().total();
    let namer = content_namer(repository)?;
    progress.add_total(disk.size_bytes);
    let counts = Arc::new(Counts::default());
    let sink: Arc<Sink> = {
        let (target, counts, progress) = (
            Arc::clone(&target),
            Arc::clone(&counts),
            Arc::clone(&progress),
        );
        Arc::new(move |wants: &[Want], bytes: &[u8]| {
            let Some(first) = wants.first() else {
                return Ok(());
            };
            target.write_at(first.disk_offset, bytes)?;
            counts
                .written
                .fetch_add(bytes.len() as u64, Ordering::Relaxed);
            progress.add_done(bytes.len() as u64);
            Ok(())
        })
    };
    let fetch = FetchSettings {
        reads_in_flight: settings.fetches_in_flight,
    };
    let mut summary = RestoreSummary {
        disk: disk.name.clone(),
        virtual_bytes: disk.size_bytes,
        data_bytes: 0,
        fetched_bytes: 0,
        written_bytes: 0,
        zeroed_bytes: 0,
        kept_bytes: 0,
        requests: 0,
        seconds: 0.0,
    };
    let mut walk = Walk::new(repository, disk);
    while let Some(stretch) = walk.next().await? {
        let Stretch {
            mut wants, holes, ..
        } = stretch;
        summary.data_bytes += wants.iter().map(|want| u64::from(want.length)).sum::<u64>();
        summary.zeroed_bytes += zero(&target, holes, mode, &progress, stop).await?;
        if mode == RestoreMode::InPlace {
            let (missing, kept) = compare(&target, wants, &namer, &progress, stop).await?;
            wants = missing;
            summary.kept_bytes += kept;
        }
        let ranges = ranges_of(&wants);
        let reserving = Arc::clone(&target);
        blocking(move || reserving.reserve(&ranges)).await?;
        let fetched = repository.fetch(wants, fetch, &sink, stop).await?;
        summary.fetched_bytes += fetched;
        progress.add_stored(fetched);
    }
    summary.written_bytes = counts.written.load(Ordering::Relaxed);
    if settings.verify {
        read_back(repository, disk, &target, &namer, stop).await?;
    }
    summary.requests = repository.store().requests().total() - requests_before;
    summary.seconds = started.elapsed().as_secs_f64();
    Ok(summary)
}

/// What a restore onto a new target would do.
pub async fn restore_plan(repository: &Arc<Repository>, disk: &PointDisk) -> Result<RestorePlan> {
    let mut plan = RestorePlan {
        virtual_bytes: disk.size_bytes,
        ..RestorePlan::default()
    };
    let mut packs = HashSet::new();
    let mut walk = Walk::new(repository, disk);
    while let Some(mut stretch) = walk.next().await? {
        plan.data_bytes += stretch
            .wants
            .iter()
            .map(|want| u64::from(want.length))
            .sum::<u64>();
        for haul in repository.plan_hauls(&mut stretch.wants).await? {
            plan.fetched_bytes += haul.range.end - haul.range.start;
            plan.requests += 1;
            packs.extend(haul.reads.iter().map(|(_, read)| read.pack));
        }
    }
    plan.packs = packs.len() as u64;
    Ok(plan)
}

/// Where wants go on the disk: sorted, what is adjacent joined.
fn ranges_of(wants: &[Want]) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = wants
        .iter()
        .map(|want| want.disk_offset..want.disk_offset + u64::from(want.length))
        .collect();
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, before| {
        let adjacent = before.end == next.start;
        if adjacent {
            before.end = next.end;
        }
        adjacent
    });
    ranges
}

#[derive(Default)]
struct Counts {
    written: AtomicU64,
}

/// What names chunks, if the key may read content at all.
pub(super) fn content_namer(repository: &Repository) -> Result<ChunkNamer> {
    let keys = repository.keys();
    keys.data_private().map_err(|error| local_denied(&error))?;
    keys.chunk_namer().map_err(|error| local_denied(&error))
}

/// Makes holes read as zeros. Returns the bytes for which something had to be done.
async fn zero(
    target: &Arc<dyn Target>,
    holes: Vec<Range<u64>>,
    mode: RestoreMode,
    progress: &Arc<Progress>,
    stop: &CancellationToken,
) -> Result<u64> {
    let (target, progress, stop) = (Arc::clone(target), Arc::clone(progress), stop.clone());
    blocking(move || {
        let mut zeroed = 0;
        for hole in holes {
            stop_here(&stop)?;
            let length = hole.end - hole.start;
            if mode == RestoreMode::InPlace {
                zeroed += zero_what_is_not(&*target, hole)?;
            } else if !target.reads_zero() {
                target.write_zeros(hole)?;
                zeroed += length;
            }
            progress.add_done(length);
        }
        Ok(zeroed)
    })
    .await
}

/// Zeros are written only where there are none: a sparse target stays sparse, and untouched.
fn zero_what_is_not(target: &dyn Target, hole: Range<u64>) -> Result<u64> {
    let mut zeroed = 0;
    for data in target.allocation(hole)? {
        let mut at = data.start;
        let mut buffer = Vec::new();
        while at < data.end {
            let end = (at + ZERO_WINDOW_BYTES).min(data.end);
            buffer.resize(usize::try_from(end - at).unwrap_or(0), 0);
            target.read_at(at, &mut buffer)?;
            if buffer.iter().any(|byte| *byte != 0) {
                target.write_zeros(at..end)?;
                zeroed += end - at;
            }
            at = end;
        }
    }
    Ok(zeroed)
}

/// Reads the target and keeps what is right. Parts of chunks cannot be judged without the rest of
/// the chunk: they are fetched.
async fn compare(
    target: &Arc<dyn Target>,
    wants: Vec<Want>,
    namer: &ChunkNamer,
    progress: &Arc<Progress>,
    stop: &CancellationToken,
) -> Result<(Vec<Want>, u64)> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let mut missing = Vec::new();
    let mut kept = 0;
    for batch in wants.chunks(COMPARE_BATCH * threads) {
        let mut tasks = Vec::new();
        for part in batch.chunks(COMPARE_BATCH) {
            let (target, namer, part) = (Arc::clone(target), namer.clone(), part.to_vec());
            tasks.push(tokio::spawn(blocking(move || {
                differing(&*target, part, &namer)
            })));
        }
        for task in tasks {
            let (part, bytes) = task.await.map_err(|error| {
                Error::new(Kind::Bug, "a comparing task broke down").caused_by(error)
            })??;
            missing.extend(part);
            kept += bytes;
            progress.add_kept(bytes);
            progress.add_done(bytes);
        }
        stop_here(stop)?;
    }
    Ok((missing, kept))
}

fn differing(
    target: &dyn Target,
    wants: Vec<Want>,
    namer: &ChunkNamer,
) -> Result<(Vec<Want>, u64)> {
    let mut kept = 0;
    let mut missing = Vec::new();
    let mut buffer = Vec::new();
    for want in wants {
        if want.offset == 0 && want.length == want.location.length {
            buffer.resize(want.length as usize, 0);
            target.read_at(want.disk_offset, &mut buffer)?;
            if namer.name(&buffer) == want.chunk {
                kept += u64::from(want.length);
                continue;
            }
        }
        missing.push(want);
    }
    Ok((missing, kept))
}

/// Reads the whole target back and compares it with the point.
async fn read_back(
    repository: &Arc<Repository>,
    disk: &PointDisk,
    target: &Arc<dyn Target>,
    namer: &ChunkNamer,
    stop: &CancellationToken,
) -> Result<()> {
    let idle = Arc::new(Progress::default());
    let mismatch = |at: u64| {
        Err(Error::new(
            Kind::Corrupt,
            format!(
                "{} does not hold at {at} what was written there",
                target.describe()
            ),
        )
        .advise("the target's storage is not reliable: restore to another one"))
    };
    let mut walk = Walk::new(repository, disk);
    while let Some(stretch) = walk.next().await? {
        for hole in stretch.holes {
            let (start, target) = (hole.start, Arc::clone(target));
            if blocking(move || holds_data(&*target, hole)).await? {
                return mismatch(start);
            }
        }
        // Parts of chunks are compared with their content, fetched once more.
        let (differing, _) = compare(target, stretch.wants, namer, &idle, stop).await?;
        let wrong = Arc::new(AtomicU64::new(u64::MAX));
        let sink: Arc<Sink> = {
            let (target, wrong) = (Arc::clone(target), Arc::clone(&wrong));
            Arc::new(move |wants: &[Want], bytes: &[u8]| {
                let mut there = vec![0; bytes.len()];
                if let Some(first) = wants.first() {
                    target.read_at(first.disk_offset, &mut there)?;
                    if there != bytes {
                        wrong.fetch_min(first.disk_offset, Ordering::Relaxed);
                    }
                }
                Ok(())
            })
        };
        let settings = FetchSettings { reads_in_flight: 2 };
        repository.fetch(differing, settings, &sink, stop).await?;
        match wrong.load(Ordering::Relaxed) {
            u64::MAX => {}
            at => return mismatch(at),
        }
    }
    Ok(())
}

fn holds_data(target: &dyn Target, hole: Range<u64>) -> Result<bool> {
    let mut buffer = Vec::new();
    for data in target.allocation(hole)? {
        let mut at = data.start;
        while at < data.end {
            let end = (at + ZERO_WINDOW_BYTES).min(data.end);
            buffer.resize(usize::try_from(end - at).unwrap_or(0), 0);
            target.read_at(at, &mut buffer)?;
            if buffer.iter().any(|byte| *byte != 0) {
                return Ok(true);
            }
            at = end;
        }
    }
    Ok(false)
}

pub(super) fn stop_here(stop: &CancellationToken) -> Result<()> {
    if stop.is_cancelled() {
        return Err(Error::new(Kind::Interrupted, "stopped as asked"));
    }
    Ok(())
}
