//! What is written is what is read, for every format, within its bounds and at their edges.

use crate::support::{self, keys};
use proptest::collection::vec;
use proptest::prelude::*;
use tidegate_protocol::checkpoint::{
    self, Block, Checkpoint, FRONT_BYTES_MAX, Front, NumberedPoint,
};
use tidegate_protocol::descriptor::{ChunkerParams, Descriptor};
use tidegate_protocol::frame::FrameOpener;
use tidegate_protocol::ids::{MomentId, PackId, PageId, RecordHash, SlotId};
use tidegate_protocol::keys::Level;
use tidegate_protocol::limits::{
    BLOCK_BYTES, CHUNK_BYTES_MAX, DELTA_EXTENTS_MAX, DELTA_PAGES_MAX, DISK_BYTES_MAX, FAN_OUT,
    FRAME_BYTES_MIN, FRAME_RAW_BYTES_MAX, LEAF_BYTES, LEAF_EXTENTS_MAX, PACK_BYTES_MAX,
    PAGE_BYTES_MAX, SEGMENT_BLOCK_ENTRIES,
};
use tidegate_protocol::pack::{
    Footer, HEADER_BYTES_MAX, Location, PackHeader, PackKind, PackWriter, TRAILER_BYTES,
    footer_range,
};
use tidegate_protocol::page::{
    Delta, DeltaExtent, Extent, Inner, Leaf, PageRef, Slice, page_span_bytes, tree_levels,
};
use tidegate_protocol::record::{self, Body, Header, Kind, PackSize, PacksBundled, PointCommitted};
use tidegate_protocol::segment::Segment;
use tidegate_protocol::slot::{Credential, Slot};
use tidegate_protocol::{ChunkId, SegmentId, key_file};

#[test]
fn descriptors() {
    let descriptor = support::descriptor();
    let bytes = descriptor.encode(&support::secret().root_key());
    let read = Descriptor::decode(&bytes).unwrap();
    assert_eq!(read, descriptor);
    for level in Level::ALL {
        read.check_keys(keys(level)).unwrap();
        assert!(read.check_keys(&support::foreign_keys(level)).is_err());
    }
    let fixed = Descriptor {
        chunker: ChunkerParams::Fixed {
            chunk_bytes: 64 << 10,
        },
        ..descriptor
    };
    let bytes = fixed.encode(&support::secret().root_key());
    assert_eq!(Descriptor::decode(&bytes), Ok(fixed));
}

#[test]
fn key_files_of_every_level() {
    for level in Level::ALL {
        let text = key_file::encode(keys(level));
        let read = key_file::decode(&text).unwrap();
        assert_eq!(*key_file::encode(&read), *text);
        assert_eq!(read.level(), level);
        assert_eq!(read.repository(), support::REPOSITORY);
        // What an editor or a mail may do to it.
        let crlf = text.replace('\n', "\r\n") + "\r\n  ";
        assert_eq!(*key_file::encode(&key_file::decode(&crlf).unwrap()), *text);
        key_file::decode(text.trim_end()).unwrap();
    }
}

#[test]
fn slots_of_every_wrapping() {
    let recipient = support::recipient();
    let credentials = [
        Credential::Passphrase(support::PASSPHRASE),
        Credential::File(support::WRAPPING_FILE),
        Credential::Recipient(&recipient),
    ];
    for ((name, bytes), credential) in support::slots().iter().zip(&credentials) {
        let slot = Slot::decode(bytes).unwrap();
        let opened = slot.open(credential).unwrap();
        assert_eq!(
            *key_file::encode(&opened),
            *key_file::encode(keys(slot.level)),
            "{name}"
        );
        assert_eq!(slot.label, "an example");
        assert_eq!(
            SlotId::from_object_key(&slot.id.object_key()),
            Some(slot.id)
        );
    }
}

