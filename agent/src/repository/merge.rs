//! Putting small index segments together.
//!
//! Each cycle that stored something leaves one, and who comes with an empty cache reads them all. Order:
//! the segments are read and checked against their names, one that says all that they say is durable, a
//! record puts it in their place, and a while later, when it has been read back, their objects go. A crash
//! in between leaves a segment that nothing names.
//!
//! A segment that names a place for a chunk which another of the group places elsewhere stays by itself: a
//! segment has one place for each.

use super::bundle::{BundleSettings, IN_FLIGHT, may_not_delete, stop_here, together};
use super::{Repository, refused};
use crate::blocking::blocking;
use crate::clock;
use crate::error::{Error, Kind, Result};
use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tidegate_protocol::ids::{ChunkId, PackId, SegmentId};
use tidegate_protocol::pack::Location;
use tidegate_protocol::record::{Body, IndexMerged};
use tidegate_protocol::segment::Segment;
use tokio_util::sync::CancellationToken;

/// What became of small segments; on a dry run, what would.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Merged {
    /// Segments that another stands for now.
    pub segments: u64,
    /// Those that were written for them.
    pub written: u64,
    /// Objects deleted, of segments that others stand for.
    pub deleted: u64,
}

impl Repository {
    /// What [`Self::merge_segments`] would do, by what is known of the log here.
    ///
    /// # Errors
    /// As the store's.
    pub async fn plan_merge(&self, settings: &BundleSettings) -> Result<Merged> {
        let groups = self.small_segments(settings).await?;
        let before = settings.before_unix_ns();
        let catalogue = Arc::clone(&self.catalogue);
        let deleted = blocking(move || catalogue.merged_with_object(before)).await?;
        Ok(Merged {
            segments: groups.iter().map(Vec::len).sum::<usize>() as u64,
            written: groups.len() as u64,
            deleted: deleted.len() as u64,
        })
    }

    /// Puts small segments together, and deletes the objects of those that others have stood for a while.
    /// Maintenance and restore level.
    ///
    /// # Errors
    /// As [`Self::bundle`].
    pub async fn merge_segments(
        self: &Arc<Self>,
        settings: &BundleSettings,
        stop: &CancellationToken,
    ) -> Result<Merged> {
        self.refresh().await?;
        self.index().await?;
        let mut done = Merged {
            deleted: self.delete_merged(settings).await?,
            ..Merged::default()
        };
        for group in self.small_segments(settings).await? {
            stop_here(stop)?;
            let merged = self.merge(group).await?;
            done.segments += merged;
            done.written += u64::from(merged > 0);
        }
        self.note_suspects("merging").await;
        // What was written is read before anything is deleted for its sake.
        self.index().await?;
        Ok(done)
    }

    /// Which segments go together, by their sizes in a listing.
    async fn small_segments(&self, settings: &BundleSettings) -> Result<Vec<Vec<SegmentId>>> {
        let catalogue = Arc::clone(&self.catalogue);
        let mergeable = blocking(move || catalogue.mergeable_segments()).await?;
        if mergeable.len() < 2 {
            return Ok(Vec::new());
        }
        let mut small = Vec::new();
        let mut entries = self.store.list("index/", None);
        while let Some(entry) = entries.try_next().await? {
            if let Some(id) = SegmentId::from_object_key(&entry.key)
                && entry.size_bytes <= settings.small_bytes.into()
                && mergeable.contains(&id)
            {
                small.push((id, entry.size_bytes));
            }
        }
        let groups = together(&small, |(_, bytes)| *bytes, settings).into_iter();
        Ok(groups
            .map(|group| group.into_iter().map(|(id, _)| id).collect())
            .collect())
    }

    /// Puts one segment in the place of several. Returns of how many.
    async fn merge(&self, group: Vec<SegmentId>) -> Result<u64> {
        let mut merging = Merging::default();
        let mut removed = Vec::with_capacity(group.len());
        let mut read = stream::iter(group)
            .map(|id| async move { (id, self.read_segment(id).await) })
            .buffered(IN_FLIGHT);
        while let Some((id, segment)) = read.next().await {
            match segment {
                Ok(segment) => {
                    if merging.takes(segment) {
                        removed.push(id);
                    }
                }
                Err(error) if matches!(error.kind(), Kind::Missing | Kind::Corrupt) => {
                    self.suspect_segment(id);
                }
                Err(error) => return Err(error),
            }
        }
        drop(read);
        if removed.len() < 2 {
            return Ok(0);
        }
        let (keys, salt) = (Arc::clone(&self.keys), clock::random()?);
        let (id, bytes) =
            blocking(move || merging.into_segment().encode(&keys, salt).map_err(refused)).await?;
        self.store
            .create_named_by_content(&id.object_key(), bytes.into())
            .await?;
        let body = Body::IndexMerged(IndexMerged {
            removed: removed.iter().map(|id| id.0.to_vec()).collect(),
            added: vec![id.0.to_vec()],
        });
        let appended = self
            .append(|repository| {
                let mergeable = repository.catalogue.mergeable_segments()?;
                match removed.iter().all(|id| mergeable.contains(id)) {
                    true => Ok(body.clone()),
                    false => Err(Error::new(
                        Kind::Conflict,
                        "segments were merged, or found bad, by somebody else meanwhile",
                    )),
                }
            })
            .await;
        match appended {
            Ok(_) => Ok(removed.len() as u64),
            Err(error) if error.kind() == Kind::Conflict => {
                tracing::info!(error = error.chain(), "a merged segment was not needed");
                // It holds randomness of its own: nobody else can be about to name it.
                let deleted = self.store.delete(&id.object_key()).await;
                deleted.map_err(may_not_delete)?;
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// Deletes the objects of segments that others have stood for a while, if those can be read.
    async fn delete_merged(&self, settings: &BundleSettings) -> Result<u64> {
        let before = settings.before_unix_ns();
        let catalogue = Arc::clone(&self.catalogue);
        let segments = blocking(move || match catalogue.segments_to_load()?.is_empty() {
            true => catalogue.merged_with_object(before),
            false => Ok(Vec::new()),
        })
        .await?;
        stream::iter(segments.clone())
            .map(|id| async move { self.store.delete(&id.object_key()).await })
            .buffer_unordered(IN_FLIGHT)
            .try_collect::<()>()
            .await
            .map_err(may_not_delete)?;
        let deleted = segments.len() as u64;
        let catalogue = Arc::clone(&self.catalogue);
        blocking(move || catalogue.forget_merged(&segments)).await?;
        Ok(deleted)
    }
}

/// Segments on their way into one.
#[derive(Default)]
struct Merging {
    packs: HashMap<PackId, u32>,
    chunks: HashSet<ChunkId>,
    entries: Vec<(ChunkId, Location)>,
}

impl Merging {
    /// Takes a segment, unless it says something of a chunk or a pack that another has said already.
    fn takes(&mut self, segment: Segment) -> bool {
        let says_again = segment
            .packs
            .iter()
            .any(|(pack, _)| self.packs.contains_key(pack))
            || segment
                .entries
                .iter()
                .any(|(chunk, _)| self.chunks.contains(chunk));
        if says_again {
            return false;
        }
        self.packs.extend(segment.packs);
        self.chunks
            .extend(segment.entries.iter().map(|(chunk, _)| *chunk));
        self.entries.extend(segment.entries);
        true
    }

    fn into_segment(self) -> Segment {
        Segment {
            packs: self.packs.into_iter().collect(),
            entries: self.entries,
        }
    }
}
