//! A domain frozen by libvirt's own backup, and let go again.
//!
//! One task owns the snapshot: it makes it, watches its scratch space, and ends it as it is told. What
//! a kill leaves is a backup job that goes on and a checkpoint without a point; the next freeze of the
//! domain ends the one and deletes the other, by which its changes go back to the checkpoint before.
//!
//! libvirt makes the guest's write fail where the scratch space is full, so the task ends the job
//! before that: the reserve must be more than the guest can write in [`WATCH_PERIOD`].

use super::checkpoint::{self, Decision};
use super::domain::{Domain, DomainDisk};
use super::scratch::Shared;
use super::{DomainName, Libvirt, xml};
use crate::blocking::blocking;
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::live::freeze::{Frozen, FrozenDisk, Order, Ordered};
use crate::live::scratch::ScratchSettings;
use crate::live::source::{Broken, LiveSource};
use crate::live::still::{self, Still};
use crate::live::together::{Seat, Step, Together};
use crate::live::{FreezeSettings, Quiesce, bitmap};
use crate::source::{Changes, NbdSource};
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tidegate_protocol::ids::{PointId, RepositoryId};
use tidegate_protocol::record::Consistency;
use tokio::sync::oneshot;

/// How often the scratch space is looked at.
const WATCH_PERIOD: Duration = Duration::from_millis(50);
/// How long a backup job may take to end once it was told to.
const ABORT_TIME_MAX: Duration = Duration::from_secs(20);
/// What libvirt says of a checkpoint whose bitmap is gone or was not closed in order.
const INCONSISTENT: &str = "checkpoint inconsistent";

impl Libvirt {
    /// Freezes all disks of a running domain at one moment, of which `point` will be made in
    /// `repository`. `standing` tells committed and live points by their place in the log, higher for
    /// later ones. With a `seat` it is frozen together with the other machines of its group.
    ///
    /// # Errors
    /// [`Kind::Conflict`] where somebody else's backup of the domain is under way,
    /// [`Kind::Unavailable`] where its software could not be frozen and must be, [`Kind::NoSpace`]
    /// without room, [`Kind::Missing`] where it has no disk to protect. The domain is as it was
    /// before.
    pub async fn freeze(
        &self,
        domain: Domain,
        settings: FreezeSettings,
        repository: RepositoryId,
        point: PointId,
        standing: impl Fn(PointId) -> Option<u64>,
        seat: Option<Seat>,
    ) -> Result<Frozen> {
        if domain.disks.is_empty() {
            return Err(Error::new(
                Kind::Missing,
                format!(
                    "domain {:?} has no disk that can be protected",
                    domain.name.name
                ),
            ));
        }
        let known = self.checkpoints(&domain.name).await?;
        let decision = checkpoint::decide(&known, repository, standing);
        let mut snapshot = Snapshot {
            libvirt: self.clone(),
            name: domain.name.clone(),
            new: bitmap::name(repository, point),
            base: None,
            shared: None,
            is_recording: false,
            broken: Broken::default(),
            seat,
        };
        let (ready, made) = oneshot::channel();
        let (orders, ordered) = oneshot::channel();
        let disks = domain.disks.clone();
        tokio::spawn(async move {
            let making = snapshot.make(&disks, decision, settings).await;
            // Nobody waits for what is made, nor for what will not be.
            snapshot.seat = None;
            match making {
                Err(error) => {
                    snapshot.undo().await;
                    let _ = ready.send(Err(error));
                }
                Ok(made) => match ready.send(Ok(made)) {
                    Ok(()) => snapshot.keep(ordered).await,
                    // Whoever wanted it is gone.
                    Err(_) => snapshot.undo().await,
                },
            }
        });
        let made = made
            .await
            .map_err(|_| Error::new(Kind::Bug, "the task that freezes a domain broke down"))??;
        Ok(Frozen {
            machine: domain.name.name,
            uuid: Some(domain.name.uuid),
            taken_unix_ns: made.taken_unix_ns,
            held: made.held,
            consistency: made.consistency,
            together: made.together,
            disks: made.disks,
            left_out: domain.left_out,
            orders,
        })
    }

    async fn checkpoints(&self, domain: &DomainName) -> Result<Vec<String>> {
        let list = ["checkpoint-list", "--domain", &domain.uuid, "--name"];
        let told = self.virsh(&list).await?;
        let names = told.lines().map(str::trim).filter(|name| !name.is_empty());
        Ok(names.map(str::to_owned).collect())
    }

