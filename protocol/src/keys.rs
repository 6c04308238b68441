//! The repository's secret, what it yields, and what each of the three levels holds of it.
//!
//! | Level | Holds | Can | Cannot |
//! |---|---|---|---|
//! | host | id key, metadata key, data *public* key | back up, list, compare | read any disk content |
//! | maintenance | metadata key | answer have/want, prune, retention | read disk content, name chunks |
//! | restore | the secret: everything | restore, export, drill, make keys | – |
//!
//! Each holder also has a signing identity, certified for its level by the repository's root key,
//! whose public half stands in the descriptor. What a level may append to the log is a rule of the
//! format ([`crate::record::Kind::may_be_signed_by`]).

mod sealing;

pub use sealing::{SealPrivateKey, SealPublicKey};

use crate::aead::{SealKey, derive_key};
use crate::codec::{Reader, fixed, message};
use crate::error::FormatError;
use crate::ids::{ChunkId, KeyId, PageId, RepositoryId};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use prost::Message;
use std::fmt;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A 32-byte secret that is wiped when dropped and never printed.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    fn derive(context: &'static str, from: &Self) -> Self {
        Self(*derive_key(context, &[&from.0]))
    }
}

/// How much a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Level {
    /// Backs up and lists; cannot read disk content.
    Host,
    /// Keeps the repository in order; can neither read disk content nor name chunks.
    Maintenance,
    /// Everything.
    Restore,
}

impl Level {
    /// All levels, by rising tag.
    pub const ALL: [Self; 3] = [Self::Host, Self::Maintenance, Self::Restore];

    /// The tag in stored formats.
    pub const fn tag(self) -> u8 {
        match self {
            Self::Host => 1,
            Self::Maintenance => 2,
            Self::Restore => 3,
        }
    }

    /// The level with that tag.
    pub fn from_tag(tag: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.tag() == tag)
    }

    /// The level's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Maintenance => "maintenance",
            Self::Restore => "restore",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|level| level.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not a key level: host, maintenance or restore"))
    }
}

/// A signing key pair (Ed25519).
pub struct SigningKey {
    seed: Secret,
    pair: Ed25519KeyPair,
}

impl SigningKey {
    /// The pair that belongs to `seed`.
    pub fn from_seed(seed: Secret) -> Self {
        #[expect(
            clippy::expect_used,
            reason = "every 32-byte string is a valid Ed25519 seed"
        )]
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed.0).expect("any seed makes a key pair");
        Self { seed, pair }
    }

    /// The public half.
    pub fn public(&self) -> VerifyingKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        VerifyingKey(bytes)
    }

    /// Signs.
    pub fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.pair.sign(bytes).as_ref());
        signature
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({:?})", self.public().id())
    }
}

/// The public half of a [`SigningKey`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VerifyingKey(pub [u8; 32]);

impl VerifyingKey {
    /// The short name under which the log speaks of this key.
    pub fn id(&self) -> KeyId {
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::hash(&self.0).as_bytes()[..16]);
        KeyId(id)
    }

    /// Checks a signature.
    pub fn verify(
        &self,
        object: &'static str,
        bytes: &[u8],
        signature: &[u8],
    ) -> Result<(), FormatError> {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(bytes, signature)
            .map_err(|_| FormatError::Signature { object })
    }
}

/// The root key's word that a signing key belongs to a level of a repository.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Certificate {
    /// What the key may do.
    pub level: Level,
    /// Where.
    pub repository: RepositoryId,
    /// The key.
    pub public: VerifyingKey,
    /// When it was certified, Unix time in nanoseconds.
    pub issued_unix_ns: u64,
    signature: [u8; 64],
}

impl Certificate {
    /// Encoded length in bytes.
    pub const BYTES: usize = 1 + RepositoryId::BYTES + 32 + 8 + 64;
    const OBJECT: &'static str = "certificate";

    /// Certifies `public` with the root key.
    pub fn issue(
        root: &SigningKey,
        level: Level,
        repository: RepositoryId,
        public: VerifyingKey,
        issued_unix_ns: u64,
    ) -> Self {
        let mut certificate = Self {
            level,
            repository,
            public,
            issued_unix_ns,
            signature: [0; 64],
        };
        certificate.signature = root.sign(&certificate.signed_bytes());
        certificate
    }

    /// Checks that the root key of `repository` issued this.
    pub fn verify(&self, root: &VerifyingKey, repository: RepositoryId) -> Result<(), FormatError> {
        if self.repository != repository {
            return Err(FormatError::Foreign {
                object: Self::OBJECT,
                expected: repository.to_string(),
                found: self.repository.to_string(),
            });
        }
        root.verify(Self::OBJECT, &self.signed_bytes(), &self.signature)
    }

