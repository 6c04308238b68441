//! `tidegate gateway`: making a fleet, inviting hosts, listing and revoking them, by the real program.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod site;

use site::{Run, Site};
use std::os::unix::fs::PermissionsExt;
use tidegate_agent::clock;
use tidegate_agent::gateway::authority::Authority;
use tidegate_agent::link::identity::PrivateKey;
use tidegate_agent::store::{Store, StoreSettings};
use tidegate_protocol::enrolment::Token;

const FLEET: [&str; 2] = ["--fleet", "fleet"];

fn with_fleet() -> Site {
    let site = Site::new();
    init(&site, "fleet", "gw").succeeds();
    site
}

fn init(site: &Site, fleet: &str, keys: &str) -> Run {
    site.run(&["gateway", "init", "--fleet", fleet, "--keys", keys])
}

fn gateway(site: &Site, verb: &str, args: &[&str]) -> Run {
    site.run(&[&["gateway", verb][..], &FLEET, args].concat())
}

/// Lets a host join by a token, as a gateway with the fleet's key would.
fn join(site: &Site, token: &str) {
    let token = Token::decode(token).unwrap();
    let pem = std::fs::read_to_string(site.path("gw/authority.key")).unwrap();
    let key = PrivateKey::from_pem("authority.key", &pem).unwrap();
    let place = site.path("fleet");
    let store = Store::open(place.to_str().unwrap(), &StoreSettings::default()).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let now = clock::now_unix_ns();
        let authority = Authority::load(key, store, now).await.unwrap();
        let request = PrivateKey::generate().unwrap().request().unwrap();
        authority
            .join(token.enrolment, &token.secret, &request, now)
            .await
            .unwrap();
    });
}

#[test]
fn a_fleet_is_made_once_and_finished_where_that_was_interrupted() {
    let site = Site::new();
    let made = site.run(&[
        "gateway", "init", "--fleet", "fleet", "--keys", "gw", "--json",
    ]);
    let made = made.succeeds().json();
    assert_eq!(made["authority"].as_str().unwrap().len(), 64);
    let key = site.path("gw/authority.key");
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&key), mode(&site.path("gw"))), (0o600, 0o700));
    let before = (site.files("fleet"), std::fs::read(&key).unwrap());
    // No secret is in the fleet's place.
    let pem = String::from_utf8(before.1.clone()).unwrap();
    let secret = pem.lines().nth(1).unwrap();
    for (path, bytes) in &before.0 {
        let text = String::from_utf8_lossy(bytes);
        assert!(!text.contains(secret), "{}", path.display());
    }

    // The same again finds all of it there.
    init(&site, "fleet", "gw").succeeds();
    // With other keys it is somebody else's, and no key is left that opens nothing.
    init(&site, "fleet", "other")
        .ends_with(9)
        .says(&["there is a fleet already", "authority.key"]);
    assert!(!site.path("other/authority.key").exists());
    assert_eq!((site.files("fleet"), std::fs::read(&key).unwrap()), before);

    // Killed between key and fleet: the key is used.
    std::fs::remove_dir_all(site.path("fleet")).unwrap();
    init(&site, "fleet", "gw").succeeds();
    assert_eq!(std::fs::read(&key).unwrap(), before.1);
    gateway(&site, "list", &[]).succeeds();

    // The key of one fleet in the folder for another.
    init(&site, "second", "gw-2").succeeds();
    init(&site, "second", "gw")
        .ends_with(9)
        .says(&["another fleet"]);
    std::fs::write(&key, "nonsense").unwrap();
    init(&site, "fleet", "gw")
        .ends_with(4)
        .says(&["authority.key"]);
}

#[test]
fn a_fleet_that_cannot_be_made_leaves_no_key() {
    let site = Site::new();
    std::fs::write(site.path("fleet"), "a file").unwrap();
    let run = init(&site, "fleet", "gw");
    assert_ne!(run.code, 0);
    assert!(!site.path("gw/authority.key").exists(), "{}", run.stderr);
}

