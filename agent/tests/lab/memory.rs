//! Disks and targets held in memory.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use tidegate_agent::Result;
use tidegate_agent::source::{Source, SourceReader};
use tidegate_agent::target::Target;

/// A disk in memory, which says when it is read.
#[derive(Clone)]
pub struct MemoryDisk {
    content: Arc<Vec<u8>>,
    on_read: Arc<dyn Fn() + Send + Sync>,
}

impl MemoryDisk {
    pub fn of(content: &[u8]) -> Arc<dyn Source> {
        Self::noticing(content, Arc::new(|| {}))
    }

    pub fn noticing(content: &[u8], on_read: Arc<dyn Fn() + Send + Sync>) -> Arc<dyn Source> {
        Arc::new(Self {
            content: Arc::new(content.to_vec()),
            on_read,
        })
    }
}

impl Source for MemoryDisk {
    fn size_bytes(&self) -> u64 {
        self.content.len() as u64
    }

    fn describe(&self) -> String {
        "a disk in memory".to_owned()
    }

    fn reader(&self) -> Result<Box<dyn SourceReader>> {
        Ok(Box::new(self.clone()))
    }
}

impl SourceReader for MemoryDisk {
    fn allocation(&mut self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        Ok(vec![range])
    }

    fn prefetch(&mut self, _: Range<u64>) {}

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        (self.on_read)();
        let start = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.content[start..start + buffer.len()]);
        Ok(())
    }
}

/// A target in memory, and whether it reads as zeros where nothing was written.
pub struct MemoryTarget(Mutex<Vec<u8>>, bool);

impl MemoryTarget {
    pub fn holding(content: Vec<u8>, reads_zero: bool) -> Arc<Self> {
        Arc::new(Self(Mutex::new(content), reads_zero))
    }

    pub fn content(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl Target for MemoryTarget {
    fn describe(&self) -> String {
        "a target in memory".to_owned()
    }

    fn reads_zero(&self) -> bool {
        self.1
    }

    fn allocation(&self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        Ok(vec![range])
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let start = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.0.lock().unwrap()[start..start + buffer.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let start = usize::try_from(offset).unwrap();
        self.0.lock().unwrap()[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn write_zeros(&self, range: Range<u64>) -> Result<()> {
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        self.0.lock().unwrap()[range].fill(0);
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        Ok(())
    }
}
