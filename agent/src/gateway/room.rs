//! Memory that is shared out before it is taken.
//!
//! A body is asked for only when there is room for all of it: until then its host waits. So a gateway's
//! memory is bounded whatever the number of hosts, and no host is told to come back for being one of many.
//! Those who wait are served in turn. What restores read has room of its own: they never wait for a backup.

use crate::buffers::Buffers;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a permit stands for.
const UNIT_BYTES: u64 = 4096;

/// Room for bodies, in bytes.
#[derive(Clone)]
pub(super) struct Room {
    units: Arc<Semaphore>,
    units_max: u32,
}

/// Room that was taken; dropped, it is free again.
pub(super) struct Taken {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Room {
    pub(super) fn new(bytes: u64) -> Self {
        let units = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX).max(1);
        Self {
            units: Arc::new(Semaphore::new(units as usize)),
            units_max: units,
        }
    }

    /// Waits for room for so many bytes. What is larger than all of it waits for all of it.
    pub(super) async fn take(&self, bytes: u64) -> Taken {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        let units = units.min(self.units_max);
        // It is never closed.
        let permit = Arc::clone(&self.units).acquire_many_owned(units).await.ok();
        Taken { _permit: permit }
    }

    /// Bytes that are taken now, or kept for who is next.
    pub(super) fn taken_bytes(&self) -> u64 {
        let free = self.units.available_permits() as u64;
        u64::from(self.units_max).saturating_sub(free) * UNIT_BYTES
    }
}

/// Buffers for large bodies, where there is room for `bytes`: of packs of the default size as many as one
/// host has under way.
pub(super) fn bodies(bytes: u64) -> Buffers {
    let packs = usize::try_from(bytes / PACK_BYTES as u64).unwrap_or(usize::MAX);
    Buffers::keeping(packs.min(4), PACK_BYTES + PACK_BYTES / 8)
}

/// A pack of the default size.
const PACK_BYTES: usize = 32 << 20;

/// How much each connection may have sent that nobody has read yet, where `active` of them share
/// `budget_bytes`. Idle ones get [`IDLE_WINDOW_BYTES`]: enough for a request, and for the start of a body
/// until the next sharing out.
pub(super) fn window_bytes(budget_bytes: u64, active: usize) -> u64 {
    (budget_bytes / active.max(1) as u64).clamp(IDLE_WINDOW_BYTES, WINDOW_BYTES_MAX)
}

/// The window of a connection without requests.
pub(super) const IDLE_WINDOW_BYTES: u64 = 256 << 10;

/// More than this no path needs: 1 Gbit/s with a round trip of 200 ms has 25 MB under way.
const WINDOW_BYTES_MAX: u64 = 32 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn room_is_waited_for_in_turn() {
        let room = Room::new(100 << 20);
        let first = room.take(60 << 20).await;
        let mut second = Box::pin(room.take(60 << 20));
        assert!((&mut second).now_or_never().is_none());
        // A small one behind a large one does not overtake it for ever.
        let mut third = Box::pin(room.take(50 << 20));
        assert!((&mut third).now_or_never().is_none());
        drop(first);
        let second = second.now_or_never().unwrap();
        assert!((&mut third).now_or_never().is_none());
        drop(second);
        let third = third.now_or_never().unwrap();
        assert_eq!(room.taken_bytes(), 50 << 20);
        drop(third);
        // Larger than all of it: all of it.
        drop(room.take(1 << 40).await);
        assert_eq!(room.taken_bytes(), 0);
    }

    #[test]
    fn windows_share_the_budget() {
        assert_eq!(window_bytes(192 << 20, 0), 32 << 20);
        assert_eq!(window_bytes(192 << 20, 6), 32 << 20);
        assert_eq!(window_bytes(192 << 20, 24), 8 << 20);
        assert_eq!(window_bytes(192 << 20, 10_000), IDLE_WINDOW_BYTES);
    }
}
