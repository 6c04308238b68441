//! Whether points would restore: every page of their trees is read, every pack that they need must
//! be there, and data is opened and hashed in full or by sample.
//!
//! The repository is opened anew for it, with an empty cache: the log is replayed and the trees are
//! fetched as on a machine that has lost everything, since what this machine has cached proves
//! nothing about the bucket.
//!
//! What has to be looked at is gathered in a temporary SQLite file, so that memory does not grow
//! with the points and nothing is fetched twice. Damage is mapped back to the machines, points and
//! disk ranges that it touches by walking the trees once more.

mod found;
mod packs;
mod segments;
mod worklist;

use super::restore::{content_namer, stop_here};
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;
use crate::repository::fetch::{FetchSettings, Sink, Want, by_want};
use crate::repository::tree::TreeReader;
use crate::repository::{Point, Repository};
use found::Found;
use serde::Serialize;
use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tidegate_protocol::ids::{ChunkId, PackId};
use tidegate_protocol::limits::{FAN_OUT, LEAF_BYTES};
use tokio_util::sync::CancellationToken;
use worklist::Worklist;

/// Chunks checked in one go.
const BATCH: u32 = 100_000;

/// How a verify goes about its work.
#[derive(Debug, Clone)]
pub struct VerifySettings {
    /// Share of the frames that is fetched and opened, above 0 up to 1; all by default.
    pub sample: Option<f64>,
    /// Chooses the sample.
    pub seed: u64,
    /// Reads in flight.
    pub fetches_in_flight: usize,
}

impl Default for VerifySettings {
    fn default() -> Self {
        Self {
            sample: None,
            seed: 0,
            fetches_in_flight: 4,
        }
    }
}

/// What a verify found.
#[derive(Debug, Clone, Serialize)]
pub struct VerifyReport {
    /// Points looked at.
    pub points: u64,
    /// Leaves read.
    pub leaves: u64,
    /// Data packs that the points need.
    pub packs: u64,
    /// Index segments read: all that the log names, but for those noted as damaged, where all points are
    /// looked at; else none.
    pub segments: u64,
    /// Different chunks that the points need.
    pub chunks: u64,
    /// Chunks opened and hashed.
    pub checked_chunks: u64,
    /// Their bytes.
    pub checked_bytes: u64,
    /// Bytes fetched.
    pub fetched_bytes: u64,
    /// True when all data was checked: not for a sample, and not without a restore key.
    pub complete: bool,
    /// Why it was not complete.
    pub remark: Option<String>,
    /// What is wrong, an object each.
    pub damages: Vec<Damage>,
    /// How long it took.
    pub seconds: f64,
}

/// A damaged object and what it touches.
#[derive(Debug, Clone, Serialize)]
pub struct Damage {
    /// The object's key in the repository.
    pub object: String,
    /// What was found.
    pub found: String,
    /// What needs it.
    pub touches: Vec<Touched>,
}

/// A run of a disk that cannot be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Touched {
    /// The machine.
    pub machine: String,
    /// The point's id.
    pub point: String,
    /// The disk.
    pub disk: String,
    /// Where it begins, in bytes.
    pub start: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// Verifies points.
