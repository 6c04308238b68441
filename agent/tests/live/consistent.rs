//! A guest whose software is still for the moment, by a real agent in it; and that it is let go whatever
//! becomes of whoever froze it.

use crate::disks::{MIB, read_whole, run, text};
use crate::site::{REPOSITORY, settings};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
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
/// Names a monitor to the process that is to be killed.
const MONITOR: &str = "TIDEGATE_TEST_FREEZE_AND_HANG";
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
        ..settings(folder, 256 * MIB)
    }
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
        Ok((consistency, needs_replay))
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
    what_was_left_frozen_is_thawed(&mut site);
    an_agent_that_is_gone_is_said(&mut site);
}

/// The moment takes longer than a guest may be held: it is let go before, and that is said.
fn a_guest_is_not_held_for_long(site: &mut Site) {
    let pause = Duration::from_secs(14);
    let crash = (Consistency::Crash, true);
    assert_eq!(site.look(Quiesce::Prefer, pause).unwrap(), crash);
    let error = site.look(Quiesce::Require, pause).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
    site.assert_writes();
}

fn a_killed_program_leaves_no_frozen_guest(site: &mut Site) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "consistent::freezes_and_hangs", "--nocapture"])
        .env(MONITOR, site.guest.monitor())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // It is frozen when its guard is there and a write does not end.
    let begun = Instant::now();
    while !has_guard(child.id()) {
        assert!(begun.elapsed() < TIME_MAX);
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_secs(1));
    site.start_writing();
    assert!(!site.has_written(), "the guest is not frozen");
    child.kill().unwrap();
    child.wait().unwrap();
    let killed = Instant::now();
    while !site.has_written() {
        assert!(killed.elapsed() < TIME_MAX, "the guest is frozen for good");
    }
    // Long before the guard would have thought that it takes too long.
    assert!(begun.elapsed() < Duration::from_secs(9));
}

/// A process that does as in production and is killed; as a test it does nothing.
#[test]
fn freezes_and_hangs() {
    let Some(monitor) = std::env::var_os(MONITOR).map(PathBuf::from) else {
        return;
    };
    be_ready();
    let folder = TempDir::new().unwrap();
    let hour = Duration::from_secs(3600);
    let freezing = freeze(&monitor, folder.path(), 99, Quiesce::Require, hour);
    let _ = runtime().block_on(freezing);
}

/// Whether a process has a child that is a guard.
fn has_guard(parent: u32) -> bool {
    let output = Command::new("pgrep")
        .args(["-P", &parent.to_string(), "-f", "thaw-guard"])
        .output()
        .unwrap();
    output.status.success()
}

/// Both were killed at once.
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
