//! The blocking client: one connection for one thread.
//!
//! Not a pool: a reader that wants parallel requests starts several on one connection and finishes
//! them in any order; parallel threads have a connection each. The invariants: a buffer is handed
//! back only when the server has covered every byte of it exactly once; after the first violation of
//! the protocol the connection is dead; no server is waited for without end (`patience`).

mod coverage;
mod negotiate;
mod patience;

use super::wire::{self, ReplyHead, Request, WireError, chunk, command, errno};
use crate::error::{Error, Kind, Result};
use coverage::Coverage;
use patience::{Patience, TimedSocket};
use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Enough for every head. Payloads that are larger go past this buffer into their own.
const HEAD_BUFFER_BYTES: usize = 256;
/// The longest range asked about in one block status request.
const STATUS_RANGE_BYTES_MAX: u64 = 1 << 30;
/// Holes between data that are shorter than a block of a file system are not worth telling, and a
/// server that names a million of them would fill our memory.
const HOLE_BYTES_MIN: u64 = 4 << 10;
/// A map is asked for as long as answers tell a block each on average; so many may tell less.
const SHORT_ANSWERS_MAX: u64 = 64;

/// The most requests in flight: small enough that writing a request never waits for the server to
/// read it while the server waits for us to read its replies.
const IN_FLIGHT_MAX: usize = 64;
/// The most bytes in flight, also counting reads that were given up.
const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;

/// A connection to one export.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TimedSocket>,
    patience: Patience,
    /// For messages: the disk that the operator would recognise.
    name: String,
    export: ExportFacts,
    change_map: Option<ChangeMap>,
    next_cookie: u64,
    waiting: HashMap<u64, Waiting>,
    in_flight: usize,
    in_flight_bytes: usize,
    dead: bool,
}

/// What the server said of its export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ExportFacts {
    size_bytes: u64,
    /// Offsets and lengths of requests are multiples of it; a power of two.
    block_bytes: u32,
    /// The largest read; a multiple of `block_bytes`.
    read_bytes_max: u32,
    contexts: Contexts,
}

/// Under which ids the server tells what, where it has it. Different ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Contexts {
    /// `base:allocation`.
    allocation: Option<u32>,
    /// The map of changes that was asked for.
    changes: Option<u32>,
}

/// What a server is to tell of changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeMap {
    /// QEMU's dirty bitmap of this name.
    Bitmap(String),
    /// What stands in one of so many images of a chain, from the topmost on
    /// (`qemu:allocation-depth`).
    Layers(u32),
}

impl ChangeMap {
    fn context(&self) -> String {
        match self {
            Self::Bitmap(name) => format!("{}{name}", wire::DIRTY_BITMAP_PREFIX),
            Self::Layers(_) => wire::ALLOCATION_DEPTH.to_owned(),
        }
    }

    fn names(&self, state: u32) -> bool {
        match self {
            Self::Bitmap(_) => state & wire::STATE_DIRTY != 0,
            // 0 stands in no image at all.
            Self::Layers(count) => (1..=*count).contains(&state),
        }
    }
}

/// A read that was started and not yet finished. Belongs to the client that started it.
#[derive(Debug, PartialEq, Eq)]
pub struct Pending(u64);

#[derive(Debug)]
struct Waiting {
    kind: WaitingKind,
    refusal: Option<Refusal>,
    done: bool,
    /// Nobody will ask for the answer any more.
    forgotten: bool,
}

#[derive(Debug)]
enum WaitingKind {
    Read {
        offset: u64,
        buffer: Vec<u8>,
        coverage: Coverage,
    },
    Status(Status),
}

/// What one block status request was answered: lengths and states for each context.
#[derive(Debug, Default)]
struct Status {
    allocation: Vec<(u32, u32)>,
    changes: Vec<(u32, u32)>,
}

/// One of the maps that a server has of its export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Map {
    Allocation,
    Changes,
}

/// An error that the server answered, which leaves the connection alive.
#[derive(Debug)]
struct Refusal {
    error: u32,
    text: String,
}

/// Why a connection died.
#[derive(Debug, thiserror::Error)]
enum Violation {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it answered a request that nobody made")]
    Cookie,
    #[error("it answered with a chunk of kind {0} and {1} bytes, which does not fit the request")]
    Chunk(u16, u32),
    #[error("its answer does not cover what was asked exactly once")]
    Coverage,
    #[error("its answer names no extent, or an empty one")]
    EmptyExtent,
    #[error("{0}")]
    Negotiation(String),
}

