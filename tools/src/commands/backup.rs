//! `tidegate backup`: one machine into one recovery point, by its disk images or while it runs.

use crate::args::{Backup, Global, QuiesceArg};
use crate::context::Context;
use crate::exit::Outcome;
use crate::progress::{self, Job};
use crate::settings::Settings;
use crate::text;
use std::path::PathBuf;
use std::sync::Arc;
use tidegate_agent::live::libvirt::Libvirt;
use tidegate_agent::live::{FreezeSettings, Quiesce, ScratchSettings};
use tidegate_agent::progress::Progress;
use tidegate_agent::replicate::{
    self, BackupRequest, BackupSettings, BackupSummary, Hypervisor, Mode, RunningRequest,
    RunningSummary,
};
use tidegate_agent::retention::Keep;
use tidegate_agent::source::OpenSettings;
use tidegate_agent::{Error, Kind, Result};

pub(super) async fn run(global: &Global, args: Backup, context: &Context) -> Result<Outcome> {
    let settings = Settings::load(global, &args.access.repository, &args.access.key)?;
    if let Some(hypervisor) = hypervisor(&args) {
        return running(hypervisor, args, &settings, context).await;
    }
    let machine = machine_name(args.machine.clone(), &args.images)?;
    let how = how_to_open(&args, &settings);
    let (repository, disks, stamps) = if args.snapshot {
        let repository = context.open(&settings).await?;
        let opened = replicate::open_snapshots(&repository, &machine, &args.images, &how).await?;
        (repository, opened.0, opened.1)
    } else {
        let disks = replicate::open_images(&args.images, &how).await?;
        (context.open(&settings).await?, disks, Vec::new())
    };
    let request = BackupRequest {
        machine: machine.clone(),
        disks,
        host: replicate::host_name(),
        moment: None,
        keep: keep(&args),
        dry_run: args.dry_run,
        settings: settings_for(&args, &settings),
    };
    let counters = Arc::new(Progress::default());
    let shown = progress::show(&context.output, Job::Backup, &machine, &counters);
    let done = replicate::backup(&repository, request, counters, context.stop.clone()).await;
    drop(shown);
    let summary = done.map_err(interrupted)?;
    if let Some(point) = summary.point {
        replicate::remember(&repository, stamps, point).await;
    }
    context.output.result(&summary, || describe(&summary))?;
    Ok(Outcome::Done)
}

/// A machine while it runs.
async fn running(
    hypervisor: Hypervisor,
    args: Backup,
    settings: &Settings,
    context: &Context,
) -> Result<Outcome> {
    let repository = context.open(settings).await?;
    let shown_as = match (&args.machine, &hypervisor) {
        (Some(name), _) | (None, Hypervisor::Libvirt(_, name)) => name.clone(),
        (None, Hypervisor::Qmp(socket)) => socket.display().to_string(),
    };
    let request = RunningRequest {
        machine: args.machine.clone(),
        hypervisor,
        seat: None,
        freeze: FreezeSettings {
            scratch: ScratchSettings {
                folder: args.live.scratch.clone(),
                bytes_max: args.live.scratch_max,
                reserve_bytes: args.live.scratch_reserve,
            },
            quiesce: match args.live.quiesce {
                QuiesceArg::Off => Quiesce::Off,
                QuiesceArg::Prefer => Quiesce::Prefer,
                QuiesceArg::Require => Quiesce::Require,
            },
            // Who kills this command spares its guard.
            notes: None,
        },
        host: replicate::host_name(),
        keep: keep(&args),
        dry_run: args.dry_run,
        settings: settings_for(&args, settings),
    };
    let counters = Arc::new(Progress::default());
    let shown = progress::show(&context.output, Job::Backup, &shown_as, &counters);
    let stop = context.stop.clone();
    let done = replicate::back_up_running(&repository, request, counters, stop).await;
    drop(shown);
    let summary = done.map_err(interrupted)?;
    context
        .output
        .result(&summary, || describe_running(&summary))?;
    Ok(Outcome::Done)
}

fn hypervisor(args: &Backup) -> Option<Hypervisor> {
    match (&args.vm, &args.qmp) {
        (Some(domain), _) => Some(Hypervisor::Libvirt(
            Libvirt::new(args.live.connect.clone()),
            domain.clone(),
        )),
        (None, Some(socket)) => Some(Hypervisor::Qmp(socket.clone())),
        (None, None) => None,
    }
}

