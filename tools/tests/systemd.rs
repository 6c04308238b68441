//! Both services as an operator gets them: the Debian package, installed in a real systemd.
//!
//! One long story, because it is one machine's: install, configure, start, back up, reload, hang, stop,
//! upgrade, remove. What a service does by itself is tested elsewhere; here it is what the units make of it:
//! users, sandbox, credentials, watchdog, order of stopping.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "systemd/container.rs"]
mod container;
#[path = "systemd/frozen.rs"]
mod frozen;
#[path = "systemd/libvirt.rs"]
mod libvirt;
mod site;

use assert_cmd::Command;
use container::Container;
use serde_json::Value;
use site::{MIB, Run, Site, program, text};
use std::path::Path;

const HOST: &str = "tidegated-host.service";
const GATEWAY: &str = "tidegated-gateway.service";

/// What the host's process may: read any file.
const CAP_DAC_READ_SEARCH: &str = "0000000000000004";

const GATEWAY_TOML: &str = r#"
fleet = "/srv/store/fleet"
authority_key = "credential:authority.key"
metrics = "127.0.0.1:9465"
[repository.main]
location = "/srv/store/main"
key = "credential:maintenance.key"
"#;

/// A raw image, a qcow2 one, and one whose upload takes its time.
const HOST_TOML: &str = r#"
[service]
listen = "127.0.0.1:9464"
[repository.main]
location = "quic://127.0.0.1:4433/main"
key = "credential:host.key"
pack_mib = 1
workers = 1
[policy.often]
every = "2s"
rpo = "1h"
[policy.slow]
schedule = "0 0 1 1 *"
limit = "2 MiB/s"
[machine.web01]
images = ["/srv/vm/web01.raw"]
[machine.db01]
images = ["/srv/vm/db01.qcow2"]
[machine.big01]
images = ["/srv/vm/big01.raw"]
[group.all]
machines = ["*01"]
policy = "often"
repository = "main"
[group.big]
machines = ["big01"]
policy = "slow"
repository = "main"
"#;

/// The repository is in a local folder here.
const STORE: &str = "[Service]\nReadWritePaths=/srv/store\n";

/// What takes minutes in earnest; only where it is asked for, as other tests keep the machine busy.
const WATCHDOG: &str = "[Service]\nWatchdogSec=3s\nRestartSec=100ms\n";

const FROM_THE_STORE: [&str; 4] = [
    "--repo",
    "/srv/store/main",
    "--key",
    "/srv/keys/restore.key",
];

#[test]
fn installed_in_a_real_systemd() {
    let site = Site::new();
    for folder in ["vm", "store", "out"] {
        std::fs::create_dir(site.path(folder)).unwrap();
    }
    let package = package(&site);
    let container = Container::boot("debian", &site.path(""), &[]);
    install(&container, &package);
    configure(&container, &site);
    start(&container);
    machines_are_backed_up(&container);
    a_bad_configuration_is_not_taken(&container);
    services_that_hang_are_started_anew(&container);
    stopping_amid_an_upload_loses_nothing(&container);
    what_is_stored_is_whole(&container, &site);
    upgrade_and_remove(&container, &package);
    container.power_off();
}

/// Makes the package of the programs under test; its path in the container.
fn package(site: &Site) -> String {
    let programs = Path::new(env!("CARGO_BIN_EXE_tidegate")).parent().unwrap();
    assert!(
        programs.join("tidegated").exists(),
        "tidegated is not there: run the tests of the whole workspace, or cargo build -p tidegate-agent"
    );
    // In a folder of its own: another test may be making one.
    let lab = container::lab().join("cargo-deb/bin");
    let path = format!("{}:{}", lab.display(), std::env::var("PATH").unwrap());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("package");
    let mut package = Command::new(script);
    package
        .env("CARGO_TARGET_DIR", site.path("target"))
        .env("PATH", path);
    let made = Run::of(
        &mut package,
        &["--programs", text(programs), "--fast", "--strip"],
    )
    .succeeds();
    std::fs::rename(
        made.stdout.lines().last().unwrap(),
        site.path("tidegate.deb"),
    )
    .unwrap();
    std::fs::remove_dir_all(site.path("target")).unwrap();
    format!("{}/tidegate.deb", container::SHARED)
}

