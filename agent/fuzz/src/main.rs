//! Coverage-guided fuzzing of everything that reads bytes which somebody else may have written.
//!
//! Not a test of what sound input means: the other tests do that. Each [`Target`] takes bytes that
//! libFuzzer makes up, and fails by a panic, by taking longer than libFuzzer allows, or by holding
//! more memory than the target says. Where there is an encoder too, what was decoded is encoded and
//! decoded again and must be equal.
//!
//! Objects of the repository are fuzzed **behind their seals**: [`sealed`] signs and seals the made
//! up content with the keys of the golden files, as a host that has turned against us could.
//!
//! One program holds all targets, and `agent/fuzz/run` builds and starts it. `TIDEGATE_FUZZ_TARGET`
//! names the target. `TIDEGATE_FUZZ_SEEDS` names a folder to which its seeds and its kept corpus are
//! written; `TIDEGATE_FUZZ_KEEP` one whose files become the kept corpus, and nothing is run.

#![no_main]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a fuzzer fails by panics"
)]

mod bound;
mod corpus;
mod enrolment;
mod images;
mod nbd;
mod objects;
mod sealed;
#[path = "../../../protocol/tests/it/support.rs"]
#[allow(
    dead_code,
    reason = "the examples of the format's own tests, not all in use here"
)]
mod support;

use std::path::Path;
use std::sync::OnceLock;

/// One reader of untrusted bytes.
struct Target {
    /// As in `TIDEGATE_FUZZ_TARGET`, and the name of its folder in `corpus`.
    name: &'static str,
    /// Reads the bytes, and panics where that breaks a promise.
    run: fn(&[u8]),
    /// Inputs that get far: made of the golden objects.
    seeds: fn() -> Vec<Vec<u8>>,
    /// What one run may hold at any moment, in bytes.
    held_bytes_max: usize,
}

/// Every target, by name.
fn targets() -> impl Iterator<Item = &'static Target> {
    [
        objects::TARGETS,
        enrolment::TARGETS,
        nbd::TARGETS,
        images::TARGETS,
    ]
    .into_iter()
    .flatten()
}

static CHOSEN: OnceLock<&Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(init: choose(), |bytes: &[u8]| {
    let target = CHOSEN.get().expect("chosen at the start");
    bound::held(target.held_bytes_max, || (target.run)(bytes));
});

/// Chooses the target, once.
fn choose() {
    let name = std::env::var("TIDEGATE_FUZZ_TARGET").unwrap_or_default();
    let Some(target) = targets().find(|target| target.name == name) else {
        targets().for_each(|target| println!("{}", target.name));
        end(i32::from(name != "list"));
    };
    if let Some(folder) = std::env::var_os("TIDEGATE_FUZZ_KEEP") {
        corpus::keep(target.name, folder.as_ref());
        end(0);
    }
    let mut inputs = (target.seeds)();
    // Lazily made keys and contexts are not what a run holds.
    inputs.iter().for_each(|seed| (target.run)(seed));
    if let Some(folder) = std::env::var_os("TIDEGATE_FUZZ_SEEDS") {
        inputs.extend(corpus::kept(target.name));
        for (number, input) in inputs.iter().enumerate() {
            let path = Path::new(&folder).join(number.to_string());
            std::fs::write(path, input).expect("seeds can be written");
        }
    }
    CHOSEN.set(target).ok().expect("chosen once");
}

/// Ends before libFuzzer has begun.
fn end(status: i32) -> ! {
    use std::io::Write as _;
    let _ = std::io::stdout().flush();
    // SAFETY: nothing was begun that would have to end in order.
    unsafe { libc::_exit(status) }
}
