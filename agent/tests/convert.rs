//! Disks written as images of every format, checked by QEMU's own tools.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::single_range_in_vec_init,
    reason = "tests"
)]

mod disks;

use disks::memory::Memory;
use disks::{MIB, run, text};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tidegate_agent::Kind;
use tidegate_agent::error::Result;
use tidegate_agent::format::Format;
use tidegate_agent::source::{OpenSettings, open_source};
use tidegate_agent::target::{ConvertSettings, convert, partial_path};

/// Not a multiple of 4 KiB nor of any cluster or geometry, with data in the last sector.
fn disk() -> Memory {
    let size = 70 * MIB + 3 * 512;
    Memory::new(
        size,
        &[
            0..512,
            3 * MIB + 7..9 * MIB,
            33 * MIB..33 * MIB + 1,
            size - 100..size,
        ],
    )
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn write(disk: &Arc<Memory>, path: &Path, settings: &ConvertSettings) -> Result<()> {
    block_on(convert(disk.clone(), path, settings, |_| {}))
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn every_format_and_sub_format_holds_the_disk() {
    let disk = Arc::new(disk());
    let oracle = TempDir::new().unwrap();
    let raw = oracle.path().join("raw");
    fs::write(&raw, &disk.bytes).unwrap();
    for (format, subformat, compress) in [
        (Format::Qcow2, None, false),
        (Format::Qcow2, None, true),
        (Format::Vmdk, None, false),
        (Format::Vmdk, Some("streamOptimized"), false),
        (Format::Vmdk, Some("monolithicFlat"), false),
        (Format::Vmdk, Some("twoGbMaxExtentSparse"), false),
        (Format::Vmdk, Some("twoGbMaxExtentFlat"), false),
        (Format::Vhd, None, false),
        (Format::Vhd, Some("fixed"), false),
        (Format::Vhdx, None, false),
        (Format::Vhdx, Some("fixed"), false),
    ] {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join(format!("a disk.{format}"));
        let settings = ConvertSettings {
            subformat: subformat.map(str::to_owned),
            compress,
            ..ConvertSettings::new(format)
        };
        let heard = Mutex::new(Vec::new());
        let progress = |fraction| heard.lock().unwrap().push(fraction);
        block_on(convert(disk.clone(), &path, &settings, progress))
            .unwrap_or_else(|error| panic!("{settings:?}: {error:?}"));
        let heard = heard.into_inner().unwrap();
        assert_eq!(heard.last(), Some(&1.0), "{heard:?}");
        assert!(heard.is_sorted());

        let name = format.qemu_name();
        run(
            "qemu-img",
            &["compare", "-f", name, "-F", "raw", text(&path), text(&raw)],
        );
        let source = open_source(&path, &OpenSettings::default()).unwrap();
        assert_eq!(source.size_bytes(), disk.bytes.len() as u64);
        assert!(disks::read_whole(&*source) == disk.bytes, "{settings:?}");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!partial_path(&path).unwrap().exists());

        let error = write(&disk, &path, &settings).unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict, "{error:?}");
        let overwrite = ConvertSettings {
            overwrite: true,
            ..settings
        };
        write(&disk, &path, &overwrite).unwrap();
        run(
            "qemu-img",
            &["compare", "-f", name, "-F", "raw", text(&path), text(&raw)],
        );
    }
}

#[test]
fn small_and_odd_sizes() {
    let folder = TempDir::new().unwrap();
    for (size, format, kind) in [
        (0, Format::Qcow2, None),
        (512, Format::Qcow2, None),
        (512, Format::Vmdk, None),
        (512, Format::Vhd, None),
        (512, Format::Vhdx, None),
        (511, Format::Qcow2, Some(Kind::Unsupported)),
        (4097, Format::Vhd, Some(Kind::Unsupported)),
        (0, Format::Vhdx, Some(Kind::Unsupported)),
    ] {
        let path = folder.path().join(format!("{size}.{format}"));
        let data = 0..size;
        let disk = Arc::new(Memory::new(size, std::slice::from_ref(&data)));
        let written = write(&disk, &path, &ConvertSettings::new(format));
        assert_eq!(
            written.as_ref().err().map(tidegate_agent::Error::kind),
            kind,
            "{size} {format} {written:?}"
        );
        if kind.is_none() {
            let source = open_source(&path, &OpenSettings::default()).unwrap();
            assert!(disks::read_whole(&*source) == disk.bytes, "{size} {format}");
        } else {
            assert!(!path.exists());
        }
    }
}

#[test]
fn a_disk_that_cannot_be_read_leaves_nothing_and_says_why() {
    let folder = TempDir::new().unwrap();
    let mut disk = disk();
    disk.bad = Some(4 * MIB..5 * MIB);
    let path = folder.path().join("disk.qcow2");
    let error = write(&Arc::new(disk), &path, &ConvertSettings::new(Format::Qcow2)).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("pack 0123"), "{error}");
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn a_conversion_given_up_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let mut disk = disk();
    disk.delay = Duration::from_secs(3600);
    let path = folder.path().join("disk.qcow2");
    block_on(async {
        let settings = ConvertSettings::new(Format::Qcow2);
        let conversion = convert(Arc::new(disk), &path, &settings, |_| {});
        let ended = tokio::time::timeout(Duration::from_secs(1), conversion).await;
        assert!(ended.is_err(), "it waits for the disk");
    });
    assert_eq!(names(folder.path()), [""; 0]);
    let partial = partial_path(&path).unwrap();
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let command = fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        String::from_utf8(command).ok()
    });
    for process in processes {
        assert!(!process.contains(text(&partial)), "{process} still runs");
    }
}

#[test]
fn a_full_file_system_is_named_and_cleaned_up() {
    let Some(full) = disks::SmallDisk::mount("2m") else {
        return;
    };
    let path = full.path().join("disk.qcow2");
    let error = write(
        &Arc::new(disk()),
        &path,
        &ConvertSettings::new(Format::Qcow2),
    )
    .unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace, "{error:?}");
    assert!(error.to_string().contains(text(&path)), "{error}");
    assert_eq!(names(full.path()), [""; 0]);
}

#[test]
fn what_is_there_already_is_left_alone() {
    let folder = TempDir::new().unwrap();
    let disk = Arc::new(disk());
    let settings = ConvertSettings::new(Format::Qcow2);
    let path = folder.path().join("disk.qcow2");
    let partial = partial_path(&path).unwrap();
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join("theirs"), "").unwrap();
    let owner = fs::File::open(&partial).unwrap();
    rustix::fs::flock(&owner, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let error = write(&disk, &path, &settings).unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(partial.join("theirs").exists());
    // The owner was killed.
    drop(owner);
    write(&disk, &path, &settings).unwrap();
    assert_eq!(names(folder.path()), ["disk.qcow2"]);
    let raw = folder.path().join("disk.raw");
    drop(tidegate_agent::target::create_file(&raw, 512, false).unwrap());
    let error = write(&disk, &raw, &settings).unwrap_err();
    assert_eq!(
        error.kind(),
        Kind::Conflict,
        "an unfinished raw image: {error:?}"
    );
    let error = write(&disk, folder.path(), &settings).unwrap_err();
    assert_eq!(error.kind(), Kind::Config);
    let nowhere = folder.path().join("none/disk.qcow2");
    assert_eq!(
        write(&disk, &nowhere, &settings).unwrap_err().kind(),
        Kind::Missing
    );
}
