//! A host's identity on disk: one folder, of which only its owner may read the key.
//!
//! | File | Holds | Changed by |
//! |---|---|---|
//! | `host.key` | the private key | nobody |
//! | `authority.pem` | the certificate of the gateways' authority | joining |
//! | `gateways` | where gateways are, one a line | joining, the operator |
//! | `host.pem` | the host's certificate | joining, renewal |
//!
//! `host.pem` comes last: where it is, the host has joined. Until then joining can be begun anew by
//! the same key, so an answer that was lost costs nothing. A certificate is renewed for the same key,
//! so that there is never a moment at which the two do not fit: replacing two files is not atomic,
//! and whoever could read the old key could read the new one.

use super::certificate::CertificateFacts;
use super::{Clock, PrivateKey, client_config, join_config};
use crate::durable;
use crate::error::{Error, Kind, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use tidegate_protocol::enrolment::{Fingerprint, GATEWAYS_MAX, Token, check_gateway};
use tidegate_protocol::ids::EnrolmentId;
use zeroize::Zeroizing;

const KEY: &str = "host.key";
const AUTHORITY: &str = "authority.pem";
const GATEWAYS: &str = "gateways";
const CERTIFICATE: &str = "host.pem";

/// Largest of the files, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// A host that has a token and a key, and no certificate yet.
pub struct JoinInProgress {
    folder: PathBuf,
    token: Token,
    key: PrivateKey,
}

impl JoinInProgress {
    /// Begins, or begins anew: makes the folder and the key where they are missing. Blocks.
    ///
    /// # Errors
    /// [`Kind::Conflict`] where the host has joined already, [`Kind::Corrupt`] where there is a key
    /// that cannot be read, and what the file system says.
    pub fn begin(folder: &Path, token: Token) -> Result<Self> {
        let certificate = folder.join(CERTIFICATE);
        if certificate.exists() {
            let text = format!("{} exists: this host has joined", certificate.display());
            return Err(Error::new(Kind::Conflict, text).advise(
                "to join anew, revoke the old enrolment and move the folder away, or name another one",
            ));
        }
        durable::create_folder(folder, 0o700)
            .map_err(|cause| Error::io(format!("cannot make {}", folder.display()), cause))?;
        let key = make_or_read_key(&folder.join(KEY))?;
        Ok(Self {
            folder: folder.to_owned(),
            token,
            key,
        })
    }

    /// The token, for the request to join.
    pub fn token(&self) -> &Token {
        &self.token
    }

    /// The request for a certificate.
    ///
    /// # Errors
    /// As [`PrivateKey::request`].
    pub fn request(&self) -> Result<CertificateSigningRequestDer<'static>> {
        self.key.request()
    }

    /// The TLS configuration by which to reach a gateway.
    ///
    /// # Errors
    /// As [`join_config`].
    pub fn config(&self, clock: Clock) -> Result<ClientConfig> {
        join_config(self.token.authority, clock)
    }

    /// Takes the answer: checks it and writes the files. Blocks.
    ///
    /// `chain` is as the gateway sent it, `gateways` where gateways will be found (`host:port`, at
    /// least one), `now_unix_ns` the machine's time.
    ///
    /// # Errors
    /// [`Kind::Denied`] where the certificate is not what was asked for, [`Kind::Config`] where the
    /// gateways are not written as they must be or the clock contradicts the certificate, and what
    /// the file system says. Joining can be begun anew then.
    pub fn finish(
        self,
        chain: &[Vec<u8>],
        gateways: &[String],
        now_unix_ns: u64,
    ) -> Result<Identity> {
        check_gateways(gateways)?;
        let authority = chain
            .iter()
            .find(|der| Fingerprint::of(der) == self.token.authority)
            .ok_or_else(|| {
                Error::new(
                    Kind::Denied,
                    "the gateway's answer lacks the certificate of the authority that the token names",
                )
            })?;
        let identity = Identity::checked(
            self.folder,
            self.key,
            authority.clone(),
            chain.first().cloned().unwrap_or_default(),
            gateways.to_vec(),
        )?;
        if identity.enrolment != self.token.enrolment {
            return Err(Error::new(
                Kind::Denied,
                format!(
                    "the certificate is for enrolment {}, the token for {}",
                    identity.enrolment, self.token.enrolment
                ),
            ));
        }
        check_time(&identity.facts, now_unix_ns)?;
        let lines: String = gateways
            .iter()
            .map(|gateway| format!("{gateway}\n"))
            .collect();
        let folder = &identity.folder;
        replace(&folder.join(AUTHORITY), &pem_of(&identity.authority_der))?;
        replace(&folder.join(GATEWAYS), &lines)?;
        replace(
            &folder.join(CERTIFICATE),
            &pem_of(&identity.certificate_der),
        )?;
        Ok(identity)
    }
}

