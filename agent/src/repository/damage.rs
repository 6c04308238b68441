//! Packs and index segments that are gone or damaged: finding them, and telling everybody.
//!
//! Who comes upon one notes it in the log («packs found bad»). From then on nobody refers to such a pack,
//! backups that meet its chunks store them anew, and readers of older points find these by the index. Nor
//! does anybody read such a segment: the next backup looks into the packs that it named, and names them in
//! a segment of its own. There are three ways to come upon damage, and each costs only what it must:
//!
//! | Who | Finds | Costs |
//! |---|---|---|
//! | a backup, where the last look is old ([`Repository::find_lost_packs`]) | packs that are gone or have another size | one LIST for each thousand packs |
//! | whoever reads ([`Repository::note_suspects`]) | what was to be read and does not open | nothing |
//! | verify | everything, flipped bits too | reading everything |
//!
//! A machine that never read a segment before it was lost learns which packs it may have named from a
//! listing: those that are in the store and that nothing names to it.
//!
//! What it is not: a repair. Nothing is deleted, and nothing is written but the record. A listing is
//! not believed alone: stores are allowed to show a new object late, so each pack that it lacks is
//! asked for by name.

use super::Repository;
use super::catalogue::ExpectedPack;
use crate::blocking::blocking;
use crate::clock;
use crate::error::{Error, Kind, Result};
use futures::{StreamExt, TryStreamExt, stream};
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tidegate_protocol::ids::{PackId, SegmentId};
use tidegate_protocol::record::{Body, PacksFoundBad};

/// Expected packs read from the local file at a time.
const EXPECTED_PAGE: u32 = 4096;

/// Listed packs entered in the local file at a time.
const LISTED_PAGE: usize = 4096;

/// Packs asked for by name at the same time.
const LOOKUPS_IN_FLIGHT: usize = 8;

/// Packs, and segments, that one record names: a record is at most 4 MiB.
const NOTED_MAX: usize = 50_000;

/// Packs suspected at a time: beyond that something else is wrong than packs.
const SUSPECTS_MAX: usize = 100_000;

/// What reads of this process found missing or damaged, until it is noted.
#[derive(Default)]
pub(super) struct Suspects(Mutex<Suspected>);

#[derive(Default)]
struct Suspected {
    packs: BTreeSet<PackId>,
    segments: BTreeSet<SegmentId>,
}

impl Repository {
    /// Remembers a pack that could not be read as it should.
    pub(crate) fn suspect(&self, pack: PackId) {
        let packs = &mut self.suspected().packs;
        if packs.len() < SUSPECTS_MAX {
            packs.insert(pack);
        }
    }

    /// Remembers an index segment that could not be read as it should.
    pub(super) fn suspect_segment(&self, segment: SegmentId) {
        let segments = &mut self.suspected().segments;
        if segments.len() < SUSPECTS_MAX {
            segments.insert(segment);
        }
    }

    /// True when reads of this process found packs missing or damaged that are not noted yet.
    pub(crate) fn has_suspects(&self) -> bool {
        !self.suspected().packs.is_empty()
    }

    fn suspected(&self) -> MutexGuard<'_, Suspected> {
        self.suspects
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes damaged packs and segments in the log. Returns how many the log did not know to be damaged
    /// before; where there are none, nothing is appended.
    pub(crate) async fn note_bad(
        &self,
        packs: impl IntoIterator<Item = PackId>,
        segments: impl IntoIterator<Item = SegmentId>,
        reason: &str,
    ) -> Result<u64> {
        let known = self.catalogue.lost_packs()?;
        let packs: BTreeSet<PackId> = packs
            .into_iter()
            .filter(|pack| !known.contains(pack))
            .collect();
        let segments: BTreeSet<SegmentId> = segments.into_iter().collect();
        // Those that were noted before, or replaced by others, are read by nobody.
        let live = match segments.is_empty() {
            true => Vec::new(),
            false => self.catalogue.segments()?,
        };
        let packs: Vec<_> = packs.iter().map(|pack| pack.0.to_vec()).collect();
        let segments: Vec<_> = live
            .iter()
            .filter(|segment| segments.contains(segment))
            .map(|segment| segment.0.to_vec())
            .collect();
        let of_packs = packs.chunks(NOTED_MAX).map(|some| (some.to_vec(), vec![]));
        let of_segments = segments
            .chunks(NOTED_MAX)
            .map(|some| (vec![], some.to_vec()));
        for (packs, segments) in of_packs.chain(of_segments) {
            let body = Body::PacksFoundBad(PacksFoundBad {
                packs,
                reason: reason.to_owned(),
                segments,
            });
            self.append(|_| Ok(body.clone())).await?;
        }
        Ok((packs.len() + segments.len()) as u64)
    }

    /// Notes in the log what reads of this process found missing or damaged. Best effort: what is being
    /// done comes to its own end, and who may only read cannot note anything.
    pub(crate) async fn note_suspects(&self, reason: &str) {
        let Suspected { packs, segments } = std::mem::take(&mut *self.suspected());
        if packs.is_empty() && segments.is_empty() {
            return;
        }
        // A pack that was swept meanwhile is gone as it should be.
        let noted = match self.refresh().await {
            Ok(()) => self.note_bad(packs, segments, reason).await,
            Err(error) => Err(error),
        };
        match noted {
            Ok(0) => {}
            Ok(objects) => tracing::warn!(
                objects,
                "damaged objects were noted in the log: the next backups store anew what they meet of them"
            ),
            Err(error) => tracing::warn!(
                error = error.chain(),
                "damaged objects could not be noted in the log: `tidegate verify` finds and notes them"
            ),
        }
    }