pub async fn verify(
    repository: &Arc<Repository>,
    points: &[Point],
    settings: &VerifySettings,
    progress: Arc<Progress>,
    stop: CancellationToken,
) -> Result<VerifyReport> {
    let started = std::time::Instant::now();
    let may_read = content_namer(repository).is_ok();
    let mut report = VerifyReport {
        points: points.len() as u64,
        leaves: 0,
        packs: 0,
        segments: 0,
        chunks: 0,
        checked_chunks: 0,
        checked_bytes: 0,
        fetched_bytes: 0,
        complete: may_read && settings.sample.is_none(),
        remark: match (may_read, settings.sample) {
            (false, _) => Some("structure only: reading data needs a restore key".to_owned()),
            (true, Some(share)) => Some(format!("a sample of {} % of the data", share * 100.0)),
            (true, None) => None,
        },
        damages: Vec::new(),
        seconds: 0.0,
    };
    let mut damage = Found::default();
    let list = Arc::new(Worklist::new()?);
    let known_here = repository;
    let all_points = repository.points(None)?.len() == points.len();
    let folder = tempfile::tempdir()
        .map_err(|error| Error::io("cannot make a temporary folder for a verify", error))?;
    let repository = &Arc::new(repository.open_anew(folder.path()).await?);
    let points = &damage.points_of(known_here, repository, points).await?;
    for point in points {
        for disk in point.contents() {
            stop_here(&stop)?;
            report.leaves += gather(repository, point, disk, &list, &mut damage, &stop).await?;
        }
    }
    let listed = Arc::clone(&list);
    let (packs, chunks) = blocking(move || Ok((listed.packs()?, listed.count()?))).await?;
    report.packs = packs.len() as u64;
    report.chunks = chunks;
    packs::judge(repository, packs, &list, &stop, &mut damage).await?;
    if may_read {
        check_data(
            repository,
            &list,
            settings,
            &progress,
            &stop,
            &mut damage,
            &mut report,
        )
        .await?;
    }
    if all_points {
        report.segments = segments::check(repository, &list, &stop, &mut damage).await?;
    }
    report.damages = damage.into_damages(repository, points, &stop).await?;
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// Reads a disk's tree and notes what it needs. Returns the number of leaves.
async fn gather(
    repository: &Arc<Repository>,
    point: &Point,
    disk: &crate::repository::PointDisk,
    list: &Arc<Worklist>,
    damage: &mut Found,
    stop: &CancellationToken,
) -> Result<u64> {
    let tree = TreeReader::new(repository, disk);
    let touched = |start: u64, length: u64| Touched {
        machine: point.machine.clone(),
        point: point.id.to_string(),
        disk: disk.name.clone(),
        start,
        length: length.min(disk.size_bytes.saturating_sub(start)),
    };
    let mut leaves = 0;
    for group in 0..tree.groups() {
        stop_here(stop)?;
        let start = group * FAN_OUT as u64 * LEAF_BYTES;
        let found = match tree.group(group).await {
            Ok(found) => found,
            Err(error) => {
                let pack = tree.pack_above(group).await;
                damage.page(error, pack, touched(start, FAN_OUT as u64 * LEAF_BYTES))?;
                continue;
            }
        };
        let mut chunks = Vec::new();
        for leaf_ref in found {
            match tree.read_leaf(&leaf_ref).await {
                Ok(leaf) => {
                    leaves += 1;
                    chunks.extend(leaf.extents.iter().filter_map(|extent| {
                        extent.slice.map(|slice| (slice.chunk, slice.location))
                    }));
                }
                Err(error) => {
                    let touched = touched(leaf_ref.range().start, LEAF_BYTES);
                    damage.page(error, leaf_ref.pack(), touched)?;
                }
            }
        }
        let list = Arc::clone(list);
        blocking(move || list.add(&chunks)).await?;
    }
    Ok(leaves)
}

async fn check_data(
    repository: &Arc<Repository>,
    list: &Arc<Worklist>,
    settings: &VerifySettings,
    progress: &Arc<Progress>,
    stop: &CancellationToken,
    damage: &mut Found,
    report: &mut VerifyReport,
) -> Result<()> {
    let chosen = Sample::new(settings);
    let gone: HashSet<PackId> = damage.packs.keys().copied().collect();
    let listed = Arc::clone(list);
    progress.add_total(blocking(move || listed.bytes()).await?);
    let checked = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
    let passed: Arc<Mutex<HashSet<ChunkId>>> = Arc::default();
    let sink: Arc<Sink> = {
        let (checked, passed, progress) = (
            Arc::clone(&checked),
            Arc::clone(&passed),
            Arc::clone(progress),
        );
        Arc::new(move |wants: &[Want], bytes: &[u8]| {
            // What is fetched again to narrow damage down counts once.
            let mut passed = passed.lock().unwrap_or_else(PoisonError::into_inner);
            for (want, bytes) in by_want(wants, bytes) {
                if passed.insert(want.chunk) {
                    checked.0.fetch_add(1, Ordering::Relaxed);
                    checked.1.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    progress.add_done(bytes.len() as u64);
                }
            }
            Ok(())
        })
    };
    let fetch = FetchSettings {
        reads_in_flight: settings.fetches_in_flight,
    };
    let mut after = None;
    loop {
        stop_here(stop)?;
        let from = Arc::clone(list);
        let batch = blocking(move || from.batch(after, BATCH)).await?;
        let Some(last) = batch.last() else {
            return Ok(());
        };
        after = Some(last.0);
        let wants: Vec<Want> = batch
            .into_iter()
            .map(|(_, want)| want)
            .filter(|want| !gone.contains(&want.location.pack) && chosen.takes(want))
            .collect();
        match repository.fetch(wants.clone(), fetch, &sink, stop).await {
            Ok(fetched) => {
                report.fetched_bytes += fetched;
                progress.add_stored(fetched);
            }
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Missing) => {
                // Something in this batch is damaged: find out what, a pack and then a frame at a time.
                for pack in wants.chunk_by(|a, b| a.location.pack == b.location.pack) {
                    narrow_down(repository, pack, fetch, &sink, stop, damage, report).await?;
                }
            }
            Err(error) => return Err(error),
        }
        report.checked_chunks = checked.0.load(Ordering::Relaxed);
        report.checked_bytes = checked.1.load(Ordering::Relaxed);
        passed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}

async fn narrow_down(
    repository: &Arc<Repository>,
    pack: &[Want],
    fetch: FetchSettings,
    sink: &Arc<Sink>,
    stop: &CancellationToken,
    damage: &mut Found,
    report: &mut VerifyReport,
) -> Result<()> {
    match repository.fetch(pack.to_vec(), fetch, sink, stop).await {
        Ok(fetched) => {
            report.fetched_bytes += fetched;
            return Ok(());
        }
        Err(error) if !matches!(error.kind(), Kind::Corrupt | Kind::Missing) => return Err(error),
        Err(_) => {}
    }
    for frame in pack.chunk_by(|a, b| a.location.frame_offset == b.location.frame_offset) {
        match repository.fetch(frame.to_vec(), fetch, sink, stop).await {
            Ok(fetched) => report.fetched_bytes += fetched,
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Missing) => {
                // Of one frame some chunks may have been stored anew, and others not.
                for want in frame {
                    match repository.fetch(vec![*want], fetch, sink, stop).await {
                        Ok(fetched) => report.fetched_bytes += fetched,
                        Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Missing) => {
                            damage.chunks.insert(want.chunk, want.location.pack);
                            damage
                                .packs
                                .entry(want.location.pack)
                                .or_insert_with(|| error.chain());
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Which frames a sample takes: by a hash of pack and place, so that a seed always takes the same.
struct Sample {
    below: u64,
    seed: u64,
}

impl Sample {
    fn new(settings: &VerifySettings) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share between 0 and 1 of the range of u64; float to int saturates"
        )]
        let below = match settings.sample {
            Some(share) => (share.clamp(0.0, 1.0) * u64::MAX as f64) as u64,
            None => u64::MAX,
        };
        Self {
            below,
            seed: settings.seed,
        }
    }

    fn takes(&self, want: &Want) -> bool {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(&want.location.pack.0);
        hasher.update(&want.location.frame_offset.to_le_bytes());
        let mut bytes = [0; 8];
        hasher.finalize_xof().fill(&mut bytes);
        u64::from_le_bytes(bytes) <= self.below
    }
}
