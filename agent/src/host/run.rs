//! One run: hooks, the engine, and what came of it.
//!
//! Not a planner and no history: it is told what to back up, and reports. The invariants: the `post`
//! hook runs whenever the `pre` hook was tried, also after a failure or a stop, so that what was
//! frozen is thawed; a point that was made is never called a failure because of a hook.

mod hook;

use super::config::{Group, OnFailure, Origin};
use super::machines::Selected;
use super::state::{FrozenRow, Outcome};
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result};
use crate::link::congestion::Congestion;
use crate::live::libvirt::Libvirt;
use crate::live::{FreezeSettings, ScratchSettings, Seat, Together};
use crate::pace::Pacer;
use crate::progress::Progress;
use crate::replicate::{
    self, BackupRequest, BackupSettings, BackupSummary, Hypervisor, RunningRequest,
};
use crate::repository::{Repository, read_key_file};
use crate::source::OpenSettings;
use crate::store::Store;
use crate::{durable, host::config::RepositorySettings};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// A run to do.
pub struct Job {
    /// Its name, hexadecimal.
    pub run: String,
    /// The machine.
    pub machine: String,
    /// Its images, policy and repository.
    pub selected: Selected,
    /// The repository, open or not yet.
    pub place: Arc<Place>,
    /// The policy's rate.
    pub pacer: Arc<Pacer>,
    /// Where what a guest overwrites meanwhile is kept.
    pub scratch: ScratchSettings,
    /// Where it is noted which guests are frozen.
    pub notes: PathBuf,
    /// Its place among those that it is to be frozen together with.
    pub seat: Option<Seat>,
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// The point that was made.
    pub summary: Option<BackupSummary>,
    /// The moment that the machine's newest point holds, Unix time in nanoseconds; none where the
    /// repository could not be opened.
    pub point_unix_ns: Option<u64>,
    /// Why there is no point.
    pub error: Option<Error>,
    /// What went wrong besides.
    pub warning: Option<String>,
    /// What came of freezing a machine that runs, and of tracking its changes.
    pub frozen: Option<FrozenRow>,
}

/// A repository that is opened when it is first needed, and again after it was refused.
pub struct Place {
    /// How to open it.
    pub settings: Arc<RepositorySettings>,
    /// How its runs share the line, where a gateway is at its other end.
    pub congestion: Congestion,
    credentials: Option<PathBuf>,
    opened: Mutex<Option<Arc<Repository>>>,
}

impl Place {
    /// Not opened yet. `credentials` is the folder of systemd's credentials.
    pub fn new(
        settings: Arc<RepositorySettings>,
        congestion: Congestion,
        credentials: Option<PathBuf>,
    ) -> Self {
        Self {
            settings,
            congestion,
            credentials,
            opened: Mutex::new(None),
        }
    }

    /// The repository with what its log says now. Runs that need it at once share one opening.
    async fn open(&self) -> Result<Arc<Repository>> {
        let mut opened = self.opened.lock().await;
        if let Some(repository) = opened.as_ref() {
            repository.refresh().await?;
            return Ok(Arc::clone(repository));
        }
        let settings = &self.settings;
        let mut how = settings.store.clone();
        how.link.congestion = self.congestion;
        let store = Store::open(&settings.location, &how)?;
        let key = settings.key.path(self.credentials.as_deref())?;
        let cache = settings.cache_dir.clone();
        let keys = blocking(move || {
            durable::create_folder(&cache, 0o700).map_err(|error| {
                Error::io(format!("cannot make the folder {}", cache.display()), error)
            })?;
            read_key_file(&key)
        })
        .await?;
        let repository = Arc::new(Repository::open(store, keys, &settings.cache_dir).await?);
        *opened = Some(Arc::clone(&repository));
        Ok(repository)
    }

    /// Lets go of a repository whose key or place may be another by the next time.
    async fn close_after(&self, error: &Error) {
        if matches!(
            error.kind(),
            Kind::Denied | Kind::Missing | Kind::Config | Kind::Corrupt | Kind::Bug
        ) {
            *self.opened.lock().await = None;
        }
    }
}

