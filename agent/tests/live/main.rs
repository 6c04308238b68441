//! Running machines: a real QEMU with a real guest that writes, frozen, read, killed and frozen again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::print_stderr,
    dead_code,
    unreachable_pub,
    reason = "tests"
)]

#[path = "../disks/mod.rs"]
mod disks;

mod consistent;
mod faults;
mod points;
mod site;
