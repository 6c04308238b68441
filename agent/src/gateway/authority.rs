//! Who may connect, and what they may do.
//!
//! A fleet of gateways has one authority: a key that stands on each gateway and nowhere else, and a
//! place in a store, the *fleet's place*, where its certificate, the invites and what became of them
//! are. [`Fleet`] is that place, for whoever has the store's credentials: it invites, lists, revokes.
//! [`Authority`] is a gateway with the key besides: it lets hosts join, renews, and says what a host
//! may do. What the objects are, and why, is told in the protocol's `ENROLMENT.md`.
//!
//! Not here: connections (`link::identity` says who is at the other end of one), and what a right
//! allows (the gateway's requests do).
//!
//! The invariants:
//!
//! - **Gateways agree by create-only objects, never by asking each other.** Of several that are shown
//!   one token, the one whose `joined/<id>` is there has taken it.
//! - **Nothing is issued that is not written down first.** A certificate for an enrolment is only made
//!   once its `joined` object is durable and names the very key.
//! - **A certificate says who, the fleet's place says what.** Rights are those of the invite, which
//!   never changes; a revocation ends them for ever.
//! - **Time is an argument.** Unix time in nanoseconds, wherever a decision depends on it.

mod fleet;
mod issue;

pub use fleet::{Damaged, Enrolment, EnrolmentState, Fleet, Listing, Named, NewInvite};

use crate::error::{Error, Kind, Result};
use crate::link::identity::{CertificateFacts, GatewayCertificate, PrivateKey, RequestFacts};
use crate::store::{Created, Store};
use issue::Issuer;
use quick_cache::sync::Cache;
use rustls::pki_types::CertificateDer;
use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};
use tidegate_protocol::enrolment::{self, Fingerprint, Invite, Joined, SecretHash};
use tidegate_protocol::ids::EnrolmentId;
use tidegate_protocol::keys::Secret;

/// Invites that are kept in memory, each of some hundred bytes: those of more hosts than connect to
/// one gateway.
const INVITES_CACHED: usize = 4096;

/// A gateway's part in the fleet: its place, and the key of its authority.
pub struct Authority {
    fleet: Fleet,
    issuer: Issuer,
    invites: Cache<EnrolmentId, Arc<Invite>>,
    revoked: RwLock<HashSet<EnrolmentId>>,
}

/// A certificate for a host, with what leads to the authority.
#[derive(Debug, Clone)]
pub struct IssuedChain {
    /// DER: the host's certificate, then the authority's.
    pub certificates: Vec<CertificateDer<'static>>,
    /// What the host is called.
    pub host: String,
}

/// Why a host did not get a certificate. The host is told that it was refused, not why: these words
/// are for the gateway's log.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is no invite of that id.
    #[error("no invite has the id {0}")]
    Unknown(EnrolmentId),
    /// The secret is not that of the invite.
    #[error("the token for {0} has a wrong secret")]
    Secret(EnrolmentId),
    /// The token was not used in time.
    #[error("the token for {0} has expired")]
    Expired(EnrolmentId),
    /// The enrolment was revoked.
    #[error("the enrolment {0} was revoked")]
    Revoked(EnrolmentId),
    /// Another key has used the token.
    #[error("the token for {0} was used by another key")]
    Used(EnrolmentId),
    /// The certificate request does not hold.
    #[error("{0}: {1}")]
    Request(EnrolmentId, &'static str),
    /// The store did not let it be found out: no refusal, come again.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// What a host may do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// What its invite grants.
    Enrolled(Arc<Invite>),
    /// Nothing any more.
    Revoked,
    /// Nothing: its certificate is of the authority, but there is no invite for it. Somebody has
    /// deleted that from the fleet's place.
    Unknown,
}

impl Authority {
    /// Draws the key of a new authority.
    ///
    /// # Errors
    /// As [`PrivateKey::generate`].
    pub fn new_key() -> Result<PrivateKey> {
        PrivateKey::generate()
    }

