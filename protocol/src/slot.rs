//! Key slots: a holder's keys, wrapped for a passphrase, a key file of any kind, or an X25519
//! recipient (escrow, break-glass), as objects `keys/<slot>` in the repository.

use crate::aead::{SealKey, derive_key};
use crate::codec::{Reader, at_most, fixed, length_u32, message};
use crate::error::FormatError;
use crate::ids::{RepositoryId, SlotId};
use crate::keys::{Keys, Level, SealPrivateKey, SealPublicKey, Secret};
use crate::limits::{
    ARGON2_MEMORY_KIB_MAX, ARGON2_PASSES_MAX, NAME_BYTES_MAX, SMALL_OBJECT_BYTES_MAX,
};
use prost::Message;
use zeroize::Zeroizing;

const OBJECT: &str = "key slot";
const MAGIC: [u8; 4] = *b"TGKS";
const VERSION: u8 = 1;
const INFO: &[u8] = b"tidegate 1 key slot";

/// Fewest bytes of a file that may wrap a slot: its content is used as a key, not as a password.
pub const WRAPPING_FILE_BYTES_MIN: usize = 32;

/// What opens a slot, and how it is stretched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrapping {
    /// Argon2id over a passphrase.
    Passphrase(Argon2Cost),
    /// The content of a file of at least [`WRAPPING_FILE_BYTES_MIN`] random bytes.
    File,
    /// The holder of this X25519 key.
    Recipient(SealPublicKey),
}

/// What Argon2id (RFC 9106) is asked to spend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argon2Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Argon2Cost {
    /// RFC 9106's second recommendation: 64 MiB, three passes, four lanes.
    pub const RECOMMENDED: Self = Self {
        memory_kib: 64 << 10,
        passes: 3,
        lanes: 4,
    };

    /// Checks the cost: a hostile slot must not make its opener spend without bound.
    fn params(self) -> Result<argon2::Params, FormatError> {
        let out_of_range = |field, found: u32| FormatError::Range {
            object: OBJECT,
            field,
            found: found.into(),
        };
        if self.memory_kib > ARGON2_MEMORY_KIB_MAX {
            return Err(out_of_range("argon2 memory", self.memory_kib));
        }
        if self.passes > ARGON2_PASSES_MAX {
            return Err(out_of_range("argon2 passes", self.passes));
        }
        argon2::Params::new(self.memory_kib, self.passes, self.lanes, Some(32)).map_err(|error| {
            FormatError::Message {
                object: OBJECT,
                detail: error.to_string(),
            }
        })
    }
}

