//! Requests and replies.
//!
//! One task reads requests; each request becomes a task that makes its reply and writes it under a
//! lock. The invariant: a request is read only when what its reply may take has been reserved, so a
//! connection's memory is bounded however fast a client asks and however slowly it reads.

use super::{ALLOCATION_CONTEXT, Export, Limits, Session};
use crate::error::{Error, Kind, Result};
use crate::nbd::wire::{self, ReplyHead, Request, chunk, command, errno};
use bytes::{Buf, Bytes};
use futures::FutureExt;
use std::io;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

/// What is reserved is counted in units of so many bytes, and every request takes one at least: a
/// flood of tiny requests is bounded too.
const UNIT_BYTES: u32 = 64 << 10;
/// What a block status reply may take.
const STATUS_BYTES: u32 = 1 << 20;
/// Holes are told in whole blocks of so many bytes. The protocol allows any length here, but
/// `qemu-img convert` (10.0) works in sectors and rounds the end of a hole *up*, over data.
const MAP_BLOCK_BYTES: u64 = 4 << 10;
/// The export is asked for the map of so many bytes at a time: a multiple of the block.
const MAP_STEP_BYTES: u64 = 1 << 30;
/// After so many extents a block status reply may end early; the client asks on.
const EXTENTS_ENOUGH: usize = 16 << 10;
/// Enough to take in several requests with one system call.
const REQUEST_BUFFER_BYTES: usize = 4 << 10;

/// Serves requests until the client says good-bye or hangs up.
pub(super) async fn transmit(
    stream: UnixStream,
    session: Session,
    export: Arc<dyn Export>,
    limits: Limits,
) -> io::Result<()> {
    let (reader, writer) = stream.into_split();
    let mut reader = BufReader::with_capacity(REQUEST_BUFFER_BYTES, reader);
    let writer = Arc::new(Mutex::new(writer));
    let units = limits.in_flight_bytes_max.max(wire::READ_BYTES_MAX) / UNIT_BYTES;
    let budget = Arc::new(Semaphore::new(units as usize));
    let mut replies = JoinSet::new();

    loop {
        let mut message = [0; Request::BYTES];
        match reader.read_exact(&mut message).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
        let request = Request::decode(&message)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        match request.kind {
            command::DISCONNECT => break,
            // The bytes that follow must go, for the next request to be found.
            command::WRITE => discard(&mut reader, request.length).await?,
            _ => {}
        }
        let Ok(permit) = Arc::clone(&budget).acquire_many_owned(cost(&request)).await else {
            break; // The budget is never closed.
        };
        while let Some(reply) = replies.try_join_next() {
            finished(reply)?;
        }
        let (export, writer) = (Arc::clone(&export), Arc::clone(&writer));
        replies.spawn(reply(request, session, export, writer, permit));
    }
    // What was asked for before the good-bye is still answered.
    while let Some(reply) = replies.join_next().await {
        finished(reply)?;
    }
    Ok(())
}

/// In units of the budget.
fn cost(request: &Request) -> u32 {
    let bytes = match request.kind {
        // One that is too long is refused, which takes nothing.
        command::READ if request.length <= wire::READ_BYTES_MAX => request.length,
        command::BLOCK_STATUS => STATUS_BYTES,
        _ => 0,
    };
    bytes.div_ceil(UNIT_BYTES).max(1)
}

fn finished(reply: Result<io::Result<()>, tokio::task::JoinError>) -> io::Result<()> {
    reply.unwrap_or_else(|failed| Err(io::Error::other(failed)))
}

async fn discard(reader: &mut (impl AsyncRead + Unpin), length: u32) -> io::Result<()> {
    if length > wire::READ_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut rest = reader.take(length.into());
    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
    Ok(())
}

/// Makes one reply and writes it.
async fn reply(
    request: Request,
    session: Session,
    export: Arc<dyn Export>,
    writer: Arc<Mutex<OwnedWriteHalf>>,
    _permit: OwnedSemaphorePermit,
) -> io::Result<()> {
    // A bug in an export must cost one reply, not leave a client waiting for ever.
    let made = AssertUnwindSafe(make(request, session, &*export))
        .catch_unwind()
        .await;
    let made = made.unwrap_or_else(|_| Err(Refusal::new(errno::EIO, "internal error")));
    let cookie = request.cookie;
    let (head, payload) = match made {
        Ok(reply) => reply.encode(cookie, session),
        Err(refusal) => refusal.encode(cookie, session),
    };
    let mut message = Bytes::from(head).chain(payload);
    writer.lock().await.write_all_buf(&mut message).await
}

/// What a request is answered with.
enum Reply {
    Data { offset: u64, bytes: Bytes },
    Extents(Vec<(u32, u32)>),
}

impl Reply {
    fn encode(self, cookie: u64, session: Session) -> (Vec<u8>, Bytes) {
        match self {
            Self::Data { bytes, .. } if !session.structured => {
                (ReplyHead::Simple { error: 0, cookie }.encode(), bytes)
            }
            Self::Data { offset, bytes } => {
                let length = bytes.len().saturating_add(8);
                let mut head = chunk_head(chunk::OFFSET_DATA, cookie, length);
                head.extend_from_slice(&offset.to_be_bytes());
                (head, bytes)
            }
            Self::Extents(extents) => {
                let payload = wire::encode_status(ALLOCATION_CONTEXT, &extents);
                let head = chunk_head(chunk::BLOCK_STATUS, cookie, payload.len());
                (head, payload.into())
            }
        }
    }
}

