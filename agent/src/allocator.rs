//! Keeps glibc from hoarding large buffers.
//!
//! glibc raises its threshold for giving memory straight back to the system whenever a large buffer
//! is freed, up to 32 MiB; from then on buffers of packs and reads are cut from arenas, one a thread,
//! which seldom shrink. A restore of 8 GiB was measured at a peak of 490 to 670 MB that way, and at
//! 116 MB, and no slower, with the threshold fixed.

/// Buffers from this size on are given back when they are freed: above frames (256 KiB), which come
/// and go by the thousand, below reads and packs, which are what memory is made of here.
#[cfg(target_env = "gnu")]
const GIVEN_BACK_BYTES_MIN: libc::c_int = 1 << 20;

/// Fixes the threshold. To be called once, first thing in `main`.
pub fn give_back_large_buffers() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt` takes plain integers; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, GIVEN_BACK_BYTES_MIN);
    }
}
