//! Golden files: the bytes of every object, made from fixed secrets, kept for ever.
//!
//! Each is decoded and compared with what it was made of: a program of today reads what was written
//! then. Where the writer is deterministic, its bytes are compared too: a change of format does not
//! slip in unseen. zstd may compress otherwise in another version, and HPKE draw its ephemeral key
//! otherwise, so packs and the recipient's slot are compared by content alone.
//!
//! `TIDEGATE_GOLDEN_WRITE=1 cargo test -p tidegate-protocol golden` writes files that are missing,
//! and never touches one that is there.

use crate::support::{self, REPOSITORY, enrolment, keys};
use std::path::PathBuf;
use tidegate_protocol::checkpoint::Checkpoint;
use tidegate_protocol::descriptor::Descriptor;
use tidegate_protocol::enrolment::{Authority, Invite, Joined, Revoked, Token};
use tidegate_protocol::frame::FrameOpener;
use tidegate_protocol::ids::PackId;
use tidegate_protocol::keys::Level;
use tidegate_protocol::pack::{Footer, PackHeader};
use tidegate_protocol::page::{Delta, Inner, Leaf, PageRef};
use tidegate_protocol::record::{Body, Header};
use tidegate_protocol::segment::Segment;
use tidegate_protocol::slot::{Credential, Slot};
use tidegate_protocol::{SegmentId, key_file};

fn stored(name: &str, fresh: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).join(name);
    let write = std::env::var_os("TIDEGATE_GOLDEN_WRITE").is_some_and(|value| value == "1");
    if write && !path.exists() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, fresh).unwrap();
    }
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The golden file, which the writer of today writes byte for byte.
fn golden(name: &str, fresh: &[u8]) -> Vec<u8> {
    let stored = stored(name, fresh);
    assert!(
        stored == fresh,
        "{name} is written otherwise than it was: is this a new format version?"
    );
    stored
}

#[test]
fn descriptor() {
    let fresh = support::descriptor().encode(&support::secret().root_key());
    let stored = golden("descriptor.bin", &fresh);
    assert_eq!(Descriptor::decode(&stored).unwrap(), support::descriptor());
}

#[test]
fn key_files() {
    for level in Level::ALL {
        let fresh = key_file::encode(keys(level));
        let stored = golden(&format!("key-{level}.txt"), fresh.as_bytes());
        let read = key_file::decode(std::str::from_utf8(&stored).unwrap()).unwrap();
        assert_eq!(read.level(), level);
        assert_eq!(*key_file::encode(&read), *fresh);
    }
}

#[test]
fn slots() {
    let recipient = support::recipient();
    for (name, fresh) in support::slots() {
        let file = format!("slot-{name}.bin");
        let (stored, credential) = match name {
            "passphrase" => (
                golden(&file, &fresh),
                Credential::Passphrase(support::PASSPHRASE),
            ),
            "file" => (
                golden(&file, &fresh),
                Credential::File(support::WRAPPING_FILE),
            ),
            _ => (stored(&file, &fresh), Credential::Recipient(&recipient)),
        };
        let slot = Slot::decode(&stored).unwrap();
        let expected = Slot::decode(&fresh).unwrap();
        assert_eq!(
            (slot.id, slot.level, &slot.wrapping),
            (expected.id, expected.level, &expected.wrapping)
        );
        assert_eq!(
            (&slot.label, slot.created_unix_ns),
            (&expected.label, expected.created_unix_ns)
        );
        let opened = slot.open(&credential).unwrap();
        assert_eq!(
            *key_file::encode(&opened),
            *key_file::encode(keys(slot.level))
        );
    }
}

/// The content of a pack, in order.
fn items(pack: &[u8]) -> Vec<([u8; 32], Vec<u8>)> {
    let keys = keys(Level::Restore);
    let key = PackHeader::decode(pack).unwrap().frames_key(keys).unwrap();
    let mut opener = FrameOpener::new().unwrap();
    let footer = Footer::open(pack, keys).unwrap();
    footer
        .locations(PackId::of(pack))
        .map(|(id, location)| {
            let (from, length) = (
                location.frame_offset as usize,
                location.frame_bytes as usize,
            );
            let raw = key
                .open(
                    &mut opener,
                    location.frame_offset,
                    &pack[from..from + length],
                )
                .unwrap();
            let from = location.offset_in_frame as usize;
            (id, raw[from..from + location.length as usize].to_vec())
        })
        .collect()
}

#[test]
fn data_pack() {
    let fresh = support::data_pack();
    let stored = stored("pack-data.bin", &fresh.bytes);
    let namer = keys(Level::Restore).chunk_namer().unwrap();
    let chunks = support::chunks().concat();
    let expected: Vec<_> = chunks
        .into_iter()
        .map(|chunk| (namer.name(&chunk).0, chunk))
        .collect();
    assert_eq!(items(&stored), expected);
    // Front and salt: all of the header before the sealed key.
    assert_eq!(stored[..56], fresh.bytes[..56]);
    // One frame compressed, one stored as it is.
    let frames = Footer::open(&stored, keys(Level::Host)).unwrap().frames;
    assert!(frames[0].range.len() < 1000);
    assert_eq!(frames[1].range.len(), 300 + 5 + 16);
}

#[test]
fn tree_pack() {
    let fresh = support::tree_pack();
    let stored = stored("pack-tree.bin", &fresh.bytes);
    let read = items(&stored);
    assert_eq!(read, items(&fresh.bytes));
    assert_eq!(read[0].1, golden("page-leaf.bin", &read[0].1));
    assert_eq!(read[1].1, golden("page-inner.bin", &read[1].1));
}

