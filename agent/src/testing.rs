//! What tests need of the world: real object store servers and machines, started and stopped.
//!
//! Behind the feature `testing`, which only `[dev-dependencies]` turn on. The servers listen on
//! 127.0.0.1 on ports nobody uses, keep their data in folders of their own, answer before
//! `start` returns, and are killed when their value is dropped or the test's process dies.
//!
//! Their programs are found in the folder that `TIDEGATE_LAB` names, else in `lab` in the target
//! folder; `tools/test` installs them there. A test whose server is not there **fails**: a suite
//! that skips what it cannot run shows nothing.
//!
//! Everything here panics when it cannot do its work, as tests do.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "for tests: a panic is how they fail"
)]

mod azurite;
mod console;
mod guest;
mod libvirt;
mod process;
mod proxy;
mod rclone;
pub mod untrusted;
mod weed;

pub use azurite::AzureServer;
pub use console::Console;
pub use guest::{Guest, GuestDisk};
pub use libvirt::Libvirt;
pub use process::lab;
pub use proxy::{FaultyProxy, HttpCall, HttpFault};
pub use rclone::OverwritingServer;
pub use weed::S3Server;

use crate::store::StoreSettings;
use std::time::Duration;

/// Settings for tests: patient enough for a busy machine, and soon at their end when a server is
/// not there.
pub fn test_settings() -> StoreSettings {
    StoreSettings {
        connect_timeout: Duration::from_secs(5),
        operation_deadline: Duration::from_secs(60),
        backoff_first: Duration::from_millis(20),
        backoff_max: Duration::from_secs(1),
        ..StoreSettings::default()
    }
}
