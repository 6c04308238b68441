//! The gateway's configuration file: as written → as valid.
//!
//! Not the components it describes. Invariant: [`GatewayConfig`] has been checked; nothing in it is
//! looked up or connected to yet.

use super::Limits;
use super::served::ServedSettings;
use crate::config::{KeyPlace, WrittenStore, from_folder, place_from_folder, read_file, within};
use crate::error::{Error, Kind, Result};
use crate::store::StoreSettings;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the configuration stands unless it is named.
pub const DEFAULT_FILE: &str = "/etc/tidegate/gateway.toml";

/// Where the cache is unless it is named: apart from the host service's, which another user runs.
const DEFAULT_CACHE: &str = "/var/cache/tidegate-gateway";

/// What a gateway is to do.
#[derive(Debug, Clone, PartialEq)]
pub struct GatewayConfig {
    /// UDP addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// The fleet's place.
    pub fleet: String,
    /// The file with the authority's key.
    pub authority_key: KeyPlace,
    /// Where metrics and health are served by HTTP; nowhere where there is none.
    pub metrics: Option<SocketAddr>,
    /// Bounds.
    pub limits: Limits,
    /// Repositories, by name.
    pub repositories: Vec<ServedSettings>,
    /// Time-outs of the stores.
    pub store: StoreSettings,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Written {
    listen: Option<Vec<SocketAddr>>,
    fleet: String,
    authority_key: String,
    metrics: Option<SocketAddr>,
    cache_dir: Option<PathBuf>,
    memory_mib: Option<u64>,
    connections_max: Option<usize>,
    requests_per_connection_max: Option<u32>,
    revocations_every_seconds: Option<u64>,
    expire_every_seconds: Option<u64>,
    #[serde(default)]
    repository: BTreeMap<String, WrittenRepository>,
    #[serde(default)]
    store: WrittenStore,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct WrittenRepository {
    location: String,
    key: String,
    expire: Option<bool>,
    bundle: Option<bool>,
}

impl GatewayConfig {
    /// Reads the file at `path`. Relative paths start at its folder.
    ///
    /// # Errors
    /// [`Kind::Config`], which says where.
    pub fn read(path: &Path) -> Result<Self> {
        read_file(path, Self::parse)
    }

    fn parse(text: &str, folder: &Path) -> Result<Self> {
        let written: Written = toml::from_str(text)
            .map_err(|error| Error::new(Kind::Config, error.to_string().trim_end().to_owned()))?;
        let defaults = Limits::default();
        let mib = within("memory_mib", written.memory_mib, 64..=1 << 20)?;
        let revocations = within(
            "revocations_every_seconds",
            written.revocations_every_seconds,
            1..=3600,
        )?;
        let expire_every = within(
            "expire_every_seconds",
            written.expire_every_seconds,
            1..=7 * 86_400,
        )?;
        let limits = Limits {
            memory_bytes: mib.map_or(defaults.memory_bytes, |mib| mib << 20),
            connections_max: within("connections_max", written.connections_max, 1..=1_000_000)?
                .unwrap_or(defaults.connections_max),
            requests_max: within(
                "requests_per_connection_max",
                written.requests_per_connection_max,
                1..=1024,
            )?
            .unwrap_or(defaults.requests_max),
            revocations_every: revocations.map_or(defaults.revocations_every, Duration::from_secs),
            expire_every: expire_every.map_or(defaults.expire_every, Duration::from_secs),
        };
        if written.repository.is_empty() {
            return Err(Error::new(
                Kind::Config,
                "no repository is served: expected at least one table [repository.NAME]",
            ));
        }
        let cache_dir = written
            .cache_dir
            .as_deref()
            .unwrap_or(Path::new(DEFAULT_CACHE));
        let cache_dir = from_folder(folder, cache_dir);
        let repositories = written
            .repository
            .into_iter()
            .map(|(name, repository)| {
                Ok(ServedSettings {
                    location: served_place(folder, &name, &repository.location)?,
                    key: KeyPlace::parse(
                        &format!("repository.{name}.key"),
                        &repository.key,
                        folder,
                    )?,
                    cache_dir: cache_dir.clone(),
                    expire: repository.expire.unwrap_or(true),
                    bundle: repository.bundle.unwrap_or(true),
                    name,
                })
            })
            .collect::<Result<_>>()?;
        let listen = written.listen.unwrap_or_else(default_listen);
        if listen.is_empty() {
            return Err(Error::new(Kind::Config, "listen names no address"));
        }
        Ok(Self {
            listen,
            fleet: place_from_folder(folder, &written.fleet),
            authority_key: KeyPlace::parse("authority_key", &written.authority_key, folder)?,
            metrics: written.metrics,
            limits,
            repositories,
            store: written.store.validate("store")?,
        })
    }
}

impl GatewayConfig {
    /// A file that means the same, with everything said that was left out.
    ///
    /// # Errors
    /// [`Kind::Bug`] where the settings cannot be written as TOML.
    pub fn effective(&self) -> Result<String> {
        let first = self.repositories.first();
        let written = Written {
            listen: Some(self.listen.clone()),
            fleet: self.fleet.clone(),
            authority_key: self.authority_key.written(),
            metrics: self.metrics,
            cache_dir: first.map(|served| served.cache_dir.clone()),
            memory_mib: Some(self.limits.memory_bytes >> 20),
            connections_max: Some(self.limits.connections_max),
            requests_per_connection_max: Some(self.limits.requests_max),
            revocations_every_seconds: Some(self.limits.revocations_every.as_secs()),
            expire_every_seconds: Some(self.limits.expire_every.as_secs()),
            repository: self
                .repositories
                .iter()
                .map(|served| {
                    let repository = WrittenRepository {
                        location: served.location.clone(),
                        key: served.key.written(),
                        expire: Some(served.expire),
                        bundle: Some(served.bundle),
                    };
                    (served.name.clone(), repository)
                })
                .collect(),
            store: WrittenStore {
                connect_timeout_seconds: Some(self.store.connect_timeout.as_secs()),
                request_timeout_seconds: Some(self.store.request_timeout.as_secs()),
                operation_deadline_seconds: Some(self.store.operation_deadline.as_secs()),
            },
        };
        toml::to_string_pretty(&written).map_err(|error| {
            Error::new(Kind::Bug, "cannot write the settings as TOML").caused_by(error)
        })
    }
}

/// All addresses of the machine: an IPv6 wildcard serves IPv4 too.
fn default_listen() -> Vec<SocketAddr> {
    let port = crate::store::location::GATEWAY_PORT;
    vec![(std::net::Ipv6Addr::UNSPECIFIED, port).into()]
}

/// A gateway stands beside its bucket: one that asks another gateway would only add a way to fail.
fn served_place(folder: &Path, name: &str, location: &str) -> Result<String> {
    match location.starts_with("quic://") {
        true => Err(Error::new(
            Kind::Config,
            format!("repository.{name}.location is another gateway: expected the bucket itself"),
        )),
        false => Ok(place_from_folder(folder, location)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "
        fleet = 's3://bucket/fleet'
        authority_key = 'authority.key'
        [repository.main]
        location = './repo'
        key = 'credential:maintenance.key'
    ";

    fn parse(text: &str) -> Result<GatewayConfig> {
        GatewayConfig::parse(text, Path::new("/etc/tidegate"))
    }

    #[test]
    fn paths_start_at_the_file_or_the_credentials() {
        let config = parse(LEAST).unwrap();
        let authority = KeyPlace::File("/etc/tidegate/authority.key".into());
        assert_eq!(config.authority_key, authority);
        let [served] = config.repositories.as_slice() else {
            panic!("{config:?}");
        };
        assert_eq!(
            served.key,
            KeyPlace::Credential("maintenance.key".to_owned())
        );
        assert_eq!(served.location, "/etc/tidegate/./repo");
        assert_eq!(config.fleet, "s3://bucket/fleet");
        assert_eq!(config.listen.len(), 1);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let with = |line: &str| parse(&format!("{line}\n{LEAST}"));
        assert!(with("").is_ok());
        for line in [
            "repositry = 'x'",
            "memory_mib = 1",
            "connections_max = 0",
            "requests_per_connection_max = 0",
            "revocations_every_seconds = 0",
            "expire_every_seconds = 0",
            "listen = []",
            "listen = ['gw1:4433']",
            "metrics = 'all'",
        ] {
            assert_eq!(with(line).unwrap_err().kind(), Kind::Config, "{line}");
        }
        assert!(parse("fleet = 'x'\nauthority_key = 'k'").is_err());
        assert!(parse(&LEAST.replace("./repo", "quic://gw2/main")).is_err());
        assert!(parse(&LEAST.replace("credential:maint", "credential:../maint")).is_err());
    }

    #[test]
    fn what_is_in_effect_means_the_same() {
        let unlike = format!("expire_every_seconds = 60\n{LEAST}\nexpire = false");
        for text in [LEAST, &unlike] {
            let config = parse(text).unwrap();
            assert_eq!(config.repositories[0].expire, text == LEAST);
            let effective = config.effective().unwrap();
            assert_eq!(parse(&effective).unwrap(), config, "{effective}");
        }
    }

    #[test]
    fn the_example_is_read() {
        let example = include_str!("../../../systemd/gateway.toml");
        let config = parse(example).unwrap();
        assert_eq!(config.repositories.len(), 1);
        assert!(config.metrics.is_some());
    }
}
