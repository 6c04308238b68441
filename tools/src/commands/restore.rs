//! `tidegate restore`: a point's disks onto files and devices, or the whole machine.
//!
//! The rule of safety: nothing that exists is written to unless the operator said so, by `--in-place`
//! (make it equal) or `--overwrite` (replace it). All destinations are judged before the first byte
//! is written to any of them.

mod define;
mod destination;
mod readback;

use crate::args::{Global, Restore};
use crate::context::{Context, blocking};
use crate::exit::Outcome;
use crate::progress::{self, Job};
use crate::settings::Settings;
use crate::text;
use destination::{Destination, Wish};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;
use tidegate_agent::durable;
use tidegate_agent::format::Format;
use tidegate_agent::live::libvirt::PlacedDisk;
use tidegate_agent::progress::Progress;
use tidegate_agent::recover::{self, RestoreMode, RestorePlan, RestoreSettings, RestoreSummary};
use tidegate_agent::repository::{Point, PointDisk, Repository};
use tidegate_agent::target::{self, ConvertSettings, Target};
use tidegate_agent::{Error, Kind, Result};
use tidegate_protocol::keys::Level;
use tidegate_protocol::wire::Priority;

#[derive(Serialize)]
struct Answer {
    machine: String,
    point: String,
    dry_run: bool,
    disks: Vec<DiskAnswer>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    machine_defined: Option<define::Defined>,
}

#[derive(Serialize)]
struct DiskAnswer {
    path: PathBuf,
    format: &'static str,
    /// Read back and found equal; `false` where that was not asked for.
    verified: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<RestorePlan>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    summary: Option<RestoreSummary>,
    #[serde(skip)]
    disk: PointDisk,
}

pub(super) async fn run(global: &Global, args: Restore, context: &Context) -> Result<Outcome> {
    let mut settings = Settings::load(global, &args.access.repository, &args.access.key)?;
    // Somebody waits for the disk: before every backup of the house.
    settings.store.link.priority = Priority::Restore;
    let repository = context.open(&settings).await?;
    if !args.dry_run {
        ensure_may_read(&repository)?;
    }
    let point = repository.resolve(&args.spec.machine, &args.spec.selector)?;
    let disks = chosen(&point, args.disk.as_deref())?;
    let work = Work {
        repository: &repository,
        context,
        verify: args.verify,
        settings: engine_settings(&settings, &args),
    };
    let machine = match args.machine.define {
        true if !args.dry_run => Some(define::Machine::new(&work, &point, &args.machine).await?),
        _ => None,
    };
    let destinations = destinations(&args, &disks).await?;

    let mut answers = Vec::new();
    for (disk, destination) in disks.iter().zip(destinations) {
        let mut answer = DiskAnswer {
            path: destination.path().to_owned(),
            format: destination.format().as_str(),
            verified: false,
            plan: None,
            summary: None,
            disk: (*disk).clone(),
        };
        if args.dry_run {
            let plan = recover::restore_plan(&repository, disk);
            answer.plan = Some(context.or_stop(plan).await?);
        } else {
            answer.summary = Some(work.restore(disk, &destination).await?);
            answer.verified = args.verify;
        }
        answers.push(answer);
    }
    let machine_defined = match machine {
        None => None,
        Some(machine) => {
            let mut placed = BTreeMap::new();
            for answer in &answers {
                let disk = PlacedDisk {
                    path: define::whole(&answer.path)?,
                    format: answer.format.to_owned(),
                };
                placed.insert(answer.disk.name.clone(), disk);
            }
            Some(machine.define(&args.to, placed).await?)
        }
    };
    let answer = Answer {
        machine: point.machine.clone(),
        point: point.id.to_string(),
        dry_run: args.dry_run,
        disks: answers,
        machine_defined,
    };
    context
        .output
        .result(&answer, || describe(&point, &answer))?;
    Ok(Outcome::Done)
}

