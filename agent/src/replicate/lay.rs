//! What is laid over a disk's tree: which delta pages stay, and which are written.
//!
//! Each cycle adds a page. A page that is not much larger than all newer ones together is written again
//! with them, so that pages double in size from the newest to the oldest: there are few, and each
//! extent is written again a few times at most.

use crate::error::{Error, Kind, Result};
use crate::repository::tree::overlay::{Run, lay_over};
use tidegate_protocol::limits::{DELTA_EXTENTS_MAX, DELTA_PAGES_MAX};
use tidegate_protocol::page::{Delta, DeltaExtent, Slice};

/// The longest extent of a delta page: holes may be longer than a length can say.
const EXTENT_BYTES_MAX: u64 = 1 << 30;

type Laid = Vec<Run<Option<Slice>>>;

/// How many of the old pages stay, and what is written after them. `new` is in the order of the disk.
pub(super) fn pages(old: &[Laid], new: Laid) -> Result<(usize, Vec<Delta>)> {
    if new.is_empty() {
        return Ok((old.len(), Vec::new()));
    }
    let mut sizes: Vec<usize> = old.iter().map(Vec::len).collect();
    let keep = kept(&mut sizes, new.len());
    let written = merged(&old[keep..], &new);
    if keep + written.len() <= DELTA_PAGES_MAX {
        return Ok((keep, written));
    }
    let written = merged(old, &new);
    if written.len() > DELTA_PAGES_MAX {
        return Err(Error::new(
            Kind::Bug,
            format!("{} delta pages were to be laid over a tree", written.len()),
        ));
    }
    Ok((0, written))
}

/// How many of the oldest pages stay as they are.
fn kept(sizes: &mut Vec<usize>, new: usize) -> usize {
    let mut together = new;
    while let Some(&last) = sizes.last()
        && last <= 2 * together
        && last + together <= DELTA_EXTENTS_MAX
    {
        together += last;
        sizes.pop();
    }
    sizes.len()
}

fn merged(old: &[Laid], new: &Laid) -> Vec<Delta> {
    let mut all = Laid::new();
    for page in old {
        all = lay_over(&all, page);
    }
    let extents = extents(&lay_over(&all, new));
    extents
        .chunks(DELTA_EXTENTS_MAX)
        .map(|extents| Delta {
            extents: extents.to_vec(),
        })
        .collect()
}

/// Runs as extents: what goes on is joined, what is too long is parted.
fn extents(runs: &[Run<Option<Slice>>]) -> Vec<DeltaExtent> {
    let mut extents: Vec<DeltaExtent> = Vec::with_capacity(runs.len());
    for run in runs {
        let mut rest = Some(run.clone());
        while let Some(run) = rest.take() {
            let end = run.range.end.min(run.range.start + EXTENT_BYTES_MAX);
            rest = run.within(&(end..run.range.end));
            let length = u32::try_from(end - run.range.start).unwrap_or(u32::MAX);
            match extents.last_mut() {
                Some(last) if goes_on(last, &run, length) => last.length += length,
                _ => extents.push(DeltaExtent {
                    start: run.range.start,
                    length,
                    slice: run.content,
                }),
            }
        }
    }
    extents
}

/// True where `run` is what follows `last`, on the disk and in the chunk.
fn goes_on(last: &DeltaExtent, run: &Run<Option<Slice>>, length: u32) -> bool {
    let follows = match (last.slice, run.content) {
        (None, None) => true,
        (Some(last_slice), Some(slice)) => {
            slice.chunk == last_slice.chunk
                && slice.location == last_slice.location
                && last_slice.offset.checked_add(last.length) == Some(slice.offset)
        }
        _ => false,
    };
    follows
        && last.end() == run.range.start
        && u64::from(last.length) + u64::from(length) <= EXTENT_BYTES_MAX
}

#[cfg(test)]
mod tests;
