//! The same commands on real object store servers.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod site;

use site::{MIB, Run, Site, assert_same};
use tidegate_agent::store::Environment;
use tidegate_agent::testing::{AzureServer, OverwritingServer, S3Server};

fn run(site: &Site, environment: &Environment, location: &str, args: &[&str]) -> Run {
    let mut command = site.command();
    command.envs(environment.variables());
    command.env("TIDEGATE_REPO", location);
    command.env("TIDEGATE_KEY", "keys/restore.key");
    Run::of(&mut command, args)
}

fn round_trip(environment: &Environment, location: &str) {
    let site = Site::new();
    let image = site.image("web01.raw", 100 * MIB, &[(0, 40 * MIB), (99 * MIB, MIB)]);
    let run = |args: &[&str]| run(&site, environment, location, args);
    run(&["init", "--keys", "keys"]).succeeds();
    run(&["init", "--keys", "again"])
        .ends_with(9)
        .says(&[location]);
    run(&["backup", "web01.raw"]).succeeds();
    let second = run(&["backup", "web01.raw", "--json"]).succeeds().json();
    assert_eq!(second["requests"], 1);
    run(&["verify", "--all"]).succeeds();
    // As on a machine that was just installed: no cache, only the key and the bucket.
    std::fs::remove_dir_all(site.path("home/.cache")).unwrap();
    run(&["restore", "web01@latest", "--to", "back.raw", "--verify"]).succeeds();
    assert_same(&image, &site.path("back.raw"));
}

#[test]
fn s3() {
    let server = S3Server::start();
    round_trip(&server.environment(), &server.location("a/repository"));
}

#[test]
fn azure() {
    let server = AzureServer::start();
    round_trip(&server.environment(), &server.location("a/repository"));
}

#[test]
fn a_bucket_that_is_not_there_and_wrong_credentials_are_told_apart() {
    let server = S3Server::start();
    let site = Site::new();
    let environment = server.environment();
    let nowhere = "s3://no-such-bucket-here/repository";
    run(&site, &environment, nowhere, &["init", "--keys", "keys"])
        .ends_with(3)
        .says(&["no-such-bucket-here"]);
    assert!(!site.path("keys").exists());
    let location = server.location("denied");
    let denied = environment.with("AWS_SECRET_ACCESS_KEY", "a-wrong-secret-0123456789");
    let refused = run(
        &site,
        &denied,
        &location,
        &["-vvv", "init", "--keys", "keys"],
    )
    .ends_with(5)
    .says(&["AWS_"]);
    assert!(!refused.stderr.contains("a-wrong-secret-0123456789"));
    assert!(!site.path("keys").exists());
}

#[test]
fn a_store_that_overwrites_is_refused_and_no_keys_are_left() {
    let server = OverwritingServer::start();
    let site = Site::new();
    run(
        &site,
        &server.environment(),
        &server.location("r"),
        &["init", "--keys", "keys"],
    )
    .ends_with(10)
    .says(&["overwr"]);
    assert!(!site.path("keys").exists());
}

#[test]
fn a_server_that_is_down_is_unavailable() {
    let mut server = S3Server::start();
    let site = Site::new();
    let location = server.location("r");
    let environment = server.environment();
    run(&site, &environment, &location, &["init", "--keys", "keys"]).succeeds();
    server.kill();
    std::fs::write(
        site.path("impatient.toml"),
        "[store]\nconnect_timeout_seconds = 1\noperation_deadline_seconds = 2\n",
    )
    .unwrap();
    run(
        &site,
        &environment,
        &location,
        &["points", "--config", "impatient.toml"],
    )
    .ends_with(6)
    .says(&["r"]);
}
