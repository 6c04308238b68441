//! What the loop owns: settings, machines, runs under way. No waiting happens here.

mod status;

use super::{Answer, Options, Runs, Seen};
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::host::config::Settings;
use crate::host::control::{Reply, Request};
use crate::host::machines::{Selected, Selection};
use crate::host::plan::{self, History, Plan, Standing, Upcoming};
use crate::host::run::{self, Job, Place, Report};
use crate::host::state::{Fault, FrozenRow, Hour, MachineRow, Outcome, Remembered, RunRow, State};
use crate::link::congestion::Congestion;
use crate::live::{self, Seat};
use crate::metrics;
use crate::pace::Pacer;
use crate::progress::Progress;
use crate::replicate::{self, BackupSummary, DiskTracking, Mode};
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// How long a machine whose images are gone is shown and remembered.
const GONE_KEPT: Duration = Duration::from_secs(7 * 86_400);

pub(super) struct Core {
    options: Options,
    settings: Arc<Settings>,
    host: String,
    known: BTreeMap<String, Known>,
    unprotected: Vec<String>,
    remarks: Vec<String>,
    /// By name, and by how the policies of their runs share the line.
    places: HashMap<(String, Congestion), Arc<Place>>,
    pacers: BTreeMap<String, Arc<Pacer>>,
    state: State,
    reload_trouble: Option<Fault>,
    stopping: bool,
}

/// A machine.
#[derive(Default)]
struct Known {
    /// None: its images are gone, or nothing of the configuration takes it any more.
    selected: Option<Selected>,
    remembered: Remembered,
    /// The operator's wish, until its run begins.
    requested: Option<Requested>,
    running: Option<UnderWay>,
}

struct Requested {
    at_unix_ns: u64,
    seen: watch::Sender<Seen>,
}

struct UnderWay {
    row: RunRow,
    began: Instant,
    progress: Arc<Progress>,
    stop: CancellationToken,
    cancelled: bool,
    seen: watch::Sender<Seen>,
}

impl Core {
    pub(super) fn new(
        options: Options,
        settings: Settings,
        state: State,
        remembered: BTreeMap<String, Remembered>,
    ) -> Self {
        let known = remembered.into_iter().map(|(name, remembered)| {
            let known = Known {
                remembered,
                ..Known::default()
            };
            (name, known)
        });
        Self {
            options,
            settings: Arc::new(settings),
            host: replicate::host_name(),
            known: known.collect(),
            unprotected: Vec::new(),
            remarks: Vec::new(),
            places: HashMap::new(),
            pacers: BTreeMap::new(),
            state,
            reload_trouble: None,
            stopping: false,
        }
    }

