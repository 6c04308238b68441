//! Images of every format, made by QEMU's own tools, read through our source.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod disks;

use disks::{MIB, read_whole, run, sample_disk, sparse_file, text};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tidegate_agent::Kind;
use tidegate_agent::error::Result;
use tidegate_agent::format::Format;
use tidegate_agent::source::{OpenSettings, Source, open_source};

const SIZE: u64 = 67 * MIB + 512;

struct Lab {
    folder: TempDir,
}

impl Lab {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        sample_disk(&folder.path().join("disk.raw"), SIZE, 1);
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Converts the sample to `format` with `options`.
    fn convert(&self, name: &str, format: &str, options: &str) -> PathBuf {
        let image = self.path(name);
        let mut arguments = vec!["convert", "-f", "raw", "-O", format];
        if !options.is_empty() {
            arguments.extend(["-o", options]);
        }
        let disk = self.path("disk.raw");
        arguments.extend([text(&disk), text(&image)]);
        run("qemu-img", &arguments);
        image
    }
}

fn open(path: &Path) -> Result<Box<dyn Source>> {
    open_source(path, &OpenSettings::default())
}

fn open_as(path: &Path, format: Format) -> Result<Box<dyn Source>> {
    let settings = OpenSettings {
        format: Some(format),
        ..OpenSettings::default()
    };
    open_source(path, &settings)
}

/// Our view of `image` equals what qemu-img makes of it.
fn assert_reads_like_qemu_img(image: &Path, format: Format) {
    let raw = image.with_extension("oracle");
    let _ = fs::remove_file(&raw);
    run(
        "qemu-img",
        &[
            "convert",
            "-f",
            format.qemu_name(),
            "-O",
            "raw",
            text(image),
            text(&raw),
        ],
    );
    let source = open(image).unwrap();
    assert_eq!(source.size_bytes(), fs::metadata(&raw).unwrap().len());
    assert!(
        read_whole(&*source) == fs::read(&raw).unwrap(),
        "{}",
        image.display()
    );
    let description = source.describe();
    assert!(
        description.contains(text(image)) && description.contains(format.as_str()),
        "{description}"
    );
}

#[test]
fn qcow2_in_its_variants() {
    let lab = Lab::new();
    for (name, options) in [
        ("plain.qcow2", ""),
        ("zstd.qcow2", "compression_type=zstd"),
        ("old.qcow2", "compat=0.10"),
        ("sub.qcow2", "extended_l2=on,cluster_size=128k"),
        ("small.qcow2", "cluster_size=512"),
        ("data.qcow2", "data_file=data.ext"),
    ] {
        if name == "data.qcow2" {
            let data = lab.path("data.ext");
            let options = format!("data_file={}", text(&data));
            lab.convert(name, "qcow2", &options);
        } else {
            lab.convert(name, "qcow2", options);
        }
        assert_reads_like_qemu_img(&lab.path(name), Format::Qcow2);
    }
    let compressed = lab.path("compressed.qcow2");
    let (disk, zstd) = (lab.path("disk.raw"), "compression_type=zstd");
    run(
        "qemu-img",
        &[
            "convert",
            "-c",
            "-O",
            "qcow2",
            "-o",
            zstd,
            text(&disk),
            text(&compressed),
        ],
    );
    assert_reads_like_qemu_img(&compressed, Format::Qcow2);
}

#[test]
fn qcow2_with_a_backing_chain_and_an_internal_snapshot() {
    let lab = Lab::new();
    lab.convert("base.qcow2", "qcow2", "");
    let middle = lab.path("middle.qcow2");
    run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            "base.qcow2",
            "-F",
            "qcow2",
            text(&middle),
            "80M",
        ],
    );
    run(
        "qemu-io",
        &[
            "-f",
            "qcow2",
            "-c",
            "write -P 7 3M 300k",
            "-c",
            "write -z 8M 1M",
            text(&middle),
        ],
    );
    run("qemu-img", &["snapshot", "-c", "inside", text(&middle)]);
    run(
        "qemu-io",
        &["-f", "qcow2", "-c", "write -P 8 3100k 64k", text(&middle)],
    );
    let top = lab.path("top.qcow2");
    run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            text(&middle),
            "-F",
            "qcow2",
            text(&top),
        ],
    );
    run(
        "qemu-io",
        &[
            "-f",
            "qcow2",
            "-c",
            "write -P 9 79M 1M",
            "-c",
            "discard 5M 1M",
            text(&top),
        ],
    );
    for image in [&middle, &top] {
        assert_reads_like_qemu_img(image, Format::Qcow2);
    }
    // A raw base below, named without its format: its name says it.
    let overlay = lab.path("overlay.qcow2");
    run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            "disk.raw",
            "-F",
            "raw",
            text(&overlay),
        ],
    );
    assert_reads_like_qemu_img(&overlay, Format::Qcow2);
}

