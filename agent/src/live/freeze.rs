//! A machine frozen at one moment, and let go again.
//!
//! Not aware of what is done with its disks. One task owns the connection and the snapshot; it makes
//! the snapshot, watches its scratch space, and ends it as it is told: **retire** when the point is
//! committed, **give up** when it will not be, also when nobody is there to say so any more. The
//! invariants: the guest is never made to wait for us beyond what `nodes` says, and never sees an
//! error of ours; a machine is brought back to where it was by whatever comes, and what a kill
//! leaves, the next connection brings back.

use super::bitmap::{self, Action, Base, Lost, Turn};
use super::machine::{Disk, LeftOut, Machine};
use super::nodes::{self, Node, Server};
use super::qmp::Qmp;
use super::scratch::{Scratch, ScratchSettings};
use super::source::{Broken, LiveSource};
use super::still::{self, Still};
use super::together::{Seat, Step, Together};
use crate::blocking::blocking;
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::qemu;
use crate::source::{Changes, NbdSource, Source};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tidegate_protocol::ids::{PointId, RepositoryId};
use tidegate_protocol::record::Consistency;
use tokio::sync::oneshot;

/// How often the scratch space is looked at.
pub(super) const WATCH_PERIOD: Duration = Duration::from_millis(50);
/// What QEMU calls the socket that it is handed.
const SOCKET_NAME: &str = "tidegate-nbd";
/// The socket of the snapshot, in a folder that only we can enter.
const SOCKET_FILE: &str = "nbd";

/// How a machine is to be frozen.
#[derive(Debug, Clone)]
pub struct FreezeSettings {
    /// Room for what the guest overwrites meanwhile.
    pub scratch: ScratchSettings,
    /// Whether the software in the guest is asked to be still.
    pub quiesce: Quiesce,
    /// The folder where it is noted which guests are frozen while they are, for
    /// [`guard::thaw_left`](super::guard::thaw_left): whoever kills us with our children can call it.
    pub notes: Option<PathBuf>,
}

/// Whether the software in a guest is asked to write out what it has and be still for the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Quiesce {
    /// No: the point is as after a power cut.
    #[default]
    Off,
    /// Yes; where the guest's agent does not answer, the point is as after a power cut, and says so.
    Prefer,
    /// Yes; where the guest's agent does not answer, there is no point.
    Require,
}

/// A machine at one moment. Dropped, it is given up in the background.
pub struct Frozen {
    /// The machine's name.
    pub machine: String,
    /// Its UUID, where it has one.
    pub uuid: Option<String>,
    /// The moment, Unix time in nanoseconds: everything that the guest was told to be written by
    /// then is there.
    pub taken_unix_ns: u64,
    /// How long writes of the guest may have waited at that moment.
    pub held: Duration,
    /// What the disks are worth to the software on them.
    pub consistency: Consistency,
    /// With whom it was frozen, where it was to be.
    pub together: Option<Together>,
    /// All its disks, at the same moment.
    pub disks: Vec<FrozenDisk>,
    /// What looks like a disk and is not among them.
    pub left_out: Vec<LeftOut>,
    pub(super) orders: oneshot::Sender<Ordered>,
}

/// One disk of a frozen machine.
#[derive(Clone)]
pub struct FrozenDisk {
    /// See [`Disk::name`].
    pub name: String,
    /// See [`Disk::format`].
    pub format: String,
    /// See [`Disk::remembers`].
    pub remembers: bool,
    /// Its content, and what changed since which point.
    pub source: Arc<dyn Source>,
}

/// How a snapshot is to end, and where to say what came of it.
pub(super) type Ordered = (Order, oneshot::Sender<Result<()>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Retire,
    GiveUp,
}

