//! `/etc/tidegate/host.toml`: which machines are backed up, when, and where to.
//!
//! As written (`written`) → valid settings. Not the parts that the settings describe: nothing is
//! opened here but the file. The invariants: unknown keys are refused; every error names the key,
//! what was expected and what was found; names in a group refer to something; and
//! [`Settings::effective`] is a file that means the same, with everything said that was left out.
//!
//! How long points are kept is a setting here, though no host can give one up: it is written into each
//! new point, and whoever holds a key that may expire points goes by that.

mod effective;
mod keep;
mod units;
mod validate;
mod written;

pub use crate::config::KeyPlace;
use crate::config::read_file;
pub use crate::link::congestion::Congestion;
pub use keep::keep_length;
pub use written::OnFailure;

use super::glob;
use crate::error::{Error, Kind, Result};
use crate::format::Format;
use crate::live::{Quiesce, ScratchSettings};
use crate::replicate::BackupSettings;
use crate::retention::Keep;
use crate::store::StoreSettings;
use croner::Cron;
use jiff::Timestamp;
use jiff::civil::{Time, Weekday};
use jiff::tz::TimeZone;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use written::Written;

/// Where the host's configuration stands.
pub const DEFAULT_FILE: &str = "/etc/tidegate/host.toml";
/// Where the control socket stands.
pub const DEFAULT_SOCKET: &str = "/run/tidegate/host.sock";

/// What the host service is to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The service itself.
    pub service: Service,
    /// Repositories, by name.
    pub repositories: BTreeMap<String, Arc<RepositorySettings>>,
    /// Policies, by name.
    pub policies: BTreeMap<String, Arc<Policy>>,
    /// Groups, by name.
    pub groups: BTreeMap<String, Arc<Group>>,
    /// Machines that are named, by name.
    pub machines: BTreeMap<String, Origin>,
    /// Machines that are found.
    pub patterns: Vec<Pattern>,
}

/// The service itself. All but `concurrency` and `time_zone` take a restart to change.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Runs at the same time, 1 to 64; 2 by default. Each takes some 200 MB of memory.
    pub concurrency: usize,
    /// Where the history of runs is kept.
    pub state_dir: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// The group whose members may use the socket, besides root and the service's own user.
    pub socket_group: String,
    /// Where `/metrics` and `/health` are served over HTTP; nowhere by default.
    pub listen: Option<SocketAddr>,
    /// How long runs may take to stop when the service is stopped; 30 s by default.
    pub stop_grace: Duration,
    /// In which schedules and windows are written; the system's by default.
    pub time_zone: TimeZone,
    /// As written.
    time_zone_name: Option<String>,
    /// Where what guests overwrite is kept while their disks are read; `/var/tmp` by default.
    pub scratch: ScratchSettings,
}

impl Service {
    /// The folder where it is noted which guests are frozen, while they are.
    pub fn notes(&self) -> PathBuf {
        self.state_dir.join("frozen")
    }
}

/// A repository and how to write to it.
#[derive(Debug, Clone, PartialEq)]
pub struct RepositorySettings {
    /// Its name here.
    pub name: String,
    /// Where it is, as [`Store::open`](crate::store::Store::open) takes it.
    pub location: String,
    /// The key file.
    pub key: KeyPlace,
    /// Where to keep what is known of it; may be deleted at any time.
    pub cache_dir: PathBuf,
    /// This host's key and certificates, where it is behind gateways.
    pub identity: PathBuf,
    /// Cutting threads of each run; one for each core by default.
    pub workers: Option<usize>,
    /// zstd level.
    pub compression_level: Option<i32>,
    /// Size at which a pack is full, in MiB.
    pub pack_mib: Option<u32>,
    /// Packs uploaded at the same time, for each run.
    pub uploads_in_flight: Option<usize>,
    /// Time-outs.
    pub store: StoreSettings,
}

