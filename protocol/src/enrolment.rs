//! Who may connect: the objects in a fleet's place, and the token that invites a host.
//!
//! A fleet is a number of gateways with one authority. What they share are four kinds of small
//! create-only objects, each with a BLAKE3 of itself at its end: *authority*, *invite*, *joined*,
//! *revoked*. Not here: certificates, keys and decisions, which are the gateway's business. What
//! the objects mean, and who must do what in which order, is told in `ENROLMENT.md`.
//!
//! The invariant: an object is read as what stands at its place, or not at all. Each names the
//! enrolment that it belongs to, and a reader gives the name it looked under.

mod objects;
mod token;

pub use objects::{
    AUTHORITY_OBJECT_KEY, Authority, Grant, INVITES, Invite, JOINED, Joined, REVOKED, Revoked,
};
pub use token::Token;

use crate::aead::derive_key;
use crate::error::FormatError;
use crate::ids::EnrolmentId;
use crate::keys::Secret;
use crate::limits::NAME_BYTES_MAX;
use std::fmt;

/// The name for which gateways have a certificate and which hosts demand of them, whatever address
/// they were reached at: it stands for the role.
pub const GATEWAY_NAME: &str = "gateway.tidegate.internal";

/// Most repositories that one enrolment has rights in.
pub const GRANTS_MAX: usize = 64;

/// Most gateways that a token names.
pub const GATEWAYS_MAX: usize = 16;

/// Largest certificate, DER, in bytes: some ten times what ours take.
pub const CERTIFICATE_BYTES_MAX: usize = 8 << 10;

/// What a host compares an authority's certificate with: a BLAKE3-256 of its DER, under a context of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of a certificate.
    pub fn of(certificate_der: &[u8]) -> Self {
        Self(*derive_key("tidegate 1 authority", &[certificate_der]))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({})", hex::encode(&self.0[..4]))
    }
}

/// What the fleet's place holds of a token's secret.
///
/// No stretching: a secret is 32 random bytes, which nobody finds by trying.
#[derive(Clone, Copy)]
pub struct SecretHash(pub [u8; 32]);

impl SecretHash {
    /// Hashes the secret of the token for `enrolment`.
    pub fn of(enrolment: EnrolmentId, secret: &Secret) -> Self {
        Self(*derive_key(
            "tidegate 1 join token",
            &[&enrolment.0, &secret.0],
        ))
    }
}

impl PartialEq for SecretHash {
    /// In constant time.
    fn eq(&self, other: &Self) -> bool {
        blake3::Hash::from(self.0) == blake3::Hash::from(other.0)
    }
}

impl Eq for SecretHash {}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(…)")
    }
}

/// Refuses what cannot be a host's name: it is shown on terminals.
fn check_host(object: &'static str, name: &str) -> Result<(), FormatError> {
    let sound = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && !name.chars().any(|c| c.is_control() || c.is_whitespace());
    sound.then_some(()).ok_or_else(|| FormatError::Message {
        object,
        detail: format!(
            "{name:?} is no host's name: expected 1 to {NAME_BYTES_MAX} bytes without blanks and \
             control characters"
        ),
    })
}

/// Refuses what cannot be a repository's name: it is part of an address.
fn check_repository(object: &'static str, name: &str) -> Result<(), FormatError> {
    let sound = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    sound.then_some(()).ok_or_else(|| FormatError::Message {
        object,
        detail: format!(
            "{name:?} is no repository's name: expected 1 to {NAME_BYTES_MAX} letters, digits, '-', \
             '_' and '.', no dot first"
        ),
    })
}

/// Refuses what is no `host:port`, `v4:port` or `[v6]:port`. Whether anybody answers there is
/// another question.
pub fn check_gateway(text: &str) -> Result<(), FormatError> {
    let sound = text.rsplit_once(':').is_some_and(|(host, port)| {
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = digits && port.parse::<u16>().is_ok_and(|port| port > 0);
        let plain = |text: &str, more: &[u8]| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
        };
        let host = match host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
        {
            Some(inside) => plain(inside, b":.%-_"),
            None => plain(host, b".-_"),
        };
        text.len() <= NAME_BYTES_MAX && host && port
    });
    sound.then_some(()).ok_or_else(|| FormatError::Message {
        object: "gateway's address",
        detail: format!("{text:?} is not written host:port or [v6 address]:port"),
    })
}
