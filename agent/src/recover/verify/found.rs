//! What a verify finds, and what that touches: from damaged objects back to machines, points and
//! ranges of disks.

use super::super::restore::stop_here;
use super::super::wants::Stretch;
use super::{Damage, Touched};
use crate::error::{Error, Kind, Result};
use crate::repository::tree::TreeReader;
use crate::repository::{Point, Repository};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use tidegate_protocol::ids::{ChunkId, PackId, PointId};
use tidegate_protocol::record;
use tokio_util::sync::CancellationToken;

/// Ranges named for one damaged object and disk; more are summed up in the last.
const RANGES_MAX: usize = 64;

/// What was found wrong so far.
#[derive(Default)]
pub(super) struct Found {
    /// Points that the log does not hold any more.
    pub(super) points: Vec<Damage>,
    /// Pages: what they touch is known where they are met.
    pub(super) pages: Vec<Damage>,
    /// Whole packs, and why.
    pub(super) packs: BTreeMap<PackId, String>,
    /// Index segments.
    pub(super) segments: Vec<Damage>,
    /// Chunks that are damaged in packs of which others are sound, or are found elsewhere.
    pub(super) chunks: HashMap<ChunkId, PackId>,
}

impl Found {
    /// The points as `elsewhere` knows them. Notes those that only this machine still knows.
    pub(super) async fn points_of(
        &mut self,
        here: &Repository,
        elsewhere: &Repository,
        wanted: &[Point],
    ) -> Result<Vec<Point>> {
        let mut there: HashMap<PointId, Point> = elsewhere
            .points(None)?
            .into_iter()
            .map(|point| (point.id, point))
            .collect();
        // A point may have been expired meanwhile.
        here.refresh().await?;
        let here: HashSet<PointId> = here.points(None)?.iter().map(|point| point.id).collect();
        let mut found = Vec::with_capacity(wanted.len());
        for point in wanted.iter().filter(|point| here.contains(&point.id)) {
            match there.remove(&point.id) {
                Some(point) => found.push(point),
                None => self.points.push(lost_point(point)),
            }
        }
        Ok(found)
    }

    pub(super) fn page(
        &mut self,
        error: Error,
        pack: Option<PackId>,
        touched: Touched,
    ) -> Result<()> {
        if !matches!(error.kind(), Kind::Corrupt | Kind::Missing) {
            return Err(error);
        }
        let object = pack.map_or_else(|| error.to_string(), |pack| pack.object_key());
        match self.pages.iter_mut().find(|damage| damage.object == object) {
            Some(damage) => add_range(&mut damage.touches, touched),
            None => self.pages.push(Damage {
                object,
                found: error.chain(),
                touches: vec![touched],
            }),
        }
        Ok(())
    }

    /// Walks the trees again to see what the damaged packs and chunks touch.
    pub(super) async fn into_damages(
        self,
        repository: &Arc<Repository>,
        points: &[Point],
        stop: &CancellationToken,
    ) -> Result<Vec<Damage>> {
        let mut touches: BTreeMap<PackId, Vec<Touched>> =
            self.packs.keys().map(|pack| (*pack, Vec::new())).collect();
        if !touches.is_empty() {
            let partly: HashSet<PackId> = self.chunks.values().copied().collect();
            for point in points {
                for disk in point.contents() {
                    let tree = TreeReader::new(repository, disk);
                    let touched = |start: u64, length: u32| Touched {
                        machine: point.machine.clone(),
                        point: point.id.to_string(),
                        disk: disk.name.clone(),
                        start,
                        length: length.into(),
                    };
                    for group in 0..tree.groups() {
                        stop_here(stop)?;
                        // Damaged pages were reported before; what they hide cannot be walked.
                        for leaf_ref in readable(tree.group(group).await)?.unwrap_or_default() {
                            let Some(leaf) = readable(tree.read_leaf(&leaf_ref).await)? else {
                                continue;
                            };
                            let start = leaf_ref.range().start;
                            let mut stretch = Stretch::at(start);
                            stretch.leaf(start, &leaf);
                            for want in stretch.wants {
                                let pack = want.location.pack;
                                let spared = partly.contains(&pack)
                                    && !self.chunks.contains_key(&want.chunk);
                                if let Some(list) = touches.get_mut(&pack)
                                    && !spared
                                {
                                    add_range(list, touched(want.disk_offset, want.length));
                                }
                            }
                        }
                    }
                }
            }
        }
        let mut damages = self.points;
        damages.extend(self.pages);
        damages.extend(self.segments);
        for (pack, found) in self.packs {
            damages.push(Damage {
                object: pack.object_key(),
                found,
                touches: touches.remove(&pack).unwrap_or_default(),
            });
        }
        Ok(damages)
    }
}

/// Nothing where what was to be read is damaged.
fn readable<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Missing) => Ok(None),
        Err(error) => Err(error),
    }
}

fn lost_point(point: &Point) -> Damage {
    Damage {
        object: record::object_key(point.number),
        found: "it does not commit the point that this machine knows by it: no other machine does"
            .to_owned(),
        touches: point
            .disks
            .iter()
            .map(|disk| Touched {
                machine: point.machine.clone(),
                point: point.id.to_string(),
                disk: disk.name.clone(),
                start: 0,
                length: disk.size_bytes,
            })
            .collect(),
    }
}

/// Joins adjacent ranges; beyond [`RANGES_MAX`] for a disk the last range grows over the rest.
fn add_range(list: &mut Vec<Touched>, next: Touched) {
    let same_disk = |a: &Touched| a.point == next.point && a.disk == next.disk;
    let count = list
        .iter()
        .rev()
        .take_while(|touched| same_disk(touched))
        .count();
    if let Some(last) = list.last_mut()
        && same_disk(last)
        && (last.start + last.length == next.start || count >= RANGES_MAX)
    {
        last.length = (next.start + next.length).saturating_sub(last.start);
        return;
    }
    list.push(next);
}
