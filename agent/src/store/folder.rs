//! A local folder as an object store, durable.
//!
//! When a create-only PUT returns success, the object survives a power cut: its bytes, its name,
//! and every folder above it up to the one that was there before are on disk. The order:
//!
//! 1. missing folders are made, and each is fsynced into its parent, before anything is put in
//!    them; once per process also folders that were there, since another process may have made
//!    them and been killed before its fsync;
//! 2. the object is made as [`durable`] makes files: whole or not at all, then fsynced into its
//!    folder. What that may leave behind after a kill has a name that is never listed.
//!
//! Nothing can be overwritten through this type, nor copied, renamed, or uploaded in parts.
//! Deletes are not fsynced: an object that comes back after a power cut harms nobody.

use crate::buffers::Buffers;
use crate::durable;
use crate::error::{Error, Result};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetRange, GetResult, GetResultPayload,
    ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, RenameOptions,
};
use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

mod direct;
mod walk;

use walk::Walk;

const STORE: &str = "folder";

/// Keys read from the folder at once by a listing.
const LIST_BATCH_KEYS: usize = 1000;

/// Reads of at least this size take pooled memory. Smaller ones may be kept for long.
const POOLED_BYTES_MIN: usize = 1 << 20;

/// A folder that holds objects as files.
#[derive(Clone)]
pub struct Folder {
    shared: Arc<Shared>,
}

struct Shared {
    root: PathBuf,
    /// For what is read.
    buffers: Buffers,
    /// Folders known to be durable. Bounded by the number of folders a repository has.
    durable: Mutex<BTreeSet<PathBuf>>,
}

impl Folder {
    /// A store in the folder `root`, which is made by the first PUT if it is not there.
    ///
    /// # Errors
    /// [`Kind::BadInput`](crate::error::Kind::BadInput) where `root` is there and is no folder.
    pub fn open(root: &Path) -> Result<Self> {
        let about = || format!("the folder {}", root.display());
        let root = std::path::absolute(root).map_err(|error| Error::io(about(), error))?;
        match std::fs::metadata(&root) {
            Ok(metadata) if !metadata.is_dir() => Err(Error::new(
                crate::error::Kind::BadInput,
                format!("{} is not a folder", root.display()),
            )),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(about(), error)),
            _ => Ok(Self {
                shared: Arc::new(Shared {
                    root,
                    buffers: Buffers::default(),
                    durable: Mutex::default(),
                }),
            }),
        }
    }
}

impl Shared {
    fn file_of(&self, key: &Key) -> PathBuf {
        let mut path = self.root.clone();
        path.extend(key.parts().map(|part| part.as_ref().to_owned()));
        path
    }

