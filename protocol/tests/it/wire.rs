//! The frames of the link: golden files, what goes in comes out, and no bytes make a reader panic.

use crate::support::wire::{self, Frame};
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::path::PathBuf;
use tidegate_protocol::ids::{ChunkId, PackId, SegmentId, SlotId};
use tidegate_protocol::pack::Location;
use tidegate_protocol::wire::{
    AnswerHead, Close, GetRequest, HAVE_IDS_MAX, HaveRequest, Kind, LIST_ENTRIES_MAX, ListEntry,
    ListPart, MESSAGE_BYTES_MAX, Object, Priority, Problem, PutRequest, RequestHead, Status,
    WireMessage, chunk_ids, decode_known, encode_known, encode_request,
};
use tidegate_protocol::{checkpoint, record};

/// As the other golden files: `TIDEGATE_GOLDEN_WRITE=1` writes what is missing.
#[test]
fn golden_frames_are_read_and_written_as_ever() {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden"));
    let write = std::env::var_os("TIDEGATE_GOLDEN_WRITE").is_some_and(|value| value == "1");
    for Frame { name, bytes, read } in wire::frames() {
        let path = folder.join(format!("wire-{name}.bin"));
        if write && !path.exists() {
            std::fs::write(&path, &bytes).unwrap();
        }
        let stored =
            std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(
            stored == bytes,
            "{name} is written otherwise than it was: the wire has changed"
        );
        assert_eq!(read(&stored).unwrap(), bytes, "{name}");
    }
}

#[test]
fn every_kind_has_a_golden_request() {
    let frames = wire::frames();
    for kind in Kind::ALL {
        let name = format!("{}-request", kind.as_str());
        let frame = frames.iter().find(|frame| frame.name == name).unwrap();
        let head: [u8; RequestHead::BYTES] = frame.bytes[..RequestHead::BYTES].try_into().unwrap();
        let head = RequestHead::decode(&head).unwrap();
        assert_eq!(head.kind(), Some(*kind));
        assert_eq!(
            head.message_bytes as usize,
            frame.bytes.len() - RequestHead::BYTES
        );
    }
}

#[test]
fn tags_are_what_the_document_says_and_unknown_ones_are_harmless() {
    let document = include_str!("../../WIRE.md");
    let row = |word: &str, tag: u32| {
        let row = format!("| {word} | {tag} |");
        assert!(document.contains(&row), "{row:?} is not in WIRE.md");
    };
    for kind in Kind::ALL {
        assert_eq!(Kind::from_tag(kind.tag()), Some(*kind));
        row(kind.as_str(), kind.tag().into());
    }
    for status in Status::ALL {
        assert_eq!(Status::from_tag(status.tag()), Some(*status));
        row(status.as_str(), status.tag().into());
    }
    let kinds: BTreeSet<_> = Kind::ALL.iter().map(|kind| kind.tag()).collect();
    assert_eq!(kinds.len(), Kind::ALL.len());
    assert_eq!(Kind::from_tag(0), None);
    assert_eq!(Kind::from_tag(255), None);
    assert_eq!(Status::from_tag(255), None);
    let unknown = AnswerHead::decode(&[255, 0, 0, 0, 0]).unwrap();
    assert_eq!(unknown.status, Status::Refused);
    assert_eq!(Priority::from_tag(255), Priority::Backup);
    assert_eq!(Close::from_code(1 << 40), None);
    for code in 0..=6 {
        let close = Close::from_code(code).unwrap();
        assert_eq!(u64::from(close.code()), code);
    }
}

#[test]
fn lengths_are_bounded_before_anything_is_read() {
    let head = |length: u32| {
        let mut bytes = [0; RequestHead::BYTES];
        bytes[2..].copy_from_slice(&length.to_le_bytes());
        RequestHead::decode(&bytes)
    };
    assert_eq!(
        head(MESSAGE_BYTES_MAX).unwrap().message_bytes,
        MESSAGE_BYTES_MAX
    );
    assert!(head(MESSAGE_BYTES_MAX + 1).is_err());
    let mut answer = [0; AnswerHead::BYTES];
    answer[1..].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(AnswerHead::decode(&answer).is_err());
}

#[test]
fn what_breaks_a_rule_is_refused_on_both_ends() {
    let put = |key: &str, length| PutRequest {
        key: key.to_owned(),
        length,
    };
    for key in ["", "/a", "a/", "a//b", "../a", "a/.b", "a b", "a\0", "ä"] {
        let put = put(key, 1);
        assert!(
            encode_request(Kind::Put, Priority::Backup, &put).is_err(),
            "{key:?}"
        );
        assert!(
            PutRequest::from_bytes(&prost::Message::encode_to_vec(&put)).is_err(),
            "{key:?}"
        );
    }
    assert!(put(&"a".repeat(255), 1).check().is_ok());
    assert!(put(&"a".repeat(256), 1).check().is_err());
    assert!(put("a", 128 << 20).check().is_ok());
    assert!(put("a", (128 << 20) + 1).check().is_err());
    let get = |start, end| GetRequest {
        key: "a".to_owned(),
        start,
        end,
    };
    assert!(get(5, None).check().is_ok());
    assert!(get(5, Some(6)).check().is_ok());
    assert!(get(5, Some(5)).check().is_err());
    let ids = |count: usize| HaveRequest {
        ids: vec![7; count * 32],
    };
    assert!(ids(HAVE_IDS_MAX).check().is_ok());
    assert!(ids(HAVE_IDS_MAX + 1).check().is_err());
    assert!(ids(0).check().is_err());
    assert!(HaveRequest { ids: vec![7; 33] }.check().is_err());
    let entries = |count| ListPart {
        entries: vec![ListEntry::default(); count],
    };
    assert!(entries(LIST_ENTRIES_MAX).check().is_ok());
    assert!(entries(LIST_ENTRIES_MAX + 1).check().is_err());
}

