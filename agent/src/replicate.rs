//! The way out: disks into the repository.
//!
//! ```text
//! cutting threads (one a core)            one thread              runtime
//! read → cut → name → known? → compress ──► seal into packs ──────► put ──► index ──┐
//!             └ leaves ───────────────────► trees of pages ───────► put             │
//!                                                                  commit ◄─────────┘
//! ```
//!
//! A source that knows what was written since the parent point is read only there; what comes of it is
//! laid over the parent's trees, or, where it is much, written into them (`way`, `lay`).
//!
//! Every stage is bounded and pushes back on the one before it; memory does not grow with the disk.
//! The point becomes visible by one log record at the very end. Before that record is appended it is
//! decided anew whether every pack that the point needs is still there: a pack that was swept
//! meanwhile sends the run back to the disks, where all else is found to be known already.

mod assemble;
mod audit;
mod claims;
mod doubt;
mod draft;
mod fit;
mod images;
mod lay;
mod mend;
mod open;
mod publish;
mod running;
mod tell;
mod way;
mod worker;

pub use audit::caught;
pub use images::{host_name, name_of, open_images, open_snapshots, remember};
pub use running::{Hypervisor, QMP_DEFINITION, RunningRequest, RunningSummary, back_up_running};

use crate::blocking::blocking;
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::live::Together;
use crate::pace::Pacer;
use crate::progress::Progress;
use crate::repository::point::as_optional_text;
use crate::repository::{Point, Repository};
use crate::retention::{self, Keep};
use crate::source::Source;
use assemble::{Assembled, Landed, assembler};
use claims::Claims;
use publish::{Published, Publisher};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use tidegate_protocol::ids::{PackId, PointId, RunId};
use tidegate_protocol::limits::{DELTA_EXTENTS_MAX, PACK_BYTES_MAX};
use tidegate_protocol::record::{Body, Consistency, Role};
use tidegate_protocol::segment::Segment;
use tokio_util::sync::CancellationToken;
use worker::{Finished, Idle, Made, Shared, Worker};

/// Frames and spans on their way to the assembling thread.
const MADE_IN_FLIGHT: usize = 16;

/// How often a run goes back to the disks because a pack it needs was swept meanwhile.
const PASSES_MAX: usize = 3;

/// Below a day, so that each daily backup begins with a listing, however long the last one took; far
/// above an hour, so that hourly backups of unchanged disks go on costing one request.
const LISTING_AGE_MAX: Duration = Duration::from_secs(20 * 60 * 60);

/// Largest size at which a pack may count as full: the last frame and the footer come on top.
const PACK_BYTES_FULL_MAX: u32 = PACK_BYTES_MAX / 2;

/// Eight full delta pages.
const LAID_EXTENTS_MAX: u64 = 8 * DELTA_EXTENTS_MAX as u64;

/// A machine to back up.
pub struct BackupRequest {
    /// The machine, as the operator names it.
    pub machine: String,
    /// Its disks.
    pub disks: Vec<DiskToBackUp>,
    /// This host's name.
    pub host: String,
    /// The moment that the disks show; none where they are not in use, and it is now.
    pub moment: Option<Moment>,
    /// How long the new point is kept.
    pub keep: Keep,
    /// Find out what would be stored, and store nothing.
    pub dry_run: bool,
    /// How to go about it.
    pub settings: BackupSettings,
}

/// What is known of the moment that a machine's disks show, before they are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// The recovery point that it will be: whoever tracks changes names them by it beforehand.
    pub point: PointId,
    /// Unix time in nanoseconds.
    pub taken_unix_ns: u64,
    /// What the disks are worth to the software on them.
    pub consistency: Consistency,
    /// The moment of a group that it is part of.
    pub together: Option<Together>,
}

impl Moment {
    /// This one, of disks that are not in use.
    pub fn now() -> Result<Self> {
        Ok(Self {
            point: PointId(clock::random()?),
            taken_unix_ns: clock::now_unix_ns(),
            consistency: Consistency::Offline,
            together: None,
        })
    }
}

/// A disk to back up.
#[derive(Clone)]
pub struct DiskToBackUp {
    /// Its name within the machine; by it the parent point's disk is found.
    pub name: String,
    /// Its bytes.
    pub source: Arc<dyn Source>,
    /// The image's format, for people.
    pub format: String,
    /// What it is to the machine.
    pub role: Role,
}

