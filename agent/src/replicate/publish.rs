//! Puts packs and index segments into the store, several at a time.
//!
//! A pack that the store has acknowledged enters the local index at once; a segment for the packs of
//! the last while follows every minute, announced by a record, and at the end of the run. While tree
//! packs are known to be lost, segments name pages too; see [`mend`](super::mend).

use super::assemble::Landed;
use super::mend;
use crate::blocking::blocking;
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::pace::Pacer;
use crate::progress::Progress;
use crate::repository::index::{Index, LandedPack};
use crate::repository::{Repository, refused};
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::collections::HashSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tidegate_protocol::ids::{ChunkId, PackId, RunId, SegmentId};
use tidegate_protocol::pack::{
    Footer, HEADER_BYTES_MAX, Location, PackHeader, PackKind, SealedPack, footer_range,
};
use tidegate_protocol::record::{Body, PackSize, RunAnnounced};
use tidegate_protocol::segment::Segment;
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long packs may stand in the store before a segment names them to everybody.
const SEGMENT_EVERY: Duration = Duration::from_secs(60);

/// Chunks for which a segment is written earlier: some 40 MB of memory.
const SEGMENT_ENTRIES: usize = 400_000;

/// How long a stopped run waits for what it has under way. What does not land by then is done again
/// by the next run.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// Packs of an interrupted run that are looked at together.
const ORPHANS_IN_FLIGHT: usize = 8;

/// Read from a pack's end in the hope that its footer is no longer.
const FOOTER_GUESS_BYTES: u64 = 256 << 10;

/// A pack on its way.
pub(super) struct ToPublish {
    id: PackId,
    bytes: Bytes,
    kind: PackKind,
    /// What the index is to know of it. Of tree packs that is nothing, unless pages are being mended:
    /// they are found from the point.
    items: Vec<(ChunkId, Location)>,
}

impl ToPublish {
    pub(super) fn data(id: PackId, bytes: Bytes, chunks: Vec<(ChunkId, Location)>) -> Self {
        Self {
            id,
            bytes,
            kind: PackKind::Data,
            items: chunks,
        }
    }

    pub(super) fn tree(pack: SealedPack) -> Self {
        Self {
            id: pack.id,
            bytes: pack.bytes.into(),
            kind: PackKind::Tree,
            items: Vec::new(),
        }
    }
}

/// What was published.
#[derive(Default)]
pub(super) struct Published {
    /// Segments, with the packs that they index.
    segments: Vec<(SegmentId, Vec<PackId>)>,
    /// How many of the segments, from the front, the log names already.
    announced: usize,
    pub(super) tree_packs: Vec<PackSize>,
    pub(super) packs: u64,
    pub(super) stored_bytes: u64,
}

impl Published {
    pub(super) fn segment_ids(&self) -> Vec<Vec<u8>> {
        ids_of(&self.segments)
    }

    /// The log names every segment: their packs are nobody's orphans any more.
    pub(super) async fn settle(&mut self, repository: &Arc<Repository>) {
        // As it is: it would load our own segments, whose packs it has.
        let Some(index) = repository.index_as_it_is() else {
            return;
        };
        if let Err(error) = self.assign(&index).await {
            // The next run takes the packs over once more, which does no harm.
            tracing::warn!(error = error.chain(), "the local index is behind the log");
        }
    }

    async fn assign(&mut self, index: &Arc<Index>) -> Result<()> {
        let fresh = self.segments[self.announced..].to_vec();
        let index = Arc::clone(index);
        blocking(move || {
            fresh
                .iter()
                .try_for_each(|(id, packs)| index.assign_segment(packs, *id))
        })
        .await?;
        self.announced = self.segments.len();
        Ok(())
    }

    /// Tells everybody of the segments of a run that does not end with a point, if that can be done
    /// soon: else this host's next run finds their packs in the local index.
    pub(super) async fn abandon(
        &mut self,
        repository: &Arc<Repository>,
        run: RunId,
        machine: &str,
    ) {
        if self.segments.is_empty() {
            return;
        }
        let fresh = ids_of(&self.segments[self.announced..]);
        let announced = announce(repository, run, machine, fresh, true);
        match tokio::time::timeout(STOP_GRACE, announced).await {
            Ok(Ok(())) => self.settle(repository).await,
            Ok(Err(error)) => {
                tracing::warn!(error = error.chain(), "a stopped run was not announced");
            }
            Err(_) => tracing::warn!("a stopped run was not announced in time"),
        }
    }
}

