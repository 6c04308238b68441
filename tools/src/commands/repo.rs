//! `tidegate repo`: what the repository is and holds.

use crate::args::{Global, Repo, RepoBundle, RepoCommand};
use crate::context::Context;
use crate::exit::Outcome;
use crate::progress::{self, Job};
use crate::settings::{Settings, make_private_folder};
use crate::{keys, text};
use serde::Serialize;
use std::sync::Arc;
use tidegate_agent::Result;
use tidegate_agent::progress::Progress;
use tidegate_agent::repository::{
    BundleSettings, Bundled, Merged, Repository, RepositoryInfo, RepositoryStats,
};

pub(super) async fn run(global: &Global, args: Repo, context: &Context) -> Result<Outcome> {
    let load =
        |args: &RepoCommand| Settings::load(global, &args.access.repository, &args.access.key);
    match args {
        Repo::Info(args) => {
            let repository = context.open(&load(&args)?).await?;
            let info = repository.info()?;
            context.output.result(&info, || describe_info(&info))?;
        }
        Repo::Stats(args) => {
            let repository = context.open(&load(&args)?).await?;
            let stats = context.or_stop(repository.stats()).await?;
            context.output.result(&stats, || describe_stats(&stats))?;
        }
        Repo::Bundle(args) => bundle(global, &args, context).await?,
        Repo::RebuildCache(args) => {
            let settings = load(&args)?;
            let store = context.store(&settings)?;
            let keys = context.or_stop(keys::load(&store, &settings)).await?;
            make_private_folder(&settings.cache_dir)?;
            let repository = context
                .or_stop(Repository::rebuild_cache(store, keys, &settings.cache_dir))
                .await?;
            let info = repository.info()?;
            context.output.result(&info, || {
                format!("the cache was built again\n\n{}", describe_info(&info))
            })?;
        }
    }
    Ok(Outcome::Done)
}

#[derive(Serialize)]
struct BundleAnswer {
    dry_run: bool,
    #[serde(flatten)]
    packs: Bundled,
    index: Merged,
}

async fn bundle(global: &Global, args: &RepoBundle, context: &Context) -> Result<()> {
    let settings = Settings::load(global, &args.access.repository, &args.access.key)?;
    let repository = context.open(&settings).await?;
    let how = BundleSettings::default();
    let (packs, index) = if args.dry_run {
        (
            repository.plan_bundles(&how).await?,
            repository.plan_merge(&how).await?,
        )
    } else {
        let counters = Arc::new(Progress::default());
        let shown = progress::show(&context.output, Job::Bundle, "bundle", &counters);
        let packs = repository.bundle(&how, &counters, &context.stop).await;
        drop(shown);
        let packs = packs?;
        (packs, repository.merge_segments(&how, &context.stop).await?)
    };
    let answer = BundleAnswer {
        dry_run: args.dry_run,
        packs,
        index,
    };
    context.output.result(&answer, || answer.describe())
}

impl BundleAnswer {
    fn describe(&self) -> String {
        let done = &self.packs;
        let packs = format!(
            "{}, {}, in {}",
            text::count(done.packs, "pack"),
            text::size(done.bytes),
            text::count(done.bundles, "bundle")
        );
        let segments = format!(
            "{} in {}",
            text::count(self.index.segments, "index segment"),
            self.index.written
        );
        let deleted = done.deleted + self.index.deleted;
        let labels = match self.dry_run {
            true => ["would put together", "would delete"],
            false => ["put together", "deleted"],
        };
        text::list([
            (labels[0], packs),
            ("", segments),
            (labels[1], text::count(deleted, "object")),
            ("small packs that wait", done.waiting.to_string()),
        ])
    }
}

fn describe_info(info: &RepositoryInfo) -> String {
    text::list([
        ("repository", info.repository.to_string()),
        ("location", info.location.clone()),
        ("format version", info.format_version.to_string()),
        ("made", text::local_time(info.created_unix_ns)),
        ("chunker", info.chunker.clone()),
        (
            "key in use",
            format!("{} ({})", info.key.short(), info.key_level),
        ),
        ("log records", info.head.to_string()),
        ("machines", info.machines.to_string()),
        ("points", info.points.to_string()),
        ("index segments", info.segments.to_string()),
    ])
}

fn describe_stats(stats: &RepositoryStats) -> String {
    let of = |count: u64, bytes: u64| format!("{count}, {}", text::size(bytes));
    text::list([
        (
            "points",
            format!(
                "{}, of {}",
                stats.points,
                text::count(stats.machines, "machine")
            ),
        ),
        (
            "their disks",
            format!(
                "{}, of which {} allocated",
                text::size(stats.virtual_bytes),
                text::size(stats.allocated_bytes)
            ),
        ),
        ("unique chunks", of(stats.chunks, stats.chunk_bytes)),
        ("packs", of(stats.packs, stats.pack_bytes)),
        ("index segments", of(stats.segments, stats.segment_bytes)),
        ("log records", of(stats.records, stats.log_bytes)),
        ("checkpoints", stats.checkpoints.to_string()),
    ])
}