/// Does the run; ends early after `stop`.
pub async fn execute(mut job: Job, progress: Arc<Progress>, stop: CancellationToken) -> Report {
    let mut report = Report::default();
    let mut seat = job.seat.take();
    let job = &job;
    let policy = Arc::clone(&job.selected.policy);
    let allowed = match &policy.pre {
        None => Ok(()),
        Some(pre) => match hook::run(pre, &environment(job, "pre"), &stop).await {
            Err(error) if policy.pre_on_failure == OnFailure::Abort || stop.is_cancelled() => {
                Err(error)
            }
            Err(error) => {
                tracing::warn!(
                    error = error.chain(),
                    "the pre hook failed; the run goes on"
                );
                warn(&mut report, error.chain());
                Ok(())
            }
            Ok(()) => Ok(()),
        },
    };
    let done = match allowed {
        Ok(()) => back_up(job, &mut seat, progress, &stop, &mut report).await,
        Err(error) => Err(error),
    };
    // The others of its group wait for it no longer, least of all for its hook.
    drop(seat);
    if let Some(post) = &policy.post {
        let mut environment = environment(job, "post");
        let outcome = match &done {
            Ok(_) => Outcome::Ok,
            Err(error) if error.kind() == Kind::Interrupted => Outcome::Interrupted,
            Err(_) => Outcome::Failed,
        };
        environment.push(("TIDEGATE_RESULT", outcome.as_str().to_owned()));
        match &done {
            Ok(summary) => {
                let point = summary.point.map(|point| point.to_string());
                environment.push(("TIDEGATE_POINT", point.unwrap_or_default()));
            }
            Err(error) => environment.push(("TIDEGATE_ERROR", error.chain())),
        }
        // It undoes what `pre` did: a stop does not spare it, its time-out does.
        if let Err(error) = hook::run(post, &environment, &CancellationToken::new()).await {
            tracing::warn!(error = error.chain(), "the post hook failed");
            warn(&mut report, error.chain());
        }
    }
    match done {
        Ok(summary) => report.summary = Some(summary),
        Err(error) => report.error = Some(error),
    }
    report
}

async fn back_up(
    job: &Job,
    seat: &mut Option<Seat>,
    progress: Arc<Progress>,
    stop: &CancellationToken,
    report: &mut Report,
) -> Result<BackupSummary> {
    let stopped = || {
        Error::new(
            Kind::Interrupted,
            format!("the backup of {} was stopped as asked", job.machine),
        )
    };
    let opened = tokio::select! {
        opened = job.place.open() => opened,
        () = stop.cancelled() => return Err(stopped()),
    };
    let repository = match opened {
        Ok(repository) => repository,
        Err(error) => {
            job.place.close_after(&error).await;
            return Err(error);
        }
    };
    let mut settings = job.place.settings.backup();
    settings.pacer = Some(Arc::clone(&job.pacer));
    settings.audit_ppm = job.selected.policy.audit_ppm;
    let done = async {
        let (images, reading) = match &job.selected.origin {
            Origin::Images { images, reading } => (images, reading),
            Origin::Domain { domain, connect } => {
                let libvirt = Libvirt::new(connect.clone());
                let hypervisor = Hypervisor::Libvirt(libvirt, domain.clone());
                let seat = seat.take();
                let run = Running {
                    job,
                    seat,
                    hypervisor,
                    settings,
                };
                return run.back_up(&repository, progress, stop, report).await;
            }
            Origin::Monitor(socket) => {
                let hypervisor = Hypervisor::Qmp(socket.clone());
                let seat = seat.take();
                let run = Running {
                    job,
                    seat,
                    hypervisor,
                    settings,
                };
                return run.back_up(&repository, progress, stop, report).await;
            }
        };
        let how = OpenSettings {
            format: reading.format,
            backing_folders: reading.backing_folders.clone(),
            skip_check: reading.skip_check,
        };
        let disks = replicate::open_images(images, &how).await?;
        if stop.is_cancelled() {
            return Err(stopped());
        }
        let request = BackupRequest {
            machine: job.machine.clone(),
            disks,
            host: replicate::host_name(),
            moment: None,
            keep: job.selected.policy.keep.clone(),
            dry_run: false,
            settings,
        };
        replicate::backup(&repository, request, progress, stop.clone()).await
    }
    .await;
    if let Err(error) = &done {
        job.place.close_after(error).await;
    }
    // Also after a failure: points may have been made by hand.
    report.point_unix_ns = newest_point(&repository, &job.machine).await;
    done
}

