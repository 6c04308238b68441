//! What configuration files have in common: settings as written → as valid.
//!
//! Not the files themselves: each program has its own. The invariants: a figure out of its range is
//! refused by the name of its key, with what was expected and what was found; and a path in a file
//! means the same wherever the program was started.

use crate::error::{Error, Kind, Result};
use crate::store::StoreSettings;
use serde::{Deserialize, Serialize};
use std::fmt::Display;
use std::fs::File;
use std::io::Read as _;
use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Threads that may be asked for: more is a typing error.
pub const WORKERS: RangeInclusive<usize> = 1..=256;
/// Requests in flight that may be asked for.
pub const IN_FLIGHT: RangeInclusive<usize> = 1..=256;
/// Connections to a gateway that may be asked for: one fills a fast line, more share several cores.
pub const CONNECTIONS: RangeInclusive<usize> = 1..=16;
/// Pack sizes in MiB that the engine accepts.
pub const PACK_MIB: RangeInclusive<u32> = 1..=64;
/// zstd's levels.
pub const COMPRESSION_LEVELS: RangeInclusive<i32> = -7..=19;
/// Time-outs of a store, in seconds.
const STORE_SECONDS: RangeInclusive<u64> = 1..=86_400;

/// Reads the configuration file of a service; `parse` gets its text and the folder that it stands in.
///
/// # Errors
/// [`Kind::Config`] where it is not valid, or everybody may write it: it says what a service runs, as whom
/// the service is. [`Kind::Missing`], [`Kind::Denied`] or [`Kind::Io`] where it cannot be read.
pub fn read_file<T>(path: &Path, parse: impl FnOnce(&str, &Path) -> Result<T>) -> Result<T> {
    let cannot = |error| {
        Error::io(
            format!("cannot read the configuration file {}", path.display()),
            error,
        )
    };
    let mut file = File::open(path).map_err(cannot)?;
    let mode = file.metadata().map_err(cannot)?.permissions().mode();
    if mode & 0o002 != 0 {
        return Err(Error::new(
            Kind::Config,
            format!(
                "everybody may write the configuration file {} (mode {:o})",
                path.display(),
                mode & 0o777
            ),
        )
        .advise(format!(
            "look who has changed it, then: chmod o-w {}",
            path.display()
        )));
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(cannot)?;
    parse(&text, path.parent().unwrap_or(Path::new(""))).map_err(|error| {
        Error::new(
            Kind::Config,
            format!("the configuration file {} is not valid", path.display()),
        )
        .caused_by(error)
        .advise("correct what is named; `tidegated config check` tries the file without a restart")
    })
}

/// Time-outs of a store, as written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenStore {
    /// [`StoreSettings::connect_timeout`].
    pub connect_timeout_seconds: Option<u64>,
    /// [`StoreSettings::request_timeout`].
    pub request_timeout_seconds: Option<u64>,
    /// [`StoreSettings::operation_deadline`].
    pub operation_deadline_seconds: Option<u64>,
}

impl WrittenStore {
    /// The valid settings, defaults where nothing is written. `table` is where the file says so.
    ///
    /// # Errors
    /// [`Kind::Config`] where a time is out of range.
    pub fn validate(&self, table: &str) -> Result<StoreSettings> {
        let mut settings = StoreSettings::default();
        let set = |key, seconds: Option<u64>, to: &mut Duration| -> Result<()> {
            if let Some(seconds) = within(&format!("{table}.{key}"), seconds, STORE_SECONDS)? {
                *to = Duration::from_secs(seconds);
            }
            Ok(())
        };
        set(
            "connect_timeout_seconds",
            self.connect_timeout_seconds,
            &mut settings.connect_timeout,
        )?;
        set(
            "request_timeout_seconds",
            self.request_timeout_seconds,
            &mut settings.request_timeout,
        )?;
        set(
            "operation_deadline_seconds",
            self.operation_deadline_seconds,
            &mut settings.operation_deadline,
        )?;
        Ok(settings)
    }
}

