//! Against bytes that are painted one by one.

use super::*;
use proptest::prelude::*;

/// A content that says which byte of which run it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Paint {
    run: u32,
    byte: u64,
}

impl Advance for Paint {
    fn advanced(self, by: u64) -> Self {
        Self {
            byte: self.byte + by,
            ..self
        }
    }
}

fn paint(canvas: &mut [Option<Paint>], runs: &[Run<Paint>]) {
    for run in runs {
        for at in run.range.clone() {
            canvas[usize::try_from(at).unwrap()] = Some(run.content.advanced(at - run.range.start));
        }
    }
}

/// Runs in order, from gaps and lengths.
fn runs(first: u32) -> impl Strategy<Value = Vec<Run<Paint>>> {
    proptest::collection::vec((0..6_u64, 1..9_u64), 0..12).prop_map(move |parts| {
        let mut at = 0;
        (first..)
            .zip(parts)
            .map(|(run, (gap, length))| {
                let range = at + gap..at + gap + length;
                at = range.end;
                let content = Paint { run, byte: 100 };
                Run { range, content }
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_lies_above_is_seen(below in runs(0), above in runs(1000)) {
        let mut expected = [None; 200];
        paint(&mut expected, &below);
        paint(&mut expected, &above);
        let seen = lay_over(&below, &above);
        let mut found = [None; 200];
        paint(&mut found, &seen);
        prop_assert_eq!(found, expected);
        prop_assert!(seen.iter().all(|run| !run.range.is_empty()));
        prop_assert!(seen.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start));
    }

    #[test]
    fn a_window_shows_its_part(all in runs(0), start in 0..150_u64, length in 0..40_u64) {
        let mut expected = [None; 200];
        paint(&mut expected, &all);
        for (at, byte) in (0_u64..).zip(&mut expected) {
            if !(start..start + length).contains(&at) {
                *byte = None;
            }
        }
        let mut found = [None; 200];
        paint(&mut found, &inside(&all, &(start..start + length)));
        prop_assert_eq!(found, expected);
    }
}
