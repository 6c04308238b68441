//! The conversation with a running QEMU: the QEMU Machine Protocol on a Unix socket.
//!
//! Not aware of disks. QEMU serves **one connection a monitor**, so who holds it is alone with
//! what it names on that machine. The invariants: whatever QEMU says is bounded before it takes
//! memory; an answer belongs to the command with its id; after a command without an answer the
//! connection is dead, since nobody knows whether it was carried out.

use crate::error::{Error, Kind, Result};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The longest line that QEMU may send, in bytes. A thousand block nodes are less than 2 MiB.
const LINE_BYTES_MAX: usize = 16 << 20;
/// Events that nobody has fetched yet; the oldest go first.
const EVENTS_MAX: usize = 256;
/// How long QEMU is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Patience {
    /// For its greeting: it comes at once, unless QEMU talks to somebody else.
    greeting_max: Duration,
    /// For the answer to a command. Those that wait for the disk to be flushed are the slowest.
    answer_max: Duration,
}

impl Patience {
    const DEFAULT: Self = Self {
        greeting_max: Duration::from_secs(5),
        answer_max: Duration::from_secs(120),
    };
}

/// A connection to a monitor.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    /// For messages: which machine, or which socket as long as its name is not known.
    name: String,
    patience: Patience,
    version: Version,
    received: Vec<u8>,
    /// As much of `received` as is known to hold no line's end.
    searched: usize,
    events: VecDeque<Event>,
    next_id: u64,
    dead: bool,
    #[cfg(feature = "testing")]
    handicap: Handicap,
}

/// For tests: what makes rare moments common.
#[cfg(feature = "testing")]
#[derive(Debug, Clone, Copy, Default)]
pub struct Handicap {
    /// After so many commands QEMU hears no more, as if this program had been killed.
    pub dies_after: Option<u64>,
    /// Before each command.
    pub pause: Duration,
    /// Before that command.
    pub pause_before: Option<(&'static str, Duration)>,
}

/// QEMU's version, as it says at the greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Version {
    /// 10 in 10.0.2.
    pub major: u32,
    /// 0 in 10.0.2.
    pub minor: u32,
    /// 2 in 10.0.2.
    pub micro: u32,
}

/// Something that happened to the machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// `SHUTDOWN`, `STOP` and the like.
    pub name: String,
    /// What belongs to it.
    pub data: Value,
}

#[derive(Deserialize)]
struct Greeting {
    #[serde(rename = "QMP")]
    qmp: GreetingBody,
}

#[derive(Deserialize)]
struct GreetingBody {
    version: GreetingVersion,
}

#[derive(Deserialize)]
struct GreetingVersion {
    qemu: Version,
}

