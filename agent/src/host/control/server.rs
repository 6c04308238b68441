//! The side that answers: a task for each connection, all of them bounded.

use super::{Line, REQUEST_BYTES_MAX, Reply, Request, VERSION, peer};
use crate::error::{Error, Kind, Result};
use crate::host::service::{Answer, Orders, Seen};
use crate::host::state::Fault;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};

/// Connections at the same time; more are told to come back.
const CONNECTIONS_MAX: usize = 64;
/// How long a request may take to be sent.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a peer may take to read a reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a running run is told of.
const TELL_EVERY: Duration = Duration::from_millis(250);
/// After a failure to accept: there may be no file numbers left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The socket, removed when this is dropped.
pub(in crate::host) struct Listener {
    listener: UnixListener,
    path: PathBuf,
    group: Option<u32>,
    group_name: String,
}

impl Listener {
    /// Makes the socket. One that a killed service left behind is replaced: the caller holds the lock
    /// that says that there is no other.
    pub(in crate::host) fn bind(path: &Path, group_name: &str) -> Result<Self> {
        let cannot = |error| {
            Error::io(
                format!("cannot make the control socket {}", path.display()),
                error,
            )
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(cannot)?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(cannot(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(cannot)?;
        let group = peer::group_number(group_name);
        // Who may connect is asked of each peer too: for a moment the mode is another.
        let given = match group {
            // A service whose own group it is may lack the right to any chown.
            Some(group) if path.metadata().map_err(cannot)?.gid() != group => {
                chown(path, None, Some(group))
            }
            _ => Ok(()),
        };
        let mode = match &given {
            Ok(()) => 0o660,
            Err(error) => {
                tracing::warn!(group = group_name, %error, "the control socket cannot be given to its group: only root and the service's user can use it");
                0o600
            }
        };
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(path, permissions).map_err(cannot)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            group: group.filter(|_| given.is_ok()),
            group_name: group_name.to_owned(),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Best effort: the next service replaces it.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Answers until it is dropped.
pub(in crate::host) async fn serve(listener: Listener, orders: Orders) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let stream = match listener.listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a control connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let allowed = peer::check(&stream, listener.group, &listener.group_name);
        let place = Arc::clone(&room).try_acquire_owned();
        let orders = orders.clone();
        tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            let served = match (allowed, &place) {
                (Err(error), _) => {
                    tracing::warn!(error = error.chain(), "a control connection was refused");
                    Err(error)
                }
                (Ok(()), Err(_)) => Err(Error::new(
                    Kind::Unavailable,
                    "the host service has too many control connections",
                )
                .advise("try again")),
                (Ok(()), Ok(_)) => connection(&mut stream, &orders).await,
            };
            if let Err(error) = served {
                let fault = Fault::from(&error);
                // The peer may be gone.
                let _ = say(&mut stream, Reply::Error { fault }).await;
            }
        });
    }
}

async fn connection(stream: &mut BufReader<UnixStream>, orders: &Orders) -> Result<()> {
    let request = read_request(stream).await?;
    match orders.give(request).await? {
        Answer::Reply(reply) => say(stream, *reply).await,
        Answer::Watch(seen) => tell(stream, seen).await,
    }
}

async fn read_request(stream: &mut BufReader<UnixStream>) -> Result<Request> {
    let refuse = |what: String| Error::new(Kind::Config, what);
    let mut bytes = Vec::new();
    let mut bounded = stream.take(REQUEST_BYTES_MAX);
    let read = bounded.read_until(b'\n', &mut bytes);
    match tokio::time::timeout(REQUEST_TIMEOUT, read).await {
        Ok(Ok(_)) if bytes.ends_with(b"\n") => {}
        Ok(Ok(read)) if read as u64 >= REQUEST_BYTES_MAX => {
            return Err(refuse(format!(
                "a request is longer than {REQUEST_BYTES_MAX} bytes"
            )));
        }
        Ok(Ok(_)) => return Err(refuse("a request ended early".to_owned())),
        Ok(Err(error)) => return Err(Error::io("cannot read a request", error)),
        Err(_) => {
            return Err(Error::new(
                Kind::Unavailable,
                "a request did not come in time",
            ));
        }
    }
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let said: Versioned = serde_json::from_slice(&bytes).map_err(|error| {
        refuse("a request is no JSON object with a version".to_owned()).caused_by(error)
    })?;
    if said.version != VERSION {
        return Err(Error::new(
            Kind::Unsupported,
            format!(
                "a request is of version {}: this service speaks {VERSION}",
                said.version
            ),
        )
        .advise("use the same version of tidegate and tidegated"));
    }
    let line: Line<Request> = serde_json::from_slice(&bytes)
        .map_err(|error| refuse("a request is not understood".to_owned()).caused_by(error))?;
    Ok(line.said)
}

/// Tells of a run until it has ended. That the peer goes away does not stop the run.
async fn tell(stream: &mut BufReader<UnixStream>, mut seen: watch::Receiver<Seen>) -> Result<()> {
    loop {
        let now = seen.borrow_and_update().clone();
        match now {
            Seen::Waiting => say(stream, Reply::Waiting).await?,
            Seen::Running { run, progress } => {
                let progress = progress.snapshot();
                say(stream, Reply::Running { run, progress }).await?;
            }
            Seen::Ended(run) => return say(stream, Reply::Ended { run }).await,
            Seen::Refused(fault) => return say(stream, Reply::Error { fault }).await,
        }
        tokio::select! {
            changed = seen.changed() => {
                if changed.is_err() {
                    return Err(Error::new(Kind::Interrupted, "the host service is stopping"));
                }
            }
            () = tokio::time::sleep(TELL_EVERY) => {}
        }
    }
}

async fn say(stream: &mut BufReader<UnixStream>, said: Reply) -> Result<()> {
    let line = Line {
        version: VERSION,
        said,
    };
    let mut bytes = serde_json::to_vec(&line)
        .map_err(|error| Error::new(Kind::Bug, "cannot write a reply").caused_by(error))?;
    bytes.push(b'\n');
    let gone = |error| Error::io("cannot answer on the control socket", error);
    match tokio::time::timeout(REPLY_TIMEOUT, stream.write_all(&bytes)).await {
        Ok(written) => written.map_err(gone),
        Err(_) => Err(Error::new(
            Kind::Unavailable,
            "a peer does not read its replies",
        )),
    }
}
