//! Where a store is, as the operator writes it.
//!
//! Only syntax: nothing is looked up. A location never holds credentials; one that does is refused
//! without being repeated, since it would end in logs.

use crate::error::{Error, Kind, Result};
use std::fmt;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

/// A parsed location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Location {
    /// A folder of this machine.
    Folder(PathBuf),
    /// A prefix in a bucket or container of a cloud.
    Cloud {
        cloud: Cloud,
        bucket: String,
        /// Without slashes at its ends; may be empty.
        prefix: String,
    },
    /// A repository behind gateways.
    Gateways {
        /// Each `host:port`.
        addresses: Vec<String>,
        /// As the gateways call it.
        repository: String,
    },
}

/// The clouds known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cloud {
    S3,
    Azure,
    Gcs,
}

/// Where gateways listen unless they are told otherwise.
pub(crate) const GATEWAY_PORT: u16 = 4433;

const EXPECTED: &str = "a folder, s3://bucket/prefix, az://container/prefix, gs://bucket/prefix or \
                        quic://gateway:port/repository";

impl Location {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if text.trim().is_empty() {
            return Err(Error::new(
                Kind::Config,
                format!("the store's location is empty: expected {EXPECTED}"),
            ));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self::Folder(PathBuf::from(text)));
        };
        let cloud = match scheme {
            "file" => return Self::file(text),
            "quic" => return Self::gateways(rest),
            "s3" | "s3a" => Cloud::S3,
            "az" | "azure" => Cloud::Azure,
            "gs" => Cloud::Gcs,
            _ => {
                return Err(Error::new(
                    Kind::Config,
                    format!("{scheme:?} is no kind of store: expected {EXPECTED}"),
                ));
            }
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.contains(['@', ':']) {
            return Err(Error::new(
                Kind::Config,
                format!(
                    "a {scheme}:// location holds a bucket and a prefix only, found '@' or ':' \
                     before the first '/'"
                ),
            )
            .advise("give credentials and endpoints by the environment, never in the location"));
        }
        let bucket_is_plain = !bucket.is_empty()
            && bucket.bytes().all(|byte| {
                byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'$')
            });
        if !bucket_is_plain {
            return Err(Error::new(
                Kind::Config,
                format!("{bucket:?} is no name of a bucket or container"),
            ));
        }
        let prefix = prefix.trim_matches('/');
        if !prefix.is_empty() && !prefix_is_plain(prefix) {
            return Err(Error::new(
                Kind::Config,
                format!(
                    "{prefix:?} cannot be a prefix: expected names of letters, digits, '-', '_', \
                     '.', '=' and '+' with '/' between them"
                ),
            ));
        }
        Ok(Self::Cloud {
            cloud,
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        })
    }

    fn gateways(rest: &str) -> Result<Self> {
        let refused = |what: String| {
            Err(Error::new(
                Kind::Config,
                format!("{what}: expected quic://gateway:port,gateway:port/repository"),
            ))
        };
        let (gateways, repository) = rest.split_once('/').unwrap_or((rest, ""));
        let repository = repository.trim_end_matches('/');
        if !name_is_plain(repository) {
            return refused(format!("{repository:?} is no repository of a gateway"));
        }
        let mut addresses = Vec::new();
        for gateway in gateways.split(',') {
            let Some(address) = address_of(gateway) else {
                return refused(format!("{gateway:?} is no address of a gateway"));
            };
            addresses.push(address);
        }
        Ok(Self::Gateways {
            addresses,
            repository: repository.to_owned(),
        })
    }

    fn file(text: &str) -> Result<Self> {
        url::Url::parse(text)
            .ok()
            .and_then(|url| url.to_file_path().ok())
            .map(Self::Folder)
            .ok_or_else(|| {
                Error::new(
                    Kind::Config,
                    format!("{text:?} names no folder of this machine: expected file:///folder"),
                )
            })
    }
}

/// `host`, `host:port`, `[address]` or `[address]:port`, with the port filled in.
fn address_of(gateway: &str) -> Option<String> {
    let (host, port) = match gateway.rsplit_once(':') {
        Some((host, port)) if !gateway.ends_with(']') => (host, port.parse().ok()?),
        _ => (gateway, GATEWAY_PORT),
    };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest
            .strip_suffix(']')?
            .parse::<Ipv6Addr>()
            .ok()?
            .to_string(),
        None => host.to_owned(),
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let is_plain = host.starts_with('[') || name.bytes().all(is_name);
    (is_plain && !name.is_empty() && port > 0).then(|| format!("{host}:{port}"))
}

/// Whether it can be the name of a repository at a gateway.
fn name_is_plain(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Whether every segment has only characters that no store and no URL treats specially.
fn prefix_is_plain(prefix: &str) -> bool {
    prefix.split('/').all(|segment| {
        !matches!(segment, "" | "." | "..")
            && segment.bytes().all(|byte| {
                byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'=' | b'+')
            })
    })
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => Path::new(path).display().fmt(f),
            Self::Gateways {
                addresses,
                repository,
            } => write!(f, "quic://{}/{repository}", addresses.join(",")),
            Self::Cloud {
                cloud,
                bucket,
                prefix,
            } => {
                let scheme = match cloud {
                    Cloud::S3 => "s3",
                    Cloud::Azure => "az",
                    Cloud::Gcs => "gs",
                };
                write!(f, "{scheme}://{bucket}")?;
                if prefix.is_empty() {
                    Ok(())
                } else {
                    write!(f, "/{prefix}")
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_read_as_written() {
        for (text, label) in [
            ("repo", "repo"),
            ("./repo", "./repo"),
            ("/srv/repo", "/srv/repo"),
            ("file:///srv/my%20repo", "/srv/my repo"),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            ("s3://bucket/a/b/", "s3://bucket/a/b"),
            ("az://container/x", "az://container/x"),
            ("gs://bucket/x", "gs://bucket/x"),
            ("quic://gw1/main", "quic://gw1:4433/main"),
            (
                "quic://gw1:4434,10.0.0.2/main/",
                "quic://gw1:4434,10.0.0.2:4433/main",
            ),
            (
                "quic://[::1]:4433,[fe80::1]/m",
                "quic://[::1]:4433,[fe80::1]:4433/m",
            ),
        ] {
            assert_eq!(Location::parse(text).unwrap().to_string(), label, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_a_store_is_refused() {
        for text in [
            "",
            "  ",
            "ftp://host/x",
            "file://host/x",
            "s3://",
            "s3:///prefix",
            "s3://bucket/a//b",
            "s3://bucket/../other",
            "s3://bucket/a?versionId=1",
            "s3://bucket/a#b",
            "quic://gw1",
            "quic:///main",
            "quic://gw1:0/main",
            "quic://gw1:99999/main",
            "quic://gw1,/main",
            "quic://user@gw1/main",
            "quic://[gw1]/main",
            "quic://gw1/main/sub",
        ] {
            assert_eq!(
                Location::parse(text).unwrap_err().kind(),
                Kind::Config,
                "{text}"
            );
        }
    }

    #[test]
    fn credentials_in_a_location_are_refused_and_not_repeated() {
        let error = Location::parse("s3://AKIA:hunter2@bucket/prefix").unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}
