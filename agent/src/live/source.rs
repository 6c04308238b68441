//! A disk of a snapshot, as the engine reads it.
//!
//! Not an NBD client of its own. The invariant: a read that fails because the snapshot was given up
//! says why, and not that the disk is bad.

use super::freeze::WATCH_PERIOD;
use super::scratch::no_space;
use crate::error::{Error, Kind, Result};
use crate::source::{NbdSource, Source, SourceReader, Tracking};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Why a snapshot was given up while it was read; once it was.
pub(super) type Broken = Arc<OnceLock<String>>;

pub(super) struct LiveSource {
    pub(super) disk: NbdSource,
    pub(super) broken: Broken,
}

impl Source for LiveSource {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn describe(&self) -> String {
        self.disk.describe()
    }

    fn tracking(&self) -> Tracking {
        self.disk.tracking()
    }

    fn reader(&self) -> Result<Box<dyn SourceReader>> {
        let reader = self
            .disk
            .reader()
            .map_err(|error| explain(error, &self.broken))?;
        Ok(Box::new(LiveReader {
            reader,
            broken: Arc::clone(&self.broken),
        }))
    }
}

struct LiveReader {
    reader: Box<dyn SourceReader>,
    broken: Broken,
}

impl SourceReader for LiveReader {
    fn allocation(&mut self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        self.reader
            .allocation(range)
            .map_err(|error| explain(error, &self.broken))
    }

    fn changes(&mut self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        self.reader
            .changes(range)
            .map_err(|error| explain(error, &self.broken))
    }

    fn prefetch(&mut self, range: Range<u64>) {
        self.reader.prefetch(range);
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.reader
            .read_at(offset, buffer)
            .map_err(|error| explain(error, &self.broken))
    }
}

fn explain(error: Error, broken: &Broken) -> Error {
    // QEMU refuses to read a snapshot that it had to break in favour of the guest's writes.
    let refused = matches!(error.kind(), Kind::Denied | Kind::BadInput);
    if refused && broken.get().is_none() {
        // Whoever watches the scratch space will know why in a moment.
        std::thread::sleep(3 * WATCH_PERIOD);
    }
    match broken.get() {
        Some(why) => no_space(why.clone()).caused_by(error),
        None if refused => Error::new(
            Kind::Unavailable,
            format!(
                "{error}: its scratch space may be too slow, so that QEMU had to break the snapshot"
            ),
        )
        .caused_by(error),
        None => error,
    }
}