#[test]
fn a_token_is_printed_once_and_lets_one_host_in() {
    let site = with_fleet();
    let invited = gateway(
        &site,
        "invite",
        &[
            "--host",
            "hv1",
            "--repo",
            "main",
            "--repo",
            "archive:monitor",
            "--rights",
            "backup,restore",
            "--gateway",
            "gw1:4433",
            "--gateway",
            "[::1]:4433",
        ],
    )
    .succeeds();
    // Nothing but the token, so that a script can take it.
    let line = invited.stdout.strip_suffix('\n').unwrap();
    assert!(line.starts_with("tidegate-join-1.") && !line.contains('\n'));
    assert!(!invited.stderr.contains(line));
    let token = Token::decode(line).unwrap();
    assert_eq!(token.gateways, ["gw1:4433", "[::1]:4433"]);
    for (path, bytes) in site.files("fleet") {
        let secret = &token.secret.0[..];
        let found = bytes.windows(32).any(|window| window == secret);
        assert!(!found, "{} holds a token's secret", path.display());
    }
    let listed = gateway(&site, "list", &["--json"]).succeeds().json()["enrolments"].take();
    assert_eq!(listed[0]["host"], "hv1");
    assert_eq!(listed[0]["state"], "invited");
    assert_eq!(listed[0]["joined"], serde_json::Value::Null);
    assert_eq!(listed[0]["enrolment"], token.enrolment.to_string());
    let grants = &listed[0]["grants"];
    assert_eq!(grants[0]["repository"], "archive");
    assert_eq!(grants[0]["rights"], serde_json::json!(["monitor"]));
    assert_eq!(grants[1]["repository"], "main");
    assert_eq!(
        grants[1]["rights"],
        serde_json::json!(["backup", "restore"])
    );

    join(&site, line);
    let table = gateway(&site, "list", &[]).succeeds().stdout;
    for word in ["hv1", "joined", "main:backup,restore", "archive:monitor"] {
        assert!(table.contains(word), "{table}");
    }
}

#[test]
fn a_token_in_a_file_is_its_owners_only() {
    let site = with_fleet();
    let invite = |out: &str| {
        let args = [
            "--host",
            "hv1",
            "--repo",
            "main",
            "--expires",
            "90s",
            "--out",
            out,
            "--json",
        ];
        gateway(&site, "invite", &args)
    };
    let invited = invite("hv1.token").succeeds();
    let path = site.path("hv1.token");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&path).unwrap();
    let token = Token::decode(&text).unwrap();
    assert!(!invited.stdout.contains(text.trim()) && !invited.stderr.contains(text.trim()));
    assert_eq!(invited.json()["enrolment"], token.enrolment.to_string());
    // One that is there is not written over, and nobody is invited in vain.
    invite("hv1.token").ends_with(9).says(&["hv1.token exists"]);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    let listed = gateway(&site, "list", &["--json"]).succeeds().json()["enrolments"].take();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    // Append-only, where nothing else is said.
    assert_eq!(
        listed[0]["grants"][0]["rights"],
        serde_json::json!(["backup"])
    );
    let moment = |name: &str| {
        listed[0][name]
            .as_str()
            .unwrap()
            .parse::<jiff::Timestamp>()
            .unwrap()
    };
    assert_eq!((moment("expires") - moment("invited")).get_seconds(), 90);
}