impl Client {
    /// Connects to the export `export` (often the empty name) behind the unix socket `socket`.
    /// `name` stands in messages for the disk.
    ///
    /// # Errors
    /// [`Kind::Missing`] when there is no socket or no such export, [`Kind::Unavailable`] when the
    /// server has ended, is silent or does not keep to the protocol.
    pub fn connect(socket: &Path, export: &str, name: &str) -> Result<Self> {
        Self::negotiate(open(socket, name)?, export, name)
    }

    /// The same, together with a map of changes; see [`Self::changes`].
    ///
    /// # Errors
    /// [`Kind::Unavailable`] also when the export does not show that map.
    pub fn connect_with_changes(
        socket: &Path,
        export: &str,
        map: ChangeMap,
        name: &str,
    ) -> Result<Self> {
        Self::negotiate_with_changes(open(socket, name)?, export, map, name)
    }

    /// [`Self::connect`] on a connected socket.
    pub fn negotiate(stream: UnixStream, export: &str, name: &str) -> Result<Self> {
        Self::negotiate_within(stream, export, None, name, Patience::DEFAULT)
    }

    /// [`Self::connect_with_changes`] on a connected socket.
    pub fn negotiate_with_changes(
        stream: UnixStream,
        export: &str,
        map: ChangeMap,
        name: &str,
    ) -> Result<Self> {
        Self::negotiate_within(stream, export, Some(map), name, Patience::DEFAULT)
    }

    fn negotiate_within(
        stream: UnixStream,
        export: &str,
        change_map: Option<ChangeMap>,
        name: &str,
        patience: Patience,
    ) -> Result<Self> {
        let refuse = |violation| refuse(name, violation);
        let stream = TimedSocket::new(stream, patience.negotiation_max)
            .map_err(|error| refuse(error.into()))?;
        let mut stream = BufReader::with_capacity(HEAD_BUFFER_BYTES, stream);
        let context = change_map.as_ref().map(ChangeMap::context);
        let export =
            negotiate::negotiate(&mut stream, export, context.as_deref()).map_err(refuse)?;
        stream
            .get_ref()
            .allow_silence(patience.silence_max)
            .map_err(|error| refuse(error.into()))?;
        Ok(Self {
            stream,
            patience,
            name: name.to_owned(),
            export,
            change_map,
            next_cookie: 0,
            waiting: HashMap::new(),
            in_flight: 0,
            in_flight_bytes: 0,
            dead: false,
        })
    }

