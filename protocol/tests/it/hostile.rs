//! Bytes that nobody of ours wrote: flipped, cut, spliced, made up. No decoder panics, and nothing
//! opens as anything but what was written.

use crate::support::{self, REPOSITORY, enrolment, keys};
use proptest::collection::vec;
use proptest::prelude::*;
use tidegate_protocol::checkpoint::Checkpoint;
use tidegate_protocol::descriptor::Descriptor;
use tidegate_protocol::enrolment::{Authority, Invite, Joined, Revoked, Token};
use tidegate_protocol::frame::FrameOpener;
use tidegate_protocol::ids::{PackId, PageId};
use tidegate_protocol::keys::Level;
use tidegate_protocol::pack::{Footer, PackHeader, TRAILER_BYTES, footer_range};
use tidegate_protocol::page::{Delta, Inner, Leaf, PageRef};
use tidegate_protocol::record::Header;
use tidegate_protocol::segment::Segment;
use tidegate_protocol::slot::{Credential, Slot};
use tidegate_protocol::{FormatError, key_file};

/// A stored object and how it is opened, all the way down.
struct Object {
    name: String,
    bytes: Vec<u8>,
    open: fn(&[u8]) -> Result<(), FormatError>,
}

fn objects() -> Vec<Object> {
    let object = |name: &str, bytes: Vec<u8>, open| Object {
        name: name.to_owned(),
        bytes,
        open,
    };
    let host = keys(Level::Host);
    let mut all = vec![
        object(
            "descriptor",
            support::descriptor().encode(&support::secret().root_key()),
            open_descriptor,
        ),
        object("data pack", support::data_pack().bytes, open_pack),
        object("tree pack", support::tree_pack().bytes, open_pack),
        object(
            "segment",
            support::segment()
                .encode(host, support::SEGMENT_SALT)
                .unwrap()
                .1,
            open_segment,
        ),
        object("checkpoint", support::checkpoint(), open_checkpoint),
    ];
    for level in Level::ALL {
        let text = key_file::encode(keys(level));
        // A missing end of line at the end is no change.
        all.push(object("key file", text.trim_end().into(), open_key_file));
    }
    let fleet = [
        ("authority", enrolment::authority().encode().unwrap()),
        ("invite", enrolment::invite().encode().unwrap()),
        ("joined", enrolment::joined().encode().unwrap()),
        ("revoked", enrolment::revoked().encode().unwrap()),
    ];
    for (name, bytes) in fleet {
        all.push(object(name, bytes, open_of_fleet));
    }
    let token = enrolment::token().encode().unwrap();
    all.push(object("token", token.as_bytes().to_vec(), open_token));
    for (name, bytes) in support::slots() {
        all.push(object(&format!("slot by {name}"), bytes, open_slot));
    }
    for body in support::bodies() {
        all.push(object(
            body.kind().as_str(),
            support::record_of(&body),
            open_record,
        ));
    }
    all
}

fn open_descriptor(bytes: &[u8]) -> Result<(), FormatError> {
    Descriptor::decode(bytes)?.check_keys(keys(Level::Host))
}

fn open_key_file(bytes: &[u8]) -> Result<(), FormatError> {
    let text =
        std::str::from_utf8(bytes).map_err(|_| FormatError::Unauthentic { object: "text" })?;
    key_file::decode(text).map(drop)
}

fn open_of_fleet(bytes: &[u8]) -> Result<(), FormatError> {
    let id = enrolment::ENROLMENT;
    Authority::decode(bytes)
        .map(drop)
        .or_else(|_| Invite::decode(bytes, id).map(drop))
        .or_else(|_| Joined::decode(bytes, id).map(drop))
        .or_else(|_| Revoked::decode(bytes, id).map(drop))
}

fn open_token(bytes: &[u8]) -> Result<(), FormatError> {
    let text =
        std::str::from_utf8(bytes).map_err(|_| FormatError::Unauthentic { object: "text" })?;
    Token::decode(text).map(drop)
}

fn open_slot(bytes: &[u8]) -> Result<(), FormatError> {
    let slot = Slot::decode(bytes)?;
    let recipient = support::recipient();
    [
        Credential::Passphrase(support::PASSPHRASE),
        Credential::File(support::WRAPPING_FILE),
        Credential::Recipient(&recipient),
    ]
    .iter()
    .map(|credential| slot.open(credential).map(drop))
    .reduce(Result::or)
    .unwrap()
}