    /// Makes the authority of a new fleet in `store`, by a key that must be durable by now: a kill
    /// after this leaves a working fleet.
    ///
    /// Done again with the same key it changes nothing.
    ///
    /// # Errors
    /// [`Kind::Conflict`] where another authority is there, [`Kind::Unsupported`] where the store
    /// overwrites, else as [`Store::create`].
    pub async fn create(key: PrivateKey, store: Store, now_unix_ns: u64) -> Result<Self> {
        store.probe_create_only().await?;
        let certificate = issue::authority_certificate(&key, now_unix_ns)?;
        let object = enrolment::Authority {
            certificate_der: certificate.to_vec(),
            created_unix_ns: now_unix_ns,
        };
        let bytes = object.encode().map_err(bug)?.into();
        let _: Created = store.create(enrolment::AUTHORITY_OBJECT_KEY, bytes).await?;
        Self::load(key, store, now_unix_ns).await
    }

    /// Opens the fleet in `store` as one of its gateways.
    ///
    /// # Errors
    /// [`Kind::Missing`] where there is no fleet, [`Kind::Conflict`] where the key is that of another
    /// one, [`Kind::Corrupt`] where an object is damaged, [`Kind::Config`] where the authority has
    /// expired, else as [`Store::get`].
    pub async fn load(key: PrivateKey, store: Store, now_unix_ns: u64) -> Result<Self> {
        let fleet = Fleet::open(store).await?;
        let issuer = Issuer::new(key, &fleet, now_unix_ns)?;
        let authority = Self {
            fleet,
            issuer,
            invites: Cache::new(INVITES_CACHED),
            revoked: RwLock::default(),
        };
        authority.refresh_revocations().await?;
        Ok(authority)
    }

