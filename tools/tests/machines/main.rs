//! Running machines of a real QEMU and a real libvirt, with guests that never stop writing: every point holds
//! one moment, and what an operator does meanwhile, or what dies, makes no wrong one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod consistent;
mod daemon;
mod database;
mod debian;
mod off;
#[path = "../site/mod.rs"]
mod site;
mod tpm;

use daemon::Host;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use site::{Site, program, text};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tidegate_agent::testing::Console;

const NUMBERS: u64 = 1_000_003;

/// The guest appends numbered lines to a journal, each durable before it is acknowledged, and writes
/// elsewhere too.
const WRITER: &str = "mkdir -p /mnt; mount -t ext4 /dev/vda /mnt; \
    n=$(wc -l </mnt/journal 2>/dev/null || echo 0); echo $n >/acked; \
    (while :; do n=$((n+1)); echo \"$n $((n*7919%1000003))\" >>/mnt/journal; sync; echo $n >/acked.new; mv /acked.new /acked; \
    dd if=/dev/urandom of=/mnt/noise bs=4k count=3 seek=$((RANDOM%4000)) conv=notrunc; \
    dd if=/dev/urandom of=/dev/vdb bs=4k count=1 seek=$((RANDOM%4000)) conv=notrunc; \
    done) >/dev/null 2>&1 &";

struct Machine {
    console: Console,
}

impl Machine {
    fn start(host: &Host, domain: &str) -> Self {
        host.virsh(&["start", domain]);
        let mut console = Console::of_booting(&console(host, domain));
        console.run(WRITER);
        Self { console }
    }

    /// After a move, when another QEMU has its console.
    fn is_on(&mut self, host: &Host, domain: &str) {
        self.console = Console::connect(&console(host, domain));
    }

    /// Lines that the guest's file system has promised.
    fn acknowledged(&mut self) -> u64 {
        self.console.run("cat /acked").trim().parse().unwrap()
    }
}

/// Each host has its own at that place.
fn console(host: &Host, domain: &str) -> PathBuf {
    host.run_file(&format!("{domain}.console"))
}

fn define(site: &Site, host: &Host, domain: &str) {
    let lab = std::env::var("TIDEGATE_LAB").expect("TIDEGATE_LAB is set: run tools/test");
    let xml = format!(
        "<domain type='qemu'><name>{domain}</name>
         <metadata><t:tag xmlns:t='https://github.com/tidegate/tidegate/domain/1'>gold</t:tag></metadata>
         <memory unit='MiB'>192</memory><vcpu>1</vcpu>
         <os><type arch='x86_64' machine='pc'>hvm</type>
           <kernel>{lab}/guest/vmlinuz</kernel><initrd>{lab}/guest/initramfs</initrd>
           <cmdline>console=ttyS0 quiet panic=-1</cmdline></os>
         <features><acpi/></features>
         <devices>
           <emulator>/usr/bin/qemu-system-x86_64</emulator>
           <disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'>
               <metadata_cache><max_size unit='MiB'>4</max_size></metadata_cache></driver>
             <source file='{system}'/><target dev='vda' bus='virtio'/></disk>
           <disk type='file' device='disk'><driver name='qemu' type='raw'/>
             <source file='{data}'/><target dev='vdb' bus='virtio'/></disk>
           <controller type='usb' model='none'/>
           <serial type='unix'><source mode='bind' path='/run/libvirt/{domain}.console'/></serial>
           <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
           <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
           <memballoon model='none'/>
         </devices></domain>",
        system = text(&site.path("system.qcow2")),
        data = text(&site.path("data.raw")),
    );
    std::fs::write(site.path("domain.xml"), xml).unwrap();
    host.virsh(&["define", text(&site.path("domain.xml"))]);
}

fn disks(site: &Site) {
    let raw = site.image("system.raw", 96 << 20, &[]);
    program("mkfs.ext4", &["-q", "-F", text(&raw)]);
    let system = site.path("system.qcow2");
    program(
        "qemu-img",
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            text(&raw),
            text(&system),
        ],
    );
    std::fs::remove_file(raw).unwrap();
    site.image("data.raw", 24 << 20, &[(0, 1 << 20)]);
}

/// A point, and how many lines were promised before and after it was made.
struct Made {
    point: String,
    least: u64,
    most: u64,
}

