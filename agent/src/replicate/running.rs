//! A machine as its hypervisor runs it: frozen, backed up, and let go again.
//!
//! ```text
//! freeze ──► replicate ──► commit ──► retire      changes are counted from the new point
//!    │            └─────────┴──────► give up      … from the point before, as if nothing had been
//!    └► the machine is as it was
//! ```
//!
//! Which step a kill hits does not matter: what is left carries the names of repository and point, and
//! the log says whether there is such a point. So before anything is frozen the log is read to its
//! end.

mod off;

use super::{BackupRequest, BackupSettings, BackupSummary, DiskToBackUp, Moment, backup};
use crate::blocking::blocking;
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::live::libvirt::{Domain, Libvirt};
use crate::live::{FreezeSettings, Frozen, LeftOut, Machine, Seat, Together};
use crate::name;
use crate::progress::Progress;
use crate::repository::Repository;
use crate::retention::Keep;
use crate::source::BytesSource;
use serde::Serialize;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use tidegate_protocol::ids::PointId;
use tidegate_protocol::record::{Consistency, Role};
use tokio_util::sync::CancellationToken;

/// The format of a definition that is what QEMU tells of a machine.
pub const QMP_DEFINITION: &str = "qmp";

/// The largest file that is taken for what firmware or a TPM remembers, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Where a machine runs.
#[derive(Debug, Clone)]
pub enum Hypervisor {
    /// In a QEMU whose monitor (QMP) is at this socket.
    Qmp(PathBuf),
    /// In a domain of libvirt, by name or UUID.
    Libvirt(Libvirt, String),
}

/// A running machine to back up.
pub struct RunningRequest {
    /// What to call it; as its hypervisor does where nothing is said.
    pub machine: Option<String>,
    /// Where it runs.
    pub hypervisor: Hypervisor,
    /// How it is to be frozen.
    pub freeze: FreezeSettings,
    /// Its place among those that it is to be frozen together with.
    pub seat: Option<Seat>,
    /// This host's name.
    pub host: String,
    /// How long the new point is kept.
    pub keep: Keep,
    /// Find out what would be stored, and store nothing.
    pub dry_run: bool,
    /// How to go about the backup.
    pub settings: BackupSettings,
}

/// What the backup of a running machine came to.
#[derive(Debug, Clone, Serialize)]
pub struct RunningSummary {
    /// As of any backup.
    #[serde(flatten)]
    pub backup: BackupSummary,
    /// What the point is worth to the software in the machine: offline, crash or application.
    pub consistency: &'static str,
    /// How long writes of the guest may have waited for the snapshot, in seconds.
    pub held_seconds: f64,
    /// With whom it was frozen, where it was to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub together: Option<Together>,
    /// What looks like a disk and is not in the point, and why.
    pub left_out: Vec<LeftOut>,
}

/// Backs a running machine up. A domain of libvirt that is off is read from its images.
///
/// # Errors
/// As [`backup`], and as the hypervisor says; the machine goes on in any case.
pub async fn back_up_running(
    repository: &Arc<Repository>,
    mut request: RunningRequest,
    progress: Arc<Progress>,
    stop: CancellationToken,
) -> Result<RunningSummary> {
    // What is left of earlier runs is judged by the log.
    repository.refresh().await?;
    let point = PointId(clock::random()?);
    let (frozen, files) = match &request.hypervisor {
        Hypervisor::Qmp(socket) => {
            let mut machine = Machine::connect(socket).await?;
            let told = machine.definition().await?.into_bytes();
            let files = vec![file("definition", Role::Definition, QMP_DEFINITION, told)];
            let name = machine_name(&request, &machine.name)?;
            let standing = standing(repository, &name)?;
            let freeze = request.freeze.clone();
            let frozen = machine
                .freeze(
                    freeze,
                    repository.keys().repository(),
                    point,
                    standing,
                    request.seat.take(),
                )
                .await?;
            (frozen, files)
        }
        Hypervisor::Libvirt(libvirt, domain) => {
            let mut domain = libvirt.domain(domain).await?;
            let files = files(&mut domain).await;
            if !domain.is_active {
                // There is nothing to freeze: the others of its group need not wait for the end.
                drop(request.seat.take());
                let domain = (libvirt.clone(), domain);
                return off::back_up(repository, request, domain, files, progress, stop).await;
            }
            let name = machine_name(&request, &domain.name.name)?;
            let standing = standing(repository, &name)?;
            let freeze = request.freeze.clone();
            let frozen = libvirt
                .freeze(
                    domain,
                    freeze,
                    repository.keys().repository(),
                    point,
                    standing,
                    request.seat.take(),
                )
                .await?;
            (frozen, files)
        }
    };
    let moment = Moment {
        point,
        taken_unix_ns: frozen.taken_unix_ns,
        consistency: frozen.consistency,
        together: frozen.together.clone(),
    };
    let mut disks: Vec<DiskToBackUp> = frozen
        .disks
        .iter()
        .map(|disk| DiskToBackUp {
            name: disk.name.clone(),
            source: Arc::clone(&disk.source),
            format: disk.format.clone(),
            role: Role::Disk,
        })
        .collect();
    disks.extend(files);
    let told = Told::of(&frozen);
    let done = match machine_name(&request, &frozen.machine) {
        Ok(machine) => {
            let backup_request = BackupRequest {
                machine,
                disks,
                host: request.host,
                moment: Some(moment),
                keep: request.keep,
                dry_run: request.dry_run,
                settings: request.settings,
            };
            backup(repository, backup_request, progress, stop).await
        }
        Err(error) => Err(error),
    };
    match done {
        Ok(summary) if summary.point.is_some() => {
            if let Err(error) = frozen.retire().await {
                // The point stands; the next run does what is left to do.
                tracing::warn!(error = error.chain(), "the snapshot was not ended in order");
            }
            Ok(told.with(summary))
        }
        done => {
            if let Err(error) = frozen.give_up().await {
                tracing::warn!(error = error.chain(), "the snapshot was not ended in order");
            }
            done.map(|summary| told.with(summary))
        }
    }
}

