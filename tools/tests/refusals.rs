//! Bad input, full disks, foreign and newer repositories: a clear message, the documented code,
//! nothing half-committed, nothing lost.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod site;

use site::{MIB, Run, Site, SmallDisk, allocated_bytes, assert_same, program, text};

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let site = Site::with_repository();
    std::fs::create_dir(site.path("folder")).unwrap();
    program("mkfifo", &[text(&site.path("pipe"))]);
    site.tidegate(&["backup", "folder"])
        .ends_with(8)
        .says(&["folder"]);
    site.tidegate(&["backup", "pipe"])
        .ends_with(8)
        .says(&["pipe"]);
    site.tidegate(&["backup", "none.raw"])
        .ends_with(3)
        .says(&["none.raw"]);
    site.tidegate(&["backup", "/dev/null", "--machine", "m"])
        .ends_with(8);
    let points = site.tidegate(&["points", "--json"]).succeeds().json();
    assert_eq!(points.as_array().map(Vec::len), Some(0));
}

#[test]
fn a_truncated_or_garbled_image_is_refused_and_commits_nothing() {
    let site = Site::with_repository();
    let raw = site.image("disk.raw", 100 * MIB, &[(0, 4 * MIB), (90 * MIB, MIB)]);
    for (name, driver) in [
        ("disk.qcow2", "qcow2"),
        ("disk.vmdk", "vmdk"),
        ("disk.vhd", "vpc"),
        ("disk.vhdx", "vhdx"),
    ] {
        let path = site.path(name);
        program(
            "qemu-img",
            &[
                "convert",
                "-f",
                "raw",
                "-O",
                driver,
                text(&raw),
                text(&path),
            ],
        );
        let whole = path.metadata().unwrap().len();
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(whole / 3)
            .unwrap();
        site.tidegate(&["backup", name]).ends_with(8).says(&[name]);
        std::fs::write(&path, [0x5a; 70_000]).unwrap();
        site.tidegate(&["backup", name]).ends_with(8).says(&[name]);
    }
    let points = site.tidegate(&["points", "--json"]).succeeds().json();
    assert_eq!(points.as_array().map(Vec::len), Some(0));
}

#[test]
fn a_place_without_a_repository_is_told_from_a_damaged_or_newer_one() {
    let site = Site::with_repository();
    let with = |repo: &str| site.run(&["points", "--repo", repo, "--key", "keys/restore.key"]);
    with("nowhere").ends_with(3).says(&["nowhere", "init"]);
    assert!(!site.path("nowhere").exists(), "looking made a folder");

    let path = site.path("repo/repository");
    let descriptor = std::fs::read(&path).unwrap();
    // The version of the object, and that of the format inside: both are read before the signature.
    for (at, byte) in [(4, 2), (10, 2)] {
        let mut newer = descriptor.clone();
        newer[at] = byte;
        std::fs::write(&path, newer).unwrap();
        with("repo").ends_with(10).says(&["version", "upgrade"]);
    }
    let mut damaged = descriptor.clone();
    damaged[60] ^= 1;
    std::fs::write(&path, damaged).unwrap();
    with("repo").ends_with(4).says(&["repository"]);
    std::fs::write(&path, descriptor).unwrap();
    with("repo").succeeds();
}

#[test]
fn a_full_disk_below_the_repository_loses_nothing() {
    let site = Site::with_repository();
    site.image("small.raw", 8 * MIB, &[(0, 2 * MIB)]);
    site.image("large.raw", 100 * MIB, &[(0, 80 * MIB)]);
    let disk = SmallDisk::mount(&site.path("mount"), 40);
    let run = |args: &[&str]| {
        let mut command = site.command();
        command.env("TIDEGATE_REPO", "mount/repo");
        command.env("TIDEGATE_KEY", "more/restore.key");
        Run::of(&mut command, args)
    };
    run(&["init", "--keys", "more"]).succeeds();
    run(&["backup", "small.raw"]).succeeds();
    run(&["backup", "large.raw"])
        .ends_with(7)
        .says(&["mount/repo", "free"]);
    let points = run(&["points", "--json"]).succeeds().json();
    assert_eq!(points.as_array().map(Vec::len), Some(1));
    run(&["verify", "--all"]).succeeds();

    disk.resize(200);
    run(&["backup", "large.raw"]).succeeds();
    run(&["restore", "large@latest", "--to", "back.raw"]).succeeds();
    assert_same(&site.path("large.raw"), &site.path("back.raw"));
}

