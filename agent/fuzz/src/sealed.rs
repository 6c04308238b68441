//! Signs and seals any content as a holder of the keys could: by `FORMAT.md`, not by the writers
//! under test, which refuse to write what no reader should accept.
//!
//! Not a writer of sound objects. The keys are those of the golden files.

use crate::support::{REPOSITORY, TIME, identity_seed, keys, secret};
use tidegate_protocol::aead::{SealKey, TAG_BYTES};
use tidegate_protocol::keys::{Certificate, Level, SigningKey};

/// The salt of everything that is sealed here.
pub(crate) const SALT: [u8; 32] = [0x5a; 32];
/// What a slot of ours is wrapped for.
pub(crate) const WRAPPING_FILE: [u8; 32] = [7; 32];

fn derive(context: &'static str, parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    for part in parts {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

fn metadata_seal_key(context: &'static str, salt: &[u8; 32]) -> SealKey {
    let key = derive("tidegate 1 metadata key", &[&secret().0.0]);
    SealKey::derive(context, &key, salt)
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap().to_le_bytes()
}

/// A descriptor of any message, signed by the root key.
pub(crate) fn descriptor(message: &[u8]) -> Vec<u8> {
    let mut out = [b"TGRD\x01", &length(message.len())[..], message].concat();
    let signature = secret().root_key().sign(&out);
    out.extend(signature);
    out
}

/// A slot for [`WRAPPING_FILE`] that claims `level` and holds any key bundle.
pub(crate) fn slot(level: u8, bundle: &[u8]) -> Vec<u8> {
    let salt = [&[0x3a, 32][..], &SALT].concat();
    let message = [
        &[0x0a, 16][..],
        &[4; 16],
        &[0x12, 16],
        &REPOSITORY.0,
        &[0x18, level, 0x20, 2],
        &salt,
    ]
    .concat();
    let header = [b"TGKS\x01", &length(message.len())[..], &message].concat();
    let content = blake3::hash(&WRAPPING_FILE);
    let key = derive("tidegate 1 key slot by file", &[content.as_bytes(), &SALT]);
    let sealed = SealKey::new(&key).seal(0, &header, bundle);
    [header, sealed].concat()
}

/// The header of a data pack (kind 1) or a tree pack. The data key in it opens nothing.
pub(crate) fn pack_header(kind: u8) -> Vec<u8> {
    let key_bytes = if kind == 1 { 80 } else { 0 };
    [
        b"TGPK\x01",
        &[kind, key_bytes, 0][..],
        &REPOSITORY.0,
        &SALT,
        &vec![9; key_bytes.into()],
    ]
    .concat()
}

/// The sealed footer of the pack with that header, of any table.
pub(crate) fn footer(header: &[u8], table: &[u8]) -> Vec<u8> {
    metadata_seal_key("tidegate 1 pack footer", &SALT).seal(0, header, table)
}

/// A segment of any counts (packs and frames of four bytes, entries of eight) and any parts, which
/// are cut as the counts say, for as long as there is something to cut.
pub(crate) fn segment(counts: &[u8; 16], mut parts: &[u8]) -> Vec<u8> {
    let header = [b"TGIX\x01", &REPOSITORY.0[..], &SALT, counts].concat();
    let key = metadata_seal_key("tidegate 1 index segment", &SALT);
    let count = |at: usize| u32::from_le_bytes(counts[at..at + 4].try_into().unwrap()) as usize;
    let mut out = header.clone();
    let lengths = [count(0).saturating_mul(36), count(4).saturating_mul(12)];
    for (ordinal, length) in (0..).zip(lengths.into_iter().chain(std::iter::repeat(4096 * 44))) {
        let (part, rest) = parts.split_at(length.min(parts.len()));
        out.extend(key.seal(ordinal, &header, part));
        parts = rest;
        if ordinal >= 2 && parts.is_empty() || ordinal == 1 && count(8) == 0 {
            break;
        }
    }
    out
}

fn signing(level: Level) -> (SigningKey, [u8; Certificate::BYTES]) {
    let signing = SigningKey::from_seed(identity_seed(level));
    (signing, keys(level).identity().certificate.encode())
}

/// A log record of any version, kind and body, signed at `level`.
pub(crate) fn record(version: u8, kind: u16, level: Level, body: &[u8]) -> Vec<u8> {
    let (signing, certificate) = signing(level);
    let mut out = [
        b"TGLR",
        &[version][..],
        &kind.to_le_bytes(),
        &42_u64.to_le_bytes(),
        &[0xd0; 32],
        &TIME.to_le_bytes(),
        &[0x77; 32],
        &certificate,
        &length(body.len() + TAG_BYTES),
    ]
    .concat();
    let front = *blake3::hash(&out).as_bytes();
    let key = metadata_seal_key("tidegate 1 log record body", &front);
    let sealed = key.seal(0, &out, body);
    out.extend(sealed);
    let signature = signing.sign(&out);
    out.extend(signature);
    out
}

/// A checkpoint of any blocks, signed at `level`; `claim` makes of a block's length what the table
/// says of it.
pub(crate) fn checkpoint(level: Level, blocks: &[&[u8]], claim: impl Fn(u32) -> u32) -> Vec<u8> {
    let (signing, certificate) = signing(level);
    let fixed = [
        b"TGLC\x01",
        &[7; 8 + 32][..],
        &SALT,
        &certificate,
        &length(blocks.len()),
    ]
    .concat();
    let key = metadata_seal_key("tidegate 1 log checkpoint block", &SALT);
    let mut out = fixed.clone();
    let mut stored = Vec::new();
    for (ordinal, block) in (0..).zip(blocks) {
        let sealed = key.seal(ordinal, &fixed, block);
        out.extend(claim(u32::try_from(sealed.len()).unwrap()).to_le_bytes());
        out.extend(blake3::hash(&sealed).as_bytes());
        stored.extend(sealed);
    }
    let signature = signing.sign(&[b"tidegate 1 checkpoint", out.as_slice()].concat());
    out.extend(signature);
    out.extend(stored);
    out
}

/// The body of a sound record.
pub(crate) fn body_of(record: &[u8]) -> Vec<u8> {
    let (front, rest) = record.split_at(4 + 1 + 2 + 8 + 32 + 8 + 32 + Certificate::BYTES + 4);
    let sealed = &rest[..rest.len() - 64];
    let salt = *blake3::hash(front).as_bytes();
    let key = metadata_seal_key("tidegate 1 log record body", &salt);
    key.open("record", 0, front, sealed).unwrap()
}