/// The package starts nothing: which role a machine has is its operator's to say.
fn install(container: &Container, package: &str) {
    container.says(&["dpkg", "--install", package]);
    for unit in [HOST, GATEWAY] {
        let enabled = container.run(&["systemctl", "is-enabled", unit]);
        assert_eq!(enabled.stdout.trim(), "disabled", "{unit}");
        assert_eq!(container.property(unit, "ActiveState"), "inactive");
        // Without a configuration there is nothing to do, and nothing wrong.
        container.says(&["systemctl", "start", unit]);
        assert_eq!(container.property(unit, "ConditionResult"), "no");
        assert_eq!(container.property(unit, "ActiveState"), "inactive");
    }
    for page in [
        "tidegate.1",
        "tidegated.1",
        "tidegated-host.1",
        "tidegate-backup.1",
    ] {
        container.says(&["sh", "-c", &format!("test -s /usr/share/man/man1/{page}*")]);
    }
    container.says(&[
        "bash",
        "-n",
        "/usr/share/bash-completion/completions/tidegate",
    ]);
    for example in ["host.toml", "gateway.toml"] {
        container.says(&[
            "test",
            "-s",
            &format!("/usr/share/doc/tidegate/examples/{example}"),
        ]);
    }
}

/// What an operator does, in the order of the README.
fn configure(container: &Container, site: &Site) {
    site.image("vm/web01.raw", 64 * MIB, &[(0, 4 * MIB), (40 * MIB, MIB)]);
    site.image("vm/big01.raw", 64 * MIB, &[(8 * MIB, 40 * MIB)]);
    let raw = site.path("vm/web01.raw");
    let qcow2 = site.path("vm/db01.qcow2");
    program(
        "qemu-img",
        &["convert", "-O", "qcow2", text(&raw), text(&qcow2)],
    );
    // Images belong to somebody else, and nobody else may read them.
    for command in [
        &["chown", "-R", "nobody", "/srv/vm"][..],
        &["chmod", "-R", "go=,u=rX", "/srv/vm"],
        &[
            "tidegate",
            "init",
            "--repo",
            "/srv/store/main",
            "--keys",
            "/srv/keys",
        ],
        &[
            "tidegate",
            "gateway",
            "init",
            "--fleet",
            "/srv/store/fleet",
            "--keys",
            "/etc/tidegate",
        ],
        &[
            "install",
            "--mode=600",
            "/srv/keys/maintenance.key",
            "/srv/keys/host.key",
            "/etc/tidegate",
        ],
        &["chown", "-R", "tidegate-gateway:", "/srv/store"],
        // Who gets here through the service must need the capability that the unit gives.
        &["chmod", "711", "/srv"],
    ] {
        container.says(command);
    }
    container.write(&drop_in(GATEWAY, "store"), STORE);
    container.write("/etc/tidegate/gateway.toml", GATEWAY_TOML);
    container.write("/etc/tidegate/host.toml", HOST_TOML);
    container.says(&["systemctl", "daemon-reload"]);
}

/// `start` returns when a service is ready: the gateway answers the host that joins at once.
fn start(container: &Container) {
    container.says(&["systemctl", "enable", "--now", GATEWAY]);
    container.says(&[
        "tidegate",
        "gateway",
        "invite",
        "--fleet",
        "/srv/store/fleet",
        "--host",
        "hv1",
        "--repo",
        "main",
        "--gateway",
        "127.0.0.1:4433",
        "--out",
        "/root/token",
    ]);
    container.says(&["tidegate", "host", "join", "--token-file", "/root/token"]);
    container.says(&["systemctl", "enable", "--now", HOST]);
    for (unit, user, capabilities) in [
        (HOST, "tidegate", CAP_DAC_READ_SEARCH),
        (GATEWAY, "tidegate-gateway", "0000000000000000"),
    ] {
        assert_eq!(container.property(unit, "SubState"), "running");
        assert_eq!(container.property(unit, "WatchdogUSec"), "1min");
        let pid = container.property(unit, "MainPID");
        let owner = container.says(&["stat", "--format=%U", &format!("/proc/{pid}")]);
        assert_eq!(owner, user);
        let status = container.says(&["cat", &format!("/proc/{pid}/status")]);
        for line in [
            &format!("CapEff:\t{capabilities}"),
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
        ] {
            assert!(status.contains(line), "{unit}: {line}: {status}");
        }
    }
    // What root has made by joining is the service's now, to be renewed.
    let identity = container.says(&[
        "stat",
        "--format=%U %a",
        "/var/lib/tidegate/identity/host.key",
    ]);
    assert_eq!(identity, "tidegate 600");
    let socket = container.says(&["stat", "--format=%G %a", "/run/tidegate/host.sock"]);
    assert_eq!(socket, "tidegate 660");
}

