//! The repository: the log, packs, index and trees in one bucket, and this machine's cache of them.
//!
//! | Part | Purpose |
//! |---|---|
//! | `damage` | packs and segments that are gone or damaged: found, and noted |
//! | `expire` | points whose time has passed are given up |
//! | [`log`] | reading and appending records: the commit protocol |
//! | [`catalogue`] | the state that the log amounts to, in local SQLite |
//! | [`index`] | chunk id → location |
//! | [`point`] | recovery points and how they are named |
//! | [`keyring`] | key files and slots |
//! | [`fetch`] | ranged reads of packs, opened and checked |
//! | [`pages`] | tree pages: read and cached |
//! | [`tree`] | walking a disk's tree, writing a new one |
//!
//! Invariant: nothing read from the bucket is believed before its seal, hash or signature was
//! checked, and nothing becomes visible to others but by an append to the log.

mod bundle;
pub mod catalogue;
mod damage;
mod expire;
pub mod fetch;
pub mod index;
pub mod keyring;
pub mod log;
mod merge;
mod packs;
pub mod pages;
pub mod point;
pub mod tree;

pub use bundle::{BundleSettings, Bundled};
pub use expire::ExpireScope;
pub use keyring::{KeyInfo, open_slot, read_key_file, write_key_file};
pub use merge::Merged;
pub use point::{Point, PointDisk, PointTotals, Selector};

use crate::blocking::blocking;
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::store::{Created, Store};
use catalogue::Catalogue;
use futures::{StreamExt, TryStreamExt, stream};
use index::Index;
use pages::PageCache;
use point::as_text;
use serde::Serialize;
use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tidegate_protocol::descriptor::{self, ChunkerParams, Descriptor, FORMAT_VERSION};
use tidegate_protocol::ids::{KeyId, RepositoryId, SegmentId};
use tidegate_protocol::keys::{Keys, Level, RepositorySecret, Secret};
use tidegate_protocol::limits::{RECORD_BYTES_MAX, SEGMENT_BYTES_MAX, SMALL_OBJECT_BYTES_MAX};
use tidegate_protocol::record::{self, Body, Head};
use tidegate_protocol::segment::Segment;
use tidegate_protocol::{FormatError, checkpoint};

/// Index segments read at the same time.
const SEGMENTS_IN_FLIGHT: usize = 4;

const CATALOGUE_FILE: &str = "catalogue.sqlite";
const TREE_FOLDER: &str = "tree";

/// An open repository.
pub struct Repository {
    store: Store,
    keys: Arc<Keys>,
    descriptor: Descriptor,
    catalogue: Arc<Catalogue>,
    pages: PageCache,
    pack_keys: fetch::PackKeys,
    suspects: damage::Suspects,
    index: OnceLock<Arc<Index>>,
    /// Segments that could not be read: they are not asked for again for every chunk in doubt.
    unusable_segments: Mutex<HashSet<SegmentId>>,
}

/// The keys of a new repository, one of each level.
pub struct NewKeys {
    /// For hosts.
    pub host: Keys,
    /// For gateways and maintenance.
    pub maintenance: Keys,
    /// For restores: to be kept apart, and safe.
    pub restore: Keys,
}

