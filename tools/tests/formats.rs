//! Round trips through real image formats, judged by QEMU's own tools.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod site;

use site::{MIB, Site, assert_same, program, text};

const DISK_BYTES: u64 = 150 * MIB;
const DATA: [(u64, u64); 3] = [(0, 2 * MIB), (65 * MIB, 3 * MIB), (149 * MIB, MIB)];

/// Backs an image up, brings it back as raw, and compares with `raw`.
#[track_caller]
fn comes_back(site: &Site, image: &str, format: &str, raw: &str) {
    let machine = image.replace('.', "-");
    site.tidegate(&["backup", image, "--machine", &machine, "--format", format])
        .succeeds();
    let back = format!("{machine}.back.raw");
    site.tidegate(&["restore", &format!("{machine}@latest"), "--to", &back])
        .succeeds();
    assert_same(&site.path(raw), &site.path(&back));
}

#[test]
fn every_format_is_read() {
    let site = Site::with_repository();
    let raw = site.image("disk.raw", DISK_BYTES, &DATA);
    for (name, format, options) in [
        ("plain.qcow2", "qcow2", ""),
        ("zstd.qcow2", "qcow2", "compression_type=zstd"),
        (
            "extended.qcow2",
            "qcow2",
            "extended_l2=on,cluster_size=128k",
        ),
        ("sparse.vmdk", "vmdk", "subformat=monolithicSparse"),
        ("stream.vmdk", "vmdk", "subformat=streamOptimized"),
        ("split.vmdk", "vmdk", "subformat=twoGbMaxExtentSparse"),
        ("flat.vmdk", "vmdk", "subformat=monolithicFlat"),
        ("splitflat.vmdk", "vmdk", "subformat=twoGbMaxExtentFlat"),
        ("dynamic.vhd", "vhd", "subformat=dynamic,force_size=on"),
        ("fixed.vhd", "vhd", "subformat=fixed,force_size=on"),
        ("dynamic.vhdx", "vhdx", "subformat=dynamic"),
    ] {
        let driver = if format == "vhd" { "vpc" } else { format };
        let path = site.path(name);
        let mut args = vec!["convert", "-f", "raw", "-O", driver];
        if name == "zstd.qcow2" {
            args.push("-c");
        }
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend([text(&raw), text(&path)]);
        program("qemu-img", &args);
        comes_back(&site, name, format, "disk.raw");
        // The suffix says it as well.
        if !matches!(name, "plain.qcow2" | "dynamic.vhd") {
            continue;
        }
        let again = site
            .tidegate(&["backup", name, "--machine", "by-suffix", "--json"])
            .succeeds()
            .json();
        assert_eq!(again["new_bytes"], 0, "{name}");
    }
}

#[test]
fn backing_files_and_internal_snapshots_are_read() {
    let site = Site::with_repository();
    let raw = site.image("base.raw", DISK_BYTES, &DATA);
    let base = site.path("base.qcow2");
    let top = site.path("top.qcow2");
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
    program(
        "qemu-img",
        &[
            "create",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            "base.qcow2",
            text(&top),
        ],
    );
    program(
        "qemu-io",
        &["-f", "qcow2", "-c", "write -P 77 66M 1M", text(&top)],
    );
    program("qemu-img", &["snapshot", "-c", "before", text(&top)]);
    program(
        "qemu-io",
        &["-f", "qcow2", "-c", "write -P 78 20M 1M", text(&top)],
    );
    let expected = site.path("expected.raw");
    program(
        "qemu-img",
        &[
            "convert",
            "-f",
            "qcow2",
            "-O",
            "raw",
            text(&top),
            text(&expected),
        ],
    );
    comes_back(&site, "top.qcow2", "qcow2", "expected.raw");
}

