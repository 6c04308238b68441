//! What the chunker promises, at sizes that matter.

#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use proptest::prelude::*;

const KIB: u32 = 1024;

fn params() -> ChunkerParams {
    ChunkerParams::BlockAligned {
        chunk_bytes_min: 8 * KIB,
        chunk_bytes_avg: 16 * KIB,
        chunk_bytes_max: 32 * KIB,
        eof_cut_bytes_min: 8 * KIB,
    }
}

fn fixed() -> ChunkerParams {
    ChunkerParams::Fixed {
        chunk_bytes: 16 * KIB,
    }
}

/// What a block of a generated disk holds.
#[derive(Debug, Clone, Copy)]
enum Block {
    Zero,
    /// Bytes from a seed.
    Data(u8),
    /// The same, with eight zeros at the end.
    Tail(u8),
    /// Zero but for its last byte: the dearest case of the zero test.
    LastByte,
}

fn block() -> impl Strategy<Value = Block> {
    prop_oneof![
        3 => Just(Block::Zero),
        8 => any::<u8>().prop_map(Block::Data),
        2 => any::<u8>().prop_map(Block::Tail),
        1 => Just(Block::LastByte),
    ]
}

fn bytes_of(blocks: &[Block], short: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(blocks.len() * BLOCK_BYTES);
    for block in blocks {
        let mut raw = [0; BLOCK_BYTES];
        match *block {
            Block::Zero => {}
            Block::Data(seed) | Block::Tail(seed) => {
                let mut hash = blake3::Hasher::new();
                hash.update(&[seed]);
                hash.finalize_xof().fill(&mut raw);
                raw[BLOCK_BYTES - 1] |= 1;
                if matches!(block, Block::Tail(_)) {
                    raw[BLOCK_BYTES - 8..].fill(0);
                }
            }
            Block::LastByte => raw[BLOCK_BYTES - 1] = 1,
        }
        bytes.extend_from_slice(&raw);
    }
    bytes.truncate(bytes.len().saturating_sub(short));
    bytes
}

/// Cuts the way the engine does: windows into one buffer, the tail carried to its front.
fn cut_in_windows(params: &ChunkerParams, data: &[u8], windows: &[usize]) -> Vec<Piece> {
    let mut cutter = Cutter::new(params, 7);
    let mut pieces = Vec::new();
    let mut buffer = Vec::new();
    let mut windows = windows.iter().copied().cycle();
    let mut read = 0;
    loop {
        let window = windows.next().unwrap_or(data.len()).min(data.len() - read);
        buffer.extend_from_slice(&data[read..read + window]);
        read += window;
        let last = read == data.len();
        let before = pieces.len();
        let consumed = cutter.cut(&buffer, last, &mut pieces);
        let covered: usize = pieces[before..].iter().map(|piece| piece.length()).sum();
        assert_eq!(covered, consumed, "pieces cover what is consumed");
        assert!(
            consumed > 0 || buffer.len() < params.chunk_bytes_max() as usize,
            "a full buffer moves on"
        );
        buffer.drain(..consumed);
        if last {
            assert!(buffer.is_empty(), "the last window is consumed");
            return joined(pieces);
        }
    }
}

/// Adjacent holes as one.
fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut joined: Vec<Piece> = Vec::new();
    for piece in pieces {
        match (joined.last_mut(), piece) {
            (Some(Piece::Hole { length }), Piece::Hole { length: more }) => *length += more,
            _ => joined.push(piece),
        }
    }
    joined
}

fn with_bytes<'a>(pieces: &[Piece], data: &'a [u8]) -> Vec<(Piece, &'a [u8])> {
    let mut rest = data;
    pieces
        .iter()
        .map(|piece| {
            let (bytes, behind) = rest.split_at(piece.length());
            rest = behind;
            (*piece, bytes)
        })
        .collect()
}

