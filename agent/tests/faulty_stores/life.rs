//! What a repository must live through, and how an end is judged.

use crate::lab::{
    CHUNKER, ExpectingTarget, KIB, MIB, TILE_BYTES, Tile, TiledDisk, copy, copy_all, request,
    restore, try_back_up,
};
use futures::{FutureExt, StreamExt};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tidegate_agent::recover::{VerifySettings, verify};
use tidegate_agent::repository::{NewKeys, Repository};
use tidegate_agent::store::Store;
use tidegate_agent::{Error, Kind, Result};
use tidegate_protocol::keys::Keys;
use tokio_util::sync::CancellationToken;

/// Hangs are failures. Far above what anything here takes, also on a busy machine.
pub(crate) const HANG: Duration = Duration::from_secs(120);

/// How long a listing may lag behind.
pub(crate) const LAG: Duration = Duration::from_millis(50);

const POINTS: u64 = 3;

const CASES_IN_FLIGHT: usize = 6;

/// What is done while the store fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Open,
    Backup,
    Restore,
    Verify,
}

/// A repository with its keys and the disk of its newest point.
pub(crate) struct Living {
    pub(crate) keys: NewKeys,
    pub(crate) cache: tempfile::TempDir,
    pub(crate) disk: TiledDisk,
}

pub(crate) fn disk() -> TiledDisk {
    TiledDisk::new(4 * MIB, |index| match index {
        5..9 | 60.. => Tile::Hole,
        _ => Tile::Data(index),
    })
}

pub(crate) async fn open(store: &Store, keys: &Keys, cache: &Path) -> Result<Arc<Repository>> {
    Repository::open(store.clone(), copy(keys), cache)
        .await
        .map(Arc::new)
}

pub(crate) async fn init(store: &Store) -> NewKeys {
    let mut saved = None;
    Repository::init(store, CHUNKER, |keys| {
        saved = Some(copy_all(keys));
        Ok(())
    })
    .await
    .unwrap();
    saved.unwrap()
}

pub(crate) async fn back_up(repository: &Arc<Repository>, disk: &TiledDisk) -> Result<()> {
    let mut request = request("web", Arc::new(disk.clone()), Some(256 * KIB as u32));
    request.settings.listing_age_max = Duration::ZERO;
    try_back_up(repository, request).await.map(drop)
}

/// A repository with one point, made while nothing fails.
pub(crate) async fn living(store: &Store) -> Living {
    let living = Living {
        keys: init(store).await,
        cache: tempfile::tempdir().unwrap(),
        disk: disk(),
    };
    let repository = open(store, &living.keys.host, living.cache.path()).await;
    back_up(&repository.unwrap(), &living.disk).await.unwrap();
    living
}

/// From `init` over three backups to the restores of a machine that has never seen the repository, and
/// a verify. Everything must succeed.
pub(crate) async fn lives_through_it(store: &Store) {
    let keys = init(store).await;
    let cache = tempfile::tempdir().unwrap();
    let mut disk = disk();
    let mut expected = Vec::new();
    for round in 0..POINTS {
        // Each by a process of its own.
        let repository = open(store, &keys.host, cache.path()).await.unwrap();
        back_up(&repository, &disk).await.unwrap();
        expected.push(disk.clone());
        let last = 4 * MIB / TILE_BYTES - 1;
        let changes = [(last - round, 1000 + round), (round * 7, 2000 + round)];
        disk = disk.with(changes.map(|(place, number)| (place, Tile::Data(number))));
    }
    // Who has never seen a record cannot miss it.
    tokio::time::sleep(2 * LAG).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let repository = open(store, &keys.restore, elsewhere.path()).await.unwrap();
    let points = repository.points(None).unwrap();
    assert_eq!(points.len(), expected.len());
    for (point, expected) in points.iter().zip(&expected) {
        let target = ExpectingTarget::new(expected);
        restore(&repository, point.disk(None).unwrap(), target.clone())
            .await
            .unwrap();
        target.assert_complete();
    }
    let report = verify_all(&repository).await.unwrap();
    assert!(report.complete && report.damages.is_empty(), "{report:?}");
    // What failed was the store, and no pack was taken for lost.
    assert!(repository.catalogue().lost_packs().unwrap().is_empty());
}

