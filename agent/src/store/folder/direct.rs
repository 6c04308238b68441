//! Writes large objects past the page cache.
//!
//! A pack is written once and read again by a restore, which may be never: through the page cache each
//! of its bytes would be copied into fresh memory, push out what the host's machines have there, and
//! wait for the final fsync to reach the disk. So pieces of it go to the disk at once (`O_DIRECT`), from
//! memory that is small enough to stay in the CPU's cache.
//!
//! Not a promise of durability: that is the fsync's, as for every object. Where the file system does not
//! take such writes, and for what is left of the last piece, the page cache it is.

use object_store::PutPayload;
use rustix::fs::OFlags;
use std::fs::File;
use std::io::{self, Write};

/// Alignment of place, length and memory that every device takes: the page.
const ALIGNMENT: usize = 4096;

/// Bytes written at a time.
const PIECE_BYTES: usize = 1 << 20;

/// Smaller objects are left to the page cache: they are read again soon, and a disk asked for many
/// small writes one by one is slower than one that gets them together.
const DIRECT_BYTES_MIN: usize = 2 * PIECE_BYTES;

/// Writes all of `payload` to a file that is empty.
pub(super) fn write(file: &mut File, payload: &PutPayload) -> io::Result<()> {
    if payload.content_length() < DIRECT_BYTES_MIN || set_direct(file, true).is_err() {
        return payload.iter().try_for_each(|part| file.write_all(part));
    }
    let mut memory = vec![0; PIECE_BYTES + ALIGNMENT];
    let front = memory.as_ptr().align_offset(ALIGNMENT);
    let piece = &mut memory[front..front + PIECE_BYTES];
    let mut filled = 0;
    let mut direct = true;
    for part in payload {
        let mut rest = part.as_ref();
        while !rest.is_empty() {
            let (taken, left) = rest.split_at(rest.len().min(PIECE_BYTES - filled));
            piece[filled..filled + taken.len()].copy_from_slice(taken);
            filled += taken.len();
            rest = left;
            if filled == PIECE_BYTES {
                direct = write_piece(file, piece, direct)?;
                filled = 0;
            }
        }
    }
    if direct {
        set_direct(file, false)?;
    }
    file.write_all(&piece[..filled])
}

/// Writes a whole piece; says whether the next one may go past the cache too.
fn write_piece(file: &mut File, piece: &[u8], direct: bool) -> io::Result<bool> {
    if !direct {
        return file.write_all(piece).map(|()| false);
    }
    let written = match file.write(piece) {
        Ok(written) if written == piece.len() => return Ok(true),
        // A short write ends wherever it likes; the cache wants no alignment.
        Ok(written) => written,
        // Some file systems take the flag and refuse the write.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => 0,
        Err(error) => return Err(error),
    };
    set_direct(file, false)?;
    file.write_all(&piece[written..]).map(|()| false)
}

fn set_direct(file: &File, direct: bool) -> io::Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, direct);
    Ok(rustix::fs::fcntl_setfl(file, flags)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use bytes::Bytes;
    use std::io::{Seek, SeekFrom};

    /// Every length around a piece and a page, in parts that end anywhere.
    #[test]
    fn objects_of_every_length_are_written_whole() {
        // Not the folder for temporary files: in memory there is no way past the cache.
        let folder = tempfile::tempdir_in(".").unwrap();
        let mut bytes = vec![0; DIRECT_BYTES_MIN + 3 * PIECE_BYTES];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        for pieces in [0, 1, 2, 3, 4] {
            for more in [0, 1, 511, 512, 4095, 4096, 4097, PIECE_BYTES - 1] {
                let whole = &bytes[..pieces * PIECE_BYTES + more];
                for part_bytes in [whole.len().max(1), PIECE_BYTES + 13, 700_001] {
                    let parts = whole.chunks(part_bytes).map(Bytes::copy_from_slice);
                    let mut file = tempfile::tempfile_in(folder.path()).unwrap();
                    write(&mut file, &parts.collect()).unwrap();
                    assert!(read(&mut file) == whole, "{} bytes", whole.len());
                    let flags = rustix::fs::fcntl_getfl(&file).unwrap();
                    assert!(!flags.contains(OFlags::DIRECT));
                }
            }
        }
    }

    /// As after a write that a disk nearly full has cut short.
    #[test]
    fn a_write_at_an_odd_place_goes_through_the_cache() {
        let folder = tempfile::tempdir_in(".").unwrap();
        let mut file = tempfile::tempfile_in(folder.path()).unwrap();
        file.write_all(b"odd").unwrap();
        set_direct(&file, true).unwrap();
        let memory = vec![7; PIECE_BYTES + ALIGNMENT];
        let front = memory.as_ptr().align_offset(ALIGNMENT);
        // Refused by the file system for its place.
        let direct = write_piece(&mut file, &memory[front..front + PIECE_BYTES], true).unwrap();
        assert!(!direct);
        assert_eq!(read(&mut file).len(), 3 + PIECE_BYTES);
    }

    fn read(file: &mut File) -> Vec<u8> {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        io::Read::read_to_end(file, &mut bytes).unwrap();
        bytes
    }
}
