//! The objects of a repository and the frames of the link, as anybody with its keys, or without, may have made them.
//!
//! Not behind the network: the bytes are at hand. What a decoder takes, its encoder must write so
//! that it is taken as the same again.

use crate::Target;
use crate::sealed::{self, SALT};
use crate::support::{self, REPOSITORY, keys, level_for, secret};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;
use tidegate_protocol::aead::SealKey;
use tidegate_protocol::checkpoint::{self, Block, Checkpoint};
use tidegate_protocol::descriptor::Descriptor;
use tidegate_protocol::frame::{FrameOpener, PayloadEncoder};
use tidegate_protocol::ids::{PackId, PageId, SegmentId, SlotId};
use tidegate_protocol::key_file;
use tidegate_protocol::keys::{Level, Secret};
use tidegate_protocol::limits::{FRAME_RAW_BYTES_MAX, PACK_BYTES_MAX};
use tidegate_protocol::pack::{self, Footer, PackHeader};
use tidegate_protocol::page::{Delta, Inner, Leaf, PageRef};
use tidegate_protocol::record::{self, Head, Header, Kind};
use tidegate_protocol::segment::Segment;
use tidegate_protocol::slot::{self, Credential, NewWrapping, Slot, SlotRandom, Wrapping};

const MIB: usize = 1 << 20;

/// The largest input that libFuzzer makes is a few KiB, so a MiB is a generous multiple of it.
pub(crate) const TARGETS: &[Target] = &[
    target("names", names, name_seeds, MIB),
    target("stored", stored, stored_seeds, MIB),
    target("key_file", key_file_text, key_file_seeds, MIB),
    target("keys", key_bundle, key_bundle_seeds, MIB),
    target("descriptor", descriptor, descriptor_seeds, MIB),
    // Content unfolds up to the largest frame, and is compressed again.
    target(
        "frame",
        frame,
        frame_seeds,
        4 * FRAME_RAW_BYTES_MAX as usize,
    ),
    target("footer", footer, footer_seeds, MIB),
    target("segment", segment, segment_seeds, MIB),
    target("page", page, page_seeds, MIB),
    target("record", log_record, record_seeds, MIB),
    target("checkpoint", log_checkpoint, checkpoint_seeds, MIB),
    target("wire", support::wire::read_anything, wire_seeds, MIB),
];

const fn target(
    name: &'static str,
    run: fn(&[u8]),
    seeds: fn() -> Vec<Vec<u8>>,
    held_bytes_max: usize,
) -> Target {
    Target {
        name,
        run,
        seeds,
        held_bytes_max,
    }
}

/// Names of objects, as a store lists them, and identifiers, as people type them.
fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Some(id) = PackId::from_object_key(text) {
        assert_eq!(id.object_key(), text);
    }
    if let Some(id) = SegmentId::from_object_key(text) {
        assert_eq!(id.object_key(), text);
    }
    if let Some(id) = SlotId::from_object_key(text) {
        assert_eq!(id.object_key(), text);
    }
    if let Some(number) = record::number_of(text) {
        assert_eq!(record::object_key(number), text);
    }
    if let Some(number) = checkpoint::number_of(text) {
        assert_eq!(checkpoint::object_key(number), text);
    }
    if let Ok(id) = text.parse::<PackId>() {
        assert_eq!(id.to_string(), text.to_lowercase());
    }
}

fn name_seeds() -> Vec<Vec<u8>> {
    [
        PackId([0xab; 32]).object_key(),
        SegmentId([0xcd; 32]).object_key(),
        SlotId([0xef; 16]).object_key(),
        record::object_key(42),
        checkpoint::object_key(u64::MAX),
        PackId([0x12; 32]).to_string(),
    ]
    .map(String::into_bytes)
    .into()
}