#[test]
fn vmdk_in_its_variants() {
    let lab = Lab::new();
    for subformat in [
        "monolithicSparse",
        "streamOptimized",
        "twoGbMaxExtentSparse",
        "monolithicFlat",
        "twoGbMaxExtentFlat",
    ] {
        let name = format!("{subformat}.vmdk");
        let image = lab.convert(&name, "vmdk", &format!("subformat={subformat}"));
        assert_reads_like_qemu_img(&image, Format::Vmdk);
    }
    let parent = lab.convert("parent.vmdk", "vmdk", "");
    let child = lab.path("child.vmdk");
    run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "vmdk",
            "-b",
            text(&parent),
            "-F",
            "vmdk",
            text(&child),
        ],
    );
    run(
        "qemu-io",
        &["-f", "vmdk", "-c", "write -P 9 7M 1M", text(&child)],
    );
    assert_reads_like_qemu_img(&child, Format::Vmdk);
}

#[test]
fn vhd_and_vhdx() {
    let lab = Lab::new();
    for (name, options) in [
        ("dynamic.vhd", "subformat=dynamic,force_size=on"),
        ("fixed.vhd", "subformat=fixed,force_size=on"),
        ("geometry.vhd", "subformat=dynamic"),
    ] {
        let image = lab.convert(name, "vpc", options);
        assert_reads_like_qemu_img(&image, Format::Vhd);
    }
    for (name, options) in [
        ("dynamic.vhdx", "subformat=dynamic"),
        ("fixed.vhdx", "subformat=fixed"),
    ] {
        let image = lab.convert(name, "vhdx", options);
        assert_reads_like_qemu_img(&image, Format::Vhdx);
    }
}

#[test]
fn a_differencing_vhd_is_refused() {
    let lab = Lab::new();
    let image = lab.convert("child.vhd", "vpc", "subformat=dynamic,force_size=on");
    let mut bytes = fs::read(&image).unwrap();
    bytes[63] = 4;
    fs::write(&image, bytes).unwrap();
    assert_eq!(open(&image).err().unwrap().kind(), Kind::Unsupported);
}

#[test]
fn a_2_tib_qcow2_is_mapped_in_seconds() {
    let lab = Lab::new();
    let image = lab.path("large.qcow2");
    run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", text(&image), "2T"],
    );
    run(
        "qemu-io",
        &["-f", "qcow2", "-c", "write -P 1 1T 64k", text(&image)],
    );
    let started = Instant::now();
    let source = open(&image).unwrap();
    let extents = source.reader().unwrap().allocation(0..2 << 40).unwrap();
    assert_eq!(extents, [1 << 40..(1 << 40) + 65536]);
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
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
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
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

#[test]
fn readers_work_side_by_side_and_outlive_their_source() {
    let lab = Lab::new();
    let image = lab.convert("disk.qcow2", "qcow2", "");
    let expected = fs::read(lab.path("disk.raw")).unwrap();
    let source = open(&image).unwrap();
    let readers: Vec<_> = (0..4).map(|_| source.reader().unwrap()).collect();
    drop(source);
    std::thread::scope(|scope| {
        for (number, mut reader) in readers.into_iter().enumerate() {
            let expected = &expected;
            scope.spawn(move || {
                let mut at = number * 1_000_003;
                for step in 0..200usize {
                    let length = (step * 77_777) % 900_000 + 1;
                    let end = (at + length).min(expected.len());
                    if step % 3 == 0 {
                        reader.prefetch(at as u64..expected.len() as u64);
                    }
                    let mut buffer = vec![0xee; end - at];
                    reader.read_at(at as u64, &mut buffer).unwrap();
                    assert!(buffer == expected[at..end], "{at}..{end}");
                    at = if step % 5 == 0 {
                        (at * 7 + step) % expected.len()
                    } else {
                        end
                    };
                    if at == expected.len() {
                        at = 0;
                    }
                }
            });
        }
    });
}

#[test]
fn an_empty_disk_and_a_hole() {
    let lab = Lab::new();
    for (name, size) in [("empty.raw", 0), ("hole.raw", 64 * MIB)] {
        sparse_file(&lab.path(name), size);
        let source = open(&lab.path(name)).unwrap();
        assert_eq!(source.size_bytes(), size);
        assert_eq!(source.reader().unwrap().allocation(0..size).unwrap(), []);
    }
    for size in ["0", "64M"] {
        let image = lab.path(&format!("hole{size}.qcow2"));
        run(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", text(&image), size],
        );
        let source = open(&image).unwrap();
        let size = source.size_bytes();
        assert_eq!(source.reader().unwrap().allocation(0..size).unwrap(), []);
    }
}
