//! Generated cycles against the bytes they should come to.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::repository::tree::overlay::Advance;
use proptest::prelude::*;
use tidegate_protocol::ids::{ChunkId, PackId};
use tidegate_protocol::pack::Location;

fn slice(cycle: u16) -> Slice {
    let mut name = [0; 32];
    name[..2].copy_from_slice(&cycle.to_le_bytes());
    Slice {
        chunk: ChunkId(name),
        offset: 0,
        location: Location {
            pack: PackId([7; 32]),
            frame_offset: 72,
            frame_bytes: 1 << 20,
            offset_in_frame: 0,
            length: 1 << 20,
        },
    }
}

/// Blocks of one cycle, in order.
fn cycle(number: u16, blocks: &[u64]) -> Laid {
    let mut blocks = blocks.to_vec();
    blocks.sort_unstable();
    blocks.dedup();
    (0..)
        .zip(blocks)
        .map(|(nth, block)| Run {
            range: block * 4096..(block + 1) * 4096,
            content: (block % 7 != 0).then(|| slice(number)).advanced(nth * 4096),
        })
        .collect()
}

fn runs(page: &Delta) -> Laid {
    page.extents
        .iter()
        .map(|extent| Run {
            range: extent.start..extent.end(),
            content: extent.slice,
        })
        .collect()
}

/// Goes on from a disk's pages by one cycle.
fn go_on(pages_before: &mut Vec<Laid>, new: Laid) -> usize {
    let (keep, written) = pages(pages_before, new).unwrap();
    pages_before.truncate(keep);
    pages_before.extend(written.iter().map(runs));
    written.iter().map(|page| page.extents.len()).sum()
}

fn bytes_of(laid: &[Run<Option<Slice>>]) -> Vec<(u64, Option<Slice>)> {
    laid.iter()
        .flat_map(|run| {
            let blocks = (run.range.end - run.range.start) / 4096;
            (0..blocks).map(|block| {
                (
                    run.range.start + block * 4096,
                    run.content.advanced(block * 4096),
                )
            })
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_was_laid_is_lost(cycles in proptest::collection::vec(proptest::collection::vec(0..300_u64, 0..40), 1..40)) {
        let mut kept: Vec<Laid> = Vec::new();
        let mut expected = Laid::new();
        for (number, blocks) in (0..).zip(&cycles) {
            let new = cycle(number, blocks);
            expected = lay_over(&expected, &new);
            go_on(&mut kept, new);
            prop_assert!(kept.len() <= DELTA_PAGES_MAX);
            let mut found = Laid::new();
            for page in &kept {
                found = lay_over(&found, page);
            }
            prop_assert_eq!(bytes_of(&found), bytes_of(&expected));
        }
    }
}

#[test]
fn pages_stay_few_and_are_seldom_written_again() {
    let mut kept = Vec::new();
    let mut written = 0;
    let mut new = 0;
    // 1,500 cycles of 64 blocks, each elsewhere: nearly as much as is laid over a tree at all.
    for number in 0..1500 {
        let first = u64::from(number) * 128;
        let blocks: Vec<u64> = (0..64).map(|block| first + block * 2).collect();
        new += blocks.len();
        written += go_on(&mut kept, cycle(number, &blocks));
        assert!(kept.len() <= DELTA_PAGES_MAX, "{number}: {}", kept.len());
    }
    assert!(
        written < 8 * new,
        "{written} extents were written for {new} new ones"
    );
}

#[test]
fn a_cycle_without_changes_writes_nothing() {
    let old = vec![cycle(0, &[1, 2, 9])];
    let (keep, written) = pages(&old, Laid::new()).unwrap();
    assert_eq!((keep, written.len()), (1, 0));
}

#[test]
fn long_holes_are_parted_and_neighbours_joined() {
    let hole = Run {
        range: 0..3 * EXTENT_BYTES_MAX + 4096,
        content: None,
    };
    let (_, written) = pages(&[], vec![hole]).unwrap();
    assert_eq!(written[0].extents.len(), 4);
    let blocks = [1, 2, 3, 4, 5];
    let (_, written) = pages(&[], cycle(3, &blocks)).unwrap();
    assert_eq!(
        written[0].extents.len(),
        1,
        "one run of a chunk is one extent"
    );
}
