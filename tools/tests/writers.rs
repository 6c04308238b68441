//! Eight processes that back up into one repository at the same time: on a local folder, with caches
//! of their own and with one that they share, and on a real S3 server.
//!
//! What a process was told to be committed stays committed, every point restores bit-exact, machines
//! find each other's chunks, and whoever loses the race for a log record tries again. Then the same
//! with processes that are killed at moments drawn from a seed, and run again.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests, whose seed is worth reading"
)]

mod engine;
mod site;

use engine::Engine;
use site::{MIB, Run, Site, text};
use std::collections::BTreeSet;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use tidegate_agent::store::Environment;
use tidegate_agent::testing::S3Server;

const WRITERS: u64 = 8;

/// What all machines have in common.
const SHARED_BYTES: u64 = 4 * MIB;
/// What each has for itself.
const OWN_BYTES: u64 = MIB;
/// What changes from one version to the next.
const CHANGE_BYTES: u64 = 256 << 10;
/// Versions that each machine backs up while the others do, before it gets its neighbour's data.
const VERSIONS: u64 = 3;
const DISK_BYTES: u64 = 8 * MIB;

/// A chunk at each end of what was moved is cut anew.
const SEAM_BYTES: u64 = 256 << 10;

/// The last version: what the neighbour has for itself has come to this machine.
const MOVED: u64 = VERSIONS;

/// How often a version may be killed before it is let through.
const KILLS_MAX: u64 = 3;

/// Where the repository is, and how to get there.
struct Place<'a> {
    location: String,
    environment: Environment,
    site: &'a Site,
    shared_cache: bool,
}

impl Place<'_> {
    fn cache(&self, writer: u64) -> String {
        match self.shared_cache {
            true => "cache".to_owned(),
            false => format!("cache-{writer}"),
        }
    }

    fn command(&self, writer: u64) -> std::process::Command {
        let mut command = self.site.process();
        command
            .envs(self.environment.variables())
            .env("TIDEGATE_CONFIG", self.site.path("config.toml"))
            .env("TIDEGATE_REPO", &self.location)
            .env("TIDEGATE_CACHE_DIR", self.cache(writer));
        command
    }

    fn start_backup(&self, writer: u64, image: &str) -> Child {
        let machine = machine(writer);
        self.command(writer)
            .args(["backup", image, "--machine", &machine, "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn run(&self, args: &[&str]) -> Run {
        Run::of(
            &mut assert_cmd::Command::from_std(self.command(WRITERS)),
            args,
        )
    }
}

fn machine(writer: u64) -> String {
    format!("machine-{writer}")
}

fn image(writer: u64, version: u64) -> String {
    format!("{writer}-{version}.raw")
}

/// Makes all versions of all machines' disks.
fn make_images(site: &Site) {
    for writer in 0..WRITERS {
        for version in 0..=MOVED {
            let name = image(writer, version);
            site.image(&name, DISK_BYTES, &[(0, SHARED_BYTES)]);
            site.change(&name, SHARED_BYTES, OWN_BYTES, 100 + writer);
            for change in 0..version.min(VERSIONS) {
                let at = SHARED_BYTES + OWN_BYTES + change * CHANGE_BYTES;
                site.change(&name, at, CHANGE_BYTES, 1000 + 10 * writer + change);
            }
            if version == MOVED {
                let neighbour = (writer + 1) % WRITERS;
                let moved = site.image("moved.raw", SHARED_BYTES + OWN_BYTES, &[]);
                site.change("moved.raw", SHARED_BYTES, OWN_BYTES, 100 + neighbour);
                let bytes = site::read(&moved, SHARED_BYTES, OWN_BYTES);
                let file = std::fs::File::options()
                    .write(true)
                    .open(site.path(&name))
                    .unwrap();
                let at = DISK_BYTES - OWN_BYTES;
                std::os::unix::fs::FileExt::write_all_at(&file, &bytes, at).unwrap();
            }
        }
    }
}

/// Draws moments: splitmix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// What one writer was told.
#[derive(Default)]
struct Told {
    points: Vec<String>,
    new_bytes: Vec<u64>,
    kills: u64,
}

/// Backs versions of one machine up, one after the other; with chance, kills each a few times first.
fn write(
    place: &Place<'_>,
    writer: u64,
    versions: std::ops::RangeInclusive<u64>,
    mut chance: Option<Chance>,
) -> Told {
    let mut told = Told::default();
    // How long a run takes is found out on the way.
    let mut usual = Duration::from_millis(200);
    for version in versions {
        let mut kills = chance
            .as_mut()
            .map_or(0, |chance| chance.below(KILLS_MAX + 1));
        loop {
            let started = Instant::now();
            let mut child = place.start_backup(writer, &image(writer, version));
            if let (Some(chance), true) = (&mut chance, kills > 0) {
                kills -= 1;
                let micros = u64::try_from(usual.as_micros()).unwrap();
                std::thread::sleep(Duration::from_micros(chance.below(micros)));
                child.kill().unwrap();
            }
            let output = child.wait_with_output().unwrap();
            if output.status.code().is_none() {
                told.kills += 1;
                continue;
            }
            usual = started.elapsed();
            let done = Run::from(output).succeeds().json();
            told.points.push(done["point"].as_str().unwrap().to_owned());
            told.new_bytes.push(done["new_bytes"].as_u64().unwrap());
            break;
        }
    }
    told
}

/// Has all writers write at the same time.
fn all_write(
    place: &Place<'_>,
    versions: &std::ops::RangeInclusive<u64>,
    seed: Option<u64>,
) -> Vec<Told> {
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let chance = seed.map(|seed| Chance(seed.wrapping_add(writer << 32)));
                let versions = versions.clone();
                scope.spawn(move || write(place, writer, versions, chance))
            })
            .collect();
        writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .collect()
    })
}

