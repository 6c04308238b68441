//! Tree pages, read and cached.
//!
//! Tree packs are small beside the data they describe, so they are fetched whole, checked against
//! their name, and kept in a bounded local folder: an incremental on the same host reads its parent's
//! tree without a request. Opened frames are kept in a bounded cache in memory. A cached file that
//! does not open is thrown away and fetched again.
//!
//! Where a page lies is a hint, as with chunks: pages of a tree pack that was lost may have been stored
//! anew, and are then found by their name in the index. Their name also says that they are the ones.

use super::Repository;
use super::fetch::with_opener;
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use tidegate_protocol::FormatError;
use tidegate_protocol::ids::{ChunkId, PackId, PageId};
use tidegate_protocol::pack::{FramesKey, HEADER_BYTES_MAX, Location, PackHeader};
use tidegate_protocol::page::{Delta, Inner, Leaf, PageRef};

/// Opened frames kept in memory: the pages of some 10 GiB of disk.
const FRAMES_BYTES_MAX: u64 = 24 << 20;

/// Tree packs fetched at the same time; each takes its size in memory.
const FETCHES_IN_FLIGHT: usize = 4;

/// Tree packs kept on the local disk, whatever their size: looking through them must stay quick.
const FOLDER_FILES_MAX: usize = 4096;

/// Keys of tree packs kept in memory.
const KEYS_MAX: usize = 1024;

/// How often a tree pack that does not hash to its name is fetched: once more, for what may have
/// happened on the way. Thousands of pages can lie in it, and each would fetch all of it.
const BROKEN_FETCHES_MAX: u32 = 2;

/// Tree packs kept on the local disk: the trees of some 2 TiB of disk.
const FOLDER_BYTES_MAX: u64 = 4 << 30;

type Frame = Arc<Vec<u8>>;

#[derive(Clone)]
struct ByLength;

impl Weighter<(PackId, u32), Frame> for ByLength {
    fn weight(&self, _: &(PackId, u32), frame: &Frame) -> u64 {
        frame.len() as u64 + 64
    }
}

/// Tree packs on the local disk, their keys and opened frames in memory.
pub struct PageCache {
    folder: PathBuf,
    frames: Cache<(PackId, u32), Frame, ByLength>,
    keys: Cache<PackId, Arc<FramesKey>>,
    /// Tree packs that came with other bytes than their name promises, and how often.
    broken: Cache<PackId, u32>,
    /// Whoever fetches a pack holds the lock of its first byte.
    fetching: [tokio::sync::Mutex<()>; FETCHES_IN_FLIGHT],
}

impl PageCache {
    /// Caches below `folder`, which is made when it is needed.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            frames: Cache::with_weighter(512, FRAMES_BYTES_MAX, ByLength),
            keys: Cache::new(KEYS_MAX),
            broken: Cache::new(KEYS_MAX),
            fetching: Default::default(),
        }
    }

    fn path(&self, pack: PackId) -> PathBuf {
        self.folder.join(pack.to_string())
    }
}

/// The name under which the index knows a page: names of chunks and of pages are made with different
/// keys, so neither is ever taken for the other.
pub(crate) fn page_in_index(page: &PageId) -> ChunkId {
    ChunkId(page.0)
}

impl Repository {
    /// Reads a leaf.
    pub async fn leaf(&self, page: &PageRef) -> Result<Leaf> {
        self.page(page, |bytes, page| Leaf::decode(bytes, page, &self.keys))
            .await
    }

    /// Reads a delta page.
    pub async fn delta(&self, page: &PageRef) -> Result<Delta> {
        self.page(page, |bytes, page| Delta::decode(bytes, page, &self.keys))
            .await
    }

    /// Reads an inner page of `level`.
    pub async fn inner(&self, page: &PageRef, level: u8) -> Result<Inner> {
        self.page(page, |bytes, page| {
            Inner::decode(bytes, page, level, &self.keys)
        })
        .await
    }

