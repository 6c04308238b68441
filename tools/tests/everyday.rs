//! The everyday commands on a local repository: init, backup, points, diff, restore, verify, repo.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod site;

use serde_json::Value;
use site::{MIB, Run, Site, allocated_bytes, assert_same, program, text};
use std::os::unix::fs::PermissionsExt;

/// A sparse disk with data at its start, in its middle and at its end.
const DISK_BYTES: u64 = 200 * MIB;
const DATA: [(u64, u64); 3] = [(0, 5 * MIB), (70 * MIB, 9 * MIB), (199 * MIB, MIB)];

fn u64_of(value: &Value, key: &str) -> u64 {
    value[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key} is no number in {value}"))
}

#[test]
fn init_writes_three_private_key_files_and_never_overwrites() {
    let site = Site::with_repository();
    let mode = |name: &str| site.path(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("keys"), 0o700);
    let before = site.files("keys");
    assert_eq!(before.len(), 3);
    for level in ["host", "maintenance", "restore"] {
        assert_eq!(mode(&format!("keys/{level}.key")), 0o600);
    }
    // Keys that are there are never replaced, whichever repository is meant.
    site.run(&["init", "--repo", "other", "--keys", "keys"])
        .ends_with(9)
        .says(&["host.key"]);
    // A repository that is there stays as it is, and no key file is left behind.
    let repository = site.files("repo");
    site.run(&["init", "--repo", "repo", "--keys", "more"])
        .ends_with(9)
        .says(&["repo"]);
    assert!(!site.path("more").exists());
    assert_eq!(site.files("keys"), before);
    assert_eq!(site.files("repo"), repository);
}

#[test]
fn a_disk_comes_back_bit_exact_and_sparse() {
    let site = Site::with_repository();
    let image = site.image("web01.raw", DISK_BYTES, &DATA);
    let summary = site
        .tidegate(&["backup", "web01.raw", "--json"])
        .succeeds()
        .json();
    assert_eq!(summary["machine"], "web01");
    assert_eq!(summary["mode"], "full");
    assert_eq!(u64_of(&summary, "virtual_bytes"), DISK_BYTES);
    assert_eq!(u64_of(&summary, "new_bytes"), 15 * MIB);
    for key in [
        "point",
        "machine",
        "virtual_bytes",
        "allocated_bytes",
        "read_bytes",
        "new_bytes",
        "stored_bytes",
        "chunks",
        "packs",
        "requests",
        "seconds",
        "mode",
        "reason",
    ] {
        assert!(!summary[key].is_null(), "{key} is missing in {summary}");
    }

    site.tidegate(&["restore", "web01@latest", "--to", "back.raw", "--verify"])
        .succeeds();
    let back = site.path("back.raw");
    assert_same(&image, &back);
    assert!(allocated_bytes(&back) < 20 * MIB, "the holes were written");
    assert!(!site.path("back.raw.tidegate-partial").exists());

    // By the point's id too, as one JSON value.
    let id = summary["point"].as_str().unwrap().to_owned();
    let spec = format!("web01@{}", &id[..8]);
    let restored = site
        .tidegate(&["restore", &spec, "--to", "again.raw", "--json"])
        .succeeds()
        .json();
    assert_eq!(restored["point"], id.as_str());
    assert_eq!(u64_of(&restored["disks"][0], "data_bytes"), 15 * MIB);
    assert_same(&image, &site.path("again.raw"));
}

