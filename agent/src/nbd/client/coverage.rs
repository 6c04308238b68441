//! Which bytes of a reply have come.
//!
//! Not a general set of ranges: chunks come in order from every server that is known, which costs
//! nothing here; out of order is allowed by the protocol and works up to a bound. The invariant: no
//! byte is counted twice.

use super::Violation;

/// The most separate pieces of one reply: a server that scatters more wants our memory, or time.
const PIECES_MAX: usize = 4096;

/// The bytes of one reply that have come: disjoint pieces, sorted, neighbours merged.
#[derive(Debug)]
pub(super) struct Coverage {
    length: u32,
    pieces: Vec<(u32, u32)>,
}

impl Coverage {
    /// Nothing yet of `length` bytes.
    pub(super) fn of(length: u32) -> Self {
        Self {
            length,
            pieces: Vec::new(),
        }
    }

    /// Adds `count` bytes from `start` on; they lie inside the reply.
    pub(super) fn add(&mut self, start: u32, count: u32) -> Result<(), Violation> {
        let end = start.checked_add(count).ok_or(Violation::Coverage)?;
        let next = self.pieces.partition_point(|&(other, _)| other < start);
        let touches_next = match self.pieces.get(next) {
            Some(&(other, _)) if other < end => return Err(Violation::Coverage),
            Some(&(other, _)) => other == end,
            None => false,
        };
        let touches_last = match next.checked_sub(1).and_then(|last| self.pieces.get(last)) {
            Some(&(_, other)) if other > start => return Err(Violation::Coverage),
            Some(&(_, other)) => other == start,
            None => false,
        };
        match (touches_last, touches_next) {
            (true, true) => {
                self.pieces[next - 1].1 = self.pieces[next].1;
                self.pieces.remove(next);
            }
            (true, false) => self.pieces[next - 1].1 = end,
            (false, true) => self.pieces[next].0 = start,
            (false, false) if self.pieces.len() < PIECES_MAX => {
                self.pieces.insert(next, (start, end));
            }
            (false, false) => return Err(Violation::Coverage),
        }
        Ok(())
    }

    /// True when every byte has come.
    pub(super) fn is_complete(&self) -> bool {
        self.length == 0 || self.pieces == [(0, self.length)]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against one flag a byte.
        #[test]
        fn agrees_with_flags(chunks in proptest::collection::vec((0u32..40, 1u32..12), 1..30)) {
            let mut coverage = Coverage::of(50);
            let mut flags = [false; 52];
            for (start, count) in chunks {
                let span = start as usize..(start + count).min(50) as usize;
                let fresh = flags[span.clone()].iter().all(|flag| !flag);
                let answer = coverage.add(start, u32::try_from(span.len()).unwrap());
                prop_assert_eq!(answer.is_ok(), fresh);
                if !fresh { break }
                flags[span].fill(true);
                prop_assert_eq!(coverage.is_complete(), flags[..50].iter().all(|&flag| flag));
                prop_assert!(coverage.pieces.windows(2).all(|pair| pair[0].1 < pair[1].0));
            }
        }
    }
}
