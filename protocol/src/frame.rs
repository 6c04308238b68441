//! Frames: chunks or pages, compressed together, then sealed.
//!
//! ```text
//! payload = codec u8 | raw length u32 | bytes        (codec 0: as is, 1: zstd)
//! frame   = AES-256-GCM(payload, nonce = the frame's offset in its pack, associated data = pack
//!           header) | tag
//! ```
//!
//! The nonce is the place: a frame opens in its pack, where it was written, and nowhere else; and
//! since frames do not overlap, no nonce comes twice.

use crate::aead::{SealKey, TAG_BYTES};
use crate::codec::{Reader, at_most, length_u32};
use crate::error::FormatError;
use crate::limits::{FRAME_BYTES_MAX, FRAME_BYTES_MIN, FRAME_RAW_BYTES_MAX};
use zstd::bulk::{Compressor, Decompressor};

const OBJECT: &str = "frame";
const CODEC_STORED: u8 = 0;
const CODEC_ZSTD: u8 = 1;

/// Bytes in front of a payload's content.
pub(crate) const PAYLOAD_HEADER_BYTES: usize = 5;

const _: () = {
    assert!(FRAME_BYTES_MIN as usize == PAYLOAD_HEADER_BYTES + 1 + FRAME_OVERHEAD_BYTES);
    assert!(
        FRAME_BYTES_MAX as usize
            == PAYLOAD_HEADER_BYTES + FRAME_RAW_BYTES_MAX as usize + FRAME_OVERHEAD_BYTES
    );
};

/// Bytes that a frame adds to its payload.
pub const FRAME_OVERHEAD_BYTES: usize = TAG_BYTES;

/// Compresses `raw` into a payload, which replaces `payload`'s content. Content that zstd cannot
/// shrink by at least a 32nd is stored as it is: such a frame costs nothing to read back, and zstd
/// gives up on it by itself as soon as its output would not fit.
pub fn encode_payload(raw: &[u8], compressor: &mut Compressor<'_>, payload: &mut Vec<u8>) {
    let budget = raw.len() - raw.len() / 32;
    payload.clear();
    payload.resize(PAYLOAD_HEADER_BYTES + budget, 0);
    let codec = match compressor.compress_to_buffer(raw, &mut payload[PAYLOAD_HEADER_BYTES..]) {
        Ok(length) if length < budget => {
            payload.truncate(PAYLOAD_HEADER_BYTES + length);
            CODEC_ZSTD
        }
        _ => {
            payload.truncate(PAYLOAD_HEADER_BYTES);
            payload.extend_from_slice(raw);
            CODEC_STORED
        }
    };
    payload[0] = codec;
    payload[1..PAYLOAD_HEADER_BYTES].copy_from_slice(&length_u32(raw.len()).to_le_bytes());
}

/// The raw length that a payload claims; `None` for one that is cut.
pub(crate) fn raw_bytes_of(payload: &[u8]) -> Option<u32> {
    let field = payload.get(1..PAYLOAD_HEADER_BYTES)?;
    Some(u32::from_le_bytes(field.try_into().ok()?))
}

/// Appends the frame for `payload` to a pack being written.
pub(crate) fn seal(key: &SealKey, header: &[u8], payload: &[u8], pack: &mut Vec<u8>) {
    let from = pack.len();
    pack.extend_from_slice(payload);
    key.seal_tail(length_u32(from), header, pack, from);
}

/// Opens frames; its buffers and zstd context are reused from frame to frame.
pub struct FrameOpener {
    payload: Vec<u8>,
    raw: Vec<u8>,
    decompressor: Decompressor<'static>,
}

impl FrameOpener {
    /// Makes the zstd context. Fails only without memory.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            payload: Vec::new(),
            raw: Vec::new(),
            decompressor: Decompressor::new()?,
        })
    }

    /// Opens the frame that stands at `frame_offset` of a pack and returns its content.
    pub fn open(
        &mut self,
        key: &SealKey,
        header: &[u8],
        frame_offset: u32,
        frame: &[u8],
    ) -> Result<&[u8], FormatError> {
        at_most(OBJECT, frame, FRAME_BYTES_MAX.into())?;
        key.open_into(OBJECT, frame_offset, header, frame, &mut self.payload)?;
        let mut reader = Reader::new(OBJECT, &self.payload);
        let codec = reader.u8()?;
        let raw_bytes = reader.u32()?;
        if raw_bytes > FRAME_RAW_BYTES_MAX {
            return Err(reader.range("raw length", raw_bytes.into()));
        }
        let content = reader.take(reader.remaining())?;
        match codec {
            CODEC_STORED => {
                if content.len() != raw_bytes as usize {
                    return Err(reader.range("raw length", raw_bytes.into()));
                }
                Ok(&self.payload[PAYLOAD_HEADER_BYTES..])
            }
            CODEC_ZSTD => {
                self.raw.resize(raw_bytes as usize, 0);
                let length = self
                    .decompressor
                    .decompress_to_buffer(content, &mut self.raw[..])
                    .map_err(|error| FormatError::Compression {
                        object: OBJECT,
                        detail: error.to_string(),
                    })?;
                if length != raw_bytes as usize {
                    return Err(reader.range("raw length", raw_bytes.into()));
                }
                Ok(&self.raw)
            }
            other => Err(reader.tag("codec", other.into())),
        }
    }
}