fn ids_of(segments: &[(SegmentId, Vec<PackId>)]) -> Vec<Vec<u8>> {
    segments.iter().map(|(id, _)| id.0.to_vec()).collect()
}

pub(super) struct Publisher {
    pub(super) repository: Arc<Repository>,
    pub(super) index: Arc<Index>,
    pub(super) landed: Arc<Landed>,
    pub(super) progress: Arc<Progress>,
    pub(super) run: RunId,
    pub(super) machine: String,
    pub(super) uploads_in_flight: usize,
    /// Asked before each pack and segment leaves.
    pub(super) pacer: Option<Arc<Pacer>>,
    /// Cancelled when publishing fails: then there is no use in reading on.
    pub(super) halt: CancellationToken,
    /// Cancelled when the operator asks to stop.
    pub(super) stop: CancellationToken,
    /// What the next segment will hold.
    pub(super) segment: Segment,
    pub(super) published: Published,
    /// Set where tree packs were known to be lost when the run began: then the index takes in the pages
    /// of new ones, so that older points find what they have in common with this one.
    pub(super) mends: bool,
}

struct Arrived {
    id: PackId,
    bytes: u64,
    kind: PackKind,
    items: Vec<(ChunkId, Location)>,
}

impl Publisher {
    /// Publishes all that comes, then what is left; returns when everything is durable. What was
    /// published comes back also where it fails.
    pub(super) async fn run(mut self, packs: Receiver<ToPublish>) -> (Published, Result<()>) {
        let stop = self.stop.clone();
        let given_up = async {
            stop.cancelled().await;
            tokio::time::sleep(STOP_GRACE).await;
        };
        let done = tokio::select! {
            done = self.publish(packs) => done,
            () = given_up => {
                tracing::warn!("what was under way when the run was stopped did not land in time");
                Ok(())
            }
        };
        if done.is_err() {
            self.halt.cancel();
        }
        (self.published, done)
    }

    async fn publish(&mut self, mut packs: Receiver<ToPublish>) -> Result<()> {
        let mut last_segment = Instant::now();
        let mut uploads = JoinSet::new();
        let mut open = true;
        while open || !uploads.is_empty() {
            tokio::select! {
                pack = packs.recv(), if open && uploads.len() < self.uploads_in_flight => match pack {
                    Some(pack) => drop(uploads.spawn(upload(Arc::clone(&self.repository), self.pacer.clone(), self.stop.clone(), pack, self.mends))),
                    None => open = false,
                },
                Some(arrived) = uploads.join_next() => {
                    let arrived = arrived.map_err(|error| {
                        Error::new(Kind::Bug, "an upload broke down").caused_by(error)
                    })??;
                    // None: the run was stopped before its turn came.
                    if let Some(arrived) = arrived {
                        self.arrived(arrived).await?;
                    }
                }
            }
            // Short runs need no announcement: their one segment is named by the point itself.
            let due = last_segment.elapsed() >= SEGMENT_EVERY
                || self.segment.entries.len() >= SEGMENT_ENTRIES;
            if open && due && !self.segment.entries.is_empty() {
                self.put_segment().await?;
                self.announce_segments().await?;
                last_segment = Instant::now();
            }
        }
        if self.segment.entries.is_empty() {
            return Ok(());
        }
        self.put_segment().await
    }

    async fn arrived(&mut self, arrived: Arrived) -> Result<()> {
        self.published.packs += 1;
        self.published.stored_bytes += arrived.bytes;
        self.progress.add_stored(arrived.bytes);
        if arrived.kind == PackKind::Tree {
            self.published.tree_packs.push(PackSize {
                pack: arrived.id.0.to_vec(),
                bytes: arrived.bytes,
            });
            if arrived.items.is_empty() {
                return Ok(());
            }
        }
        let index = Arc::clone(&self.index);
        let (id, bytes, items) = (arrived.id, arrived.bytes, arrived.items);
        let items = blocking(move || {
            index.add_landed(id, bytes, &items)?;
            Ok(items)
        })
        .await?;
        if arrived.kind == PackKind::Data {
            let ids = items.iter().map(|(chunk, _)| *chunk).collect();
            // Only now: whoever misses the chunk among the claims finds it in the index.
            self.landed
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(ids);
        }
        self.add_to_segment(id, bytes, items);
        Ok(())
    }

