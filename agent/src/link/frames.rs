//! Frames on QUIC streams: heads and messages, read within their bounds.
//!
//! Both ends use it. What a kind means is not known here, nor how long anybody may take.

mod early;

use super::LinkError;
use bytes::{Bytes, BytesMut};
use early::Early;
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};
use std::time::Duration;
use tidegate_protocol::wire::{
    AnswerHead, Close, PART_HEAD_BYTES, Priority, Problem, RequestHead, Status, WireMessage,
    decode_part_head,
};

/// The most that is taken from a stream at once.
const READ_BYTES_MAX: usize = 256 << 10;

/// QUIC's code for an end.
pub(crate) fn code(close: Close) -> VarInt {
    VarInt::from_u32(close.code())
}

/// The sending half of a request or an answer. Dropped before [`Sending::finish`], it is reset: the
/// peer must not take a part for the whole.
pub(crate) struct Sending {
    stream: SendStream,
    is_finished: bool,
}

impl Sending {
    pub(crate) fn new(stream: SendStream, priority: Priority) -> Self {
        // It fails only where the connection is gone, which the first byte will find out.
        let _ = stream.set_priority(match priority {
            Priority::Restore => 2,
            Priority::Replication => 1,
            Priority::Backup => 0,
        });
        Self {
            stream,
            is_finished: false,
        }
    }

    /// Sends these bytes behind what was sent; waits while the peer takes no more.
    pub(crate) async fn send(&mut self, bytes: Bytes) -> Result<(), LinkError> {
        self.stream.write_chunk(bytes).await.map_err(write_error)
    }

    /// There is nothing more to send.
    pub(crate) fn finish(mut self) {
        // It fails only where the peer has said already that it wants no more.
        let _ = self.stream.finish();
        self.is_finished = true;
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if !self.is_finished {
            let _ = self.stream.reset(code(Close::Stopped));
        }
    }
}

/// The receiving half of a request or an answer. Dropped before its end, the peer is told that no more
/// is wanted.
pub(crate) struct Receiving {
    stream: RecvStream,
    /// The offset that was reached in order.
    position: u64,
    /// From here on what arrives is taken in any order.
    early: Option<Early>,
    /// The answer's head, where it came in place of `ready`.
    head: Option<AnswerHead>,
}

