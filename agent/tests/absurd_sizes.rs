//! Disks and images that claim sizes which cannot be: what is refused names the limit, what works
//! takes bounded memory, in this process and in QEMU's.
//!
//! Not about content: `hostile_images` has images that are damaged or reach out.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::single_range_in_vec_init,
    reason = "tests"
)]

mod disks;
mod lab;

use async_trait::async_trait;
use bytes::Bytes;
use disks::images::{Lab as ImageLab, open};
use disks::{LoopDevice, MIB, SmallDisk, run, sparse_file};
use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use tidegate_agent::nbd::server::{Export, Limits, Server};
use tidegate_agent::source::{NbdSource, RawSource, Source};
use tidegate_agent::{Kind, Result};
use tidegate_protocol::limits::DISK_BYTES_MAX;
use tokio_util::sync::CancellationToken;

/// The largest file and the largest offset that Linux knows.
const LARGEST: u64 = i64::MAX as u64;
/// What QEMU may take of memory, and a little more for what its program is made of, in bytes.
const CHILD_BYTES_MAX: u64 = (2 << 30) + (256 << 20);

/// Backing it up ends at once, with the limit in the message, and leaves nothing.
fn assert_refused_as_too_large(runtime: &tokio::runtime::Runtime, source: Arc<dyn Source>) {
    runtime.block_on(async {
        let lab = lab::Lab::in_memory().await;
        let repository = lab.open().await;
        let size = source.size_bytes().to_string();
        let request = lab::request("web", source, None);
        let error = lab::try_back_up(&repository, request).await.unwrap_err();
        let text = error.to_string();
        for fact in [size, DISK_BYTES_MAX.to_string()] {
            assert!(text.contains(&fact), "{text} should name {fact}");
        }
        assert_eq!(repository.points(None).unwrap().len(), 0);
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// A file of 8 EiB, of which a tmpfs makes nothing.
#[test]
fn a_raw_file_of_8_eib() {
    let Some(folder) = SmallDisk::mount("4m") else {
        return;
    };
    let path = folder.path().join("huge.raw");
    let file = sparse_file(&path, LARGEST);
    // Not in the very last page, which Linux itself overlooks in a file as long as this.
    let at = LARGEST - 8 * MIB;
    file.write_all_at(b"the end", at).unwrap();
    let source = RawSource::open(&path).unwrap();
    assert_eq!(source.size_bytes(), LARGEST);
    let mut reader = source.reader().unwrap();
    let data = reader.allocation(0..LARGEST).unwrap();
    assert_eq!(data.len(), 1, "{data:?}");
    assert!(data[0].start <= at && at + 7 <= data[0].end, "{data:?}");
    assert!(data[0].end - data[0].start <= 4 * MIB, "{data:?}");
    let mut end = [0; 7];
    reader.read_at(at, &mut end).unwrap();
    assert_eq!(&end, b"the end");
    drop(reader);
    assert_refused_as_too_large(&runtime(), Arc::new(source));
}

/// A disk of zeros of any size.
struct Zeros(u64);

#[async_trait]
impl Export for Zeros {
    fn size_bytes(&self) -> u64 {
        self.0
    }

    async fn allocation(&self, range: Range<u64>) -> Result<Vec<(Range<u64>, bool)>> {
        Ok(vec![(range, false)])
    }

    async fn read(&self, _offset: u64, length: u32) -> Result<Bytes> {
        Ok(vec![0; length as usize].into())
    }
}

#[test]
fn a_server_that_claims_all_there_is() {
    for size in [LARGEST, LARGEST + 1, u64::MAX] {
        let runtime = runtime();
        let folder = TempDir::new().unwrap();
        let socket = folder.path().join("nbd");
        let _inside = runtime.enter();
        let server = Server::bind(&socket).unwrap();
        let stop = CancellationToken::new();
        runtime.spawn(server.run(Arc::new(Zeros(size)), Limits::default(), stop));
        let source = NbdSource::connect(&socket, "", "the disk".to_owned(), Box::new(())).unwrap();
        assert_eq!(source.size_bytes(), size);
        let mut reader = source.reader().unwrap();
        let span = size - 64 * MIB..size;
        assert_eq!(reader.allocation(span.clone()).unwrap(), []);
        reader.prefetch(span);
        let mut end = [1; 4097];
        reader.read_at(size - 4097, &mut end).unwrap();
        assert_eq!(end, [0; 4097]);
        drop(reader);
        assert_refused_as_too_large(&runtime, Arc::new(source));
    }
}

/// A device that loses its second half after it was opened.
#[test]
fn a_block_device_that_shrinks_is_an_error_and_no_hole() {
    let folder = TempDir::new().unwrap();
    let image = folder.path().join("disk.raw");
    let file = sparse_file(&image, 8 * MIB);
    let bytes = disks::pattern(1, usize::try_from(8 * MIB).unwrap());
    file.write_all_at(&bytes, 0).unwrap();
    let Some(device) = LoopDevice::attach(&image) else {
        return;
    };
    let source = RawSource::open(device.path()).unwrap();
    assert_eq!(source.size_bytes(), 8 * MIB);
    let mut reader = source.reader().unwrap();
    file.set_len(4 * MIB).unwrap();
    run("losetup", &["-c", disks::text(device.path())]);
    let mut buffer = vec![0; usize::try_from(MIB).unwrap()];
    reader.read_at(2 * MIB, &mut buffer).unwrap();
    assert!(buffer == bytes[2 << 20..3 << 20]);
    for at in [4 * MIB - 512, 4 * MIB, 7 * MIB] {
        let error = reader.read_at(at, &mut buffer).unwrap_err();
        assert_eq!(error.kind(), Kind::BadInput, "{error:?}");
        let text = error.to_string();
        let name = disks::text(device.path());
        assert!(
            text.contains(name) && text.contains(&at.to_string()),
            "{text}"
        );
    }
}

/// What is written over a sound image.
type Patch<'a> = (u64, &'a [u8]);

fn patched(image: &Path, patches: &[Patch<'_>]) -> PathBuf {
    let bad = image.with_file_name(format!(
        "bad-{}",
        disks::text(image.file_name().unwrap().as_ref())
    ));
    fs::copy(image, &bad).unwrap();
    let file = fs::File::options().write(true).open(&bad).unwrap();
    for (at, bytes) in patches {
        file.write_all_at(bytes, *at).unwrap();
    }
    bad
}

/// Opens an image, looks at both ends of it, and checks what its children took. The error is one
/// about the image, if there is one.
fn try_all(image: &Path, what: &str) {
    let outcome = open(image).and_then(|source| {
        let size = source.size_bytes();
        let mut reader = source.reader()?;
        for start in [0, size.saturating_sub(64 * MIB)] {
            let span = start..size.min(start + 64 * MIB);
            let data = reader.allocation(span.clone())?;
            assert!(data.len() < 64 << 10, "{what}: {} extents", data.len());
            let mut buffer = vec![0; usize::try_from((span.end - span.start).min(4096)).unwrap()];
            reader.read_at(span.end - buffer.len() as u64, &mut buffer)?;
        }
        Ok(size)
    });
    if let Err(error) = outcome {
        let about_it = matches!(error.kind(), Kind::BadInput | Kind::Unsupported);
        assert!(about_it, "{what}: {error:?}");
        let folder = disks::text(image.parent().unwrap());
        assert!(error.to_string().contains(folder), "{what}: {error}");
    }
    let taken = largest_child_bytes();
    assert!(taken < CHILD_BYTES_MAX, "{what}: {taken} bytes");
}

/// The most that any child of this process took that has ended, in bytes.
fn largest_child_bytes() -> u64 {
    // SAFETY: an all-zero `rusage` is a valid value of this plain C structure, which the call fills.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage), 0);
        usage
    };
    u64::try_from(usage.ru_maxrss).unwrap() << 10
}

const ABSURD: [u64; 4] = [u64::MAX, 1 << 63, LARGEST - 511, 1 << 55];

#[test]
fn qcow2_images_of_absurd_sizes() {
    let lab = ImageLab::new();
    let image = lab.convert("a.qcow2", "qcow2", "");
    for number in ABSURD {
        let bad = patched(&image, &[(24, &number.to_be_bytes())]);
        try_all(&bad, &format!("size {number}"));
        // Where the tables are.
        for at in [40, 48, 64] {
            let bad = patched(&image, &[(at, &number.to_be_bytes())]);
            try_all(&bad, &format!("{number} at {at}"));
        }
    }
    // Entries of the first table, clusters of the reference counts, snapshots; and a disk that would
    // need so many. (A first table of a million entries, all of them garbage, is one that QEMU
    // checks for a minute.)
    for (at, numbers) in [
        (36, &[u32::MAX, 1 << 31, (1 << 25) + 1][..]),
        (56, &[u32::MAX, 1 << 31, 1 << 16]),
        (60, &[u32::MAX, 1 << 31, 1 << 16]),
    ] {
        for number in numbers {
            let huge: Patch<'_> = (24, &(1_u64 << 50).to_be_bytes());
            let field: Patch<'_> = (at, &number.to_be_bytes());
            try_all(&patched(&image, &[field]), &format!("{number} at {at}"));
            let both = patched(&image, &[huge, field]);
            try_all(&both, &format!("{number} at {at}, 1 PiB"));
        }
    }
}

#[test]
fn vmdk_images_of_absurd_sizes() {
    let lab = ImageLab::new();
    let image = lab.convert("a.vmdk", "vmdk", "subformat=monolithicSparse");
    for number in ABSURD.iter().chain(&[1 << 33]) {
        // Sectors, sectors of a grain, the descriptor, and both directories.
        for at in [12, 20, 28, 36, 48, 56] {
            let bad = patched(&image, &[(at, &number.to_le_bytes())]);
            try_all(&bad, &format!("{number} at {at}"));
        }
    }
    for number in [u32::MAX, 1 << 31, 0] {
        let bad = patched(&image, &[(44, &number.to_le_bytes())]);
        try_all(&bad, &format!("{number} entries of a table"));
        let bad = patched(
            &image,
            &[
                (12, &(1_u64 << 50).to_le_bytes()),
                (44, &number.to_le_bytes()),
            ],
        );
        try_all(&bad, &format!("{number} entries of a table, 512 PiB"));
    }
    fs::write(lab.path("flat.bin"), [1; 4096]).unwrap();
    for sectors in [u64::MAX, 1 << 54, 1 << 53] {
        for line in [
            format!("RW {sectors} FLAT \"flat.bin\" 0"),
            format!("RW 8 FLAT \"flat.bin\" {sectors}"),
            format!("RW {sectors} ZERO"),
            format!("RW 8 FLAT \"flat.bin\" 0\nRW {sectors} ZERO"),
            format!("RW {sectors} SPARSE \"flat.bin\""),
        ] {
            let bad = lab.path("bad.vmdk");
            let head = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
                        createType=\"twoGbMaxExtentFlat\"\n";
            fs::write(&bad, format!("{head}{line}\n")).unwrap();
            try_all(&bad, &line);
        }
    }
}

#[test]
fn vhd_images_of_absurd_sizes() {
    let lab = ImageLab::new();
    let image = lab.convert("a.vhd", "vpc", "subformat=dynamic,force_size=on");
    let length = fs::metadata(&image).unwrap().len();
    for number in ABSURD {
        let number = number.to_be_bytes();
        let bad = patched(&image, &[(48, &number), (length - 512 + 48, &number)]);
        try_all(&bad, &format!("size {number:?}"));
        let bad = patched(&image, &[(16, &number), (length - 512 + 16, &number)]);
        try_all(&bad, &format!("header at {number:?}"));
        let bad = patched(&image, &[(512 + 16, &number)]);
        try_all(&bad, &format!("table at {number:?}"));
    }
    for number in [u32::MAX, 1 << 31, 1 << 29, 0, 1] {
        for at in [512 + 28, 512 + 32] {
            let bad = patched(&image, &[(at, &u32::to_be_bytes(number))]);
            try_all(&bad, &format!("{number} at {at}"));
        }
    }
}

/// CRC-32C, which seals a VHDX's headers.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & 0_u32.wrapping_sub(crc & 1))
        })
    })
}

