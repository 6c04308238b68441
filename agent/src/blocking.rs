//! The way from the runtime's threads to work that blocks: files, SQLite, CPU.

use crate::error::{Error, Kind, Result};

/// Runs work that blocks (files, SQLite, CPU) off the runtime's threads. What it logs belongs to the span
/// of who waits for it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(done) => done,
        Err(error) => Err(Error::new(Kind::Bug, "a worker thread broke down").caused_by(error)),
    }
}
