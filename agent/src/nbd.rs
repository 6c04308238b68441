//! Network Block Device: how tidegate reads disks that others understand, and shows its own.
//!
//! - [`client`]: a blocking, pipelined reader of an export on a unix socket; image formats and
//!   running machines are read through it.
//! - [`server`]: a read-only export of anything that implements [`server::Export`]; conversions to
//!   image formats, and recovery points shown as disks, go through it.
//! - [`wire`]: the bytes that both exchange.
//!
//! Not a general NBD implementation: no TLS, no network sockets, no writes, no oldstyle. The
//! invariant of both sides: the peer is not believed. Lengths are bounded before memory is taken,
//! and a reply that does not cover its request exactly is an error, never zeros.

pub mod client;
pub mod server;
pub mod wire;
