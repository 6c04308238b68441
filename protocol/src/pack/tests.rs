//! Footers that a holder of the metadata key has sealed, whatever is in them.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::keys::{Level, RepositorySecret};
use proptest::collection::vec;
use proptest::prelude::*;

fn keys() -> Keys {
    let secret = RepositorySecret(Secret([1; 32]));
    secret.issue(Level::Host, RepositoryId([2; 16]), Secret([3; 32]), 0)
}

/// A tree pack of `frames_bytes` zeros under a footer of that table.
fn pack_of(keys: &Keys, frames_bytes: usize, table: &[u8]) -> Vec<u8> {
    let random = PackRandom {
        salt: [4; 32],
        key: Secret([5; 32]),
        seed: Secret([6; 32]),
    };
    let writer = PackWriter::new(PackKind::Tree, keys, random, Vec::new()).unwrap();
    let mut bytes = writer.bytes;
    bytes.resize(bytes.len() + frames_bytes, 0);
    let footer = writer.footer_key.seal(0, &writer.header, table);
    bytes.extend_from_slice(&footer);
    bytes.extend_from_slice(&length_u32(footer.len()).to_le_bytes());
    bytes.extend_from_slice(&TRAILER_MAGIC);
    bytes
}

fn table(frames: &[[u32; 3]], items: &[u32]) -> Vec<u8> {
    let mut table = length_u32(frames.len()).to_le_bytes().to_vec();
    table.extend(
        frames
            .iter()
            .flatten()
            .flat_map(|field| field.to_le_bytes()),
    );
    for length in items {
        table.extend_from_slice(&[7; 32]);
        table.extend_from_slice(&length.to_le_bytes());
    }
    table
}

#[test]
fn sealed_footers_are_checked_all_the_same() {
    let keys = keys();
    let open = |frames_bytes, frames: &[[u32; 3]], items: &[u32]| {
        Footer::open(&pack_of(&keys, frames_bytes, &table(frames, items)), &keys)
    };
    assert!(open(0, &[], &[]).is_ok());
    assert!(open(100, &[[60, 30, 2], [40, 9, 1]], &[10, 20, 9]).is_ok());
    for (reason, frames_bytes, frames, items) in [
        (
            "bytes that no frame covers",
            100,
            vec![[60, 10, 1]],
            vec![10],
        ),
        (
            "a frame that runs into the footer",
            50,
            vec![[60, 10, 1]],
            vec![10],
        ),
        (
            "a frame shorter than its seal",
            21,
            vec![[21, 10, 1]],
            vec![10],
        ),
        (
            "lengths that wrap around to the right end",
            60,
            vec![[u32::MAX, 10, 1], [61, 10, 1]],
            vec![10, 10],
        ),
        ("a frame without items", 60, vec![[60, 0, 0]], vec![]),
        ("an empty item", 60, vec![[60, 10, 2]], vec![10, 0]),
        (
            "items that wrap around to the right sum",
            60,
            vec![[60, 9, 3]],
            vec![u32::MAX, 5, 5],
        ),
        (
            "an item above its bound",
            60,
            vec![[60, PAGE_BYTES_MAX + 1, 1]],
            vec![PAGE_BYTES_MAX + 1],
        ),
        (
            "another sum than the frame's",
            60,
            vec![[60, 11, 1]],
            vec![10],
        ),
        ("fewer items than counted", 60, vec![[60, 10, 2]], vec![10]),
        (
            "more items than counted",
            60,
            vec![[60, 10, 1]],
            vec![10, 10],
        ),
        (
            "a count beyond all memory",
            60,
            vec![[60, 10, u32::MAX]],
            vec![10],
        ),
    ] {
        assert!(open(frames_bytes, &frames, &items).is_err(), "{reason}");
    }
    let mut counts = table(&[], &[]);
    counts[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(Footer::open(&pack_of(&keys, 0, &counts), &keys).is_err());
}

#[test]
fn footers_lie_behind_the_header() {
    let keys = keys();
    let mut bytes = pack_of(&keys, 0, &table(&[], &[]));
    let trailer = bytes.len() - TRAILER_BYTES;
    for length in [
        0,
        1,
        trailer,
        trailer + 1,
        trailer + TRAILER_BYTES,
        u32::MAX as usize,
    ] {
        bytes[trailer..trailer + 4].copy_from_slice(&length_u32(length).to_le_bytes());
        assert!(Footer::open(&bytes, &keys).is_err(), "{length}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sealed_nonsense_is_an_error(content in vec(any::<u8>(), 0..400), frames_bytes in 0..200_usize) {
        let keys = keys();
        let _ = Footer::open(&pack_of(&keys, frames_bytes, &content), &keys);
    }

    #[test]
    fn changed_tables_are_read_within_the_pack(
        lengths in vec((22..200_u32, vec(1..50_u32, 1..4)), 1..5),
        at in any::<proptest::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let keys = keys();
        let frames_bytes = lengths.iter().map(|(stored, _)| *stored as usize).sum();
        let frames: Vec<_> = lengths
            .iter()
            .map(|(stored, items)| [*stored, items.iter().sum(), length_u32(items.len())])
            .collect();
        let items: Vec<_> = lengths.iter().flat_map(|(_, items)| items.clone()).collect();
        let mut table = table(&frames, &items);
        prop_assert!(Footer::open(&pack_of(&keys, frames_bytes, &table), &keys).is_ok());
        let at = at.index(table.len());
        table[at] = byte;
        let bytes = pack_of(&keys, frames_bytes, &table);
        if let Ok(footer) = Footer::open(&bytes, &keys) {
            for (_, location) in footer.locations(PackId([0; 32])) {
                prop_assert!(location.frame_range().end <= bytes.len() as u64);
                prop_assert!(location.check("test", PackKind::Tree).is_ok());
            }
        }
    }
}
