//! Several machines that are frozen together: they wait for each other, and for nobody too long.
//!
//! ```text
//!   prepared ──► still ──► taken ──►          each machine waits at each step for the others
//! ```
//!
//! Not the freezing itself: each machine is frozen by the task that owns it, which has a [`Seat`]
//! here. Where the guests' software is frozen too, all of it is still before the first disk is
//! taken and until the last one is, so that what one machine has told another stands in both points
//! or in neither. Where it is not, the moments lie at most the measured skew apart. The invariants:
//! who does not come in time is not waited for and is not counted; a machine never waits for one whose
//! task is gone.

use crate::clock;
use crate::error::Result;
use crate::repository::point::as_text;
use serde::{Serialize, Serializer};
use std::time::{Duration, Instant};
use tidegate_protocol::ids::MomentId;
use tokio::sync::watch;

/// How long the first machine that is prepared waits for the last one. Guests run meanwhile.
const PREPARED_WAIT_MAX: Duration = Duration::from_secs(30);
/// The same where guests may be frozen: one that does not follow must not hold the others for long.
const FROZEN_WAIT_MAX: Duration = Duration::from_secs(2);

/// How far a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// Its disks can be taken at once.
    Prepared,
    /// Its software is still, where it shall be.
    Still,
    /// Its disks were taken.
    Taken,
}

/// Several machines at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Together {
    /// Points of one moment have the same.
    #[serde(serialize_with = "as_text")]
    pub moment: MomentId,
    /// The group.
    pub group: String,
    /// Machines that were taken.
    pub machines: u32,
    /// Machines that should have been.
    pub expected: u32,
    /// How far apart the moments of any two of them are at most.
    #[serde(rename = "skew_seconds", serialize_with = "as_seconds")]
    pub skew: Duration,
}

/// A machine's place among those of its group. Dropped, nobody waits for it.
pub struct Seat {
    number: usize,
    group: String,
    moment: MomentId,
    expected: u32,
    table: watch::Sender<Table>,
}

/// What all know of each other.
#[derive(Debug)]
struct Table {
    seats: Vec<Place>,
    /// Steps that are not waited at any more.
    passed: Option<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It has reached that step, or none yet.
    Coming(Option<Step>),
    /// It was taken at some moment between these two.
    Taken(Instant, Instant),
    /// It will not come, or came too late.
    Gone,
}

impl Place {
    fn reached(self, step: Step) -> bool {
        match self {
            Self::Coming(reached) => reached >= Some(step),
            Self::Taken(..) | Self::Gone => true,
        }
    }
}

/// Places for that many machines of a group of `expected`, to be frozen together.
///
/// # Errors
/// Where the system has no randomness.
pub fn seats(group: &str, machines: usize, expected: usize) -> Result<Vec<Seat>> {
    let moment = MomentId(clock::random()?);
    let (table, _) = watch::channel(Table {
        seats: vec![Place::Coming(None); machines],
        passed: None,
    });
    Ok((0..machines)
        .map(|number| Seat {
            number,
            group: group.to_owned(),
            moment,
            expected: u32::try_from(expected).unwrap_or(u32::MAX),
            table: table.clone(),
        })
        .collect())
}

impl Table {
    fn is_open(&self, step: Step) -> bool {
        self.passed >= Some(step) || self.seats.iter().all(|place| place.reached(step))
    }

    /// Goes on without those who are not there.
    fn pass(&mut self, step: Step) {
        self.passed = self.passed.max(Some(step));
        if step == Step::Prepared {
            for place in &mut self.seats {
                if !place.reached(step) {
                    *place = Place::Gone;
                }
            }
        }
    }
}

impl Seat {
    /// Says that its machine is there, and waits for the others, but not too long.
    pub(super) async fn meet(&self, step: Step) {
        self.place(|place| {
            if let Place::Coming(reached) = place {
                *reached = (*reached).max(Some(step));
            }
        });
        if self.table.borrow().seats[self.number] == Place::Gone {
            return;
        }
        let patience = match step {
            Step::Prepared => PREPARED_WAIT_MAX,
            Step::Still | Step::Taken => FROZEN_WAIT_MAX,
        };
        let mut others = self.table.subscribe();
        let waited = tokio::time::timeout(patience, others.wait_for(|table| table.is_open(step)));
        if waited.await.is_err() {
            tracing::warn!(
                group = self.group,
                ?step,
                "not all machines came in time: the rest goes on without them"
            );
            self.table.send_modify(|table| table.pass(step));
        }
    }

