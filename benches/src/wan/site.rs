//! Both ends of a path with the real programs: on the left a host, on the right an S3 server and a gateway
//! beside it.
//!
//! Everything lies in a folder that goes with the value, or when this program is interrupted. Invariant: no
//! program outlives this one, however it ends: the kernel kills each with the thread that started it.

use super::backups::Sender;
use crate::relay::{Namespace, RIGHT, Relay, Shape};
use anyhow::{Context as _, Result, bail, ensure};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

const BUCKET: &str = "tidegate";
const ACCESS_KEY: &str = "bench";
const SECRET_KEY: &str = "secret-of-a-bench";
const HTTP_PORT: u16 = 8333;
const HTTPS_PORT: u16 = 8443;
/// For servers to come up, and for what is not measured.
const PATIENCE: Duration = Duration::from_secs(300);
/// A hundredth of what is told apart.
const POLL: Duration = Duration::from_millis(2);

/// A folder for sites, which is gone also when this program is interrupted or told to end.
pub(super) fn work_folder() -> Result<TempDir> {
    let work = tempfile::Builder::new().prefix("tidegate-wan-").tempdir()?;
    let folder = work.path().to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let told_to_end = {
        let _inside = runtime.enter();
        [SignalKind::interrupt(), SignalKind::terminate()].map(signal)
    };
    let [interrupt, terminate] = told_to_end;
    let (mut interrupt, mut terminate) = (interrupt?, terminate?);
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        // Programs that still run there make new files meanwhile.
        for _ in 0..100 {
            if std::fs::remove_dir_all(&folder).is_ok() || !folder.exists() {
                break;
            }
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "the folder is gone, and what else is left goes with the process"
        )]
        std::process::exit(130);
    });
    Ok(work)
}

/// What is run.
#[derive(Clone)]
pub(super) struct Programs {
    tidegate: PathBuf,
    tidegated: PathBuf,
    weed: PathBuf,
    restic: Option<PathBuf>,
}

impl Programs {
    /// Ours beside this program, restic in the folder of peers.
    pub(super) fn find(peers: Option<&Path>) -> Result<Self> {
        let own = std::env::current_exe()?;
        let beside = |name: &str| {
            let program = own.with_file_name(name);
            ensure!(
                program.is_file(),
                "{} is not there: build it by cargo build --release -p tidegate-tools -p tidegate-agent",
                program.display()
            );
            Ok(program)
        };
        let restic = match peers {
            Some(folder) => Some(std::path::absolute(folder.join("restic"))?),
            None => None,
        };
        let restic = restic.filter(|program| program.is_file());
        if restic.is_none() {
            eprintln!("restic is not among the peers: left out");
        }
        Ok(Self {
            tidegate: beside("tidegate")?,
            tidegated: beside("tidegated")?,
            weed: tidegate_agent::testing::lab("venv/bin/weed"),
            restic,
        })
    }

    pub(super) fn has(&self, sender: Sender) -> bool {
        sender != Sender::Restic || self.restic.is_some()
    }
}

/// How an upload went.
#[derive(Debug, Clone, Copy)]
pub(super) struct Upload {
    pub(super) took: Duration,
    /// False where it was killed when its time was over.
    pub(super) finished: bool,
    /// IP bytes that crossed the path meanwhile: there, and back.
    pub(super) crossed_bytes: [u64; 2],
}

/// A host, a path, a gateway and a store.
pub(super) struct Site {
    programs: Programs,
    // In the order in which they go.
    servers: Vec<Killed>,
    relay: Relay,
    folder: TempDir,
}

impl Site {
    /// With repositories made, the gateway running and the host joined, on a path that is as good as none.
    pub(super) fn start(programs: Programs, work: &Path, seed: u64) -> Result<Self> {
        let folder = TempDir::new_in(work)?;
        let relay = Relay::start(vec![(Duration::ZERO, unhindered())], seed)?;
        let mut site = Self {
            programs,
            servers: Vec::new(),
            relay,
            folder,
        };
        site.start_store()?;
        for (place, keys) in [("main", "keys"), ("direct", "direct-keys")] {
            let place = format!("s3://{BUCKET}/{place}");
            site.beside(&["init", "--repo", &place, "--keys", keys])?;
        }
        if let Some(restic) = &site.programs.restic {
            let mut init = site.restic(restic);
            init.arg("init");
            site.finish(&site.relay.right, init, "restic init")?;
        }
        site.start_gateway()?;
        Ok(site)
    }

