//! One thread owns the open pack and the trees: it takes what the cutting threads make, puts frames
//! into packs, gives pending chunks their place once their pack has a name, and writes the trees.
//!
//! ```text
//! frames ──► open pack ──full──► named ──► publisher
//!                                  │
//! leaves ──► waiting ◄──places─────┘
//!               └────all placed────► tree ──► tree packs ──► publisher
//! ```

use super::draft::{self, DraftExtent, LeafDraft, Part};
use super::lay;
use super::publish::ToPublish;
use super::way::Way;
use super::worker::{Disk, Made, Shared};
use crate::buffers::Buffers;
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::repository::index::{Index, IndexReader};
use crate::repository::refused;
use crate::repository::tree::overlay::Run;
use crate::repository::tree::{LeafContent, OldTree, TreeWriter};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use tidegate_protocol::ids::{ChunkId, PackId};
use tidegate_protocol::keys::Secret;
use tidegate_protocol::pack::{Location, PackKind, PackRandom, PackWriter};
use tidegate_protocol::page::{DeltaExtent, Inner, PageRef, Slice};
use tokio::sync::mpsc::Sender;

/// Extents of waiting leaves beyond which the open pack is closed early, so that memory stays
/// bounded when little of much is new: about 50 MB.
const WAITING_EXTENTS_MAX: usize = 400_000;

/// Places of chunks of this run that are remembered, though the index knows them: a look there costs
/// more. About 30 MB, with the claims.
const PLACES_MAX: usize = 200_000;

/// Chunks after which a dry run forgets what it has met: about 130 MB. What repeats after more than
/// that is counted as new again.
const DRY_RUN_CHUNKS_MAX: usize = 2_000_000;

/// Packs that have landed, on their way back from the publisher.
pub(super) type Landed = Mutex<Vec<Vec<ChunkId>>>;

/// What the run's disks came to.
pub(super) struct Assembled {
    /// Every disk's root; empty when the run was stopped.
    pub(super) roots: Vec<Option<PageRef>>,
    /// Every disk's delta pages, those that stay and those that were written.
    pub(super) deltas: Vec<Vec<PageRef>>,
    /// Packs that this run has written, packs in which waiting chunks were found, and tree packs of
    /// the parent that the new trees refer to.
    pub(super) referenced: HashSet<PackId>,
    /// Bytes of packs, also on a dry run.
    pub(super) stored_bytes: u64,
}

pub(super) struct Assembler<'a, F> {
    shared: &'a Shared,
    out: Option<Sender<ToPublish>>,
    landed: Arc<Landed>,
    tree: TreeWriter<'a, F>,
    old: OldTrees<'a>,
    index: IndexReader,
    buffers: Buffers,
    pack: Option<PackWriter>,
    /// Chunks of the open pack.
    open: Vec<(ChunkId, Location)>,
    /// Chunks of this run whose packs have a name: all that have not landed, and many that have.
    places: HashMap<ChunkId, Location>,
    /// Those that have landed, pack by pack.
    known: VecDeque<Vec<ChunkId>>,
    waiting: Vec<Waiting>,
    waiting_extents: usize,
    /// What is laid over each disk's tree in the end; bounded by [`Way`].
    laid: Vec<Vec<Run<Part>>>,
    /// Data packs that this run has written.
    own: HashSet<PackId>,
    referenced: HashSet<PackId>,
    stored_bytes: u64,
    /// Chunks that a dry run has claimed since it last forgot them.
    dry_chunks: usize,
}

struct Waiting {
    disk: usize,
    index: u64,
    extents: Vec<DraftExtent>,
}

