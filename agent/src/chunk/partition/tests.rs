//! Tables that sfdisk wrote, and tables that nobody should have written.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use super::*;
use crate::error::{Error, Kind};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

/// A sparse disk: what is not named is zero.
struct Disk {
    bytes: u64,
    parts: Vec<(u64, Vec<u8>)>,
    reads: usize,
}

impl Disk {
    /// Reads a file of `fixtures/`.
    fn from_table(bytes: u64, table: &str) -> Self {
        let parts = table
            .lines()
            .map(|line| {
                let (offset, raw) = line.split_once(':').unwrap();
                (offset.parse().unwrap(), hex::decode(raw).unwrap())
            })
            .collect();
        Self {
            bytes,
            parts,
            reads: 0,
        }
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.reads += 1;
        let end = offset + buffer.len() as u64;
        assert!(end <= self.bytes, "a read inside the disk");
        buffer.fill(0);
        for (at, raw) in &self.parts {
            let from = (*at).max(offset);
            let to = (at + raw.len() as u64).min(end);
            if from < to {
                let there = usize::try_from(from - offset).unwrap();
                let here = usize::try_from(from - at).unwrap();
                let length = usize::try_from(to - from).unwrap();
                buffer[there..there + length].copy_from_slice(&raw[here..here + length]);
            }
        }
        Ok(())
    }

    fn regions(&mut self) -> Vec<Region> {
        let regions = regions(self.bytes, &mut |offset, buffer| self.read(offset, buffer)).unwrap();
        let mut at = 0;
        for region in &regions {
            assert_eq!(region.start, at, "regions tile the disk: {regions:?}");
            assert!(region.start < region.end && region.phase < 4096);
            at = region.end;
        }
        assert_eq!(at, self.bytes);
        regions
    }
}

/// Start and end in sectors, phase in bytes.
fn in_sectors(regions: &[Region]) -> Vec<(u64, u64, u64)> {
    regions
        .iter()
        .map(|r| (r.start / 512, r.end / 512, r.phase))
        .collect()
}

#[test]
fn partitions_from_sector_63_shift_the_grid() {
    let mut disk = Disk::from_table(8 * MIB, include_str!("fixtures/mbr-sector-63.table"));
    assert_eq!(
        in_sectors(&disk.regions()),
        [
            (0, 63, 0),
            // Two partitions, one grid: 63 and 4063 are both 7 modulo 8.
            (63, 8064, 7 * 512),
            (8064, 16384, 0),
        ]
    );
}

#[test]
fn logical_partitions_are_followed() {
    let mut disk = Disk::from_table(16 * MIB, include_str!("fixtures/mbr-logical.table"));
    assert_eq!(
        in_sectors(&disk.regions()),
        [
            (0, 63, 0),
            (63, 4063, 7 * 512),
            (4063, 4159, 0),
            (4159, 7159, 7 * 512),
            // To 11000 on the disk's grid, as is the gap behind.
            (7159, 12001, 0),
            (12001, 27001, 512),
            (27001, 32768, 0),
        ]
    );
}

#[test]
fn aligned_partitions_make_one_region() {
    let mut disk = Disk::from_table(8 * MIB, include_str!("fixtures/mbr-aligned.table"));
    assert_eq!(in_sectors(&disk.regions()), [(0, 16384, 0)]);
}

#[test]
fn guid_tables_are_followed() {
    let mut disk = Disk::from_table(8 * MIB, include_str!("fixtures/gpt.table"));
    assert_eq!(
        in_sectors(&disk.regions()),
        [
            (0, 34, 0),
            (34, 2035, 2 * 512),
            (2035, 6145, 0),
            (6145, 8145, 512),
            (8145, 16384, 0),
        ]
    );
}

#[test]
fn disks_without_a_table_are_one_region_or_none() {
    for bytes in [1, 511, 512, 1023, 1024, 4097, 1 << 50] {
        let mut disk = Disk::from_table(bytes, "");
        assert_eq!(
            disk.regions(),
            [Region {
                start: 0,
                end: bytes,
                phase: 0
            }]
        );
    }
    assert_eq!(Disk::from_table(0, "").regions(), []);
}

#[test]
fn a_failing_read_is_an_error() {
    let failed = regions(MIB, &mut |_, _| {
        Err(Error::new(Kind::Io, "sector 0 of disk.raw"))
    });
    assert_eq!(failed.unwrap_err().kind(), Kind::Io);
}

