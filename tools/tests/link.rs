//! Two gateways beside a real S3 server and two hosts, each with an address of its own: the real programs
//! over real UDP, with what happens to them on bad days.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "tests"
)]

#[path = "link/faults.rs"]
mod faults;
#[path = "net/mod.rs"]
mod net;
mod site;

use net::Net;
use site::{MIB, Run, Site, assert_same, tidegated, until};
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use tidegate_agent::store::Environment;
use tidegate_agent::testing::{FaultyProxy, S3Server};

/// The gateways, by name.
const GATEWAYS: [&str; 2] = ["gw1", "gw2"];

pub(crate) struct World {
    pub(crate) site: Site,
    pub(crate) net: Net,
    /// Between the gateways and the store.
    pub(crate) proxy: FaultyProxy,
    server: S3Server,
    gateways: HashMap<&'static str, Child>,
    runs: AtomicU32,
}

impl World {
    /// With both gateways running, and the hosts `hv1` and `hv2` joined with all rights but maintenance.
    pub(crate) fn new() -> Self {
        let server = S3Server::start();
        let net = Net::new(&["gw1", "gw2", "hv1", "hv2"]);
        let proxy = FaultyProxy::at(net.own(), server.port());
        let mut world = Self {
            site: Site::new(),
            net,
            proxy,
            server,
            gateways: HashMap::new(),
            runs: AtomicU32::new(0),
        };
        // Small packs: more of them are acknowledged by the middle of a run.
        std::fs::write(world.site.path("host-config.toml"), "pack_mib = 8").unwrap();
        let place = world.location();
        world
            .beside(&["init", "--repo", &place, "--keys", "keys"])
            .succeeds();
        let fleet = world.server.location("fleet");
        world
            .beside(&["gateway", "init", "--fleet", &fleet, "--keys", "fleet"])
            .succeeds();
        for gateway in GATEWAYS {
            world.start(gateway);
        }
        for host in ["hv1", "hv2"] {
            let token = format!("{host}.token");
            let mut args = vec!["gateway", "invite", "--fleet", &fleet, "--host", host];
            args.extend([
                "--repo",
                "main",
                "--rights",
                "backup,restore",
                "--out",
                &token,
            ]);
            let addresses = GATEWAYS.map(|gateway| format!("{}:4433", world.net.address(gateway)));
            for address in &addresses {
                args.extend(["--gateway", address]);
            }
            world.beside(&args).succeeds();
            world
                .on(host, &["host", "join", "--token-file", &token])
                .succeeds();
        }
        world
    }

    pub(crate) fn fleet(&self) -> String {
        self.server.location("fleet")
    }

    fn location(&self) -> String {
        self.server.location("main")
    }

    /// The variables of whoever stands beside the bucket.
    fn environment(&self) -> Environment {
        self.server
            .environment()
            .with("AWS_ENDPOINT_URL", self.proxy.url())
    }

    /// The command line beside the bucket, with every right.
    pub(crate) fn beside(&self, args: &[&str]) -> Run {
        let mut command = self.site.process();
        command.envs(self.environment().variables());
        command.args(["--quiet"]);
        command.env("TIDEGATE_REPO", self.location());
        command.env("TIDEGATE_KEY", "keys/restore.key");
        command.env("TIDEGATE_CACHE_DIR", "beside");
        Run::from(command.args(args).output().unwrap())
    }

    /// Starts a gateway and waits until it listens.
    pub(crate) fn start(&mut self, gateway: &'static str) {
        let config = format!(
            "fleet = '{}'
             authority_key = 'fleet/authority.key'
             listen = ['{}:4433']
             cache_dir = 'cache-{gateway}'
             revocations_every_seconds = 1
             [repository.main]
             location = '{}'
             key = 'keys/maintenance.key'
            ",
            self.server.location("fleet"),
            self.net.address(gateway),
            self.location(),
        );
        let file = self.site.path(&format!("{gateway}.toml"));
        std::fs::write(&file, config).unwrap();
        let log = self.site.path(&format!("{gateway}-{}.log", self.next()));
        let mut command = self.net.command(gateway, &tidegated());
        command
            .args(["gateway", "--config"])
            .arg(&file)
            .envs(self.environment().variables())
            .current_dir(self.site.path(""))
            .stderr(File::create(&log).unwrap());
        self.gateways.insert(gateway, command.spawn().unwrap());
        until("a gateway that listens", || {
            let said = std::fs::read_to_string(&log).unwrap();
            said.contains("the gateway listens").then_some(())
        });
    }

