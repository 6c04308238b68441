//! Kills, stops, full disks and strangers.

use crate::service::{NEVER, Service, configure};
use crate::site::{MIB, Run, Site, SmallDisk, assert_same, program, text, until};
use crate::{ONE, outcome};
use nix::sys::signal::Signal;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

/// A run that takes some thirty seconds.
fn slow() -> String {
    format!("{NEVER}\nlimit = '1 MiB/s'")
}

/// Starts a run and waits until some packs have landed.
fn in_the_middle(service: &Service<'_>) {
    service.run(&["run", "web01"]).succeeds();
    service.machine_until("web01", |machine| {
        machine["running"]["progress"]["stored_bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes > 3 * MIB)
    });
}

/// Starts the service again, without a limit: what was interrupted is taken up at once.
fn goes_on(site: &Site) {
    configure(site, NEVER, ONE);
    let service = Service::start(site);
    let machine = service.machine_until("web01", |machine| outcome(machine) == "ok");
    // What had landed was not sent again.
    let new_bytes = machine["last"]["new_bytes"].as_u64().unwrap();
    assert!(new_bytes < 30 * MIB, "{new_bytes}");
    service.stop();
    site.tidegate(&["verify", "--all"]).succeeds();
    site.tidegate(&["restore", "web01@latest", "--to", "back.raw"])
        .succeeds();
    assert_same(&site.path("web01.raw"), &site.path("back.raw"));
}

#[test]
fn a_killed_service_goes_on_where_it_was() {
    let site = Site::with_repository();
    site.image("web01.raw", 64 * MIB, &[(0, 32 * MIB)]);
    configure(&site, &slow(), ONE);
    let service = Service::start(&site);
    in_the_middle(&service);
    service.kill();
    goes_on(&site);
    let log = std::fs::read_to_string(site.path("log")).unwrap();
    assert!(log.contains("were interrupted"), "{log}");
}

#[test]
fn a_stopped_service_ends_its_runs_and_goes_on_later() {
    let site = Site::with_repository();
    site.image("web01.raw", 64 * MIB, &[(0, 32 * MIB)]);
    configure(&site, &slow(), ONE);
    let service = Service::start(&site);
    in_the_middle(&service);
    service.signal(Signal::SIGTERM);
    assert_eq!(service.ends(), 0);
    let log = std::fs::read_to_string(site.path("log")).unwrap();
    assert!(log.contains("stopping the runs under way"), "{log}");
    assert!(log.contains("interrupted"), "{log}");
    // It stood in the history before the service ended: the next start finds nothing to mend.
    goes_on(&site);
    let log = std::fs::read_to_string(site.path("log")).unwrap();
    assert!(!log.contains("were interrupted"), "{log}");
}

#[test]
fn a_full_disk_of_the_history_stops_no_backup() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: a small disk of its own takes root");
        return;
    }
    let site = Site::with_repository();
    site.image("web01.raw", 16 * MIB, &[(0, MIB)]);
    let disk = SmallDisk::mount(&site.path("state"), 1);
    configure(&site, NEVER, ONE);
    let fill = || {
        let full = std::fs::write(site.path("state/fill"), vec![1; 2 << 20]);
        assert_eq!(full.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    };
    let service = Service::start(&site);
    service.run(&["run", "web01", "--wait"]).succeeds();
    fill();
    // Pages of the file that is there may still take a row or two.
    until("trouble", || {
        service.run(&["run", "web01", "--wait"]).succeeds();
        let trouble = service.status()["history_trouble"].clone();
        trouble.is_string().then_some(())
    });
    service
        .run(&["status"])
        .succeeds()
        .says(&["the history of runs cannot be written"]);
    let last = service.machine("web01").unwrap()["last"]["run"].clone();
    // With room again it is made up for.
    std::fs::remove_file(site.path("state/fill")).unwrap();
    until("no trouble", || {
        service.status()["history_trouble"].is_null().then_some(())
    });
    service.stop();
    let service = Service::start(&site);
    assert_eq!(service.machine("web01").unwrap()["last"]["run"], last);
    service.stop();

    // Also where there is no room from the beginning.
    for name in ["host.sqlite", "host.sqlite-wal", "host.sqlite-shm"] {
        let _ = std::fs::remove_file(site.path("state").join(name));
    }
    fill();
    let service = Service::start(&site);
    assert!(service.status()["history_trouble"].is_string());
    service.run(&["run", "web01", "--wait"]).succeeds();
    assert_eq!(outcome(&service.machine("web01").unwrap()), "ok");
    service.stop();
    drop(disk);
}

#[test]
fn strangers_give_no_orders() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: to be somebody else takes root");
        return;
    }
    let site = Site::with_repository();
    site.image("web01.raw", 16 * MIB, &[(0, MIB)]);
    // A group that every Debian has.
    configure(
        &site,
        NEVER,
        &format!("#service socket_group = 'nogroup'\n{ONE}"),
    );
    let service = Service::start(&site);
    let number = program("getent", &["group", "nogroup"]);
    let group = number.split(':').nth(2).unwrap();
    let open = |name: &str, mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(site.path(name), permissions).unwrap();
    };
    // Others may pass the folder, and have a program that they may read.
    open("", 0o711);
    std::fs::copy(env!("CARGO_BIN_EXE_tidegate"), site.path("tidegate")).unwrap();
    open("tidegate", 0o755);
    let ask = |groups: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "54321"]).args(groups).arg("--");
        command.args([site.path("tidegate"), "status".into(), "--socket".into()]);
        Run::from(command.arg(site.path("host.sock")).output().unwrap())
    };
    let mode = site.path("host.sock").metadata().unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o660);
    let stranger = ["--regid", "54321", "--clear-groups"];
    ask(&stranger).ends_with(5).says(&["host.sock"]);
    // Also where the socket is open to all, by whatever mistake.
    open("host.sock", 0o666);
    ask(&stranger)
        .ends_with(5)
        .says(&["user 54321 may not control", "nogroup"]);
    ask(&["--regid", group, "--clear-groups"]).succeeds();
    ask(&["--regid", "54321", "--groups", group]).succeeds();
    assert!(service.log().contains("a control connection was refused"));
    assert!(text(&site.path("host.sock")).len() < 108);
}