    /// The size of the export, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.export.size_bytes
    }

    /// The largest read that the server takes, in bytes.
    pub fn read_bytes_max(&self) -> u32 {
        self.export.read_bytes_max
    }

    /// `range` widened to what the server's block size allows to ask for.
    pub fn aligned(&self, range: Range<u64>) -> Range<u64> {
        let block = u64::from(self.export.block_bytes);
        let size = self.export.size_bytes;
        let end = range.end.checked_next_multiple_of(block).unwrap_or(size);
        range.start - range.start % block..end.min(size)
    }

    /// Starts to read at `offset`, as much as `buffer` is long. Offset and length are aligned (see
    /// [`Self::aligned`]) and the length is at most [`Self::read_bytes_max`].
    pub fn start_read(&mut self, offset: u64, buffer: Vec<u8>) -> Result<Pending> {
        let length = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
        let end = offset.checked_add(length.into());
        if length > self.export.read_bytes_max || end.is_none_or(|end| end > self.size_bytes()) {
            return Err(Error::new(
                Kind::Bug,
                format!(
                    "a read of {length} bytes at {offset} does not fit {}",
                    self.name
                ),
            ));
        }
        let coverage = Coverage::of(length);
        let kind = WaitingKind::Read {
            offset,
            buffer,
            coverage,
        };
        self.start(command::READ, offset, length, kind).map(Pending)
    }

    /// Waits for a read and hands its buffer back, filled.
    ///
    /// # Errors
    /// [`Kind::BadInput`] when the server cannot read that range of the disk.
    pub fn finish_read(&mut self, pending: Pending) -> Result<Vec<u8>> {
        match self.finish(pending.0)? {
            WaitingKind::Read { buffer, .. } => Ok(buffer),
            WaitingKind::Status(_) => Err(self.die(Violation::Cookie)),
        }
    }

    /// Gives a started read up. Its answer is dropped when it comes.
    pub fn forget_read(&mut self, pending: &Pending) {
        if let Some(waiting) = self.waiting.get_mut(&pending.0) {
            waiting.forgotten = true;
            if waiting.done {
                self.waiting.remove(&pending.0);
            }
        }
    }

    /// The extents inside `range` that may hold data: sorted, disjoint, clipped, with holes of 4 KiB
    /// or more between them. Without `base:allocation` at the server, all of `range`; from a server
    /// that tells its map in crumbs, the rest of it.
    pub fn allocation(&mut self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        self.map(range, Map::Allocation)
    }

    /// The extents inside `range` that are in the map which was given to
    /// [`Self::connect_with_changes`]: sorted, disjoint, clipped. Without one all of `range`; from a server that tells it in crumbs,
    /// the rest of it.
    pub fn changes(&mut self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        self.map(range, Map::Changes)
    }

    fn map(&mut self, range: Range<u64>, map: Map) -> Result<Vec<Range<u64>>> {
        let mut named: Vec<Range<u64>> = Vec::new();
        let range = range.start..range.end.min(self.size_bytes());
        if range.is_empty() {
            return Ok(named);
        }
        let context = match map {
            Map::Allocation => self.export.contexts.allocation,
            Map::Changes => self.export.contexts.changes,
        };
        if context.is_none() {
            named.push(range);
            return Ok(named);
        }
        let mut name = |extent: Range<u64>| match named.last_mut() {
            _ if extent.is_empty() => {}
            Some(last) if extent.start - last.end < HOLE_BYTES_MIN => last.end = extent.end,
            _ => named.push(extent),
        };
        let aligned = self.aligned(range.clone());
        let mut at = aligned.start;
        let mut answers_left = (range.end - range.start) / HOLE_BYTES_MIN + SHORT_ANSWERS_MAX;
        while at < aligned.end {
            if answers_left == 0 {
                name(at.max(range.start)..range.end);
                break;
            }
            answers_left -= 1;
            let ask_bytes = (aligned.end - at).min(STATUS_RANGE_BYTES_MAX);
            let length = u32::try_from(ask_bytes).unwrap_or(u32::MAX);
            let kind = WaitingKind::Status(Status::default());
            let cookie = self.start(command::BLOCK_STATUS, at, length, kind)?;
            let WaitingKind::Status(status) = self.finish(cookie)? else {
                return Err(self.die(Violation::Cookie));
            };
            let extents = match map {
                Map::Allocation => status.allocation,
                Map::Changes => status.changes,
            };
            if extents.is_empty() || extents.iter().any(|&(length, _)| length == 0) {
                return Err(self.die(Violation::EmptyExtent));
            }
            for (length, state) in extents {
                let extent = at.max(range.start)..at.saturating_add(length.into()).min(range.end);
                at = at.saturating_add(length.into());
                let is_named = match map {
                    // A hole that does not promise zeros may read as anything.
                    Map::Allocation => state & wire::STATE_ZERO == 0,
                    Map::Changes => self.change_map.as_ref().is_none_or(|map| map.names(state)),
                };
                if is_named {
                    name(extent);
                }
            }
        }
        Ok(named)
    }

    fn start(&mut self, kind: u16, offset: u64, length: u32, waiting: WaitingKind) -> Result<u64> {
        self.ensure_alive()?;
        self.stream.get_mut().allow(self.patience.answer_max);
        let bytes = waiting.bytes();
        while self.in_flight > 0
            && (self.in_flight >= IN_FLIGHT_MAX
                || self.in_flight_bytes + bytes > IN_FLIGHT_BYTES_MAX)
        {
            self.receive().map_err(|violation| self.die(violation))?;
        }
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let request = Request {
            flags: 0,
            kind,
            cookie,
            offset,
            length,
        };
        self.stream
            .get_mut()
            .write_all(&request.encode())
            .map_err(|error| self.die(error.into()))?;
        self.in_flight += 1;
        self.in_flight_bytes += bytes;
        self.waiting.insert(
            cookie,
            Waiting {
                kind: waiting,
                refusal: None,
                done: false,
                forgotten: false,
            },
        );
        Ok(cookie)
    }

    fn finish(&mut self, cookie: u64) -> Result<WaitingKind> {
        self.stream.get_mut().allow(self.patience.answer_max);
        loop {
            match self.waiting.get(&cookie) {
                None => return Err(self.die(Violation::Cookie)),
                Some(waiting) if waiting.done => break,
                Some(_) => {
                    self.ensure_alive()?;
                    self.receive().map_err(|violation| self.die(violation))?;
                }
            }
        }
        let Some(waiting) = self.waiting.remove(&cookie) else {
            return Err(self.die(Violation::Cookie));
        };
        match waiting.refusal {
            None => Ok(waiting.kind),
            Some(refusal) => Err(self.refused(&waiting.kind, &refusal)),
        }
    }

    /// Receives one reply, or one chunk of one.
    fn receive(&mut self) -> Result<(), Violation> {
        let mut head = [0; ReplyHead::CHUNK_BYTES];
        let stream = &mut self.stream;
        stream.read_exact(&mut head[..ReplyHead::SIMPLE_BYTES])?;
        let magic = [head[0], head[1], head[2], head[3]];
        let head_bytes = ReplyHead::bytes(magic)?;
        stream.read_exact(&mut head[ReplyHead::SIMPLE_BYTES..head_bytes])?;
        match ReplyHead::decode(&head[..head_bytes])? {
            ReplyHead::Simple { error, cookie } => {
                let waiting = find(&mut self.waiting, cookie)?;
                match &mut waiting.kind {
                    _ if error != 0 => waiting.refuse(error, String::new()),
                    WaitingKind::Read {
                        buffer, coverage, ..
                    } => {
                        stream.read_exact(buffer)?;
                        coverage.add(0, u32::try_from(buffer.len()).unwrap_or(u32::MAX))?;
                    }
                    WaitingKind::Status(_) => return Err(Violation::Chunk(chunk::NONE, 0)),
                }
                self.complete(cookie)
            }
            ReplyHead::Chunk {
                flags,
                kind,
                cookie,
                length,
            } => {
                let waiting = find(&mut self.waiting, cookie)?;
                let contexts = self.export.contexts;
                receive_chunk(stream, waiting, contexts, kind, length)?;
                if flags & chunk::FLAG_DONE != 0 {
                    self.complete(cookie)?;
                }
                Ok(())
            }
        }
    }

    /// Checks that an answer has said everything that it must.
    fn complete(&mut self, cookie: u64) -> Result<(), Violation> {
        let waiting = find(&mut self.waiting, cookie)?;
        if let WaitingKind::Read { coverage, .. } = &waiting.kind
            && waiting.refusal.is_none()
            && !coverage.is_complete()
        {
            return Err(Violation::Coverage);
        }
        waiting.done = true;
        self.in_flight -= 1;
        self.in_flight_bytes -= waiting.kind.bytes();
        if waiting.forgotten {
            self.waiting.remove(&cookie);
        }
        Ok(())
    }

    fn ensure_alive(&self) -> Result<()> {
        if self.dead {
            return Err(Error::new(
                Kind::Unavailable,
                format!("the server of {} failed earlier", self.name),
            ));
        }
        Ok(())
    }

    fn die(&mut self, violation: Violation) -> Error {
        self.dead = true;
        refuse(&self.name, violation)
    }

    fn refused(&self, what: &WaitingKind, refusal: &Refusal) -> Error {
        let what = match what {
            WaitingKind::Read { offset, buffer, .. } => {
                format!("read {} bytes at offset {offset}", buffer.len())
            }
            WaitingKind::Status(_) => "map".to_owned(),
        };
        let kind = match refusal.error {
            errno::EPERM => Kind::Denied,
            errno::ENOTSUP => Kind::Unsupported,
            errno::ESHUTDOWN => Kind::Unavailable,
            _ => Kind::BadInput,
        };
        let cause = io::Error::from_raw_os_error(refusal.error.cast_signed());
        let text = match refusal.text.as_str() {
            "" => String::new(),
            text => format!(" ({})", text.escape_debug()),
        };
        Error::new(kind, format!("cannot {what} of {}{text}", self.name)).caused_by(cause)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let good_bye = Request {
            flags: 0,
            kind: command::DISCONNECT,
            cookie: self.next_cookie,
            offset: 0,
            length: 0,
        };
        // A courtesy: the server notices the closed socket as well.
        if !self.dead {
            let _ = self.stream.get_mut().write_all(&good_bye.encode());
        }
    }
}

