//! Tests of the formats from outside: what goes in comes out, nothing else opens, and no bytes make
//! a decoder panic. What needs the inside of a format (hostile content under a good seal) is tested
//! beside the code.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod discipline;
mod enrolment;
mod golden;
mod hostile;
mod rights;
mod round_trips;
mod support;
mod wire;