fn record(entries: &[(u8, u32, u32)]) -> Vec<u8> {
    let mut sector = vec![0; 512];
    for (index, (kind, start, sectors)) in entries.iter().enumerate() {
        let raw = &mut sector[446 + 16 * index..][..16];
        raw[4] = *kind;
        raw[8..12].copy_from_slice(&start.to_le_bytes());
        raw[12..].copy_from_slice(&sectors.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[test]
fn what_is_not_sane_is_left_out_and_the_rest_counts() {
    let mut disk = Disk {
        bytes: MIB,
        parts: vec![(
            0,
            record(&[
                (0x83, 100, 3000),          // out of range
                (0x83, 101, 200),           // sane
                (0x83, 150, 10),            // inside the one before
                (0x83, u32::MAX, u32::MAX), // far out
            ]),
        )],
        reads: 0,
    };
    assert_eq!(
        in_sectors(&disk.regions()),
        [(0, 101, 0), (101, 301, 5 * 512), (301, 2048, 0)]
    );
}

#[test]
fn a_chain_that_bites_its_tail_ends() {
    // Each of the two extended records names the other as the next.
    let mut disk = Disk {
        bytes: MIB,
        parts: vec![
            (0, record(&[(0x05, 8, 2000)])),
            (8 * 512, record(&[(0x83, 1, 9), (0x05, 92, 100)])),
            (100 * 512, record(&[(0x83, 1, 9), (0x05, 0, 100)])),
        ],
        reads: 0,
    };
    assert_eq!(
        in_sectors(&disk.regions()),
        [
            (0, 9, 0),
            (9, 18, 512),
            (18, 101, 0),
            (101, 110, 5 * 512),
            (110, 2048, 0)
        ]
    );
    assert!(disk.reads <= 2 * PARTITIONS_MAX);
}

#[test]
fn a_guid_table_of_absurd_size_is_bounded() {
    for (entries, entry_bytes) in [
        (u32::MAX, 128),
        (u32::MAX, 4096),
        (4, u32::MAX),
        (0, 128),
        (4, 0),
        (4, 127),
        (4, 384),
    ] {
        let mut header = vec![0; 512];
        header[..8].copy_from_slice(b"EFI PART");
        header[72..80].copy_from_slice(&2_u64.to_le_bytes());
        header[80..84].copy_from_slice(&u32::to_le_bytes(entries));
        header[84..88].copy_from_slice(&u32::to_le_bytes(entry_bytes));
        let mut disk = Disk {
            bytes: 8 * MIB,
            parts: vec![(0, record(&[(0xee, 1, u32::MAX)])), (512, header)],
            reads: 0,
        };
        disk.regions();
        assert!(disk.reads <= 3);
    }
}

/// Where disk and table end with the numbers themselves, sums must not wrap into the disk.
#[test]
fn a_guid_table_behind_the_end_is_not_read() {
    for (bytes, table_sector) in [
        (8 * MIB, 8 * MIB / 512),
        (8 * MIB, u64::MAX),
        (u64::MAX, u64::MAX / 512),
        (u64::MAX, u64::MAX),
    ] {
        let mut header = vec![0; 512];
        header[..8].copy_from_slice(b"EFI PART");
        header[72..80].copy_from_slice(&table_sector.to_le_bytes());
        header[80..84].copy_from_slice(&4_u32.to_le_bytes());
        header[84..88].copy_from_slice(&128_u32.to_le_bytes());
        let mut disk = Disk {
            bytes,
            parts: vec![(0, record(&[(0xee, 1, u32::MAX)])), (512, header)],
            reads: 0,
        };
        disk.regions();
        assert_eq!(
            disk.reads, 2,
            "{bytes} bytes, table at sector {table_sector}"
        );
    }
}

proptest! {
    #[test]
    fn no_table_does_harm(
        entries in prop::collection::vec(
            (prop_oneof![Just(0x83_u8), Just(0x05), Just(0x0f), Just(0xee), any::<u8>()], 0..3000_u32, 0..3000_u32),
            0..=4,
        ),
        chain in prop::collection::vec((0..2000_u64, prop::collection::vec(
            (prop_oneof![Just(0x83_u8), Just(0x05)], 0..2000_u32, 0..2000_u32), 0..=4)), 0..8),
        noise in prop::collection::vec((0..20_000_u64, prop::collection::vec(any::<u8>(), 1..64)), 0..8),
        bytes in 0..2 * MIB,
    ) {
        let mut parts = vec![(0, record(&entries)), (512, b"EFI PART".to_vec())];
        parts.extend(chain.iter().map(|(sector, entries)| (sector * 512, record(entries))));
        parts.extend(noise);
        let mut disk = Disk { bytes, parts, reads: 0 };
        disk.regions();
        prop_assert!(disk.reads <= 4 * PARTITIONS_MAX);
    }
}