/// Reads everything in a pack the way a restore does: by location, one frame at a time.
fn read_pack(pack: &[u8], level: Level) -> Vec<([u8; 32], Vec<u8>)> {
    let keys = keys(level);
    let header = PackHeader::decode(&pack[..HEADER_BYTES_MAX.min(pack.len())]).unwrap();
    let key = header.frames_key(keys).unwrap();
    let mut opener = FrameOpener::new().unwrap();
    let footer = Footer::open(pack, keys).unwrap();
    footer
        .locations(PackId::of(pack))
        .map(|(id, location)| {
            let range = location.frame_range();
            let frame =
                &pack[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
            let raw = key.open(&mut opener, location.frame_offset, frame).unwrap();
            let start = location.offset_in_frame as usize;
            (id, raw[start..start + location.length as usize].to_vec())
        })
        .collect()
}

#[test]
fn data_packs() {
    let pack = support::data_pack();
    let namer = keys(Level::Restore).chunk_namer().unwrap();
    let expected: Vec<_> = support::chunks()
        .concat()
        .into_iter()
        .map(|chunk| (namer.name(&chunk).0, chunk))
        .collect();
    assert_eq!(read_pack(&pack.bytes, Level::Restore), expected);
    assert_eq!(PackId::of(&pack.bytes), pack.id);
    assert_eq!(
        PackId::from_object_key(&pack.id.object_key()),
        Some(pack.id)
    );
    // The footer fetched on its own, as when an index is rebuilt.
    let trailer = pack.bytes.last_chunk::<TRAILER_BYTES>().unwrap();
    let range = footer_range(pack.bytes.len() as u64, trailer).unwrap();
    let sealed =
        &pack.bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
    let header = PackHeader::decode(&pack.bytes).unwrap();
    let part = Footer::open_part(&header, sealed, keys(Level::Maintenance), range.start).unwrap();
    assert_eq!(
        part,
        Footer::open(&pack.bytes, keys(Level::Maintenance)).unwrap()
    );
}

#[test]
fn tree_packs_open_at_every_level() {
    let pack = support::tree_pack();
    for level in Level::ALL {
        let pages = read_pack(&pack.bytes, level);
        let reference = |id: [u8; 32]| PageRef {
            id: PageId(id),
            location: support::location(0xee, 0, 100),
        };
        let leaf = Leaf::decode(&pages[0].1, &reference(pages[0].0), keys(level)).unwrap();
        assert_eq!(leaf, support::leaf());
        let inner = Inner::decode(&pages[1].1, &reference(pages[1].0), 1, keys(level)).unwrap();
        assert_eq!(inner, support::inner());
    }
}

#[test]
fn an_empty_pack_is_a_pack() {
    let keys = keys(Level::Host);
    let writer =
        PackWriter::new(PackKind::Data, keys, support::pack_random(1), Vec::new()).unwrap();
    assert!(writer.is_empty());
    let pack = writer.finish();
    assert_eq!(Footer::open(&pack.bytes, keys).unwrap().frames, []);
}

#[test]
fn pack_writers_refuse_what_readers_refuse() {
    let keys = keys(Level::Host);
    let mut writer =
        PackWriter::new(PackKind::Data, keys, support::pack_random(1), Vec::new()).unwrap();
    let payload = support::payload(&[7; 1000]);
    let id = [1; 32];
    // No items, an empty item, items that do not add up to what the payload holds.
    assert!(writer.push(&payload, []).is_err());
    assert!(writer.push(&payload, [(id, 0), (id, 1000)]).is_err());
    assert!(writer.push(&payload, [(id, 999)]).is_err());
    assert!(writer.push(&payload, [(id, u32::MAX), (id, 1001)]).is_err());
    assert!(writer.push(&payload[..4], [(id, 1000)]).is_err());
    // A chunk, then a frame, above its bound.
    let large = support::payload(&vec![7; CHUNK_BYTES_MAX as usize + 1]);
    assert!(writer.push(&large, [(id, CHUNK_BYTES_MAX + 1)]).is_err());
    let larger = support::payload(&vec![7; FRAME_RAW_BYTES_MAX as usize + 1]);
    assert!(
        writer
            .push(&larger, vec![(id, 1); FRAME_RAW_BYTES_MAX as usize + 1])
            .is_err()
    );
    // None of which has left a trace.
    writer.push(&payload, [(id, 400), ([2; 32], 600)]).unwrap();
    let footer = Footer::open(&writer.finish().bytes, keys).unwrap();
    assert_eq!(footer.frames.len(), 1);
    assert_eq!(footer.frames[0].items, [(id, 400), ([2; 32], 600)]);
}

#[test]
fn packs_end_at_their_bound() {
    let keys = keys(Level::Host);
    let mut writer =
        PackWriter::new(PackKind::Data, keys, support::pack_random(1), Vec::new()).unwrap();
    let payload = support::payload(&support::noise(1, CHUNK_BYTES_MAX as usize));
    let refused = (0..40).find(|_| writer.push(&payload, [([1; 32], CHUNK_BYTES_MAX)]).is_err());
    // 128 MiB hold 31 chunks of 4 MiB beside header and footer.
    assert_eq!(refused, Some(31));
    assert_eq!(
        Footer::open(&writer.finish().bytes, keys)
            .unwrap()
            .frames
            .len(),
        31
    );
}

#[test]
fn segments_are_sorted_and_hold_one_place_for_a_chunk() {
    let keys = keys(Level::Host);
    let mut segment = support::segment();
    let twice = (segment.entries[0].0, support::location(0xc2, 5, 5));
    segment.entries.push(twice);
    let (id, bytes) = segment.encode(keys, support::SEGMENT_SALT).unwrap();
    assert_eq!(SegmentId::of(&bytes), id);
    assert_eq!(SegmentId::from_object_key(&id.object_key()), Some(id));
    let read = Segment::decode(&bytes, keys).unwrap();
    let mut expected = support::segment();
    expected.entries.sort_by_key(|(id, _)| *id);
    assert_eq!(read, expected);
}

#[test]
fn segments_around_the_size_of_a_block() {
    let keys = keys(Level::Maintenance);
    // None, one, a block less one, a full block, one in the next block.
    for count in [
        0,
        1,
        SEGMENT_BLOCK_ENTRIES - 1,
        SEGMENT_BLOCK_ENTRIES,
        SEGMENT_BLOCK_ENTRIES + 1,
    ] {
        let mut segment = Segment {
            packs: vec![(PackId([5; 32]), 1 << 20)],
            entries: (0..count)
                .map(|number| {
                    let id = *blake3::hash(&number.to_le_bytes()).as_bytes();
                    (ChunkId(id), support::location(5, 0, 4096))
                })
                .collect(),
        };
        let (_, bytes) = segment.encode(keys, [1; 32]).unwrap();
        assert_eq!(
            Segment::decode(&bytes, keys).unwrap(),
            segment,
            "{count} entries"
        );
    }
}

#[test]
fn segments_refuse_entries_that_no_reader_takes() {
    let keys = keys(Level::Host);
    let mut unlisted = support::segment();
    unlisted.packs.pop();
    assert!(unlisted.encode(keys, [1; 32]).is_err());
    for broken in [
        Location {
            length: 0,
            ..support::location(0xc1, 0, 1)
        },
        Location {
            frame_bytes: FRAME_BYTES_MIN - 1,
            ..support::location(0xc1, 0, 1)
        },
        Location {
            frame_offset: u32::MAX,
            ..support::location(0xc1, 0, 1)
        },
        support::location(0xc1, 0, CHUNK_BYTES_MAX + 1),
        support::location(0xc1, FRAME_RAW_BYTES_MAX, 1),
    ] {
        let mut segment = support::segment();
        segment.entries.push((ChunkId([0xff; 32]), broken));
        assert!(segment.encode(keys, [1; 32]).is_err(), "{broken:?}");
    }
}

#[test]
fn records_of_every_kind() {
    let bodies = support::bodies();
    let kinds: Vec<Kind> = bodies.iter().map(record::Body::kind).collect();
    assert_eq!(kinds, Kind::ALL);
    for body in bodies {
        let bytes = support::record_of(&body);
        for level in Level::ALL {
            let keys = keys(level);
            let header = Header::decode(&bytes, keys.root_public(), support::REPOSITORY).unwrap();
            assert_eq!(header.number, support::head().number + 1);
            assert_eq!(header.previous, support::head().hash);
            assert_eq!(header.time_unix_ns, support::TIME);
            assert_eq!(header.kind, body.kind());
            assert_eq!(header.open_body(&bytes, keys).as_ref(), Ok(&body));
        }
    }
}

#[test]
fn names_of_objects_in_the_log() {
    for number in [1, 9, 10, 42, u64::MAX] {
        assert_eq!(record::number_of(&record::object_key(number)), Some(number));
        let checkpoint = tidegate_protocol::checkpoint::object_key(number);
        assert_eq!(
            tidegate_protocol::checkpoint::number_of(&checkpoint),
            Some(number)
        );
        assert_eq!(record::number_of(&checkpoint), None);
    }
    for strange in [
        "log/00000000000000000000", // the first record has number 1
        "log/99999999999999999999", // above 2^64
        "log/1",                    // one number, one name
        "log/+0000000000000000001",
        "log/000000000000000000001",
        "LOG/00000000000000000001",
        "log/0000000000000000000\u{0661}",
        "",
    ] {
        assert_eq!(record::number_of(strange), None, "{strange}");
    }
    let pack = PackId([0xab; 32]).object_key();
    assert_eq!(PackId::from_object_key(&pack.to_uppercase()), None);
    assert_eq!(
        PackId::from_object_key(&pack.replace("packs/ab", "packs/ac")),
        None
    );
    assert_eq!(PackId::from_object_key(&format!("{pack}0")), None);
}

#[test]
fn checkpoints_whole_and_block_by_block() {
    let bytes = support::checkpoint();
    for level in Level::ALL {
        let keys = keys(level);
        let checkpoint = Checkpoint::decode(&bytes, keys).unwrap();
        assert_eq!(
            (checkpoint.number, checkpoint.hash),
            (41, support::head().hash)
        );
        let blocks: Vec<_> = checkpoint.blocks(keys).map(Result::unwrap).collect();
        assert_eq!(blocks, support::blocks());

        let front = Front::decode(&bytes[..FRONT_BYTES_MAX.min(bytes.len())], keys).unwrap();
        assert_eq!(front.object_bytes(), bytes.len() as u64);
        assert_eq!(front.writer.level, Level::Maintenance);
        let blocks: Vec<_> = (0..)
            .zip(front.block_ranges())
            .map(|(ordinal, range)| {
                let range =
                    usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
                front.open_block(ordinal, &bytes[range], keys).unwrap()
            })
            .collect();
        assert_eq!(blocks, support::blocks());
    }
}

#[test]
fn tree_levels_at_the_edges() {
    let fan_out = FAN_OUT as u64;
    for (disk_bytes, levels, reason) in [
        (0, Some(0), "an empty disk has no page, and no level either"),
        (1, Some(0), "less than a sector is still one leaf"),
        (LEAF_BYTES - 1, Some(0), "a leaf less one byte"),
        (LEAF_BYTES, Some(0), "a full leaf needs no page above it"),
        (LEAF_BYTES + 1, Some(1), "one byte in a second leaf"),
        (LEAF_BYTES * fan_out, Some(1), "1 GiB: one full inner page"),
        (
            LEAF_BYTES * fan_out + 1,
            Some(2),
            "one byte under a second inner page",
        ),
        (2 << 40, Some(3), "2 TiB, past two full levels (256 GiB)"),
        (
            LEAF_BYTES * fan_out.pow(3),
            Some(3),
            "three full levels: 64 TiB",
        ),
        (LEAF_BYTES * fan_out.pow(3) + 1, Some(4), "a byte more"),
        (DISK_BYTES_MAX, Some(4), "the largest disk"),
        (DISK_BYTES_MAX + 1, None, "a byte too many"),
        (u64::MAX, None, "no overflow on the way"),
    ] {
        assert_eq!(tree_levels(disk_bytes), levels, "{reason}");
        if let Some(levels) = levels {
            assert!(page_span_bytes(levels) >= disk_bytes, "{reason}");
        }
    }
    assert_eq!(page_span_bytes(0), LEAF_BYTES);
    assert_eq!(page_span_bytes(u8::MAX), DISK_BYTES_MAX);
}

fn read_leaf(leaf: &Leaf) -> Leaf {
    let keys = keys(Level::Host);
    let (id, bytes) = leaf.encode(keys).unwrap();
    assert!(bytes.len() <= PAGE_BYTES_MAX as usize);
    let page = PageRef {
        id,
        location: support::location(0xee, 0, 1),
    };
    Leaf::decode(&bytes, &page, keys).unwrap()
}

#[test]
fn leaves_at_their_bounds() {
    let keys = keys(Level::Host);
    let extent = |length, tag: usize| {
        let id = *blake3::hash(&tag.to_le_bytes()).as_bytes();
        Extent {
            length,
            slice: Some(Slice {
                chunk: ChunkId(id),
                offset: CHUNK_BYTES_MAX - length,
                // The widest numbers that a hint can hold, and a pack for each.
                location: Location {
                    pack: PackId(id),
                    frame_offset: 127 << 20,
                    frame_bytes: 1 << 20,
                    offset_in_frame: CHUNK_BYTES_MAX,
                    length: CHUNK_BYTES_MAX,
                },
            }),
        }
    };
    // An extent for each sector, none like another: the largest leaf there is.
    let mut full = Leaf {
        extents: (0..LEAF_EXTENTS_MAX).map(|tag| extent(512, tag)).collect(),
    };
    assert_eq!(read_leaf(&full), full);
    assert_eq!(full.length(), LEAF_BYTES);
    // One more does not fit, even when it is small enough to stay within the bytes.
    full.extents[0].length = 511;
    full.extents.push(extent(1, 0));
    assert!(full.encode(keys).is_err());
    // Neither do empty extents, one byte more than a leaf, or slices past their chunk's end.
    let leaf = |extents| Leaf { extents };
    assert!(
        leaf(vec![Extent {
            length: 0,
            slice: None
        }])
        .encode(keys)
        .is_err()
    );
    assert!(
        leaf(vec![Extent {
            length: u32::try_from(LEAF_BYTES + 1).unwrap(),
            slice: None
        }])
        .encode(keys)
        .is_err()
    );
    let mut past = extent(512, 0);
    past.length = 513;
    assert!(leaf(vec![past]).encode(keys).is_err());
    // A chunk that covers the whole leaf, and the last byte of one.
    let mut whole = extent(CHUNK_BYTES_MAX, 0);
    assert_eq!(read_leaf(&leaf(vec![whole])), leaf(vec![whole]));
    whole.length = 1;
    assert_eq!(read_leaf(&leaf(vec![whole])), leaf(vec![whole]));
}

#[test]
fn inner_pages_at_their_bounds() {
    let keys = keys(Level::Host);
    let child = |tag| support::page_ref(tag, PackId([tag; 32]));
    for count in [1, 2, FAN_OUT] {
        let inner = Inner {
            level: 4,
            children: (0..count)
                .map(|number| Some(child(u8::try_from(number % 255 + 1).unwrap())))
                .collect(),
        };
        let (id, bytes) = inner.encode(keys).unwrap();
        let page = PageRef { id, ..child(1) };
        assert_eq!(Inner::decode(&bytes, &page, 4, keys).as_ref(), Ok(&inner));
        // A page of another level is not taken for this one.
        assert!(Inner::decode(&bytes, &page, 3, keys).is_err());
        assert!(Leaf::decode(&bytes, &page, keys).is_err());
    }
    for (level, count) in [(0, 1), (5, 1), (1, 0), (1, FAN_OUT + 1), (1, 65536 + 1)] {
        let children = vec![None; count];
        assert!(
            Inner { level, children }.encode(keys).is_err(),
            "{level} {count}"
        );
    }
}

#[test]
fn a_page_may_speak_of_its_own_pack() {
    let keys = keys(Level::Host);
    let mut inner = Inner {
        level: 1,
        children: vec![
            Some(support::page_ref(1, PackId::OWN)),
            Some(support::page_ref(2, PackId([7; 32]))),
        ],
    };
    let (id, bytes) = inner.encode(keys).unwrap();
    let page = PageRef {
        id,
        location: support::location(0xee, 0, 1),
    };
    let read = Inner::decode(&bytes, &page, 1, keys).unwrap();
    inner.children[0].as_mut().unwrap().location.pack = page.location.pack;
    assert_eq!(read, inner);
}

#[test]
fn locations_are_hints_and_not_identity() {
    let keys = keys(Level::Host);
    let leaf = support::leaf();
    let mut moved = leaf.clone();
    for slice in moved
        .extents
        .iter_mut()
        .filter_map(|extent| extent.slice.as_mut())
    {
        slice.location.pack = PackId([0xf0; 32]);
        slice.location.frame_offset = 1 << 20;
    }
    assert_eq!(leaf.encode(keys).unwrap().0, moved.encode(keys).unwrap().0);
    let mut other = leaf.clone();
    other.extents[0].length += 1;
    assert_ne!(leaf.encode(keys).unwrap().0, other.encode(keys).unwrap().0);
}

fn any_location(item_bytes_max: u32) -> impl Strategy<Value = Location> {
    (
        1..5_u8,
        0..1_u32 << 26,
        FRAME_BYTES_MIN..1 << 20,
        0..1_u32 << 22,
        1..=item_bytes_max,
    )
        .prop_map(
            |(pack, frame_offset, frame_bytes, offset_in_frame, length)| Location {
                pack: PackId([pack; 32]),
                frame_offset,
                frame_bytes,
                offset_in_frame,
                length,
            },
        )
}

fn any_leaf() -> impl Strategy<Value = Leaf> {
    let slice = (any::<u8>(), any_location(CHUNK_BYTES_MAX), any::<u32>());
    let extent = (1..8 * BLOCK_BYTES, proptest::option::of(slice)).prop_map(|(length, slice)| {
        let slice = slice.map(|(chunk, mut location, offset)| {
            location.length = location.length.max(length);
            Slice {
                chunk: ChunkId([chunk; 32]),
                offset: offset % (location.length - length + 1),
                location,
            }
        });
        Extent { length, slice }
    });
    vec(extent, 0..100).prop_map(|extents| Leaf { extents })
}

fn read_delta(delta: &Delta) -> Delta {
    let keys = keys(Level::Maintenance);
    let (id, bytes) = delta.encode(keys).unwrap();
    assert!(bytes.len() <= PAGE_BYTES_MAX as usize);
    let page = PageRef {
        id,
        location: support::location(1, 0, 1),
    };
    Delta::decode(&bytes, &page, keys).unwrap()
}

#[test]
fn delta_pages_at_their_bounds() {
    let keys = keys(Level::Host);
    let location = |number: u32| Location {
        pack: PackId([7; 32]),
        frame_offset: 72,
        frame_bytes: FRAME_RAW_BYTES_MAX,
        offset_in_frame: number,
        length: CHUNK_BYTES_MAX,
    };
    let extent = |number: u32| DeltaExtent {
        start: u64::from(number) << 30,
        length: 1 << 21,
        slice: Some(Slice {
            chunk: ChunkId(*blake3::hash(&number.to_le_bytes()).as_bytes()),
            offset: 1 << 21,
            location: location(number),
        }),
    };
    // Each of another chunk in another place: the largest there is.
    let mut full = Delta {
        extents: (0..).map(extent).take(DELTA_EXTENTS_MAX).collect(),
    };
    assert_eq!(read_delta(&full), full);
    full.extents.push(extent(1 << 20));
    assert!(full.encode(keys).is_err(), "one too many");
    let refused = |extents: Vec<DeltaExtent>| assert!(Delta { extents }.encode(keys).is_err());
    refused(vec![extent(1), extent(0)]);
    refused(vec![extent(1), extent(1)]);
    let empty = DeltaExtent {
        length: 0,
        ..extent(0)
    };
    refused(vec![empty]);
    let past = DeltaExtent {
        length: (1 << 21) + 1,
        ..extent(0)
    };
    refused(vec![past]);
    let last = DeltaExtent {
        start: DISK_BYTES_MAX - (1 << 21),
        ..extent(0)
    };
    let outside = DeltaExtent {
        start: last.start + 1,
        ..last
    };
    refused(vec![outside]);
    assert_eq!(
        read_delta(&Delta {
            extents: vec![last]
        })
        .extents,
        [last]
    );
}

#[test]
fn a_point_names_delta_pages() {
    let encode = |point: PointCommitted| {
        let body = Body::PointCommitted(point);
        record::encode(&body, &support::head(), 1, [9; 32], keys(Level::Host))
    };
    let mut point = support::point_with_deltas();
    assert!(encode(point.clone()).is_ok());
    assert_eq!(point.disks[0].delta_pages().unwrap().len(), 2);
    let page = point.disks[0].deltas[0].clone();
    point.disks[0].deltas = vec![page; DELTA_PAGES_MAX + 1];
    assert!(encode(point).is_err());
}

#[test]
fn what_a_point_says_of_its_group_voids_no_record() {
    let keys = keys(Level::Host);
    let sound = support::point_together();
    let (moment, told) = sound.together().unwrap();
    assert_eq!(
        (moment, told.group.as_str(), told.skew_ns),
        (MomentId([0x77; 16]), "shop", 12_345_678)
    );
    type Spoil = fn(&mut record::Together);
    let spoilt: [Spoil; 4] = [
        |it| it.moment = vec![1; 15],
        |it| it.moment.clear(),
        |it| it.group.clear(),
        |it| it.group = "a\nb".to_owned(),
    ];
    for spoil in spoilt {
        let mut point = sound.clone();
        spoil(point.together.as_mut().unwrap());
        let body = Body::PointCommitted(point.clone());
        let bytes = record::encode(&body, &support::head(), 1, [9; 32], keys).unwrap();
        let header = Header::decode(&bytes, keys.root_public(), support::REPOSITORY).unwrap();
        assert_eq!(header.open_body(&bytes, keys).unwrap(), body);
        assert_eq!(point.together(), None);
    }
}

#[test]
fn a_point_says_how_long_it_is_kept() {
    let keys = keys(Level::Host);
    // Before it was taken, in no calendar, as a negative number of some readers: all are sound.
    for until in [0, 1, u64::MAX / 2 + 1, u64::MAX] {
        let mut point = support::point_kept();
        point.keep_until_unix_ns = until;
        let body = Body::PointCommitted(point.clone());
        let bytes = record::encode(&body, &support::head(), 1, [9; 32], keys).unwrap();
        let header = Header::decode(&bytes, keys.root_public(), support::REPOSITORY).unwrap();
        assert_eq!(header.open_body(&bytes, keys).unwrap(), body, "{until}");
        let block = Block {
            points: vec![NumberedPoint {
                number: 1,
                time_unix_ns: 1,
                point: Some(point),
            }],
            ..Block::default()
        };
        let of_maintenance = support::keys(Level::Maintenance);
        let hash = RecordHash([1; 32]);
        let stored = checkpoint::encode(
            1,
            hash,
            std::slice::from_ref(&block),
            [2; 32],
            of_maintenance,
        )
        .unwrap();
        let checkpoint = Checkpoint::decode(&stored, keys).unwrap();
        let read: Vec<_> = checkpoint.blocks(keys).map(Result::unwrap).collect();
        assert_eq!(read, [block], "{until}");
    }
}

fn any_delta() -> impl Strategy<Value = Delta> {
    let slice = (any::<u8>(), 0..BLOCK_BYTES);
    let extent = (
        0..1_u64 << 33,
        1..3 * BLOCK_BYTES,
        proptest::option::of(slice),
    );
    vec(extent, 0..200).prop_map(|extents| {
        let mut end = 0;
        let extents = extents.into_iter().map(|(gap, length, slice)| {
            // Near neighbours are the rule.
            let start = end + if gap % 3 == 0 { 0 } else { gap };
            end = start + u64::from(length);
            let slice = slice.map(|(chunk, offset)| Slice {
                chunk: ChunkId([chunk; 32]),
                offset,
                location: support::location(1, u32::from(chunk) << 14, 4 * BLOCK_BYTES),
            });
            DeltaExtent {
                start,
                length,
                slice,
            }
        });
        Delta {
            extents: extents.collect(),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_pack(frames in vec(vec(vec(any::<u8>(), 1..2000), 1..6), 0..5), tag in 0..200_u8) {
        let named: Vec<Vec<_>> = frames
            .iter()
            .map(|frame| frame.iter().map(|item| (item.clone(), *blake3::hash(item).as_bytes())).collect())
            .collect();
        for kind in [PackKind::Data, PackKind::Tree] {
            let pack = support::pack(kind, keys(Level::Host), support::pack_random(tag), &named);
            let expected: Vec<_> = named.concat().into_iter().map(|(item, id)| (id, item)).collect();
            prop_assert_eq!(read_pack(&pack.bytes, Level::Restore), expected);
        }
    }

    #[test]
    fn any_leaf_page(leaf in any_leaf()) {
        prop_assert_eq!(read_leaf(&leaf), leaf);
    }

    #[test]
    fn any_delta_page(delta in any_delta()) {
        prop_assert_eq!(read_delta(&delta), delta);
    }

    #[test]
    fn any_inner_page(
        level in 1..=4_u8,
        children in vec(proptest::option::of((any::<[u8; 32]>(), any_location(PAGE_BYTES_MAX))), 1..=FAN_OUT),
    ) {
        let keys = keys(Level::Host);
        let children: Vec<_> = children
            .into_iter()
            .map(|child| child.map(|(id, location)| PageRef { id: PageId(id), location }))
            .collect();
        let inner = Inner { level, children };
        let (id, bytes) = inner.encode(keys).unwrap();
        let page = PageRef { id, location: support::location(1, 0, 1) };
        prop_assert_eq!(Inner::decode(&bytes, &page, level, keys), Ok(inner));
    }

    #[test]
    fn any_segment(
        entries in vec((any::<[u8; 32]>(), any_location(CHUNK_BYTES_MAX)), 0..300),
        salt in any::<[u8; 32]>(),
    ) {
        let keys = keys(Level::Host);
        let mut segment = Segment {
            packs: (1..5).map(|pack| (PackId([pack; 32]), u32::from(pack))).collect(),
            entries: entries.into_iter().map(|(id, location)| (ChunkId(id), location)).collect(),
        };
        let (_, bytes) = segment.encode(keys, salt).unwrap();
        prop_assert_eq!(Segment::decode(&bytes, keys), Ok(segment));
    }

    #[test]
    fn any_chunker_that_validates(min in 0..20_u32, avg in 0..24_u32, max in 0..24_u32, eof in 0..20_u32) {
        let chunker = ChunkerParams::BlockAligned {
            chunk_bytes_min: min * BLOCK_BYTES,
            chunk_bytes_avg: 1 << avg,
            chunk_bytes_max: 1 << max,
            eof_cut_bytes_min: eof * BLOCK_BYTES,
        };
        let descriptor = Descriptor { chunker, ..support::descriptor() };
        let read = Descriptor::decode(&descriptor.encode(&support::secret().root_key()));
        match chunker.validate() {
            Ok(()) => prop_assert_eq!(read, Ok(descriptor)),
            Err(error) => prop_assert_eq!(read, Err(error)),
        }
    }
}

#[test]
fn where_packs_lie_in_a_bundle_and_which_bundles_are_none() {
    let size = |name: u8, bytes| PackSize {
        pack: vec![name; 32],
        bytes,
    };
    let bundle = |packs: Vec<PackSize>| PacksBundled {
        bundle: vec![0xbb; 32],
        packs,
    };
    let sound = bundle(vec![size(1, 700), size(2, 1), size(3, 9)]);
    let places = sound.places().map(|(start, pack)| (start, pack.bytes));
    assert_eq!(places.collect::<Vec<_>>(), [(0, 700), (700, 1), (701, 9)]);
    let written = |bundle: &PacksBundled| {
        let body = Body::PacksBundled(bundle.clone());
        let keys = keys(Level::Maintenance);
        record::encode(&body, &support::head(), support::TIME, [1; 32], keys)
    };
    written(&sound).unwrap();
    let block = Block {
        bundles: vec![sound],
        ..Block::default()
    };
    let kept = |block: &Block| {
        let (keys, hash) = (keys(Level::Maintenance), support::head().hash);
        let blocks = std::slice::from_ref(block);
        let bytes = checkpoint::encode(7, hash, blocks, [2; 32], keys)?;
        let read = Checkpoint::decode(&bytes, keys).unwrap();
        read.blocks(keys).collect::<Result<Vec<_>, _>>()
    };
    assert_eq!(kept(&block).unwrap(), [block]);

    let most = u64::from(PACK_BYTES_MAX);
    let mut nameless = bundle(vec![size(1, 1)]);
    nameless.bundle.pop();
    for none in [
        bundle(Vec::new()),
        bundle(vec![size(1, 1), size(1, 1)]),
        bundle(vec![size(1, 1), size(0xbb, 1)]),
        bundle(vec![size(1, most), size(2, 1)]),
        bundle(vec![size(1, u64::MAX), size(2, u64::MAX)]),
        bundle(vec![PackSize::default()]),
        nameless,
    ] {
        assert!(written(&none).is_err(), "{none:?}");
        let block = Block {
            bundles: vec![none],
            ..Block::default()
        };
        assert!(kept(&block).is_err(), "{block:?}");
    }
}
