#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;

fn packs(sizes: &[u64]) -> Vec<ExpectedPack> {
    let of = |(number, bytes): (u8, &u64)| ExpectedPack {
        id: PackId([number; 32]),
        bytes: *bytes,
    };
    (0..).zip(sizes).map(of).collect()
}

fn planned(sizes: &[u64]) -> Vec<Vec<u64>> {
    let settings = BundleSettings {
        full_bytes: 100,
        small_bytes: 50,
        count_min: 4,
        grace: Duration::ZERO,
    };
    let bundles = together(&packs(sizes), |pack| pack.bytes, &settings);
    let sizes = |packs: Vec<ExpectedPack>| packs.iter().map(|pack| pack.bytes).collect();
    bundles.into_iter().map(sizes).collect()
}

#[test]
fn what_goes_together() {
    assert_eq!(planned(&[]), Vec::<Vec<u64>>::new());
    // Too little, and too few.
    assert_eq!(planned(&[10, 20, 30]), Vec::<Vec<u64>>::new());
    // Many, however small.
    assert_eq!(planned(&[1, 1, 1, 1]), [[1, 1, 1, 1]]);
    // Full, and what is left waits.
    assert_eq!(planned(&[40, 40, 40, 7, 7]), [[40, 40, 40]]);
    assert_eq!(
        planned(&[50, 50, 50, 50, 1, 2, 3, 4]),
        [vec![50, 50], vec![50, 50], vec![1, 2, 3, 4]]
    );
    // One that fills a bundle alone is as good by itself.
    assert_eq!(planned(&[100, 1, 1]), Vec::<Vec<u64>>::new());
}

#[test]
fn a_bundle_has_a_bound() {
    let many = vec![1; BUNDLE_PACKS_MAX + 300];
    let settings = BundleSettings::default();
    let sizes: Vec<usize> = together(
        &packs(&many.iter().map(|_| 1).collect::<Vec<u64>>()),
        |pack| pack.bytes,
        &settings,
    )
    .iter()
    .map(Vec::len)
    .collect();
    assert_eq!(sizes, [BUNDLE_PACKS_MAX, 300]);
}
