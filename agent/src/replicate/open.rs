//! A run's disks, each beside what the parent point had of it, and how it will be gone over.

use super::audit::{self, Audit};
use super::way::{self, Way};
use super::worker::{Disk, Parent};
use super::{BackupRequest, DiskToBackUp, DiskTracking, LAID_EXTENTS_MAX};
use crate::blocking::blocking;
use crate::chunk::partition;
use crate::error::Result;
use crate::repository::point::PointDisk;
use crate::repository::tree::TreeReader;
use crate::repository::{Point, Repository};
use crate::source::{Source, Tracking};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tidegate_protocol::record::Role;

/// The disk at the parent point. Where machine and point have one disk each it is that one, whatever
/// its image is called by now; should it be another disk after all, comparing with it does no harm.
pub(super) fn old_disk<'a>(
    point: &'a Point,
    request: &BackupRequest,
    disk: &DiskToBackUp,
) -> Option<&'a PointDisk> {
    if disk.role != Role::Disk {
        let mut files = point.files.iter();
        let old =
            files.find(|file| file.role == Some(disk.role) && file.content.name == disk.name)?;
        return Some(&old.content);
    }
    let mut disks = request.disks.iter().filter(|disk| disk.role == Role::Disk);
    match (point.disks.as_slice(), disks.nth(1)) {
        ([only], None) => Some(only),
        (disks, _) => disks.iter().find(|old| old.name == disk.name),
    }
}

/// The point that the disks' change maps continue, or else the machine's newest.
pub(super) fn parent(repository: &Repository, request: &BackupRequest) -> Result<Option<Point>> {
    if let Some(continued) = way::continued(&request.disks)
        && let Some(point) = repository.point(continued)?
        && point.machine == request.machine
    {
        return Ok(Some(point));
    }
    repository.newest_point(&request.machine)
}

pub(super) async fn open_disks(
    repository: &Arc<Repository>,
    request: &BackupRequest,
    parent: Option<&Point>,
) -> Result<(Vec<Disk>, Vec<DiskTracking>)> {
    let unsound = match parent {
        Some(point) if way::continued(&request.disks) == Some(point.id) => {
            way::unsound(repository, point).await?
        }
        _ => None,
    };
    let mut disks = Vec::with_capacity(request.disks.len());
    let mut tracking = Vec::with_capacity(request.disks.len());
    for disk in &request.disks {
        let source = Arc::clone(&disk.source);
        let size_bytes = source.size_bytes();
        let (source, regions) = blocking(move || {
            let mut reader = source.reader()?;
            let regions = partition::regions(size_bytes, &mut |offset, buffer| {
                reader.read_at(offset, buffer)
            })?;
            drop(reader);
            Ok((source, regions))
        })
        .await?;
        let old = parent.and_then(|point| old_disk(point, request, disk));
        let old = old.map(|old| {
            let parent = Parent {
                tree: TreeReader::new(repository, old),
                size_bytes: old.size_bytes,
                damaged: AtomicBool::new(false),
            };
            (old, parent)
        });
        let of_its_name = old.as_ref().filter(|(old, _)| old.name == disk.name);
        let chosen = way::choose(
            &source,
            parent,
            of_its_name.map(|(old, parent)| (*old, parent)),
            unsound.as_deref(),
            request.settings.laid_extents_max.min(LAID_EXTENTS_MAX),
        )
        .await?;
        let mut chosen = chosen;
        let old = old.map(|(_, parent)| Arc::new(parent));
        let audit = match (&chosen.way, &old) {
            (Way::Lay(_) | Way::Rewrite, Some(parent)) => {
                let audit = audited(repository, &source, parent, request.settings.audit_ppm).await;
                match audit {
                    Ok(audit) if audit.false_chunks == 0 => audit,
                    Ok(audit) => {
                        chosen = way::Chosen::compare(audit::reason(&audit));
                        audit
                    }
                    Err(error) => {
                        chosen = way::Chosen::compare(audit::failed(&error));
                        Audit::default()
                    }
                }
            }
            _ => Audit::default(),
        };
        tracking.push(DiskTracking {
            disk: disk.name.clone(),
            trackable: source.tracking() != Tracking::Untracked,
            tracked: !matches!(chosen.way, Way::Compare),
            reason: chosen.reason,
            audited_blocks: audit.blocks,
            false_chunks: audit.false_chunks,
        });
        disks.push(Disk {
            source,
            size_bytes,
            regions,
            parent: old,
            way: chosen.way,
        });
    }
    Ok((disks, tracking))
}

async fn audited(
    repository: &Arc<Repository>,
    source: &Arc<dyn Source>,
    parent: &Arc<Parent>,
    share_ppm: u32,
) -> Result<Audit> {
    let (repository, source, parent) = (
        Arc::clone(repository),
        Arc::clone(source),
        Arc::clone(parent),
    );
    let runtime = tokio::runtime::Handle::current();
    blocking(move || audit::audit(&repository, &runtime, source.as_ref(), &parent, share_ppm)).await
}