    fn add_to_segment(&mut self, pack: PackId, bytes: u64, chunks: Vec<(ChunkId, Location)>) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.segment.packs.push((pack, bytes));
        self.segment.entries.extend(chunks);
    }

    /// Stores what was gathered. Its packs stay this host's orphans until the log names the segment.
    async fn put_segment(&mut self) -> Result<()> {
        let mut segment = std::mem::take(&mut self.segment);
        let packs: Vec<PackId> = segment.packs.iter().map(|(pack, _)| *pack).collect();
        let salt = clock::random()?;
        let repository = Arc::clone(&self.repository);
        let (id, bytes) =
            blocking(move || segment.encode(repository.keys(), salt).map_err(refused)).await?;
        let length = bytes.len() as u64;
        let store = self.repository.store();
        // What a stopped run has stored is worth to be named, whatever the rate.
        let _ = let_through(self.pacer.as_deref(), &self.stop, length).await;
        store
            .create_named_by_content(&id.object_key(), bytes.into())
            .await?;
        self.published.stored_bytes += length;
        self.published.segments.push((id, packs));
        self.progress.add_stored(length);
        Ok(())
    }

    /// Tells everybody of the segments stored so far, before the run ends.
    async fn announce_segments(&mut self) -> Result<()> {
        let fresh = ids_of(&self.published.segments[self.published.announced..]);
        announce(&self.repository, self.run, &self.machine, fresh, false).await?;
        self.published.assign(&self.index).await
    }

    /// Names anew what nothing names any more, and stores anew what is lost, as far as this machine has it.
    pub(super) async fn mend(&mut self) -> Result<()> {
        let repository = Arc::clone(&self.repository);
        let lost = blocking(move || repository.catalogue().bad_tree_packs()).await?;
        self.mends = !lost.is_empty();
        // Pages of a lost pack may stand in one of the orphans already.
        self.take_over_orphans().await?;
        self.mend_tree_packs(lost).await
    }

    /// Packs that an interrupted run of this host left in the store without a segment, and those whose
    /// segment was lost, go into ours.
    async fn take_over_orphans(&mut self) -> Result<()> {
        let index = Arc::clone(&self.index);
        let orphans = blocking(move || index.orphans()).await?;
        let unusable = self.index.unusable();
        // A pass before this one may have indexed them already.
        let indexed: HashSet<PackId> = self
            .published
            .segments
            .iter()
            .flat_map(|(_, packs)| packs.iter().copied())
            .collect();
        let repository = Arc::clone(&self.repository);
        let mut footers = stream::iter(orphans)
            .filter(|pack| {
                std::future::ready(!unusable.contains(&pack.id) && !indexed.contains(&pack.id))
            })
            .map(|pack| {
                let repository = Arc::clone(&repository);
                async move { (pack, footer(&repository, pack).await) }
            })
            .buffer_unordered(ORPHANS_IN_FLIGHT);
        while let Some((pack, footer)) = footers.next().await {
            match footer {
                // A tree of a run that goes on, or went nowhere. Its pages are nothing for the index.
                Ok((PackKind::Tree, _)) if !self.mends => {
                    let index = Arc::clone(&self.index);
                    blocking(move || index.forget(&pack)).await?;
                }
                Ok((_, footer)) => {
                    let index = Arc::clone(&self.index);
                    let items = blocking(move || {
                        let items: Vec<_> = footer
                            .locations(pack.id)
                            .map(|(id, location)| (ChunkId(id), location))
                            .collect();
                        index.add_unnamed(&pack, &items)?;
                        Ok(items)
                    })
                    .await?;
                    self.add_to_segment(pack.id, pack.bytes, items);
                    // Of a lost segment they may be many.
                    if self.segment.entries.len() >= SEGMENT_ENTRIES {
                        self.put_segment().await?;
                        self.announce_segments().await?;
                    }
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        Kind::Missing | Kind::Corrupt | Kind::Unsupported
                    ) =>
                {
                    tracing::warn!(pack = %pack.id, error = error.chain(), "a pack that no segment names cannot be used: its chunks are stored again");
                    if error.kind() != Kind::Unsupported {
                        self.repository.suspect(pack.id);
                    }
                    let index = Arc::clone(&self.index);
                    blocking(move || index.forget(&pack)).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Stores anew the pages of the `lost` tree packs that this machine has kept.
    async fn mend_tree_packs(&mut self, lost: HashSet<PackId>) -> Result<()> {
        for pack in lost {
            let (repository, index) = (Arc::clone(&self.repository), Arc::clone(&self.index));
            let resealed = blocking(move || mend::mend(&repository, &index, pack)).await?;
            if let Some(sealed) = resealed {
                tracing::info!(lost = %pack, anew = %sealed.id, "the pages of a lost tree pack are stored anew");
                let arrived = upload(
                    Arc::clone(&self.repository),
                    self.pacer.clone(),
                    self.stop.clone(),
                    ToPublish::tree(sealed),
                    self.mends,
                );
                if let Some(arrived) = arrived.await? {
                    self.arrived(arrived).await?;
                }
            }
        }
        Ok(())
    }
}

/// A pack's kind and table of contents, without the pack.
async fn footer(repository: &Arc<Repository>, pack: LandedPack) -> Result<(PackKind, Footer)> {
    let key = pack.id.object_key();
    let damaged = |error| repository.damaged(&key, error);
    let header_end = pack.bytes.min(HEADER_BYTES_MAX as u64);
    let header = repository.read_pack(pack.id, 0..header_end).await?;
    let mut start = pack.bytes.saturating_sub(FOOTER_GUESS_BYTES);
    let mut tail = repository.read_pack(pack.id, start..pack.bytes).await?;
    let trailer = tail.last_chunk().ok_or_else(|| {
        let error = Error::new(Kind::Corrupt, format!("it has only {} bytes", pack.bytes));
        repository.damaged(&key, error)
    })?;
    let range = footer_range(pack.bytes, trailer).map_err(damaged)?;
    if range.start < start {
        start = range.start;
        tail = repository.read_pack(pack.id, range.clone()).await?;
    }
    let repository = Arc::clone(repository);
    blocking(move || {
        let damaged = |error| repository.damaged(&key, error);
        let header = PackHeader::decode(&header).map_err(damaged)?;
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let from = usize::try_from(range.start - start).unwrap_or(usize::MAX);
        let sealed = tail
            .get(from..from.saturating_add(length))
            .unwrap_or_default();
        Footer::open_part(&header, sealed, repository.keys(), range.start)
            .map(|footer| (header.kind, footer))
            .map_err(damaged)
    })
    .await
}

async fn announce(
    repository: &Repository,
    run: RunId,
    machine: &str,
    segments: Vec<Vec<u8>>,
    abandoned: bool,
) -> Result<()> {
    repository
        .append(|_| {
            Ok(Body::RunAnnounced(RunAnnounced {
                run: run.0.to_vec(),
                machine: machine.to_owned(),
                segments: segments.clone(),
                abandoned,
            }))
        })
        .await
        .map(drop)
}

/// Stores a pack. A tree pack is kept in the local cache too; with `index_pages` the index learns where
/// its pages lie. None where the run was stopped while the pack waited for its turn.
async fn upload(
    repository: Arc<Repository>,
    pacer: Option<Arc<Pacer>>,
    stop: CancellationToken,
    pack: ToPublish,
    index_pages: bool,
) -> Result<Option<Arrived>> {
    let ToPublish {
        id,
        bytes,
        kind,
        mut items,
    } = pack;
    let length = bytes.len() as u64;
    let store = repository.store();
    if !let_through(pacer.as_deref(), &stop, length).await {
        return Ok(None);
    }
    store
        .create_named_by_content(&id.object_key(), bytes.clone())
        .await?;
    if kind == PackKind::Tree {
        let keep = Arc::clone(&repository);
        items = blocking(move || {
            keep.keep_tree_pack(id, &bytes);
            // Or the parent's tree has turned out to be damaged just now.
            match index_pages || keep.has_suspects() {
                true => mend::pages_of(id, &bytes, keep.keys()),
                false => Ok(Vec::new()),
            }
        })
        .await?;
    }
    Ok(Some(Arrived {
        id,
        bytes: length,
        kind,
        items,
    }))
}

/// Waits until so many bytes may be sent; false where the run is stopped before.
async fn let_through(pacer: Option<&Pacer>, stop: &CancellationToken, bytes: u64) -> bool {
    let Some(pacer) = pacer else {
        return true;
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => false,
        () = pacer.let_through(bytes) => true,
    }
}