#[test]
fn hosts_are_revoked_by_name_and_by_id() {
    let site = with_fleet();
    let invite = |host: &str| {
        let run = gateway(
            &site,
            "invite",
            &["--host", host, "--repo", "main", "--json"],
        );
        run.succeeds().json()
    };
    let [first, second, third] = ["hv1", "hv1", "hv2"].map(invite);
    join(&site, first["token"].as_str().unwrap());
    let states = || {
        let listed = gateway(&site, "list", &["--json"]).succeeds().json()["enrolments"].take();
        let mut states: Vec<_> = listed
            .as_array()
            .unwrap()
            .iter()
            .map(|one| (one["enrolment"].clone(), one["state"].clone()))
            .collect();
        states.sort_by_key(|(id, _)| id.to_string());
        states
    };
    let expected = |all: [(&serde_json::Value, &str); 3]| {
        let mut all = all.map(|(one, state)| (one["enrolment"].clone(), state.into()));
        all.sort_by_key(|(id, _)| id.to_string());
        all
    };
    assert_eq!(
        states(),
        expected([
            (&first, "joined"),
            (&second, "invited"),
            (&third, "invited")
        ])
    );
    let revoked = gateway(&site, "revoke", &["hv1"]).succeeds().stdout;
    assert_eq!(revoked.lines().count(), 2, "{revoked}");
    assert_eq!(
        states(),
        expected([
            (&first, "revoked"),
            (&second, "revoked"),
            (&third, "invited")
        ])
    );
    let id = third["enrolment"].as_str().unwrap();
    for _ in 0..2 {
        let revoked = gateway(&site, "revoke", &[&id[..6], "--json"])
            .succeeds()
            .json();
        assert_eq!(revoked[0]["enrolment"], id);
        assert_eq!(revoked[0]["host"], "hv2");
    }
    assert_eq!(
        states(),
        expected([
            (&first, "revoked"),
            (&second, "revoked"),
            (&third, "revoked")
        ])
    );
    gateway(&site, "revoke", &["hv9"])
        .ends_with(3)
        .says(&["hv9", "gateway list"]);
}

#[test]
fn wrong_arguments_are_refused_before_anything_is_written() {
    let site = with_fleet();
    let before = site.files("fleet");
    for (args, code, words) in [
        (&["--host", "hv1"][..], 2, &["--repo"][..]),
        (&["--repo", "main"], 2, &["--host"]),
        (&["--host", "a b", "--repo", "main"], 2, &["a b"]),
        (
            &["--host", "hv1", "--repo", "main", "--rights", "root"],
            2,
            &["root", "maintenance"],
        ),
        (
            &["--host", "hv1", "--repo", "main", "--rights", ""],
            2,
            &["maintenance"],
        ),
        (&["--host", "hv1", "--repo", "main:"], 2, &["maintenance"]),
        (&["--host", "hv1", "--repo", "a/b"], 2, &["a/b"]),
        (
            &["--host", "hv1", "--repo", "main", "--repo", "main"],
            2,
            &["twice"],
        ),
        (
            &["--host", "hv1", "--repo", "main", "--expires", "0s"],
            2,
            &["30m"],
        ),
        (
            &["--host", "hv1", "--repo", "main", "--gateway", "gw1"],
            2,
            &["host:port"],
        ),
    ] {
        gateway(&site, "invite", args).ends_with(code).says(words);
    }
    assert_eq!(site.files("fleet"), before);
    for verb in [
        &["list"][..],
        &["revoke", "hv1"],
        &["invite", "--host", "h", "--repo", "r"],
    ] {
        let run = site.run(&[&["gateway"], verb, &["--fleet", "nowhere"]].concat());
        run.ends_with(3).says(&["nowhere", "gateway init"]);
    }
}

/// One damaged object is named, and hides nobody else's.
#[test]
fn a_damaged_object_is_named() {
    let site = with_fleet();
    gateway(&site, "invite", &["--host", "hv1", "--repo", "main"]).succeeds();
    let (path, bytes) = site
        .files("fleet")
        .into_iter()
        .find(|(path, _)| path.to_string_lossy().contains("invites"))
        .unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    gateway(&site, "invite", &["--host", "hv2", "--repo", "main"]).succeeds();
    let listed = gateway(&site, "list", &["--json"])
        .ends_with(4)
        .says(&["invites/", &name]);
    let listed = listed.json();
    assert_eq!(listed["enrolments"][0]["host"], "hv2");
    assert_eq!(listed["damaged"][0]["enrolment"], name);
    // Either can be revoked.
    gateway(&site, "revoke", &["hv2"]).succeeds();
    gateway(&site, "revoke", &[&name]).succeeds();
}
