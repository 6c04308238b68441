//! The host service as an operator sees it: the real `tidegated`, a real repository in a folder, and
//! the command line.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "host/clock.rs"]
mod clock;
#[path = "host/faults.rs"]
mod faults;
#[path = "host/group.rs"]
mod group;
#[path = "host/retention.rs"]
mod retention;
#[path = "host/running.rs"]
mod running;
#[path = "host/service.rs"]
mod service;
mod site;

use nix::sys::signal::Signal;
use service::{NEVER, Service, configure};
use site::{MIB, Run, Site, text, tidegated, until};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

const TWO: &str = "
    [machine.web01]
    images = ['web01.raw']
    [machine.db01]
    images = ['db01.raw']
";
const ONE: &str = "
    [machine.web01]
    images = ['web01.raw']
";

fn outcome(machine: &serde_json::Value) -> &str {
    machine["last"]["outcome"].as_str().unwrap_or("none")
}

/// Asks a monitoring address.
fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[test]
fn machines_are_backed_up_by_their_policy() {
    let site = Site::with_repository();
    let images = ["web01.raw", "db01.raw"];
    let web = site.image(images[0], 64 * MIB, &[(0, 2 * MIB)]);
    site.image(images[1], 64 * MIB, &[(MIB, 2 * MIB)]);
    configure(&site, "every = '2s'\nrpo = '1h'", TWO);
    let service = Service::start(&site);
    for name in ["web01", "db01"] {
        let machine = service.machine_until(name, |machine| {
            outcome(machine) == "ok" && machine["rpo_kept"] == true
        });
        assert_eq!(machine["rpo_promised_seconds"], 3600.0);
        assert!(machine["rpo_achieved_seconds"].as_f64().unwrap() < 3600.0);
        assert_eq!(machine["policy"], "p");
    }
    // Again and again.
    let points = || {
        let points = site.tidegate(&["points", "--machine", "web01", "--json"]);
        points.succeeds().json().as_array().map_or(0, Vec::len)
    };
    until("three points", || (points() >= 3).then_some(()));
    let shown = service.run(&["status"]).succeeds().stdout;
    let line = shown
        .lines()
        .find(|line| line.starts_with("web01"))
        .unwrap();
    assert!(
        line.contains("1 h 0 min") && line.contains("kept"),
        "{shown}"
    );
    let plan = service
        .run(&["status", "--plan", "--json"])
        .succeeds()
        .json();
    assert!(plan["upcoming"].is_array(), "{plan}");
    service.stop();
    site.tidegate(&["restore", "web01@latest", "--to", "back.raw"])
        .succeeds();
    site::assert_same(&web, &site.path("back.raw"));
    site.tidegate(&["verify", "--all"]).succeeds();
}

