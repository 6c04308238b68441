//! What every command is given.

use crate::output::Output;
use crate::settings::Settings;
use crate::{keys, settings};
use std::future::Future;
use std::sync::Arc;
use tidegate_agent::repository::Repository;
use tidegate_agent::store::Store;
use tidegate_agent::{Error, Kind, Result};
use tokio_util::sync::CancellationToken;

/// Where a command writes, and when it has to stop.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) output: Output,
    /// Cancelled when the operator asks to stop.
    pub(crate) stop: CancellationToken,
}

impl Context {
    pub(crate) fn new(output: Output, stop: CancellationToken) -> Self {
        Self { output, stop }
    }

    /// The store that the settings name, not yet asked anything.
    pub(crate) fn store(&self, settings: &Settings) -> Result<Store> {
        Store::open(settings.repo()?, &settings.store)
    }

    /// Opens the repository with the key that the settings name.
    pub(crate) async fn open(&self, settings: &Settings) -> Result<Arc<Repository>> {
        self.or_stop(async {
            let store = self.store(settings)?;
            let keys = keys::load(&store, settings).await?;
            settings::make_private_folder(&settings.cache_dir)?;
            Ok(Arc::new(
                Repository::open(store, keys, &settings.cache_dir).await?,
            ))
        })
        .await
    }

    /// Runs `work`, which only reads, until it ends or the operator asks to stop.
    pub(crate) async fn or_stop<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = work => done,
            () = self.stop.cancelled() => Err(Error::new(Kind::Interrupted, "stopped, as asked")),
        }
    }
}

/// Runs `work`, which blocks, away from the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::new(Kind::Bug, "a worker thread ended early").caused_by(error))?
}
