//! `tidegate status`, `run` and `cancel`: the host service, asked over its control socket.

use crate::args::{Cancel, Run, Service, Status};
use crate::context::Context;
use crate::exit::Outcome;
use crate::progress::{self, Job};
use crate::text;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tidegate_agent::host::control::{self, Client, MachineStanding, MachineStatus, Reply, Request};
use tidegate_agent::host::plan::{Upcoming, Why};
use tidegate_agent::host::state::{self, RunRow};
use tidegate_agent::progress::Progress;
use tidegate_agent::{Error, Kind, Result};

pub(super) async fn status(args: Status, context: &Context) -> Result<Outcome> {
    let request = match args.plan {
        true => Request::Plan,
        false => Request::Status,
    };
    let reply = ask(&args.service, &request, context).await?;
    match reply {
        Reply::Status(status) => {
            context.output.result(&status, || describe(&status))?;
            tell_trouble(&status, context);
        }
        Reply::Plan { upcoming } => context
            .output
            .result(&json!({ "upcoming": upcoming }), || list(&upcoming))?,
        other => return Err(unexpected(&other)),
    }
    Ok(Outcome::Done)
}

pub(super) async fn run(args: Run, context: &Context) -> Result<Outcome> {
    let request = Request::Run {
        machine: args.machine.clone(),
        wait: args.wait,
    };
    let mut client = context
        .or_stop(Client::ask(&args.service.socket, &request))
        .await?;
    if !args.wait {
        return done(context, client.next().await?);
    }
    let counters = Arc::new(Progress::default());
    let mut shown = None;
    let mut waits = false;
    let run = loop {
        match context.or_stop(client.next()).await? {
            Reply::Waiting if waits => {}
            Reply::Waiting => {
                waits = true;
                context.output.note("waiting for room");
            }
            Reply::Running { progress, .. } => {
                counters.set(&progress);
                shown.get_or_insert_with(|| {
                    progress::show(&context.output, Job::Backup, &args.machine, &counters)
                });
            }
            Reply::Ended { run } => break run,
            other => return Err(unexpected(&other)),
        }
    };
    drop(shown);
    match run.error {
        Some(fault) => Err(control::error_of(fault)),
        None => {
            if let Some(warning) = &run.warning {
                context.output.warn(warning);
            }
            context.output.result(&run, || describe_run(&run))?;
            Ok(Outcome::Done)
        }
    }
}

pub(super) async fn cancel(args: Cancel, context: &Context) -> Result<Outcome> {
    let request = Request::Cancel {
        machine: args.machine,
    };
    let reply = ask(&args.service, &request, context).await?;
    done(context, reply)
}

/// What has one answer.
async fn ask(service: &Service, request: &Request, context: &Context) -> Result<Reply> {
    let answered = async { Client::ask(&service.socket, request).await?.next().await };
    context.or_stop(answered).await
}

fn done(context: &Context, reply: Reply) -> Result<Outcome> {
    match reply {
        Reply::Done { message } => {
            let value = json!({ "message": message });
            context.output.result(&value, || format!("{message}\n"))?;
            Ok(Outcome::Done)
        }
        other => Err(unexpected(&other)),
    }
}

fn unexpected(reply: &Reply) -> Error {
    Error::new(
        Kind::Bug,
        format!("the host service answered what was not asked: {reply:?}"),
    )
}

fn tell_trouble(status: &control::Status, context: &Context) {
    if let Some(fault) = &status.reload_trouble {
        context.output.warn(&format!(
            "the configuration file was refused, and the old one is in force: {}",
            fault.message
        ));
    }
    if let Some(trouble) = &status.history_trouble {
        context
            .output
            .warn(&format!("the history of runs cannot be written: {trouble}"));
    }
    for name in &status.unprotected {
        context.output.warn(&format!(
            "machine {name} is in no group: it is not backed up"
        ));
    }
    for machine in &status.machines {
        if machine.audit.false_chunks > 0 {
            context.output.warn(&format!(
                "what tracks changes of machine {} has kept quiet about {} in the last 7 days: all was \
                 read and compared; look for what else writes to its disks",
                machine.machine,
                text::count(machine.audit.false_chunks, "chunk"),
            ));
        }
    }
    for remark in &status.remarks {
        context.output.warn(remark);
    }
}

