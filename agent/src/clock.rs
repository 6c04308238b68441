//! The doors to clock and chance: the only places where the engine asks for either.

use crate::error::{Error, Kind, Result};
use std::time::UNIX_EPOCH;

/// Now, Unix time in nanoseconds. For people and for schedules, never for decisions of safety.
#[expect(clippy::disallowed_methods, reason = "this is the door to the clock")]
pub fn now_unix_ns() -> u64 {
    std::time::SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| {
            u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
        })
}

/// Fresh random bytes from the operating system.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| Error::new(Kind::Io, "the operating system gave no random bytes"))?;
    Ok(bytes)
}