    /// The disks of which a checkpoint records changes.
    async fn recorded(&self, domain: &DomainName, checkpoint: &str) -> Result<HashSet<String>> {
        let told = self
            .virsh(&[
                "checkpoint-dumpxml",
                "--domain",
                &domain.uuid,
                "--checkpointname",
                checkpoint,
                "--no-domain",
            ])
            .await?;
        xml::recorded_disks(&told)
    }

    /// Deletes a checkpoint; where its bitmaps are gone, what libvirt remembers of it.
    async fn delete(&self, domain: &DomainName, checkpoint: &str) -> Result<()> {
        let delete = [
            "checkpoint-delete",
            "--domain",
            &domain.uuid,
            "--checkpointname",
            checkpoint,
        ];
        let Err(error) = self.virsh(&delete).await else {
            return Ok(());
        };
        if !error.to_string().contains("bitmap") {
            return Err(error);
        }
        tracing::warn!(
            domain = domain.name,
            checkpoint,
            error = error.chain(),
            "a checkpoint has lost its bitmap: it is forgotten"
        );
        let forget = [&delete[..], &["--metadata"]].concat();
        self.virsh(&forget).await.map(drop)
    }

    /// The backup that is under way; none too where there is another job: beginning ours tells.
    async fn job(&self, domain: &DomainName) -> Option<String> {
        let dump = ["backup-dumpxml", "--domain", &domain.uuid];
        self.virsh(&dump).await.ok()
    }

    /// Ends a backup job of ours that nobody keeps any more.
    async fn end_leftover(&self, domain: &DomainName) -> Result<()> {
        let Some(job) = self.job(domain).await else {
            return Ok(());
        };
        if !Shared::is_ours(&job) {
            return Err(Error::new(
                Kind::Conflict,
                format!(
                    "a backup of domain {:?} by somebody else is under way",
                    domain.name
                ),
            )
            .advise("wait for its end, or end it: `virsh domjobabort`"));
        }
        tracing::warn!(
            domain = domain.name,
            "a snapshot that an earlier run has left is ended"
        );
        self.abort(domain).await
    }

    /// Ends the backup job, and waits until it has ended: libvirt only asks QEMU to.
    async fn abort(&self, domain: &DomainName) -> Result<()> {
        let abort = ["domjobabort", "--domain", &domain.uuid];
        match self.virsh(&abort).await {
            Err(error) if error.to_string().contains("no job is active") => return Ok(()),
            Err(error) if error.to_string().contains("domain is not running") => return Ok(()),
            ended => ended?,
        };
        let asked = Instant::now();
        while self
            .job(domain)
            .await
            .is_some_and(|job| Shared::is_ours(&job))
        {
            if asked.elapsed() > ABORT_TIME_MAX {
                return Err(Error::new(
                    Kind::Unavailable,
                    format!("the backup of domain {:?} does not end", domain.name),
                ));
            }
            tokio::time::sleep(WATCH_PERIOD).await;
        }
        Ok(())
    }
}

struct Made {
    taken_unix_ns: u64,
    held: Duration,
    consistency: Consistency,
    together: Option<Together>,
    disks: Vec<FrozenDisk>,
}

/// The snapshot and all that belongs to it; see the module.
struct Snapshot {
    libvirt: Libvirt,
    name: DomainName,
    /// The new point's checkpoint.
    new: String,
    /// The one that is continued.
    base: Option<String>,
    shared: Option<Shared>,
    /// Whether the new checkpoint is there.
    is_recording: bool,
    broken: Broken,
    /// Its place among those that are frozen together, until it is.
    seat: Option<Seat>,
}

