//! A history comes true: every step is done to the model, and to a real repository by the real engine,
//! and what the engine says is compared with what the model knows.
//!
//! Three hosts with a cache each: two with host keys, which back up, and one with a restore key.

mod back_up;
mod check;

use super::disk::Disk;
use super::history::{Fill, History, Onto, Random, Step};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tidegate_agent::repository::Repository;
use tidegate_agent::store::fault::{Fault, Operation};
use tidegate_agent::store::{Store, StoreSettings};
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
    /// Runs that were interrupted, by name: machine and disks. Their points may be committed yet.
    unknown: HashMap<String, (usize, Disks)>,
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
            unknown: HashMap::new(),
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
        let repository = match &self.hosts[host].repository {
            Some(repository) => {
                let repository = Arc::clone(repository);
                repository.refresh().await?;
                repository
            }
            None => {
                let store = self.store_with_weather();
                self.open(host, store).await?
            }
        };
        self.hosts[host].repository = Some(Arc::clone(&repository));
        self.adopt(&repository)?;
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
}

/// What the first byte of a text file is while backups are sabotaged, and what they are told instead.
const SABOTAGED: u8 = 0xa7;

/// A number that is there, of `count`, which is not zero.
fn index(number: u64, count: usize) -> usize {
    usize::try_from(number.checked_rem(count as u64).unwrap_or(0)).unwrap_or(0)
}

fn name_of(machine: usize) -> String {
    format!("machine-{machine}")
}
