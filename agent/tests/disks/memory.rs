//! A disk in memory, to be shown over NBD.

use super::pattern;
use async_trait::async_trait;
use bytes::Bytes;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tidegate_agent::error::Result;
use tidegate_agent::nbd::server::Export;
use tidegate_agent::{Error, Kind};

/// A disk in memory whose data extents are known, and that counts what is held of it.
pub struct Memory {
    pub bytes: Vec<u8>,
    pub data: Vec<Range<u64>>,
    pub reading_bytes: AtomicU64,
    pub reading_bytes_most: AtomicU64,
    pub delay: Duration,
    pub bad: Option<Range<u64>>,
}

impl Memory {
    pub fn new(size: u64, data: &[Range<u64>]) -> Self {
        let mut bytes = vec![0; usize::try_from(size).unwrap()];
        for extent in data {
            let place =
                usize::try_from(extent.start).unwrap()..usize::try_from(extent.end).unwrap();
            let content = pattern(extent.start, place.len());
            bytes[place].copy_from_slice(&content);
        }
        Self {
            bytes,
            data: data.to_vec(),
            reading_bytes: AtomicU64::new(0),
            reading_bytes_most: AtomicU64::new(0),
            delay: Duration::ZERO,
            bad: None,
        }
    }
}

#[async_trait]
impl Export for Memory {
    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    async fn allocation(&self, range: Range<u64>) -> Result<Vec<(Range<u64>, bool)>> {
        let mut parts = Vec::new();
        let mut at = range.start;
        for extent in &self.data {
            let extent = extent.start.max(range.start)..extent.end.min(range.end);
            if extent.is_empty() {
                continue;
            }
            if at < extent.start {
                parts.push((at..extent.start, false));
            }
            at = extent.end;
            parts.push((extent, true));
        }
        if at < range.end {
            parts.push((at..range.end, false));
        }
        Ok(parts)
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes> {
        let now = self
            .reading_bytes
            .fetch_add(length.into(), Ordering::SeqCst)
            + u64::from(length);
        self.reading_bytes_most.fetch_max(now, Ordering::SeqCst);
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        let end = offset + u64::from(length);
        let result = match &self.bad {
            Some(bad) if bad.start < end && offset < bad.end => {
                assert!(length != 7, "a bug, for the test");
                Err(Error::new(Kind::Corrupt, "pack 0123 is damaged"))
            }
            _ => {
                let place = usize::try_from(offset).unwrap()..usize::try_from(end).unwrap();
                Ok(Bytes::copy_from_slice(&self.bytes[place]))
            }
        };
        self.reading_bytes
            .fetch_sub(length.into(), Ordering::SeqCst);
        result
    }
}
