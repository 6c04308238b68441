//! What becomes of QEMU's processes, seen from outside: a process of ours opens an image, and is
//! killed, or finds no QEMU.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::single_range_in_vec_init,
    reason = "tests"
)]

mod disks;

use disks::{MIB, run, sample_disk, text};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tidegate_agent::Kind;
use tidegate_agent::source::{OpenSettings, open_source};

const IMAGE: &str = "TIDEGATE_TEST_IMAGE";

/// The process of ours: opens the image that it is told and waits to be killed.
#[test]
#[ignore = "a part that the other tests of this file start"]
fn open_and_wait() {
    let image = PathBuf::from(std::env::var_os(IMAGE).expect("started by another test"));
    // On a thread that ends, as a runtime's threads do: the child must not end with it.
    let opened = std::thread::spawn(move || open_source(&image, &OpenSettings::default()));
    match opened.join().unwrap() {
        Ok(source) => {
            std::thread::sleep(Duration::from_millis(300));
            let mut reader = source.reader().unwrap();
            reader.read_at(0, &mut [0; 512]).unwrap();
            println!("\nOPEN");
            std::thread::sleep(Duration::from_secs(60));
        }
        Err(error) => println!("\n{:?} {error:?}", error.kind()),
    }
}

fn start(image: &Path, path: &str) -> (Child, String) {
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "open_and_wait", "--ignored", "--nocapture"])
        .env(IMAGE, image)
        .env("PATH", path)
        // A killed process leaves its socket's folder behind.
        .env("TMPDIR", image.parent().unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let said = lines
        .map(|line| line.unwrap())
        .find(|line| line == "OPEN" || line.contains(text(image)));
    (process, said.expect("the process says how it went"))
}

fn image(folder: &TempDir) -> PathBuf {
    let raw = folder.path().join("disk.raw");
    sample_disk(&raw, 8 * MIB, 4);
    let image = folder.path().join("disk.qcow2");
    run(
        "qemu-img",
        &["convert", "-O", "qcow2", text(&raw), text(&image)],
    );
    image
}

/// Processes that have the image on their command line.
fn users(image: &Path) -> usize {
    let processes = fs::read_dir("/proc").unwrap();
    processes
        .filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok())
        .filter(|command| String::from_utf8_lossy(command).contains(text(image)))
        .count()
}

#[test]
fn no_child_outlives_a_killed_process() {
    let folder = TempDir::new().unwrap();
    let image = image(&folder);
    let path = std::env::var("PATH").unwrap();
    let (mut process, said) = start(&image, &path);
    assert_eq!(said, "OPEN");
    assert_eq!(users(&image), 1, "qemu-nbd serves it");
    process.kill().unwrap();
    process.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while users(&image) > 0 {
        assert!(
            Instant::now() < deadline,
            "qemu-nbd outlived the process that started it"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn no_child_outlives_its_source() {
    let folder = TempDir::new().unwrap();
    let image = image(&folder);
    let source = open_source(&image, &OpenSettings::default()).unwrap();
    let reader = source.reader().unwrap();
    drop(source);
    assert_eq!(users(&image), 1, "a reader is left");
    drop(reader);
    assert_eq!(users(&image), 0);
}

#[test]
fn without_qemu_the_package_is_named() {
    let folder = TempDir::new().unwrap();
    let image = image(&folder);
    let (mut process, said) = start(&image, text(folder.path()));
    process.wait().unwrap();
    assert!(
        said.starts_with(&format!("{:?} ", Kind::Unsupported)),
        "{said}"
    );
    assert!(
        said.contains("qemu-utils") && said.contains(text(&image)),
        "{said}"
    );
}
