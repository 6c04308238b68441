//! Disks to read: what the way out takes its bytes from, and what is known of changes to them.

mod bytes;
mod nbd;
pub(crate) mod open;
mod raw;
mod untracked;

pub use bytes::BytesSource;
pub use nbd::{AHEAD_BYTES_MAX, Changes, NbdSource};
pub use open::{Memory, OpenSettings, Remembered, Snapshot, Stamp, open_snapshot, open_source};
pub use raw::RawSource;
pub use untracked::WithoutTracking;

use crate::error::Result;
use std::ops::Range;
use tidegate_protocol::ids::PointId;

/// A disk frozen at one moment. Shared by the reading threads, each of which opens its own reader.
pub trait Source: Send + Sync {
    /// Virtual size in bytes; any value, also zero and sizes that are no multiple of a sector.
    fn size_bytes(&self) -> u64;

    /// What the operator would recognise: the path, and the format where it is not raw.
    fn describe(&self) -> String;

    /// Opens a reader for one thread.
    fn reader(&self) -> Result<Box<dyn SourceReader>>;

    /// What is known of changes; see [`SourceReader::changes`].
    fn tracking(&self) -> Tracking {
        Tracking::Untracked
    }

    /// Whether what was read is one moment of the disk: asked when all was read, before a point is
    /// committed. Blocking.
    ///
    /// # Errors
    /// [`Kind::Conflict`](crate::Kind::Conflict) where it is known that somebody has written meanwhile.
    fn check_unwritten(&self) -> Result<()> {
        Ok(())
    }
}

/// What a source knows of what was written to the disk before the moment that it shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tracking {
    /// Nothing.
    Untracked,
    /// Everything since this recovery point.
    Since(PointId),
    /// Nothing that can be relied on, though it was to be known; why.
    Lost(String),
}

/// One thread's view of a [`Source`]. Blocking; never called on a runtime thread.
pub trait SourceReader: Send {
    /// The extents inside `range` that may hold data, sorted, disjoint, not empty, clipped to
    /// `range`. What lies between them reads as zeros. May name data that turns out to be zero.
    fn allocation(&mut self, range: Range<u64>) -> Result<Vec<Range<u64>>>;

    /// The extents inside `range` that may differ from the point that [`Source::tracking`] names,
    /// sorted, disjoint, not empty, clipped to `range`. What lies between them does not differ. Where
    /// nothing is known, the whole range may.
    fn changes(&mut self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        Ok(if range.is_empty() {
            Vec::new()
        } else {
            vec![range]
        })
    }

    /// Says that `range` will be read soon, front to back. A hint: it may do nothing.
    fn prefetch(&mut self, range: Range<u64>);

    /// Fills `buffer` from `offset`; the whole range lies inside the disk.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()>;
}
