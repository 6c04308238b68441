//! `tidegate soak`: generated histories against a model, for as long as one likes.

use crate::args::Soak;
use crate::context::Context;
use crate::exit::Outcome;
use crate::soak::history::History;
use crate::soak::shrink::shrink;
use crate::soak::world::{Done, Trouble, live};
use crate::text;
use serde::Serialize;
use std::time::{Duration, Instant};
use tidegate_agent::{Error, Kind, Result, clock};

/// How often it is said how far it has come.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How often a history that went wrong is lived through again to make it shorter.
const SHRINK_TRIES_MAX: usize = 400;

/// How often it may come true without going wrong, before shrinking takes its word for it.
const REPEATS: usize = 3;

#[derive(Serialize)]
struct Answer {
    /// The first history's seed; the others follow it one by one.
    seed: u64,
    #[serde(flatten)]
    done: Done,
    seconds: f64,
    failure: Option<Failure>,
}

#[derive(Serialize)]
struct Failure {
    seed: u64,
    step: usize,
    what: String,
    /// How many of the last tries went wrong, of the whole history up to that step.
    repeated: usize,
    /// The steps that are left after shrinking.
    shortest: Vec<usize>,
    /// They, in words.
    history: String,
}

pub(super) async fn run(args: Soak, context: &Context) -> Result<Outcome> {
    let seed = match args.seed {
        Some(seed) => seed,
        // Short enough to be typed.
        None => u64::from(u32::from_le_bytes(clock::random()?)),
    };
    let started = Instant::now();
    let mut said = started;
    let mut done = Done::default();
    let mut failure = None;
    for seed in seed.. {
        let left = match args.lasts {
            Some(lasts) if started.elapsed() >= lasts => break,
            Some(_) => u64::MAX,
            None => args.steps.saturating_sub(done.steps),
        };
        if left == 0 {
            break;
        }
        let length = left.min(args.history);
        let mut history = History::of(seed, usize::try_from(length).unwrap_or(usize::MAX));
        if !args.only.is_empty() {
            history
                .steps
                .retain(|(number, _)| args.only.contains(number));
        }
        let place = place(args.repo.as_deref(), seed);
        let lived = live(&history, place.as_deref(), None, &context.stop).await?;
        done.add(&lived.done);
        match lived.outcome {
            Ok(()) => {}
            Err((_, Trouble::Stopped)) => {
                return Err(Error::new(
                    Kind::Interrupted,
                    format!("stopped as asked, after {} steps", done.steps),
                ));
            }
            Err((step, Trouble::Wrong(what))) => {
                context.output.warn(&format!(
                    "seed {seed}, step {step}: {what}; looking for a shorter history"
                ));
                failure = Some(explain(&history, step, what, context).await);
                break;
            }
        }
        if said.elapsed() >= LINE_EVERY {
            said = Instant::now();
            context
                .output
                .note(&format!("seed {seed}: {}", describe(&done)));
        }
        if !args.only.is_empty() {
            break;
        }
    }
    let answer = Answer {
        seed,
        done,
        seconds: started.elapsed().as_secs_f64(),
        failure,
    };
    context.output.result(&answer, || answer.text())?;
    Ok(match answer.failure {
        None => Outcome::Done,
        Some(_) => Outcome::Damaged,
    })
}

/// Every history has a repository of its own.
fn place(repo: Option<&str>, seed: u64) -> Option<String> {
    repo.map(|repo| format!("{}/soak-{seed}", repo.trim_end_matches('/')))
}

/// Tells a failure in as few steps as can be found. In memory, whatever the repository's place was: the
/// store is not what is looked at.
async fn explain(history: &History, step: usize, what: String, context: &Context) -> Failure {
    let steps = history.steps.iter().copied();
    let whole = history.with(steps.take_while(|(number, _)| *number <= step).collect());
    let fails = async |history: &History| {
        let lived = live(history, None, None, &context.stop).await;
        lived.is_ok_and(|lived| lived.wrong().is_some())
    };
    let mut repeated = 0;
    for _ in 0..REPEATS {
        repeated += usize::from(fails(&whole).await);
    }
    let short = match repeated {
        // What depends on keys, names or timing cannot be shrunk by trying once.
        0 => whole,
        _ => shrink(&whole, SHRINK_TRIES_MAX, fails).await,
    };
    Failure {
        seed: history.seed,
        step,
        what,
        repeated,
        shortest: short.steps.iter().map(|(number, _)| *number).collect(),
        history: short.to_string(),
    }
}

impl Answer {
    fn text(&self) -> String {
        let summary = format!(
            "{} in {}, from seed {} on\n",
            describe(&self.done),
            text::seconds(self.seconds),
            self.seed
        );
        let Some(failure) = &self.failure else {
            return format!("{summary}the repository did what the model says\n");
        };
        let only: Vec<_> = failure.shortest.iter().map(usize::to_string).collect();
        format!(
            "{summary}WRONG at step {} of seed {}: {}\n\
             It went wrong in {} of {REPEATS} repetitions. The shortest history found:\n\n{}\n\n\
             To repeat it: tidegate soak --seed {} --only {}\n",
            failure.step,
            failure.seed,
            failure.what,
            failure.repeated,
            failure.history,
            failure.seed,
            only.join(",")
        )
    }
}

fn describe(done: &Done) -> String {
    format!(
        "{} steps in {} repositories: {} backups ({} interrupted), {} restores of {}, {} diffs, {} verifies, {} faults of the store",
        done.steps,
        done.histories,
        done.backups,
        done.interrupted,
        done.restores,
        text::size(done.restored_bytes),
        done.diffs,
        done.verifies,
        done.faults
    )
}
