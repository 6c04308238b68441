//! The fleet's place: invites, what became of them, and the authority's certificate.
//!
//! Needs the store's credentials and no key. Everything is create-only; nothing is ever changed, and
//! only the state of an enrolment, which its three objects make up, moves on:
//!
//! ```text
//! invited ──► joined ──► revoked      invited ──► expired, where nobody came in time
//!    └──────────────────────▲
//! ```

use super::bug;
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::store::{Created, Store};
use futures::{StreamExt as _, TryStreamExt as _};
use std::collections::HashSet;
use tidegate_protocol::FormatError;
use tidegate_protocol::enrolment::{
    AUTHORITY_OBJECT_KEY, Authority, Fingerprint, Grant, INVITES, Invite, JOINED, Joined, REVOKED,
    Revoked, SecretHash, Token,
};
use tidegate_protocol::ids::EnrolmentId;
use tidegate_protocol::keys::Secret;
use tidegate_protocol::limits::SMALL_OBJECT_BYTES_MAX;

/// Objects that are read at a time for a list.
const READS_AT_ONCE: usize = 16;

/// Digits of an id that name an enrolment, at the least.
const ID_DIGITS_MIN: usize = 4;

/// The place where the gateways of one fleet keep what they share.
#[derive(Clone)]
pub struct Fleet {
    store: Store,
    authority: Authority,
}

/// Whom to invite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewInvite {
    /// What the host is called.
    pub host: String,
    /// What it may do, each repository once; at least one.
    pub grants: Vec<Grant>,
    /// Until when the token can be used, Unix time in nanoseconds.
    pub expires_unix_ns: u64,
    /// Where gateways are, `host:port`; may be empty.
    pub gateways: Vec<String>,
}

/// A host's enrolment, as listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolment {
    /// What was granted, to whom.
    pub invite: Invite,
    /// What became of it.
    pub state: EnrolmentState,
    /// When its token was used, Unix time in nanoseconds.
    pub joined_unix_ns: Option<u64>,
}

/// What there is in a fleet.
#[derive(Debug, Default)]
pub struct Listing {
    /// Every enrolment that can be read, by host and then by age.
    pub enrolments: Vec<Enrolment>,
    /// The others.
    pub damaged: Vec<Damaged>,
}

/// An enrolment of which an object is damaged. Its host is let in no more by a gateway that has not
/// read it before.
#[derive(Debug)]
pub struct Damaged {
    /// The enrolment.
    pub enrolment: EnrolmentId,
    /// Which object, and what is wrong with it.
    pub error: Error,
}

/// An enrolment that an operator has named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The enrolment.
    pub enrolment: EnrolmentId,
    /// Its host, where its invite can be read.
    pub host: Option<String>,
}

/// What became of an invite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnrolmentState {
    /// Its token can be used.
    Invited,
    /// Nobody used its token in time.
    Expired,
    /// A host has joined by it.
    Joined,
    /// Ended, for ever.
    Revoked,
}

impl EnrolmentState {
    /// The word for people and programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invited => "invited",
            Self::Expired => "expired",
            Self::Joined => "joined",
            Self::Revoked => "revoked",
        }
    }
}

impl Fleet {
    /// Opens the fleet in `store`.
    ///
    /// # Errors
    /// [`Kind::Missing`] where there is none, [`Kind::Corrupt`] where its authority's object is
    /// damaged, else as [`Store::get`].
    pub async fn open(store: Store) -> Result<Self> {
        let read = store
            .get(AUTHORITY_OBJECT_KEY, SMALL_OBJECT_BYTES_MAX.into())
            .await;
        let bytes = read.map_err(|error| match error.kind() {
            Kind::Missing => {
                let text = format!("{} holds no fleet of gateways", store.label());
                Error::new(Kind::Missing, text)
                    .advise("correct --fleet, or make one with: tidegate gateway init")
                    .caused_by(error)
            }
            _ => error,
        })?;
        let authority = Authority::decode(&bytes)
            .map_err(|cause| damaged(&store, AUTHORITY_OBJECT_KEY, cause))?;
        Ok(Self { store, authority })
    }

    /// Names the place in messages.
    pub fn label(&self) -> &str {
        self.store.label()
    }

    /// The authority's public part.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// What tokens pin the authority by.
    pub fn fingerprint(&self) -> Fingerprint {
        self.authority.fingerprint()
    }

