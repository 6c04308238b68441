#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;

fn planned(sizes: &[u64], settings: &BundleSettings) -> Vec<Vec<u64>> {
    together(sizes, |bytes| *bytes, settings)
}

#[test]
fn what_goes_together() {
    let settings = BundleSettings {
        full_bytes: 100,
        small_bytes: 50,
        count_min: 4,
        grace: Duration::ZERO,
    };
    let none: Vec<Vec<u64>> = Vec::new();
    assert_eq!(planned(&[], &settings), none);
    // Too little, and too few.
    assert_eq!(planned(&[10, 20, 30], &settings), none);
    // Many, however small.
    assert_eq!(planned(&[1, 1, 1, 1], &settings), [[1, 1, 1, 1]]);
    // Full, and what is left waits.
    assert_eq!(planned(&[40, 40, 40, 7, 7], &settings), [[40, 40, 40]]);
    let both = planned(&[50, 50, 50, 50, 1, 2, 3, 4], &settings);
    assert_eq!(both, [vec![50, 50], vec![50, 50], vec![1, 2, 3, 4]]);
    // One that fills a bundle alone is as good by itself.
    assert_eq!(planned(&[100, 1, 1], &settings), none);
}

#[test]
fn a_bundle_has_a_bound() {
    let many = vec![1; BUNDLE_PACKS_MAX + 300];
    let groups = planned(&many, &BundleSettings::default());
    let sizes: Vec<usize> = groups.iter().map(Vec::len).collect();
    assert_eq!(sizes, [BUNDLE_PACKS_MAX, 300]);
}
