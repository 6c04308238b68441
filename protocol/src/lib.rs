//! What two tidegate parties must agree on, across the wire or across the years.
//!
//! Identifiers, keys and rights, and every byte that stands in a repository: descriptor, key
//! slots, packs of frames, index segments, tree pages, log records and checkpoints. Nothing in
//! this crate does I/O, reads a clock, starts a task or draws randomness: what a format needs of
//! those is passed in, so all of it can be tested with bytes alone.
//!
//! Decoders take bytes from a bucket that anybody may have written: they never panic, never
//! allocate more than their input justifies, and say which object and field was wrong.
#![doc = include_str!("../FORMAT.md")]
#![doc = include_str!("../WIRE.md")]
#![doc = include_str!("../ENROLMENT.md")]

mod codec;

pub mod aead;
pub mod checkpoint;
pub mod descriptor;
pub mod enrolment;
pub mod error;
pub mod frame;
pub mod ids;
pub mod key_file;
pub mod keys;
pub mod limits;
pub mod pack;
pub mod page;
pub mod record;
pub mod rights;
pub mod segment;
pub mod slot;
pub mod wire;

pub use error::FormatError;
pub use ids::{ChunkId, PackId, PageId, RepositoryId, SegmentId};
