//! What each level can and cannot do, also when it forges the bytes by hand.

use crate::support::{self, REPOSITORY, TIME, keys};
use tidegate_protocol::checkpoint::{self, Checkpoint};
use tidegate_protocol::ids::RecordHash;
use tidegate_protocol::keys::{
    Certificate, Keys, Level, RepositorySecret, Secret, SigningKey, VerifyingKey,
};
use tidegate_protocol::pack::{Footer, PackHeader};
use tidegate_protocol::record::{self, Header, Kind};
use tidegate_protocol::segment::Segment;
use tidegate_protocol::slot::{self, Credential, NewWrapping, Slot, SlotRandom};
use tidegate_protocol::{FormatError, RepositoryId, descriptor::Descriptor, key_file};

use Level::{Host, Maintenance, Restore};

const RECORD_CERTIFICATE: usize = 87;
const CHECKPOINT_CERTIFICATE: usize = 77;

fn decode_record(bytes: &[u8]) -> Result<Header, FormatError> {
    Header::decode(bytes, keys(Host).root_public(), REPOSITORY)
}

fn put(bytes: &mut [u8], at: usize, part: &[u8]) {
    bytes[at..at + part.len()].copy_from_slice(part);
}

/// Puts another writer's certificate into a record and signs it with that writer's key.
fn sign_record(bytes: &[u8], certificate: &Certificate, signing: &SigningKey) -> Vec<u8> {
    let mut forged = bytes.to_vec();
    put(&mut forged, RECORD_CERTIFICATE, &certificate.encode());
    let signed = forged.len() - 64;
    let signature = signing.sign(&forged[..signed]);
    put(&mut forged, signed, &signature);
    forged
}

fn sign_checkpoint(bytes: &[u8], certificate: &Certificate, signing: &SigningKey) -> Vec<u8> {
    let mut forged = bytes.to_vec();
    put(&mut forged, CHECKPOINT_CERTIFICATE, &certificate.encode());
    let table = CHECKPOINT_CERTIFICATE + Certificate::BYTES + 4;
    let signed = table + support::blocks().len() * 36;
    let signature = signing.sign(&[b"tidegate 1 checkpoint", &forged[..signed]].concat());
    put(&mut forged, signed, &signature);
    forged
}

fn is_right(error: &FormatError) -> bool {
    matches!(error, FormatError::Right { .. })
}

#[test]
fn only_restore_keys_read_disk_content() {
    let pack = support::data_pack();
    let header = PackHeader::decode(&pack.bytes).unwrap();
    for level in [Host, Maintenance] {
        // Not even the level that wrote the pack.
        assert!(is_right(&header.frames_key(keys(level)).err().unwrap()));
        assert!(is_right(&keys(level).data_private().unwrap_err()));
        assert!(is_right(&keys(level).secret().unwrap_err()));
        // Its table of contents it can.
        Footer::open(&pack.bytes, keys(level)).unwrap();
    }
    header.frames_key(keys(Restore)).unwrap();
}

#[test]
fn maintenance_keys_cannot_name_chunks() {
    assert!(is_right(&keys(Maintenance).chunk_namer().unwrap_err()));
    keys(Host).chunk_namer().unwrap();
    keys(Restore).chunk_namer().unwrap();
}

#[test]
fn a_key_holds_its_level_and_no_more() {
    let secret = support::secret();
    let private = [
        Secret([0x11; 32]).0,
        *blake3::Hasher::new_derive_key("tidegate 1 id key")
            .update(&secret.0.0)
            .finalize()
            .as_bytes(),
        *blake3::Hasher::new_derive_key("tidegate 1 metadata key")
            .update(&secret.0.0)
            .finalize()
            .as_bytes(),
    ];
    // secret, id key, metadata key: what stands in the key file of each level. The restore level
    // holds the secret, from which the others follow.
    for (level, holds) in [
        (Host, [false, true, true]),
        (Maintenance, [false, false, true]),
        (Restore, [true, false, false]),
    ] {
        let text = key_file::encode(keys(level));
        let lines = text.lines().filter(|line| !line.contains(':')).skip(1);
        use base64::Engine as _;
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(lines.collect::<String>())
            .unwrap();
        for (secret, holds) in private.iter().zip(holds) {
            assert_eq!(
                bytes.windows(32).any(|window| window == secret),
                holds,
                "{level}"
            );
        }
    }
}

