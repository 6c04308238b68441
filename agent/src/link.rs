//! The link: hosts speak to gateways over QUIC, as `protocol/WIRE.md` says.
//!
//! Connections, identities and congestion control; what a request means is the business of the two
//! ends ([`crate::store`] on the host, `gateway` beside the bucket).

pub mod congestion;
pub mod identity;
