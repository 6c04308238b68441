//! The bucket on a virtual clock. That a real connection obeys it is tested with the transport.

use super::*;

/// What leaves in `ms` milliseconds when batches of `batch` bytes always wait.
fn sent(bucket: &mut Bucket, from: Instant, ms: u64, rate: u64, batch: usize) -> u64 {
    let mut now = from;
    let end = from + Duration::from_millis(ms);
    let mut bytes = 0;
    while now < end {
        match bucket.wait(now, rate) {
            Some(wait) => now += wait,
            None => {
                bucket.take(batch);
                bytes += batch as u64;
            }
        }
    }
    bytes
}

#[test]
fn no_more_leaves_than_rate_burst_and_one_batch() {
    for rate in [1_000, 100_000, 10_000_000, 1_000_000_000_u64] {
        for batch in [1_228, 14_800] {
            let got = sent(&mut Bucket::default(), Instant::now(), 2_000, rate, batch);
            let most = 2 * rate + rate / 200 + 2 * batch as u64;
            assert!(got <= most, "{rate}: {got} of {most}");
            assert!(got + 2 * batch as u64 >= 2 * rate, "{rate}: only {got}");
        }
    }
}

#[test]
fn silence_is_made_up_for_by_one_burst_only() {
    let mut bucket = Bucket::default();
    let start = Instant::now();
    sent(&mut bucket, start, 100, 1_000_000, 1_228);
    let later = start + Duration::from_secs(60);
    let got = sent(&mut bucket, later, 100, 1_000_000, 1_228);
    assert!(got <= 100_000 + 5_000 + 2 * 1_228, "{got}");
}

#[test]
fn a_change_holds_at_once_and_none_is_none() {
    let mut bucket = Bucket::default();
    let start = Instant::now();
    assert!(sent(&mut bucket, start, 1_000, 1_000_000, 1_228) <= 1_010_000);
    let slower = start + Duration::from_secs(1);
    assert!(sent(&mut bucket, slower, 1_000, 100_000, 1_228) <= 110_000);
    assert_eq!(bucket.wait(slower + Duration::from_secs(2), 0), None);
    bucket.take(1 << 30);
    assert_eq!(bucket.wait(slower + Duration::from_secs(2), 0), None);
}
