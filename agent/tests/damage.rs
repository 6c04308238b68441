//! Every kind of object, deleted, cut in half, or with one bit flipped, before every verb; then the
//! same for the files of the local cache.
//!
//! What must hold in every cell: what is done is done completely and right, or the error's kind says
//! what to do and its text names the object. Never a wrong byte on a target, never a panic. What
//! each cell comes to beyond that stands in the tables below, so that a change of it is seen.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod lab;

use lab::{
    ExpectingTarget, Lab, MIB, TILE_BYTES, Tile, TiledDisk, copy, request, restore, try_back_up,
};
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use std::collections::BTreeMap;
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

const PACK_BYTES: u32 = 1 << 20;

/// The log: three keys, then a point each.
const POINTS: usize = 3;
const FIRST_POINT: u64 = 4;
const LAST_POINT: u64 = FIRST_POINT + POINTS as u64 - 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Delete,
    Truncate,
    Flip,
}

const DAMAGES: [Damage; 3] = [Damage::Delete, Damage::Truncate, Damage::Flip];

impl Damage {
    /// What is left of an object.
    fn of(self, bytes: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Delete => None,
            Self::Truncate => Some(bytes[..bytes.len() / 2].to_vec()),
            Self::Flip => {
                let mut bytes = bytes.to_vec();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                Some(bytes)
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Points,
    Restore,
    Backup,
    Verify,
    /// Verify, note what was found, and back up.
    Heal,
}

const VERBS: [Verb; 5] = [
    Verb::Points,
    Verb::Restore,
    Verb::Backup,
    Verb::Verify,
    Verb::Heal,
];

/// Whether the machine has seen the repository before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cache {
    Fresh,
    Warm,
}

/// A repository of a machine with three points, and the cache of the host that made them.
struct World {
    bucket: InMemory,
    lab: Lab,
    /// The points and what they hold, oldest first.
    points: Vec<(PointId, TiledDisk)>,
}

impl World {
    async fn new() -> Self {
        let bucket = Arc::new(InMemory::new());
        let store = Store::from_object_store(bucket.clone(), "", "bucket", &settings());
        let lab = Lab::on(&store).await;
        let tiles = 8 * MIB / TILE_BYTES;
        let mut disk = TiledDisk::new(8 * MIB, |index| match index {
            10..20 | 120.. => Tile::Hole,
            _ => Tile::Data(index),
        });
        let mut points = Vec::new();
        {
            let repository = lab.open().await;
            for round in 1..=POINTS as u64 {
                let request = request("web", Arc::new(disk.clone()), Some(PACK_BYTES));
                let summary = try_back_up(&repository, request).await.unwrap();
                points.push((summary.point.unwrap(), disk.clone()));
                // Only in the second leaf, the first is shared by all points; and nothing goes, so
                // that what was lost can be found again in the disk.
                disk = disk.with([(tiles - round, Tile::Data(1000 + round))]);
            }
        }
        Self {
            bucket: bucket.fork(),
            lab,
            points,
        }
    }

    /// The same repository with a checkpoint at its last record.
    async fn with_checkpoint(&self) -> InMemory {
        let bucket = Arc::new(self.bucket.fork());
        let cache = tempfile::tempdir().unwrap();
        let repository = self.open(bucket.clone(), cache.path()).await.unwrap();
        repository.write_checkpoint().await.unwrap();
        bucket.fork()
    }

    async fn open(&self, bucket: Arc<InMemory>, cache: &Path) -> Result<Arc<Repository>> {
        let store = Store::from_object_store(bucket, "", "bucket", &settings());
        Repository::open(store, copy(&self.lab.keys.restore), cache)
            .await
            .map(Arc::new)
    }

    /// A cache folder for one try.
    fn cache(&self, cache: Cache) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        if cache == Cache::Warm {
            copy_folder(self.lab.cache.path(), folder.path());
        }
        folder
    }

    /// The disk after the next change, in the second leaf again.
    fn next_disk(&self) -> TiledDisk {
        self.points[POINTS - 1].1.with([(121, Tile::Data(5000))])
    }

