//! A machine in QEMU with a guest that does as it is told, for tests of running machines.
//!
//! Debian's kernel and a busybox, ready in a few seconds without hardware support. Not a system:
//! nothing runs in it but what the console is told. A QEMU is killed with its value.

use super::console::Console;
use super::process::{lab, spawn};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long the guest may take to boot, or for one command, on a machine with much else to do.
const TIME_MAX: Duration = Duration::from_secs(120);

/// A disk of the guest: `/dev/vda` is the first.
#[derive(Debug, Clone)]
pub struct GuestDisk {
    /// The image.
    pub path: PathBuf,
    /// `qcow2` or `raw`.
    pub format: &'static str,
    /// The id of its device; without one it can be told by its node only.
    pub id: Option<String>,
}

/// A running machine.
pub struct Guest {
    child: Option<Child>,
    folder: Folder,
    disks: Vec<GuestDisk>,
    /// Boots what the first disk holds.
    is_system: bool,
    console: Option<Console>,
}

/// Where its sockets are.
enum Folder {
    Own(TempDir),
    /// Somebody else's, in which members of its group may talk to the machine.
    Shared(PathBuf),
}

impl Folder {
    fn path(&self) -> &Path {
        match self {
            Self::Own(folder) => folder.path(),
            Self::Shared(folder) => folder,
        }
    }
}

/// A QEMU into which a machine is to come.
pub struct Arriving(Guest);

impl Guest {
    /// Boots a guest with these disks, whose block nodes are `disk0`, `disk1` and so on.
    pub fn start(disks: Vec<GuestDisk>) -> Self {
        Self::new(folder(), disks, false)
    }

    /// The same with its sockets in this folder, open to the folder's group, for programs of other users.
    pub fn start_in(folder: &Path, disks: Vec<GuestDisk>) -> Self {
        Self::new(Folder::Shared(folder.to_owned()), disks, false)
    }

    /// Boots the Debian that the first of these disks holds.
    pub fn start_system(disks: Vec<GuestDisk>) -> Self {
        Self::new(folder(), disks, true)
    }

    fn new(folder: Folder, disks: Vec<GuestDisk>, is_system: bool) -> Self {
        let mut guest = Self {
            child: None,
            folder,
            disks,
            is_system,
            console: None,
        };
        guest.boot();
        guest
    }

    /// Boots it (again).
    pub fn boot(&mut self) {
        self.kill();
        for socket in ["console", "qmp", "operator", "agent"] {
            // Of the run before.
            let _ = std::fs::remove_file(self.folder.path().join(socket));
        }
        self.child = Some(spawn(&self.command(), self.folder.path()));
        self.attach().await_ready();
    }

    /// Starts another QEMU that waits at this socket for the machine to come. `arrive` follows.
    pub fn expect_at(&self, socket: &Path) -> Arriving {
        let folder = folder();
        let other = Self {
            child: None,
            folder,
            disks: self.disks.clone(),
            is_system: self.is_system,
            console: None,
        };
        let mut command = other.command();
        command
            .arg("-incoming")
            .arg(format!("unix:{}", socket.display()));
        let mut other = other;
        other.child = Some(spawn(&command, other.folder.path()));
        other.attach();
        let begun = Instant::now();
        while !socket.exists() {
            assert!(begun.elapsed() < TIME_MAX, "{}", other.output());
            std::thread::sleep(Duration::from_millis(20));
        }
        Arriving(other)
    }

    /// The machine has come: from now on it is the other one.
    pub fn arrive(&mut self, other: Arriving) {
        *self = other.0;
    }

    /// Connects to the console of a QEMU that starts.
    fn attach(&mut self) -> &mut Console {
        let socket = self.folder.path().join("console");
        self.console.insert(Console::connect(&socket))
    }

    /// Runs a command of one line in the guest, and hands back what it says.
    ///
    /// # Panics
    /// Where it fails.
    pub fn run(&mut self, command: &str) -> String {
        self.console().run(command)
    }

