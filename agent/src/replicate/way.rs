//! How a disk is gone over: wholly, or only where its source says that it was written to.
//!
//! What a source says is used only where it continues a point that is here and whose packs are all
//! sound. Else the disk is read whole and compared, and why is told to whoever asked for the backup.

use super::worker::Parent;
use super::{DiskToBackUp, Outcome};
use crate::blocking::blocking;
use crate::error::{Kind, Result};
use crate::repository::tree::TreeReader;
use crate::repository::{Point, PointDisk, Repository};
use crate::source::{Source, Tracking};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use tidegate_protocol::ids::{PackId, PointId};
use tidegate_protocol::limits::{BLOCK_BYTES, FAN_OUT};
use tidegate_protocol::page::tree_levels;

/// How much of a disk is asked about at once.
const ASKED_BYTES: u64 = 1 << 30;

/// How a disk is gone over.
pub(super) enum Way {
    /// All of it is read and compared with the parent point.
    Compare,
    /// What changed is read; leaves that it touches are written again.
    Rewrite,
    /// The same, but the tree stays: what changed is laid over it. In the order of the disk.
    Lay(Vec<Range<u64>>),
}

/// What can be said of a disk before it is read.
pub(super) struct Chosen {
    pub(super) way: Way,
    /// For people: how changes are found, and why not otherwise.
    pub(super) reason: String,
}

impl Chosen {
    /// To read all of it, and why.
    pub(super) fn compare(reason: String) -> Self {
        Self {
            way: Way::Compare,
            reason,
        }
    }
}

/// The point that the disks' sources continue, if one of them continues any. Where they continue
/// different ones it is that of the first: the others are compared with it.
pub(super) fn continued(disks: &[DiskToBackUp]) -> Option<PointId> {
    disks.iter().find_map(|disk| match disk.source.tracking() {
        Tracking::Since(point) => Some(point),
        Tracking::Untracked | Tracking::Lost(_) => None,
    })
}

/// Chooses for one disk. `unsound` says why the parent's packs cannot be relied on, if so; `old` is
/// the disk at the parent point.
pub(super) async fn choose(
    source: &Arc<dyn Source>,
    parent: Option<&Point>,
    old: Option<(&PointDisk, &Parent)>,
    unsound: Option<&str>,
    laid_extents_max: u64,
) -> Result<Chosen> {
    let compare = |reason: String| Ok(Chosen::compare(reason));
    let since = match source.tracking() {
        Tracking::Since(point) => point,
        Tracking::Untracked => return compare("no change tracking".to_owned()),
        Tracking::Lost(why) => return compare(why),
    };
    let (Some(point), Some((disk, old))) = (parent, old) else {
        return compare(format!(
            "changes are tracked since point {}, which has no such disk",
            since.short()
        ));
    };
    if point.id != since {
        return compare(format!(
            "changes are tracked since point {}, other disks' since {}",
            since.short(),
            point.id.short()
        ));
    }
    if let Some(why) = unsound {
        return compare(why.to_owned());
    }
    let size_bytes = source.size_bytes();
    if size_bytes < disk.size_bytes {
        return compare(format!(
            "the disk was {} bytes larger at point {}",
            disk.size_bytes - size_bytes,
            since.short()
        ));
    }
    let laid = match old.tree.overlaid().await {
        Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Missing) => {
            tracing::warn!(
                error = error.chain(),
                "the parent point's tree cannot be read"
            );
            return compare(format!("the tree of point {} is damaged", since.short()));
        }
        laid => laid?.len() as u64,
    };
    let same_size = size_bytes == disk.size_bytes && tree_levels(size_bytes) == Some(disk.levels);
    let room = laid_extents_max.saturating_sub(laid);
    let asked = Arc::clone(source);
    let changes = blocking(move || changes(asked.as_ref(), room)).await?;
    Ok(Chosen {
        way: match changes {
            Some(changes) if same_size => Way::Lay(changes),
            _ => Way::Rewrite,
        },
        reason: format!("changes tracked since point {}", since.short()),
    })
}

/// All that changed, if it is at most `blocks_max` blocks of a disk: no more extents can come of it.
/// Blocking.
fn changes(source: &dyn Source, blocks_max: u64) -> Result<Option<Vec<Range<u64>>>> {
    const BLOCK: u64 = BLOCK_BYTES as u64;
    let mut reader = source.reader()?;
    let mut found: Vec<Range<u64>> = Vec::new();
    let mut blocks = 0;
    let mut at = 0;
    while at < source.size_bytes() {
        let end = (at + ASKED_BYTES).min(source.size_bytes());
        for change in reader.changes(at..end)? {
            // Each is widened to blocks, on whatever grid: one more at most.
            blocks += (change.end - change.start).div_ceil(BLOCK) + 1;
            if blocks > blocks_max {
                return Ok(None);
            }
            match found.last_mut() {
                Some(last) if last.end == change.start => last.end = change.end,
                _ => found.push(change),
            }
        }
        at = end;
    }
    Ok(Some(found))
}

/// Makes sure that the packs which a point refers to are known here, and says why they cannot be
/// relied on, if so.
pub(super) async fn unsound(repository: &Arc<Repository>, point: &Point) -> Result<Option<String>> {
    let catalogue = repository.catalogue();
    if !catalogue.has_references(point.id)? {
        tracing::info!(
            point = %point.id.short(),
            "looking which packs the point refers to: another machine made it, or the cache is new"
        );
        let packs = match references(repository, point).await {
            Ok(packs) => packs,
            Err(error) => {
                tracing::warn!(
                    error = error.chain(),
                    "the parent point's tree cannot be read"
                );
                return Ok(Some(format!(
                    "the tree of point {} is damaged",
                    point.id.short()
                )));
            }
        };
        catalogue.set_references(&point.machine, point.id, None, &packs)?;
    }
    Ok(catalogue.refers_to_lost(point.id)?.then(|| {
        format!(
            "packs that point {} needs are lost or damaged",
            point.id.short()
        )
    }))
}

/// Every pack that a point refers to, by reading its trees.
async fn references(repository: &Arc<Repository>, point: &Point) -> Result<HashSet<PackId>> {
    let mut packs = HashSet::new();
    for disk in point.contents() {
        let tree = TreeReader::new(repository, disk);
        packs.extend(disk.deltas.iter().map(|page| page.location.pack));
        let slices = tree.overlaid().await?.iter().filter_map(|run| run.content);
        packs.extend(slices.map(|slice| slice.location.pack));
        for level in 1..=disk.levels {
            let pages = tree.leaves().div_ceil((FAN_OUT as u64).pow(level.into()));
            for index in 0..pages {
                let inner = tree.inner(level, index).await?;
                packs.extend(inner.map(|(page, _)| page.location.pack));
            }
        }
        for group in 0..tree.groups() {
            for leaf_ref in tree.group(group).await? {
                packs.extend(leaf_ref.pack());
                let leaf = tree.read_leaf(&leaf_ref).await?;
                let slices = leaf.extents.iter().filter_map(|extent| extent.slice);
                packs.extend(slices.map(|slice| slice.location.pack));
            }
        }
    }
    Ok(packs)
}

/// Remembers what a committed point refers to, so that the next one need not look.
pub(super) fn remember(repository: &Repository, machine: &str, point: PointId, outcome: &Outcome) {
    let base = outcome.builds_on;
    let packs = &outcome.referenced;
    if let Err(error) = repository
        .catalogue()
        .set_references(machine, point, base, packs)
    {
        // The next run looks for them itself.
        tracing::debug!(error = error.chain(), "references were not remembered");
    }
}
