//! A repository with three points, the verbs, and how an outcome is judged.

use crate::lab::{
    ExpectingTarget, Lab, MIB, TILE_BYTES, Tile, TiledDisk, copy, request, restore, try_back_up,
};
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tidegate_agent::recover::{VerifyReport, VerifySettings, note_damage, verify};
use tidegate_agent::repository::Repository;
use tidegate_agent::source::Source;
use tidegate_agent::store::{Store, StoreSettings};
use tidegate_agent::{Error, Kind, Result};
use tidegate_protocol::ids::PointId;
use tidegate_protocol::pack::{PackHeader, PackKind};
use tidegate_protocol::{checkpoint, descriptor, record};
use tokio_util::sync::CancellationToken;

pub(crate) const PACK_BYTES: u32 = 1 << 20;

/// The log: three keys, then a point each.
pub(crate) const POINTS: usize = 3;
pub(crate) const FIRST_POINT: u64 = 4;
pub(crate) const LAST_POINT: u64 = FIRST_POINT + POINTS as u64 - 1;

/// What is done to an object, or to two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Edit {
    Delete(String),
    Truncate(String),
    Flip(String),
    /// Each holds what the other held.
    Swap(String, String),
    /// The first holds what the second does: an older state of it.
    Older(String, String),
    /// It holds these bytes.
    Replace(String, Vec<u8>),
    /// All of these are gone.
    Cut(Vec<String>),
}

impl Edit {
    /// A copy of the bucket with the edit done.
    pub(crate) async fn of(&self, bucket: &InMemory) -> Arc<InMemory> {
        let bucket = bucket.fork();
        match self {
            Self::Delete(key) => delete(&bucket, key).await,
            Self::Truncate(key) => {
                let bytes = read(&bucket, key).await;
                write(&bucket, key, &bytes[..bytes.len() / 2]).await;
            }
            Self::Flip(key) => {
                let mut bytes = read(&bucket, key).await;
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                write(&bucket, key, &bytes).await;
            }
            Self::Swap(a, b) => {
                let (in_a, in_b) = (read(&bucket, a).await, read(&bucket, b).await);
                assert_ne!(in_a, in_b);
                write(&bucket, a, &in_b).await;
                write(&bucket, b, &in_a).await;
            }
            Self::Older(key, older) => {
                let bytes = read(&bucket, older).await;
                assert_ne!(bytes, read(&bucket, key).await);
                write(&bucket, key, &bytes).await;
            }
            Self::Replace(key, bytes) => write(&bucket, key, bytes).await,
            Self::Cut(keys) => {
                for key in keys {
                    delete(&bucket, key).await;
                }
            }
        }
        Arc::new(bucket)
    }

    /// What an error may name: the objects themselves, and of records the next ones, at which a
    /// broken chain shows.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names = match self {
            Self::Delete(key) | Self::Truncate(key) | Self::Flip(key) => vec![key.clone()],
            Self::Older(key, _) | Self::Replace(key, _) => vec![key.clone()],
            Self::Swap(a, b) => vec![a.clone(), b.clone()],
            Self::Cut(keys) => keys.clone(),
        };
        let numbers: Vec<u64> = names
            .iter()
            .filter_map(|key| record::number_of(key))
            .collect();
        names.extend(numbers.iter().map(|number| record::object_key(number + 1)));
        if names.iter().any(|name| name == descriptor::OBJECT_KEY) {
            names.push("there is no repository".to_owned());
            names.push("the key does not belong to this repository".to_owned());
        }
        names
    }
}

pub(crate) async fn read(bucket: &InMemory, key: &str) -> Vec<u8> {
    let found = bucket.get(&ObjectPath::from(key)).await.unwrap();
    found.bytes().await.unwrap().to_vec()
}

pub(crate) async fn write(bucket: &InMemory, key: &str, bytes: &[u8]) {
    let payload = PutPayload::from(bytes.to_vec());
    bucket.put(&ObjectPath::from(key), payload).await.unwrap();
}