/// Where each disk goes; makes the folder for them.
async fn destinations(args: &Restore, disks: &[&PointDisk]) -> Result<Vec<Destination>> {
    let wish = Wish {
        format: args.format,
        subformat: args.subformat.clone(),
        compress: args.compress,
        in_place: args.in_place,
        overwrite: args.overwrite,
    };
    let wanted = |disk: &PointDisk| destination::Disk {
        name: disk.name.clone(),
        size_bytes: disk.size_bytes,
    };
    let groups: Vec<(PathBuf, Vec<destination::Disk>, Wish)> = match args.machine.define {
        false => {
            let all = disks.iter().map(|disk| wanted(disk)).collect();
            vec![(args.to.clone(), all, wish)]
        }
        // A machine's disks stay in the format that it knows, each in its own place.
        true => disks
            .iter()
            .map(|disk| {
                let mut places = args.machine.place.iter();
                let placed = places.find(|(name, _)| *name == disk.name);
                let to = placed.map_or_else(|| args.to.join(""), |(_, path)| path.clone());
                let known = disk.source_format.parse().ok();
                let known = known.filter(|format| matches!(format, Format::Raw | Format::Qcow2));
                let format = args.format.or(known).or(Some(Format::Qcow2));
                let wish = Wish {
                    format,
                    ..wish.clone()
                };
                (to, vec![wanted(disk)], wish)
            })
            .collect(),
    };
    let dry_run = args.dry_run;
    // What a machine needs besides its disks goes there too.
    let folder = args.machine.define.then(|| args.to.clone());
    blocking(move || {
        let mut destinations = Vec::new();
        let mut folders: BTreeSet<PathBuf> = BTreeSet::new();
        for (to, disks, wish) in &groups {
            let chosen = destination::choose(to, disks, wish)?;
            folders.extend(chosen.new_folder);
            destinations.extend(chosen.destinations);
        }
        folders.extend(folder.filter(|folder| !folder.exists()));
        for folder in folders.iter().filter(|_| !dry_run) {
            durable::create_folder(folder, 0o777).map_err(|error| {
                Error::io(
                    format!("cannot make the folder {}", folder.display()),
                    error,
                )
            })?;
        }
        Ok(destinations)
    })
    .await
}

/// Refuses before anything is made of the target.
fn ensure_may_read(repository: &Repository) -> Result<()> {
    let level = repository.keys().level();
    if level == Level::Restore {
        return Ok(());
    }
    Err(Error::new(
        Kind::Denied,
        format!("the key in use is a {level} key, which cannot read disk content"),
    )
    .advise("name a restore key with --key or TIDEGATE_KEY"))
}

/// The disks that were asked for; or what else is stored under that name.
fn chosen<'a>(point: &'a Point, name: Option<&str>) -> Result<Vec<&'a PointDisk>> {
    let Some(name) = name else {
        return Ok(point.disks.iter().collect());
    };
    let found = point.contents().find(|disk| disk.name == name);
    found.map(|disk| vec![disk]).ok_or_else(|| {
        let there: Vec<_> = point.contents().map(|disk| disk.name.as_str()).collect();
        Error::new(
            Kind::Missing,
            format!(
                "{}@{} has no disk {name:?}: it has {}",
                point.machine,
                point.id.short(),
                there.join(", ")
            ),
        )
    })
}

fn engine_settings(settings: &Settings, args: &Restore) -> RestoreSettings {
    let mut how = RestoreSettings {
        verify: args.verify,
        ..RestoreSettings::default()
    };
    if let Some(fetches) = settings.fetches_in_flight {
        how.fetches_in_flight = fetches;
    }
    how
}

/// Brings back one disk.
struct Work<'a> {
    repository: &'a Arc<Repository>,
    context: &'a Context,
    verify: bool,
    settings: RestoreSettings,
}

