//! A host with a libvirt of its own and with tidegate.

#![allow(unreachable_pub, clippy::unwrap_used, reason = "tests")]

use crate::site::{Run, Site};
use std::ops::{Deref, DerefMut};
use std::process::{Command, Stdio};
use std::time::Duration;
use tidegate_agent::testing::Libvirt;

pub struct Host {
    libvirt: Libvirt,
}

impl Host {
    pub fn start(site: &Site, name: &'static str) -> Self {
        let libvirt = Libvirt::start(&site.path(""), name);
        Self { libvirt }
    }

    /// Runs tidegate on this host.
    pub fn tidegate(&self, site: &Site, arguments: &[&str]) -> Run {
        let output = self.command(site, arguments).output().unwrap();
        Run::from(output)
    }

    /// Starts tidegate on this host, and kills it after a while.
    pub fn tidegate_killed(&self, site: &Site, arguments: &[&str], after: Duration) {
        let mut child = self
            .command(site, arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(after);
        // nsenter becomes the program: no process of ours stays behind.
        let _ = child.kill();
        child.wait().unwrap();
    }

    /// tidegate on this host, for those who look after the process themselves.
    pub fn command(&self, site: &Site, arguments: &[&str]) -> Command {
        let own = site.process();
        let mut command = self.libvirt.inside(own.get_program().to_str().unwrap());
        for (name, value) in own.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
            // The working folder does not come along.
            .env("TIDEGATE_REPO", site.path("repo"))
            .env("TIDEGATE_KEY", site.path("keys/restore.key"))
            .args(arguments);
        command
    }
}

impl Deref for Host {
    type Target = Libvirt;

    fn deref(&self) -> &Libvirt {
        &self.libvirt
    }
}

impl DerefMut for Host {
    fn deref_mut(&mut self) -> &mut Libvirt {
        &mut self.libvirt
    }
}
