//! Key files, slots, and who may sign.

use super::point::{as_optional_text, as_text};
use super::{Repository, local_denied};
use crate::clock;
use crate::durable;
use crate::error::{Error, Kind, Result};
use crate::store::{Created, Store};
use futures::TryStreamExt;
use serde::Serialize;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tidegate_protocol::ids::{KeyId, SlotId};
use tidegate_protocol::keys::{Keys, Level, Secret};
use tidegate_protocol::limits::SMALL_OBJECT_BYTES_MAX;
use tidegate_protocol::record::{Body, KeyChanged};
use tidegate_protocol::slot::{self, Credential, NewWrapping, Slot, SlotRandom, Wrapping};
use tidegate_protocol::{FormatError, key_file};
use zeroize::Zeroizing;

const SLOT_PREFIX: &str = "keys/";

/// A key that may sign, and where it is kept.
#[derive(Debug, Clone, Serialize)]
pub struct KeyInfo {
    /// Its short name.
    #[serde(serialize_with = "as_text")]
    pub key: KeyId,
    /// What it may do.
    #[serde(serialize_with = "as_text")]
    pub level: Level,
    /// What the operator calls it.
    pub label: String,
    /// The slot that holds it, unless it is in a file.
    #[serde(serialize_with = "as_optional_text")]
    pub slot: Option<SlotId>,
    /// How it is kept: file, passphrase, wrapping file or recipient.
    pub wrapping: &'static str,
    /// When it was made, Unix time in nanoseconds; 0 for those made with the repository.
    pub created_unix_ns: u64,
    /// True when records it signs from then on are void.
    pub revoked: bool,
}

impl Repository {
    /// The keys that the log knows, oldest first.
    pub async fn key_list(&self) -> Result<Vec<KeyInfo>> {
        let (slots, _) = read_slots(&self.store).await?;
        let wrapping_of = |id: &Option<SlotId>| match id {
            None => "file",
            Some(id) => slots
                .iter()
                .find(|slot| slot.id == *id)
                .map_or("slot is gone", |slot| wrapping_name(&slot.wrapping)),
        };
        Ok(self
            .catalogue
            .signers()?
            .into_iter()
            .filter_map(|signer| {
                Some(KeyInfo {
                    wrapping: wrapping_of(&signer.slot),
                    key: signer.key,
                    level: signer.level?,
                    label: signer.label,
                    slot: signer.slot,
                    created_unix_ns: signer.created_unix_ns,
                    revoked: signer.revoked,
                })
            })
            .collect())
    }

    /// Makes a key of `level`; `save` must make it durable before the log learns of it. Restore level.
    pub async fn key_add_file(
        &self,
        level: Level,
        label: &str,
        save: impl FnOnce(&Keys) -> Result<()>,
    ) -> Result<KeyInfo> {
        let keys = self.issue(level)?;
        save(&keys)?;
        self.announce(&keys, label, None, "file").await
    }

    /// Makes a key of `level` in a slot of the repository. Restore level.
    pub async fn key_add_slot(
        &self,
        level: Level,
        label: &str,
        with: &NewWrapping<'_>,
    ) -> Result<KeyInfo> {
        let keys = self.issue(level)?;
        let id = SlotId(clock::random()?);
        let random = SlotRandom {
            salt: clock::random()?,
            seed: Secret(clock::random()?),
        };
        let bytes =
            slot::wrap(&keys, id, label, clock::now_unix_ns(), with, random).map_err(|error| {
                Error::new(Kind::Config, "the key cannot be wrapped that way").caused_by(error)
            })?;
        match self.store.create(&id.object_key(), bytes.into()).await? {
            // An answer may have been lost; nobody else draws the same 16 random bytes.
            Created::New | Created::Exists => {}
        }
        let name = match with {
            NewWrapping::Passphrase(..) => "passphrase",
            NewWrapping::File(_) => "wrapping file",
            NewWrapping::Recipient(_) => "recipient",
        };
        self.announce(&keys, label, Some(id), name).await
    }