pub(crate) async fn delete(bucket: &InMemory, key: &str) {
    bucket.delete(&ObjectPath::from(key)).await.unwrap();
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Points,
    Restore,
    Backup,
    Verify,
    /// Verify, note what was found, and back up.
    Heal,
}

pub(crate) const VERBS: [Verb; 5] = [
    Verb::Points,
    Verb::Restore,
    Verb::Backup,
    Verb::Verify,
    Verb::Heal,
];

/// Whether the machine has seen the repository before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cache {
    Fresh,
    Warm,
}

/// A repository of a machine with three points, and the cache of the host that made them.
pub(crate) struct World {
    pub(crate) bucket: InMemory,
    pub(crate) lab: Lab,
    /// The cache as it was in the middle of it all, as a crash leaves it: after the first point, and after
    /// the last.
    pub(crate) crashed: [tempfile::TempDir; 2],
    /// The points and what they hold, oldest first.
    pub(crate) points: Vec<(PointId, TiledDisk)>,
}

impl World {
    pub(crate) async fn new() -> Self {
        let bucket = Arc::new(InMemory::new());
        let store = Store::from_object_store(bucket.clone(), "", "bucket", &settings());
        let lab = Lab::on(&store).await;
        let tiles = 8 * MIB / TILE_BYTES;
        let mut disk = TiledDisk::new(8 * MIB, |index| match index {
            10..20 | 120.. => Tile::Hole,
            _ => Tile::Data(index),
        });
        let mut points = Vec::new();
        let crashed = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        {
            let repository = lab.open().await;
            for round in 1..=POINTS as u64 {
                let request = request("web", Arc::new(disk.clone()), Some(PACK_BYTES));
                let summary = try_back_up(&repository, request).await.unwrap();
                points.push((summary.point.unwrap(), disk.clone()));
                if round == 1 {
                    copy_folder(lab.cache.path(), crashed[0].path());
                }
                // Only in the second leaf, the first is shared by all points; and nothing goes, so
                // that what was lost can be found again in the disk: with a hole on either side,
                // or it would be cut otherwise beside the next change.
                disk = disk.with([(tiles - 2 * round, Tile::Data(1000 + round))]);
            }
            copy_folder(lab.cache.path(), crashed[1].path());
        }
        Self {
            bucket: bucket.fork(),
            lab,
            crashed,
            points,
        }
    }

    /// The same repository with checkpoints at its last two records.
    pub(crate) async fn with_checkpoints(&self) -> InMemory {
        let whole = self.bucket.fork();
        for number in [LAST_POINT - 1, LAST_POINT] {
            let later = (number + 1..=LAST_POINT).map(record::object_key);
            let bucket = Edit::Cut(later.collect()).of(&self.bucket).await;
            let cache = tempfile::tempdir().unwrap();
            let repository = self.open(bucket.clone(), cache.path()).await.unwrap();
            repository.write_checkpoint().await.unwrap();
            let key = checkpoint::object_key(number);
            write(&whole, &key, &read(&bucket, &key).await).await;
        }
        whole
    }

    pub(crate) async fn open(
        &self,
        bucket: Arc<InMemory>,
        cache: &Path,
    ) -> Result<Arc<Repository>> {
        let store = Store::from_object_store(bucket, "", "bucket", &settings());
        Repository::open(store, copy(&self.lab.keys.restore), cache)
            .await
            .map(Arc::new)
    }

