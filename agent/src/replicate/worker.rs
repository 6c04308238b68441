//! The cutting threads: read a span, cut it, name its chunks, find out which are new, compress those.
//!
//! A span is read in windows small enough to stay in the CPU's cache from reading to compressing. Threads
//! for which no span is left compress what the others cut.

mod changed;

use super::claims::Claims;
use super::doubt::{Answered, Doubts};
use super::draft::{self, LeafDraft, ParentChunks, Part, SpanDraft};
use super::way::Way;
use super::{BackupSettings, Totals};
use crate::chunk::{self, ChunkerParams, Cutter, Piece, Region, SPAN_BYTES};
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;
use crate::repository::Repository;
use crate::repository::index::{Index, IndexReader};
use crate::repository::tree::overlay::Run;
use crate::repository::tree::{LeafContent, LeafRef, TreeReader};
use crate::source::{Source, SourceReader};
use changed::{Found, Gathered};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use tidegate_protocol::frame::PayloadEncoder;
use tidegate_protocol::ids::{ChunkId, PackId};
use tidegate_protocol::keys::ChunkNamer;
use tidegate_protocol::limits::LEAF_BYTES;
use tidegate_protocol::page::{Leaf, Slice};
use tokio_util::sync::CancellationToken;

/// Bytes read at a time.
const WINDOW_BYTES: usize = 1 << 20;

/// Raw bytes compressed and sealed together.
const FRAME_RAW_BYTES: usize = 256 << 10;

/// Spans after which chunks in hand are handed on, however few they are: leaves all over the disk may
/// be waiting for one of them.
const SPANS_IN_HAND_MAX: u32 = 8;

/// What the cutting threads hand on.
pub(super) enum Made {
    /// New chunks, compressed.
    Frame {
        payload: Vec<u8>,
        items: Vec<(ChunkId, u32)>,
    },
    /// A span's leaves.
    Span {
        disk: usize,
        leaves: Vec<(u64, LeafDraft)>,
    },
    /// What changed, by the disk's number, to be laid over the disk's tree.
    Laid { runs: Vec<(usize, Run<Part>)> },
}

/// New chunks, still to be compressed.
struct RawFrame {
    bytes: Vec<u8>,
    items: Vec<(ChunkId, u32)>,
}

/// Where threads without a span wait for frames of those that have one. Nothing is kept in it: a frame
/// is taken by somebody who waits, or not at all.
pub(super) struct Idle {
    frames: Mutex<Receiver<RawFrame>>,
}

/// A cutting thread's way to [`Idle`].
#[derive(Clone)]
pub(super) struct ToIdle(SyncSender<RawFrame>);

impl Idle {
    pub(super) fn new() -> (ToIdle, Self) {
        let (to_idle, frames) = mpsc::sync_channel(0);
        let frames = Mutex::new(frames);
        (ToIdle(to_idle), Self { frames })
    }

    /// The next frame; none when nobody cuts any more.
    fn next(&self) -> Option<RawFrame> {
        let frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        frames.recv().ok()
    }
}

/// A disk of the run.
pub(super) struct Disk {
    pub(super) source: Arc<dyn Source>,
    pub(super) size_bytes: u64,
    pub(super) regions: Vec<Region>,
    pub(super) parent: Option<Arc<Parent>>,
    pub(super) way: Way,
}

/// The same disk at the parent point.
pub(super) struct Parent {
    pub(super) tree: TreeReader,
    pub(super) size_bytes: u64,
    /// Set when its tree turned out to be damaged: from then on there is nothing to compare with.
    pub(super) damaged: AtomicBool,
}

/// What all cutting threads of a run share.
pub(super) struct Shared {
    pub(super) repository: Arc<Repository>,
    pub(super) disks: Vec<Disk>,
    pub(super) index: Arc<Index>,
    pub(super) claims: Arc<Claims>,
    pub(super) settings: BackupSettings,
    pub(super) progress: Arc<Progress>,
    pub(super) stop: CancellationToken,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) next_span: AtomicU64,
}

