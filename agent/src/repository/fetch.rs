//! Ranged reads of data packs: planned, fetched, opened and checked.
//!
//! Pure planning first ([`plan_reads`]): which ranges of which packs, in pack order, with small gaps
//! read over rather than asked around. Then [`Repository::fetch`]: many reads in flight, every chunk
//! checked against its id before anybody sees a byte of it. A location is a hint: where it is stale,
//! the chunk index is asked.

use super::{Repository, local_denied};
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result};
use bytes::Bytes;
use futures::{StreamExt, stream};
use quick_cache::sync::Cache;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use tidegate_protocol::frame::FrameOpener;
use tidegate_protocol::ids::{ChunkId, PackId};
use tidegate_protocol::keys::ChunkNamer;
use tidegate_protocol::pack::{FramesKey, HEADER_BYTES_MAX, Location, PackHeader};
use tokio_util::sync::CancellationToken;

/// Largest range of one read: large enough that the request's own cost does not count, small enough
/// that several fit into memory.
pub const READ_BYTES_MAX: u64 = 16 << 20;

/// Bytes that are read for nothing rather than to send another request: what a line of 100 MB/s
/// moves in 5 ms.
const GAP_BYTES: u64 = 512 << 10;

/// Beyond one request a pack, another is allowed for each such stretch: the cost that is promised.
const STRETCH_BYTES: u64 = 8 << 20;

/// Part of a chunk that somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// Where it goes on the disk, in bytes.
    pub disk_offset: u64,
    /// Its length in bytes.
    pub length: u32,
    /// The chunk.
    pub chunk: ChunkId,
    /// Where it begins in the chunk, in bytes.
    pub offset: u32,
    /// Where the chunk lies.
    pub location: Location,
}

impl Want {
    /// Where the wanted part lies in the frame's raw content.
    fn place_in_frame(&self) -> Range<usize> {
        let start = self.location.offset_in_frame as usize + self.offset as usize;
        start..start + self.length as usize
    }
}

/// One ranged read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// The pack.
    pub pack: PackId,
    /// The range of its bytes.
    pub range: Range<u64>,
    /// The wants that it serves, as a range of the sorted list.
    pub wants: Range<usize>,
}

/// Sorts `wants` by pack and place, and plans the reads that serve them.
pub fn plan_reads(wants: &mut [Want]) -> Vec<Read> {
    wants.sort_unstable_by_key(|want| {
        let at = &want.location;
        (
            at.pack,
            at.frame_offset,
            at.offset_in_frame,
            want.disk_offset,
        )
    });
    let mut reads = Vec::new();
    let mut start = 0;
    for group in wants.chunk_by(|a, b| a.location.pack == b.location.pack) {
        plan_pack(group, start, &mut reads);
        start += group.len();
    }
    reads
}

fn plan_pack(group: &[Want], first: usize, reads: &mut Vec<Read>) {
    let Some(last) = group.last() else { return };
    let before = reads.len();
    let mut gap = GAP_BYTES;
    loop {
        plan_with_gap(group, first, gap, reads);
        let allowed = 1 + last.location.frame_range().end / STRETCH_BYTES;
        // The pack's key takes a request of its own where the first read does not bring it.
        let apart = reads.get(before).is_some_and(|read| read.range.start > 0);
        let used = (reads.len() - before) as u64 + u64::from(apart);
        if used <= allowed || gap > READ_BYTES_MAX {
            return;
        }
        // Scattered wants, or far from the key: fewer, longer reads.
        reads.truncate(before);
        gap *= 2;
    }
}

fn plan_with_gap(group: &[Want], first: usize, gap: u64, reads: &mut Vec<Read>) {
    let mut open: Option<Read> = None;
    for (number, want) in (first..).zip(group) {
        let frame = want.location.frame_range();
        match &mut open {
            Some(read)
                if frame.start <= read.range.end.saturating_add(gap)
                    && frame.end.max(read.range.end) - read.range.start <= READ_BYTES_MAX =>
            {
                read.range.end = read.range.end.max(frame.end);
                read.wants.end = number + 1;
            }
            _ => {
                reads.extend(open.take());
                // The pack's header has its key: take it along where it is near.
                let near = frame.start <= gap && frame.end <= READ_BYTES_MAX;
                let start = if number == first && near {
                    0
                } else {
                    frame.start
                };
                open = Some(Read {
                    pack: want.location.pack,
                    range: start..frame.end,
                    wants: number..number + 1,
                });
            }
        }
    }
    reads.extend(open);
}

