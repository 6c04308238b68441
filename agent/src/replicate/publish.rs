//! Puts packs and index segments into the store, several at a time.
//!
//! A pack that the store has acknowledged enters the local index at once; a segment for the packs of
//! the last while follows every minute, announced by a record, and at the end of the run.

use super::assemble::Landed;
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;
use crate::repository::index::{Index, LandedPack};
use crate::repository::{Repository, blocking, refused};
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tidegate_protocol::ids::{ChunkId, PackId, RunId, SegmentId};
use tidegate_protocol::limits::PACK_BYTES_MAX;
use tidegate_protocol::pack::{Footer, Location, SealedPack};
use tidegate_protocol::record::{Body, PackSize, RunAnnounced};
use tidegate_protocol::segment::Segment;
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How long packs may stand in the store before a segment names them to everybody.
const SEGMENT_EVERY: Duration = Duration::from_secs(60);

/// Packs of an interrupted run that are looked at together.
const ORPHANS_IN_FLIGHT: usize = 8;

/// A pack on its way.
pub(super) struct ToPublish {
    id: PackId,
    bytes: Vec<u8>,
    /// Data packs: what is in it. Tree packs: nothing, they are found from the point.
    chunks: Option<Vec<(ChunkId, Location)>>,
}

impl ToPublish {
    pub(super) fn data(pack: SealedPack, chunks: Vec<(ChunkId, Location)>) -> Self {
        Self {
            id: pack.id,
            bytes: pack.bytes,
            chunks: Some(chunks),
        }
    }

    pub(super) fn tree(pack: SealedPack) -> Self {
        Self {
            id: pack.id,
            bytes: pack.bytes,
            chunks: None,
        }
    }
}

/// What was published.
#[derive(Default)]
pub(super) struct Published {
    pub(super) segments: Vec<SegmentId>,
    pub(super) tree_packs: Vec<PackSize>,
    pub(super) packs: u64,
    pub(super) stored_bytes: u64,
}

pub(super) struct Publisher {
    pub(super) repository: Arc<Repository>,
    pub(super) index: Arc<Index>,
    pub(super) landed: Arc<Landed>,
    pub(super) progress: Arc<Progress>,
    pub(super) run: RunId,
    pub(super) machine: String,
    pub(super) uploads_in_flight: usize,
}

struct Arrived {
    id: PackId,
    bytes: u64,
    chunks: Option<Vec<(ChunkId, Location)>>,
}

impl Publisher {
    /// Publishes all that comes, then what is left; returns when everything is durable.
    pub(super) async fn run(self, mut packs: Receiver<ToPublish>) -> Result<Published> {
        let mut published = Published::default();
        let mut segment = Segment::default();
        self.take_over_orphans(&mut segment).await?;
        let mut last_segment = Instant::now();
        let mut uploads = JoinSet::new();
        let mut open = true;
        while open || !uploads.is_empty() {
            tokio::select! {
                pack = packs.recv(), if open && uploads.len() < self.uploads_in_flight => match pack {
                    Some(pack) => drop(uploads.spawn(upload(Arc::clone(&self.repository), pack))),
                    None => open = false,
                },
                Some(arrived) = uploads.join_next() => {
                    let arrived = arrived.map_err(|error| {
                        Error::new(Kind::Bug, "an upload broke down").caused_by(error)
                    })??;
                    self.arrived(arrived, &mut segment, &mut published).await?;
                }
            }
            // Short runs need no announcement: their one segment is named by the point itself.
            if open && last_segment.elapsed() >= SEGMENT_EVERY && !segment.entries.is_empty() {
                let id = self
                    .put_segment(std::mem::take(&mut segment), &mut published)
                    .await?;
                self.announce(&[id], false).await?;
                published.segments.push(id);
                last_segment = Instant::now();
            }
        }
        if !segment.entries.is_empty() {
            let id = self.put_segment(segment, &mut published).await?;
            published.segments.push(id);
        }
        Ok(published)
    }

    /// Tells everybody of segments of a run that does not end with a point.
    pub(super) async fn announce_abandoned(
        repository: &Repository,
        run: RunId,
        machine: &str,
        segments: &[SegmentId],
    ) -> Result<()> {
        announce(repository, run, machine, segments, true).await
    }

    async fn announce(&self, segments: &[SegmentId], abandoned: bool) -> Result<()> {
        announce(
            &self.repository,
            self.run,
            &self.machine,
            segments,
            abandoned,
        )
        .await
    }