    /// A cache folder for one try.
    pub(crate) fn cache(&self, cache: Cache) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        if cache == Cache::Warm {
            copy_folder(self.lab.cache.path(), folder.path());
        }
        folder
    }

    /// The disk after the next change, in the second leaf again.
    pub(crate) fn next_disk(&self) -> TiledDisk {
        self.points[POINTS - 1].1.with([(121, Tile::Data(5000))])
    }

    /// Runs a verb on a damaged repository and says in a few words what came of it. `names` are the
    /// objects one of which an error must name.
    pub(crate) async fn outcome(
        &self,
        verb: Verb,
        bucket: Arc<InMemory>,
        cache: &Path,
        names: &[String],
    ) -> String {
        match self.run(verb, bucket, cache, names).await {
            Ok(outcome) => outcome,
            Err(error) => judged(&error, names),
        }
    }

    pub(crate) async fn run(
        &self,
        verb: Verb,
        bucket: Arc<InMemory>,
        cache: &Path,
        names: &[String],
    ) -> Result<String> {
        let repository = self.open(bucket.clone(), cache).await?;
        let points = repository.points(None)?;
        match verb {
            Verb::Points => {}
            Verb::Restore => {
                let failed = self.restore_all(&repository, names).await?;
                if let Some(failure) = failed.first() {
                    return Ok(format!("{failure} ×{}", failed.len()));
                }
            }
            Verb::Backup => return self.back_up_and_restore(&repository, bucket).await,
            Verb::Verify => {
                if names_damage(&look_through(&repository).await?, names) {
                    return Ok("names it".to_owned());
                }
            }
            Verb::Heal => {
                let report = look_through(&repository).await?;
                note_damage(&repository, &report).await?;
                let outcome = self
                    .back_up_and_restore(&repository, bucket.clone())
                    .await?;
                let cache = tempfile::tempdir().unwrap();
                let elsewhere = self.open(bucket, cache.path()).await?;
                let report = look_through(&elsewhere).await?;
                let failed = self.restore_all(&elsewhere, names).await?;
                // What verify says of points, restores must find to be so.
                let touched: BTreeSet<&str> = report
                    .damages
                    .iter()
                    .flat_map(|damage| damage.touches.iter().map(|touched| touched.point.as_str()))
                    .collect();
                assert_eq!(touched.len(), failed.len(), "{report:?}, {failed:?}");
                if let Some(failure) = failed.first() {
                    return Ok(format!("{outcome}, older {failure} ×{}", failed.len()));
                }
                if names_damage(&report, names) {
                    return Ok(format!("{outcome}, verify names it"));
                }
                return Ok(outcome);
            }
        }
        Ok(match points.len() {
            POINTS => "works".to_owned(),
            fewer => format!("{fewer} points"),
        })
    }

    /// Restores every point that is known, each onto a target that checks every byte. Returns what
    /// went wrong.
    pub(crate) async fn restore_all(
        &self,
        repository: &Arc<Repository>,
        names: &[String],
    ) -> Result<Vec<String>> {
        let mut failed = Vec::new();
        for point in repository.points(None)? {
            let Some((_, expected)) = self.points.iter().find(|(id, _)| *id == point.id) else {
                continue;
            };
            let disk = point.disk(None)?;
            let target = ExpectingTarget::new(expected);
            if disk.size_bytes != expected.size_bytes() {
                failed.push(format!("a disk of {} bytes", disk.size_bytes));
                continue;
            }
            match restore(repository, disk, target.clone()).await {
                Ok(_) => target.assert_complete(),
                Err(error) => failed.push(judged(&error, names)),
            }
        }
        Ok(failed)
    }

    /// A backup that succeeds must have made a point that another machine restores. Where it has
    /// not, that is said.
    pub(crate) async fn back_up_and_restore(
        &self,
        repository: &Arc<Repository>,
        bucket: Arc<InMemory>,
    ) -> Result<String> {
        let disk = self.next_disk();
        let mut request = request("web", Arc::new(disk.clone()), Some(PACK_BYTES));
        // As after a night.
        request.settings.listing_age_max = Duration::ZERO;
        let summary = try_back_up(repository, request).await?;
        let cache = tempfile::tempdir().unwrap();
        let elsewhere = match self.open(bucket, cache.path()).await {
            Ok(elsewhere) => elsewhere,
            Err(error) => return Ok(format!("commits, elsewhere {}", error.kind().as_str())),
        };
        let points = elsewhere.points(None)?;
        let newest = points
            .iter()
            .find(|point| Some(point.id) == summary.point)
            .unwrap();
        let target = ExpectingTarget::new(&disk);
        Ok(
            match restore(&elsewhere, newest.disk(None)?, target.clone()).await {
                Ok(_) => {
                    target.assert_complete();
                    "works".to_owned()
                }
                Err(error) => format!("commits, restore {}", error.kind().as_str()),
            },
        )
    }
}