    pub(super) fn has(&self, sender: Sender) -> bool {
        self.programs.has(sender)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// From now on the path is `shape`; what was under way has arrived.
    pub(super) fn reshape(&self, shape: Shape) {
        self.relay.reshape(unhindered());
        std::thread::sleep(Duration::from_secs(1));
        self.relay.reshape(shape);
    }

    /// The path is as good as none again.
    pub(super) fn unshape(&self) {
        self.relay.reshape(unhindered());
    }

    /// Uploads the file `image` of this folder; killed when its time is over.
    pub(super) fn upload(&self, sender: Sender, image: &str, time_max: Duration) -> Result<Upload> {
        let command = self.backup(sender, image)?;
        let before = self.relay.passed_bytes();
        let (mut child, log) = self.spawn(&self.relay.left, command, "upload")?;
        let started = Instant::now();
        let status = child.wait_until(started + time_max)?;
        let took = started.elapsed();
        drop(child);
        let after = self.relay.passed_bytes();
        if let Some(status) = status {
            ensure!(
                status.success(),
                "{} of {image}: {status}: {}",
                sender.name(),
                said(&log)
            );
        }
        Ok(Upload {
            took,
            finished: status.is_some(),
            crossed_bytes: [after[0] - before[0], after[1] - before[1]],
        })
    }

    /// Ends programs and path.
    pub(super) fn end(self) -> Result<()> {
        drop(self.servers);
        self.relay.stop().map(drop)
    }

    fn backup(&self, sender: Sender, image: &str) -> Result<Command> {
        let tidegate = |place: &str, keys: &str, cache: &str| {
            let mut command = self.command(&self.programs.tidegate);
            command
                .args(["--quiet", "backup", image])
                .env("TIDEGATE_REPO", place)
                .env("TIDEGATE_KEY", format!("{keys}/restore.key"))
                .env("TIDEGATE_IDENTITY", "identity")
                .env("TIDEGATE_CACHE_DIR", cache);
            command
        };
        Ok(match sender {
            Sender::Gateway => tidegate(&format!("quic://{RIGHT}/main"), "keys", "cache"),
            Sender::Direct => tidegate(
                &format!("s3://{BUCKET}/direct"),
                "direct-keys",
                "direct-cache",
            ),
            Sender::Restic => {
                let Some(restic) = &self.programs.restic else {
                    bail!("restic is not there");
                };
                let mut command = self.restic(restic);
                command.args(["--quiet", "backup", "--no-scan", image]);
                command
            }
            Sender::Https => self.put(image, "left"),
        })
    }

    fn start_store(&mut self) -> Result<()> {
        let certificate = rcgen::generate_simple_self_signed(vec![RIGHT.to_string()])?;
        std::fs::write(self.path("https.crt"), certificate.cert.pem())?;
        std::fs::write(
            self.path("https.key"),
            certificate.signing_key.serialize_pem(),
        )?;
        std::fs::create_dir(self.path("store"))?;
        let mut command = self.command(&self.programs.weed);
        command
            .args(["mini", "-dir=store", "-ip.bind=0.0.0.0"])
            .arg(format!("-ip={RIGHT}"))
            .arg(format!("-bucket={BUCKET}"))
            .arg(format!("-s3.port={HTTP_PORT}"))
            .arg(format!("-s3.port.https={HTTPS_PORT}"))
            .args([
                "-s3.cert.file=https.crt",
                "-s3.key.file=https.key",
                "-filer.localSocket=filer.sock",
                "-s3.autoCreateBucket=false",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                "-admin.ui=false",
                "-webdav=false",
                "-master.telemetry=false",
            ]);
        let (server, log) = self.spawn(&self.relay.right, command, "store")?;
        self.servers.push(server);
        // The bucket can be written later than it exists.
        std::fs::write(self.path("up"), "up")?;
        let until = Instant::now() + PATIENCE;
        while !self
            .run(&self.relay.right, self.put("up", "right"), "put")?
            .0
        {
            ensure!(
                Instant::now() < until,
                "the store does not come up: {}",
                said(&log)
            );
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    fn start_gateway(&mut self) -> Result<()> {
        let fleet = format!("s3://{BUCKET}/fleet");
        self.beside(&["gateway", "init", "--fleet", &fleet, "--keys", "fleet"])?;
        let config = format!(
            "fleet = '{fleet}'
             authority_key = 'fleet/authority.key'
             listen = ['{RIGHT}:4433']
             cache_dir = 'cache-of-gateway'
             [repository.main]
             location = 's3://{BUCKET}/main'
             key = 'keys/maintenance.key'
            "
        );
        std::fs::write(self.path("gateway.toml"), config)?;
        let mut command = self.command(&self.programs.tidegated);
        command.args(["gateway", "--config", "gateway.toml"]);
        let (gateway, log) = self.spawn(&self.relay.right, command, "gateway")?;
        self.servers.push(gateway);
        let until = Instant::now() + PATIENCE;
        while !said(&log).contains("the gateway listens") {
            ensure!(
                Instant::now() < until,
                "the gateway does not listen: {}",
                said(&log)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        let address = format!("{RIGHT}:4433");
        let mut invite = vec!["gateway", "invite", "--fleet", &fleet, "--host", "host"];
        invite.extend(["--repo", "main", "--rights", "backup,restore"]);
        invite.extend(["--out", "token", "--gateway", &address]);
        self.beside(&invite)?;
        let mut join = self.command(&self.programs.tidegate);
        join.args(["host", "join", "--token-file", "token"])
            .env("TIDEGATE_IDENTITY", "identity");
        self.finish(&self.relay.left, join, "host join")
    }

    /// The command line beside the store, with every right.
    fn beside(&self, arguments: &[&str]) -> Result<()> {
        let mut command = self.command(&self.programs.tidegate);
        command
            .args(arguments)
            .env("TIDEGATE_REPO", format!("s3://{BUCKET}/main"))
            .env("TIDEGATE_KEY", "keys/restore.key")
            .env("TIDEGATE_CACHE_DIR", "cache-beside");
        self.finish(&self.relay.right, command, &arguments.join(" "))
    }

    fn restic(&self, program: &Path) -> Command {
        let mut command = self.command(program);
        let place = format!("s3:http://{RIGHT}:{HTTP_PORT}/{BUCKET}/restic");
        command
            .env("RESTIC_PASSWORD", "bench")
            .env("RESTIC_REPOSITORY", place);
        command
    }

    /// A file as an object, in one signed request over TLS. Not HTTP/2: servers let no more than about 1 MiB
    /// be under way in it, whatever the path.
    fn put(&self, file: &str, from: &str) -> Command {
        let mut command = self.command(Path::new("curl"));
        command
            .args(["--silent", "--show-error", "--fail"])
            .args(["--http1.1", "--cacert", "https.crt"])
            .args(["--aws-sigv4", "aws:amz:us-east-1:s3"])
            .args(["--user", &format!("{ACCESS_KEY}:{SECRET_KEY}")])
            .args(["--header", "x-amz-content-sha256: UNSIGNED-PAYLOAD"])
            .args(["--upload-file", file])
            .arg(format!(
                "https://{RIGHT}:{HTTPS_PORT}/{BUCKET}/put/{from}/{file}"
            ));
        command
    }

    /// A program in the folder, with none of the tester's own settings.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .current_dir(self.folder.path())
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("HOME", self.folder.path())
            .env("TIDEGATE_CONFIG", "/dev/null")
            .env("AWS_ENDPOINT_URL", format!("http://{RIGHT}:{HTTP_PORT}"))
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        command
    }

    /// Runs what has to succeed.
    fn finish(&self, at: &Namespace, command: Command, what: &str) -> Result<()> {
        let (succeeded, said) = self.run(at, command, "run")?;
        ensure!(succeeded, "{what} failed: {said}");
        Ok(())
    }

    fn run(&self, at: &Namespace, command: Command, log: &str) -> Result<(bool, String)> {
        let (mut child, log) = self.spawn(at, command, log)?;
        let status = child.wait_until(Instant::now() + PATIENCE)?;
        Ok((status.is_some_and(|status| status.success()), said(&log)))
    }

    fn spawn(&self, at: &Namespace, mut command: Command, log: &str) -> Result<(Killed, PathBuf)> {
        let log = self.path(&format!("{log}.log"));
        let output = File::create(&log)?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = at
            .run(move || command.spawn())?
            .context("setpriv (util-linux) cannot be started")?;
        Ok((Killed(child), log))
    }
}

/// Far more than any program here sends.
fn unhindered() -> Shape {
    Shape {
        rate: 2e9,
        rtt: Duration::ZERO,
        queue_bytes: 1e9,
        loss: 0.0,
        jitter: Duration::ZERO,
        overtaking: false,
    }
}

fn said(log: &Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

/// A program that is killed with its value.
struct Killed(Child);

impl Killed {
    /// How it ended; nothing where it has not by then.
    fn wait_until(&mut self, until: Instant) -> Result<Option<std::process::ExitStatus>> {
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= until {
                return Ok(None);
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
