//! Images that are damaged, in use, or mean harm.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::single_range_in_vec_init,
    reason = "tests"
)]

mod disks;

use disks::images::{Lab, SIZE, open, open_as};
use disks::{MIB, read_whole, run, text};
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use tidegate_agent::Kind;
use tidegate_agent::format::Format;
use tidegate_agent::source::{OpenSettings, open_source};

#[test]
fn a_differencing_vhd_is_refused() {
    let lab = Lab::new();
    let image = lab.convert("child.vhd", "vpc", "subformat=dynamic,force_size=on");
    let mut bytes = fs::read(&image).unwrap();
    bytes[63] = 4;
    fs::write(&image, bytes).unwrap();
    assert_eq!(open(&image).err().unwrap().kind(), Kind::Unsupported);
}

/// The name and the header must agree; a header alone decides nothing.
#[test]
fn a_guest_cannot_make_its_raw_disk_a_qcow2() {
    let lab = Lab::new();
    let secret = lab.path("secret");
    fs::write(&secret, "the host's secret").unwrap();
    let evil = lab.path("evil.qcow2");
    run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            text(&secret),
            "-F",
            "raw",
            text(&evil),
            "1M",
        ],
    );
    let header = fs::read(&evil).unwrap();
    for (name, kind) in [("guest.img", Kind::Config), ("guest", Kind::Config)] {
        fs::write(lab.path(name), &header).unwrap();
        let error = open(&lab.path(name)).err().unwrap();
        assert_eq!(error.kind(), kind);
        assert!(
            error.advice().unwrap().contains("--format qcow2"),
            "{error:?}"
        );
    }
    fs::write(lab.path("guest.raw"), &header).unwrap();
    let source = open(&lab.path("guest.raw")).unwrap();
    assert!(read_whole(&*source) == header, "named raw, read raw");
    let source = open_as(&lab.path("guest.img"), Format::Raw).unwrap();
    assert!(read_whole(&*source) == header, "asked as raw, read raw");
}

#[test]
fn images_reach_only_files_beside_them() {
    let lab = Lab::new();
    let elsewhere = TempDir::new().unwrap();
    let base = elsewhere.path().join("base.raw");
    fs::copy(lab.path("disk.raw"), &base).unwrap();
    let image = lab.path("overlay.qcow2");
    run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            text(&base),
            "-F",
            "raw",
            text(&image),
        ],
    );
    let error = open(&image).err().unwrap();
    assert_eq!(error.kind(), Kind::Denied);
    assert!(error.to_string().contains(text(&base)), "{error}");
    let settings = OpenSettings {
        backing_folders: vec![elsewhere.path().to_owned()],
        ..OpenSettings::default()
    };
    let source = open_source(&image, &settings).unwrap();
    assert!(read_whole(&*source) == fs::read(&base).unwrap());

    for name in [
        "nbd:unix:/tmp/x",
        "nbd+unix:///?socket=/tmp/x",
        "json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}",
        "http://127.0.0.1/x",
        "fd:0",
    ] {
        let image = lab.path("protocol.qcow2");
        run(
            "qemu-img",
            &[
                "create",
                "-q",
                "-u",
                "-f",
                "qcow2",
                "-b",
                name,
                "-F",
                "raw",
                text(&image),
                "1M",
            ],
        );
        assert_eq!(open(&image).err().unwrap().kind(), Kind::Denied, "{name}");
    }
    // A directory as a backing file, a missing one, and the image itself.
    for (name, kind) in [
        (".", Kind::Denied),
        ("none", Kind::Missing),
        ("loop.qcow2", Kind::BadInput),
    ] {
        let image = lab.path("loop.qcow2");
        run(
            "qemu-img",
            &[
                "create",
                "-q",
                "-u",
                "-f",
                "qcow2",
                "-b",
                name,
                "-F",
                "qcow2",
                text(&image),
                "1M",
            ],
        );
        let error = open(&image).err().unwrap();
        assert!(
            error.kind() == kind || name == "." && error.kind() == Kind::BadInput,
            "{name}: {error:?}"
        );
    }
}

#[test]
fn encrypted_images_are_refused() {
    let lab = Lab::new();
    let image = lab.path("locked.qcow2");
    run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "--object",
            "secret,id=s,data=abc",
            "-o",
            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
            text(&image),
            "1M",
        ],
    );
    let error = open(&image).err().unwrap();
    assert_eq!(error.kind(), Kind::Unsupported, "{error:?}");
    assert!(error.to_string().contains("encrypted"), "{error}");
}

