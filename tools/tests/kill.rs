//! The real program, killed before every single change it makes to a file, and halfway through
//! every write: packs, index segments, log records and checkpoints of the folder repository, the
//! local SQLite file and the tree packs beside it, key files, restored images.
//!
//! No step is left out: a first run counts them, then one process dies at each. After each death,
//! with the cache that the dead process left and with an empty one: every committed point restores
//! bit-exact, the same command run again does its work, re-uses what had landed, and a verify finds
//! nothing. The jobs that write to the repository die a third way: together with the whole machine,
//! whose power cut takes away what was not made durable.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests, whose number of cases is worth reading"
)]

mod site;
mod trace;

use site::{MIB, Run, Site, assert_same};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tidegate_agent::repository::{Repository, read_key_file};
use tidegate_agent::store::{Store, StoreSettings};
use tidegate_protocol::record::{Body, RunAnnounced};
use trace::power::Disk;
use trace::{End, Moment, Verdict, What};

/// How a process ends at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    /// Killed before the change.
    Before,
    /// Killed after half of the bytes that were to be written.
    Halfway,
    /// The power fails before the change: what is in the repository and among the key files, and
    /// was not made durable, is gone. The cache stays as it was, which is worse than if it went.
    PowerCut,
}

/// More than any job here has; a job that gets there has lost its way.
const STEPS_MAX: u64 = 2_000;

/// Processes under way for each test: they mostly wait for fsync.
const AT_ONCE: usize = 4;

/// A command that dies at each of its steps in turn.
struct Job<'a> {
    name: &'a str,
    /// The site before the command; copied for each case.
    before: &'a Site,
    args: &'a [&'a str],
    deaths: &'a [Death],
}

/// Prints which case it was when a check fails.
struct Case(String);

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed: {}", self.0);
        }
    }
}

impl Job<'_> {
    /// Runs the job once for each step and each way to die, and has every outcome checked.
    fn dies_at_every_step(&self, check: impl Fn(&Site) + Sync) {
        let mut steps = 0;
        let site = self.before.copy();
        let end = trace::run(self.command(&site), &site.path(""), |call, moment| {
            steps += u64::from(moment == Moment::Begins && call.what.changes());
            Verdict::Go
        });
        assert_eq!(end, End::Exited(0), "{}", self.name);
        check(&site);
        drop(site);

        let (next, cases) = (AtomicU64::new(0), AtomicU64::new(0));
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    while !is_done.load(Ordering::Relaxed) {
                        let step = next.fetch_add(1, Ordering::Relaxed);
                        assert!(step < STEPS_MAX, "{} comes to no end", self.name);
                        for death in self.deaths {
                            let end = self.dies_at(step, *death, &check);
                            cases.fetch_add(u64::from(end == Some(End::Killed)), Ordering::Relaxed);
                            // Threads may take turns otherwise than when the steps were counted.
                            if step >= steps && end != Some(End::Killed) {
                                is_done.store(true, Ordering::Relaxed);
                            }
                        }
                    }
                });
            }
        });
        let cases = cases.into_inner();
        eprintln!("{}: {steps} steps, {cases} deaths", self.name);
        assert!(cases >= steps, "{}: steps were left out", self.name);
    }

    /// One case; `None` where the step cannot be died at that way.
    fn dies_at(&self, step: u64, death: Death, check: impl Fn(&Site)) -> Option<End> {
        let _case = Case(format!("{}, {death:?} step {step}", self.name));
        let site = self.before.copy();
        let mut disk = Disk::default();
        let (mut begun, mut fits) = (0, true);
        let mut last = String::new();
        let end = trace::run(self.command(&site), &site.path(""), |call, moment| {
            let is_step = moment == Moment::Begins && call.what.changes();
            begun += u64::from(is_step);
            if is_step && begun == step + 1 {
                last = format!("{:?}", call.what);
                fits = death != Death::Halfway
                    || matches!(call.what, What::Write { bytes, .. } if bytes > 1);
                return match death {
                    Death::Halfway if fits => Verdict::KillHalfway,
                    _ => Verdict::Kill,
                };
            }
            disk.note(call, moment);
            Verdict::Go
        });
        if !fits {
            return None;
        }
        let _step = Case(last);
        if death == Death::PowerCut {
            disk.cut(&site.path("repo"));
            disk.cut(&site.path("keys"));
        }
        assert!(end == End::Killed || end == End::Exited(0), "{end:?}");
        check(&site);
        Some(end)
    }

    fn command(&self, site: &Site) -> Command {
        let mut command = site.process();
        command
            .args(self.args)
            .env("TIDEGATE_CONFIG", site.path("config.toml"))
            .stdout(Stdio::null())
            .stderr(tempfile::tempfile().unwrap());
        command
    }
}

