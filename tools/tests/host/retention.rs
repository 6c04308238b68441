//! Points of a policy that keeps them for a moment: the host makes them, a gateway beside the bucket gives
//! them up, and the operator reads it.

use crate::service::{NEVER, Service, configure};
use crate::site::{self, MIB, Site, text, tidegated, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::process::{Child, Command};

const ONE: &str = "
    [machine.web01]
    images = ['web01.raw']
";

/// The real gateway, beside the repository.
struct Gateway(Child);

impl Gateway {
    fn start(site: &Site) -> Self {
        site.run(&["gateway", "init", "--fleet", "fleet", "--keys", "gw"])
            .succeeds();
        let config = "
            listen = ['127.0.0.1:0']
            fleet = 'fleet'
            authority_key = 'gw/authority.key'
            cache_dir = 'gateway-cache'
            expire_every_seconds = 1
            [repository.main]
            location = 'repo'
            key = 'keys/maintenance.key'
        ";
        std::fs::write(site.path("gateway.toml"), config).unwrap();
        let child = Command::new(tidegated())
            .args(["gateway", "--config", text(&site.path("gateway.toml"))])
            .env_clear()
            .stderr(File::create(site.path("gateway.log")).unwrap())
            .spawn()
            .unwrap();
        Self(child)
    }

    #[track_caller]
    fn stop(mut self) {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_host_says_how_long_and_a_gateway_gives_up() {
    let site = Site::with_repository();
    let image = site.image("web01.raw", 16 * MIB, &[(0, 2 * MIB)]);
    let policy = format!("{NEVER}\n[policy.p.keep]\nall = '1s'\nyearly = '1y'");
    configure(&site, &policy, ONE);
    let service = Service::start(&site);
    for _ in 0..3 {
        service.run(&["run", "web01", "--wait"]).succeeds();
    }
    service.stop();
    let points = || {
        let listed = site.tidegate(&["points", "--json"]).succeeds().json();
        listed.as_array().unwrap().clone()
    };
    let before = points();
    let kept = |point: &serde_json::Value| {
        let of = |field: &str| point[field].as_u64().unwrap();
        (of("keep_until_unix_ns") - of("taken_unix_ns")) / 1_000_000_000
    };
    // The year's first, unless a year has begun between them.
    let lengths: Vec<_> = before.iter().map(kept).collect();
    assert_eq!(lengths, [366 * 86_400, 1, 1]);
    assert!(before[1]["keep_until"].as_str().unwrap().ends_with('Z'));
    let table = site.tidegate(&["points"]).succeeds().stdout;
    assert!(table.contains("kept until"), "{table}");

    // By hand, for a moment, and then for ever.
    let by_hand = ["backup", "web01.raw", "--machine", "web01"];
    let for_a_moment = [&by_hand[..], &["--keep", "1s"]].concat();
    site.with_key("host", &for_a_moment).succeeds();
    site.with_key("host", &by_hand).succeeds();
    assert_eq!(points()[4]["keep_until"], serde_json::Value::Null);
    let wrong = [&by_hand[..], &["--keep", "0d"]].concat();
    site.with_key("host", &wrong).ends_with(2).says(&["0d"]);

    // A host's key may only look.
    site.with_key("host", &["expire"])
        .ends_with(5)
        .says(&["maintenance or restore key"]);
    let dry = until("three points past their time", || {
        let dry = site.with_key("maintenance", &["expire", "--dry-run", "--json"]);
        let dry = dry.succeeds().json();
        (dry["expired"].as_array().unwrap().len() == 3).then_some(dry)
    });
    assert_eq!(dry["dry_run"], true);
    assert_eq!(points().len(), 5);
    assert_eq!(dry["expired"][0]["point"], before[1]["point"]);
    site.with_key("maintenance", &["expire", "--machine", "nobody"])
        .ends_with(3);

    let gateway = Gateway::start(&site);
    until("the gateway gives up", || {
        (points().len() == 2).then_some(())
    });
    gateway.stop();
    let log = std::fs::read_to_string(site.path("gateway.log")).unwrap();
    let gone = before[1]["point"].as_str().unwrap();
    assert!(log.contains(gone) && log.contains("given up"), "{log}");
    let spec = format!("web01@{}", &gone[..8]);
    site.tidegate(&["restore", &spec, "--to", "gone.raw"])
        .ends_with(3)
        .says(&["it was expired at"]);
    let none = site.tidegate(&["expire"]).succeeds().stdout;
    assert!(none.contains("no recovery point goes"), "{none}");
    for (nth, point) in points().iter().enumerate() {
        let id = &point["point"].as_str().unwrap()[..8];
        let back = format!("back-{nth}.raw");
        site.tidegate(&["restore", &format!("web01@{id}"), "--to", &back])
            .succeeds();
        site::assert_same(&image, &site.path(&back));
    }
    site.tidegate(&["verify", "--all"]).succeeds();
}
