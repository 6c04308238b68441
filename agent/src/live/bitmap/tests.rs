//! A disk that is written to while runs are killed at every step, and what its bitmaps say then.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use super::*;
use std::collections::BTreeMap;

const REPOSITORY: RepositoryId = RepositoryId([7; 16]);
const BLOCKS: usize = 12;

fn point(number: u8) -> PointId {
    PointId([number; 16])
}

fn found(point_number: u8, recording: bool) -> Found {
    Found {
        name: name(REPOSITORY, point(point_number)),
        recording,
        busy: false,
        inconsistent: false,
    }
}

/// Points up to `last` stand in the log.
fn up_to(last: u8) -> impl Fn(PointId) -> Option<u64> {
    move |point| (point.0[0] <= last).then(|| point.0[0].into())
}

#[test]
fn names_tie_bitmaps_to_repository_and_point() {
    let ours = name(REPOSITORY, point(0xab));
    assert_eq!(parse(&ours), Some((REPOSITORY, point(0xab))));
    for foreign in [
        String::new(),
        "tidegate-".to_owned(),
        "libvirt-1".to_owned(),
        format!("{ours}0"),
        ours.replace("ab", "AB"),
    ] {
        assert_eq!(parse(&foreign), None, "{foreign}");
    }
}

#[test]
fn what_cannot_be_used_has_a_reason_and_goes() {
    let lost = |bitmaps: &[Found], last| {
        let decision = decide(bitmaps, REPOSITORY, up_to(last));
        (decision.base.unwrap_err(), decision.settle.len())
    };
    let broken = Found {
        inconsistent: true,
        ..found(1, true)
    };
    let busy = Found {
        busy: true,
        ..found(1, true)
    };
    let foreign = Found {
        name: name(RepositoryId([8; 16]), point(1)),
        ..found(1, true)
    };
    let theirs = Found {
        name: "libvirt-checkpoint".to_owned(),
        ..found(1, true)
    };
    assert_eq!(lost(&[], 9), (Lost::None, 0));
    assert_eq!(lost(&[foreign.clone(), theirs], 9), (Lost::None, 0));
    assert_eq!(lost(&[broken, foreign.clone()], 9), (Lost::Inconsistent, 1));
    assert_eq!(
        lost(std::slice::from_ref(&busy), 9),
        (Lost::Busy(busy.name), 0)
    );
    assert_eq!(lost(&[found(3, true)], 2), (Lost::NoPoint(point(3)), 1));
    assert_eq!(lost(&[found(1, false)], 9), (Lost::Interrupted, 1));
    let stopped = [found(1, false), found(3, false)];
    assert_eq!(lost(&stopped, 1), (Lost::Interrupted, 2));
    let many = [found(1, false), found(3, true), found(4, true)];
    assert_eq!(lost(&many, 1), (Lost::Confused, 3));

    let decision = decide(&[foreign, found(1, true)], REPOSITORY, up_to(1));
    assert_eq!(decision.settle, []);
    assert_eq!(decision.base.unwrap().point, point(1));
}

#[test]
fn bitmaps_are_of_blocks_until_they_would_be_too_large() {
    const TIB: u64 = 1 << 40;
    for (disk_bytes, expected) in [
        (0, 4 << 10),
        (TIB, 4 << 10),
        (TIB + 4096 * 8, 8 << 10),
        (64 * TIB, 256 << 10),
    ] {
        assert_eq!(granularity_bytes(disk_bytes), expected, "{disk_bytes}");
    }
    assert!(u64::MAX / granularity_bytes(u64::MAX) / 8 <= BITMAP_BYTES_MAX);
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Bitmap {
    recording: bool,
    inconsistent: bool,
    dirty: [bool; BLOCKS],
}

/// A disk in QEMU, and the log.
#[derive(Default)]
struct World {
    content: [u32; BLOCKS],
    bitmaps: BTreeMap<String, Bitmap>,
    /// The content at the moment of each committed point that is still there, in order.
    points: Vec<(PointId, [u32; BLOCKS])>,
    points_made: u8,
    writes: u32,
    used: u32,
}

/// How far a run gets before it is killed; `Whole` is not killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Killed {
    Settled,
    Added,
    Frozen,
    Disabled,
    Committed,
    Whole,
}

/// What happens between two runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Between {
    Nothing,
    QemuKilled,
    PointExpired,
    NewestRemoved,
    OldestRemoved,
    NewestDisabled,
    OldestDisabled,
}

impl World {
    fn write(&mut self) {
        self.writes += 1;
        // Scattered, and at times the same block again.
        let block = (self.writes.wrapping_mul(2_654_435_761) >> 16) as usize % BLOCKS;
        self.content[block] = self.writes;
        for bitmap in self.bitmaps.values_mut() {
            bitmap.dirty[block] |= bitmap.recording;
        }
    }