impl NewKeys {
    /// Each with what it is called, in the order in which the log learns of them.
    fn labelled(&self) -> [(&Keys, &'static str); 3] {
        [
            (&self.host, "host"),
            (&self.maintenance, "maintenance"),
            (&self.restore, "restore"),
        ]
    }
}

/// What a repository is.
#[derive(Debug, Clone, Serialize)]
pub struct RepositoryInfo {
    /// Its name.
    #[serde(serialize_with = "as_text")]
    pub repository: RepositoryId,
    /// Where it is.
    pub location: String,
    /// Version of its format.
    pub format_version: u32,
    /// When it was made, Unix time in nanoseconds.
    pub created_unix_ns: u64,
    /// How disks are cut, in words.
    pub chunker: String,
    /// What the key in use may do.
    #[serde(serialize_with = "as_text")]
    pub key_level: Level,
    /// The key in use.
    #[serde(serialize_with = "as_text")]
    pub key: KeyId,
    /// Number of the last log record.
    pub head: u64,
    /// Machines with at least one point.
    pub machines: u64,
    /// Recovery points.
    pub points: u64,
    /// Index segments.
    pub segments: u64,
}

/// What a repository takes, by listing it.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct RepositoryStats {
    /// Machines with at least one point.
    pub machines: u64,
    /// Recovery points.
    pub points: u64,
    /// Virtual size of all points together, in bytes: what plain copies would take.
    pub virtual_bytes: u64,
    /// Bytes of all points that are not holes.
    pub allocated_bytes: u64,
    /// Different chunks.
    pub chunks: u64,
    /// Their bytes before compression.
    pub chunk_bytes: u64,
    /// Packs.
    pub packs: u64,
    /// Their bytes.
    pub pack_bytes: u64,
    /// Index segments.
    pub segments: u64,
    /// Their bytes.
    pub segment_bytes: u64,
    /// Log records.
    pub records: u64,
    /// Log checkpoints.
    pub checkpoints: u64,
    /// Bytes of records and checkpoints.
    pub log_bytes: u64,
}

impl Repository {
    /// Makes a repository: tries out the store, draws the secret, has `save_keys` make the keys
    /// durable, and only then writes the descriptor. A crash before that leaves keys to nothing.
    pub async fn init(
        store: &Store,
        chunker: ChunkerParams,
        save_keys: impl FnOnce(&NewKeys) -> Result<()>,
    ) -> Result<RepositoryId> {
        chunker.validate().map_err(|error| {
            Error::new(Kind::Config, "the chunker's parameters").caused_by(error)
        })?;
        if store.size(descriptor::OBJECT_KEY).await?.is_some() {
            return Err(taken(store));
        }
        store.probe_create_only().await?;
        let repository = RepositoryId(clock::random()?);
        let secret = RepositorySecret(Secret(clock::random()?));
        let now = clock::now_unix_ns();
        let issue = |level| -> Result<Keys> {
            Ok(secret.issue(level, repository, Secret(clock::random()?), now))
        };
        let keys = NewKeys {
            host: issue(Level::Host)?,
            maintenance: issue(Level::Maintenance)?,
            restore: issue(Level::Restore)?,
        };
        save_keys(&keys)?;
        let descriptor = Descriptor {
            repository,
            created_unix_ns: now,
            chunker,
            data_public: keys.restore.data_public(),
            root_public: *keys.restore.root_public(),
        };
        let bytes = bytes::Bytes::from(descriptor.encode(&secret.root_key()));
        let ours = match store.create(descriptor::OBJECT_KEY, bytes.clone()).await? {
            Created::New => true,
            Created::Exists => {
                let there = store
                    .get(descriptor::OBJECT_KEY, SMALL_OBJECT_BYTES_MAX.into())
                    .await?;
                there == bytes
            }
        };
        if !ours {
            return Err(taken(store));
        }
        // The log makes the first keys known, so that they can be listed and revoked. Should this
        // not come about, the keys work all the same, and `finish_init` makes up for it.
        let mut head = Head::EMPTY;
        for (keys_of, label) in keys.labelled() {
            let body = Body::KeyChanged(keyring::key_made(keys_of, label, None));
            let bytes = bytes::Bytes::from(
                record::encode(&body, &head, now, clock::random()?, &keys.restore)
                    .map_err(refused)?,
            );
            let number = head.number + 1;
            let key = record::object_key(number);
            match store.create(&key, bytes.clone()).await? {
                Created::New => {}
                // Perhaps our own, and only its answer was lost.
                Created::Exists if store.get(&key, RECORD_BYTES_MAX.into()).await? == bytes => {}
                Created::Exists => break,
            }
            head = Head {
                number,
                hash: tidegate_protocol::ids::RecordHash::of(&bytes),
            };
        }
        Ok(repository)
    }

