//! A small repository with fixed secrets, and an example of every object in it.

#[path = "support/enrolment.rs"]
pub(crate) mod enrolment;
#[path = "support/wire.rs"]
pub(crate) mod wire;

use std::sync::LazyLock;
use tidegate_protocol::checkpoint::{self, Block, NumberedPoint};
use tidegate_protocol::descriptor::{ChunkerParams, Descriptor};
use tidegate_protocol::frame::PayloadEncoder;
use tidegate_protocol::ids::{KeyId, PackId, PageId, PointId, RecordHash, RunId, SlotId};
use tidegate_protocol::keys::{Keys, Level, RepositorySecret, SealPrivateKey, Secret};
use tidegate_protocol::pack::{Location, PackKind, PackRandom, PackWriter, SealedPack};
use tidegate_protocol::page::{Delta, DeltaExtent, Extent, Inner, Leaf, PageRef, Slice};
use tidegate_protocol::record::{
    self, Body, ChunksRelocated, Disk, Evidence, Head, HoldLifted, HoldSet, IndexMerged,
    KeyChanged, Kind, PackSize, PacksBundled, PacksCondemned, PacksFoundBad, PacksSwept,
    PointCommitted, PointExpired, RunAnnounced, StoredPageRef, Together, Totals, Tracking,
    VolumeOpened,
};
use tidegate_protocol::segment::Segment;
use tidegate_protocol::slot::{self, Argon2Cost, NewWrapping, SlotRandom};
use tidegate_protocol::{ChunkId, RepositoryId, SegmentId};

pub(crate) const TIME: u64 = 1_700_000_000_000_000_000;
pub(crate) const REPOSITORY: RepositoryId = RepositoryId([0x2a; 16]);
pub(crate) const PASSPHRASE: &str = "correct horse battery staple";
pub(crate) const WRAPPING_FILE: &[u8] = b"thirty-two bytes or more, at random";

/// The least that Argon2 takes: tests open slots by the thousand.
pub(crate) const CHEAP: Argon2Cost = Argon2Cost {
    memory_kib: 8,
    passes: 1,
    lanes: 1,
};

pub(crate) fn secret() -> RepositorySecret {
    RepositorySecret(Secret([0x11; 32]))
}

pub(crate) fn keys(level: Level) -> &'static Keys {
    // Made once: hostile bytes are opened by the ten thousand.
    static KEYS: LazyLock<Vec<Keys>> = LazyLock::new(|| {
        let issue = |level: Level| secret().issue(level, REPOSITORY, identity_seed(level), TIME);
        Level::ALL.map(issue).into()
    });
    KEYS.iter().find(|keys| keys.level() == level).unwrap()
}

pub(crate) fn identity_seed(level: Level) -> Secret {
    Secret([0xf0 | level.tag(); 32])
}

/// Keys of another repository, with another secret.
pub(crate) fn foreign_keys(level: Level) -> Keys {
    let secret = RepositorySecret(Secret([0x99; 32]));
    secret.issue(level, RepositoryId([0x9a; 16]), Secret([0x9b; 32]), TIME)
}

/// A level that may append that kind.
pub(crate) fn level_for(kind: Kind) -> Level {
    *Level::ALL
        .iter()
        .find(|level| kind.may_be_signed_by(**level))
        .unwrap()
}

pub(crate) fn descriptor() -> Descriptor {
    Descriptor {
        repository: REPOSITORY,
        created_unix_ns: TIME,
        chunker: ChunkerParams::BlockAligned {
            chunk_bytes_min: 16 << 10,
            chunk_bytes_avg: 32 << 10,
            chunk_bytes_max: 64 << 10,
            eof_cut_bytes_min: 8 << 10,
        },
        data_public: secret().data_key().public(),
        root_public: secret().root_key().public(),
    }
}

pub(crate) fn recipient() -> SealPrivateKey {
    SealPrivateKey::derive(&Secret([0x33; 32]))
}

/// A slot of each kind of wrapping, by name.
pub(crate) fn slots() -> Vec<(&'static str, Vec<u8>)> {
    let random = |tag: u8| SlotRandom {
        salt: [tag; 32],
        seed: Secret([tag + 1; 32]),
    };
    let wrap = |tag: u8, level, with: &NewWrapping<'_>| {
        slot::wrap(
            keys(level),
            SlotId([tag; 16]),
            "an example",
            TIME,
            with,
            random(tag),
        )
        .unwrap()
    };
    vec![
        (
            "passphrase",
            wrap(
                0x41,
                Level::Restore,
                &NewWrapping::Passphrase(PASSPHRASE, CHEAP),
            ),
        ),
        (
            "file",
            wrap(0x51, Level::Host, &NewWrapping::File(WRAPPING_FILE)),
        ),
        (
            "recipient",
            wrap(
                0x61,
                Level::Restore,
                &NewWrapping::Recipient(recipient().public()),
            ),
        ),
    ]
}