impl Snapshot {
    async fn make(
        &mut self,
        disks: &[DomainDisk],
        decision: Decision,
        settings: FreezeSettings,
    ) -> Result<Made> {
        self.libvirt.end_leftover(&self.name).await?;
        for old in &decision.delete {
            self.libvirt.delete(&self.name, old).await?;
        }
        let count = disks.len();
        let scratch: ScratchSettings = settings.scratch.clone();
        let shared = blocking(move || Shared::new(scratch, count)).await?;
        let shared = self.shared.insert(shared);
        let mut base = decision.base;
        let mut recorded = HashSet::new();
        if let Ok((checkpoint, _)) = &base {
            recorded = self.libvirt.recorded(&self.name, checkpoint).await?;
        }
        let socket = shared.socket();
        let files: Vec<PathBuf> = (0..count).map(|disk| shared.file(disk)).collect();
        let mut begun = self
            .begin(disks, &base, &recorded, &socket, &files, &settings)
            .await;
        if let Err(error) = &begun
            && error.to_string().contains(INCONSISTENT)
            && let Ok((checkpoint, _)) = &base
        {
            // QEMU was killed, or somebody has removed the bitmap: said loudly, and begun anew.
            let why = format!("libvirt's checkpoint cannot be used: {error}");
            self.libvirt.delete(&self.name, checkpoint).await?;
            base = Err(why);
            begun = self
                .begin(disks, &base, &recorded, &socket, &files, &settings)
                .await;
        }
        let instant = begun?;
        self.base = base.as_ref().ok().map(|(name, _)| name.clone());
        let mut shown = Vec::with_capacity(count);
        for disk in disks {
            let changes = match &base {
                _ if !disk.is_trackable() => Changes::Lost(format!(
                    "libvirt records changes to qcow2 images only, not to {}",
                    disk.format
                )),
                Ok((_, since)) if recorded.contains(&disk.name) => Changes::Bitmap {
                    name: xml::BITMAP.to_owned(),
                    since: *since,
                },
                Ok(_) => Changes::Lost(
                    "the disk was not there when libvirt began to record changes".to_owned(),
                ),
                Err(why) => Changes::Lost(why.clone()),
            };
            shown.push(self.show(disk, changes, socket.clone()).await?);
        }
        Ok(Made {
            taken_unix_ns: instant.taken_unix_ns,
            held: instant.held,
            consistency: instant.consistency,
            together: self.seat.as_ref().and_then(Seat::outcome),
            disks: shown,
        })
    }

    /// The moment: freezes the guest's software if it shall be, and begins backup and checkpoint at
    /// once.
    async fn begin(
        &mut self,
        disks: &[DomainDisk],
        base: &std::result::Result<(String, PointId), String>,
        recorded: &HashSet<String>,
        socket: &std::path::Path,
        files: &[PathBuf],
        settings: &FreezeSettings,
    ) -> Result<Instants> {
        let backed_up: Vec<_> = disks
            .iter()
            .zip(files)
            .map(|(disk, scratch)| xml::BackupDisk {
                name: &disk.name,
                since: base
                    .as_ref()
                    .ok()
                    .filter(|_| recorded.contains(&disk.name))
                    .map(|(name, _)| name.as_str()),
                scratch,
            })
            .collect();
        let (tracked, untracked): (Vec<_>, Vec<_>) =
            disks.iter().partition(|disk| disk.is_trackable());
        let names = |disks: &[&DomainDisk]| -> Vec<String> {
            disks.iter().map(|disk| disk.name.clone()).collect()
        };
        let (tracked, untracked) = (names(&tracked), names(&untracked));
        let backup = xml::backup(socket, &backed_up);
        let checkpoint =
            (!tracked.is_empty()).then(|| xml::checkpoint(&self.new, &tracked, &untracked));
        let folder = blocking(move || write(&backup, checkpoint.as_deref())).await?;
        let told = folder.path().join("backup.xml");
        let mut begin: Vec<std::ffi::OsString> = vec![
            "backup-begin".into(),
            "--domain".into(),
            self.name.uuid.clone().into(),
            "--backupxml".into(),
            told.into(),
        ];
        if !tracked.is_empty() {
            begin.push("--checkpointxml".into());
            begin.push(folder.path().join("checkpoint.xml").into());
        }
        self.meet(Step::Prepared).await;
        let quiesce = settings.quiesce;
        let notes = settings.notes.as_deref();
        let still = Still::by_libvirt(&self.libvirt, &self.name.uuid, notes);
        let still = still::quiesce(quiesce, &self.name.name, still).await?;
        self.meet(Step::Still).await;
        let taken_unix_ns = clock::now_unix_ns();
        let started = Instant::now();
        let begun = self.libvirt.virsh(&begin).await;
        let held = started.elapsed();
        if begun.is_ok() {
            if let Some(seat) = &self.seat {
                seat.took(started, started + held);
            }
            self.meet(Step::Taken).await;
        }
        // Whatever came of it.
        let stilled = match still {
            Some(still) => Some(still.thaw(&self.name.name).await),
            None => None,
        };
        begun?;
        self.is_recording = !tracked.is_empty();
        let was_still = stilled.is_some_and(|stilled| stilled.lasted);
        if quiesce == Quiesce::Require && !was_still {
            return Err(still::not_still(&self.name.name));
        }
        Ok(Instants {
            taken_unix_ns,
            held: stilled.map_or(held, |stilled| stilled.held),
            consistency: match was_still {
                true => Consistency::Application,
                false => Consistency::Crash,
            },
        })
    }

