//! A history comes true: every step is done to the model, and to a real repository by the real engine,
//! and what the engine says is compared with what the model knows.
//!
//! Three hosts with a cache each: two with host keys, which back up, and one with a restore key.

use super::disk::{Allocation, Disk, Frozen, Onto as Memory};
use super::history::{End, Fill, History, Onto, Random, Step};
use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tidegate_agent::progress::Progress;
use tidegate_agent::recover::{
    DiffKind, RestoreMode, RestoreSettings, VerifySettings, diff, export, restore_disk, verify,
};
use tidegate_agent::replicate::{
    BackupRequest, BackupSettings, BackupSummary, DiskToBackUp, backup,
};
use tidegate_agent::repository::{Point, PointDisk, Repository};
use tidegate_agent::store::fault::{Fault, Operation};
use tidegate_agent::store::{Store, StoreSettings};
use tidegate_agent::target::{self, Target};
use tidegate_agent::{Error, Kind, Result};
use tidegate_protocol::ids::PointId;
use tidegate_protocol::key_file;
use tidegate_protocol::keys::Keys;
use tokio_util::sync::CancellationToken;

/// The host with the restore key.
const VAULT: usize = 2;
const MACHINES: usize = 3;
const DISKS_EACH_MAX: usize = 3;

/// Data on a disk beyond which writes are left out: histories are to be many, not large.
const DATA_BYTES_MAX: u64 = 24 << 20;

/// Largest disk that is restored to a file.
const FILE_BYTES_MAX: u64 = 24 << 20;

/// Why a history does not go on.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The engine does not do what it should.
    Wrong(String),
    /// The operator asks to stop.
    Stopped,
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Wrong(format!("{:?}: {}", error.kind(), error.chain()))
    }
}

type Outcome<T = ()> = std::result::Result<T, Trouble>;

fn wrong<T>(what: impl Into<String>) -> Outcome<T> {
    Err(Trouble::Wrong(what.into()))
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub(crate) struct Done {
    pub(crate) histories: u64,
    pub(crate) steps: u64,
    pub(crate) backups: u64,
    pub(crate) interrupted: u64,
    pub(crate) restores: u64,
    pub(crate) diffs: u64,
    pub(crate) verifies: u64,
    pub(crate) restored_bytes: u64,
    pub(crate) faults: u64,
}

impl Done {
    pub(crate) fn add(&mut self, other: &Self) {
        self.histories += other.histories;
        self.steps += other.steps;
        self.backups += other.backups;
        self.interrupted += other.interrupted;
        self.restores += other.restores;
        self.diffs += other.diffs;
        self.verifies += other.verifies;
        self.restored_bytes += other.restored_bytes;
        self.faults += other.faults;
    }
}

/// How a life went.
pub(crate) struct Lived {
    pub(crate) done: Done,
    /// Where and why it did not go on.
    pub(crate) outcome: std::result::Result<(), (usize, Trouble)>,
}

impl Lived {
    /// What went wrong, if something did.
    pub(crate) fn wrong(&self) -> Option<&str> {
        match &self.outcome {
            Err((_, Trouble::Wrong(what))) => Some(what),
            _ => None,
        }
    }
}

/// Lives through a history.
///
/// # Errors
/// Where no repository can be made at `place`.
pub(crate) async fn live(
    history: &History,
    place: Option<&str>,
    sabotage: Option<Sabotage>,
    stop: &CancellationToken,
) -> Result<Lived> {
    let mut world = World::new(history, place, sabotage, stop.clone()).await?;
    let mut outcome = Ok(());
    for (number, step) in &history.steps {
        if stop.is_cancelled() {
            outcome = Err((*number, Trouble::Stopped));
            break;
        }
        tracing::debug!(number, ?step, "soak");
        if let Err(trouble) = world.step(step).await {
            outcome = Err((*number, trouble));
            break;
        }
        world.done.steps += 1;
    }
    if outcome.is_ok() {
        let last = history.steps.last().map_or(0, |(number, _)| *number);
        outcome = world.end().await.map_err(|trouble| (last, trouble));
    }
    world.done.faults = world.faults.load(Ordering::Relaxed);
    Ok(Lived {
        done: world.done,
        outcome,
    })
}

/// A lie told to the engine, for the tests of the soak itself: it must be found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// Backups are given disks in which this byte of every text file is another.
    Source,
}