pub(crate) fn pack_random(tag: u8) -> PackRandom {
    PackRandom {
        salt: [tag; 32],
        key: Secret([tag.wrapping_add(1); 32]),
        seed: Secret([tag.wrapping_add(2); 32]),
    }
}

pub(crate) fn payload(raw: &[u8]) -> Vec<u8> {
    PayloadEncoder::new(3).unwrap().encode(raw).to_vec()
}

/// Bytes that no compressor shrinks, the same every time.
pub(crate) fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new()
        .update(&[seed])
        .finalize_xof()
        .fill(&mut out);
    out
}

/// Two frames: one that compresses, of two chunks; one that does not, of one.
pub(crate) fn chunks() -> Vec<Vec<Vec<u8>>> {
    vec![
        vec![vec![b'a'; 5000], b"tide".repeat(900)],
        vec![noise(1, 300)],
    ]
}

/// Writes a pack of the given frames of items; `names` names each.
pub(crate) fn pack(
    kind: PackKind,
    keys: &Keys,
    random: PackRandom,
    frames: &[Vec<(Vec<u8>, [u8; 32])>],
) -> SealedPack {
    let mut writer = PackWriter::new(kind, keys, random, Vec::new()).unwrap();
    for frame in frames {
        let raw: Vec<u8> = frame.iter().flat_map(|(item, _)| item.clone()).collect();
        let items = frame
            .iter()
            .map(|(item, id)| (*id, u32::try_from(item.len()).unwrap()));
        writer.push(&payload(&raw), items).unwrap();
    }
    writer.finish()
}

pub(crate) fn data_pack_of(keys: &Keys, tag: u8) -> SealedPack {
    let namer = keys.chunk_namer().unwrap();
    let frames: Vec<Vec<_>> = chunks()
        .into_iter()
        .map(|frame| {
            let named = |chunk: Vec<u8>| {
                let id = namer.name(&chunk).0;
                (chunk, id)
            };
            frame.into_iter().map(named).collect()
        })
        .collect();
    pack(PackKind::Data, keys, pack_random(tag), &frames)
}

pub(crate) fn data_pack() -> SealedPack {
    data_pack_of(keys(Level::Host), 0x70)
}

pub(crate) fn location(tag: u8, offset_in_frame: u32, length: u32) -> Location {
    Location {
        pack: PackId([tag; 32]),
        frame_offset: 152,
        frame_bytes: 70_000,
        offset_in_frame,
        length,
    }
}

/// Every form that an extent and its hint can take.
pub(crate) fn leaf() -> Leaf {
    let slice = |tag: u8, offset, location| {
        Some(Slice {
            chunk: ChunkId([tag; 32]),
            offset,
            location,
        })
    };
    let extent = |length, slice| Extent { length, slice };
    Leaf {
        extents: vec![
            extent(4096, None),
            extent(8192, slice(1, 0, location(0xa1, 0, 32768))),
            extent(4096, slice(1, 12288, location(0xa1, 0, 32768))),
            extent(16384, slice(2, 0, location(0xa1, 32768, 16384))),
            extent(65536, slice(3, 0, location(0xa2, 0, 65536))),
            extent(1000, slice(1, 0, location(0xa1, 0, 32768))),
            extent(1 << 20, None),
        ],
    }
}

/// Every form that an extent of a delta page can take.
pub(crate) fn delta() -> Delta {
    let slice = |tag: u8, offset, location| {
        Some(Slice {
            chunk: ChunkId([tag; 32]),
            offset,
            location,
        })
    };
    let extent = |start, length, slice| DeltaExtent {
        start,
        length,
        slice,
    };
    Delta {
        extents: vec![
            extent(0, 4096, slice(1, 0, location(0xa1, 0, 32768))),
            extent(8192, 4096, slice(1, 4096, location(0xa1, 0, 32768))),
            extent(12288, 16384, slice(2, 0, location(0xa1, 32768, 16384))),
            extent(5 << 30, 1 << 20, None),
            extent(7 << 40, 1000, slice(1, 8192, location(0xa1, 0, 32768))),
            extent((7 << 40) + 1000, 512, slice(3, 0, location(0xa2, 0, 65536))),
        ],
    }
}