    /// Says between which two moments its machine's disks were taken.
    pub(super) fn took(&self, begun: Instant, ended: Instant) {
        self.place(|place| {
            if *place != Place::Gone {
                *place = Place::Taken(begun, ended);
            }
        });
    }

    /// What came of it; none where its machine came too late or was not taken.
    pub(super) fn outcome(&self) -> Option<Together> {
        let table = self.table.borrow();
        let taken = table.seats.iter().filter_map(|place| match place {
            Place::Taken(begun, ended) => Some((*begun, *ended)),
            _ => None,
        });
        let (first, last, machines) = taken.fold((None, None, 0), |(first, last, count), it| {
            let (begun, ended) = it;
            let first = first.map_or(begun, |first: Instant| first.min(begun));
            let last = last.map_or(ended, |last: Instant| last.max(ended));
            (Some(first), Some(last), count + 1_u32)
        });
        matches!(table.seats[self.number], Place::Taken(..)).then(|| Together {
            moment: self.moment,
            group: self.group.clone(),
            machines,
            expected: self.expected,
            skew: match (first, last) {
                (Some(first), Some(last)) if machines > 1 => last - first,
                _ => Duration::ZERO,
            },
        })
    }

    fn place(&self, set: impl FnOnce(&mut Place)) {
        self.table
            .send_modify(|table| set(&mut table.seats[self.number]));
    }
}

fn as_seconds<S: Serializer>(
    time: &Duration,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.place(|place| {
            if matches!(place, Place::Coming(_)) {
                *place = Place::Gone;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use tokio::time::sleep;

    /// A machine that is prepared after a while and taken then.
    async fn machine(seat: Seat, prepared_after: Duration) -> Option<Together> {
        sleep(prepared_after).await;
        seat.meet(Step::Prepared).await;
        seat.meet(Step::Still).await;
        let begun = tokio::time::Instant::now().into_std();
        sleep(Duration::from_millis(10)).await;
        seat.took(begun, tokio::time::Instant::now().into_std());
        seat.meet(Step::Taken).await;
        seat.outcome()
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn machines_wait_for_each_other() {
        let [a, b, c] = <[Seat; 3]>::try_from(seats("shop", 3, 3).unwrap())
            .ok()
            .unwrap();
        let (a, b, c) = tokio::join!(
            machine(a, secs(0)),
            machine(b, secs(3)),
            machine(c, secs(9))
        );
        let a = a.unwrap();
        assert_eq!((a.machines, a.expected), (3, 3));
        // Not the 9 s that they were prepared apart.
        assert!(a.skew < Duration::from_millis(50), "{:?}", a.skew);
        assert_eq!(Some(&a), b.as_ref());
        assert_eq!(Some(&a), c.as_ref());
    }

    #[tokio::test(start_paused = true)]
    async fn who_fails_or_dallies_is_not_waited_for() {
        let [a, b, fails, late] = <[Seat; 4]>::try_from(seats("shop", 4, 5).unwrap())
            .ok()
            .unwrap();
        let begun = tokio::time::Instant::now();
        let fails = async {
            sleep(secs(1)).await;
            drop(fails);
        };
        let both = async { tokio::join!(machine(a, secs(0)), machine(b, secs(2)), fails) };
        let rest = async {
            let both = both.await;
            (both, begun.elapsed())
        };
        let (((a, b, ()), took), late) =
            tokio::join!(rest, machine(late, PREPARED_WAIT_MAX + secs(5)));
        assert!(took < PREPARED_WAIT_MAX + secs(2), "{took:?}");
        let a = a.unwrap();
        assert_eq!((a.machines, a.expected), (2, 5));
        assert_eq!(Some(a), b);
        assert_eq!(late, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_frozen_guest_is_not_held_for_one_that_hangs() {
        let [a, hangs] = <[Seat; 2]>::try_from(seats("shop", 2, 2).unwrap())
            .ok()
            .unwrap();
        let hangs = tokio::spawn(async move {
            hangs.meet(Step::Prepared).await;
            sleep(secs(3600)).await;
        });
        let begun = tokio::time::Instant::now();
        let a = machine(a, secs(0)).await.unwrap();
        assert!(begun.elapsed() < 3 * FROZEN_WAIT_MAX);
        assert_eq!((a.machines, a.expected, a.skew), (1, 2, Duration::ZERO));
        hangs.abort();
    }
}
