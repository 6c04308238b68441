//! `tidegate backup`: disk images of one machine into one recovery point.

use crate::args::{Backup, Global};
use crate::context::{Context, blocking};
use crate::exit::Outcome;
use crate::parse;
use crate::progress::{self, Job};
use crate::settings::Settings;
use crate::text;
use std::collections::HashSet;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tidegate_agent::format::Format;
use tidegate_agent::progress::Progress;
use tidegate_agent::replicate::{
    self, BackupRequest, BackupSettings, BackupSummary, DiskToBackUp, Mode,
};
use tidegate_agent::source::{OpenSettings, Source, open_source};
use tidegate_agent::{Error, Kind, Result};

pub(super) async fn run(global: &Global, args: Backup, context: &Context) -> Result<Outcome> {
    let settings = Settings::load(global, &args.access.repository, &args.access.key)?;
    let machine = machine_name(args.machine.clone(), &args.images)?;
    let disks = open_disks(&args.images, &how_to_open(&args, &settings)).await?;
    let repository = context.open(&settings).await?;
    let mut how = settings_of(&settings);
    if let Some(workers) = args.workers {
        how.workers = workers.into();
    }
    if let Some(level) = args.compression_level {
        how.compression_level = level;
    }
    let request = BackupRequest {
        machine: machine.clone(),
        disks,
        host: host_name(),
        dry_run: args.dry_run,
        settings: how,
    };
    let counters = Arc::new(Progress::default());
    let shown = progress::show(&context.output, Job::Backup, &machine, &counters);
    let done = replicate::backup(&repository, request, counters, context.stop.clone()).await;
    drop(shown);
    let summary = done.map_err(|error| match error.kind() {
        Kind::Interrupted => error
            .advise("what has landed in the store is kept: the same command goes on from there"),
        _ => error,
    })?;
    context.output.result(&summary, || describe(&summary))?;
    Ok(Outcome::Done)
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

/// Opens the images; each disk is named after its file.
pub(super) async fn open_disks(
    images: &[PathBuf],
    how: &OpenSettings,
) -> Result<Vec<DiskToBackUp>> {
    let names = disk_names(images)?;
    let mut disks = Vec::with_capacity(images.len());
    for (name, path) in names.into_iter().zip(images) {
        let (path, how) = (path.clone(), how.clone());
        let (source, format) = blocking(move || {
            let source: Arc<dyn Source> = Arc::from(open_source(&path, &how)?);
            Ok((source, format_of(&path, how.format)))
        })
        .await?;
        disks.push(DiskToBackUp {
            name,
            source,
            format: format.to_string(),
        });
    }
    Ok(disks)
}

/// The format that an image was opened as: by [`tidegate_agent::format::choose`], one that opened
/// without being asked for is what its name says.
fn format_of(path: &Path, asked: Option<Format>) -> Format {
    let is_device = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
    let named = (!is_device).then(|| Format::from_suffix(path)).flatten();
    asked.or(named).unwrap_or(Format::Raw)
}

fn how_to_open(args: &Backup, settings: &Settings) -> OpenSettings {
    let folders = args.backing_folder.iter().chain(&settings.backing_folders);
    OpenSettings {
        format: args.format,
        backing_folders: folders.cloned().collect(),
        skip_check: args.skip_check,
    }
}

/// This host's name, for the record.
pub(super) fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

fn machine_name(given: Option<String>, images: &[PathBuf]) -> Result<String> {
    match (given, images) {
        (Some(name), _) => Ok(name),
        (None, [image]) => name_of(image),
        (None, _) => Err(Error::new(
            Kind::Config,
            "several images, and no machine is named that they belong to",
        )
        .advise("give --machine NAME; or back the images up one by one")),
    }
}

fn name_of(image: &Path) -> Result<String> {
    parse::name_from_path(image).ok_or_else(|| {
        Error::new(
            Kind::Config,
            format!("no name can be made from {}", image.display()),
        )
        .advise("give the image a file name; or name the machine with --machine")
    })
}

/// A name for each image, its stem, made unique by a number where two are alike.
fn disk_names(images: &[PathBuf]) -> Result<Vec<String>> {
    let mut taken = HashSet::new();
    let mut names = Vec::with_capacity(images.len());
    for image in images {
        let stem = name_of(image)?;
        let name = (1_u64..)
            .map(|number| match number {
                1 => stem.clone(),
                _ => format!("{stem}-{number}"),
            })
            .find(|name| !taken.contains(name))
            .unwrap_or_else(|| stem.clone());
        taken.insert(name.clone());
        names.push(name);
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn disks_are_named_after_their_files_and_never_alike() {
        let images = ["a/disk.raw", "b/disk.qcow2", "disk-2.raw", "c/disk.vhd"].map(PathBuf::from);
        assert_eq!(
            disk_names(&images).unwrap(),
            ["disk", "disk-2", "disk-2-2", "disk-3"]
        );
    }

    #[test]
    fn several_images_need_a_machine() {
        let one = [PathBuf::from("web01.qcow2")];
        assert_eq!(machine_name(None, &one).unwrap(), "web01");
        let two = [PathBuf::from("root.qcow2"), PathBuf::from("data.raw")];
        assert_eq!(machine_name(None, &two).unwrap_err().kind(), Kind::Config);
        assert_eq!(machine_name(Some("m".to_owned()), &two).unwrap(), "m");
    }
}
