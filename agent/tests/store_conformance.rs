//! One suite of promises, run against every backend: memory, a local folder, a real S3 server
//! (SeaweedFS) and a real Azure Blob server (Azurite). Google Cloud Storage is not among them: no
//! server that speaks its protocol can be had.
//!
//! The servers are installed by `tools/test`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

use bytes::Bytes;
use object_store::memory::InMemory;
use std::sync::Arc;
use std::time::Duration;
use tidegate_agent::error::Kind;
use tidegate_agent::store::fault::FaultStore;
use tidegate_agent::store::{Environment, Store, StoreSettings};
use tidegate_agent::testing::{AzureServer, OverwritingServer, S3Server, test_settings};

#[path = "store_conformance/suite.rs"]
mod suite;

#[tokio::test]
async fn memory_conforms() {
    suite::run(|prefix| {
        let inner = Arc::new(InMemory::new());
        Store::from_object_store(inner, prefix, "memory", &test_settings())
    })
    .await;
}

#[tokio::test]
async fn the_fault_wrapper_conforms_while_nothing_fails() {
    suite::run(|prefix| {
        let inner = Arc::new(FaultStore::new(Arc::new(InMemory::new())));
        Store::from_object_store(inner, prefix, "faulty", &test_settings())
    })
    .await;
}

#[tokio::test]
async fn a_local_folder_conforms() {
    let root = tempfile::tempdir().unwrap();
    suite::run(|prefix| {
        let folder = root.path().join(prefix);
        Store::open(folder.to_str().unwrap(), &test_settings()).unwrap()
    })
    .await;
}

#[tokio::test]
async fn s3_conforms() {
    let server = S3Server::start();
    suite::run(|prefix| server.open(prefix)).await;
}

#[tokio::test]
async fn azure_conforms() {
    let server = AzureServer::start();
    suite::run(|prefix| server.open(prefix)).await;
}

#[tokio::test]
async fn a_store_that_overwrites_is_refused() {
    let server = OverwritingServer::start();
    let store = server.open("repo");
    let error = store.probe_create_only().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "{error:?}");
    assert!(
        error
            .to_string()
            .starts_with("s3://bucket/repo cannot hold a repository"),
        "{error}"
    );
    assert!(error.advice().is_some());
}

#[tokio::test]
async fn an_s3_bucket_that_is_not_there_is_named() {
    let server = S3Server::start();
    let store = Store::open_in(
        "s3://elsewhere/repo",
        &test_settings(),
        &server.environment(),
    );
    suite::bucket_is_missing(&store.unwrap(), "s3://elsewhere/repo").await;
}

#[tokio::test]
async fn an_azure_container_that_is_not_there_is_named() {
    let server = AzureServer::start();
    let store = Store::open_in(
        "az://elsewhere/repo",
        &test_settings(),
        &server.environment(),
    );
    suite::bucket_is_missing(&store.unwrap(), "az://elsewhere/repo").await;
}

#[tokio::test]
async fn wrong_s3_credentials_are_denied_and_not_repeated() {
    let server = S3Server::start();
    let secret = "hunter2hunter2";
    for environment in [
        server.environment().with("AWS_SECRET_ACCESS_KEY", secret),
        server
            .environment()
            .with("AWS_ACCESS_KEY_ID", "nobody")
            .with("AWS_SECRET_ACCESS_KEY", secret),
    ] {
        let store = Store::open_in(&server.location("repo"), &test_settings(), &environment);
        suite::access_is_denied(&store.unwrap(), &[secret, "AWS_ACCESS_KEY_ID"]).await;
    }
}

#[tokio::test]
async fn wrong_azure_credentials_are_denied_and_not_repeated() {
    let server = AzureServer::start();
    // Base64, as keys of accounts are.
    let secret = "aHVudGVyMmh1bnRlcjI=";
    let environment = server.environment().with("AZURE_STORAGE_KEY", secret);
    let store = Store::open_in(&server.location("repo"), &test_settings(), &environment);
    suite::access_is_denied(&store.unwrap(), &[secret, "AZURE_STORAGE_ACCOUNT_KEY"]).await;
}

#[tokio::test]
async fn credentials_come_from_an_aws_profile() {
    let server = S3Server::start();
    let environment = server.environment();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let value = |name: &str| environment.get(name).unwrap().to_owned();
    let credentials = format!(
        "[other]\naws_access_key_id = wrong\n[backup]\naws_access_key_id = {}\n\
         aws_secret_access_key = {}\n",
        value("AWS_ACCESS_KEY_ID"),
        value("AWS_SECRET_ACCESS_KEY")
    );
    let config = format!(
        "[profile backup]\nregion = us-east-1\nendpoint_url = {}\n",
        value("AWS_ENDPOINT_URL")
    );
    let from_profile = Environment::empty()
        .with("AWS_PROFILE", "backup")
        .with(
            "AWS_SHARED_CREDENTIALS_FILE",
            file("credentials", credentials),
        )
        .with("AWS_CONFIG_FILE", file("config", config));
    let store = Store::open_in(&server.location("repo"), &test_settings(), &from_profile).unwrap();
    store
        .create_named_by_content("packs/a", Bytes::from_static(b"a"))
        .await
        .unwrap();
    assert_eq!(server.open("repo").get("packs/a", 1).await.unwrap(), "a");
}

#[tokio::test]
async fn what_s3_acknowledged_survives_a_kill() {
    let mut server = S3Server::start();
    let store = server.open("repo");
    for n in 0..50 {
        store
            .create_named_by_content(&format!("log/{n:04}"), Bytes::from(vec![n; 5000]))
            .await
            .unwrap();
    }
    server.kill();
    server.restart();
    for n in 0..50 {
        let found = store.get(&format!("log/{n:04}"), 5000).await.unwrap();
        assert_eq!(found, vec![n; 5000]);
    }
}

#[tokio::test]
async fn an_outage_shorter_than_the_deadline_costs_only_retries() {
    let mut server = S3Server::start();
    let store = server.open("repo");
    server.kill();
    let restarting = tokio::task::spawn_blocking(move || {
        std::thread::sleep(Duration::from_millis(500));
        server.restart();
        server
    });
    store
        .create_named_by_content("packs/a", Bytes::from_static(b"a"))
        .await
        .unwrap();
    let _server = restarting.await.unwrap();
    assert!(store.requests().retries > 0);
    assert_eq!(store.get("packs/a", 1).await.unwrap(), "a");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_given_up_with_its_cause() {
    let mut server = S3Server::start();
    let settings = StoreSettings {
        operation_deadline: Duration::from_secs(1),
        ..test_settings()
    };
    let store = Store::open_in(&server.location("repo"), &settings, &server.environment()).unwrap();
    server.kill();
    let error = store.create("packs/a", Bytes::new()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
    let text = error.chain();
    assert!(
        text.contains("gave up after") && text.contains("refused"),
        "{text}"
    );
}
