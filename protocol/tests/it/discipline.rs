//! Nonces and keys: no key seals two things, and what was sealed opens nowhere but in its place.

use crate::support::{self, keys, pack_random};
use std::collections::HashSet;
use tidegate_protocol::FormatError;
use tidegate_protocol::aead::SealKey;
use tidegate_protocol::frame::FrameOpener;
use tidegate_protocol::ids::RecordHash;
use tidegate_protocol::key_file;
use tidegate_protocol::keys::{Keys, Level, SealPrivateKey, Secret};
use tidegate_protocol::pack::{Footer, FooterFrame, PackHeader, SealedPack};
use tidegate_protocol::record::{self, Body, Head, RunAnnounced};

struct OpenPack {
    pack: SealedPack,
    header: PackHeader,
    frames: Vec<FooterFrame>,
}

fn open_pack(pack: SealedPack) -> OpenPack {
    let header = PackHeader::decode(&pack.bytes).unwrap();
    let frames = Footer::open(&pack.bytes, keys(Level::Restore))
        .unwrap()
        .frames;
    OpenPack {
        pack,
        header,
        frames,
    }
}

impl OpenPack {
    fn frame(&self, number: usize) -> &[u8] {
        let range = &self.frames[number].range;
        &self.pack.bytes[range.start as usize..range.end as usize]
    }

    fn open(&self, offset: u32, frame: &[u8]) -> Result<Vec<u8>, FormatError> {
        let key = self.header.frames_key(keys(Level::Restore)).unwrap();
        let mut opener = FrameOpener::new().unwrap();
        key.open(&mut opener, offset, frame).map(<[u8]>::to_vec)
    }
}

/// Every run of 16 bytes in `bytes`: two sealed texts that share one share a key and a nonce.
fn windows(bytes: &[u8]) -> HashSet<&[u8]> {
    bytes.windows(16).collect()
}

#[test]
fn two_packs_of_the_same_content_have_nothing_in_common() {
    let level = keys(Level::Host);
    let one = open_pack(support::data_pack_of(level, 1));
    let two = open_pack(support::data_pack_of(level, 100));
    assert_ne!(one.pack.id, two.pack.id);
    // All behind the part of the header that names the format and the repository.
    let (one, two) = (&one.pack.bytes[24..], &two.pack.bytes[24..]);
    assert!(windows(one).is_disjoint(&windows(two)));
}

#[test]
fn frames_open_only_where_they_were_written() {
    let level = keys(Level::Host);
    let data = [
        support::data_pack_of(level, 1),
        support::data_pack_of(level, 100),
    ];
    let tree = [support::tree_pack(), support::data_pack_of(level, 0x80)];
    for [pack, other] in [data, tree] {
        let (pack, other) = (open_pack(pack), open_pack(other));
        let starts: Vec<u32> = pack.frames.iter().map(|frame| frame.range.start).collect();
        let length = u32::try_from(pack.pack.bytes.len()).unwrap();
        for (number, start) in starts.iter().enumerate() {
            let frame = pack.frame(number);
            for offset in 0..length {
                // Anywhere else in its pack, where another frame stands included.
                assert_eq!(pack.open(offset, frame).is_ok(), offset == *start);
            }
            // At its own place in another pack of the same content.
            assert!(other.open(*start, frame).is_err());
        }
    }
}

#[test]
fn swapped_frames_do_not_open() {
    let level = keys(Level::Host);
    let namer = level.chunk_namer().unwrap();
    // Frames of one length, so that both still stand where frames stand.
    let frames: Vec<Vec<_>> = [1, 2]
        .map(|seed| support::noise(seed, 500))
        .map(|chunk| vec![(chunk.clone(), namer.name(&chunk).0)])
        .into();
    let kind = tidegate_protocol::pack::PackKind::Data;
    let pack = open_pack(support::pack(kind, level, pack_random(5), &frames));
    for (place, number) in [(0, 1), (1, 0)] {
        let start = pack.frames[place].range.start;
        assert!(pack.open(start, pack.frame(place)).is_ok());
        assert!(pack.open(start, pack.frame(number)).is_err());
    }
}

