//! `tidegate demo`: the main job from end to end, with nothing but this program.
//!
//! Makes a repository in a folder of its own, backs an image up twice, restores it and compares the
//! two byte for byte. It runs the very code that the other commands run.

mod sample;

use crate::args::Demo;
use crate::commands::{backup, init};
use crate::context::{Context, blocking};
use crate::exit::Outcome;
use crate::parse;
use crate::progress::{self, Job};
use crate::settings::make_private_folder;
use crate::text;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use tidegate_agent::name;
use tidegate_agent::progress::Progress;
use tidegate_agent::recover::{self, RestoreMode, RestoreSettings, RestoreSummary};
use tidegate_agent::replicate::{self, BackupRequest, BackupSettings, BackupSummary};
use tidegate_agent::repository::{Repository, Selector, read_key_file};
use tidegate_agent::retention::Keep;
use tidegate_agent::source::OpenSettings;
use tidegate_agent::store::{Store, StoreSettings};
use tidegate_agent::target::{self, Target};
use tidegate_agent::{Error, Kind, Result};

pub(super) async fn run(args: Demo, context: &Context) -> Result<Outcome> {
    let folder = Folder::make(args.dir)?;
    let demo = Run {
        context,
        folder: folder.path().to_owned(),
        machine: match &args.image {
            Some(path) => name::from_path(path).unwrap_or_else(|| "demo".to_owned()),
            None => "demo".to_owned(),
        },
        image: args
            .image
            .clone()
            .unwrap_or_else(|| folder.path().join("sample.raw")),
        is_sample: args.image.is_none(),
    };
    demo.run().await
}

/// The demo's folder; one of its own making is removed when it ends.
enum Folder {
    Named(PathBuf),
    Temporary(TempDir),
}

impl Folder {
    fn make(dir: Option<PathBuf>) -> Result<Self> {
        if let Some(path) = dir {
            make_private_folder(&path)?;
            return Ok(Self::Named(path));
        }
        tempfile::Builder::new()
            .prefix("tidegate-demo-")
            .tempdir()
            .map(Self::Temporary)
            .map_err(|error| Error::io("cannot make a temporary folder", error))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Named(path) => path,
            Self::Temporary(folder) => folder.path(),
        }
    }
}

struct Run<'a> {
    context: &'a Context,
    folder: PathBuf,
    machine: String,
    image: PathBuf,
    is_sample: bool,
}

impl Run<'_> {
    async fn run(&self) -> Result<Outcome> {
        if self.is_sample {
            let path = self.image.clone();
            blocking(move || sample::make(&path)).await?;
            self.tell(&format!(
                "made a sample disk: {} of {}, the rest holes\n",
                text::size(sample::DATA_BYTES),
                text::size(sample::DISK_BYTES)
            ))?;
        }
        let repository = self.make_repository().await?;

        self.tell("\nfirst backup\n")?;
        let first = self.back_up(&repository).await?;
        if self.is_sample {
            let path = self.image.clone();
            blocking(move || sample::change(&path)).await?;
            self.tell(&format!(
                "\nsecond backup, after {} were changed\n",
                text::size(sample::CHANGED_BYTES)
            ))?;
        } else {
            self.tell("\nsecond backup, of the same image\n")?;
        }
        let second = self.back_up(&repository).await?;

        self.tell("\nrestore\n")?;
        let restored = self.folder.join("restored.raw");
        let summary = self.restore(&repository, &restored).await?;
        self.tell(&format!(
            "  {} of data, fetched {}, in {}, {}\n",
            text::size(summary.data_bytes),
            text::size(summary.fetched_bytes),
            text::seconds(summary.seconds),
            text::rate(summary.data_bytes, summary.seconds)
        ))?;

        let (image, copy) = (self.image.clone(), restored.clone());
        let equal = blocking(move || sample::equal(&image, &copy)).await?;
        let value = json!({
            "equal": equal,
            "image": self.image,
            "first": first,
            "second": second,
            "restore": summary,
        });
        self.context.output.result(&value, || {
            if equal {
                "\nthe restored disk equals the image, byte for byte\n".to_owned()
            } else {
                "\nthe restored disk DIFFERS from the image\n".to_owned()
            }
        })?;
        Ok(if equal {
            Outcome::Done
        } else {
            Outcome::Damaged
        })
    }

    async fn make_repository(&self) -> Result<Arc<Repository>> {
        let place = self.folder.join("repository");
        let store = Store::open(text_of(&place)?, &StoreSettings::default())?;
        let files = init::KeyFiles::in_folder(&self.folder.join("keys"));
        init::make(&store, parse::CHUNKER_DEFAULT, &files).await?;
        self.tell(&format!("made a repository in {}\n", place.display()))?;
        let restore_key = files.restore.clone();
        let keys = blocking(move || read_key_file(&restore_key)).await?;
        let cache = self.folder.join("cache");
        make_private_folder(&cache)?;
        Ok(Arc::new(Repository::open(store, keys, &cache).await?))
    }

    async fn back_up(&self, repository: &Arc<Repository>) -> Result<BackupSummary> {
        let request = BackupRequest {
            machine: self.machine.clone(),
            disks: replicate::open_images(
                std::slice::from_ref(&self.image),
                &OpenSettings::default(),
            )
            .await?,
            host: replicate::host_name(),
            moment: None,
            keep: Keep::WithoutEnd,
            dry_run: false,
            settings: BackupSettings::default(),
        };
        let counters = Arc::new(Progress::default());
        let shown = progress::show(&self.context.output, Job::Backup, &self.machine, &counters);
        let stop = self.context.stop.clone();
        let done = replicate::backup(repository, request, counters, stop).await;
        drop(shown);
        let summary = done?;
        self.tell(&backup::describe(&summary))?;
        Ok(summary)
    }

    async fn restore(&self, repository: &Arc<Repository>, to: &Path) -> Result<RestoreSummary> {
        let point = repository.resolve(&self.machine, &Selector::Latest)?;
        let Some(disk) = point.disks.first() else {
            return Err(Error::new(
                Kind::Bug,
                "the point that was just made has no disk",
            ));
        };
        let (path, size_bytes) = (to.to_owned(), disk.size_bytes);
        let create = move || target::create_file(&path, size_bytes, true);
        let target: Arc<dyn Target> = Arc::from(blocking(create).await?);
        let counters = Arc::new(Progress::default());
        let shown = progress::show(&self.context.output, Job::Restore, &self.machine, &counters);
        let done = recover::restore_disk(
            repository,
            disk,
            Arc::clone(&target),
            RestoreMode::New,
            &RestoreSettings::default(),
            counters,
            self.context.stop.clone(),
        )
        .await;
        drop(shown);
        let summary = done?;
        blocking(move || target.finish()).await?;
        Ok(summary)
    }

    /// Says what happens; with `--json` on stderr, since stdout is for the result.
    fn tell(&self, text: &str) -> Result<()> {
        if self.context.output.is_json() {
            self.context.output.note(text.trim_end());
            Ok(())
        } else {
            self.context.output.stdout(text)
        }
    }
}

fn text_of(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        Error::new(
            Kind::Config,
            format!("{} is not valid UTF-8", path.display()),
        )
        .advise("name another folder with --dir")
    })
}
