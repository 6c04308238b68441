//! Raw images and sparse targets on a real file system.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::single_range_in_vec_init,
    reason = "tests"
)]

mod disks;

use disks::{LoopDevice, MIB, pattern, read_whole, sparse_file};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use tempfile::TempDir;
use tidegate_agent::Kind;
use tidegate_agent::source::{RawSource, Source};
use tidegate_agent::target::{create_file, open_in_place, partial_path, resume_partial};

/// Empty; below, at and above a sector, a block and a span.
#[test]
fn odd_sizes_read_as_they_are() {
    let folder = TempDir::new().unwrap();
    for size in [
        0,
        1,
        511,
        4095,
        4096,
        4097,
        64 * MIB - 1,
        64 * MIB,
        64 * MIB + 1,
    ] {
        let path = folder.path().join(format!("disk-{size}.raw"));
        let file = sparse_file(&path, size);
        // Data at both ends, and a hole between them where there is room.
        let edge = usize::try_from(size.min(5000)).unwrap();
        file.write_all_at(&pattern(0, edge), 0).unwrap();
        file.write_all_at(&pattern(7, edge), size - edge as u64)
            .unwrap();
        let source = RawSource::open(&path).unwrap();
        assert_eq!(source.size_bytes(), size);
        assert!(
            read_whole(&source) == fs::read(&path).unwrap(),
            "size {size}"
        );
    }
}

#[test]
fn a_2_tib_hole_is_mapped_at_once() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("large.raw");
    let size = 2 << 40;
    let file = sparse_file(&path, size);
    let source = RawSource::open(&path).unwrap();
    assert_eq!(source.reader().unwrap().allocation(0..size).unwrap(), []);
    file.write_all_at(b"x", size / 2).unwrap();
    let extents = source.reader().unwrap().allocation(0..size).unwrap();
    assert_eq!(extents.len(), 1);
    assert!(extents[0].contains(&(size / 2)));
    assert!(extents[0].end - extents[0].start <= MIB);
    // Clipped to what was asked.
    let clipped = source
        .reader()
        .unwrap()
        .allocation(size / 2 + 1..size / 2 + 9)
        .unwrap();
    assert_eq!(clipped, [size / 2 + 1..size / 2 + 9]);
}

#[test]
fn an_image_that_shrinks_is_an_error_and_no_hole() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("disk.raw");
    let file = sparse_file(&path, MIB);
    file.write_all_at(&pattern(0, 65536), 0).unwrap();
    let source = RawSource::open(&path).unwrap();
    file.set_len(65536).unwrap();
    let mut reader = source.reader().unwrap();
    let error = reader.allocation(0..MIB).unwrap_err();
    assert_eq!(error.kind(), Kind::BadInput);
    let error = reader.read_at(65000, &mut [0; 1000]).unwrap_err();
    assert_eq!(error.kind(), Kind::BadInput);
    let text = error.to_string();
    for fact in [path.to_str().unwrap(), "65536", "65000", "1000", "536"] {
        assert!(text.contains(fact), "{text} should name {fact}");
    }
}

#[test]
fn what_is_no_disk_is_refused_without_blocking() {
    let folder = TempDir::new().unwrap();
    let pipe = folder.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let socket = folder.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for (path, name) in [
        (folder.path(), "a directory"),
        (&pipe, "a pipe"),
        (&socket, "a socket"),
        (Path::new("/dev/zero"), "a character device"),
    ] {
        let error = RawSource::open(path).unwrap_err();
        assert_eq!(error.kind(), Kind::BadInput);
        assert!(error.to_string().contains(name), "{error}");
    }
    let error = RawSource::open(&folder.path().join("none")).unwrap_err();
    assert_eq!(error.kind(), Kind::Missing);
}

#[test]
fn a_new_target_takes_its_name_when_it_is_finished() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("new.raw");
    let size = 64 * MIB + 1;
    let target = create_file(&path, size, false).unwrap();
    assert!(target.reads_zero());
    target.write_at(5, &pattern(5, 100_000)).unwrap();
    target.write_at(size - 1, b"!").unwrap();
    target.write_zeros(50..70).unwrap();
    target.write_zeros(MIB..size - 1).unwrap();
    let mut back = [1; 30];
    target.read_at(45, &mut back).unwrap();
    assert_eq!(back[5..25], [0; 20]);
    assert!(!path.exists());
    target.finish().unwrap();
    assert!(!partial_path(&path).unwrap().exists());
    let found = fs::metadata(&path).unwrap();
    assert_eq!(found.len(), size);
    assert!(found.blocks() * 512 < MIB, "sparse");
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    let mut expected = pattern(5, 100_000);
    expected[45..65].fill(0);
    let found = fs::read(&path).unwrap();
    assert!(found[5..100_005] == expected);
    assert_eq!(found.last(), Some(&b'!'));
}