    /// Encodes.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[0] = self.level.tag();
        out[1..17].copy_from_slice(&self.repository.0);
        out[17..49].copy_from_slice(&self.public.0);
        out[49..57].copy_from_slice(&self.issued_unix_ns.to_le_bytes());
        out[57..].copy_from_slice(&self.signature);
        out
    }

    /// Decodes, without checking the signature.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(Self::OBJECT, bytes);
        let tag = reader.u8()?;
        let level = Level::from_tag(tag).ok_or_else(|| reader.tag("level", tag.into()))?;
        Ok(Self {
            level,
            repository: RepositoryId(reader.array()?),
            public: VerifyingKey(reader.array()?),
            issued_unix_ns: reader.u64()?,
            signature: reader.array()?,
        })
    }

    fn signed_bytes(&self) -> Vec<u8> {
        let mut bytes = b"tidegate 1 certificate".to_vec();
        bytes.extend_from_slice(&self.encode()[..Self::BYTES - 64]);
        bytes
    }
}

/// A signing key and its certificate.
#[derive(Debug)]
pub struct Identity {
    /// The key.
    pub signing: SigningKey,
    /// What it may do.
    pub certificate: Certificate,
}

/// The repository's one secret, from which everything else follows.
#[derive(Clone, Debug)]
pub struct RepositorySecret(pub Secret);

impl RepositorySecret {
    /// The root signing key, which certifies identities and signs the descriptor.
    pub fn root_key(&self) -> SigningKey {
        SigningKey::from_seed(Secret::derive("tidegate 1 root signing key", &self.0))
    }

    /// The pair to which disk content is sealed.
    pub fn data_key(&self) -> SealPrivateKey {
        SealPrivateKey::derive(&Secret::derive("tidegate 1 data key pair", &self.0))
    }

    fn id_key(&self) -> Secret {
        Secret::derive("tidegate 1 id key", &self.0)
    }

    fn metadata_key(&self) -> Secret {
        Secret::derive("tidegate 1 metadata key", &self.0)
    }

    /// What a holder of `level` gets, with a fresh identity made from `identity_seed`.
    pub fn issue(
        &self,
        level: Level,
        repository: RepositoryId,
        identity_seed: Secret,
        issued_unix_ns: u64,
    ) -> Keys {
        let root = self.root_key();
        let signing = SigningKey::from_seed(identity_seed);
        let certificate =
            Certificate::issue(&root, level, repository, signing.public(), issued_unix_ns);
        let data = self.data_key();
        Keys {
            repository,
            level,
            root_public: root.public(),
            data_public: data.public(),
            metadata_key: self.metadata_key(),
            id_key: (level != Level::Maintenance).then(|| self.id_key()),
            secret: (level == Level::Restore).then(|| self.clone()),
            data_private: (level == Level::Restore).then_some(data),
            identity: Identity {
                signing,
                certificate,
            },
        }
    }
}

/// Everything one holder has.
#[derive(Debug)]
pub struct Keys {
    repository: RepositoryId,
    level: Level,
    root_public: VerifyingKey,
    data_public: SealPublicKey,
    metadata_key: Secret,
    id_key: Option<Secret>,
    secret: Option<RepositorySecret>,
    data_private: Option<SealPrivateKey>,
    identity: Identity,
}

impl Keys {
    /// The repository these keys belong to.
    pub fn repository(&self) -> RepositoryId {
        self.repository
    }

    /// What they may do.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The public half of the root key, against which certificates and descriptor are checked.
    pub fn root_public(&self) -> &VerifyingKey {
        &self.root_public
    }

    /// The public half of the data key pair.
    pub fn data_public(&self) -> SealPublicKey {
        self.data_public
    }

    /// The holder's signing identity.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The repository's secret; restore level only.
    pub fn secret(&self) -> Result<&RepositorySecret, FormatError> {
        self.secret
            .as_ref()
            .ok_or_else(|| self.lacking("make or certify keys"))
    }

    /// The key that opens disk content; restore level only.
    pub fn data_private(&self) -> Result<&SealPrivateKey, FormatError> {
        self.data_private
            .as_ref()
            .ok_or_else(|| self.lacking("read disk content"))
    }

    /// Names chunks; host and restore level.
    pub fn chunk_namer(&self) -> Result<ChunkNamer, FormatError> {
        match &self.id_key {
            Some(key) => Ok(ChunkNamer(key.clone())),
            None => Err(self.lacking("name chunks")),
        }
    }

    /// Names tree pages by their logical content.
    pub fn page_id(&self, logical: &[u8]) -> PageId {
        let key = derive_key("tidegate 1 page names", &[&self.metadata_key.0]);
        PageId(*blake3::keyed_hash(&key, logical).as_bytes())
    }

    /// The key of one object's metadata: derived from the metadata key and the object's salt.
    pub(crate) fn metadata_seal_key(&self, context: &'static str, salt: &[u8; 32]) -> SealKey {
        SealKey::derive(context, &self.metadata_key.0, salt)
    }