/// Reads all there is in a pack, by its footer, as a restore does.
fn open_pack(bytes: &[u8]) -> Result<(), FormatError> {
    let keys = keys(Level::Restore);
    let namer = keys.chunk_namer()?;
    let header = PackHeader::decode(bytes)?;
    let key = header.frames_key(keys)?;
    let mut opener = FrameOpener::new().unwrap();
    for (id, location) in Footer::open(bytes, keys)?.locations(PackId([0; 32])) {
        let range = location.frame_range();
        let frame =
            &bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
        let raw = key.open(&mut opener, location.frame_offset, frame)?;
        let start = location.offset_in_frame as usize;
        let item = &raw[start..start + location.length as usize];
        match header.kind {
            tidegate_protocol::pack::PackKind::Data => assert_eq!(namer.name(item).0, id),
            tidegate_protocol::pack::PackKind::Tree => {
                let page = PageRef {
                    id: PageId(id),
                    location,
                };
                Leaf::decode(item, &page, keys)
                    .map(drop)
                    .or_else(|_| Inner::decode(item, &page, 1, keys).map(drop))?;
            }
        }
    }
    Ok(())
}

fn open_segment(bytes: &[u8]) -> Result<(), FormatError> {
    Segment::decode(bytes, keys(Level::Maintenance)).map(drop)
}

fn open_record(bytes: &[u8]) -> Result<(), FormatError> {
    let keys = keys(Level::Maintenance);
    let header = Header::decode(bytes, keys.root_public(), REPOSITORY)?;
    header.open_body(bytes, keys).map(drop)
}

fn open_checkpoint(bytes: &[u8]) -> Result<(), FormatError> {
    let keys = keys(Level::Host);
    let checkpoint = Checkpoint::decode(bytes, keys)?;
    checkpoint
        .blocks(keys)
        .try_for_each(|block| block.map(drop))
}

#[test]
fn every_object_opens_as_it_is() {
    for object in objects() {
        (object.open)(&object.bytes).unwrap();
    }
}

#[test]
fn nothing_opens_after_a_flipped_bit() {
    for object in objects() {
        let mut bytes = object.bytes.clone();
        for byte in 0..bytes.len() {
            for bit in 0..8 {
                bytes[byte] ^= 1 << bit;
                assert!(
                    (object.open)(&bytes).is_err(),
                    "{}, bit {bit} of byte {byte}",
                    object.name
                );
                bytes[byte] ^= 1 << bit;
            }
        }
    }
}

#[test]
fn nothing_opens_when_it_is_cut_or_longer() {
    for object in objects() {
        for length in 0..object.bytes.len() {
            assert!(
                (object.open)(&object.bytes[..length]).is_err(),
                "{} cut at {length}",
                object.name
            );
            assert!(
                (object.open)(&object.bytes[length + 1..]).is_err(),
                "{} from {length}",
                object.name
            );
        }
        for tail in [&b"\0"[..], b"x", &object.bytes] {
            let longer = [&object.bytes, tail].concat();
            assert!(
                (object.open)(&longer).is_err(),
                "{} with {} more",
                object.name,
                tail.len()
            );
        }
    }
}

#[test]
fn nothing_opens_that_is_spliced_of_two() {
    let objects = objects();
    for one in &objects {
        for other in &objects {
            for cut in (1..16).map(|part| one.bytes.len() * part / 16) {
                let front = &one.bytes[..cut];
                let joined = [front, other.bytes.get(cut..).unwrap_or_default()].concat();
                let middle = [
                    front,
                    &other.bytes[other.bytes.len() / 2..],
                    &one.bytes[cut..],
                ]
                .concat();
                for spliced in [joined, middle] {
                    if spliced != one.bytes && spliced != other.bytes {
                        assert!(
                            (one.open)(&spliced).is_err(),
                            "{} and {}",
                            one.name,
                            other.name
                        );
                        assert!(
                            (other.open)(&spliced).is_err(),
                            "{} and {}",
                            one.name,
                            other.name
                        );
                    }
                }
            }
        }
    }
}

/// A page alone is vouched for by its name, its hints only by the frame around it: they may change,
/// what they are hints for may not.
#[test]
fn pages_keep_their_logical_content_whatever_happens_to_hints() {
    let keys = keys(Level::Host);
    let (id, bytes) = support::leaf().encode(keys).unwrap();
    let page = PageRef {
        id,
        location: support::location(1, 0, 1),
    };
    let logical = |leaf: &Leaf| -> Vec<_> {
        let part = |slice: tidegate_protocol::page::Slice| (slice.chunk, slice.offset);
        leaf.extents
            .iter()
            .map(|extent| (extent.length, extent.slice.map(part)))
            .collect()
    };
    let hints_from = 5 + u32::from_le_bytes(bytes[1..5].try_into().unwrap()) as usize;
    for byte in 0..bytes.len() {
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[byte] ^= 1 << bit;
            match Leaf::decode(&changed, &page, keys) {
                Ok(leaf) => {
                    assert!(byte >= hints_from);
                    assert_eq!(logical(&leaf), logical(&support::leaf()));
                }
                Err(_) => assert!(Inner::decode(&changed, &page, 1, keys).is_err()),
            }
        }
        assert!(Leaf::decode(&bytes[..byte], &page, keys).is_err());
    }
}