fn eight_writers(place: &Place<'_>, seed: Option<u64>) {
    let site = place.site;
    std::fs::write(
        site.path("config.toml"),
        "key = \"keys/restore.key\"\npack_mib = 1\nworkers = 1\n",
    )
    .unwrap();
    make_images(site);
    place.run(&["init", "--keys", "keys"]).succeeds();
    // One machine comes first, so that all find what they have in common.
    let base = place.run(&["backup", &image(0, 0), "--machine", "base", "--json"]);
    assert!(base.succeeds().json()["new_bytes"].as_u64().unwrap() >= SHARED_BYTES);

    let together = all_write(place, &(0..=VERSIONS - 1), seed);
    let moved = all_write(place, &(MOVED..=MOVED), seed.map(|seed| seed ^ 0xff));
    let kills: u64 = together.iter().chain(&moved).map(|told| told.kills).sum();
    if let Some(seed) = seed {
        eprintln!("seed {seed}: {kills} processes were killed");
        assert!(kills > WRITERS, "seed {seed}: only {kills} were killed");
    }
    let context = format!("{}, seed {seed:?}", place.location);

    let fresh = Engine::open_at(&place.location, &place.environment, site, "fresh");
    fresh.assert_sound();
    let points = fresh.points();
    let there: BTreeSet<String> = points.iter().map(|point| point.id.to_string()).collect();
    for told in together.iter().chain(&moved) {
        for point in &told.points {
            assert!(there.contains(point), "{context}: {point} is lost");
        }
    }
    for writer in 0..WRITERS {
        let mut own: Vec<_> = points
            .iter()
            .filter(|point| point.machine == machine(writer))
            .collect();
        own.sort_by_key(|point| point.number);
        let mut version = 0;
        for (at, point) in own.iter().enumerate() {
            let before = at.checked_sub(1).map(|at| own[at].id);
            assert_eq!(
                point.parent, before,
                "{context}: the chain of machine {writer}"
            );
            // A run that was killed may have committed, and the one after it commits again.
            let restored = fresh.restored(point, &site.path("restored.raw"));
            let is =
                |version| std::fs::read(site.path(&image(writer, version))).unwrap() == restored;
            if !is(version) {
                version += 1;
                assert!(version <= MOVED && is(version), "{context}: {}", point.id);
            }
        }
        assert_eq!(version, MOVED, "{context}: machine {writer}");
        assert!(own.len() as u64 > VERSIONS, "{context}: machine {writer}");
        assert!(
            seed.is_some() || own.len() as u64 == VERSIONS + 1,
            "{context}: {} points of machine {writer}",
            own.len()
        );
    }

    // Nobody has stored again what others had.
    for told in &moved {
        let new = told.new_bytes[0];
        assert!(
            new <= CHANGE_BYTES + 2 * SEAM_BYTES,
            "{context}: {new} bytes"
        );
    }
    let unique = SHARED_BYTES + WRITERS * (OWN_BYTES + VERSIONS * CHANGE_BYTES);
    // What was in flight when a process died is stored twice.
    let wasted = kills * 3 * MIB;
    let stored = fresh.pack_bytes();
    let bound = unique + unique / 4 + wasted;
    assert!(
        stored <= bound,
        "{context}: {stored} bytes stored, {bound} expected"
    );
    let sum = points.len() as u64 * (SHARED_BYTES + OWN_BYTES);
    assert!(
        stored < sum / 3,
        "{context}: {stored} bytes stored of {sum}"
    );
}

fn on_a_folder(shared_cache: bool) {
    for seed in [None, Some(4)] {
        let site = Site::new();
        let place = Place {
            location: text(&site.path("repo")).to_owned(),
            environment: Environment::empty(),
            site: &site,
            shared_cache,
        };
        eight_writers(&place, seed);
    }
}

#[test]
fn eight_writers_on_a_folder() {
    on_a_folder(false);
}

#[test]
fn eight_writers_on_a_folder_with_one_cache() {
    on_a_folder(true);
}

#[test]
fn eight_writers_on_s3() {
    let server = S3Server::start();
    for seed in [None, Some(4)] {
        let site = Site::new();
        let place = Place {
            location: server.location(if seed.is_some() { "killed" } else { "peace" }),
            environment: server.environment(),
            site: &site,
            shared_cache: false,
        };
        eight_writers(&place, seed);
    }
}
