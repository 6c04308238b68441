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
use zstd::zstd_safe::CParameter;

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

/// Makes payloads; its buffer and zstd context are reused from frame to frame.
pub struct PayloadEncoder {
    compressor: Compressor<'static>,
    payload: Vec<u8>,
}

impl PayloadEncoder {
    /// An encoder for a zstd level, 1 to 22, or negative for faster. Fails only without memory.
    ///
    /// Level 1 is given a larger hash table than zstd would choose for frames of this size
    /// (2^16 entries, which still fit a core's cache) and matches of at least 6 bytes: on disk images that
    /// stores 1 to 2 % less at nearly the same speed.
    pub fn new(level: i32) -> std::io::Result<Self> {
        let mut compressor = Compressor::new(level)?;
        if level == 1 {
            compressor.set_parameter(CParameter::HashLog(16))?;
            compressor.set_parameter(CParameter::MinMatch(6))?;
        }
        Ok(Self {
            compressor,
            payload: Vec::new(),
        })
    }

    /// Compresses `raw` into a payload. Content that zstd cannot shrink by at least a 32nd is stored as
    /// it is: such a frame costs nothing to read back, and zstd gives up on it by itself as soon as its
    /// output would not fit.
    pub fn encode(&mut self, raw: &[u8]) -> &[u8] {
        let room = PAYLOAD_HEADER_BYTES + raw.len();
        if self.payload.len() < room {
            self.payload.resize(room, 0);
        }
        let (header, content) = self.payload.split_at_mut(PAYLOAD_HEADER_BYTES);
        let budget = raw.len() - raw.len() / 32;
        let compressed = self
            .compressor
            .compress_to_buffer(raw, &mut content[..budget]);
        let (codec, length) = match compressed {
            Ok(length) if length < budget => (CODEC_ZSTD, length),
            _ => {
                content[..raw.len()].copy_from_slice(raw);
                (CODEC_STORED, raw.len())
            }
        };
        header[0] = codec;
        header[1..].copy_from_slice(&length_u32(raw.len()).to_le_bytes());
        &self.payload[..PAYLOAD_HEADER_BYTES + length]
    }
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
                // Never smaller, so that it is cleared once only.
                if self.raw.len() < raw_bytes as usize {
                    self.raw.resize(raw_bytes as usize, 0);
                }
                let raw = &mut self.raw[..raw_bytes as usize];
                let length = self
                    .decompressor
                    .decompress_to_buffer(content, &mut *raw)
                    .map_err(|error| FormatError::Compression {
                        object: OBJECT,
                        detail: error.to_string(),
                    })?;
                if length != raw_bytes as usize {
                    return Err(reader.range("raw length", raw_bytes.into()));
                }
                Ok(raw)
            }
            other => Err(reader.tag("codec", other.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    //! Payloads that a holder of the pack's key has sealed, whatever is in them.
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn open(payload: &[u8]) -> Result<Vec<u8>, FormatError> {
        let key = SealKey::new(&[1; 32]);
        let mut pack = vec![0; 72];
        seal(&key, b"header", payload, &mut pack);
        let mut opener = FrameOpener::new().unwrap();
        opener
            .open(&key, b"header", 72, &pack[72..])
            .map(<[u8]>::to_vec)
    }

    fn payload(codec: u8, raw_bytes: u32, content: &[u8]) -> Vec<u8> {
        [&[codec], &raw_bytes.to_le_bytes()[..], content].concat()
    }

    #[test]
    fn payloads_say_how_long_they_are() {
        let content = zstd::bulk::compress(&[7; 1000], 1).unwrap();
        assert_eq!(
            open(&payload(CODEC_ZSTD, 1000, &content)).unwrap(),
            [7; 1000]
        );
        assert_eq!(open(&payload(CODEC_STORED, 3, b"abc")).unwrap(), b"abc");
        for broken in [
            payload(CODEC_ZSTD, 999, &content),
            payload(CODEC_ZSTD, 1001, &content),
            payload(CODEC_ZSTD, 1000, &content[..content.len() - 1]),
            payload(CODEC_ZSTD, 1000, &[]),
            payload(CODEC_STORED, 2, b"abc"),
            payload(CODEC_STORED, 4, b"abc"),
            payload(2, 3, b"abc"),
            vec![CODEC_STORED, 0, 0, 0],
            Vec::new(),
        ] {
            assert!(open(&broken).is_err());
        }
    }

    #[test]
    fn nothing_unfolds_beyond_its_bound() {
        // 1 GiB of zeros in 40 KB.
        let bomb = {
            let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
            let zeros = vec![0; 1 << 20];
            for _ in 0..1024 {
                std::io::Write::write_all(&mut encoder, &zeros).unwrap();
            }
            encoder.finish().unwrap()
        };
        assert!(bomb.len() < 1 << 20);
        // As what it is: refused before anything is allocated. As something that would pass: zstd
        // stops at the end of the buffer.
        assert!(open(&payload(CODEC_ZSTD, 1 << 30, &bomb)).is_err());
        assert!(open(&payload(CODEC_ZSTD, FRAME_RAW_BYTES_MAX, &bomb)).is_err());
        assert!(open(&payload(CODEC_STORED, u32::MAX, b"")).is_err());
        let raw = vec![0; FRAME_RAW_BYTES_MAX as usize];
        let largest = zstd::bulk::compress(&raw, 1).unwrap();
        assert!(open(&payload(CODEC_ZSTD, FRAME_RAW_BYTES_MAX, &largest)).unwrap() == raw);
        let longer = vec![0; FRAME_RAW_BYTES_MAX as usize + 1];
        assert!(open(&payload(CODEC_STORED, FRAME_RAW_BYTES_MAX + 1, &longer)).is_err());
    }

    #[test]
    fn what_does_not_shrink_is_stored_as_it_is() {
        let mut encoder = PayloadEncoder::new(3).unwrap();
        let mut noise = vec![0; 100_000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        for raw in [&[][..], b"x", &noise[..31], &noise[..33], &noise] {
            let payload = encoder.encode(raw);
            assert_eq!(payload[0], CODEC_STORED);
            assert_eq!(payload.len(), raw.len() + PAYLOAD_HEADER_BYTES);
            assert_eq!(open(payload).unwrap(), raw);
        }
        let payload = encoder.encode(&[0; 100_000]);
        assert_eq!(payload[0], CODEC_ZSTD);
        assert!(payload.len() < 100);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn sealed_nonsense_is_an_error_or_as_long_as_it_says(
            codec in 0..3_u8,
            raw_bytes in 0..4096_u32,
            content in vec(any::<u8>(), 0..500),
            magic in any::<bool>(),
        ) {
            let magic: &[u8] = if magic { &[0x28, 0xb5, 0x2f, 0xfd] } else { &[] };
            if let Ok(raw) = open(&payload(codec, raw_bytes, &[magic, &content].concat())) {
                prop_assert_eq!(raw.len(), raw_bytes as usize);
            }
        }

        #[test]
        fn changed_zstd_is_an_error_or_as_long_as_it_says(
            raw in vec(0..4_u8, 1..3000),
            at in any::<proptest::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut content = zstd::bulk::compress(&raw, 3).unwrap();
            let at = at.index(content.len());
            content[at] = byte;
            if let Ok(read) = open(&payload(CODEC_ZSTD, length_u32(raw.len()), &content)) {
                prop_assert_eq!(read.len(), raw.len());
            }
        }
    }
}
