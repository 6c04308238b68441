//! Pages that a holder of the metadata key has named, whatever is in them.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::ids::RepositoryId;
use crate::keys::{Level, RepositorySecret, Secret};

fn keys() -> Keys {
    let secret = RepositorySecret(Secret([1; 32]));
    secret.issue(Level::Host, RepositoryId([2; 16]), Secret([3; 32]), 0)
}

fn read(kind: u8, logical: &[u8], hints: &[u8]) -> Result<(), FormatError> {
    let keys = keys();
    let (id, bytes) = assemble(&keys, kind, logical, hints);
    let location = Location {
        pack: PackId([9; 32]),
        frame_offset: 72,
        frame_bytes: 100,
        offset_in_frame: 0,
        length: 100,
    };
    let page = PageRef { id, location };
    match kind {
        KIND_LEAF => Leaf::decode(&bytes, &page, &keys).map(drop),
        _ => Inner::decode(&bytes, &page, 1, &keys).map(drop),
    }
}

fn slice(length: &[u8], offset: &[u8]) -> Vec<u8> {
    [&[EXTENT_SLICE], length, &[5; 32], offset].concat()
}

/// One pack, then hints: a first one that is 100 bytes long at offset 0 of a frame.
fn hints(more: &[u8]) -> Vec<u8> {
    [&[1], &[6; 32][..], &[HINT_FULL, 0, 72, 50, 0, 100], more].concat()
}

#[test]
fn named_leaves_are_checked_all_the_same() {
    let one = slice(&[10], &[0]);
    let two = [one.clone(), one.clone()].concat();
    assert!(read(KIND_LEAF, &one, &hints(&[])).is_ok());
    assert!(read(KIND_LEAF, &two, &hints(&[HINT_SAME])).is_ok());
    assert!(read(KIND_LEAF, &two, &hints(&[HINT_NEXT, 100])).is_ok());
    // A disk of no bytes has no pages; a leaf of no extents says nothing and is harmless.
    assert!(read(KIND_LEAF, &[], &[0]).is_ok());
    for (reason, logical, hints) in [
        ("an unknown extent", vec![2, 10], vec![0]),
        ("an empty hole", vec![EXTENT_HOLE, 0], vec![0]),
        (
            "a length in a longer form",
            vec![EXTENT_HOLE, 0x8a, 0],
            vec![0],
        ),
        (
            "more than a leaf",
            vec![EXTENT_HOLE, 0x81, 0x80, 0x80, 2],
            vec![0],
        ),
        (
            "lengths that wrap around",
            [EXTENT_HOLE, 0xff, 0xff, 0xff, 0xff, 0x0f].repeat(2),
            vec![0],
        ),
        (
            "a slice past its chunk's end",
            slice(&[10], &[91]),
            hints(&[]),
        ),
        (
            "an offset that wraps around",
            slice(&[10], &[0xff, 0xff, 0xff, 0xff, 0x0f]),
            hints(&[]),
        ),
        ("a slice without a hint", one.clone(), vec![0]),
        ("a hint without a slice", one.clone(), hints(&[HINT_SAME])),
        (
            "a first hint that follows another",
            one.clone(),
            vec![0, HINT_NEXT, 100],
        ),
        (
            "a first hint that repeats another",
            one.clone(),
            vec![0, HINT_SAME],
        ),
        ("an unknown hint", two.clone(), hints(&[3])),
        (
            "a pack that is not listed",
            one.clone(),
            vec![0, HINT_FULL, 0, 72, 50, 0, 100],
        ),
        (
            "more packs than bytes",
            one.clone(),
            vec![0xff, 0xff, 0xff, 0xff, 0x0f],
        ),
        ("an empty chunk", two.clone(), hints(&[HINT_NEXT, 0])),
        (
            "a chunk above its bound",
            two.clone(),
            hints(&[HINT_NEXT, 0x81, 0x80, 0x80, 2]),
        ),
        (
            "a chunk past the frame's bound",
            two,
            hints(&[HINT_FULL, 0, 72, 50, 0xff, 0xff, 0xff, 0xff, 0x0f, 100]),
        ),
    ] {
        assert!(read(KIND_LEAF, &logical, &hints).is_err(), "{reason}");
    }
    let other = [one, [&[EXTENT_SLICE, 10], &[6; 32][..], &[0]].concat()].concat();
    assert!(
        read(KIND_LEAF, &other, &hints(&[HINT_SAME])).is_err(),
        "another chunk in one place"
    );
    let crowd = [EXTENT_HOLE, 1].repeat(LEAF_EXTENTS_MAX);
    assert!(read(KIND_LEAF, &crowd, &[0]).is_ok());
    assert!(read(KIND_LEAF, &[&crowd[..], &[EXTENT_HOLE, 1]].concat(), &[0]).is_err());
}

#[test]
fn named_inner_pages_are_checked_all_the_same() {
    let child = [&[EXTENT_SLICE], &[5; 32][..]].concat();
    let inner = |level: u8, count: u16, children: &[u8]| {
        [&[level], &count.to_le_bytes()[..], children].concat()
    };
    assert!(read(KIND_INNER, &inner(1, 1, &child), &hints(&[])).is_ok());
    for (reason, logical, hints) in [
        ("another level", inner(2, 1, &child), hints(&[])),
        ("no children", inner(1, 0, &[]), vec![0]),
        ("too many children", inner(1, 257, &[0; 257]), vec![0]),
        (
            "fewer children than counted",
            inner(1, 2, &child),
            hints(&[]),
        ),
        (
            "more children than counted",
            inner(1, 1, &[&child[..], &[0]].concat()),
            hints(&[]),
        ),
        ("an unknown child", inner(1, 1, &[2]), vec![0]),
        (
            "a page above its bound",
            inner(1, 1, &child),
            [
                &[1],
                &[6; 32][..],
                &[HINT_FULL, 0, 72, 50, 0, 0x81, 0x80, 0x80, 1],
            ]
            .concat(),
        ),
    ] {
        assert!(read(KIND_INNER, &logical, &hints).is_err(), "{reason}");
    }
}

/// A leaf at all its bounds at once is read in a time that nobody notices.
#[test]
fn hints_are_read_in_linear_time() {
    let logical = slice(&[1], &[0]).repeat(LEAF_EXTENTS_MAX);
    let packs = (PAGE_BYTES_MAX as usize - logical.len() - LEAF_EXTENTS_MAX * 12) / 32;
    let mut hints = Vec::new();
    put_varint(&mut hints, length_u32(packs));
    hints.extend(std::iter::repeat_n([6; 32], packs).flatten());
    for _ in 0..LEAF_EXTENTS_MAX {
        hints.push(HINT_FULL);
        put_varint(&mut hints, length_u32(packs - 1));
        hints.extend_from_slice(&[72, 50, 0, 100]);
    }
    assert!(read(KIND_LEAF, &logical, &hints).is_ok());
}
