//! Does the tracker tell the truth? A random sample of what it calls unchanged is read all the same and
//! compared with the parent point.
//!
//! Compared by names: whoever backs up cannot read what was stored. So only whole chunks count, and
//! holes in which there is something to read.

use super::worker::Parent;
use crate::clock;
use crate::error::{Error, Result};
use crate::repository::{Repository, local_denied};
use crate::source::{Source, SourceReader};
use std::ops::Range;
use tidegate_protocol::keys::ChunkNamer;
use tidegate_protocol::limits::{BLOCK_BYTES, LEAF_BYTES};
use tidegate_protocol::page::Leaf;
use tokio::runtime::Handle;

/// What is read at one place, at least.
const PICK_BYTES: u64 = 64 << 10;
/// The most that is read in a run.
const AUDIT_BYTES_MAX: u64 = 256 << 20;
const MILLION: u64 = 1_000_000;

/// What an audit came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Audit {
    /// Blocks of 4 KiB that were called unchanged, and compared.
    pub(super) blocks: u64,
    /// Chunks among them that had changed; holes in which there was something count as one.
    pub(super) false_chunks: u64,
}

/// The chance that a tracker which keeps quiet about one block in a thousand has been caught, when
/// `blocks` were compared at random.
pub fn caught(blocks: u64) -> f64 {
    1.0 - (-0.001_f64).ln_1p().mul_add(blocks as f64, 0.0).exp()
}

/// Compares a sample of `share_ppm` millionths of the disk. Blocking.
pub(super) fn audit(
    repository: &Repository,
    runtime: &Handle,
    source: &dyn Source,
    parent: &Parent,
    share_ppm: u32,
) -> Result<Audit> {
    let namer = repository.keys().chunk_namer();
    let namer = namer.map_err(|error| local_denied(&error))?;
    let size_bytes = source.size_bytes().min(parent.size_bytes);
    let picks = picks(clock::random()?, size_bytes, share_ppm);
    let mut auditor = Auditor {
        reader: source.reader()?,
        namer,
        buffer: Vec::new(),
        audit: Audit::default(),
    };
    let mut picks = picks.into_iter().peekable();
    while let Some(first) = picks.next() {
        let index = first / LEAF_BYTES;
        let range = index * LEAF_BYTES..((index + 1) * LEAF_BYTES).min(size_bytes);
        let mut here = vec![first];
        while let Some(next) = picks.next_if(|next| next / LEAF_BYTES == index) {
            here.push(next);
        }
        let changes = auditor.reader.changes(range.clone())?;
        match runtime.block_on(parent.tree.leaf(index))? {
            Some((_, leaf)) => auditor.leaf(&range, &leaf, &changes, &here)?,
            None => auditor.hole(&range, &changes)?,
        }
    }
    Ok(auditor.audit)
}

/// Where to look, in the order of the disk.
fn picks(seed: [u8; 32], size_bytes: u64, share_ppm: u32) -> Vec<u64> {
    if share_ppm == 0 || size_bytes == 0 {
        return Vec::new();
    }
    let share = size_bytes / MILLION * u64::from(share_ppm);
    let count = share.min(AUDIT_BYTES_MAX).div_ceil(PICK_BYTES).max(1);
    let mut random = blake3::Hasher::new_keyed(&seed).finalize_xof();
    let mut picks: Vec<u64> = (0..count)
        .map(|_| {
            let mut bytes = [0; 8];
            random.fill(&mut bytes);
            u64::from_le_bytes(bytes) % size_bytes
        })
        .collect();
    picks.sort_unstable();
    picks
}

struct Auditor {
    reader: Box<dyn SourceReader>,
    namer: ChunkNamer,
    buffer: Vec<u8>,
    audit: Audit,
}

impl Auditor {
    /// Compares whole chunks from each pick on.
    fn leaf(
        &mut self,
        range: &Range<u64>,
        leaf: &Leaf,
        changes: &[Range<u64>],
        picks: &[u64],
    ) -> Result<()> {
        let mut picks = picks.iter().copied().peekable();
        let mut left = 0;
        let mut at = range.start;
        for extent in &leaf.extents {
            let place = at..at + u64::from(extent.length);
            at = place.end;
            while picks.next_if(|pick| *pick < place.end).is_some() {
                left = PICK_BYTES;
            }
            if left == 0 || place.end > range.end || touches(changes, &place) {
                continue;
            }
            left = left.saturating_sub(u64::from(extent.length));
            match extent.slice {
                None => self.hole(&place, &[])?,
                Some(slice) if slice.offset == 0 && slice.location.length == extent.length => {
                    self.read(&place)?;
                    let is_false = self.namer.name(&self.buffer) != slice.chunk;
                    self.count(&place, is_false);
                }
                // A part of a chunk, whose rest is elsewhere.
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Looks whether there is something in what should be zeros: at the first of it.
    fn hole(&mut self, place: &Range<u64>, changes: &[Range<u64>]) -> Result<()> {
        let allocated = self.reader.allocation(place.clone())?;
        let unseen = allocated.iter().find(|part| !touches(changes, part));
        if let Some(part) = unseen {
            let part = part.start..part.end.min(part.start + PICK_BYTES);
            self.read(&part)?;
            let is_false = self.buffer.iter().any(|byte| *byte != 0);
            self.count(&part, is_false);
        }
        Ok(())
    }

    fn read(&mut self, place: &Range<u64>) -> Result<()> {
        let length = usize::try_from(place.end - place.start).unwrap_or(usize::MAX);
        self.buffer.resize(length, 0);
        self.reader.read_at(place.start, &mut self.buffer)
    }

    fn count(&mut self, place: &Range<u64>, is_false: bool) {
        self.audit.blocks += (place.end - place.start).div_ceil(BLOCK_BYTES.into());
        self.audit.false_chunks += u64::from(is_false);
        if is_false {
            tracing::error!(
                from = place.start,
                to = place.end,
                "the tracker calls unchanged what has changed"
            );
        }
    }
}

fn touches(changes: &[Range<u64>], place: &Range<u64>) -> bool {
    changes
        .iter()
        .any(|change| change.start < place.end && place.start < change.end)
}

/// Why the tracker of a disk was not believed.
pub(super) fn reason(audit: &Audit) -> String {
    format!(
        "its tracker is wrong: {} of what it called unchanged in a sample of {} blocks had changed",
        match audit.false_chunks {
            1 => "one chunk".to_owned(),
            many => format!("{many} chunks"),
        },
        audit.blocks
    )
}

/// A failure to audit is no reason to believe.
pub(super) fn failed(error: &Error) -> String {
    format!("its tracker could not be audited: {}", error.chain())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_are_a_share_of_the_disk_and_bounded() {
        let gib = 1 << 30;
        assert_eq!(picks([1; 32], 0, 1000).len(), 0);
        assert_eq!(picks([1; 32], gib, 0).len(), 0);
        assert_eq!(picks([1; 32], 4096, 1000).len(), 1);
        let some = picks([1; 32], gib, 1000);
        assert_eq!(some.len(), 17, "a thousandth of a GiB, in pieces of 64 KiB");
        assert!(some.is_sorted() && some.iter().all(|pick| *pick < gib));
        assert_ne!(some, picks([2; 32], gib, 1000));
        assert_eq!(picks([1; 32], gib << 20, 1000).len(), 4096);
    }

    #[test]
    fn the_chance_to_catch_grows_with_what_was_compared() {
        assert!(caught(0).abs() < 1e-9);
        assert!((caught(693) - 0.5).abs() < 0.001);
        assert!(caught(10_000) > 0.9999);
    }
}
