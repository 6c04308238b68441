//! The cutter: bytes in, pieces out.
//!
//! It keeps no bytes. The caller reads a range in windows into one buffer, hands the buffer over,
//! takes the pieces away, moves the unconsumed tail to the front and reads on behind it; the cutter
//! remembers how much of that tail it has looked at, so no block is looked at twice.
//!
//! Invariant: the same bytes give the same data pieces, however they are split into windows. (A hole
//! may be reported in several adjacent pieces, one a window, so that a hole of any size needs no
//! buffer.)

use super::block::{cut_hash, ends_in_zeros, is_zero};
use super::{BLOCK_BYTES, ChunkerParams};

/// A part of what a call of [`Cutter::cut`] consumed; lengths in bytes, never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// All zeros. A following piece may continue the same hole.
    Hole {
        /// Bytes.
        length: usize,
    },
    /// One chunk; holds a byte that is not zero.
    Data {
        /// Bytes, at most [`ChunkerParams::chunk_bytes_max`].
        length: usize,
    },
}

impl Piece {
    /// Bytes covered.
    pub fn length(self) -> usize {
        match self {
            Self::Hole { length } | Self::Data { length } => length,
        }
    }
}

/// Cuts one range after the other. Cheap to make, one a thread.
#[derive(Debug, Clone)]
pub struct Cutter {
    rule: Rule,
    /// Bytes of the chunk in hand: at the front of the next call's data, looked at already.
    in_hand: usize,
}

/// [`ChunkerParams`] in the shape the loop wants.
#[derive(Debug, Clone, Copy)]
enum Rule {
    BlockAligned {
        min: usize,
        max: usize,
        /// Above every length where the end-of-file cut is off.
        eof_min: usize,
        mask: u64,
        seed: u64,
    },
    Fixed {
        chunk: usize,
    },
}

impl Cutter {
    /// A cutter at the start of a range. `params` must have passed [`ChunkerParams::validate`];
    /// `seed` comes from the repository's secret.
    pub fn new(params: &ChunkerParams, seed: u64) -> Self {
        let rule = match *params {
            ChunkerParams::BlockAligned {
                chunk_bytes_min,
                chunk_bytes_avg,
                chunk_bytes_max,
                eof_cut_bytes_min,
            } => Rule::BlockAligned {
                min: chunk_bytes_min as usize,
                max: chunk_bytes_max as usize,
                eof_min: match eof_cut_bytes_min {
                    0 => usize::MAX,
                    bytes => bytes as usize,
                },
                mask: (u64::from(chunk_bytes_avg) / BLOCK_BYTES as u64).saturating_sub(1),
                seed,
            },
            ChunkerParams::Fixed { chunk_bytes } => Rule::Fixed {
                chunk: chunk_bytes as usize,
            },
        };
        Self { rule, in_hand: 0 }
    }

    /// Cuts `data`, which continues right behind what the last call consumed: what that call left
    /// is presented again at the front. `last` says that the range ends where `data` ends;
    /// everything is consumed then, and the next call starts a new range.
    ///
    /// Appends to `pieces`, in order, exactly covering what is consumed, and returns that length. It
    /// is more than zero whenever `data` is at least [`ChunkerParams::chunk_bytes_max`] long, so a
    /// buffer of that size plus a window always moves on.
    pub fn cut(&mut self, data: &[u8], last: bool, pieces: &mut Vec<Piece>) -> usize {
        match self.rule {
            Rule::BlockAligned {
                min,
                max,
                eof_min,
                mask,
                seed,
            } => {
                // A caller that broke the contract gets other cuts, not a panic.
                debug_assert!(
                    self.in_hand <= data.len(),
                    "the tail was not presented again"
                );
                let in_hand = self.in_hand.min(data.len());
                let ends_chunk = |length: usize, block: &[u8]| {
                    length >= max
                        || (length >= eof_min && ends_in_zeros(block))
                        || (length >= min && cut_hash(block, seed) & mask == 0)
                };
                let consumed = cut_blocks(data, in_hand, last, ends_chunk, pieces);
                self.in_hand = if last {
                    0
                } else {
                    (data.len() - consumed) / BLOCK_BYTES * BLOCK_BYTES
                };
                consumed
            }
            Rule::Fixed { chunk } => cut_fixed(data, chunk, last, pieces),
        }
    }
}

/// Cuts at the blocks that `ends_chunk` names (given the length of the chunk that would end there),
/// and around holes. The first `in_hand` bytes are whole blocks of one chunk, looked at before.
fn cut_blocks(
    data: &[u8],
    in_hand: usize,
    last: bool,
    ends_chunk: impl Fn(usize, &[u8]) -> bool,
    pieces: &mut Vec<Piece>,
) -> usize {
    // data: | pieces given | chunk or hole in hand | to be looked at |
    //       0            start                    at
    let mut start = 0;
    let mut at = in_hand;
    let mut hole = false;
    for block in data[in_hand..].chunks(BLOCK_BYTES) {
        if block.len() < BLOCK_BYTES && !last {
            break; // the rest of this block comes with the next window
        }
        let zero = is_zero(block);
        if zero != hole {
            push(pieces, hole, at - start);
            start = at;
            hole = zero;
        }
        at += block.len();
        if !zero && ends_chunk(at - start, block) {
            push(pieces, false, at - start);
            start = at;
        }
    }
    // A hole needs nobody's bytes: it is given away at once.
    if hole || last {
        push(pieces, hole, at - start);
        start = at;
    }
    start
}

/// Cuts every `chunk` bytes.
fn cut_fixed(data: &[u8], chunk: usize, last: bool, pieces: &mut Vec<Piece>) -> usize {
    let mut consumed = 0;
    for bytes in data.chunks(chunk) {
        if bytes.len() < chunk && !last {
            break;
        }
        push(pieces, is_zero(bytes), bytes.len());
        consumed += bytes.len();
    }
    consumed
}

fn push(pieces: &mut Vec<Piece>, hole: bool, length: usize) {
    if length == 0 {
        return;
    }
    pieces.push(if hole {
        Piece::Hole { length }
    } else {
        Piece::Data { length }
    });
}