/// What stands in the bucket, byte for byte: everybody's first look at it. The first byte chooses
/// the reader, the rest is the object.
fn stored(bytes: &[u8]) {
    let Some((reader, object)) = bytes.split_first() else {
        return;
    };
    let keys = keys(Level::Restore);
    match reader % 7 {
        0 => drop(Descriptor::decode(object)),
        1 => open_slot(object),
        2 => {
            if let Ok(header) = PackHeader::decode(object) {
                assert!(header.len() <= object.len());
                let _ = header.frames_key(keys);
            }
            let _ = Footer::open(object, keys);
        }
        3 => drop(Segment::decode(object, keys)),
        4 => {
            if let Ok(header) = Header::decode(object, keys.root_public(), REPOSITORY) {
                let _ = header.open_body(object, keys);
            }
        }
        5 => {
            if let Ok(checkpoint) = Checkpoint::decode(object, keys) {
                checkpoint.blocks(keys).for_each(drop);
            }
        }
        _ => {
            if let Some((trailer, bytes)) = object.split_first_chunk()
                && let Some(pack_bytes) = bytes.first_chunk()
            {
                let pack_bytes = u64::from_le_bytes(*pack_bytes);
                if let Ok(range) = pack::footer_range(pack_bytes, trailer) {
                    assert!(range.start <= range.end && range.end <= PACK_BYTES_MAX.into());
                    assert!(range.end <= pack_bytes);
                }
            }
        }
    }
}

fn stored_seeds() -> Vec<Vec<u8>> {
    let host = keys(Level::Host);
    let segment = support::segment().encode(host, support::SEGMENT_SALT);
    let mut seeds = vec![
        [&[0], &*support::descriptor().encode(&secret().root_key())].concat(),
        [&[2], &*support::data_pack().bytes].concat(),
        [&[2], &*support::tree_pack().bytes].concat(),
        [&[3], &*segment.unwrap().1].concat(),
        [&[4], &*support::record_of(&support::bodies()[0])].concat(),
        [&[5], &*support::checkpoint()].concat(),
        b"\x06\x10\x00\x00\x00TGPE\x00\x10\x00\x00\x00\x00\x00\x00".to_vec(),
    ];
    seeds.extend(
        support::slots()
            .iter()
            .map(|(_, slot)| [&[1], slot.as_slice()].concat()),
    );
    seeds
}

/// Opens a slot in the ways that cost little: stretching a passphrase is what a slot may ask for.
fn open_slot(object: &[u8]) {
    let Ok(slot) = Slot::decode(object) else {
        return;
    };
    let _ = slot.open(&Credential::File(support::WRAPPING_FILE));
    let _ = slot.open(&Credential::Recipient(&support::recipient()));
    if let Wrapping::Passphrase(cost) = slot.wrapping
        && cost.memory_kib <= 64
        && cost.passes <= 2
    {
        let _ = slot.open(&Credential::Passphrase(support::PASSPHRASE));
    }
}

/// A key file whose check line is right, whatever stands above it.
fn key_file_text(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let _ = key_file::decode(text);
    let check = blake3::hash(text.replace("\r\n", "\n").as_bytes()).to_hex();
    let checked = format!("{text}check: {}\n", &check[..16]);
    if let Ok(keys) = key_file::decode(&checked) {
        let again = key_file::encode(&keys);
        assert_eq!(again.trim_end(), checked.replace("\r\n", "\n").trim_end());
    }
}

fn key_file_seeds() -> Vec<Vec<u8>> {
    let files = Level::ALL.map(|level| key_file::encode(keys(level)));
    let without_check = files.iter().map(|file| {
        let end = file.rfind("check: ").unwrap();
        file[..end].as_bytes().to_vec()
    });
    let whole = files.iter().map(|file| file.as_bytes().to_vec());
    without_check.chain(whole).collect()
}

