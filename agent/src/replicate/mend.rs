//! Stores the pages of lost tree packs anew.
//!
//! A tree pack that was found bad takes older points' pages with it, which no disk brings back: a disk
//! says what it holds now. But the host that wrote the pack mostly still has it in its local cache.
//! Its pages go into another pack, under their own names, and a segment says where: readers whose
//! reference leads nowhere find them there, as they do chunks.
//!
//! What it is not: a rewrite of points, whose records stay as they are; and not a way to put the old
//! pack back, since a store lets nobody overwrite what stands under a name.

use super::assemble::pack_random;
use crate::error::{Error, Kind, Result};
use crate::repository::fetch::with_opener;
use crate::repository::index::Index;
use crate::repository::pages::page_in_index;
use crate::repository::{Repository, refused};
use std::collections::HashMap;
use std::sync::Arc;
use tidegate_protocol::FormatError;
use tidegate_protocol::frame::PayloadEncoder;
use tidegate_protocol::ids::{ChunkId, PackId, PageId};
use tidegate_protocol::keys::Keys;
use tidegate_protocol::limits::TREE_LEVELS_MAX;
use tidegate_protocol::pack::{
    Footer, Location, PackHeader, PackKind, PackRandom, PackWriter, SealedPack,
};
use tidegate_protocol::page::{Delta, Inner, Leaf, PageRef};

/// Another pack with the pages of the lost tree pack `lost`, where this machine has kept it and its
/// pages are not to be found elsewhere yet. Blocking.
pub(super) fn mend(
    repository: &Repository,
    index: &Arc<Index>,
    lost: PackId,
) -> Result<Option<SealedPack>> {
    let Some(kept) = repository.kept_tree_pack(lost) else {
        return Ok(None);
    };
    let keys = repository.keys();
    let mut reader = index.reader()?;
    let mut is_mended = true;
    for (page, _) in pages_of(lost, &kept, keys)? {
        is_mended &= reader.known(&page)?.is_some();
    }
    if is_mended {
        // Not looked at again: readers find the pages by the index, in a pack that is kept too.
        repository.drop_tree_pack(lost);
        return Ok(None);
    }
    reseal(lost, &kept, keys, pack_random()?).map(Some)
}

/// The pages of a tree pack, and where each lies, as the index takes them.
pub(super) fn pages_of(
    pack: PackId,
    bytes: &[u8],
    keys: &Keys,
) -> Result<Vec<(ChunkId, Location)>> {
    let footer = Footer::open(bytes, keys).map_err(refused)?;
    Ok(footer
        .locations(pack)
        .map(|(id, location)| (page_in_index(&PageId(id)), location))
        .collect())
}

/// Another pack with the same pages. `bytes` is the whole pack `old`, which hashes to its name.
fn reseal(old: PackId, bytes: &[u8], keys: &Keys, random: PackRandom) -> Result<SealedPack> {
    let unreadable = |error: FormatError| {
        Error::new(
            Kind::Corrupt,
            format!("the kept tree pack {old} does not open"),
        )
        .caused_by(error)
    };
    let key = PackHeader::decode(bytes)
        .and_then(|header| header.frames_key(keys))
        .map_err(unreadable)?;
    let footer = Footer::open(bytes, keys).map_err(unreadable)?;
    let mut encoder =
        PayloadEncoder::new(3).map_err(|error| Error::io("cannot make a compressor", error))?;
    let mut pack = PackWriter::new(PackKind::Tree, keys, random, Vec::new()).map_err(refused)?;
    // Where the pages so far lie in the new pack: pages above them refer to them.
    let mut moved: HashMap<PageId, Location> = HashMap::new();
    for frame in &footer.frames {
        let sealed = bytes
            .get(frame.range.start as usize..frame.range.end as usize)
            .unwrap_or_default();
        let mut raw = Vec::new();
        let mut items = Vec::with_capacity(frame.items.len());
        with_opener(|opener| {
            let mut rest = key
                .open(opener, frame.range.start, sealed)
                .map_err(unreadable)?;
            for (id, length) in &frame.items {
                let (page, after) = rest.split_at_checked(*length as usize).unwrap_or_default();
                rest = after;
                let page = moved_page(PageId(*id), page, old, &moved, keys)?;
                items.push((*id, u32::try_from(page.len()).unwrap_or(u32::MAX)));
                raw.extend_from_slice(&page);
            }
            Ok(())
        })?;
        let range = pack
            .push(encoder.encode(&raw), items.iter().copied())
            .map_err(refused)?;
        let mut offset_in_frame = 0;
        for (id, length) in items {
            let location = Location {
                pack: PackId::OWN,
                frame_offset: range.start,
                frame_bytes: range.end - range.start,
                offset_in_frame,
                length,
            };
            moved.insert(PageId(id), location);
            offset_in_frame += length;
        }
    }
    Ok(pack.finish())
}

/// A page as it stands in the new pack. A leaf or delta page names packs of data, and stays as it
/// is. An inner page
/// may mean the pack it lies in, which is another now.
fn moved_page(
    id: PageId,
    bytes: &[u8],
    old: PackId,
    moved: &HashMap<PageId, Location>,
    keys: &Keys,
) -> Result<Vec<u8>> {
    let page = PageRef {
        id,
        location: Location {
            pack: old,
            frame_offset: 0,
            frame_bytes: 0,
            offset_in_frame: 0,
            length: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
        },
    };
    let inner =
        (1..=TREE_LEVELS_MAX).find_map(|level| Inner::decode(bytes, &page, level, keys).ok());
    let Some(mut inner) = inner else {
        let leaf = Leaf::decode(bytes, &page, keys).map(drop);
        let data = leaf.or_else(|_| Delta::decode(bytes, &page, keys).map(drop));
        data.map_err(|error| {
            Error::new(Kind::Corrupt, format!("page {id} of the tree pack {old}")).caused_by(error)
        })?;
        return Ok(bytes.to_vec());
    };
    for child in inner.children.iter_mut().flatten() {
        if child.location.pack == old
            && let Some(location) = moved.get(&child.id)
        {
            child.location = *location;
        }
    }
    let (_, bytes) = inner.encode(keys).map_err(refused)?;
    Ok(bytes)
}