    /// Reads a page where its reference says, or where the index knows another copy of it.
    async fn page<T>(
        &self,
        page: &PageRef,
        decode: impl Fn(&[u8], &PageRef) -> Result<T, FormatError>,
    ) -> Result<T> {
        let damage = match self.page_at(page, &decode).await {
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Missing) => error,
            read => return read,
        };
        self.suspect(page.location.pack);
        for other in self.other_places_of(page).await? {
            match self.page_at(&other, &decode).await {
                Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Missing) => {}
                read => return read,
            }
        }
        Err(damage)
    }

    async fn page_at<T>(
        &self,
        page: &PageRef,
        decode: &impl Fn(&[u8], &PageRef) -> Result<T, FormatError>,
    ) -> Result<T> {
        let frame = self.page_frame(&page.location).await?;
        let bytes = self.page_bytes(&frame, page)?;
        decode(bytes, page).map_err(|error| self.damaged_page(page, error))
    }

    /// Where else the page lies, as the log says at its present end.
    async fn other_places_of(&self, page: &PageRef) -> Result<Vec<PageRef>> {
        let index = self.index_at_present().await?;
        let page = *page;
        blocking(move || {
            let places = index.reader()?.places(&page_in_index(&page.id))?;
            let others = places
                .into_iter()
                .filter(|location| *location != page.location);
            Ok(others
                .map(|location| PageRef { location, ..page })
                .collect())
        })
        .await
    }

    /// The whole tree pack out of the local cache, if it is there and sound. Blocking.
    pub(crate) fn kept_tree_pack(&self, pack: PackId) -> Option<Vec<u8>> {
        let bytes = std::fs::read(self.pages.path(pack)).ok()?;
        (PackId::of(&bytes) == pack).then_some(bytes)
    }

    /// Lets go of a kept tree pack. Blocking.
    pub(crate) fn drop_tree_pack(&self, pack: PackId) {
        // It is a cache: what stays is removed when room is needed.
        let _ = std::fs::remove_file(self.pages.path(pack));
    }

    /// Keeps a tree pack that this process has just written, so that its next run need not fetch it.
    pub(crate) fn keep_tree_pack(&self, pack: PackId, bytes: &[u8]) {
        if let Err(error) = keep(&self.pages.folder, &self.pages.path(pack), bytes) {
            tracing::debug!(
                error = error.chain(),
                "a tree pack was not kept in the local cache"
            );
        }
    }

    fn page_bytes<'a>(&self, frame: &'a [u8], page: &PageRef) -> Result<&'a [u8]> {
        let start = page.location.offset_in_frame as usize;
        frame
            .get(start..start + page.location.length as usize)
            .ok_or_else(|| {
                let error = Error::new(
                    Kind::Corrupt,
                    format!(
                        "a page at {start} lies outside its frame of {} bytes",
                        frame.len()
                    ),
                );
                self.damaged_page(page, error)
            })
    }

    async fn page_frame(&self, location: &Location) -> Result<Frame> {
        let slot = (location.pack, location.frame_offset);
        if let Some(frame) = self.pages.frames.get(&slot) {
            return Ok(frame);
        }
        let frame = match self.frame_from_folder(location).await {
            Ok(frame) => frame,
            Err(error) => {
                if error.kind() != Kind::Missing {
                    tracing::warn!(pack = %location.pack, error = error.chain(), "a cached tree pack cannot be used: fetching it again");
                }
                self.frame_from_store(location).await?
            }
        };
        self.pages.frames.insert(slot, Arc::clone(&frame));
        Ok(frame)
    }

    async fn frame_from_folder(&self, location: &Location) -> Result<Frame> {
        let path = self.pages.path(location.pack);
        let frame_offset = location.frame_offset;
        let range = location.frame_range();
        let known = self.pages.keys.get(&location.pack);
        let read = blocking(move || {
            let context = |error| Error::io(format!("cannot read {}", path.display()), error);
            let file = File::open(&path).map_err(context)?;
            let mut header = Vec::new();
            if known.is_none() {
                header.resize(HEADER_BYTES_MAX, 0);
                let length = file.read_at(&mut header, 0).map_err(context)?;
                header.truncate(length);
            }
            let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            let mut frame = vec![0; length];
            file.read_exact_at(&mut frame, range.start)
                .map_err(|error| {
                    Error::new(Kind::Corrupt, format!("{} is too short", path.display()))
                        .caused_by(error)
                })?;
            Ok((known, header, frame))
        });
        let (known, header, frame) = read.await?;
        let key = match known {
            Some(key) => key,
            None => self.tree_pack_key(location.pack, &header)?,
        };
        open_frame(key, frame_offset, frame).await
    }

    /// Fetches the tree pack that the frame lies in, and keeps it if that can be done: a full local
    /// disk must not be in the way of a restore.
    async fn frame_from_store(&self, location: &Location) -> Result<Frame> {
        // Readers that miss one frame mostly miss its neighbours too: one fetches the pack for all.
        let turn = usize::from(location.pack.0[0]) % FETCHES_IN_FLIGHT;
        let _turn = self.pages.fetching[turn].lock().await;
        if let Ok(frame) = self.frame_from_folder(location).await {
            return Ok(frame);
        }
        let pack = location.pack;
        let object_key = pack.object_key();
        let broken_fetches = self.pages.broken.get(&pack).unwrap_or(0);
        if broken_fetches >= BROKEN_FETCHES_MAX {
            let what = format!("{broken_fetches} times its bytes did not hash to its name");
            return Err(self.damaged(&object_key, Error::new(Kind::Corrupt, what)));
        }
        let bytes = self.read_whole_pack(pack).await?;
        self.pages.keys.remove(&pack);
        let (folder, path) = (self.pages.folder.clone(), self.pages.path(pack));
        let (found, bytes) = blocking(move || {
            let found = PackId::of(&bytes);
            if found == pack
                && let Err(error) = keep(&folder, &path, &bytes)
            {
                tracing::warn!(
                    error = error.chain(),
                    "a tree pack was not kept in the local cache"
                );
            }
            Ok((found, bytes))
        })
        .await?;
        let damaged = |error: Error| self.damaged(&object_key, error);
        if found != pack {
            self.pages.broken.insert(pack, broken_fetches + 1);
            let error = Error::new(Kind::Corrupt, format!("its bytes hash to {found}"));
            return Err(damaged(error));
        }
        let frame = location.frame_range();
        let cut = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let sealed = bytes.get(cut(frame.start)..cut(frame.end)).ok_or_else(|| {
            let error = Error::new(
                Kind::Corrupt,
                format!("frame {frame:?} lies behind its end"),
            );
            damaged(error)
        })?;
        let key = self.tree_pack_key(pack, &bytes).map_err(damaged)?;
        open_frame(key, location.frame_offset, sealed.to_vec())
            .await
            .map_err(damaged)
    }

    /// The key of a tree pack's frames, from the pack's first bytes.
    fn tree_pack_key(&self, pack: PackId, header: &[u8]) -> Result<Arc<FramesKey>> {
        let key = PackHeader::decode(header)
            .and_then(|header| header.frames_key(&self.keys))
            .map_err(|error| Error::new(Kind::Corrupt, error.to_string()))?;
        let key = Arc::new(key);
        self.pages.keys.insert(pack, Arc::clone(&key));
        Ok(key)
    }

    fn damaged_page(
        &self,
        page: &PageRef,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        self.damaged(&page.location.pack.object_key(), cause)
    }
}

