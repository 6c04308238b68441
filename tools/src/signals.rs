//! Ctrl-C and SIGTERM.
//!
//! The first asks the running command to stop at a point from which it can go on later; the second
//! ends the process at once. Both are safe for the repository: nothing is committed by halves.

use crate::output::Output;
use std::future::Future;
use tidegate_agent::{Error, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Cancels `stop` at the first signal; the future returned ends at the second.
pub(crate) fn watch(
    stop: CancellationToken,
    output: Output,
) -> Result<impl Future<Output = ()> + use<>> {
    let listen = |kind| signal(kind).map_err(|error| Error::io("cannot listen for signals", error));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    Ok(async move {
        let mut next = async || {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        next().await;
        stop.cancel();
        output.note("stopping; once more stops at once");
        next().await;
    })
}
