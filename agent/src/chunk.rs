//! Where chunks end.
//!
//! File systems inside disk images allocate in blocks of 4 KiB, so content repeats at block
//! alignment and never in between. The chunker looks at whole blocks only:
//!
//! ```text
//! disk     |------ span 0 (64 MiB) ------|------ span 1 ------|---- ...
//! regions  |-gap-|---- partition 1 (its own block grid) ----|-gap-| ...
//! ranges   |-----|-----------------------|--|---------------|-----|      cut_ranges()
//! runs     |-----|   |------|    |-------|  |---------------|            allocated_runs()
//! pieces   |d|  h|   |d|d|d |    |d|h|d|d|  |d|d|d|h|d|d|d|d|            Cutter::cut()
//! ```
//!
//! 1. [`partition::regions`] reads the partition table once a disk: a partition that starts off the
//!    4 KiB grid shifts the grid.
//! 2. [`cut_ranges`] splits a span (64 MiB of the disk, the unit of parallel work) at the regions.
//!    A range is cut without regard to its neighbours, so a change re-cuts no more than its span.
//! 3. [`allocated_runs`] leaves out what the source knows to be a hole.
//! 4. [`Cutter::cut`] turns bytes into [`Piece`]s: holes, and data that ends where a block's hash
//!    or the end of a file says so.
//!
//! Nothing here does I/O but through a callback, allocates by input, or panics on any input. It does
//! not hash, store or know of repositories: identity of chunks is the business of those who call.
//!
//! Invariant: the pieces of a range depend on the parameters, the seed and the bytes of that range
//! alone: not on the sizes in which the bytes arrive, nor on what the source reports as allocated.
//! All of it is part of the repository's format: to change a cut is to lose the dedupe against
//! everything stored before.

mod block;
mod cutter;
pub mod partition;
mod span;

pub use cutter::{Cutter, Piece};
pub use partition::Region;
pub use span::{allocated_runs, cut_ranges};

use crate::error::{Error, Kind, Result};

/// The unit the chunker looks at: what file systems allocate.
pub const BLOCK_BYTES: usize = 4096;

/// A disk is cut in spans of this many bytes, each on its own.
pub const SPAN_BYTES: u64 = 64 << 20;

/// No chunk is longer, whatever the parameters: it bounds the buffers of all who handle chunks.
pub const CHUNK_BYTES_LIMIT: u32 = 4 << 20;

const BLOCK_BYTES_U32: u32 = 4096;
const _: () = assert!(BLOCK_BYTES_U32 as usize == BLOCK_BYTES);
const _: () = assert!(SPAN_BYTES.is_multiple_of(CHUNK_BYTES_LIMIT as u64));

/// How a repository cuts its disks. Chosen once, at the repository's creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkerParams {
    /// Content-defined, at block boundaries.
    BlockAligned {
        /// No cut by hash before this many bytes; a multiple of 4 KiB. Only holes, ends of files
        /// and the edges of ranges make shorter chunks.
        chunk_bytes_min: u32,
        /// Past the minimum, one cut by hash is expected in this many bytes; a power of two, from
        /// 4 KiB up, not above the maximum.
        chunk_bytes_avg: u32,
        /// A cut at this length at the latest; a multiple of 4 KiB, at most [`CHUNK_BYTES_LIMIT`].
        chunk_bytes_max: u32,
        /// With this many bytes in hand, a block whose last eight bytes are zero ends the chunk: it
        /// most likely is the tail of a file, so that chunks start where files start. A multiple of
        /// 4 KiB not above the maximum; 0 turns it off.
        eof_cut_bytes_min: u32,
    },
    /// Chunks of one size, for comparison and for guests that write in large fixed units. Only a
    /// chunk that is zero as a whole is a hole.
    Fixed {
        /// A power of two from 4 KiB to [`CHUNK_BYTES_LIMIT`].
        chunk_bytes: u32,
    },
}

impl ChunkerParams {
    /// Checks the bounds named at each field. Parameters of a repository come from its descriptor,
    /// that is, from outside: nothing else here may be called before this has passed.
    pub fn validate(&self) -> Result<()> {
        let wrong = |what: String| {
            Err(Error::new(
                Kind::Config,
                format!("chunker parameters: {what}"),
            ))
        };
        let block_multiple = |bytes: u32| {
            bytes.is_multiple_of(BLOCK_BYTES_U32)
                && (BLOCK_BYTES_U32..=CHUNK_BYTES_LIMIT).contains(&bytes)
        };
        match *self {
            Self::BlockAligned {
                chunk_bytes_min: min,
                chunk_bytes_avg: avg,
                chunk_bytes_max: max,
                eof_cut_bytes_min: eof,
            } => {
                for (name, bytes) in [("minimum", min), ("average", avg), ("maximum", max)] {
                    if !block_multiple(bytes) {
                        return wrong(format!(
                            "the {name} is {bytes} bytes, expected a multiple of 4096 of at most {CHUNK_BYTES_LIMIT}"
                        ));
                    }
                }
                if !avg.is_power_of_two() {
                    return wrong(format!(
                        "the average is {avg} bytes, expected a power of two"
                    ));
                }
                if min > max || avg > max {
                    return wrong(format!(
                        "minimum {min} and average {avg} must not exceed the maximum {max}"
                    ));
                }
                if eof != 0 && (!block_multiple(eof) || eof > max) {
                    return wrong(format!(
                        "the end-of-file cut starts at {eof} bytes, expected 0 or a multiple of 4096 of at most {max}"
                    ));
                }
                Ok(())
            }
            Self::Fixed { chunk_bytes } => {
                if !block_multiple(chunk_bytes) || !chunk_bytes.is_power_of_two() {
                    return wrong(format!(
                        "the fixed size is {chunk_bytes} bytes, expected a power of two from 4096 to {CHUNK_BYTES_LIMIT}"
                    ));
                }
                Ok(())
            }
        }
    }

    /// The longest chunk these parameters can make, in bytes.
    pub fn chunk_bytes_max(&self) -> usize {
        match *self {
            Self::BlockAligned {
                chunk_bytes_max, ..
            } => chunk_bytes_max as usize,
            Self::Fixed { chunk_bytes } => chunk_bytes as usize,
        }
    }

    /// The smallest unit that is told apart as hole or data: a block, or a whole fixed chunk.
    pub fn grain_bytes(&self) -> u64 {
        match *self {
            Self::BlockAligned { .. } => BLOCK_BYTES as u64,
            Self::Fixed { chunk_bytes } => u64::from(chunk_bytes),
        }
    }
}

#[cfg(test)]
mod tests;