#[test]
fn every_kind_and_level() {
    // Written out, not derived: changing a right is changing the format.
    let rights: [(u16, Kind, &[Level]); 14] = [
        (1, Kind::PointCommitted, &[Host, Restore]),
        (2, Kind::PointExpired, &[Maintenance, Restore]),
        (3, Kind::HoldSet, &[Maintenance, Restore]),
        (4, Kind::HoldLifted, &[Maintenance, Restore]),
        (5, Kind::PacksCondemned, &[Maintenance, Restore]),
        (6, Kind::PacksSwept, &[Maintenance, Restore]),
        (7, Kind::ChunksRelocated, &[Restore]),
        (8, Kind::PacksFoundBad, &[Host, Maintenance, Restore]),
        (9, Kind::IndexMerged, &[Maintenance, Restore]),
        (10, Kind::VolumeOpened, &[Restore]),
        (11, Kind::KeyChanged, &[Restore]),
        (12, Kind::Evidence, &[Maintenance, Restore]),
        (13, Kind::RunAnnounced, &[Host, Maintenance, Restore]),
        (14, Kind::PacksBundled, &[Maintenance, Restore]),
    ];
    assert_eq!(rights.map(|(_, kind, _)| kind).as_slice(), Kind::ALL);
    for ((tag, kind, levels), body) in rights.into_iter().zip(support::bodies()) {
        assert_eq!(kind.tag(), tag);
        assert_eq!(Kind::from_tag(tag), Some(kind));
        assert_eq!(body.kind(), kind);
        let sound = support::record_of(&body);
        for level in Level::ALL {
            let keys = keys(level);
            let may = levels.contains(&level);
            assert_eq!(kind.may_be_signed_by(level), may, "{kind:?} {level}");
            // The writer is told.
            let encoded = record::encode(&body, &support::head(), TIME, [7; 32], keys);
            assert_eq!(
                encoded.as_ref().err().is_some_and(is_right),
                !may,
                "{kind:?} {level}"
            );
            // And who writes the bytes by hand, with a good signature, has written a void record.
            let identity = keys.identity();
            let forged = sign_record(&sound, &identity.certificate, &identity.signing);
            let read = decode_record(&forged);
            assert_eq!(read.is_ok(), may, "{kind:?} {level}");
            assert_eq!(
                read.err().as_ref().is_some_and(is_right),
                !may,
                "{kind:?} {level}"
            );
        }
    }
}

#[test]
fn a_host_cannot_raise_its_level() {
    let expiry = &support::bodies()[1];
    let sound = support::record_of(expiry);
    let host = keys(Host);
    let own = &host.identity().certificate;
    let signing = &host.identity().signing;
    // A certificate that says more than the root key signed.
    let mut raised = *own;
    raised.level = Restore;
    assert!(decode_record(&sign_record(&sound, &raised, signing)).is_err());
    // One that the host issues itself.
    let self_issued = Certificate::issue(signing, Restore, REPOSITORY, own.public, TIME);
    assert!(decode_record(&sign_record(&sound, &self_issued, signing)).is_err());
    // Somebody else's certificate, without the key to it.
    let restore = keys(Restore);
    let stolen = &restore.identity().certificate;
    assert!(decode_record(&sign_record(&sound, stolen, signing)).is_err());
    assert!(decode_record(&sign_record(&sound, stolen, &restore.identity().signing)).is_ok());
}