/// How a backup goes about its work.
#[derive(Debug, Clone)]
pub struct BackupSettings {
    /// Cutting threads; by default one for each core.
    pub workers: usize,
    /// zstd level, 1 to 19, or negative for faster; 1 by default.
    pub compression_level: i32,
    /// Size at which a pack is full, in bytes; 32 MiB by default.
    pub pack_bytes: u32,
    /// Packs uploaded at the same time; each takes its size in memory.
    pub uploads_in_flight: usize,
    /// Extents laid over a disk's tree beyond which the tree is written again, at most and by default
    /// 131,072: some 15 MB in the memory of whoever reads it.
    pub laid_extents_max: u64,
    /// How much of a tracked disk is compared all the same, in millionths; 1,000 by default, and never
    /// more than 256 MiB in a run.
    pub audit_ppm: u32,
    /// How old this machine's last listing of the store's packs may be; where it is older, a backup
    /// begins with one, which is a request for each thousand packs, and stores anew what is gone.
    pub listing_age_max: Duration,
    /// Bounds what is uploaded in a second; shared with other runs where they share a rate.
    pub pacer: Option<Arc<Pacer>>,
}

impl Default for BackupSettings {
    fn default() -> Self {
        Self {
            workers: thread::available_parallelism().map_or(2, usize::from),
            compression_level: 1,
            pack_bytes: 32 << 20,
            uploads_in_flight: 3,
            laid_extents_max: LAID_EXTENTS_MAX,
            audit_ppm: 1000,
            listing_age_max: LISTING_AGE_MAX,
            pacer: None,
        }
    }
}

/// Whether there was a point to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// There was none.
    Full,
    /// Only what differs from the parent point was stored.
    Incremental,
}

/// What a backup came to.
#[derive(Debug, Clone, Serialize)]
pub struct BackupSummary {
    /// The new recovery point; none on a dry run.
    #[serde(serialize_with = "as_optional_text")]
    pub point: Option<PointId>,
    /// The machine.
    pub machine: String,
    /// Sum of the disks' sizes, in bytes.
    pub virtual_bytes: u64,
    /// Bytes that are not holes.
    pub allocated_bytes: u64,
    /// Bytes read from the disks.
    pub read_bytes: u64,
    /// Bytes of chunks that the repository did not have.
    pub new_bytes: u64,
    /// Bytes uploaded: packs and index segments.
    pub stored_bytes: u64,
    /// Chunks seen.
    pub chunks: u64,
    /// Packs uploaded.
    pub packs: u64,
    /// Requests sent to the store.
    pub requests: u64,
    /// How long it took.
    pub seconds: f64,
    /// Full or incremental.
    pub mode: Mode,
    /// Why that mode, and how changes were found.
    pub reason: String,
    /// How changes of each disk were found.
    pub tracking: Vec<DiskTracking>,
}

/// How changes of a disk were found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskTracking {
    /// The disk.
    pub disk: String,
    /// True where its source knows of changes, or should.
    pub trackable: bool,
    /// True where only what its source named was read.
    pub tracked: bool,
    /// For people: by what, or why not.
    pub reason: String,
    /// Blocks of 4 KiB that the source called unchanged, and that were compared all the same.
    pub audited_blocks: u64,
    /// Chunks among them that had changed: more than none is an alarm.
    pub false_chunks: u64,
}

/// What the cutting threads count.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    allocated_bytes: u64,
    read_bytes: u64,
    new_bytes: u64,
    chunks: u64,
}

/// Backs a machine up.
///
/// # Errors
/// [`Kind::Interrupted`] after `stop`: what had landed by then is found by the next run.
pub async fn backup(
    repository: &Arc<Repository>,
    request: BackupRequest,
    progress: Arc<Progress>,
    stop: CancellationToken,
) -> Result<BackupSummary> {
    fit::check(&request)?;
    let run = RunId(clock::random()?);
    let mut published = Published::default();
    let done = passes(repository, &request, run, &progress, &stop, &mut published).await;
    if done.is_err() {
        published.abandon(repository, run, &request.machine).await;
    }
    done
}

