//! How much a run may hold: an allocator that counts.
//!
//! Not a profiler: it knows one number, the bytes that the program holds now, and ends the program
//! when a run takes more than it may. libFuzzer's own limits see only what was touched, and so would
//! miss a length that is believed and allocated for, but never filled.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

#[global_allocator]
static COUNTING: Counting = Counting;

static HELD_BYTES: AtomicUsize = AtomicUsize::new(0);
static HELD_BYTES_MAX: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Runs `work`, which may hold `bytes_max` more than is held at its start.
pub(crate) fn held(bytes_max: usize, work: impl FnOnce()) {
    let limit = HELD_BYTES.load(Ordering::Relaxed).saturating_add(bytes_max);
    HELD_BYTES_MAX.store(limit, Ordering::Relaxed);
    work();
    HELD_BYTES_MAX.store(usize::MAX, Ordering::Relaxed);
}

struct Counting;

impl Counting {
    fn take(bytes: usize) {
        let held = HELD_BYTES.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let limit = HELD_BYTES_MAX.load(Ordering::Relaxed);
        // Whoever reports a panic allocates too.
        if held > limit && !std::thread::panicking() {
            panic!(
                "{bytes} bytes more would be {} above the bound",
                held - limit
            );
        }
    }
}

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::take(layout.size());
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::take(layout.size());
        // SAFETY: as promised by the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD_BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as promised by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        Self::take(bytes);
        HELD_BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as promised by the caller.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}