#[test]
fn certificates_hold_for_one_repository_and_one_root() {
    let sound = support::record_of(&support::bodies()[0]);
    let signing = SigningKey::from_seed(Secret([5; 32]));
    let root = support::secret().root_key();
    // The same root key, another repository: as when one secret serves two.
    let elsewhere = RepositoryId([1; 16]);
    let foreign = Certificate::issue(&root, Restore, elsewhere, signing.public(), TIME);
    assert!(matches!(
        decode_record(&sign_record(&sound, &foreign, &signing)),
        Err(FormatError::Foreign { .. })
    ));
    foreign.verify(&root.public(), elsewhere).unwrap();
    // Another root key, the same repository.
    let other_root = RepositorySecret(Secret([6; 32])).root_key();
    let forged = Certificate::issue(&other_root, Restore, REPOSITORY, signing.public(), TIME);
    assert!(matches!(
        decode_record(&sign_record(&sound, &forged, &signing)),
        Err(FormatError::Signature { .. })
    ));
    // Every part of a certificate is signed.
    let certificate = Certificate::issue(&root, Host, REPOSITORY, signing.public(), TIME);
    let bytes = certificate.encode();
    assert_eq!(Certificate::decode(&bytes), Ok(certificate));
    for byte in 0..bytes.len() {
        for bit in 0..8 {
            let mut changed = bytes;
            changed[byte] ^= 1 << bit;
            let read = Certificate::decode(&changed);
            assert!(
                read.and_then(|read| read.verify(&root.public(), REPOSITORY))
                    .is_err()
            );
        }
    }
}

#[test]
fn a_host_cannot_write_a_checkpoint() {
    let head = support::head();
    let encoded = checkpoint::encode(
        head.number,
        head.hash,
        &support::blocks(),
        [1; 32],
        keys(Host),
    );
    assert!(is_right(&encoded.unwrap_err()));
    // By hand: it holds the key that seals the blocks, and a certificate.
    let sound = support::checkpoint();
    for level in Level::ALL {
        let keys = keys(level);
        let identity = keys.identity();
        let forged = sign_checkpoint(&sound, &identity.certificate, &identity.signing);
        let read = Checkpoint::decode(&forged, keys);
        assert_eq!(
            read.as_ref().err().is_some_and(is_right),
            level == Host,
            "{level}"
        );
    }
    // Nor can it change a block under somebody else's signature: the sealing key is not enough.
    let host = keys(Host);
    let mut other = support::blocks();
    other[1].condemned[0] = vec![0x66; 32];
    let maintenance = keys(Maintenance);
    let changed =
        checkpoint::encode(head.number, head.hash, &other, [0xe0; 32], maintenance).unwrap();
    let read = Checkpoint::decode(&sound, host).unwrap();
    let front = read.front;
    let from = Checkpoint::decode(&changed, host)
        .unwrap()
        .front
        .block_ranges()
        .nth(1)
        .unwrap();
    let block = &changed[usize::try_from(from.start).unwrap()..usize::try_from(from.end).unwrap()];
    assert!(front.open_block(1, block, host).is_err());
}

#[test]
fn nothing_of_another_repository_is_taken() {
    let own = keys(Restore);
    let foreign = support::foreign_keys(Restore);
    let foreign_error =
        |error: FormatError| assert!(matches!(error, FormatError::Foreign { .. }), "{error}");
    let pack = support::data_pack();
    let header = PackHeader::decode(&pack.bytes).unwrap();
    foreign_error(header.frames_key(&foreign).err().unwrap());
    foreign_error(Footer::open(&pack.bytes, &foreign).unwrap_err());
    let (_, segment) = support::segment().encode(own, [1; 32]).unwrap();
    foreign_error(Segment::decode(&segment, &foreign).unwrap_err());
    let record = support::record_of(&support::bodies()[0]);
    foreign_error(
        Header::decode(&record, foreign.root_public(), foreign.repository()).unwrap_err(),
    );
    foreign_error(Checkpoint::decode(&support::checkpoint(), &foreign).unwrap_err());
    let descriptor =
        Descriptor::decode(&support::descriptor().encode(&support::secret().root_key())).unwrap();
    foreign_error(descriptor.check_keys(&foreign).unwrap_err());
    // Also where it claims to be of this repository: the secrets differ.
    let imposter =
        RepositorySecret(Secret([0x99; 32])).issue(Restore, REPOSITORY, Secret([3; 32]), TIME);
    assert!(header.frames_key(&imposter).is_err());
    assert!(Footer::open(&pack.bytes, &imposter).is_err());
    assert!(Segment::decode(&segment, &imposter).is_err());
    assert!(Header::decode(&record, imposter.root_public(), REPOSITORY).is_err());
    assert!(Checkpoint::decode(&support::checkpoint(), &imposter).is_err());
    assert!(descriptor.check_keys(&imposter).is_err());
}

