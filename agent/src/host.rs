//! The host's role: machines protected by policies, on a schedule.
//!
//! | Part | Purpose |
//! |---|---|
//! | [`config`] | the configuration file: as written → as valid |
//! | [`control`] | the control socket |
//! | [`glob`] | patterns of names and paths |
//! | [`inventory`] | what there is to protect, for people |
//! | [`machines`] | which machines there are |
//! | [`plan`] | which machine is backed up next, and when |
//! | [`run`] | one run: hooks and engine |
//! | [`service`] | the loop that owns all of it |
//! | [`state`] | the history of runs |

pub mod config;
pub mod control;
pub mod glob;
pub mod inventory;
pub mod machines;
pub mod plan;
pub mod run;
pub mod service;
pub mod state;