/// The keys in a slot, by somebody who can wrap one. The first byte is the level that it claims.
fn key_bundle(bytes: &[u8]) {
    let Some((level, bundle)) = bytes.split_first() else {
        return;
    };
    let Ok(slot) = Slot::decode(&sealed::slot(*level, bundle)) else {
        return;
    };
    let Ok(keys) = slot.open(&Credential::File(&sealed::WRAPPING_FILE)) else {
        return;
    };
    let random = SlotRandom {
        salt: SALT,
        seed: Secret([1; 32]),
    };
    let with = NewWrapping::File(&sealed::WRAPPING_FILE);
    let wrapped = slot::wrap(&keys, SlotId([4; 16]), "", 0, &with, random).unwrap();
    let again = Slot::decode(&wrapped)
        .and_then(|slot| slot.open(&Credential::File(&sealed::WRAPPING_FILE)))
        .unwrap();
    assert_eq!(*key_file::encode(&again), *key_file::encode(&keys));
}

fn key_bundle_seeds() -> Vec<Vec<u8>> {
    let bundle = |level: Level| {
        let file = key_file::encode(keys(level));
        let body: String = file
            .lines()
            .filter(|line| !line.contains([':', ' ']))
            .collect();
        [&[level.tag()], &*STANDARD.decode(body).unwrap()].concat()
    };
    Level::ALL.map(bundle).into()
}

/// A descriptor that the root key has signed.
fn descriptor(message: &[u8]) {
    if let Ok(read) = Descriptor::decode(&sealed::descriptor(message)) {
        let _ = read.check_keys(keys(Level::Host));
        read.chunker.validate().unwrap();
        let again = Descriptor::decode(&read.encode(&secret().root_key())).unwrap();
        assert_eq!(again, read);
    }
}

fn descriptor_seeds() -> Vec<Vec<u8>> {
    let object = support::descriptor().encode(&secret().root_key());
    let mut fixed = support::descriptor();
    fixed.chunker = tidegate_protocol::descriptor::ChunkerParams::Fixed {
        chunk_bytes: 1 << 16,
    };
    [object, fixed.encode(&secret().root_key())]
        .map(|object| object[9..object.len() - 64].to_vec())
        .into()
}

/// A frame's payload.
fn frame(payload: &[u8]) {
    let key = SealKey::new(&[1; 32]);
    let mut opener = FrameOpener::new().unwrap();
    let sealed = key.seal(72, b"header", payload);
    let Ok(raw) = opener.open(&key, b"header", 72, &sealed) else {
        return;
    };
    assert!(raw.len() <= FRAME_RAW_BYTES_MAX as usize);
    // Compressing takes time: large content is what one bomb in a thousand unfolds to.
    if raw.len() > MIB {
        return;
    }
    let raw = raw.to_vec();
    let mut encoder = PayloadEncoder::new(1).unwrap();
    let sealed = key.seal(72, b"header", encoder.encode(&raw));
    assert!(opener.open(&key, b"header", 72, &sealed).unwrap() == raw);
}

fn frame_seeds() -> Vec<Vec<u8>> {
    let noise = support::noise(1, 300);
    [&noise[..], b"tide", &[7; 5000], &b"gate".repeat(900)]
        .map(support::payload)
        .into()
}

/// A pack's table of contents. The first byte is the pack's kind, four more say where the footer
/// begins.
fn footer(bytes: &[u8]) {
    let Some((&[kind, ref offset @ ..], table)) = bytes.split_first_chunk::<5>() else {
        return;
    };
    let offset = u32::from_le_bytes(*offset).into();
    let header_bytes = sealed::pack_header(1 + kind % 2);
    let header = PackHeader::decode(&header_bytes).unwrap();
    let sealed = sealed::footer(&header_bytes, table);
    let Ok(footer) = Footer::open_part(&header, &sealed, keys(Level::Host), offset) else {
        return;
    };
    let mut end = header.len() as u64;
    for (_, location) in footer.locations(PackId([0; 32])) {
        let range = location.frame_range();
        assert!(range.start <= end && end <= range.end || range.start == end);
        assert!(location.length > 0 && range.end <= offset);
        end = range.end;
    }
    let last = footer.frames.last().map(|frame| frame.range.end.into());
    assert_eq!(last.unwrap_or(header.len() as u64), offset);
}