#[test]
fn a_descriptor_signed_by_somebody_else_does_not_fit_the_keys() {
    let root = RepositorySecret(Secret([6; 32])).root_key();
    let forged = Descriptor {
        root_public: root.public(),
        ..support::descriptor()
    };
    // Sound in itself: anybody can make a repository.
    let forged = Descriptor::decode(&forged.encode(&root)).unwrap();
    for level in Level::ALL {
        assert!(forged.check_keys(keys(level)).is_err());
    }
    // With another data key, content would be sealed to a stranger.
    let stranger = Descriptor {
        data_public: RepositorySecret(Secret([6; 32])).data_key().public(),
        ..support::descriptor()
    };
    assert!(stranger.check_keys(keys(Host)).is_err());
}

/// Rewrites a record's version or kind and signs it as its writer would.
fn rewritten(at: usize, part: &[u8], keys: &Keys) -> Vec<u8> {
    let mut bytes = support::record_of(&support::bodies()[0]);
    put(&mut bytes, at, part);
    sign_record(
        &bytes,
        &keys.identity().certificate,
        &keys.identity().signing,
    )
}

#[test]
fn records_of_newer_programs_are_not_void() {
    for (at, part) in [
        (4, &[2_u8][..]),
        (4, &[255]),
        (5, &[15, 0]),
        (5, &[0xff, 0xff]),
    ] {
        let error = decode_record(&rewritten(at, part, keys(Host))).unwrap_err();
        assert!(error.needs_newer_program(), "{error}");
        // Who signed it can be told all the same.
        let own = keys(Host);
        let bytes = rewritten(at, part, own);
        let writer = Header::writer_of(&bytes, own.root_public(), REPOSITORY).unwrap();
        assert_eq!(writer, own.identity().certificate);
        // But a stranger's, or a damaged one, is.
        let error = decode_record(&rewritten(at, part, &support::foreign_keys(Host))).unwrap_err();
        assert!(!error.needs_newer_program(), "{error}");
        let mut damaged = rewritten(at, part, keys(Host));
        damaged[50] ^= 1;
        assert!(!decode_record(&damaged).unwrap_err().needs_newer_program());
    }
    // Version 0 was never written, nor kind 0 promised to anybody.
    let error = decode_record(&rewritten(4, &[0], keys(Host))).unwrap_err();
    assert!(!error.needs_newer_program());
}

#[test]
fn a_record_belongs_to_its_number_and_chain() {
    let bytes = support::record_of(&support::bodies()[0]);
    let header = decode_record(&bytes).unwrap();
    // A copy at another place still says where it belongs.
    assert_eq!(header.number, 42);
    assert_eq!(header.previous, RecordHash([0xd0; 32]));
    // Changed to say otherwise, its signature fails.
    for at in [7, 15, 46] {
        let mut moved = bytes.clone();
        moved[at] ^= 1;
        assert!(decode_record(&moved).is_err());
    }
    // Whatever stands at a number can be chained to, without being fetched whole.
    let bound = tidegate_protocol::limits::RECORD_BYTES_MAX as usize + 1;
    let mut huge = vec![7; bound];
    let hash = RecordHash::of(&huge);
    huge.extend_from_slice(&[8; 100]);
    assert_eq!(RecordHash::of(&huge), hash);
    assert_ne!(RecordHash::of(&huge[..bound - 1]), hash);
}