/// Goes over the disks until there is a point, or an error.
async fn passes(
    repository: &Arc<Repository>,
    request: &BackupRequest,
    run_id: RunId,
    progress: &Arc<Progress>,
    stop: &CancellationToken,
    published: &mut Published,
) -> Result<BackupSummary> {
    let started = std::time::Instant::now();
    let requests_before = repository.store().requests().total();
    let moment = match &request.moment {
        Some(moment) => moment.clone(),
        None => Moment::now()?,
    };
    let virtual_bytes: u64 = request
        .disks
        .iter()
        .map(|disk| disk.source.size_bytes())
        .sum();
    progress.add_total(virtual_bytes);
    if !request.dry_run {
        // What is gone must not be referred to: its chunks count as new from the first one on.
        repository.index_for_backup().await?;
        // Segments that could not be read just now: what they named is looked for next.
        repository.note_suspects("backup").await;
        repository
            .find_lost_packs(request.settings.listing_age_max)
            .await?;
    }
    let mut total = Totals::default();
    let mut dry_bytes = 0;
    let mut passes = 0;
    loop {
        passes += 1;
        let parent = open::parent(repository, request)?;
        let outcome = run(
            repository,
            request,
            run_id,
            parent.as_ref(),
            progress,
            stop,
            published,
        )
        .await?;
        total.read_bytes += outcome.totals.read_bytes;
        total.new_bytes += outcome.totals.new_bytes;
        total.allocated_bytes = outcome.totals.allocated_bytes;
        total.chunks = outcome.totals.chunks;
        if request.dry_run {
            dry_bytes += outcome.assembled.stored_bytes;
        }
        let mut summary = BackupSummary {
            point: None,
            machine: request.machine.clone(),
            virtual_bytes,
            allocated_bytes: total.allocated_bytes,
            read_bytes: total.read_bytes,
            new_bytes: total.new_bytes,
            stored_bytes: published.stored_bytes + dry_bytes,
            chunks: total.chunks,
            packs: published.packs,
            requests: 0,
            seconds: 0.0,
            mode: match parent {
                Some(_) => Mode::Incremental,
                None => Mode::Full,
            },
            reason: tell::reason(request, parent.as_ref(), &outcome),
            tracking: tell::tracking_of_disks(request, &outcome),
        };
        if !request.dry_run {
            check_unwritten(request).await?;
            repository.note_suspects("backup").await;
            let body = tell::point_record(
                &moment,
                request,
                parent.as_ref(),
                &outcome,
                published,
                &summary,
            );
            let committed = repository
                .append(|repository| {
                    let catalogue = repository.catalogue();
                    let lost = catalogue.lost_packs()?;
                    let taken_over_is_lost = match outcome.builds_on {
                        // What another process has forgotten meanwhile is not known to be sound.
                        Some(base) => {
                            !catalogue.has_references(base)? || catalogue.refers_to_lost(base)?
                        }
                        None => false,
                    };
                    if outcome.referenced.is_disjoint(&lost) && !taken_over_is_lost {
                        // Which points the machine has is known here only, at the very head.
                        let others = catalogue.kept(Some(&request.machine))?;
                        let mut body = body.clone();
                        body.keep_until_unix_ns = request.keep.until(body.taken_unix_ns, &others);
                        let newest = catalogue.newest_record_unix_ns()?;
                        if body.keep_until_unix_ns != 0
                            && retention::is_far_behind(clock::now_unix_ns(), newest)
                        {
                            tracing::error!(
                                machine = request.machine,
                                "this host's clock is more than a month behind the repository's newest point: the new point is kept without an end"
                            );
                            body.keep_until_unix_ns = 0;
                        }
                        return Ok(Body::PointCommitted(body));
                    }
                    Err(Error::new(
                        Kind::Conflict,
                        format!(
                            "{}: packs that the new point needs were swept meanwhile",
                            request.machine
                        ),
                    )
                    .advise("run the backup again"))
                })
                .await;
            match committed {
                Ok(_) => {
                    summary.point = Some(moment.point);
                    way::remember(repository, &request.machine, moment.point, &outcome);
                    published.settle(repository).await;
                }
                Err(error) if error.kind() == Kind::Conflict && passes < PASSES_MAX => {
                    tracing::warn!(
                        error = error.chain(),
                        "reading the disks again for what is missing"
                    );
                    continue;
                }
                Err(error) => return Err(error),
            }
        }
        summary.requests = repository.store().requests().total() - requests_before;
        summary.seconds = started.elapsed().as_secs_f64();
        return Ok(summary);
    }
}

/// What was read of the disks is one moment of each.
async fn check_unwritten(request: &BackupRequest) -> Result<()> {
    for disk in &request.disks {
        let source = Arc::clone(&disk.source);
        blocking(move || source.check_unwritten()).await?;
    }
    Ok(())
}

/// One pass over the disks.
struct Outcome {
    totals: Totals,
    /// Every pack that the new point refers to, also those that this run has written.
    referenced: HashSet<PackId>,
    assembled: Assembled,
    run: RunId,
    parent_damaged: bool,
    /// The point of which unseen parts were taken over, with all packs that it refers to.
    builds_on: Option<PointId>,
    tracking: Vec<DiskTracking>,
}

