//! Disks with real file systems on them, filled with the files of this machine: ext4 and xfs, with
//! and without a partition table. Needs root, to mount.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod site;

use serde_json::Value;
use site::{MIB, Site, assert_same_data, data_extents, program, read, text};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

const FILE_SYSTEM_BYTES: u64 = 400 * MIB;

/// A file system in a file, mounted for the duration of `work`.
fn mounted(site: &Site, image: &Path, offset: u64, work: impl FnOnce(&Path)) {
    let folder = site.path("mounted");
    std::fs::create_dir_all(&folder).unwrap();
    let options = format!("loop,offset={offset},sizelimit={FILE_SYSTEM_BYTES}");
    program("mount", &["-o", &options, text(image), text(&folder)]);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&folder)));
    program("umount", &[text(&folder)]);
    result.unwrap();
}

/// Programs and text of the machine the test runs on, about 100 MiB.
fn fill(folder: &Path) {
    let mut copied = 0;
    for from in ["/usr/share/doc", "/usr/share/perl", "/usr/bin"] {
        let mut folders = vec![std::path::PathBuf::from(from)];
        while let Some(next) = folders.pop() {
            let Ok(entries) = next.read_dir() else {
                continue;
            };
            let mut entries: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
            entries.sort();
            for path in entries {
                let found = path.symlink_metadata().unwrap();
                if found.is_dir() {
                    folders.push(path);
                } else if found.is_file() && found.len() < 8 * MIB && copied < 100 * MIB {
                    let to = folder.join(path.strip_prefix("/").unwrap());
                    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
                    std::fs::copy(&path, to).unwrap();
                    copied += found.len();
                }
            }
        }
    }
    assert!(
        copied > 40 * MIB,
        "this machine has only {copied} bytes of files"
    );
}

/// A disk whose one partition, at `offset`, holds the file system in `from`.
fn partitioned(site: &Site, name: &str, from: &Path, offset: u64, table: &str) {
    let disk = site.image(name, offset + FILE_SYSTEM_BYTES + 2 * MIB, &[]);
    let script = format!(
        "label: {table}\nunit: sectors\nstart={}, size={}, type=L\n",
        offset / 512,
        FILE_SYSTEM_BYTES / 512
    );
    assert_cmd::Command::new("sfdisk")
        .args(["-q", text(&disk)])
        .write_stdin(script)
        .assert()
        .success();
    let source = File::open(from).unwrap();
    let target = OpenOptions::new().write(true).open(&disk).unwrap();
    for extent in data_extents(&source, FILE_SYSTEM_BYTES) {
        let mut at = extent.start;
        while at < extent.end {
            let length = MIB.min(extent.end - at);
            let bytes = read(from, at, length);
            target.write_all_at(&bytes, offset + at).unwrap();
            at += length;
        }
    }
}

/// The partition at `offset` as a read-only device of its own, detached when dropped.
struct Partition(String);

impl Partition {
    fn attach(disk: &Path, offset: u64) -> Self {
        let (offset, size) = (offset.to_string(), FILE_SYSTEM_BYTES.to_string());
        let options = ["--find", "--show", "--read-only"];
        let place = ["--offset", &offset, "--sizelimit", &size];
        let args = [&options[..], &place[..], &[text(disk)]].concat();
        Self(program("losetup", &args))
    }

    fn path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        program("losetup", &["--detach", &self.0]);
    }
}

fn backup(site: &Site, image: &str) -> Value {
    site.tidegate(&["backup", image, "--json"])
        .succeeds()
        .json()
}

fn check(kind: &str, image: &Path) {
    match kind {
        "ext4" => program("e2fsck", &["-fn", text(image)]),
        _ => program("xfs_repair", &["-n", text(image)]),
    };
}

fn live_through(kind: &str) {
    let site = Site::with_repository();
    let image = site.image("disk.raw", FILE_SYSTEM_BYTES, &[]);
    program(&format!("mkfs.{kind}"), &["-q", text(&image)]);
    mounted(&site, &image, 0, fill);
    let first = backup(&site, "disk.raw");
    std::fs::copy(&image, site.path("first.raw")).unwrap();

    // A day passes: files come, grow and go.
    mounted(&site, &image, 0, |folder| {
        std::fs::write(folder.join("new"), vec![7; 300_000]).unwrap();
        std::fs::remove_dir_all(folder.join("usr/share")).unwrap();
    });
    let second = backup(&site, "disk.raw");
    let new = |summary: &Value| summary["new_bytes"].as_u64().unwrap();
    assert!(
        new(&second) < new(&first) / 5,
        "{} of {} bytes are new",
        new(&second),
        new(&first)
    );

    // The same file system in a partition is known already, wherever the partition starts.
    for (name, offset, table) in [
        ("aligned.raw", MIB, "gpt"),
        ("megabyte.raw", MIB, "dos"),
        ("sector63.raw", 63 * 512, "dos"),
    ] {
        partitioned(&site, name, &image, offset, table);
        let again = backup(&site, name);
        assert!(
            new(&again) < 4 * MIB,
            "{name}: {} bytes are new, the file system was known",
            new(&again)
        );
        let machine = name.trim_end_matches(".raw");
        let back = format!("back-{name}");
        site.tidegate(&["restore", &format!("{machine}@latest"), "--to", &back])
            .succeeds();
        assert_same_data(&site.path(name), &site.path(&back));
        let partition = Partition::attach(&site.path(&back), offset);
        check(kind, partition.path());
        drop(partition);
        mounted(&site, &site.path(&back), offset, |folder| {
            assert!(folder.join("new").exists());
        });
    }

    let id = |summary: &Value| summary["point"].as_str().unwrap().to_owned();
    for (point, expected) in [(id(&first), "first.raw"), (id(&second), "disk.raw")] {
        let back = format!("{point}.raw");
        site.tidegate(&[
            "restore",
            &format!("disk@{point}"),
            "--to",
            &back,
            "--verify",
        ])
        .succeeds();
        assert_same_data(&site.path(expected), &site.path(&back));
        check(kind, &site.path(&back));
    }
}

#[test]
fn ext4() {
    live_through("ext4");
}

#[test]
fn xfs() {
    live_through("xfs");
}