/// `out` is absent on a dry run.
pub(super) fn assembler<'a>(
    shared: &'a Shared,
    out: Option<Sender<ToPublish>>,
    landed: Arc<Landed>,
) -> Result<Assembler<'a, impl FnMut() -> Result<PackRandom>>> {
    let sizes: Vec<u64> = shared.disks.iter().map(|disk| disk.size_bytes).collect();
    let pack_bytes = shared.settings.pack_bytes as usize;
    Ok(Assembler {
        tree: TreeWriter::new(shared.repository.keys(), &sizes, pack_bytes, pack_random)?,
        old: OldTrees {
            disks: &shared.disks,
            runtime: &shared.runtime,
            index: &shared.index,
            referenced: HashSet::new(),
        },
        index: shared.index.reader()?,
        shared,
        out,
        landed,
        buffers: Buffers::default(),
        pack: None,
        open: Vec::new(),
        places: HashMap::new(),
        known: VecDeque::new(),
        waiting: Vec::new(),
        waiting_extents: 0,
        laid: shared.disks.iter().map(|_| Vec::new()).collect(),
        own: HashSet::new(),
        referenced: HashSet::new(),
        stored_bytes: 0,
        dry_chunks: 0,
    })
}

impl<F: FnMut() -> Result<PackRandom>> Assembler<'_, F> {
    /// Takes everything that the cutting threads make, until they are gone.
    pub(super) fn run(mut self, made: &Receiver<Made>) -> Result<Assembled> {
        while let Ok(made) = made.recv() {
            self.forget_landed();
            match made {
                Made::Frame { payload, items } => self.frame(&payload, &items)?,
                // A dry run writes no trees.
                Made::Span { .. } | Made::Laid { .. } if self.out.is_none() => {}
                Made::Laid { runs } => {
                    for (disk, run) in runs {
                        if let Some(laid) = self.laid.get_mut(disk) {
                            laid.push(run);
                        }
                    }
                }
                Made::Span { disk, leaves } => {
                    for (index, leaf) in leaves {
                        self.leaf(disk, index, leaf)?;
                    }
                    self.send_tree_packs()?;
                }
            }
        }
        self.close_pack()?;
        // What waits for no pack of this run: a gateway has told where it is.
        self.settle_all()?;
        let mut assembled = Assembled {
            roots: Vec::new(),
            deltas: Vec::new(),
            referenced: HashSet::new(),
            stored_bytes: self.stored_bytes,
        };
        if self.shared.stop.is_cancelled() || self.out.is_none() {
            return Ok(assembled);
        }
        if !self.waiting.is_empty() {
            return Err(forgotten());
        }
        let stay = self.lay_all()?;
        let (trees, packs) = self.tree.finish(&mut self.old)?;
        for pack in packs {
            assembled.stored_bytes += pack.bytes.len() as u64;
            self.referenced.insert(pack.id);
            publish(self.out.as_ref(), ToPublish::tree(pack))?;
        }
        assembled.roots = trees.roots;
        assembled.deltas = stay;
        for (pages, written) in assembled.deltas.iter_mut().zip(trees.deltas) {
            pages.extend(written);
        }
        assembled.referenced = self.old.referenced;
        assembled.referenced.extend(self.referenced);
        Ok(assembled)
    }

    fn frame(&mut self, payload: &[u8], items: &[(ChunkId, u32)]) -> Result<()> {
        let mut pack = match self.pack.take() {
            Some(pack) => pack,
            None => self.new_data_pack()?,
        };
        let range = pack
            .push(
                payload,
                items.iter().map(|(chunk, length)| (chunk.0, *length)),
            )
            .map_err(refused)?;
        let mut offset_in_frame = 0;
        for (chunk, length) in items {
            self.open.push((
                *chunk,
                Location {
                    pack: PackId::OWN,
                    frame_offset: range.start,
                    frame_bytes: range.end - range.start,
                    offset_in_frame,
                    length: *length,
                },
            ));
            offset_in_frame += length;
        }
        let full = pack.len() >= self.shared.settings.pack_bytes as usize;
        self.pack = Some(pack);
        if full {
            self.close_pack()?;
        }
        Ok(())
    }

    fn new_data_pack(&self) -> Result<PackWriter> {
        // Room for the last frame and the footer, so that the buffer never moves.
        let capacity_bytes = self.shared.settings.pack_bytes as usize + (2 << 20);
        let buffer = self.buffers.take(capacity_bytes);
        let keys = self.shared.repository.keys();
        PackWriter::new(PackKind::Data, keys, pack_random()?, buffer)
            .map_err(|error| Error::new(Kind::Bug, "a pack cannot be begun").caused_by(error))
    }

    /// Names the open pack, sends it on its way, and places what waited for it.
    fn close_pack(&mut self) -> Result<()> {
        let Some(pack) = self.pack.take() else {
            return Ok(());
        };
        let sealed = pack.finish();
        let (id, bytes) = (sealed.id, self.buffers.share(sealed.bytes));
        self.own.insert(id);
        self.stored_bytes += bytes.len() as u64;
        let mut chunks = std::mem::take(&mut self.open);
        if self.out.is_none() {
            self.dry_chunks += chunks.len();
            if self.dry_chunks > DRY_RUN_CHUNKS_MAX {
                self.dry_chunks = 0;
                self.shared.claims.clear();
            }
            return Ok(());
        }
        for (chunk, location) in &mut chunks {
            location.pack = id;
            self.places.insert(*chunk, *location);
        }
        publish(self.out.as_ref(), ToPublish::data(id, bytes, chunks))?;
        self.settle_all()?;
        self.send_tree_packs()
    }

    /// Places what has waited, where it can be placed by now.
    fn settle_all(&mut self) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        self.waiting_extents = 0;
        for leaf in waiting {
            self.settle(leaf)?;
        }
        Ok(())
    }

    fn leaf(&mut self, disk: usize, index: u64, leaf: LeafDraft) -> Result<()> {
        match leaf {
            LeafDraft::Ready(content) => self.place(disk, index, content),
            LeafDraft::Waiting(extents) => {
                self.settle(Waiting {
                    disk,
                    index,
                    extents,
                })?;
                if self.waiting_extents > WAITING_EXTENTS_MAX {
                    match self.pack {
                        Some(_) => self.close_pack()?,
                        // They wait for what a gateway tells.
                        None => self.settle_all()?,
                    }
                }
                Ok(())
            }
        }
    }

    /// Writes what is laid over trees that stay. Returns each disk's delta pages that stay.
    fn lay_all(&mut self) -> Result<Vec<Vec<PageRef>>> {
        let shared = self.shared;
        let mut stay = Vec::with_capacity(shared.disks.len());
        for (number, disk) in shared.disks.iter().enumerate() {
            let mut pages = Vec::new();
            if let (Way::Lay(_), Some(parent)) = (&disk.way, &disk.parent) {
                self.tree.keep(number, parent.tree.root());
                pages.extend(parent.tree.delta_pages());
                let laid = self.laid.get_mut(number).map(std::mem::take);
                let laid = self.placed(laid.unwrap_or_default())?;
                if !laid.is_empty() {
                    let old = self.delta_runs(&pages)?;
                    let (keep, written) = lay::pages(&old, laid)?;
                    pages.truncate(keep);
                    for page in written {
                        self.tree.delta(number, &page, &mut self.old)?;
                    }
                }
            }
            stay.push(pages);
        }
        Ok(stay)
    }

    /// What old delta pages say.
    fn delta_runs(&self, pages: &[PageRef]) -> Result<Vec<Vec<Run<Option<Slice>>>>> {
        let (runtime, repository) = (&self.shared.runtime, &self.shared.repository);
        pages
            .iter()
            .map(|page| {
                let delta = runtime.block_on(repository.delta(page))?;
                let run = |extent: &DeltaExtent| Run {
                    range: extent.start..extent.end(),
                    content: extent.slice,
                };
                Ok(delta.extents.iter().map(run).collect())
            })
            .collect()
    }

    /// The same runs, every chunk with its place, in the order of the disk.
    fn placed(&mut self, mut runs: Vec<Run<Part>>) -> Result<Vec<Run<Option<Slice>>>> {
        runs.sort_unstable_by_key(|run| run.range.start);
        let mut placed = Vec::with_capacity(runs.len());
        for run in runs {
            let slice = match run.content {
                Part::Hole => None,
                Part::Known(slice) => Some(slice),
                Part::Pending { chunk, offset } => {
                    let location = self.place_of(&chunk)?.ok_or_else(forgotten)?;
                    Some(Slice {
                        chunk,
                        offset,
                        location,
                    })
                }
            };
            self.referenced
                .extend(slice.map(|slice| slice.location.pack));
            placed.push(Run {
                range: run.range,
                content: slice,
            });
        }
        Ok(placed)
    }

    /// Where a chunk of this run lies, if its pack has a name.
    fn place_of(&mut self, chunk: &ChunkId) -> Result<Option<Location>> {
        if let Some(place) = self.places.get(chunk) {
            return Ok(Some(*place));
        }
        // Its pack may have landed meanwhile: then the index has it. Should that pack of our own have
        // been condemned since, the commit finds out whether it was swept too.
        let unusable = self.shared.index.unusable();
        let place = self.index.anywhere(chunk)?;
        Ok(place.filter(|place| self.own.contains(&place.pack) || !unusable.contains(&place.pack)))
    }

    /// Puts the leaf into the tree if all its chunks have a place, or lets it wait.
    fn settle(&mut self, leaf: Waiting) -> Result<()> {
        let mut failure = None;
        let settled = draft::settle(&leaf.extents, |chunk| {
            self.place_of(chunk).unwrap_or_else(|error| {
                failure = Some(error);
                None
            })
        });
        if let Some(error) = failure {
            return Err(error);
        }
        match settled {
            Some(settled) => {
                let slices = settled.extents.iter().filter_map(|extent| extent.slice);
                self.referenced
                    .extend(slices.map(|slice| slice.location.pack));
                let content = draft::content(&settled, self.shared.repository.keys())?;
                self.place(leaf.disk, leaf.index, content)
            }
            None => {
                self.waiting_extents += leaf.extents.len();
                self.waiting.push(leaf);
                Ok(())
            }
        }
    }

    fn place(&mut self, disk: usize, index: u64, content: LeafContent) -> Result<()> {
        self.tree.leaf(disk, index, content, &mut self.old)
    }

    fn send_tree_packs(&mut self) -> Result<()> {
        for pack in self.tree.take_finished() {
            self.referenced.insert(pack.id);
            self.stored_bytes += pack.bytes.len() as u64;
            publish(self.out.as_ref(), ToPublish::tree(pack))?;
        }
        Ok(())
    }

    /// Chunks that the index knows by now need no memory of ours.
    fn forget_landed(&mut self) {
        let landed =
            std::mem::take(&mut *self.landed.lock().unwrap_or_else(PoisonError::into_inner));
        self.known.extend(landed);
        while self.places.len() > PLACES_MAX
            && let Some(oldest) = self.known.pop_front()
        {
            for chunk in &oldest {
                self.places.remove(chunk);
                self.shared.claims.release(chunk);
            }
        }
    }
}