/// The largest messages that the limits allow are read again: no limit contradicts another.
#[test]
fn the_largest_messages_fit() {
    let entry = ListEntry {
        key: "a".repeat(255),
        size: u64::MAX,
    };
    let part = ListPart {
        entries: vec![entry; LIST_ENTRIES_MAX],
    };
    let bytes = tidegate_protocol::wire::encode_part(&part).unwrap();
    assert_eq!(ListPart::from_bytes(&bytes[4..]).unwrap(), part);
    let far: Vec<_> = (0..HAVE_IDS_MAX)
        .map(|number| {
            let mut pack = [3; 32];
            pack[..8].copy_from_slice(&number.to_le_bytes());
            Some(Location {
                pack: PackId(pack),
                frame_offset: 100 << 20,
                frame_bytes: 5 << 20,
                offset_in_frame: 3 << 20,
                length: 4 << 20,
            })
        })
        .collect();
    let answer = encode_known(&far);
    let bytes =
        tidegate_protocol::wire::encode_answer(Status::Ok, &answer).expect("it fits a message");
    let read =
        tidegate_protocol::wire::HaveAnswer::from_bytes(&bytes[AnswerHead::BYTES..]).unwrap();
    assert_eq!(decode_known(&read, far.len()).unwrap(), far);
}

#[test]
fn a_problem_is_cut_at_a_character() {
    let problem = Problem::new(&"ä".repeat(4096), 1);
    assert!(problem.check().is_ok());
    assert_eq!(problem.text, "ä".repeat(2048));
}

#[test]
fn keys_are_told_apart() {
    let pack = PackId([0xab; 32]);
    let segment = SegmentId([0xcd; 32]);
    let slot = SlotId([0xef; 16]);
    for (key, object) in [
        ("repository".to_owned(), Some(Object::Descriptor)),
        (pack.object_key(), Some(Object::Pack(pack))),
        (segment.object_key(), Some(Object::Segment(segment))),
        (slot.object_key(), Some(Object::Slot(slot))),
        (record::object_key(42), Some(Object::Record(42))),
        (checkpoint::object_key(42), Some(Object::Checkpoint(42))),
        (record::object_key(0), None),
        ("packs/aa/nonsense".to_owned(), None),
        ("probe/x".to_owned(), None),
        (String::new(), None),
    ] {
        assert_eq!(Object::at(&key), object, "{key:?}");
    }
}

#[test]
fn answers_about_chunks_are_checked() {
    let place = Location {
        pack: PackId([1; 32]),
        frame_offset: 300,
        frame_bytes: 5000,
        offset_in_frame: 0,
        length: 4096,
    };
    let answer = encode_known(&[Some(place), None, Some(place)]);
    assert_eq!(answer.packs.len(), 32);
    assert_eq!(
        decode_known(&answer, 3).unwrap(),
        [Some(place), None, Some(place)]
    );
    // More or fewer entries than were asked for.
    assert!(decode_known(&answer, 2).is_err());
    assert!(decode_known(&answer, 4).is_err());
    // A pack that is not there, a tag that is not known, a place that cannot be.
    let mut other = answer.clone();
    other.packs.clear();
    assert!(decode_known(&other, 3).is_err());
    let mut other = answer.clone();
    other.entries[0] = 2;
    assert!(decode_known(&other, 3).is_err());
    let nowhere = Location { length: 0, ..place };
    assert!(decode_known(&encode_known(&[Some(nowhere)]), 1).is_err());
}

#[test]
fn what_is_asked_is_what_arrives() {
    let ids = [ChunkId([1; 32]), ChunkId([2; 32])];
    let request = HaveRequest::new(ids.into_iter());
    assert_eq!(chunk_ids(&request).collect::<Vec<_>>(), ids);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in vec(any::<u8>(), 0..300)) {
        wire::read_anything(&bytes);
    }

    /// Flipped frames are refused or read as something else, and never panic.
    #[test]
    fn flipped_frames_do_not_panic(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let frames = wire::frames();
        let frame = &frames[which.index(frames.len())];
        let mut bytes = frame.bytes.clone();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let _ = (frame.read)(&bytes);
        let _ = (frame.read)(&bytes[..at]);
    }
}
