//! What arrives before its turn.
//!
//! Behind a lost datagram the rest of a stream waits. quinn would keep it, but ends the whole
//! connection when one stream has more than 1,024 gaps (quinn-proto 0.11, `assembler.rs`), and a long fat
//! line has more than that whenever its queue overflows. So bodies are taken as they arrive, and put in
//! order here. quinn delivers each byte once: nothing here overlaps.
//!
//! Not flow control: what is taken makes room for more. Invariant: at most `bytes_max` bytes wait here,
//! in pieces that are not so small that keeping them costs more than they carry.

use crate::link::LinkError;
use bytes::Bytes;
use std::collections::BTreeMap;

/// So many pieces may be of any size...
const PIECES_MIN: usize = 1024;
/// ... and one more for so many bytes. Datagrams carry 1,200 and more.
const PIECE_BYTES_MIN: usize = 256;

/// Pieces of a stream by their offsets.
pub(super) struct Early {
    /// The offset that the reader has reached.
    position: u64,
    pieces: BTreeMap<u64, Bytes>,
    bytes: usize,
    bytes_max: usize,
}

impl Early {
    pub(super) const fn new(position: u64, bytes_max: usize) -> Self {
        Self {
            position,
            pieces: BTreeMap::new(),
            bytes: 0,
            bytes_max,
        }
    }

    /// A piece has arrived.
    ///
    /// # Errors
    /// [`LinkError::Malformed`] where there is more than may wait, or it is cut too small.
    fn insert(&mut self, offset: u64, piece: Bytes) -> Result<(), LinkError> {
        self.bytes += piece.len();
        let piece = match offset == self.position {
            true => piece,
            // A slice would keep the datagrams that arrived with it.
            false => Bytes::copy_from_slice(&piece),
        };
        self.pieces.insert(offset, piece);
        let pieces_max = PIECES_MIN + self.bytes / PIECE_BYTES_MIN;
        if self.bytes > self.bytes_max || self.pieces.len() > pieces_max {
            return Err(LinkError::Malformed(format!(
                "{} bytes in {} pieces came before their turn: expected at most {} bytes in \
                 {pieces_max} pieces",
                self.bytes,
                self.pieces.len(),
                self.bytes_max,
            )));
        }
        Ok(())
    }

    /// A piece has arrived: it is given back where it is what the reader waits for.
    ///
    /// # Errors
    /// As [`Self::insert`].
    pub(super) fn pass(
        &mut self,
        offset: u64,
        piece: Bytes,
        bytes_max: usize,
    ) -> Result<Option<Bytes>, LinkError> {
        if self.pieces.is_empty() && offset == self.position && piece.len() <= bytes_max {
            self.position += piece.len() as u64;
            return Ok(Some(piece));
        }
        self.insert(offset, piece)?;
        Ok(self.next(bytes_max))
    }

    /// What is next, at most so many bytes of it, where it is there.
    pub(super) fn next(&mut self, bytes_max: usize) -> Option<Bytes> {
        let first = self.pieces.first_entry()?;
        if *first.key() != self.position {
            return None;
        }
        let mut piece = first.remove();
        if piece.len() > bytes_max {
            let rest = piece.split_off(bytes_max);
            self.pieces.insert(self.position + bytes_max as u64, rest);
        }
        self.position += piece.len() as u64;
        self.bytes -= piece.len();
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn bytes(range: std::ops::Range<u8>) -> Bytes {
        range.collect::<Vec<_>>().into()
    }

    #[test]
    fn pieces_come_out_in_order() {
        let mut early = Early::new(100, 50);
        early.insert(110, bytes(10..20)).unwrap();
        early.insert(130, bytes(30..40)).unwrap();
        assert_eq!(early.next(100), None);
        early.insert(100, bytes(0..10)).unwrap();
        assert_eq!(early.next(4), Some(bytes(0..4)));
        assert_eq!(early.next(100), Some(bytes(4..10)));
        assert_eq!(early.next(100), Some(bytes(10..20)));
        assert_eq!(early.next(100), None);
        early.insert(120, bytes(20..30)).unwrap();
        assert_eq!(early.next(100), Some(bytes(20..30)));
        assert_eq!(early.next(100), Some(bytes(30..40)));
        assert_eq!((early.bytes, early.pieces.len()), (0, 0));
        // In order, and then too much of it, and then after a gap.
        assert_eq!(
            early.pass(140, bytes(40..50), 10).unwrap(),
            Some(bytes(40..50))
        );
        assert_eq!(
            early.pass(150, bytes(50..60), 4).unwrap(),
            Some(bytes(50..54))
        );
        assert_eq!(
            early.pass(160, bytes(60..70), 10).unwrap(),
            Some(bytes(54..60))
        );
        assert_eq!(early.next(100), Some(bytes(60..70)));
        assert_eq!(early.pass(180, bytes(80..90), 100).unwrap(), None);
        assert_eq!(
            early.pass(170, bytes(70..80), 100).unwrap(),
            Some(bytes(70..80))
        );
        assert_eq!(early.next(100), Some(bytes(80..90)));
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_and_in_pieces() {
        let mut early = Early::new(0, 20);
        early.insert(1, bytes(0..20)).unwrap();
        early.insert(30, bytes(0..1)).unwrap_err();

        let mut early = Early::new(0, 1 << 30);
        let crumbs = (1..).find(|crumb| early.insert(2 * crumb, bytes(0..1)).is_err());
        assert_eq!(crumbs, Some(PIECES_MIN as u64 + 5));
        // Datagrams of the least size, every other one lost: forty thousand gaps are no reason.
        let mut early = Early::new(0, 1 << 30);
        for gap in 1..40_000 {
            let datagram = Bytes::from_static(&[0; 1200]);
            early.insert(2400 * gap, datagram).unwrap();
        }
    }
}