    fn create(&self, key: &Key, payload: &PutPayload) -> object_store::Result<()> {
        let path = self.file_of(key);
        let Some(folder) = path.parent() else {
            return Err(generic(io::Error::from(io::ErrorKind::InvalidInput)));
        };
        self.ensure_durable(folder)
            .map_err(|error| readable(key, error))?;
        let mut created = create_object(&path, payload);
        if matches!(&created, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            // The folder was removed after we had made it.
            self.forget_durable();
            self.ensure_durable(folder)
                .map_err(|error| readable(key, error))?;
            created = create_object(&path, payload);
        }
        created.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => StoreError::AlreadyExists {
                path: key.to_string(),
                source: error.into(),
            },
            _ => readable(key, error),
        })
    }

    fn forget_durable(&self) {
        self.durable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// Makes the folder and those above it, and their names durable.
    fn ensure_durable(&self, folder: &Path) -> io::Result<()> {
        let is_known = |folder: &Path| {
            self.durable
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .contains(folder)
        };
        if is_known(folder) {
            return Ok(());
        }
        // Above the store's root only what we make ourselves is our concern.
        let inside = folder
            .ancestors()
            .take_while(|at| at.starts_with(&self.root));
        let missing = folder
            .ancestors()
            .skip_while(|at| at.starts_with(&self.root))
            .take_while(|at| !at.exists());
        let to_sync: Vec<PathBuf> = inside
            .chain(missing)
            .take_while(|at| !is_known(at))
            .map(Path::to_path_buf)
            .collect();
        std::fs::create_dir_all(folder)?;
        for made in to_sync.iter().rev() {
            if let Some(parent) = made.parent() {
                // Above the root it may be somebody else's.
                match parent.starts_with(&self.root) {
                    true => durable::fsync_folder(parent)?,
                    false => durable::fsync_folder_if_readable(parent)?,
                }
            }
        }
        self.durable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(to_sync.into_iter().filter(|at| at.starts_with(&self.root)));
        Ok(())
    }

    fn open_object(&self, key: &Key) -> object_store::Result<(File, ObjectMeta)> {
        let path = self.file_of(key);
        let file = File::open(&path).map_err(|error| readable(key, error))?;
        let metadata = file.metadata().map_err(|error| readable(key, error))?;
        if !metadata.is_file() {
            return Err(readable(key, io::Error::from(io::ErrorKind::NotFound)));
        }
        let meta = meta_of(key.clone(), &metadata).map_err(|error| readable(key, error))?;
        Ok((file, meta))
    }

    fn get(&self, key: &Key, options: &GetOptions) -> object_store::Result<GetResult> {
        let (file, meta) = self.open_object(key)?;
        options.check_preconditions(&meta)?;
        let range = match &options.range {
            None => 0..meta.size,
            Some(asked) => clip(asked, meta.size).ok_or_else(|| {
                generic(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!(
                        "{asked:?} does not start inside the object of {} bytes",
                        meta.size
                    ),
                ))
            })?,
        };
        let (key, buffers, of) = (key.clone(), self.buffers.clone(), range.clone());
        let read = async move {
            blocking(move || read(&file, of, &buffers).map_err(|error| readable(&key, error))).await
        };
        Ok(GetResult {
            payload: GetResultPayload::Stream(futures::stream::once(read).boxed()),
            meta,
            range,
            attributes: Default::default(),
            extensions: Default::default(),
        })
    }

    fn delete(&self, key: &Key) -> object_store::Result<()> {
        std::fs::remove_file(self.file_of(key)).map_err(|error| readable(key, error))
    }
}

/// Creates the file `path` unless it is there, its bytes and name durable.
fn create_object(path: &Path, payload: &PutPayload) -> io::Result<()> {
    durable::create_file(path, 0o666, |file| direct::write(file, payload))
}

/// Reads a range of an object.
fn read(file: &File, range: Range<u64>, buffers: &Buffers) -> io::Result<Bytes> {
    let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
    let is_large = length >= POOLED_BYTES_MIN;
    let mut bytes = match is_large {
        true => buffers.take(length),
        false => Vec::new(),
    };
    bytes.resize(length, 0);
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(match is_large {
        true => buffers.share(bytes),
        false => bytes.into(),
    })
}

fn meta_of(location: Key, metadata: &std::fs::Metadata) -> io::Result<ObjectMeta> {
    Ok(ObjectMeta {
        location,
        last_modified: metadata.modified()?.into(),
        size: metadata.len(),
        e_tag: None,
        version: None,
    })
}

/// The part of `asked` inside an object of `size_bytes`; `None` where it starts beyond.
fn clip(asked: &GetRange, size_bytes: u64) -> Option<Range<u64>> {
    let range = match asked {
        GetRange::Bounded(range) => range.start..range.end.min(size_bytes),
        GetRange::Offset(start) => *start..size_bytes,
        GetRange::Suffix(length) => size_bytes.saturating_sub(*length)..size_bytes,
    };
    (!range.is_empty()).then_some(range)
}

/// An error of the operating system in the library's words.
fn readable(key: &Key, error: io::Error) -> StoreError {
    let path = key.to_string();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => {
            StoreError::NotFound {
                path,
                source: error.into(),
            }
        }
        io::ErrorKind::PermissionDenied => StoreError::PermissionDenied {
            path,
            source: error.into(),
        },
        _ => generic(error),
    }
}