#[test]
fn an_unchanged_disk_uploads_nothing_and_a_changed_one_only_its_changes() {
    let site = Site::with_repository();
    let image = site.image("web01.raw", DISK_BYTES, &DATA);
    site.tidegate(&["backup", "web01.raw"]).succeeds();
    let objects = site.files("repo").len();
    let second = site
        .tidegate(&["backup", "web01.raw", "--json"])
        .succeeds()
        .json();
    assert_eq!(second["mode"], "incremental");
    assert_eq!(u64_of(&second, "new_bytes"), 0);
    assert_eq!(u64_of(&second, "packs"), 0);
    assert_eq!(u64_of(&second, "requests"), 1, "one log record is enough");
    assert_eq!(site.files("repo").len(), objects + 1);

    site.change("web01.raw", 72 * MIB, 64 << 10, 7);
    let third = site
        .tidegate(&["backup", "web01.raw", "--json"])
        .succeeds()
        .json();
    let new_bytes = u64_of(&third, "new_bytes");
    assert!(
        (64 << 10..=512 << 10).contains(&new_bytes),
        "{new_bytes} new bytes"
    );

    let points = site.tidegate(&["points", "--json"]).succeeds().json();
    let points = points.as_array().unwrap();
    assert_eq!(points.len(), 3);
    assert_eq!(points[2]["point"], third["point"]);
    assert_eq!(points[2]["parent"], points[1]["point"]);
    let table = site
        .tidegate(&["points", "--machine", "web01"])
        .succeeds()
        .stdout;
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(
        table.contains(&third["point"].as_str().unwrap()[..8]),
        "{table}"
    );
    let none = site
        .tidegate(&["points", "--machine", "db01", "--json"])
        .succeeds()
        .json();
    assert_eq!(none.as_array().map(Vec::len), Some(0));

    // What changed is what was written, and nothing else.
    let of = |point: &Value| format!("web01@{}", point["point"].as_str().unwrap());
    let diff = site
        .tidegate(&["diff", &of(&points[1]), &of(&points[2]), "--json"])
        .succeeds()
        .json();
    let extents = diff["disks"][0]["extents"].as_array().unwrap();
    let changed: u64 = extents.iter().map(|extent| u64_of(extent, "length")).sum();
    let start = extents
        .iter()
        .map(|extent| u64_of(extent, "start"))
        .min()
        .unwrap();
    let end = extents
        .iter()
        .map(|extent| u64_of(extent, "start") + u64_of(extent, "length"))
        .max()
        .unwrap();
    assert!(start <= 72 * MIB && end >= 72 * MIB + (64 << 10), "{diff}");
    assert!(changed <= 512 << 10, "{diff}");
    let equal = site
        .tidegate(&["diff", &of(&points[0]), &of(&points[1])])
        .succeeds()
        .stdout;
    assert!(equal.contains("equal"), "{equal}");

    site.tidegate(&["restore", "web01@latest", "--to", "new.raw"])
        .succeeds();
    assert_same(&image, &site.path("new.raw"));
}

#[test]
fn a_dry_run_changes_nothing() {
    let site = Site::with_repository();
    site.image("web01.raw", DISK_BYTES, &DATA);
    let empty = site.files("repo");
    let dry = site
        .tidegate(&["backup", "web01.raw", "--dry-run", "--json"])
        .succeeds()
        .json();
    assert!(dry["point"].is_null());
    assert_eq!(u64_of(&dry, "new_bytes"), 15 * MIB);
    assert_eq!(site.files("repo"), empty);

    site.tidegate(&["backup", "web01.raw"]).succeeds();
    let plan = site
        .tidegate(&[
            "restore",
            "web01@latest",
            "--to",
            "out/",
            "--dry-run",
            "--json",
        ])
        .succeeds()
        .json();
    assert_eq!(u64_of(&plan["disks"][0]["plan"], "data_bytes"), 15 * MIB);
    assert!(!site.path("out").exists());
}

#[test]
fn several_disks_are_one_point_and_go_into_a_folder() {
    let site = Site::with_repository();
    let root = site.image("root.raw", 40 * MIB, &[(0, 3 * MIB)]);
    let data = site.image("data.raw", 30 * MIB, &[(10 * MIB, 2 * MIB)]);
    site.tidegate(&["backup", "root.raw", "data.raw"])
        .ends_with(2)
        .says(&["--machine"]);
    site.tidegate(&["backup", "root.raw", "data.raw", "--machine", "web01"])
        .succeeds();
    site.tidegate(&["restore", "web01@latest", "--to", "all"])
        .succeeds();
    assert_same(&root, &site.path("all/root.raw"));
    assert_same(&data, &site.path("all/data.raw"));
    site.tidegate(&[
        "restore",
        "web01@latest",
        "--to",
        "one.raw",
        "--disk",
        "data",
    ])
    .succeeds();
    assert_same(&data, &site.path("one.raw"));
    site.tidegate(&["restore", "web01@latest", "--to", "x.raw", "--disk", "swap"])
        .ends_with(3)
        .says(&["swap", "root", "data"]);
    site.tidegate(&["restore", "web01@latest", "--to", "x.raw"])
        .ends_with(2)
        .says(&["--disk"]);
}