fn forgotten() -> Error {
    Error::new(
        Kind::Conflict,
        "chunks of this run are no longer in the local cache: it was emptied meanwhile",
    )
    .advise("run the backup again")
}

fn publish(out: Option<&Sender<ToPublish>>, pack: ToPublish) -> Result<()> {
    match out {
        None => Ok(()),
        Some(out) => out
            .blocking_send(pack)
            .map_err(|_| Error::new(Kind::Interrupted, "another part of the run failed")),
    }
}

/// Fresh randomness for a pack.
pub(super) fn pack_random() -> Result<PackRandom> {
    Ok(PackRandom {
        salt: clock::random()?,
        key: Secret(clock::random()?),
        seed: Secret(clock::random()?),
    })
}

/// The parent point's trees, for the tree writer.
struct OldTrees<'a> {
    disks: &'a [Disk],
    runtime: &'a tokio::runtime::Handle,
    index: &'a Index,
    referenced: HashSet<PackId>,
}

impl OldTree for OldTrees<'_> {
    fn inner(
        &mut self,
        disk: usize,
        level: u8,
        index: u64,
    ) -> Result<Option<(PageRef, Arc<Inner>)>> {
        let Some(parent) = self.disks.get(disk).and_then(|disk| disk.parent.as_ref()) else {
            return Ok(None);
        };
        let found = match self.runtime.block_on(parent.tree.inner(level, index)) {
            // What cannot be read is not referred to: a new page takes its place.
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Missing) => None,
            found => found?,
        };
        let unusable = self.index.unusable();
        let found = found.filter(|(page, _)| !unusable.contains(&page.location.pack));
        if let Some((page, _)) = &found {
            self.referenced.insert(page.location.pack);
        }
        Ok(found)
    }
}
