//! The protocol of commits and prunes ([FORMAT.md](../../FORMAT.md), «The log»), as a small machine of
//! states, explored exhaustively within bounds: writers, pruners and a reader over a store whose
//! answers are lost and whose requests take effect late, twice, or never.
//!
//! Shown: no reachable state has lost what a live point needs, none is a dead end, and each rule of the
//! document is needed, since without it the explorer finds what goes wrong. What it is not: a test of
//! the engine. Where the engine decides, the model names the function that it mirrors.
//!
//! | Part | Purpose |
//! |---|---|
//! | [`explore`] | visits every reachable state, finds shortest traces and dead ends |
//! | [`world`] | the log's state, the store, the actors' memories; what records change; bounds, flaws |
//! | [`actors`] | what everybody may do next |
//! | [`event`] | what happened, in words |
//! | [`symmetry`] | worlds that differ in names only are one |
//!
//! Bounds are small because faults of such protocols show with few actors; three writers find nothing
//! that two do not.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking"
)]

mod actors;
mod event;
mod explore;
mod symmetry;
mod world;

use actors::Protocol;
use event::{Actor, Event};
use explore::{Found, Machine, explore};
use world::{Bounds, Flaw, QUIET, Record, World};

/// Explores a world in which every rule is kept.
fn holds(bounds: Bounds) {
    let protocol = Protocol { bounds, flaw: None };
    match explore(&protocol) {
        Ok(found) => println!("{} states, {} steps", found.states, found.steps),
        Err(found) => panic!("{bounds:?}\n{found}"),
    }
}

#[test]
fn writers_prune_and_crashes() {
    holds(Bounds {
        writers: 2,
        names: 3,
        announce: true,
        crashes: 1,
        expiries: 1,
        condemnings: 2,
        ..QUIET
    });
}

#[test]
fn three_writers() {
    holds(Bounds {
        writers: 3,
        names: 2,
        crashes: 1,
        expiries: 1,
        condemnings: 1,
        ..QUIET
    });
}

#[test]
fn two_points_each() {
    holds(Bounds {
        writers: 2,
        runs: 2,
        names: 4,
        expiries: 2,
        condemnings: 2,
        ..QUIET
    });
}

#[test]
fn a_writer_that_dies_twice() {
    holds(Bounds {
        names: 5,
        announce: true,
        crashes: 2,
        expiries: 1,
        condemnings: 2,
        ..QUIET
    });
}

#[test]
fn two_pruners_and_a_reader() {
    holds(Bounds {
        names: 3,
        pruners: 2,
        reader: true,
        relocations: 1,
        crashes: 1,
        expiries: 1,
        condemnings: 2,
        ..QUIET
    });
}

#[test]
fn relocation_bad_packs_and_a_reader() {
    holds(Bounds {
        names: 3,
        reader: true,
        relocations: 2,
        claims: 1,
        expiries: 1,
        condemnings: 2,
        ..QUIET
    });
}

#[test]
fn disks_of_two_chunks() {
    holds(Bounds {
        chunks: 2,
        names: 6,
        crashes: 1,
        expiries: 1,
        condemnings: 2,
        relocations: 1,
        ..QUIET
    });
}

/// The bucket can be made clean from every reachable state: nothing is kept for ever.
#[test]
fn what_nobody_needs_can_go() {
    holds(Bounds {
        writers: 2,
        names: 3,
        announce: true,
        crashes: 1,
        expiries: 1,
        condemnings: 1,
        clean: true,
        ..QUIET
    });
}

/// That a condemned pack is not referred to saves work. Safety does not rest on it.
#[test]
fn heeding_a_condemnation_is_thrift() {
    let bounds = Bounds {
        writers: 2,
        names: 3,
        reader: true,
        expiries: 1,
        condemnings: 2,
        ..QUIET
    };
    let flaw = Some(Flaw::DedupeAgainstCondemned);
    if let Err(found) = explore(&Protocol { bounds, flaw }) {
        panic!("{found}");
    }
}

/// What the explorer finds where a rule is broken. The trace is printed.
fn found(flaw: Flaw, bounds: Bounds, what: &str) {
    let sound = explore(&Protocol { bounds, flaw: None });
    assert!(
        sound.is_ok(),
        "with the rule kept: {}",
        sound.err().unwrap()
    );
    let flaw = Some(flaw);
    let Err(found) = explore(&Protocol { bounds, flaw }) else {
        panic!("{flaw:?} is not found in {bounds:?}");
    };
    println!("{flaw:?}\n{found}\n");
    assert!(found.what.contains(what), "found something else: {found}");
}

/// A writer and a pruner, who may both work.
const PAIR: Bounds = Bounds {
    names: 3,
    expiries: 1,
    condemnings: 1,
    ..QUIET
};

/// A pruner and a reader, without a writer.
const READ: Bounds = Bounds {
    writers: 0,
    reader: true,
    relocations: 1,
    expiries: 1,
    condemnings: 1,
    ..QUIET
};

const TAKEN: &str = "the last sound place";
const LOST: &str = "nowhere for good";
const MISSED: &str = "finds a chunk nowhere";
const DEAD_END: &str = "nobody's wishes";

#[test]
fn a_commit_without_a_check() {
    found(Flaw::CommitUnchecked, PAIR, LOST);
}

