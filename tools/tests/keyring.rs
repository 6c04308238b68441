//! Keys: what each level can and cannot do, slots, escrow, and that nothing secret leaks.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod site;

use site::{MIB, Run, Site, assert_same};

const PASSPHRASE: &str = "correct-horse-battery-staple-7461";

/// A repository with one point of `web01`.
fn with_point() -> Site {
    let site = Site::with_repository();
    site.image("web01.raw", 20 * MIB, &[(0, 4 * MIB)]);
    site.with_key("host", &["backup", "web01.raw"]).succeeds();
    site
}

#[test]
fn a_host_key_backs_up_and_cannot_restore() {
    let site = with_point();
    let second = site
        .with_key("host", &["backup", "web01.raw", "--json"])
        .succeeds()
        .json();
    assert_eq!(second["new_bytes"], 0);
    site.with_key("host", &["points"]).succeeds();
    site.with_key("host", &["restore", "web01@latest", "--to", "x.raw"])
        .ends_with(5)
        .says(&["host key", "restore key"]);
    assert!(!site.path("x.raw").exists());
    assert!(!site.path("x.raw.tidegate-partial").exists());
    site.with_key("host", &["restore", "web01@latest", "--to", "x.qcow2"])
        .ends_with(5);
    assert!(!site.path("x.qcow2").exists());
    site.with_key("host", &["key", "add", "--level", "host", "--out", "x.key"])
        .ends_with(5);
    assert!(!site.path("x.key").exists());
    site.with_key("maintenance", &["points"]).succeeds();
    site.with_key("maintenance", &["backup", "web01.raw"])
        .ends_with(5);
    site.with_key("maintenance", &["restore", "web01@latest", "--to", "x.raw"])
        .ends_with(5);
}

#[test]
fn a_wrong_or_damaged_key_is_told_from_a_missing_one() {
    let site = with_point();
    site.run(&["init", "--repo", "other", "--keys", "other-keys"])
        .succeeds();
    let with = |key: &str| site.run(&["points", "--repo", "repo", "--key", key]);
    with("none.key").ends_with(3).says(&["none.key"]);
    with("other-keys/restore.key")
        .ends_with(5)
        .says(&["belongs to"]);
    let text = std::fs::read_to_string(site.path("keys/restore.key")).unwrap();
    std::fs::write(site.path("cut.key"), &text[..text.len() / 2]).unwrap();
    with("cut.key").ends_with(5).says(&["cut.key"]);
    std::fs::write(site.path("noise.key"), [0xff; 64]).unwrap();
    with("noise.key").ends_with(5).says(&["noise.key"]);
}

#[test]
fn a_passphrase_slot_opens_the_repository() {
    let site = with_point();
    std::fs::write(site.path("pw"), format!("{PASSPHRASE}\n")).unwrap();
    std::fs::write(site.path("short"), "12345").unwrap();
    site.tidegate(&[
        "key",
        "add",
        "--level",
        "restore",
        "--passphrase-file",
        "short",
    ])
    .ends_with(2)
    .says(&["too short"]);
    let added = site
        .tidegate(&[
            "key",
            "add",
            "--level",
            "restore",
            "--passphrase-file",
            "pw",
            "--label",
            "safe",
            "--json",
        ])
        .succeeds()
        .json();
    assert_eq!(added["wrapping"], "passphrase");
    site.run(&[
        "restore",
        "web01@latest",
        "--to",
        "back.raw",
        "--repo",
        "repo",
        "--passphrase-file",
        "pw",
    ])
    .succeeds();
    assert_same(&site.path("web01.raw"), &site.path("back.raw"));
    // By the environment, and out as a file.
    let mut command = site.command();
    command.env("TIDEGATE_REPO", "repo");
    command.env("TIDEGATE_PASSPHRASE_FILE", "pw");
    Run::of(&mut command, &["key", "export", "--out", "new.key"]).succeeds();
    site.run(&["points", "--repo", "repo", "--key", "new.key"])
        .succeeds();
    std::fs::write(site.path("wrong"), "something-else-entirely").unwrap();
    site.run(&["points", "--repo", "repo", "--passphrase-file", "wrong"])
        .ends_with(5);

    // Removed, it opens nothing.
    site.tidegate(&["key", "remove", "safe"]).succeeds();
    site.run(&["points", "--repo", "repo", "--passphrase-file", "pw"])
        .ends_with(3);
    site.run(&["points", "--repo", "repo", "--key", "new.key"])
        .ends_with(5)
        .says(&["revoked"]);
}

#[test]
fn escrow_and_wrapping_files_open_what_was_wrapped_for_them() {
    let site = with_point();
    let public = site
        .run(&["key", "recipient", "--out", "escrow.key"])
        .succeeds()
        .stdout;
    site.run(&["key", "recipient", "--out", "escrow.key"])
        .ends_with(9)
        .says(&["escrow.key"]);
    site.tidegate(&[
        "key",
        "add",
        "--level",
        "restore",
        "--recipient",
        public.trim(),
    ])
    .succeeds();
    site.run(&["points", "--repo", "repo", "--escrow-key", "escrow.key"])
        .succeeds();
    site.run(&["key", "recipient", "--out", "another.key"])
        .succeeds();
    site.run(&["points", "--repo", "repo", "--escrow-key", "another.key"])
        .ends_with(5);

    std::fs::write(site.path("tiny"), [1; 31]).unwrap();
    site.tidegate(&["key", "add", "--level", "host", "--wrapping-file", "tiny"])
        .ends_with(2)
        .says(&["32"]);
    std::fs::write(site.path("wrap"), [7; 64]).unwrap();
    site.tidegate(&["key", "add", "--level", "host", "--wrapping-file", "wrap"])
        .succeeds();
    let host = &[
        "backup",
        "web01.raw",
        "--repo",
        "repo",
        "--wrapping-file",
        "wrap",
    ];
    site.run(host).succeeds();
}

