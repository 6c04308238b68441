//! What there is in the model: the log's state, the store, the network, the actors; and the rules by
//! which records change the log's state.
//!
//! The log itself is not kept: what it amounts to at its head is enough. An append is a create-only
//! PUT, so a record that was decided at one head can only ever land while that head stands; what an
//! actor remembers of an older head is kept with the actor, where it keeps anything at all.

/// A set of packs, a bit each.
pub(crate) type Packs = u16;

pub(crate) const WRITERS_MAX: usize = 3;
pub(crate) const PRUNERS_MAX: usize = 2;
pub(crate) const POINTS_MAX: usize = 8;

/// How large the world is, and how often each mishap may happen in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Chunks of every disk. All disks are alike: writers share everything that they can.
    pub(crate) chunks: u8,
    pub(crate) writers: usize,
    /// Points that each writer wants to commit.
    pub(crate) runs: u8,
    /// Names of packs that each writer may draw.
    pub(crate) names: u8,
    /// Whether writers may announce a run before they commit.
    pub(crate) announce: bool,
    pub(crate) pruners: usize,
    pub(crate) reader: bool,
    pub(crate) crashes: u8,
    pub(crate) expiries: u8,
    pub(crate) condemnings: u8,
    /// Chunks that may be copied into another pack.
    pub(crate) relocations: u8,
    /// Packs that may be called bad.
    pub(crate) claims: u8,
    /// Whether everybody also wishes the bucket to be clean in the end.
    pub(crate) clean: bool,
}

/// A quiet world.
pub(crate) const QUIET: Bounds = Bounds {
    chunks: 1,
    writers: 1,
    runs: 1,
    names: 2,
    announce: false,
    pruners: 1,
    reader: false,
    crashes: 0,
    expiries: 0,
    condemnings: 0,
    relocations: 0,
    claims: 0,
    clean: false,
};

