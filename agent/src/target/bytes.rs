//! Something small, restored into memory.

use super::Target;
use crate::error::{Error, Kind, Result};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// The largest content that is taken into memory, in bytes.
const BYTES_MAX: u64 = 64 << 20;

/// Bytes in memory; zeros where nothing was written.
#[derive(Debug)]
pub struct BytesTarget(Mutex<Vec<u8>>);

impl BytesTarget {
    /// Room for `size_bytes`.
    ///
    /// # Errors
    /// [`Kind::BadInput`] for more than 64 MiB.
    pub fn new(size_bytes: u64) -> Result<Self> {
        match usize::try_from(size_bytes) {
            Ok(length) if size_bytes <= BYTES_MAX => Ok(Self(Mutex::new(vec![0; length]))),
            _ => Err(Error::new(
                Kind::BadInput,
                format!(
                    "{size_bytes} bytes are more than is taken into memory: at most {BYTES_MAX}"
                ),
            )),
        }
    }

    /// What was written.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes().clone()
    }

    fn bytes(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn within(bytes: &mut [u8], offset: u64, length: u64) -> Result<&mut [u8]> {
    let part = offset
        .checked_add(length)
        .and_then(|end| Some(usize::try_from(offset).ok()?..usize::try_from(end).ok()?));
    part.and_then(|part| bytes.get_mut(part))
        .ok_or_else(|| Error::new(Kind::Bug, "a write goes past the end of a file in memory"))
}

impl Target for BytesTarget {
    fn describe(&self) -> String {
        "memory".to_owned()
    }

    fn reads_zero(&self) -> bool {
        true
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut bytes = self.bytes();
        buffer.copy_from_slice(within(&mut bytes, offset, buffer.len() as u64)?);
        Ok(())
    }

    fn allocation(&self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        Ok(if range.is_empty() {
            Vec::new()
        } else {
            vec![range]
        })
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        within(&mut self.bytes(), offset, bytes.len() as u64)?.copy_from_slice(bytes);
        Ok(())
    }

    fn write_zeros(&self, range: Range<u64>) -> Result<()> {
        let length = range.end.saturating_sub(range.start);
        within(&mut self.bytes(), range.start, length)?.fill(0);
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        Ok(())
    }
}