pub(crate) fn page_ref(tag: u8, pack: PackId) -> PageRef {
    PageRef {
        id: PageId([tag; 32]),
        location: Location {
            pack,
            frame_offset: 72,
            frame_bytes: 3000,
            offset_in_frame: u32::from(tag) * 100,
            length: 100,
        },
    }
}

pub(crate) fn inner() -> Inner {
    Inner {
        level: 1,
        children: vec![
            None,
            Some(page_ref(1, PackId([0xb1; 32]))),
            Some(page_ref(2, PackId([0xb1; 32]))),
            None,
            Some(page_ref(3, PackId([0xb2; 32]))),
        ],
    }
}

pub(crate) fn tree_pack() -> SealedPack {
    let keys = keys(Level::Host);
    let (leaf_id, leaf) = leaf().encode(keys).unwrap();
    let (inner_id, inner) = inner().encode(keys).unwrap();
    let frames = [vec![(leaf, leaf_id.0), (inner, inner_id.0)]];
    pack(PackKind::Tree, keys, pack_random(0x80), &frames)
}

pub(crate) fn segment() -> Segment {
    let entry = |chunk: u8, pack: u8, frame_offset, offset_in_frame| {
        let location = Location {
            frame_offset,
            ..location(pack, offset_in_frame, 4096)
        };
        (ChunkId([chunk; 32]), location)
    };
    Segment {
        packs: vec![
            (PackId([0xc1; 32]), 16 << 20),
            (PackId([0xc2; 32]), 20 << 20),
        ],
        entries: vec![
            entry(9, 0xc1, 152, 0),
            entry(3, 0xc1, 152, 4096),
            entry(7, 0xc2, 152, 0),
            entry(1, 0xc2, 90_000, 8192),
        ],
    }
}

pub(crate) const SEGMENT_SALT: [u8; 32] = [0x90; 32];

/// A body of every kind, with every field in use.
pub(crate) fn bodies() -> Vec<Body> {
    let id = |tag: u8| vec![tag; 16];
    let hash = |tag: u8| vec![tag; 32];
    let reason = "an example".to_owned();
    vec![
        Body::PointCommitted(point()),
        Body::PointExpired(PointExpired {
            points: vec![id(1), id(2)],
            reason: reason.clone(),
        }),
        Body::HoldSet(HoldSet {
            hold: id(3),
            points: vec![id(1)],
            reason: reason.clone(),
            until_unix_ns: TIME + 1,
        }),
        Body::HoldLifted(HoldLifted {
            hold: id(3),
            reason: reason.clone(),
        }),
        Body::PacksCondemned(PacksCondemned {
            packs: vec![hash(4), hash(5)],
        }),
        Body::PacksSwept(PacksSwept {
            packs: vec![hash(4)],
            rescued: vec![hash(5)],
        }),
        Body::ChunksRelocated(ChunksRelocated {
            segments: vec![hash(6)],
        }),
        Body::PacksFoundBad(PacksFoundBad {
            packs: vec![hash(7)],
            reason,
            // The golden bytes are older than this field.
            segments: Vec::new(),
        }),
        Body::IndexMerged(IndexMerged {
            removed: vec![hash(8), hash(9)],
            added: vec![hash(10)],
        }),
        Body::VolumeOpened(VolumeOpened {
            volume: id(11),
            epoch: 12,
            point: id(1),
            machine: "web01".to_owned(),
        }),
        Body::KeyChanged(KeyChanged {
            key: KeyId([13; 16]).0.to_vec(),
            level: Level::Host.tag().into(),
            label: "hypervisor 7".to_owned(),
            revoked: true,
            slot: id(14),
        }),
        Body::Evidence(Evidence {
            activity: "verify".to_owned(),
            points: vec![id(1)],
            passed: true,
            report: "{\"chunks\": 3}\n".to_owned(),
        }),
        Body::RunAnnounced(RunAnnounced {
            run: RunId([15; 16]).0.to_vec(),
            machine: "web01".to_owned(),
            segments: vec![hash(16)],
            abandoned: true,
        }),
        Body::PacksBundled(PacksBundled {
            bundle: hash(17),
            packs: [(18, 700), (19, 900)]
                .map(|(name, bytes)| PackSize {
                    pack: hash(name),
                    bytes,
                })
                .to_vec(),
        }),
    ]
}