/// What is told of the moment itself.
struct Told {
    consistency: Consistency,
    held_seconds: f64,
    together: Option<Together>,
    left_out: Vec<LeftOut>,
}

impl Told {
    fn of(frozen: &Frozen) -> Self {
        Self {
            consistency: frozen.consistency,
            held_seconds: frozen.held.as_secs_f64(),
            together: frozen.together.clone(),
            left_out: frozen.left_out.clone(),
        }
    }

    fn with(self, backup: BackupSummary) -> RunningSummary {
        RunningSummary {
            backup,
            consistency: Consistency::name_of(self.consistency.tag()),
            held_seconds: self.held_seconds,
            together: self.together,
            left_out: self.left_out,
        }
    }
}

fn machine_name(request: &RunningRequest, known_as: &str) -> Result<String> {
    let fit = || name::fit(known_as);
    request.machine.clone().or_else(fit).ok_or_else(|| {
        Error::new(
            Kind::Config,
            format!("{known_as:?} cannot be a machine's name here"),
        )
        .advise("name the machine: --machine NAME")
    })
}

/// Committed and live points of a machine, by their place in the log.
fn standing(
    repository: &Repository,
    machine: &str,
) -> Result<impl Fn(PointId) -> Option<u64> + Send + use<>> {
    let points = repository.points(Some(machine))?;
    let places: HashMap<PointId, u64> = points
        .into_iter()
        .map(|point| (point.id, point.number))
        .collect();
    Ok(move |point: PointId| places.get(&point).copied())
}

/// What a domain needs besides its disks; what of it cannot be had is left out of the point, and told.
async fn files(domain: &mut Domain) -> Vec<DiskToBackUp> {
    let definition = domain.definition.clone().into_bytes();
    let mut files = vec![file("definition", Role::Definition, "libvirt", definition)];
    let kept = [
        ("nvram", Role::Nvram, domain.nvram.clone()),
        ("tpm", Role::Tpm, domain.tpm.clone()),
    ];
    for (name, role, path) in kept {
        let Some(path) = path else { continue };
        match read(path).await {
            Ok(bytes) => files.push(file(name, role, "raw", bytes)),
            // A machine that never ran has none yet.
            Err(error) if error.kind() == Kind::Missing => {}
            Err(error) => domain.left_out.push(LeftOut {
                name: name.to_owned(),
                why: error.chain(),
            }),
        }
    }
    files
}

/// The whole of a small file.
async fn read(path: PathBuf) -> Result<Vec<u8>> {
    blocking(move || {
        use std::io::Read as _;
        let cannot = |error| Error::io(format!("cannot read {}", path.display()), error);
        let mut bytes = Vec::new();
        std::fs::File::open(&path)
            .map_err(cannot)?
            .take(FILE_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(cannot)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(Error::new(
                Kind::BadInput,
                format!("{} is more than {FILE_BYTES_MAX} bytes", path.display()),
            ));
        }
        Ok(bytes)
    })
    .await
}

fn file(name: &str, role: Role, format: &str, bytes: Vec<u8>) -> DiskToBackUp {
    DiskToBackUp {
        name: name.to_owned(),
        source: Arc::new(BytesSource::new(name, bytes)),
        format: format.to_owned(),
        role,
    }
}