#[test]
fn in_place_fetches_only_what_differs_and_rewrites_zeros() {
    let site = Site::with_repository();
    let image = site.image("web01.raw", DISK_BYTES, &DATA);
    site.tidegate(&["backup", "web01.raw"]).succeeds();
    std::fs::copy(&image, site.path("target.raw")).unwrap();
    // A hole was written to, and data was changed.
    site.change("target.raw", 30 * MIB, MIB, 9);
    site.change("target.raw", 71 * MIB, MIB, 9);
    site.tidegate(&["restore", "web01@latest", "--to", "target.raw"])
        .ends_with(9)
        .says(&["exists", "--in-place"]);
    let done = site
        .tidegate(&[
            "restore",
            "web01@latest",
            "--to",
            "target.raw",
            "--in-place",
            "--verify",
            "--json",
        ])
        .succeeds()
        .json();
    assert_same(&image, &site.path("target.raw"));
    let disk = &done["disks"][0];
    assert!(u64_of(disk, "kept_bytes") >= 13 * MIB, "{disk}");
    assert!(u64_of(disk, "written_bytes") <= 2 * MIB, "{disk}");

    std::fs::write(site.path("old.raw"), "something else").unwrap();
    site.tidegate(&["restore", "web01@latest", "--to", "old.raw", "--overwrite"])
        .succeeds();
    assert_same(&image, &site.path("old.raw"));
}

#[test]
fn a_device_is_written_only_when_asked_to() {
    let site = Site::with_repository();
    let image = site.image("web01.raw", 64 * MIB, &[(MIB, 4 * MIB)]);
    site.tidegate(&["backup", "web01.raw"]).succeeds();
    let backing = site.image("backing", 80 * MIB, &[(0, 20 * MIB)]);
    let before = std::fs::read(&backing).unwrap();
    let device = program("losetup", &["--show", "-f", text(&backing)]);
    let result = std::panic::catch_unwind(|| {
        site.tidegate(&["restore", "web01@latest", "--to", &device])
            .ends_with(9)
            .says(&["device", "--in-place"]);
        site.tidegate(&["restore", "web01@latest", "--to", &device, "--in-place"])
            .succeeds();
        // A device is also a source.
        site.tidegate(&["backup", &device, "--machine", "copy"])
            .succeeds();
    });
    program("losetup", &["-d", &device]);
    result.unwrap();
    let after = std::fs::read(&backing).unwrap();
    let size = usize::try_from(64 * MIB).unwrap();
    assert!(after[..size] == std::fs::read(&image).unwrap()[..]);
    assert!(
        after[size..] == before[size..],
        "what lies behind the disk was touched"
    );
}

#[test]
fn verify_finds_damage_and_names_what_it_touches() {
    let site = Site::with_repository();
    site.image("web01.raw", DISK_BYTES, &DATA);
    site.tidegate(&["backup", "web01.raw"]).succeeds();
    let sound = site
        .tidegate(&["verify", "--all", "--json"])
        .succeeds()
        .json();
    assert_eq!(sound["complete"], true);
    assert_eq!(u64_of(&sound, "checked_bytes"), 15 * MIB);
    let sample = site
        .tidegate(&["verify", "web01", "--sample", "10%", "--json"])
        .succeeds()
        .json();
    assert_eq!(sample["complete"], false);
    assert!(u64_of(&sample, "checked_bytes") < 15 * MIB);
    let host = site
        .with_key("host", &["verify", "web01@latest"])
        .succeeds();
    assert!(
        host.stderr.contains("host key cannot read"),
        "{}",
        host.stderr
    );
    assert!(host.stdout.contains("structure only"), "{}", host.stdout);

    // One byte in the middle of the largest pack.
    let packs = site.files("repo/packs");
    let (path, mut bytes) = packs
        .into_iter()
        .max_by_key(|(_, bytes)| bytes.len())
        .unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let report = site
        .tidegate(&["verify", "--all", "--json"])
        .ends_with(4)
        .json();
    let damage = &report["damages"][0];
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(
        damage["object"].as_str().unwrap().contains(name),
        "{report}"
    );
    assert_eq!(damage["touches"][0]["machine"], "web01");
    assert_eq!(damage["touches"][0]["disk"], "web01");
    let text = site.tidegate(&["verify", "web01"]).ends_with(4).stdout;
    assert!(text.contains("What to do") && text.contains(name), "{text}");
    // What is damaged does not restore.
    site.tidegate(&["restore", "web01@latest", "--to", "bad.raw"])
        .ends_with(4)
        .says(&[name]);
    assert!(!site.path("bad.raw").exists());

    // The damage stands in the log: the next backup stores it anew, and the old point is whole again.
    assert_eq!(u64_of(&report, "noted_objects"), 1);
    let point = damage["touches"][0]["point"].as_str().unwrap();
    let again = site
        .tidegate(&["backup", "web01.raw", "--json"])
        .succeeds()
        .json();
    assert!(u64_of(&again, "new_bytes") > 0);
    site.tidegate(&["verify", "--all"]).succeeds();
    let old = format!("web01@{point}");
    site.tidegate(&["restore", &old, "--to", "healed.raw"])
        .succeeds();
    assert_same(&site.path("web01.raw"), &site.path("healed.raw"));
}

