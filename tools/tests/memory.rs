//! What a backup and a restore take in memory, measured on the real program by the kernel.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests, whose measurement is worth reading"
)]

mod site;

use site::{MIB, Site, assert_same_data};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

/// What is promised, at default settings and whatever the disk's size.
const RSS_BYTES_MAX: u64 = 400 * MIB;

const GIB: u64 = 1 << 30;
const DISK_BYTES: u64 = 2048 * GIB;

/// Data of each extent; there is one in every fourth GiB of the disk.
const EXTENT_BYTES: u64 = MIB;
const EXTENTS: u64 = 512;

/// A sparse disk of 2 TiB with 512 MiB that do not compress, spread over all of it.
fn spread_disk(path: &Path) {
    let file = File::create_new(path).unwrap();
    file.set_len(DISK_BYTES).unwrap();
    let mut bytes = vec![0; usize::try_from(EXTENT_BYTES).unwrap()];
    for extent in 0..EXTENTS {
        blake3::Hasher::new()
            .update(&extent.to_le_bytes())
            .finalize_xof()
            .fill(&mut bytes);
        file.write_all_at(&bytes, extent * 4 * GIB + 4096 * extent)
            .unwrap();
    }
}

/// Runs the program to its end. Returns the largest resident set that it ever had, in bytes.
#[expect(
    clippy::zombie_processes,
    reason = "wait4 waits for it, and brings what it used"
)]
fn peak_rss_bytes(site: &Site, args: &[&str]) -> u64 {
    let child = site
        .process()
        .args(args)
        .env("TIDEGATE_REPO", "repo")
        .env("TIDEGATE_KEY", "keys/restore.key")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid = libc::pid_t::try_from(child.id()).unwrap();
    let mut status = 0;
    // SAFETY: plain integers, for which all zeros is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both places are valid for writing as long as the call lasts, and the child is
        // ours: nobody else waits for it.
        let ended = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
        if ended == pid {
            break;
        }
        let error = std::io::Error::last_os_error();
        assert_eq!(error.kind(), std::io::ErrorKind::Interrupted, "{error}");
    }
    let status = ExitStatus::from_raw(status);
    assert!(status.success(), "{args:?}: {status}");
    u64::try_from(usage.ru_maxrss).unwrap() * 1024
}

#[track_caller]
fn assert_modest(what: &str, rss_bytes: u64) {
    eprintln!("{what}: {} MiB", rss_bytes / MIB);
    // No program of this size takes less than this: the measurement works.
    assert!(rss_bytes > 4 * MIB, "{what}: {rss_bytes} bytes");
    assert!(
        rss_bytes <= RSS_BYTES_MAX,
        "{what} took {} MiB of memory, at most {} MiB are promised",
        rss_bytes / MIB,
        RSS_BYTES_MAX / MIB
    );
}

#[test]
fn backup_and_restore_of_2_tib_stay_within_400_mib() {
    let site = Site::with_repository();
    let image = site.path("big.raw");
    spread_disk(&image);
    assert_modest("backup", peak_rss_bytes(&site, &["backup", "big.raw"]));
    assert_modest(
        "unchanged backup",
        peak_rss_bytes(&site, &["backup", "big.raw"]),
    );
    assert_modest(
        "restore",
        peak_rss_bytes(&site, &["restore", "big@latest", "--to", "back.raw"]),
    );
    assert_same_data(&image, &site.path("back.raw"));
}
