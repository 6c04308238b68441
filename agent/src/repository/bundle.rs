//! Putting small packs together, so that quick cycles do not litter the bucket.
//!
//! Which packs go together is decided by [`together`]; here are the reads, the bundle and its record. Order:
//! every pack is read and checked against its name, the bundle is durable, the record stands in the log,
//! and only then, and a while later, the packs' own objects go. A crash in between leaves a bundle that
//! nobody knows of, which the next run makes again under the same name, or objects that the next run
//! deletes.
//!
//! What it is not: a prune. No byte of any pack goes, and no chunk gets another place in a pack.

use super::Repository;
use super::catalogue::ExpectedPack;
use crate::blocking::blocking;
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::progress::Progress;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tidegate_protocol::ids::PackId;
use tidegate_protocol::limits::{BUNDLE_PACKS_MAX, PACK_BYTES_MAX};
use tidegate_protocol::record::{self, Body, PackSize, PacksBundled};
use tokio_util::sync::CancellationToken;

/// Packs read, and objects deleted, at the same time.
pub(super) const IN_FLIGHT: usize = 8;

/// Objects to delete beyond which a listing says which of them are still there.
const DELETES_UNSEEN_MAX: usize = 1000;

/// How small objects, packs and index segments, are put together.
#[derive(Debug, Clone)]
pub struct BundleSettings {
    /// Size at which one is full, in bytes; 32 MiB by default. It takes its size in memory.
    pub full_bytes: u32,
    /// Objects of at most so many bytes are small; an eighth of a full one by default.
    pub small_bytes: u32,
    /// Small ones that are worth a larger one which they do not fill; 256 by default.
    pub count_min: usize,
    /// How long the objects of what was put together stay, for readers that have not read of it; an hour
    /// by default.
    pub grace: Duration,
}

impl Default for BundleSettings {
    fn default() -> Self {
        Self {
            full_bytes: 32 << 20,
            small_bytes: 4 << 20,
            count_min: 256,
            grace: Duration::from_secs(60 * 60),
        }
    }
}

/// What was put together; on a dry run, what would be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Bundled {
    /// Bundles written.
    pub bundles: u64,
    /// Packs in them.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects deleted, of packs that are in bundles by now.
    pub deleted: u64,
    /// Small packs that wait for more of them.
    pub waiting: u64,
}

impl BundleSettings {
    /// Until when what was put together may be deleted by itself, Unix time in nanoseconds.
    pub(super) fn before_unix_ns(&self) -> u64 {
        let grace_ns = u64::try_from(self.grace.as_nanos()).unwrap_or(u64::MAX);
        clock::now_unix_ns().saturating_sub(grace_ns)
    }
}

/// Which go together: in their order, until one is full, and what is left where it is many.
pub(super) fn together<T: Copy>(
    small: &[T],
    bytes_of: impl Fn(&T) -> u64,
    settings: &BundleSettings,
) -> Vec<Vec<T>> {
    let mut groups = Vec::new();
    let mut open: Vec<T> = Vec::new();
    let mut bytes = 0;
    for one in small {
        open.push(*one);
        bytes += bytes_of(one);
        if bytes >= u64::from(settings.full_bytes) || open.len() == BUNDLE_PACKS_MAX {
            groups.push(std::mem::take(&mut open));
            bytes = 0;
        }
    }
    if open.len() >= settings.count_min {
        groups.push(open);
    }
    // One is as good by itself.
    groups.retain(|group| group.len() > 1);
    groups
}

impl Repository {
    /// What [`Self::bundle`] would do, by what is known of the log here.
    ///
    /// # Errors
    /// As the store's.
    pub async fn plan_bundles(&self, settings: &BundleSettings) -> Result<Bundled> {
        self.index().await?;
        let (bundles, mut done) = self.planned_bundles(settings).await?;
        for packs in bundles {
            done.add(&packs);
        }
        done.deleted = self.with_object(settings).await?.len() as u64;
        Ok(done)
    }

