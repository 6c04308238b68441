//! The side that asks.

use super::{Line, REPLY_BYTES_MAX, Reply, Request, VERSION};
use crate::error::{Error, Kind, Result};
use crate::host::state::Fault;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// One request and its replies.
pub struct Client {
    socket: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Asks the service behind the socket.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] where no service is there, [`Kind::Denied`] where the socket may not be
    /// used.
    pub async fn ask(socket: &Path, request: &Request) -> Result<Self> {
        let cannot = |error: std::io::Error| {
            use std::io::ErrorKind as K;
            let what = format!("cannot reach the host service at {}", socket.display());
            match error.kind() {
                K::NotFound | K::ConnectionRefused => Error::new(Kind::Unavailable, what)
                    .caused_by(error)
                    .advise("is it running? `systemctl status tidegated-host` says so; else name its socket with --socket"),
                K::PermissionDenied => Error::new(Kind::Denied, what)
                    .caused_by(error)
                    .advise("root, the service's user and members of its group may: tidegate, if it says nothing else"),
                _ => Error::io(what, error),
            }
        };
        let mut stream = UnixStream::connect(socket).await.map_err(cannot)?;
        let line = Line {
            version: VERSION,
            said: request,
        };
        let mut bytes = serde_json::to_vec(&line)
            .map_err(|error| Error::new(Kind::Bug, "cannot write a request").caused_by(error))?;
        bytes.push(b'\n');
        // A service that refuses us may have closed already; what it said is still to be read.
        let written = stream.write_all(&bytes).await;
        let mut client = Self {
            socket: socket.to_owned(),
            stream: BufReader::new(stream),
        };
        if let Err(error) = written {
            return match client.next().await {
                Err(refusal) if refusal.kind() == Kind::Denied => Err(refusal),
                _ => Err(cannot(error)),
            };
        }
        Ok(client)
    }

    /// The next reply. A [`Reply::Error`] becomes an error of its kind.
    ///
    /// # Errors
    /// What the service refused; [`Kind::Unavailable`] where it ended meanwhile.
    pub async fn next(&mut self) -> Result<Reply> {
        let mut bytes = Vec::new();
        let read = (&mut self.stream)
            .take(REPLY_BYTES_MAX)
            .read_until(b'\n', &mut bytes)
            .await;
        let ended = || {
            Error::new(
                Kind::Unavailable,
                format!(
                    "the host service at {} ended meanwhile",
                    self.socket.display()
                ),
            )
            .advise("what it had begun goes on when it is started again")
        };
        match read {
            Ok(_) if bytes.ends_with(b"\n") => {}
            Ok(_) => return Err(ended()),
            Err(error) => return Err(ended().caused_by(error)),
        }
        let line: Line<Reply> = serde_json::from_slice(&bytes).map_err(|error| {
            Error::new(
                Kind::Unsupported,
                format!(
                    "the host service at {} says what this version does not understand",
                    self.socket.display()
                ),
            )
            .caused_by(error)
            .advise("use the same version of tidegate and tidegated")
        })?;
        match line.said {
            Reply::Error { fault } => Err(error_of(fault)),
            reply => Ok(reply),
        }
    }
}

/// The error that a [`Fault`] was made of, as far as it tells.
pub fn error_of(fault: Fault) -> Error {
    let kind = Kind::from_word(&fault.kind).unwrap_or(Kind::Io);
    let error = Error::new(kind, fault.message);
    match fault.advice {
        Some(advice) => error.advise(advice),
        None => error,
    }
}
