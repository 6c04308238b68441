//! The four objects: front (magic, version, length), a message, and a BLAKE3 of both.

use super::{CERTIFICATE_BYTES_MAX, Fingerprint, GRANTS_MAX, SecretHash};
use super::{check_host, check_repository};
use crate::codec::{Reader, at_most, fixed, length_u32, message};
use crate::error::FormatError;
use crate::ids::EnrolmentId;
use crate::limits::SMALL_OBJECT_BYTES_MAX;
use crate::rights::Rights;
use prost::Message;

/// Where the authority's certificate stands.
pub const AUTHORITY_OBJECT_KEY: &str = "authority";

/// The folder of invites.
pub const INVITES: &str = "invites";

/// The folder of those that were used.
pub const JOINED: &str = "joined";

/// The folder of those that were revoked.
pub const REVOKED: &str = "revoked";

const VERSION: u8 = 1;

/// A fleet's authority: what is public of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// Its certificate, DER.
    pub certificate_der: Vec<u8>,
    /// When it was made, Unix time in nanoseconds.
    pub created_unix_ns: u64,
}

impl Authority {
    const FORMAT: Format = Format {
        object: "authority",
        magic: *b"TGEA",
    };

    /// What tokens pin it by.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate_der)
    }

    /// Encodes it. Refuses what [`Authority::decode`] would refuse.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        Self::FORMAT.encode(&AuthorityMessage {
            certificate: self.certificate_der.clone(),
            created_unix_ns: self.created_unix_ns,
        })
    }

    /// Reads it. Whether the certificate is one, and what it is worth, the gateway finds out.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let read: AuthorityMessage = Self::FORMAT.decode(bytes)?;
        let authority = Self {
            certificate_der: read.certificate,
            created_unix_ns: read.created_unix_ns,
        };
        authority.check()?;
        Ok(authority)
    }

    fn check(&self) -> Result<(), FormatError> {
        let length = self.certificate_der.len();
        Self::FORMAT.in_range("certificate", length, 1, CERTIFICATE_BYTES_MAX)
    }
}

/// An invite: who may join, and what they may do from then on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    /// The enrolment that comes of it.
    pub enrolment: EnrolmentId,
    /// Hash of the token's secret.
    pub secret_hash: SecretHash,
    /// What the host is called.
    pub host: String,
    /// Its rights, each repository once, in the order of bytes.
    pub grants: Vec<Grant>,
    /// When it was made, Unix time in nanoseconds.
    pub created_unix_ns: u64,
    /// Until when the token can be used, Unix time in nanoseconds. Ends no enrolment.
    pub expires_unix_ns: u64,
}

/// Rights in one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The repository, as the gateways' configuration calls it.
    pub repository: String,
    /// What the host may do in it.
    pub rights: Rights,
}

impl Invite {
    const FORMAT: Format = Format {
        object: "invite",
        magic: *b"TGEI",
    };

    /// Where an enrolment's invite stands.
    pub fn object_key(enrolment: EnrolmentId) -> String {
        format!("{INVITES}/{enrolment}")
    }

    /// The rights in a repository: none where it is not named.
    pub fn rights_in(&self, repository: &str) -> Rights {
        self.grants
            .iter()
            .find(|grant| grant.repository == repository)
            .map_or(Rights::NONE, |grant| grant.rights)
    }