#[test]
fn slots_open_for_their_credential_alone() {
    let recipient = support::recipient();
    let stranger = tidegate_protocol::keys::SealPrivateKey::derive(&Secret([0x34; 32]));
    let right = [
        Credential::Passphrase(support::PASSPHRASE),
        Credential::File(support::WRAPPING_FILE),
        Credential::Recipient(&recipient),
    ];
    let wrong = [
        Credential::Passphrase("correct horse battery staples"),
        Credential::Passphrase(""),
        Credential::File(b"thirty-two bytes or more, at randoM"),
        Credential::File(b"short"),
        Credential::Recipient(&stranger),
    ];
    for (number, (_, bytes)) in support::slots().iter().enumerate() {
        let slot = Slot::decode(bytes).unwrap();
        for (other, credential) in right.iter().enumerate() {
            assert_eq!(slot.open(credential).is_ok(), number == other);
        }
        for credential in &wrong {
            assert!(slot.open(credential).is_err());
        }
    }
}

#[test]
fn slots_that_cost_too_much_or_cannot_be_read_are_refused() {
    let random = || SlotRandom {
        salt: [1; 32],
        seed: Secret([2; 32]),
    };
    let wrap = |label: &str, with: &NewWrapping<'_>| {
        slot::wrap(
            keys(Restore),
            tidegate_protocol::ids::SlotId([1; 16]),
            label,
            TIME,
            with,
            random(),
        )
    };
    let cost = support::CHEAP;
    for cost in [
        slot::Argon2Cost {
            memory_kib: (1 << 20) + 1,
            ..cost
        },
        slot::Argon2Cost {
            memory_kib: 7,
            ..cost
        },
        slot::Argon2Cost { passes: 0, ..cost },
        slot::Argon2Cost { passes: 17, ..cost },
        slot::Argon2Cost { lanes: 0, ..cost },
        slot::Argon2Cost { lanes: 2, ..cost },
    ] {
        assert!(
            wrap("x", &NewWrapping::Passphrase("x", cost)).is_err(),
            "{cost:?}"
        );
    }
    assert!(wrap("x", &NewWrapping::File(&[0; 31])).is_err());
    assert!(wrap(&"x".repeat(256), &NewWrapping::File(&[0; 32])).is_err());
    assert!(wrap("a\x1b[2Jb", &NewWrapping::File(&[0; 32])).is_err());
    Slot::decode(&wrap(&"x".repeat(255), &NewWrapping::File(&[0; 32])).unwrap()).unwrap();
}

#[test]
fn a_recipient_can_tell_keys_of_another_repository_by_their_root() {
    // Anybody can seal to a public key: the slot opens, and only the fingerprint tells.
    let with = NewWrapping::Recipient(support::recipient().public());
    let random = SlotRandom {
        salt: [1; 32],
        seed: Secret([2; 32]),
    };
    let id = tidegate_protocol::ids::SlotId([1; 16]);
    let planted = slot::wrap(
        &support::foreign_keys(Restore),
        id,
        "x",
        TIME,
        &with,
        random,
    )
    .unwrap();
    let opened = Slot::decode(&planted)
        .unwrap()
        .open(&Credential::Recipient(&support::recipient()))
        .unwrap();
    let fingerprint = |root: &VerifyingKey| root.id();
    assert_ne!(
        fingerprint(opened.root_public()),
        fingerprint(keys(Restore).root_public())
    );
}

#[test]
fn a_key_file_does_not_lie_about_itself() {
    let text = key_file::encode(keys(Host));
    let written = |from: &str, to: &str| {
        let lines = text.rsplit_once("check: ").unwrap().0.replacen(from, to, 1);
        let check = blake3::hash(lines.as_bytes()).to_hex();
        format!("{lines}check: {}\n", &check[..16])
    };
    // Whoever edits it can also mend its check line.
    key_file::decode(&written("level: host", "level: host")).unwrap();
    for (from, to) in [
        ("level: host", "level: restore"),
        ("repository: 2a", "repository: 2b"),
        ("key: ", "key: 0"),
        ("key: ", "note: mine\nkey: "),
        ("repository: ", "\nrepository: "),
        ("tidegate key 1", "tidegate key 2"),
        ("tidegate key 1\n", "tidegate key 1 \n"),
    ] {
        assert!(
            key_file::decode(&written(from, to)).is_err(),
            "{from} → {to}"
        );
    }
    let long = format!("tidegate key 1\n{}", "x".repeat(64 << 10));
    assert!(key_file::decode(&long).is_err());
}
