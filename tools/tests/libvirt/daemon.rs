//! A libvirt of one's own: its sockets, its settings and its state in a mount namespace, so that the
//! machine's own libvirt, if it has one, is never touched. Two of them are two hosts.

#![allow(unreachable_pub, clippy::unwrap_used, clippy::panic, reason = "tests")]

use crate::site::{Run, Site, text};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take on a machine with much else to do.
const TIME_MAX: Duration = Duration::from_secs(120);

const QEMU_CONF: &str = "user = \"root\"\ngroup = \"root\"\ndynamic_ownership = 0\n\
    remember_owner = 0\nsecurity_driver = \"none\"\ncgroup_controllers = []\nnamespaces = []\n\
    stdio_handler = \"file\"\n";

/// A host with libvirt.
pub struct Host {
    name: &'static str,
    folder: PathBuf,
    /// Holds the namespace; libvirt's daemon comes and goes in it.
    keeper: Child,
    daemon: Option<Child>,
}

impl Host {
    pub fn start(site: &Site, name: &'static str) -> Self {
        let folder = site.path(name);
        for part in ["run", "etc", "lib", "cache", "log"] {
            std::fs::create_dir_all(folder.join(part)).unwrap();
        }
        std::fs::write(folder.join("etc/qemu.conf"), QEMU_CONF).unwrap();
        std::fs::write(
            folder.join("etc/libvirtd.conf"),
            "auth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n",
        )
        .unwrap();
        let binds: String = [
            ("run", "/run/libvirt"),
            ("etc", "/etc/libvirt"),
            ("lib", "/var/lib/libvirt"),
            ("cache", "/var/cache/libvirt"),
            ("log", "/var/log/libvirt"),
        ]
        .iter()
        .map(|(part, place)| {
            let own = folder.join(part);
            format!("mkdir -p {place}; mount --bind {} {place}; ", text(&own))
        })
        .collect();
        let keeper = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-ec"])
            .arg(format!("{binds} echo ready; exec sleep infinity"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut host = Self {
            name,
            folder,
            keeper,
            daemon: None,
        };
        let mut ready = [0; 6];
        host.keeper
            .stdout
            .take()
            .unwrap()
            .read_exact(&mut ready)
            .unwrap();
        host.start_daemon();
        host
    }

    /// Starts libvirt's daemon, and waits until it answers.
    pub fn start_daemon(&mut self) {
        let log = std::fs::File::create(self.folder.join("log/daemon")).unwrap();
        let pid = self.folder.join("run/daemon.pid");
        let _ = std::fs::remove_file(&pid);
        let mut command = self.inside("/usr/sbin/libvirtd");
        command.arg("-p").arg(&pid).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.daemon = Some(command.spawn().unwrap());
        let begun = Instant::now();
        while !self.virsh_may_fail(&["list"]).0 {
            assert!(
                begun.elapsed() < TIME_MAX,
                "{}: libvirt is silent",
                self.name
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Kills libvirt's daemon; its machines run on.
    pub fn kill_daemon(&mut self) {
        let pid = std::fs::read_to_string(self.folder.join("run/daemon.pid")).unwrap();
        kill(pid.trim());
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.wait();
        }
    }

    /// Kills the QEMU of a machine.
    pub fn kill_qemu(&self, domain: &str) {
        let pid = self.folder.join(format!("run/qemu/{domain}.pid"));
        kill(std::fs::read_to_string(pid).unwrap().trim());
        let begun = Instant::now();
        while self.virsh(&["domstate", domain]).trim() != "shut off" {
            assert!(begun.elapsed() < TIME_MAX);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn virsh(&self, arguments: &[&str]) -> String {
        let (done, said) = self.virsh_may_fail(arguments);
        assert!(done, "virsh {arguments:?}: {said}");
        said
    }

    /// Says whether it succeeded, and what it said.
    pub fn virsh_may_fail(&self, arguments: &[&str]) -> (bool, String) {
        let output = self
            .inside("virsh")
            .arg("-q")
            .args(arguments)
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
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
        let mut command = self.inside(own.get_program().to_str().unwrap());
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

    fn namespace(&self) -> String {
        format!("--mount=/proc/{}/ns/mnt", self.keeper.id())
    }

    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(self.namespace()).arg(program);
        command
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for domain in self.virsh_may_fail(&["list", "--name"]).1.lines() {
            self.virsh_may_fail(&["destroy", domain.trim()]);
        }
        if self.daemon.is_some() {
            self.kill_daemon();
        }
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

fn kill(pid: &str) {
    let done = Command::new("kill").args(["-9", pid]).status().unwrap();
    assert!(done.success(), "kill -9 {pid}");
}

/// The console of a guest that does what it is told.
pub struct Console {
    stream: UnixStream,
    said: Vec<u8>,
}

impl Console {
    /// Waits until the guest is ready.
    pub fn of_booting(socket: &std::path::Path) -> Self {
        let begun = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(begun.elapsed() < TIME_MAX, "no console: {error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut console = Self {
            stream,
            said: Vec::new(),
        };
        console.hear("GUEST-READY");
        console
    }

    /// Runs a command of one line, and returns what it says.
    pub fn run(&mut self, command: &str) -> String {
        writeln!(self.stream, "{command}").unwrap();
        let said = self.hear("RC=");
        assert_eq!(self.hear("\n"), "0", "{command}: {said}");
        said
    }

    fn hear(&mut self, mark: &str) -> String {
        let begun = Instant::now();
        let wait = Some(Duration::from_secs(1));
        self.stream.set_read_timeout(wait).unwrap();
        loop {
            let text = String::from_utf8_lossy(&self.said).replace('\r', "");
            if let Some((before, behind)) = text.split_once(mark) {
                let heard = before.to_owned();
                self.said = behind.as_bytes().to_vec();
                return heard;
            }
            assert!(begun.elapsed() < TIME_MAX, "no {mark:?} in {text}");
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => panic!("the guest has ended: {text}"),
                Ok(count) => self.said.extend_from_slice(&bytes[..count]),
                Err(error) => assert!(
                    matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ),
                    "{error}"
                ),
            }
        }
    }
}
