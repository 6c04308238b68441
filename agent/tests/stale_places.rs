//! Pages name places, and places go stale: a chunk is found as long as it lies anywhere that the log
//! knows of, in a condemned pack, in a pack that was stored after the reader last read the log, and in
//! one that a later copy has displaced in the local index.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod lab;

use lab::{Lab, MIB, MemoryDisk, MemoryTarget, copy, request, restore, try_back_up};
use std::sync::Arc;
use tempfile::TempDir;
use tidegate_agent::repository::{Repository, Selector};
use tidegate_agent::store::fault::Operation;
use tidegate_protocol::ids::PackId;
use tidegate_protocol::record::{Body, PacksCondemned, PacksSwept};

/// Two hosts that did not know of each other have stored the same disk: machine «web» in the first
/// pack, machine «db» in the second.
struct Twice {
    lab: Lab,
    disk: Vec<u8>,
    first: PackId,
    second: PackId,
    /// Knows the first pack only, so far.
    repository: Arc<Repository>,
    _caches: [TempDir; 2],
}

impl Twice {
    async fn new() -> Self {
        let lab = Lab::in_memory().await;
        let mut disk = vec![0; usize::try_from(MIB).unwrap()];
        blake3::Hasher::new().finalize_xof().fill(&mut disk);
        let caches = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let one = lab.open_as(&lab.keys.restore, caches[0].path()).await;
        let other = lab.open_as(&lab.keys.host, caches[1].path()).await;
        let first = store(&lab, &one, "web", &disk).await;
        let second = store(&lab, &other, "db", &disk).await;
        assert_ne!(first, second, "stored once only");
        Self {
            lab,
            disk,
            first,
            second,
            repository: one,
            _caches: caches,
        }
    }

    /// The reader learns of the second pack, which takes the first one's place in its index.
    async fn learn(&self) {
        self.repository.refresh().await.unwrap();
        self.repository.index().await.unwrap();
    }

    async fn condemn(&self, pack: PackId) -> Repository {
        let cache = tempfile::tempdir().unwrap();
        let (store, keys) = (self.lab.store.clone(), copy(&self.lab.keys.maintenance));
        let pruner = Repository::open(store, keys, cache.path()).await.unwrap();
        let packs = vec![pack.0.to_vec()];
        let body = Body::PacksCondemned(PacksCondemned { packs });
        pruner.append(|_| Ok(body.clone())).await.unwrap();
        pruner
    }

    async fn delete(&self, pack: PackId) {
        self.lab.store.delete(&pack.object_key()).await.unwrap();
    }

    async fn restores(&self, machine: &str) {
        let point = self.repository.resolve(machine, &Selector::Latest).unwrap();
        let target = MemoryTarget::holding(vec![0; self.disk.len()], true);
        let disk = point.disk(None).unwrap();
        restore(&self.repository, disk, target.clone())
            .await
            .unwrap();
        assert!(target.content() == self.disk);
    }
}

/// Backs up, and tells the one data pack.
async fn store(lab: &Lab, repository: &Arc<Repository>, machine: &str, disk: &[u8]) -> PackId {
    lab.calls.clear_calls();
    let request = request(machine, MemoryDisk::of(disk), None);
    try_back_up(repository, request).await.unwrap();
    let calls = lab.calls.calls();
    let largest = calls
        .iter()
        .filter(|call| call.operation == Operation::Put)
        .max_by_key(|call| call.bytes)
        .unwrap();
    PackId::from_object_key(&largest.key).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_condemned_pack_still_reads() {
    let twice = Twice::new().await;
    twice.condemn(twice.second).await;
    twice.delete(twice.first).await;
    twice.learn().await;
    twice.restores("web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_misses_a_chunk_reads_the_log() {
    let twice = Twice::new().await;
    twice.delete(twice.first).await;
    // The reader has not read the log since its own backup.
    twice.restores("web").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_another_has_displaced_is_found_again() {
    let twice = Twice::new().await;
    twice.learn().await;
    let pruner = twice.condemn(twice.second).await;
    let body = Body::PacksSwept(PacksSwept {
        packs: vec![twice.second.0.to_vec()],
        rescued: Vec::new(),
    });
    pruner.append(|_| Ok(body.clone())).await.unwrap();
    twice.delete(twice.second).await;
    twice.repository.refresh().await.unwrap();
    twice.restores("db").await;
}
