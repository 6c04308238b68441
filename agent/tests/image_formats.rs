//! Images of every format, made by QEMU's own tools, read through our source.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::single_range_in_vec_init,
    reason = "tests"
)]

mod disks;

use disks::images::{Lab, open, open_as};
use disks::{MIB, read_whole, run, sparse_file, text};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use tidegate_agent::format::Format;
use tidegate_agent::source::{OpenSettings, open_source};

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

#[test]
fn a_block_device_is_raw_unless_the_operator_says_otherwise() {
    let lab = Lab::new();
    let image = lab.convert("disk.qcow2", "qcow2", "");
    let Some(device) = disks::LoopDevice::attach(&image) else {
        return;
    };
    let bytes = fs::read(&image).unwrap();
    assert!(read_whole(&*open(device.path()).unwrap()) == bytes);
    let source = open_as(device.path(), Format::Qcow2).unwrap();
    assert!(read_whole(&*source) == fs::read(lab.path("disk.raw")).unwrap());
    // As a backing file, too.
    let top = lab.path("top.qcow2");
    run(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            text(device.path()),
            "-F",
            "qcow2",
            text(&top),
        ],
    );
    let settings = OpenSettings {
        backing_folders: vec!["/dev".into()],
        ..OpenSettings::default()
    };
    let source = open_source(&top, &settings).unwrap();
    assert!(read_whole(&*source) == fs::read(lab.path("disk.raw")).unwrap());
}
