//! Disks to write: where the way back puts its bytes.

mod bytes;
pub(crate) mod convert;
mod device;
mod file;
mod filling;

pub use bytes::BytesTarget;
pub use convert::{ConvertSettings, convert};
pub use device::open_in_place;
pub use file::{PARTIAL_SUFFIX, create_file, partial_path, resume_partial};

use crate::error::Result;
use std::ops::Range;

/// A disk being written. Shared by the writing threads; blocking, never called on a runtime thread.
pub trait Target: Send + Sync {
    /// What the operator would recognise.
    fn describe(&self) -> String;

    /// True where every byte not yet written is known to read as zero (a new sparse file).
    fn reads_zero(&self) -> bool;

    /// Fills `buffer` with what the target holds at `offset`.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// The extents inside `range` that may hold something else than zeros: sorted, disjoint, not
    /// empty, clipped to `range`. Lets a restore that compares skip the holes of a sparse target.
    fn allocation(&self, range: Range<u64>) -> Result<Vec<Range<u64>>>;

    /// Says that these ranges are about to be written, whatever they hold: sorted, disjoint. A target may
    /// make room for them, so that a lack of it shows before anything is fetched.
    ///
    /// # Errors
    /// [`Kind::NoSpace`](crate::error::Kind::NoSpace) when they do not fit.
    fn reserve(&self, ranges: &[Range<u64>]) -> Result<()> {
        let _ = ranges;
        Ok(())
    }

    /// Writes `bytes` at `offset`.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Makes `range` read as zeros, by a hole where the target can.
    fn write_zeros(&self, range: Range<u64>) -> Result<()>;

    /// Makes everything durable and gives the target its final name. Until then a new target is
    /// recognisable as unfinished. The last call: nothing may be written afterwards.
    fn finish(&self) -> Result<()>;
}