fn back_up(site: &Site, host: &Host, machine: &mut Machine) -> (Made, Value) {
    let least = machine.acknowledged();
    let scratch = text(&site.path("")).to_owned();
    let backup = [
        "backup",
        "--vm",
        "web01",
        "--scratch",
        &scratch,
        "--scratch-reserve",
        "1MiB",
        "--json",
    ];
    let told: Value = host.tidegate(site, &backup).succeeds().json();
    let made = Made {
        point: told["point"].as_str().unwrap().to_owned(),
        least,
        // One may be on its way.
        most: machine.acknowledged() + 1,
    };
    (made, told)
}

fn tracking<'a>(told: &'a Value, disk: &str) -> &'a Value {
    let disks = told["tracking"].as_array().unwrap();
    disks.iter().find(|found| found["disk"] == disk).unwrap()
}

/// Restores a point's disk and looks at it: the file system is sound after a replay of its journal, as
/// after a power cut, and no line is missing or torn that was promised.
fn judge(site: &Site, made: &Made) {
    let spec = format!("web01@{}", made.point);
    let image = site.path("judged.raw");
    let restore = [
        "restore",
        &spec,
        "--disk",
        "vda",
        "--to",
        text(&image),
        "--overwrite",
    ];
    site.tidegate(&restore).succeeds();
    // Replays the journal; 1 says that it did more than that, which is as good.
    let replayed = std::process::Command::new("e2fsck")
        .args(["-p", text(&image)])
        .output()
        .unwrap();
    assert!(
        replayed.status.code().is_some_and(|code| code <= 1),
        "{replayed:?}"
    );
    program("e2fsck", &["-fn", text(&image)]);
    let journal = std::process::Command::new("debugfs")
        .args(["-R", "cat /journal", text(&image)])
        .output()
        .unwrap();
    let journal = String::from_utf8(journal.stdout).unwrap();
    let lines = lines_of(&journal);
    assert!(
        (made.least..=made.most).contains(&lines),
        "{}: {lines} lines, {} were promised before the backup and {} after it",
        made.point,
        made.least,
        made.most
    );
}

fn lines_of(journal: &str) -> u64 {
    let mut count = 0;
    for line in journal.lines() {
        count += 1;
        assert_eq!(
            line,
            format!("{count} {}", count * 7919 % NUMBERS),
            "line {count}"
        );
    }
    count
}

/// The guest's agent freezes its file systems for the moment: no journal needs to be replayed.
fn a_guest_that_is_still(site: &Site, host: &Host) {
    let scratch = text(&site.path("")).to_owned();
    let image = site.path("still.raw");
    for (quiesce, consistency) in [("off", "crash"), ("require", "application")] {
        let backup = [
            "backup",
            "--vm",
            "web01",
            "--scratch",
            &scratch,
            "--scratch-reserve",
            "1MiB",
            "--quiesce",
            quiesce,
            "--json",
        ];
        let told: Value = host.tidegate(site, &backup).succeeds().json();
        assert_eq!(told["consistency"], consistency, "{told}");
        let spec = format!("web01@{}", told["point"].as_str().unwrap());
        let restore = [
            "restore",
            &spec,
            "--disk",
            "vda",
            "--to",
            text(&image),
            "--overwrite",
        ];
        site.tidegate(&restore).succeeds();
        let told = std::process::Command::new("dumpe2fs")
            .args(["-h", text(&image)])
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        let needs_replay = told.contains("needs_recovery");
        assert_eq!(needs_replay, quiesce == "off", "{told}");
    }
}

