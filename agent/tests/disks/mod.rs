//! What the tests of disks share: programs, patterns, reading a source whole.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    dead_code,
    unreachable_pub,
    reason = "tests, each of which uses a part of this"
)]

pub mod images;
pub mod memory;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};
use tidegate_agent::source::Source;

pub const MIB: u64 = 1 << 20;

/// Bytes that differ everywhere, so that a misplaced block is noticed.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

pub fn sparse_file(path: &Path, size: u64) -> File {
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .unwrap();
    file.set_len(size).unwrap();
    file
}

/// A raw disk with data of odd lengths in odd places, text that compresses, and holes.
pub fn sample_disk(path: &Path, size: u64, seed: u64) {
    let file = sparse_file(path, size);
    let mut at = 0;
    let mut step = 3000 + seed;
    while at < size {
        let length = (step % 300_000).min(size - at);
        let mut bytes = pattern(at ^ seed, usize::try_from(length).unwrap());
        if step.is_multiple_of(3) {
            bytes.fill(b'a' + u8::try_from(step % 26).unwrap());
        }
        file.write_all_at(&bytes, at).unwrap();
        at += length + step * 7919 % (4 * MIB);
        step = step * 31 % 1_000_003 + 1;
    }
}

/// Reads a disk through its allocation map, in pieces of odd size.
pub fn read_whole(source: &dyn Source) -> Vec<u8> {
    let mut reader = source.reader().unwrap();
    let size = source.size_bytes();
    let mut disk = vec![0; usize::try_from(size).unwrap()];
    let mut last_end = 0;
    let extents = reader.allocation(0..size).unwrap();
    for extent in &extents {
        assert!(extent.start < extent.end && extent.end <= size && extent.start >= last_end);
        last_end = extent.end;
        reader.prefetch(extent.clone());
    }
    for extent in extents {
        let mut at = extent.start;
        while at < extent.end {
            let end = extent.end.min(at + 700_001);
            let place = usize::try_from(at).unwrap()..usize::try_from(end).unwrap();
            reader.read_at(at, &mut disk[place]).unwrap();
            at = end;
        }
    }
    disk
}

/// Runs a program that must succeed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = run_anyhow(program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a program that may fail.
pub fn run_anyhow(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| {
            panic!("cannot run {program} ({error}): run tools/test, which installs it")
        })
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A file system of so many bytes in memory, unmounted when dropped; nothing without the privilege
/// to mount, which is said.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub fn mount(size: &str) -> Option<Self> {
        let folder = tempfile::TempDir::new().unwrap();
        let options = format!("size={size}");
        let mounted = run_anyhow(
            "mount",
            &["-t", "tmpfs", "-o", &options, "none", text(folder.path())],
        );
        if !mounted.status.success() {
            eprintln!("skipped: {}", String::from_utf8_lossy(&mounted.stderr));
            return None;
        }
        Some(Self(folder))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run_anyhow("umount", &[text(self.0.path())]);
    }
}

/// A block device over a file; nothing without the privilege to make one, which is said.
pub struct LoopDevice(String);

impl LoopDevice {
    pub fn attach(image: &Path) -> Option<Self> {
        let losetup = std::process::Command::new("losetup")
            .args(["--find", "--show"])
            .arg(image)
            .output()
            .ok()?;
        if !losetup.status.success() {
            eprintln!("skipped: {}", String::from_utf8_lossy(&losetup.stderr));
            return None;
        }
        Some(Self(
            String::from_utf8(losetup.stdout).unwrap().trim().to_owned(),
        ))
    }

    pub fn path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup")
            .args(["-d", &self.0])
            .status();
    }
}