    /// Hands over the console, to be talked to by another thread.
    pub fn take_console(&mut self) -> Console {
        self.console.take().expect("the machine runs")
    }

    /// The monitor's socket.
    pub fn monitor(&self) -> PathBuf {
        self.folder.path().join("qmp")
    }

    /// A second monitor: QEMU talks to one program at each.
    pub fn operators_monitor(&self) -> PathBuf {
        self.folder.path().join("operator")
    }

    /// The socket of the channel to the guest's agent.
    pub fn agent(&self) -> PathBuf {
        self.folder.path().join("agent")
    }

    /// The images, as they were given.
    pub fn disks(&self) -> &[GuestDisk] {
        &self.disks
    }

    /// Kills QEMU.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        self.console = None;
    }

    /// Switches the machine off, and waits until QEMU has ended in order.
    pub fn power_off(&mut self) {
        self.console().tell("sync; poweroff -f");
        let mut child = self.child.take().expect("the machine runs");
        let begun = Instant::now();
        while child
            .try_wait()
            .expect("a child can be waited for")
            .is_none()
        {
            assert!(begun.elapsed() < TIME_MAX, "{}", self.output());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.console = None;
    }

    /// Whether QEMU runs.
    pub fn is_running(&mut self) -> bool {
        let child = self.child.as_mut();
        child.is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    fn command(&self) -> Command {
        let socket = |name: &str| self.folder.path().join(name).display().to_string();
        let mut command = match self.folder {
            Folder::Own(_) => Command::new("qemu-system-x86_64"),
            Folder::Shared(_) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", "umask 007; exec \"$0\" \"$@\"", "qemu-system-x86_64"]);
                shell
            }
        };
        let (memory, root) = match self.is_system {
            true => ("256", " root=/dev/vda systemd.show_status=0"),
            false => ("192", ""),
        };
        command
            .args(["-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", memory])
            .args(["-nodefaults", "-display", "none", "-no-reboot"])
            .args(["-name", "writer"])
            .arg("-kernel")
            .arg(lab("guest/vmlinuz"))
            .arg("-initrd")
            .arg(lab("guest/initramfs"))
            .arg("-append")
            .arg(format!("console=ttyS0 quiet panic=-1{root}"));
        for (number, disk) in self.disks.iter().enumerate() {
            let path = escaped(&disk.path);
            let format = disk.format;
            let id = disk.id.iter().map(|id| format!(",id={id}"));
            command
                .arg("-blockdev")
                .arg(format!(
                    "driver=file,filename={path},node-name=file{number},discard=unmap"
                ))
                .arg("-blockdev")
                .arg(format!(
                    "driver={format},file=file{number},node-name=disk{number},discard=unmap"
                ))
                .arg("-device")
                .arg(format!(
                    "virtio-blk-pci,drive=disk{number}{}",
                    id.collect::<String>()
                ));
        }
        command
            .arg("-chardev")
            .arg(format!(
                "socket,path={},server=on,wait=off,id=console",
                socket("console")
            ))
            .args(["-serial", "chardev:console"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket("qmp")))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket("operator")))
            .args(["-device", "virtio-serial-pci"])
            .arg("-chardev")
            .arg(format!(
                "socket,path={},server=on,wait=off,id=agent",
                socket("agent")
            ))
            .args([
                "-device",
                "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
            ]);
        command
    }

    fn console(&mut self) -> &mut Console {
        self.console.as_mut().expect("the machine runs")
    }

    fn output(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("output")).unwrap_or_default()
    }
}

fn folder() -> Folder {
    let folder = tempfile::Builder::new().prefix("tidegate-guest-").tempdir();
    Folder::Own(folder.expect("a temporary folder can be made"))
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("QEMU said: {}", self.output());
        }
        self.kill();
    }
}

/// A path in an option of QEMU's.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}
