//! Clients for the clouds, made from the environment.
//!
//! S3 and Azure are tested against real servers; **GCS is built the same way and has not been run
//! against one.** The libraries' own retries and time-outs are off: [`super::attempt`] decides.

use super::answer::AnsweringConnector;
use super::aws_profile::Profile;
use super::folder::Folder;
use super::gateway::Gateway;
use super::location::{Cloud, Location};
use super::{Backend, Environment, StoreSettings};
use crate::error::{Error, Kind, Result};
use crate::link::client::Link;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A client for a place, and where in it the repository starts.
pub(super) struct Connected {
    pub(super) inner: Arc<dyn ObjectStore>,
    pub(super) prefix: Path,
    pub(super) backend: Backend,
    /// The way to the gateways, where the place is behind some.
    pub(super) link: Option<Link>,
}

pub(super) fn connect(
    location: &Location,
    settings: &StoreSettings,
    environment: &Environment,
) -> Result<Connected> {
    let (cloud, bucket, prefix) = match location {
        Location::Folder(root) => {
            let folder = Folder::open(root)?;
            return Ok(Connected {
                inner: Arc::new(folder),
                prefix: Path::default(),
                backend: Backend::Folder,
                link: None,
            });
        }
        Location::Gateways {
            addresses,
            repository,
        } => {
            let link = Link::new(addresses.clone(), repository.clone(), &settings.link);
            return Ok(Connected {
                inner: Arc::new(Gateway::new(link.clone())),
                prefix: Path::default(),
                backend: Backend::Gateway,
                link: Some(link),
            });
        }
        Location::Cloud {
            cloud,
            bucket,
            prefix,
        } => (cloud, bucket, prefix),
    };
    let (inner, backend) = match cloud {
        Cloud::S3 => (s3(bucket, settings, environment)?, Backend::S3),
        Cloud::Azure => (azure(bucket, settings, environment)?, Backend::Azure),
        Cloud::Gcs => (gcs(bucket, settings, environment)?, Backend::Gcs),
    };
    let prefix = Path::parse(prefix).map_err(|cause| {
        Error::new(Kind::Config, format!("{location} has no valid prefix")).caused_by(cause)
    })?;
    Ok(Connected {
        inner,
        prefix,
        backend,
        link: None,
    })
}