    /// Revokes a key, named by its id, its slot's id, an unambiguous beginning of either, or its
    /// label; and removes its slot. Restore level. What the key has signed so far stands.
    pub async fn key_remove(&self, which: &str) -> Result<KeyInfo> {
        let all = self.key_list().await?;
        let digits = which.to_ascii_lowercase();
        let mut found: Vec<_> = all
            .iter()
            .filter(|info| !info.revoked)
            .filter(|info| {
                let slot = info.slot.map(|slot| slot.to_string()).unwrap_or_default();
                info.label == which
                    || (digits.len() >= 4
                        && (info.key.to_string().starts_with(&digits) || slot.starts_with(&digits)))
            })
            .cloned()
            .collect();
        let Some(mut info) = found.pop() else {
            return Err(Error::new(
                Kind::Missing,
                format!("there is no key {which:?} that could be removed"),
            )
            .advise("`tidegate key list` lists them"));
        };
        if !found.is_empty() {
            return Err(
                Error::new(Kind::Config, format!("{which:?} names several keys"))
                    .advise("give more digits of the key's id"),
            );
        }
        if info.key == self.keys.identity().certificate.public.id() {
            return Err(
                Error::new(Kind::Config, format!("key {} is the one in use", info.key))
                    .advise("open the repository with another restore key to remove this one"),
            );
        }
        self.append(|_| {
            Ok(Body::KeyChanged(KeyChanged {
                key: info.key.0.to_vec(),
                level: info.level.tag().into(),
                label: info.label.clone(),
                revoked: true,
                slot: info.slot.map_or_else(Vec::new, |slot| slot.0.to_vec()),
            }))
        })
        .await?;
        if let Some(slot) = info.slot {
            self.store.delete(&slot.object_key()).await?;
        }
        info.revoked = true;
        Ok(info)
    }

    fn issue(&self, level: Level) -> Result<Keys> {
        let secret = self.keys.secret().map_err(|error| local_denied(&error))?;
        Ok(secret.issue(
            level,
            self.keys.repository(),
            Secret(clock::random()?),
            clock::now_unix_ns(),
        ))
    }

    async fn announce(
        &self,
        keys: &Keys,
        label: &str,
        slot: Option<SlotId>,
        wrapping: &'static str,
    ) -> Result<KeyInfo> {
        let certificate = &keys.identity().certificate;
        let info = KeyInfo {
            key: certificate.public.id(),
            level: keys.level(),
            label: label.to_owned(),
            slot,
            wrapping,
            created_unix_ns: certificate.issued_unix_ns,
            revoked: false,
        };
        self.append(|_| Ok(Body::KeyChanged(key_made(keys, label, slot))))
            .await?;
        Ok(info)
    }
}

/// The record that makes a key known.
pub(super) fn key_made(keys: &Keys, label: &str, slot: Option<SlotId>) -> KeyChanged {
    KeyChanged {
        key: keys.identity().certificate.public.id().0.to_vec(),
        level: keys.level().tag().into(),
        label: label.to_owned(),
        revoked: false,
        slot: slot.map_or_else(Vec::new, |slot| slot.0.to_vec()),
    }
}

/// Opens keys from a slot in the store: for an operator who has a passphrase, a wrapping file or an
/// escrow key, and no key file. `slot` narrows the choice by the first digits of its id.
pub async fn open_slot(
    store: &Store,
    credential: &Credential<'_>,
    slot: Option<&str>,
) -> Result<Keys> {
    let (mut slots, mut damaged) = read_slots(store).await?;
    if let Some(digits) = slot {
        slots.retain(|slot| {
            slot.id
                .to_string()
                .starts_with(&digits.to_ascii_lowercase())
        });
    }
    // The most powerful key that opens is what the operator expects of a passphrase.
    slots.sort_by_key(|slot| std::cmp::Reverse(slot.level.tag()));
    let fits = |slot: &&Slot| {
        matches!(
            (credential, &slot.wrapping),
            (Credential::Passphrase(_), Wrapping::Passphrase(_))
                | (Credential::File(_), Wrapping::File)
                | (Credential::Recipient(_), Wrapping::Recipient(_))
        )
    };
    let mut tried = Vec::new();
    for slot in slots.iter().filter(fits) {
        let object = slot.id.object_key();
        match slot.open(credential) {
            Ok(keys) => return Ok(keys),
            Err(FormatError::Unauthentic { .. }) => {}
            Err(error) => {
                tracing::warn!(object, %error, "a key slot cannot be opened");
                damaged.push(object.clone());
            }
        }
        tried.push(object);
    }
    if !damaged.is_empty() {
        return Err(Error::new(
            Kind::Corrupt,
            format!(
                "{}: the credential opens no key slot, and {} damaged: {}",
                store.label(),
                if damaged.len() == 1 {
                    "one is"
                } else {
                    "some are"
                },
                listed(&damaged)
            ),
        )
        .advise(
            "bring the slot back from a copy or the bucket's versions; a key file given with --key \
             needs no slot",
        ));
    }
    Err(match tried.len() {
        0 => Error::new(
            Kind::Missing,
            format!(
                "{}: no key slot is opened by that kind of credential",
                store.label()
            ),
        )
        .advise(
            "`tidegate key list` (with any key) lists the slots; or give a key file with --key",
        ),
        _ => Error::new(
            Kind::Denied,
            format!(
                "{}: the credential opens none of the key slots that it could: {}",
                store.label(),
                listed(&tried)
            ),
        )
        .advise(
            "check the passphrase or file; if it is the right one, the slot was changed: bring it back \
             from a copy or the bucket's versions; a key file given with --key needs no slot",
        ),
    })
}