/// A rule that is broken on purpose, with its number in FORMAT.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// W2: A writer commits without looking whether its packs were swept.
    CommitUnchecked,
    /// W3: A writer commits without looking whether its packs were found bad.
    CommitUncheckedForBad,
    /// W1: A writer commits before the store has acknowledged its packs.
    CommitBeforeStored,
    /// W4: A writer goes on referring to packs that were swept.
    DedupeAgainstSwept,
    /// A writer refers to condemned packs.
    DedupeAgainstCondemned,
    /// W5: A writer stores the same bytes again under a name that was swept, and takes them for good.
    NamesReused,
    /// S2: A sweep lists all that is condemned.
    SweepWithoutRescue,
    /// S1: A sweep is decided at one head and appended at another.
    SweepFromStaleHead,
    /// S3: A sweep counts a place twice that two of its packs are for each other.
    SweepBothCopies,
    /// S4: A sweep counts a place in a bad pack as a place.
    SweepCountsBad,
    /// D1: Packs are deleted when the sweep is decided, before its record stands.
    DeleteBeforeSweep,
    /// S5: A checkpoint leaves out which packs were swept.
    CheckpointForgetsSwept,
    /// R3: Points on hold are expired.
    HoldUnheeded,
    /// R1: A reader does not hold its point.
    ReadWithoutHold,
    /// R2: A reader sets its hold without looking whether the point is still there.
    HoldUnchecked,
    /// R5: A reader believes the index it began with.
    ReadWithoutRefresh,
    /// R4: A reader asks no index.
    ReadByHintsOnly,
    /// W6: The store overwrites: a record lands whatever came before it.
    LogNotCreateOnly,
    /// D2: Nobody but its own writer can end a run.
    OnlyWriterEndsRun,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Fate {
    Absent,
    Live,
    Expired,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Point {
    pub(crate) fate: Fate,
    /// The packs that its pages name, one a chunk.
    pub(crate) places: Packs,
}

/// What the log amounts to at its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Log {
    pub(crate) points: [Point; POINTS_MAX],
    /// Packs that a segment names which a record names.
    pub(crate) indexed: Packs,
    pub(crate) condemned: Packs,
    pub(crate) swept: Packs,
    pub(crate) bad: Packs,
    /// Packs of announced runs that go on, a writer each.
    pub(crate) runs: [Packs; WRITERS_MAX],
    /// Packs of announced runs whose writer has died.
    pub(crate) dead_runs: Packs,
    /// The point on hold.
    pub(crate) hold: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Record {
    Committed {
        point: u8,
        places: Packs,
        segment: Packs,
    },
    Announced {
        writer: u8,
        segment: Packs,
    },
    /// By a writer that has died since.
    AnnouncedByDead {
        segment: Packs,
    },
    RunEnded {
        writer: u8,
    },
    DeadRunsEnded,
    Expired {
        point: u8,
    },
    Condemned {
        packs: Packs,
    },
    Swept {
        packs: Packs,
        rescued: Packs,
    },
    Relocated {
        segment: Packs,
    },
    FoundBad {
        packs: Packs,
    },
    HoldSet {
        point: u8,
    },
    HoldLifted,
}

/// Where an actor stands with the record that it has sent. A lost race is no state: it decides again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Append {
    None,
    /// On its way; it may also have landed, or never will.
    Sent(Record),
    /// It stands in the log, and its actor does not know yet.
    Landed(Record),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Phase {
    Idle,
    Storing,
    Stored,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Writer {
    pub(crate) phase: Phase,
    pub(crate) append: Append,
    /// The packs that its new point's pages will name.
    pub(crate) places: Packs,
    /// Packs that it is storing or has stored for this pass.
    pub(crate) own: Packs,
    /// Packs that its local index remembers and no segment names.
    pub(crate) orphans: Packs,
    /// Swept packs that it does not know to be swept.
    pub(crate) forgotten: Packs,
    pub(crate) announced: bool,
    pub(crate) names_drawn: u8,
    /// Points it has named, committed or not.
    pub(crate) points_named: u8,
    pub(crate) points_left: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Pruner {
    pub(crate) append: Append,
    /// A pack that it has copied a chunk into, or is about to.
    pub(crate) copy: Packs,
    /// What it decided to sweep at an earlier head.
    pub(crate) stale: Option<(Packs, Packs)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Reading {
    NotYet,
    Point(u8),
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Reader {
    pub(crate) reading: Reading,
    pub(crate) append: Append,
    /// What the index said when it began.
    pub(crate) index: Packs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct World {
    pub(crate) log: Log,
    /// Packs that a PUT is on its way for, for ever: it may take effect late, twice, or never.
    pub(crate) sent: Packs,
    /// Packs whose PUT has taken effect at least once.
    pub(crate) landed: Packs,
    /// Packs in the bucket.
    pub(crate) stored: Packs,
    /// Packs that a DELETE is on its way for, for ever.
    pub(crate) doomed: Packs,
    pub(crate) writers: [Writer; WRITERS_MAX],
    pub(crate) pruners: [Pruner; PRUNERS_MAX],
    pub(crate) reader: Reader,
    /// Records on their way whose senders have died.
    pub(crate) orphaned: [Option<Record>; 2],
    pub(crate) crashes: u8,
    pub(crate) expiries: u8,
    pub(crate) condemnings: u8,
    pub(crate) relocations: u8,
    pub(crate) claims: u8,
}

/// Packs one by one.
pub(crate) fn each(packs: Packs) -> impl Iterator<Item = Packs> {
    (0..Packs::BITS)
        .map(|number| 1 << number)
        .filter(move |pack| packs & pack != 0)
}

impl Bounds {
    /// Names of packs: first those of the point that is there at the beginning, one a chunk; then
    /// each writer's; then those of copies. A pack holds one chunk.
    pub(crate) fn packs_of_writer(&self, writer: usize) -> Packs {
        let names = u32::from(self.names);
        let first = u32::from(self.chunks) + u32::try_from(writer).unwrap() * names;
        ((1 << names) - 1) << first
    }

    pub(crate) fn copies(&self) -> Packs {
        let names = u32::from(self.relocations);
        let writers = u32::try_from(self.writers).unwrap();
        let first = u32::from(self.chunks) + writers * u32::from(self.names);
        assert!(first + names <= Packs::BITS, "too many packs");
        ((1 << names) - 1) << first
    }

    /// The packs that hold a chunk.
    pub(crate) fn packs_with(&self, chunk: u8) -> Packs {
        let chunks = u32::from(self.chunks);
        let all = (0..Packs::BITS).filter(|number| number % chunks == u32::from(chunk));
        all.fold(0, |packs, number| packs | 1 << number)
    }

    pub(crate) fn chunks(&self) -> impl Iterator<Item = Packs> {
        (0..self.chunks).map(|chunk| self.packs_with(chunk))
    }

    /// Points that a writer may name: also those it cannot know whether they were committed.
    pub(crate) fn points_each(&self) -> u8 {
        self.runs + self.crashes
    }

    /// The number of a writer's next point.
    pub(crate) fn point_of(&self, writer: usize, named: u8) -> u8 {
        1 + u8::try_from(writer).unwrap() * self.points_each() + named
    }

    pub(crate) fn first(&self) -> World {
        let old: Packs = (1 << self.chunks) - 1;
        let absent = Point {
            fate: Fate::Absent,
            places: 0,
        };
        let mut points = [absent; POINTS_MAX];
        points[0] = Point {
            fate: Fate::Live,
            places: old,
        };
        let needed = self.point_of(self.writers, 0);
        assert!(usize::from(needed) <= POINTS_MAX, "too many points");
        let writer = |number| Writer {
            phase: Phase::Idle,
            append: Append::None,
            places: 0,
            own: 0,
            orphans: 0,
            forgotten: 0,
            announced: false,
            names_drawn: 0,
            points_named: 0,
            points_left: if number < self.writers { self.runs } else { 0 },
        };
        World {
            log: Log {
                points,
                indexed: old,
                condemned: 0,
                swept: 0,
                bad: 0,
                runs: [0; WRITERS_MAX],
                dead_runs: 0,
                hold: None,
            },
            sent: old,
            landed: old,
            stored: old,
            doomed: 0,
            writers: std::array::from_fn(writer),
            pruners: [Pruner {
                append: Append::None,
                copy: 0,
                stale: None,
            }; PRUNERS_MAX],
            reader: Reader {
                reading: match self.reader {
                    true => Reading::NotYet,
                    false => Reading::Done,
                },
                append: Append::None,
                index: 0,
            },
            orphaned: [None; 2],
            crashes: self.crashes,
            expiries: self.expiries,
            condemnings: self.condemnings,
            relocations: self.relocations,
            claims: self.claims,
        }
    }
}

impl Log {
    /// Live points and the places that their pages name.
    pub(crate) fn live(&self) -> impl Iterator<Item = (u8, Packs)> {
        let numbered = (0_u8..).zip(self.points);
        numbered
            .filter(|(_, point)| point.fate == Fate::Live)
            .map(|(number, point)| (number, point.places))
    }

    /// Packs that no new point may be committed with: `Catalogue::lost_packs` of the engine.
    pub(crate) fn lost(&self) -> Packs {
        self.swept | self.bad
    }

    /// Packs that writers do not refer to: `Catalogue::unusable_packs` of the engine.
    pub(crate) fn unusable(&self) -> Packs {
        self.condemned | self.lost()
    }

    /// Packs that announced runs keep.
    pub(crate) fn announced(&self) -> Packs {
        self.runs.iter().fold(self.dead_runs, |all, run| all | run)
    }

    /// Where a reader of that point may find a chunk: what the page names, or the index.
    pub(crate) fn places(&self, named: Packs, chunk: Packs) -> Packs {
        (named | (self.indexed & !self.swept)) & chunk
    }

    /// Parts the condemned packs into what may be swept and what must be rescued. A pack may go when
    /// no announced run keeps it, and every live point that needs its chunk keeps another sound
    /// place for it, outside of this very record.
    pub(crate) fn decide_sweep(&self, bounds: &Bounds, flaw: Option<Flaw>) -> (Packs, Packs) {
        if flaw == Some(Flaw::SweepWithoutRescue) {
            return (self.condemned, 0);
        }
        let unsound = match flaw {
            Some(Flaw::SweepCountsBad) => self.swept,
            _ => self.lost(),
        };
        let mut swept = 0;
        for pack in each(self.condemned & !self.announced()) {
            let leaving = match flaw {
                Some(Flaw::SweepBothCopies) => pack,
                _ => pack | swept,
            };
            let may_go = self.live().all(|(_, named)| {
                let chunk = bounds.chunks().find(|chunk| chunk & pack != 0).unwrap();
                let places = self.places(named, chunk);
                places & pack == 0 || places & !unsound & !leaving != 0
            });
            if may_go {
                swept |= pack;
            }
        }
        (swept, self.condemned & !swept)
    }

    /// What a record changes: the engine's `catalogue::state::apply`.
    pub(crate) fn apply(&mut self, record: Record, bounds: &Bounds) {
        match record {
            Record::Committed {
                point,
                places,
                segment,
            } => {
                // A point that exists is not committed again.
                let entry = &mut self.points[usize::from(point)];
                if entry.fate == Fate::Absent {
                    *entry = Point {
                        fate: Fate::Live,
                        places,
                    };
                }
                self.indexed |= segment;
                self.runs[usize::from((point - 1) / bounds.points_each())] = 0;
            }
            Record::Announced { writer, segment } => {
                self.indexed |= segment;
                self.runs[usize::from(writer)] |= segment;
            }
            Record::AnnouncedByDead { segment } => {
                self.indexed |= segment;
                self.dead_runs |= segment;
            }
            Record::RunEnded { writer } => self.runs[usize::from(writer)] = 0,
            Record::DeadRunsEnded => self.dead_runs = 0,
            Record::Expired { point } => self.points[usize::from(point)].fate = Fate::Expired,
            Record::Condemned { packs } => self.condemned |= packs & !self.swept,
            Record::Swept { packs, rescued } => {
                self.swept |= packs;
                self.condemned &= !(packs | rescued);
            }
            Record::Relocated { segment } => self.indexed |= segment,
            Record::FoundBad { packs } => self.bad |= packs,
            Record::HoldSet { point } => self.hold = Some(point),
            Record::HoldLifted => self.hold = None,
        }
    }
}

impl World {
    /// For a live point's chunk: the places where it is, will be, and can be found.
    pub(crate) fn lasting(&self, named: Packs, chunk: Packs) -> Packs {
        self.log.places(named, chunk) & self.stored & !self.doomed
    }

    /// Packs in the bucket that a prune could do away with, were it told of all and every run ended.
    pub(crate) fn garbage(&self, bounds: &Bounds) -> Packs {
        let mut log = self.log;
        log.runs = [0; WRITERS_MAX];
        log.dead_runs = 0;
        log.condemned = self.stored & !log.swept;
        log.decide_sweep(bounds, None).0 | self.stored & log.swept
    }
}