    /// Puts small packs together, and deletes the objects of those that were put together a while ago.
    ///
    /// # Errors
    /// [`Kind::Denied`] where the key may not, or where the store lets nobody delete; [`Kind::Interrupted`]
    /// after `stop`; as the store's.
    pub async fn bundle(
        self: &Arc<Self>,
        settings: &BundleSettings,
        progress: &Progress,
        stop: &CancellationToken,
    ) -> Result<Bundled> {
        let level = self.keys.level();
        if !record::Kind::PacksBundled.may_be_signed_by(level) {
            return Err(Error::new(
                Kind::Denied,
                format!("a key of level {level} may not bundle packs"),
            )
            .advise("use a maintenance or restore key"));
        }
        self.refresh().await?;
        // Segments say which packs there are.
        self.index().await?;
        // First: where nothing can be deleted, bundles would only take more room.
        let deleted = self.delete_bundled(settings, stop).await?;
        let (bundles, mut done) = self.planned_bundles(settings).await?;
        done.deleted = deleted;
        let total = bundles.iter().flatten().map(|pack| pack.bytes).sum();
        progress.add_total(total);
        for packs in bundles {
            stop_here(stop)?;
            if let Some(written) = self.write_bundle(packs, progress).await? {
                done.add(&written);
            }
        }
        self.note_suspects("bundling").await;
        Ok(done)
    }

    async fn planned_bundles(
        &self,
        settings: &BundleSettings,
    ) -> Result<(Vec<Vec<ExpectedPack>>, Bundled)> {
        let (catalogue, settings) = (Arc::clone(&self.catalogue), settings.clone());
        blocking(move || {
            let small = catalogue.bundleable(settings.small_bytes.into())?;
            let bundles = together(&small, |pack| pack.bytes, &settings);
            let taken: usize = bundles.iter().map(Vec::len).sum();
            let done = Bundled {
                waiting: (small.len() - taken) as u64,
                ..Bundled::default()
            };
            Ok((bundles, done))
        })
        .await
    }

