//! A repository of its own for each measurement, so that nothing is known from another one, and
//! tidegate's runs against it.

use super::{Bench, finish};
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Gone when it is dropped.
pub(super) struct Repository {
    tidegate: PathBuf,
    /// Of the whole bench: sockets lie in it, whose paths must be short.
    scratch: PathBuf,
    folder: tempfile::TempDir,
}

/// What a backup of what was dirtied came to.
#[derive(Debug)]
pub(super) struct Increment {
    pub(super) read_bytes: u64,
    pub(super) stored_bytes: u64,
    /// Of the whole command.
    pub(super) wall: std::time::Duration,
}

impl Repository {
    pub(super) fn make(bench: &Bench) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("repository-")
            .tempdir_in(bench.work.path())?;
        let repository = Self {
            tidegate: bench.tidegate.clone(),
            scratch: bench.work.path().to_owned(),
            folder,
        };
        let mut init = repository.settled(Command::new(&repository.tidegate));
        init.args(["init", "--keys"]).arg(repository.path("keys"));
        finish(init.spawn()?)?;
        Ok(repository)
    }

    /// Backs up a machine by the socket of QEMU's monitor.
    pub(super) fn back_up_by(&self, monitor: &Path) -> Result<Value> {
        let mut backup = self.backup(Command::new(&self.tidegate));
        backup.args(["--machine", "m", "--qmp"]).arg(monitor);
        finish(backup.spawn()?)
    }

    /// Backs up a domain of libvirt, by a command that runs what it is given on libvirt's host.
    pub(super) fn back_up_domain(
        &self,
        on_host: impl Fn(&str) -> Command,
        domain: &str,
    ) -> Result<Value> {
        let tidegate = self.tidegate.to_str().context("a path that is no text")?;
        let mut backup = self.backup(on_host(tidegate));
        backup.args(["--vm", domain]);
        finish(backup.spawn()?)
    }

    fn backup(&self, tidegate: Command) -> Command {
        let mut command = self.settled(tidegate);
        command.args(["backup", "--scratch"]).arg(&self.scratch);
        command
    }

    fn settled(&self, mut tidegate: Command) -> Command {
        tidegate
            .arg("--json")
            .env("TIDEGATE_REPO", self.path("repo"))
            .env("TIDEGATE_KEY", self.path("keys/host.key"))
            .env("TIDEGATE_CACHE_DIR", self.path("cache"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        tidegate
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Increment {
    /// A run of tidegate that knew what had changed.
    pub(super) fn of(backup: impl FnOnce() -> Result<Value>) -> Result<Self> {
        let begun = Instant::now();
        let told = backup()?;
        let wall = begun.elapsed();
        anyhow::ensure!(
            told["tracking"][0]["tracked"] == true,
            "not tracked: {told}"
        );
        let bytes = |name: &str| told[name].as_u64().context("no figure");
        Ok(Self {
            read_bytes: bytes("read_bytes")?,
            stored_bytes: bytes("stored_bytes")?,
            wall,
        })
    }
}
