//! Memory for megabytes, used again: fresh memory comes from the kernel page by page, each cleared, which
//! takes longer than to seal or to read what goes there.
//!
//! Bounded by what is in flight, a buffer is made only where none is free; or by what is kept.

use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers of one user; clones are the same ones.
#[derive(Clone)]
pub(crate) struct Buffers {
    free: Arc<Mutex<Vec<Vec<u8>>>>,
    free_max: usize,
    bytes_max: usize,
}

impl Default for Buffers {
    fn default() -> Self {
        Self::keeping(usize::MAX, usize::MAX)
    }
}

impl Buffers {
    /// Keeps at most so many free ones, of at most so many bytes each: for those who do not know what is in
    /// flight at most.
    pub(crate) fn keeping(free_max: usize, bytes_max: usize) -> Self {
        Self {
            free: Arc::default(),
            free_max,
            bytes_max,
        }
    }

    /// A free buffer with what it held last, or a fresh one with room for `capacity_bytes`.
    pub(crate) fn take(&self, capacity_bytes: usize) -> Vec<u8> {
        let free = self
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        free.unwrap_or_else(|| Vec::with_capacity(capacity_bytes))
    }

    /// Shares the bytes; their buffer is free when nobody has them any more.
    pub(crate) fn share(&self, bytes: Vec<u8>) -> Bytes {
        Bytes::from_owner(Shared {
            bytes,
            home: self.clone(),
        })
    }
}

struct Shared {
    bytes: Vec<u8>,
    home: Buffers,
}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let home = &self.home;
        let mut free = home.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < home.free_max && self.bytes.capacity() <= home.bytes_max {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_the_last_one_lets_go() {
        let buffers = Buffers::default();
        let mut first = buffers.take(100);
        first.extend_from_slice(b"pack");
        let place = first.as_ptr();
        let shared = buffers.share(first);
        let slice = shared.slice(1..);
        drop(shared);
        let other = buffers.take(100);
        assert_ne!(other.as_ptr(), place, "it is still in use");
        assert_eq!(&slice[..], b"ack");
        drop(slice);
        let again = buffers.take(100);
        assert_eq!((again.as_ptr(), again.capacity() >= 100), (place, true));
    }

    #[test]
    fn no_more_is_kept_than_was_said() {
        let buffers = Buffers::keeping(2, 100);
        let shared: Vec<_> = [50, 101, 60, 70]
            .map(|bytes| buffers.share(Vec::with_capacity(bytes)))
            .into();
        drop(shared);
        let free = buffers.free.lock().unwrap();
        let kept: Vec<_> = free.iter().map(Vec::capacity).collect();
        assert_eq!(kept, [50, 60]);
    }
}
