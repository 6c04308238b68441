//! The server: a read-only export on a unix socket.
//!
//! Not a guard: who may connect is decided by the folder of the socket. The invariants: a client
//! cannot write, cannot make the server panic, and cannot make it hold more than [`Limits`] allow;
//! every request gets exactly one reply, whatever the export does; requests of one connection are
//! served side by side, and their replies come in the order in which they are ready.

mod negotiate;
mod transmit;

use crate::error::{Error, Kind, Result};
use async_trait::async_trait;
use bytes::Bytes;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A disk that can be shown. Its content does not change while it is shown.
#[async_trait]
pub trait Export: Send + Sync {
    /// The disk's size in bytes; any value.
    fn size_bytes(&self) -> u64;

    /// Which parts of `range` may hold data (true) and which read as zeros (false), sorted and
    /// disjoint, clipped to `range`. What is not named counts as data. Clients are told of holes in
    /// whole blocks of 4 KiB.
    async fn allocation(&self, range: Range<u64>) -> Result<Vec<(Range<u64>, bool)>>;

    /// Exactly `length` bytes at `offset`; the whole range lies inside the disk.
    async fn read(&self, offset: u64, length: u32) -> Result<Bytes>;
}

/// What clients may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time; more wait to be accepted.
    pub connections_max: usize,
    /// Bytes of replies in the making, for each connection. At least one largest read fits always.
    pub in_flight_bytes_max: u32,
}

impl Default for Limits {
    /// At most 256 MiB altogether, if eight clients ask for as much as they can.
    fn default() -> Self {
        Self {
            connections_max: 8,
            in_flight_bytes_max: 32 << 20,
        }
    }
}

/// How long a client may take to negotiate.
const NEGOTIATION_TIME_MAX: Duration = Duration::from_secs(15);
/// How long to wait when the system is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listening server.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Listens on a new unix socket. Must be called on a runtime. Whoever can reach `path` can read
    /// the disk: put it into a folder that only the right user can enter.
    pub fn bind(path: &Path) -> Result<Self> {
        let listener = UnixListener::bind(path).map_err(|error| {
            if error.kind() == std::io::ErrorKind::AddrInUse {
                Error::new(
                    Kind::Conflict,
                    format!("{} is there already", path.display()),
                )
                .advise("end the export that uses it, or delete the socket that it left behind")
            } else {
                Error::io(format!("cannot listen on {}", path.display()), error)
            }
        })?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }

    /// Shows `export` until `stop` is cancelled. Connections that are open then are cut, and the
    /// socket is removed.
    pub async fn run(self, export: Arc<dyn Export>, limits: Limits, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        let serving = async {
            loop {
                while connections.len() >= limits.connections_max.max(1) {
                    connections.join_next().await;
                }
                while connections.try_join_next().is_some() {}
                match self.listener.accept().await {
                    Ok((stream, _)) => {
                        let export = Arc::clone(&export);
                        connections.spawn(async move {
                            if let Err(error) = serve_connection(stream, export, limits).await {
                                tracing::debug!(%error, "an NBD connection broke off");
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept an NBD connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        stop.run_until_cancelled(serving).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Gone with its private folder otherwise.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Serves one client from greeting to good-bye.
///
/// # Errors
/// When the client breaks off or does not keep to the protocol. Nobody but it is concerned.
pub async fn serve_connection(
    mut stream: UnixStream,
    export: Arc<dyn Export>,
    limits: Limits,
) -> std::io::Result<()> {
    let size_bytes = export.size_bytes();
    let negotiation = negotiate::negotiate(&mut stream, size_bytes);
    match tokio::time::timeout(NEGOTIATION_TIME_MAX, negotiation).await {
        Ok(Ok(Some(session))) => transmit::transmit(stream, session, export, limits).await,
        Ok(Ok(None)) => Ok(()),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

/// What a client has chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Session {
    /// It understands structured replies.
    structured: bool,
    /// It asks for `base:allocation`.
    allocation: bool,
}

/// The id of `base:allocation`, the only context.
const ALLOCATION_CONTEXT: u32 = 1;