    /// Encodes it. Refuses what [`Invite::decode`] would refuse.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        Self::FORMAT.encode(&InviteMessage {
            enrolment: self.enrolment.0.to_vec(),
            secret_hash: self.secret_hash.0.to_vec(),
            host: self.host.clone(),
            grants: self
                .grants
                .iter()
                .map(|grant| GrantMessage {
                    repository: grant.repository.clone(),
                    rights: grant.rights.bits(),
                })
                .collect(),
            created_unix_ns: self.created_unix_ns,
            expires_unix_ns: self.expires_unix_ns,
        })
    }

    /// Reads the invite that stands at the place of `enrolment`.
    pub fn decode(bytes: &[u8], enrolment: EnrolmentId) -> Result<Self, FormatError> {
        let format = Self::FORMAT;
        let read: InviteMessage = format.decode(bytes)?;
        format.belongs(&read.enrolment, enrolment)?;
        let grant = |grant: GrantMessage| {
            Ok(Grant {
                repository: grant.repository,
                rights: Rights::from_bits(grant.rights)?,
            })
        };
        let invite = Self {
            enrolment,
            secret_hash: SecretHash(fixed(format.object, "secret's hash", &read.secret_hash)?),
            host: read.host,
            grants: read
                .grants
                .into_iter()
                .map(grant)
                .collect::<Result<_, FormatError>>()?,
            created_unix_ns: read.created_unix_ns,
            expires_unix_ns: read.expires_unix_ns,
        };
        invite.check()?;
        Ok(invite)
    }

    fn check(&self) -> Result<(), FormatError> {
        let format = Self::FORMAT;
        check_host(format.object, &self.host)?;
        format.in_range("grants", self.grants.len(), 1, GRANTS_MAX)?;
        for grant in &self.grants {
            check_repository(format.object, &grant.repository)?;
            if grant.rights.is_empty() {
                return Err(format.wrong(format!("it grants nothing in {:?}", grant.repository)));
            }
        }
        match self
            .grants
            .is_sorted_by(|one, next| one.repository < next.repository)
        {
            true => Ok(()),
            false => Err(format.wrong("a repository comes twice, or out of order".to_owned())),
        }
    }
}

/// That an invite was used, and by which key: of several who try, the one whose object is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// The enrolment.
    pub enrolment: EnrolmentId,
    /// BLAKE3-256 of the public key (SubjectPublicKeyInfo, DER) that joined.
    pub key_hash: [u8; 32],
    /// When, Unix time in nanoseconds.
    pub joined_unix_ns: u64,
}

impl Joined {
    const FORMAT: Format = Format {
        object: "joined",
        magic: *b"TGEJ",
    };

    /// Where it stands.
    pub fn object_key(enrolment: EnrolmentId) -> String {
        format!("{JOINED}/{enrolment}")
    }

    /// Encodes it.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        Self::FORMAT.encode(&JoinedMessage {
            enrolment: self.enrolment.0.to_vec(),
            key_hash: self.key_hash.to_vec(),
            joined_unix_ns: self.joined_unix_ns,
        })
    }

    /// Reads the one that stands at the place of `enrolment`.
    pub fn decode(bytes: &[u8], enrolment: EnrolmentId) -> Result<Self, FormatError> {
        let format = Self::FORMAT;
        let read: JoinedMessage = format.decode(bytes)?;
        format.belongs(&read.enrolment, enrolment)?;
        Ok(Self {
            enrolment,
            key_hash: fixed(format.object, "key's hash", &read.key_hash)?,
            joined_unix_ns: read.joined_unix_ns,
        })
    }
}

/// That an enrolment has ended, for ever.
///
/// Its being there is what counts: who finds one that does not decode takes it as it is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// The enrolment.
    pub enrolment: EnrolmentId,
    /// When, Unix time in nanoseconds.
    pub revoked_unix_ns: u64,
}

impl Revoked {
    const FORMAT: Format = Format {
        object: "revocation",
        magic: *b"TGER",
    };

    /// Where it stands.
    pub fn object_key(enrolment: EnrolmentId) -> String {
        format!("{REVOKED}/{enrolment}")
    }

    /// Encodes it.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        Self::FORMAT.encode(&RevokedMessage {
            enrolment: self.enrolment.0.to_vec(),
            revoked_unix_ns: self.revoked_unix_ns,
        })
    }

    /// Reads the one that stands at the place of `enrolment`.
    pub fn decode(bytes: &[u8], enrolment: EnrolmentId) -> Result<Self, FormatError> {
        let format = Self::FORMAT;
        let read: RevokedMessage = format.decode(bytes)?;
        format.belongs(&read.enrolment, enrolment)?;
        Ok(Self {
            enrolment,
            revoked_unix_ns: read.revoked_unix_ns,
        })
    }
}

