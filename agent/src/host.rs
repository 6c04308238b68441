//! The host's role: machines protected by policies, on a schedule.
//!
//! | Part | Purpose |
//! |---|---|
//! | [`config`] | the configuration file: as written → as valid |
//! | [`glob`] | patterns of names and paths |
//! | [`machines`] | which machines there are |
//! | [`plan`] | which machine is backed up next, and when |
//! | [`run`] | one run: hooks and engine |
//! | [`state`] | the history of runs |

pub mod config;
pub mod glob;
pub mod machines;
pub mod plan;
pub mod run;
pub mod state;
