//! The profiles in `~/.aws/credentials` and `~/.aws/config`.
//!
//! Only static keys, region and endpoint are understood. A profile that asks for more (single
//! sign-on, a credential process, an assumed role) is refused by name instead of being passed
//! over in favour of somebody else's credentials.

use super::Environment;
use crate::error::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// Larger files are no profiles.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What profiles ask for that is not understood here.
const UNSUPPORTED: [&str; 4] = [
    "sso_session",
    "sso_start_url",
    "credential_process",
    "role_arn",
];

/// A profile's settings, each if present.
#[derive(Default)]
pub(super) struct Profile {
    values: BTreeMap<String, String>,
}

impl Profile {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// Reads the profile that the environment names, or `default`.
    pub(super) fn read(environment: &Environment) -> Result<Self> {
        let named = environment
            .get("AWS_PROFILE")
            .or_else(|| environment.get("AWS_DEFAULT_PROFILE"));
        let name = named.unwrap_or("default");
        let mut profile = Self::default();
        let mut is_there = false;
        // Credentials win over the configuration where both name a value.
        for (variable, file, prefix) in [
            ("AWS_CONFIG_FILE", ".aws/config", "profile "),
            ("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials", ""),
        ] {
            let Some(path) = environment.file(variable, file) else {
                continue;
            };
            let Some(text) = read_if_there(&path)? else {
                continue;
            };
            let section = match name {
                "default" => name.to_owned(),
                _ => format!("{prefix}{name}"),
            };
            if let Some(values) = section_of(&text, &section) {
                is_there = true;
                profile.values.extend(values);
            }
        }
        if !is_there && named.is_some() {
            return Err(Error::new(
                Kind::Config,
                format!(
                    "AWS_PROFILE names {name:?}, which is in neither ~/.aws/credentials nor ~/.aws/config"
                ),
            ));
        }
        let has_keys = profile.get("aws_access_key_id").is_some();
        match UNSUPPORTED.iter().find(|key| profile.get(key).is_some()) {
            Some(key) if !has_keys => Err(Error::new(
                Kind::Unsupported,
                format!("the AWS profile {name:?} takes its credentials from {key}, which is not supported"),
            )
            .advise("export AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN (`aws configure export-credentials --format env` prints them)")),
            _ => Ok(profile),
        }
    }
}

fn read_if_there(path: &Path) -> Result<Option<String>> {
    let about = || format!("the AWS profile file {}", path.display());
    let size_bytes = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(about(), error)),
    };
    if size_bytes > FILE_BYTES_MAX {
        return Err(Error::new(
            Kind::Config,
            format!("{} is no profile file: it has {size_bytes} bytes", about()),
        ));
    }
    std::fs::read_to_string(path)
        .map(Some)
        .map_err(|error| Error::io(about(), error))
}

/// The values of an ini section, or `None` where there is no such section. Indented lines belong
/// to nested settings (`s3 =`), which are none of ours.
pub(crate) fn section_of(text: &str, section: &str) -> Option<BTreeMap<String, String>> {
    let mut found = None;
    let mut is_inside = false;
    for line in text.lines() {
        let is_nested = line.starts_with([' ', '\t']);
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) || is_nested {
            continue;
        }
        if let Some(header) = line
            .strip_prefix('[')
            .and_then(|rest| rest.split(']').next())
        {
            let words: Vec<&str> = header.split_whitespace().collect();
            is_inside = words.join(" ") == section;
            if is_inside && found.is_none() {
                found = Some(BTreeMap::new());
            }
        } else if is_inside
            && let (Some((name, value)), Some(values)) = (line.split_once('='), &mut found)
        {
            values.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(credentials: &str, config: &str) -> (tempfile::TempDir, Environment) {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let environment = Environment::empty()
            .with(
                "AWS_SHARED_CREDENTIALS_FILE",
                write("credentials", credentials),
            )
            .with("AWS_CONFIG_FILE", write("config", config));
        (folder, environment)
    }

    const CREDENTIALS: &str = "# comment\n[default]\naws_access_key_id = AK1\n\
        aws_secret_access_key=SK1=with=equals\n\n[ backup ]\naws_access_key_id=AK2\n";
    const CONFIG: &str = "[default]\nregion = eu-west-1\n[profile backup]\nregion=eu-central-1\n\
        s3 =\n  endpoint_url = http://nested\nendpoint_url = http://127.0.0.1:1\n\
        [profile sso]\nsso_session = corp\n";

    #[test]
    fn the_default_profile_is_read_from_both_files() {
        let (_folder, environment) = environment(CREDENTIALS, CONFIG);
        let profile = Profile::read(&environment).unwrap();
        assert_eq!(profile.get("aws_access_key_id"), Some("AK1"));
        assert_eq!(
            profile.get("aws_secret_access_key"),
            Some("SK1=with=equals")
        );
        assert_eq!(profile.get("region"), Some("eu-west-1"));
    }

    #[test]
    fn a_named_profile_is_read_without_its_nested_settings() {
        let (_folder, environment) = environment(CREDENTIALS, CONFIG);
        let profile = Profile::read(&environment.with("AWS_PROFILE", "backup")).unwrap();
        assert_eq!(profile.get("aws_access_key_id"), Some("AK2"));
        assert_eq!(profile.get("aws_secret_access_key"), None);
        assert_eq!(profile.get("endpoint_url"), Some("http://127.0.0.1:1"));
    }

    #[test]
    fn profiles_that_are_not_there_or_not_understood_are_refused() {
        let (_folder, environment) = environment(CREDENTIALS, CONFIG);
        let refused =
            |name: &str| match Profile::read(&environment.clone().with("AWS_PROFILE", name)) {
                Ok(_) => panic!("profile {name} was accepted"),
                Err(error) => error.kind(),
            };
        assert_eq!(refused("nobody"), Kind::Config);
        assert_eq!(refused("sso"), Kind::Unsupported);
    }

    #[test]
    fn no_files_at_all_is_an_empty_profile() {
        let environment = Environment::empty().with("HOME", "/nonexistent");
        assert!(Profile::read(&environment).unwrap().values.is_empty());
    }
}