fn zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn windows_do_not_matter(
        blocks in prop::collection::vec(block(), 0..120),
        short in 0..BLOCK_BYTES,
        windows in prop::collection::vec(1..100_000_usize, 1..8),
        is_fixed in any::<bool>(),
    ) {
        let params = if is_fixed { fixed() } else { params() };
        let data = bytes_of(&blocks, short);
        let at_once = cut_in_windows(&params, &data, &[data.len().max(1)]);
        prop_assert_eq!(cut_in_windows(&params, &data, &windows), at_once);
    }

    #[test]
    fn pieces_keep_their_promises(
        blocks in prop::collection::vec(block(), 0..120),
        short in 0..BLOCK_BYTES,
    ) {
        let data = bytes_of(&blocks, short);
        let pieces = cut_in_windows(&params(), &data, &[data.len().max(1)]);
        let pieces = with_bytes(&pieces, &data);
        prop_assert_eq!(pieces.iter().map(|(_, bytes)| bytes.len()).sum::<usize>(), data.len());
        for (index, (piece, bytes)) in pieces.iter().enumerate() {
            let is_last = index + 1 == pieces.len();
            match piece {
                Piece::Hole { length } => {
                    prop_assert!(zero(bytes));
                    prop_assert!(is_last || length % BLOCK_BYTES == 0);
                }
                Piece::Data { length } => {
                    prop_assert!(bytes.chunks(BLOCK_BYTES).all(|block| !zero(block)));
                    prop_assert!(*length <= 32 << 10);
                    prop_assert!(is_last || length % BLOCK_BYTES == 0);
                    let before_hole =
                        matches!(pieces.get(index + 1), Some((Piece::Hole { .. }, _)));
                    if *length < 8 << 10 {
                        prop_assert!(is_last || before_hole, "a short chunk of {length} bytes");
                    }
                    // No end of file from the minimum on lies inside a chunk.
                    let inside = &bytes[..(length - 1) / BLOCK_BYTES * BLOCK_BYTES];
                    for block in inside.chunks(BLOCK_BYTES).skip(1) {
                        prop_assert!(!zero(&block[BLOCK_BYTES - 8..]));
                    }
                }
            }
        }
    }

    #[test]
    fn content_moved_by_whole_blocks_is_found_again(
        seeds in prop::collection::vec(any::<u32>(), 256),
        shift in 1..16_usize,
    ) {
        let content: Vec<u8> = seeds.iter().flat_map(|seed| {
            let mut raw = [0; BLOCK_BYTES];
            blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut raw);
            raw
        }).collect();
        let moved = [bytes_of(&vec![Block::Data(9); shift], 0), content.clone()].concat();
        let here = cut_in_windows(&params(), &content, &[1 << 20]);
        let there = cut_in_windows(&params(), &moved, &[1 << 20]);
        let ids = |pieces: &[Piece], data: &[u8]| -> Vec<blake3::Hash> {
            with_bytes(pieces, data).iter().map(|(_, bytes)| blake3::hash(bytes)).collect()
        };
        let (here, there) = (ids(&here, &content), ids(&there, &moved));
        let common = here.iter().rev().zip(there.iter().rev()).take_while(|(a, b)| a == b).count();
        // With cuts by chance, the two run alike after a few chunks; 256 blocks are some fifty.
        prop_assert!(common * 2 > here.len(), "{common} of {} chunks found again", here.len());
    }

    #[test]
    fn what_is_known_to_be_a_hole_need_not_be_read(
        blocks in prop::collection::vec(block(), 1..120),
        short in 0..BLOCK_BYTES,
        start in 0..1_u64 << 40,
        ragged in prop::collection::vec(0..4096_u64, 120),
        is_fixed in any::<bool>(),
    ) {
        let params = if is_fixed { fixed() } else { params() };
        let data = bytes_of(&blocks, short);
        let range = start..start + data.len() as u64;
        // What a source with an odd granularity would report: no more than it must, so that runs
        // have to be rounded out to be right.
        let allocation: Vec<_> = data.chunks(BLOCK_BYTES).zip(&ragged).enumerate().filter_map(|(index, (block, ragged))| {
            let first = block.iter().position(|&byte| byte != 0)? as u64;
            let last = block.iter().rposition(|&byte| byte != 0)? as u64;
            let at = start + (index * BLOCK_BYTES) as u64;
            Some(at + first.saturating_sub(*ragged)..at + last + 1)
        }).collect();
        let runs = allocated_runs(range.clone(), &allocation, params.grain_bytes());
        let mut pieces = Vec::new();
        let mut at = range.start;
        let within = |offset: u64| usize::try_from(offset - start).unwrap();
        for run in runs {
            prop_assert!(run.start >= at && !run.is_empty() && run.end <= range.end);
            if run.start > at {
                pieces.push(Piece::Hole { length: within(run.start) - within(at) });
            }
            pieces.extend(cut_in_windows(&params, &data[within(run.start)..within(run.end)], &[50_000]));
            at = run.end;
        }
        if at < range.end {
            pieces.push(Piece::Hole { length: within(range.end) - within(at) });
        }
        prop_assert_eq!(joined(pieces), cut_in_windows(&params, &data, &[50_000]));
    }

    #[test]
    fn ranges_tile_the_span_on_the_grids(
        // Gap before the partition and its length, in sectors.
        table in prop::collection::vec((0..100_u64, 1..100_u64), 0..12),
        start in 0..600_000_u64,
        length in 1..600_000_u64,
    ) {
        let disk_bytes = 2_000_000;
        let mut at = 512;
        let mut regions = Vec::new();
        for (gap, sectors) in table {
            let start = at + gap * 512;
            let end = start + sectors * 512;
            regions.push(Region { start, end, phase: start % 4096 });
            at = end;
        }
        let span = start..(start + length).min(disk_bytes);
        let ranges = cut_ranges(span.clone(), &regions);
        let phase_at = |offset: u64| {
            regions.iter().find(|r| (r.start..r.end).contains(&offset)).map_or(0, |r| r.phase)
        };
        let mut at = span.start;
        for range in &ranges {
            prop_assert_eq!(range.start, at);
            prop_assert!(!range.is_empty());
            let on_grid = range.start % 4096 == phase_at(range.start);
            prop_assert!(on_grid || range.end - range.start < 4096);
            prop_assert_eq!(phase_at(range.start), phase_at(range.end - 1));
            at = range.end;
        }
        prop_assert_eq!(at, span.end);
    }
}