/// A host that has joined.
#[derive(Debug)]
pub struct Identity {
    folder: PathBuf,
    key: PrivateKey,
    authority_der: Vec<u8>,
    certificate_der: Vec<u8>,
    facts: CertificateFacts,
    enrolment: EnrolmentId,
    gateways: Vec<String>,
}

impl Identity {
    /// Reads it. Blocks.
    ///
    /// An expired certificate is read like any other: its host can connect no more, and must join
    /// anew.
    ///
    /// # Errors
    /// [`Kind::Missing`] where the host has not joined, [`Kind::Corrupt`] where the files do not fit
    /// each other, and what the file system says.
    pub fn open(folder: &Path) -> Result<Self> {
        if !folder.join(CERTIFICATE).exists() {
            let text = format!("{} holds no identity of a host", folder.display());
            return Err(Error::new(Kind::Missing, text)
                .advise("join with a token: tidegate host join --token-file FILE"));
        }
        let key = read_key(&folder.join(KEY))?;
        let authority = read_certificate(&folder.join(AUTHORITY))?;
        let certificate = read_certificate(&folder.join(CERTIFICATE))?;
        let gateways = read_text(&folder.join(GATEWAYS))?;
        let gateways: Vec<String> = gateways
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(str::to_owned)
            .collect();
        check_gateways(&gateways)?;
        Self::checked(folder.to_owned(), key, authority, certificate, gateways).map_err(|cause| {
            let text = format!("the files in {} do not fit each other", folder.display());
            Error::new(Kind::Corrupt, text)
                .caused_by(cause)
                .advise("bring them back from a copy, or join anew in another folder")
        })
    }

    /// Which enrolment it is.
    pub fn enrolment(&self) -> EnrolmentId {
        self.enrolment
    }

    /// Where gateways are, `host:port`; at least one.
    pub fn gateways(&self) -> &[String] {
        &self.gateways
    }

    /// Whose gateways to believe.
    pub fn authority(&self) -> Fingerprint {
        Fingerprint::of(&self.authority_der)
    }

    /// What its certificate says.
    pub fn certificate(&self) -> &CertificateFacts {
        &self.facts
    }

    /// From when to ask for a new certificate, Unix time in nanoseconds: two thirds into the life of
    /// the present one, which leaves ten days to reach a gateway.
    pub fn renew_from_unix_ns(&self) -> u64 {
        let (from, until) = (self.facts.not_before_unix_ns, self.facts.not_after_unix_ns);
        from + until.saturating_sub(from) / 3 * 2
    }

    /// The TLS configuration for connections from now on. After a renewal, ask again.
    ///
    /// # Errors
    /// As [`client_config`].
    pub fn config(&self, clock: Clock) -> Result<ClientConfig> {
        let chain = vec![CertificateDer::from(self.certificate_der.clone())];
        client_config(self.authority(), chain, &self.key, clock)
    }

