//! A gateway as a process of its own, with the settings it has by default.

use crate::site::{NAME, Site};
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;
use tidegate_agent::store::Environment;
use tokio::time::{Instant, sleep};

/// How long it may take to start, on a machine with much else to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// The real program, killed when dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
    pub address: SocketAddr,
}

impl Process {
    /// Beside `site`'s repository with settings of its own only for where things are.
    pub async fn start(site: &Site, name: &str, environment: &Environment) -> Self {
        let folder = site.folder.path();
        let config = format!(
            "listen = ['127.0.0.1:0']
             fleet = 'fleet'
             authority_key = 'authority.key'
             cache_dir = 'cache-{name}'
             [repository.{NAME}]
             location = '{}'
             key = 'maintenance.key'
            ",
            site.location
        );
        let (file, log) = (
            folder.join(format!("{name}.toml")),
            folder.join(format!("{name}.log")),
        );
        std::fs::write(&file, config).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidegated"))
            .args(["gateway", "--config"])
            .arg(&file)
            .envs(environment.variables())
            .env_remove("TIDEGATE_LOG")
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = std::fs::read_to_string(&log).unwrap();
            if let Some(address) = listening(&said) {
                return Self {
                    child,
                    log,
                    address,
                };
            }
            assert!(child.try_wait().unwrap().is_none(), "it ended: {said}");
            assert!(Instant::now() < deadline, "it does not listen: {said}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// The largest resident set it ever had.
    pub fn peak_bytes(&self) -> u64 {
        let file = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(file).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let kib = line.unwrap().split_ascii_whitespace().nth(1).unwrap();
        kib.parse::<u64>().unwrap() << 10
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let said = std::fs::read_to_string(&self.log).unwrap_or_default();
            let last: Vec<_> = said.lines().rev().take(30).collect();
            eprintln!(
                "--- the gateway's last words, newest first\n{}",
                last.join("\n")
            );
        }
    }
}

/// Where a gateway says that it listens.
fn listening(log: &str) -> Option<SocketAddr> {
    let line = log
        .lines()
        .find(|line| line.contains("the gateway listens"))?;
    let (_, address) = line.split_once("address=")?;
    address.split_whitespace().next()?.parse().ok()
}