/// What takes fetched bytes: blocking, called from several threads at once. It is given wants that
/// follow each other on the disk, and their bytes together.
pub type Sink = dyn Fn(&[Want], &[u8]) -> Result<()> + Send + Sync;

/// Parts the bytes that a [`Sink`] is given by want.
pub fn by_want<'a>(
    wants: &'a [Want],
    mut bytes: &'a [u8],
) -> impl Iterator<Item = (&'a Want, &'a [u8])> {
    wants.iter().map_while(move |want| {
        let (part, rest) = bytes.split_at_checked(want.length as usize)?;
        bytes = rest;
        Some((want, part))
    })
}

/// Keys of data packs: opening one costs a curve multiplication and perhaps a request.
pub(crate) struct PackKeys(Cache<PackId, Arc<FramesKey>>);

impl Default for PackKeys {
    fn default() -> Self {
        Self(Cache::new(8192))
    }
}

/// Reads of one fetch that are under way together.
#[derive(Debug, Clone, Copy)]
pub struct FetchSettings {
    /// Reads in flight; each takes up to [`READ_BYTES_MAX`] of memory.
    pub reads_in_flight: usize,
}

impl Repository {
    /// Fetches what is wanted and hands it, checked, to `sink`. Returns the bytes fetched.
    pub async fn fetch(
        self: &Arc<Self>,
        mut wants: Vec<Want>,
        settings: FetchSettings,
        sink: &Arc<Sink>,
        stop: &CancellationToken,
    ) -> Result<u64> {
        let namer = self
            .keys
            .chunk_namer()
            .map_err(|error| local_denied(&error))?;
        self.keys
            .data_private()
            .map_err(|error| local_denied(&error))?;
        let reads = plan_reads(&mut wants);
        let wants: Arc<[Want]> = wants.into();
        // Nothing may be handed to the sink once this has returned: when one read fails, the others
        // are told to end, and waited for.
        let halt = stop.child_token();
        let mut tasks = stream::iter(reads)
            .take_until(halt.clone().cancelled_owned())
            .map(|read| {
                let serving = Serving {
                    repository: Arc::clone(self),
                    wants: Arc::clone(&wants),
                    namer: namer.clone(),
                    sink: Arc::clone(sink),
                    halt: halt.clone(),
                };
                // A task of its own: fetching and opening go on together.
                let task = tokio::spawn(serving.serve(read));
                async move {
                    task.await.unwrap_or_else(|error| {
                        Err(Error::new(Kind::Bug, "a fetching task broke down").caused_by(error))
                    })
                }
            })
            .buffer_unordered(settings.reads_in_flight.max(1))
            .boxed();
        let mut fetched = Ok(0);
        while let Some(next) = tasks.next().await {
            match (&mut fetched, next) {
                (Ok(sum), Ok(bytes)) => *sum += bytes,
                (Ok(_), Err(error)) => {
                    halt.cancel();
                    fetched = Err(error);
                }
                (Err(_), _) => {}
            }
        }
        if stop.is_cancelled() {
            return Err(interrupted());
        }
        fetched
    }

    /// The key of a data pack's frames; `header` where its first bytes are at hand.
    pub(crate) async fn pack_key(
        &self,
        pack: PackId,
        header: Option<Bytes>,
    ) -> Result<Arc<FramesKey>> {
        let object_key = pack.object_key();
        // Several reads of one pack ask at the same time: one of them finds out for all.
        let find = async {
            let header = match header {
                Some(header) => header,
                None => self.read_pack(pack, 0..HEADER_BYTES_MAX as u64).await?,
            };
            PackHeader::decode(&header)
                .and_then(|header| header.frames_key(&self.keys))
                .map(Arc::new)
                .map_err(|error| self.damaged(&object_key, error))
        };
        self.pack_keys.0.get_or_insert_async(&pack, find).await
    }
}

