//! What happens in the model, and how it is told in a trace.

use super::world::{Packs, Record, each};
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Actor {
    Writer(usize),
    Pruner(usize),
    Reader,
    /// A writer or pruner that has died.
    Dead(usize),
    Operator,
}

/// What happened.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    Chooses {
        writer: usize,
        known: Packs,
        new: Packs,
    },
    StartsOver {
        writer: usize,
    },
    PutLands {
        pack: Packs,
    },
    DeleteLands {
        pack: Packs,
    },
    HearsAcks {
        writer: usize,
    },
    Sends {
        actor: Actor,
        record: Record,
    },
    Appended {
        actor: Actor,
        record: Record,
    },
    HearsOfAppend {
        actor: Actor,
    },
    Crashes {
        actor: Actor,
        cache_lost: bool,
    },
    PlansSweep {
        pruner: usize,
        packs: Packs,
        rescued: Packs,
    },
    Copies {
        pruner: usize,
        pack: Packs,
    },
    Reads {
        point: u8,
    },
    BeginsToRead {
        point: u8,
    },
}

/// Packs in words.
pub(crate) struct Named(pub(crate) Packs);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str(" none");
        }
        each(self.0).try_for_each(|pack| write!(f, " pack {}", pack.trailing_zeros()))
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Writer(number) => write!(f, "writer {number}"),
            Self::Pruner(number) => write!(f, "pruner {number}"),
            Self::Reader => f.write_str("the reader"),
            Self::Dead(_) => f.write_str("one that has died"),
            Self::Operator => f.write_str("somebody"),
        }
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Committed { point, places, .. } => {
                write!(f, "point {point} committed, in{}", Named(places))
            }
            Self::Announced { segment, .. } | Self::AnnouncedByDead { segment } => {
                write!(f, "run announced, with{}", Named(segment))
            }
            Self::RunEnded { writer } => write!(f, "run of writer {writer} ended"),
            Self::DeadRunsEnded => f.write_str("dead runs ended"),
            Self::Expired { point } => write!(f, "point {point} expired"),
            Self::Condemned { packs } => write!(f, "condemned{}", Named(packs)),
            Self::Swept { packs, rescued } => {
                write!(f, "swept{}, rescued{}", Named(packs), Named(rescued))
            }
            Self::Relocated { segment } => write!(f, "chunks relocated, to{}", Named(segment)),
            Self::FoundBad { packs } => write!(f, "found bad{}", Named(packs)),
            Self::HoldSet { point } => write!(f, "hold set on point {point}"),
            Self::HoldLifted => f.write_str("hold lifted"),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Chooses { writer, known, new } => write!(
                f,
                "writer {writer} refers to{}, and stores{}",
                Named(known),
                Named(new)
            ),
            Self::StartsOver { writer } => write!(
                f,
                "writer {writer} sees that a pack was lost, and reads its disks again"
            ),
            Self::PutLands { pack } => write!(f, "the PUT of{} takes effect", Named(pack)),
            Self::DeleteLands { pack } => write!(f, "the DELETE of{} takes effect", Named(pack)),
            Self::HearsAcks { writer } => write!(f, "writer {writer} hears that its packs landed"),
            Self::Sends { actor, record } => write!(f, "{actor} sends the record: {record}"),
            Self::Appended { actor, record } => write!(f, "the record of {actor} stands: {record}"),
            Self::HearsOfAppend { actor } => write!(f, "{actor} hears that its record stands"),
            Self::Crashes { actor, cache_lost } => match cache_lost {
                true => write!(f, "{actor} dies and loses its cache"),
                false => write!(f, "{actor} dies"),
            },
            Self::PlansSweep {
                pruner,
                packs,
                rescued,
            } => write!(
                f,
                "pruner {pruner} plans to sweep{} and to rescue{}",
                Named(packs),
                Named(rescued)
            ),
            Self::Copies { pruner, pack } => {
                write!(f, "pruner {pruner} copies a chunk into{}", Named(pack))
            }
            Self::Reads { point } => write!(f, "the reader reads point {point}"),
            Self::BeginsToRead { point } => write!(f, "the reader begins to read point {point}"),
        }
    }
}