/// When machines are backed up, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// What decides when a run is due.
    pub rhythm: Rhythm,
    /// The promise: how old a machine's newest point may be at most.
    pub rpo: Option<Duration>,
    /// Over how long the starts of different machines are spread.
    pub jitter: Duration,
    /// The pause after a first failure; it doubles with each further one, up to an hour.
    pub retry_after: Duration,
    /// What all runs of this policy together may upload outside the windows, in bytes a second.
    pub limit_bytes_per_second: Option<u64>,
    /// The same in windows of time; the first that fits counts.
    pub windows: Vec<RateWindow>,
    /// How uploads behave towards others on the line, where the link decides that.
    pub congestion: Congestion,
    /// How long its points are kept: without an end where nothing is said.
    pub keep: Keep,
    /// Whether the software in a guest is asked to be still for the moment; not by default.
    pub quiesce: Quiesce,
    /// How many millionths of what a tracker calls unchanged are compared all the same; 1000 by default.
    pub audit_ppm: u32,
    /// Run before a backup.
    pub pre: Option<Hook>,
    /// What becomes of the run when that fails.
    pub pre_on_failure: OnFailure,
    /// Run after a backup, also one that failed. When it fails the run has a warning.
    pub post: Option<Hook>,
}

/// What decides when a run is due.
#[derive(Debug, Clone, PartialEq)]
pub enum Rhythm {
    /// At whole multiples of this length since 1970 (UTC): `1h` is each full hour.
    Every(Duration),
    /// As a cron expression says, in the service's time zone.
    Schedule(Box<Cron>, String),
    /// Early enough to keep the policy's `rpo`.
    Rpo(Duration),
}

/// A rate for some hours of some days.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateWindow {
    /// From this time of day on.
    pub from: Time,
    /// Up to this time of day, of the next day where it is not after `from`.
    pub to: Time,
    /// On which days windows begin.
    pub days: Vec<Weekday>,
    /// Bytes a second.
    pub limit_bytes_per_second: u64,
}

/// A program of the operator's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Program, by its whole path, and arguments. No shell is involved.
    pub command: Vec<String>,
    /// How long it may take before it is ended; 5 minutes by default.
    pub timeout: Duration,
}

/// Machines that are backed up alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Names or patterns of names.
    pub machines: Vec<String>,
    /// Its policy's name.
    pub policy: String,
    /// Its repository's name.
    pub repository: String,
    /// Its running machines are frozen together: how far apart their moments may be. None: each by
    /// itself.
    pub together_within: Option<Duration>,
}

/// Where a machine is found.
#[derive(Debug, Clone, PartialEq)]
pub enum Origin {
    /// In the images of its disks.
    Images {
        /// One for each disk.
        images: Vec<PathBuf>,
        /// How to read them.
        reading: Reading,
    },
    /// In a domain of libvirt.
    Domain {
        /// Its name or UUID.
        domain: String,
        /// The libvirt that is meant; the one of `virsh` by default.
        connect: Option<String>,
    },
    /// In a QEMU whose monitor is at this socket.
    Monitor(PathBuf),
}

impl Origin {
    /// What an operator would recognise.
    pub fn describe(&self) -> Vec<String> {
        match self {
            Self::Images { images, .. } => images
                .iter()
                .map(|image| image.display().to_string())
                .collect(),
            Self::Domain { domain, .. } => vec![format!("domain {domain}")],
            Self::Monitor(socket) => vec![format!("monitor {}", socket.display())],
        }
    }

    /// The first of it.
    pub(super) fn first(&self) -> String {
        self.describe().into_iter().next().unwrap_or_default()
    }
}

/// Machines that are found, by a pattern.
#[derive(Debug, Clone, PartialEq)]
pub struct Pattern {
    /// What is looked for.
    pub find: Find,
    /// The name, with `{stem}` and `{folder}` in it (of images; `{stem}` by default) or `{name}` (of
    /// domains).
    pub name: String,
    /// Patterns of paths, or of domains, that are left out.
    pub exclude: Vec<String>,
}

/// What a pattern looks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Find {
    /// Images by their paths. Those that give the same name belong to one machine.
    Images {
        /// Of paths; see [`glob`].
        pattern: String,
        /// How to read them.
        reading: Reading,
    },
    /// Domains of libvirt by their names.
    Domains {
        /// Of names.
        pattern: String,
        /// Of tags, one of which must fit: what operators write into a domain's metadata.
        tag: Option<String>,
        /// The libvirt that is meant; the one of `virsh` by default.
        connect: Option<String>,
    },
}

/// How images are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// Their format, where suffix and content do not say it.
    pub format: Option<Format>,
    /// Folders whose files an image may name, besides its own.
    pub backing_folders: Vec<PathBuf>,
    /// Leave out the check that the images' tables are whole.
    pub skip_check: bool,
}

