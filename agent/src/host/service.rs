//! The host service: one loop that owns everything, and tasks that do the work.
//!
//! ```text
//! signals ─┐                       ┌─► runs (a task each) ──┐
//! orders ──┼─► loop: plan, start ──┼─► look at the disks ───┼─► back to the loop
//! time ────┘                       └─► history (a thread) ──┘
//! ```
//!
//! The loop never waits for a disk or a store: it only starts things and hears of their ends. What it
//! tells systemd's watchdog is that it goes round. The invariants: a machine has at most one run; a
//! configuration that is not valid changes nothing; and when it stops, every run has ended, or was
//! given up after a bounded time, and stands in the history as interrupted.

mod core;
mod orders;

pub(super) use orders::{Answer, Orders, Seen};

use self::core::Core;
use super::config::{DEFAULT_FILE, Settings};
use super::control::{self, Listener};
use super::machines::{Domains, Selection, select};
use super::run::Report;
use super::state::State;
use crate::blocking::blocking;
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::live::guard;
use crate::metrics::{PrometheusHandle, listen};
use crate::systemd::Systemd;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::{Id, JoinError, JoinHandle, JoinSet};

/// How often the disks are looked at for machines, and what changes with time is reckoned anew: the
/// clock may have been set meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How long a guest that was left frozen is tried after the service's end; less than the unit waits.
const THAW_TIME_MAX: Duration = Duration::from_secs(60);

/// After how long without a round of the loop `/health` says that something is wrong.
const BEAT_AGE_MAX: Duration = Duration::from_secs(60);

/// What the service is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The configuration file.
    pub file: PathBuf,
    /// The folder of systemd's credentials, where there is one.
    pub credentials: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            file: DEFAULT_FILE.into(),
            credentials: None,
        }
    }
}

