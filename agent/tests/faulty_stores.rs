//! Stores that fail: now and then, and for good.
//!
//! Now and then: a repository lives through a seeded mix of everything that can be survived, and every
//! point comes back bit-exact. For good: whatever is being done ends at its deadline with an error that
//! names the object and says what was tried.
//!
//! | Part | Fails |
//! |---|---|
//! | `wrapped` | the library's store, by `FaultStore`: all over the engine, and quick |
//! | `proxied` | the wire, by an HTTP proxy before real servers: the clients' own paths |

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod lab;

#[path = "faulty_stores/life.rs"]
mod life;
#[path = "faulty_stores/proxied.rs"]
mod proxied;
#[path = "faulty_stores/wrapped.rs"]
mod wrapped;
