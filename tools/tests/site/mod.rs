//! A folder of one's own in which the real program runs, away from the operator's configuration.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "shared by several test programs, each of which uses a part; a panic is how tests fail"
)]

use assert_cmd::Command;
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;

/// A working folder; all paths given to commands start there.
pub struct Site {
    folder: TempDir,
}

/// What a command wrote, and how it ended.
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Site {
    pub fn new() -> Self {
        Self::new_in(&std::env::temp_dir())
    }

    /// In memory where there is room, for those who make hundreds of small sites and judge what is
    /// durable by the calls that were made, not by a disk that they would wait for.
    pub fn in_memory() -> Self {
        let memory = Path::new("/dev/shm");
        let has_room = rustix::fs::statvfs(memory)
            .is_ok_and(|found| found.f_bavail * found.f_frsize > 1024 * MIB);
        match has_room {
            true => Self::new_in(memory),
            false => Self::new(),
        }
    }

    fn new_in(parent: &Path) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("tidegate-test-")
            .tempdir_in(parent)
            .unwrap();
        std::fs::create_dir(folder.path().join("home")).unwrap();
        Self { folder }
    }

    /// With a repository in `repo` and its keys in `keys`.
    pub fn with_repository() -> Self {
        let site = Self::new();
        site.run(&["init", "--repo", "repo", "--keys", "keys"])
            .succeeds();
        site
    }

    /// Another site beside it that holds the same.
    pub fn copy(&self) -> Self {
        let copy = Self::new_in(self.folder.path().parent().unwrap());
        let all = format!("{}/.", self.folder.path().display());
        program("cp", &["-a", &all, text(copy.folder.path())]);
        copy
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program, with nothing of the tester's own settings.
    pub fn command(&self) -> Command {
        Command::from_std(self.process())
    }

    /// The same, for those who look after the process themselves.
    pub fn process(&self) -> std::process::Command {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.current_dir(self.folder.path());
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            let foreign = ["TIDEGATE_", "XDG_", "AWS_", "AZURE_", "GOOGLE_"];
            if foreign.iter().any(|prefix| name.starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        command.env("HOME", self.path("home"));
        // The system's own file must not matter.
        command.env("TIDEGATE_CONFIG", "/dev/null");
        command
    }

    pub fn run(&self, args: &[&str]) -> Run {
        Run::of(&mut self.command(), args)
    }

    /// Runs with the repository and the key of a level.
    pub fn with_key(&self, level: &str, args: &[&str]) -> Run {
        let mut command = self.command();
        command.env("TIDEGATE_REPO", "repo");
        command.env("TIDEGATE_KEY", format!("keys/{level}.key"));
        Run::of(&mut command, args)
    }

    /// Runs with the repository and its restore key.
    pub fn tidegate(&self, args: &[&str]) -> Run {
        self.with_key("restore", args)
    }

    /// Makes a sparse raw image of `size_bytes` with pseudo-random data in the given places.
    pub fn image(&self, name: &str, size_bytes: u64, data: &[(u64, u64)]) -> PathBuf {
        let path = self.path(name);
        let file = File::create(&path).unwrap();
        file.set_len(size_bytes).unwrap();
        for (offset, length) in data {
            fill(&file, *offset, *length, 1);
        }
        path
    }

    /// Overwrites a part of an image with other pseudo-random data.
    pub fn change(&self, name: &str, offset: u64, length: u64, seed: u64) {
        let file = OpenOptions::new()
            .write(true)
            .open(self.path(name))
            .unwrap();
        fill(&file, offset, length, seed);
    }

    /// Every file below a folder, with its content.
    pub fn files(&self, below: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        let mut folders = vec![self.path(below)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let content = std::fs::read(&path).unwrap();
                    files.push((path, content));
                }
            }
        }
        files.sort();
        files
    }
}

/// Fills a part of a file with pseudo-random bytes that depend on their place and on `seed`.
fn fill(file: &File, offset: u64, length: u64, seed: u64) {
    let mut state =
        (offset + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xd1b5_4a32_d192_ed03);
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap() + 8);
    while (bytes.len() as u64) < length {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(usize::try_from(length).unwrap());
    file.write_all_at(&bytes, offset).unwrap();
}

impl Run {
    pub fn of(command: &mut Command, args: &[&str]) -> Self {
        Self::from(command.args(args).output().unwrap())
    }

    #[track_caller]
    pub fn succeeds(self) -> Self {
        self.ends_with(0)
    }