impl WaitingKind {
    /// What is held for the answer.
    fn bytes(&self) -> usize {
        match self {
            Self::Read { buffer, .. } => buffer.len(),
            Self::Status(_) => 0,
        }
    }
}

impl Waiting {
    fn refuse(&mut self, error: u32, text: String) {
        self.refusal.get_or_insert(Refusal { error, text });
    }
}

fn open(socket: &Path, name: &str) -> Result<UnixStream> {
    UnixStream::connect(socket).map_err(|error| {
        let socket = socket.display();
        match error.kind() {
            // The socket is there: who listened to it has ended.
            std::io::ErrorKind::ConnectionRefused => Error::new(
                Kind::Unavailable,
                format!("the NBD server at {socket} for {name} has ended"),
            )
            .caused_by(error),
            _ => Error::io(
                format!("cannot connect to the NBD server at {socket} for {name}"),
                error,
            ),
        }
    })
}

fn find(waiting: &mut HashMap<u64, Waiting>, cookie: u64) -> Result<&mut Waiting, Violation> {
    match waiting.get_mut(&cookie) {
        Some(waiting) if !waiting.done => Ok(waiting),
        _ => Err(Violation::Cookie),
    }
}

fn receive_chunk(
    stream: &mut BufReader<TimedSocket>,
    waiting: &mut Waiting,
    contexts: Contexts,
    kind: u16,
    length: u32,
) -> Result<(), Violation> {
    match (kind, &mut waiting.kind) {
        (chunk::NONE, _) if length == 0 => Ok(()),
        (
            chunk::OFFSET_DATA,
            WaitingKind::Read {
                offset,
                buffer,
                coverage,
            },
        ) => {
            let at = read_u64(stream)?;
            let count = length
                .checked_sub(8)
                .ok_or(Violation::Chunk(kind, length))?;
            let place = place_in(buffer, *offset, at, count).ok_or(Violation::Coverage)?;
            coverage.add(place.start, count)?;
            stream.read_exact(&mut buffer[place.start as usize..place.end as usize])?;
            Ok(())
        }
        (
            chunk::OFFSET_HOLE,
            WaitingKind::Read {
                offset,
                buffer,
                coverage,
            },
        ) if length == 12 => {
            let at = read_u64(stream)?;
            let count = read_u32(stream)?;
            let place = place_in(buffer, *offset, at, count).ok_or(Violation::Coverage)?;
            coverage.add(place.start, count)?;
            buffer[place.start as usize..place.end as usize].fill(0);
            Ok(())
        }
        (chunk::BLOCK_STATUS, WaitingKind::Status(status)) if length <= wire::STATUS_BYTES_MAX => {
            let payload = read_payload(stream, length)?;
            let (id, said) = wire::decode_status(&payload)?;
            let extents = match Some(id) {
                id if id == contexts.allocation => &mut status.allocation,
                id if id == contexts.changes => &mut status.changes,
                _ => return Err(Violation::Chunk(kind, length)),
            };
            if !extents.is_empty() {
                return Err(Violation::Chunk(kind, length));
            }
            *extents = said;
            Ok(())
        }
        (kind, _) if kind & chunk::ERROR_BIT != 0 && length <= wire::ERROR_BYTES_MAX => {
            let payload = read_payload(stream, length)?;
            let (error, text) = wire::decode_error(&payload)?;
            waiting.refuse(error, text);
            Ok(())
        }
        _ => Err(Violation::Chunk(kind, length)),
    }
}

/// Where `count` bytes at `at` of the disk belong in a buffer that begins at `offset`.
fn place_in(buffer: &[u8], offset: u64, at: u64, count: u32) -> Option<Range<u32>> {
    let start = u32::try_from(at.checked_sub(offset)?).ok()?;
    let end = start.checked_add(count)?;
    (count > 0 && end as usize <= buffer.len()).then_some(start..end)
}

fn read_payload(stream: &mut impl Read, length: u32) -> Result<Vec<u8>, Violation> {
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload)?;
    Ok(payload)
}

fn read_u32(stream: &mut impl Read) -> Result<u32, Violation> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn read_u64(stream: &mut impl Read) -> Result<u64, Violation> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

fn refuse(name: &str, violation: Violation) -> Error {
    let silent = matches!(&violation, Violation::Io(error)
        if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut));
    let what = if silent {
        format!("the server of {name} does not answer")
    } else {
        format!("the server of {name} broke off or does not keep to the NBD protocol")
    };
    Error::new(Kind::Unavailable, what).caused_by(violation)
}

#[cfg(test)]
mod tests;
