//! The real program, killed before every single change it makes to a file, and halfway through
//! every write: packs, index segments, log records and checkpoints of the folder repository, the
//! local SQLite file and the tree packs beside it, key files, restored images.
//!
//! No step is left out: one process dies at the first, another at the second, and so on until
//! processes come through. After each death, with the cache that the dead process left and with an
//! empty one: every committed point restores bit-exact, the same command run again does its work,
//! re-uses what had landed, and a verify finds nothing. The jobs that write to the repository die a third way: together with the whole machine,
//! whose power cut takes away what was not made durable.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests, whose number of cases is worth reading"
)]

mod engine;
mod site;
mod trace;

use engine::Engine;
use site::{MIB, Run, Site, assert_same};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use tidegate_agent::repository::read_key_file;
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

/// What must not be lost by a power cut.
const CUT: [&str; 3] = ["repo", "keys", "back.raw"];

/// SQLite's own tests show how it gets over a write that was cut short; it checks every frame.
fn can_be_halved(what: &What) -> bool {
    match what {
        What::Write { path, bytes, .. } => {
            *bytes > 1 && !path.to_string_lossy().contains("catalogue.sqlite")
        }
        _ => false,
    }
}

/// More than any job here has; a job that gets there has lost its way.
const STEPS_MAX: u64 = 2_000;