fn s3(
    bucket: &str,
    settings: &StoreSettings,
    environment: &Environment,
) -> Result<Arc<dyn ObjectStore>> {
    let mut builder = AmazonS3Builder::new();
    for (name, value) in environment.starting_with("AWS_") {
        if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    // The profile fills in what the environment leaves open.
    if environment.get("AWS_ACCESS_KEY_ID").is_none() {
        let profile = Profile::read(environment)?;
        for (name, key) in [
            ("aws_access_key_id", AmazonS3ConfigKey::AccessKeyId),
            ("aws_secret_access_key", AmazonS3ConfigKey::SecretAccessKey),
            ("aws_session_token", AmazonS3ConfigKey::Token),
            ("region", AmazonS3ConfigKey::Region),
            ("endpoint_url", AmazonS3ConfigKey::Endpoint),
        ] {
            if let (Some(value), None) = (profile.get(name), builder.get_config_value(&key)) {
                builder = builder.with_config(key, value);
            }
        }
    }
    // The request is signed with this digest anyway. Sent as a checksum too, the store compares it
    // with what it wrote, and buckets with Object Lock accept the PUT.
    if builder
        .get_config_value(&AmazonS3ConfigKey::Checksum)
        .is_none()
    {
        builder = builder.with_checksum_algorithm(Checksum::SHA256);
    }
    let endpoint = builder
        .get_config_value(&AmazonS3ConfigKey::S3Endpoint)
        .or_else(|| builder.get_config_value(&AmazonS3ConfigKey::Endpoint));
    let store = builder
        .with_bucket_name(bucket)
        // One DELETE an object: the bulk request needs rights and checksums that not every
        // server of this protocol has.
        .with_disable_bulk_delete(true)
        .with_client_options(client_options(endpoint.as_deref(), settings))
        .with_retry(no_retries())
        .with_http_connector(connector(settings))
        .build()
        .map_err(|cause| not_configured("S3", cause))?;
    Ok(Arc::new(store))
}

fn azure(
    container: &str,
    settings: &StoreSettings,
    environment: &Environment,
) -> Result<Arc<dyn ObjectStore>> {
    let mut builder = MicrosoftAzureBuilder::new();
    if let Some(text) = environment.get("AZURE_STORAGE_CONNECTION_STRING") {
        for (key, value) in connection_string(text) {
            builder = builder.with_config(key, value);
        }
    }
    for (name, value) in environment.starting_with("AZURE_") {
        let key = match name {
            // What Azure's own tools call them.
            "AZURE_STORAGE_ACCOUNT" => AzureConfigKey::AccountName,
            "AZURE_STORAGE_KEY" => AzureConfigKey::AccessKey,
            _ => match name.to_ascii_lowercase().parse() {
                Ok(key) => key,
                Err(_) => continue,
            },
        };
        builder = builder.with_config(key, value);
    }
    if let Some(endpoint) = environment.get("IDENTITY_ENDPOINT") {
        builder = builder.with_config(AzureConfigKey::MsiEndpoint, endpoint);
    }
    let endpoint = builder.get_config_value(&AzureConfigKey::Endpoint);
    let store = builder
        .with_container_name(container)
        .with_client_options(client_options(endpoint.as_deref(), settings))
        .with_retry(no_retries())
        .with_http_connector(connector(settings))
        .build()
        .map_err(|cause| not_configured("Azure", cause))?;
    Ok(Arc::new(store))
}

/// The settings in an account's connection string, as Azure's portal shows it.
fn connection_string(text: &str) -> Vec<(AzureConfigKey, String)> {
    let parts: BTreeMap<&str, &str> = text
        .split(';')
        .filter_map(|part| part.trim().split_once('='))
        .collect();
    let mut settings = Vec::new();
    for (name, key) in [
        ("AccountName", AzureConfigKey::AccountName),
        ("AccountKey", AzureConfigKey::AccessKey),
        ("SharedAccessSignature", AzureConfigKey::SasKey),
        ("BlobEndpoint", AzureConfigKey::Endpoint),
    ] {
        if let Some(value) = parts.get(name) {
            settings.push((key, (*value).to_owned()));
        }
    }
    if !parts.contains_key("BlobEndpoint")
        && let (Some(account), Some(suffix)) =
            (parts.get("AccountName"), parts.get("EndpointSuffix"))
    {
        let scheme = parts.get("DefaultEndpointsProtocol").unwrap_or(&"https");
        let endpoint = format!("{scheme}://{account}.blob.{suffix}");
        settings.push((AzureConfigKey::Endpoint, endpoint));
    }
    settings
}

fn gcs(
    bucket: &str,
    settings: &StoreSettings,
    environment: &Environment,
) -> Result<Arc<dyn ObjectStore>> {
    let mut builder = GoogleCloudStorageBuilder::new();
    for (name, value) in environment.starting_with("GOOGLE_") {
        if let Ok(key) = name.to_ascii_lowercase().parse::<GoogleConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    let endpoint = environment.get("GOOGLE_BASE_URL");
    let store = builder
        .with_bucket_name(bucket)
        .with_client_options(client_options(endpoint, settings))
        .with_retry(no_retries())
        .with_http_connector(connector(settings))
        .build()
        .map_err(|cause| not_configured("Google Cloud Storage", cause))?;
    Ok(Arc::new(store))
}

/// Plain HTTP where the operator's endpoint says so, and nowhere else.
fn client_options(endpoint: Option<&str>, settings: &StoreSettings) -> ClientOptions {
    let is_plain = endpoint.is_some_and(|url| url.to_ascii_lowercase().starts_with("http://"));
    ClientOptions::new()
        .with_allow_http(is_plain)
        .with_connect_timeout(settings.connect_timeout)
        // A fixed limit for a whole request would fail large packs on slow lines.
        .with_timeout_disabled()
}

fn connector(settings: &StoreSettings) -> AnsweringConnector {
    AnsweringConnector {
        connect_timeout: settings.connect_timeout,
    }
}

fn no_retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: 0,
        retry_timeout: Duration::ZERO,
    }
}

