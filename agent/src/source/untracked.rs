//! A disk whose changes are not known this time, though they mostly are.

use super::{Source, SourceReader, Tracking};
use crate::error::Result;
use std::sync::Arc;

/// A source of which it is said why it is read whole.
pub struct WithoutTracking {
    source: Arc<dyn Source>,
    why: String,
}

impl WithoutTracking {
    /// The same disk, and why nothing is known of changes.
    pub fn new(source: Arc<dyn Source>, why: &str) -> Self {
        Self {
            source,
            why: why.to_owned(),
        }
    }
}

impl Source for WithoutTracking {
    fn size_bytes(&self) -> u64 {
        self.source.size_bytes()
    }

    fn describe(&self) -> String {
        self.source.describe()
    }

    fn reader(&self) -> Result<Box<dyn SourceReader>> {
        self.source.reader()
    }

    fn tracking(&self) -> Tracking {
        Tracking::Lost(self.why.clone())
    }

    fn check_unwritten(&self) -> Result<()> {
        self.source.check_unwritten()
    }
}