/// Its block table is said to take nearly 2 GiB, or more, and the file is long enough for it. QEMU
/// would take the first into memory, and is kept from it; more it refuses by itself.
#[test]
fn a_vhdx_whose_table_would_fill_the_memory() {
    const TABLE: [u8; 16] = [
        0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a,
        0x08,
    ];
    const REGIONS_BYTES: usize = 64 << 10;
    let lab = ImageLab::new();
    let image = lab.convert("a.vhdx", "vhdx", "");
    for length in [0x7ff0_0000_u32, 0x8000_0000, 0xfff0_0000, 3 << 20] {
        let bad = patched(&image, &[]);
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(&bad)
            .unwrap();
        for regions_at in [192 << 10, 256 << 10] {
            let mut regions = vec![0; REGIONS_BYTES];
            file.read_exact_at(&mut regions, regions_at).unwrap();
            assert!(regions.starts_with(b"regi"));
            let entry = regions.windows(16).position(|guid| guid == TABLE).unwrap();
            regions[entry + 16..entry + 24].copy_from_slice(&(1_u64 << 30).to_le_bytes());
            regions[entry + 24..entry + 28].copy_from_slice(&length.to_le_bytes());
            regions[4..8].fill(0);
            let seal = crc32c(&regions);
            regions[4..8].copy_from_slice(&seal.to_le_bytes());
            file.write_all_at(&regions, regions_at).unwrap();
        }
        file.set_len(6 << 30).unwrap();
        try_all(&bad, &format!("a table of {length} bytes"));
        // The small one is only in another place: the patch itself is sound.
        assert_eq!(open(&bad).is_ok(), length == 3 << 20, "{length}");
    }
}