    /// Goes on where an `init` that made the descriptor was interrupted: has the log make those of the
    /// first keys known that it does not know yet. Says how many they were.
    ///
    /// # Errors
    /// [`Kind::Denied`] where the keys are those of another repository.
    pub async fn finish_init(store: &Store, keys: NewKeys) -> Result<usize> {
        let cache = blocking(|| {
            tempfile::tempdir()
                .map_err(|error| Error::io("cannot make a folder for temporary files", error))
        })
        .await?;
        let first: Vec<_> = keys
            .labelled()
            .into_iter()
            .map(|(keys, label)| (keys.repository(), keyring::key_made(keys, label, None)))
            .collect();
        let repository = Self::open(store.clone(), keys.restore, cache.path()).await?;
        let own = repository.keys.repository();
        if first.iter().any(|(of, _)| *of != own) {
            return Err(Error::new(
                Kind::Denied,
                "the keys belong to several repositories",
            ));
        }
        let mut made_known = 0;
        for (_, key) in first {
            let known = repository.catalogue.signers()?;
            if known.iter().any(|signer| signer.key.0[..] == key.key[..]) {
                continue;
            }
            repository
                .append(|_| Ok(Body::KeyChanged(key.clone())))
                .await?;
            made_known += 1;
        }
        Ok(made_known)
    }

    /// Opens with `keys`: checks the descriptor, opens the local cache below `cache_folder` and
    /// replays the log.
    pub async fn open(store: Store, keys: Keys, cache_folder: &Path) -> Result<Self> {
        Self::open_with(store, Arc::new(keys), cache_folder, 0).await
    }

    /// The same repository as a machine finds it that has never seen it. `cache_folder` is empty.
    pub(crate) async fn open_anew(&self, cache_folder: &Path) -> Result<Self> {
        let head = self.catalogue.head()?.number;
        Self::open_with(
            self.store.clone(),
            Arc::clone(&self.keys),
            cache_folder,
            head,
        )
        .await
    }

    /// `head` is a record that is known to be in the log, or 0.
    async fn open_with(
        store: Store,
        keys: Arc<Keys>,
        cache_folder: &Path,
        head: u64,
    ) -> Result<Self> {
        let repository = Self::open_cached(store, keys, cache_folder).await?;
        repository.refresh_to(head).await?;
        let own = repository.keys.identity().certificate.public.id();
        if repository.catalogue.is_revoked(own)? {
            return Err(Error::new(Kind::Denied, format!("key {own} was revoked"))
                .advise("use another key; `tidegate key list` shows which ones stand"));
        }
        Ok(repository)
    }

