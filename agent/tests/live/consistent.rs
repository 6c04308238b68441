//! A guest whose software is still for the moment, by a real agent in it; and that it is let go whatever
//! becomes of whoever froze it.

use crate::disks::{MIB, read_whole, run, text};
use crate::site::{REPOSITORY, settings};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tidegate_agent::live::qmp::Handicap;
use tidegate_agent::live::{FreezeSettings, Frozen, GuestAgent, Machine, Quiesce, guard};
use tidegate_agent::testing::{Guest, GuestDisk};
use tidegate_agent::{Kind, Result};
use tidegate_protocol::ids::PointId;
use tidegate_protocol::record::Consistency;
use tokio::runtime::Runtime;

/// How long anything may take on a machine with much else to do.
const TIME_MAX: Duration = Duration::from_secs(120);
/// Names a monitor and a folder to the process that is to be killed.
const MONITOR: &str = "TIDEGATE_TEST_FREEZE_AND_HANG";
const FOLDER: &str = "TIDEGATE_TEST_FOLDER";
/// A guest is not held longer, in seconds, whoever lives.
const HELD_SECONDS_MAX: u64 = 10;
/// The command that takes all disks at once; the guest is still when it comes.
const INSTANT: &str = "blockdev-reopen";

struct Site {
    folder: TempDir,
    guest: Guest,
    runtime: Runtime,
    drawn: u8,
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

fn be_ready() {
    guard::set_program(env!("CARGO_BIN_EXE_tidegated").into());
}

fn how(folder: &Path, quiesce: Quiesce) -> FreezeSettings {
    FreezeSettings {
        quiesce,
        notes: Some(notes(folder)),
        ..settings(folder, 256 * MIB)
    }
}

/// Where it is noted that the guest is frozen.
fn notes(folder: &Path) -> PathBuf {
    folder.join("notes")
}

async fn freeze(
    monitor: &Path,
    folder: &Path,
    id: u8,
    quiesce: Quiesce,
    pause: Duration,
) -> Result<Frozen> {
    let mut machine = Machine::connect(monitor).await?;
    machine.handicap(Handicap {
        pause_before: Some((INSTANT, pause)),
        ..Handicap::default()
    });
    let id = PointId([id; 16]);
    machine
        .freeze(how(folder, quiesce), REPOSITORY, id, |_| None, None)
        .await
}

impl Site {
    /// A guest that writes to a file system without an end.
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let disk = |name: &str, size: &str| {
            let path = folder.path().join(name);
            run("truncate", &["-s", size, text(&path)]);
            GuestDisk {
                path,
                format: "raw",
                id: Some(name.to_owned()),
            }
        };
        let disks = vec![disk("data", "32M"), disk("more", "4M")];
        run("mkfs.ext4", &["-q", "-F", text(&disks[0].path)]);
        let mut guest = Guest::start(disks);
        guest.run("mkdir -p /mnt /tmp; mount -t ext4 /dev/vda /mnt");
        guest.run(
            "(n=0; while :; do n=$((n+1)); echo $n >>/mnt/journal; touch /mnt/f$((n%50)); sync; done) \
             >/dev/null 2>&1 &",
        );
        Self {
            folder,
            guest,
            runtime: runtime(),
            drawn: 0,
        }
    }

    fn freeze(&mut self, quiesce: Quiesce, pause: Duration) -> Result<Frozen> {
        self.drawn += 1;
        let (monitor, folder) = (self.guest.monitor(), self.folder.path());
        let freezing = freeze(&monitor, folder, self.drawn, quiesce, pause);
        self.runtime.block_on(freezing)
    }

    /// Freezes, and says what the point would be worth, and whether its journal must be replayed.
    fn look(&mut self, quiesce: Quiesce, pause: Duration) -> Result<(Consistency, bool)> {
        let frozen = self.freeze(quiesce, pause)?;
        let image = self.folder.path().join("image");
        let data = frozen.disks.iter().find(|it| it.name == "data").unwrap();
        std::fs::write(&image, read_whole(data.source.as_ref())).unwrap();
        let consistency = frozen.consistency;
        self.runtime.block_on(frozen.give_up()).unwrap();
        let told = Command::new("dumpe2fs")
            .args(["-h", text(&image)])
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(told.contains("Filesystem features"), "{told}");
        let needs_replay = told.contains("needs_recovery");
        if !needs_replay {
            run("e2fsck", &["-fn", text(&image)]);
        }
        self.assert_writes();
        assert_eq!(self.noted(), 0);
        Ok((consistency, needs_replay))
    }

    /// How often the guest is noted as frozen.
    fn noted(&self) -> usize {
        std::fs::read_dir(notes(self.folder.path())).map_or(0, Iterator::count)
    }

    /// The guest's file system takes what is written.
    fn assert_writes(&mut self) {
        self.start_writing();
        let begun = Instant::now();
        while !self.has_written() {
            assert!(begun.elapsed() < TIME_MAX, "the guest is frozen for good");
        }
    }

    /// Something that ends when the file system is not frozen.
    fn start_writing(&mut self) {
        self.guest.run(
            "rm -f /tmp/written; (echo x >/mnt/x; sync; touch /tmp/written) >/dev/null 2>&1 &",
        );
    }

    fn has_written(&mut self) -> bool {
        self.guest.run("sleep 0.2; ls /tmp").contains("written")
    }
}