#[derive(Deserialize)]
struct Line {
    id: Option<u64>,
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

impl Qmp {
    /// Connects to the monitor at `socket` and takes it over.
    ///
    /// # Errors
    /// [`Kind::Missing`] where nobody listens, [`Kind::Conflict`] where another program holds the
    /// monitor, [`Kind::Unavailable`] where it is not a QEMU that answers.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).await.map_err(|error| {
            let refused = error.kind() == io::ErrorKind::ConnectionRefused;
            let what = format!("cannot connect to the QEMU monitor {}", socket.display());
            if refused {
                Error::new(Kind::Missing, what).caused_by(error).advise(
                    "the machine does not run, or the socket is left over from its last run",
                )
            } else {
                Error::io(what, error)
            }
        })?;
        let name = format!("the machine at {}", socket.display());
        Self::greet_within(stream, name, Patience::DEFAULT).await
    }

    /// The same on a connected socket; `name` stands in messages for the machine.
    pub async fn greet(stream: UnixStream, name: String) -> Result<Self> {
        Self::greet_within(stream, name, Patience::DEFAULT).await
    }

    async fn greet_within(stream: UnixStream, name: String, patience: Patience) -> Result<Self> {
        let mut qmp = Self {
            stream,
            name,
            patience,
            version: Version {
                major: 0,
                minor: 0,
                micro: 0,
            },
            received: Vec::new(),
            searched: 0,
            events: VecDeque::new(),
            next_id: 0,
            dead: false,
            #[cfg(feature = "testing")]
            handicap: Handicap::default(),
        };
        let line = match timeout(patience.greeting_max, qmp.line()).await {
            Ok(line) => line.map_err(|error| qmp.broken("greeting", error))?,
            Err(_) => {
                return Err(Error::new(
                    Kind::Conflict,
                    format!(
                        "the monitor of {} does not greet: another program is connected to it",
                        qmp.name
                    ),
                )
                .advise(
                    "QEMU serves one program a monitor: give tidegate one of its own, by a further -qmp unix:PATH,server=on,wait=off",
                ));
            }
        };
        let greeting: Greeting =
            serde_json::from_slice(&line).map_err(|error| qmp.broken("greeting", error.into()))?;
        qmp.version = greeting.qmp.version.qemu;
        qmp.execute("qmp_capabilities", Value::Null).await?;
        Ok(qmp)
    }

    /// Which QEMU it is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// What the machine is called in messages from now on.
    pub fn rename(&mut self, name: String) {
        self.name = name;
    }

    /// Executes a command; `arguments` are an object, or null where there are none.
    ///
    /// # Errors
    /// [`Kind::Conflict`] when QEMU refuses it as things stand, [`Kind::Missing`] when it names
    /// something that is not there, [`Kind::Unsupported`] when this QEMU does not have the command,
    /// [`Kind::Unavailable`] when it does not answer any more.
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.execute_with(command, arguments, None).await
    }

    /// The same, with the answer read as `T`.
    pub async fn query<T: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: Value,
    ) -> Result<T> {
        let answer = self.execute(command, arguments).await?;
        serde_json::from_value(answer).map_err(|error| {
            Error::new(
                Kind::Unsupported,
                format!(
                    "QEMU of {} answers {command} in a way that is not understood",
                    self.name
                ),
            )
            .caused_by(error)
        })
    }

    /// [`Self::execute`], handing a file over with the command.
    pub async fn execute_with_file(
        &mut self,
        command: &str,
        arguments: Value,
        file: BorrowedFd<'_>,
    ) -> Result<Value> {
        self.execute_with(command, arguments, Some(file)).await
    }

    /// What happened since the last call, oldest first, as far as QEMU has said it with its answers.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.events.drain(..).collect()
    }

    /// For tests.
    #[cfg(feature = "testing")]
    pub fn handicap(&mut self, handicap: Handicap) {
        self.handicap = handicap;
    }

    async fn execute_with(
        &mut self,
        command: &str,
        arguments: Value,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<Value> {
        if self.dead {
            return Err(Error::new(
                Kind::Unavailable,
                format!("the connection to QEMU of {} failed earlier", self.name),
            ));
        }
        #[cfg(feature = "testing")]
        {
            tokio::time::sleep(self.handicap.pause).await;
            if let Some((slow, pause)) = self.handicap.pause_before
                && slow == command
            {
                tokio::time::sleep(pause).await;
            }
            if let Some(left) = &mut self.handicap.dies_after {
                if *left == 0 {
                    self.dead = true;
                    return Err(Error::new(Kind::Interrupted, "killed"));
                }
                *left -= 1;
            }
        }
        let id = self.next_id;
        self.next_id += 1;
        let mut message = json!({ "execute": command, "id": id });
        if !arguments.is_null() {
            message["arguments"] = arguments;
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(b'\n');
        tracing::trace!(machine = self.name, %message, "asks QEMU");
        // Whoever gives up waiting leaves it dead.
        self.dead = true;
        let answer_max = self.patience.answer_max;
        let conversation = async {
            self.send(&bytes, file).await?;
            self.answer(id).await
        };
        let answered = match timeout(answer_max, conversation).await {
            Ok(answered) => answered.map_err(|error| self.broken(command, error))?,
            Err(_) => {
                return Err(self.broken(command, io::ErrorKind::TimedOut.into()));
            }
        };
        self.dead = false;
        answered.map_err(|refusal| self.refused(command, &refusal))
    }

    async fn send(&mut self, bytes: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut sent = 0;
        if let Some(file) = file {
            let files = [file];
            sent = self
                .stream
                .async_io(Interest::WRITABLE, || {
                    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                    let mut control = SendAncillaryBuffer::new(&mut space);
                    control.push(SendAncillaryMessage::ScmRights(&files));
                    let parts = [IoSlice::new(bytes)];
                    let sent = rustix::net::sendmsg(
                        &self.stream,
                        &parts,
                        &mut control,
                        SendFlags::NOSIGNAL,
                    )?;
                    Ok(sent)
                })
                .await?;
        }
        self.stream.write_all(&bytes[sent..]).await
    }

    /// Hears until the answer to `id`.
    async fn answer(&mut self, id: u64) -> io::Result<Result<Value, Refusal>> {
        loop {
            let line: Line = serde_json::from_slice(&self.line().await?)?;
            if let Some(name) = line.event {
                if self.events.len() == EVENTS_MAX {
                    self.events.pop_front();
                }
                self.events.push_back(Event {
                    name,
                    data: line.data,
                });
            } else if let Some(refusal) = line.error {
                // QEMU leaves the id out where it could not read the command.
                if line.id.is_none_or(|said| said == id) {
                    return Ok(Err(refusal));
                }
            } else if line.id == Some(id) {
                return Ok(Ok(line.answer.unwrap_or_default()));
            } else {
                return Err(io::Error::other("it answered what nobody asked"));
            }
        }
    }

    /// The next line, without its end. Nothing of it is lost when the waiting is given up.
    async fn line(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let rest = &self.received[self.searched..];
            let end = rest.iter().position(|&byte| byte == b'\n');
            let length = self.searched + end.unwrap_or(rest.len());
            if length > LINE_BYTES_MAX {
                return Err(io::Error::other("its answer is too long"));
            }
            if end.is_some() {
                let end = length;
                let behind = self.received.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.received, behind);
                line.truncate(end);
                self.searched = 0;
                return Ok(line);
            }
            self.searched = length;
            self.stream.readable().await?;
            self.received.reserve(16 << 10);
            match self.stream.try_read_buf(&mut self.received) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
    }

    fn broken(&self, command: &str, error: io::Error) -> Error {
        let what = match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe => {
                format!("QEMU of {} hung up at {command}", self.name)
            }
            io::ErrorKind::TimedOut => {
                format!("QEMU of {} does not answer {command}", self.name)
            }
            _ => format!("QEMU of {} answers {command} with nonsense", self.name),
        };
        Error::new(Kind::Unavailable, what).caused_by(error)
    }

    fn refused(&self, command: &str, refusal: &Refusal) -> Error {
        let kind = match refusal.class.as_str() {
            "CommandNotFound" => Kind::Unsupported,
            "DeviceNotFound" => Kind::Missing,
            _ => Kind::Conflict,
        };
        Error::new(
            kind,
            format!(
                "QEMU of {} refuses {command}: {}",
                self.name,
                refusal.desc.escape_debug()
            ),
        )
    }
}

#[cfg(test)]
mod tests;
