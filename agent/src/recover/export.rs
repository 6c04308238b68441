//! A recovery point as a disk that can be read at random, without restoring it first.
//!
//! A read that finds nothing in memory fetches a little ahead: whoever reads from front to back (an
//! image converter, a boot) then finds most of what it asks for.

use super::restore::content_namer;
use super::wants::Stretch;
use crate::error::{Error, Kind, Result};
use crate::nbd::server::Export;
use crate::repository::fetch::{FetchSettings, Sink, Want, by_want};
use crate::repository::tree::TreeReader;
use crate::repository::{PointDisk, Repository};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use tidegate_protocol::ids::ChunkId;
use tidegate_protocol::limits::LEAF_BYTES;
use tidegate_protocol::page::Leaf;
use tokio_util::sync::CancellationToken;

/// Chunks kept in memory.
const CHUNKS_BYTES_MAX: u64 = 96 << 20;

/// Leaves kept in memory: 256 of them span 1 GiB of disk.
const LEAVES_MAX: usize = 256;

/// How far a reader that goes from front to back is read ahead for.
const AHEAD_BYTES: u64 = 32 << 20;

/// How far others are.
const AHEAD_RANDOM_BYTES: u64 = 1 << 20;

/// Shows a disk of a recovery point.
///
/// # Errors
/// [`Kind::Denied`] where the key may not read content.
pub fn export(repository: &Arc<Repository>, disk: &PointDisk) -> Result<Arc<dyn Export>> {
    content_namer(repository)?;
    Ok(Arc::new(PointExport {
        tree: TreeReader::new(repository, disk),
        repository: Arc::clone(repository),
        size_bytes: disk.size_bytes,
        leaves: Cache::new(LEAVES_MAX),
        chunks: Arc::new(Cache::with_weighter(4096, CHUNKS_BYTES_MAX, ByLength)),
        expected: Mutex::new(0),
        fetching: tokio::sync::Mutex::new(()),
    }))
}

#[derive(Clone)]
struct ByLength;

impl Weighter<ChunkId, Bytes> for ByLength {
    fn weight(&self, _: &ChunkId, chunk: &Bytes) -> u64 {
        chunk.len() as u64 + 96
    }
}

struct PointExport {
    repository: Arc<Repository>,
    tree: TreeReader,
    size_bytes: u64,
    leaves: Cache<u64, Arc<Leaf>>,
    chunks: Arc<Cache<ChunkId, Bytes, ByLength>>,
    /// Where a reader that goes from front to back would read next.
    expected: Mutex<u64>,
    /// One fetch at a time: it brings what the next ones want.
    fetching: tokio::sync::Mutex<()>,
}

#[async_trait]
impl Export for PointExport {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    async fn allocation(&self, range: Range<u64>) -> Result<Vec<(Range<u64>, bool)>> {
        let stretch = self.stretch(&range).await?;
        let mut found: Vec<(Range<u64>, bool)> = Vec::new();
        let data = stretch.wants.iter().map(|want| {
            (
                want.disk_offset..want.disk_offset + u64::from(want.length),
                true,
            )
        });
        let holes = stretch.holes.into_iter().map(|hole| (hole, false));
        let mut all: Vec<_> = data.chain(holes).collect();
        all.sort_unstable_by_key(|(range, _)| range.start);
        for (part, is_data) in all {
            let part = part.start.max(range.start)..part.end.min(range.end);
            match found.last_mut() {
                _ if part.is_empty() => {}
                Some((last, kind)) if *kind == is_data && last.end == part.start => {
                    last.end = part.end;
                }
                _ => found.push((part, is_data)),
            }
        }
        Ok(found)
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes> {
        let read = self.read_checked(offset, length).await;
        if read.is_err() {
            self.repository.note_suspects("export").await;
        }
        read
    }
}

impl PointExport {
    async fn read_checked(&self, offset: u64, length: u32) -> Result<Bytes> {
        let range = offset..offset + u64::from(length);
        let stretch = self.stretch(&range).await?;
        let mut out = BytesMut::zeroed(length as usize);
        let mut ahead = self.ahead_of(&range);
        for want in &stretch.wants {
            let chunk = match self.chunks.get(&want.chunk) {
                Some(chunk) => chunk,
                None => {
                    let chunk = self.fetch(want, ahead.clone()).await?;
                    // What was fetched ahead has been asked for by now.
                    ahead = range.clone();
                    chunk
                }
            };
            copy(want, &chunk, offset, &mut out)?;
        }
        Ok(out.freeze())
    }