#[test]
fn lost_index_segments_are_written_anew_by_the_next_backup() {
    let site = Site::with_repository();
    site.image("web01.raw", DISK_BYTES, &DATA);
    site.tidegate(&["backup", "web01.raw"]).succeeds();
    let segments = site.files("repo/index");
    assert_eq!(segments.len(), 1);
    let (path, _) = &segments[0];
    let name = path.file_name().unwrap().to_str().unwrap();
    std::fs::remove_file(path).unwrap();
    // Nothing needs it; who looks for it says that it is gone, and what helps.
    site.tidegate(&["restore", "web01@latest", "--to", "back.raw"])
        .succeeds();
    assert_same(&site.path("web01.raw"), &site.path("back.raw"));
    let text = site.tidegate(&["verify", "--all"]).ends_with(4).stdout;
    assert!(
        text.contains(name) && text.contains("back any machine up"),
        "{text}"
    );
    assert!(!text.contains("machines named"), "{text}");
    // Nothing has changed: nothing is stored but the segment.
    let again = site
        .with_key("host", &["backup", "web01.raw", "--json"])
        .succeeds()
        .json();
    assert_eq!(u64_of(&again, "new_bytes"), 0);
    assert_eq!(u64_of(&again, "packs"), 0);
    assert_eq!(site.files("repo/index").len(), 1);
    site.tidegate(&["verify", "--all"]).succeeds();
    std::fs::remove_dir_all(site.path("home/.cache/tidegate")).unwrap();
    let elsewhere = site
        .tidegate(&["backup", "web01.raw", "--json"])
        .succeeds()
        .json();
    assert_eq!(u64_of(&elsewhere, "new_bytes"), 0);
    site.tidegate(&["verify", "--all"]).succeeds();
}

#[test]
fn the_repository_tells_what_it_is_and_the_cache_can_be_thrown_away() {
    let site = Site::with_repository();
    let image = site.image("web01.raw", DISK_BYTES, &DATA);
    site.tidegate(&["backup", "web01.raw"]).succeeds();
    let info = site.tidegate(&["repo", "info", "--json"]).succeeds().json();
    assert_eq!(u64_of(&info, "points"), 1);
    assert_eq!(info["key_level"], "restore");
    let stats = site
        .tidegate(&["repo", "stats", "--json"])
        .succeeds()
        .json();
    assert_eq!(u64_of(&stats, "chunk_bytes"), 15 * MIB);
    assert_eq!(u64_of(&stats, "virtual_bytes"), DISK_BYTES);
    let planned = ["repo", "bundle", "--dry-run", "--json"];
    let planned = site.tidegate(&planned).succeeds().json();
    assert_eq!(
        (&planned["dry_run"], u64_of(&planned, "packs")),
        (&true.into(), 0)
    );
    // A tree pack, which has nobody to go with yet.
    assert_eq!(u64_of(&planned, "waiting"), 1);
    let done = site.with_key("maintenance", &["repo", "bundle"]).succeeds();
    assert!(done.stdout.contains("0 packs"), "{}", done.stdout);
    site.with_key("host", &["repo", "bundle"])
        .ends_with(5)
        .says(&["maintenance or restore key"]);
    std::fs::remove_dir_all(site.path("home/.cache/tidegate")).unwrap();
    let again = site
        .tidegate(&["backup", "web01.raw", "--json"])
        .succeeds()
        .json();
    assert_eq!(u64_of(&again, "new_bytes"), 0);
    site.tidegate(&["repo", "rebuild-cache"]).succeeds();
    site.tidegate(&["restore", "web01@latest", "--to", "back.raw"])
        .succeeds();
    assert_same(&image, &site.path("back.raw"));
}

