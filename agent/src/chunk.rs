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

pub(crate) use block::is_zero;
pub use cutter::{Cutter, Piece};
pub use partition::Region;
pub use span::{allocated_runs, cut_ranges};

pub use tidegate_protocol::descriptor::ChunkerParams;
pub use tidegate_protocol::limits::SPAN_BYTES;

/// The unit the chunker looks at: what file systems allocate.
pub const BLOCK_BYTES: usize = tidegate_protocol::limits::BLOCK_BYTES as usize;

#[cfg(test)]
mod tests;