    /// The request for the next certificate.
    ///
    /// # Errors
    /// As [`PrivateKey::request`].
    pub fn request(&self) -> Result<CertificateSigningRequestDer<'static>> {
        self.key.request()
    }

    /// Takes the next certificate: checks it and puts it in the place of the present one. Blocks. On
    /// an error the present one stays.
    ///
    /// # Errors
    /// [`Kind::Denied`] where it is not what was asked for, [`Kind::Config`] where the clock
    /// contradicts it, and what the file system says.
    pub fn renew(&mut self, chain: &[Vec<u8>], now_unix_ns: u64) -> Result<()> {
        let certificate = chain.first().cloned().unwrap_or_default();
        let (facts, enrolment) = check_certificate(&certificate, &self.authority_der, &self.key)?;
        if enrolment != self.enrolment {
            return Err(Error::new(
                Kind::Denied,
                format!(
                    "the new certificate is for enrolment {enrolment}, not for {}",
                    self.enrolment
                ),
            ));
        }
        check_time(&facts, now_unix_ns)?;
        replace(&self.folder.join(CERTIFICATE), &pem_of(&certificate))?;
        self.certificate_der = certificate;
        self.facts = facts;
        Ok(())
    }

    fn checked(
        folder: PathBuf,
        key: PrivateKey,
        authority_der: Vec<u8>,
        certificate_der: Vec<u8>,
        gateways: Vec<String>,
    ) -> Result<Self> {
        let (facts, enrolment) = check_certificate(&certificate_der, &authority_der, &key)?;
        Ok(Self {
            folder,
            key,
            authority_der,
            certificate_der,
            facts,
            enrolment,
            gateways,
        })
    }
}

/// Whether a certificate is by this authority, for this key, and for a host; which one.
fn check_certificate(
    der: &[u8],
    authority_der: &[u8],
    key: &PrivateKey,
) -> Result<(CertificateFacts, EnrolmentId)> {
    let refused = |why: &str| Error::new(Kind::Denied, format!("the host's certificate {why}"));
    let authority = CertificateFacts::read("the authority's certificate", authority_der)?;
    let facts = CertificateFacts::read("the host's certificate", der)?;
    facts.check_signed_by(&authority)?;
    if facts.public_der != key.public_der() {
        return Err(refused("is for another key"));
    }
    match facts.enrolment {
        Some(enrolment) if !facts.is_authority => Ok((facts, enrolment)),
        _ => Err(refused("is not one of a host")),
    }
}

fn check_time(facts: &CertificateFacts, now_unix_ns: u64) -> Result<()> {
    if (facts.not_before_unix_ns..facts.not_after_unix_ns).contains(&now_unix_ns) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Config,
        "by this machine's clock the certificate that was just made does not hold",
    )
    .advise("set the clock of this machine, or of the gateway, whichever is wrong"))
}

fn check_gateways(gateways: &[String]) -> Result<()> {
    if gateways.is_empty() || gateways.len() > GATEWAYS_MAX {
        return Err(Error::new(
            Kind::Config,
            format!(
                "{} gateways are named: expected 1 to {GATEWAYS_MAX}",
                gateways.len()
            ),
        )
        .advise("name them as host:port"));
    }
    gateways.iter().try_for_each(|gateway| {
        check_gateway(gateway).map_err(|cause| Error::new(Kind::Config, cause.to_string()))
    })
}

fn make_or_read_key(path: &Path) -> Result<PrivateKey> {
    let key = PrivateKey::generate()?;
    let pem = key.to_pem();
    match durable::create_file(path, 0o600, |file| file.write_all(pem.as_bytes())) {
        Ok(()) => Ok(key),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => read_key(path),
        Err(error) => Err(Error::io(format!("cannot write {}", path.display()), error)),
    }
}

fn read_key(path: &Path) -> Result<PrivateKey> {
    if path.metadata().is_ok_and(|found| found.mode() & 0o077 != 0) {
        tracing::warn!(
            "{} holds a secret and may be read by others: chmod 600",
            path.display()
        );
    }
    PrivateKey::from_pem(&path.display().to_string(), &read_text(path)?)
}

fn read_certificate(path: &Path) -> Result<Vec<u8>> {
    CertificateDer::from_pem_slice(read_text(path)?.as_bytes())
        .map(|der| der.to_vec())
        .map_err(|cause| {
            let text = format!("{} holds no certificate: expected PEM", path.display());
            Error::new(Kind::Corrupt, text).caused_by(cause)
        })
}

fn read_text(path: &Path) -> Result<Zeroizing<String>> {
    let cannot = |cause| Error::io(format!("cannot read {}", path.display()), cause);
    let mut text = Zeroizing::new(String::new());
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text))
        .map_err(cannot)?;
    Ok(text)
}

fn replace(path: &Path, text: &str) -> Result<()> {
    durable::replace_file(path, 0o644, |file| file.write_all(text.as_bytes()))
        .map_err(|cause| Error::io(format!("cannot write {}", path.display()), cause))
}

fn pem_of(der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text + "-----END CERTIFICATE-----\n"
}
