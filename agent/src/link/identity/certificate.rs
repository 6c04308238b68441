//! What certificates and requests say, read by a parser that takes any bytes.
//!
//! Reading is not believing: a certificate's facts hold once its chain was verified, which TLS does
//! for a peer's, and [`CertificateFacts::check_signed_by`] for one that is not shown by a peer.

use crate::error::{Error, Kind, Result};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use tidegate_protocol::enrolment::CERTIFICATE_BYTES_MAX;
use tidegate_protocol::ids::EnrolmentId;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// SubjectPublicKeyInfo of an Ed25519 key (RFC 8410) up to the 32 bytes of the key.
pub(super) const PUBLIC_KEY_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

const SECOND_NS: u64 = 1_000_000_000;

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The enrolment that it is for, where it is a host's.
    pub enrolment: Option<EnrolmentId>,
    /// From when it holds, Unix time in nanoseconds.
    pub not_before_unix_ns: u64,
    /// Until when it holds, Unix time in nanoseconds.
    pub not_after_unix_ns: u64,
    /// Whether it may sign others.
    pub is_authority: bool,
    /// SubjectPublicKeyInfo, DER: of an Ed25519 key.
    pub public_der: Vec<u8>,
    key: [u8; 32],
    signed: Vec<u8>,
    signature: Vec<u8>,
}

impl CertificateFacts {
    /// Reads a certificate. `what` names it in errors.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] where it is no certificate of an Ed25519 key.
    pub fn read(what: &str, der: &[u8]) -> Result<Self> {
        let wrong = |why: &str| Error::new(Kind::Corrupt, format!("{what}: {why}"));
        if der.len() > CERTIFICATE_BYTES_MAX {
            return Err(wrong("larger than a certificate of ours can be"));
        }
        let (rest, read) = X509Certificate::from_der(der)
            .map_err(|cause| wrong("not a certificate").caused_by(cause.to_string()))?;
        if !rest.is_empty() {
            return Err(wrong("bytes behind the certificate"));
        }
        let key = ed25519_key(read.public_key().raw)
            .ok_or_else(|| wrong("its key is not an Ed25519 key"))?;
        let mut names = read.subject().iter_common_name();
        let name = names.next().and_then(|name| name.as_str().ok());
        let is_only_name = names.next().is_none();
        Ok(Self {
            enrolment: name
                .filter(|_| is_only_name)
                .and_then(|name| name.parse().ok()),
            not_before_unix_ns: unix_ns(read.validity().not_before.timestamp()),
            not_after_unix_ns: unix_ns(read.validity().not_after.timestamp()),
            is_authority: read.is_ca(),
            public_der: read.public_key().raw.to_vec(),
            key,
            signed: read.tbs_certificate.as_ref().to_vec(),
            signature: read.signature_value.data.to_vec(),
        })
    }

    /// Whether the key of `authority` has signed this certificate.
    ///
    /// # Errors
    /// [`Kind::Denied`] where it has not.
    pub fn check_signed_by(&self, authority: &Self) -> Result<()> {
        verify(&authority.key, &self.signed, &self.signature).ok_or_else(|| {
            Error::new(
                Kind::Denied,
                "the certificate is not signed by the authority",
            )
        })
    }
}

/// What a request for a certificate says, once its signature was found to be by the very key that it
/// asks for. Names and extensions in it are nobody's to choose, and not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestFacts {
    /// SubjectPublicKeyInfo, DER: of an Ed25519 key.
    pub public_der: Vec<u8>,
}

impl RequestFacts {
    /// Reads and checks a request.
    ///
    /// # Errors
    /// Why it is refused, in words, for the gateway's log.
    pub fn read(der: &[u8]) -> Result<Self, &'static str> {
        if der.len() > CERTIFICATE_BYTES_MAX {
            return Err("the certificate request is too large");
        }
        let (rest, read) = X509CertificationRequest::from_der(der)
            .map_err(|_| "the certificate request does not parse")?;
        if !rest.is_empty() {
            return Err("there are bytes behind the certificate request");
        }
        let info = &read.certification_request_info;
        let key = ed25519_key(info.subject_pki.raw)
            .ok_or("the certificate request is not for an Ed25519 key")?;
        verify(&key, info.raw, &read.signature_value.data)
            .ok_or("the certificate request is not signed by its own key")?;
        Ok(Self {
            public_der: info.subject_pki.raw.to_vec(),
        })
    }

    /// What *joined* objects hold of the key.
    pub fn key_hash(&self) -> [u8; 32] {
        *blake3::hash(&self.public_der).as_bytes()
    }
}

fn ed25519_key(public_der: &[u8]) -> Option<[u8; 32]> {
    public_der.strip_prefix(&PUBLIC_KEY_PREFIX)?.try_into().ok()
}

fn verify(key: &[u8; 32], signed: &[u8], signature: &[u8]) -> Option<()> {
    UnparsedPublicKey::new(&ED25519, key)
        .verify(signed, signature)
        .ok()
}

/// Unix seconds as nanoseconds; what lies outside is put at the edge.
fn unix_ns(seconds: i64) -> u64 {
    u64::try_from(seconds).map_or(0, |seconds| seconds.saturating_mul(SECOND_NS))
}
