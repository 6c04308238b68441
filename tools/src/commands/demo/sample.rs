//! A sparse disk that is the same on every run, a small change to it, and the comparison.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use tidegate_agent::source::{OpenSettings, SourceReader, open_source};
use tidegate_agent::{Error, Result};

/// Size of the sample disk.
pub(super) const DISK_BYTES: u64 = 256 << 20;
/// What of it is data.
pub(super) const DATA_BYTES: u64 = AREAS.len() as u64 * AREA_BYTES;
/// What [`change`] writes anew.
pub(super) const CHANGED_BYTES: u64 = 2 << 20;

const AREA_BYTES: u64 = 16 << 20;
/// Where data lies, and of what sort: a file system has text and programs, which compress, media,
/// which do not, and the same file twice.
const AREAS: [(u64, Sort); 4] = [
    (1 << 20, Sort::Text),
    (48 << 20, Sort::Noise),
    (130 << 20, Sort::Text2),
    // The first area once more.
    (200 << 20, Sort::Text),
];
/// How much is compared at once.
const WINDOW_BYTES: u64 = 4 << 20;

#[derive(Clone, Copy)]
enum Sort {
    Text,
    Text2,
    Noise,
}

/// Writes the sample disk.
pub(super) fn make(path: &Path) -> Result<()> {
    let cannot = |error| Error::io(format!("cannot write {}", path.display()), error);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(cannot)?;
    file.set_len(DISK_BYTES).map_err(cannot)?;
    for (offset, sort) in AREAS {
        file.write_all_at(&content(sort), offset).map_err(cannot)?;
    }
    Ok(())
}

/// Changes the sample disk a little.
pub(super) fn change(path: &Path) -> Result<()> {
    let cannot = |error| Error::io(format!("cannot change {}", path.display()), error);
    let file = OpenOptions::new().write(true).open(path).map_err(cannot)?;
    let mut bytes = vec![0; to_usize(CHANGED_BYTES)];
    blake3::Hasher::new_derive_key("tidegate demo: change")
        .finalize_xof()
        .fill(&mut bytes);
    file.write_all_at(&bytes, 60 << 20).map_err(cannot)
}

/// Whether two images hold the same disk.
pub(super) fn equal(a: &Path, b: &Path) -> Result<bool> {
    let how = OpenSettings::default();
    let (a, b) = (open_source(a, &how)?, open_source(b, &how)?);
    if a.size_bytes() != b.size_bytes() {
        return Ok(false);
    }
    let (mut reader_a, mut reader_b) = (a.reader()?, b.reader()?);
    let mut start = 0;
    while start < a.size_bytes() {
        let end = (start + WINDOW_BYTES).min(a.size_bytes());
        let window = |reader: &mut dyn SourceReader| -> Result<Vec<u8>> {
            let mut bytes = vec![0; to_usize(end - start)];
            if !reader.allocation(start..end)?.is_empty() {
                reader.read_at(start, &mut bytes)?;
            }
            Ok(bytes)
        };
        if window(&mut *reader_a)? != window(&mut *reader_b)? {
            return Ok(false);
        }
        start = end;
    }
    Ok(true)
}

fn content(sort: Sort) -> Vec<u8> {
    let mut bytes = vec![0; to_usize(AREA_BYTES)];
    let mut seed = blake3::Hasher::new_derive_key("tidegate demo: sample");
    match sort {
        Sort::Noise => {
            seed.finalize_xof().fill(&mut bytes);
            return bytes;
        }
        Sort::Text => seed.update(b"1"),
        Sort::Text2 => seed.update(b"2"),
    };
    // Words drawn at random: no two blocks alike, and about three to one under zstd.
    const WORDS: [&[u8]; 16] = [
        b"tide ", b"gate ", b"disk ", b"chunk ", b"frame ", b"pack ", b"point ", b"page ", b"log ",
        b"key ", b"host ", b"span ", b"seal ", b"open ", b"store ", b"zero ",
    ];
    let mut random = vec![0; bytes.len() / 4];
    seed.finalize_xof().fill(&mut random);
    let mut at = 0;
    for byte in random {
        for word in [WORDS[usize::from(byte & 15)], WORDS[usize::from(byte >> 4)]] {
            let length = word.len().min(bytes.len() - at);
            bytes[at..at + length].copy_from_slice(&word[..length]);
            at += length;
        }
    }
    bytes
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_sample_is_sparse_reproducible_and_changed_only_where_it_says() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a.raw"), folder.path().join("b.raw"));
        make(&a).unwrap();
        make(&b).unwrap();
        assert!(equal(&a, &b).unwrap());
        let blocks = std::os::unix::fs::MetadataExt::blocks(&a.metadata().unwrap());
        assert!(blocks * 512 <= DATA_BYTES + (1 << 20));
        change(&b).unwrap();
        assert!(!equal(&a, &b).unwrap());
        std::fs::OpenOptions::new()
            .write(true)
            .open(&b)
            .unwrap()
            .set_len(DISK_BYTES - 1)
            .unwrap();
        assert!(!equal(&a, &b).unwrap());
    }

    #[test]
    fn every_area_is_filled_to_its_end() {
        for sort in [Sort::Text, Sort::Text2, Sort::Noise] {
            assert_ne!(content(sort)[to_usize(AREA_BYTES) - 64..], [0; 64]);
        }
    }
}
