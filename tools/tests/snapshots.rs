//! Snapshots in chains of images: what is read of each, that it is right, and what is not believed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod site;

use serde_json::Value;
use site::{MIB, Site, assert_same, program, text};

const DISK_BYTES: u64 = 64 * MIB;

/// An image on top of another, with what the guest writes from then on.
fn overlay(site: &Site, name: &str, below: &str, size: &str, writes: &[&str]) {
    let path = site.path(name);
    let create = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-b",
        below,
        text(&path),
        size,
    ];
    program("qemu-img", &create);
    write(site, name, writes);
}

fn write(site: &Site, name: &str, writes: &[&str]) {
    let path = site.path(name);
    let mut args = vec!["-f", "qcow2"];
    for write in writes {
        args.extend(["-c", write]);
    }
    args.push(text(&path));
    program("qemu-io", &args);
}

/// Backs a snapshot up; the point is what QEMU itself reads.
#[track_caller]
fn back_up(site: &Site, image: &str) -> Value {
    let backup = [
        "backup",
        image,
        "--machine",
        "web01",
        "--snapshot",
        "--json",
    ];
    let told = site.tidegate(&backup).succeeds().json();
    let oracle = site.path("oracle.raw");
    let path = site.path(image);
    let convert = [
        "convert",
        "-f",
        "qcow2",
        "-O",
        "raw",
        text(&path),
        text(&oracle),
    ];
    program("qemu-img", &convert);
    let restore = ["restore", "web01@latest", "--to", "back.raw", "--overwrite"];
    site.tidegate(&restore).succeeds();
    assert_same(&oracle, &site.path("back.raw"));
    told
}

#[track_caller]
fn assert_tracked(told: &Value, read_bytes_max: u64) {
    let disk = &told["tracking"][0];
    assert_eq!(
        (&disk["disk"], &disk["tracked"]),
        (&"base".into(), &true.into()),
        "{told}"
    );
    let read = told["read_bytes"].as_u64().unwrap();
    // And what the audit compares.
    assert!(read <= read_bytes_max + 2 * MIB, "{told}");
}

#[track_caller]
fn assert_lost(told: &Value, why: &str) {
    let disk = &told["tracking"][0];
    assert_eq!(disk["tracked"], false, "{told}");
    assert!(disk["reason"].as_str().unwrap().contains(why), "{told}");
}

fn chain(site: &Site) -> Value {
    let raw = site.image("raw", DISK_BYTES, &[(0, 20 * MIB), (40 * MIB, 10 * MIB)]);
    let base = site.path("base.qcow2");
    program(
        "qemu-img",
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            text(&raw),
            text(&base),
        ],
    );
    back_up(site, "base.qcow2")
}

#[test]
fn only_the_images_above_the_last_point_are_read() {
    let site = Site::with_repository();
    let first = chain(&site);
    assert_eq!(first["mode"], "full");
    let writes = [
        "write -P 7 3M 192k",
        "write -z 8M 2M",
        "discard 41M 1M",
        "write -P 9 30M 64k",
    ];
    overlay(&site, "one.qcow2", "base.qcow2", "64M", &writes);
    assert_tracked(&back_up(&site, "one.qcow2"), MIB);
    // The same again: nothing.
    assert_tracked(&back_up(&site, "one.qcow2"), 0);
    // Two at once, of which the lower one was never backed up, and a disk that grows.
    overlay(
        &site,
        "two.qcow2",
        "one.qcow2",
        "64M",
        &["write -P 3 5M 128k", "write -P 4 3M 64k"],
    );
    overlay(
        &site,
        "three.qcow2",
        "two.qcow2",
        "72M",
        &["write -P 5 70M 64k", "write -z 5M 64k"],
    );
    assert_tracked(&back_up(&site, "three.qcow2"), MIB);
    site.tidegate(&["verify", "--all"]).succeeds();
}

#[test]
fn what_was_written_meanwhile_is_not_believed() {
    let site = Site::with_repository();
    let told = chain(&site);
    assert_lost(&told, "no image of its chain");
    overlay(
        &site,
        "one.qcow2",
        "base.qcow2",
        "64M",
        &["write -P 7 3M 192k"],
    );
    // Somebody writes below it: to the image that was remembered.
    write(&site, "base.qcow2", &["write -P 8 50M 64k"]);
    assert_lost(&back_up(&site, "one.qcow2"), "base.qcow2 was written after");
    // Below the one that is remembered.
    overlay(
        &site,
        "two.qcow2",
        "one.qcow2",
        "64M",
        &["write -P 3 5M 128k"],
    );
    write(&site, "base.qcow2", &["write -P 9 52M 64k"]);
    assert_lost(&back_up(&site, "two.qcow2"), "one.qcow2 was written after");
    // An image in between that is smaller hides what is below it.
    overlay(
        &site,
        "small.qcow2",
        "two.qcow2",
        "16M",
        &["write -P 1 1M 64k"],
    );
    overlay(
        &site,
        "top.qcow2",
        "small.qcow2",
        "64M",
        &["write -P 2 2M 64k"],
    );
    assert_lost(&back_up(&site, "top.qcow2"), "smaller");
    // Another repository's, or another machine's.
    let other = [
        "backup",
        "top.qcow2",
        "--machine",
        "db01",
        "--snapshot",
        "--json",
    ];
    assert_lost(&site.tidegate(&other).succeeds().json(), "not here");
    site.tidegate(&["verify", "--all"]).succeeds();
}
