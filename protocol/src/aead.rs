//! AES-256-GCM with numbered nonces, and key derivation.
//!
//! **Nonce and key discipline.** No key of this crate seals two different things: a key belongs to
//! one object (a pack, a segment, a record, a slot), because it is drawn at random for it or derived
//! from a long-lived key and a random 32-byte salt that stands in that object's header. Within the
//! object the nonce is the part's number: its place in the pack for a frame, its ordinal for
//! everything else. So a nonce cannot repeat under a key unless two 256-bit salts collide, and no
//! nonce is ever drawn at random. The cipher's implementation wipes its key schedule when it frees
//! it, so a [`SealKey`] leaves nothing behind.

use crate::error::FormatError;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

/// Bytes that sealing adds.
pub const TAG_BYTES: usize = 16;

/// A key that seals the parts of one object. Neither `Clone` nor printable.
pub struct SealKey(LessSafeKey);

impl SealKey {
    /// Takes raw key bytes.
    pub fn new(key: &[u8; 32]) -> Self {
        #[expect(
            clippy::expect_used,
            reason = "32 bytes is the one length the cipher takes"
        )]
        let unbound = UnboundKey::new(&AES_256_GCM, key).expect("AES-256 keys have 32 bytes");
        Self(LessSafeKey::new(unbound))
    }

    /// Derives the key of one object from a long-lived key and the object's salt. `context` is
    /// unique to the use (BLAKE3's key derivation mode).
    pub fn derive(context: &'static str, key: &[u8; 32], salt: &[u8]) -> Self {
        Self::new(&derive_key(context, &[key, salt]))
    }

    /// Seals `out[from..]` in place as part `number` and appends the tag.
    pub fn seal_tail(&self, number: u32, associated: &[u8], out: &mut Vec<u8>, from: usize) {
        let tail = &mut out[from..];
        #[expect(clippy::expect_used, reason = "fails only for inputs above 64 GiB")]
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce(number), Aad::from(associated), tail)
            .expect("parts are far below the cipher's bound");
        out.extend_from_slice(tag.as_ref());
    }

    /// Seals `plain` as part `number`.
    pub fn seal(&self, number: u32, associated: &[u8], plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(plain.len() + TAG_BYTES);
        out.extend_from_slice(plain);
        self.seal_tail(number, associated, &mut out, 0);
        out
    }

    /// Opens part `number` into `out`, which is replaced. On failure `out` is left empty.
    pub fn open_into(
        &self,
        object: &'static str,
        number: u32,
        associated: &[u8],
        sealed: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), FormatError> {
        out.clear();
        let Some(length) = sealed.len().checked_sub(TAG_BYTES) else {
            return Err(FormatError::Truncated {
                object,
                offset: 0,
                needed: TAG_BYTES,
                found: sealed.len(),
            });
        };
        let (text, tag) = sealed.split_at(length);
        out.resize(length, 0);
        self.0
            .open_separate_gather(nonce(number), Aad::from(associated), text, tag, out)
            .map_err(|_| {
                out.clear();
                FormatError::Unauthentic { object }
            })
    }

    /// Opens part `number`.
    pub fn open(
        &self,
        object: &'static str,
        number: u32,
        associated: &[u8],
        sealed: &[u8],
    ) -> Result<Vec<u8>, FormatError> {
        let mut out = Vec::new();
        self.open_into(object, number, associated, sealed, &mut out)?;
        Ok(out)
    }
}

/// BLAKE3 key derivation over several parts of fixed length.
pub(crate) fn derive_key(context: &'static str, parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    for part in parts {
        hasher.update(part);
    }
    let mut key = Zeroizing::new([0; 32]);
    hasher.finalize_xof().fill(&mut *key);
    key
}

fn nonce(number: u32) -> Nonce {
    let mut bytes = [0; 12];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}