    /// Waits for the other machines of its group, where there are some.
    async fn meet(&self, step: Step) {
        if let Some(seat) = &self.seat {
            seat.meet(step).await;
        }
    }

    async fn show(
        &self,
        disk: &DomainDisk,
        changes: Changes,
        socket: PathBuf,
    ) -> Result<FrozenDisk> {
        let description = format!("disk {} of domain {}", disk.name, self.name.name);
        let export = disk.name.clone();
        let source = blocking(move || {
            NbdSource::connect_tracked(&socket, &export, description, changes, Box::new(()))
        })
        .await?;
        Ok(FrozenDisk {
            name: disk.name.clone(),
            format: disk.format.clone(),
            remembers: disk.is_trackable(),
            source: Arc::new(LiveSource {
                disk: source,
                broken: Arc::clone(&self.broken),
            }),
        })
    }

    /// Watches until it is told how to end.
    async fn keep(&mut self, mut ordered: oneshot::Receiver<Ordered>) {
        let mut watch = tokio::time::interval(WATCH_PERIOD);
        loop {
            tokio::select! {
                order = &mut ordered => {
                    match order {
                        Ok((order, answer)) => {
                            let ended = self.end(order).await;
                            let _ = answer.send(ended);
                        }
                        Err(_) => self.undo().await,
                    }
                    return;
                }
                _ = watch.tick(), if self.broken.get().is_none() => self.look().await,
            }
        }
    }

    async fn look(&mut self) {
        let Some(shared) = self.shared.take() else {
            return;
        };
        let looked = blocking(move || {
            let exceeded = shared.exceeded();
            Ok((shared, exceeded))
        })
        .await;
        let why = match looked {
            Ok((shared, exceeded)) => {
                self.shared = Some(shared);
                match exceeded {
                    Ok(None) => return,
                    Ok(Some(why)) => why,
                    Err(error) => error.chain(),
                }
            }
            Err(error) => error.chain(),
        };
        tracing::error!(domain = self.name.name, why, "the snapshot is given up");
        // Before its readers notice: they ask why.
        let _ = self.broken.set(why);
        if let Err(error) = self.libvirt.abort(&self.name).await {
            self.left(&error);
        }
    }

    async fn end(&mut self, order: Order) -> Result<()> {
        self.libvirt.abort(&self.name).await?;
        self.shared = None;
        let done_with = match order {
            Order::Retire => self.base.take(),
            Order::GiveUp => self.is_recording.then(|| self.new.clone()),
        };
        self.is_recording = false;
        match done_with {
            Some(checkpoint) => self.libvirt.delete(&self.name, &checkpoint).await,
            None => Ok(()),
        }
    }

    /// As if there had been nothing, as far as it goes.
    async fn undo(&mut self) {
        if self.shared.is_none() && !self.is_recording {
            return;
        }
        if let Err(error) = self.end(Order::GiveUp).await {
            self.left(&error);
        }
    }

    fn left(&self, error: &Error) {
        tracing::warn!(
            domain = self.name.name,
            error = error.chain(),
            "the snapshot could not be ended; the next backup of this domain does it"
        );
    }
}

struct Instants {
    taken_unix_ns: u64,
    held: Duration,
    consistency: Consistency,
}

/// Puts what `virsh` reads into files that only we can read. Blocking.
fn write(backup: &str, checkpoint: Option<&str>) -> Result<TempDir> {
    let folder = crate::qemu::private_folder()?;
    let put = |name: &str, xml: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, xml)
            .map_err(|error| Error::io(format!("cannot write {}", path.display()), error))
    };
    put("backup.xml", backup)?;
    if let Some(checkpoint) = checkpoint {
        put("checkpoint.xml", checkpoint)?;
    }
    Ok(folder)
}