fn interrupted(error: Error) -> Error {
    match error.kind() {
        Kind::Interrupted => error
            .advise("what has landed in the store is kept: the same command goes on from there"),
        _ => error,
    }
}

/// The summary of a running machine's backup, for people.
fn describe_running(summary: &RunningSummary) -> String {
    let mut told = describe(&summary.backup);
    told.push_str(&format!(
        "\x20 moment  {}, writes of the guest held for at most {}\n",
        match summary.consistency {
            "offline" => "the machine was off",
            "application" => "file systems of the guest frozen (application-consistent)",
            _ => "as after a power cut (crash-consistent)",
        },
        text::seconds(summary.held_seconds),
    ));
    for out in &summary.left_out {
        told.push_str(&format!("  left out {}: {}\n", out.name, out.why));
    }
    told
}

/// The summary of a backup, for people.
pub(super) fn describe(summary: &BackupSummary) -> String {
    let mode = match summary.mode {
        Mode::Full => "full",
        Mode::Incremental => "incremental",
    };
    let headline = match &summary.point {
        Some(point) => format!("{}@{}: {mode}", summary.machine, point.short()),
        None => format!("{}: {mode}, a dry run: nothing was stored", summary.machine),
    };
    format!(
        "{headline} ({reason})\n\
         \x20 disks   {virtual_size}, of which {allocated} allocated, {read} read, {chunks}\n\
         \x20 new     {new}, stored as {stored} in {packs}\n\
         \x20 took    {seconds}, {rate}, {requests}\n",
        reason = summary.reason,
        virtual_size = text::size(summary.virtual_bytes),
        allocated = text::size(summary.allocated_bytes),
        read = text::size(summary.read_bytes),
        new = text::size(summary.new_bytes),
        stored = text::size(summary.stored_bytes),
        packs = text::count(summary.packs, "pack"),
        chunks = text::count(summary.chunks, "chunk"),
        seconds = text::seconds(summary.seconds),
        rate = text::rate(summary.read_bytes, summary.seconds),
        requests = text::count(summary.requests, "request"),
    )
}

/// The engine's settings, where the configuration says nothing else.
pub(super) fn settings_of(settings: &Settings) -> BackupSettings {
    let mut how = BackupSettings::default();
    if let Some(workers) = settings.workers {
        how.workers = workers;
    }
    if let Some(level) = settings.compression_level {
        how.compression_level = level;
    }
    if let Some(bytes) = settings.pack_bytes {
        how.pack_bytes = bytes;
    }
    if let Some(uploads) = settings.uploads_in_flight {
        how.uploads_in_flight = uploads;
    }
    how
}

/// The same where the command line says nothing else.
fn settings_for(args: &Backup, settings: &Settings) -> BackupSettings {
    let mut how = settings_of(settings);
    how.audit_ppm = args.audit_ppm;
    if let Some(workers) = args.workers {
        how.workers = workers.into();
    }
    if let Some(level) = args.compression_level {
        how.compression_level = level;
    }
    how
}

fn keep(args: &Backup) -> Keep {
    args.keep.map_or(Keep::WithoutEnd, Keep::For)
}

fn how_to_open(args: &Backup, settings: &Settings) -> OpenSettings {
    let folders = args.backing_folder.iter().chain(&settings.backing_folders);
    OpenSettings {
        format: args.format,
        backing_folders: folders.cloned().collect(),
        skip_check: args.skip_check,
    }
}

fn machine_name(given: Option<String>, images: &[PathBuf]) -> Result<String> {
    match (given, images) {
        (Some(name), _) => Ok(name),
        (None, [image]) => replicate::name_of(image),
        (None, _) => Err(Error::new(
            Kind::Config,
            "several images, and no machine is named that they belong to",
        )
        .advise("give --machine NAME; or back the images up one by one")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn several_images_need_a_machine() {
        let one = [PathBuf::from("web01.qcow2")];
        assert_eq!(machine_name(None, &one).unwrap(), "web01");
        let two = [PathBuf::from("root.qcow2"), PathBuf::from("data.raw")];
        assert_eq!(machine_name(None, &two).unwrap_err().kind(), Kind::Config);
        assert_eq!(machine_name(Some("m".to_owned()), &two).unwrap(), "m");
    }
}