#[test]
fn so_do_delta_pages() {
    let keys = keys(Level::Host);
    let (id, bytes) = support::delta().encode(keys).unwrap();
    let page = PageRef {
        id,
        location: support::location(1, 0, 1),
    };
    let logical = |delta: &Delta| -> Vec<_> {
        let part = |slice: tidegate_protocol::page::Slice| (slice.chunk, slice.offset);
        delta
            .extents
            .iter()
            .map(|extent| (extent.start, extent.length, extent.slice.map(part)))
            .collect()
    };
    let hints_from = 5 + u32::from_le_bytes(bytes[1..5].try_into().unwrap()) as usize;
    for byte in 0..bytes.len() {
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[byte] ^= 1 << bit;
            if let Ok(delta) = Delta::decode(&changed, &page, keys) {
                assert!(byte >= hints_from);
                assert_eq!(logical(&delta), logical(&support::delta()));
            }
        }
        assert!(Delta::decode(&bytes[..byte], &page, keys).is_err());
    }
}

/// Bytes that begin like an object of ours, or not.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let magic = prop_oneof![
        Just(b"TGRD\x01".to_vec()),
        Just(b"TGKS\x01".to_vec()),
        Just(b"TGPK\x01\x01\x50\x00".to_vec()),
        Just(b"TGPK\x01\x02\x00\x00".to_vec()),
        Just(b"TGIX\x01".to_vec()),
        Just(b"TGLR\x01".to_vec()),
        Just(b"TGLC\x01".to_vec()),
        Just(b"TGEI\x01".to_vec()),
        Just(b"TGEJ\x01".to_vec()),
        Just(b"tidegate key 1\n".to_vec()),
        Just(Vec::new()),
    ];
    (magic, vec(any::<u8>(), 0..2000), any::<bool>()).prop_map(|(mut bytes, rest, trailer)| {
        bytes.extend(rest);
        if trailer {
            bytes.extend(b"\x10\x00\x00\x00TGPE");
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn made_up_bytes_open_nothing(bytes in any_bytes()) {
        for open in [open_descriptor, open_key_file, open_slot, open_pack, open_segment, open_record, open_checkpoint, open_of_fleet, open_token] {
            prop_assert!(open(&bytes).is_err());
        }
        let _ = PackHeader::decode(&bytes);
    }

    #[test]
    fn made_up_pages_are_only_read_under_their_name(kind in 0..4_u8, logical in vec(any::<u8>(), 0..300), hints in vec(any::<u8>(), 0..300), level in any::<u8>()) {
        let keys = keys(Level::Host);
        let id = keys.page_id(&[&[kind], logical.as_slice()].concat());
        let length = u32::try_from(logical.len()).unwrap().to_le_bytes();
        let bytes = [&[kind], &length[..], &logical, &hints].concat();
        let page = PageRef { id, location: support::location(1, 0, 1) };
        if let Ok(leaf) = Leaf::decode(&bytes, &page, keys) {
            prop_assert_eq!(leaf.encode(keys).unwrap().0, id);
        }
        if let Ok(inner) = Inner::decode(&bytes, &page, level, keys) {
            prop_assert_eq!(inner.encode(keys).unwrap().0, id);
        }
        if let Ok(delta) = Delta::decode(&bytes, &page, keys) {
            prop_assert_eq!(delta.encode(keys).unwrap().0, id);
        }
        let other = PageRef { id: PageId([0; 32]), ..page };
        prop_assert!(Leaf::decode(&bytes, &other, keys).is_err());
        prop_assert!(Delta::decode(&bytes, &other, keys).is_err());
        prop_assert!(Inner::decode(&bytes, &other, level, keys).is_err());
    }

    #[test]
    fn made_up_trailers(pack_bytes in any::<u64>(), trailer in any::<[u8; TRAILER_BYTES]>(), length in any::<u32>()) {
        let mut sound = [0; TRAILER_BYTES];
        sound[..4].copy_from_slice(&length.to_le_bytes());
        sound[4..].copy_from_slice(b"TGPE");
        for trailer in [trailer, sound] {
            if let Ok(range) = footer_range(pack_bytes, &trailer) {
                prop_assert!(range.start <= range.end && range.end <= pack_bytes);
            }
        }
    }

    #[test]
    fn made_up_footers(sealed in vec(any::<u8>(), 0..200), offset in any::<u64>()) {
        let header = PackHeader::decode(&support::data_pack().bytes).unwrap();
        prop_assert!(Footer::open_part(&header, &sealed, keys(Level::Host), offset).is_err());
    }
}
