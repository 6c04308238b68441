//! Certificates, made. What they say is decided here and by nobody who asks for one.
//!
//! | | authority | gateway | host |
//! |---|---|---|---|
//! | subject | `tidegate authority` | `tidegate gateway` | the enrolment's id |
//! | may | sign certificates, of which none may sign others | be a TLS server of the name `gateway.tidegate.internal` | be a TLS client |
//! | holds | twenty years | thirty days | thirty days |
//!
//! Each begins an hour before it is made, for clocks that are behind, and none outlives the
//! authority's: TLS libraries do not look at the expiry of what they trust.

use super::fleet::Fleet;
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::link::identity::{CertificateFacts, PrivateKey};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType, SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use tidegate_protocol::enrolment::GATEWAY_NAME;
use tidegate_protocol::ids::EnrolmentId;
use time::OffsetDateTime;

const SECOND_NS: u64 = 1_000_000_000;
const HOUR_NS: u64 = 3600 * SECOND_NS;
const DAY_NS: u64 = 24 * HOUR_NS;

/// For clocks of hosts that are behind.
const BACKDATED_NS: u64 = HOUR_NS;
/// Long enough that a host that is off for a holiday comes back, short enough that a stolen
/// certificate that nobody knows of ends by itself.
const LEAF_LIFE_NS: u64 = 30 * DAY_NS;
/// A new authority means that every host joins anew.
const AUTHORITY_LIFE_NS: u64 = 20 * 365 * DAY_NS;
/// From when on a gateway says that the authority ends.
const AUTHORITY_WARNING_NS: u64 = 180 * DAY_NS;

/// The authority's certificate, signed by itself.
pub(super) fn authority_certificate(
    key: &PrivateKey,
    now_unix_ns: u64,
) -> Result<CertificateDer<'static>> {
    let mut params = params(
        "tidegate authority",
        now_unix_ns,
        now_unix_ns.saturating_add(AUTHORITY_LIFE_NS),
    )?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = params.self_signed(key.pair()).map_err(cannot)?;
    Ok(certificate.into())
}

/// The authority with its key.
pub(super) struct Issuer {
    /// Its certificate.
    pub(super) certificate: CertificateDer<'static>,
    facts: CertificateFacts,
    inner: rcgen::Issuer<'static, KeyPair>,
}

impl Issuer {
    /// Joins the key with the certificate in the fleet's place.
    pub(super) fn new(key: PrivateKey, fleet: &Fleet, now_unix_ns: u64) -> Result<Self> {
        let certificate = CertificateDer::from(fleet.authority().certificate_der.clone());
        let label = fleet.label();
        let facts = CertificateFacts::read(&format!("the authority in {label}"), &certificate)?;
        if facts.public_der != key.public_der() {
            let text = format!("the fleet in {label} has an authority with another key");
            return Err(Error::new(Kind::Conflict, text)
                .advise("use the key that `tidegate gateway init` wrote for this fleet"));
        }
        facts.check_signed_by(&facts)?;
        if !facts.is_authority {
            let text = format!("the certificate in {label} is not that of an authority");
            return Err(Error::new(Kind::Corrupt, text));
        }
        if now_unix_ns >= facts.not_after_unix_ns || now_unix_ns < facts.not_before_unix_ns {
            let text = format!("by this machine's clock the authority in {label} does not hold");
            return Err(Error::new(Kind::Config, text).advise(
                "set the clock; an authority that has expired is replaced by a new fleet, which every host joins",
            ));
        }
        if facts.not_after_unix_ns - now_unix_ns < AUTHORITY_WARNING_NS {
            tracing::warn!(
                "the authority in {label} expires in {} days: make a new fleet and have every host join it",
                (facts.not_after_unix_ns - now_unix_ns) / DAY_NS
            );
        }
        let inner =
            rcgen::Issuer::from_ca_cert_der(&certificate, key.into_pair()).map_err(cannot)?;
        Ok(Self {
            certificate,
            facts,
            inner,
        })
    }

    /// A host's certificate for its public key (SubjectPublicKeyInfo, DER).
    pub(super) fn host(
        &self,
        enrolment: EnrolmentId,
        public_der: &[u8],
        now_unix_ns: u64,
    ) -> Result<CertificateDer<'static>> {
        let mut params = self.leaf(&enrolment.to_string(), now_unix_ns)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params, public_der)
    }

    /// A gateway's certificate for its public key (SubjectPublicKeyInfo, DER).
    pub(super) fn gateway(
        &self,
        public_der: &[u8],
        now_unix_ns: u64,
    ) -> Result<CertificateDer<'static>> {
        let mut params = self.leaf("tidegate gateway", now_unix_ns)?;
        let name = GATEWAY_NAME.try_into().map_err(cannot)?;
        params.subject_alt_names = vec![SanType::DnsName(name)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(&params, public_der)
    }

    fn leaf(&self, name: &str, now_unix_ns: u64) -> Result<CertificateParams> {
        let until = now_unix_ns
            .saturating_add(LEAF_LIFE_NS)
            .min(self.facts.not_after_unix_ns);
        let mut params = params(name, now_unix_ns, until)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        Ok(params)
    }

    fn sign(
        &self,
        params: &CertificateParams,
        public_der: &[u8],
    ) -> Result<CertificateDer<'static>> {
        let public = SubjectPublicKeyInfo::from_der(public_der).map_err(cannot)?;
        let certificate = params.signed_by(&public, &self.inner).map_err(cannot)?;
        Ok(certificate.into())
    }
}

/// What all have in common: a name, a random serial number, from when until when.
fn params(name: &str, now_unix_ns: u64, until_unix_ns: u64) -> Result<CertificateParams> {
    let mut serial: [u8; 16] = clock::random()?;
    // Positive, and of one length.
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.serial_number = Some(serial.to_vec().into());
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = moment(now_unix_ns.saturating_sub(BACKDATED_NS))?;
    params.not_after = moment(until_unix_ns)?;
    Ok(params)
}

fn moment(unix_ns: u64) -> Result<OffsetDateTime> {
    let seconds = i64::try_from(unix_ns / SECOND_NS).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|cause| {
        Error::new(Kind::Config, "the clock is beyond the year 9999").caused_by(cause)
    })
}

fn cannot(cause: rcgen::Error) -> Error {
    Error::new(Kind::Bug, "cannot write a certificate").caused_by(cause)
}
