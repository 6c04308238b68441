//! What a run says of itself: the point's record, and the words for people.

use super::open::old_disk;
use super::publish::Published;
use super::{BackupRequest, BackupSummary, DiskToBackUp, DiskTracking, Moment, Outcome};
use crate::clock;
use crate::repository::Point;
use tidegate_protocol::record::{self, PointCommitted, Role, StoredPageRef};

pub(super) fn reason(request: &BackupRequest, parent: Option<&Point>, outcome: &Outcome) -> String {
    let Some(point) = parent else {
        return "first recovery point of this machine".to_owned();
    };
    if outcome.parent_damaged {
        return format!(
            "the tree of point {} is damaged: compared with all that the repository has",
            point.id.short()
        );
    }
    let is_new =
        |disk: &&DiskToBackUp| disk.role == Role::Disk && old_disk(point, request, disk).is_none();
    let new: Vec<_> = request.disks.iter().filter(is_new).collect();
    let names: Vec<_> = new.iter().map(|disk| disk.name.as_str()).collect();
    let all = tracking_of_disks(request, outcome);
    let untracked: Vec<_> = all.iter().filter(|disk| !disk.tracked).collect();
    let mut reason = match untracked.as_slice() {
        [] => format!("changes tracked since point {}", point.id.short()),
        [first, rest @ ..]
            if untracked.len() == all.len()
                && rest.iter().all(|disk| disk.reason == first.reason) =>
        {
            compared(&first.reason, point)
        }
        some => {
            let each = some
                .iter()
                .map(|disk| format!("{}: {}", disk.disk, disk.reason));
            compared(&each.collect::<Vec<_>>().join("; "), point)
        }
    };
    if !names.is_empty() {
        reason.push_str(&format!(", which has no disk {}", names.join(", ")));
    }
    reason
}

/// Of disks, not of what else the machine needs.
pub(super) fn tracking_of_disks(request: &BackupRequest, outcome: &Outcome) -> Vec<DiskTracking> {
    let all = request.disks.iter().zip(&outcome.tracking);
    all.filter(|(disk, _)| disk.role == Role::Disk)
        .map(|(_, tracking)| tracking.clone())
        .collect()
}

fn compared(why: &str, point: &Point) -> String {
    format!(
        "{why}: all data was read and compared with point {}",
        point.id.short()
    )
}

pub(super) fn point_record(
    moment: &Moment,
    request: &BackupRequest,
    parent: Option<&Point>,
    outcome: &Outcome,
    published: &Published,
    summary: &BackupSummary,
) -> PointCommitted {
    PointCommitted {
        point: moment.point.0.to_vec(),
        machine: request.machine.clone(),
        disks: request
            .disks
            .iter()
            .zip(&outcome.assembled.roots)
            .zip(&outcome.assembled.deltas)
            .zip(&outcome.tracking)
            .map(|(((disk, root), deltas), tracking)| record::Disk {
                name: disk.name.clone(),
                deltas: deltas.iter().map(StoredPageRef::encode).collect(),
                size_bytes: disk.source.size_bytes(),
                root: root.as_ref().map(StoredPageRef::encode),
                source_format: disk.format.clone(),
                role: disk.role.tag(),
                tracking: tracking.trackable.then(|| record::Tracking {
                    believed: tracking.tracked,
                    reason: tracking.reason.clone(),
                    audited_blocks: tracking.audited_blocks,
                    false_chunks: tracking.false_chunks,
                }),
            })
            .collect(),
        parent: parent.map_or_else(Vec::new, |point| point.id.0.to_vec()),
        consistency: moment.consistency.tag(),
        taken_unix_ns: moment.taken_unix_ns,
        finished_unix_ns: clock::now_unix_ns(),
        segments: published.segment_ids(),
        tree_packs: published.tree_packs.clone(),
        run: outcome.run.0.to_vec(),
        host: request.host.clone(),
        totals: Some(record::Totals {
            virtual_bytes: summary.virtual_bytes,
            allocated_bytes: summary.allocated_bytes,
            read_bytes: summary.read_bytes,
            new_bytes: summary.new_bytes,
            stored_bytes: summary.stored_bytes,
            chunks: summary.chunks,
        }),
        // Said at the commit.
        keep_until_unix_ns: 0,
        together: moment.together.as_ref().map(|together| {
            Box::new(record::Together {
                moment: together.moment.0.to_vec(),
                group: together.group.clone(),
                machines: together.machines,
                expected: together.expected,
                skew_ns: u64::try_from(together.skew.as_nanos()).unwrap_or(u64::MAX),
            })
        }),
    }
}
