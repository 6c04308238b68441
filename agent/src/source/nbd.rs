//! Disks that an NBD server shows: image formats through a QEMU child, and running machines.
//!
//! Not aware of formats. The invariants: every reader sees a disk of the size that was found at
//! opening, and read-ahead holds at most [`AHEAD_BYTES_MAX`] a reader.

use super::{Source, SourceReader, Tracking};
use crate::error::{Error, Kind, Result};
use crate::nbd::client::{ChangeMap, Client, Pending};
use std::any::Any;
use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tidegate_protocol::ids::PointId;

/// What a reader keeps asked for or received ahead of its thread, in bytes.
pub const AHEAD_BYTES_MAX: usize = 8 << 20;
/// The length of one request, in bytes: eight of them keep QEMU's coroutines busy.
const PIECE_BYTES: u64 = 1 << 20;
/// The most pieces of one reader, for disks whose data is scattered.
const AHEAD_PIECES_MAX: usize = 48;
/// The most ranges that are remembered as to be read soon.
const PLANNED_MAX: usize = 1024;

/// A disk behind an NBD server on a unix socket.
pub struct NbdSource {
    shared: Arc<Shared>,
    /// The connection that found the size, until the first reader takes it.
    first: Mutex<Option<Client>>,
}

/// What is known of changes to a disk behind an NBD server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes {
    /// Nothing, and nobody thought that it would be.
    Unknown,
    /// QEMU's dirty bitmap of this name holds all that was written since the point.
    Bitmap {
        /// As QEMU knows it.
        name: String,
        /// What it continues.
        since: PointId,
    },
    /// What was written since the point stands in so many images of a chain, from the topmost on.
    Layers {
        /// How many; 0 where nothing was written.
        count: u32,
        /// What they continue.
        since: PointId,
    },
    /// Nothing, though it was to be known; why.
    Lost(String),
}

struct Shared {
    socket: PathBuf,
    export: String,
    description: String,
    changes: Changes,
    size_bytes: u64,
    /// What must live as long as somebody reads: the server's process.
    _keep: Box<dyn Any + Send + Sync>,
}

impl NbdSource {
    /// Connects to `export` behind `socket`. `description` is what the operator would recognise;
    /// `keep` is dropped with the last reader.
    pub fn connect(
        socket: &Path,
        export: &str,
        description: String,
        keep: Box<dyn Any + Send + Sync>,
    ) -> Result<Self> {
        Self::connect_tracked(socket, export, description, Changes::Unknown, keep)
    }

    /// The same for a disk of which changes are known, or were to be.
    pub fn connect_tracked(
        socket: &Path,
        export: &str,
        description: String,
        changes: Changes,
        keep: Box<dyn Any + Send + Sync>,
    ) -> Result<Self> {
        let client = changes.connect(socket, export, &description)?;
        let mut source = Shared::new(&client, socket, export, description, keep);
        source.changes = changes;
        Ok(Self::of(client, source))
    }

    fn of(client: Client, shared: Shared) -> Self {
        Self {
            shared: Arc::new(shared),
            first: Mutex::new(Some(client)),
        }
    }
}

impl Shared {
    fn new(
        client: &Client,
        socket: &Path,
        export: &str,
        description: String,
        keep: Box<dyn Any + Send + Sync>,
    ) -> Self {
        Self {
            socket: socket.to_owned(),
            export: export.to_owned(),
            description,
            changes: Changes::Unknown,
            size_bytes: client.size_bytes(),
            _keep: keep,
        }
    }
}

impl Changes {
    fn connect(&self, socket: &Path, export: &str, description: &str) -> Result<Client> {
        let map = match self {
            Self::Bitmap { name, .. } => ChangeMap::Bitmap(name.clone()),
            Self::Layers { count, .. } => ChangeMap::Layers(*count),
            Self::Unknown | Self::Lost(_) => return Client::connect(socket, export, description),
        };
        Client::connect_with_changes(socket, export, map, description)
    }
}

impl Source for NbdSource {
    fn size_bytes(&self) -> u64 {
        self.shared.size_bytes
    }

    fn describe(&self) -> String {
        self.shared.description.clone()
    }

    fn tracking(&self) -> Tracking {
        match &self.shared.changes {
            Changes::Unknown => Tracking::Untracked,
            Changes::Bitmap { since, .. } | Changes::Layers { since, .. } => {
                Tracking::Since(*since)
            }
            Changes::Lost(why) => Tracking::Lost(why.clone()),
        }
    }

    fn reader(&self) -> Result<Box<dyn SourceReader>> {
        let shared = Arc::clone(&self.shared);
        let first = self
            .first
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let client = match first {
            Some(client) => client,
            None => shared
                .changes
                .connect(&shared.socket, &shared.export, &shared.description)?,
        };
        if client.size_bytes() != shared.size_bytes {
            return Err(Error::new(
                Kind::Conflict,
                format!(
                    "{} changed its size while it was read: expected {} bytes, found {}",
                    shared.description,
                    shared.size_bytes,
                    client.size_bytes()
                ),
            ));
        }
        Ok(Box::new(NbdReader {
            client,
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            planned: VecDeque::new(),
            spare: Vec::new(),
            shared,
        }))
    }
}

/// One connection, with reads asked for ahead.
struct NbdReader {
    // Before `shared`: the connection says good-bye before its server may go.
    client: Client,
    /// Asked for or received, in the order of asking.
    ahead: VecDeque<Piece>,
    ahead_bytes: usize,
    /// To be asked for when there is room.
    planned: VecDeque<Range<u64>>,
    /// Buffers to use again.
    spare: Vec<Vec<u8>>,
    shared: Arc<Shared>,
}

