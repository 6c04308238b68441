//! Sealing a few bytes to a public key: HPKE, without a random generator of its own.
//!
//! It draws nothing and stores nothing. Invariant: two different things are never sealed under one
//! ephemeral key, also where the caller's randomness repeats.

use super::Secret;
use crate::codec::Reader;
use crate::error::FormatError;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use std::fmt;
use zeroize::Zeroizing;

type HpkeAead = hpke::aead::AesGcm256;
type HpkeKdf = hpke::kdf::HkdfSha256;
type HpkeKem = X25519HkdfSha256;

/// An X25519 public key to which secrets are sealed by HPKE (RFC 9180, base mode,
/// DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SealPublicKey(pub [u8; 32]);

impl SealPublicKey {
    /// Bytes that [`Self::seal`] puts in front of the ciphertext: the encapsulated key.
    pub const ENCAPSULATED_BYTES: usize = 32;

    /// Seals `plain` (at most a few hundred bytes). `seed` is fresh randomness, used once; the
    /// ephemeral key is derived from it and from all that is sealed, so that a seed used twice by
    /// mistake still does not seal two things under one key. Fails when no key can be agreed upon
    /// with this one (a point of small order).
    pub fn seal(
        &self,
        info: &'static [u8],
        associated: &[u8],
        plain: &[u8],
        seed: &Secret,
    ) -> Result<Vec<u8>, FormatError> {
        let bad = |_| FormatError::Unauthentic {
            object: "public key",
        };
        let public = <HpkeKem as Kem>::PublicKey::from_bytes(&self.0).map_err(bad)?;
        let (encapsulated, sealed) = hpke::single_shot_seal_with_rng::<HpkeAead, HpkeKdf, HpkeKem>(
            &OpModeS::Base,
            &public,
            info,
            plain,
            associated,
            &mut SeededRandom::new(seed, &[&self.0, info, associated, plain]),
        )
        .map_err(bad)?;
        let mut out = encapsulated.to_bytes().to_vec();
        out.extend_from_slice(&sealed);
        Ok(out)
    }
}

/// The private half of a [`SealPublicKey`].
#[derive(Clone)]
pub struct SealPrivateKey {
    private: <HpkeKem as Kem>::PrivateKey,
    public: SealPublicKey,
}

impl SealPrivateKey {
    /// Derives the pair from key material (RFC 9180 DeriveKeyPair).
    pub fn derive(material: &Secret) -> Self {
        let (private, public) = <HpkeKem as Kem>::derive_keypair(&material.0);
        Self {
            private,
            public: SealPublicKey(public.to_bytes().into()),
        }
    }

    /// The public half.
    pub fn public(&self) -> SealPublicKey {
        self.public
    }

    /// Opens what [`SealPublicKey::seal`] made.
    pub fn open(
        &self,
        object: &'static str,
        info: &'static [u8],
        associated: &[u8],
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, FormatError> {
        let mut reader = Reader::new(object, sealed);
        let encapsulated = reader.take(SealPublicKey::ENCAPSULATED_BYTES)?;
        let text = reader.take(reader.remaining())?;
        let unauthentic = |_| FormatError::Unauthentic { object };
        let encapsulated =
            <HpkeKem as Kem>::EncappedKey::from_bytes(encapsulated).map_err(unauthentic)?;
        hpke::single_shot_open::<HpkeAead, HpkeKdf, HpkeKem>(
            &OpModeR::Base,
            &self.private,
            &encapsulated,
            info,
            text,
            associated,
        )
        .map(Zeroizing::new)
        .map_err(unauthentic)
    }
}

impl fmt::Debug for SealPrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealPrivateKey(…)")
    }
}

/// Hands a caller's randomness to HPKE, which asks for a generator.
struct SeededRandom(blake3::OutputReader);

impl SeededRandom {
    fn new(seed: &Secret, bound_to: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("tidegate 1 hpke ephemeral randomness");
        hasher.update(&seed.0);
        for part in bound_to {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self(hasher.finalize_xof())
    }
}

impl hpke::rand_core::TryRng for SeededRandom {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Self::Error> {
        self.0.fill(out);
        Ok(())
    }
}

impl hpke::rand_core::TryCryptoRng for SeededRandom {}