/// Every truncation and many corruptions end in an error or in a disk, never in a panic or a hang.
#[test]
fn damaged_images_are_errors() {
    let lab = Lab::new();
    for (name, format, options) in [
        ("a.qcow2", "qcow2", ""),
        ("stream.vmdk", "vmdk", "subformat=streamOptimized"),
        ("sparse.vmdk", "vmdk", "subformat=monolithicSparse"),
        ("a.vhd", "vpc", "subformat=dynamic,force_size=on"),
        ("a.vhdx", "vhdx", ""),
    ] {
        let image = lab.convert(name, format, options);
        let good = fs::read(&image).unwrap();
        for length in [0, 3, 512, 4096, 70_000, good.len() / 2] {
            fs::write(&image, &good[..length]).unwrap();
            let error = open(&image).err();
            assert!(
                error.is_some_and(|error| error.kind() == Kind::BadInput),
                "{name} cut to {length}"
            );
        }
        for (at, length) in [(4, 4), (8, 60), (512, 512), (65536, 512), (196_608, 4096)] {
            let mut bad = good.clone();
            bad[at..at + length].fill(0xff);
            fs::write(&image, &bad).unwrap();
            try_all(&image);
        }
    }
    let flat = lab.convert("f.vmdk", "vmdk", "subformat=monolithicFlat");
    let half = fs::File::options()
        .write(true)
        .open(lab.path("f-flat.vmdk"))
        .unwrap();
    half.set_len(SIZE / 2).unwrap();
    assert_eq!(open(&flat).err().unwrap().kind(), Kind::BadInput);
    let garbage = lab.path("garbage.qcow2");
    fs::write(&garbage, disks::pattern(3, 100_000)).unwrap();
    assert_eq!(open(&garbage).err().unwrap().kind(), Kind::BadInput);
    let error = open_as(&garbage, Format::Qcow2).err().unwrap();
    assert_eq!(error.kind(), Kind::BadInput);
    assert!(error.to_string().contains(text(&garbage)), "{error}");
    for format in Format::ALL {
        let error = open_as(lab.folder.path(), format).err().unwrap();
        assert_eq!(error.kind(), Kind::BadInput);
        assert!(error.to_string().contains("directory"), "{error}");
    }
}

/// Opens, maps and reads what can be read of a few places.
fn try_all(image: &Path) {
    let Ok(source) = open(image) else { return };
    let mut reader = source.reader().unwrap();
    let size = source.size_bytes();
    let Ok(extents) = reader.allocation(0..size.min(4 << 30)) else {
        return;
    };
    for extent in extents.into_iter().take(50) {
        let end = extent.end.min(extent.start + MIB);
        let mut buffer = vec![0; usize::try_from(end - extent.start).unwrap()];
        if let Err(error) = reader.read_at(extent.start, &mut buffer) {
            assert!(
                matches!(error.kind(), Kind::BadInput | Kind::Unavailable),
                "{error:?}"
            );
        }
    }
}

#[test]
fn an_image_that_a_machine_writes_is_refused() {
    let lab = Lab::new();
    let image = lab.convert("used.qcow2", "qcow2", "");
    let raw = lab.path("disk.raw");
    for (path, format) in [(&image, "qcow2"), (&raw, "raw")] {
        let socket = lab.path("socket");
        let mut writer = std::process::Command::new("qemu-nbd")
            .args(["-f", format, "-t", "-k", text(&socket), text(path)])
            .spawn()
            .expect("run tools/test, which installs qemu-nbd");
        // It listens before it opens the image, and greets after.
        while greeting(&socket).is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let error = open(path).err();
        writer.kill().unwrap();
        writer.wait().unwrap();
        let _ = fs::remove_file(&socket);
        assert_eq!(error.unwrap().kind(), Kind::Conflict);
        open(path).unwrap();
    }
}

/// What an NBD server behind `socket` says first.
fn greeting(socket: &Path) -> Option<[u8; 8]> {
    let mut greeting = [0; 8];
    let mut server = std::os::unix::net::UnixStream::connect(socket).ok()?;
    server.read_exact(&mut greeting).ok()?;
    Some(greeting)
}
