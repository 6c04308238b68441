//! A private key: made here, kept in a file, never sent anywhere.

use super::certificate::PUBLIC_KEY_PREFIX;
use crate::error::{Error, Kind, Result};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ED25519, PublicKeyData as _};
use rustls::pki_types::{CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::fmt;
use zeroize::Zeroizing;

/// An Ed25519 key. Not `Clone`, and not shown by `{:?}`.
pub struct PrivateKey(KeyPair);

impl PrivateKey {
    /// Draws a fresh key.
    ///
    /// # Errors
    /// [`Kind::Io`] where the operating system gives no randomness.
    pub fn generate() -> Result<Self> {
        KeyPair::generate_for(&PKCS_ED25519)
            .map(Self)
            .map_err(|cause| Error::new(Kind::Io, "cannot draw a key").caused_by(cause))
    }

    /// Reads what [`PrivateKey::to_pem`] wrote. `what` names the file in errors.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] where it is no Ed25519 key (PKCS #8, PEM).
    pub fn from_pem(what: &str, pem: &str) -> Result<Self> {
        KeyPair::from_pkcs8_pem_and_sign_algo(pem, &PKCS_ED25519)
            .map(Self)
            .map_err(|cause| {
                let text = format!("{what} holds no private key: expected PEM of an Ed25519 key");
                Error::new(Kind::Corrupt, text).caused_by(cause)
            })
    }

    /// The key as PEM (PKCS #8). Secret.
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }

    /// The public half: SubjectPublicKeyInfo, DER.
    pub fn public_der(&self) -> Vec<u8> {
        [&PUBLIC_KEY_PREFIX[..], self.0.der_bytes()].concat()
    }

    /// A request for a certificate (PKCS #10): the public half and the proof that its owner asks.
    ///
    /// It asks for nothing else. What the certificate says is the authority's to decide.
    ///
    /// # Errors
    /// [`Kind::Bug`] only.
    pub fn request(&self) -> Result<CertificateSigningRequestDer<'static>> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&self.0).map_err(|cause| {
            Error::new(Kind::Bug, "cannot write a certificate request").caused_by(cause)
        })?;
        Ok(request.into())
    }

    /// For signing certificates.
    pub(crate) fn pair(&self) -> &KeyPair {
        &self.0
    }

    /// For signing certificates, for good.
    pub(crate) fn into_pair(self) -> KeyPair {
        self.0
    }

    /// For TLS.
    pub(super) fn for_tls(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.serialize_der()).into()
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}