/// `value` where it lies in `range`. `key` is its name in the file.
///
/// # Errors
/// [`Kind::Config`] where it does not.
pub fn within<T: PartialOrd + Display + Copy>(
    key: &str,
    value: Option<T>,
    range: RangeInclusive<T>,
) -> Result<Option<T>> {
    match value {
        Some(value) if !range.contains(&value) => Err(Error::new(
            Kind::Config,
            format!(
                "the configuration says {key} = {value}: expected {} to {}",
                range.start(),
                range.end()
            ),
        )),
        value => Ok(value),
    }
}

/// Where a key file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyPlace {
    /// At this path.
    File(PathBuf),
    /// Among the credentials that systemd hands to the service (`LoadCredential=`), by this name.
    Credential(String),
}

/// What stands before a credential's name.
const CREDENTIAL: &str = "credential:";

impl KeyPlace {
    /// A path, or `credential:NAME`. `key` is its name in the file, which stands in `folder`.
    ///
    /// # Errors
    /// [`Kind::Config`] where it is neither.
    pub fn parse(key: &str, written: &str, folder: &Path) -> Result<Self> {
        let refused = |expected: &str| {
            let text = format!("the configuration says {key} = {written:?}: expected {expected}");
            Err(Error::new(Kind::Config, text))
        };
        match written.strip_prefix(CREDENTIAL) {
            Some(name) if name.is_empty() || name.contains('/') || name.starts_with('.') => {
                refused("credential:NAME")
            }
            Some(name) => Ok(Self::Credential(name.to_owned())),
            None if written.is_empty() => refused("a key file"),
            None => Ok(Self::File(from_folder(folder, Path::new(written)))),
        }
    }

    /// As [`KeyPlace::parse`] takes it.
    pub fn written(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Credential(name) => format!("{CREDENTIAL}{name}"),
        }
    }

    /// The file's path. `credentials` is the folder that systemd names.
    ///
    /// # Errors
    /// [`Kind::Config`] where a credential is asked for and there is no folder of them.
    pub fn path(&self, credentials: Option<&Path>) -> Result<PathBuf> {
        match (self, credentials) {
            (Self::File(path), _) => Ok(path.clone()),
            (Self::Credential(name), Some(folder)) => Ok(folder.join(name)),
            (Self::Credential(name), None) => Err(Error::new(
                Kind::Config,
                format!("the key is to be the credential {name:?}, and there are no credentials"),
            )
            .advise("start the service by its unit, with LoadCredential=; or name a file")),
        }
    }
}

/// What a path in a file means: `~/` is the home folder, a relative path starts at the file's own
/// `folder`.
pub fn from_folder(folder: &Path, path: &Path) -> PathBuf {
    if let Ok(rest) = path.strip_prefix("~")
        && let Some(home) = home()
    {
        return home.join(rest);
    }
    folder.join(path)
}

/// What a repository's place in a file means: a URL as it is, a folder as other paths.
pub fn place_from_folder(folder: &Path, place: &str) -> String {
    if place.contains("://") {
        return place.to_owned();
    }
    match from_folder(folder, Path::new(place))
        .into_os_string()
        .into_string()
    {
        Ok(path) => path,
        Err(_) => place.to_owned(),
    }
}

/// The home folder of who runs this.
pub fn home() -> Option<PathBuf> {
    std::env::var_os("HOME")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn paths_in_a_file_start_at_its_folder() {
        let folder = Path::new("/etc/tidegate");
        assert_eq!(
            from_folder(folder, Path::new("restore.key")),
            Path::new("/etc/tidegate/restore.key")
        );
        assert_eq!(from_folder(folder, Path::new("/x/k")), Path::new("/x/k"));
        assert_eq!(place_from_folder(folder, "./repo"), "/etc/tidegate/./repo");
        assert_eq!(place_from_folder(folder, "s3://b/p"), "s3://b/p");
    }

    #[test]
    fn figures_out_of_range_are_refused() {
        assert!(within("workers", Some(0), WORKERS).is_err());
        assert!(within("workers", Some(257), WORKERS).is_err());
        assert_eq!(within("workers", Some(4), WORKERS).unwrap(), Some(4));
        let written = WrittenStore {
            request_timeout_seconds: Some(0),
            ..WrittenStore::default()
        };
        let error = written.validate("store").unwrap_err().to_string();
        assert!(
            error.contains("store.request_timeout_seconds = 0"),
            "{error}"
        );
    }
}