    pub(super) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings)
    }

    pub(super) fn file(&self) -> PathBuf {
        self.options.file.clone()
    }

    /// How many machines are backed up.
    pub(super) fn machines(&self) -> usize {
        self.known
            .values()
            .filter(|known| known.selected.is_some())
            .count()
    }

    /// What looks like an oversight, for people.
    pub(super) fn remarks(&self) -> Vec<String> {
        let unprotected = self
            .unprotected
            .iter()
            .map(|name| format!("machine {name} is in no group: it is not backed up"));
        unprotected.chain(self.remarks.iter().cloned()).collect()
    }

    /// Takes over what a look at the disks has found.
    pub(super) fn adopt(&mut self, now: u64, selection: Selection) {
        let Selection {
            mut machines,
            unprotected,
            remarks,
            is_partial,
        } = selection;
        for (name, known) in &mut self.known {
            let was = known.selected.is_some();
            known.selected = machines.remove(name);
            let gone = known.remembered.gone_unix_ns;
            match (&known.selected, gone) {
                (Some(_), Some(_)) => {
                    tracing::info!(machine = name, "the machine is there again");
                    known.remembered.gone_unix_ns = None;
                    self.state.save_machine(row_of(name, &known.remembered));
                }
                // It may be there, and nobody can say.
                (None, None) if is_partial => {}
                // Only what a pattern takes can go by itself.
                (None, None) if self.settings.group_of(name).is_some() => {
                    tracing::warn!(
                        machine = name,
                        "the machine is gone: no pattern finds it any more"
                    );
                    known.remembered.gone_unix_ns = Some(now);
                    self.state.save_machine(row_of(name, &known.remembered));
                }
                (None, None) if was => {
                    tracing::info!(machine = name, "the machine is not backed up any more");
                }
                _ => {}
            }
            if known.selected.is_none()
                && let Some(requested) = known.requested.take()
            {
                let error = Error::new(Kind::Missing, format!("machine {name} is gone"));
                let _ = requested.seen.send(Seen::Refused(Fault::from(&error)));
            }
        }
        for (name, selected) in machines {
            tracing::info!(
                machine = name,
                group = selected.group.name,
                "a machine to back up"
            );
            let remembered = Remembered {
                history: History {
                    first_seen_unix_ns: now,
                    ..History::default()
                },
                ..Remembered::default()
            };
            self.state.save_machine(row_of(&name, &remembered));
            let known = Known {
                selected: Some(selected),
                remembered,
                ..Known::default()
            };
            self.known.insert(name, known);
        }
        self.unprotected = unprotected;
        self.remarks = self.settings.remarks();
        self.remarks
            .retain(|remark| !remark.starts_with("machine."));
        self.remarks.extend(remarks);
    }

    /// Other settings take effect. Runs under way go on by the old ones.
    pub(super) fn reconfigure(&mut self, now: u64, settings: Arc<Settings>, selection: Selection) {
        let (old, new) = (&self.settings.service, &settings.service);
        let fixed = [
            ("state_dir", old.state_dir == new.state_dir),
            ("socket", old.socket == new.socket),
            ("socket_group", old.socket_group == new.socket_group),
            ("listen", old.listen == new.listen),
            ("stop_grace", old.stop_grace == new.stop_grace),
        ];
        for (key, _) in fixed.iter().filter(|(_, same)| !same) {
            tracing::warn!("service.{key} takes effect when the service is restarted");
        }
        self.settings = settings;
        self.reload_trouble = None;
        let settings = &self.settings;
        self.places
            .retain(|(name, _), place| settings.repositories.get(name) == Some(&place.settings));
        self.pacers
            .retain(|name, _| settings.policies.contains_key(name));
        self.adopt(now, selection);
    }

    /// Remembers that the new configuration was refused.
    pub(super) fn refuse(&mut self, error: &Error) {
        self.reload_trouble = Some(Fault::from(error));
    }

    /// Plans, starts what is due, and says how long nothing is due.
    pub(super) fn step(&mut self, now: u64, runs: &mut Runs) -> Duration {
        self.forget_gone(now);
        self.set_rates(now);
        let mut plan = self.plan(now);
        let start = std::mem::take(&mut plan.start);
        let mut seats = self.seats(&start);
        for upcoming in start {
            let seat = upcoming
                .together
                .as_ref()
                .and_then(|group| seats.get_mut(group)?.pop());
            if let Err(error) = self.start(now, &upcoming, seat, runs) {
                tracing::error!(
                    machine = upcoming.machine,
                    error = error.chain(),
                    "cannot start a run"
                );
            }
        }
        self.measure(now, plan.waiting.len());
        match plan.wake_unix_ns() {
            None => Duration::MAX,
            // Not a busy loop where it is due by less than the clock's step.
            Some(due) => {
                Duration::from_nanos(due.saturating_sub(now)).max(Duration::from_millis(1))
            }
        }
    }

    fn plan(&self, now: u64) -> Plan {
        let machines: Vec<_> = self
            .known
            .iter()
            .filter_map(|(name, known)| {
                let selected = known.selected.as_ref();
                Some(plan::Machine {
                    name,
                    // Who runs takes room, also where the configuration has dropped it meanwhile.
                    policy: match (selected, &known.running) {
                        (Some(selected), _) => &selected.policy,
                        (None, Some(_)) => self.settings.policies.values().next()?,
                        (None, None) => return None,
                    },
                    history: &known.remembered.history,
                    standing: match (&known.running, &known.requested) {
                        (Some(running), _) => Standing::Running(running.row.started_unix_ns),
                        (None, Some(requested)) => Standing::Requested(requested.at_unix_ns),
                        (None, None) => Standing::Idle,
                    },
                    together: selected.and_then(Selected::together),
                })
            })
            .collect();
        let service = &self.settings.service;
        plan::plan(now, &service.time_zone, service.concurrency, &machines)
    }

    /// Seats for all who are to be frozen together, by their groups.
    fn seats(&self, start: &[Upcoming]) -> BTreeMap<String, Vec<Seat>> {
        let mut coming: BTreeMap<&str, usize> = BTreeMap::new();
        for group in start.iter().filter_map(|run| run.together.as_deref()) {
            *coming.entry(group).or_default() += 1;
        }
        let seats = coming.into_iter().filter_map(|(group, machines)| {
            let selected = self.known.values().filter_map(|it| it.selected.as_ref());
            let expected = selected.filter(|it| it.together() == Some(group)).count();
            match live::seats(group, machines, expected) {
                Ok(seats) => Some((group.to_owned(), seats)),
                Err(error) => {
                    let error = error.chain();
                    tracing::error!(group, error, "its machines are frozen one by one");
                    None
                }
            }
        });
        seats.collect()
    }

    fn start(
        &mut self,
        now: u64,
        upcoming: &Upcoming,
        seat: Option<Seat>,
        runs: &mut Runs,
    ) -> Result<()> {
        let name = &upcoming.machine;
        let Some(known) = self.known.get_mut(name) else {
            return Ok(());
        };
        let Some(selected) = known.selected.clone() else {
            return Ok(());
        };
        let run = hex::encode(clock::random::<8>()?);
        let place = place(&mut self.places, &self.options, &selected);
        let pacer = self.pacers.entry(selected.policy.name.clone());
        let pacer = Arc::clone(pacer.or_insert_with(|| {
            let zone = &self.settings.service.time_zone;
            let limit = timestamp(now).and_then(|now| selected.policy.limit_at(now, zone));
            Arc::new(Pacer::new(limit))
        }));
        let row = RunRow {
            run: run.clone(),
            machine: name.clone(),
            repository: selected.repository.name.clone(),
            started_unix_ns: now,
            ended_unix_ns: None,
            outcome: None,
            point: None,
            point_unix_ns: None,
            read_bytes: 0,
            new_bytes: 0,
            stored_bytes: 0,
            error: None,
            warning: None,
            frozen: None,
        };
        self.state.save_run(row.clone());
        let seen = match known.requested.take() {
            Some(requested) => requested.seen,
            None => watch::Sender::new(Seen::Waiting),
        };
        let progress: Arc<Progress> = Arc::default();
        // Nobody may be watching.
        seen.send_replace(Seen::Running {
            run: run.clone(),
            progress: Arc::clone(&progress),
        });
        let stop = CancellationToken::new();
        let job = Job {
            run: run.clone(),
            machine: name.clone(),
            selected,
            place,
            pacer,
            scratch: self.settings.service.scratch.clone(),
            notes: self.settings.service.notes(),
            seat,
        };
        let span = tracing::info_span!("run", run, machine = name);
        span.in_scope(|| tracing::info!(why = ?upcoming.why, "a backup begins"));
        let work = {
            let (progress, stop) = (Arc::clone(&progress), stop.clone());
            async move { run::execute(job, progress, stop).await }
        };
        runs.spawn(name, work.instrument(span));
        known.running = Some(UnderWay {
            row,
            began: Instant::now(),
            progress,
            stop,
            cancelled: false,
            seen,
        });
        Ok(())
    }

    /// A run has ended.
    pub(super) fn ended(&mut self, now: u64, machine: &str, report: Report) {
        let Some(known) = self.known.get_mut(machine) else {
            return;
        };
        let Some(UnderWay {
            mut row,
            began,
            progress,
            cancelled,
            seen,
            ..
        }) = known.running.take()
        else {
            return;
        };
        let span = tracing::info_span!("run", run = row.run, machine);
        let _entered = span.enter();
        let counted = progress.snapshot();
        row.ended_unix_ns = Some(now);
        row.read_bytes = counted.read_bytes;
        row.new_bytes = counted.new_bytes;
        row.stored_bytes = counted.stored_bytes;
        row.warning = report.warning;
        row.frozen = report.frozen;
        row.point_unix_ns = report.point_unix_ns;
        let outcome = match (&report.summary, &report.error) {
            (Some(summary), _) => {
                row.point = summary.point.map(|point| point.to_string());
                tracing::info!(
                    point = row.point,
                    read_bytes = row.read_bytes,
                    new_bytes = row.new_bytes,
                    stored_bytes = row.stored_bytes,
                    seconds = began.elapsed().as_secs_f64(),
                    "the backup is done: {}",
                    summary.reason
                );
                Outcome::Ok
            }
            (None, _) if cancelled => Outcome::Cancelled,
            (None, _) if self.stopping => Outcome::Interrupted,
            (None, _) => Outcome::Failed,
        };
        row.outcome = Some(outcome);
        if let Some(error) = &report.error {
            row.error = Some(Fault::from(error));
            match outcome {
                Outcome::Failed => tracing::error!(
                    error = error.chain(),
                    advice = error.advice(),
                    "the backup failed"
                ),
                _ => tracing::warn!(outcome = outcome.as_str(), "the backup was stopped"),
            }
        }
        metrics::count(
            metrics::HOST_RUNS,
            &[("machine", machine), ("result", outcome.as_str())],
            1,
        );
        let seconds = began.elapsed().as_secs_f64();
        metrics::observe(
            metrics::HOST_RUN_SECONDS,
            &[("result", outcome.as_str())],
            seconds,
        );
        let repository = [("repository", row.repository.as_str())];
        metrics::count(metrics::HOST_READ_BYTES, &repository, row.read_bytes);
        metrics::count(metrics::HOST_STORED_BYTES, &repository, row.stored_bytes);
        if let Some(summary) = &report.summary {
            metrics::count(metrics::HOST_REQUESTS, &repository, summary.requests);
            count_tracking(machine, summary);
        }
        if let Some(frozen) = &row.frozen {
            let held = Duration::from_nanos(frozen.held_ns).as_secs_f64();
            metrics::observe(metrics::HOST_HELD_SECONDS, &[("machine", machine)], held);
        }
        let hour = hour_of(report.summary.as_ref(), row.frozen.as_ref());
        let (number, hour) = known.remembered.count(now, &hour);
        self.state.save_hour(machine, number, hour);
        known.remembered.add(row.clone());
        known.remembered.history.took = match outcome {
            // By a clock that nobody sets.
            Outcome::Ok => Some(began.elapsed()),
            _ => known.remembered.history.took,
        };
        self.state.save_run(row.clone());
        seen.send_replace(Seen::Ended(Box::new(row)));
    }

    /// Does what the operator asks for.
    pub(super) fn order(&mut self, now: u64, request: Request) -> Result<Answer> {
        match request {
            Request::Status => {
                let status = Box::new(self.status(now));
                Ok(Answer::Reply(Box::new(Reply::Status(status))))
            }
            Request::Plan => {
                let Plan {
                    mut start,
                    waiting,
                    later,
                } = self.plan(now);
                start.extend(waiting);
                start.extend(later);
                Ok(Answer::Reply(Box::new(Reply::Plan { upcoming: start })))
            }
            Request::Run { machine, wait } => {
                let seen = self.request(now, &machine)?;
                match wait {
                    true => Ok(Answer::Watch(seen)),
                    false => Ok(Answer::done(format!(
                        "{machine} is backed up as soon as there is room"
                    ))),
                }
            }
            Request::Cancel { machine } => self.cancel(&machine),
            // The loop itself does it.
            Request::Reload => Err(Error::new(Kind::Bug, "a reload came the wrong way")),
        }
    }

    fn request(&mut self, now: u64, machine: &str) -> Result<watch::Receiver<Seen>> {
        let unprotected = self.unprotected.iter().any(|name| name == machine);
        let known = self
            .known
            .get_mut(machine)
            .filter(|known| known.selected.is_some());
        let Some(known) = known else {
            let (what, advice) = match unprotected {
                true => (
                    format!("machine {machine} is in no group"),
                    "add it to a group of the configuration, and reload",
                ),
                false => (
                    format!("there is no machine {machine}"),
                    "`tidegate status` lists them",
                ),
            };
            return Err(Error::new(Kind::Missing, what).advise(advice));
        };
        if let Some(running) = &known.running {
            return Err(Error::new(
                Kind::Conflict,
                format!(
                    "{machine} is being backed up already, by run {}",
                    running.row.run
                ),
            )
            .advise("`tidegate status` shows how far it is"));
        }
        if known.requested.is_some() {
            return Err(Error::new(
                Kind::Conflict,
                format!("a run of {machine} was asked for already and waits for room"),
            ));
        }
        let (seen, watching) = watch::channel(Seen::Waiting);
        known.requested = Some(Requested {
            at_unix_ns: now,
            seen,
        });
        Ok(watching)
    }

    fn cancel(&mut self, machine: &str) -> Result<Answer> {
        let known = self.known.get_mut(machine);
        let Some(known) = known else {
            return Err(
                Error::new(Kind::Missing, format!("there is no machine {machine}"))
                    .advise("`tidegate status` lists them"),
            );
        };
        if let Some(running) = &mut known.running {
            running.cancelled = true;
            running.stop.cancel();
            let run = &running.row.run;
            return Ok(Answer::done(format!(
                "run {run} of {machine} is being stopped"
            )));
        }
        if let Some(requested) = known.requested.take() {
            let error = Error::new(Kind::Interrupted, "the request was taken back");
            let _ = requested.seen.send(Seen::Refused(Fault::from(&error)));
            return Ok(Answer::done(format!(
                "the request for {machine} was taken back"
            )));
        }
        Err(Error::new(
            Kind::Missing,
            format!("no run of {machine} is under way"),
        ))
    }

    /// Asks all runs to stop. Says how many there are.
    pub(super) fn stop(&mut self) -> usize {
        self.stopping = true;
        let mut running = 0;
        for known in self.known.values_mut() {
            known.requested = None;
            if let Some(under_way) = &known.running {
                under_way.stop.cancel();
                running += 1;
            }
        }
        running
    }

    /// Writes the rest of the history. Blocks.
    pub(super) fn close(self) {
        self.state.close();
    }

    fn forget_gone(&mut self, now: u64) {
        let kept = u64::try_from(GONE_KEPT.as_nanos()).unwrap_or(u64::MAX);
        let (state, known) = (&self.state, &mut self.known);
        known.retain(|name, known| {
            let gone = known
                .remembered
                .gone_unix_ns
                .filter(|_| known.running.is_none());
            let forget = gone.is_some_and(|gone| gone.saturating_add(kept) < now);
            if forget {
                tracing::info!(
                    machine = name,
                    "the machine has been gone for long: it is forgotten"
                );
                state.forget(name);
            }
            !forget
        });
    }

    fn set_rates(&self, now: u64) {
        let zone = &self.settings.service.time_zone;
        let Some(now) = timestamp(now) else {
            return;
        };
        for (name, pacer) in &self.pacers {
            if let Some(policy) = self.settings.policies.get(name) {
                pacer.set(policy.limit_at(now, zone));
            }
        }
    }
}