/// The library's words name the setting, never its value.
fn not_configured(cloud: &str, cause: object_store::Error) -> Error {
    Error::new(
        Kind::Config,
        format!("the settings for {cloud} in the environment cannot be used"),
    )
    .caused_by(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(location: &str, environment: &Environment) -> Result<Connected> {
        let location = Location::parse(location).unwrap();
        connect(&location, &StoreSettings::default(), environment)
    }

    #[test]
    fn each_cloud_is_made_from_its_usual_variables() {
        let home = Environment::empty().with("HOME", "/nonexistent");
        let s3 = home
            .clone()
            .with("AWS_ACCESS_KEY_ID", "a")
            .with("AWS_SECRET_ACCESS_KEY", "b")
            .with("AWS_REGION", "eu-central-1");
        let azure = home
            .clone()
            .with("AZURE_STORAGE_ACCOUNT", "account")
            .with("AZURE_STORAGE_KEY", "a2V5");
        let by_string = home.clone().with(
            "AZURE_STORAGE_CONNECTION_STRING",
            "DefaultEndpointsProtocol=https;AccountName=account;AccountKey=a2V5;\
             EndpointSuffix=core.windows.net",
        );
        let gcs = home.with("GOOGLE_BEARER_TOKEN", "token");
        for (location, environment) in [
            ("s3://bucket/a", s3),
            ("az://container/a", azure),
            ("az://container/a", by_string),
            ("gs://bucket/a", gcs),
        ] {
            let connected = open(location, &environment).unwrap();
            assert_eq!(connected.prefix.as_ref(), "a", "{}", connected.inner);
        }
    }

    #[test]
    fn a_connection_string_gives_account_key_and_endpoint() {
        let settings = connection_string(
            "AccountName=acc;AccountKey=a2V5PT0=;EndpointSuffix=core.chinacloudapi.cn",
        );
        assert_eq!(
            settings,
            [
                (AzureConfigKey::AccountName, "acc".to_owned()),
                (AzureConfigKey::AccessKey, "a2V5PT0=".to_owned()),
                (
                    AzureConfigKey::Endpoint,
                    "https://acc.blob.core.chinacloudapi.cn".to_owned()
                ),
            ]
        );
    }

    #[test]
    fn settings_that_cannot_be_used_are_refused_without_their_values() {
        let environment = Environment::empty()
            .with("AZURE_STORAGE_ACCOUNT", "account")
            .with("AZURE_STORAGE_KEY", "hunter2 is no base64");
        let error = open("az://container", &environment)
            .map(|_| ())
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        let error = open("az://container", &Environment::empty())
            .map(|_| ())
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
        let environment =
            Environment::empty().with("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent");
        let error = open("gs://bucket", &environment).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
    }

    #[test]
    fn plain_http_needs_an_endpoint_that_says_so() {
        use object_store::client::ClientConfigKey;
        for (endpoint, expected) in [
            (None, "false"),
            (Some("https://host"), "false"),
            (Some("http://host"), "true"),
            (Some("HTTP://host"), "true"),
        ] {
            let options = client_options(endpoint, &StoreSettings::default());
            let found = options.get_config_value(&ClientConfigKey::AllowHttp);
            assert_eq!(found.as_deref(), Some(expected), "{endpoint:?}");
        }
    }
}