    /// Invites a host: writes the invite and returns the token, which is nowhere else.
    ///
    /// # Errors
    /// [`Kind::Config`] where a name, a right or the time does not hold, else as [`Store::create`].
    pub async fn invite(&self, new: NewInvite, now_unix_ns: u64) -> Result<Token> {
        let refused =
            |cause: FormatError| Error::new(Kind::Config, "cannot invite").caused_by(cause);
        if new.expires_unix_ns <= now_unix_ns {
            return Err(Error::new(
                Kind::Config,
                "cannot invite: the token would have expired",
            ));
        }
        let token = Token {
            enrolment: EnrolmentId(clock::random()?),
            secret: Secret(clock::random()?),
            authority: self.fingerprint(),
            gateways: new.gateways,
        };
        token.encode().map_err(refused)?;
        let mut grants = new.grants;
        grants.sort_by(|one, other| one.repository.cmp(&other.repository));
        let invite = Invite {
            enrolment: token.enrolment,
            secret_hash: SecretHash::of(token.enrolment, &token.secret),
            host: new.host,
            grants,
            created_unix_ns: now_unix_ns,
            expires_unix_ns: new.expires_unix_ns,
        };
        let bytes = invite.encode().map_err(refused)?;
        let key = Invite::object_key(token.enrolment);
        // By that name there can only be what an earlier attempt has left, whose answer was lost.
        let _: Created = self.store.create(&key, bytes.into()).await?;
        Ok(token)
    }

    /// Every enrolment, by host and then by age: three listings, and a read or two for each. What is
    /// damaged is told apart, and hides nothing else.
    ///
    /// # Errors
    /// As [`Store::list`] and [`Store::get`].
    pub async fn list(&self, now_unix_ns: u64) -> Result<Listing> {
        let joined = self.listed(JOINED).await?;
        let revoked = self.listed(REVOKED).await?;
        let invited = self.listed(INVITES).await?;
        let mut reads = futures::stream::iter(invited)
            .map(async |id| {
                let (is_joined, is_revoked) = (joined.contains(&id), revoked.contains(&id));
                let read = self.enrolment(id, is_joined, is_revoked, now_unix_ns);
                (id, read.await)
            })
            .buffer_unordered(READS_AT_ONCE);
        let mut listing = Listing::default();
        while let Some((enrolment, read)) = reads.next().await {
            match read {
                Ok(read) => listing.enrolments.push(read),
                Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Unsupported) => {
                    listing.damaged.push(Damaged { enrolment, error });
                }
                Err(error) => return Err(error),
            }
        }
        drop(reads);
        listing.enrolments.sort_by(|one, other| {
            let key = |one: &Enrolment| (one.invite.created_unix_ns, one.invite.enrolment);
            let by_host = one.invite.host.cmp(&other.invite.host);
            by_host.then_with(|| key(one).cmp(&key(other)))
        });
        listing.damaged.sort_by_key(|damaged| damaged.enrolment);
        Ok(listing)
    }

    /// Ends enrolments for ever: all that a host has, or the one of which `which` are digits of the
    /// id, at least four. Returns those that it names, whoever has revoked them.
    ///
    /// A host's name comes first: what is both is taken as a name. An enrolment whose invite is
    /// damaged is revoked by its id.
    ///
    /// # Errors
    /// [`Kind::Missing`] where there is none, [`Kind::Config`] where the digits name several, else as
    /// [`Fleet::list`] and [`Store::create`].
    pub async fn revoke(&self, which: &str, now_unix_ns: u64) -> Result<Vec<Named>> {
        let named = choose(self.list(now_unix_ns).await?, which)?;
        for one in &named {
            let revoked = Revoked {
                enrolment: one.enrolment,
                revoked_unix_ns: now_unix_ns,
            };
            let bytes = revoked.encode().map_err(bug)?;
            let key = Revoked::object_key(one.enrolment);
            let _: Created = self.store.create(&key, bytes.into()).await?;
        }
        Ok(named)
    }

    /// The invite of an enrolment, if there is one.
    pub(super) async fn invite_of(&self, id: EnrolmentId) -> Result<Option<Invite>> {
        let key = Invite::object_key(id);
        let Some(bytes) = self.read(&key).await? else {
            return Ok(None);
        };
        Invite::decode(&bytes, id)
            .map(Some)
            .map_err(|cause| damaged(&self.store, &key, cause))
    }

    /// Writes down that a token was used, unless that is written; returns the hash of the key that
    /// has used it.
    pub(super) async fn take(&self, joined: &Joined) -> Result<[u8; 32]> {
        let key = Joined::object_key(joined.enrolment);
        let bytes = joined.encode().map_err(bug)?;
        match self.store.create(&key, bytes.into()).await? {
            Created::New => Ok(joined.key_hash),
            Created::Exists => Ok(self.joined(joined.enrolment).await?.key_hash),
        }
    }

    /// Those that were revoked: one listing, no reads, so that a damaged object revokes too.
    pub(super) async fn revoked(&self) -> Result<HashSet<EnrolmentId>> {
        self.listed(REVOKED).await
    }

    /// Whether one was revoked, asked of the store now.
    pub(super) async fn is_revoked(&self, id: EnrolmentId) -> Result<bool> {
        let size = self.store.size(&Revoked::object_key(id)).await?;
        Ok(size.is_some())
    }

    async fn enrolment(
        &self,
        id: EnrolmentId,
        is_joined: bool,
        is_revoked: bool,
        now_unix_ns: u64,
    ) -> Result<Enrolment> {
        let invite = self.invite_of(id).await?.ok_or_else(|| {
            let text = format!(
                "{} in {} was deleted just now",
                Invite::object_key(id),
                self.label()
            );
            Error::new(Kind::Missing, text)
        })?;
        let joined_unix_ns = match is_joined {
            true => Some(self.joined(id).await?.joined_unix_ns),
            false => None,
        };
        let state = match (is_revoked, is_joined) {
            (true, _) => EnrolmentState::Revoked,
            (false, true) => EnrolmentState::Joined,
            (false, false) if now_unix_ns >= invite.expires_unix_ns => EnrolmentState::Expired,
            (false, false) => EnrolmentState::Invited,
        };
        Ok(Enrolment {
            invite,
            state,
            joined_unix_ns,
        })
    }

    async fn joined(&self, id: EnrolmentId) -> Result<Joined> {
        let key = Joined::object_key(id);
        let bytes = self.store.get(&key, SMALL_OBJECT_BYTES_MAX.into()).await?;
        Joined::decode(&bytes, id).map_err(|cause| damaged(&self.store, &key, cause))
    }

    async fn read(&self, key: &str) -> Result<Option<bytes::Bytes>> {
        match self.store.get(key, SMALL_OBJECT_BYTES_MAX.into()).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == Kind::Missing => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The enrolments with an object in a folder. Other names there are nobody's, and passed over.
    async fn listed(&self, folder: &str) -> Result<HashSet<EnrolmentId>> {
        self.store
            .list(folder, None)
            .try_filter_map(|entry| async move {
                let id = EnrolmentId::from_object_key(folder, &entry.key);
                if id.is_none() {
                    tracing::warn!("{} in the fleet's place is no object of ours", entry.key);
                }
                Ok(id)
            })
            .try_collect()
            .await
    }
}

