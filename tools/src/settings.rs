//! Configuration file < environment < options → valid settings.
//!
//! What is not: the components that the settings describe. Invariant: a [`Settings`] has been
//! checked; what is missing in it is missing on purpose and is asked for by name where it is needed.

use crate::args::{Global, KeyOptions, RepositoryOptions};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use tidegate_agent::config::{self, WrittenStore, home, within};
use tidegate_agent::durable;
use tidegate_agent::store::StoreSettings;
use tidegate_agent::{Error, Kind, Result};

/// Where the system's configuration stands.
const SYSTEM_FILE: &str = "/etc/tidegate/config.toml";

/// Everything a command needs to know besides its own arguments.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    repo: Option<String>,
    pub(crate) key: Option<KeySource>,
    pub(crate) slot: Option<String>,
    pub(crate) cache_dir: PathBuf,
    pub(crate) workers: Option<usize>,
    pub(crate) compression_level: Option<i32>,
    pub(crate) pack_bytes: Option<u32>,
    pub(crate) uploads_in_flight: Option<usize>,
    pub(crate) fetches_in_flight: Option<usize>,
    /// Folders whose files an image may name, besides its own.
    pub(crate) backing_folders: Vec<PathBuf>,
    pub(crate) store: StoreSettings,
}

/// Where the key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeySource {
    /// A key file.
    File(PathBuf),
    /// A slot of the repository, opened by the passphrase in this file.
    PassphraseFile(PathBuf),
    /// A slot, opened by the content of this file.
    WrappingFile(PathBuf),
    /// A slot, opened by the escrow key in this file.
    EscrowKey(PathBuf),
}

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    repo: Option<String>,
    key: Option<PathBuf>,
    passphrase_file: Option<PathBuf>,
    cache_dir: Option<PathBuf>,
    identity: Option<PathBuf>,
    connections: Option<usize>,
    workers: Option<usize>,
    compression_level: Option<i32>,
    pack_mib: Option<u32>,
    uploads_in_flight: Option<usize>,
    fetches_in_flight: Option<usize>,
    #[serde(default)]
    backing_folders: Vec<PathBuf>,
    #[serde(default)]
    store: WrittenStore,
}

impl Settings {
    /// Reads the configuration file and the environment, and lays the options over them.
    pub(crate) fn load(
        global: &Global,
        repository: &RepositoryOptions,
        key: &KeyOptions,
    ) -> Result<Self> {
        let environment = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let file = match &global.config {
            Some(path) => Some(path.clone()),
            None => environment("TIDEGATE_CONFIG")
                .map(PathBuf::from)
                .or_else(default_file),
        };
        let (written, folder) = match &file {
            Some(path) => (
                read(path)?,
                path.parent().unwrap_or(Path::new("")).to_owned(),
            ),
            None => (Written::default(), PathBuf::new()),
        };
        let in_folder = |path: PathBuf| config::from_folder(&folder, &path);

        let repo =
            match &repository.repo {
                Some(repo) => Some(repo.clone()),
                None => match environment("TIDEGATE_REPO") {
                    Some(repo) => Some(repo.into_string().map_err(|_| {
                        Error::new(Kind::Config, "TIDEGATE_REPO is not valid UTF-8")
                    })?),
                    None => written
                        .repo
                        .map(|repo| config::place_from_folder(&folder, &repo)),
                },
            };
        let from_environment = || {
            let file = |name, source: fn(PathBuf) -> KeySource| {
                environment(name).map(|path| source(path.into()))
            };
            file("TIDEGATE_KEY", KeySource::File)
                .or_else(|| file("TIDEGATE_PASSPHRASE_FILE", KeySource::PassphraseFile))
        };
        let from_file = || {
            let key = written
                .key
                .clone()
                .map(|path| KeySource::File(in_folder(path)));
            key.or_else(|| {
                let path = written.passphrase_file.clone()?;
                Some(KeySource::PassphraseFile(in_folder(path)))
            })
        };
        let mut store = written.store.validate("store")?;
        let identity = repository.identity.clone();
        let identity = identity
            .or_else(|| environment("TIDEGATE_IDENTITY").map(PathBuf::from))
            .or_else(|| written.identity.clone().map(in_folder));
        if let Some(identity) = identity {
            store.link.identity = identity;
        }
        let connections = within("connections", written.connections, config::CONNECTIONS)?;
        if let Some(connections) = connections {
            store.link.connections = connections;
        }
        Ok(Self {
            repo,
            key: key.source().or_else(from_environment).or_else(from_file),
            slot: key.slot.clone(),
            cache_dir: match &repository.cache_dir {
                Some(path) => path.clone(),
                None => match environment("TIDEGATE_CACHE_DIR") {
                    Some(path) => path.into(),
                    None => match written.cache_dir {
                        Some(path) => in_folder(path),
                        None => default_cache_dir(&environment),
                    },
                },
            },
            workers: within("workers", written.workers, config::WORKERS)?,
            compression_level: within(
                "compression_level",
                written.compression_level,
                config::COMPRESSION_LEVELS,
            )?,
            pack_bytes: within("pack_mib", written.pack_mib, config::PACK_MIB)?
                .map(|mib| mib << 20),
            uploads_in_flight: within(
                "uploads_in_flight",
                written.uploads_in_flight,
                config::IN_FLIGHT,
            )?,
            fetches_in_flight: within(
                "fetches_in_flight",
                written.fetches_in_flight,
                config::IN_FLIGHT,
            )?,
            backing_folders: written.backing_folders.into_iter().map(in_folder).collect(),
            store,
        })
    }