#[test]
fn a_run_that_is_asked_for_is_waited_for_and_told_to_monitoring() {
    let site = Site::with_repository();
    site.image("web01.raw", 16 * MIB, &[(0, 2 * MIB)]);
    let port = free_port();
    let hook = site.path("said");
    // The second machine has no image.
    let more = format!("#service listen = '127.0.0.1:{port}'\n{TWO}");
    let policy = format!(
        "{NEVER}
         post = {{ command = ['/bin/sh', '-c', 'echo $TIDEGATE_MACHINE $TIDEGATE_RESULT $TIDEGATE_POINT >> {}'] }}",
        hook.display()
    );
    configure(&site, &policy, &more);
    let service = Service::start(&site);
    assert_eq!(outcome(&service.machine("web01").unwrap()), "none");

    let run = service
        .run(&["run", "web01", "--wait", "--json"])
        .succeeds()
        .json();
    assert_eq!(run["outcome"], "ok");
    assert_eq!(run["new_bytes"], 2 * MIB);
    let point = run["point"].as_str().unwrap();
    let points = site.tidegate(&["points", "--json"]).succeeds().json();
    assert_eq!(points[0]["point"], point);

    service
        .run(&["run", "db01", "--wait"])
        .ends_with(3)
        .says(&["db01.raw"]);
    let failed = service.machine("db01").unwrap();
    assert_eq!(outcome(&failed), "failed");
    assert_eq!(failed["last"]["error"]["kind"], "missing");
    assert_eq!(failed["next_why"], "retry");
    service
        .run(&["run", "nobody"])
        .ends_with(3)
        .says(&["nobody", "tidegate status"]);

    let said = std::fs::read_to_string(&hook).unwrap();
    assert_eq!(said, format!("web01 ok {point}\ndb01 failed\n"));

    let metrics = get(port, "/metrics");
    for line in [
        "tidegate_host_runs_total{machine=\"web01\",result=\"ok\"} 1",
        "tidegate_host_runs_total{machine=\"db01\",result=\"failed\"} 1",
        "tidegate_host_machine_failures{machine=\"db01\"} 1",
        "# TYPE tidegate_host_run_seconds histogram",
        "tidegate_host_read_bytes_total{repository=\"main\"} 2097152",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    let health = get(port, "/health");
    assert!(
        health.starts_with("HTTP/1.1 200") && health.contains("\"ok\""),
        "{health}"
    );
    assert!(get(port, "/secrets").starts_with("HTTP/1.1 404"));
    service.stop();
}

#[test]
fn runs_of_a_machine_do_not_overlap_and_can_be_cancelled() {
    let site = Site::with_repository();
    site.image("web01.raw", 16 * MIB, &[(0, 2 * MIB)]);
    let policy = format!("{NEVER}\npre = {{ command = ['/bin/sleep', '1000'] }}");
    configure(&site, &policy, ONE);
    let service = Service::start(&site);
    let waiting = service
        .command()
        .args(["run", "web01", "--wait"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    service.machine_until("web01", |machine| machine["standing"] == "running");
    service
        .run(&["run", "web01"])
        .ends_with(9)
        .says(&["web01", "already"]);
    service.run(&["cancel", "web01"]).succeeds();
    Run::from(waiting.wait_with_output().unwrap()).ends_with(130);
    let machine = service.machine("web01").unwrap();
    assert_eq!(outcome(&machine), "cancelled");
    // Not at once again: the operator did not want it.
    assert_eq!(machine["next_why"], "policy");
    service.run(&["cancel", "web01"]).ends_with(3);
}

#[test]
fn hooks_that_hang_are_ended_and_decide_what_becomes_of_the_run() {
    let site = Site::with_repository();
    site.image("web01.raw", 16 * MIB, &[(0, MIB)]);
    site.image("db01.raw", 16 * MIB, &[(0, MIB)]);
    let hook = "command = ['/bin/sleep', '1000'], timeout = '1s'";
    let more = format!(
        "{TWO}
         [policy.careless]
         {NEVER}
         pre = {{ {hook}, on_failure = 'continue' }}
         [group.db]
         machines = ['db01']
         policy = 'careless'
         repository = 'main'"
    );
    configure(&site, &format!("{NEVER}\npre = {{ {hook} }}"), &more);
    let service = Service::start(&site);
    service
        .run(&["run", "web01", "--wait"])
        .ends_with(6)
        .says(&["/bin/sleep", "did not end within 1 s"]);
    let run = service.run(&["run", "db01", "--wait", "--json"]).succeeds();
    assert!(
        run.json()["warning"]
            .as_str()
            .unwrap()
            .contains("/bin/sleep")
    );
    let points = site.tidegate(&["points", "--json"]).succeeds().json();
    assert_eq!(points.as_array().unwrap().len(), 1, "{points}");
    assert_eq!(points[0]["machine"], "db01");
}

#[test]
fn a_configuration_is_read_again_and_a_bad_one_is_refused() {
    let site = Site::with_repository();
    site.image("web01.raw", 16 * MIB, &[(0, MIB)]);
    configure(&site, NEVER, ONE);
    let mut service = Service::start(&site);
    service.hears("WATCHDOG=1");

    // Machines by their images, with a policy that is due.
    std::fs::create_dir(site.path("pool")).unwrap();
    site.image("pool/new.raw", 16 * MIB, &[(0, MIB)]);
    let pattern = format!("{ONE}\n[[machines]]\npattern = 'pool/*.raw'");
    configure(&site, "every = '1h'", &pattern);
    service.signal(Signal::SIGHUP);
    let said = service.hears("RELOADING=1");
    assert!(said.contains("MONOTONIC_USEC="), "{said}");
    service.hears("READY=1");
    service.machine_until("new", |machine| outcome(machine) == "ok");

    let good = std::fs::read_to_string(site.path("host.toml")).unwrap();
    let bad = good.replace("every = '1h'", "evry = '1h'");
    std::fs::write(site.path("host.toml"), bad).unwrap();
    service.signal(Signal::SIGHUP);
    service.hears("RELOADING=1");
    service.hears("READY=1");
    let status = service.status();
    let trouble = status["reload_trouble"]["message"].as_str().unwrap();
    assert!(trouble.contains("evry"), "{trouble}");
    assert!(service.log().contains("the new configuration is refused"));
    // The old one works.
    service.run(&["run", "new", "--wait"]).succeeds();
    service.run(&["status"]).succeeds().says(&["evry"]);

    // An image that goes is not forgotten in silence.
    std::fs::write(site.path("host.toml"), good).unwrap();
    std::fs::remove_file(site.path("pool/new.raw")).unwrap();
    service.signal(Signal::SIGHUP);
    service.machine_until("new", |machine| machine["standing"] == "gone");
    assert!(service.status()["reload_trouble"].is_null());
    service.signal(Signal::SIGTERM);
    service.hears("STOPPING=1");
    assert_eq!(service.ends(), 0);
    assert!(!site.path("host.sock").exists());
}

/// A share that hangs: nothing but what lies on it waits for it.
#[test]
fn a_configuration_that_cannot_be_read_for_now_holds_nothing_up() {
    let site = Site::with_repository();
    site.image("web01.raw", 16 * MIB, &[(0, MIB)]);
    configure(&site, NEVER, ONE);
    let mut service = Service::start(&site);
    let file = site.path("host.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    // Who reads a pipe waits for somebody to write.
    let made = Command::new("mkfifo").arg(&file).status().unwrap();
    assert!(made.success());
    service.signal(Signal::SIGHUP);
    service.hears("RELOADING=1");
    for _ in 0..3 {
        service.hears("WATCHDOG=1");
    }
    service.run(&["run", "web01", "--wait"]).succeeds();
    std::fs::write(&file, text).unwrap();
    service.hears("READY=1");
    assert!(service.status()["reload_trouble"].is_null());

    service.signal(Signal::SIGHUP);
    service.hears("RELOADING=1");
    service.stop();
}

#[test]
fn a_bad_configuration_does_not_start_and_a_good_one_is_explained() {
    let site = Site::with_repository();
    configure(&site, NEVER, ONE);
    let check = |file: &str| {
        let mut command = Command::new(tidegated());
        let command = command.current_dir(site.path(""));
        Run::from(
            command
                .args(["config", "check", "--role", "host", file])
                .output()
                .unwrap(),
        )
    };
    let effective = check("host.toml").succeeds().says(&["deletes none"]).stdout;
    assert!(effective.contains("concurrency = 2"), "{effective}");
    std::fs::write(site.path("effective.toml"), &effective).unwrap();
    assert_eq!(check("effective.toml").succeeds().stdout, effective);

    configure(&site, "retention = '7d'", ONE);
    check("host.toml")
        .ends_with(2)
        .says(&["retention", "unknown field"]);
    let service = Service::begin(&site);
    let log = site.path("log");
    assert_eq!(service.ends(), 2);
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("retention"), "{log}");
    check("nowhere.toml").ends_with(3);

    configure(&site, NEVER, ONE);
    let everybodys = std::fs::Permissions::from_mode(0o666);
    std::fs::set_permissions(site.path("host.toml"), everybodys).unwrap();
    check("host.toml")
        .ends_with(2)
        .says(&["everybody may write", "chmod o-w"]);
}

#[test]
fn one_service_at_a_time() {
    let site = Site::with_repository();
    configure(&site, NEVER, ONE);
    let service = Service::start(&site);
    let second = Command::new(tidegated())
        .args(["host", "--config", text(&site.path("host.toml"))])
        .output()
        .unwrap();
    Run::from(second)
        .ends_with(9)
        .says(&["another host service"]);
    service.status();
}

#[test]
fn uploads_keep_to_their_rate() {
    let site = Site::with_repository();
    site.image("web01.raw", 16 * MIB, &[(0, 5 * MIB)]);
    // The first pack is let through at once, and each of the others pays for the one before.
    configure(&site, &format!("{NEVER}\nlimit = '1 MiB/s'"), ONE);
    let service = Service::start(&site);
    let run = service
        .run(&["run", "web01", "--wait", "--json"])
        .succeeds()
        .json();
    let nanoseconds = |key: &str| run[key].as_u64().unwrap();
    let took = nanoseconds("ended_unix_ns") - nanoseconds("started_unix_ns");
    // Never faster, however fast the machine.
    assert!(took > 3_500_000_000, "{took} ns for 5 MiB");
}

#[test]
fn whatever_is_said_on_the_socket_is_answered() {
    let site = Site::with_repository();
    configure(&site, NEVER, ONE);
    let service = Service::start(&site);
    let answer = |said: &[u8]| {
        let mut stream = service.socket();
        // It may be closed before all of it was written.
        let _ = stream.write_all(said);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut line = String::new();
        let _ = BufReader::new(stream).read_line(&mut line);
        line
    };
    for (said, expected) in [
        (&b"\n"[..], "no JSON object"),
        (b"hello\n", "no JSON object"),
        (b"{\"version\":2,\"ask\":\"status\"}\n", "version 2"),
        (b"{\"version\":1,\"ask\":\"explode\"}\n", "not understood"),
        (b"{\"version\":1,\"ask\":\"status\"}", "ended early"),
        (b"\xff\xfe\n", "no JSON object"),
        (b"", "ended early"),
    ] {
        let answer = answer(said);
        assert!(answer.contains(expected), "{expected}: {answer}");
        assert!(answer.contains("\"reply\":\"error\""), "{answer}");
    }
    // Nothing is read past the bound. What it says may be lost with the connection.
    let endless = answer(&vec![b' '; 1 << 20]);
    assert!(
        endless.is_empty() || endless.contains("longer than"),
        "{endless}"
    );
    let well = answer(b"{\"version\":1,\"ask\":\"status\"}\n");
    assert!(well.contains("\"reply\":\"status\""), "{well}");
    // Who says nothing keeps nobody else from speaking.
    let silent: Vec<_> = (0..80).map(|_| service.socket()).collect();
    drop(silent);
    until("an answer", || {
        (service.run(&["status"]).code == 0).then_some(())
    });
}