    /// Encodes for a key file or a slot. Secret.
    pub(crate) fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut bundle = Bundle {
            level: u32::from(self.level.tag()),
            repository: self.repository.0.to_vec(),
            root_public: self.root_public.0.to_vec(),
            data_public: self.data_public.0.to_vec(),
            metadata_key: Vec::new(),
            id_key: Vec::new(),
            secret: Vec::new(),
            signing_seed: self.identity.signing.seed.0.to_vec(),
            certificate: self.identity.certificate.encode().to_vec(),
        };
        // The secret yields the other two: what is stored once cannot disagree.
        match &self.secret {
            Some(secret) => bundle.secret = secret.0.0.to_vec(),
            None => {
                bundle.metadata_key = self.metadata_key.0.to_vec();
                if let Some(id_key) = &self.id_key {
                    bundle.id_key = id_key.0.to_vec();
                }
            }
        }
        // Room for all of it: a vector that grows leaves copies behind.
        let mut out = Zeroizing::new(Vec::with_capacity(bundle.encoded_len()));
        bundle.encode_raw(&mut *out);
        out
    }

    /// Decodes, checking that all parts belong together and that nothing else is there: keys have
    /// one encoding.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        const OBJECT: &str = "key";
        let bundle: Bundle = message(OBJECT, bytes)?;
        let keys = Self::from_bundle(&bundle)?;
        keys.identity
            .certificate
            .verify(&keys.root_public, keys.repository)?;
        if keys.encode().as_slice() != bytes {
            return Err(FormatError::Message {
                object: OBJECT,
                detail: "its parts contradict each other, or it holds more than its level has"
                    .to_owned(),
            });
        }
        Ok(keys)
    }

    fn from_bundle(bundle: &Bundle) -> Result<Self, FormatError> {
        const OBJECT: &str = "key";
        let id = |field, bytes: &[u8]| fixed::<32>(OBJECT, field, bytes);
        let level = u8::try_from(bundle.level)
            .ok()
            .and_then(Level::from_tag)
            .ok_or(FormatError::Tag {
                object: OBJECT,
                field: "level",
                found: bundle.level.into(),
            })?;
        let repository = RepositoryId(fixed(OBJECT, "repository", &bundle.repository)?);
        let certificate = Certificate::decode(&fixed(OBJECT, "certificate", &bundle.certificate)?)?;
        let signing = SigningKey::from_seed(Secret(id("signing seed", &bundle.signing_seed)?));
        if certificate.public != signing.public() || certificate.level != level {
            return Err(FormatError::Signature { object: OBJECT });
        }
        let identity = Identity {
            signing,
            certificate,
        };
        if level == Level::Restore {
            let secret = RepositorySecret(Secret(id("secret", &bundle.secret)?));
            let data = secret.data_key();
            return Ok(Self {
                repository,
                level,
                root_public: secret.root_key().public(),
                data_public: data.public(),
                metadata_key: secret.metadata_key(),
                id_key: Some(secret.id_key()),
                data_private: Some(data),
                secret: Some(secret),
                identity,
            });
        }
        Ok(Self {
            repository,
            level,
            root_public: VerifyingKey(id("root public key", &bundle.root_public)?),
            data_public: SealPublicKey(id("data public key", &bundle.data_public)?),
            metadata_key: Secret(id("metadata key", &bundle.metadata_key)?),
            id_key: match level {
                Level::Host => Some(Secret(id("id key", &bundle.id_key)?)),
                _ => None,
            },
            secret: None,
            data_private: None,
            identity,
        })
    }

    fn lacking(&self, action: &'static str) -> FormatError {
        FormatError::Right {
            level: self.level.as_str(),
            action,
        }
    }
}

/// Names chunks and seeds the chunker. Cheap to clone, one for each worker.
#[derive(Clone, Debug)]
pub struct ChunkNamer(Secret);

impl ChunkNamer {
    /// The chunk's name.
    pub fn name(&self, plain: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(&self.0.0, plain).as_bytes())
    }

    /// The seed of the chunker's block hash: chunk sizes must not betray known files.
    pub fn chunker_seed(&self) -> u64 {
        let key = derive_key("tidegate 1 chunker seed", &[&self.0.0]);
        let mut seed = [0; 8];
        seed.copy_from_slice(&key[..8]);
        u64::from_le_bytes(seed)
    }
}

/// [`Keys`] as stored: in a key file, or sealed in a slot.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct Bundle {
    #[prost(uint32, tag = "1")]
    level: u32,
    #[prost(bytes = "vec", tag = "2")]
    repository: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    root_public: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    data_public: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    metadata_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    id_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "7")]
    secret: Vec<u8>,
    #[prost(bytes = "vec", tag = "8")]
    signing_seed: Vec<u8>,
    #[prost(bytes = "vec", tag = "9")]
    certificate: Vec<u8>,
}

impl Drop for Bundle {
    fn drop(&mut self) {
        self.metadata_key.zeroize();
        self.id_key.zeroize();
        self.secret.zeroize();
        self.signing_seed.zeroize();
    }
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bundle(…)")
    }
}
