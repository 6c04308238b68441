//! Which data packs are gone, and whether that matters.
//!
//! A pack that is not in the store is damage only as far as points cannot be restored without it. What
//! lay in it may have been stored anew since, and a restore then finds it by the index: so does this, and
//! from here on the new place is what is looked at.

use super::super::restore::stop_here;
use super::BATCH;
use super::found::Found;
use super::worklist::{Place, Worklist};
use crate::blocking::blocking;
use crate::error::Result;
use crate::repository::Repository;
use crate::repository::fetch::Want;
use futures::TryStreamExt;
use std::collections::HashMap;
use std::sync::Arc;
use tidegate_protocol::ids::PackId;
use tidegate_protocol::pack::Location;
use tokio_util::sync::CancellationToken;

/// Notes what is lost with packs of `wanted` that are not in the store, or shorter than the points need:
/// each with its least length in bytes.
pub(super) async fn judge(
    repository: &Arc<Repository>,
    wanted: HashMap<PackId, u64>,
    list: &Arc<Worklist>,
    stop: &CancellationToken,
    damage: &mut Found,
) -> Result<()> {
    let mut sizes = Sizes {
        repository,
        known: HashMap::new(),
    };
    for pack in unlisted(repository, wanted).await? {
        stop_here(stop)?;
        // A store may list an object late: it is asked for by name before it counts as lost.
        let (pack, end) = pack;
        let found = match sizes.of(pack).await? {
            Some(bytes) if bytes >= end => continue,
            Some(bytes) => format!("it has {bytes} bytes, at least {end} were expected"),
            None => "it is missing".to_owned(),
        };
        look_elsewhere(repository, pack, found, list, &mut sizes, damage).await?;
    }
    Ok(())
}

/// Packs that a listing does not show with enough bytes. One listing, instead of a request for each.
async fn unlisted(
    repository: &Repository,
    mut wanted: HashMap<PackId, u64>,
) -> Result<HashMap<PackId, u64>> {
    let mut in_bundles: HashMap<PackId, Vec<(PackId, u64)>> = HashMap::new();
    for (pack, place) in repository
        .bundled_of(wanted.keys().copied().collect())
        .await?
    {
        let (bundle, place) = place;
        in_bundles
            .entry(bundle)
            .or_default()
            .push((pack, place.end));
    }
    let mut entries = repository.store().list("packs/", None);
    while let Some(entry) = entries.try_next().await? {
        let Some(id) = PackId::from_object_key(&entry.key) else {
            continue;
        };
        for (pack, end) in in_bundles.remove(&id).unwrap_or_default() {
            if end <= entry.size_bytes {
                wanted.remove(&pack);
            }
        }
        if wanted.get(&id).is_some_and(|end| *end <= entry.size_bytes) {
            wanted.remove(&id);
        }
    }
    Ok(wanted)
}

/// Finds out what of a lost pack has another place, has that looked at instead, and notes the rest.
async fn look_elsewhere(
    repository: &Arc<Repository>,
    lost: PackId,
    found: String,
    list: &Arc<Worklist>,
    sizes: &mut Sizes<'_>,
    damage: &mut Found,
) -> Result<()> {
    let index = repository.index().await?;
    let mut after = Place::before(lost);
    let mut nowhere = Vec::new();
    let mut is_partly_there = false;
    loop {
        let (from, list_here, index) = (after, Arc::clone(list), Arc::clone(&index));
        let batch: Vec<(Place, Want, Vec<Location>)> = blocking(move || {
            let mut reader = index.reader()?;
            list_here
                .batch(Some(from), BATCH)?
                .into_iter()
                .take_while(|(_, want)| want.location.pack == lost)
                .map(|(place, want)| Ok((place, want, reader.places(&want.chunk)?)))
                .collect()
        })
        .await?;
        let Some((last, ..)) = batch.last() else {
            break;
        };
        after = *last;
        let mut moved = Vec::new();
        for (place, want, locations) in batch {
            let mut elsewhere = None;
            for location in locations {
                let is_there = location.pack != lost
                    && location.length == want.location.length
                    && sizes.of(location.pack).await? >= Some(location.frame_range().end);
                if is_there {
                    elsewhere = Some(location);
                    break;
                }
            }
            match elsewhere {
                Some(location) => moved.push((place, Want { location, ..want })),
                None => nowhere.push(want.chunk),
            }
        }
        is_partly_there |= !moved.is_empty();
        let list = Arc::clone(list);
        blocking(move || list.relocate(&moved)).await?;
    }
    if nowhere.is_empty() {
        tracing::info!(pack = %lost, "a pack is gone, and all that points need of it has another place");
        return Ok(());
    }
    damage.packs.insert(lost, found);
    // Where nothing of a pack is left, the pack stands for its chunks.
    if is_partly_there {
        let chunks = nowhere.into_iter().map(|chunk| (chunk, lost));
        damage.chunks.extend(chunks);
    }
    Ok(())
}

/// Sizes of packs, each asked for once.
struct Sizes<'a> {
    repository: &'a Repository,
    known: HashMap<PackId, Option<u64>>,
}

impl Sizes<'_> {
    /// In bytes; nothing where it is not there.
    async fn of(&mut self, pack: PackId) -> Result<Option<u64>> {
        if let Some(size) = self.known.get(&pack) {
            return Ok(*size);
        }
        let size = self.repository.pack_size(pack).await?;
        self.known.insert(pack, size);
        Ok(size)
    }
}
