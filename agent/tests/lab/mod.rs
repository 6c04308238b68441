//! What the tests of the engine share: a repository over a store that records its calls, disks held in
//! memory or computed, and targets, one of which judges what is written to it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "tests, each of which uses a part of this"
)]

mod disk;
mod memory;
mod tracked;

pub use disk::{ExpectingTarget, TILE_BYTES, Tile, TiledDisk};
pub use memory::{MemoryDisk, MemoryTarget};
pub use tracked::{Frozen, TrackedDisk};

use std::path::Path;
use std::sync::Arc;
use tidegate_agent::Result;
use tidegate_agent::chunk::ChunkerParams;
use tidegate_agent::progress::Progress;
use tidegate_agent::recover::{RestoreMode, RestoreSettings, RestoreSummary, restore_disk};
use tidegate_agent::replicate::{
    BackupRequest, BackupSettings, BackupSummary, DiskToBackUp, backup,
};
use tidegate_agent::repository::{NewKeys, Point, PointDisk, Repository};
use tidegate_agent::retention::Keep;
use tidegate_agent::source::Source;
use tidegate_agent::store::fault::{Call, FaultStore, Operation};
use tidegate_agent::store::{Store, StoreSettings};
use tidegate_agent::target::Target;
use tidegate_protocol::key_file;
use tidegate_protocol::keys::Keys;
use tidegate_protocol::record::Role;
use tokio_util::sync::CancellationToken;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;
pub const TIB: u64 = 1 << 40;

/// The default of new repositories.
pub const CHUNKER: ChunkerParams = ChunkerParams::BlockAligned {
    chunk_bytes_min: 16 << 10,
    chunk_bytes_avg: 32 << 10,
    chunk_bytes_max: 64 << 10,
    eof_cut_bytes_min: 8 << 10,
};

/// A repository, its keys, and everything that is asked of its store.
pub struct Lab {
    pub store: Store,
    pub calls: Arc<FaultStore>,
    pub keys: NewKeys,
    pub cache: tempfile::TempDir,
}

impl Lab {
    pub async fn in_memory() -> Self {
        Self::on(&Store::memory()).await
    }

    pub async fn in_folder(folder: &Path) -> Self {
        let location = folder.to_str().unwrap();
        Self::on(&Store::open(location, &StoreSettings::default()).unwrap()).await
    }

    pub async fn on(store: &Store) -> Self {
        let (store, calls) = store.with_faults(&StoreSettings::default());
        let mut saved = None;
        Repository::init(&store, CHUNKER, |keys| {
            saved = Some(copy_all(keys));
            Ok(())
        })
        .await
        .unwrap();
        Self {
            store,
            calls,
            keys: saved.unwrap(),
            cache: tempfile::tempdir().unwrap(),
        }
    }

    /// With the restore key, and this machine's cache.
    pub async fn open(&self) -> Arc<Repository> {
        self.try_open(self.cache.path()).await.unwrap()
    }

    pub async fn try_open(&self, cache: &Path) -> Result<Arc<Repository>> {
        Repository::open(self.store.clone(), copy(&self.keys.restore), cache)
            .await
            .map(Arc::new)
    }

    /// With other keys, and another cache.
    pub async fn open_as(&self, keys: &Keys, cache: &Path) -> Arc<Repository> {
        Arc::new(
            Repository::open(self.store.clone(), copy(keys), cache)
                .await
                .unwrap(),
        )
    }

    /// Where the local cache keeps this repository's files.
    pub fn cache_folder(&self) -> std::path::PathBuf {
        let repository = self.keys.restore.repository().to_string();
        self.cache.path().join(repository)
    }
}

pub fn copy(keys: &Keys) -> Keys {
    key_file::decode(&key_file::encode(keys)).unwrap()
}

pub fn copy_all(keys: &NewKeys) -> NewKeys {
    NewKeys {
        host: copy(&keys.host),
        maintenance: copy(&keys.maintenance),
        restore: copy(&keys.restore),
    }
}

/// One disk of a machine, with packs of the default size unless said otherwise.
pub fn request(machine: &str, source: Arc<dyn Source>, pack_bytes: Option<u32>) -> BackupRequest {
    let defaults = BackupSettings::default();
    BackupRequest {
        machine: machine.to_owned(),
        disks: vec![DiskToBackUp {
            name: "disk".to_owned(),
            source,
            format: "raw".to_owned(),
            role: Role::Disk,
        }],
        host: "test".to_owned(),
        moment: None,
        keep: Keep::WithoutEnd,
        dry_run: false,
        settings: BackupSettings {
            pack_bytes: pack_bytes.unwrap_or(defaults.pack_bytes),
            ..defaults
        },
    }
}

pub async fn try_back_up(
    repository: &Arc<Repository>,
    request: BackupRequest,
) -> Result<BackupSummary> {
    let stop = CancellationToken::new();
    backup(repository, request, Arc::default(), stop).await
}

pub async fn back_up(repository: &Arc<Repository>, source: Arc<dyn Source>) -> BackupSummary {
    try_back_up(repository, request("web", source, None))
        .await
        .unwrap()
}

/// The newest point's only disk.
pub fn newest(repository: &Repository) -> PointDisk {
    let point: Point = repository.points(None).unwrap().pop().unwrap();
    point.disk(None).unwrap().clone()
}

pub async fn restore(
    repository: &Arc<Repository>,
    disk: &PointDisk,
    target: Arc<dyn Target>,
) -> Result<RestoreSummary> {
    restore_disk(
        repository,
        disk,
        target,
        RestoreMode::New,
        &RestoreSettings::default(),
        Arc::new(Progress::default()),
        CancellationToken::new(),
    )
    .await
}

/// `PUT log/…` and the like, for messages.
pub fn told(calls: &[Call]) -> String {
    let lines: Vec<_> = calls
        .iter()
        .map(|call| format!("{:?} {} {:?}", call.operation, call.key, call.range))
        .collect();
    lines.join("\n")
}

/// The calls of one kind.
pub fn only(calls: &[Call], operation: Operation) -> Vec<&Call> {
    calls
        .iter()
        .filter(|call| call.operation == operation)
        .collect()
}
