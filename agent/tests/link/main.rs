//! Hosts and gateways over real UDP on one machine: what a host can do through a gateway, what it may
//! not, and what happens when either of them goes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::print_stderr,
    clippy::print_stdout,
    dead_code,
    unreachable_pub,
    reason = "tests"
)]

#[path = "../lab/mod.rs"]
mod lab;

mod abuse;
mod bundles;
mod crowd;
mod everyday;
mod going;
mod killed;
mod line;
mod process;
mod raw;
mod retention;
mod rights;
mod site;
