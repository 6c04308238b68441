//! A guest that is frozen when the service is killed: thawed by the unit, in a real systemd.
//!
//! systemd kills what is left of a service whose main process died, and with it the guard that would thaw:
//! which of the two is quicker is left to chance once, and decided once.
//! The guest runs beside the container, as QEMU runs beside the service, with its sockets at the same path
//! for both. Its monitor is reached through a door of the test's own, which stays shut when the command
//! comes that takes the disks: the guest is frozen for as long as nobody does something about it.

#![allow(clippy::print_stderr, reason = "tests")]

use super::{FROM_THE_STORE, HOST, STORE, drop_in, machine, package};
use crate::container::Container;
use crate::site::{MIB, Site, program, text};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde_json::Value;
use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;
use tidegate_agent::testing::{Guest, GuestDisk};

/// The command that takes all disks at once; the guest is still when it comes.
const INSTANT: &str = "blockdev-reopen";
/// As where systemd is certainly quicker than the guard.
const KILL_THE_GUARD: [&str; 3] = [
    "sh",
    "-c",
    "guard=$(grep -ls 'thaw-guar[d]' /proc/[0-9]*/cmdline) && guard=${guard#/proc/} && kill -KILL ${guard%/*}",
];
/// What is said of the guest's one file system by a guard, by who reads the notes, and by who freezes next.
const BY_GUARD: [&str; 2] = ["was thawed by its guard", ": 1 file systems"];
const BY_NOTE: [&str; 2] = ["a guest that was left frozen was thawed", "count=1"];
const BY_NEXT: [&str; 2] = ["the guest was found frozen", "thawed first"];

/// Who thawed a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Guard,
    Unit,
    Service,
}

#[test]
fn a_guest_that_a_killed_service_left_frozen_is_thawed() {
    let site = Site::new();
    std::fs::create_dir(site.path("store")).unwrap();
    // Not in /tmp, where the service sees its own.
    let sockets = tempfile::Builder::new()
        .prefix("tidegate-test-")
        .tempdir_in("/run")
        .unwrap();
    let package = package(&site);
    let container = Container::boot("debian", &site.path(""), &[sockets.path()]);
    container.says(&["dpkg", "--install", &package]);
    let mut guest = start_guest(&site, &container, sockets.path());
    let door = Door::before(&guest.monitor(), sockets.path());
    configure(&container, &door.path);

    door.shut();
    container.says(&["systemctl", "enable", "--now", HOST]);
    let by = killed_while_frozen(&container, &door, &mut guest, &[]);
    // A guard that is quicker than systemd is welcome to it, and may be killed before it says so.
    assert!(!by.contains(&By::Service), "{by:?}");
    is_protected_again(&container, &site);

    door.shut();
    let by = killed_while_frozen(&container, &door, &mut guest, &KILL_THE_GUARD);
    assert_eq!(by, [By::Unit]);
    is_protected_again(&container, &site);
    container.power_off();
}

/// A guest that writes to a file system without an end.
fn start_guest(site: &Site, container: &Container, sockets: &Path) -> Guest {
    // In the words of the README.
    container.says(&[
        "install",
        "--directory",
        "--mode=2750",
        "--group=tidegate",
        text(sockets),
    ]);
    let data = site.image("data", 32 * MIB, &[]);
    program("mkfs.ext4", &["-q", "-F", text(&data)]);
    let more = site.image("more", 4 * MIB, &[(0, MIB)]);
    let disks = [("data", data), ("more", more)].map(|(name, path)| GuestDisk {
        path,
        format: "raw",
        id: Some(name.to_owned()),
    });
    let mut guest = Guest::start_in(sockets, disks.to_vec());
    guest.run("mkdir -p /mnt /tmp; mount -t ext4 /dev/vda /mnt");
    guest.run(
        "(n=0; while :; do n=$((n+1)); echo $n >>/mnt/journal; touch /mnt/f$((n%50)); sync; done) \
         >/dev/null 2>&1 &",
    );
    guest
}

fn configure(container: &Container, monitor: &Path) {
    let configuration = format!(
        r#"
        [repository.main]
        location = "/srv/store/main"
        key = "credential:host.key"
        [policy.still]
        every = "1s"
        rpo = "1h"
        quiesce = "require"
        [machine.vm01]
        qmp = "{}"
        [group.all]
        machines = ["*"]
        policy = "still"
        repository = "main"
        "#,
        monitor.display()
    );
    for command in [
        &[
            "tidegate",
            "init",
            "--repo",
            "/srv/store/main",
            "--keys",
            "/srv/keys",
        ][..],
        &[
            "install",
            "--mode=600",
            "/srv/keys/host.key",
            "/etc/tidegate",
        ],
        &["chown", "-R", "tidegate:", "/srv/store"],
        &["chmod", "711", "/srv"],
    ] {
        container.says(command);
    }
    container.write(&drop_in(HOST, "store"), STORE);
    container.write("/etc/tidegate/host.toml", &configuration);
    container.says(&["systemctl", "daemon-reload"]);
}

/// Kills the service when the door is shut, after a command, and says who thawed the guest.
fn killed_while_frozen(
    container: &Container,
    door: &Door,
    guest: &mut Guest,
    before: &[&str],
) -> Vec<By> {
    container.until("the moment", || door.knocked.try_recv().ok());
    if !before.is_empty() {
        container.says(before);
    }
    let pid = container.property(HOST, "MainPID");
    let restarts = restarts(container);
    let journal = container.journal(HOST).len();
    start_writing(guest);
    assert!(!has_written(guest), "the guest is not frozen");
    container.says(&[
        "systemctl",
        "kill",
        "--signal=KILL",
        "--kill-whom=main",
        HOST,
    ]);
    let killed = Instant::now();
    container.until("a write of the guest", || has_written(guest).then_some(()));
    let after = killed.elapsed();
    let now = container.until("another process", || {
        let now = container.property(HOST, "MainPID");
        let running = container.property(HOST, "SubState") == "running";
        (running && now != pid).then_some(now)
    });
    assert_eq!(self::restarts(container), restarts + 1);
    let journal = container.journal(HOST).split_off(journal);
    let by = who_thawed(&journal, &now);
    eprintln!("thawed within {after:?} by {by:?}");
    by
}