/// The repository of a machine, opened once for all runs of alike.
fn place(
    places: &mut HashMap<(String, Congestion), Arc<Place>>,
    options: &Options,
    selected: &Selected,
) -> Arc<Place> {
    let (settings, congestion) = (&selected.repository, selected.policy.congestion);
    let key = (settings.name.clone(), congestion);
    match places.get(&key) {
        Some(place) if place.settings == *settings => Arc::clone(place),
        _ => {
            let place = Arc::new(Place::new(
                Arc::clone(settings),
                congestion,
                options.credentials.clone(),
            ));
            places.insert(key, Arc::clone(&place));
            place
        }
    }
}

fn row_of(name: &str, remembered: &Remembered) -> MachineRow {
    MachineRow {
        machine: name.to_owned(),
        first_seen_unix_ns: remembered.history.first_seen_unix_ns,
        gone_unix_ns: remembered.gone_unix_ns,
    }
}

fn timestamp(unix_ns: u64) -> Option<Timestamp> {
    Timestamp::from_nanosecond(unix_ns.into()).ok()
}

/// What a run adds to its hour.
fn hour_of(summary: Option<&BackupSummary>, frozen: Option<&FrozenRow>) -> Hour {
    let tracking = summary.map_or(&[][..], |summary| &summary.tracking);
    Hour {
        runs: 1,
        requests: summary.map_or(0, |summary| summary.requests),
        audited_blocks: tracking.iter().map(|disk| disk.audited_blocks).sum(),
        false_chunks: tracking.iter().map(|disk| disk.false_chunks).sum(),
        held_ns_max: frozen.map_or(0, |frozen| frozen.held_ns),
    }
}

/// What the run came to know of those who track changes.
fn count_tracking(machine: &str, summary: &BackupSummary) {
    let machine = [("machine", machine)];
    let sum = |of: fn(&DiskTracking) -> u64| summary.tracking.iter().map(of).sum::<u64>();
    let audited = sum(|disk| disk.audited_blocks);
    metrics::count(metrics::HOST_AUDITED_BLOCKS, &machine, audited);
    metrics::count(
        metrics::HOST_FALSE_CHUNKS,
        &machine,
        sum(|disk| disk.false_chunks),
    );
    // A first backup had nothing to go on from.
    if summary.mode == Mode::Incremental {
        let lost = sum(|disk| u64::from(disk.trackable && !disk.tracked));
        metrics::count(metrics::HOST_UNTRACKED, &machine, lost);
    }
}