fn machines_are_backed_up(container: &Container) {
    for name in ["web01", "db01"] {
        let run = container.until(name, || {
            let machine = machine(container, name)?;
            (machine["rpo_kept"] == true).then(|| machine["last_ok"]["run"].clone())
        });
        // Each line of a run says so, and has its weight.
        let run = format!("run=\"{}\"", run.as_str().unwrap());
        let journal = container.journal(HOST);
        let line = journal.iter().find(|line| {
            let message = line["MESSAGE"].as_str().unwrap_or_default();
            message.contains(&run) && message.contains(&format!("machine=\"{name}\""))
        });
        let line = line.unwrap_or_else(|| panic!("no line has {run}: {journal:?}"));
        assert_eq!(line["PRIORITY"], "6");
        assert_eq!(line["SYSLOG_IDENTIFIER"], "tidegated-host");
    }
    // QEMU's tools read the one image, and are confined as they would be without this sandbox.
    let journal = container.journal(HOST);
    let said = |words: &str| {
        let mut messages = journal.iter().filter_map(|line| line["MESSAGE"].as_str());
        messages.any(|message| message.contains(words))
    };
    assert!(
        said("machine=\"db01\"}: reads /srv/vm/db01.qcow2 (qcow2)"),
        "{journal:?}"
    );
    assert!(!said("Landlock"), "{journal:?}");
    // Members of the group may ask, others may not.
    container.says(&["useradd", "--groups", "tidegate", "friend"]);
    container.says(&["useradd", "stranger"]);
    let ask = |user| {
        container.run(&[
            "runuser", "--user", user, "--", "tidegate", "status", "--json",
        ])
    };
    ask("friend").succeeds();
    assert_ne!(ask("stranger").code, 0);
}

fn a_bad_configuration_is_not_taken(container: &Container) {
    for (unit, path, good) in [
        (HOST, "/etc/tidegate/host.toml", HOST_TOML),
        (GATEWAY, "/etc/tidegate/gateway.toml", GATEWAY_TOML),
    ] {
        let pid = container.property(unit, "MainPID");
        container.write(path, &good.replace("[repository.main]", "[repostory.main]"));
        container.run(&["systemctl", "reload", unit]).ends_with(1);
        assert_eq!(container.property(unit, "SubState"), "running");
        container.write(path, good);
        container.says(&["systemctl", "reload", unit]);
        assert_eq!(container.property(unit, "MainPID"), pid);
    }
    // The old one is in force, and a good one comes into force.
    assert!(machine(container, "web01").is_some());
    let more = HOST_TOML.replace("[machine.web01]", "[machine.twin01]");
    container.write("/etc/tidegate/host.toml", &more);
    container.says(&["systemctl", "reload", HOST]);
    container.until("a machine of the new configuration", || {
        machine(container, "twin01")
    });
    container.write("/etc/tidegate/host.toml", HOST_TOML);
    container.says(&["systemctl", "reload", HOST]);
    container.until("a machine of the old configuration", || {
        machine(container, "web01")
    });
}

fn services_that_hang_are_started_anew(container: &Container) {
    watchdog(container, WATCHDOG);
    let before = [HOST, GATEWAY].map(|unit| (unit, container.property(unit, "MainPID")));
    for (_, pid) in &before {
        container.says(&["sh", "-c", &format!("kill -STOP {pid}")]);
    }
    for (unit, pid) in before {
        container.until("another process", || {
            let running = container.property(unit, "SubState") == "running";
            (running && container.property(unit, "MainPID") != pid).then_some(())
        });
        let journal = container.journal(unit);
        let told = journal.iter().any(|line| {
            let message = line["MESSAGE"].as_str().unwrap_or_default();
            message.contains("Watchdog timeout")
        });
        assert!(told, "{journal:?}");
    }
    let ok = |name: &str| {
        machine(container, name)?["last_ok"]["run"]
            .as_str()
            .map(str::to_owned)
    };
    let before = ok("web01");
    container.until("a run after that", || (ok("web01") != before).then_some(()));
    watchdog(container, "");
}

