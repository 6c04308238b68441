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
        let value = self.varint_of(field, 5)?;
        u32::try_from(value).map_err(|_| self.range(field, value))
    }

    /// One of at most 63 bits, in its shortest form.
    pub(crate) fn varint_long(&mut self, field: &'static str) -> Result<u64, FormatError> {
        self.varint_of(field, 9)
    }

    fn varint_of(&mut self, field: &'static str, bytes_max: u32) -> Result<u64, FormatError> {
        let mut value = 0_u64;
        for shift in (0..bytes_max).map(|byte| byte * 7) {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    break;
                }
                return Ok(value);
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
pub(crate) fn put_varint(out: &mut Vec<u8>, value: u32) {
    put_varint_long(out, value.into());
}

/// The same for [`Reader::varint_long`], below 2^63.
pub(crate) fn put_varint_long(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(low_seven_bits(value) | 0x80);
        value >>= 7;
    }
    out.push(low_seven_bits(value));
}

fn low_seven_bits(value: u64) -> u8 {
    value.to_le_bytes()[0] & 0x7f
}

/// A length or count that the writer has kept within its bound, which is below 2^32.
#[expect(
    clippy::cast_possible_truncation,
    reason = "every caller's bound is below 2^32"
)]
pub(crate) fn length_u32(length: usize) -> u32 {
    debug_assert!(u32::try_from(length).is_ok());
    length as u32
}

/// Fewest bytes that a message's fields take on average, beyond the first [`MESSAGE_FIELDS_FREE`].
const MESSAGE_FIELD_BYTES: usize = 8;

/// Fields that a message may have whatever their size.
const MESSAGE_FIELDS_FREE: usize = 64;

/// Decodes a protobuf message.
///
/// An empty element of a repeated field takes two bytes on the wire and a hundred in memory, so a
/// message that is made of such crumbs is refused before anything is allocated for it. No writer
/// makes them: elements are identifiers, or messages that hold some.
pub(crate) fn message<M: prost::Message + Default>(
    object: &'static str,
    bytes: &[u8],
) -> Result<M, FormatError> {
    let bad = |detail: String| FormatError::Message { object, detail };
    let Some(fields) = count_fields(bytes) else {
        return Err(bad("a field is cut or has an unknown wire type".to_owned()));
    };
    let fields_max = bytes.len() / MESSAGE_FIELD_BYTES + MESSAGE_FIELDS_FREE;
    if fields > fields_max {
        return Err(bad(format!(
            "{fields} fields in {} bytes, at most {fields_max} are allowed",
            bytes.len()
        )));
    }
    M::decode(bytes).map_err(|error| bad(error.to_string()))
}

/// Walks over the fields of a protobuf message, without looking into them.
fn count_fields(mut bytes: &[u8]) -> Option<usize> {
    let mut fields = 0;
    while !bytes.is_empty() {
        let key = take_varint(&mut bytes)?;
        let skip = match key & 7 {
            0 => {
                take_varint(&mut bytes)?;
                0
            }
            1 => 8,
            2 => usize::try_from(take_varint(&mut bytes)?).ok()?,
            5 => 4,
            _ => return None,
        };
        bytes = bytes.get(skip..)?;
        fields += 1;
    }
    Some(fields)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Refuses an object above its bound.
pub(crate) fn at_most(
    object: &'static str,
    bytes: &[u8],
    bytes_max: u64,
) -> Result<(), FormatError> {
    if bytes.len() as u64 > bytes_max {
        return Err(FormatError::Range {
            object,
            field: "length in bytes",
            found: bytes.len() as u64,
        });
    }
    Ok(())
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
        for value in [0, 127, 128, 1 << 32, (1 << 63) - 1] {
            let mut bytes = Vec::new();
            put_varint_long(&mut bytes, value);
            let mut reader = Reader::new("test", &bytes);
            assert_eq!(reader.varint_long("value"), Ok(value));
            assert_eq!(reader.end(), Ok(()));
        }
        let long = |bytes: &[u8]| Reader::new("test", bytes).varint_long("long");
        assert!(long(&[0x80, 0x80, 0x00]).is_err(), "padded");
        assert!(long(&[0xff; 10]).is_err(), "too large");
        assert!(Reader::new("test", &[0x80, 0x00]).varint("padded").is_err());
        assert!(Reader::new("test", &[0xff; 5]).varint("too large").is_err());
        assert!(Reader::new("test", &[0xff; 2]).varint("cut").is_err());
    }

    #[test]
    fn crumbs_are_refused_before_they_are_decoded() {
        #[derive(Clone, PartialEq, prost::Message)]
        struct List {
            #[prost(bytes = "vec", repeated, tag = "1")]
            ids: Vec<Vec<u8>>,
        }
        let crumbs = List {
            ids: vec![Vec::new(); 1000],
        };
        let ids = List {
            ids: vec![vec![7; 16]; 1000],
        };
        let decode = |list: &List| message::<List>("test", &prost::Message::encode_to_vec(list));
        assert!(decode(&crumbs).is_err());
        assert_eq!(decode(&ids), Ok(ids));
        // A group, which no message of ours has, and fields that end early.
        for bytes in [&[0x0b][..], &[0x0a, 5, 1], &[0x0a], &[0x09, 1], &[0x80; 12]] {
            assert!(message::<List>("test", bytes).is_err());
        }
    }
}