fn generic(error: io::Error) -> StoreError {
    StoreError::Generic {
        store: STORE,
        source: error.into(),
    }
}

fn not_supported(operation: &str) -> StoreError {
    StoreError::NotSupported {
        source: format!("{operation} in a folder store, which only creates").into(),
    }
}

/// Runs blocking file work on the runtime's threads for such.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> object_store::Result<T> + Send + 'static,
) -> object_store::Result<T> {
    tokio::task::spawn_blocking(work).await?
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for Folder {
    async fn put_opts(
        &self,
        location: &Key,
        payload: PutPayload,
        opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        if opts.mode != PutMode::Create {
            return Err(not_supported("overwriting"));
        }
        let (shared, key) = (Arc::clone(&self.shared), location.clone());
        blocking(move || shared.create(&key, &payload)).await?;
        Ok(PutResult {
            e_tag: None,
            version: None,
            extensions: Default::default(),
        })
    }

    async fn put_multipart_opts(
        &self,
        _location: &Key,
        _opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        Err(not_supported("uploading in parts"))
    }

    async fn get_opts(
        &self,
        location: &Key,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        let (shared, key) = (Arc::clone(&self.shared), location.clone());
        blocking(move || shared.get(&key, &options)).await
    }

    async fn get_ranges(
        &self,
        location: &Key,
        ranges: &[Range<u64>],
    ) -> object_store::Result<Vec<Bytes>> {
        let mut parts = Vec::with_capacity(ranges.len());
        for range in ranges {
            let options = GetOptions::new().with_range(Some(range.clone()));
            parts.push(self.get_opts(location, options).await?.bytes().await?);
        }
        Ok(parts)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Key>>,
    ) -> BoxStream<'static, object_store::Result<Key>> {
        let shared = Arc::clone(&self.shared);
        locations
            .then(move |location| {
                let shared = Arc::clone(&shared);
                async move {
                    let key = location?;
                    blocking(move || shared.delete(&key).map(|()| key)).await
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.list_from(prefix, String::new())
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Key>,
        offset: &Key,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.list_from(prefix, offset.to_string())
    }

    async fn list_with_delimiter(&self, _prefix: Option<&Key>) -> object_store::Result<ListResult> {
        Err(not_supported("listing with a delimiter"))
    }

    async fn copy_opts(
        &self,
        _from: &Key,
        _to: &Key,
        _options: CopyOptions,
    ) -> object_store::Result<()> {
        Err(not_supported("copying"))
    }

    async fn rename_opts(
        &self,
        _from: &Key,
        _to: &Key,
        _options: RenameOptions,
    ) -> object_store::Result<()> {
        Err(not_supported("renaming"))
    }
}

impl Folder {
    /// The objects below `prefix` whose keys come after `after`, in the byte order of their keys,
    /// as object stores list them.
    fn list_from(
        &self,
        prefix: Option<&Key>,
        after: String,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let prefix = prefix.map(Key::to_string).unwrap_or_default();
        let walk = Walk::new(self.shared.root.clone(), prefix, after);
        futures::stream::try_unfold(walk, |mut walk| async move {
            let (batch, walk) = blocking(move || {
                let batch = walk.take(LIST_BATCH_KEYS).map_err(generic)?;
                Ok((batch, walk))
            })
            .await?;
            let batch = (!batch.is_empty()).then(|| futures::stream::iter(batch).map(Ok));
            Ok::<_, StoreError>(batch.map(|batch| (batch, walk)))
        })
        .flat_map(|batch| match batch {
            Ok(batch) => batch.boxed(),
            Err(error) => futures::stream::iter([Err(error)]).boxed(),
        })
        .boxed()
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Folder({})", self.shared.root.display())
    }
}

impl fmt::Debug for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests;