pub(crate) async fn verify_all(
    repository: &Arc<Repository>,
) -> Result<tidegate_agent::recover::VerifyReport> {
    verify(
        repository,
        &repository.points(None)?,
        &VerifySettings::default(),
        Arc::default(),
        CancellationToken::new(),
    )
    .await
}

/// Does it with a store that begins to fail once the repository is open, by `begin`.
pub(crate) async fn attempt(
    verb: Verb,
    store: &Store,
    living: &Living,
    begin: impl FnOnce(),
) -> Result<()> {
    let cache = tempfile::tempdir().unwrap();
    if verb == Verb::Open {
        begin();
        return open(store, &living.keys.restore, cache.path())
            .await
            .map(drop);
    }
    let repository = open(store, &living.keys.restore, cache.path()).await?;
    begin();
    let done = async {
        match verb {
            Verb::Open => Ok(()),
            Verb::Backup => {
                let changed = living.disk.with([(0, Tile::Data(7777))]);
                back_up(&repository, &changed).await
            }
            Verb::Restore => {
                let point = repository.points(None)?.pop().unwrap();
                let target = ExpectingTarget::new(&living.disk);
                restore(&repository, point.disk(None)?, target.clone()).await?;
                target.assert_complete();
                Ok(())
            }
            Verb::Verify => {
                let report = verify_all(&repository).await?;
                assert!(report.damages.is_empty(), "{report:?}");
                Ok(())
            }
        }
    };
    tokio::time::timeout(HANG, done)
        .await
        .unwrap_or_else(|_| panic!("{verb:?} hangs"))
}

/// The error of a store that was given up: it names an object, how often it was tried and how long, what
/// was the last answer, and what to do.
#[track_caller]
pub(crate) fn assert_given_up(error: &Error, last: &str) {
    assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
    let text = error.chain();
    let names_it = ["packs", "log/", "index/", "log in"]
        .iter()
        .any(|name| text.contains(name));
    assert!(names_it, "{text}");
    let tried = text.split("gave up after ").nth(1).unwrap_or_default();
    let attempts = tried.split(' ').next().unwrap_or_default().parse::<u32>();
    assert!(attempts.is_ok_and(|attempts| attempts > 1), "{text}");
    assert!(
        tried.contains("attempts in ") && tried.contains(last),
        "{text}"
    );
    assert!(error.advice().is_some(), "{error:?}");
}

/// Works at all of `cases`, a few at a time: most of the time they wait. Says which one failed.
pub(crate) async fn each<C: std::fmt::Debug, Working: Future<Output = ()>>(
    cases: impl IntoIterator<Item = C>,
    mut work: impl FnMut(&C) -> Working,
) {
    futures::stream::iter(cases)
        .map(|case| {
            let working = AssertUnwindSafe(work(&case)).catch_unwind();
            async move {
                if let Err(panic) = working.await {
                    println!("failed: {case:?}");
                    std::panic::resume_unwind(panic);
                }
            }
        })
        .buffer_unordered(CASES_IN_FLIGHT)
        .collect()
        .await
}

/// Chooses by seed and number, always the same: one of `faults`, each with so many chances in a
/// thousand.
pub(crate) fn chosen<F: Clone>(seed: u64, ordinal: u64, faults: &[(F, u64)]) -> Option<F> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(&ordinal.to_le_bytes());
    let mut bytes = [0; 8];
    hasher.finalize_xof().fill(&mut bytes);
    let mut draw = u64::from_le_bytes(bytes) % 1000;
    for (fault, chances) in faults {
        if draw < *chances {
            return Some(fault.clone());
        }
        draw -= chances;
    }
    None
}