    /// Throws this machine's cache away and builds it anew from the bucket.
    pub async fn rebuild_cache(store: Store, keys: Keys, cache_folder: &Path) -> Result<Self> {
        let work = cache_folder.join(keys.repository().to_string());
        blocking(move || {
            create_folder(&work)?;
            Catalogue::open(&work.join(CATALOGUE_FILE))?.empty()?;
            match std::fs::remove_dir_all(work.join(TREE_FOLDER)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(
                    format!("cannot remove {}", work.join(TREE_FOLDER).display()),
                    error,
                )),
                _ => Ok(()),
            }
        })
        .await?;
        let repository = Self::open(store, keys, cache_folder).await?;
        repository.index().await?;
        Ok(repository)
    }

    async fn open_cached(store: Store, keys: Arc<Keys>, cache_folder: &Path) -> Result<Self> {
        let key = descriptor::OBJECT_KEY;
        let bytes = store
            .get(key, SMALL_OBJECT_BYTES_MAX.into())
            .await
            .map_err(|error| match error.kind() {
                Kind::Missing => Error::new(
                    Kind::Missing,
                    format!("{}: there is no repository", store.label()),
                )
                .advise("check --repo; `tidegate init` makes a new repository")
                .caused_by(error),
                _ => error,
            })?;
        let descriptor = Descriptor::decode(&bytes).map_err(|error| damaged(&store, key, error))?;
        descriptor.check_keys(&keys).map_err(|error| {
            Error::new(
                Kind::Denied,
                format!(
                    "{}: the key does not belong to this repository",
                    store.label()
                ),
            )
            .advise("give the key that was made for this repository, or check --repo")
            .caused_by(error)
        })?;
        let folder = cache_folder.join(keys.repository().to_string());
        let (catalogue, pages) = blocking(move || {
            create_folder(&folder)?;
            let catalogue = Catalogue::open(&folder.join(CATALOGUE_FILE))?;
            Ok((catalogue, PageCache::new(&folder.join(TREE_FOLDER))))
        })
        .await?;
        Ok(Self {
            store,
            keys,
            descriptor,
            catalogue: Arc::new(catalogue),
            pages,
            pack_keys: fetch::PackKeys::default(),
            suspects: damage::Suspects::default(),
            index: OnceLock::new(),
            unusable_segments: Mutex::default(),
        })
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The keys it was opened with.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// How its disks are cut.
    pub fn chunker(&self) -> &ChunkerParams {
        &self.descriptor.chunker
    }

    /// The replayed state.
    pub fn catalogue(&self) -> &Arc<Catalogue> {
        &self.catalogue
    }

    /// The chunk index, with all segments that the log names. A segment that cannot be read is
    /// left out, with a warning, and becomes a suspect: once that is noted, backups write it anew.
    pub async fn index(&self) -> Result<Arc<Index>> {
        let index = self.open_index().await?;
        let mut wanted = self.catalogue.segments_to_load()?;
        wanted.retain(|id| !self.unusable_segments().contains(id));
        let mut segments = stream::iter(wanted)
            .map(|id| async move { (id, self.read_segment(id).await) })
            .buffer_unordered(SEGMENTS_IN_FLIGHT);
        while let Some((id, segment)) = segments.next().await {
            match segment {
                Ok(segment) => {
                    let index = Arc::clone(&index);
                    blocking(move || index.add_segment(id, &segment)).await?;
                }
                Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Missing) => {
                    index::unusable_segment(id, &error);
                    self.suspect_segment(id);
                    self.unusable_segments().insert(id);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(index)
    }

    /// The chunk index for a backup. Where the store's gateway answers for the segments, they are not
    /// read: they grow with the repository, and a host needs to know of its own machines only. A segment
    /// that was found bad is another matter: what it said is to be written anew, by who knows all others.
    pub(crate) async fn index_for_backup(&self) -> Result<Arc<Index>> {
        match self.store.knows_chunks() && self.catalogue.segments_to_search_for()?.is_empty() {
            true => self.open_index().await,
            false => self.index().await,
        }
    }

    async fn open_index(&self) -> Result<Arc<Index>> {
        if let Some(index) = self.index.get() {
            return Ok(Arc::clone(index));
        }
        let catalogue = Arc::clone(&self.catalogue);
        let opened = blocking(move || Index::open(catalogue)).await?;
        Ok(Arc::clone(self.index.get_or_init(|| opened)))
    }

    /// The chunk index for a reader that misses something: what this machine has replayed may be older
    /// than what moved it. Where the log cannot be read, what is known of it has to do.
    pub(crate) async fn index_at_present(&self) -> Result<Arc<Index>> {
        if let Err(error) = self.refresh().await {
            tracing::warn!(
                error = error.chain(),
                "the log cannot be read: looking for other places in what is known of it"
            );
        }
        self.index().await
    }

    /// The chunk index if it is open, whatever the log has named since.
    pub(crate) fn index_as_it_is(&self) -> Option<Arc<Index>> {
        self.index.get().map(Arc::clone)
    }

    fn unusable_segments(&self) -> MutexGuard<'_, HashSet<SegmentId>> {
        self.unusable_segments
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads an index segment, and checks that it is the one of that name.
    pub(crate) async fn read_segment(&self, id: SegmentId) -> Result<Segment> {
        let key = id.object_key();
        let bytes = self.store.get(&key, SEGMENT_BYTES_MAX).await?;
        let found = SegmentId::of(&bytes);
        if found != id {
            let error = FormatError::Hash {
                object: "index segment",
                expected: id.to_string(),
                found: found.to_string(),
            };
            return Err(self.damaged(&key, error));
        }
        Segment::decode(&bytes, &self.keys).map_err(|error| self.damaged(&key, error))
    }

    /// What it is.
    pub fn info(&self) -> Result<RepositoryInfo> {
        let points = self.points(None)?;
        Ok(RepositoryInfo {
            repository: self.descriptor.repository,
            location: self.store.label().to_owned(),
            format_version: FORMAT_VERSION,
            created_unix_ns: self.descriptor.created_unix_ns,
            chunker: match self.descriptor.chunker {
                ChunkerParams::BlockAligned {
                    chunk_bytes_min,
                    chunk_bytes_avg,
                    chunk_bytes_max,
                    eof_cut_bytes_min,
                } => format!(
                    "block-aligned {}/{}/{} KiB, end-of-file cut from {} KiB",
                    chunk_bytes_min >> 10,
                    chunk_bytes_avg >> 10,
                    chunk_bytes_max >> 10,
                    eof_cut_bytes_min >> 10
                ),
                ChunkerParams::Fixed { chunk_bytes } => format!("fixed {} KiB", chunk_bytes >> 10),
            },
            key_level: self.keys.level(),
            key: self.keys.identity().certificate.public.id(),
            head: self.catalogue.head()?.number,
            machines: machines(&points),
            points: points.len() as u64,
            segments: self.catalogue.segment_count()?,
        })
    }

    /// What it takes. Lists the whole bucket.
    pub async fn stats(&self) -> Result<RepositoryStats> {
        let points = self.points(None)?;
        self.index().await?;
        let (chunks, chunk_bytes) = self.catalogue.chunk_totals()?;
        let mut stats = RepositoryStats {
            machines: machines(&points),
            points: points.len() as u64,
            virtual_bytes: points.iter().map(|point| point.totals.virtual_bytes).sum(),
            allocated_bytes: points
                .iter()
                .map(|point| point.totals.allocated_bytes)
                .sum(),
            chunks,
            chunk_bytes,
            ..RepositoryStats::default()
        };
        let mut entries = self.store.list("", None);
        while let Some(entry) = entries.try_next().await? {
            if entry.key.starts_with("packs/") {
                stats.packs += 1;
                stats.pack_bytes += entry.size_bytes;
            } else if entry.key.starts_with("index/") {
                stats.segments += 1;
                stats.segment_bytes += entry.size_bytes;
            } else if record::number_of(&entry.key).is_some() {
                stats.records += 1;
                stats.log_bytes += entry.size_bytes;
            } else if checkpoint::number_of(&entry.key).is_some() {
                stats.checkpoints += 1;
                stats.log_bytes += entry.size_bytes;
            }
        }
        Ok(stats)
    }

    async fn index_follows(&self) -> Result<()> {
        match self.index_as_it_is() {
            Some(index) => blocking(move || index.refresh_unusable()).await,
            None => Ok(()),
        }
    }

    /// An object of the bucket that is not what it should be.
    pub(crate) fn damaged(
        &self,
        key: &str,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        damaged(&self.store, key, cause)
    }
}

fn create_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|error| {
        let what = format!("cannot make the cache folder {}", folder.display());
        Error::io(what, error).advise("name another folder with --cache-dir")
    })
}

