//! The way back: recovery points onto disks.
//!
//! | Part | Purpose |
//! |---|---|
//! | [`restore`](restore_disk) | onto a file or device, new or in place |
//! | [`export`] | random reads, for NBD and for other image formats |
//! | [`diff`] | what changed between two points |
//! | [`verify`] | whether a point would restore |
//!
//! All of them walk the point's own tree: what they cost depends on the disk, not on the repository.
//! Nothing is handed out before it was checked against its name.

mod diff;
mod export;
mod note;
mod restore;
mod verify;
mod wants;

pub use diff::{DiffExtent, DiffKind, diff};
pub use export::export;
pub use note::note_damage;
pub use restore::{
    RestoreMode, RestorePlan, RestoreSettings, RestoreSummary, restore_disk, restore_plan,
};
pub use verify::{Damage, Touched, VerifyReport, VerifySettings, verify};
