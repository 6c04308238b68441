//! Something small that is stored like a disk.

use super::{Source, SourceReader};
use crate::error::{Error, Kind, Result};
use bytes::Bytes;
use std::ops::Range;

/// Bytes in memory.
#[derive(Debug, Clone)]
pub struct BytesSource {
    name: String,
    bytes: Bytes,
}

impl BytesSource {
    /// `name` is what the operator would recognise.
    pub fn new(name: &str, bytes: impl Into<Bytes>) -> Self {
        Self {
            name: name.to_owned(),
            bytes: bytes.into(),
        }
    }
}

impl Source for BytesSource {
    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn describe(&self) -> String {
        self.name.clone()
    }

    fn reader(&self) -> Result<Box<dyn SourceReader>> {
        Ok(Box::new(self.clone()))
    }
}

impl SourceReader for BytesSource {
    fn allocation(&mut self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        Ok(if range.is_empty() {
            Vec::new()
        } else {
            vec![range]
        })
    }

    fn prefetch(&mut self, _: Range<u64>) {}

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let part = usize::try_from(offset)
            .ok()
            .and_then(|start| self.bytes.get(start..start.checked_add(buffer.len())?));
        match part {
            Some(part) => {
                buffer.copy_from_slice(part);
                Ok(())
            }
            None => Err(Error::new(
                Kind::Bug,
                format!("a read at {offset} goes past the end of {}", self.name),
            )),
        }
    }
}
