//! From a finished handshake to who is at its other end.

use super::certificate::CertificateFacts;
use crate::error::{Error, Kind, Result};
use quinn::crypto::rustls::HandshakeData;
use rustls::pki_types::CertificateDer;
use tidegate_protocol::ids::EnrolmentId;
use tidegate_protocol::wire::{ALPN, ALPN_JOIN};

/// Who has connected to a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Nobody that is known: it may join, and nothing else.
    Joining,
    /// A host with a certificate of the authority that holds now. Whether it was revoked, and what
    /// it may do, the authority knows.
    Host(HostCertificate),
}

/// What is known of a connected host by its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostCertificate {
    /// Its enrolment.
    pub enrolment: EnrolmentId,
    /// Until when its certificate holds, Unix time in nanoseconds. A connection that lives longer is
    /// the gateway's to close: TLS looks at the beginning only.
    pub expires_unix_ns: u64,
}

/// Who is at the other end of a connection that a gateway has accepted, by
/// [`super::server_config`]. Its handshake must be complete.
///
/// # Errors
/// [`Kind::Denied`] for a host without a certificate and for one whose certificate is not a host's.
pub fn peer_of(connection: &quinn::Connection) -> Result<Peer> {
    let protocol = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| data.protocol);
    let certificates = connection
        .peer_identity()
        .and_then(|shown| shown.downcast::<Vec<CertificateDer<'static>>>().ok());
    classify(
        protocol.as_deref(),
        certificates.as_ref().map(|all| &all[..]),
    )
}

/// The decision: by what was agreed to speak, and what was shown and verified.
pub(super) fn classify(
    protocol: Option<&[u8]>,
    verified: Option<&[CertificateDer<'static>]>,
) -> Result<Peer> {
    let refused = |why: &str| {
        Err(Error::new(
            Kind::Denied,
            format!("connection refused: {why}"),
        ))
    };
    let shown = verified.and_then(<[_]>::first);
    match (protocol, shown) {
        (Some(ALPN_JOIN), None) => Ok(Peer::Joining),
        (Some(ALPN_JOIN), Some(_)) => refused("a host that has a certificate does not join"),
        (Some(ALPN), None) => refused("the host shows no certificate"),
        (Some(ALPN), Some(der)) => {
            let facts = CertificateFacts::read("the host's certificate", der)?;
            match facts.enrolment {
                Some(enrolment) if !facts.is_authority => Ok(Peer::Host(HostCertificate {
                    enrolment,
                    expires_unix_ns: facts.not_after_unix_ns,
                })),
                _ => refused("the certificate is not that of a host"),
            }
        }
        _ => refused("it speaks no protocol of ours"),
    }
}
