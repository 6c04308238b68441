//! What the program has said to be done survives a power cut: shown by the system calls of real runs.
//!
//! The calls of an `init`, backups, a new key and restores of every kind are recorded and judged in
//! their order. Before a log record gets its name, all that it may refer to is durable: bytes, names
//! and the folders above them. Before the local index is told of a pack, the pack is. Before an image
//! gets its name, its bytes are durable, and before a word of success is written, everything is. The
//! records are then tampered with, sync by sync, to see that the judge misses none. What a repository
//! looks like after a power cut at each moment is tried out in `kill.rs`.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests, whose figures are worth reading"
)]

mod site;
mod trace;

use site::{MIB, Site, assert_same};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use trace::power::Disk;
use trace::{Call, End, Moment, Verdict, What};

/// Where the program's words go.
const WORDS: &str = "words";

/// The calls of one process, in the order in which they began and ended.
struct Record {
    calls: Vec<(Call, Moment)>,
    /// An existing file that the process promised to write.
    in_place: Option<PathBuf>,
}

/// What the judge looks at.
struct Places {
    repo: PathBuf,
    log: PathBuf,
    descriptor: PathBuf,
    keys: PathBuf,
    /// Where restored images go.
    back: PathBuf,
    words: PathBuf,
}

impl Places {
    fn of(site: &Site) -> Self {
        let root = site.path("").canonicalize().unwrap();
        Self {
            repo: root.join("repo"),
            log: root.join("repo/log"),
            descriptor: root.join("repo/repository"),
            keys: root.join("keys"),
            back: root.join("back"),
            words: root.join(WORDS),
        }
    }

    fn matters(&self, path: &Path) -> bool {
        // What `init` tries the store with is gone again soon.
        !path.starts_with(self.repo.join("probe"))
            && [&self.repo, &self.keys, &self.back]
                .iter()
                .any(|place| path.starts_with(place))
    }
}

fn record(site: &Site, args: &[&str]) -> Record {
    let mut command = site.process();
    command
        .args(args)
        .env("TIDEGATE_CONFIG", site.path("config.toml"))
        .stdout(File::create(site.path(WORDS)).unwrap())
        .stderr(File::create(site.path("errors")).unwrap());
    let mut calls = Vec::new();
    let end = trace::run(command, &site.path(""), |call, moment| {
        calls.push((call.clone(), moment));
        Verdict::Go
    });
    let errors = std::fs::read_to_string(site.path("errors")).unwrap();
    assert_eq!(end, End::Exited(0), "{args:?}: {errors}");
    let in_place = args.contains(&"--in-place");
    Record {
        calls,
        in_place: in_place.then(|| site.path("").canonicalize().unwrap().join("back/live.raw")),
    }
}

/// All that is wrong with the order of the calls.
fn judge(places: &Places, records: &[Record]) -> BTreeSet<String> {
    let mut disk = Disk::default();
    let mut wrong = BTreeSet::new();
    for record in records {
        let mut has_spoken = false;
        for (call, moment) in &record.calls {
            if *moment == Moment::Begins {
                has_spoken |=
                    matches!(&call.what, What::Write { path, .. } if *path == places.words);
                wrong.extend(too_early(places, &disk, &call.what));
                if has_spoken
                    && let Some(path) = &record.in_place
                    && !disk.holds(path)
                {
                    wrong.insert(format!("success before {} is durable", path.display()));
                }
            }
            disk.note(call, *moment);
        }
        assert!(has_spoken, "the program said nothing");
        wrong.extend(at_risk(
            &disk,
            &[&places.repo, &places.keys, &places.back],
            "the end",
        ));
        disk.next_process();
    }
    wrong
}

/// What should have been durable before this call.
fn too_early(places: &Places, disk: &Disk, call: &What) -> Vec<String> {
    match call {
        What::Link { to, .. } if to.starts_with(&places.log) => {
            at_risk(disk, &[&places.repo], "a log record")
        }
        What::Link { to, .. } if *to == places.descriptor => {
            at_risk(disk, &[&places.repo, &places.keys], "the descriptor")
        }
        // One pack is uploaded at a time: none may be half way when the index is told of it.
        What::Write { path, .. } if path.to_string_lossy().ends_with("catalogue.sqlite-wal") => {
            at_risk(disk, &[&places.repo.join("packs")], "the local index")
        }
        What::Rename { from, to } if to.starts_with(&places.back) && !disk.holds_made(from) => {
            vec![format!("the name {} before its bytes", to.display())]
        }
        What::Write { path, .. } if *path == places.words => {
            at_risk(disk, &[&places.repo, &places.keys, &places.back], "success")
        }
        _ => Vec::new(),
    }
}

