//! Who is at the other end: keys, certificates and the TLS of the link.
//!
//! A fleet of gateways has one authority. It gives a certificate to each host that joins by a token
//! ([`tidegate_protocol::enrolment`]) and to each gateway when it starts; hosts and gateways believe
//! that authority and no other. What a host may do is not in its certificate, only which enrolment it
//! is: rights are looked up, so that they can be taken back. Issuing is the gateway's business, not
//! this module's.
//!
//! | Part | Purpose |
//! |---|---|
//! | `key` | a key that never leaves the machine, and requests for certificates |
//! | `certificate` | what is read from certificates and requests, and believed after checking only |
//! | `folder` | the host's files: joining, opening, renewing |
//! | `tls` | TLS configurations of both ends |
//! | `peer` | from a finished handshake to who it is |
//!
//! The invariants:
//!
//! - **Ed25519, everywhere.** A public key has one encoding of 44 bytes, a signature needs no
//!   randomness, and requests with any other kind of key need no thought: they are refused. The
//!   repository's records are signed by the same.
//! - **TLS 1.3 and nothing older; no tickets, no early data.** A resumed session would go on with the
//!   certificate of the first handshake, past its expiry; what is sent early can be replayed.
//!   Connections last for days, so a full handshake costs nothing that counts.
//! - **A connection without a host's certificate is good for joining, one with it for all else.**
//!   [`Peer`] says which of the two it is, and there is no other way to an enrolment's id.

mod certificate;
mod folder;
mod key;
mod peer;
mod tls;

pub use certificate::{CertificateFacts, RequestFacts};
pub use folder::{Identity, JoinInProgress};
pub use key::PrivateKey;
pub use peer::{HostCertificate, Peer, peer_of};
pub use tls::{Clock, GatewayCertificate, GatewayCertificates, client_config, join_config};
pub use tls::{WallClock, server_config};