struct Piece {
    range: Range<u64>,
    state: PieceState,
}

enum PieceState {
    Asked(Pending),
    Received(Vec<u8>),
}

impl SourceReader for NbdReader {
    fn allocation(&mut self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        self.client.allocation(range)
    }

    fn changes(&mut self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        self.client.changes(range)
    }

    fn prefetch(&mut self, range: Range<u64>) {
        let range = self
            .client
            .aligned(range.start..range.end.min(self.shared.size_bytes));
        if self.planned.len() < PLANNED_MAX && !range.is_empty() {
            self.planned.push_back(range);
            // A failure kills the connection, and the next read tells.
            let _ = self.ask_ahead();
        }
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset.saturating_add(buffer.len() as u64);
        if end > self.shared.size_bytes {
            return Err(Error::new(
                Kind::Bug,
                format!(
                    "a read of {} bytes at {offset} goes past the end of {}",
                    buffer.len(),
                    self.shared.description
                ),
            ));
        }
        let mut at = offset;
        while at < end {
            let rest = &mut buffer[usize::try_from(at - offset).unwrap_or(usize::MAX)..];
            if !self.covers(at) {
                self.plan_now(at..end);
                self.ask_ahead()?;
            }
            let count = self.take(at, rest)?;
            at += count as u64;
            self.ask_ahead()?;
        }
        Ok(())
    }
}

impl NbdReader {
    /// True when `at` was asked for; what was asked for before it is dropped, since ranges are read
    /// front to back.
    fn covers(&mut self, at: u64) -> bool {
        let Some(found) = self
            .ahead
            .iter()
            .position(|piece| piece.range.contains(&at))
        else {
            // Perhaps the plan has it, and reading has skipped what was asked for before it.
            if self.planned.iter().any(|range| range.contains(&at)) {
                self.drop_pieces(self.ahead.len());
                while let Some(range) = self.planned.front_mut() {
                    if range.contains(&at) {
                        range.start = self.client.aligned(at..at + 1).start;
                        break;
                    }
                    self.planned.pop_front();
                }
            }
            return false;
        };
        self.drop_pieces(found);
        true
    }

    fn drop_pieces(&mut self, count: usize) {
        for piece in self.ahead.drain(..count) {
            self.ahead_bytes -= length(&piece.range);
            match piece.state {
                PieceState::Asked(pending) => self.client.forget_read(&pending),
                PieceState::Received(buffer) => self.spare.push(buffer),
            }
        }
    }

    /// Puts a range that is needed at once before everything planned.
    fn plan_now(&mut self, range: Range<u64>) {
        let planned = self
            .planned
            .front()
            .is_some_and(|next| next.contains(&range.start));
        if !planned {
            // What was asked for ahead belongs to another place: it makes room.
            self.drop_pieces(self.ahead.len());
            let range = self.client.aligned(range);
            self.planned.push_front(range);
        }
    }

    /// Asks for as much of the plan as there is room for.
    fn ask_ahead(&mut self) -> Result<()> {
        let piece_bytes = PIECE_BYTES.min(self.client.read_bytes_max().into());
        while let Some(range) = self.planned.front_mut() {
            let piece = range.start..range.end.min(range.start.saturating_add(piece_bytes));
            let piece_length = length(&piece);
            if self.ahead_bytes + piece_length > AHEAD_BYTES_MAX
                || self.ahead.len() >= AHEAD_PIECES_MAX
            {
                break;
            }
            range.start = piece.end;
            if range.is_empty() {
                self.planned.pop_front();
            }
            let mut buffer = self.spare.pop().unwrap_or_default();
            buffer.resize(piece_length, 0);
            let pending = self.client.start_read(piece.start, buffer)?;
            self.ahead_bytes += piece_length;
            self.ahead.push_back(Piece {
                range: piece,
                state: PieceState::Asked(pending),
            });
        }
        Ok(())
    }

    /// Copies from the first piece, which contains `at`, and drops the piece when it is used up.
    fn take(&mut self, at: u64, buffer: &mut [u8]) -> Result<usize> {
        let Some(piece) = self.ahead.pop_front() else {
            return Err(Error::new(
                Kind::Bug,
                format!(
                    "nothing was asked for at {at} of {}",
                    self.shared.description
                ),
            ));
        };
        self.ahead_bytes -= length(&piece.range);
        let received = match piece.state {
            PieceState::Received(received) => received,
            PieceState::Asked(pending) => self.client.finish_read(pending)?,
        };
        let skip = usize::try_from(at - piece.range.start).unwrap_or(usize::MAX);
        let Some(available) = received.get(skip..) else {
            return Err(Error::new(
                Kind::Bug,
                format!(
                    "the wrong range was asked for at {at} of {}",
                    self.shared.description
                ),
            ));
        };
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        if count < available.len() {
            self.ahead_bytes += length(&piece.range);
            self.ahead.push_front(Piece {
                range: piece.range,
                state: PieceState::Received(received),
            });
        } else {
            self.spare.push(received);
        }
        Ok(count)
    }
}

/// The length of a piece, which is at most [`PIECE_BYTES`].
fn length(range: &Range<u64>) -> usize {
    usize::try_from(range.end - range.start).unwrap_or(usize::MAX)
}