    async fn arrived(
        &self,
        arrived: Arrived,
        segment: &mut Segment,
        published: &mut Published,
    ) -> Result<()> {
        published.packs += 1;
        published.stored_bytes += arrived.bytes;
        self.progress.add_stored(arrived.bytes);
        let Some(chunks) = arrived.chunks else {
            published.tree_packs.push(PackSize {
                pack: arrived.id.0.to_vec(),
                bytes: arrived.bytes,
            });
            return Ok(());
        };
        let index = Arc::clone(&self.index);
        let (id, bytes) = (arrived.id, arrived.bytes);
        let chunks = blocking(move || {
            index.add_landed(id, bytes, &chunks)?;
            Ok(chunks)
        })
        .await?;
        let ids = chunks.iter().map(|(chunk, _)| *chunk).collect();
        // Only now: whoever misses the chunk among the claims finds it in the index.
        self.landed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(ids);
        add_to_segment(segment, id, bytes, chunks);
        Ok(())
    }

    async fn put_segment(
        &self,
        mut segment: Segment,
        published: &mut Published,
    ) -> Result<SegmentId> {
        let packs: Vec<PackId> = segment.packs.iter().map(|(pack, _)| *pack).collect();
        let salt = clock::random()?;
        let repository = Arc::clone(&self.repository);
        let (id, bytes) =
            blocking(move || segment.encode(repository.keys(), salt).map_err(refused)).await?;
        let length = bytes.len() as u64;
        let store = self.repository.store();
        store
            .create_named_by_content(&id.object_key(), bytes.into())
            .await?;
        published.stored_bytes += length;
        self.progress.add_stored(length);
        let index = Arc::clone(&self.index);
        blocking(move || index.assign_segment(&packs, id)).await?;
        Ok(id)
    }

    /// Packs that an interrupted run of this host left in the store without a segment go into ours.
    async fn take_over_orphans(&self, segment: &mut Segment) -> Result<()> {
        let orphans = self.index.orphans()?;
        let mut footers = stream::iter(orphans)
            .map(|pack| async move { (pack, self.footer(pack).await) })
            .buffer_unordered(ORPHANS_IN_FLIGHT);
        while let Some((pack, footer)) = footers.next().await {
            match footer {
                Ok(footer) => {
                    let chunks = footer
                        .locations(pack.id)
                        .map(|(id, location)| (ChunkId(id), location))
                        .collect();
                    add_to_segment(segment, pack.id, pack.bytes, chunks);
                }
                Err(error) if matches!(error.kind(), Kind::Missing | Kind::Corrupt) => {
                    tracing::warn!(pack = %pack.id, error = error.chain(), "a pack of an interrupted run cannot be used: its chunks are stored again");
                    self.index.forget(&pack)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn footer(&self, pack: LandedPack) -> Result<Footer> {
        let key = pack.id.object_key();
        let bytes = self
            .repository
            .store()
            .get(&key, PACK_BYTES_MAX.into())
            .await?;
        let repository = Arc::clone(&self.repository);
        blocking(move || {
            Footer::open(&bytes, repository.keys()).map_err(|error| repository.damaged(&key, error))
        })
        .await
    }
}

async fn announce(
    repository: &Repository,
    run: RunId,
    machine: &str,
    segments: &[SegmentId],
    abandoned: bool,
) -> Result<()> {
    repository
        .append(|_| {
            Ok(Body::RunAnnounced(RunAnnounced {
                run: run.0.to_vec(),
                machine: machine.to_owned(),
                segments: segments.iter().map(|id| id.0.to_vec()).collect(),
                abandoned,
            }))
        })
        .await
        .map(drop)
}

async fn upload(repository: Arc<Repository>, pack: ToPublish) -> Result<Arrived> {
    let bytes = Bytes::from(pack.bytes);
    let length = bytes.len() as u64;
    let store = repository.store();
    store
        .create_named_by_content(&pack.id.object_key(), bytes.clone())
        .await?;
    if pack.chunks.is_none() {
        let id = pack.id;
        let keep = Arc::clone(&repository);
        blocking(move || {
            keep.keep_tree_pack(id, &bytes);
            Ok(())
        })
        .await?;
    }
    Ok(Arrived {
        id: pack.id,
        bytes: length,
        chunks: pack.chunks,
    })
}

fn add_to_segment(
    segment: &mut Segment,
    pack: PackId,
    bytes: u64,
    chunks: Vec<(ChunkId, Location)>,
) {
    segment
        .packs
        .push((pack, u32::try_from(bytes).unwrap_or(u32::MAX)));
    segment.entries.extend(chunks);
}