    /// Runs a verb on a damaged repository and says in a few words what came of it. `names` are the
    /// objects one of which an error must name.
    async fn outcome(
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

    async fn run(
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
                let report = look_through(&repository).await?;
                if !report.damages.is_empty() {
                    for damage in &report.damages {
                        assert!(
                            names.iter().any(|name| damage.object.contains(name)),
                            "{damage:?} does not name one of {names:?}"
                        );
                        assert!(!damage.touches.is_empty(), "{damage:?}");
                    }
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
                let failed = self.restore_all(&elsewhere, names).await?;
                if let Some(failure) = failed.first() {
                    return Ok(format!("{outcome}, older {failure} ×{}", failed.len()));
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
    async fn restore_all(
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
    async fn back_up_and_restore(
        &self,
        repository: &Arc<Repository>,
        bucket: Arc<InMemory>,
    ) -> Result<String> {
        let disk = self.next_disk();
        let request = request("web", Arc::new(disk.clone()), Some(PACK_BYTES));
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

async fn look_through(repository: &Arc<Repository>) -> Result<VerifyReport> {
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
fn settings() -> StoreSettings {
    StoreSettings {
        operation_deadline: Duration::from_secs(5),
        ..StoreSettings::default()
    }
}

/// An error in a word, after its text was looked at.
#[track_caller]
fn judged(error: &Error, names: &[String]) -> String {
    assert!(
        matches!(error.kind(), Kind::Corrupt | Kind::Missing),
        "{error:?}"
    );
    let text = error.chain();
    assert!(
        names.iter().any(|name| text.contains(name)),
        "{error:?} does not name one of {names:?}"
    );
    error.kind().as_str().to_owned()
}

fn copy_folder(from: &Path, to: &Path) {
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

fn files(folder: &Path) -> Vec<PathBuf> {
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

async fn keys_below(bucket: &InMemory, prefix: &str) -> Vec<(String, Vec<u8>)> {
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

/// The largest pack of a kind: of the first point, and needed by all.
async fn pack_of(bucket: &InMemory, kind: PackKind) -> String {
    let packs = keys_below(bucket, "packs").await;
    packs
        .into_iter()
        .filter(|(_, bytes)| PackHeader::decode(bytes).unwrap().kind == kind)
        .max_by_key(|(_, bytes)| bytes.len())
        .unwrap()
        .0
}

/// A copy of the bucket in which one object is damaged.
async fn damaged(bucket: &InMemory, key: &str, damage: Damage) -> Arc<InMemory> {
    let bucket = bucket.fork();
    let path = ObjectPath::from(key);
    let bytes = bucket.get(&path).await.unwrap().bytes().await.unwrap();
    match damage.of(&bytes) {
        None => bucket.delete(&path).await.unwrap(),
        Some(bytes) => drop(bucket.put(&path, PutPayload::from(bytes)).await.unwrap()),
    }
    Arc::new(bucket)
}

/// What became of points, restore, backup, verify, and verify with a backup after it.
///
/// - *commits, …*: the backup succeeds, and another machine cannot restore what it made, because of
///   the damage that was there before. A verify finds it, and from then on backups store anew what
///   they meet of a lost pack (last column).
/// - *older …*: so many of the older points cannot be restored then either. Chunks are found in
///   their new place; the pages of an older tree have none.
/// - Whoever never saw the last record cannot miss it: *2 points*.
const EXPECTED: &str = "\
descriptor, Delete, Fresh: missing | missing | missing | missing | missing
descriptor, Delete, Warm: missing | missing | missing | missing | missing
descriptor, Truncate, Fresh: corrupt | corrupt | corrupt | corrupt | corrupt
descriptor, Truncate, Warm: corrupt | corrupt | corrupt | corrupt | corrupt
descriptor, Flip, Fresh: corrupt | corrupt | corrupt | corrupt | corrupt
descriptor, Flip, Warm: corrupt | corrupt | corrupt | corrupt | corrupt
first record, Delete, Fresh: corrupt | corrupt | corrupt | corrupt | corrupt
first record, Delete, Warm: works | works | commits, elsewhere corrupt | corrupt | corrupt
first record, Truncate, Fresh: corrupt | corrupt | corrupt | corrupt | corrupt
first record, Truncate, Warm: works | works | commits, elsewhere corrupt | corrupt | corrupt
first record, Flip, Fresh: corrupt | corrupt | corrupt | corrupt | corrupt
first record, Flip, Warm: works | works | commits, elsewhere corrupt | corrupt | corrupt
middle record, Delete, Fresh: corrupt | corrupt | corrupt | corrupt | corrupt
middle record, Delete, Warm: works | works | commits, elsewhere corrupt | corrupt | corrupt
middle record, Truncate, Fresh: corrupt | corrupt | corrupt | corrupt | corrupt
middle record, Truncate, Warm: works | works | commits, elsewhere corrupt | corrupt | corrupt
middle record, Flip, Fresh: corrupt | corrupt | corrupt | corrupt | corrupt
middle record, Flip, Warm: works | works | commits, elsewhere corrupt | corrupt | corrupt
last record, Delete, Fresh: 2 points | 2 points | works | 2 points | works
last record, Delete, Warm: corrupt | corrupt | corrupt | corrupt | corrupt
last record, Truncate, Fresh: 2 points | 2 points | works | 2 points | works
last record, Truncate, Warm: works | works | commits, elsewhere corrupt | names it | corrupt
last record, Flip, Fresh: 2 points | 2 points | works | 2 points | works
last record, Flip, Warm: works | works | commits, elsewhere corrupt | names it | corrupt
record before a checkpoint, Delete, Fresh: works | works | works | works | works
record before a checkpoint, Delete, Warm: works | works | works | works | works
record before a checkpoint, Truncate, Fresh: works | works | works | works | works
record before a checkpoint, Truncate, Warm: works | works | works | works | works
record before a checkpoint, Flip, Fresh: works | works | works | works | works
record before a checkpoint, Flip, Warm: works | works | works | works | works
checkpoint, Delete, Fresh: works | works | works | works | works
checkpoint, Delete, Warm: works | works | works | works | works
checkpoint, Truncate, Fresh: works | works | works | works | works
checkpoint, Truncate, Warm: works | works | works | works | works
checkpoint, Flip, Fresh: works | works | works | works | works
checkpoint, Flip, Warm: works | works | works | works | works
index segment, Delete, Fresh: works | works | works | works | works
index segment, Delete, Warm: works | works | works | works | works
index segment, Truncate, Fresh: works | works | works | works | works
index segment, Truncate, Warm: works | works | works | works | works
index segment, Flip, Fresh: works | works | works | works | works
index segment, Flip, Warm: works | works | works | works | works
data pack, Delete, Fresh: works | missing ×3 | commits, restore missing | names it | works
data pack, Delete, Warm: works | missing ×3 | commits, restore missing | names it | works
data pack, Truncate, Fresh: works | corrupt ×3 | commits, restore corrupt | names it | works
data pack, Truncate, Warm: works | corrupt ×3 | commits, restore corrupt | names it | works
data pack, Flip, Fresh: works | corrupt ×3 | commits, restore corrupt | names it | works
data pack, Flip, Warm: works | corrupt ×3 | commits, restore corrupt | names it | works
tree pack, Delete, Fresh: works | missing ×3 | works | names it | works, older missing ×3
tree pack, Delete, Warm: works | works | commits, restore missing | names it | works, older missing ×3
tree pack, Truncate, Fresh: works | corrupt ×3 | works | names it | works, older corrupt ×3
tree pack, Truncate, Warm: works | works | commits, restore corrupt | names it | works, older corrupt ×3
tree pack, Flip, Fresh: works | corrupt ×3 | works | names it | works, older corrupt ×3
tree pack, Flip, Warm: works | works | commits, restore corrupt | names it | works, older corrupt ×3
";

#[tokio::test(flavor = "multi_thread")]
async fn damaged_objects_are_named_or_not_needed() {
    let world = World::new().await;
    let plain = &world.bucket;
    let checkpointed = world.with_checkpoint().await;
    let segment = keys_below(plain, "index")
        .await
        .into_iter()
        .max_by_key(|(_, bytes)| bytes.len())
        .unwrap()
        .0;
    let log = record::object_key;
    let cases = [
        ("descriptor", plain, descriptor::OBJECT_KEY.to_owned()),
        ("first record", plain, log(1)),
        ("middle record", plain, log(FIRST_POINT)),
        ("last record", plain, log(LAST_POINT)),
        (
            "record before a checkpoint",
            &checkpointed,
            log(FIRST_POINT),
        ),
        (
            "checkpoint",
            &checkpointed,
            checkpoint::object_key(LAST_POINT),
        ),
        ("index segment", plain, segment),
        ("data pack", plain, pack_of(plain, PackKind::Data).await),
        ("tree pack", plain, pack_of(plain, PackKind::Tree).await),
    ];
    let mut table = String::new();
    for (object, bucket, key) in cases {
        // A broken chain shows at the record after the damaged one.
        let mut names = vec![key.clone()];
        if let Some(number) = record::number_of(&key) {
            names.push(log(number + 1));
        }
        if object == "descriptor" {
            names.push("there is no repository".to_owned());
        }
        for damage in DAMAGES {
            for cache in [Cache::Fresh, Cache::Warm] {
                let mut line = format!("{object}, {damage:?}, {cache:?}:");
                for verb in VERBS {
                    let bucket = damaged(bucket, &key, damage).await;
                    let folder = world.cache(cache);
                    let outcome = world.outcome(verb, bucket, folder.path(), &names).await;
                    let bar = if verb == VERBS[0] { "" } else { " |" };
                    line += &format!("{bar} {outcome}");
                }
                table += &line;
                table += "\n";
            }
        }
    }
    for (found, expected) in table.lines().zip(EXPECTED.lines()) {
        assert_eq!(found, expected);
    }
    assert_eq!(table.lines().count(), EXPECTED.lines().count());
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_the_local_cache_is_mended_or_named() {
    let world = World::new().await;
    let template = world.lab.cache.path();
    let all = files(template);
    let names: Vec<String> = all
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .chain(["log/".to_owned()])
        .collect();
    assert!(names.contains(&"catalogue.sqlite".to_owned()), "{names:?}");
    assert!(
        all.iter()
            .any(|path| path.parent().unwrap().ends_with("tree")),
        "{names:?}"
    );
    for path in &all {
        for damage in DAMAGES {
            for verb in VERBS {
                let folder = world.cache(Cache::Warm);
                let path = folder.path().join(path.strip_prefix(template).unwrap());
                if path.metadata().unwrap().len() == 0 {
                    continue;
                }
                match damage.of(&std::fs::read(&path).unwrap()) {
                    None => std::fs::remove_file(&path).unwrap(),
                    Some(bytes) => std::fs::write(&path, bytes).unwrap(),
                }
                let bucket = Arc::new(world.bucket.fork());
                let outcome = world.outcome(verb, bucket, folder.path(), &names).await;
                // A page of the catalogue that opens and is not sound is named; all else is mended.
                let may_fail = path.ends_with("catalogue.sqlite") && damage == Damage::Flip;
                assert!(
                    outcome == "works" || may_fail && outcome == "corrupt",
                    "{} {damage:?} {verb:?}: {outcome}",
                    path.display()
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_anywhere_in_the_local_catalogue_does_no_harm() {
    let world = World::new().await;
    let template = world.lab.cache_folder().join("catalogue.sqlite");
    let length = std::fs::metadata(&template).unwrap().len() as usize;
    let names = ["catalogue.sqlite", "log/"].map(str::to_owned);
    // Places spread over all pages, and those around what points say of their machine.
    let bytes = std::fs::read(&template).unwrap();
    let mut places: Vec<usize> = (0..80)
        .map(|number| (number * 102_947 + 24) % length)
        .collect();
    let bodies = (0..length).filter(|at| bytes[*at..].starts_with(b"web"));
    places.extend(bodies.flat_map(|at| (at.saturating_sub(40)..length.min(at + 120)).step_by(12)));
    let mut outcomes = BTreeMap::new();
    for (number, place) in places.into_iter().enumerate() {
        let folder = world.cache(Cache::Warm);
        let repository = world.lab.keys.restore.repository().to_string();
        let path = folder.path().join(repository).join("catalogue.sqlite");
        let mut bytes = bytes.clone();
        bytes[place] ^= 1 << (number % 8);
        let verb = VERBS[number % VERBS.len()];
        std::fs::write(&path, bytes).unwrap();
        let bucket = Arc::new(world.bucket.fork());
        let outcome = world.outcome(verb, bucket, folder.path(), &names).await;
        println!(
            "byte {place} of {length}, bit {}, {verb:?}: {outcome}",
            number % 8
        );
        *outcomes.entry(outcome).or_insert(0) += 1;
    }
    println!("{outcomes:?}");
    for outcome in outcomes.keys() {
        assert!(
            ["works", "corrupt"].contains(&outcome.as_str()),
            "{outcomes:?}"
        );
    }
}