impl EnrolmentId {
    /// The enrolment whose object stands at `key` in one of the three folders.
    pub fn from_object_key(folder: &str, key: &str) -> Option<Self> {
        let name = key.strip_prefix(folder)?.strip_prefix('/')?;
        name.parse().ok().filter(|id: &Self| id.to_string() == name)
    }
}

/// What the four have in common.
#[derive(Clone, Copy)]
struct Format {
    object: &'static str,
    magic: [u8; 4],
}

impl Format {
    fn encode(self, message: &impl Message) -> Result<Vec<u8>, FormatError> {
        let message = message.encode_to_vec();
        let mut out = self.magic.to_vec();
        out.push(VERSION);
        out.extend_from_slice(&length_u32(message.len()).to_le_bytes());
        out.extend_from_slice(&message);
        let check = blake3::hash(&out);
        out.extend_from_slice(check.as_bytes());
        at_most(self.object, &out, SMALL_OBJECT_BYTES_MAX.into())?;
        Ok(out)
    }

    fn decode<M: Message + Default>(self, bytes: &[u8]) -> Result<M, FormatError> {
        at_most(self.object, bytes, SMALL_OBJECT_BYTES_MAX.into())?;
        let mut reader = Reader::new(self.object, bytes);
        reader.magic(self.magic)?;
        reader.version(VERSION)?;
        let length = reader.u32()? as usize;
        let body = reader.take(length)?;
        let checked = &bytes[..reader.position()];
        let expected: [u8; 32] = reader.array()?;
        reader.end()?;
        let found = blake3::hash(checked);
        if found != blake3::Hash::from(expected) {
            return Err(FormatError::Hash {
                object: self.object,
                expected: hex::encode(expected),
                found: found.to_string(),
            });
        }
        message(self.object, body)
    }

    fn belongs(self, found: &[u8], enrolment: EnrolmentId) -> Result<(), FormatError> {
        let found: [u8; 16] = fixed(self.object, "enrolment", found)?;
        match EnrolmentId(found) == enrolment {
            true => Ok(()),
            false => Err(self.wrong(format!(
                "it is of enrolment {}, not {enrolment}",
                EnrolmentId(found)
            ))),
        }
    }

    fn in_range(
        self,
        field: &'static str,
        found: usize,
        least: usize,
        most: usize,
    ) -> Result<(), FormatError> {
        match (least..=most).contains(&found) {
            true => Ok(()),
            false => Err(FormatError::Range {
                object: self.object,
                field,
                found: found as u64,
            }),
        }
    }

    fn wrong(self, detail: String) -> FormatError {
        FormatError::Message {
            object: self.object,
            detail,
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct AuthorityMessage {
    #[prost(bytes = "vec", tag = "1")]
    certificate: Vec<u8>,
    #[prost(fixed64, tag = "2")]
    created_unix_ns: u64,
}

#[derive(Clone, PartialEq, Message)]
struct InviteMessage {
    #[prost(bytes = "vec", tag = "1")]
    enrolment: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    secret_hash: Vec<u8>,
    #[prost(string, tag = "3")]
    host: String,
    #[prost(message, repeated, tag = "4")]
    grants: Vec<GrantMessage>,
    #[prost(fixed64, tag = "5")]
    created_unix_ns: u64,
    #[prost(fixed64, tag = "6")]
    expires_unix_ns: u64,
}

#[derive(Clone, PartialEq, Message)]
struct GrantMessage {
    #[prost(string, tag = "1")]
    repository: String,
    #[prost(uint32, tag = "2")]
    rights: u32,
}

#[derive(Clone, PartialEq, Message)]
struct JoinedMessage {
    #[prost(bytes = "vec", tag = "1")]
    enrolment: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    key_hash: Vec<u8>,
    #[prost(fixed64, tag = "3")]
    joined_unix_ns: u64,
}

#[derive(Clone, PartialEq, Message)]
struct RevokedMessage {
    #[prost(bytes = "vec", tag = "1")]
    enrolment: Vec<u8>,
    #[prost(fixed64, tag = "2")]
    revoked_unix_ns: u64,
}