/// A machine's disks, by name.
type Disks = Vec<(String, Disk)>;

struct Committed {
    id: PointId,
    machine: usize,
    disks: Disks,
}

struct Host {
    keys: Keys,
    cache: PathBuf,
    repository: Option<Arc<Repository>>,
}

struct World {
    folder: TempDir,
    store: Store,
    hosts: Vec<Host>,
    machines: Vec<Disks>,
    points: Vec<Committed>,
    one_fault_in: u64,
    seed: u64,
    faults: Arc<AtomicU64>,
    sabotage: Option<Sabotage>,
    stop: CancellationToken,
    done: Done,
    stores_opened: u64,
}

impl World {
    async fn new(
        history: &History,
        place: Option<&str>,
        sabotage: Option<Sabotage>,
        stop: CancellationToken,
    ) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("tidegate-soak-")
            .tempdir()
            .map_err(|error| Error::io("cannot make a temporary folder", error))?;
        let store = match place {
            None => Store::memory(),
            Some(place) => Store::open(place, &StoreSettings::default())?,
        };
        let mut files = Vec::new();
        Repository::init(&store, history.chunker, |keys| {
            files = [&keys.host, &keys.host, &keys.restore]
                .map(key_file::encode)
                .to_vec();
            Ok(())
        })
        .await?;
        let mut hosts = Vec::new();
        for (number, file) in files.iter().enumerate() {
            let keys = key_file::decode(file);
            hosts.push(Host {
                keys: keys
                    .map_err(|error| Error::new(Kind::Bug, "a fresh key").caused_by(error))?,
                cache: folder.path().join(format!("cache-{number}")),
                repository: None,
            });
        }
        Ok(Self {
            folder,
            store,
            hosts,
            machines: vec![Disks::new(); MACHINES],
            points: Vec::new(),
            one_fault_in: history.one_fault_in,
            seed: history.seed,
            faults: Arc::default(),
            sabotage,
            stop,
            done: Done {
                histories: 1,
                ..Done::default()
            },
            stores_opened: 0,
        })
    }

    async fn step(&mut self, step: &Step) -> Outcome {
        match *step {
            Step::AddDisk {
                machine,
                size_bytes,
            } => self.add_disk(machine, size_bytes),
            Step::Write {
                disk,
                at,
                length,
                fill,
            } => {
                let sabotaged = self.sabotage.is_some() && matches!(fill, Fill::Text(_));
                if let Some(disk) = self.disk(disk)
                    && disk.data_bytes() < DATA_BYTES_MAX
                {
                    let at = at.on(disk.size_bytes());
                    let mut bytes = fill.bytes(usize::try_from(length).unwrap_or(0));
                    if sabotaged && let Some(byte) = bytes.first_mut() {
                        *byte = SABOTAGED;
                    }
                    disk.write(at, &bytes);
                }
            }
            Step::Zero { disk, at, length } => {
                if let Some(disk) = self.disk(disk) {
                    let at = at.on(disk.size_bytes());
                    disk.zero(at..at.saturating_add(length));
                }
            }
            Step::Resize { disk, size_bytes } => {
                if let Some(disk) = self.disk(disk) {
                    disk.resize(size_bytes);
                }
            }
            Step::Copy {
                from,
                to,
                from_at,
                to_at,
                length,
            } => {
                let Some(source) = self.disk(from).cloned() else {
                    return Ok(());
                };
                let at = from_at.on(source.size_bytes());
                let length = length.min(source.size_bytes() - at);
                let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
                source.read(at, &mut bytes);
                if let Some(disk) = self.disk(to) {
                    disk.write(to_at.on(disk.size_bytes()), &bytes);
                }
            }
            Step::BackUp {
                machine,
                host,
                end,
                draw,
            } => return self.back_up(machine, host, end, draw).await,
            Step::Restore {
                point,
                disk,
                onto,
                draw,
            } => return self.restore(point, disk, onto, draw).await,
            Step::Diff {
                host,
                from,
                to,
                disk,
            } => return self.diff(host, from, to, disk).await,
            Step::Export { point, disk, draw } => return self.export(point, disk, draw).await,
            Step::Verify { points } => return self.verify(points).await,
            Step::Reopen { host } => {
                let host = index(host, self.hosts.len());
                self.hosts[host].repository = None;
                return self.check_points(host).await;
            }
            Step::LoseCache { host } => {
                let host = index(host, self.hosts.len());
                self.hosts[host].repository = None;
                if let Err(error) = std::fs::remove_dir_all(&self.hosts[host].cache)
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    return Err(Error::io("cannot remove a cache", error).into());
                }
                return self.check_points(host).await;
            }
            Step::Checkpoint => {
                let vault = self.repository(VAULT).await?;
                vault.write_checkpoint().await?;
            }
        }
        Ok(())
    }

    /// Everything is still there, as a host finds it that has never seen the repository.
    async fn end(&mut self) -> Outcome {
        self.one_fault_in = 0;
        for host in 0..self.hosts.len() {
            self.hosts[host].repository = None;
            self.check_points(host).await?;
        }
        for point in 0..self.points.len() as u64 {
            for disk in 0..DISKS_EACH_MAX as u64 {
                self.restore(point, disk, Onto::New, point).await?;
            }
        }
        self.verify(u64::MAX).await
    }

    fn add_disk(&mut self, machine: u64, size_bytes: u64) {
        let machine = index(machine, self.machines.len());
        let disks = &mut self.machines[machine];
        if disks.len() < DISKS_EACH_MAX {
            disks.push((format!("d{}", disks.len()), Disk::new(size_bytes)));
        }
    }

    /// A disk of any machine.
    fn disk(&mut self, number: u64) -> Option<&mut Disk> {
        let mut all: Vec<&mut Disk> = self
            .machines
            .iter_mut()
            .flat_map(|disks| disks.iter_mut().map(|(_, disk)| disk))
            .collect();
        if all.is_empty() {
            return None;
        }
        let number = index(number, all.len());
        Some(all.swap_remove(number))
    }

    async fn repository(&mut self, host: usize) -> Outcome<Arc<Repository>> {
        if let Some(repository) = &self.hosts[host].repository {
            let repository = Arc::clone(repository);
            repository.refresh().await?;
            return Ok(repository);
        }
        let store = self.store_with_weather();
        let repository = self.open(host, store).await?;
        self.hosts[host].repository = Some(Arc::clone(&repository));
        Ok(repository)
    }

    async fn open(&self, host: usize, store: Store) -> Outcome<Arc<Repository>> {
        let host = &self.hosts[host];
        let keys = key_file::decode(&key_file::encode(&host.keys))
            .map_err(|error| Error::new(Kind::Bug, "a key in memory").caused_by(error))?;
        let repository = Repository::open(store, keys, &host.cache).await?;
        Ok(Arc::new(repository))
    }

    /// The store as a host sees it: now and then a request or an answer is lost, or a body breaks off.
    fn store_with_weather(&mut self) -> Store {
        let settings = StoreSettings {
            backoff_first: Duration::from_millis(1),
            backoff_max: Duration::from_millis(4),
            ..StoreSettings::default()
        };
        self.stores_opened += 1;
        let (store, script) = self.store.with_faults(&settings);
        let mut random = Random::new(self.seed ^ self.stores_opened);
        let (one_in, faults) = (self.one_fault_in, Arc::clone(&self.faults));
        script.script(move |call| {
            if one_in == 0 || !random.one_in(one_in) {
                return None;
            }
            faults.fetch_add(1, Ordering::Relaxed);
            Some(match random.below(3) {
                0 => Fault::Lose,
                1 if call.operation == Operation::Get => Fault::CutOff(random.below(2048)),
                _ => Fault::LoseAnswer,
            })
        });
        store
    }

    async fn back_up(&mut self, machine: u64, host: u64, end: End, draw: u64) -> Outcome {
        let machine = index(machine, self.machines.len());
        let host = index(host, self.hosts.len());
        if self.machines[machine].is_empty() {
            return Ok(());
        }
        let stop = CancellationToken::new();
        let request = self.request(machine, end, draw, &stop);
        let disks = self.machines[machine].clone();
        let repository = match end {
            End::Own | End::Stopped { .. } => self.repository(host).await?,
            // Another process with the same cache.
            End::Dies {
                calls,
                after_effect,
            } => {
                let settings = StoreSettings {
                    request_timeout: Duration::from_millis(100),
                    operation_deadline: Duration::from_millis(4),
                    backoff_first: Duration::from_millis(2),
                    backoff_max: Duration::from_millis(2),
                    ..StoreSettings::default()
                };
                let (store, script) = self.store.with_faults(&settings);
                let repository = self.open(host, store).await?;
                self.faults.fetch_add(1, Ordering::Relaxed);
                match after_effect {
                    true => script.crash_after_effect(calls),
                    false => script.crash_after(calls),
                }
                repository
            }
        };
        let outcome = backup(&repository, request, Arc::default(), stop).await;
        self.done.backups += 1;
        let committed = match outcome {
            Ok(summary) => Some(point_of(&summary)?),
            Err(error) => {
                let expected = match end {
                    End::Own => false,
                    End::Dies { .. } => matches!(error.kind(), Kind::Unavailable | Kind::Io),
                    End::Stopped { .. } => error.kind() == Kind::Interrupted,
                };
                if !expected {
                    return Err(error.into());
                }
                self.done.interrupted += 1;
                // Its last record may stand, and only the answer be lost.
                drop(repository);
                let repository = self.repository(host).await?;
                let known: HashSet<PointId> = self.points.iter().map(|point| point.id).collect();
                let points = repository.points(None)?;
                let mut new = points.iter().filter(|point| !known.contains(&point.id));
                let found = new.next().map(|point| point.id);
                if new.next().is_some() {
                    return wrong("an interrupted backup left two points");
                }
                found
            }
        };
        self.points
            .extend(committed.map(|id| Committed { id, machine, disks }));
        Ok(())
    }

    fn request(
        &self,
        machine: usize,
        end: End,
        draw: u64,
        stop: &CancellationToken,
    ) -> BackupRequest {
        let mut random = Random::new(draw);
        let reads = AtomicU64::new(0);
        let stop = stop.clone();
        let on_read: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
            if let End::Stopped { reads: after } = end
                && reads.fetch_add(1, Ordering::Relaxed) == after
            {
                stop.cancel();
            }
        });
        let allocation = match random.below(3) {
            0 => Allocation::Exact,
            1 => Allocation::Coarse,
            _ => Allocation::All,
        };
        let disks = self.machines[machine].iter().map(|(name, disk)| {
            let mut disk = disk.clone();
            if self.sabotage == Some(Sabotage::Source) {
                sabotage(&mut disk);
            }
            // Reading every hole of a large disk says nothing new.
            let allocation = match disk.size_bytes() > FILE_BYTES_MAX {
                true => Allocation::Exact,
                false => allocation,
            };
            DiskToBackUp {
                name: name.clone(),
                source: Arc::new(Frozen {
                    disk,
                    allocation,
                    on_read: Arc::clone(&on_read),
                }),
                format: "raw".to_owned(),
            }
        });
        BackupRequest {
            machine: name_of(machine),
            disks: disks.collect(),
            host: "soak".to_owned(),
            dry_run: false,
            settings: BackupSettings {
                workers: 1 + usize::try_from(random.below(3)).unwrap_or(0),
                compression_level: 1,
                pack_bytes: (64 << 10) << random.below(5),
                uploads_in_flight: 1 + usize::try_from(random.below(3)).unwrap_or(0),
                ..BackupSettings::default()
            },
        }
    }

    /// What a host lists is what was committed.
    async fn check_points(&mut self, host: usize) -> Outcome {
        let repository = self.repository(host).await?;
        let listed: HashSet<PointId> = repository
            .points(None)?
            .iter()
            .map(|point| point.id)
            .collect();
        let known: HashSet<PointId> = self.points.iter().map(|point| point.id).collect();
        match listed == known {
            true => Ok(()),
            false => wrong(format!(
                "host {host} lists {} points, {} were committed, {} are in both",
                listed.len(),
                known.len(),
                listed.intersection(&known).count()
            )),
        }
    }

    /// One of the points, as the repository and as the model have it, and one of its disks.
    async fn find(
        &mut self,
        repository: &Repository,
        point: u64,
        disk: u64,
    ) -> Outcome<Option<(PointDisk, Disk)>> {
        if self.points.is_empty() {
            return Ok(None);
        }
        let committed = &self.points[index(point, self.points.len())];
        let machine = name_of(committed.machine);
        let (name, content) = &committed.disks[index(disk, committed.disks.len())];
        let point: Option<Point> = repository
            .points(Some(&machine))?
            .into_iter()
            .find(|point| point.id == committed.id);
        let Some(point) = point else {
            return wrong(format!("{machine} lacks point {}", committed.id.short()));
        };
        let found = point.disk(Some(name))?.clone();
        if point.disks.len() != committed.disks.len() || found.size_bytes != content.size_bytes() {
            return wrong(format!(
                "{machine}@{} has other disks than were backed up",
                committed.id.short()
            ));
        }
        Ok(Some((found, content.clone())))
    }

    async fn restore(&mut self, point: u64, disk: u64, onto: Onto, draw: u64) -> Outcome {
        let repository = self.repository(VAULT).await?;
        let Some((disk, content)) = self.find(&repository, point, disk).await? else {
            return Ok(());
        };
        let (before, mode) = self.before(onto, &content);
        let to_file = matches!(onto, Onto::File | Onto::FileInPlace(_))
            && content.size_bytes() <= FILE_BYTES_MAX;
        let mut random = Random::new(draw);
        let settings = RestoreSettings {
            fetches_in_flight: 1 + usize::try_from(random.below(4)).unwrap_or(0),
            verify: random.one_in(4),
        };
        let memory = Memory::holding(before.clone());
        let path = self.folder.path().join("restored.raw");
        let target: Arc<dyn Target> = match to_file {
            false => Arc::clone(&memory) as Arc<dyn Target>,
            true => file_target(&path, &before, mode, content.size_bytes()).await?,
        };
        let progress = Arc::new(Progress::default());
        let stop = self.stop.clone();
        let work = Arc::clone(&target);
        let restored =
            restore_disk(&repository, &disk, work, mode, &settings, progress, stop).await;
        if self.stop.is_cancelled() {
            return Err(Trouble::Stopped);
        }
        let summary = restored?;
        let found = match to_file {
            false => memory.disk(),
            true => finished_file(target, &path, content.size_bytes()).await?,
        };
        self.done.restores += 1;
        self.done.restored_bytes += summary.data_bytes;
        match content.first_difference(&found, &(0..content.size_bytes())) {
            Some(at) => wrong(format!(
                "byte {at} of the restored disk is wrong ({mode:?})"
            )),
            None => Ok(()),
        }
    }

    /// What a target holds before the restore.
    fn before(&self, onto: Onto, content: &Disk) -> (Disk, RestoreMode) {
        let size = content.size_bytes();
        let spoilt = |mut disk: Disk, draw| {
            let mut random = Random::new(draw);
            disk.resize(size);
            for _ in 0..random.below(5) {
                let length = usize::try_from(random.below(30_000)).unwrap_or(0);
                let at = random.below(size);
                match random.one_in(3) {
                    true => disk.zero(at..at + length as u64),
                    false => disk.write(at, &Fill::Noise(random.next()).bytes(length)),
                }
            }
            disk
        };
        match onto {
            Onto::New | Onto::File => (Disk::new(size), RestoreMode::New),
            Onto::Dirty => {
                let mut disk = Disk::new(size);
                let bytes = size.min(1 << 20);
                let noise = Fill::Byte(0xd1).bytes(usize::try_from(bytes).unwrap_or(0));
                disk.write(0, &noise);
                disk.write(size - bytes, &noise);
                (disk, RestoreMode::New)
            }
            Onto::OtherPoint(number) => {
                let other = &self.points[index(number, self.points.len())];
                let (_, disk) = &other.disks[index(number / 100, other.disks.len())];
                (spoilt(disk.clone(), 0), RestoreMode::InPlace)
            }
            Onto::Spoilt(draw) | Onto::FileInPlace(draw) => {
                (spoilt(content.clone(), draw), RestoreMode::InPlace)
            }
        }
    }

    async fn diff(&mut self, host: u64, from: u64, to: u64, disk: u64) -> Outcome {
        let host = index(host, self.hosts.len());
        let repository = self.repository(host).await?;
        let a = self.find(&repository, from, disk).await?;
        let b = self.find(&repository, to, disk).await?;
        let (Some((from, was)), Some((to, is))) = (a, b) else {
            return Ok(());
        };
        let found = diff(&repository, &from, &to).await?;
        self.done.diffs += 1;
        let common = was.size_bytes().min(is.size_bytes());
        let longer = was.size_bytes().max(is.size_bytes());
        let mut at = 0;
        for extent in &found {
            let range = extent.start..extent.start + extent.length;
            if range.start < at || range.is_empty() || range.end > longer {
                return wrong(format!(
                    "the diff's {range:?} overlaps, is empty or lies outside"
                ));
            }
            equal(&was, &is, at..range.start.min(common))?;
            let fits = match extent.kind {
                DiffKind::Changed => range.end <= common,
                DiffKind::Zeroed => range.end <= common && is.is_zero(&range),
                DiffKind::Added => range == (common..longer) && is.size_bytes() == longer,
                DiffKind::Removed => range == (common..longer) && was.size_bytes() == longer,
            };
            if !fits {
                return wrong(format!("the diff calls {range:?} {:?}", extent.kind));
            }
            at = range.end;
        }
        equal(&was, &is, at..common)?;
        if at < longer && common < longer {
            return wrong("the diff does not say that the sizes differ");
        }
        if was == is && !found.is_empty() {
            return wrong(format!(
                "the diff of equal disks has {} extents",
                found.len()
            ));
        }
        Ok(())
    }

    async fn export(&mut self, point: u64, disk: u64, draw: u64) -> Outcome {
        let repository = self.repository(VAULT).await?;
        let Some((disk, content)) = self.find(&repository, point, disk).await? else {
            return Ok(());
        };
        let export = export(&repository, &disk)?;
        if export.size_bytes() != content.size_bytes() {
            return wrong("the export has another size than the disk");
        }
        let mut random = Random::new(draw);
        for _ in 0..1 + random.below(6) {
            let offset = random.below(content.size_bytes());
            let length = random.below(300_000).min(content.size_bytes() - offset);
            let read = export
                .read(offset, u32::try_from(length).unwrap_or(0))
                .await?;
            let mut expected = vec![0; read.len()];
            content.read(offset, &mut expected);
            if read.len() as u64 != length || *read != *expected {
                return wrong(format!(
                    "{length} bytes at {offset} of the export are wrong"
                ));
            }
            let allocation = export.allocation(offset..offset + length).await?;
            let sound = allocation.iter().try_fold(offset, |at, (range, is_data)| {
                let sound = *is_data || content.is_zero(range);
                (range.start >= at && sound).then_some(range.end)
            });
            if sound.is_none_or(|end| end > offset + length) {
                return wrong(format!(
                    "the export tells of data at {allocation:?}, asked for {length} bytes at {offset}"
                ));
            }
        }
        Ok(())
    }

    /// Verifies the newest points.
    async fn verify(&mut self, points: u64) -> Outcome {
        let repository = self.repository(VAULT).await?;
        let all = repository.points(None)?;
        let skip = all
            .len()
            .saturating_sub(usize::try_from(points).unwrap_or(usize::MAX));
        let settings = VerifySettings::default();
        let (progress, stop) = (Arc::default(), self.stop.clone());
        let verified = verify(&repository, &all[skip..], &settings, progress, stop).await;
        if self.stop.is_cancelled() {
            return Err(Trouble::Stopped);
        }
        let report = verified?;
        self.done.verifies += 1;
        match report.damages.first() {
            Some(damage) => wrong(format!(
                "verify finds {} damaged: {}",
                damage.object, damage.found
            )),
            None if !report.complete => wrong("the verify was not complete"),
            None => Ok(()),
        }
    }
}