fn watchdog(container: &Container, settings: &str) {
    for unit in [HOST, GATEWAY] {
        container.write(&drop_in(unit, "watchdog"), settings);
    }
    container.says(&["systemctl", "daemon-reload"]);
    container.says(&["systemctl", "restart", GATEWAY, HOST]);
}

fn drop_in(unit: &str, name: &str) -> String {
    format!("/etc/systemd/system/{unit}.d/{name}.conf")
}

fn stopping_amid_an_upload_loses_nothing(container: &Container) {
    container.says(&["tidegate", "run", "big01"]);
    container.until("a part of the upload", || {
        let machine = machine(container, "big01")?;
        let stored = machine["running"]["progress"]["stored_bytes"].as_u64()?;
        (stored >= 6 * MIB).then_some(())
    });
    container.says(&["systemctl", "stop", HOST]);
    assert_eq!(container.property(HOST, "Result"), "success");
    let packs = || container.says(&["find", "/srv/store/main/packs", "-type", "f"]);
    let before = packs();
    assert!(before.lines().count() >= 6, "{before}");

    container.says(&["systemctl", "start", HOST]);
    // A gateway that goes in between costs a wait.
    container.until("the run to go on", || {
        let machine = machine(container, "big01")?;
        (machine["running"]["progress"]["stored_bytes"].as_u64()? >= 2 * MIB).then_some(())
    });
    container.says(&["systemctl", "restart", GATEWAY]);
    let run = container.until("the rest of the upload", || {
        let machine = machine(container, "big01")?;
        let last = &machine["last"];
        (last["outcome"] == "ok").then(|| last.clone())
    });
    // Nothing that was acknowledged was sent again, but for what was under way at either stop.
    let stored = run["stored_bytes"].as_u64().unwrap();
    assert!(stored <= 36 * MIB, "{run}");
    let after = packs();
    for pack in before.lines() {
        assert!(after.contains(pack), "{pack} is gone");
    }
}

fn what_is_stored_is_whole(container: &Container, site: &Site) {
    let tidegate = |args: &[&str]| container.says(&[&["tidegate"], args, &FROM_THE_STORE].concat());
    tidegate(&["verify", "--all"]);
    for (machine, image) in [("web01", "web01"), ("db01", "web01"), ("big01", "big01")] {
        let point = format!("{machine}@latest");
        tidegate(&[
            "restore",
            &point,
            "--to",
            &format!("/srv/out/{machine}.raw"),
        ]);
        site::assert_same(
            &site.path(&format!("out/{machine}.raw")),
            &site.path(&format!("vm/{image}.raw")),
        );
    }
}

fn upgrade_and_remove(container: &Container, package: &str) {
    let pids = || [HOST, GATEWAY].map(|unit| container.property(unit, "MainPID"));
    let before = pids();
    container.says(&["dpkg", "--install", package]);
    for (before, now) in before.iter().zip(&pids()) {
        assert!(now != "0" && now != before, "{before} {now}");
    }
    container.says(&["dpkg", "--purge", "tidegate"]);
    for unit in [HOST, GATEWAY] {
        assert_eq!(container.property(unit, "ActiveState"), "inactive");
    }
    // What nothing can make again stays.
    for file in [
        "/etc/tidegate/authority.key",
        "/var/lib/tidegate/identity/host.key",
    ] {
        container.says(&["test", "-s", file]);
    }
    assert!(container.run(&["test", "-e", "/var/cache/tidegate"]).code != 0);
}

/// A machine as `tidegate status` shows it; none while the service does not answer.
fn machine(container: &Container, name: &str) -> Option<Value> {
    let status = container.run(&["tidegate", "status", "--json"]);
    let status: Value = serde_json::from_str(&status.stdout).ok()?;
    let machines = status["machines"].as_array()?;
    machines
        .iter()
        .find(|machine| machine["machine"] == name)
        .cloned()
}