#[test]
fn a_footer_is_no_frame() {
    for pack in [support::data_pack(), support::tree_pack()] {
        let pack = open_pack(pack);
        let from = pack.frames.last().unwrap().range.end as usize;
        let footer = &pack.pack.bytes[from..pack.pack.bytes.len() - 8];
        assert!(pack.open(0, footer).is_err());
        assert!(pack.open(u32::try_from(from).unwrap(), footer).is_err());
        // And a frame is no footer.
        let frame = pack.frame(0);
        let offset = pack.frames[0].range.start.into();
        assert!(Footer::open_part(&pack.header, frame, keys(Level::Host), offset).is_err());
    }
}

#[test]
fn parts_open_under_their_number_and_associated_data_alone() {
    let key = SealKey::derive("test", &[1; 32], &[2; 32]);
    let sealed = key.seal(7, b"front", b"content");
    assert_eq!(key.open("part", 7, b"front", &sealed).unwrap(), b"content");
    assert!(key.open("part", 8, b"front", &sealed).is_err());
    assert!(key.open("part", 7, b"fronT", &sealed).is_err());
    for other in [
        SealKey::derive("tesT", &[1; 32], &[2; 32]),
        SealKey::derive("test", &[2; 32], &[2; 32]),
        SealKey::derive("test", &[1; 32], &[1; 32]),
    ] {
        assert!(other.open("part", 7, b"front", &sealed).is_err());
    }
}

#[test]
fn hpke_binds_use_associated_data_and_recipient() {
    let private = SealPrivateKey::derive(&Secret([1; 32]));
    let seal = |associated: &[u8], plain: &[u8], seed| {
        private
            .public()
            .seal(b"use", associated, plain, &Secret([seed; 32]))
            .unwrap()
    };
    let sealed = seal(b"front", b"a key", 9);
    assert_eq!(
        private
            .open("key", b"use", b"front", &sealed)
            .unwrap()
            .as_slice(),
        b"a key"
    );
    assert!(
        private
            .open("key", b"other use", b"front", &sealed)
            .is_err()
    );
    assert!(
        private
            .open("key", b"use", b"other front", &sealed)
            .is_err()
    );
    let other = SealPrivateKey::derive(&Secret([2; 32]));
    assert!(other.open("key", b"use", b"front", &sealed).is_err());
    for byte in 0..sealed.len() {
        for bit in 0..8 {
            let mut changed = sealed.clone();
            changed[byte] ^= 1 << bit;
            assert!(
                private.open("key", b"use", b"front", &changed).is_err(),
                "{byte}.{bit}"
            );
        }
        assert!(
            private
                .open("key", b"use", b"front", &sealed[..byte])
                .is_err()
        );
    }
    // A seed that is used twice by mistake still seals two things under two ephemeral keys.
    for again in [
        seal(b"front", b"b key", 9),
        seal(b"Front", b"a key", 9),
        seal(b"front", b"a key", 8),
    ] {
        assert_ne!(again[..32], sealed[..32]);
    }
}

#[test]
fn hpke_refuses_points_of_small_order() {
    let zero = tidegate_protocol::keys::SealPublicKey([0; 32]);
    assert!(zero.seal(b"use", b"", b"a key", &Secret([1; 32])).is_err());
    let private = SealPrivateKey::derive(&Secret([1; 32]));
    assert!(private.open("key", b"use", b"", &[0; 80]).is_err());
}

#[test]
fn a_writer_that_lost_a_race_seals_under_another_key() {
    let keys = keys(Level::Host);
    let body = |machine: &str| {
        Body::RunAnnounced(RunAnnounced {
            run: vec![1; 16],
            machine: machine.to_owned(),
            segments: vec![vec![2; 32]; 4],
            abandoned: false,
        })
    };
    let encode = |body: &Body, number, time| {
        let head = Head {
            number,
            hash: RecordHash([3; 32]),
        };
        record::encode(body, &head, time, [4; 32], keys).unwrap()
    };
    // With one nonce throughout, which the writer should have drawn anew.
    let one = encode(&body("web01"), 7, support::TIME);
    // The body begins behind front and certificate; a signature is at the end.
    let sealed = |bytes: &[u8]| bytes[212..bytes.len() - 64].to_vec();
    for other in [
        encode(&body("web01"), 8, support::TIME),
        encode(&body("web01"), 7, support::TIME + 1),
        encode(&body("web012"), 7, support::TIME),
    ] {
        // Equal plaintexts: under one key and nonce most of the sealed bytes would be equal.
        assert!(windows(&sealed(&one)).is_disjoint(&windows(&sealed(&other))));
    }
}