/// Thaws guests that a service which was killed has left frozen. `file` is its configuration.
///
/// # Errors
/// [`Kind::Unavailable`] where one may still be frozen.
pub async fn thaw_left(file: PathBuf) -> Result<()> {
    let settings = blocking(move || Settings::load(&file)).await?;
    guard::thaw_left(&settings.service.notes(), THAW_TIME_MAX).await
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// Where the service cannot start: [`Kind::Config`] for its configuration, [`Kind::Conflict`] where
/// another one is running.
pub async fn run(options: Options, metrics: PrometheusHandle) -> Result<()> {
    let mut signals = Signals::new()?;
    let mut systemd = Systemd::new();
    let file = options.file.clone();
    let settings = blocking(move || Settings::load(&file)).await?;
    let _alone = lock(&settings.service.socket)?;
    let now = clock::now_unix_ns();
    let state_dir = settings.service.state_dir.clone();
    let (state, remembered) = blocking(move || State::open(&state_dir, now)).await?;
    // Before the first run freezes any. One that does not answer must not keep all others without backups.
    if let Err(error) = guard::thaw_left(&settings.service.notes(), Duration::ZERO).await {
        tracing::error!(error = error.chain(), "a guest was left frozen");
    }
    let mut core = Core::new(options, settings, state, remembered);
    let first = core.settings();
    let domains: Arc<Domains> = Arc::default();
    let asked = Arc::clone(&domains);
    core.adopt(now, blocking(move || Ok(select(&first, &asked))).await?);
    for remark in core.remarks() {
        tracing::warn!("{remark}");
    }

    let service = core.settings().service.clone();
    let socket = Listener::bind(&service.socket, &service.socket_group)?;
    let (orders, mut ordered) = Orders::new();
    let mut servers = JoinSet::new();
    servers.spawn(control::serve(socket, orders));
    let beat = Arc::new(Beat::new());
    if let Some(address) = service.listen {
        let listener = listen::bind(address).await?;
        let beat = Arc::clone(&beat);
        let health = Arc::new(move || beat.health());
        servers.spawn(listen::serve(listener, metrics, health));
        tracing::info!(%address, "serving /metrics and /health");
    }
    tracing::info!(
        machines = core.machines(),
        socket = %service.socket.display(),
        "the host service is ready"
    );
    systemd.ready("");

    let mut runs = Runs::default();
    let mut looking: Option<Look> = None;
    let mut looked = Instant::now();
    loop {
        let now = clock::now_unix_ns();
        let wake = core.step(now, &mut runs);
        beat.now();
        let wake = wake.min(systemd.alive()).min(LOOK_EVERY);
        if looking.is_none() && looked.elapsed() >= LOOK_EVERY {
            looking = Some(Look::for_machines(core.settings(), Arc::clone(&domains)));
        }
        tokio::select! {
            biased;
            told = signals.next() => match told {
                Told::Stop => break,
                Told::Reload => reload(&core, &systemd, &mut looking, &domains, None),
            },
            Some(order) = ordered.recv() => {
                let (request, answer) = order;
                if request == control::Request::Reload {
                    reload(&core, &systemd, &mut looking, &domains, Some(answer));
                } else {
                    let _ = answer.send(core.order(clock::now_unix_ns(), request));
                }
            }
            Some((machine, report)) = runs.next() => {
                core.ended(clock::now_unix_ns(), &machine, report);
            }
            (look, found) = finished(&mut looking) => {
                looked = Instant::now();
                match found {
                    found if look.is_reload => reloaded(&mut core, &systemd, look, found),
                    Ok((_, selection)) => core.adopt(clock::now_unix_ns(), selection),
                    Err(error) => tracing::error!(error = error.chain(), "cannot look for machines"),
                }
            }
            () = tokio::time::sleep(wake) => {}
        }
    }

    systemd.stopping();
    stop(&mut core, &mut runs, &mut systemd, service.stop_grace).await;
    servers.shutdown().await;
    blocking(move || {
        core.close();
        systemd.close();
        Ok(())
    })
    .await?;
    tracing::info!("the host service has stopped");
    Ok(())
}

/// Runs under way.
#[derive(Default)]
struct Runs {
    tasks: JoinSet<Report>,
    machines: HashMap<Id, String>,
}

impl Runs {
    fn spawn(&mut self, machine: &str, run: impl Future<Output = Report> + Send + 'static) {
        let id = self.tasks.spawn(run).id();
        self.machines.insert(id, machine.to_owned());
    }

    /// The next one that has ended; none where none is under way.
    async fn next(&mut self) -> Option<(String, Report)> {
        let (id, report) = match self.tasks.join_next_with_id().await? {
            Ok((id, report)) => (id, report),
            Err(error) => (error.id(), broken(error)),
        };
        Some((self.machines.remove(&id)?, report))
    }
}

fn broken(error: JoinError) -> Report {
    let error = match error.is_cancelled() {
        true => Error::new(
            Kind::Interrupted,
            "the run did not stop in time and was given up",
        ),
        false => Error::new(Kind::Bug, "the run broke down").caused_by(error),
    };
    Report {
        error: Some(error),
        ..Report::default()
    }
}

/// Ends all runs: as they wish for a while, then at once.
async fn stop(core: &mut Core, runs: &mut Runs, systemd: &mut Systemd, grace: Duration) {
    let running = core.stop();
    if running > 0 {
        tracing::info!(runs = running, "stopping the runs under way");
    }
    let deadline = tokio::time::Instant::now() + grace;
    loop {
        let wake = systemd.alive().min(LOOK_EVERY);
        tokio::select! {
            next = runs.next() => match next {
                Some((machine, report)) => core.ended(clock::now_unix_ns(), &machine, report),
                None => return,
            },
            () = tokio::time::sleep(wake) => {}
            () = tokio::time::sleep_until(deadline) => break,
        }
    }
    tracing::warn!("runs did not stop in time: they are given up");
    runs.tasks.abort_all();
    while let Some((machine, report)) = runs.next().await {
        core.ended(clock::now_unix_ns(), &machine, report);
    }
}

/// A look at what there is, off the loop: files and folders may lie on a share that hangs.
struct Look {
    task: JoinHandle<Result<Found>>,
    /// The configuration is read again.
    is_reload: bool,
    /// Who waits for that.
    asked: Option<oneshot::Sender<Result<Answer>>>,
}

/// A configuration, and the machines that there are by it.
type Found = (Arc<Settings>, Selection);

impl Look {
    /// Which machines are there.
    fn for_machines(settings: Arc<Settings>, domains: Arc<Domains>) -> Self {
        let look = move || {
            let selection = select(&settings, &domains);
            Ok((settings, selection))
        };
        Self {
            task: tokio::spawn(blocking(look)),
            is_reload: false,
            asked: None,
        }
    }

    /// What the configuration says by now, and which machines are there by it.
    fn by_file(
        file: PathBuf,
        domains: Arc<Domains>,
        asked: Option<oneshot::Sender<Result<Answer>>>,
    ) -> Self {
        let read = move || {
            let settings = Arc::new(Settings::load(&file)?);
            let selection = select(&settings, &domains);
            Ok((settings, selection))
        };
        Self {
            task: tokio::spawn(blocking(read)),
            is_reload: true,
            asked,
        }
    }
}

/// The look under way, when it has ended.
async fn finished(looking: &mut Option<Look>) -> (Look, Result<Found>) {
    let found = match looking {
        None => std::future::pending().await,
        Some(look) => (&mut look.task).await,
    };
    let found = found.unwrap_or_else(|error| {
        Err(Error::new(Kind::Bug, "the look at the disks broke down").caused_by(error))
    });
    match looking.take() {
        None => std::future::pending().await,
        Some(look) => (look, found),
    }
}

/// Reads the configuration again. A look by the old one, or an earlier reading, is given up.
fn reload(
    core: &Core,
    systemd: &Systemd,
    looking: &mut Option<Look>,
    domains: &Arc<Domains>,
    asked: Option<oneshot::Sender<Result<Answer>>>,
) {
    systemd.reloading();
    if let Some(Look {
        asked: Some(asked), ..
    }) = looking.replace(Look::by_file(core.file(), Arc::clone(domains), asked))
    {
        // Who asked may have gone.
        let _ = asked.send(Err(Error::new(
            Kind::Interrupted,
            "the configuration is being read once more",
        )));
    }
}

/// Takes over a configuration that was read again. What is not valid changes nothing.
fn reloaded(core: &mut Core, systemd: &Systemd, look: Look, found: Result<Found>) {
    let done = match found {
        Ok((settings, selection)) => {
            core.reconfigure(clock::now_unix_ns(), settings, selection);
            tracing::info!(
                machines = core.machines(),
                "the configuration was read again"
            );
            systemd.ready("");
            Ok(Answer::done("the configuration was read again"))
        }
        Err(error) => {
            tracing::error!(
                error = error.chain(),
                "the new configuration is refused: the old one stays in force"
            );
            systemd.ready("the new configuration was refused: the old one is in force");
            core.refuse(&error);
            Err(error)
        }
    };
    if let Some(asked) = look.asked {
        let _ = asked.send(done);
    }
}

/// Makes sure that no other service uses this socket; the lock ends with the process.
fn lock(socket: &Path) -> Result<File> {
    use rustix::fs::{FlockOperation, flock};
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let cannot = |error| Error::io(format!("cannot make the lock {}", path.display()), error);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(cannot)?;
    }
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(cannot)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::new(
            Kind::Conflict,
            format!("another host service is running at {}", socket.display()),
        )
        .advise("stop it first, or give this one another socket and state_dir")),
        Err(error) => Err(cannot(error.into())),
    }
}

/// What the operating system tells the service.
enum Told {
    Stop,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen =
            |kind| signal(kind).map_err(|error| Error::io("cannot listen for signals", error));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.hang_up.recv() => Told::Reload,
        }
    }
}

/// When the loop last went round.
struct Beat {
    began: Instant,
    millis: AtomicU64,
}

impl Beat {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            millis: AtomicU64::new(0),
        }
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn now(&self) {
        self.millis.store(self.elapsed(), Ordering::Relaxed);
    }

    fn health(&self) -> (bool, serde_json::Value) {
        let age = self
            .elapsed()
            .saturating_sub(self.millis.load(Ordering::Relaxed));
        let well = u128::from(age) <= BEAT_AGE_MAX.as_millis();
        let word = if well { "ok" } else { "stalled" };
        (well, serde_json::json!({ "role": "host", "status": word }))
    }
}
