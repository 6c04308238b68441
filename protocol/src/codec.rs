//! A bounded reader and the few writing verbs of the fixed binary formats. Little endian.

use crate::error::FormatError;

/// Reads front to back, never past the end.
pub(crate) struct Reader<'a> {
    object: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(object: &'static str, bytes: &'a [u8]) -> Self {
        Self {
            object,
            bytes,
            at: 0,
        }
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], FormatError> {
        let found = self.bytes.len() - self.at;
        if length > found {
            return Err(FormatError::Truncated {
                object: self.object,
                offset: self.at,
                needed: length,
                found,
            });
        }
        let slice = &self.bytes[self.at..self.at + length];
        self.at += length;
        Ok(slice)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16, FormatError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// An unsigned LEB128 number of at most 32 bits, in its shortest form.
    pub(crate) fn varint(&mut self, field: &'static str) -> Result<u32, FormatError> {
        let mut value = 0_u64;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    break;
                }
                return u32::try_from(value).map_err(|_| self.range(field, value));
            }
        }
        Err(self.range(field, value))
    }

    pub(crate) fn magic(&mut self, magic: [u8; 4]) -> Result<(), FormatError> {
        let found: [u8; 4] = self.array()?;
        if found != magic {
            return Err(FormatError::Magic {
                object: self.object,
                found: hex::encode(found),
            });
        }
        Ok(())
    }

    pub(crate) fn version(&mut self, supported: u8) -> Result<(), FormatError> {
        let found = self.u8()?;
        if found == 0 || found > supported {
            return Err(FormatError::Version {
                object: self.object,
                found: found.into(),
                supported: supported.into(),
            });
        }
        Ok(())
    }

    pub(crate) fn position(&self) -> usize {
        self.at
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(crate) fn end(self) -> Result<(), FormatError> {
        match self.remaining() {
            0 => Ok(()),
            extra => Err(FormatError::Trailing {
                object: self.object,
                extra,
            }),
        }
    }

    pub(crate) fn range(&self, field: &'static str, found: u64) -> FormatError {
        FormatError::Range {
            object: self.object,
            field,
            found,
        }
    }

    pub(crate) fn tag(&self, field: &'static str, found: u64) -> FormatError {
        FormatError::Tag {
            object: self.object,
            field,
            found,
        }
    }
}

/// Appends an unsigned LEB128 number.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A length or count that the writer has kept within its bound.
pub(crate) fn length_u32(length: usize) -> u32 {
    debug_assert!(u32::try_from(length).is_ok());
    length as u32
}

/// Decodes a prost message.
pub(crate) fn message<M: prost::Message + Default>(
    object: &'static str,
    bytes: &[u8],
) -> Result<M, FormatError> {
    M::decode(bytes).map_err(|error| FormatError::Message {
        object,
        detail: error.to_string(),
    })
}

/// A message field that holds an identifier of fixed length.
pub(crate) fn fixed<const N: usize>(
    object: &'static str,
    field: &'static str,
    bytes: &[u8],
) -> Result<[u8; N], FormatError> {
    bytes.try_into().map_err(|_| FormatError::Range {
        object,
        field,
        found: bytes.len() as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_have_one_form() {
        for value in [0, 1, 127, 128, 16383, 16384, u32::MAX] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let mut reader = Reader::new("test", &bytes);
            assert_eq!(reader.varint("value"), Ok(value));
            assert_eq!(reader.end(), Ok(()));
        }
        assert!(Reader::new("test", &[0x80, 0x00]).varint("padded").is_err());
        assert!(Reader::new("test", &[0xff; 5]).varint("too large").is_err());
        assert!(Reader::new("test", &[0xff; 2]).varint("cut").is_err());
    }
}