impl Machine {
    /// Freezes all disks at one moment, of which `point` will be made in `repository`. `standing`
    /// tells committed and live points by their place in the log, higher for later ones. With a `seat`
    /// it is frozen together with the other machines of its group.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] without room for the snapshot, [`Kind::Conflict`] where somebody else uses the
    /// machine's NBD server or holds a disk, [`Kind::Missing`] where it has no disk to protect. The
    /// machine is as it was before.
    pub async fn freeze(
        self,
        settings: FreezeSettings,
        repository: RepositoryId,
        point: PointId,
        standing: impl Fn(PointId) -> Option<u64>,
        seat: Option<Seat>,
    ) -> Result<Frozen> {
        if self.disks.is_empty() {
            let left_out = self
                .left_out
                .iter()
                .map(|it| format!("{}: {}", it.name, it.why));
            return Err(Error::new(
                Kind::Missing,
                format!(
                    "machine {:?} has no disk that can be protected ({})",
                    self.name,
                    left_out.collect::<Vec<_>>().join("; ")
                ),
            ));
        }
        let new = bitmap::name(repository, point);
        let mut settle = Vec::new();
        let parts = self
            .disks
            .into_iter()
            .map(|disk| {
                let decision = bitmap::decide(&disk.bitmaps, repository, &standing);
                settle.extend(in_qmp(&disk, decision.settle));
                Part {
                    turn: Turn {
                        base: decision.base.as_ref().ok().map(|base| base.bitmap.clone()),
                        new: new.clone(),
                    },
                    base: decision.base,
                    disk,
                }
            })
            .collect();
        let mut snapshot = Snapshot {
            qmp: self.qmp,
            name: self.name.clone(),
            agent: self.agent,
            parts,
            scratch: None,
            server: Server::NotOurs,
            recording: false,
            broken: Broken::default(),
            seat,
        };
        let (ready, made) = oneshot::channel();
        let (orders, ordered) = oneshot::channel();
        tokio::spawn(async move {
            let making = snapshot.make(settle, settings).await;
            // Nobody waits for what is made, nor for what will not be.
            snapshot.seat = None;
            if making.is_err() {
                snapshot.undo().await;
                let _ = ready.send(making);
            } else if ready.send(making).is_ok() {
                snapshot.keep(ordered).await;
            } else {
                // Whoever wanted it is gone.
                snapshot.undo().await;
            }
        });
        let made = made
            .await
            .map_err(|_| Error::new(Kind::Bug, "the task that freezes a machine broke down"))??;
        Ok(Frozen {
            machine: self.name,
            uuid: self.uuid,
            taken_unix_ns: made.taken_unix_ns,
            held: made.held,
            consistency: made.consistency,
            together: made.together,
            disks: made.disks,
            left_out: self.left_out,
            orders,
        })
    }
}

impl Frozen {
    /// Ends the snapshot after its point was committed: from now on changes are counted from it.
    ///
    /// # Errors
    /// What QEMU says. The point stands, and the next connection does what is left to do.
    pub async fn retire(self) -> Result<()> {
        self.end(Order::Retire).await
    }

    /// Ends the snapshot of which there will be no point: changes are counted from the point before, as
    /// if there had been none.
    ///
    /// # Errors
    /// What QEMU says. The next connection does what is left to do.
    pub async fn give_up(self) -> Result<()> {
        self.end(Order::GiveUp).await
    }

    async fn end(self, order: Order) -> Result<()> {
        let gone = || Error::new(Kind::Bug, "the task that keeps a snapshot broke down");
        let (answer, answered) = oneshot::channel();
        self.orders.send((order, answer)).map_err(|_| gone())?;
        // Readers first: they hold the connections that QEMU would wait for.
        drop(self.disks);
        answered.await.map_err(|_| gone())?
    }
}

struct Made {
    taken_unix_ns: u64,
    held: Duration,
    consistency: Consistency,
    together: Option<Together>,
    disks: Vec<FrozenDisk>,
}

/// A disk, and the bitmaps of its turn.
struct Part {
    disk: Disk,
    base: Result<Base, Lost>,
    turn: Turn,
}

/// The snapshot and all that belongs to it; see the module.
struct Snapshot {
    qmp: Qmp,
    name: String,
    /// The socket of the guest's agent.
    agent: Option<PathBuf>,
    parts: Vec<Part>,
    scratch: Option<Scratch>,
    /// Whether the NBD server was started by us.
    server: Server,
    /// Whether the new bitmaps are there.
    recording: bool,
    broken: Broken,
    /// Its place among those that are frozen together, until it is.
    seat: Option<Seat>,
}