    fn transact(&mut self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Add(name) => {
                    let bitmap = Bitmap {
                        recording: true,
                        inconsistent: false,
                        dirty: [false; BLOCKS],
                    };
                    assert!(self.bitmaps.insert(name.clone(), bitmap).is_none());
                }
                Action::Merge { into, from } => {
                    let dirty = self.bitmaps[from].dirty;
                    let into = self.bitmaps.get_mut(into).unwrap();
                    for (block, &dirty) in into.dirty.iter_mut().zip(&dirty) {
                        *block |= dirty;
                    }
                }
                Action::Enable(name) => self.bitmaps.get_mut(name).unwrap().recording = true,
                Action::Disable(name) => self.bitmaps.get_mut(name).unwrap().recording = false,
                Action::Remove(name) => assert!(self.bitmaps.remove(name).is_some()),
            }
            if let Action::Merge { into, .. } | Action::Enable(into) | Action::Disable(into) =
                action
            {
                assert!(!self.bitmaps[into].inconsistent);
            }
        }
    }

    /// What `base` does not name is as it was at its point.
    fn check(&self, base: &Base, now: &[u32; BLOCKS]) {
        let then = self.points.iter().find(|(point, _)| *point == base.point);
        let (_, then) = then.unwrap();
        for block in 0..BLOCKS {
            assert!(
                self.bitmaps[&base.bitmap].dirty[block] || now[block] == then[block],
                "block {block} has changed, and its bitmap does not say so: {:?}",
                self.bitmaps
            );
        }
    }

    fn run(&mut self, killed: Killed, commits: bool) {
        let bitmaps: Vec<_> = self
            .bitmaps
            .iter()
            .map(|(name, bitmap)| Found {
                name: name.clone(),
                recording: bitmap.recording,
                busy: false,
                inconsistent: bitmap.inconsistent,
            })
            .collect();
        let decision = decide(&bitmaps, REPOSITORY, |point| {
            let place = self.points.iter().position(|(other, _)| *other == point);
            place.map(|place| place as u64)
        });
        self.transact(&decision.settle);
        let base = decision.base.ok();
        if let Some(base) = &base {
            self.check(base, &self.content);
        }
        self.points_made += 1;
        let new = point(self.points_made);
        let turn = Turn {
            base: base.as_ref().map(|base| base.bitmap.clone()),
            new: name(REPOSITORY, new),
        };
        self.write();
        if killed == Killed::Settled {
            return;
        }
        self.transact(&turn.begin());
        self.write();
        if killed == Killed::Added {
            return;
        }
        let frozen = self.content;
        self.write();
        if killed == Killed::Frozen {
            return;
        }
        self.transact(&turn.freeze());
        self.write();
        if let Some(base) = &base {
            self.used += 1;
            self.check(base, &frozen);
        }
        if killed == Killed::Disabled {
            return;
        }
        if commits {
            self.points.push((new, frozen));
        }
        self.write();
        if killed == Killed::Committed {
            return;
        }
        self.transact(&if commits {
            turn.retire()
        } else {
            turn.give_up()
        });
        self.write();
    }

    fn happen(&mut self, between: Between) {
        self.write();
        let newest = self.bitmaps.keys().next_back().cloned();
        let oldest = self.bitmaps.keys().next().cloned();
        match between {
            Between::Nothing => {}
            Between::QemuKilled => {
                for bitmap in self.bitmaps.values_mut() {
                    bitmap.inconsistent = true;
                }
            }
            Between::PointExpired => {
                self.points.pop();
            }
            Between::NewestRemoved => {
                newest.and_then(|name| self.bitmaps.remove(&name));
            }
            Between::OldestRemoved => {
                oldest.and_then(|name| self.bitmaps.remove(&name));
            }
            Between::NewestDisabled | Between::OldestDisabled => {
                let name = if between == Between::NewestDisabled {
                    newest
                } else {
                    oldest
                };
                if let Some(bitmap) = name.and_then(|name| self.bitmaps.get_mut(&name)) {
                    bitmap.recording = false;
                }
            }
        }
        self.write();
    }
}

/// Every way in which two runs in a row can end, with everything that can happen between and after
/// them, and a run before and after.
#[test]
fn no_kill_and_no_hand_makes_a_bitmap_lie() {
    const KILLED: [Killed; 6] = [
        Killed::Settled,
        Killed::Added,
        Killed::Frozen,
        Killed::Disabled,
        Killed::Committed,
        Killed::Whole,
    ];
    const BETWEEN: [Between; 7] = [
        Between::Nothing,
        Between::QemuKilled,
        Between::PointExpired,
        Between::NewestRemoved,
        Between::OldestRemoved,
        Between::NewestDisabled,
        Between::OldestDisabled,
    ];
    let turns: Vec<_> = KILLED
        .into_iter()
        .flat_map(|killed| BETWEEN.map(|between| (killed, between)))
        .flat_map(|(killed, between)| [(killed, between, false), (killed, between, true)])
        .collect();
    let mut used = 0;
    let mut undisturbed = 0;
    for &first in &turns {
        for &second in &turns {
            let mut world = World::default();
            world.run(Killed::Whole, true);
            for (killed, between, commits) in [first, second] {
                world.run(killed, commits);
                world.happen(between);
            }
            let used_before = world.used;
            world.run(Killed::Whole, true);
            used += world.used - used_before;
            // Nothing of ours is left but what the last point needs.
            assert_eq!(world.bitmaps.len(), 1, "{first:?} {second:?}");
            let calm = first.1 == Between::Nothing && second.1 == Between::Nothing;
            if calm {
                undisturbed += 1;
                assert_eq!(world.used - used_before, 1, "{first:?} {second:?}");
            }
        }
    }
    // It is no merit to never use one.
    assert_eq!(undisturbed, 12 * 12);
    assert!(used > undisturbed, "{used}");
}
