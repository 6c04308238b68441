//! Leaves steps out of a history for as long as it still goes wrong.
//!
//! Halves first, then quarters, at last single steps (delta debugging). What is left need not be the
//! shortest of all, only one from which no single step can be taken away, if the tries suffice.

use super::history::History;

/// Shrinks a history that `fails`, in at most `tries_max` tries.
pub(crate) async fn shrink(
    history: &History,
    tries_max: usize,
    fails: impl AsyncFn(&History) -> bool,
) -> History {
    let mut short = history.clone();
    let mut length = short.steps.len().div_ceil(2);
    let mut tries = 0;
    while length > 0 {
        let mut start = 0;
        let mut shorter = false;
        while start < short.steps.len() {
            if tries == tries_max {
                return short;
            }
            tries += 1;
            let mut steps = short.steps.clone();
            steps.drain(start..(start + length).min(steps.len()));
            let candidate = short.with(steps);
            if fails(&candidate).await {
                short = candidate;
                shorter = true;
            } else {
                start += length;
            }
        }
        // At single steps: once more, as long as that helps.
        length = match (length, shorter) {
            (1, true) => 1,
            (1, false) => 0,
            _ => length.div_ceil(2),
        };
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_does_not_matter_goes() {
        let history = History::of(3, 200);
        let needed = [17, 18, 140];
        let fails = async |history: &History| {
            let numbers: Vec<usize> = history.steps.iter().map(|(number, _)| *number).collect();
            needed.iter().all(|number| numbers.contains(number))
        };
        let short = shrink(&history, 1000, fails).await;
        let numbers: Vec<usize> = short.steps.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, needed);
        let tries = std::cell::Cell::new(0);
        let counted = async |_: &History| {
            tries.set(tries.get() + 1);
            false
        };
        let same = shrink(&history, 10, counted).await;
        assert_eq!((same.steps.len(), tries.get()), (200, 10));
    }
}