fn restarts(container: &Container) -> u32 {
    container.property(HOST, "NRestarts").parse().unwrap()
}

/// By what they say of it; `service` is the process that systemd has started since.
fn who_thawed(journal: &[Value], service: &str) -> Vec<By> {
    let lines = journal.iter().filter_map(|line| {
        let said = line["MESSAGE"].as_str()?;
        let is = |words: [&str; 2]| words.iter().all(|word| said.contains(word));
        match line["_PID"] == service {
            _ if is(BY_GUARD) => Some(By::Guard),
            true if is(BY_NOTE) || is(BY_NEXT) => Some(By::Service),
            false if is(BY_NOTE) => Some(By::Unit),
            _ => None,
        }
    });
    lines.collect()
}

/// Something that ends when the file system is not frozen.
fn start_writing(guest: &mut Guest) {
    guest.run("rm -f /tmp/written; (echo x >/mnt/x; sync; touch /tmp/written) >/dev/null 2>&1 &");
}

fn has_written(guest: &mut Guest) -> bool {
    guest.run("sleep 0.2; ls /tmp").contains("written")
}

/// The service goes on where it was: a point of the guest's software at rest.
fn is_protected_again(container: &Container, site: &Site) {
    let last = |container| machine(container, "vm01").map(|machine| machine["last_ok"].clone());
    let before = last(container);
    let now = container.until("a point", || {
        let now = last(container)?;
        (now["point"].is_string() && before.as_ref() != Some(&now)).then_some(now)
    });
    assert_eq!(now["frozen"]["consistency"], "application", "{now}");
    let point = format!("vm01@{}", now["point"].as_str().unwrap());
    let restore = [
        "tidegate",
        "restore",
        &point,
        "--disk",
        "data",
        "--overwrite",
        "--to",
        "/srv/restored",
    ];
    container.says(&[&restore[..], &FROM_THE_STORE].concat());
    let restored = site.path("restored");
    let told = program("dumpe2fs", &["-h", text(&restored)]);
    assert!(!told.contains("needs_recovery"), "{told}");
    program("e2fsck", &["-fn", text(&restored)]);
}

/// A monitor before QEMU's, at which one who comes with [`INSTANT`] is not let in while it is shut.
struct Door {
    path: PathBuf,
    is_shut: Arc<AtomicBool>,
    /// Somebody waits.
    knocked: Receiver<()>,
}

impl Door {
    fn before(monitor: &Path, folder: &Path) -> Self {
        let path = folder.join("door");
        let listener = UnixListener::bind(&path).unwrap();
        program("chmod", &["g+rwx", text(&path)]);
        let is_shut = Arc::new(AtomicBool::new(false));
        let (knock, knocked) = sync_channel(1);
        let (monitor, shut) = (monitor.to_owned(), Arc::clone(&is_shut));
        std::thread::spawn(move || {
            // One at a time, as QEMU does.
            for client in listener.incoming() {
                // Either side may go at any time.
                let _ = pass_on(&client.unwrap(), &monitor, &shut, &knock);
            }
        });
        Self {
            path,
            is_shut,
            knocked,
        }
    }

    /// For the next one who comes.
    fn shut(&self) {
        self.is_shut.store(true, Ordering::SeqCst);
    }
}

/// Passes on all that a client and QEMU say, until the client is gone. Who finds the door shut is not heard
/// any more.
fn pass_on(
    client: &UnixStream,
    monitor: &Path,
    is_shut: &AtomicBool,
    knock: &SyncSender<()>,
) -> io::Result<()> {
    let qemu = UnixStream::connect(monitor)?;
    let (mut answers, mut to) = (qemu.try_clone()?, client.try_clone()?);
    let answering = std::thread::spawn(move || {
        let _ = io::copy(&mut answers, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
    while let Some((said, files)) = hear(client) {
        let is_instant = String::from_utf8_lossy(&said).contains(INSTANT);
        if is_instant && is_shut.swap(false, Ordering::SeqCst) {
            knock.send(()).unwrap();
            while hear(client).is_some() {}
            break;
        }
        say(&qemu, &said, &files)?;
    }
    qemu.shutdown(Shutdown::Both)?;
    answering.join().unwrap();
    Ok(())
}

/// What somebody says, and the files that are handed over with it. None at the end.
fn hear(from: &UnixStream) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let mut said = vec![0; 64 << 10];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut handed = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut said)];
    let count = recvmsg(from, &mut parts, &mut handed, RecvFlags::CMSG_CLOEXEC)
        .map_or(0, |heard| heard.bytes);
    let mut files = Vec::new();
    for message in handed.drain() {
        if let RecvAncillaryMessage::ScmRights(handed) = message {
            files.extend(handed);
        }
    }
    said.truncate(count);
    (count > 0).then_some((said, files))
}

fn say(mut to: &UnixStream, said: &[u8], files: &[OwnedFd]) -> io::Result<()> {
    let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut handed = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        assert!(handed.push(SendAncillaryMessage::ScmRights(&files)));
    }
    let sent = sendmsg(to, &[IoSlice::new(said)], &mut handed, SendFlags::NOSIGNAL)?;
    to.write_all(&said[sent..])
}
