//! The TLS of both ends: TLS 1.3, AWS-LC, one authority, no tickets, no early data.

use super::PrivateKey;
use crate::clock;
use crate::error::{Error, Kind, Result};
use rustls::client::Resumption;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig,
    SignatureScheme,
};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tidegate_protocol::enrolment::{Fingerprint, GATEWAY_NAME};
use tidegate_protocol::wire::{ALPN, ALPN_JOIN};

/// Where TLS gets the time from.
pub type Clock = Arc<dyn TimeProvider>;

/// The machine's clock.
#[derive(Debug, Clone, Copy)]
pub struct WallClock;

impl TimeProvider for WallClock {
    fn current_time(&self) -> Option<UnixTime> {
        let since = Duration::from_nanos(clock::now_unix_ns());
        Some(UnixTime::since_unix_epoch(since))
    }
}

/// A host's end: shows `chain`, believes gateways of the authority with that fingerprint.
///
/// Whatever name a connection is opened for, the gateway must have the certificate of one
/// ([`GATEWAY_NAME`]).
///
/// # Errors
/// [`Kind::Corrupt`] where key and certificate do not fit.
pub fn client_config(
    authority: Fingerprint,
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKey,
    clock: Clock,
) -> Result<ClientConfig> {
    let config = client_builder(authority, clock)?
        .with_client_auth_cert(chain, key.for_tls())
        .map_err(|cause| {
            Error::new(Kind::Corrupt, "the host's certificate and key do not fit").caused_by(cause)
        })?;
    Ok(client_with(config, ALPN))
}

/// The end of a host that wants to join: shows nothing.
///
/// # Errors
/// [`Kind::Bug`] only.
pub fn join_config(authority: Fingerprint, clock: Clock) -> Result<ClientConfig> {
    let config = client_builder(authority, clock)?.with_no_client_auth();
    Ok(client_with(config, ALPN_JOIN))
}

/// A gateway's end, for both protocols on one port. Shows what `certificates` hold at the time,
/// takes no certificate or one of a host of `authority`: [`super::peer_of`] tells who it was.
///
/// # Errors
/// [`Kind::Corrupt`] where the authority's certificate is none.
pub fn server_config(
    authority_der: &CertificateDer<'static>,
    certificates: Arc<GatewayCertificates>,
    clock: Clock,
) -> Result<ServerConfig> {
    let provider = provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots(authority_der)?),
        provider.clone(),
    )
    .allow_unauthenticated()
    .build()
    .map_err(|cause| bug("cannot verify hosts").caused_by(cause))?;
    let mut config = ServerConfig::builder_with_details(provider, clock)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|cause| bug("TLS 1.3 is not there").caused_by(cause))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![ALPN.to_vec(), ALPN_JOIN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// A gateway's certificate and key. In memory only: a gateway that starts makes another.
pub struct GatewayCertificate {
    /// The gateway's certificate and the authority's, which joining hosts know by fingerprint only.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKey,
    /// From when it holds, Unix time in nanoseconds.
    pub not_before_unix_ns: u64,
    /// Until when it holds, Unix time in nanoseconds.
    pub not_after_unix_ns: u64,
}

/// The certificate that a gateway shows, replaced while it runs.
pub struct GatewayCertificates {
    shown: RwLock<Arc<CertifiedKey>>,
}

impl GatewayCertificates {
    /// Shows `certificate` from the beginning.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] where key and certificate do not fit.
    pub fn new(certificate: &GatewayCertificate) -> Result<Arc<Self>> {
        let shown = RwLock::new(certified(certificate)?);
        Ok(Arc::new(Self { shown }))
    }

    /// Shows `certificate` from the next handshake on.
    ///
    /// # Errors
    /// As [`GatewayCertificates::new`].
    pub fn replace(&self, certificate: &GatewayCertificate) -> Result<()> {
        let next = certified(certificate)?;
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }
}

impl ResolvesServerCert for GatewayCertificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let shown = self.shown.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&shown))
    }
}

impl fmt::Debug for GatewayCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GatewayCertificates(…)")
    }
}

fn certified(certificate: &GatewayCertificate) -> Result<Arc<CertifiedKey>> {
    let key: PrivateKeyDer<'static> = certificate.key.for_tls();
    CertifiedKey::from_der(certificate.chain.clone(), key, &provider())
        .map(Arc::new)
        .map_err(|cause| {
            Error::new(
                Kind::Corrupt,
                "the gateway's certificate and key do not fit",
            )
            .caused_by(cause)
        })
}

fn client_builder(
    authority: Fingerprint,
    clock: Clock,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>> {
    let provider = provider();
    let verifier = Arc::new(GatewayVerifier {
        authority,
        provider: provider.clone(),
    });
    Ok(ClientConfig::builder_with_details(provider, clock)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|cause| bug("TLS 1.3 is not there").caused_by(cause))?
        .dangerous()
        .with_custom_certificate_verifier(verifier))
}

fn client_with(mut config: ClientConfig, protocol: &[u8]) -> ClientConfig {
    config.alpn_protocols = vec![protocol.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn roots(authority_der: &CertificateDer<'_>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots
        .add(authority_der.clone().into_owned())
        .map_err(|cause| {
            Error::new(Kind::Corrupt, "the authority's certificate is none").caused_by(cause)
        })?;
    Ok(roots)
}

fn bug(what: &str) -> Error {
    Error::new(Kind::Bug, what)
}

/// Believes a gateway whose chain leads to the authority of that fingerprint.
///
/// The library's own verifier does the work. What is added is where its only root comes from, the
/// shown chain, since who joins knows the fingerprint alone; and the name, since gateways are
/// reached at any address.
#[derive(Debug)]
struct GatewayVerifier {
    authority: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for GatewayVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _opened_for: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || rustls::Error::from(CertificateError::UnknownIssuer);
        let root = intermediates
            .iter()
            .find(|der| Fingerprint::of(der) == self.authority)
            .ok_or_else(unknown)?;
        let roots = roots(root).map_err(|_| unknown())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
                .build()
                .map_err(|_| unknown())?;
        let name = ServerName::try_from(GATEWAY_NAME)
            .map_err(|_| rustls::Error::from(CertificateError::NotValidForName))?;
        verifier.verify_server_cert(end_entity, &[], &name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