fn describe(status: &control::Status) -> String {
    if status.machines.is_empty() {
        return "there are no machines\n".to_owned();
    }
    let seconds = |seconds: Option<f64>| match seconds {
        None => "–".to_owned(),
        Some(seconds) => {
            Duration::try_from_secs_f64(seconds).map_or_else(|_| "–".to_owned(), text::duration)
        }
    };
    let rows = status.machines.iter().map(|machine| {
        [
            machine.machine.clone(),
            seconds(machine.rpo_achieved_seconds),
            seconds(machine.rpo_promised_seconds),
            match machine.rpo_kept {
                None => "–",
                Some(true) => "kept",
                Some(false) => "BROKEN",
            }
            .to_owned(),
            last(machine),
            next(machine, status.now_unix_ns),
            machine.bytes_per_second.map_or_else(
                || "–".to_owned(),
                |rate| format!("{}/s", text::size(whole(rate))),
            ),
            changes(machine),
        ]
    });
    let header = [
        "machine", ">age", ">promise", "rpo", "last", "next", ">read", "changes",
    ];
    let mut told = text::table(header, rows);
    for (repository, requests) in requests_per_hour(&status.machines) {
        told.push_str(&format!(
            "{repository}: {requests:.0} requests an hour, over the last day\n"
        ));
    }
    told
}

/// Of all machines of a repository.
fn requests_per_hour(machines: &[MachineStatus]) -> BTreeMap<&str, f64> {
    let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
    for machine in machines.iter().filter(|it| !it.repository.is_empty()) {
        *sums.entry(&machine.repository).or_default() += machine.requests_per_hour;
    }
    sums.retain(|_, sum| *sum > 0.0);
    sums
}

/// Whether only what changed is read.
fn changes(machine: &MachineStatus) -> String {
    if machine.audit.false_chunks > 0 {
        return "WRONG TRACKER".to_owned();
    }
    let frozen = machine.last_ok.as_ref().and_then(|run| run.frozen.as_ref());
    let trackable = frozen.iter().flat_map(|it| &it.tracking);
    let trackable = trackable.filter(|disk| disk.trackable);
    let tracked = trackable.clone().filter(|disk| disk.tracked).count();
    match (tracked, trackable.count()) {
        (_, 0) => "–".to_owned(),
        (tracked, all) if tracked == all => "tracked".to_owned(),
        (tracked, all) => format!("{tracked} of {all} disks tracked"),
    }
}

fn last(machine: &MachineStatus) -> String {
    let Some(run) = &machine.last else {
        return "–".to_owned();
    };
    let word = run.outcome.map_or("–", state::Outcome::as_str);
    let ended = run.ended_unix_ns.unwrap_or(run.started_unix_ns);
    match (&run.outcome, &run.error) {
        (Some(state::Outcome::Failed), Some(fault)) => {
            format!("{word} ({}), {}", fault.kind, text::local_time(ended))
        }
        _ => format!("{word}, {}", text::local_time(ended)),
    }
}

fn next(machine: &MachineStatus, now_unix_ns: u64) -> String {
    match (machine.standing, &machine.running, machine.next_unix_ns) {
        (_, Some(running), _) => {
            let progress = &running.progress;
            format!(
                "running, {}",
                text::share(progress.done_bytes, progress.total_bytes)
            )
        }
        (MachineStanding::Gone, ..) => "its images are gone".to_owned(),
        (MachineStanding::Waiting, ..) => "waits for room".to_owned(),
        (_, None, Some(due)) => {
            let left = Duration::from_nanos(due.saturating_sub(now_unix_ns));
            format!("in {}", text::duration(left))
        }
        (_, None, None) => "never".to_owned(),
    }
}

fn list(upcoming: &[Upcoming]) -> String {
    let rows = upcoming.iter().map(|up| {
        [
            text::local_time(up.due_unix_ns),
            up.machine.clone(),
            match up.why {
                Why::Policy => "by its policy",
                Why::CaughtUp => "missed, is caught up",
                Why::First => "the first one",
                Why::Retry => "after a failure",
                Why::Interrupted => "was interrupted",
                Why::Clock => "the clock was set back",
                Why::Requested => "was asked for",
                Why::Together => "with its group",
            }
            .to_owned(),
        ]
    });
    text::table(["due", "machine", "why"], rows)
}

fn describe_run(run: &RunRow) -> String {
    let point = run.point.as_deref().unwrap_or("–");
    let took = run
        .ended_unix_ns
        .unwrap_or(run.started_unix_ns)
        .saturating_sub(run.started_unix_ns);
    format!(
        "{}@{}: read {}, new {}, stored {}, took {}\n",
        run.machine,
        point.get(..8).unwrap_or(point),
        text::size(run.read_bytes),
        text::size(run.new_bytes),
        text::size(run.stored_bytes),
        text::seconds(Duration::from_nanos(took).as_secs_f64()),
    )
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "for a person to read"
)]
fn whole(rate: f64) -> u64 {
    rate as u64
}