pub(crate) fn point() -> PointCommitted {
    PointCommitted {
        point: PointId([1; 16]).0.to_vec(),
        machine: "web01".to_owned(),
        disks: vec![
            Disk {
                name: "vda".to_owned(),
                size_bytes: 40 << 30,
                root: Some(StoredPageRef::encode(&page_ref(1, PackId([0xb1; 32])))),
                source_format: "qcow2".to_owned(),
                ..Disk::default()
            },
            Disk {
                name: "vdb".to_owned(),
                size_bytes: 1000,
                root: None,
                source_format: "raw".to_owned(),
                ..Disk::default()
            },
        ],
        parent: PointId([2; 16]).0.to_vec(),
        consistency: record::Consistency::Application.tag(),
        taken_unix_ns: TIME,
        finished_unix_ns: TIME + 1_000_000_000,
        segments: vec![SegmentId([3; 32]).0.to_vec()],
        tree_packs: vec![PackSize {
            pack: PackId([0xb1; 32]).0.to_vec(),
            bytes: 123_456,
        }],
        run: RunId([4; 16]).0.to_vec(),
        host: "hv07".to_owned(),
        totals: Some(Totals {
            virtual_bytes: 1,
            allocated_bytes: 2,
            read_bytes: 3,
            new_bytes: 4,
            stored_bytes: 5,
            chunks: 6,
        }),
        keep_until_unix_ns: 0,
        together: None,
    }
}

/// A point of a machine that was frozen with others.
pub(crate) fn point_together() -> PointCommitted {
    PointCommitted {
        together: Some(Box::new(Together {
            moment: vec![0x77; 16],
            group: "shop".to_owned(),
            machines: 2,
            expected: 3,
            skew_ns: 12_345_678,
        })),
        ..point()
    }
}

/// A point whose host said how long it is kept.
pub(crate) fn point_kept() -> PointCommitted {
    PointCommitted {
        keep_until_unix_ns: TIME + 14 * 86_400 * 1_000_000_000,
        ..point()
    }
}

/// A point of quick cycles: what was written since lies over the tree.
pub(crate) fn point_with_deltas() -> PointCommitted {
    let mut point = point();
    let page = |tag| StoredPageRef::encode(&page_ref(tag, PackId([0xb3; 32])));
    for disk in &mut point.disks {
        disk.deltas = vec![page(1), page(2)];
        disk.tracking = Some(Tracking {
            believed: true,
            reason: "dirty bitmap".to_owned(),
            audited_blocks: 300,
            false_chunks: 1,
        });
    }
    point.disks.push(Disk {
        name: "nvram".to_owned(),
        size_bytes: 540_672,
        role: record::Role::Nvram.tag(),
        ..Disk::default()
    });
    point
}

pub(crate) fn head() -> Head {
    Head {
        number: 41,
        hash: RecordHash([0xd0; 32]),
    }
}

/// The record of `body` that follows [`head`], signed by the least level that may.
pub(crate) fn record_of(body: &Body) -> Vec<u8> {
    let keys = keys(level_for(body.kind()));
    let nonce = *blake3::hash(&body.kind().tag().to_le_bytes()).as_bytes();
    record::encode(body, &head(), TIME, nonce, keys).unwrap()
}

pub(crate) fn blocks() -> Vec<Block> {
    let hash = |tag: u8| vec![tag; 32];
    vec![
        Block {
            points: vec![NumberedPoint {
                number: 40,
                time_unix_ns: TIME,
                point: Some(point()),
            }],
            segments: vec![hash(1), hash(2)],
            ..Block::default()
        },
        Block {
            runs: vec![RunAnnounced {
                run: vec![3; 16],
                machine: "web02".to_owned(),
                segments: vec![hash(4)],
                abandoned: false,
            }],
            holds: vec![HoldSet {
                hold: vec![5; 16],
                points: vec![vec![1; 16]],
                reason: "audit".to_owned(),
                until_unix_ns: 0,
            }],
            condemned: vec![hash(6)],
            bad: vec![hash(7)],
            keys: vec![KeyChanged {
                key: vec![8; 16],
                level: 1,
                label: "hv07".to_owned(),
                revoked: false,
                slot: Vec::new(),
            }],
            volumes: vec![VolumeOpened {
                volume: vec![9; 16],
                epoch: 2,
                point: Vec::new(),
                machine: "web03".to_owned(),
            }],
            swept: vec![hash(10)],
            tree_packs: vec![PackSize {
                pack: hash(11),
                bytes: 77,
            }],
            ..Block::default()
        },
    ]
}

pub(crate) fn checkpoint() -> Vec<u8> {
    let head = head();
    checkpoint::encode(
        head.number,
        head.hash,
        &blocks(),
        [0xe0; 32],
        keys(Level::Maintenance),
    )
    .unwrap()
}