async fn open_frame(key: Arc<FramesKey>, frame_offset: u32, sealed: Vec<u8>) -> Result<Frame> {
    blocking(move || {
        with_opener(|opener| {
            let raw = key
                .open(opener, frame_offset, &sealed)
                .map_err(|error| Error::new(Kind::Corrupt, error.to_string()))?;
            Ok(Arc::new(raw.to_vec()))
        })
    })
    .await
}

/// Writes a file that appears whole or not at all. It is a cache: nothing is synced.
fn keep(folder: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    let context = |error| Error::io(format!("cannot write {}", path.display()), error);
    std::fs::create_dir_all(folder).map_err(context)?;
    make_room(folder, bytes.len() as u64).map_err(context)?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(context)?;
    std::io::Write::write_all(&mut file, bytes).map_err(context)?;
    file.persist(path).map_err(|error| context(error.error))?;
    Ok(())
}

/// Removes the files that were written longest ago until `bytes` more fit.
fn make_room(folder: &Path, bytes: u64) -> std::io::Result<()> {
    let mut files = Vec::new();
    let mut total = bytes;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        // Another process may have removed it.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        total += metadata.len();
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        files.push((modified, metadata.len(), entry.path()));
    }
    if total <= FOLDER_BYTES_MAX && files.len() < FOLDER_FILES_MAX {
        return Ok(());
    }
    files.sort();
    // Well below the bound, so that this is not done again for every file from now on.
    let files_max = FOLDER_FILES_MAX * 3 / 4;
    let mut left = files.len();
    for (_, length, path) in files {
        if total <= FOLDER_BYTES_MAX && left <= files_max {
            break;
        }
        match std::fs::remove_file(path) {
            // Another process makes room too.
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        total -= length;
        left -= 1;
    }
    Ok(())
}