#[test]
fn every_format_is_written() {
    let site = Site::with_repository();
    let raw = site.image("disk.raw", DISK_BYTES, &DATA);
    site.tidegate(&["backup", "disk.raw"]).succeeds();
    for (name, driver, options) in [
        ("a.qcow2", "qcow2", &[][..]),
        ("compressed.qcow2", "qcow2", &["--compress"]),
        ("a.vmdk", "vmdk", &[]),
        ("stream.vmdk", "vmdk", &["--subformat", "streamOptimized"]),
        ("flat.vmdk", "vmdk", &["--subformat", "monolithicFlat"]),
        ("a.vhd", "vpc", &[]),
        ("fixed.vhd", "vpc", &["--subformat", "fixed"]),
        ("a.vhdx", "vhdx", &[]),
    ] {
        let mut args = vec!["restore", "disk@latest", "--to", name, "--verify", "--json"];
        args.extend(options);
        let done = site.tidegate(&args).succeeds().json();
        assert_eq!(done["disks"][0]["verified"], true, "{name}");
        let path = site.path(name);
        program(
            "qemu-img",
            &[
                "compare",
                "-f",
                driver,
                "-F",
                "raw",
                text(&path),
                text(&raw),
            ],
        );
        let info = program(
            "qemu-img",
            &["info", "--output=json", "-f", driver, text(&path)],
        );
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["virtual-size"], DISK_BYTES, "{name}");
        // Never replaced unasked; replaced when asked.
        site.tidegate(&["restore", "disk@latest", "--to", name])
            .ends_with(9)
            .says(&["exists"]);
    }
    site.tidegate(&["restore", "disk@latest", "--to", "a.qcow2", "--overwrite"])
        .succeeds();
    site.tidegate(&["restore", "disk@latest", "--to", "a.qcow2", "--in-place"])
        .ends_with(2)
        .says(&["raw"]);
}

#[test]
fn a_size_that_a_format_cannot_hold_is_refused_before_writing() {
    let site = Site::with_repository();
    site.image("odd.raw", 1_000_001, &[(0, 1000)]);
    site.tidegate(&["backup", "odd.raw"]).succeeds();
    for name in ["odd.qcow2", "odd.vhd", "odd.vmdk", "odd.vhdx"] {
        site.tidegate(&["restore", "odd@latest", "--to", name])
            .ends_with(10)
            .says(&["raw"]);
        assert!(!site.path(name).exists(), "{name}");
    }
}

#[test]
fn what_a_guest_wrote_does_not_decide_the_format() {
    let site = Site::with_repository();
    let secret = site.path("secret");
    std::fs::write(&secret, "the host's secret".repeat(1000)).unwrap();
    // A raw disk whose guest wrote the header of a qcow2 image that names the host's secret.
    let hostile = site.path("disk.img");
    program(
        "qemu-img",
        &[
            "create",
            "-u",
            "-f",
            "qcow2",
            "-F",
            "raw",
            "-b",
            "/etc/passwd",
            text(&hostile),
            "64M",
        ],
    );
    site.tidegate(&["backup", "disk.img"])
        .ends_with(2)
        .says(&["--format"]);
    site.tidegate(&["backup", "disk.img", "--format", "raw"])
        .succeeds();
    site.tidegate(&["restore", "disk@latest", "--to", "back.raw"])
        .succeeds();
    assert_same(&hostile, &site.path("back.raw"));
    // Even as qcow2 it does not lead out of its folder.
    site.tidegate(&["backup", "disk.img", "--format", "qcow2"])
        .ends_with(5)
        .says(&["/etc/passwd"]);
}

#[test]
fn without_qemu_raw_works_and_other_formats_name_the_package() {
    let site = Site::with_repository();
    site.image("disk.raw", 10 * MIB, &[(0, MIB)]);
    let image = site.path("disk.qcow2");
    program("qemu-img", &["create", "-f", "qcow2", text(&image), "10M"]);
    let run = |args: &[&str]| {
        let mut command = site.command();
        command.env("TIDEGATE_REPO", "repo");
        command.env("TIDEGATE_KEY", "keys/restore.key");
        command.env("PATH", "/nonexistent");
        site::Run::of(&mut command, args)
    };
    run(&["backup", "disk.raw"]).succeeds();
    run(&["restore", "disk@latest", "--to", "back.raw"]).succeeds();
    run(&["backup", "disk.qcow2"])
        .ends_with(10)
        .says(&["qemu-utils"]);
    run(&["restore", "disk@latest", "--to", "back.qcow2"])
        .ends_with(10)
        .says(&["qemu-utils"]);
}