/// What the first byte of a text file is while backups are sabotaged, and what they are told instead.
const SABOTAGED: u8 = 0xa7;

fn sabotage(disk: &mut Disk) {
    for data in disk.data(&(0..disk.size_bytes())) {
        let mut byte = [0];
        disk.read(data.start, &mut byte);
        if byte[0] == SABOTAGED {
            disk.write(data.start, &[!SABOTAGED]);
        }
    }
}

fn equal(was: &Disk, is: &Disk, range: Range<u64>) -> Outcome {
    match was.first_difference(is, &range) {
        Some(at) => wrong(format!("the diff does not name byte {at}, which differs")),
        None => Ok(()),
    }
}

/// A number that is there, of `count`, which is not zero.
fn index(number: u64, count: usize) -> usize {
    usize::try_from(number.checked_rem(count as u64).unwrap_or(0)).unwrap_or(0)
}

fn name_of(machine: usize) -> String {
    format!("machine-{machine}")
}

fn point_of(summary: &BackupSummary) -> Outcome<PointId> {
    match summary.point {
        Some(point) => Ok(point),
        None => wrong("a backup that is no dry run made no point"),
    }
}

async fn file_target(
    path: &Path,
    before: &Disk,
    mode: RestoreMode,
    size_bytes: u64,
) -> Outcome<Arc<dyn Target>> {
    let (path, before) = (path.to_owned(), before.clone());
    let made = crate::context::blocking(move || match mode {
        RestoreMode::New => target::create_file(&path, size_bytes, true),
        RestoreMode::InPlace => {
            let mut bytes = vec![0; usize::try_from(size_bytes).unwrap_or(0)];
            before.read(0, &mut bytes);
            std::fs::write(&path, bytes)
                .map_err(|error| Error::io("cannot write a file to restore onto", error))?;
            target::open_in_place(&path, size_bytes)
        }
    });
    Ok(Arc::from(made.await?))
}

async fn finished_file(target: Arc<dyn Target>, path: &Path, size_bytes: u64) -> Outcome<Disk> {
    let path = path.to_owned();
    let bytes = crate::context::blocking(move || {
        target.finish()?;
        std::fs::read(&path).map_err(|error| Error::io("cannot read the restored file", error))
    })
    .await?;
    if bytes.len() as u64 != size_bytes {
        return wrong(format!("the restored file has {} bytes", bytes.len()));
    }
    let mut disk = Disk::new(size_bytes);
    disk.write(0, &bytes);
    Ok(disk)
}