impl Settings {
    /// Reads the file.
    ///
    /// # Errors
    /// [`Kind::Config`] where it is not valid; [`Kind::Missing`] or [`Kind::Denied`] where it cannot
    /// be read.
    pub fn load(path: &Path) -> Result<Self> {
        read_file(path, Self::parse)
    }

    /// Reads the text of a file that stands in `folder`.
    ///
    /// # Errors
    /// [`Kind::Config`] where it is not valid.
    pub fn parse(text: &str, folder: &Path) -> Result<Self> {
        let written: Written = toml::from_str(text)
            // The whole message of the parser shows the line itself.
            .map_err(|error| Error::new(Kind::Config, error.to_string().trim_end()))?;
        validate::settings(&written, folder)
    }

    /// A configuration file that means the same, with everything said that was left out.
    ///
    /// # Errors
    /// [`Kind::Bug`] where the settings cannot be written as TOML.
    pub fn effective(&self) -> Result<String> {
        toml::to_string_pretty(&effective::written(self)).map_err(|error| {
            Error::new(Kind::Bug, "cannot write the settings as TOML").caused_by(error)
        })
    }

    /// The group that a machine belongs to: the one that names it, else the one with the most exact
    /// pattern that fits, by the characters that are no wildcards.
    pub fn group_of(&self, machine: &str) -> Option<&Arc<Group>> {
        let exactness = |pattern: &String| match glob::is_pattern(pattern) {
            false => (pattern == machine).then_some(usize::MAX),
            true => glob::matches(pattern, machine)
                .then(|| pattern.chars().filter(|c| !"*?".contains(*c)).count()),
        };
        self.groups
            .values()
            .filter_map(|group| {
                let exactness = group.machines.iter().filter_map(exactness).max()?;
                Some((exactness, group))
            })
            // The first one of equals, by name.
            .reduce(|best, other| if other.0 > best.0 { other } else { best })
            .map(|(_, group)| group)
    }

    /// What is valid and still looks like an oversight, for people.
    pub fn remarks(&self) -> Vec<String> {
        let machines = self
            .machines
            .keys()
            .filter(|name| self.group_of(name).is_none());
        let machines =
            machines.map(|name| format!("machine.{name} is in no group: it is not backed up"));
        let unused = |what: &str, name: &str| format!("{what}.{name} is used by no group");
        let unaudited = self
            .policies
            .values()
            .filter(|policy| policy.audit_ppm == 0);
        let unaudited = unaudited.map(|policy| {
            format!(
                "policy.{} believes what tracks changes without looking (audit_ppm = 0)",
                policy.name
            )
        });
        let policies = self
            .policies
            .keys()
            .filter(|name| !self.groups.values().any(|group| group.policy == **name))
            .map(|name| unused("policy", name));
        let repositories = self
            .repositories
            .keys()
            .filter(|name| !self.groups.values().any(|group| group.repository == **name))
            .map(|name| unused("repository", name));
        machines
            .chain(policies)
            .chain(repositories)
            .chain(unaudited)
            .collect()
    }
}

impl RepositorySettings {
    /// The engine's settings, its defaults where nothing else was said.
    pub fn backup(&self) -> BackupSettings {
        let mut how = BackupSettings::default();
        if let Some(workers) = self.workers {
            how.workers = workers;
        }
        if let Some(level) = self.compression_level {
            how.compression_level = level;
        }
        if let Some(mib) = self.pack_mib {
            how.pack_bytes = mib << 20;
        }
        if let Some(uploads) = self.uploads_in_flight {
            how.uploads_in_flight = uploads;
        }
        how
    }
}

impl Policy {
    /// What all runs of this policy together may upload at that moment, in bytes a second.
    pub fn limit_at(&self, now: Timestamp, zone: &TimeZone) -> Option<u64> {
        let local = now.to_zoned(zone.clone());
        let window = self
            .windows
            .iter()
            .find(|window| window.holds(local.time(), local.weekday()));
        match window {
            Some(window) => Some(window.limit_bytes_per_second),
            None => self.limit_bytes_per_second,
        }
    }
}

impl RateWindow {
    fn holds(&self, time: Time, day: Weekday) -> bool {
        let begins = |day: Weekday| self.days.contains(&day);
        if self.from < self.to {
            return begins(day) && (self.from..self.to).contains(&time);
        }
        // Over midnight: the window that began today, or yesterday's.
        (begins(day) && time >= self.from) || (begins(day.previous()) && time < self.to)
    }
}

#[cfg(test)]
mod tests;