/// What a person brings to wrap or open a slot.
pub enum Credential<'a> {
    /// A passphrase.
    Passphrase(&'a str),
    /// The content of a wrapping file.
    File(&'a [u8]),
    /// A recipient's private key.
    Recipient(&'a SealPrivateKey),
}

/// A slot as read: its plain part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The slot's name.
    pub id: SlotId,
    /// The repository it belongs to.
    pub repository: RepositoryId,
    /// The level of the keys inside, as claimed: checked when it is opened.
    pub level: Level,
    /// What opens it.
    pub wrapping: Wrapping,
    /// What the operator called it.
    pub label: String,
    /// When it was made, Unix time in nanoseconds.
    pub created_unix_ns: u64,
    salt: [u8; 32],
    header: Vec<u8>,
    sealed: Vec<u8>,
}

/// Fresh randomness for one slot. Not `Clone`: it is never used for a second one.
pub struct SlotRandom {
    /// Salt of the wrapping key.
    pub salt: [u8; 32],
    /// Randomness for HPKE.
    pub seed: Secret,
}

/// With what a new slot is wrapped.
pub enum NewWrapping<'a> {
    /// A passphrase and what stretching it may cost.
    Passphrase(&'a str, Argon2Cost),
    /// The content of a wrapping file.
    File(&'a [u8]),
    /// A recipient.
    Recipient(SealPublicKey),
}

/// Wraps `keys` into the bytes of a slot object. The label is stored in plain. Refuses what
/// [`Slot::decode`] would refuse.
pub fn wrap(
    keys: &Keys,
    id: SlotId,
    label: &str,
    created_unix_ns: u64,
    with: &NewWrapping<'_>,
    random: SlotRandom,
) -> Result<Vec<u8>, FormatError> {
    check_label(label)?;
    let (kind, cost, recipient) = match with {
        NewWrapping::Passphrase(_, cost) => (KIND_PASSPHRASE, Some(*cost), None),
        NewWrapping::File(_) => (KIND_FILE, None, None),
        NewWrapping::Recipient(public) => (KIND_RECIPIENT, None, Some(*public)),
    };
    let header = Header {
        slot: id.0.to_vec(),
        repository: keys.repository().0.to_vec(),
        level: keys.level().tag().into(),
        kind,
        label: label.to_owned(),
        created_unix_ns,
        salt: random.salt.to_vec(),
        memory_kib: cost.map_or(0, |cost| cost.memory_kib),
        passes: cost.map_or(0, |cost| cost.passes),
        lanes: cost.map_or(0, |cost| cost.lanes),
        recipient: recipient.map_or_else(Vec::new, |public| public.0.to_vec()),
    }
    .encode_to_vec();
    let mut out = MAGIC.to_vec();
    out.push(VERSION);
    out.extend_from_slice(&length_u32(header.len()).to_le_bytes());
    out.extend_from_slice(&header);
    let plain = keys.encode();
    let sealed = match with {
        NewWrapping::Passphrase(text, cost) => {
            passphrase_key(text, &random.salt, *cost)?.seal(0, &out, &plain)
        }
        NewWrapping::File(content) => file_key(content, &random.salt)?.seal(0, &out, &plain),
        NewWrapping::Recipient(public) => public.seal(INFO, &out, &plain, &random.seed)?,
    };
    out.extend_from_slice(&sealed);
    at_most(OBJECT, &out, SMALL_OBJECT_BYTES_MAX.into())?;
    Ok(out)
}

impl Slot {
    /// Reads a slot's plain part.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        at_most(OBJECT, bytes, SMALL_OBJECT_BYTES_MAX.into())?;
        let mut reader = Reader::new(OBJECT, bytes);
        reader.magic(MAGIC)?;
        reader.version(VERSION)?;
        let length = reader.u32()? as usize;
        let header: Header = message(OBJECT, reader.take(length)?)?;
        let plain_bytes = reader.position();
        let sealed = reader.take(reader.remaining())?.to_vec();
        check_label(&header.label)?;
        let wrapping = match header.kind {
            KIND_PASSPHRASE => {
                let cost = Argon2Cost {
                    memory_kib: header.memory_kib,
                    passes: header.passes,
                    lanes: header.lanes,
                };
                cost.params()?;
                Wrapping::Passphrase(cost)
            }
            KIND_FILE => Wrapping::File,
            KIND_RECIPIENT => Wrapping::Recipient(SealPublicKey(fixed(
                OBJECT,
                "recipient",
                &header.recipient,
            )?)),
            other => return Err(Reader::new(OBJECT, &[]).tag("kind", other.into())),
        };
        let level = u8::try_from(header.level)
            .ok()
            .and_then(Level::from_tag)
            .ok_or_else(|| Reader::new(OBJECT, &[]).tag("level", header.level.into()))?;
        Ok(Self {
            id: SlotId(fixed(OBJECT, "slot", &header.slot)?),
            repository: RepositoryId(fixed(OBJECT, "repository", &header.repository)?),
            level,
            wrapping,
            label: header.label,
            created_unix_ns: header.created_unix_ns,
            salt: fixed(OBJECT, "salt", &header.salt)?,
            header: bytes[..plain_bytes].to_vec(),
            sealed,
        })
    }

    /// Opens it. A wrong credential and changed bytes look alike.
    ///
    /// Whoever knows a recipient's public key can make a slot for it that holds the keys of another
    /// repository. A person who opens a slot as a recipient compares the fingerprint of
    /// [`Keys::root_public`] with the one that was written down when the slot was made.
    pub fn open(&self, with: &Credential<'_>) -> Result<Keys, FormatError> {
        let wrong = FormatError::Unauthentic { object: OBJECT };
        let plain = match (with, &self.wrapping) {
            (Credential::Passphrase(text), Wrapping::Passphrase(cost)) => {
                Zeroizing::new(passphrase_key(text, &self.salt, *cost)?.open(
                    OBJECT,
                    0,
                    &self.header,
                    &self.sealed,
                )?)
            }
            (Credential::File(content), Wrapping::File) => Zeroizing::new(
                file_key(content, &self.salt)?.open(OBJECT, 0, &self.header, &self.sealed)?,
            ),
            (Credential::Recipient(private), Wrapping::Recipient(public)) => {
                if private.public() != *public {
                    return Err(wrong);
                }
                private.open(OBJECT, INFO, &self.header, &self.sealed)?
            }
            _ => return Err(wrong),
        };
        let keys = Keys::decode(&plain)?;
        if keys.level() != self.level || keys.repository() != self.repository {
            return Err(wrong);
        }
        Ok(keys)
    }
}

fn passphrase_key(text: &str, salt: &[u8; 32], cost: Argon2Cost) -> Result<SealKey, FormatError> {
    let refused = |error: argon2::Error| FormatError::Message {
        object: OBJECT,
        detail: error.to_string(),
    };
    let argon2 = argon2::Argon2::new(
        argon2::Algorithm::Argon2id,
        argon2::Version::V0x13,
        cost.params()?,
    );
    let mut stretched = Zeroizing::new([0; 32]);
    argon2
        .hash_password_into(text.as_bytes(), salt, &mut *stretched)
        .map_err(refused)?;
    let key = derive_key("tidegate 1 key slot by passphrase", &[&*stretched, salt]);
    Ok(SealKey::new(&key))
}

fn check_label(label: &str) -> Result<(), FormatError> {
    if label.len() > NAME_BYTES_MAX || label.chars().any(char::is_control) {
        return Err(FormatError::Range {
            object: OBJECT,
            field: "label",
            found: label.len() as u64,
        });
    }
    Ok(())
}

fn file_key(content: &[u8], salt: &[u8; 32]) -> Result<SealKey, FormatError> {
    if content.len() < WRAPPING_FILE_BYTES_MIN {
        return Err(FormatError::Range {
            object: "wrapping file",
            field: "length in bytes",
            found: content.len() as u64,
        });
    }
    let digest = Zeroizing::new(*blake3::hash(content).as_bytes());
    let key = derive_key("tidegate 1 key slot by file", &[&*digest, salt]);
    Ok(SealKey::new(&key))
}

const KIND_PASSPHRASE: u32 = 1;
const KIND_FILE: u32 = 2;
const KIND_RECIPIENT: u32 = 3;

#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(bytes = "vec", tag = "1")]
    slot: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    repository: Vec<u8>,
    #[prost(uint32, tag = "3")]
    level: u32,
    #[prost(uint32, tag = "4")]
    kind: u32,
    #[prost(string, tag = "5")]
    label: String,
    #[prost(fixed64, tag = "6")]
    created_unix_ns: u64,
    #[prost(bytes = "vec", tag = "7")]
    salt: Vec<u8>,
    #[prost(uint32, tag = "8")]
    memory_kib: u32,
    #[prost(uint32, tag = "9")]
    passes: u32,
    #[prost(uint32, tag = "10")]
    lanes: u32,
    #[prost(bytes = "vec", tag = "11")]
    recipient: Vec<u8>,
}