#[test]
fn a_full_disk_below_the_target_is_told_before_it_is_full() {
    let site = Site::with_repository();
    site.image("disk.raw", 100 * MIB, &[(0, 60 * MIB)]);
    site.tidegate(&["backup", "disk.raw"]).succeeds();
    let disk = SmallDisk::mount(&site.path("mount"), 30);
    let restore = &["restore", "disk@latest", "--to", "mount/back.raw", "--json"];
    site.tidegate(restore)
        .ends_with(7)
        .says(&["mount/back.raw"]);
    assert!(!site.path("mount/back.raw").exists());
    let partial = site.path("mount/back.raw.tidegate-partial");
    assert!(allocated_bytes(&partial) < MIB, "room was not given back");
    site.tidegate(&["restore", "disk@latest", "--to", "mount/back.qcow2"])
        .ends_with(7)
        .says(&["mount/back.qcow2"]);
    assert!(!site.path("mount/back.qcow2").exists());

    disk.resize(200);
    site.tidegate(restore).succeeds();
    assert_same(&site.path("disk.raw"), &site.path("mount/back.raw"));
}

#[test]
fn a_device_that_is_too_small_is_refused_untouched() {
    let site = Site::with_repository();
    site.image("disk.raw", 20 * MIB, &[(0, MIB)]);
    site.tidegate(&["backup", "disk.raw"]).succeeds();
    let backing = site.image("backing", 10 * MIB, &[(0, 10 * MIB)]);
    let before = std::fs::read(&backing).unwrap();
    let device = program("losetup", &["--show", "-f", text(&backing)]);
    let result = std::panic::catch_unwind(|| {
        site.tidegate(&["restore", "disk@latest", "--to", &device, "--in-place"])
            .ends_with(7)
            .says(&["too small"]);
    });
    program("losetup", &["-d", &device]);
    result.unwrap();
    assert!(std::fs::read(&backing).unwrap() == before);
}

#[test]
fn a_folder_that_may_not_be_written_is_refused() {
    let site = Site::new();
    // Root may write anywhere but where nobody may.
    site.run(&["init", "--repo", "/proc/repo", "--keys", "keys"])
        .says(&["/proc/repo"]);
    assert!(!site.path("keys").exists());
    std::fs::write(site.path("file"), "").unwrap();
    let run = site.run(&["init", "--repo", "file", "--keys", "keys"]);
    assert_ne!(run.code, 0);
    run.says(&["file"]);
    assert!(!site.path("keys").exists());
    let run = site.run(&["init", "--repo", "repo", "--keys", "file"]);
    assert_ne!(run.code, 0);
    assert!(!site.path("repo/repository").exists());
}

#[test]
fn keys_of_another_repository_are_not_taken_for_those_of_an_interrupted_init() {
    let site = Site::with_repository();
    let before = site.files("keys");
    // There is no repository that they could open.
    site.run(&["init", "--repo", "other", "--keys", "keys"])
        .ends_with(9)
        .says(&["may be the only key", "--keys", "there is no repository in"]);
    // There is one, and it is not theirs.
    site.run(&["init", "--repo", "other", "--keys", "more"])
        .succeeds();
    let head = site.files("other/log").len();
    site.run(&["init", "--repo", "other", "--keys", "keys"])
        .ends_with(9)
        .says(&["may be the only key", "--keys"]);
    // One of them is another's: nothing is finished with a mixture.
    std::fs::copy(site.path("more/host.key"), site.path("keys/host.key")).unwrap();
    site.run(&["init", "--repo", "repo", "--keys", "keys"])
        .ends_with(9)
        .says(&["may be the only key"]);
    assert_eq!(site.files("other/log").len(), head);
    assert_eq!(site.files("repo/log").len(), head);
    assert!(
        site.files("keys")
            .iter()
            .zip(&before)
            .skip(1)
            .all(|(a, b)| a == b)
    );
}

/// The repository is made, and then its log cannot be begun: without the keys it would be lost.
#[test]
fn keys_are_kept_where_a_repository_may_have_been_made() {
    let site = Site::new();
    std::fs::create_dir(site.path("repo")).unwrap();
    std::fs::write(site.path("repo/log"), "in the way").unwrap();
    let run = site.run(&["init", "--repo", "repo", "--keys", "keys"]);
    assert_ne!(run.code, 0);
    run.says(&["were kept", "run the same command again"]);
    std::fs::remove_file(site.path("repo/log")).unwrap();
    site.run(&["init", "--repo", "repo", "--keys", "keys"])
        .succeeds();
    let keys = site.tidegate(&["key", "list", "--json"]).succeeds().json();
    assert_eq!(keys.as_array().map(Vec::len), Some(3));
    // Nothing is left to be finished.
    site.run(&["init", "--repo", "repo", "--keys", "keys"])
        .ends_with(9)
        .says(&[
            "there is a repository already",
            "nothing is left to be done",
        ]);
    site.image("disk.raw", MIB, &[(0, MIB)]);
    site.tidegate(&["backup", "disk.raw"]).succeeds();
    site.tidegate(&["restore", "disk@latest", "--to", "back.raw"])
        .succeeds();
    assert_same(&site.path("disk.raw"), &site.path("back.raw"));
}