/// One read of a fetch under way.
struct Serving {
    repository: Arc<Repository>,
    wants: Arc<[Want]>,
    namer: ChunkNamer,
    sink: Arc<Sink>,
    halt: CancellationToken,
}

impl Serving {
    async fn serve(self, read: Read) -> Result<u64> {
        let own = self
            .wants
            .get(read.wants.clone())
            .unwrap_or_default()
            .to_vec();
        let mut fetched = 0;
        let (failed, cause) = match self.read_and_open(&read, own.clone()).await {
            Ok((bytes, None)) => return Ok(bytes),
            Ok((bytes, Some(failed))) => {
                fetched += bytes;
                failed
            }
            Err(error) if matches!(error.kind(), Kind::Missing | Kind::Corrupt) => (own, error),
            Err(error) => return Err(error),
        };
        self.repository.suspect(read.pack);
        // The hints may be stale: a chunk can have another place by now.
        let places = self.other_places(&failed).await?;
        let mut left = failed;
        for round in 0.. {
            let elsewhere = left.iter().map(|want| {
                let location = *places.get(&want.chunk)?.get(round)?;
                Some(Want { location, ..*want })
            });
            let Some(mut moved) = elsewhere.collect::<Option<Vec<_>>>() else {
                break;
            };
            tracing::info!(pack = %read.pack, chunks = moved.len(), "a location was stale: the index knows others");
            left.clear();
            for read in plan_reads(&mut moved) {
                let own = moved.get(read.wants.clone()).unwrap_or_default().to_vec();
                match self.read_and_open(&read, own.clone()).await {
                    Ok((bytes, failed)) => {
                        fetched += bytes;
                        left.extend(failed.into_iter().flat_map(|(wants, _)| wants));
                    }
                    Err(error) if matches!(error.kind(), Kind::Missing | Kind::Corrupt) => {
                        left.extend(own);
                    }
                    Err(error) => return Err(error),
                }
            }
            if left.is_empty() {
                return Ok(fetched);
            }
        }
        Err(cause)
    }

    /// Where else the wanted chunks lie, as the log says at its present end.
    async fn other_places(&self, wants: &[Want]) -> Result<HashMap<ChunkId, Vec<Location>>> {
        let index = self.repository.index_at_present().await?;
        let tried: HashMap<ChunkId, Location> = wants
            .iter()
            .map(|want| (want.chunk, want.location))
            .collect();
        blocking(move || {
            let mut reader = index.reader()?;
            let mut places = HashMap::with_capacity(tried.len());
            for (chunk, tried) in tried {
                let mut others = reader.places(&chunk)?;
                others.retain(|location| *location != tried);
                places.insert(chunk, others);
            }
            Ok(places)
        })
        .await
    }

    /// Reads one range and serves its wants. Those whose frame does not open or whose chunk has
    /// another hash come back, with the reason.
    async fn read_and_open(
        &self,
        read: &Read,
        wants: Vec<Want>,
    ) -> Result<(u64, Option<(Vec<Want>, Error)>)> {
        let object_key = read.pack.object_key();
        let reading = async {
            let bytes = self
                .repository
                .read_pack(read.pack, read.range.clone())
                .await?;
            let header = (read.range.start == 0).then(|| bytes.clone());
            let key = self.repository.pack_key(read.pack, header).await?;
            Ok::<_, Error>((bytes, key))
        };
        let (bytes, key) = tokio::select! {
            read = reading => read?,
            () = self.halt.cancelled() => return Err(interrupted()),
        };
        let fetched = bytes.len() as u64;
        let opening = Opening {
            start: read.range.start,
            bytes,
            key,
            namer: self.namer.clone(),
            sink: Arc::clone(&self.sink),
            halt: self.halt.clone(),
        };
        let failed = blocking(move || opening.open(&wants)).await?;
        let failed =
            failed.map(|(wants, error)| (wants, self.repository.damaged(&object_key, error)));
        Ok((fetched, failed))
    }
}

fn interrupted() -> Error {
    Error::new(Kind::Interrupted, "stopped as asked")
}