#[test]
fn a_point_is_found_by_time() {
    let site = Site::with_repository();
    let image = site.image("web01.raw", 10 * MIB, &[(0, MIB)]);
    std::fs::copy(&image, site.path("first.raw")).unwrap();
    let mut command = site.command();
    command.env("TIDEGATE_REPO", "repo");
    command.env("TIDEGATE_KEY", "keys/restore.key");
    Run::of(&mut command, &["backup", "web01.raw"]).succeeds();
    let points = site.tidegate(&["points", "--json"]).succeeds().json();
    let taken = points[0]["taken"].as_str().unwrap().to_owned();
    site.change("web01.raw", 0, MIB, 5);
    site.tidegate(&["backup", "web01.raw"]).succeeds();
    site.tidegate(&["restore", &format!("web01@{taken}"), "--to", "then.raw"])
        .succeeds();
    assert_same(&site.path("first.raw"), &site.path("then.raw"));
    site.tidegate(&["restore", "web01@2001-01-01", "--to", "x.raw"])
        .ends_with(3)
        .says(&["web01"]);
    site.tidegate(&["restore", "db01@latest", "--to", "x.raw"])
        .ends_with(3)
        .says(&["db01"]);
}

#[test]
fn odd_sizes_and_empty_disks_come_back_exactly() {
    let site = Site::with_repository();
    for size_bytes in [0, 1, 511, 4095, 4097, 64 * MIB - 1, 64 * MIB + 1] {
        let name = format!("disk{size_bytes}.raw");
        let data = [(0, size_bytes.min(5000))];
        let image = site.image(&name, size_bytes, &data);
        site.tidegate(&["backup", &name]).succeeds();
        let back = format!("back{size_bytes}.raw");
        let spec = format!("disk{size_bytes}@latest");
        site.tidegate(&["restore", &spec, "--to", &back, "--verify"])
            .succeeds();
        assert_same(&image, &site.path(&back));
    }
    let holes = site.image("holes.raw", 300 * MIB, &[]);
    let summary = site
        .tidegate(&["backup", "holes.raw", "--json"])
        .succeeds()
        .json();
    assert_eq!(u64_of(&summary, "read_bytes"), 0);
    site.tidegate(&["restore", "holes@latest", "--to", "back.raw"])
        .succeeds();
    assert_eq!(site.path("back.raw").metadata().unwrap().len(), 300 * MIB);
    assert_eq!(allocated_bytes(&site.path("back.raw")), 0);
    assert_eq!(allocated_bytes(&holes), 0);
}

/// Neither time nor memory may grow with the size of a disk that is mostly holes.
#[test]
fn a_sparse_disk_of_2_tib_takes_seconds_and_little_memory() {
    const TIB: u64 = 1 << 40;
    let site = Site::with_repository();
    let data = [(0, MIB), (TIB, 2 * MIB), (2 * TIB - MIB, MIB)];
    let image = site.image("huge.raw", 2 * TIB, &data);
    let started = std::time::Instant::now();
    let summary = site
        .tidegate(&["backup", "huge.raw", "--json"])
        .succeeds()
        .json();
    assert_eq!(u64_of(&summary, "read_bytes"), 4 * MIB);
    site.tidegate(&["restore", "huge@latest", "--to", "back.raw", "--verify"])
        .succeeds();
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
    let back = site.path("back.raw");
    assert_eq!(back.metadata().unwrap().len(), 2 * TIB);
    assert!(allocated_bytes(&back) < 8 * MIB);
    for (offset, length) in data {
        assert_eq!(
            site::read(&image, offset, length),
            site::read(&back, offset, length)
        );
    }
}

#[test]
fn the_demo_ends_well_and_leaves_nothing_behind() {
    let site = Site::new();
    let mut command = site.command();
    command.env("TMPDIR", site.path("home"));
    let run = Run::of(&mut command, &["demo"]).succeeds();
    assert!(run.stdout.contains("byte for byte"), "{}", run.stdout);
    assert_eq!(site.path("home").read_dir().unwrap().count(), 0);
    let image = site.image("mine.raw", 20 * MIB, &[(0, 3 * MIB)]);
    let before = std::fs::read(&image).unwrap();
    let value = site
        .run(&["demo", "mine.raw", "--dir", "kept", "--json"])
        .succeeds()
        .json();
    assert_eq!(value["equal"], true);
    assert_eq!(u64_of(&value["second"], "new_bytes"), 0);
    assert!(site.path("kept/keys/restore.key").exists());
    assert!(std::fs::read(&image).unwrap() == before);
}
