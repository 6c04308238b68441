//! Every kind of object, damaged in every way, before every verb: what is done is done completely and
//! right, or the error's kind says what to do and its text names the object. Never a wrong byte on a
//! target, never a panic.
//!
//! | Part | Shows |
//! |---|---|
//! | `world` | a repository with three points, the verbs, and how an outcome is judged |
//! | `objects` | deleted, cut in half, one bit flipped |
//! | `order` | two objects swapped, an older one in a newer one's place, the log cut short |
//! | `local` | the same for the files of the local cache |
//! | `slots` | the same for key slots |
//! | `repair` | what the next backup mends, with and without a verify before it |
//! | `segments` | the same for index segments |
//!
//! What each cell comes to stands in tables, so that a change of it is seen.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod lab;

#[path = "damage/local.rs"]
mod local;
#[path = "damage/objects.rs"]
mod objects;
#[path = "damage/order.rs"]
mod order;
#[path = "damage/repair.rs"]
mod repair;
#[path = "damage/segments.rs"]
mod segments;
#[path = "damage/slots.rs"]
mod slots;
#[path = "damage/world.rs"]
mod world;
