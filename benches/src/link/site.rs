//! A repository in a folder, and where wanted a real gateway before it and a host that has joined: made by
//! the programs themselves, with their default settings.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// What hosts call the repository.
pub(super) const NAME: &str = "main";

const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Which gateway is before a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gateway {
    /// The service itself.
    Real,
    /// One whose store forgets packs.
    Forgetful,
}

/// Removed when dropped, and the gateway killed.
pub(super) struct Site {
    folder: tempfile::TempDir,
    programs: PathBuf,
    gateway: Option<(Child, String)>,
}

impl Site {
    pub(super) fn new(programs: &Path, work: &Path, gateway: Option<Gateway>) -> Result<Self> {
        let mut site = Self {
            folder: tempfile::tempdir_in(work)?,
            programs: programs.to_owned(),
            gateway: None,
        };
        site.tidegate(&["init", "--repo", "repository", "--keys", "keys"])?;
        if let Some(which) = gateway {
            site.tidegate(&["gateway", "init", "--fleet", "fleet", "--keys", "keys"])?;
            let (child, address) = site.start(which)?;
            site.gateway = Some((child, address.clone()));
            let invite = ["gateway", "invite", "--fleet", "fleet", "--host", "bench"];
            let what = ["--repo", NAME, "--rights", "backup", "--out", "token"];
            site.tidegate(&[&invite[..], &what, &["--gateway", &address]].concat())?;
            site.tidegate(&["host", "join", "--token-file", "token"])?;
        }
        Ok(site)
    }

    pub(super) fn repository(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    /// The host's key and certificates.
    pub(super) fn identity(&self) -> PathBuf {
        self.folder.path().join("identity")
    }

    /// Where the gateway listens.
    pub(super) fn address(&self) -> Result<String> {
        let (_, address) = self.gateway.as_ref().context("there is no gateway")?;
        Ok(address.clone())
    }

    /// Backs an image up, through the gateway where there is one.
    pub(super) fn backup(&self, image: &Path) -> Command {
        let mut command = self.command(self.programs.join("tidegate"));
        command.args(["--quiet", "backup"]).arg(image);
        command.env("TIDEGATE_KEY", "keys/host.key");
        match &self.gateway {
            Some((_, address)) => {
                command.env("TIDEGATE_REPO", format!("quic://{address}/{NAME}"));
            }
            None => {
                command.env("TIDEGATE_REPO", self.repository());
            }
        }
        command
    }

    /// Stops the gateway, where there is one. Returns the CPU time that it used.
    pub(super) fn stop(mut self) -> Result<Duration> {
        let Some((mut gateway, _)) = self.gateway.take() else {
            return Ok(Duration::ZERO);
        };
        gateway.kill()?;
        let (_, usage) = crate::speed::child::wait4(gateway.id())?;
        Ok(crate::speed::child::cpu(&usage))
    }

    fn start(&self, which: Gateway) -> Result<(Child, String)> {
        let config = format!(
            "listen = ['127.0.0.1:0']
             fleet = 'fleet'
             authority_key = 'keys/authority.key'
             cache_dir = 'gateway-cache'
             [repository.{NAME}]
             location = '{}'
             key = 'keys/maintenance.key'
            ",
            self.repository().display()
        );
        let path = |name| self.folder.path().join(name);
        std::fs::write(path("gateway.toml"), config)?;
        let log = path("gateway.log");
        let mut command = match which {
            Gateway::Real => self.command(self.programs.join("tidegated")),
            Gateway::Forgetful => self.command(std::env::current_exe()?),
        };
        command
            .arg(match which {
                Gateway::Real => "gateway",
                Gateway::Forgetful => "forgetful-gateway",
            })
            .args(["--config", "gateway.toml"])
            .stderr(File::create(&log)?);
        let mut child = command.spawn()?;
        let begin = Instant::now();
        loop {
            let said = std::fs::read_to_string(&log)?;
            if let Some(address) = listening(&said) {
                return Ok((child, address.to_owned()));
            }
            if child.try_wait()?.is_some() || begin.elapsed() > START_TIMEOUT {
                let _ = child.kill();
                bail!("the gateway does not listen: {said}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn tidegate(&self, arguments: &[&str]) -> Result<()> {
        let mut command = self.command(self.programs.join("tidegate"));
        command.arg("--quiet").args(arguments);
        crate::speed::child::run(command).map(|_| ())
    }

    /// A program with nothing of the caller's own settings.
    fn command(&self, program: PathBuf) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TIDEGATE_") {
                command.env_remove(name);
            }
        }
        command
            .current_dir(self.folder.path())
            .env("TIDEGATE_CONFIG", "/dev/null")
            .env("TIDEGATE_IDENTITY", "identity")
            .env("TIDEGATE_CACHE_DIR", "cache");
        command
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some((gateway, _)) = &mut self.gateway {
            let _ = gateway.kill();
            let _ = gateway.wait();
        }
    }
}

/// Where a gateway says that it listens.
fn listening(log: &str) -> Option<&str> {
    let line = log
        .lines()
        .find(|line| line.contains("the gateway listens"))?;
    line.split_once("address=")?.1.split_whitespace().next()
}
