//! A repository as a gateway serves it: opened with a maintenance key, kept at the head of the log.
//!
//! The gateway holds no truth of its own: what it knows was replayed from the log, and may be older than
//! what another gateway has appended by now. That costs a retry or an upload, never more.

use super::metrics;
use crate::blocking::blocking;
use crate::config::KeyPlace;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::repository::index::Index;
use crate::repository::{BundleSettings, ExpireScope, Repository, read_key_file};
use crate::retention::Why;
use crate::store::{Store, StoreSettings};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tidegate_protocol::ids::ChunkId;
use tidegate_protocol::pack::Location;
use tokio::sync::{OnceCell, watch};
use tokio_util::sync::CancellationToken;

/// How often the log is looked at for what other writers have appended.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long a host waits for this gateway to learn what it is about to be told.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the gateway's own tries at the store may go on: shorter than a host waits for its answer,
/// so that it learns what the matter is.
const STORE_DEADLINE: Duration = Duration::from_secs(40);

/// Where a served repository is, as valid settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedSettings {
    /// What hosts call it.
    pub name: String,
    /// Its place.
    pub location: String,
    /// The file with a key of maintenance level.
    pub key: KeyPlace,
    /// Where to keep what is known of it.
    pub cache_dir: PathBuf,
    /// Whether this gateway gives up the points whose time has passed.
    pub expire: bool,
    /// Whether this gateway puts small packs together.
    pub bundle: bool,
}

/// A repository that hosts ask for by name.
pub struct Served {
    settings: ServedSettings,
    credentials: Option<PathBuf>,
    store: Store,
    opened: OnceCell<Arc<Repository>>,
    /// The number of the last record that was replayed.
    head: watch::Sender<u64>,
    store_answers: AtomicBool,
}

impl Served {
    /// Nothing is read yet: a store that does not answer must not keep a gateway from its other
    /// repositories.
    ///
    /// `credentials` is the folder of systemd's credentials, where there is one; `open` makes the store of
    /// the repository's location.
    pub fn new(
        settings: ServedSettings,
        credentials: Option<PathBuf>,
        store: StoreSettings,
        open: impl Fn(&str, &StoreSettings) -> Result<Store>,
    ) -> Result<Self> {
        let store = StoreSettings {
            operation_deadline: STORE_DEADLINE,
            ..store
        };
        let store = open(&settings.location, &store)?;
        Ok(Self {
            settings,
            credentials,
            store,
            opened: OnceCell::new(),
            head: watch::Sender::new(0),
            store_answers: AtomicBool::new(false),
        })
    }

    /// What hosts call it.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Whether the store answered when it was last asked for the log.
    pub(super) fn store_answers(&self) -> bool {
        self.store_answers.load(Ordering::Relaxed)
    }

    /// The repository, opened by whoever asks first.
    pub(super) async fn repository(&self) -> Result<&Arc<Repository>> {
        let opened = self.opened.get_or_try_init(async || {
            let path = self.settings.key.path(self.credentials.as_deref())?;
            let keys = blocking(move || read_key_file(&path)).await?;
            let cache = self.settings.cache_dir.clone();
            let repository = Repository::open(self.store.clone(), keys, &cache).await?;
            repository.index().await?;
            Ok::<_, Error>(Arc::new(repository))
        });
        let repository = opened.await?;
        self.note_head(repository)?;
        Ok(repository)
    }

    /// Keeps at the head of the log until the gateway stops.
    pub(super) async fn keep_up(&self, stop: CancellationToken) {
        while stop.run_until_cancelled(self.look()).await.is_some() {
            let pause = tokio::time::sleep(LOOK_EVERY);
            if stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }

    /// Gives up the points whose time has passed and puts small packs together, now and then, until the gateway
    /// stops. Other gateways may do the same: who comes second finds nothing left.
    pub(super) async fn upkeep(&self, every: Duration, stop: CancellationToken) {
        loop {
            // An append under way is not dropped half-done: its record might be in the log already.
            if self.settings.expire
                && let Err(error) = self.expire_once().await
            {
                tracing::warn!(
                    repository = self.settings.name,
                    error = error.chain(),
                    "points whose time has passed could not be given up"
                );
            }
            if self.settings.bundle
                && let Err(error) = self.bundle_once(&stop).await
            {
                tracing::warn!(
                    repository = self.settings.name,
                    error = error.chain(),
                    "small packs and index segments could not be put together"
                );
            }
            let pause = tokio::time::sleep(every);
            if stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }

    async fn expire_once(&self) -> Result<()> {
        let repository = self.repository().await?;
        let decision = repository.expire(&ExpireScope::default()).await?;
        for gone in &decision.goes {
            tracing::info!(
                repository = self.settings.name,
                machine = gone.machine,
                point = %gone.point,
                "a point whose time has passed was given up"
            );
        }
        let waits = decision
            .stays
            .iter()
            .filter(|(_, why)| *why == Why::Clock)
            .count();
        if waits > 0 {
            tracing::warn!(
                repository = self.settings.name,
                points = waits,
                "points are past their time by this clock, and there was no backup for a month: is the \
                 clock right? `tidegate expire --trust-clock` gives them up"
            );
        }
        metrics::expired(&self.settings.name, decision.goes.len() as u64);
        self.note_head(repository)
    }

    async fn bundle_once(&self, stop: &CancellationToken) -> Result<()> {
        let repository = self.repository().await?;
        let settings = BundleSettings::default();
        let done = repository
            .bundle(&settings, &Progress::default(), stop)
            .await?;
        let merged = repository.merge_segments(&settings, stop).await?;
        if done.packs + done.deleted + merged.segments + merged.deleted > 0 {
            tracing::info!(
                repository = self.settings.name,
                bundles = done.bundles,
                packs = done.packs,
                bytes = done.bytes,
                deleted = done.deleted + merged.deleted,
                segments = merged.segments,
                "small packs and index segments were put together"
            );
        }
        metrics::bundled(&self.settings.name, done.packs);
        self.note_head(repository)
    }

    /// Replays the log up to `number`, which was seen in it, where that is new. What takes too long is
    /// left to the next look: an index that lags costs uploads, nothing else.
    pub(super) async fn catch_up(&self, number: u64) {
        if number > *self.head.borrow() {
            let _ = tokio::time::timeout(CATCH_UP_TIMEOUT, self.look()).await;
        }
    }

    async fn look(&self) {
        let looked = async {
            let repository = self.repository().await?;
            repository.refresh().await?;
            // The segments that the new records name, before a host asks for what is in them.
            repository.index().await?;
            self.note_head(repository)
        };
        let looked = looked.await;
        let answers = looked.is_ok();
        if let Err(error) = &looked {
            tracing::warn!(
                repository = self.settings.name,
                error = error.chain(),
                "the log cannot be read"
            );
        }
        self.store_answers.store(answers, Ordering::Relaxed);
    }

    /// Says that records have come, to those who follow the log.
    pub(super) fn note_head(&self, repository: &Repository) -> Result<()> {
        let number = repository.catalogue().head()?.number;
        self.head.send_if_modified(|head| {
            let is_new = number > *head;
            *head = number.max(*head);
            is_new
        });
        Ok(())
    }

    /// The number of the last record, and a way to wait for the next.
    pub(super) fn head(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }
}

/// Where each of the chunks lies, as far as the index knows.
pub(super) async fn known(
    index: Arc<Index>,
    chunks: Vec<ChunkId>,
) -> Result<Vec<Option<Location>>> {
    blocking(move || {
        let mut reader = index.reader()?;
        chunks.iter().map(|chunk| reader.known(chunk)).collect()
    })
    .await
}