/// Whether there is damage. Each must name what was damaged, and what it touches.
#[track_caller]
pub(crate) fn names_damage(report: &VerifyReport, names: &[String]) -> bool {
    for damage in &report.damages {
        assert!(
            names.iter().any(|name| damage.object.contains(name)),
            "{damage:?} does not name one of {names:?}"
        );
        // Without a segment every point restores.
        assert!(
            damage.object.starts_with("index/") || !damage.touches.is_empty(),
            "{damage:?}"
        );
    }
    !report.damages.is_empty()
}

pub(crate) async fn look_through(repository: &Arc<Repository>) -> Result<VerifyReport> {
    verify(
        repository,
        &repository.points(None)?,
        &VerifySettings::default(),
        Arc::default(),
        CancellationToken::new(),
    )
    .await
}

/// Patience is not what is tested.
pub(crate) fn settings() -> StoreSettings {
    StoreSettings {
        operation_deadline: Duration::from_secs(5),
        ..StoreSettings::default()
    }
}

/// An error in a word, after its text was looked at.
#[track_caller]
pub(crate) fn judged(error: &Error, names: &[String]) -> String {
    let is_damage = matches!(error.kind(), Kind::Corrupt | Kind::Missing | Kind::Denied);
    assert!(is_damage, "{error:?}");
    assert!(error.advice().is_some(), "{error:?} says not what to do");
    let text = error.chain();
    assert!(
        names.iter().any(|name| text.contains(name)),
        "{error:?} does not name one of {names:?}"
    );
    error.kind().as_str().to_owned()
}

pub(crate) fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let there = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &there);
        } else {
            std::fs::copy(&path, &there).unwrap();
        }
    }
}

pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

pub(crate) async fn keys_below(bucket: &InMemory, prefix: &str) -> Vec<(String, Vec<u8>)> {
    use futures::TryStreamExt;
    let listed: Vec<_> = bucket
        .list(Some(&ObjectPath::from(prefix)))
        .try_collect()
        .await
        .unwrap();
    let mut found = Vec::new();
    for entry in listed {
        let bytes = bucket
            .get(&entry.location)
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap();
        found.push((entry.location.to_string(), bytes.to_vec()));
    }
    found.sort();
    found
}

/// The packs of a kind, the largest first: that one is of the first point, and needed by all.
pub(crate) async fn packs_of(bucket: &InMemory, kind: PackKind) -> Vec<String> {
    let mut packs = keys_below(bucket, "packs").await;
    packs.retain(|(_, bytes)| PackHeader::decode(bytes).unwrap().kind == kind);
    largest_first(packs)
}

/// The index segments, the largest first.
pub(crate) async fn segments_of(bucket: &InMemory) -> Vec<String> {
    largest_first(keys_below(bucket, "index").await)
}

pub(crate) fn largest_first(mut objects: Vec<(String, Vec<u8>)>) -> Vec<String> {
    objects.sort_by_key(|(_, bytes)| std::cmp::Reverse(bytes.len()));
    objects.into_iter().map(|(key, _)| key).collect()
}

/// A line for each edit and each state of the cache: what became of each verb.
pub(crate) async fn table(world: &World, cases: &[(String, &InMemory, Edit)]) -> String {
    let mut table = String::new();
    for (name, bucket, edit) in cases {
        let names = edit.names();
        for cache in [Cache::Fresh, Cache::Warm] {
            let mut outcomes = Vec::new();
            for verb in VERBS {
                let bucket = edit.of(bucket).await;
                let folder = world.cache(cache);
                outcomes.push(world.outcome(verb, bucket, folder.path(), &names).await);
            }
            table += &format!("{name}, {cache:?}: {}\n", outcomes.join(" | "));
        }
    }
    table
}

#[track_caller]
pub(crate) fn assert_table(found: &str, expected: &str) {
    println!("{found}");
    for (found, expected) in found.lines().zip(expected.lines()) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.lines().count(), expected.lines().count());
}