    /// Where the repository is.
    pub(crate) fn repo(&self) -> Result<&str> {
        self.repo.as_deref().ok_or_else(|| {
            Error::new(Kind::Config, "no repository is named").advise(
                "give --repo, set TIDEGATE_REPO, or write `repo = \"…\"` into the configuration file",
            )
        })
    }
}

/// Where this host's key and certificates are.
pub(crate) fn identity_folder(global: &Global, given: Option<PathBuf>) -> Result<PathBuf> {
    let repository = RepositoryOptions {
        identity: given,
        ..RepositoryOptions::default()
    };
    let settings = Settings::load(global, &repository, &KeyOptions::default())?;
    Ok(settings.store.link.identity)
}

/// The first configuration file that is there.
fn default_file() -> Option<PathBuf> {
    let home = std::env::var_os("XDG_CONFIG_HOME")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .or_else(|| home().map(|home| home.join(".config")));
    home.map(|folder| folder.join("tidegate/config.toml"))
        .into_iter()
        .chain([PathBuf::from(SYSTEM_FILE)])
        .find(|path| path.exists())
}

fn default_cache_dir(environment: &impl Fn(&str) -> Option<std::ffi::OsString>) -> PathBuf {
    environment("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| home().map(|home| home.join(".cache")))
        .unwrap_or_else(|| PathBuf::from("/var/cache"))
        .join("tidegate")
}

fn read(path: &Path) -> Result<Written> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Error::io(
            format!("cannot read the configuration file {}", path.display()),
            error,
        )
    })?;
    toml::from_str(&text).map_err(|error| {
        // The whole message of the parser shows the line itself.
        Error::new(
            Kind::Config,
            format!(
                "the configuration file {} is not valid: {}",
                path.display(),
                error.to_string().trim_end()
            ),
        )
        .advise("correct or remove what is marked")
    })
}

/// Makes a folder, and those above it, that only its owner may enter, all of them durable; one that
/// is there stays as it is. Says whether it is new.
pub(crate) fn make_private_folder(path: &Path) -> Result<bool> {
    durable::create_folder(path, 0o700)
        .map_err(|error| Error::io(format!("cannot make the folder {}", path.display()), error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_example_is_read() {
        let example = include_str!("../../systemd/config.toml");
        let written: Written = toml::from_str(example).unwrap();
        assert_eq!(written.workers, Some(2));
        assert_eq!(written.store.operation_deadline_seconds, Some(300));
        assert!(toml::from_str::<Written>("repositry = 'x'").is_err());
        assert!(toml::from_str::<Written>("[store]\nretries = 3").is_err());
    }
}