#[cfg(test)]
mod tests {
    //! Slots and key bundles that somebody with the right credential has made, whatever is in them.
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::keys::RepositorySecret;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const FILE: &[u8] = &[7; 32];

    fn keys(level: Level) -> Keys {
        let secret = RepositorySecret(Secret([1; 32]));
        secret.issue(level, RepositoryId([2; 16]), Secret([3; 32]), 0)
    }

    /// A slot that claims a level and holds any bytes.
    fn slot(level: Level, plain: &[u8]) -> Vec<u8> {
        let header = Header {
            slot: vec![4; 16],
            repository: vec![2; 16],
            level: level.tag().into(),
            kind: KIND_FILE,
            salt: vec![5; 32],
            ..Header::default()
        }
        .encode_to_vec();
        let mut out = MAGIC.to_vec();
        out.push(VERSION);
        out.extend_from_slice(&length_u32(header.len()).to_le_bytes());
        out.extend_from_slice(&header);
        let sealed = file_key(FILE, &[5; 32]).unwrap().seal(0, &out, plain);
        out.extend_from_slice(&sealed);
        out
    }

    fn open(level: Level, plain: &[u8]) -> Result<Keys, FormatError> {
        Slot::decode(&slot(level, plain))?.open(&Credential::File(FILE))
    }

    #[test]
    fn a_slot_holds_what_it_claims() {
        for claimed in Level::ALL {
            for held in Level::ALL {
                let opened = open(claimed, &keys(held).encode());
                assert_eq!(opened.is_ok(), claimed == held);
            }
        }
    }

    #[test]
    fn keys_have_one_encoding() {
        for level in Level::ALL {
            let plain = keys(level).encode().to_vec();
            open(level, &plain).unwrap();
            let mut changed = plain.clone();
            for byte in 0..plain.len() {
                for bit in 0..8 {
                    changed[byte] ^= 1 << bit;
                    // A host's own copy of a key may be any; whether it is the right one, the first
                    // object that it opens tells. But never two encodings of one holder's keys.
                    if let Ok(opened) = open(level, &changed) {
                        assert_eq!(
                            *opened.encode(),
                            changed,
                            "{level}: bit {bit} of byte {byte}"
                        );
                        assert_ne!(level, Level::Restore);
                    }
                    changed[byte] ^= 1 << bit;
                }
            }
            // A field of a later version, a field twice, and one that the level does not have.
            for more in [
                &[0xa0, 6, 1][..],
                &[8, level.tag()],
                &[0x32, 1, 0],
                &[0x3a, 1, 0],
            ] {
                assert!(open(level, &[&plain, more].concat()).is_err());
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn sealed_nonsense_is_an_error(plain in vec(any::<u8>(), 0..300)) {
            prop_assert!(open(Level::Restore, &plain).is_err());
        }
    }
}