/// What one thread ends with.
#[derive(Default)]
pub(super) struct Finished {
    pub(super) totals: Totals,
    /// Packs that the new point refers to and this run has not written.
    pub(super) referenced: HashSet<PackId>,
}

pub(super) struct Worker<'a> {
    shared: &'a Shared,
    out: SyncSender<Made>,
    idle: &'a Idle,
    to_idle: Option<ToIdle>,
    readers: Vec<Option<Box<dyn SourceReader>>>,
    index: IndexReader,
    namer: ChunkNamer,
    params: ChunkerParams,
    seed: u64,
    buffer: Vec<u8>,
    pieces: Vec<Piece>,
    frame: Vec<u8>,
    items: Vec<(ChunkId, u32)>,
    encoder: PayloadEncoder,
    doubts: Option<Doubts>,
    spans_in_hand: u32,
    unusable: Arc<HashSet<PackId>>,
    last_referenced: Option<PackId>,
    gathered: Gathered,
    found: Found,
    finished: Finished,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        out: SyncSender<Made>,
        idle: &'a Idle,
        to_idle: ToIdle,
    ) -> Result<Self> {
        let namer = shared
            .repository
            .keys()
            .chunk_namer()
            .map_err(|error| crate::repository::local_denied(&error))?;
        let params = *shared.repository.chunker();
        Ok(Self {
            shared,
            out,
            idle,
            to_idle: Some(to_idle),
            readers: shared.disks.iter().map(|_| None).collect(),
            index: shared.index.reader()?,
            seed: namer.chunker_seed(),
            namer,
            params,
            buffer: vec![0; WINDOW_BYTES + params.chunk_bytes_max() as usize],
            pieces: Vec::new(),
            frame: Vec::with_capacity(FRAME_RAW_BYTES),
            items: Vec::new(),
            encoder: PayloadEncoder::new(shared.settings.compression_level)
                .map_err(|error| Error::io("cannot make a compressor", error))?,
            doubts: Doubts::new(&shared.repository, &shared.runtime, &shared.stop),
            spans_in_hand: 0,
            unusable: shared.index.unusable(),
            last_referenced: None,
            gathered: Gathered::default(),
            found: Found::default(),
            finished: Finished::default(),
        })
    }

    /// Works until there is no span left or the run is stopped.
    pub(super) fn run(mut self) -> Result<Finished> {
        while !self.shared.stop.is_cancelled() {
            let number = self.shared.next_span.fetch_add(1, Ordering::Relaxed);
            let Some((disk, span)) = self.span_of(number) else {
                break;
            };
            // Nobody waits for what is laid over a tree in the end.
            if self.span(disk, span)? {
                self.spans_in_hand += 1;
            }
            if self.spans_in_hand >= SPANS_IN_HAND_MAX {
                self.settle_doubts()?;
                self.flush_frame()?;
            }
        }
        self.lay()?;
        self.settle_doubts()?;
        self.flush_frame()?;
        self.to_idle = None;
        while let Some(frame) = self.idle.next() {
            self.compress(frame)?;
        }
        Ok(self.finished)
    }

    /// Spans are numbered through all disks.
    fn span_of(&self, mut number: u64) -> Option<(usize, Range<u64>)> {
        for (disk, content) in self.shared.disks.iter().enumerate() {
            let spans = content.size_bytes.div_ceil(SPAN_BYTES);
            if number < spans {
                let start = number * SPAN_BYTES;
                return Some((disk, start..(start + SPAN_BYTES).min(content.size_bytes)));
            }
            number -= spans;
        }
        None
    }

    /// Returns whether leaves of it may be waiting for chunks.
    fn span(&mut self, disk: usize, span: Range<u64>) -> Result<bool> {
        let shared = self.shared;
        let Some(content) = shared.disks.get(disk) else {
            return Ok(false);
        };
        // Most spans of a tracked disk: nothing to do, and nothing to ask.
        if let Way::Lay(changes) = &content.way {
            let next = changes.partition_point(|range| range.end <= span.start);
            if changes
                .get(next)
                .is_none_or(|range| range.start >= span.end)
            {
                shared.progress.add_done(span.end - span.start);
                return Ok(false);
            }
        }
        let mut reader = match self.readers.get_mut(disk).and_then(Option::take) {
            Some(reader) => reader,
            None => content.source.reader()?,
        };
        self.unusable = shared.index.unusable();
        let leaves = match &content.way {
            Way::Compare => Some(self.compared(content, reader.as_mut(), &span)?),
            Way::Rewrite => Some(self.rewritten(disk, content, reader.as_mut(), &span)?),
            Way::Lay(changes) => {
                let changes = changed::clipped(changes, &span);
                self.changed(disk, reader.as_mut(), &span, &changes)?;
                None
            }
        };
        if let Some(place) = self.readers.get_mut(disk) {
            *place = Some(reader);
        }
        shared.progress.add_done(span.end - span.start);
        let Some(leaves) = leaves else {
            return Ok(false);
        };
        self.send(Made::Span { disk, leaves })?;
        Ok(true)
    }

    /// The leaves of a span that is read whole.
    fn compared(
        &mut self,
        content: &Disk,
        reader: &mut dyn SourceReader,
        span: &Range<u64>,
    ) -> Result<Vec<(u64, LeafDraft)>> {
        let allocation = reader.allocation(span.clone())?;
        if allocation.is_empty() {
            let leaves = span.start / LEAF_BYTES..span.end.div_ceil(LEAF_BYTES);
            return Ok(leaves
                .map(|index| (index, LeafDraft::Ready(LeafContent::Hole)))
                .collect());
        }
        let old = self.parent_leaves(content, span);
        let draft = self.cut(content, reader, span, &allocation, &old)?;
        draft
            .into_leaves(span.start)
            .into_iter()
            .map(|(index, extents)| {
                let number = index.saturating_sub(span.start / LEAF_BYTES);
                let old = usize::try_from(number)
                    .ok()
                    .and_then(|number| old.get(number));
                Ok((index, self.leaf(extents, old.and_then(Option::as_ref))?))
            })
            .collect()
    }

    /// Cuts what is allocated of a span.
    fn cut(
        &mut self,
        disk: &Disk,
        reader: &mut dyn SourceReader,
        span: &Range<u64>,
        allocation: &[Range<u64>],
        old: &[Option<(LeafRef, Leaf)>],
    ) -> Result<SpanDraft> {
        let mut parent = ParentChunks::default();
        for (number, leaf) in (0..).zip(old) {
            if let Some((_, leaf)) = leaf {
                parent.add(span.start + number * LEAF_BYTES, leaf);
            }
        }
        let mut draft = SpanDraft::default();
        let mut at = span.start;
        for range in chunk::cut_ranges(span.clone(), &disk.regions) {
            for run in chunk::allocated_runs(range, allocation, self.params.grain_bytes()) {
                draft.hole(run.start - at);
                at = run.end;
                self.run_of_data(reader, run, &mut parent, &mut draft)?;
            }
        }
        draft.hole(span.end - at);
        Ok(draft)
    }

    fn run_of_data(
        &mut self,
        reader: &mut dyn SourceReader,
        run: Range<u64>,
        parent: &mut ParentChunks,
        draft: &mut SpanDraft,
    ) -> Result<()> {
        let mut cutter = Cutter::new(&self.params, self.seed);
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut pieces = std::mem::take(&mut self.pieces);
        reader.prefetch(run.clone());
        // `base` is the disk offset of the buffer's front; `filled` bytes of it are valid.
        let mut base = run.start;
        let mut filled = 0;
        while base < run.end {
            let left = run.end - base - filled as u64;
            let want = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(WINDOW_BYTES);
            let Some(window) = buffer.get_mut(filled..filled + want) else {
                return Err(Error::new(Kind::Bug, "the cutter kept more than a chunk"));
            };
            reader.read_at(base + filled as u64, window)?;
            self.finished.totals.read_bytes += want as u64;
            self.shared.progress.add_read(want as u64);
            filled += want;
            let last = base + filled as u64 == run.end;
            pieces.clear();
            let consumed = cutter.cut(&buffer[..filled], last, &mut pieces);
            let mut from = 0;
            for piece in &pieces {
                let to = from + piece.length();
                match piece {
                    Piece::Hole { length } => draft.hole(*length as u64),
                    Piece::Data { length } => {
                        let start = base + from as u64;
                        let place = start..start + *length as u64;
                        let part = self.chunk(&buffer[from..to], &place, parent)?;
                        draft.chunk(*length as u64, part);
                    }
                }
                from = to;
            }
            buffer.copy_within(consumed..filled, 0);
            base += consumed as u64;
            filled -= consumed;
        }
        self.buffer = buffer;
        self.pieces = pieces;
        Ok(())
    }

    /// Names a chunk and finds out where it is, or stores it.
    fn chunk(
        &mut self,
        bytes: &[u8],
        place: &Range<u64>,
        parent: &mut ParentChunks,
    ) -> Result<Part> {
        let chunk = self.namer.name(bytes);
        self.finished.totals.chunks += 1;
        self.finished.totals.allocated_bytes += bytes.len() as u64;
        if let Some(slice) = parent.at(place)
            && slice.chunk == chunk
            && !self.unusable.contains(&slice.location.pack)
        {
            return Ok(Part::Known(*slice));
        }
        self.place(chunk, bytes)
    }

    /// The same for bytes that are compared with nothing.
    fn find_or_store(&mut self, bytes: &[u8]) -> Result<Part> {
        let chunk = self.namer.name(bytes);
        self.finished.totals.chunks += 1;
        self.finished.totals.allocated_bytes += bytes.len() as u64;
        self.place(chunk, bytes)
    }

    /// Finds out where a chunk is, or stores it.
    fn place(&mut self, chunk: ChunkId, bytes: &[u8]) -> Result<Part> {
        let pending = Part::Pending { chunk, offset: 0 };
        if self.shared.claims.contains(&chunk) {
            return Ok(pending);
        }
        // A place of another length is nonsense that somebody wrote into a segment.
        if let Some(location) = self.index.known(&chunk)?
            && location.length as usize == bytes.len()
        {
            return Ok(Part::Known(Slice {
                chunk,
                offset: 0,
                location,
            }));
        }
        if self.shared.claims.claim(chunk) {
            match &mut self.doubts {
                None => self.store(chunk, bytes)?,
                Some(doubts) => {
                    doubts.add(chunk, bytes);
                    while let Some(answered) = self.next_ready()? {
                        self.take(answered)?;
                    }
                }
            }
        }
        Ok(pending)
    }

    fn next_ready(&mut self) -> Result<Option<Answered>> {
        match &mut self.doubts {
            None => Ok(None),
            Some(doubts) => doubts.next_ready(),
        }
    }

    /// Asks for all that is in doubt, and waits for the answers.
    fn settle_doubts(&mut self) -> Result<()> {
        while !self.shared.stop.is_cancelled()
            && let Some(doubts) = &mut self.doubts
            && let Some(answered) = doubts.next_at_the_end()?
        {
            self.take(answered)?;
        }
        Ok(())
    }

    /// Stores what the gateway does not know, and enters what it knows.
    fn take(&mut self, answered: Answered) -> Result<()> {
        let mut told = Vec::new();
        for (chunk, bytes, place) in answered.chunks() {
            match place {
                Some(place) if !self.unusable.contains(&place.pack) => told.push((chunk, place)),
                _ => self.store(chunk, bytes)?,
            }
        }
        self.shared.index.add_told(&told)?;
        // From here on the index knows them.
        for (chunk, _) in &told {
            self.shared.claims.release(chunk);
        }
        if let Some(doubts) = &mut self.doubts {
            doubts.done(answered);
        }
        Ok(())
    }

    fn store(&mut self, chunk: ChunkId, bytes: &[u8]) -> Result<()> {
        if !self.frame.is_empty() && self.frame.len() + bytes.len() > FRAME_RAW_BYTES {
            self.flush_frame()?;
        }
        self.frame.extend_from_slice(bytes);
        self.items
            .push((chunk, u32::try_from(bytes.len()).unwrap_or(u32::MAX)));
        self.finished.totals.new_bytes += bytes.len() as u64;
        self.shared.progress.add_new(bytes.len() as u64);
        Ok(())
    }

    fn flush_frame(&mut self) -> Result<()> {
        self.spans_in_hand = 0;
        if self.items.is_empty() {
            return Ok(());
        }
        let frame = RawFrame {
            bytes: std::mem::take(&mut self.frame),
            items: std::mem::take(&mut self.items),
        };
        match self.hand_to_idle(frame) {
            None => self.frame.reserve_exact(FRAME_RAW_BYTES),
            Some(frame) => {
                self.frame = self.compress(frame)?;
                self.frame.clear();
            }
        }
        Ok(())
    }

    /// Gives the frame back where nobody waits for it.
    fn hand_to_idle(&self, frame: RawFrame) -> Option<RawFrame> {
        let Some(ToIdle(idle)) = &self.to_idle else {
            return Some(frame);
        };
        match idle.try_send(frame) {
            Ok(()) => None,
            Err(TrySendError::Full(frame) | TrySendError::Disconnected(frame)) => Some(frame),
        }
    }

    /// Hands the frame on compressed; returns its memory.
    fn compress(&mut self, frame: RawFrame) -> Result<Vec<u8>> {
        let payload = self.encoder.encode(&frame.bytes).to_vec();
        self.send(Made::Frame {
            payload,
            items: frame.items,
        })?;
        Ok(frame.bytes)
    }

    /// Finishes a leaf if it can be, and notes the packs that it refers to.
    fn leaf(
        &mut self,
        extents: Vec<super::draft::DraftExtent>,
        old: Option<&(LeafRef, Leaf)>,
    ) -> Result<LeafDraft> {
        for extent in &extents {
            if let Part::Known(slice) = extent.part {
                self.refer_to(slice.location.pack);
            }
        }
        let Some(leaf) = draft::settle(&extents, |_| None) else {
            return Ok(LeafDraft::Waiting(extents));
        };
        if let Some((leaf_ref, old)) = old
            && let Some(page) = leaf_ref.whole_page()
            && draft::same_content(&leaf, old)
            && !self.unusable.contains(&page.location.pack)
        {
            let packs = old.extents.iter().filter_map(|extent| extent.slice);
            if packs
                .clone()
                .all(|slice| !self.unusable.contains(&slice.location.pack))
            {
                for slice in packs {
                    self.refer_to(slice.location.pack);
                }
                self.refer_to(page.location.pack);
                return Ok(LeafDraft::Ready(LeafContent::Same(page)));
            }
        }
        Ok(LeafDraft::Ready(draft::content(
            &leaf,
            self.shared.repository.keys(),
        )?))
    }

    fn refer_to(&mut self, pack: PackId) {
        // Nearly always the same pack as before.
        if self.last_referenced != Some(pack) {
            self.last_referenced = Some(pack);
            self.finished.referenced.insert(pack);
        }
    }

    /// The parent point's leaves of a span, in order; nothing where there is no sound parent.
    fn parent_leaves(&self, disk: &Disk, span: &Range<u64>) -> Vec<Option<(LeafRef, Leaf)>> {
        let Some(parent) = &disk.parent else {
            return Vec::new();
        };
        if parent.damaged.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let wanted = span.start / LEAF_BYTES..span.end.div_ceil(LEAF_BYTES);
        let read = self.shared.runtime.block_on(async {
            let mut leaves = Vec::new();
            for index in wanted {
                leaves.push(parent.tree.leaf(index).await?);
            }
            Ok::<_, Error>(leaves)
        });
        read.unwrap_or_else(|error| {
            if !parent.damaged.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    error = error.chain(),
                    "the parent point's tree cannot be read: comparing by the index alone"
                );
            }
            Vec::new()
        })
    }

    fn send(&self, made: Made) -> Result<()> {
        self.out
            .send(made)
            .map_err(|_| Error::new(Kind::Interrupted, "another part of the run failed"))
    }
}
