//! Which dirty bitmap continues which recovery point, and what becomes of each.
//!
//! Pure: from what QEMU tells of a disk's bitmaps, and which points stand in the log, to what is to
//! be done. A bitmap is named after the repository and the point that it continues, so nothing else
//! has to be remembered: whoever is killed leaves bitmaps whose names, with the log, say what they are
//! worth.
//!
//! ```text
//!   settle      what an earlier run has left                                (decide)
//!   add         the new point's bitmap begins to record     old ▓▓▓  new ▓▓▓
//!   ─ instant ─ the disks are frozen
//!   disable     the old one stops, and is read              old ░░░  new ▓▓▓
//!   commit      the new point stands in the log
//!   retire      the old one is removed                               new ▓▓▓
//!   or give up  the new one is merged into the old one      old ▓▓▓
//! ```
//!
//! The invariant: **what a bitmap that is used does not name has not changed since its point**. Both
//! record while the disks are frozen, each may name more than it must, and at any step at least one
//! of the two records; where none does, or something is not as this page says, there is no bitmap to
//! use, and a reason.

use std::fmt;
use tidegate_protocol::ids::{PointId, RepositoryId};

/// What all our bitmaps' names begin with.
const PREFIX: &str = "tidegate-";
/// What one bit of a bitmap stands for, in bytes: the block that the chunker counts in.
const GRANULARITY_BYTES_MIN: u64 = 4 << 10;
/// The most memory of one bitmap, in bytes. At 4 KiB a bit this is a disk of 1 TiB; above it a bit
/// stands for more.
const BITMAP_BYTES_MAX: u64 = 32 << 20;

/// A bitmap as QEMU tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name; ours are made by [`name`].
    pub name: String,
    /// It is enabled.
    pub recording: bool,
    /// Somebody uses it: a job, an export.
    pub busy: bool,
    /// QEMU did not close its image in order: it cannot be used any more.
    pub inconsistent: bool,
}

/// A change to one disk's bitmaps. Several stand for one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A new bitmap that records.
    Add(String),
    /// What `from` names, `into` names as well.
    Merge {
        /// Grows.
        into: String,
        /// Stays as it is.
        from: String,
    },
    /// It records from now on.
    Enable(String),
    /// It records no more.
    Disable(String),
    /// It goes.
    Remove(String),
}

/// What to make of the bitmaps of one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What earlier runs have left is brought in order by this, in one transaction.
    pub settle: Vec<Action>,
    /// The bitmap to continue, or why there is none.
    pub base: Result<Base, Lost>,
}

/// A bitmap that can be relied upon, once its disk is settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// As QEMU knows it.
    pub bitmap: String,
    /// It names what changed since this point.
    pub point: PointId,
}

/// Why there is no bitmap to continue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lost {
    /// There is none for this repository.
    None,
    /// QEMU was killed, or its host died.
    Inconsistent,
    /// The points that bitmaps continue are not in the repository, or no more.
    NoPoint(PointId),
    /// Somebody has disabled or removed one.
    Interrupted,
    /// There are more than any run of ours leaves.
    Confused,
    /// Somebody else uses it.
    Busy(String),
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("QEMU has recorded no changes to it for this repository"),
            Self::Inconsistent => {
                f.write_str("QEMU's record of changes is inconsistent: QEMU was not ended in order")
            }
            Self::NoPoint(point) => write!(
                f,
                "QEMU's record of changes continues point {}, which is not in the repository, or no more",
                point.short()
            ),
            Self::Interrupted => {
                f.write_str("QEMU's record of changes has been interrupted by somebody")
            }
            Self::Confused => f.write_str("QEMU has more records of changes than tidegate leaves"),
            Self::Busy(name) => write!(f, "QEMU's record of changes {name} is in use by somebody"),
        }
    }
}

/// The name of the bitmap that records from `point` on.
pub fn name(repository: RepositoryId, point: PointId) -> String {
    format!("{PREFIX}{repository}-{point}")
}