#[test]
fn pages() {
    let keys = keys(Level::Host);
    let page = |id| PageRef {
        id,
        location: support::location(0xee, 0, 1),
    };
    let (id, fresh) = support::leaf().encode(keys).unwrap();
    let stored = golden("page-leaf.bin", &fresh);
    assert_eq!(
        Leaf::decode(&stored, &page(id), keys).unwrap(),
        support::leaf()
    );
    let (id, fresh) = support::inner().encode(keys).unwrap();
    let stored = golden("page-inner.bin", &fresh);
    assert_eq!(
        Inner::decode(&stored, &page(id), 1, keys).unwrap(),
        support::inner()
    );
    let (id, fresh) = support::delta().encode(keys).unwrap();
    let stored = golden("page-delta.bin", &fresh);
    assert_eq!(
        Delta::decode(&stored, &page(id), keys).unwrap(),
        support::delta()
    );
}

#[test]
fn segment() {
    let mut expected = support::segment();
    let (id, fresh) = expected
        .encode(keys(Level::Host), support::SEGMENT_SALT)
        .unwrap();
    let stored = golden("segment.bin", &fresh);
    assert_eq!(SegmentId::of(&stored), id);
    assert_eq!(
        Segment::decode(&stored, keys(Level::Maintenance)).unwrap(),
        expected
    );
}

#[test]
fn records() {
    for body in support::bodies() {
        let kind = body.kind();
        let name = format!(
            "record-{:02}-{}.bin",
            kind.tag(),
            kind.as_str().replace(' ', "-")
        );
        let stored = golden(&name, &support::record_of(&body));
        let keys = keys(Level::Maintenance);
        let header = Header::decode(&stored, keys.root_public(), REPOSITORY).unwrap();
        assert_eq!(header.open_body(&stored, keys).unwrap(), body);
    }
}

#[test]
fn a_point_with_delta_pages() {
    let body = Body::PointCommitted(support::point_with_deltas());
    let stored = golden(
        "record-01-point-with-deltas.bin",
        &support::record_of(&body),
    );
    let keys = keys(Level::Maintenance);
    let header = Header::decode(&stored, keys.root_public(), REPOSITORY).unwrap();
    assert_eq!(header.open_body(&stored, keys).unwrap(), body);
}

#[test]
fn a_point_with_an_end() {
    let body = Body::PointCommitted(support::point_kept());
    let stored = golden("record-01-point-kept-until.bin", &support::record_of(&body));
    let keys = keys(Level::Maintenance);
    let header = Header::decode(&stored, keys.root_public(), REPOSITORY).unwrap();
    assert_eq!(header.open_body(&stored, keys).unwrap(), body);
}

#[test]
fn a_point_of_a_group() {
    let body = Body::PointCommitted(support::point_together());
    let stored = golden("record-01-point-together.bin", &support::record_of(&body));
    let keys = keys(Level::Maintenance);
    let header = Header::decode(&stored, keys.root_public(), REPOSITORY).unwrap();
    assert_eq!(header.open_body(&stored, keys).unwrap(), body);
}

#[test]
fn checkpoint() {
    let stored = golden("checkpoint.bin", &support::checkpoint());
    let keys = keys(Level::Host);
    let checkpoint = Checkpoint::decode(&stored, keys).unwrap();
    let blocks: Vec<_> = checkpoint.blocks(keys).map(Result::unwrap).collect();
    assert_eq!(blocks, support::blocks());
}

#[test]
fn fleet() {
    let stored = golden(
        "enrolment-authority.bin",
        &enrolment::authority().encode().unwrap(),
    );
    assert_eq!(Authority::decode(&stored).unwrap(), enrolment::authority());
    let stored = golden(
        "enrolment-invite.bin",
        &enrolment::invite().encode().unwrap(),
    );
    let read = Invite::decode(&stored, enrolment::ENROLMENT).unwrap();
    assert_eq!(read, enrolment::invite());
    let stored = golden(
        "enrolment-joined.bin",
        &enrolment::joined().encode().unwrap(),
    );
    let read = Joined::decode(&stored, enrolment::ENROLMENT).unwrap();
    assert_eq!(read, enrolment::joined());
    let stored = golden(
        "enrolment-revoked.bin",
        &enrolment::revoked().encode().unwrap(),
    );
    let read = Revoked::decode(&stored, enrolment::ENROLMENT).unwrap();
    assert_eq!(read, enrolment::revoked());
}

#[test]
fn token() {
    let fresh = format!("{}\n", *enrolment::token().encode().unwrap());
    let stored = golden("enrolment-token.txt", fresh.as_bytes());
    let read = Token::decode(std::str::from_utf8(&stored).unwrap()).unwrap();
    assert_eq!(
        *read.encode().unwrap(),
        *enrolment::token().encode().unwrap()
    );
}

/// What follows from the secret, as figures: a change of any derivation shows here first.
#[test]
fn derived_values() {
    let keys = keys(Level::Restore);
    let namer = keys.chunk_namer().unwrap();
    let secret = support::secret();
    let derived = [
        ("root public key", hex::encode(secret.root_key().public().0)),
        ("data public key", hex::encode(secret.data_key().public().0)),
        ("chunk name", namer.name(b"chunk").to_string()),
        ("page name", keys.page_id(b"page").to_string()),
        ("chunker seed", format!("{:016x}", namer.chunker_seed())),
        (
            "key name",
            keys.identity().certificate.public.id().to_string(),
        ),
    ];
    let text: String = derived
        .iter()
        .map(|(name, value)| format!("{name}: {value}\n"))
        .collect();
    golden("derived.txt", text.as_bytes());
}