    /// Writes one bundle and its record. Returns the packs in it, with their true sizes; none where somebody
    /// else was faster, or too few are sound.
    async fn write_bundle(
        &self,
        packs: Vec<ExpectedPack>,
        progress: &Progress,
    ) -> Result<Option<Vec<ExpectedPack>>> {
        let expected: u64 = packs.iter().map(|pack| pack.bytes).sum();
        let mut bundle = BytesMut::with_capacity(usize::try_from(expected).unwrap_or(0));
        let mut sizes = Vec::with_capacity(packs.len());
        let mut read = stream::iter(packs)
            .map(|pack| async move { (pack, self.sound(pack.id).await) })
            .buffered(IN_FLIGHT);
        while let Some((pack, sound)) = read.next().await {
            progress.add_done(pack.bytes);
            let Some(bytes) = sound? else {
                continue;
            };
            // Its segment said less than it has: what it would take is left for another bundle.
            if bundle.len() + bytes.len() > PACK_BYTES_MAX as usize {
                continue;
            }
            bundle.extend_from_slice(&bytes);
            sizes.push(ExpectedPack {
                id: pack.id,
                bytes: bytes.len() as u64,
            });
        }
        drop(read);
        if sizes.len() < 2 {
            return Ok(None);
        }
        let bundle = bundle.freeze();
        let (id, bundle) = blocking(move || Ok((PackId::of(&bundle), bundle))).await?;
        let bytes = bundle.len() as u64;
        let key = id.object_key();
        self.store.create_named_by_content(&key, bundle).await?;
        progress.add_stored(bytes);
        let body = Body::PacksBundled(PacksBundled {
            bundle: id.0.to_vec(),
            packs: sizes.iter().map(stored).collect(),
        });
        let names: Vec<PackId> = sizes.iter().map(|pack| pack.id).collect();
        let appended = self
            .append(
                |repository| match repository.catalogue.are_bundleable(&names)? {
                    true => Ok(body.clone()),
                    false => Err(Error::new(
                        Kind::Conflict,
                        "packs were bundled, or given up, by somebody else meanwhile",
                    )),
                },
            )
            .await;
        match appended {
            Ok(_) => Ok(Some(sizes)),
            Err(error) if error.kind() == Kind::Conflict => {
                // It is not deleted: somebody who has made the very same may be about to name it.
                tracing::info!(error = error.chain(), "a bundle was not needed");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The bytes of a pack's own object, or of a bundle, where they are what its name says.
    async fn sound(&self, pack: PackId) -> Result<Option<Bytes>> {
        let key = pack.object_key();
        let why = match self.store.get(&key, PACK_BYTES_MAX.into()).await {
            Ok(bytes) => {
                let (found, bytes) = blocking(move || Ok((PackId::of(&bytes), bytes))).await?;
                if found == pack {
                    return Ok(Some(bytes));
                }
                format!("its bytes hash to {found}")
            }
            Err(error) if matches!(error.kind(), Kind::Missing | Kind::Corrupt) => error.chain(),
            Err(error) => return Err(error),
        };
        let is_bundle = {
            let catalogue = Arc::clone(&self.catalogue);
            blocking(move || catalogue.is_bundle(pack)).await?
        };
        if is_bundle {
            tracing::error!(bundle = %pack, why, "a bundle is damaged: the objects of its packs stay");
        } else {
            tracing::warn!(pack = %pack, why, "a damaged pack is left where it is");
            self.suspect(pack);
        }
        Ok(None)
    }

    async fn with_object(&self, settings: &BundleSettings) -> Result<Vec<(PackId, PackId)>> {
        let before = settings.before_unix_ns();
        let catalogue = Arc::clone(&self.catalogue);
        blocking(move || catalogue.bundled_with_object(before)).await
    }

    /// Deletes the objects of packs that have been in a bundle for a while.
    async fn delete_bundled(
        &self,
        settings: &BundleSettings,
        stop: &CancellationToken,
    ) -> Result<u64> {
        let mut packs = self.with_object(settings).await?;
        if packs.len() > DELETES_UNSEEN_MAX {
            // A new cache does not know what went long ago.
            let there = self.listed_packs().await?;
            let (found, gone): (Vec<_>, Vec<_>) = packs
                .into_iter()
                .partition(|(_, pack)| there.contains(pack));
            self.note_gone(gone.iter().map(|(_, pack)| *pack).collect())
                .await?;
            packs = found;
        }
        let mut deleted = 0;
        for of_one in packs.chunk_by(|a, b| a.0 == b.0) {
            stop_here(stop)?;
            let Some((bundle, _)) = of_one.first() else {
                continue;
            };
            // What was written is read again before it becomes the only copy.
            if self.sound(*bundle).await?.is_none() {
                continue;
            }
            let packs: Vec<PackId> = of_one.iter().map(|(_, pack)| *pack).collect();
            stream::iter(packs.clone())
                .map(|pack| async move { self.store.delete(&pack.object_key()).await })
                .buffer_unordered(IN_FLIGHT)
                .try_collect::<()>()
                .await
                .map_err(may_not_delete)?;
            self.note_gone(packs).await?;
            deleted += of_one.len() as u64;
        }
        Ok(deleted)
    }

    async fn listed_packs(&self) -> Result<HashSet<PackId>> {
        let entries = self.store.list("packs/", None);
        entries
            .try_filter_map(|entry| async move { Ok(PackId::from_object_key(&entry.key)) })
            .try_collect()
            .await
    }

    async fn note_gone(&self, packs: Vec<PackId>) -> Result<()> {
        let catalogue = Arc::clone(&self.catalogue);
        blocking(move || catalogue.set_gone(&packs)).await
    }
}

/// Says what a refused delete means here.
pub(super) fn may_not_delete(error: Error) -> Error {
    match error.kind() {
        Kind::Denied => error.advise(
            "let this program delete below packs/ and index/, or do not have small objects put \
             together: they take twice the room so",
        ),
        _ => error,
    }
}

pub(super) fn stop_here(stop: &CancellationToken) -> Result<()> {
    if stop.is_cancelled() {
        return Err(Error::new(Kind::Interrupted, "stopped as asked")
            .advise("run it again: what is in a bundle stays there"));
    }
    Ok(())
}

fn stored(pack: &ExpectedPack) -> PackSize {
    PackSize {
        pack: pack.id.0.to_vec(),
        bytes: pack.bytes,
    }
}

impl Bundled {
    fn add(&mut self, packs: &[ExpectedPack]) {
        self.bundles += 1;
        self.packs += packs.len() as u64;
        self.bytes += packs.iter().map(|pack| pack.bytes).sum::<u64>();
    }
}

#[cfg(test)]
mod tests;
