//! A domain of libvirt that is off, read from its images.
//!
//! They are nobody's but ours to read, as long as it stays so: a domain that was started meanwhile gets no
//! point. Which point an image is the content of is remembered, so that what still is as it was then is
//! not read again.

use super::{RunningRequest, RunningSummary, machine_name};
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result};
use crate::format::Format;
use crate::live::libvirt::{Domain, DomainName, Libvirt};
use crate::progress::Progress;
use crate::replicate::images::{Images, remember};
use crate::replicate::{BackupRequest, DiskToBackUp, backup};
use crate::repository::Repository;
use crate::source::{OpenSettings, Source, SourceReader, Tracking, open_snapshot};
use std::sync::Arc;
use tidegate_protocol::record::{Consistency, Role};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// Backs it up, with the `files` that belong to it.
///
/// # Errors
/// As [`backup`]; [`Kind::Conflict`] where it was started meanwhile.
pub(super) async fn back_up(
    repository: &Arc<Repository>,
    request: RunningRequest,
    (libvirt, domain): (Libvirt, Domain),
    files: Vec<DiskToBackUp>,
    progress: Arc<Progress>,
    stop: CancellationToken,
) -> Result<RunningSummary> {
    let machine = machine_name(&request, &domain.name.name)?;
    let memory = Arc::new(Images::of(repository, &machine)?);
    let mut disks = Vec::with_capacity(domain.disks.len() + files.len());
    let mut stamps = Vec::with_capacity(domain.disks.len());
    for disk in domain.disks {
        let memory = Arc::clone(&memory);
        let how = OpenSettings {
            format: Some(disk.format.parse::<Format>()?),
            ..OpenSettings::default()
        };
        let opened = blocking(move || open_snapshot(&disk.source, &how, &*memory)).await?;
        let (source, stamp) = opened.named(&disk.name);
        stamps.extend(stamp);
        disks.push(DiskToBackUp {
            name: disk.name,
            source: Arc::new(OffDisk {
                source,
                libvirt: libvirt.clone(),
                domain: domain.name.clone(),
                runtime: Handle::current(),
            }),
            format: disk.format,
            role: Role::Disk,
        });
    }
    disks.extend(files);
    let backup_request = BackupRequest {
        machine,
        disks,
        host: request.host,
        moment: None,
        keep: request.keep,
        dry_run: request.dry_run,
        settings: request.settings,
    };
    let summary = backup(repository, backup_request, progress, stop).await?;
    if let Some(point) = summary.point {
        remember(repository, stamps, point).await;
    }
    Ok(RunningSummary {
        backup: summary,
        consistency: Consistency::name_of(Consistency::Offline.tag()),
        held_seconds: 0.0,
        together: None,
        left_out: domain.left_out,
    })
}

/// A disk of a domain that is off, of which a point is made only where it still is when all was read.
struct OffDisk {
    source: Arc<dyn Source>,
    libvirt: Libvirt,
    domain: DomainName,
    runtime: Handle,
}

impl Source for OffDisk {
    fn size_bytes(&self) -> u64 {
        self.source.size_bytes()
    }

    fn describe(&self) -> String {
        self.source.describe()
    }

    fn reader(&self) -> Result<Box<dyn SourceReader>> {
        self.source.reader()
    }

    fn tracking(&self) -> Tracking {
        self.source.tracking()
    }

    fn check_unwritten(&self) -> Result<()> {
        // A block device does not tell when it was written.
        let is_active = self.libvirt.is_active(&self.domain.uuid);
        if self.runtime.block_on(is_active)? {
            return Err(Error::new(
                Kind::Conflict,
                format!(
                    "{} was started while its images were read",
                    self.domain.name
                ),
            )
            .advise("back it up again, as a machine that runs"));
        }
        self.source.check_unwritten()
    }
}