#[test]
fn a_commit_without_a_check_for_bad_packs() {
    let bounds = Bounds { claims: 1, ..PAIR };
    found(Flaw::CommitUncheckedForBad, bounds, "which is bad");
}

#[test]
fn a_commit_before_its_packs_are_stored() {
    found(Flaw::CommitBeforeStored, PAIR, TAKEN);
}

#[test]
fn a_writer_that_clings_to_swept_packs() {
    found(Flaw::DedupeAgainstSwept, PAIR, DEAD_END);
}

#[test]
fn a_name_that_is_used_again() {
    let bounds = Bounds {
        condemnings: 2,
        ..PAIR
    };
    found(Flaw::NamesReused, bounds, LOST);
}

#[test]
fn a_sweep_without_rescue() {
    found(Flaw::SweepWithoutRescue, PAIR, TAKEN);
}

#[test]
fn a_sweep_that_was_decided_earlier() {
    found(Flaw::SweepFromStaleHead, PAIR, TAKEN);
}

#[test]
fn a_sweep_of_both_copies() {
    let bounds = Bounds {
        relocations: 1,
        condemnings: 2,
        ..PAIR
    };
    found(Flaw::SweepBothCopies, bounds, TAKEN);
}

#[test]
fn a_sweep_that_leaves_a_bad_copy() {
    let bounds = Bounds {
        relocations: 1,
        claims: 1,
        ..PAIR
    };
    found(Flaw::SweepCountsBad, bounds, TAKEN);
}

#[test]
fn a_delete_before_its_record() {
    found(Flaw::DeleteBeforeSweep, PAIR, LOST);
}

#[test]
fn a_checkpoint_without_what_was_swept() {
    let bounds = Bounds { crashes: 1, ..PAIR };
    found(Flaw::CheckpointForgetsSwept, bounds, LOST);
}

#[test]
fn a_log_that_can_be_overwritten() {
    found(Flaw::LogNotCreateOnly, PAIR, TAKEN);
}

#[test]
fn a_hold_that_is_not_heeded() {
    found(Flaw::HoldUnheeded, READ, MISSED);
}

#[test]
fn a_reader_without_a_hold() {
    found(Flaw::ReadWithoutHold, READ, MISSED);
}

#[test]
fn a_hold_of_a_point_that_is_gone() {
    found(Flaw::HoldUnchecked, READ, MISSED);
}

#[test]
fn a_reader_that_believes_its_old_index() {
    found(Flaw::ReadWithoutRefresh, READ, MISSED);
}

#[test]
fn a_reader_that_asks_no_index() {
    found(Flaw::ReadByHintsOnly, READ, MISSED);
}

#[test]
fn a_run_that_only_its_dead_writer_could_end() {
    let bounds = Bounds {
        announce: true,
        crashes: 1,
        expiries: 2,
        clean: true,
        ..PAIR
    };
    found(Flaw::OnlyWriterEndsRun, bounds, DEAD_END);
}

type Happens = fn(&Event) -> bool;

/// The protocol, and the claim that something never happens.
struct Never {
    protocol: Protocol,
    happens: Happens,
}

impl Machine for Never {
    type State = World;
    type Event = Event;

    fn first(&self) -> World {
        self.protocol.first()
    }

    fn steps(&self, world: &World, take: &mut dyn FnMut(Event, Result<World, String>)) {
        self.protocol
            .steps(world, &mut |event, after| match (self.happens)(&event) {
                true => take(event, Err("it happens".to_owned())),
                false => take(event, after),
            });
    }

    fn canonical(&self, world: &World) -> World {
        self.protocol.canonical(world)
    }

    fn violation(&self, _: &World) -> Option<String> {
        None
    }

    fn is_goal(&self, _: &World) -> bool {
        true
    }
}

/// The model is no quiet place: what the rules are there for does happen in it.
#[test]
fn everything_happens() {
    let bounds = Bounds {
        announce: true,
        crashes: 1,
        relocations: 1,
        condemnings: 2,
        ..PAIR
    };
    let happens: [(&str, Happens); 6] = [
        ("a writer starts over", |event| {
            matches!(event, Event::StartsOver { .. })
        }),
        ("a sweep rescues a pack", |event| {
            matches!(
                event,
                Event::Appended {
                    record: Record::Swept { packs: 0, .. },
                    ..
                }
            )
        }),
        ("a dead writer's point is committed", |event| {
            matches!(
                event,
                Event::Appended {
                    actor: Actor::Dead(_),
                    record: Record::Committed { .. },
                }
            )
        }),
        (
            "a writer goes on from an interrupted run",
            |event| matches!(event, Event::Chooses { known, new: 0, .. } if known & 0b1110 != 0),
        ),
        (
            "a running writer's run is ended by somebody else",
            |event| {
                matches!(
                    event,
                    Event::Appended {
                        record: Record::RunEnded { .. },
                        ..
                    }
                )
            },
        ),
        ("a copy is swept before its record", |event| {
            matches!(event, Event::Copies { pack: 0, .. })
        }),
    ];
    for (what, happens) in happens {
        let protocol = Protocol { bounds, flaw: None };
        let Err(Found { trace, .. }) = explore(&Never { protocol, happens }) else {
            panic!("it never happens that {what}");
        };
        println!("{what}: after {} steps", trace.len());
    }
}
