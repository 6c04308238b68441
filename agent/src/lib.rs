//! The tidegate engine.
//!
//! Modules stand in ranks and name only lower ranks:
//!
//! | Rank | Module | Purpose |
//! |---|---|---|
//! | 0 | [`error`] | errors whose kind says what to do |
//! | 0 | [`name`] | what machines and disks may be called |
//! | 0 | [`clock`], [`progress`] | the doors to clock and chance; counters of a running job |
//! | 0 | [`allocator`], `buffers` | keeps memory from being hoarded; large memory that is used again |
//! | 0 | `blocking`, `systemd` | the way off the runtime's threads; what systemd is told |
//! | 0 | [`durable`] | new files and folders that survive a power cut |
//! | 0 | [`metrics`] | every metric once, and the door to them |
//! | 0 | [`pace`] | a bound on bytes a second |
//! | 0 | [`mod@format`] | image formats, and how they are told apart |
//! | 1 | `sparse`, `qemu` | holes in files; QEMU's tools as child processes |
//! | 1 | [`retention`] | how long points are kept, and which may be given up |
//! | 1 | [`chunk`] | where chunks end, partition phase |
//! | 2 | [`store`] | object storage behind one door: folder, S3, Azure, GCS, memory |
//! | 1 | [`nbd`] | Network Block Device: client and server |
//! | 2 | [`source`], [`target`] | disks to read and to write |
//! | 3 | [`live`] | running machines, frozen at one instant |
//! | 3 | [`config`] | settings as written → as valid: what all configuration files have in common |
//! | 3 | [`repository`] | log, packs, index, trees, recovery points |
//! | 4 | [`replicate`] | the way out: backup |
//! | 1 | [`link`] | QUIC between hosts and gateways |
//! | 4 | [`recover`] | the way back: restore, export, diff, verify |
//! | 6 | [`gateway`], [`host`] | the two roles of the service; they never import each other |

pub mod allocator;
mod blocking;
mod buffers;
pub mod chunk;
pub mod clock;
pub mod config;
pub mod durable;
pub mod error;
pub mod format;
pub mod gateway;
pub mod host;
pub mod link;
pub mod live;
pub mod metrics;
pub mod name;
pub mod nbd;
pub mod pace;
pub mod progress;
mod qemu;
pub mod recover;
pub mod replicate;
pub mod repository;
pub mod retention;
pub mod source;
mod sparse;
pub mod store;
mod systemd;
pub mod target;
#[cfg(feature = "testing")]
pub mod testing;

/// This program's name and version, as peers are told.
pub const PROGRAM: &str = concat!("tidegate ", env!("CARGO_PKG_VERSION"));

pub use error::{Error, Kind, Result};