/// What it published is added to `published`, also where it fails.
async fn run(
    repository: &Arc<Repository>,
    request: &BackupRequest,
    run: RunId,
    parent: Option<&Point>,
    progress: &Arc<Progress>,
    stop: &CancellationToken,
    published: &mut Published,
) -> Result<Outcome> {
    let index = repository.index_for_backup().await?;
    let claims = Arc::new(Claims::default());
    let landed: Arc<Landed> = Arc::default();
    let halt = stop.child_token();
    let (disks, tracking) = open::open_disks(repository, request, parent).await?;
    let builds_on = tracking.iter().any(|disk| disk.tracked);
    let builds_on = parent.filter(|_| builds_on).map(|point| point.id);
    let shared = Shared {
        repository: Arc::clone(repository),
        disks,
        index: Arc::clone(&index),
        claims,
        settings: request.settings.clone(),
        progress: Arc::clone(progress),
        stop: halt.clone(),
        runtime: tokio::runtime::Handle::current(),
        next_span: AtomicU64::new(0),
    };
    let (to_publish, packs) = tokio::sync::mpsc::channel(1);
    let (publisher, to_publish) = if request.dry_run {
        (None, None)
    } else {
        let mut publisher = Publisher {
            repository: Arc::clone(repository),
            index,
            landed: Arc::clone(&landed),
            progress: Arc::clone(progress),
            run,
            machine: request.machine.clone(),
            uploads_in_flight: request.settings.uploads_in_flight.max(1),
            pacer: request.settings.pacer.clone(),
            halt: halt.clone(),
            stop: stop.clone(),
            segment: Segment::default(),
            published: std::mem::take(published),
            mends: false,
        };
        // Before the first chunk is looked up: what is no longer there must not be referred to.
        if let Err(error) = publisher.mend().await {
            *published = publisher.published;
            return Err(error);
        }
        // Orphans that are damaged must not be referred to either.
        repository.note_suspects("backup").await;
        (Some(tokio::spawn(publisher.run(packs))), Some(to_publish))
    };
    let cut = blocking(move || {
        let done = run_threads(&shared, to_publish, landed);
        let damaged = shared
            .disks
            .iter()
            .filter_map(|disk| disk.parent.as_ref())
            .any(|parent| parent.damaged.load(Ordering::Relaxed));
        done.map(|(finished, assembled)| (finished, assembled, damaged))
    })
    .await;
    let outcome = match publisher {
        None => Ok(()),
        Some(publisher) => match publisher.await {
            Ok((all, outcome)) => {
                *published = all;
                outcome
            }
            Err(error) => {
                Err(Error::new(Kind::Bug, "the publishing task broke down").caused_by(error))
            }
        },
    };
    // What the store said comes first: the threads only noticed that nobody listens any more.
    outcome?;
    if stop.is_cancelled() {
        return Err(Error::new(
            Kind::Interrupted,
            format!("the backup of {} was stopped as asked", request.machine),
        )
        .advise("run it again: it goes on from what has landed"));
    }
    let (finished, assembled, parent_damaged) = cut?;
    let mut referenced = finished.referenced;
    referenced.extend(&assembled.referenced);
    Ok(Outcome {
        totals: finished.totals,
        referenced,
        assembled,
        run,
        parent_damaged,
        builds_on,
        tracking,
    })
}

fn run_threads(
    shared: &Shared,
    to_publish: Option<tokio::sync::mpsc::Sender<publish::ToPublish>>,
    landed: Arc<Landed>,
) -> Result<(Finished, Assembled)> {
    let (made, taken) = mpsc::sync_channel::<Made>(MADE_IN_FLIGHT);
    let assembler = assembler(shared, to_publish, landed)?;
    let (to_idle, idle) = Idle::new();
    let idle = &idle;
    thread::scope(|scope| {
        let workers: Vec<_> = (0..shared.settings.workers.max(1))
            .map(|_| {
                let (made, to_idle) = (made.clone(), to_idle.clone());
                scope.spawn(move || {
                    let worker = Worker::new(shared, made, idle, to_idle);
                    let finished = worker.and_then(Worker::run);
                    if finished.is_err() {
                        shared.stop.cancel();
                    }
                    finished
                })
            })
            .collect();
        drop((made, to_idle));
        let assembled = assembler.run(&taken);
        // Workers that still want to send find nobody there.
        drop(taken);
        if assembled.is_err() {
            shared.stop.cancel();
        }
        let mut sum = Finished::default();
        let mut failure = None;
        for worker in workers {
            match worker.join() {
                Ok(Ok(finished)) => sum.add(finished),
                Ok(Err(error)) => failure = Some(worse(failure, error)),
                Err(_) => failure = Some(Error::new(Kind::Bug, "a cutting thread broke down")),
            }
        }
        match (assembled, failure) {
            (Err(error), failure) => Err(worse(failure, error)),
            (_, Some(error)) => Err(error),
            (Ok(assembled), None) => Ok((sum, assembled)),
        }
    })
}

/// Of two errors of one run, the one that is not merely the echo of the other.
fn worse(before: Option<Error>, now: Error) -> Error {
    match before {
        Some(before) if before.kind() != Kind::Interrupted => before,
        _ => now,
    }
}

impl Finished {
    fn add(&mut self, other: Self) {
        self.totals.allocated_bytes += other.totals.allocated_bytes;
        self.totals.read_bytes += other.totals.read_bytes;
        self.totals.new_bytes += other.totals.new_bytes;
        self.totals.chunks += other.totals.chunks;
        self.referenced.extend(other.referenced);
    }
}
