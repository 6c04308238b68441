//! Ranged reads of data packs: planned, fetched, opened and checked.
//!
//! First it is planned which ranges of which objects. Then [`Repository::fetch`]: many requests in flight,
//! every chunk checked against its id before anybody sees a byte of it. A location is a hint: where it is
//! stale, the chunk index is asked.

mod plan;

use plan::Read;
pub use plan::{Haul, READ_BYTES_MAX, Want};

use super::packs::is_gone;
use super::{Repository, local_denied};
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result};
use bytes::Bytes;
use futures::{StreamExt, stream};
use quick_cache::sync::Cache;
use std::collections::{HashMap, HashSet};

use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use tidegate_protocol::frame::FrameOpener;
use tidegate_protocol::ids::{ChunkId, PackId};
use tidegate_protocol::keys::ChunkNamer;
use tidegate_protocol::pack::{FramesKey, HEADER_BYTES_MAX, Location, PackHeader};
use tokio_util::sync::CancellationToken;

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
    /// Sorts `wants`, and plans the requests that serve them, by what is known of bundles.
    ///
    /// # Errors
    /// As the local state.
    pub async fn plan_hauls(&self, wants: &mut [Want]) -> Result<Vec<Haul>> {
        let reads = plan::plan_reads(wants);
        let packs: HashSet<PackId> = reads.iter().map(|read| read.pack).collect();
        let places = self.bundled_of(packs.into_iter().collect()).await?;
        Ok(plan::join(reads, &places.into_iter().collect()))
    }

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
        let hauls = self.plan_hauls(&mut wants).await?;
        let wants: Arc<[Want]> = wants.into();
        // Nothing may be handed to the sink once this has returned: when one read fails, the others
        // are told to end, and waited for.
        let halt = stop.child_token();
        let mut tasks = stream::iter(hauls)
            .take_until(halt.clone().cancelled_owned())
            .map(|haul| {
                let serving = Serving {
                    repository: Arc::clone(self),
                    wants: Arc::clone(&wants),
                    namer: namer.clone(),
                    sink: Arc::clone(sink),
                    halt: halt.clone(),
                };
                // A task of its own: fetching and opening go on together.
                let task = tokio::spawn(serving.haul(haul));
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

/// One request of a fetch under way.
struct Serving {
    repository: Arc<Repository>,
    wants: Arc<[Want]>,
    namer: ChunkNamer,
    sink: Arc<Sink>,
    halt: CancellationToken,
}

impl Serving {
    async fn haul(self, haul: Haul) -> Result<u64> {
        let Haul {
            object,
            range,
            reads,
        } = haul;
        // One by itself may have other places, and who reads it knows them.
        let mut hauled = None;
        if reads.len() > 1 {
            let key = object.object_key();
            let all = tokio::select! {
                all = self.repository.store.get_range(&key, range) => all,
                () = self.halt.cancelled() => return Err(interrupted()),
            };
            match all {
                Ok(all) => hauled = Some(all),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let mut fetched = hauled.as_ref().map_or(0, |all| all.len() as u64);
        for (at, read) in reads {
            let bytes = hauled.as_ref().map(|all| {
                let start = usize::try_from(at).unwrap_or(usize::MAX).min(all.len());
                let length =
                    usize::try_from(read.range.end - read.range.start).unwrap_or(usize::MAX);
                all.slice(start..start.saturating_add(length).min(all.len()))
            });
            fetched += self.serve(read, bytes).await?;
        }
        Ok(fetched)
    }

    /// Serves the wants of a read, of which the `hauled` bytes may be there already. Returns the bytes fetched
    /// besides.
    async fn serve(&self, read: Read, hauled: Option<Bytes>) -> Result<u64> {
        let own = self
            .wants
            .get(read.wants.clone())
            .unwrap_or_default()
            .to_vec();
        let mut fetched = 0;
        let (failed, cause) = match self.read_and_open(&read, hauled, own.clone()).await {
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
            for read in plan::plan_reads(&mut moved) {
                let own = moved.get(read.wants.clone()).unwrap_or_default().to_vec();
                match self.read_and_open(&read, None, own.clone()).await {
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

    /// Reads one range, unless it is `hauled` already, and serves its wants. Those whose frame does not open or whose chunk has
    /// another hash come back, with the reason.
    async fn read_and_open(
        &self,
        read: &Read,
        hauled: Option<Bytes>,
        wants: Vec<Want>,
    ) -> Result<(u64, Option<(Vec<Want>, Error)>)> {
        let object_key = read.pack.object_key();
        let mut fetched = 0;
        let reading = async {
            let bytes = match hauled {
                Some(bytes) => bytes,
                None => {
                    let range = read.range.clone();
                    let bytes = self.repository.read_pack(read.pack, range).await?;
                    fetched = bytes.len() as u64;
                    bytes
                }
            };
            let header = (read.range.start == 0).then(|| bytes.clone());
            let key = self.repository.pack_key(read.pack, header).await?;
            Ok::<_, Error>((bytes, key))
        };
        let (bytes, key) = tokio::select! {
            read = reading => read?,
            () = self.halt.cancelled() => return Err(interrupted()),
        };
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
