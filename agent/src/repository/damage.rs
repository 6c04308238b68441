//! Packs that are gone or damaged: finding them, and telling everybody.
//!
//! Who comes upon one notes it in the log («packs found bad»): from then on nobody refers to it, backups
//! that meet its chunks store them anew, and readers of older points find these by the index. There
//! are three ways to come upon one, and each costs only what it must:
//!
//! | Who | Finds | Costs |
//! |---|---|---|
//! | a backup, where the last look is old ([`Repository::find_lost_packs`]) | packs that are gone or have another size | one LIST for each thousand packs |
//! | whoever reads ([`Repository::note_suspects`]) | what was to be read and does not open | nothing |
//! | verify | everything, flipped bits too | reading everything |
//!
//! What it is not: a repair. Nothing is deleted, and nothing is written but the record. A listing is
//! not believed alone: stores are allowed to show a new object late, so each pack that it lacks is
//! asked for by name.

use super::catalogue::ExpectedPack;
use super::{Repository, blocking};
use crate::clock;
use crate::error::{Error, Kind, Result};
use futures::{StreamExt, TryStreamExt, stream};
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tidegate_protocol::ids::PackId;
use tidegate_protocol::record::{Body, PacksFoundBad};

/// Expected packs read from the local file at a time.
const EXPECTED_PAGE: u32 = 4096;

/// Packs asked for by name at the same time.
const LOOKUPS_IN_FLIGHT: usize = 8;

/// Packs that one record names: a record is at most 4 MiB.
const NOTED_PACKS_MAX: usize = 50_000;

/// Packs suspected at a time: beyond that something else is wrong than packs.
const SUSPECTS_MAX: usize = 100_000;

/// Packs that reads of this process found missing or damaged, until they are noted.
#[derive(Default)]
pub(super) struct Suspects(Mutex<BTreeSet<PackId>>);

impl Repository {
    /// Remembers a pack that could not be read as it should.
    pub(crate) fn suspect(&self, pack: PackId) {
        let mut suspects = self.suspected();
        if suspects.len() < SUSPECTS_MAX {
            suspects.insert(pack);
        }
    }

    /// True when reads of this process found packs missing or damaged that are not noted yet.
    pub(crate) fn has_suspects(&self) -> bool {
        !self.suspected().is_empty()
    }

    fn suspected(&self) -> MutexGuard<'_, BTreeSet<PackId>> {
        self.suspects
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes damaged packs in the log. Returns how many the log did not know of before; where there
    /// are none, nothing is appended.
    pub(crate) async fn note_bad_packs(&self, packs: Vec<PackId>, reason: &str) -> Result<u64> {
        let known = self.catalogue.lost_packs()?;
        let fresh: BTreeSet<PackId> = packs
            .into_iter()
            .filter(|pack| !known.contains(pack))
            .collect();
        let fresh: Vec<Vec<u8>> = fresh.iter().map(|pack| pack.0.to_vec()).collect();
        for packs in fresh.chunks(NOTED_PACKS_MAX) {
            self.append(|_| {
                Ok(Body::PacksFoundBad(PacksFoundBad {
                    packs: packs.to_vec(),
                    reason: reason.to_owned(),
                }))
            })
            .await?;
        }
        Ok(fresh.len() as u64)
    }

    /// Notes in the log what reads of this process found missing or damaged. Best effort: what was
    /// being done has come to its own end, and who may only read cannot note anything.
    pub(crate) async fn note_suspects(&self, reason: &str) {
        let suspects: Vec<PackId> = std::mem::take(&mut *self.suspected()).into_iter().collect();
        if suspects.is_empty() {
            return;
        }
        // A pack that was swept meanwhile is gone as it should be.
        let noted = match self.refresh().await {
            Ok(()) => self.note_bad_packs(suspects, reason).await,
            Err(error) => Err(error),
        };
        match noted {
            Ok(0) => {}
            Ok(packs) => tracing::warn!(
                packs,
                "damaged packs were noted in the log: the next backups store anew what they meet of them"
            ),
            Err(error) => tracing::warn!(
                error = error.chain(),
                "damaged packs could not be noted in the log: `tidegate verify` finds and notes them"
            ),
        }
    }

    /// Compares the packs in the store with those expected there, unless that was done on this machine
    /// less than `age_max` ago, and notes in the log those that are gone or have another size.
    ///
    /// # Errors
    /// As the store's. Who may not list packs is not stopped by that.
    pub(crate) async fn find_lost_packs(&self, age_max: Duration) -> Result<()> {
        let now = clock::now_unix_ns();
        let last = self.catalogue.listed_unix_ns()?;
        // A clock that was set back makes the last look one of the future: it says nothing.
        let age = now.checked_sub(last);
        if age.is_some_and(|age| u128::from(age) < age_max.as_nanos()) {
            return Ok(());
        }
        let lost = match self.lost_by_listing().await {
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
        self.note_bad_packs(lost, "listing").await?;
        if count > 0 {
            tracing::warn!(
                packs = count,
                "packs are gone from the store, or have another size: what is still on the disks is \
                 stored anew, `tidegate verify` shows what is not"
            );
        }
        let catalogue = Arc::clone(&self.catalogue);
        blocking(move || catalogue.set_listed(now)).await
    }

    /// Names and listing are both in the order of names: one pass over both, in pages.
    async fn lost_by_listing(&self) -> Result<Vec<PackId>> {
        let mut expected = Expected::new(self);
        let mut doubtful = Vec::new();
        let mut next = expected.next().await?;
        let mut entries = self.store.list("packs/", None);
        while let Some(entry) = entries.try_next().await? {
            let Some(listed) = PackId::from_object_key(&entry.key) else {
                continue;
            };
            while let Some(pack) = next.filter(|pack| pack.id <= listed) {
                let size = (pack.id == listed).then_some(entry.size_bytes);
                if !is_whole(&pack, size) {
                    doubtful.push(pack);
                }
                next = expected.next().await?;
            }
        }
        while let Some(pack) = next {
            doubtful.push(pack);
            next = expected.next().await?;
        }
        stream::iter(doubtful)
            .map(|pack| async move {
                let size = self.store.size(&pack.id.object_key()).await?;
                Ok::<_, Error>((!is_whole(&pack, size)).then_some(pack.id))
            })
            .buffer_unordered(LOOKUPS_IN_FLIGHT)
            .try_filter_map(|lost| async move { Ok(lost) })
            .try_collect()
            .await
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