/// A disk comes, one grows, the machine is switched off and on again.
fn what_befalls_a_domain(site: &Site, host: &Host, machine: &mut Machine, points: &mut Vec<Made>) {
    let more = site.path("more.qcow2");
    program(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", text(&more), "16M"],
    );
    host.virsh(&[
        "attach-disk",
        "web01",
        text(&more),
        "vdc",
        "--subdriver",
        "qcow2",
        "--live",
        "--config",
    ]);
    let (made, told) = back_up(site, host, machine);
    assert_eq!(tracking(&told, "vda")["tracked"], true, "{told}");
    let new = &tracking(&told, "vdc")["reason"];
    assert!(new.as_str().unwrap().contains("was not there"), "{told}");
    points.push(made);
    let (made, told) = back_up(site, host, machine);
    assert_eq!(tracking(&told, "vdc")["tracked"], true, "{told}");
    points.push(made);

    host.virsh(&["blockresize", "web01", "vda", "128M"]);
    let (made, told) = back_up(site, host, machine);
    assert_eq!(tracking(&told, "vda")["tracked"], true, "{told}");
    points.push(made);

    // The plug is pulled, and QEMU ends in order.
    let least = machine.acknowledged();
    host.virsh(&["destroy", "web01"]);
    let off = ["backup", "--vm", "web01", "--json"];
    let told: Value = host.tidegate(site, &off).succeeds().json();
    assert_eq!(told["consistency"], "offline", "{told}");
    points.push(Made {
        point: told["point"].as_str().unwrap().to_owned(),
        least,
        most: u64::MAX,
    });
    // Nobody has written since.
    let told: Value = host.tidegate(site, &off).succeeds().json();
    assert_eq!(tracking(&told, "vda")["tracked"], true, "{told}");
    assert_eq!(tracking(&told, "vdb")["tracked"], true, "{told}");
    assert_eq!(told["new_bytes"], 0, "{told}");
    points.push(Made {
        point: told["point"].as_str().unwrap().to_owned(),
        least,
        most: u64::MAX,
    });
    *machine = Machine::start(host, "web01");
    let (made, told) = back_up(site, host, machine);
    assert_eq!(tracking(&told, "vda")["tracked"], true, "{told}");
    points.push(made);

    // Its image is made anew with smaller clusters; the bitmap stays behind in the old one.
    host.virsh(&["destroy", "web01"]);
    let (image, smaller) = (site.path("system.qcow2"), site.path("smaller.qcow2"));
    let convert = ["convert", "-O", "qcow2", "-o", "cluster_size=4k"];
    let images = [text(&image), text(&smaller)];
    program("qemu-img", &[&convert[..], &images].concat());
    std::fs::rename(&smaller, &image).unwrap();
    *machine = Machine::start(host, "web01");
    let (made, told) = back_up(site, host, machine);
    assert_eq!(tracking(&told, "vda")["tracked"], false, "{told}");
    let (new, read) = (&told["new_bytes"], &told["read_bytes"]);
    assert!(new.as_u64().unwrap() < read.as_u64().unwrap() / 4, "{told}");
    points.push(made);
    let (made, told) = back_up(site, host, machine);
    assert_eq!(tracking(&told, "vda")["tracked"], true, "{told}");
    points.push(made);
}

/// QEMU is killed while its disks are read; the next point is right.
fn killed_in_the_middle(site: &Site, host: &Host, machine: &mut Machine) -> Made {
    let scratch = text(&site.path("")).to_owned();
    let mut running = host.command(site, &["backup", "--vm", "web01", "--scratch", &scratch]);
    running.args(["--scratch-reserve", "1MiB"]);
    let running = running.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut running = running.spawn().unwrap();
    // It stands still as soon as it has a connection to QEMU's server.
    let process = Pid::from_raw(running.id().try_into().unwrap());
    while !is_connected(&scratch) {
        assert!(running.try_wait().unwrap().is_none(), "it has ended");
    }
    kill(process, Signal::SIGSTOP).unwrap();
    host.kill_qemu("web01");
    kill(process, Signal::SIGCONT).unwrap();
    let done = running.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(6), "{said}");
    assert!(said.contains("NBD"), "{said}");

    *machine = Machine::start(host, "web01");
    let (made, told) = back_up(site, host, machine);
    assert_eq!(tracking(&told, "vda")["tracked"], false, "{told}");
    made
}

/// True where somebody is connected to a socket in that folder (proc(5), `net/unix`).
fn is_connected(folder: &str) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    sockets.lines().any(|socket| {
        let mut fields = socket.split_whitespace().skip(5);
        fields.next() == Some("03") && fields.nth(1).is_some_and(|path| path.starts_with(folder))
    })
}