/// A site with a repository in which packs are small and go out one at a time, so that what had
/// landed is known.
fn small_site() -> Site {
    let site = bare_site();
    run(&site, "warm", &["init", "--keys", "keys"]).succeeds();
    site
}

fn bare_site() -> Site {
    let site = Site::new();
    let text = "repo = \"repo\"\nkey = \"keys/restore.key\"\npack_mib = 1\nuploads_in_flight = 1\n";
    std::fs::write(site.path("config.toml"), text).unwrap();
    site
}

/// The cache of the process that dies.
const DEAD: &str = "home/.cache/tidegate";
/// A cache that nobody has used.
const COLD: &str = "cold";

fn run(site: &Site, cache: &str, args: &[&str]) -> Run {
    let mut command = site.command();
    command
        .env("TIDEGATE_CONFIG", site.path("config.toml"))
        .env("TIDEGATE_CACHE_DIR", cache);
    Run::of(&mut command, args)
}

/// Ids of the points, oldest first.
fn points(site: &Site, cache: &str) -> Vec<String> {
    let points = run(site, cache, &["points", "--json"]).succeeds().json();
    let points = points.as_array().unwrap();
    points
        .iter()
        .map(|point| point["point"].as_str().unwrap().to_owned())
        .collect()
}

/// Restores every point and compares it with the image of the same place; then verifies.
fn assert_points(site: &Site, cache: &str, points: &[String], images: &[&str]) {
    for (point, image) in points.iter().zip(images) {
        let to = format!("back-{point}.raw");
        run(site, cache, &["restore", &format!("web@{point}"), "--to", &to]).succeeds();
        assert_same(&site.path(image), &site.path(&to));
        std::fs::remove_file(site.path(&to)).unwrap();
    }
    run(site, cache, &["verify", "--all"]).succeeds();
}

fn new_bytes(site: &Site, cache: &str) -> u64 {
    let done = run(site, cache, &["backup", "web.raw", "--json"])
        .succeeds()
        .json();
    done["new_bytes"].as_u64().unwrap()
}

/// Sizes of the data packs in the repository.
fn data_packs(site: &Site) -> Vec<u64> {
    if !site.path("repo/packs").exists() {
        return Vec::new();
    }
    let files = site.files("repo/packs");
    let sizes = files.iter().map(|(_, content)| content.len() as u64);
    // Trees of these disks take a few KiB.
    sizes.filter(|bytes| *bytes > 256 << 10).collect()
}

const FIRST_BYTES: u64 = MIB;
const ADDED_BYTES: u64 = 5 * MIB / 2;

/// A point of `first.raw`, and `web.raw` that has grown since. The machine has lost its cache, so
/// that the next command makes all of it.
fn site_with_a_point() -> Site {
    let site = small_site();
    site.image("web.raw", FIRST_BYTES, &[(0, FIRST_BYTES)]);
    run(&site, "warm", &["backup", "web.raw"]).succeeds();
    std::fs::rename(site.path("web.raw"), site.path("first.raw")).unwrap();
    site.image(
        "web.raw",
        FIRST_BYTES + ADDED_BYTES + MIB,
        &[(0, FIRST_BYTES + ADDED_BYTES)],
    );
    std::fs::remove_dir_all(site.path("warm")).unwrap();
    site
}

#[test]
fn a_backup_that_is_killed_anywhere_costs_nothing_but_itself() {
    let before = site_with_a_point();
    let packs_before = data_packs(&before).len();
    let job = Job {
        name: "backup",
        before: &before,
        args: &["backup", "web.raw"],
        deaths: &[Death::Before, Death::Halfway, Death::PowerCut],
    };
    job.dies_at_every_step(|site| {
        let found = points(site, COLD);
        assert!((1..=2).contains(&found.len()), "{found:?}");
        let images = ["first.raw", "web.raw"];
        assert_points(site, COLD, &found, &images);
        assert_points(site, DEAD, &found, &images);

        // What has landed goes into the next point: all but the pack that may have been between the
        // store and the index.
        let landed = data_packs(site);
        let landed_bytes: u64 = landed.iter().sum();
        let landed_before = FIRST_BYTES;
        assert!(landed.len() >= packs_before);
        let in_between = landed.iter().max().copied().unwrap_or(0);
        let known = (landed_bytes - landed_before).saturating_sub(in_between);
        let again = new_bytes(site, DEAD);
        assert!(
            again <= (ADDED_BYTES + (64 << 10)).saturating_sub(known),
            "{again} bytes were stored again, {landed:?} had landed"
        );
        assert!(found.len() == 1 || again == 0, "the point was there: {again}");
        assert_eq!(new_bytes(site, COLD), 0, "others find it too");

        let found = points(site, COLD);
        let last = &found[found.len() - 1..];
        assert_points(site, COLD, last, &["web.raw"]);
    });
}