    #[track_caller]
    pub fn ends_with(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "unexpected exit code\nstdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        self
    }

    /// Asserts that stderr names each of these.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(
                self.stderr.contains(word),
                "stderr does not name {word:?}: {}",
                self.stderr
            );
        }
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| {
            panic!("stdout is not one JSON value: {error}\n{}", self.stdout)
        })
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Asserts that two files are equal, byte for byte.
#[track_caller]
pub fn assert_same(a: &Path, b: &Path) {
    let (left, right) = (std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
    assert_eq!(left.len(), right.len(), "sizes of {a:?} and {b:?}");
    // Slices compare fast; the place is looked for only where they differ.
    if left != right {
        let at = left.iter().zip(&right).position(|(x, y)| x != y);
        panic!("{a:?} and {b:?} differ at byte {at:?}");
    }
}

/// A part of a file.
pub fn read(path: &Path, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    File::open(path)
        .unwrap()
        .read_exact_at(&mut bytes, offset)
        .unwrap();
    bytes
}

/// Asserts that two sparse files are equal, by reading what either of them holds: outside of that
/// both are zeros. For files that do not fit into memory.
#[track_caller]
pub fn assert_same_data(a: &Path, b: &Path) {
    let (left, right) = (File::open(a).unwrap(), File::open(b).unwrap());
    let size_bytes = left.metadata().unwrap().len();
    assert_eq!(
        size_bytes,
        right.metadata().unwrap().len(),
        "sizes of {a:?} and {b:?}"
    );
    let window = usize::try_from(MIB).unwrap();
    let (mut x, mut y) = (vec![0; window], vec![0; window]);
    for file in [&left, &right] {
        for extent in data_extents(file, size_bytes) {
            let mut at = extent.start;
            while at < extent.end {
                let length = MIB.min(extent.end - at);
                let part = ..usize::try_from(length).unwrap();
                left.read_exact_at(&mut x[part], at).unwrap();
                right.read_exact_at(&mut y[part], at).unwrap();
                // Slices compare fast; the place is looked for only where they differ.
                if x[part] != y[part] {
                    let place = x[part].iter().zip(&y[part]).position(|(x, y)| x != y);
                    panic!("{a:?} and {b:?} differ {place:?} bytes after {at}");
                }
                at += length;
            }
        }
    }
}

/// The places of a file that hold data.
pub fn data_extents(file: &File, size_bytes: u64) -> Vec<std::ops::Range<u64>> {
    use rustix::fs::{SeekFrom, seek};
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size_bytes {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => panic!("cannot look for data: {error}"),
        };
        at = seek(file, SeekFrom::Hole(start)).unwrap();
        extents.push(start..at);
    }
    extents
}

/// Bytes that a file takes on disk.
pub fn allocated_bytes(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&path.metadata().unwrap()) * 512
}

/// Bytes that somebody has written; room that was only made reads as a hole.
pub fn written_bytes(path: &Path) -> u64 {
    use rustix::fs::{SeekFrom, seek};
    let file = std::fs::File::open(path).unwrap();
    let mut written = 0;
    let mut at = 0;
    while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
        at = seek(&file, SeekFrom::Hole(start)).unwrap();
        written += at - start;
    }
    written
}

/// The service's program, which stands beside the command line's.
pub fn tidegated() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_tidegate")).with_file_name("tidegated");
    assert!(
        path.exists(),
        "{} is not there: run the tests of the whole workspace, or cargo build -p tidegate-agent",
        path.display()
    );
    path
}

/// How long anything may take on a machine with much else to do.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until `found` finds something.
#[track_caller]
pub fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs another program, which must succeed.
#[track_caller]
pub fn program(name: &str, args: &[&str]) -> String {
    let output = std::process::Command::new(name)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{name}: {error}: run tools/test, which installs it"));
    assert!(
        output.status.success(),
        "{name} {args:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A small file system in memory, unmounted when dropped. Needs root.
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    #[track_caller]
    pub fn mount(path: &Path, mib: u64) -> Self {
        std::fs::create_dir_all(path).unwrap();
        program(
            "mount",
            &[
                "-t",
                "tmpfs",
                "-o",
                &format!("size={mib}m"),
                "tmpfs",
                text(path),
            ],
        );
        Self {
            path: path.to_owned(),
        }
    }

    #[track_caller]
    pub fn resize(&self, mib: u64) {
        program(
            "mount",
            &["-o", &format!("remount,size={mib}m"), text(&self.path)],
        );
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.path)
            .status();
    }
}
