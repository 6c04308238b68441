//! Ctrl-C and kills: the next run goes on from what has landed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod site;

use site::{MIB, Run, Site, assert_same, written_bytes};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Long enough for a busy machine, short enough for a hang to be noticed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Starts the program on the site's repository with the restore key.
fn start(site: &Site, args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(args)
        .current_dir(site.path(""))
        .env("HOME", site.path("home"))
        .env("TIDEGATE_CONFIG", "/dev/null")
        .env("TIDEGATE_REPO", "repo")
        .env("TIDEGATE_KEY", "keys/restore.key")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[track_caller]
fn wait_until(child: &mut Child, what: &str, mut reached: impl FnMut() -> bool) {
    let started = Instant::now();
    while !reached() {
        if let Some(status) = child.try_wait().unwrap() {
            panic!("the program ended before {what}: {status}");
        }
        assert!(started.elapsed() < PATIENCE, "{what} did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn signal(child: &Child, name: &str) {
    site::program("kill", &[&format!("-{name}"), &child.id().to_string()]);
}

fn packs(folder: &Path) -> usize {
    let Ok(shelves) = folder.read_dir() else {
        return 0;
    };
    shelves
        .filter_map(|shelf| shelf.ok()?.path().read_dir().ok())
        .flatten()
        .filter(|file| {
            // Not the temporary name of one that is still being written.
            file.as_ref().is_ok_and(|file| file.file_name().len() == 64)
        })
        .count()
}

fn large_image(site: &Site) {
    site.image(
        "large.raw",
        700 * MIB,
        &[(0, 300 * MIB), (310 * MIB, 300 * MIB)],
    );
}

#[test]
fn an_interrupted_backup_goes_on_from_what_has_landed() {
    let site = Site::with_repository();
    large_image(&site);
    let mut child = start(&site, &["backup", "large.raw", "--json"]);
    let folder = site.path("repo/packs");
    wait_until(&mut child, "the second pack", || packs(&folder) >= 2);
    signal(&child, "INT");
    let run = Run::from(child.wait_with_output().unwrap())
        .ends_with(130)
        .says(&["goes on from there"]);
    assert_eq!(run.json()["error"]["kind"], "interrupted");
    let points = site.tidegate(&["points", "--json"]).succeeds().json();
    assert_eq!(points.as_array().map(Vec::len), Some(0));

    let second = site
        .tidegate(&["backup", "large.raw", "--json"])
        .succeeds()
        .json();
    let stored = second["stored_bytes"].as_u64().unwrap();
    assert!(stored < 590 * MIB, "{stored} bytes were stored again");
    site.tidegate(&["restore", "large@latest", "--to", "back.raw"])
        .succeeds();
    assert_same(&site.path("large.raw"), &site.path("back.raw"));
}

#[test]
fn a_killed_backup_leaves_a_sound_repository() {
    let site = Site::with_repository();
    large_image(&site);
    let mut child = start(&site, &["backup", "large.raw"]);
    let folder = site.path("repo/packs");
    wait_until(&mut child, "a pack", || packs(&folder) >= 1);
    signal(&child, "KILL");
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(9));
    site.tidegate(&["verify", "--all"]).succeeds();
    site.tidegate(&["backup", "large.raw"]).succeeds();
    site.tidegate(&["verify", "--all"]).succeeds();
    site.tidegate(&["restore", "large@latest", "--to", "back.raw"])
        .succeeds();
    assert_same(&site.path("large.raw"), &site.path("back.raw"));
}

#[test]
fn an_interrupted_restore_keeps_what_was_written() {
    let site = Site::with_repository();
    large_image(&site);
    site.tidegate(&["backup", "large.raw"]).succeeds();
    for name in ["TERM", "KILL"] {
        let back = format!("back-{name}.raw");
        let args = ["restore", "large@latest", "--to", &back];
        let mut child = start(&site, &args);
        let partial = site.path(&format!("{back}.tidegate-partial"));
        wait_until(&mut child, "data in the target", || {
            partial.exists() && written_bytes(&partial) > 40 * MIB
        });
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        if name == "TERM" {
            Run::from(output)
                .ends_with(130)
                .says(&["goes on from there"]);
        }
        assert!(!site.path(&back).exists());
        let mut args = args.to_vec();
        args.push("--json");
        let done = site.tidegate(&args).succeeds().json();
        let kept = done["disks"][0]["kept_bytes"].as_u64().unwrap();
        assert!(kept >= 10 * MIB, "only {kept} bytes were kept");
        assert_same(&site.path("large.raw"), &site.path(&back));
        assert!(!partial.exists());
    }
}

#[test]
fn a_partial_image_of_another_point_is_not_believed() {
    let site = Site::with_repository();
    let image = site.image("disk.raw", 50 * MIB, &[(0, 10 * MIB)]);
    site.tidegate(&["backup", "disk.raw"]).succeeds();
    site.image(
        "back.raw.tidegate-partial",
        50 * MIB,
        &[(5 * MIB, 20 * MIB)],
    );
    site.tidegate(&["restore", "disk@latest", "--to", "back.raw"])
        .succeeds();
    assert_same(&image, &site.path("back.raw"));
    // One of another size is another disk's.
    site.image("next.raw.tidegate-partial", 49 * MIB, &[]);
    site.tidegate(&["restore", "disk@latest", "--to", "next.raw"])
        .ends_with(9)
        .says(&["next.raw.tidegate-partial"]);
}

#[test]
fn two_backups_at_the_same_time_both_come_through() {
    let site = Site::with_repository();
    site.image("a.raw", 80 * MIB, &[(0, 60 * MIB)]);
    site.image("b.raw", 80 * MIB, &[(0, 60 * MIB), (70 * MIB, MIB)]);
    let first = start(&site, &["backup", "a.raw"]);
    let second = start(&site, &["backup", "b.raw"]);
    Run::from(first.wait_with_output().unwrap()).succeeds();
    Run::from(second.wait_with_output().unwrap()).succeeds();
    for name in ["a", "b"] {
        let back = format!("back-{name}.raw");
        site.tidegate(&["restore", &format!("{name}@latest"), "--to", &back])
            .succeeds();
        assert_same(&site.path(&format!("{name}.raw")), &site.path(&back));
    }
}