/// Which machines there are, what takes them, and what is said of each.
fn what_there_is(site: &Site, host: &Host) {
    let spare = host.virsh(&["dumpxml", "web01", "--inactive"]);
    let spare = spare.replace("<name>web01</name>", "<name>spare</name>");
    let uuid = host.virsh(&["domuuid", "web01"]);
    let spare = spare.replace(&format!("<uuid>{}</uuid>", uuid.trim()), "");
    let spare = spare.replace(">gold<", ">lead<");
    std::fs::write(site.path("spare.xml"), spare).unwrap();
    host.virsh(&["define", text(&site.path("spare.xml"))]);
    // As an operator would.
    let tag = [
        "metadata",
        "web01",
        "https://github.com/tidegate/tidegate/domain/1",
        "--key",
        "tidegate",
        "--set",
        "<tag>platinum</tag>",
        "--live",
        "--config",
    ];
    host.virsh(&tag);
    for (wanted, is_protected) in [("plat*", true), ("silver", false)] {
        let configuration = format!(
            "[repository.main]\nlocation = 'repo'\nkey = 'keys/host.key'\n\
             [policy.p]\nevery = '15s'\n[[machines]]\ntag = '{wanted}'\nname = 'vm-{{name}}'\n\
             [group.g]\nmachines = ['*']\npolicy = 'p'\nrepository = 'main'\n"
        );
        std::fs::write(site.path("host.toml"), configuration).unwrap();
        let file = site.path("host.toml");
        let list = ["machines", "--host-config", text(&file)];
        let told = host.tidegate(site, &[&list[..], &["--json"]].concat());
        let told = told.succeeds().json();
        let all = told["machines"].as_array().unwrap();
        let named = |name: &str| all.iter().find(|it| it["machine"] == name);
        let spare = named("spare").unwrap();
        assert_eq!(spare["protection"], Value::Null, "{told}");
        assert_eq!(spare["is_running"], false, "{told}");
        let web = named(if is_protected { "vm-web01" } else { "web01" }).unwrap();
        assert_eq!(web["protection"].is_null(), !is_protected, "{told}");
        assert_eq!(web["is_running"], true, "{told}");
        assert_eq!(all.len(), 2, "{told}");
        let disks = web["disks"].as_array().unwrap().iter();
        let trackable = disks.map(|disk| disk["is_trackable"] == true);
        assert_eq!(trackable.collect::<Vec<_>>(), [true, false, true], "{told}");
        let shown = host.tidegate(site, &list).succeeds().stdout;
        assert!(shown.contains("NOT PROTECTED"), "{shown}");
        assert!(shown.contains("vdb raw, read whole"), "{shown}");
    }
    host.virsh(&["undefine", "spare"]);
}

