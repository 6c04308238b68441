//! Chunks that this machine does not know, and the store's gateway may: asked for in batches.
//!
//! A host behind a gateway reads no index. What neither the parent point nor the local index knows waits
//! here, bytes and all, until the gateway has said where it lies or that it is new. Questions stand side
//! by side, so a long round trip costs memory, not speed: [`ASKED_MAX`] batches of [`BATCH_BYTES`] a
//! cutting thread. What the gateway tells enters the local index, as an index segment would; should it
//! be stale, the commit finds out.

use crate::error::{Error, Kind, Result};
use crate::repository::Repository;
use std::collections::VecDeque;
use std::sync::Arc;
use tidegate_protocol::ids::ChunkId;
use tidegate_protocol::pack::Location;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Bytes of chunks in one question: a thousandth of them is what the question takes on the wire.
const BATCH_BYTES: usize = 4 << 20;

/// Questions of one thread under way.
const ASKED_MAX: usize = 8;

/// Chunks in doubt, and their bytes one behind the other.
#[derive(Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    items: Vec<(ChunkId, u32)>,
}

/// A question that was asked.
struct Asked {
    batch: Batch,
    answer: JoinHandle<Result<Vec<Option<Location>>>>,
}

/// A batch with its answer.
pub(super) struct Answered {
    batch: Batch,
    known: Vec<Option<Location>>,
}

/// One cutting thread's doubts.
pub(super) struct Doubts {
    repository: Arc<Repository>,
    runtime: Handle,
    stop: CancellationToken,
    open: Batch,
    asked: VecDeque<Asked>,
    /// Batches to be filled again: fresh memory has to be cleared first, page by page.
    spare: Vec<Batch>,
}

impl Doubts {
    /// None where there is nobody to ask.
    pub(super) fn new(
        repository: &Arc<Repository>,
        runtime: &Handle,
        stop: &CancellationToken,
    ) -> Option<Self> {
        repository.store().knows_chunks().then(|| Self {
            repository: Arc::clone(repository),
            runtime: runtime.clone(),
            stop: stop.clone(),
            open: Batch::default(),
            asked: VecDeque::new(),
            spare: Vec::new(),
        })
    }

    /// A chunk to ask for.
    pub(super) fn add(&mut self, chunk: ChunkId, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.open.bytes.extend_from_slice(bytes);
        self.open.items.push((chunk, length));
        if self.open.bytes.len() >= BATCH_BYTES {
            self.ask();
        }
    }

    /// The oldest question's answer, where it is there or too many are waited for.
    pub(super) fn next_ready(&mut self) -> Result<Option<Answered>> {
        let is_ready = |asked: &Asked| asked.answer.is_finished();
        if self.asked.len() < ASKED_MAX && !self.asked.front().is_some_and(is_ready) {
            return Ok(None);
        }
        self.next()
    }

    /// Asks what is left, and waits for the oldest answer; none when there is nothing left.
    pub(super) fn next_at_the_end(&mut self) -> Result<Option<Answered>> {
        self.ask();
        self.next()
    }

    /// What was answered has been dealt with: its memory is used again.
    pub(super) fn done(&mut self, answered: Answered) {
        let mut batch = answered.batch;
        batch.bytes.clear();
        batch.items.clear();
        self.spare.push(batch);
    }

    fn ask(&mut self) {
        if self.open.items.is_empty() {
            return;
        }
        let open = self.spare.pop().unwrap_or_default();
        let batch = std::mem::replace(&mut self.open, open);
        let chunks: Vec<ChunkId> = batch.items.iter().map(|(chunk, _)| *chunk).collect();
        let store = self.repository.store().clone();
        let answer = self
            .runtime
            .spawn(async move { store.known_chunks(&chunks).await });
        self.asked.push_back(Asked { batch, answer });
    }

    fn next(&mut self) -> Result<Option<Answered>> {
        let Some(Asked { batch, answer }) = self.asked.pop_front() else {
            return Ok(None);
        };
        let stop = &self.stop;
        let answered = self
            .runtime
            .block_on(async { stop.run_until_cancelled(answer).await });
        match answered {
            Some(Ok(known)) => Ok(Some(Answered {
                batch,
                known: known?,
            })),
            Some(Err(error)) => {
                Err(Error::new(Kind::Bug, "a question to the gateway broke down").caused_by(error))
            }
            None => Err(Error::new(Kind::Interrupted, "the run was stopped")),
        }
    }
}

impl Answered {
    /// Each chunk with its bytes, and where it lies if the gateway knows. A place of another length is
    /// nonsense that somebody wrote into a segment.
    pub(super) fn chunks(&self) -> impl Iterator<Item = (ChunkId, &[u8], Option<Location>)> {
        let mut at = 0;
        self.batch
            .items
            .iter()
            .zip(&self.known)
            .map(move |((chunk, length), place)| {
                let bytes = &self.batch.bytes[at..at + *length as usize];
                at += *length as usize;
                (*chunk, bytes, place.filter(|place| place.length == *length))
            })
    }
}