/// The format's writer refuses what this program made of sound input.
pub(crate) fn refused(error: FormatError) -> Error {
    Error::new(Kind::Bug, "what was to be stored does not fit the format").caused_by(error)
}

/// A right that the key at hand lacks.
pub(crate) fn local_denied(error: &FormatError) -> Error {
    Error::new(Kind::Denied, error.to_string())
        .advise("give a key of a higher level with --key or TIDEGATE_KEY")
}

fn damaged(
    store: &Store,
    key: &str,
    cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> Error {
    let cause = cause.into();
    // A newer format is no damage, and a lacking right is no damage either.
    match cause.downcast_ref::<FormatError>() {
        Some(FormatError::Version { .. } | FormatError::Feature { .. }) => {
            Error::new(Kind::Unsupported, format!("{}: {key} was written by a newer tidegate", store.label()))
                .advise("upgrade tidegate on this machine")
                .caused_by(cause)
        }
        Some(error @ FormatError::Right { .. }) => local_denied(error),
        _ => Error::new(Kind::Corrupt, format!("{}: {key} is damaged", store.label()))
            .advise("`tidegate verify --all` shows what it touches; bring it back from a copy or the bucket's versions")
            .caused_by(cause),
    }
}

fn taken(store: &Store) -> Error {
    Error::new(
        Kind::Conflict,
        format!("{}: there is a repository already", store.label()),
    )
    .advise("choose another folder or prefix, or use the repository that is there")
}

fn machines(points: &[Point]) -> u64 {
    let names: std::collections::HashSet<_> = points.iter().map(|point| &point.machine).collect();
    names.len() as u64
}