    /// Kills a gateway as a power cut would.
    pub(crate) fn kill(&mut self, gateway: &'static str) {
        let mut child = self.gateways.remove(gateway).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Which of the two has been sent more by now.
    pub(crate) fn busy(&self) -> &'static str {
        // What a gateway sends to the store is what it was sent.
        let by_bytes = |gateway: &&&str| self.net.sent_bytes(gateway);
        GATEWAYS.iter().max_by_key(by_bytes).unwrap()
    }

    fn host_command(&self, host: &str) -> Command {
        let addresses = GATEWAYS.map(|gateway| self.net.address(gateway).to_string());
        let mut command = self
            .net
            .command(host, Path::new(env!("CARGO_BIN_EXE_tidegate")));
        command
            .current_dir(self.site.path(""))
            .env("HOME", self.site.path("home"))
            .env("TIDEGATE_CONFIG", "host-config.toml")
            .env(
                "TIDEGATE_REPO",
                format!("quic://{}/main", addresses.join(",")),
            )
            .env("TIDEGATE_KEY", "keys/restore.key")
            .env("TIDEGATE_IDENTITY", format!("identity-{host}"))
            .env("TIDEGATE_CACHE_DIR", format!("cache-{host}"));
        command
    }

    /// The command line on a host, which reaches the gateways and nothing else.
    pub(crate) fn on(&self, host: &str, args: &[&str]) -> Run {
        Run::from(self.host_command(host).args(args).output().unwrap())
    }

    /// The same, on its way.
    pub(crate) fn begin(&self, host: &str, args: &[&str]) -> Child {
        let mut command = self.host_command(host);
        command
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// An image with `mib` of data that does not compress.
    pub(crate) fn image(&self, name: &str, mib: u64) -> PathBuf {
        self.site.image(name, (mib + 16) * MIB, &[(0, mib * MIB)])
    }

    /// Waits until a host has sent `mib` more than `before`.
    pub(crate) fn in_the_middle(&self, host: &str, before: u64, mib: u64) {
        until("a run in its middle", || {
            (self.net.sent_bytes(host) > before + mib * MIB).then_some(())
        });
    }

    /// Everything that was ever committed is whole, and the machine's newest point is the image.
    pub(crate) fn assert_whole(&self, machine: &str, image: &Path) {
        self.beside(&["verify", "--all"]).succeeds();
        let back = format!("back-{}.raw", self.next());
        let point = format!("{machine}@latest");
        self.on("hv2", &["restore", &point, "--to", &back])
            .succeeds();
        assert_same(image, &self.site.path(&back));
    }

    fn next(&self) -> u32 {
        self.runs.fetch_add(1, Ordering::Relaxed)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in self.gateways.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for entry in std::fs::read_dir(self.site.path("")).unwrap().flatten() {
                if entry.path().extension().is_some_and(|end| end == "log") {
                    let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
                    eprintln!("--- {}\n{log}", entry.path().display());
                }
            }
        }
    }
}

#[track_caller]
pub(crate) fn ends(child: Child) -> Run {
    Run::from(child.wait_with_output().unwrap())
}

/// Both hosts at once; then near-identical machines, which cost what differs: measured where it counts, on
/// the wire.
#[test]
fn hosts_back_up_through_gateways_and_send_what_is_new() {
    let world = World::new();
    let first = world.image("web01.raw", 64);
    let other = world.site.image("db01.raw", 48 * MIB, &[(0, MIB)]);
    world.site.change("db01.raw", 0, 40 * MIB, 99);
    let both = [
        world.begin("hv1", &["backup", "web01.raw"]),
        world.begin("hv2", &["backup", "db01.raw"]),
    ];
    for run in both {
        ends(run).succeeds();
    }
    world.assert_whole("web01", &first);
    world.assert_whole("db01", &other);

    std::fs::copy(&first, world.site.path("web02.raw")).unwrap();
    world.site.change("web02.raw", 10 * MIB, MIB, 5);
    let before = world.net.sent_bytes("hv2");
    let summary = world
        .on("hv2", &["backup", "web02.raw", "--json"])
        .succeeds()
        .json();
    let sent = world.net.sent_bytes("hv2") - before;
    assert!(sent * 20 < 64 * MIB, "{sent} bytes sent: {summary}");
    assert!(sent > MIB, "{sent} bytes sent: {summary}");
    world.assert_whole("web02", &world.site.path("web02.raw"));

    let status = world.on("hv1", &["gateway", "status", "--json"]).succeeds();
    let status = status.json();
    assert_eq!(status["store_answers"], true, "{status}");
    // The other gateway may not have looked since.
    assert!(status["head"].as_u64() >= Some(3), "{status}");
    world.on("hv1", &["host", "show"]).succeeds();
    world.on("hv1", &["points"]).succeeds();
    world.on("hv1", &["repo", "info"]).succeeds();
}
