//! Frames on QUIC streams: heads and messages, read within their bounds.
//!
//! Both ends use it. What a kind means is not known here, nor how long anybody may take.

use super::LinkError;
use bytes::{Bytes, BytesMut};
use quinn::{ReadError, ReadExactError, RecvStream, SendStream, VarInt, WriteError};
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
pub(crate) struct Receiving(RecvStream);

impl Receiving {
    pub(crate) const fn new(stream: RecvStream) -> Self {
        Self(stream)
    }

    pub(crate) async fn request_head(&mut self) -> Result<RequestHead, LinkError> {
        Ok(RequestHead::decode(&self.exactly().await?)?)
    }

    /// The message of an answer, or what the gateway said instead.
    pub(crate) async fn answer<M: WireMessage>(&mut self) -> Result<M, LinkError> {
        let head = AnswerHead::decode(&self.exactly().await?)?;
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
        match self.0.read_exact(&mut head).await {
            Ok(()) => {}
            Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
            Err(error) => return Err(read_exact_error(error)),
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
        let chunk = self.0.read_chunk(bytes_max.min(READ_BYTES_MAX), true).await;
        Ok(chunk.map_err(read_error)?.map(|chunk| chunk.bytes))
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
        let read = self.0.read_exact(&mut bytes).await;
        read.map_err(read_exact_error)?;
        Ok(bytes)
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

fn read_exact_error(error: ReadExactError) -> LinkError {
    match error {
        ReadExactError::FinishedEarly(_) => {
            LinkError::Malformed("a stream ended inside a head".to_owned())
        }
        ReadExactError::ReadError(error) => read_error(error),
    }
}