/// Those of a listing that an operator means by `which`.
fn choose(listing: Listing, which: &str) -> Result<Vec<Named>> {
    let whole = listing.enrolments.into_iter().map(|one| Named {
        enrolment: one.invite.enrolment,
        host: Some(one.invite.host),
    });
    let damaged = listing.damaged.into_iter().map(|one| Named {
        enrolment: one.enrolment,
        host: None,
    });
    let (of_host, others): (Vec<_>, Vec<_>) = whole
        .chain(damaged)
        .partition(|one| one.host.as_deref() == Some(which));
    if !of_host.is_empty() {
        return Ok(of_host);
    }
    let digits = which.to_ascii_lowercase();
    let by_id = |one: &Named| one.enrolment.to_string().starts_with(&digits);
    let named: Vec<Named> = others.into_iter().filter(by_id).collect();
    match named.len() {
        1 if digits.len() >= ID_DIGITS_MIN => Ok(named),
        several if several > 1 && digits.len() >= ID_DIGITS_MIN => Err(Error::new(
            Kind::Config,
            format!("{which:?} begins the ids of {several} enrolments"),
        )
        .advise("give more digits")),
        _ => Err(Error::new(
            Kind::Missing,
            format!("{which:?} is neither a host of the fleet nor digits of an enrolment's id"),
        )
        .advise("tidegate gateway list shows both")),
    }
}

fn damaged(store: &Store, key: &str, cause: FormatError) -> Error {
    let kind = match cause.needs_newer_program() {
        true => Kind::Unsupported,
        false => Kind::Corrupt,
    };
    Error::new(kind, format!("cannot use {key} in {}", store.label())).caused_by(cause)
}
