//! Which thread stores a chunk that several meet at the same time: the first to claim it.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tidegate_protocol::ids::ChunkId;

const SHARDS: usize = 16;

/// Chunks of this run that are on their way into the store. Bounded: a chunk leaves when its pack
/// has landed and the index knows it.
#[derive(Default)]
pub(super) struct Claims {
    shards: [Mutex<HashSet<ChunkId, BuildHasherDefault<IdHasher>>>; SHARDS],
}

impl Claims {
    /// True when nobody has claimed it: the caller stores it.
    pub(super) fn claim(&self, chunk: ChunkId) -> bool {
        self.shard(&chunk).insert(chunk)
    }

    /// True when somebody is about to store it.
    pub(super) fn contains(&self, chunk: &ChunkId) -> bool {
        self.shard(chunk).contains(chunk)
    }

    /// The index knows it now.
    pub(super) fn release(&self, chunk: &ChunkId) {
        self.shard(chunk).remove(chunk);
    }

    /// Forgets all.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            *shard.lock().unwrap_or_else(PoisonError::into_inner) = HashSet::default();
        }
    }

    fn shard(
        &self,
        chunk: &ChunkId,
    ) -> MutexGuard<'_, HashSet<ChunkId, BuildHasherDefault<IdHasher>>> {
        let shard = &self.shards[usize::from(chunk.0[31]) % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Chunk ids are hashes already.
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(front) = bytes.first_chunk::<8>() {
            self.0 = u64::from_le_bytes(*front);
        }
    }

    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}