/// Names of objects for a message; of many the first ones.
fn listed(objects: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = objects.get(..SHOWN).unwrap_or(objects).join(", ");
    match objects.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Reads a key file.
pub fn read_key_file(path: &Path) -> Result<Keys> {
    let name = path.display();
    let text = std::fs::read(path).map_err(|error| {
        Error::io(format!("cannot read the key file {name}"), error)
            .advise("name a key file with --key or TIDEGATE_KEY; `tidegate init` writes them")
    })?;
    let text = Zeroizing::new(text);
    let wrong = |detail: String| {
        Error::new(
            Kind::Denied,
            format!("{name} is not a usable key file: {detail}"),
        )
        .advise("name one that `tidegate init` or `tidegate key` wrote, or a copy of it")
    };
    let text = std::str::from_utf8(&text).map_err(|_| wrong("it is not text".to_owned()))?;
    if let Ok(metadata) = std::fs::metadata(path)
        && metadata.permissions().mode() & 0o077 != 0
    {
        tracing::warn!(file = %name, "the key file can be read by others: chmod 600 it");
    }
    key_file::decode(text).map_err(|error| wrong(error.to_string()))
}

/// Writes a key file, readable by its owner only, durable when this returns. It is there whole or
/// not at all, and never overwrites.
pub fn write_key_file(path: &Path, keys: &Keys) -> Result<()> {
    let name = path.display();
    let context = |error| Error::io(format!("cannot write the key file {name}"), error);
    let text = key_file::encode(keys);
    durable::create_file(path, 0o600, |file| file.write_all(text.as_bytes())).map_err(|error| {
        match error.kind() {
            std::io::ErrorKind::AlreadyExists => Error::new(
                Kind::Conflict,
                format!("{name} exists: a key file is never overwritten"),
            )
            .advise("choose another name, or move the old file away"),
            _ => context(error),
        }
    })
}

/// The slots in the store, and the keys of objects that stand in the place of one and are none.
async fn read_slots(store: &Store) -> Result<(Vec<Slot>, Vec<String>)> {
    let (mut slots, mut damaged) = (Vec::new(), Vec::new());
    let mut entries = store.list(SLOT_PREFIX, None);
    while let Some(entry) = entries.try_next().await? {
        let read = match store.get(&entry.key, SMALL_OBJECT_BYTES_MAX.into()).await {
            Ok(bytes) => Slot::decode(&bytes).map_err(|error| error.to_string()),
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Missing) => {
                Err(error.chain())
            }
            Err(error) => return Err(error),
        };
        match read {
            Ok(slot) if slot.id.object_key() == entry.key => {
                slots.push(slot);
                continue;
            }
            Ok(slot) => {
                let own = slot.id.object_key();
                tracing::warn!(object = entry.key, "it holds the key slot {own}");
            }
            Err(error) => tracing::warn!(object = entry.key, error, "a key slot is damaged"),
        }
        damaged.push(entry.key);
    }
    Ok((slots, damaged))
}

fn wrapping_name(wrapping: &Wrapping) -> &'static str {
    match wrapping {
        Wrapping::Passphrase(_) => "passphrase",
        Wrapping::File => "wrapping file",
        Wrapping::Recipient(_) => "recipient",
    }
}
