//! Running machines: frozen at one instant and read, without stopping anything.
//!
//! ```text
//!   connect ──► freeze ──► read over NBD, with what changed ──► commit ──► retire
//!                                          └──────────── or ─────────────► give up
//! ```
//!
//! - [`Machine`]: what runs behind a monitor, and which disks it has;
//! - [`Machine::freeze`]: all its disks at one instant, as [`Frozen`], each a
//!   [`Source`](crate::source::Source) that knows what changed since which point;
//! - [`bitmap`]: the discipline by which QEMU's dirty bitmaps never lie, whoever is killed when;
//! - [`qmp`]: the conversation with QEMU;
//! - [`GuestAgent`]: the conversation with the software in the guest, and [`guard`], who thaws it when
//!   nobody else does.
//!
//! Not a backup: what is read, and whether its point is committed, others decide. Everything needed
//! to go on after a kill stands in QEMU and in the log; no file of ours is.
//!
//! What the operator must give: a monitor for tidegate alone (`-qmp unix:PATH,server=on,wait=off`). What
//! changed is remembered over a power-off of the machine where the disk is a qcow2 of version 3; of other disks
//! only as long as QEMU runs.

pub mod bitmap;
mod freeze;
pub mod guard;
mod guest_agent;
pub mod libvirt;
mod machine;
mod nodes;
pub mod qmp;
mod scratch;
mod source;
mod still;
mod together;

pub use freeze::{FreezeSettings, Frozen, FrozenDisk, Quiesce};
pub use guest_agent::GuestAgent;
pub use machine::{Disk, LeftOut, Machine};
pub use scratch::{SCRATCH_BYTES_MIN, ScratchSettings};
pub use together::{Seat, Together, seats};