#[test]
fn keys_are_listed_issued_and_revoked() {
    let site = with_point();
    site.tidegate(&[
        "key", "add", "--level", "host", "--out", "h2.key", "--label", "hyper2",
    ])
    .succeeds();
    site.tidegate(&["key", "add", "--level", "host", "--out", "h2.key"])
        .ends_with(9)
        .says(&["h2.key"]);
    site.tidegate(&["key", "export", "--level", "maintenance", "--out", "m2.key"])
        .succeeds();
    let listed = site.tidegate(&["key", "list", "--json"]).succeeds().json();
    let listed = listed.as_array().unwrap();
    let levels = |level: &str| listed.iter().filter(|key| key["level"] == level).count();
    assert_eq!(
        (levels("host"), levels("maintenance"), levels("restore")),
        (2, 2, 1)
    );
    let backup = &["backup", "web01.raw", "--repo", "repo", "--key", "h2.key"];
    site.run(backup).succeeds();
    site.tidegate(&["key", "remove", "hyper2"]).succeeds();
    site.run(backup).ends_with(5).says(&["revoked"]);
    // What it signed before stands.
    let points = site.tidegate(&["points", "--json"]).succeeds().json();
    assert_eq!(points.as_array().map(Vec::len), Some(2));
    site.tidegate(&["key", "remove", "nobody"]).ends_with(3);
}

#[test]
fn a_key_file_that_others_may_read_is_warned_about() {
    use std::os::unix::fs::PermissionsExt;
    let site = with_point();
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(site.path("keys/restore.key"), open).unwrap();
    site.tidegate(&["points"]).succeeds().says(&["chmod 600"]);
}

/// Words that stand in the disk, in names and in secrets are searched for in every object of the
/// repository, in the cache, and in all that the program says.
#[test]
fn neither_plaintext_nor_secrets_leak() {
    const CONTENT: &str = "MARKER-CONTENT-d41f8c";
    const MACHINE: &str = "marker-machine-0b77";
    const DISK: &str = "marker-disk-5e20";
    let site = Site::with_repository();
    let image = site.image(&format!("{DISK}.raw"), 12 * MIB, &[(8 * MIB, MIB)]);
    let line = format!("{CONTENT} and some text that compresses well\n");
    let plain = line.repeat(40_000);
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(&image)
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, plain.as_bytes(), 0).unwrap();
    std::fs::write(site.path("pw"), PASSPHRASE).unwrap();

    let mut said = String::new();
    let mut hear = |run: Run| {
        said.push_str(&run.stdout);
        said.push_str(&run.stderr);
        run.succeeds();
    };
    let path = format!("{DISK}.raw");
    hear(site.with_key("host", &["-vvv", "backup", &path, "--machine", MACHINE]));
    let slot = [
        "-vvv",
        "key",
        "add",
        "--level",
        "restore",
        "--passphrase-file",
        "pw",
    ];
    hear(site.tidegate(&slot));
    hear(site.tidegate(&["-vvv", "key", "list"]));
    hear(site.tidegate(&["-vvv", "verify", "--all"]));
    let spec = format!("{MACHINE}@latest");
    hear(site.tidegate(&["-vvv", "restore", &spec, "--to", "back.raw"]));
    hear(site.run(&[
        "-vvv",
        "points",
        "--repo",
        "repo",
        "--passphrase-file",
        "pw",
    ]));
    assert_same(&image, &site.path("back.raw"));

    // The middle of each key file's body is as secret as a password.
    let mut secrets = vec![PASSPHRASE.to_owned()];
    for (_, text) in site.files("keys") {
        let text = String::from_utf8(text).unwrap();
        secrets.extend(
            text.lines()
                .filter(|line| line.len() == 64)
                .map(str::to_owned),
        );
    }
    assert!(secrets.len() > 6, "the key files have no body");
    for secret in &secrets {
        assert!(!said.contains(secret.as_str()), "a secret was printed");
    }
    assert!(!said.contains(CONTENT), "disk content was printed");

    let hidden: Vec<&str> = [CONTENT, MACHINE, DISK]
        .into_iter()
        .chain(secrets.iter().map(String::as_str))
        .collect();
    for (path, bytes) in site.files("repo") {
        for word in &hidden {
            let leaks = bytes
                .windows(word.len())
                .any(|window| window == word.as_bytes());
            assert!(!leaks, "{} holds {word:?}", path.display());
            assert!(
                !path.to_string_lossy().contains(*word),
                "{}",
                path.display()
            );
        }
    }
    // The cache knows names, but neither content nor secrets.
    for (path, bytes) in site.files("home/.cache/tidegate") {
        for word in hidden
            .iter()
            .filter(|word| ![MACHINE, DISK].contains(*word))
        {
            let leaks = bytes
                .windows(word.len())
                .any(|window| window == word.as_bytes());
            assert!(!leaks, "{} holds {word:?}", path.display());
        }
    }
}