impl Snapshot {
    async fn make(&mut self, settle: Vec<Value>, settings: FreezeSettings) -> Result<Made> {
        self.transact(settle).await?;
        let quiesce = settings.quiesce;
        let scratch = blocking(move || Scratch::new(settings.scratch)).await?;
        let scratch = self.scratch.insert(scratch);
        for (number, part) in self.parts.iter().enumerate() {
            let disk = &part.disk;
            let (file, limit_bytes) = scratch.file(&disk.name, disk.size_bytes)?;
            nodes::prepare(
                &mut self.qmp,
                number,
                &disk.node,
                disk.size_bytes,
                limit_bytes,
                file.as_fd(),
            )
            .await?;
        }
        // After the nodes, which tell whoever comes after a kill that the server may be ours.
        let folder = Arc::new(self.serve().await?);
        if self.parts.len() > 1 {
            for (number, part) in self.parts.iter().enumerate() {
                let disk = &part.disk;
                nodes::interpose(&mut self.qmp, number, &disk.node, &disk.qom_path).await?;
            }
        }
        self.transact(self.actions(Turn::begin)).await?;
        self.recording = true;
        self.meet(Step::Prepared).await;
        let still = Still::by_agent(self.agent.as_deref(), settings.notes.as_deref());
        let still = still::quiesce(quiesce, &self.name, still).await?;
        self.meet(Step::Still).await;
        let begun = Instant::now();
        let taken = self.instant().await;
        if let (Some(seat), Ok((_, held))) = (&self.seat, &taken) {
            seat.took(begun, begun + *held);
            self.meet(Step::Taken).await;
        }
        // Whatever came of it.
        let stilled = match still {
            Some(still) => Some(still.thaw(&self.name).await),
            None => None,
        };
        let (taken_unix_ns, held) = taken?;
        let was_still = stilled.is_some_and(|stilled| stilled.lasted);
        if quiesce == Quiesce::Require && !was_still {
            return Err(still::not_still(&self.name));
        }
        let together = self.seat.as_ref().and_then(Seat::outcome);
        self.transact(self.actions(Turn::freeze)).await?;
        let mut disks = Vec::new();
        for number in 0..self.parts.len() {
            disks.push(self.show(number, &folder).await?);
        }
        Ok(Made {
            taken_unix_ns,
            held: stilled.map_or(held, |stilled| stilled.held),
            consistency: match was_still {
                true => Consistency::Application,
                false => Consistency::Crash,
            },
            together,
            disks,
        })
    }

    /// Waits for the other machines of its group, where there are some.
    async fn meet(&self, step: Step) {
        if let Some(seat) = &self.seat {
            seat.meet(step).await;
        }
    }

    /// The moment of all disks, and how long it took at most.
    async fn instant(&mut self) -> Result<(u64, Duration)> {
        let taken_unix_ns = clock::now_unix_ns();
        let begun = Instant::now();
        match self.parts.as_slice() {
            [only] => {
                let cbw = Node::CopyBeforeWrite.of(0);
                nodes::give(&mut self.qmp, &only.disk.qom_path, &cbw).await?;
            }
            parts => {
                let arguments = nodes::reopening(parts.len());
                self.qmp.execute("blockdev-reopen", arguments).await?;
            }
        }
        Ok((taken_unix_ns, begun.elapsed()))
    }

    /// Starts QEMU's NBD server on a socket in a folder of ours.
    async fn serve(&mut self) -> Result<TempDir> {
        let folder = qemu::private_folder()?;
        let socket = folder.path().join(SOCKET_FILE);
        let listener = UnixListener::bind(&socket)
            .map_err(|error| Error::io(format!("cannot listen at {}", socket.display()), error))?;
        self.qmp
            .execute_with_file("getfd", json!({ "fdname": SOCKET_NAME }), listener.as_fd())
            .await?;
        let address = json!({ "type": "fd", "data": { "str": SOCKET_NAME } });
        let started = self
            .qmp
            .execute("nbd-server-start", json!({ "addr": address }))
            .await;
        if let Err(error) = started {
            if error.to_string().contains("already running") {
                return Err(Error::new(
                    Kind::Conflict,
                    format!(
                        "the NBD server in QEMU of machine {:?} runs for somebody else, and QEMU has only one",
                        self.name
                    ),
                )
                .caused_by(error)
                .advise("end the other backup or migration of that machine, or wait for its end"));
            }
            return Err(error);
        }
        self.server = Server::MayBeOurs;
        Ok(folder)
    }

    /// Exports one disk's snapshot, and connects to it.
    async fn show(&mut self, number: usize, folder: &Arc<TempDir>) -> Result<FrozenDisk> {
        let Part { disk, base, turn } = &self.parts[number];
        let snapshot = Node::Snapshot.of(number);
        self.qmp
            .execute(
                "blockdev-add",
                json!({
                    "driver": "snapshot-access", "node-name": snapshot,
                    "file": Node::CopyBeforeWrite.of(number),
                }),
            )
            .await?;
        let bitmaps: Vec<Value> = turn
            .base
            .iter()
            .map(|name| json!({ "node": disk.node, "name": name }))
            .collect();
        let export = number.to_string();
        self.qmp
            .execute(
                "block-export-add",
                json!({
                    "type": "nbd", "id": nodes::export_id(number), "node-name": snapshot,
                    "name": export, "writable": false, "bitmaps": bitmaps,
                }),
            )
            .await?;
        let changes = match base {
            Ok(base) => Changes::Bitmap {
                name: base.bitmap.clone(),
                since: base.point,
            },
            Err(why) => Changes::Lost(why.to_string()),
        };
        let description = format!("disk {} of machine {}", disk.name, self.name);
        let folder = Arc::clone(folder);
        let source = blocking(move || {
            let socket = folder.path().join(SOCKET_FILE);
            NbdSource::connect_tracked(&socket, &export, description, changes, Box::new(folder))
        })
        .await?;
        Ok(FrozenDisk {
            name: disk.name.clone(),
            format: disk.format.clone(),
            remembers: disk.remembers,
            source: Arc::new(LiveSource {
                disk: source,
                broken: Arc::clone(&self.broken),
            }),
        })
    }