#[test]
fn a_partition_off_the_grid_is_cut_as_if_it_were_on_it() {
    let blocks: Vec<_> = (0..=255).map(Block::Data).collect();
    let content = bytes_of(&blocks, 0);
    let expected = with_bytes(&cut_in_windows(&params(), &content, &[1 << 20]), &content)
        .iter()
        .map(|(_, bytes)| bytes.to_vec())
        .collect::<Vec<_>>();

    let start = 63 * 512;
    let end = start + content.len();
    let mut disk = vec![1; start];
    disk.extend_from_slice(&content);
    disk.extend_from_slice(&[2; 1000]);
    let regions = [Region {
        start: start as u64,
        end: end as u64,
        phase: (start % 4096) as u64,
    }];
    let mut chunks = Vec::new();
    for range in cut_ranges(0..disk.len() as u64, &regions) {
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        let data = &disk[range];
        let pieces = cut_in_windows(&params(), data, &[1 << 20]);
        chunks.extend(
            with_bytes(&pieces, data)
                .iter()
                .map(|(_, bytes)| bytes.to_vec()),
        );
    }
    let first = chunks
        .iter()
        .position(|chunk| *chunk == expected[0])
        .unwrap();
    assert_eq!(chunks[first..first + expected.len()], expected);
}

#[test]
fn a_cut_falls_where_a_file_ends_from_the_minimum_on() {
    // One block is too little to cut (8 KiB at least), three blocks are enough.
    let blocks = [
        Block::Tail(1),
        Block::LastByte,
        Block::Tail(2),
        Block::LastByte,
    ];
    let none = ChunkerParams::BlockAligned {
        chunk_bytes_min: 32 * KIB,
        chunk_bytes_avg: 32 * KIB,
        chunk_bytes_max: 32 * KIB,
        eof_cut_bytes_min: 8 * KIB,
    };
    assert_eq!(
        cut_in_windows(&none, &bytes_of(&blocks, 0), &[usize::MAX]),
        [Piece::Data { length: 12288 }, Piece::Data { length: 4096 }]
    );
}

#[test]
fn cuts_are_part_of_the_format() {
    // Golden: whoever changes these numbers loses the dedupe against every stored disk.
    let blocks: Vec<_> = (0..64).map(Block::Data).collect();
    let lengths: Vec<_> = cut_in_windows(&params(), &bytes_of(&blocks, 0), &[usize::MAX])
        .iter()
        .map(|piece| piece.length() / BLOCK_BYTES)
        .collect();
    assert_eq!(
        lengths,
        [3, 6, 2, 3, 2, 3, 7, 4, 6, 4, 5, 8, 2, 2, 2, 2, 3],
        "blocks a chunk"
    );
}

#[test]
fn the_seed_moves_the_cuts() {
    let data = bytes_of(&(0..255).map(Block::Data).collect::<Vec<_>>(), 0);
    let cut = |seed| {
        let mut pieces = Vec::new();
        Cutter::new(&params(), seed).cut(&data, true, &mut pieces);
        pieces
    };
    assert_ne!(cut(1), cut(2));
}

#[test]
fn bounds_are_checked() {
    let aligned = |min, avg, max, eof| {
        ChunkerParams::BlockAligned {
            chunk_bytes_min: min * KIB,
            chunk_bytes_avg: avg * KIB,
            chunk_bytes_max: max * KIB,
            eof_cut_bytes_min: eof * KIB,
        }
        .validate()
        .is_ok()
    };
    assert!(aligned(8, 64, 256, 8));
    assert!(aligned(16, 32, 64, 0));
    assert!(aligned(4, 4, 4, 4));
    assert!(aligned(4096, 4096, 4096, 0));
    assert!(!aligned(0, 64, 256, 8), "no minimum");
    assert!(!aligned(8, 48, 256, 8), "average no power of two");
    assert!(!aligned(8, 64, 32, 8), "average above maximum");
    assert!(!aligned(64, 32, 32, 8), "minimum above maximum");
    assert!(!aligned(8, 64, 8192, 8), "above the limit");
    assert!(!aligned(8, 64, 256, 260), "end-of-file cut above maximum");
    assert!(!aligned(9, 64, 256, 8), "minimum off the grid");
    let fixed = |bytes| {
        ChunkerParams::Fixed { chunk_bytes: bytes }
            .validate()
            .is_ok()
    };
    assert!(fixed(4096) && fixed(4 << 20));
    assert!(!fixed(0) && !fixed(2048) && !fixed(12288) && !fixed(8 << 20));
}

#[test]
fn zero_is_told_at_every_length_and_place() {
    for length in [0, 1, 7, 8, 255, 256, 257, 4095, 4096] {
        let mut bytes = vec![0; length];
        assert!(block::is_zero(&bytes));
        for at in 0..length {
            bytes[at] = 1;
            assert!(!block::is_zero(&bytes), "byte {at} of {length}");
            bytes[at] = 0;
        }
    }
}