    /// The fleet's place.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// The authority's certificate, by which gateways know hosts.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.issuer.certificate
    }

    /// What tokens pin the authority by.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fleet.fingerprint()
    }

    /// A certificate for this gateway, with a fresh key. Holds for thirty days: ask again after
    /// twenty.
    ///
    /// # Errors
    /// As [`PrivateKey::generate`].
    pub fn server_certificate(&self, now_unix_ns: u64) -> Result<GatewayCertificate> {
        let key = PrivateKey::generate()?;
        let certificate = self.issuer.gateway(&key.public_der(), now_unix_ns)?;
        let facts = CertificateFacts::read("the gateway's certificate", &certificate)?;
        Ok(GatewayCertificate {
            chain: vec![certificate, self.issuer.certificate.clone()],
            key,
            not_before_unix_ns: facts.not_before_unix_ns,
            not_after_unix_ns: facts.not_after_unix_ns,
        })
    }

    /// Lets a host join: checks its token and its request, writes down that the token was used, and
    /// makes the certificate.
    ///
    /// The same key may come again with the same token, before that expires: the answer may have been
    /// lost.
    ///
    /// # Errors
    /// Why it was refused, or could not be decided.
    pub async fn join(
        &self,
        id: EnrolmentId,
        secret: &Secret,
        request_der: &[u8],
        now_unix_ns: u64,
    ) -> Result<IssuedChain, Refused> {
        let invite = self.fleet.invite_of(id).await?;
        let invite = admit(invite.as_ref(), id, secret, now_unix_ns)?;
        let request = RequestFacts::read(request_der).map_err(|why| Refused::Request(id, why))?;
        self.refuse_revoked(id).await?;
        let joined = Joined {
            enrolment: id,
            key_hash: request.key_hash(),
            joined_unix_ns: now_unix_ns,
        };
        if self.fleet.take(&joined).await? != joined.key_hash {
            return Err(Refused::Used(id));
        }
        self.issue(id, &invite.host, &request, now_unix_ns)
    }

    /// A new certificate for a host that is connected with one for `id`; for the same key or another.
    ///
    /// # Errors
    /// Why it was refused, or could not be decided.
    pub async fn renew(
        &self,
        id: EnrolmentId,
        request_der: &[u8],
        now_unix_ns: u64,
    ) -> Result<IssuedChain, Refused> {
        let request = RequestFacts::read(request_der).map_err(|why| Refused::Request(id, why))?;
        let invite = match self.standing(id).await? {
            Standing::Enrolled(invite) => invite,
            Standing::Revoked => return Err(Refused::Revoked(id)),
            Standing::Unknown => return Err(Refused::Unknown(id)),
        };
        self.refuse_revoked(id).await?;
        self.issue(id, &invite.host, &request, now_unix_ns)
    }

    /// What a host may do, whose certificate for `id` TLS has verified. Sends a request only for an
    /// enrolment that is new to this gateway. Revocations are those of the last
    /// [`Authority::refresh_revocations`].
    ///
    /// # Errors
    /// As [`Store::get`], and [`Kind::Corrupt`] where the invite is damaged.
    pub async fn standing(&self, id: EnrolmentId) -> Result<Standing> {
        if self.is_revoked(id) {
            return Ok(Standing::Revoked);
        }
        if let Some(invite) = self.invites.get(&id) {
            return Ok(Standing::Enrolled(invite));
        }
        let Some(invite) = self.fleet.invite_of(id).await? else {
            return Ok(Standing::Unknown);
        };
        let invite = Arc::new(invite);
        self.invites.insert(id, Arc::clone(&invite));
        Ok(Standing::Enrolled(invite))
    }

    /// Whether the enrolment was revoked, as of the last [`Authority::refresh_revocations`].
    pub fn is_revoked(&self, id: EnrolmentId) -> bool {
        let revoked = self.revoked.read().unwrap_or_else(PoisonError::into_inner);
        revoked.contains(&id)
    }

    /// Reads the list of revocations anew, whole: one listing. Returns those that are new to this
    /// gateway, whose connections it must close.
    ///
    /// # Errors
    /// As [`Store::list`]; the list stays as it was. A gateway that cannot read it goes on by the one
    /// it has, and says so.
    pub async fn refresh_revocations(&self) -> Result<Vec<EnrolmentId>> {
        let listed = self.fleet.revoked().await?;
        let mut revoked = self.revoked.write().unwrap_or_else(PoisonError::into_inner);
        // What was revoked stays so, whatever a listing leaves out.
        Ok(listed
            .into_iter()
            .filter(|id| revoked.insert(*id))
            .collect())
    }

    /// Asks the store itself, which no list that is a few seconds old can stand in for where a
    /// certificate is at stake.
    async fn refuse_revoked(&self, id: EnrolmentId) -> Result<(), Refused> {
        match self.is_revoked(id) || self.fleet.is_revoked(id).await? {
            true => Err(Refused::Revoked(id)),
            false => Ok(()),
        }
    }

    fn issue(
        &self,
        id: EnrolmentId,
        host: &str,
        request: &RequestFacts,
        now_unix_ns: u64,
    ) -> Result<IssuedChain, Refused> {
        let certificate = self.issuer.host(id, &request.public_der, now_unix_ns)?;
        Ok(IssuedChain {
            certificates: vec![certificate, self.issuer.certificate.clone()],
            host: host.to_owned(),
        })
    }
}

/// Whether a token admits its holder: the decision alone.
///
/// The secret comes first: who does not have it learns nothing, not even from how long it takes.
fn admit<'a>(
    invite: Option<&'a Invite>,
    id: EnrolmentId,
    secret: &Secret,
    now_unix_ns: u64,
) -> Result<&'a Invite, Refused> {
    let invite = invite.ok_or(Refused::Unknown(id))?;
    if SecretHash::of(id, secret) != invite.secret_hash {
        return Err(Refused::Secret(id));
    }
    if now_unix_ns >= invite.expires_unix_ns {
        return Err(Refused::Expired(id));
    }
    Ok(invite)
}

fn bug(cause: tidegate_protocol::FormatError) -> Error {
    Error::new(
        Kind::Bug,
        "an object of the fleet's place cannot be written",
    )
    .caused_by(cause)
}

#[cfg(test)]
mod tests;