    /// Watches until it is told how to end.
    async fn keep(&mut self, mut ordered: oneshot::Receiver<Ordered>) {
        let mut watch = tokio::time::interval(WATCH_PERIOD);
        loop {
            tokio::select! {
                order = &mut ordered => {
                    match order {
                        Ok((order, answer)) => {
                            let ended = self.end(order).await;
                            let _ = answer.send(ended);
                        }
                        Err(_) => self.undo().await,
                    }
                    return;
                }
                _ = watch.tick(), if self.broken.get().is_none() => self.look().await,
            }
        }
    }

    /// Gives the snapshot up, but not its bitmaps, where there is no room for it any more.
    async fn look(&mut self) {
        let Some(scratch) = self.scratch.take() else {
            return;
        };
        let looked = blocking(move || {
            let exceeded = scratch.exceeded();
            Ok((scratch, exceeded))
        })
        .await;
        let why = match looked {
            Ok((scratch, exceeded)) => {
                self.scratch = Some(scratch);
                match exceeded {
                    Ok(None) => return,
                    Ok(Some(why)) => why,
                    Err(error) => error.chain(),
                }
            }
            Err(error) => error.chain(),
        };
        tracing::error!(machine = self.name, why, "the snapshot is given up");
        // Before its readers notice: they ask why.
        let _ = self.broken.set(why);
        self.clear().await.unwrap_or_else(|error| self.left(&error));
    }

    async fn end(&mut self, order: Order) -> Result<()> {
        self.clear().await?;
        let actions = match order {
            Order::Retire => self.actions(Turn::retire),
            Order::GiveUp => self.actions(Turn::give_up),
        };
        self.transact(actions).await?;
        self.recording = false;
        Ok(())
    }

    /// As if there had been nothing, as far as it goes.
    async fn undo(&mut self) {
        let undone = async {
            self.clear().await?;
            if self.recording {
                self.transact(self.actions(Turn::give_up)).await?;
            }
            Ok::<_, Error>(())
        };
        undone.await.unwrap_or_else(|error| self.left(&error));
    }

    async fn clear(&mut self) -> Result<()> {
        nodes::clear(&mut self.qmp, self.server).await?;
        self.server = Server::NotOurs;
        if let Some(scratch) = &mut self.scratch {
            scratch.close();
        }
        Ok(())
    }

    fn left(&self, error: &Error) {
        tracing::warn!(
            machine = self.name,
            error = error.chain(),
            "the snapshot could not be ended; the next backup of this machine does it"
        );
    }

    fn actions(&self, of: impl Fn(&Turn) -> Vec<Action>) -> Vec<Value> {
        self.parts
            .iter()
            .flat_map(|part| in_qmp(&part.disk, of(&part.turn)))
            .collect()
    }

    async fn transact(&mut self, actions: Vec<Value>) -> Result<()> {
        if actions.is_empty() {
            return Ok(());
        }
        self.qmp
            .execute("transaction", json!({ "actions": actions }))
            .await
            .map(drop)
    }
}

/// Changes to a disk's bitmaps in QEMU's words.
fn in_qmp(disk: &Disk, actions: Vec<Action>) -> Vec<Value> {
    let node = &disk.node;
    actions
        .into_iter()
        .map(|action| {
            let (kind, data) = match action {
                Action::Add(name) => (
                    "add",
                    json!({
                        "node": node, "name": name, "persistent": disk.remembers,
                        "granularity": bitmap::granularity_bytes(disk.size_bytes),
                    }),
                ),
                Action::Merge { into, from } => (
                    "merge",
                    json!({ "node": node, "target": into, "bitmaps": [from] }),
                ),
                Action::Enable(name) => ("enable", json!({ "node": node, "name": name })),
                Action::Disable(name) => ("disable", json!({ "node": node, "name": name })),
                Action::Remove(name) => ("remove", json!({ "node": node, "name": name })),
            };
            json!({ "type": format!("block-dirty-bitmap-{kind}"), "data": data })
        })
        .collect()
}