impl Receiving {
    pub(crate) const fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            position: 0,
            early: None,
            head: None,
        }
    }

    /// What follows is long: it is taken as it arrives, and at most so much of it waits for its turn.
    pub(crate) fn take_early(&mut self, bytes_max: usize) {
        self.early = Some(Early::new(self.position, bytes_max));
    }

    pub(crate) async fn request_head(&mut self) -> Result<RequestHead, LinkError> {
        Ok(RequestHead::decode(&self.exactly().await?)?)
    }

    /// Whether the gateway waits for the request's body; if not, its answer follows.
    pub(crate) async fn ready(&mut self) -> Result<bool, LinkError> {
        let head = AnswerHead::decode(&self.exactly().await?)?;
        match head.status {
            Status::Ready => Ok(true),
            _ => {
                self.head = Some(head);
                Ok(false)
            }
        }
    }

    /// The message of an answer, or what the gateway said instead.
    pub(crate) async fn answer<M: WireMessage>(&mut self) -> Result<M, LinkError> {
        let head = match self.head.take() {
            Some(head) => head,
            None => AnswerHead::decode(&self.exactly().await?)?,
        };
        if head.status == Status::Ok {
            return self.message(head.message_bytes).await;
        }
        let problem: Problem = self.message(head.message_bytes).await?;
        let retry_after = Duration::from_millis(problem.retry_after_ms.into());
        Err(LinkError::Answered {
            status: head.status,
            text: problem.text,
            retry_after: (!retry_after.is_zero()).then_some(retry_after),
        })
    }

    /// The message of a part; none at the stream's end.
    pub(crate) async fn part<M: WireMessage>(&mut self) -> Result<Option<M>, LinkError> {
        let mut head = [0; PART_HEAD_BYTES];
        if self.fill(&mut head).await? == 0 {
            return Ok(None);
        }
        let message_bytes = decode_part_head(&head)?;
        self.message(message_bytes).await.map(Some)
    }

    /// A message of that length, which a head has announced and bounded.
    pub(crate) async fn message<M: WireMessage>(
        &mut self,
        message_bytes: u32,
    ) -> Result<M, LinkError> {
        let bytes = self.bytes(message_bytes as usize).await?;
        Ok(M::from_bytes(&bytes)?)
    }

    /// So many bytes, neither more nor fewer. Memory is taken as they come, not as they are announced.
    pub(crate) async fn bytes(&mut self, length: usize) -> Result<Bytes, LinkError> {
        let mut bytes = BytesMut::new();
        while bytes.len() < length {
            match self.next(length - bytes.len()).await? {
                Some(chunk) if bytes.is_empty() && chunk.len() == length => return Ok(chunk),
                Some(chunk) => bytes.extend_from_slice(&chunk),
                None => return Err(cut_off(length as u64, bytes.len() as u64)),
            }
        }
        Ok(bytes.freeze())
    }

    /// What comes next, at most so many bytes of it; nothing at the stream's end.
    pub(crate) async fn next(&mut self, bytes_max: usize) -> Result<Option<Bytes>, LinkError> {
        let Some(early) = &mut self.early else {
            let read = self.stream.read_chunk(bytes_max.min(READ_BYTES_MAX), true);
            let bytes = read.await.map_err(read_error)?.map(|chunk| chunk.bytes);
            self.position += bytes.as_ref().map_or(0, Bytes::len) as u64;
            return Ok(bytes);
        };
        let mut next = early.next(bytes_max);
        while next.is_none() {
            let read = self.stream.read_chunk(READ_BYTES_MAX, false);
            let Some(chunk) = read.await.map_err(read_error)? else {
                return Ok(None);
            };
            next = early.pass(chunk.offset, chunk.bytes, bytes_max)?;
        }
        Ok(next)
    }

    /// Nothing may follow.
    pub(crate) async fn end(&mut self) -> Result<(), LinkError> {
        match self.next(1).await? {
            None => Ok(()),
            Some(_) => Err(LinkError::Malformed(
                "there is more behind the end of what was announced".to_owned(),
            )),
        }
    }

    async fn exactly<const N: usize>(&mut self) -> Result<[u8; N], LinkError> {
        let mut bytes = [0; N];
        match self.fill(&mut bytes).await? {
            0 => Err(cut_off(N as u64, 0)),
            _ => Ok(bytes),
        }
    }

    /// Fills `bytes`, unless the stream has ended before their first: then there are 0.
    async fn fill(&mut self, bytes: &mut [u8]) -> Result<usize, LinkError> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.next(bytes.len() - filled).await? {
                Some(next) => {
                    bytes[filled..][..next.len()].copy_from_slice(&next);
                    filled += next.len();
                }
                None if filled == 0 => break,
                None => return Err(cut_off(bytes.len() as u64, filled as u64)),
            }
        }
        Ok(filled)
    }
}

/// A stream that ended before its body did.
pub(crate) fn cut_off(expected_bytes: u64, found_bytes: u64) -> LinkError {
    LinkError::Malformed(format!(
        "a stream ended after {found_bytes} of {expected_bytes} bytes"
    ))
}

fn write_error(error: WriteError) -> LinkError {
    match error {
        WriteError::Stopped(_) => LinkError::Stopped,
        other => LinkError::Lost(other.to_string()),
    }
}

fn read_error(error: ReadError) -> LinkError {
    match error {
        ReadError::Reset(_) => LinkError::Stopped,
        other => LinkError::Lost(other.to_string()),
    }
}