/// What a range is opened with, off the runtime's threads.
struct Opening {
    start: u64,
    bytes: Bytes,
    key: Arc<FramesKey>,
    namer: ChunkNamer,
    sink: Arc<Sink>,
    halt: CancellationToken,
}

impl Opening {
    fn open(&self, wants: &[Want]) -> Result<Option<(Vec<Want>, Error)>> {
        with_opener(|opener| {
            let mut failed: Option<(Vec<Want>, Error)> = None;
            for group in wants.chunk_by(|a, b| a.location.frame_range() == b.location.frame_range())
            {
                if self.halt.is_cancelled() {
                    return Err(interrupted());
                }
                if let Err(error) = self.frame(group, opener)? {
                    match &mut failed {
                        Some((wants, _)) => wants.extend_from_slice(group),
                        None => failed = Some((group.to_vec(), error)),
                    }
                }
            }
            Ok(failed)
        })
    }

    /// The outer error is the sink's, the inner one damage.
    fn frame(&self, wants: &[Want], opener: &mut FrameOpener) -> Result<Result<()>> {
        let Some(first) = wants.first() else {
            return Ok(Ok(()));
        };
        let frame = first.location.frame_range();
        let cut = |at: u64| usize::try_from(at.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let damage = |what: String| Ok(Err(Error::new(Kind::Corrupt, what)));
        let Some(sealed) = self.bytes.get(cut(frame.start)..cut(frame.end)) else {
            return damage(format!("frame {frame:?} lies outside what was read"));
        };
        let raw = match self.key.open(opener, first.location.frame_offset, sealed) {
            Ok(raw) => raw,
            Err(error) => return damage(format!("frame at {}: {error}", frame.start)),
        };
        // Several wants may take parts of one chunk: it is hashed once, and all are checked before the
        // first byte goes out.
        let mut checked: Option<(ChunkId, Location)> = None;
        for want in wants {
            if checked == Some((want.chunk, want.location)) {
                continue;
            }
            match chunk_of(raw, &want.location) {
                Some(chunk) if self.namer.name(chunk) == want.chunk => {}
                _ => {
                    return damage(format!(
                        "frame at {}: chunk {} has other content than its name promises",
                        frame.start,
                        want.chunk.short()
                    ));
                }
            }
            checked = Some((want.chunk, want.location));
        }
        for want in wants {
            let slice = want.offset as usize..want.offset as usize + want.length as usize;
            if chunk_of(raw, &want.location).is_none_or(|chunk| chunk.get(slice).is_none()) {
                return damage(format!(
                    "a slice at {} lies outside its chunk {}",
                    want.offset,
                    want.chunk.short()
                ));
            }
        }
        // What is adjacent in the frame and on the disk goes out in one piece.
        for run in wants.chunk_by(adjacent) {
            if let (Some(first), Some(last)) = (run.first(), run.last())
                && let Some(bytes) =
                    raw.get(first.place_in_frame().start..last.place_in_frame().end)
            {
                (self.sink)(run, bytes)?;
            }
        }
        Ok(Ok(()))
    }
}

fn adjacent(a: &Want, b: &Want) -> bool {
    a.disk_offset + u64::from(a.length) == b.disk_offset
        && a.place_in_frame().end == b.place_in_frame().start
}

fn chunk_of<'a>(raw: &'a [u8], location: &Location) -> Option<&'a [u8]> {
    let start = location.offset_in_frame as usize;
    raw.get(start..start + location.length as usize)
}

/// Lends one of the process's frame openers: their buffers and contexts are worth keeping.
pub(crate) fn with_opener<T>(work: impl FnOnce(&mut FrameOpener) -> Result<T>) -> Result<T> {
    static IDLE: LazyLock<Mutex<Vec<FrameOpener>>> = LazyLock::new(Mutex::default);
    let idle = || IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    let taken = idle().pop();
    let mut opener = match taken {
        Some(opener) => opener,
        None => {
            FrameOpener::new().map_err(|error| Error::io("cannot make a decompressor", error))?
        }
    };
    let done = work(&mut opener);
    idle().push(opener);
    done
}
