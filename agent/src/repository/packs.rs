//! Where a pack's bytes are: in an object of its own, or in a bundle.
//!
//! All who read packs do it here. A pack whose object is gone may have been bundled since this machine last
//! read the log: that is looked at before it counts as missing (rule R5 of the format).

use super::Repository;
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result};
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use tidegate_protocol::ids::PackId;
use tidegate_protocol::limits::PACK_BYTES_MAX;

impl Repository {
    /// Reads exactly the bytes `range` of a pack.
    ///
    /// # Errors
    /// As [`Store::get_range`](crate::store::Store::get_range).
    pub(crate) async fn read_pack(&self, pack: PackId, range: Range<u64>) -> Result<Bytes> {
        if let Some((bundle, place)) = self.bundled(pack).await? {
            let read = self.read_bundled(pack, bundle, place, range.clone()).await;
            // For a while the pack is still there by itself too.
            return match read {
                Err(error) if is_gone(&error) => {
                    let own = self.store.get_range(&pack.object_key(), range).await;
                    own.map_err(|_| error)
                }
                read => read,
            };
        }
        let own = self
            .store
            .get_range(&pack.object_key(), range.clone())
            .await;
        if is_missing(&own)
            && let Some((bundle, place)) = self.bundled_since(pack).await?
        {
            return self.read_bundled(pack, bundle, place, range).await;
        }
        own
    }

    /// Reads a pack whole. Its bytes are not checked.
    ///
    /// # Errors
    /// As [`Store::get`](crate::store::Store::get).
    pub(crate) async fn read_whole_pack(&self, pack: PackId) -> Result<Bytes> {
        if let Some((_, place)) = self.bundled(pack).await? {
            return self.read_pack(pack, 0..place.end - place.start).await;
        }
        let own = self
            .store
            .get(&pack.object_key(), PACK_BYTES_MAX.into())
            .await;
        if is_missing(&own)
            && let Some((_, place)) = self.bundled_since(pack).await?
        {
            return self.read_pack(pack, 0..place.end - place.start).await;
        }
        own
    }

    /// The pack's size in bytes; none where it is not there whole.
    ///
    /// # Errors
    /// As [`Store::size`](crate::store::Store::size).
    pub(crate) async fn pack_size(&self, pack: PackId) -> Result<Option<u64>> {
        let (object, place) = match self.bundled(pack).await? {
            Some((bundle, place)) => (bundle, Some(place)),
            None => (pack, None),
        };
        let size = self.store.size(&object.object_key()).await?;
        let (size, place) = match (size, place) {
            (None, None) => match self.bundled_since(pack).await? {
                Some((bundle, place)) => {
                    (self.store.size(&bundle.object_key()).await?, Some(place))
                }
                None => (None, None),
            },
            found => found,
        };
        Ok(match place {
            Some(place) => size
                .filter(|bytes| *bytes >= place.end)
                .map(|_| place.end - place.start),
            None => size,
        })
    }

    /// Those of the packs that lie in a bundle, and where.
    pub(crate) async fn bundled_of(
        &self,
        packs: Vec<PackId>,
    ) -> Result<Vec<(PackId, (PackId, Range<u64>))>> {
        let catalogue = Arc::clone(&self.catalogue);
        blocking(move || {
            let mut found = Vec::new();
            for pack in packs {
                found.extend(catalogue.bundled(pack)?.map(|place| (pack, place)));
            }
            Ok(found)
        })
        .await
    }

    async fn bundled(&self, pack: PackId) -> Result<Option<(PackId, Range<u64>)>> {
        let catalogue = Arc::clone(&self.catalogue);
        blocking(move || catalogue.bundled(pack)).await
    }

    /// The bundle of a pack that was not found by itself, as the log says at its present end.
    async fn bundled_since(&self, pack: PackId) -> Result<Option<(PackId, Range<u64>)>> {
        if let Err(error) = self.refresh().await {
            tracing::warn!(
                error = error.chain(),
                "the log cannot be read: a pack that is missing may be in a bundle"
            );
            return Ok(None);
        }
        self.bundled(pack).await
    }

    async fn read_bundled(
        &self,
        pack: PackId,
        bundle: PackId,
        place: Range<u64>,
        range: Range<u64>,
    ) -> Result<Bytes> {
        let key = bundle.object_key();
        let end = place.start.saturating_add(range.end);
        if end > place.end {
            let bytes = place.end - place.start;
            let what = format!("pack {pack} in it has {bytes} bytes, {range:?} was asked for");
            return Err(self.damaged(&key, Error::new(Kind::Corrupt, what)));
        }
        let start = place.start.saturating_add(range.start);
        self.store.get_range(&key, start..end).await
    }
}

fn is_missing(read: &Result<Bytes>) -> bool {
    matches!(read, Err(error) if error.kind() == Kind::Missing)
}

/// Missing, or shorter than it should be.
pub(super) fn is_gone(error: &Error) -> bool {
    matches!(error.kind(), Kind::Missing | Kind::Corrupt)
}