/// The same for a machine that runs.
struct Running<'a> {
    job: &'a Job,
    seat: Option<Seat>,
    hypervisor: Hypervisor,
    settings: BackupSettings,
}

impl Running<'_> {
    async fn back_up(
        self,
        repository: &Arc<Repository>,
        progress: Arc<Progress>,
        stop: &CancellationToken,
        report: &mut Report,
    ) -> Result<BackupSummary> {
        let selected = &self.job.selected;
        let was_to_meet = self.seat.is_some();
        let request = RunningRequest {
            machine: Some(self.job.machine.clone()),
            hypervisor: self.hypervisor,
            seat: self.seat,
            freeze: FreezeSettings {
                scratch: self.job.scratch.clone(),
                quiesce: selected.policy.quiesce,
                notes: Some(self.job.notes.clone()),
            },
            host: replicate::host_name(),
            keep: selected.policy.keep.clone(),
            dry_run: false,
            settings: self.settings,
        };
        let done = replicate::back_up_running(repository, request, progress, stop.clone()).await?;
        for disk in done.backup.tracking.iter().filter(|disk| !disk.tracked) {
            tracing::warn!(
                disk = disk.disk,
                reason = disk.reason,
                "read whole and compared"
            );
        }
        tracing::info!(
            consistency = done.consistency,
            held_seconds = done.held_seconds,
            "the machine was frozen"
        );
        report.frozen = Some(FrozenRow {
            consistency: done.consistency.to_owned(),
            held_ns: u64::try_from(Duration::from_secs_f64(done.held_seconds).as_nanos())
                .unwrap_or(u64::MAX),
            tracking: done.backup.tracking.clone(),
            left_out: done.left_out.clone(),
        });
        if was_to_meet && let Some(apart) = apart(&selected.group, done.together.as_ref()) {
            tracing::warn!("{apart}");
            warn(report, apart);
        }
        Ok(done.backup)
    }
}

/// What a group's moment lacks, of a machine that was to be frozen with the others.
fn apart(group: &Group, together: Option<&Together>) -> Option<String> {
    let name = &group.name;
    let Some(together) = together else {
        return Some(format!("it was not frozen together with group {name}"));
    };
    let Together {
        machines, expected, ..
    } = together;
    if machines < expected {
        return Some(format!(
            "only {machines} of {expected} machines of group {name} were frozen together"
        ));
    }
    let within = group.together_within?;
    (together.skew > within).then(|| {
        format!(
            "the machines of group {name} were frozen up to {:?} apart, which is more than {within:?}",
            together.skew
        )
    })
}

async fn newest_point(repository: &Arc<Repository>, machine: &str) -> Option<u64> {
    let (repository, machine) = (Arc::clone(repository), machine.to_owned());
    match blocking(move || repository.newest_point(&machine)).await {
        Ok(newest) => newest.map(|point| point.taken_unix_ns),
        Err(error) => {
            tracing::warn!(
                error = error.chain(),
                "cannot tell the machine's newest point"
            );
            None
        }
    }
}

fn environment(job: &Job, hook: &str) -> Vec<(&'static str, String)> {
    vec![
        ("TIDEGATE_HOOK", hook.to_owned()),
        ("TIDEGATE_MACHINE", job.machine.clone()),
        ("TIDEGATE_RUN", job.run.clone()),
        ("TIDEGATE_REPOSITORY", job.place.settings.name.clone()),
    ]
}

fn warn(report: &mut Report, text: String) {
    report.warning = Some(match report.warning.take() {
        None => text,
        Some(before) => format!("{before}; {text}"),
    });
}
