//! Generated histories of disks, backups and restores, against a plain model of them in memory.
//!
//! | Part | Purpose |
//! |---|---|
//! | [`history`] | what happens, drawn from a seed |
//! | [`disk`] | a disk as the model has it |
//! | [`world`] | makes a history come true, and compares |
//! | [`shrink`] | the shortest history that still goes wrong |
//!
//! Shared by the command `tidegate soak` and the tests. What it is not: a measurement, or a test of
//! whoever keeps the store's promises; it makes its own repositories and never touches another.

pub(crate) mod disk;
pub(crate) mod history;
pub(crate) mod shrink;
pub(crate) mod world;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::history::{End, Fill, History, Onto, Place, Step};
    use super::shrink::shrink;
    use super::world::{Sabotage, live};
    use tokio_util::sync::CancellationToken;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_history_comes_true() {
        let history = History::of(1, 120);
        let stop = CancellationToken::new();
        let lived = live(&history, None, None, &stop).await.unwrap();
        assert!(lived.outcome.is_ok(), "{:?}\n{history}", lived.outcome);
        let done = lived.done;
        assert_eq!((done.histories, done.steps), (1, 120));
        assert!(done.backups > 5 && done.restores > 5, "{done:?}");
    }

    /// Whoever looks for faults must find one that is there.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_lie_is_found_and_told_in_few_steps() {
        let mut history = History::of(5, 60);
        let lie = [
            Step::Resize {
                disk: 0,
                size_bytes: 0,
            },
            Step::Resize {
                disk: 0,
                size_bytes: 5 << 20,
            },
            Step::Write {
                disk: 0,
                at: Place::START,
                length: 9000,
                fill: Fill::Text(3),
            },
            Step::BackUp {
                machine: 0,
                host: 0,
                end: End::Own,
                draw: 0,
            },
            Step::Restore {
                point: u64::MAX,
                disk: 0,
                onto: Onto::New,
                draw: 0,
            },
        ];
        history.steps.extend((100..).zip(lie));
        let stop = CancellationToken::new();
        let sabotage = Some(Sabotage::Source);
        let lived = live(&history, None, sabotage, &stop).await.unwrap();
        let what = lived.wrong().unwrap();
        assert!(what.contains("of the restored disk is wrong"), "{what}");
        let fails = async |history: &History| {
            let lived = live(history, None, sabotage, &stop).await;
            lived.unwrap().wrong().is_some()
        };
        let short = shrink(&history, 200, fails).await;
        // A disk, bytes on it, a backup; the restore is what every history ends with.
        assert!(short.steps.len() <= 4, "{short}");
        let lived = live(&short, None, None, &stop).await.unwrap();
        assert!(
            lived.outcome.is_ok(),
            "without the lie: {:?}",
            lived.outcome
        );
    }

    #[test]
    fn a_seed_says_everything() {
        for seed in 0..20 {
            assert_eq!(History::of(seed, 50).steps, History::of(seed, 50).steps);
            // A shorter history is the beginning of a longer one.
            assert_eq!(
                History::of(seed, 20).steps,
                History::of(seed, 50).steps[..20]
            );
        }
        assert_ne!(History::of(1, 50).steps, History::of(2, 50).steps);
    }
}
