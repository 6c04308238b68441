//! A libvirt of one's own: its sockets, its settings and its state in a mount namespace, so that the
//! machine's own libvirt, if it has one, is never touched. Two of them are two hosts, each with a name of its
//! own, between which machines can move.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take on a machine with much else to do.
const TIME_MAX: Duration = Duration::from_secs(120);

const QEMU_CONF: &str = "user = \"root\"\ngroup = \"root\"\ndynamic_ownership = 0\n\
    remember_owner = 0\nsecurity_driver = \"none\"\ncgroup_controllers = []\nnamespaces = []\n\
    stdio_handler = \"file\"\nswtpm_user = \"root\"\nswtpm_group = \"root\"\n";

/// A host with libvirt; gone with all its machines when it is dropped.
pub struct Libvirt {
    name: &'static str,
    folder: PathBuf,
    /// Holds the namespace; libvirt's daemon comes and goes in it.
    keeper: Child,
    daemon: Option<Child>,
}

impl Libvirt {
    /// Starts one that keeps its state in `parent`, in a folder of this name.
    pub fn start(parent: &Path, name: &'static str) -> Self {
        let folder = parent.join(name);
        for part in ["run", "etc", "lib", "cache", "log"] {
            std::fs::create_dir_all(folder.join(part)).expect("a folder can be made");
        }
        std::fs::write(folder.join("etc/qemu.conf"), QEMU_CONF).expect("a file can be written");
        // Machines do not move from a host to itself.
        let number = name
            .bytes()
            .fold(0_u64, |sum, byte| (sum * 31 + u64::from(byte)) % (1 << 48));
        std::fs::write(
            folder.join("etc/libvirtd.conf"),
            format!(
                "auth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n\
                 host_uuid = \"6f1d2c3b-8a59-4e07-9c42-{number:012x}\"\n"
            ),
        )
        .expect("a file can be written");
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
            format!("mkdir -p {place}; mount --bind {} {place}; ", own.display())
        })
        .collect();
        let keeper = Command::new("unshare")
            .args(["--mount", "--uts", "--propagation", "private", "sh", "-ec"])
            .arg(format!(
                "{binds} hostname {name}; echo ready; exec sleep infinity"
            ))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare (util-linux) can be run as root");
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
            .expect("standard output is piped")
            .read_exact(&mut ready)
            .expect("namespaces can be made");
        host.start_daemon();
        host
    }

    /// Starts libvirt's daemon, and waits until it answers.
    pub fn start_daemon(&mut self) {
        let log =
            std::fs::File::create(self.folder.join("log/daemon")).expect("a file can be made");
        let pid = self.folder.join("run/daemon.pid");
        let _ = std::fs::remove_file(&pid);
        let mut command = self.inside("/usr/sbin/libvirtd");
        command.arg("-p").arg(&pid).stdin(Stdio::null());
        command
            .stdout(log.try_clone().expect("a file handle can be copied"))
            .stderr(log);
        self.daemon = Some(command.spawn().expect("nsenter (util-linux) can be run"));
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
        let pid = std::fs::read_to_string(self.folder.join("run/daemon.pid"))
            .expect("libvirt's daemon has written its number");
        kill(pid.trim());
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.wait();
        }
    }

    /// Kills the QEMU of a machine.
    pub fn kill_qemu(&self, domain: &str) {
        let pid = self.folder.join(format!("run/qemu/{domain}.pid"));
        kill(
            std::fs::read_to_string(pid)
                .expect("QEMU has written its number")
                .trim(),
        );
        let begun = Instant::now();
        while self.virsh(&["domstate", domain]).trim() != "shut off" {
            assert!(begun.elapsed() < TIME_MAX);
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What `virsh` says.
    ///
    /// # Panics
    /// Where it fails.
    pub fn virsh(&self, arguments: &[&str]) -> String {
        let (done, said) = self.virsh_may_fail(arguments);
        assert!(done, "virsh {arguments:?}: {said}");
        said
    }

    /// Whether `virsh` succeeded, and what it said.
    pub fn virsh_may_fail(&self, arguments: &[&str]) -> (bool, String) {
        let output = self
            .inside("virsh")
            .arg("-q")
            .args(arguments)
            .output()
            .expect("nsenter (util-linux) can be run");
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    }

    /// A program on this host.
    pub fn inside(&self, program: &str) -> Command {
        let keeper = self.keeper.id();
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--mount=/proc/{keeper}/ns/mnt"))
            .arg(format!("--uts=/proc/{keeper}/ns/uts"))
            .arg(program);
        command
    }

    /// What stands in `/run/libvirt` on this host, as seen from here.
    pub fn run_file(&self, name: &str) -> PathBuf {
        self.folder.join("run").join(name)
    }

    /// Moves a running machine to another host that sees the same disks.
    pub fn migrate(&self, domain: &str, to: &Self) {
        let other = to.run_file("libvirt-sock");
        let other = format!("qemu+unix:///system?socket={}", other.display());
        let memory = format!("unix://{}", to.run_file("migration").display());
        let how = ["--live", "--unsafe", "--persistent", "--undefinesource"];
        let move_to = [domain, &other, "--migrateuri", &memory];
        self.virsh(&[&["migrate"], &how[..], &move_to].concat());
    }
}

impl Drop for Libvirt {
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
    let done = Command::new("kill")
        .args(["-9", pid])
        .status()
        .expect("kill (procps) can be run");
    assert!(done.success(), "kill -9 {pid}");
}
