//! Every page of a written tree is found again where the page above it says.

#![allow(clippy::unwrap_used, reason = "tests")]

use super::{LeafContent, OldTree, TreeWriter};

use crate::error::Result;
use std::collections::HashMap;
use std::sync::Arc;
use tidegate_protocol::frame::FrameOpener;
use tidegate_protocol::ids::{ChunkId, PackId, PageId, RepositoryId};
use tidegate_protocol::keys::{Keys, Level, RepositorySecret, Secret};
use tidegate_protocol::limits::LEAF_BYTES;
use tidegate_protocol::pack::{Location, PackHeader, PackRandom};
use tidegate_protocol::page::{Extent, Inner, Leaf, PageRef, Slice};

struct NoOldTree;

impl OldTree for NoOldTree {
    fn inner(&mut self, _: usize, _: u8, _: u64) -> Result<Option<(PageRef, Arc<Inner>)>> {
        Ok(None)
    }
}

fn keys() -> Keys {
    let secret = RepositorySecret(Secret([1; 32]));
    secret.issue(Level::Restore, RepositoryId([2; 16]), Secret([3; 32]), 0)
}

/// A leaf of so many slices that all differ.
fn leaf(seed: u64, slices: u64) -> Leaf {
    let length = u32::try_from(LEAF_BYTES / slices / 512 * 512).unwrap();
    let extent = |number: u64| {
        let chunk = ChunkId(*blake3::hash(&(seed << 16 | number).to_le_bytes()).as_bytes());
        let location = Location {
            pack: PackId(chunk.0),
            frame_offset: 300,
            frame_bytes: 4000,
            offset_in_frame: 0,
            length,
        };
        Extent {
            length,
            slice: Some(Slice {
                chunk,
                offset: 0,
                location,
            }),
        }
    };
    Leaf {
        extents: (0..slices).map(extent).collect(),
    }
}

fn page_bytes(page: &PageRef, packs: &HashMap<PackId, Vec<u8>>, keys: &Keys) -> Vec<u8> {
    let pack = &packs[&page.location.pack];
    let key = PackHeader::decode(pack).unwrap().frames_key(keys).unwrap();
    let frame = page.location.frame_range();
    let frame = usize::try_from(frame.start).unwrap()..usize::try_from(frame.end).unwrap();
    let mut opener = FrameOpener::new().unwrap();
    let raw = key
        .open(&mut opener, page.location.frame_offset, &pack[frame])
        .unwrap();
    let start = page.location.offset_in_frame as usize;
    raw[start..start + page.location.length as usize].to_vec()
}

/// Collects the ids of the leaves, in order.
fn walk(
    page: &PageRef,
    level: u8,
    packs: &HashMap<PackId, Vec<u8>>,
    keys: &Keys,
    leaves: &mut Vec<PageId>,
) {
    let bytes = page_bytes(page, packs, keys);
    if level == 0 {
        Leaf::decode(&bytes, page, keys).unwrap();
        leaves.push(page.id);
        return;
    }
    let inner = Inner::decode(&bytes, page, level, keys).unwrap();
    for child in inner.children.iter().flatten() {
        walk(child, level - 1, packs, keys, leaves);
    }
}

#[test]
fn every_page_is_found_whatever_the_sizes() {
    let keys = keys();
    // Many small leaves fill a frame and complete many inner pages at once; large ones fill it by
    // themselves; a pack of 1 byte is full after each frame, one of 700 KB after three.
    for (leaves, slices, pack_bytes) in [
        (9_000, 1, 1),
        (9_000, 1, 700_000),
        (3_000, 40, 1),
        (600, 900, 1),
        (600, 900, 700_000),
    ] {
        let mut salt = 0_u64;
        let random = || {
            salt += 1;
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&salt.to_le_bytes());
            Ok(PackRandom {
                salt: bytes,
                key: Secret(bytes),
                seed: Secret(bytes),
            })
        };
        let mut writer =
            TreeWriter::new(&keys, &[leaves * LEAF_BYTES], pack_bytes, random).unwrap();
        let mut expected = Vec::new();
        for index in 0..leaves {
            let (id, bytes) = leaf(index, slices + index % 3).encode(&keys).unwrap();
            expected.push(id);
            writer
                .leaf(0, index, LeafContent::New(id, bytes), &mut NoOldTree)
                .unwrap();
        }
        let mut packs = writer.take_finished();
        let (trees, last) = writer.finish(&mut NoOldTree).unwrap();
        packs.extend(last);
        let packs = packs
            .into_iter()
            .map(|pack| (pack.id, pack.bytes))
            .collect();
        let root = trees.roots[0].unwrap();
        let levels = tidegate_protocol::page::tree_levels(leaves * LEAF_BYTES).unwrap();
        let mut found = Vec::new();
        walk(&root, levels, &packs, &keys, &mut found);
        assert!(found == expected, "{leaves} leaves of {slices} slices");
    }
}