fn footer_seeds() -> Vec<Vec<u8>> {
    // Two frames of two and one items, right behind the header.
    let table = |lengths: [u32; 3]| {
        let [first, second, third] = lengths;
        let frames = [[900, first + second, 2], [400, third, 1]].concat();
        let numbers = [&[2], &*frames].concat();
        let items = lengths.map(|length| [&[9; 32][..], &length.to_le_bytes()].concat());
        [
            numbers
                .iter()
                .flat_map(|number| number.to_le_bytes())
                .collect(),
            items.concat(),
        ]
        .concat()
    };
    [(0_u8, 152_u32), (1, 72)]
        .map(|(kind, header)| {
            let offset = (header + 1300).to_le_bytes();
            [&[kind][..], &offset, &table([5000, 3600, 300])].concat()
        })
        .into()
}

/// A segment's counts (16 bytes) and parts.
fn segment(bytes: &[u8]) {
    let Some((counts, parts)) = bytes.split_first_chunk() else {
        return;
    };
    let keys = keys(Level::Host);
    if let Ok(mut read) = Segment::decode(&sealed::segment(counts, parts), keys) {
        let (_, again) = read.encode(keys, SALT).unwrap();
        assert_eq!(Segment::decode(&again, keys).unwrap(), read);
    }
}

fn segment_seeds() -> Vec<Vec<u8>> {
    let frame = [0_u32, 152, 5000].map(u32::to_le_bytes).concat();
    let entry = |id: u8, offset: u32| {
        let numbers = [0, offset, 4096].map(u32::to_le_bytes).concat();
        [&[id; 32][..], &numbers].concat()
    };
    let counts =
        [[1_u32, 1, 2, 0], [0, 0, 0, 0]].map(|counts| counts.map(u32::to_le_bytes).concat());
    let parts = [vec![9; 36], frame, entry(1, 0), entry(2, 4096)].concat();
    vec![[counts[0].clone(), parts].concat(), counts[1].clone()]
}

/// A page under its true name: kind, length of what is named, that, and hints.
fn page(bytes: &[u8]) {
    let keys = keys(Level::Host);
    let Some((&[kind, ref length @ ..], rest)) = bytes.split_first_chunk::<5>() else {
        return;
    };
    let length = u32::from_le_bytes(*length) as usize;
    let logical = rest.get(..length).unwrap_or_default();
    let page = PageRef {
        id: keys.page_id(&[&[kind], logical].concat()),
        location: support::location(1, 0, 1),
    };
    if let Ok(leaf) = Leaf::decode(bytes, &page, keys) {
        let (id, again) = leaf.encode(keys).unwrap();
        assert_eq!(id, page.id);
        assert_eq!(Leaf::decode(&again, &page, keys).unwrap(), leaf);
    }
    let level = logical.first().copied().unwrap_or_default();
    if let Ok(inner) = Inner::decode(bytes, &page, level, keys) {
        let (id, again) = inner.encode(keys).unwrap();
        assert_eq!(id, page.id);
        assert_eq!(Inner::decode(&again, &page, level, keys).unwrap(), inner);
    }
    if let Ok(delta) = Delta::decode(bytes, &page, keys) {
        let (id, again) = delta.encode(keys).unwrap();
        assert_eq!(id, page.id);
        assert_eq!(Delta::decode(&again, &page, keys).unwrap(), delta);
    }
    let other = PageRef {
        id: PageId([0; 32]),
        ..page
    };
    assert!(Leaf::decode(bytes, &other, keys).is_err());
}

fn page_seeds() -> Vec<Vec<u8>> {
    let keys = keys(Level::Host);
    vec![
        support::leaf().encode(keys).unwrap().1,
        support::inner().encode(keys).unwrap().1,
        support::delta().encode(keys).unwrap().1,
    ]
}

