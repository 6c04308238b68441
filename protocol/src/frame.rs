//! Frames: chunks or pages, compressed together, then sealed.
//!
//! ```text
//! payload = codec u8 | raw length u32 | bytes        (codec 0: as is, 1: zstd)
//! frame   = ordinal u32 | AES-256-GCM(payload, nonce = ordinal, associated data = pack header) | tag
//! ```
//!
//! The ordinal travels with the frame, so that a frame can be opened with nothing but its pack's key
//! and header.

use crate::aead::{SealKey, TAG_BYTES};
use crate::codec::{Reader, length_u32};
use crate::error::FormatError;
use crate::limits::FRAME_RAW_BYTES_MAX;
use zstd::bulk::{Compressor, Decompressor};

const OBJECT: &str = "frame";
const CODEC_STORED: u8 = 0;
const CODEC_ZSTD: u8 = 1;

/// Bytes in front of a payload's content.
const PAYLOAD_HEADER_BYTES: usize = 5;

/// Bytes that a frame adds to its payload.
pub const FRAME_OVERHEAD_BYTES: usize = 4 + TAG_BYTES;

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

/// Appends the frame for `payload` to a pack being written.
pub(crate) fn seal(key: &SealKey, ordinal: u32, header: &[u8], payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&ordinal.to_le_bytes());
    let from = out.len();
    out.extend_from_slice(payload);
    key.seal_tail(ordinal, header, out, from);
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

    /// Opens a frame as it stands in a pack and returns its content.
    pub fn open(
        &mut self,
        key: &SealKey,
        header: &[u8],
        frame: &[u8],
    ) -> Result<&[u8], FormatError> {
        let mut reader = Reader::new(OBJECT, frame);
        let ordinal = reader.u32()?;
        let sealed = reader.take(reader.remaining())?;
        key.open_into(OBJECT, ordinal, header, sealed, &mut self.payload)?;
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
