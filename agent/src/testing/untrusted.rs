//! Doors for the fuzzer to the parsers that nobody else outside may name.
//!
//! Not a part of the engine. Each takes the bytes as they come from outside and does what the engine
//! does with them, short of touching a file.

use crate::qemu;
use crate::source::open::graph::{self, Info};
use crate::source::open::vmdk;
use crate::store::aws_profile;
use crate::store::location::Location;
use crate::target::convert;
use std::path::Path;

/// The extents that a VMDK descriptor names, with the bytes that each must have.
pub fn vmdk_extents(descriptor: &[u8]) -> Vec<(&[u8], u64)> {
    vmdk::extents(descriptor)
        .map(|extent| (extent.name, extent.bytes_min))
        .collect()
}

/// An answer of `qemu-img info`, and the path of the backing file that it names.
pub fn image_info(answer: &[u8]) {
    if let Ok(info) = serde_json::from_slice::<Info>(answer)
        && let Some(named) = &info.backing_filename
    {
        // An error is an answer too.
        let _ = graph::beside(Path::new("/images/top.qcow2"), named);
    }
}

/// A line of progress of `qemu-img`.
pub fn progress(line: &[u8]) -> Option<f64> {
    convert::parse_progress(line)
}

/// What a child says on standard error, as it ends in our messages.
pub fn messages(said: &[u8]) -> String {
    qemu::cleaned("qemu-img", said)
}

/// A section of a profile file.
pub fn aws_profile(text: &str, section: &str) {
    // Whether it is there is all that can be said of made-up text.
    let _ = aws_profile::section_of(text, section);
}

/// The location of a store.
pub fn store_location(text: &str) {
    let _ = Location::parse(text);
}