    /// Compares the packs in the store with those expected there, unless that was done on this machine
    /// less than `age_max` ago, and notes in the log those that are gone or have another size. Where a
    /// segment was lost that this machine had not read, packs that nothing names are entered for the next
    /// backup to look into.
    ///
    /// # Errors
    /// As the store's. Who may not list packs is not stopped by that.
    pub(crate) async fn find_lost_packs(&self, age_max: Duration) -> Result<()> {
        let now = clock::now_unix_ns();
        let last = self.catalogue.listed_unix_ns()?;
        // A clock that was set back makes the last look one of the future: it says nothing.
        let age = now.checked_sub(last);
        let is_fresh = age.is_some_and(|age| u128::from(age) < age_max.as_nanos());
        let searched_for = self.catalogue.segments_to_search_for()?;
        if is_fresh && searched_for.is_empty() {
            return Ok(());
        }
        let lost = match self.lost_by_listing(!searched_for.is_empty()).await {
            Ok(lost) => lost,
            Err(error) if error.kind() == Kind::Denied => {
                tracing::warn!(
                    error = error.chain(),
                    "packs cannot be listed: a pack that is gone is found by `tidegate verify` only"
                );
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let count = lost.len();
        self.note_bad(lost, None, "listing").await?;
        if count > 0 {
            tracing::warn!(
                packs = count,
                "packs are gone from the store, or have another size: what is still on the disks is \
                 stored anew, `tidegate verify` shows what is not"
            );
        }
        let catalogue = Arc::clone(&self.catalogue);
        blocking(move || {
            catalogue.set_searched_for(&searched_for)?;
            catalogue.set_listed(now)
        })
        .await
    }

    /// Names and listing are both in the order of names: one pass over both, in pages. With `search`, packs
    /// that nothing names are entered in the local file.
    async fn lost_by_listing(&self, search: bool) -> Result<Vec<PackId>> {
        let mut expected = Expected::new(self);
        let mut doubtful = Vec::new();
        let mut unnamed = Vec::new();
        let mut next = expected.next().await?;
        let mut entries = self.store.list("packs/", None);
        while let Some(entry) = entries.try_next().await? {
            let Some(listed) = PackId::from_object_key(&entry.key) else {
                continue;
            };
            if search {
                unnamed.push(ExpectedPack {
                    id: listed,
                    bytes: entry.size_bytes,
                });
                if unnamed.len() >= LISTED_PAGE {
                    self.add_unnamed_packs(std::mem::take(&mut unnamed)).await?;
                }
            }
            while let Some(pack) = next.filter(|pack| pack.id <= listed) {
                let size = (pack.id == listed).then_some(entry.size_bytes);
                if !is_whole(&pack, size) {
                    doubtful.push(pack);
                }
                next = expected.next().await?;
            }
        }
        if search {
            self.add_unnamed_packs(unnamed).await?;
            let catalogue = Arc::clone(&self.catalogue);
            blocking(move || catalogue.add_unnamed_bundled()).await?;
        }
        while let Some(pack) = next {
            doubtful.push(pack);
            next = expected.next().await?;
        }
        let sizes = stream::iter(doubtful)
            .map(|pack| async move {
                let size = self.store.size(&pack.id.object_key()).await?;
                Ok::<_, Error>((!is_whole(&pack, size)).then_some((pack.id, size)))
            })
            .buffer_unordered(LOOKUPS_IN_FLIGHT)
            .try_filter_map(|lost| async move { Ok(lost) })
            .try_collect::<Vec<_>>()
            .await?;
        if sizes.is_empty() {
            return Ok(Vec::new());
        }
        // What was put into a bundle meanwhile is not lost.
        self.refresh().await?;
        let catalogue = Arc::clone(&self.catalogue);
        blocking(move || {
            let mut lost = Vec::with_capacity(sizes.len());
            for (object, size) in sizes {
                if catalogue.is_bundle(object)? {
                    lost.extend(catalogue.bundled_behind(object, size.unwrap_or(0))?);
                } else if catalogue.bundled(object)?.is_none() {
                    lost.push(object);
                }
            }
            Ok(lost)
        })
        .await
    }

    async fn add_unnamed_packs(&self, listed: Vec<ExpectedPack>) -> Result<()> {
        let catalogue = Arc::clone(&self.catalogue);
        blocking(move || catalogue.add_unnamed_packs(&listed)).await
    }
}

/// Whether the pack is there with the size it should have.
fn is_whole(pack: &ExpectedPack, size_bytes: Option<u64>) -> bool {
    size_bytes.is_some_and(|found| pack.bytes == 0 || pack.bytes == found)
}

/// Expected packs in the order of their names, read in pages.
struct Expected<'a> {
    repository: &'a Repository,
    page: VecDeque<ExpectedPack>,
    last: Option<PackId>,
    ended: bool,
}

impl<'a> Expected<'a> {
    fn new(repository: &'a Repository) -> Self {
        Self {
            repository,
            page: VecDeque::new(),
            last: None,
            ended: false,
        }
    }

    async fn next(&mut self) -> Result<Option<ExpectedPack>> {
        if self.page.is_empty() && !self.ended {
            let catalogue = Arc::clone(&self.repository.catalogue);
            let after = self.last;
            let page = blocking(move || catalogue.expected_packs(after, EXPECTED_PAGE)).await?;
            self.ended = page.is_empty();
            self.last = page.last().map(|pack| pack.id).or(after);
            self.page = page.into();
        }
        Ok(self.page.pop_front())
    }
}