/// Which repository and point a bitmap is for; None where it is not ours.
pub(super) fn parse(name: &str) -> Option<(RepositoryId, PointId)> {
    let (repository, point) = name.strip_prefix(PREFIX)?.split_once('-')?;
    let parsed = (repository.parse().ok()?, point.parse().ok()?);
    // Upper-case digits parse as well, but are not of our making.
    (self::name(parsed.0, parsed.1) == name).then_some(parsed)
}

/// What one bit should stand for on a disk of this size, in bytes.
pub fn granularity_bytes(disk_bytes: u64) -> u64 {
    let mut granularity = GRANULARITY_BYTES_MIN;
    while disk_bytes / granularity / 8 > BITMAP_BYTES_MAX {
        granularity *= 2;
    }
    granularity
}

/// Decides about the bitmaps of one disk. `standing` tells a point that is committed and live by its
/// place in the log, higher for later ones; None of all others.
pub fn decide(
    found: &[Found],
    repository: RepositoryId,
    standing: impl Fn(PointId) -> Option<u64>,
) -> Decision {
    let ours: Vec<(&Found, PointId)> = found
        .iter()
        .filter_map(|bitmap| match parse(&bitmap.name) {
            Some((of, point)) if of == repository => Some((bitmap, point)),
            _ => None,
        })
        .collect();
    let start_anew = |why| Decision {
        settle: ours
            .iter()
            .filter(|(bitmap, _)| !bitmap.busy)
            .map(|(bitmap, _)| Action::Remove(bitmap.name.clone()))
            .collect(),
        base: Err(why),
    };
    let Some(&(_, any_point)) = ours.first() else {
        return start_anew(Lost::None);
    };
    if let Some((busy, _)) = ours.iter().find(|(bitmap, _)| bitmap.busy) {
        return start_anew(Lost::Busy(busy.name.clone()));
    }
    if ours.iter().any(|(bitmap, _)| bitmap.inconsistent) {
        return start_anew(Lost::Inconsistent);
    }
    let (mut committed, uncommitted): (Vec<_>, Vec<_>) = ours
        .iter()
        .map(|&(bitmap, point)| (standing(point), bitmap, point))
        .partition(|(place, ..)| place.is_some());
    committed.sort_by_key(|&(place, ..)| place);
    let Some((_, base, point)) = committed.pop() else {
        return start_anew(Lost::NoPoint(any_point));
    };
    let mut settle = Vec::new();
    match uncommitted.as_slice() {
        [] if base.recording => {}
        [] => return start_anew(Lost::Interrupted),
        // A run was given up without a word: what it was to continue goes on.
        [(_, new, _)] if new.recording => {
            settle.push(Action::Merge {
                into: base.name.clone(),
                from: new.name.clone(),
            });
            if !base.recording {
                settle.push(Action::Enable(base.name.clone()));
            }
            settle.push(Action::Remove(new.name.clone()));
        }
        [_] => return start_anew(Lost::Interrupted),
        _ => return start_anew(Lost::Confused),
    }
    // A run was committed, and killed before it could retire what it had continued.
    settle.extend(
        committed
            .iter()
            .map(|(_, old, _)| Action::Remove(old.name.clone())),
    );
    Decision {
        settle,
        base: Ok(Base {
            bitmap: base.name.clone(),
            point,
        }),
    }
}

/// The bitmaps of one disk while a point of it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// What is continued.
    pub base: Option<String>,
    /// The new point's.
    pub new: String,
}

impl Turn {
    /// Right before the instant.
    pub fn begin(&self) -> Vec<Action> {
        vec![Action::Add(self.new.clone())]
    }

    /// Right after it.
    pub fn freeze(&self) -> Vec<Action> {
        self.base.iter().cloned().map(Action::Disable).collect()
    }

    /// When the point is committed.
    pub fn retire(&self) -> Vec<Action> {
        self.base.iter().cloned().map(Action::Remove).collect()
    }

    /// When it will not be committed.
    pub fn give_up(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        if let Some(base) = &self.base {
            actions.push(Action::Merge {
                into: base.clone(),
                from: self.new.clone(),
            });
            actions.push(Action::Enable(base.clone()));
        }
        actions.push(Action::Remove(self.new.clone()));
        actions
    }
}

#[cfg(test)]
mod tests;