#[test]
fn points_of_a_domain_that_never_stops_writing() {
    let site = Site::with_repository();
    disks(&site);
    let mut host = Host::start(&site, "host-a");
    define(&site, &host, "web01");
    let mut machine = Machine::start(&host, "web01");
    tpm::seal(&mut machine.console);
    let mut points = Vec::new();

    let (first, told) = back_up(&site, &host, &mut machine);
    assert_eq!(told["mode"], "full");
    points.push(first);
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(300));
        let (made, told) = back_up(&site, &host, &mut machine);
        assert_eq!(tracking(&told, "vda")["tracked"], true, "{told}");
        let raw = tracking(&told, "vdb");
        assert_eq!(raw["tracked"], false);
        assert!(
            raw["reason"]
                .as_str()
                .unwrap()
                .contains("qcow2 images only")
        );
        assert!(told["held_seconds"].as_f64().unwrap() < 30.0);
        points.push(made);
    }

    // A backup that is killed, wherever it is, costs nothing but itself.
    for after in [20, 60, 110, 160, 230] {
        let scratch = text(&site.path("")).to_owned();
        let backup = [
            "backup",
            "--vm",
            "web01",
            "--scratch",
            &scratch,
            "--scratch-reserve",
            "1MiB",
        ];
        host.tidegate_killed(&site, &backup, Duration::from_millis(after));
        let (made, told) = back_up(&site, &host, &mut machine);
        assert_eq!(
            tracking(&told, "vda")["tracked"],
            true,
            "{after} ms: {told}"
        );
        points.push(made);
    }
    let kept = host.virsh(&["checkpoint-list", "web01", "--name"]);
    assert_eq!(
        kept.lines().filter(|name| !name.trim().is_empty()).count(),
        1,
        "{kept}"
    );

    // libvirt's daemon dies, and comes again.
    host.kill_daemon();
    host.start_daemon();
    let (made, told) = back_up(&site, &host, &mut machine);
    assert_eq!(tracking(&told, "vda")["tracked"], true, "{told}");
    points.push(made);

    // Somebody else's backup is left alone.
    let foreign = site.path("foreign.xml");
    let socket = site.path("foreign.sock");
    let xml = format!(
        "<domainbackup mode='pull'><server transport='unix' socket='{}'/></domainbackup>",
        text(&socket)
    );
    std::fs::write(&foreign, xml).unwrap();
    host.virsh(&["backup-begin", "web01", text(&foreign)]);
    let scratch = text(&site.path("")).to_owned();
    let backup = [
        "backup",
        "--vm",
        "web01",
        "--scratch",
        &scratch,
        "--scratch-reserve",
        "1MiB",
    ];
    host.tidegate(&site, &backup)
        .ends_with(9)
        .says(&["somebody else"]);
    host.virsh(&["domjobabort", "web01"]);
    let (made, told) = back_up(&site, &host, &mut machine);
    assert_eq!(tracking(&told, "vda")["tracked"], true, "{told}");
    points.push(made);

    a_guest_that_is_still(&site, &host);
    what_befalls_a_domain(&site, &host, &mut machine, &mut points);
    what_there_is(&site, &host);

    // The bitmap is taken away by hand.
    let name = host.virsh(&["checkpoint-list", "web01", "--name"]);
    host.virsh(&["checkpoint-delete", "web01", name.trim()]);
    let (made, told) = back_up(&site, &host, &mut machine);
    let why = tracking(&told, "vda");
    assert_eq!(why["tracked"], false, "{told}");
    assert!(
        why["reason"]
            .as_str()
            .unwrap()
            .contains("has recorded no changes")
    );
    points.push(made);

    // QEMU is killed: its bitmap cannot be trusted any more, and the guest's disk is as after a power
    // cut.
    host.kill_qemu("web01");
    machine = Machine::start(&host, "web01");
    let (made, told) = back_up(&site, &host, &mut machine);
    let why = tracking(&told, "vda");
    assert_eq!(why["tracked"], false, "{told}");
    assert!(
        why["reason"].as_str().unwrap().contains("checkpoint"),
        "{why}"
    );
    assert!(told["new_bytes"].as_u64().unwrap() < told["read_bytes"].as_u64().unwrap());
    points.push(made);
    let (made, told) = back_up(&site, &host, &mut machine);
    assert_eq!(tracking(&told, "vda")["tracked"], true, "{told}");
    points.push(made);

    points.push(killed_in_the_middle(&site, &host, &mut machine));

    for made in &points {
        judge(&site, made);
    }
    site.tidegate(&["verify", "--all"]).succeeds();

    // The whole machine on another host, under another name.
    let other = Host::start(&site, "host-b");
    let last = points.last().unwrap();
    let spec = format!("web01@{}", last.point);
    let folder = site.path("copy");
    let restore = [
        "restore",
        &spec,
        "--to",
        text(&folder),
        "--define",
        "--as",
        "web01-copy",
    ];
    other.tidegate(&site, &restore).succeeds();
    other
        .tidegate(&site, &restore)
        .ends_with(9)
        .says(&["has a domain"]);
    let xml = other.virsh(&["dumpxml", "web01-copy"]);
    let uuid = host.virsh(&["domuuid", "web01"]);
    assert!(!xml.contains(uuid.trim()), "a copy has a UUID of its own");
    assert!(
        xml.contains(">platinum<"),
        "what operators wrote travels too"
    );
    other.virsh(&["start", "web01-copy"]);
    let mut console = Console::of_booting(&console(&other, "web01"));
    assert_eq!(tpm::unseal(&mut console), tpm::SECRET);
    console.run("mkdir -p /mnt; mount -t ext4 /dev/vda /mnt");
    let lines = lines_of(&console.run("cat /mnt/journal"));
    assert!((last.least..=last.most).contains(&lines), "{lines}");
    assert!(Path::new(&folder).join("vdb.raw").exists());
}

/// libvirt's checkpoints stay behind: the next point is right without them, and those after it continue.
#[test]
fn a_domain_that_moves_to_another_host() {
    let site = Site::with_repository();
    disks(&site);
    let hosts = [Host::start(&site, "host-a"), Host::start(&site, "host-b")];
    define(&site, &hosts[0], "web01");
    let mut machine = Machine::start(&hosts[0], "web01");
    let mut points = Vec::new();
    for (from, to) in [(0, 1), (1, 0)] {
        let (_, told) = back_up(&site, &hosts[from], &mut machine);
        assert_eq!(tracking(&told, "vda")["tracked"], from == 1, "{told}");
        let (made, told) = back_up(&site, &hosts[from], &mut machine);
        assert_eq!(tracking(&told, "vda")["tracked"], true, "{told}");
        points.push(made);
        hosts[from].migrate("web01", &hosts[to]);
        machine.is_on(&hosts[to], "web01");
        let (made, told) = back_up(&site, &hosts[to], &mut machine);
        let why = tracking(&told, "vda");
        assert_eq!(why["tracked"], false, "{told}");
        let reason = why["reason"].as_str().unwrap();
        assert!(reason.contains("has recorded no changes"), "{told}");
        assert!(told["new_bytes"].as_u64().unwrap() < told["read_bytes"].as_u64().unwrap());
        points.push(made);
    }
    for made in &points {
        judge(&site, made);
    }
    site.tidegate(&["verify", "--all"]).succeeds();
}