/// A signed record: version, kind and the signer's level in a byte each, then the body.
fn log_record(bytes: &[u8]) {
    let Some((&[version, kind, level], body)) = bytes.split_first_chunk() else {
        return;
    };
    let level = Level::ALL[usize::from(level) % Level::ALL.len()];
    let keys = keys(Level::Maintenance);
    let object = sealed::record(version, kind.into(), level, body);
    let writer = Header::writer_of(&object, keys.root_public(), REPOSITORY).unwrap();
    assert_eq!(writer.level, level);
    let Ok(header) = Header::decode(&object, keys.root_public(), REPOSITORY) else {
        return;
    };
    assert!(header.kind.may_be_signed_by(level));
    let Ok(read) = header.open_body(&object, keys) else {
        return;
    };
    let head = Head {
        number: header.number - 1,
        hash: header.previous,
    };
    let signer = support::keys(level_for(read.kind()));
    let again = record::encode(&read, &head, header.time_unix_ns, header.nonce, signer).unwrap();
    let again_header = Header::decode(&again, keys.root_public(), REPOSITORY).unwrap();
    assert_eq!(again_header.open_body(&again, keys).unwrap(), read);
}

fn record_seeds() -> Vec<Vec<u8>> {
    let seed = |body: &record::Body| {
        let kind = u8::try_from(body.kind().tag()).unwrap();
        let level = level_for(body.kind());
        let level = Level::ALL.iter().position(|other| *other == level).unwrap();
        let plain = sealed::body_of(&support::record_of(body));
        [&[1, kind, u8::try_from(level).unwrap()], &*plain].concat()
    };
    assert_eq!(support::bodies().len(), Kind::ALL.len());
    support::bodies().iter().map(seed).collect()
}

/// A signed checkpoint: the signer's level, what a table says too much of its blocks, and blocks
/// with their lengths in two bytes in front.
fn log_checkpoint(bytes: &[u8]) {
    let Some((&[level, too_much], mut rest)) = bytes.split_first_chunk() else {
        return;
    };
    let mut blocks = Vec::new();
    while let Some((length, more)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes(*length)).min(more.len());
        let block;
        (block, rest) = more.split_at(length);
        blocks.push(block);
    }
    let keys = keys(Level::Maintenance);
    let level = Level::ALL[usize::from(level) % Level::ALL.len()];
    let object = sealed::checkpoint(level, &blocks, |length| {
        length.wrapping_add(u32::from(too_much).wrapping_mul(0x0101_0101))
    });
    let Ok(read) = Checkpoint::decode(&object, keys) else {
        return;
    };
    assert_ne!(level, Level::Host);
    assert_eq!(read.front.object_bytes(), object.len() as u64);
    assert_eq!(read.front.block_ranges().count(), blocks.len());
    let Ok(content) = read.blocks(keys).collect::<Result<Vec<Block>, _>>() else {
        return;
    };
    let again = checkpoint::encode(read.number, read.hash, &content, SALT, keys).unwrap();
    let again = Checkpoint::decode(&again, keys).unwrap();
    let again: Vec<Block> = again.blocks(keys).map(Result::unwrap).collect();
    assert_eq!(again, content);
}

fn checkpoint_seeds() -> Vec<Vec<u8>> {
    let blocks = support::blocks().into_iter().flat_map(|block| {
        let block = block.encode_to_vec();
        let length = u16::try_from(block.len()).unwrap().to_le_bytes();
        [&length[..], &block].concat()
    });
    let blocks: Vec<u8> = blocks.collect();
    vec![
        [&[1, 0], &*blocks].concat(),
        [&[2, 1], &*blocks].concat(),
        vec![1, 0],
    ]
}

/// The frames of the link; the first byte chooses the reader.
fn wire_seeds() -> Vec<Vec<u8>> {
    (0..)
        .zip(support::wire::frames())
        .map(|(number, frame)| [&[number], frame.bytes.as_slice()].concat())
        .collect()
}
