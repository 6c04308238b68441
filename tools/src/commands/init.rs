//! `tidegate init`: a repository and its three key files.
//!
//! The invariant: no repository without its keys on disk, and no key files left behind by an attempt
//! of which it is known that it made no repository. An init that was killed is finished by running it
//! again; where that cannot be known to be right, it says what to do.

use crate::args::{Global, Init, KeyOptions};
use crate::context::{Context, blocking};
use crate::exit::Outcome;
use crate::settings::{Settings, make_private_folder};
use serde_json::json;
use std::path::{Path, PathBuf};
use tidegate_agent::repository::{NewKeys, Repository, read_key_file, write_key_file};
use tidegate_agent::store::Store;
use tidegate_agent::{Error, Kind, Result};
use tidegate_protocol::RepositoryId;
use tidegate_protocol::descriptor::{self, ChunkerParams};

pub(super) async fn run(global: &Global, args: Init, context: &Context) -> Result<Outcome> {
    let settings = Settings::load(global, &args.repository, &KeyOptions::default())?;
    let store = context.store(&settings)?;
    let files = KeyFiles::in_folder(&args.keys);
    let repository = make(&store, args.chunker, &files).await?;
    let value = json!({
        "repository": repository.to_string(),
        "location": store.label(),
        "host_key": files.host,
        "maintenance_key": files.maintenance,
        "restore_key": files.restore,
    });
    context.output.result(&value, || {
        format!(
            "made repository {} in {}\n\
             \n  {}  for the hosts that back up; cannot read disk content\
             \n  {}  for housekeeping; cannot read disk content\
             \n  {}  for restores; keep a copy where no host can reach it:\
             \n  without it, and without a slot made by `tidegate key add`, nothing can be restored\n",
            repository.short(),
            store.label(),
            files.host.display(),
            files.maintenance.display(),
            files.restore.display(),
        )
    })?;
    Ok(Outcome::Done)
}

/// Where the three key files of a repository stand.
pub(super) struct KeyFiles {
    folder: PathBuf,
    pub(super) host: PathBuf,
    pub(super) maintenance: PathBuf,
    pub(super) restore: PathBuf,
}

impl KeyFiles {
    pub(super) fn in_folder(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            host: folder.join("host.key"),
            maintenance: folder.join("maintenance.key"),
            restore: folder.join("restore.key"),
        }
    }

    fn all(&self) -> [&Path; 3] {
        [&self.host, &self.maintenance, &self.restore]
    }

    async fn read(&self) -> Result<NewKeys> {
        let [host, maintenance, restore] = self.all().map(Path::to_owned);
        blocking(move || {
            Ok(NewKeys {
                host: read_key_file(&host)?,
                maintenance: read_key_file(&maintenance)?,
                restore: read_key_file(&restore)?,
            })
        })
        .await
    }
}

/// Makes a repository, or finishes one that an interrupted init has left; its keys are durable before
/// it exists.
pub(super) async fn make(
    store: &Store,
    chunker: ChunkerParams,
    files: &KeyFiles,
) -> Result<RepositoryId> {
    let mut paths = files.all().into_iter();
    if let Some(path) = paths.find(|path| path.symlink_metadata().is_ok()) {
        return go_on(store, files, path).await;
    }
    let mut written = Written::default();
    let made = Repository::init(store, chunker, |keys| written.write(files, keys)).await;
    match made {
        Ok(repository) => Ok(repository),
        Err(error) if written.complete && may_be_made(store, &error).await => {
            let advice = format!(
                "the repository may have been made all the same, so the key files in {} were kept: \
                 run the same command again, which goes on from here or says that there is none",
                files.folder.display()
            );
            Err(error.advise(advice))
        }
        Err(error) => {
            written.remove();
            Err(error)
        }
    }
}

/// Where key files are there already, `path` being one of them: they stem from an init that was
/// interrupted, or they are somebody's only keys.
async fn go_on(store: &Store, files: &KeyFiles, path: &Path) -> Result<RepositoryId> {
    let exists = || {
        Error::new(
            Kind::Conflict,
            format!(
                "{} exists: it may be the only key to a repository",
                path.display()
            ),
        )
    };
    if store.size(descriptor::OBJECT_KEY).await?.is_none() {
        return Err(exists().advise(format!(
            "name another folder with --keys; or, if these files were left by an interrupted init \
             of {label}, delete host.key, maintenance.key and restore.key in {folder} and run it \
             again: there is no repository in {label}",
            label = store.label(),
            folder = files.folder.display(),
        )));
    }
    let Ok(keys) = files.read().await else {
        return Err(exists().advise("name another folder with --keys"));
    };
    let repository = keys.restore.repository();
    match Repository::finish_init(store, keys).await {
        Ok(0) => Err(Error::new(
            Kind::Conflict,
            format!(
                "{}: there is a repository already, whole, and its keys are in {}",
                store.label(),
                files.folder.display()
            ),
        )
        .advise("use it: nothing is left to be done")),
        Ok(_) => Ok(repository),
        // The keys of another repository.
        Err(error) if error.kind() == Kind::Denied => {
            Err(exists().advise("name another folder with --keys"))
        }
        Err(error) => Err(error),
    }
}

/// After a failure: may there be a repository to which these keys are the only ones? Answers may have
/// been lost, so what counts is whether it is there.
async fn may_be_made(store: &Store, error: &Error) -> bool {
    // Somebody else's repository is there.
    if error.kind() == Kind::Conflict {
        return false;
    }
    !matches!(store.size(descriptor::OBJECT_KEY).await, Ok(None))
}

/// What was written so far, to be taken back if no repository comes of it.
#[derive(Default)]
struct Written {
    folder: Option<PathBuf>,
    files: Vec<PathBuf>,
    complete: bool,
}

impl Written {
    fn write(&mut self, files: &KeyFiles, keys: &NewKeys) -> Result<()> {
        if make_private_folder(&files.folder)? {
            self.folder = Some(files.folder.clone());
        }
        for (path, keys) in [
            (&files.host, &keys.host),
            (&files.maintenance, &keys.maintenance),
            (&files.restore, &keys.restore),
        ] {
            write_key_file(path, keys)?;
            self.files.push(path.clone());
        }
        self.complete = true;
        Ok(())
    }

    /// Removes what was written. A file that cannot be removed opens nothing.
    fn remove(&self) {
        for path in &self.files {
            if let Err(error) = std::fs::remove_file(path) {
                tracing::warn!(
                    "cannot remove {}, which opens nothing: {error}",
                    path.display()
                );
            }
        }
        if let Some(folder) = &self.folder {
            // Fails where something else was put there meanwhile: then it stays.
            let _ = std::fs::remove_dir(folder);
        }
    }
}
