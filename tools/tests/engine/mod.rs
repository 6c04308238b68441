//! The engine in the test's own process, on a site's repository: for checks that are made hundreds
//! of times, where starting the program ten times would be most of the work.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "shared by several test programs, each of which uses a part; a panic is how tests fail"
)]

use crate::site::{Site, text};
use std::path::Path;
use std::sync::{Arc, LazyLock};
use tidegate_agent::recover::{RestoreMode, RestoreSettings, VerifySettings, restore_disk, verify};
use tidegate_agent::replicate::{
    BackupRequest, BackupSettings, BackupSummary, DiskToBackUp, backup,
};
use tidegate_agent::repository::{Point, Repository, read_key_file};
use tidegate_agent::retention::Keep;
use tidegate_agent::source::{OpenSettings, open_source};
use tidegate_agent::store::{Environment, Store, StoreSettings};
use tidegate_agent::target::{Target, create_file, partial_path};
use tidegate_protocol::record::Body;
use tidegate_protocol::record::Role;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap()
});

/// An open repository.
pub struct Engine {
    repository: Arc<Repository>,
}

impl Engine {
    /// Opens the site's repository `repo` with the restore key in `keys`.
    #[track_caller]
    pub fn open(site: &Site, cache: &str) -> Self {
        Self::open_at(text(&site.path("repo")), &Environment::empty(), site, cache)
    }

    /// Opens a repository somewhere else with the site's restore key.
    #[track_caller]
    pub fn open_at(location: &str, environment: &Environment, site: &Site, cache: &str) -> Self {
        let keys = read_key_file(&site.path("keys/restore.key")).unwrap();
        let store = Store::open_in(location, &StoreSettings::default(), environment).unwrap();
        let cache = site.path(cache);
        let opened = RUNTIME.block_on(Repository::open(store, keys, &cache));
        Self {
            repository: Arc::new(opened.unwrap()),
        }
    }

    /// Its points, oldest first.
    pub fn points(&self) -> Vec<Point> {
        self.repository.points(None).unwrap()
    }

    /// Restores a point's only disk, and returns its bytes; `scratch` is not there before and after.
    #[track_caller]
    pub fn restored(&self, point: &Point, scratch: &Path) -> Vec<u8> {
        let disk = point.disk(None).unwrap();
        let target: Arc<dyn Target> =
            Arc::from(create_file(scratch, disk.size_bytes, false).unwrap());
        RUNTIME
            .block_on(restore_disk(
                &self.repository,
                disk,
                target,
                RestoreMode::New,
                &RestoreSettings::default(),
                Arc::default(),
                CancellationToken::new(),
            ))
            .unwrap();
        // Its durable end is not what is looked at here.
        let partial = partial_path(scratch).unwrap();
        let bytes = std::fs::read(&partial).unwrap();
        std::fs::remove_file(partial).unwrap();
        bytes
    }

    /// Verifies every byte of every point.
    #[track_caller]
    pub fn assert_sound(&self) {
        let points = self.points();
        let report = RUNTIME
            .block_on(verify(
                &self.repository,
                &points,
                &VerifySettings::default(),
                Arc::default(),
                CancellationToken::new(),
            ))
            .unwrap();
        assert!(report.complete && report.damages.is_empty(), "{report:?}");
    }

    /// Backs a raw image up, as another host would.
    #[track_caller]
    pub fn back_up(&self, machine: &str, image: &Path) -> BackupSummary {
        let disk = DiskToBackUp {
            name: machine.to_owned(),
            source: Arc::from(open_source(image, &OpenSettings::default()).unwrap()),
            format: "raw".to_owned(),
            role: Role::Disk,
        };
        let request = BackupRequest {
            machine: machine.to_owned(),
            disks: vec![disk],
            host: "other".to_owned(),
            moment: None,
            keep: Keep::WithoutEnd,
            dry_run: false,
            settings: BackupSettings::default(),
        };
        let stop = CancellationToken::new();
        RUNTIME
            .block_on(backup(&self.repository, request, Arc::default(), stop))
            .unwrap()
    }

    /// Bytes of packs, by listing them.
    pub fn pack_bytes(&self) -> u64 {
        RUNTIME
            .block_on(self.repository.stats())
            .unwrap()
            .pack_bytes
    }

    /// Appends a record, and says its number.
    pub fn append(&self, body: &Body) -> u64 {
        RUNTIME
            .block_on(self.repository.append(|_| Ok(body.clone())))
            .unwrap()
    }
}
