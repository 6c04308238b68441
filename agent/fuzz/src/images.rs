//! What is read of images and their surroundings by hand: everything else is QEMU's, in a child.

use crate::Target;
use std::path::Path;
use tidegate_agent::chunk::partition::{PARTITIONS_MAX, regions};
use tidegate_agent::format::{Format, choose};
use tidegate_agent::testing::untrusted;

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "partition",
        run: partition,
        seeds: partition_seeds,
        held_bytes_max: 2 << 20,
    },
    Target {
        name: "vmdk",
        run: vmdk,
        seeds: vmdk_seeds,
        held_bytes_max: 1 << 20,
    },
    Target {
        name: "qemu_says",
        run: qemu_says,
        seeds: qemu_says_seeds,
        held_bytes_max: 1 << 20,
    },
    Target {
        name: "settings",
        run: settings,
        seeds: settings_seeds,
        held_bytes_max: 1 << 20,
    },
];

/// A disk's first bytes, behind its size (8 bytes) and a byte that says whether they repeat: so
/// tables far away, and chains of them that lead back, are found too.
fn partition(bytes: &[u8]) {
    let Some((&[ref size @ .., repeats], disk)) = bytes.split_first_chunk::<9>() else {
        return;
    };
    let disk_bytes = u64::from_le_bytes(*size);
    let mut reads = 0;
    let regions = regions(disk_bytes, &mut |offset, buffer| {
        reads += 1;
        assert!(
            offset + buffer.len() as u64 <= disk_bytes,
            "inside the disk"
        );
        for (ahead, byte) in buffer.iter_mut().enumerate() {
            let at = usize::try_from(offset).unwrap() + ahead;
            *byte = if repeats % 2 == 1 && !disk.is_empty() {
                disk[at % disk.len()]
            } else {
                disk.get(at).copied().unwrap_or_default()
            };
        }
        Ok(())
    })
    .unwrap();
    assert!(reads <= 4 * PARTITIONS_MAX + 3, "{reads} reads");
    assert!(regions.len() <= 2 * 4 * PARTITIONS_MAX + 1);
    let mut at = 0;
    for region in regions {
        assert_eq!(region.start, at);
        assert!(region.end > at && region.phase < 4096);
        at = region.end;
    }
    assert_eq!(at, disk_bytes);
}

fn partition_seeds() -> Vec<Vec<u8>> {
    let record = |entries: &[(u8, u32, u32)]| {
        let mut sector = vec![0; 512];
        for (number, (kind, start, sectors)) in entries.iter().enumerate() {
            let entry = &mut sector[446 + 16 * number..][..16];
            entry[4] = *kind;
            entry[8..12].copy_from_slice(&start.to_le_bytes());
            entry[12..].copy_from_slice(&sectors.to_le_bytes());
        }
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        sector
    };
    let mut header = vec![0; 512];
    header[..8].copy_from_slice(b"EFI PART");
    header[72] = 2;
    header[80] = 4;
    header[84] = 128;
    let mut entry = vec![0; 512];
    entry[0] = 1;
    entry[32] = 63;
    entry[40] = 200;
    let disk = |size: u64, repeats: u8, sectors: &[Vec<u8>]| {
        [&size.to_le_bytes()[..], &[repeats], &sectors.concat()].concat()
    };
    vec![
        disk(
            1 << 30,
            0,
            &[
                record(&[(0xee, 1, u32::MAX)]),
                header.clone(),
                entry.clone(),
            ],
        ),
        disk(
            u64::MAX,
            1,
            &[record(&[(0xee, 1, u32::MAX)]), header, entry],
        ),
        disk(
            1 << 30,
            0,
            &[record(&[(0x83, 63, 2000), (0x83, 4096, 4096)])],
        ),
        disk(1 << 30, 1, &[record(&[(0x83, 63, 100), (0x05, 2, 4096)])]),
        disk(1025, 0, &[]),
    ]
}

/// An image's head and tail, and the descriptor in it.
fn vmdk(bytes: &[u8]) {
    let tail = &bytes[bytes.len().saturating_sub(512)..];
    let looks = Format::of_magic(bytes, tail);
    for path in ["a", "a.vmdk", "a.vhd", "a.raw"] {
        for asked in [None, Some(Format::Vhd)] {
            if let Ok(chosen) = choose(Path::new(path), false, asked, looks) {
                // Nobody but the operator or the file's name makes an image anything but raw.
                assert!(chosen == Format::Raw || asked.is_some() || path != "a");
            }
        }
    }
    let lines = bytes.split(|&byte| byte == b'\n').count();
    let extents = untrusted::vmdk_extents(bytes);
    assert!(extents.len() <= lines);
    for (name, _) in extents {
        assert!(!name.contains(&b'"') && !name.contains(&b'\n'));
    }
}

fn vmdk_seeds() -> Vec<Vec<u8>> {
    vec![
        b"# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
          createType=\"twoGbMaxExtentFlat\"\nRW 4192256 SPARSE \"disk-s001.vmdk\"\n\
          RW 8192 FLAT \"disk-flat.vmdk\" 128\r\nRDONLY 1 ZERO\n"
            .to_vec(),
        b"KDMV\x01\0\0\0".to_vec(),
        [&b"conectix"[..], &[0; 504]].concat(),
        b"vhdxfile".to_vec(),
        b"QFI\xfb\0\0\0\x03".to_vec(),
    ]
}

/// What a child says: the first byte chooses whether it is an answer about an image, a line of
/// progress or messages.
fn qemu_says(bytes: &[u8]) {
    let Some((kind, said)) = bytes.split_first() else {
        return;
    };
    match kind % 3 {
        0 => untrusted::image_info(said),
        1 => {
            let fraction = untrusted::progress(said);
            assert!(fraction.is_none_or(|fraction| (0.0..=1.0).contains(&fraction)));
        }
        _ => {
            let text = untrusted::messages(said);
            assert!(!text.contains(char::is_control), "{text:?}");
        }
    }
}

fn qemu_says_seeds() -> Vec<Vec<u8>> {
    vec![
        b"\0"
            .iter()
            .chain(br#"{"virtual-size": 8388608, "filename": "a.qcow2", "format": "qcow2",
            "full-backing-filename": "/images/base.qcow2", "backing-filename": "base.qcow2",
            "backing-filename-format": "qcow2", "encrypted": true, "format-specific":
            {"type": "qcow2", "data": {"data-file": "d", "data-file-raw": true, "corrupt": false}}}"#)
            .copied()
            .collect(),
        b"\x01    (12.50/100%)".to_vec(),
        b"\x02qemu-img: Could not open 'a': \x1b[31mNo such file or directory\nqemu-img: x\n".to_vec(),
    ]
}

/// Texts of the operator's: a profile of AWS and the location of a store.
fn settings(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        untrusted::aws_profile(text, "default");
        untrusted::aws_profile(text, "profile backup");
        untrusted::store_location(text);
    }
}

fn settings_seeds() -> Vec<Vec<u8>> {
    vec![
        b"# comment\n[default]\naws_access_key_id = AK1\naws_secret_access_key=SK1=with=equals\n\n\
          [ profile  backup ]\nregion=eu-central-1\ns3 =\n  endpoint_url = http://nested\n"
            .to_vec(),
        b"s3://bucket/a/b".to_vec(),
        b"file:///folder".to_vec(),
        b"az://user:secret@container/x".to_vec(),
    ]
}