    /// What a range of the disk consists of; begins and ends at leaves.
    async fn stretch(&self, range: &Range<u64>) -> Result<Stretch> {
        let first = range.start / LEAF_BYTES;
        let mut stretch = Stretch::at(first * LEAF_BYTES);
        for index in first..range.end.div_ceil(LEAF_BYTES) {
            let start = index * LEAF_BYTES;
            let leaf = match self.leaves.get(&index) {
                Some(leaf) => Some(leaf),
                None => match self.tree.leaf(index).await? {
                    Some((_, leaf)) => {
                        let leaf = Arc::new(leaf);
                        self.leaves.insert(index, Arc::clone(&leaf));
                        Some(leaf)
                    }
                    None => None,
                },
            };
            match leaf {
                Some(leaf) => stretch.leaf(start, &leaf),
                None => stretch.hole(start..(start + LEAF_BYTES).min(self.size_bytes)),
            }
        }
        stretch.wants.retain(|want| {
            want.disk_offset < range.end && want.disk_offset + u64::from(want.length) > range.start
        });
        Ok(stretch)
    }

    fn ahead_of(&self, range: &Range<u64>) -> Range<u64> {
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        // Several connections of one reader run a little out of step.
        let sequential =
            range.start <= *expected + AHEAD_BYTES && range.end + AHEAD_BYTES >= *expected;
        *expected = range.end;
        let ahead = if sequential {
            AHEAD_BYTES
        } else {
            AHEAD_RANDOM_BYTES
        };
        range.start..(range.end + ahead).min(self.size_bytes)
    }

    /// Fetches a chunk, and with it what else is missing of `range`.
    async fn fetch(&self, want: &Want, range: Range<u64>) -> Result<Bytes> {
        let _turn = self.fetching.lock().await;
        if let Some(chunk) = self.chunks.get(&want.chunk) {
            return Ok(chunk);
        }
        let mut wants = vec![*want];
        // Nobody has asked for what lies ahead yet: damage there must not fail what was asked for.
        if let Ok(ahead) = self.stretch(&range).await {
            let is_missing = |other: &Want| {
                other.chunk != want.chunk && self.chunks.peek(&other.chunk).is_none()
            };
            wants.extend(ahead.wants.into_iter().filter(is_missing));
        }
        match self.fetch_chunks(wants, want).await {
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Missing) => {
                self.fetch_chunks(vec![*want], want).await
            }
            fetched => fetched,
        }
    }

    /// Fetches chunks into memory and returns that of `want`, which is among them.
    async fn fetch_chunks(&self, mut wants: Vec<Want>, want: &Want) -> Result<Bytes> {
        for want in &mut wants {
            // Whole chunks: another read wants the rest.
            want.offset = 0;
            want.length = want.location.length;
        }
        let found = Arc::new(Mutex::new(None));
        let sink: Arc<Sink> = {
            let (chunks, found, wanted) =
                (Arc::clone(&self.chunks), Arc::clone(&found), want.chunk);
            Arc::new(move |wants: &[Want], bytes: &[u8]| {
                for (want, bytes) in by_want(wants, bytes) {
                    let bytes = Bytes::copy_from_slice(bytes);
                    if want.chunk == wanted {
                        *found.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes.clone());
                    }
                    chunks.insert(want.chunk, bytes);
                }
                Ok(())
            })
        };
        let settings = FetchSettings { reads_in_flight: 3 };
        let stop = CancellationToken::new();
        self.repository.fetch(wants, settings, &sink, &stop).await?;
        let found = found.lock().unwrap_or_else(PoisonError::into_inner).take();
        found.ok_or_else(|| Error::new(Kind::Bug, "a fetch did not bring what it was sent for"))
    }
}

/// Copies what `want` takes of its chunk to its place in a buffer that begins at `offset`.
fn copy(want: &Want, chunk: &Bytes, offset: u64, out: &mut BytesMut) -> Result<()> {
    let end = offset + out.len() as u64;
    let from = want.disk_offset.max(offset);
    let to = (want.disk_offset + u64::from(want.length)).min(end);
    let cut = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    let in_chunk = u64::from(want.offset) + (from - want.disk_offset);
    let source = chunk.get(cut(in_chunk)..cut(in_chunk + (to - from)));
    let place = out.get_mut(cut(from - offset)..cut(to - offset));
    match (source, place) {
        (Some(source), Some(place)) => {
            place.copy_from_slice(source);
            Ok(())
        }
        _ => Err(Error::new(Kind::Bug, "a slice lies outside its chunk")),
    }
}