impl Work<'_> {
    async fn restore(&self, disk: &PointDisk, destination: &Destination) -> Result<RestoreSummary> {
        let counters = Arc::new(Progress::default());
        let shown = progress::show(&self.context.output, Job::Restore, &disk.name, &counters);
        let done = match destination {
            Destination::New { path, overwrite } => {
                let (path, overwrite, size_bytes) = (path.clone(), *overwrite, disk.size_bytes);
                let (target, mode) =
                    blocking(move || new_target(&path, size_bytes, overwrite)).await?;
                self.write(disk, target, mode, counters).await
            }
            Destination::InPlace { path } => {
                let (path, size_bytes) = (path.clone(), disk.size_bytes);
                let target = blocking(move || target::open_in_place(&path, size_bytes)).await?;
                self.write(disk, target, RestoreMode::InPlace, counters)
                    .await
            }
            Destination::Convert { path, how } => self.convert(disk, path, how, counters).await,
        };
        drop(shown);
        done.map_err(|error| match (error.kind(), destination) {
            (Kind::Interrupted, Destination::Convert { .. }) => {
                error.advise("run the same command again; a converted image starts anew")
            }
            (Kind::Interrupted, _) => {
                error.advise("what was written is kept: the same command goes on from there")
            }
            _ => error,
        })
    }

    async fn write(
        &self,
        disk: &PointDisk,
        target: Box<dyn Target>,
        mode: RestoreMode,
        counters: Arc<Progress>,
    ) -> Result<RestoreSummary> {
        let target: Arc<dyn Target> = Arc::from(target);
        let summary = recover::restore_disk(
            self.repository,
            disk,
            Arc::clone(&target),
            mode,
            &self.settings,
            counters,
            self.context.stop.clone(),
        )
        .await?;
        blocking(move || target.finish()).await?;
        Ok(summary)
    }

    async fn convert(
        &self,
        disk: &PointDisk,
        path: &Path,
        how: &ConvertSettings,
        counters: Arc<Progress>,
    ) -> Result<RestoreSummary> {
        let started = Instant::now();
        let before = self.repository.store().requests();
        let plan = recover::restore_plan(self.repository, disk).await?;
        let export = recover::export(self.repository, disk)?;
        counters.add_total(disk.size_bytes);
        let size_bytes = disk.size_bytes;
        let advance = {
            let counters = Arc::clone(&counters);
            let shown_bytes = AtomicU64::new(0);
            move |share: f64| {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    clippy::cast_precision_loss,
                    reason = "for a person to read"
                )]
                let done_bytes = (size_bytes as f64 * share.clamp(0.0, 1.0)) as u64;
                let before = shown_bytes.fetch_max(done_bytes, Relaxed);
                counters.add_done(done_bytes.saturating_sub(before));
            }
        };
        self.context
            .or_stop(target::convert(Arc::clone(&export), path, how, advance))
            .await?;
        if self.verify {
            self.context
                .or_stop(readback::compare(export, path.to_owned(), how.format))
                .await?;
        }
        let after = self.repository.store().requests();
        Ok(RestoreSummary {
            disk: disk.name.clone(),
            virtual_bytes: disk.size_bytes,
            data_bytes: plan.data_bytes,
            fetched_bytes: after.bytes_down - before.bytes_down,
            written_bytes: plan.data_bytes,
            zeroed_bytes: 0,
            kept_bytes: 0,
            requests: after.gets - before.gets,
            seconds: started.elapsed().as_secs_f64(),
        })
    }
}

/// A new image, or the one that an interrupted restore left unfinished.
fn new_target(
    path: &Path,
    size_bytes: u64,
    overwrite: bool,
) -> Result<(Box<dyn Target>, RestoreMode)> {
    if target::partial_path(path)?.symlink_metadata().is_ok() {
        // What it holds is compared before it is believed: it may stem from another point.
        let target = target::resume_partial(path, size_bytes, overwrite)?;
        return Ok((target, RestoreMode::InPlace));
    }
    let target = target::create_file(path, size_bytes, overwrite)?;
    Ok((target, RestoreMode::New))
}

fn describe(point: &Point, answer: &Answer) -> String {
    let mut out = format!(
        "{}@{}, taken {}\n",
        point.machine,
        point.id.short(),
        text::local_time(point.taken_unix_ns)
    );
    for disk in &answer.disks {
        out.push_str(&disk.describe());
    }
    if let Some(defined) = &answer.machine_defined {
        let runs = if defined.started { ", and runs" } else { "" };
        out.push_str(&format!("  domain {} is defined{runs}\n", defined.domain));
        if !defined.without.is_empty() {
            let without = defined.without.join(", ");
            out.push_str(&format!(
                "  without {without}: the point does not hold what was there\n"
            ));
        }
    }
    if answer.dry_run {
        out.push_str("a dry run: nothing was written\n");
    }
    out
}

impl DiskAnswer {
    fn describe(&self) -> String {
        let headline = format!(
            "  {} → {} ({}, {})\n",
            self.disk.name,
            self.path.display(),
            self.format,
            text::size(self.disk.size_bytes),
        );
        if let Some(plan) = &self.plan {
            return format!(
                "{headline}\x20   {} of data; {} to fetch from {} in {}\n",
                text::size(plan.data_bytes),
                text::size(plan.fetched_bytes),
                text::count(plan.packs, "pack"),
                text::count(plan.requests, "request"),
            );
        }
        let Some(summary) = &self.summary else {
            return headline;
        };
        let kept = if summary.kept_bytes > 0 {
            format!(", kept {}", text::size(summary.kept_bytes))
        } else {
            String::new()
        };
        let verified = if self.verified {
            "; read back, equal"
        } else {
            ""
        };
        format!(
            "{headline}\x20   {} of data: fetched {}, wrote {}{kept}; {}, {}, {}{verified}\n",
            text::size(summary.data_bytes),
            text::size(summary.fetched_bytes),
            text::size(summary.written_bytes),
            text::seconds(summary.seconds),
            text::rate(summary.data_bytes, summary.seconds),
            text::count(summary.requests, "request"),
        )
    }
}