#[test]
fn segments_and_checkpoints_follow_their_salt() {
    let keys = keys(Level::Maintenance);
    let segment = |salt| support::segment().encode(keys, [salt; 32]).unwrap().1;
    let (one, two) = (segment(1), segment(2));
    assert!(windows(&one[69..]).is_disjoint(&windows(&two[69..])));
    let checkpoint = |salt: u8| {
        let head = support::head();
        let blocks = support::blocks();
        tidegate_protocol::checkpoint::encode(head.number, head.hash, &blocks, [salt; 32], keys)
            .unwrap()
    };
    let (one, two) = (checkpoint(1), checkpoint(2));
    assert!(windows(&one[202..]).is_disjoint(&windows(&two[202..])));
}

#[test]
fn names_depend_on_the_repository() {
    let (own, foreign) = (keys(Level::Host), support::foreign_keys(Level::Host));
    let name = |keys: &Keys| keys.chunk_namer().unwrap().name(b"content");
    let seed = |keys: &Keys| keys.chunk_namer().unwrap().chunker_seed();
    assert_ne!(name(own), name(&foreign));
    assert_ne!(name(own).0, *blake3::hash(b"content").as_bytes());
    assert_ne!(seed(own), seed(&foreign));
    assert_ne!(own.page_id(b"page"), foreign.page_id(b"page"));
    // Every holder who may name chunks names them alike.
    assert_eq!(name(own), name(keys(Level::Restore)));
    assert_eq!(seed(own), seed(keys(Level::Restore)));
}

/// Nothing of disks, names or keys stands readable in any object.
#[test]
fn objects_and_messages_reveal_nothing() {
    let restore = keys(Level::Restore);
    let host = keys(Level::Host);
    let namer = host.chunk_namer().unwrap();
    let mut objects: Vec<(String, Vec<u8>)> = vec![
        (
            "descriptor".into(),
            support::descriptor().encode(&support::secret().root_key()),
        ),
        ("data pack".into(), support::data_pack().bytes),
        ("tree pack".into(), support::tree_pack().bytes),
        (
            "segment".into(),
            support::segment()
                .encode(host, support::SEGMENT_SALT)
                .unwrap()
                .1,
        ),
        ("checkpoint".into(), support::checkpoint()),
    ];
    for body in support::bodies() {
        objects.push((format!("{:?}", body.kind()), support::record_of(&body)));
    }
    for (name, bytes) in support::slots() {
        objects.push((name.to_owned(), bytes));
    }
    let chunks = support::chunks().concat();
    let mut secrets: Vec<(&str, Vec<u8>)> = vec![
        ("content", b"tidetidetide".to_vec()),
        ("content that does not compress", chunks[2][..16].to_vec()),
        ("machine name", b"web01".to_vec()),
        ("host name", b"hv07".to_vec()),
        ("passphrase", support::PASSPHRASE.into()),
        ("wrapping file", support::WRAPPING_FILE.into()),
        ("secret", vec![0x11; 16]),
        ("pack key", vec![0x71; 16]),
        ("chunk name in a segment", vec![9; 16]),
        ("pack name in a segment", vec![0xc1; 16]),
    ];
    for chunk in &chunks {
        secrets.push(("chunk name", namer.name(chunk).0[..8].to_vec()));
    }
    for level in Level::ALL {
        secrets.push((
            "signing seed",
            support::identity_seed(level).0[..16].to_vec(),
        ));
    }
    for (object, bytes) in &objects {
        for (what, secret) in &secrets {
            let found = bytes.windows(secret.len()).any(|window| window == secret);
            assert!(!found, "the {object} reveals a {what}");
        }
    }
    // Nor do keys print themselves.
    let printed = format!("{restore:?} {:?} {:?}", support::secret(), namer);
    for run in ["17, 17", "1111", "243, 243", "f3f3"] {
        assert!(!printed.contains(run), "{printed}");
    }
    // A key file does hold them, and that is all that it is for.
    assert!(key_file::encode(restore).contains("level: restore"));
}
