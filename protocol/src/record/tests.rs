//! Records that a certified holder has signed, whatever is in them.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::checkpoint::{self, Checkpoint};
use crate::keys::{RepositorySecret, Secret};
use proptest::collection::vec;
use proptest::prelude::*;

fn keys() -> Keys {
    let secret = RepositorySecret(Secret([1; 32]));
    secret.issue(Level::Restore, RepositoryId([2; 16]), Secret([3; 32]), 0)
}

/// Seals and signs any bytes as the body of a record.
fn sign(keys: &Keys, kind: Kind, plain: &[u8]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.push(VERSION);
    out.extend_from_slice(&kind.tag().to_le_bytes());
    out.extend_from_slice(&[0; 8 + 32 + 8 + 32]);
    out.extend_from_slice(&keys.identity().certificate.encode());
    out.extend_from_slice(&length_u32(plain.len() + crate::aead::TAG_BYTES).to_le_bytes());
    let sealed = body_key(keys, &out).seal(0, &out, plain);
    out.extend_from_slice(&sealed);
    let signature = keys.identity().signing.sign(&out);
    out.extend_from_slice(&signature);
    out
}

fn read(kind: Kind, plain: &[u8]) -> Result<Body, FormatError> {
    let keys = keys();
    let bytes = sign(&keys, kind, plain);
    let header = Header::decode(&bytes, keys.root_public(), keys.repository())?;
    header.open_body(&bytes, &keys)
}

fn point() -> PointCommitted {
    PointCommitted {
        point: vec![1; 16],
        machine: "web01".to_owned(),
        disks: vec![Disk {
            name: "vda".to_owned(),
            size_bytes: 1,
            ..Disk::default()
        }],
        ..PointCommitted::default()
    }
}

#[test]
fn bodies_that_break_a_rule_are_void() {
    let write = |point: &PointCommitted| {
        let encoded = encode(
            &Body::PointCommitted(point.clone()),
            &Head::EMPTY,
            0,
            [0; 32],
            &keys(),
        );
        (encoded, read(Kind::PointCommitted, &point.encode_to_vec()))
    };
    let (encoded, decoded) = write(&point());
    assert!(encoded.is_ok() && decoded.is_ok());
    let disk = point().disks[0].clone();
    let page = |length| StoredPageRef {
        id: vec![1; 32],
        pack: vec![2; 32],
        frame_offset: 72,
        frame_bytes: 100,
        offset_in_frame: 0,
        length,
    };
    let with_disk = |disk: Disk| PointCommitted {
        disks: vec![disk],
        ..point()
    };
    let with_root = |root| {
        with_disk(Disk {
            root: Some(root),
            ..disk.clone()
        })
    };
    assert!(write(&with_root(page(100))).1.is_ok());
    for (reason, broken) in [
        (
            "a point without a name",
            PointCommitted {
                point: Vec::new(),
                ..point()
            },
        ),
        (
            "a name of another length",
            PointCommitted {
                point: vec![1; 17],
                ..point()
            },
        ),
        (
            "a machine without a name",
            PointCommitted {
                machine: String::new(),
                ..point()
            },
        ),
        (
            "a name that clears the screen",
            PointCommitted {
                machine: "\x1b[2J".to_owned(),
                ..point()
            },
        ),
        (
            "a name of a page",
            PointCommitted {
                machine: "x".repeat(256),
                ..point()
            },
        ),
        (
            "a parent of another length",
            PointCommitted {
                parent: vec![1; 15],
                ..point()
            },
        ),
        (
            "a run of another length",
            PointCommitted {
                run: vec![1],
                ..point()
            },
        ),
        (
            "a segment of another length",
            PointCommitted {
                segments: vec![vec![1; 16]],
                ..point()
            },
        ),
        (
            "a tree pack without a name",
            PointCommitted {
                tree_packs: vec![PackSize::default()],
                ..point()
            },
        ),
        (
            "two disks of one name",
            PointCommitted {
                disks: vec![disk.clone(), disk.clone()],
                ..point()
            },
        ),
        (
            "a disk without a name",
            with_disk(Disk {
                name: String::new(),
                ..disk.clone()
            }),
        ),
        (
            "a disk that no tree holds",
            with_disk(Disk {
                size_bytes: u64::MAX,
                ..disk.clone()
            }),
        ),
        (
            "a root without anything",
            with_root(StoredPageRef::default()),
        ),
        ("an empty root page", with_root(page(0))),
        (
            "a root page above its bound",
            with_root(page(crate::limits::PAGE_BYTES_MAX + 1)),
        ),
        (
            "too many disks",
            PointCommitted {
                disks: (0..=crate::limits::DISKS_MAX)
                    .map(|number| Disk {
                        name: format!("disk {number}"),
                        ..disk.clone()
                    })
                    .collect(),
                ..point()
            },
        ),
    ] {
        let (encoded, decoded) = write(&broken);
        assert!(encoded.is_err(), "{reason}");
        assert!(decoded.is_err(), "{reason}");
    }
}