#[test]
fn nothing_is_overwritten_unasked() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("disk.raw");
    fs::write(&path, "precious").unwrap();
    let error = create_file(&path, 10, false).err().unwrap();
    assert_eq!(error.kind(), Kind::Conflict);
    // It may also appear while we write.
    let other = folder.path().join("other.raw");
    let target = create_file(&other, 10, false).unwrap();
    fs::write(&other, "precious").unwrap();
    assert_eq!(target.finish().unwrap_err().kind(), Kind::Conflict);
    assert_eq!(fs::read(&other).unwrap(), b"precious");
    // Asked, it is replaced whole.
    create_file(&path, 10, true).unwrap().finish().unwrap();
    assert_eq!(fs::read(&path).unwrap(), [0; 10]);
    let error = create_file(folder.path(), 10, true).err().unwrap();
    assert_eq!(error.kind(), Kind::Config);
    assert_eq!(
        create_file(Path::new("/"), 10, true).err().unwrap().kind(),
        Kind::Config
    );
}

#[test]
fn an_interrupted_target_is_resumed_by_one_process_at_a_time() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("disk.raw");
    let first = create_file(&path, 2 * MIB, false).unwrap();
    first.write_at(4096, b"kept").unwrap();
    assert_eq!(
        create_file(&path, 2 * MIB, false).err().unwrap().kind(),
        Kind::Conflict
    );
    assert_eq!(
        resume_partial(&path, 2 * MIB, false).err().unwrap().kind(),
        Kind::Conflict
    );
    drop(first);
    assert_eq!(
        resume_partial(&path, MIB, false).err().unwrap().kind(),
        Kind::Conflict
    );
    let second = resume_partial(&path, 2 * MIB, false).unwrap();
    assert!(!second.reads_zero());
    let held = second.allocation(0..2 * MIB).unwrap();
    assert_eq!(held, [4096..8192]);
    let mut back = [0; 4];
    second.read_at(4096, &mut back).unwrap();
    assert_eq!(&back, b"kept");
    second.finish().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 2 * MIB);
    let error = resume_partial(&folder.path().join("other"), 1, false)
        .err()
        .unwrap();
    assert_eq!(error.kind(), Kind::Missing);
}

#[test]
fn in_place_writes_zeros_where_zeros_belong() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("disk.raw");
    fs::write(&path, pattern(0, 300_000)).unwrap();
    let target = open_in_place(&path, 300_001).unwrap();
    assert!(!target.reads_zero());
    target.write_zeros(10..299_990).unwrap();
    target.write_at(100, b"new").unwrap();
    assert_eq!(
        open_in_place(&path, 300_001).err().unwrap().kind(),
        Kind::Conflict
    );
    target.finish().unwrap();
    drop(target);
    let found = fs::read(&path).unwrap();
    assert_eq!(found.len(), 300_001);
    assert_eq!(found[..10], pattern(0, 10));
    assert!(
        found[10..100]
            .iter()
            .chain(&found[103..299_990])
            .all(|&byte| byte == 0)
    );
    assert_eq!(&found[100..103], b"new");
    assert_eq!(found[299_990..300_000], pattern(0, 300_000)[299_990..]);
    let error = open_in_place(&path, 10).err().unwrap();
    assert_eq!(
        error.kind(),
        Kind::Config,
        "an image larger than the disk is the wrong one"
    );
    assert_eq!(fs::metadata(&path).unwrap().len(), 300_001);
    let none = folder.path().join("none");
    assert_eq!(
        open_in_place(&none, 10).err().unwrap().kind(),
        Kind::Missing
    );
    assert_eq!(
        open_in_place(folder.path(), 10).err().unwrap().kind(),
        Kind::Config
    );
}

#[test]
fn a_block_device_is_written_in_place() {
    // Loop devices need privileges; without them this test has nothing to run on and says so.
    let folder = TempDir::new().unwrap();
    let image = folder.path().join("backing.raw");
    let size = 3 * MIB;
    fs::write(&image, pattern(1, usize::try_from(size).unwrap())).unwrap();
    let Some(device) = LoopDevice::attach(&image) else {
        return;
    };
    let path = device.path();
    let source = RawSource::open(path).unwrap();
    assert_eq!(source.size_bytes(), size);
    assert!(read_whole(&source) == fs::read(&image).unwrap());
    assert_eq!(
        open_in_place(path, size + 1).err().unwrap().kind(),
        Kind::NoSpace
    );
    assert_eq!(
        create_file(path, size, true).err().unwrap().kind(),
        Kind::Config
    );
    let target = open_in_place(path, size - 512).unwrap();
    target.write_zeros(1000..size - 1000).unwrap();
    target.write_at(4096 * 3 + 1, b"new").unwrap();
    target.finish().unwrap();
    let mut expected = pattern(1, usize::try_from(size).unwrap());
    let end = expected.len() - 1000;
    expected[1000..end].fill(0);
    expected[4096 * 3 + 1..][..3].copy_from_slice(b"new");
    assert!(read_whole(&source) == expected);
}

#[test]
fn a_full_file_system_is_named() {
    let Some(full) = disks::SmallDisk::mount("1m") else {
        return;
    };
    let path = full.path().join("disk.raw");
    let target = create_file(&path, 64 * MIB, false).unwrap();
    let block = pattern(0, 100_000);
    let error = (0..64u64)
        .find_map(|step| target.write_at(step * MIB, &block).err())
        .unwrap();
    assert_eq!(error.kind(), Kind::NoSpace);
    assert!(error.to_string().contains(disks::text(&path)), "{error}");
    drop(target);
    assert!(!path.exists() && partial_path(&path).unwrap().exists());
}