/// How many processes come through before a job is known to have no more steps: threads take turns
/// now one way, now another, and a run may have a few steps more than the one before it.
const THROUGH: u64 = 3;

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
        for death in self.deaths {
            let (next, deaths) = (AtomicU64::new(0), AtomicU64::new(0));
            let through = AtomicU64::new(0);
            let take_turns = || {
                while through.load(Ordering::Relaxed) < THROUGH {
                    let step = next.fetch_add(1, Ordering::Relaxed);
                    assert!(step < STEPS_MAX, "{} comes to no end", self.name);
                    match self.dies_at(step, *death, &check) {
                        End::Killed => drop(deaths.fetch_add(1, Ordering::Relaxed)),
                        // It has fewer steps; those before this one are taken by now.
                        End::Exited(_) => drop(through.fetch_add(1, Ordering::Relaxed)),
                    }
                }
            };
            std::thread::scope(|scope| {
                for _ in 0..AT_ONCE {
                    scope.spawn(take_turns);
                }
            });
            let deaths = deaths.into_inner();
            eprintln!("{}: died {death:?} {deaths} steps", self.name);
            assert!(deaths > 0, "{} has no steps {death:?}", self.name);
        }
    }

    /// One case: dies at that step, unless the job ends before it.
    fn dies_at(&self, step: u64, death: Death, check: impl Fn(&Site)) -> End {
        let _case = Case(format!("{}, {death:?} step {step}", self.name));
        let site = self.before.copy();
        let mut disk = Disk::default();
        let mut begun = 0;
        let mut last = String::new();
        let end = trace::run(self.command(&site), &site.path(""), |call, moment| {
            let is_step = moment == Moment::Begins
                && match death {
                    Death::Before => call.what.changes(),
                    Death::Halfway => can_be_halved(&call.what),
                    // Where all is durable, a power cut takes no more than a kill.
                    Death::PowerCut => {
                        let mut at_risk = CUT.map(|folder| site.path(folder)).into_iter();
                        at_risk.any(|folder| disk.at_risk(&folder).next().is_some())
                    }
                };
            if is_step {
                begun += 1;
                if begun == step + 1 {
                    last = format!("{:?}", call.what);
                    return match death {
                        Death::Halfway => Verdict::KillHalfway,
                        _ => Verdict::Kill,
                    };
                }
            }
            disk.note(call, moment);
            Verdict::Go
        });
        let _step = Case(last);
        if death == Death::PowerCut {
            for folder in CUT {
                disk.cut(&site.path(folder));
            }
        }
        assert!(end == End::Killed || end == End::Exited(0), "{end:?}");
        check(&site);
        end
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

/// A configuration in which packs are small and go out one at a time, so that what had
/// landed is known.
fn small_site() -> Site {
    let site = bare_site();
    run(&site, "warm", &["init", "--keys", "keys"]).succeeds();
    site
}

fn bare_site() -> Site {
    let site = Site::in_memory();
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

/// Restores every point and compares it with the image of the same place; then verifies. Says how
/// many points there are.
fn assert_points(site: &Site, cache: &str, images: &[&str]) -> usize {
    let engine = Engine::open(site, cache);
    let points = engine.points();
    for (point, image) in points.iter().zip(images) {
        let restored = engine.restored(point, &site.path("restored.raw"));
        assert!(
            restored == std::fs::read(site.path(image)).unwrap(),
            "{image}"
        );
    }
    engine.assert_sound();
    points.len()
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
/// A chunk at the seam is cut anew; packs are a little larger than what is in them.
const SLACK_BYTES: u64 = 256 << 10;

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
    let landed_before: u64 = data_packs(&before).iter().sum();
    let job = Job {
        name: "backup",
        before: &before,
        args: &["backup", "web.raw"],
        deaths: &[Death::Before, Death::Halfway, Death::PowerCut],
    };
    job.dies_at_every_step(|site| {
        let images = ["first.raw", "web.raw"];
        let found = assert_points(site, COLD, &images);
        assert!((1..=2).contains(&found), "{found} points");
        assert_eq!(assert_points(site, DEAD, &images), found);

        // What has landed goes into the next point: all but the pack that may have been on its way
        // from the store into the index.
        let landed = data_packs(site);
        let landed_bytes = landed.iter().sum::<u64>() - landed_before;
        let known = landed_bytes.saturating_sub(landed.iter().max().copied().unwrap_or(0));
        let again = run(site, DEAD, &["backup", "web.raw", "--json"])
            .succeeds()
            .json();
        let again = again["new_bytes"].as_u64().unwrap();
        assert!(
            again <= (ADDED_BYTES + SLACK_BYTES).saturating_sub(known),
            "{again} bytes were stored again, {landed:?} had landed"
        );
        assert!(
            found == 1 || again == 0,
            "{again} bytes of a point that was there"
        );
        // Another machine finds all of it by the index.
        let engine = Engine::open(site, COLD);
        let other = engine.back_up("other", &site.path("web.raw"));
        assert_eq!(other.new_bytes, 0);
        engine.assert_sound();
        let points = engine.points();
        assert_eq!(points.len(), found + 2);
        let web = std::fs::read(site.path("web.raw")).unwrap();
        for point in &points[found..] {
            assert!(engine.restored(point, &site.path("restored.raw")) == web);
        }
    });
}

/// The same, and the grown disk is backed up as well.
fn site_with_two_points() -> Site {
    let site = site_with_a_point();
    run(&site, "warm", &["backup", "web.raw"]).succeeds();
    std::fs::remove_dir_all(site.path("warm")).unwrap();
    site
}

#[test]
fn a_restore_that_is_killed_anywhere_goes_on() {
    let before = site_with_two_points();
    let args = ["restore", "web@latest", "--to", "back.raw"];
    let job = Job {
        name: "restore",
        before: &before,
        args: &args,
        deaths: &[Death::Before, Death::Halfway, Death::PowerCut],
    };
    job.dies_at_every_step(|site| {
        let back = site.path("back.raw");
        if back.exists() {
            // Its name says that it is complete.
            assert_same(&site.path("web.raw"), &back);
            run(site, DEAD, &args).ends_with(9).says(&["exists"]);
            return;
        }
        run(site, DEAD, &args).succeeds();
        assert_same(&site.path("web.raw"), &back);
        assert!(!site.path("back.raw.tidegate-partial").exists());
    });
}

#[test]
fn a_restore_in_place_that_is_killed_anywhere_goes_on() {
    let before = site_with_two_points();
    let size_bytes = before.path("web.raw").metadata().unwrap().len();
    before.image("live.raw", size_bytes, &[(0, FIRST_BYTES / 2)]);
    // Other data, also where the point has a hole.
    before.change("live.raw", FIRST_BYTES / 2, size_bytes - FIRST_BYTES, 7);
    let args = ["restore", "web@latest", "--to", "live.raw", "--in-place"];
    let job = Job {
        name: "restore in place",
        before: &before,
        args: &args,
        deaths: &[Death::Before, Death::Halfway],
    };
    let [old, new] = ["live.raw", "web.raw"].map(|name| std::fs::read(before.path(name)).unwrap());
    job.dies_at_every_step(|site| {
        let live = std::fs::read(site.path("live.raw")).unwrap();
        assert_eq!(live.len(), new.len());
        let wrong = live.iter().zip(old.iter().zip(&new));
        let wrong = wrong
            .enumerate()
            .find(|(_, (live, (old, new)))| live != old && live != new);
        assert_eq!(wrong, None, "a byte of neither disk");
        run(site, DEAD, &args).succeeds();
        assert_same(&site.path("web.raw"), &site.path("live.raw"));
    });
}

#[test]
fn an_init_that_is_killed_anywhere_is_finished_or_says_what_to_do() {
    let before = bare_site();
    before.image("web.raw", 64 << 10, &[(0, 64 << 10)]);
    let names = ["host", "maintenance", "restore"].map(|level| format!("keys/{level}.key"));
    let job = Job {
        name: "init",
        before: &before,
        args: &["init", "--keys", "keys"],
        deaths: &[Death::Before, Death::Halfway, Death::PowerCut],
    };
    job.dies_at_every_step(|site| {
        for name in &names {
            let path = site.path(name);
            assert!(
                !path.exists() || read_key_file(&path).is_ok(),
                "half of {name}"
            );
        }
        let again = run(site, DEAD, &["init", "--keys", "keys"]);
        if again.code != 0 && !again.stderr.contains("nothing is left to be done") {
            // It says what to do, and so it is done.
            again
                .ends_with(9)
                .says(&["delete host.key", "there is no repository"]);
            for name in &names {
                let _ = std::fs::remove_file(site.path(name));
            }
            run(site, DEAD, &["init", "--keys", "keys"]).succeeds();
        }
        let keys = run(site, DEAD, &["key", "list", "--json"])
            .succeeds()
            .json();
        assert_eq!(keys.as_array().map(Vec::len), Some(3), "keys in the log");
        run(site, DEAD, &["backup", "web.raw"]).succeeds();
        assert_eq!(assert_points(site, COLD, &["web.raw"]), 1);
    });
}

/// Where the engine writes a checkpoint.
const CHECKPOINT_AT: u64 = 512;

/// No fleet without its authority's key: else nobody could ever join it, and its place would be taken.
#[test]
fn a_fleet_whose_init_is_killed_anywhere_is_finished_by_the_next() {
    let before = bare_site();
    // The names of the folders whose power is cut.
    let init = ["gateway", "init", "--fleet", "repo", "--keys", "keys"];
    let job = Job {
        name: "gateway init",
        before: &before,
        args: &init,
        deaths: &[Death::Before, Death::Halfway, Death::PowerCut],
    };
    job.dies_at_every_step(|site| {
        let listed = run(site, DEAD, &["gateway", "list", "--fleet", "repo"]);
        match listed.code {
            0 => assert!(site.path("keys/authority.key").exists()),
            _ => drop(listed.ends_with(3)),
        }
        run(site, DEAD, &init).succeeds();
        let invite = [
            "gateway", "invite", "--fleet", "repo", "--host", "hv1", "--repo", "main",
        ];
        run(site, DEAD, &invite).succeeds();
    });
}

#[test]
fn a_checkpoint_that_is_killed_anywhere_stops_no_reader() {
    let before = small_site();
    before.image("web.raw", 64 << 10, &[(0, 64 << 10)]);
    run(&before, DEAD, &["backup", "web.raw"]).succeeds();
    let engine = Engine::open(&before, DEAD);
    let record = Body::RunAnnounced(RunAnnounced {
        run: vec![7; 16],
        machine: "web".to_owned(),
        segments: Vec::new(),
        abandoned: true,
    });
    while engine.append(&record) < CHECKPOINT_AT - 1 {}
    drop(engine);
    let issue = |name| ["key", "export", "--level", "host", "--out", name];
    let job = Job {
        name: "checkpoint",
        before: &before,
        args: &issue("keys/first.key"),
        deaths: &[Death::Before, Death::Halfway, Death::PowerCut],
    };
    let checkpoint = format!("repo/log/checkpoint-{CHECKPOINT_AT:020}");
    let seen = [const { AtomicU64::new(0) }; 2];
    job.dies_at_every_step(|site| {
        let is_there = site.path(&checkpoint).exists();
        seen[usize::from(is_there)].fetch_add(1, Ordering::Relaxed);
        for cache in [COLD, DEAD] {
            assert_eq!(assert_points(site, cache, &["web.raw"]), 1);
        }
        let first = site.path("keys/first.key");
        assert!(
            !first.exists() || read_key_file(&first).is_ok(),
            "half a key"
        );
        run(site, DEAD, &issue("keys/second.key")).succeeds();
        run(site, COLD, &["points", "--key", "keys/second.key"]).succeeds();
    });
    let [without, with] = seen.map(AtomicU64::into_inner);
    assert!(
        without > 0 && with > 0,
        "{without} without it, {with} with it"
    );
}