/// An error that the client is told.
struct Refusal {
    error: u32,
    text: String,
}

impl Refusal {
    fn new(error: u32, text: impl Into<String>) -> Self {
        Self {
            error,
            text: text.into(),
        }
    }

    fn encode(self, cookie: u64, session: Session) -> (Vec<u8>, Bytes) {
        let error = self.error;
        if !session.structured {
            return (ReplyHead::Simple { error, cookie }.encode(), Bytes::new());
        }
        let payload = wire::encode_error(error, &self.text);
        (
            chunk_head(chunk::ERROR, cookie, payload.len()),
            payload.into(),
        )
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        tracing::warn!(error = error.chain(), "an NBD client could not be served");
        let number = match error.kind() {
            Kind::Denied => errno::EPERM,
            Kind::Unsupported => errno::ENOTSUP,
            Kind::Interrupted => errno::ESHUTDOWN,
            _ => errno::EIO,
        };
        Self::new(number, error.to_string())
    }
}

/// The head of a reply's only chunk. Lengths are far below 4 GiB.
fn chunk_head(kind: u16, cookie: u64, length: usize) -> Vec<u8> {
    let head = ReplyHead::Chunk {
        flags: chunk::FLAG_DONE,
        kind,
        cookie,
        length: u32::try_from(length).unwrap_or(u32::MAX),
    };
    head.encode()
}

async fn make(request: Request, session: Session, export: &dyn Export) -> Result<Reply, Refusal> {
    let Request {
        flags,
        kind,
        offset,
        length,
        ..
    } = request;
    match kind {
        command::READ if length > wire::READ_BYTES_MAX => Err(Refusal::new(
            errno::EOVERFLOW,
            "longer than the largest read",
        )),
        command::READ => {
            inside(&request, export.size_bytes())?;
            let bytes = export.read(offset, length).await?;
            if bytes.len() != length as usize {
                tracing::error!(
                    offset,
                    length,
                    found = bytes.len(),
                    "an export read too little"
                );
                return Err(Refusal::new(errno::EIO, "internal error"));
            }
            Ok(Reply::Data { offset, bytes })
        }
        command::BLOCK_STATUS if session.allocation => {
            let range = inside(&request, export.size_bytes())?;
            let extents_max = match flags & command::FLAG_REQ_ONE {
                0 => wire::EXTENTS_MAX as usize,
                _ => 1,
            };
            map(export, range, extents_max).await.map(Reply::Extents)
        }
        command::WRITE => Err(Refusal::new(errno::EPERM, "the export is read-only")),
        _ => Err(Refusal::new(errno::EINVAL, "the request is not known here")),
    }
}

/// The range that a request is about.
fn inside(request: &Request, size_bytes: u64) -> Result<Range<u64>, Refusal> {
    match request.offset.checked_add(request.length.into()) {
        Some(end) if request.length > 0 && end <= size_bytes => Ok(request.offset..end),
        _ => Err(Refusal::new(
            errno::EINVAL,
            "the range is empty or not inside the disk",
        )),
    }
}

/// Lengths and states from the start of `range`, as far as [`EXTENTS_ENOUGH`] reaches.
async fn map(
    export: &dyn Export,
    range: Range<u64>,
    extents_max: usize,
) -> Result<Vec<(u32, u32)>, Refusal> {
    let mut extents = Vec::new();
    let mut at = range.start;
    while at < range.end && extents.len() <= extents_max.min(EXTENTS_ENOUGH) {
        let step_end = (at - at % MAP_STEP_BYTES).saturating_add(MAP_STEP_BYTES);
        let step = at..range.end.min(step_end);
        for (part, data) in export.allocation(step.clone()).await? {
            let part = part.start.max(at)..part.end.min(step.end);
            if data || part.is_empty() {
                continue;
            }
            let hole = whole_blocks(part, &range);
            if hole.is_empty() {
                continue;
            }
            push(&mut extents, hole.start - at, true);
            push(&mut extents, hole.end - hole.start, false);
            at = hole.end;
        }
        push(&mut extents, step.end - at, true);
        at = step.end;
    }
    extents.truncate(extents_max);
    Ok(extents)
}

/// The whole blocks of a hole; at the edges of what was asked for, all of it.
fn whole_blocks(hole: Range<u64>, asked: &Range<u64>) -> Range<u64> {
    let start = if hole.start == asked.start {
        hole.start
    } else {
        hole.start.next_multiple_of(MAP_BLOCK_BYTES)
    };
    let end = if hole.end == asked.end {
        hole.end
    } else {
        hole.end - hole.end % MAP_BLOCK_BYTES
    };
    start..end
}

/// Appends an extent, or lengthens the last one of the same state.
fn push(extents: &mut Vec<(u32, u32)>, length: u64, data: bool) {
    let state = if data {
        0
    } else {
        wire::STATE_HOLE | wire::STATE_ZERO
    };
    // All lengths together are one request's, which is below 4 GiB.
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    match extents.last_mut() {
        _ if length == 0 => {}
        Some((last, same)) if *same == state => *last = last.saturating_add(length),
        _ => extents.push((length, state)),
    }
}
