//! A small Debian, booted as a container with a systemd of its own; thrown away at the end.
//!
//! Its root is the lab's, which is only read: what is written goes to memory. Commands run in it as root
//! through its namespaces, so that a test can look at each of their ends.

use crate::site::Run;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take on a machine with much else to do.
const PATIENCE: Duration = Duration::from_secs(90);

/// Where the test's folder is in the container.
pub(crate) const SHARED: &str = "/srv";

pub(crate) struct Container {
    nspawn: Child,
    init: String,
}

impl Container {
    /// Boots the lab's root of that name; `shared` is the folder that both sides see, and `alike` are those
    /// that both see at the same path.
    #[track_caller]
    pub(crate) fn boot(root: &str, shared: &Path, alike: &[&Path]) -> Self {
        let root = lab().join(root);
        assert!(
            root.join("usr/lib/systemd/systemd").exists(),
            "there is no Debian in {}: run tools/test as root, which installs it",
            root.display()
        );
        let mut nspawn = Command::new("systemd-nspawn")
            .arg("--directory")
            .arg(root)
            .args(["--volatile=overlay", "--boot", "--private-network"])
            // There may be no systemd outside.
            .args(["--register=no", "--keep-unit", "--console=pipe"])
            .arg(format!("--machine=tidegate-test-{}", std::process::id()))
            // A newer kernel has what the container's own filter does not know yet.
            .arg("--system-call-filter=landlock_create_ruleset landlock_add_rule landlock_restrict_self")
            .arg(format!("--bind={}:{SHARED}", shared.display()))
            .args(alike.iter().map(|path| format!("--bind={}", path.display())))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("systemd-nspawn: {error}: run tools/test, which installs it"));
        let children = format!("/proc/{0}/task/{0}/children", nspawn.id());
        let booted = || {
            let init = std::fs::read_to_string(&children).ok()?;
            let init = init.split_whitespace().next()?.to_owned();
            let state = Run::from(
                inside(&init, &["systemctl", "is-system-running"])
                    .output()
                    .ok()?,
            );
            (state.stdout.trim() == "running").then_some(init)
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(init) = booted() {
                return Self { nspawn, init };
            }
            let ended = nspawn.try_wait().unwrap();
            assert!(ended.is_none(), "systemd-nspawn ended with {ended:?}");
            assert!(Instant::now() < deadline, "the container did not boot");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs a command in it.
    pub(crate) fn run(&self, command: &[&str]) -> Run {
        Run::from(inside(&self.init, command).output().unwrap())
    }

    /// What a command that succeeds says on standard output.
    #[track_caller]
    pub(crate) fn says(&self, command: &[&str]) -> String {
        self.run(command).succeeds().stdout.trim().to_owned()
    }

    /// Writes a file in it.
    #[track_caller]
    pub(crate) fn write(&self, path: &str, text: &str) {
        // Through its root: what is mounted there is seen from here.
        let outside = PathBuf::from(format!("/proc/{}/root{path}", self.init));
        std::fs::create_dir_all(outside.parent().unwrap()).unwrap();
        std::fs::write(outside, text).unwrap();
    }

    /// A property of a unit.
    #[track_caller]
    pub(crate) fn property(&self, unit: &str, name: &str) -> String {
        self.says(&["systemctl", "show", "--value", "--property", name, unit])
    }

    /// What the service says of itself in the journal.
    #[track_caller]
    pub(crate) fn journal(&self, unit: &str) -> Vec<serde_json::Value> {
        let said = self.says(&["journalctl", "--output=json", "--unit", unit]);
        let lines = said.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.collect()
    }

    /// Waits until `found` finds something.
    #[track_caller]
    pub(crate) fn until<T>(&self, what: &str, mut found: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = found() {
                return found;
            }
            if Instant::now() > deadline {
                let journal = self.run(&["journalctl", "--no-pager", "--lines=100"]);
                panic!("{what} did not come about\n{}", journal.stdout);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Switches it off, as its own systemd does.
    #[track_caller]
    pub(crate) fn power_off(mut self) {
        // It may end before it has answered.
        let _ = self.run(&["systemctl", "poweroff"]);
        let deadline = Instant::now() + PATIENCE;
        while self.nspawn.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the container does not go off");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(self.nspawn.wait().unwrap().success());
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // All that is in it dies with its init, and nspawn ends after that; the other way round it lives on.
        if let Ok(None) = self.nspawn.try_wait() {
            let init = Pid::from_raw(self.init.parse().unwrap());
            let _ = kill(init, Signal::SIGKILL);
            let _ = self.nspawn.wait();
        }
    }
}

/// Where `tools/test` installs.
pub(crate) fn lab() -> PathBuf {
    std::env::var_os("TIDEGATE_LAB")
        .map(PathBuf::from)
        .expect("TIDEGATE_LAB is set by tools/test")
}

fn inside(init: &str, command: &[&str]) -> Command {
    let mut nsenter = Command::new("nsenter");
    nsenter
        .args(["--target", init, "--all", "--"])
        .args(command)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .stdin(Stdio::null());
    nsenter
}