#[test]
fn records_end_at_their_bound() {
    let condemn = |packs: usize| {
        let body = Body::PacksCondemned(PacksCondemned {
            packs: vec![vec![7; 32]; packs],
        });
        encode(&body, &Head::EMPTY, 0, [0; 32], &keys())
    };
    // Each takes 34 bytes; the rest of a record takes 292.
    let most = (RECORD_BYTES_MAX as usize - 292) / 34;
    let bytes = condemn(most).unwrap();
    assert!(Header::decode(&bytes, keys().root_public(), keys().repository()).is_ok());
    assert!(condemn(most + 1).is_err());
    // The same bytes by hand are void, too.
    let plain = PacksCondemned {
        packs: vec![vec![7; 32]; most + 1],
    };
    assert!(read(Kind::PacksCondemned, &plain.encode_to_vec()).is_err());
    let last = Head {
        number: u64::MAX,
        ..Head::EMPTY
    };
    let body = Body::PacksCondemned(PacksCondemned::default());
    assert!(encode(&body, &last, 0, [0; 32], &keys()).is_err());
}

/// Two bytes on the wire, a hundred and more in memory.
#[test]
fn crumbs_do_not_unfold() {
    for field in [3_u8, 8, 9] {
        let crumbs = [field << 3 | 2, 0].repeat(1 << 20);
        let plain = [point().encode_to_vec(), crumbs].concat();
        assert!(read(Kind::PointCommitted, &plain).is_err());
    }
}

#[test]
fn segments_found_bad_have_names_too() {
    let body = |segment: Vec<u8>| PacksFoundBad {
        packs: Vec::new(),
        reason: "verify".to_owned(),
        segments: vec![segment],
    };
    let sound = body(vec![7; 32]);
    assert_eq!(
        read(Kind::PacksFoundBad, &sound.encode_to_vec()),
        Ok(Body::PacksFoundBad(sound))
    );
    assert!(read(Kind::PacksFoundBad, &body(vec![7; 31]).encode_to_vec()).is_err());
    let bytes = |segments| {
        let block = checkpoint::Block {
            bad_segments: segments,
            ..checkpoint::Block::default()
        };
        let hash = Head::EMPTY.hash;
        let bytes = checkpoint::encode(1, hash, &[block], [5; 32], &keys())?;
        Checkpoint::decode(&bytes, &keys())?
            .blocks(&keys())
            .collect::<Result<Vec<_>, _>>()
    };
    assert_eq!(bytes(vec![vec![7; 32]]).unwrap()[0].bad_segments, [[7; 32]]);
    assert!(bytes(vec![vec![7; 31]]).is_err());
}

#[test]
fn fields_of_later_versions_are_passed_over() {
    // Field 100, of each wire type.
    for more in [
        &[0xa0, 6, 1][..],
        &[0xa1, 6, 1, 2, 3, 4, 5, 6, 7, 8],
        &[0xa2, 6, 1, 9],
        &[0xa5, 6, 1, 2, 3, 4],
    ] {
        let plain = [&point().encode_to_vec(), more].concat();
        assert_eq!(
            read(Kind::PointCommitted, &plain),
            Ok(Body::PointCommitted(point()))
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn signed_nonsense_is_void_or_sound(kind in 0..Kind::ALL.len(), plain in vec(any::<u8>(), 0..200)) {
        let kind = Kind::ALL[kind];
        if let Ok(body) = read(kind, &plain) {
            prop_assert_eq!(body.kind(), kind);
            prop_assert!(encode(&body, &Head::EMPTY, 0, [0; 32], &keys()).is_ok());
        }
    }

    #[test]
    fn changed_bodies_are_void_or_sound(at in any::<proptest::sample::Index>(), byte in any::<u8>(), cut in any::<proptest::sample::Index>()) {
        let mut plain = point().encode_to_vec();
        let at = at.index(plain.len());
        plain[at] = byte;
        plain.truncate(cut.index(plain.len()) + 1);
        if let Ok(body) = read(Kind::PointCommitted, &plain) {
            prop_assert!(encode(&body, &Head::EMPTY, 0, [0; 32], &keys()).is_ok());
        }
    }
}