fn at_risk(disk: &Disk, places: &[&PathBuf], before: &str) -> Vec<String> {
    places
        .iter()
        .flat_map(|place| disk.at_risk(place))
        .map(|path| format!("{before} before {} is durable", path.display()))
        .collect()
}

/// Runs everything that promises to be durable.
fn records(site: &Site) -> Vec<Record> {
    std::fs::write(
        site.path("config.toml"),
        "repo = \"repo\"\nkey = \"keys/new/restore.key\"\npack_mib = 1\nuploads_in_flight = 1\n",
    )
    .unwrap();
    let first = site.image("first.raw", 3 * MIB, &[(0, 3 * MIB)]);
    let second = site.image("second.raw", MIB, &[(0, MIB / 2)]);
    let backup = ["backup", "first.raw", "second.raw", "--machine", "web"];
    let mut records = vec![
        record(site, &["init", "--keys", "keys/new"]),
        record(site, &backup),
    ];
    site.change("first.raw", MIB, MIB, 2);
    site.image("back-live.raw", 3 * MIB, &[(MIB, MIB)]);
    let to = |disk, to| ["restore", "web@latest", "--disk", disk, "--to", to];
    let folder = site.path("back");
    records.extend([
        record(site, &backup),
        record(
            site,
            &[
                "key",
                "export",
                "--level",
                "host",
                "--out",
                "keys/extra.key",
            ],
        ),
        // Into folders that are not there yet.
        record(site, &["restore", "web@latest", "--to", "back/deep/disks/"]),
        record(site, &to("first", "back/one.raw")),
        record(
            site,
            &[&to("first", "back/one.raw")[..], &["--overwrite"]].concat(),
        ),
        record(site, &to("second", "back/two.qcow2")),
    ]);
    std::fs::rename(site.path("back-live.raw"), folder.join("live.raw")).unwrap();
    records.push(record(
        site,
        &[&to("first", "back/live.raw")[..], &["--in-place"]].concat(),
    ));
    for (image, back) in [
        (&first, "deep/disks/first.raw"),
        (&second, "deep/disks/second.raw"),
        (&first, "one.raw"),
        (&first, "live.raw"),
    ] {
        assert_same(image, &folder.join(back));
    }
    records
}

/// The records without the syncs that `is_left_out` names.
fn without(records: &[Record], is_left_out: impl Fn(usize, &Call) -> bool) -> Vec<Record> {
    let tampered = records.iter().enumerate().map(|(at, record)| Record {
        calls: record
            .calls
            .iter()
            .filter(|(call, _)| !is_left_out(at, call))
            .cloned()
            .collect(),
        in_place: record.in_place.clone(),
    });
    tampered.collect()
}

#[test]
fn what_is_said_to_be_done_is_durable() {
    let site = Site::in_memory();
    let places = Places::of(&site);
    let records = records(&site);
    let wrong = judge(&places, &records);
    assert!(wrong.is_empty(), "{wrong:#?}");

    // The judge is not blind: where a file or a folder is not synced, it says so.
    let (mut files, mut folders) = (BTreeSet::new(), BTreeSet::new());
    for (at, record) in records.iter().enumerate() {
        for (call, moment) in &record.calls {
            match (&call.what, moment) {
                (What::Sync { file, path }, Moment::Begins)
                    if places.matters(path) && !path.is_dir() =>
                {
                    files.insert((at, *file, path.clone()));
                }
                (
                    What::Link { to: path, .. }
                    | What::Rename { to: path, .. }
                    | What::MakeFolder { path },
                    Moment::Ends { result: 0, .. },
                ) if places.matters(path) => {
                    folders.insert((at, path.parent().unwrap().to_owned()));
                }
                _ => {}
            }
        }
    }
    for (at, left_out, path) in &files {
        let tampered = without(&records, |of, call| {
            of == *at && matches!(&call.what, What::Sync { file, .. } if file == left_out)
        });
        let wrong = judge(&places, &tampered);
        assert!(
            !wrong.is_empty(),
            "it is all the same whether {path:?} is synced"
        );
    }
    for (at, folder) in &folders {
        let tampered = without(&records, |of, call| {
            of == *at && matches!(&call.what, What::Sync { path, .. } if path == folder)
        });
        let wrong = judge(&places, &tampered);
        assert!(
            !wrong.is_empty(),
            "it is all the same whether {folder:?} is synced"
        );
    }
    let (files, folders) = (files.len(), folders.len());
    eprintln!("{files} files and {folders} folders, each missed when it is not synced");
    assert!(
        files > 20 && folders > 15,
        "{files} files, {folders} folders"
    );
}
