//! The host's role: machines protected by policies, on a schedule.
//!
//! | Part | Purpose |
//! |---|---|
//! | [`config`] | the configuration file: as written → as valid |
//! | [`glob`] | patterns of names and paths |
//! | [`plan`] | which machine is backed up next, and when |

pub mod config;
pub mod glob;
pub mod plan;
