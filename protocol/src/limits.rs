//! Every bound of the formats, with its reason. Relations between bounds are checked at compile time.

/// The grid on which chunks may end. File systems inside images allocate in blocks of this size.
pub const BLOCK_BYTES: u32 = 4096;

/// A disk is chunked in spans of this size, each on its own: a change never re-chunks more than its
/// span, and spans run in parallel.
pub const SPAN_BYTES: u64 = 64 << 20;

/// What a leaf page covers: small enough that a scattered change rewrites little, large enough that
/// the inner pages stay few.
pub const LEAF_BYTES: u64 = 4 << 20;

/// Children of an inner page.
pub const FAN_OUT: usize = 256;

/// Levels of inner pages over the leaves: 4 MiB × 256⁴ = 16 PiB.
pub const TREE_LEVELS_MAX: u8 = 4;

/// Largest disk that a tree can hold, in bytes.
pub const DISK_BYTES_MAX: u64 = LEAF_BYTES * (FAN_OUT as u64).pow(TREE_LEVELS_MAX as u32);

/// Largest chunk. A reader must hold a whole chunk to check its hash.
pub const CHUNK_BYTES_MAX: u32 = 4 << 20;

/// Largest frame before compression: a chunk larger than the usual frame is a frame of its own.
pub const FRAME_RAW_BYTES_MAX: u32 = 8 << 20;

/// Smallest frame as stored: payload header, one byte of content, tag. A location that speaks of
/// less is refused before anything is fetched.
pub const FRAME_BYTES_MIN: u32 = 5 + 1 + 16;

/// Largest frame as stored: content that does not compress is stored as it is.
pub const FRAME_BYTES_MAX: u32 = FRAME_RAW_BYTES_MAX + 5 + 16;

/// Largest pack. Readers refuse larger ones before taking them into memory.
pub const PACK_BYTES_MAX: u32 = 128 << 20;

/// Most chunks or pages in a pack.
pub const PACK_ITEMS_MAX: u32 = 4 << 20;

/// Most extents in a leaf: one for each 512-byte sector of it.
pub const LEAF_EXTENTS_MAX: usize = (LEAF_BYTES / 512) as usize;

/// Largest encoded page: a leaf of [`LEAF_EXTENTS_MAX`] extents at its worst.
pub const PAGE_BYTES_MAX: u32 = 2 << 20;

/// Most extents in a delta page: what is at its worst no larger than [`PAGE_BYTES_MAX`].
pub const DELTA_EXTENTS_MAX: usize = 16 << 10;

/// Most delta pages over a disk's tree: a reader holds all of them, some 30 MB at worst.
pub const DELTA_PAGES_MAX: usize = 16;

/// Entries in one sealed block of an index segment: the unit that is read to look an id up in place.
pub const SEGMENT_BLOCK_ENTRIES: usize = 4096;

/// Most entries in an index segment.
pub const SEGMENT_ENTRIES_MAX: u64 = 64 << 20;

/// Largest index segment object.
pub const SEGMENT_BYTES_MAX: u64 = 4 << 30;

/// Largest log record object: room for 100,000 identifiers, small enough that a reader never
/// minds decoding one.
pub const RECORD_BYTES_MAX: u32 = 4 << 20;

/// Most packs in a bundle. A bundle is no larger than the largest pack.
pub const BUNDLE_PACKS_MAX: usize = 4096;

/// Longest name of a machine, a disk or a host, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// Most disks of a machine.
pub const DISKS_MAX: usize = 1024;

/// Largest block of a checkpoint before sealing. What one record says fits into one block.
pub const CHECKPOINT_BLOCK_BYTES_MAX: u32 = 8 << 20;

/// Most blocks of a checkpoint: the object stays below what stores take in one PUT.
pub const CHECKPOINT_BLOCKS_MAX: u32 = 512;

/// Largest descriptor or key slot object.
pub const SMALL_OBJECT_BYTES_MAX: u32 = 64 << 10;

/// Largest memory an Argon2 slot may ask of whoever opens it, in KiB (1 GiB).
pub const ARGON2_MEMORY_KIB_MAX: u32 = 1 << 20;

/// Most Argon2 passes a slot may ask for.
pub const ARGON2_PASSES_MAX: u32 = 16;

const _: () = {
    assert!(SPAN_BYTES.is_multiple_of(LEAF_BYTES));
    assert!(LEAF_BYTES.is_multiple_of(BLOCK_BYTES as u64));
    assert!(CHUNK_BYTES_MAX <= FRAME_RAW_BYTES_MAX);
    assert!(PAGE_BYTES_MAX <= FRAME_RAW_BYTES_MAX);
    assert!(FRAME_BYTES_MAX < PACK_BYTES_MAX);
    assert!(RECORD_BYTES_MAX + 1024 <= CHECKPOINT_BLOCK_BYTES_MAX);
    assert!(CHECKPOINT_BLOCK_BYTES_MAX as u64 * CHECKPOINT_BLOCKS_MAX as u64 <= 4 << 30);
    // At worst an extent takes 1 + 5 + 32 + 5 logical bytes and 1 + 5 × 5 + 32 of hints.
    assert!(LEAF_EXTENTS_MAX * (43 + 58) < PAGE_BYTES_MAX as usize);
    // At worst 9 + 5 + 5 + 5 logical bytes, 32 of its chunk's name and the same hints.
    assert!(DELTA_EXTENTS_MAX * (24 + 32 + 58) < PAGE_BYTES_MAX as usize);
};