/// One guest, many checks: booting it costs more than any of them.
#[test]
fn a_guest_is_still_for_the_moment_and_let_go() {
    be_ready();
    let mut site = Site::new();
    site.assert_writes();
    let at_once = Duration::ZERO;
    let crash = (Consistency::Crash, true);
    let application = (Consistency::Application, false);
    assert_eq!(site.look(Quiesce::Off, at_once).unwrap(), crash);
    assert_eq!(site.look(Quiesce::Prefer, at_once).unwrap(), application);
    assert_eq!(site.look(Quiesce::Require, at_once).unwrap(), application);
    a_guest_is_not_held_for_long(&mut site);
    a_killed_program_leaves_no_frozen_guest(&mut site);
    a_program_killed_with_its_guard_leaves_a_note(&mut site);
    what_was_left_frozen_is_thawed(&mut site);
    an_agent_that_is_gone_is_said(&mut site);
}

/// The moment takes longer than a guest may be held: it is let go before, and that is said.
fn a_guest_is_not_held_for_long(site: &mut Site) {
    let pause = Duration::from_secs(HELD_SECONDS_MAX + 4);
    let crash = (Consistency::Crash, true);
    assert_eq!(site.look(Quiesce::Prefer, pause).unwrap(), crash);
    let error = site.look(Quiesce::Require, pause).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
    site.assert_writes();
}

/// A process that has frozen the guest, and does nothing else.
struct Freezing {
    child: Child,
    guard: u32,
    begun: Instant,
}

impl Freezing {
    fn start(site: &Site) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "consistent::freezes_and_hangs", "--nocapture"])
            .env(MONITOR, site.guest.monitor())
            .env(FOLDER, site.folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        let guard = loop {
            if let Some(guard) = guard_of(child.id()) {
                break guard;
            }
            assert!(begun.elapsed() < TIME_MAX);
            assert!(child.try_wait().unwrap().is_none());
            std::thread::sleep(Duration::from_millis(10));
        };
        Self {
            child,
            guard,
            begun: Instant::now(),
        }
    }

    /// Waits until a write of the guest does not end.
    fn wait(&self, site: &mut Site) {
        loop {
            site.start_writing();
            if !site.has_written() && !site.has_written() {
                break;
            }
            assert!(self.begun.elapsed() < TIME_MAX, "the guest is not frozen");
        }
        assert_eq!(site.noted(), 1);
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn a_killed_program_leaves_no_frozen_guest(site: &mut Site) {
    // On a machine with much else to do the guard may think that it takes too long: once more.
    let thawed_at_once = (0..3).any(|_| {
        let freezing = Freezing::start(site);
        freezing.wait(site);
        let begun = freezing.begun;
        freezing.kill();
        let killed = Instant::now();
        while !site.has_written() {
            assert!(killed.elapsed() < TIME_MAX, "the guest is frozen for good");
        }
        begun.elapsed() < Duration::from_secs(HELD_SECONDS_MAX - 1)
    });
    assert!(thawed_at_once, "the guard waits for something");
    let begun = Instant::now();
    while site.noted() > 0 {
        assert!(begun.elapsed() < TIME_MAX, "the guest is still noted");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// As systemd kills a service: with its guard.
fn a_program_killed_with_its_guard_leaves_a_note(site: &mut Site) {
    let freezing = Freezing::start(site);
    run("kill", &["-9", &freezing.guard.to_string()]);
    freezing.wait(site);
    freezing.kill();
    assert!(!site.has_written(), "who thawed it?");
    assert_eq!(site.noted(), 1);
    let notes = notes(site.folder.path());
    let thawing = guard::thaw_left(&notes, Duration::ZERO);
    site.runtime.block_on(thawing).unwrap();
    let begun = Instant::now();
    while !site.has_written() {
        assert!(begun.elapsed() < TIME_MAX, "the guest is frozen for good");
    }
    assert_eq!(site.noted(), 0);
}

/// A process that does as in production and is killed; as a test it does nothing.
#[test]
fn freezes_and_hangs() {
    let Some(monitor) = std::env::var_os(MONITOR).map(PathBuf::from) else {
        return;
    };
    be_ready();
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let hour = Duration::from_secs(3600);
    let freezing = freeze(&monitor, &folder, 99, Quiesce::Require, hour);
    let _ = runtime().block_on(freezing);
}

/// The child of a process that is its guard.
fn guard_of(parent: u32) -> Option<u32> {
    let output = Command::new("pgrep")
        .args(["-P", &parent.to_string(), "-f", "thaw-guard"])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).trim().parse().ok()
}

/// Both were killed at once, and nobody read the note.
fn what_was_left_frozen_is_thawed(site: &mut Site) {
    let socket = site.guest.agent();
    site.runtime.block_on(async {
        let mut agent = GuestAgent::connect(&socket).await.unwrap();
        assert_eq!(agent.freeze().await.unwrap(), 1);
        assert!(agent.is_frozen().await.unwrap());
    });
    let application = (Consistency::Application, false);
    let looked = site.look(Quiesce::Prefer, Duration::ZERO);
    assert_eq!(looked.unwrap(), application);
}

fn an_agent_that_is_gone_is_said(site: &mut Site) {
    site.guest.run("kill $(cat /run/qga.pid)");
    let crash = (Consistency::Crash, true);
    assert_eq!(site.look(Quiesce::Prefer, Duration::ZERO).unwrap(), crash);
    let error = site.look(Quiesce::Require, Duration::ZERO).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
    site.assert_writes();
}
