//! The bytes of the NBD protocol: encoders, decoders, and the protocol's numbers.
//!
//! Not a connection: nothing here reads, writes or waits, so both the blocking client and the
//! asynchronous server use it, and bytes alone test it. The invariants: a decoder never panics and
//! never allocates more than its input's length; every number stands under its name in the
//! protocol's specification (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>).
//! All numbers are big-endian.

mod numbers;
#[cfg(test)]
mod tests;

pub use numbers::{
    ALLOCATION_DEPTH, BASE_ALLOCATION, CHUNK_MAGIC, DIRTY_BITMAP_PREFIX, ERROR_BYTES_MAX,
    EXTENTS_MAX, INIT_MAGIC, OPTION_BYTES_MAX, OPTION_MAGIC, OPTION_REPLY_MAGIC, READ_BYTES_MAX,
    REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, STATE_DIRTY, STATE_HOLE, STATE_ZERO, STATUS_BYTES_MAX,
    STRING_BYTES_MAX, chunk, command, errno, handshake, info, option, reply, transmission,
};

use thiserror::Error;

/// Bytes that are not what the protocol says.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WireError {
    /// A magic number is another.
    #[error("expected the magic number {expected:#x}, found {found:#x}")]
    Magic {
        /// As the protocol says.
        expected: u64,
        /// As received.
        found: u64,
    },
    /// A message ends early.
    #[error("a message ends {missing} bytes too early")]
    Short {
        /// How many bytes are lacking.
        missing: usize,
    },
    /// A message goes on behind its end.
    #[error("a message has {surplus} bytes too many")]
    Long {
        /// How many bytes are left over.
        surplus: usize,
    },
    /// A length or count is larger than allowed.
    #[error("{what} is {found} long, at most {max} are allowed")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// As received.
        found: u64,
        /// What is allowed.
        max: u64,
    },
    /// A string is not UTF-8.
    #[error("a string is not UTF-8")]
    Text,
}

/// Reads fields off the front of a message.
#[derive(Debug)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// All of `message`.
    pub fn new(message: &'a [u8]) -> Self {
        Self(message)
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let Some((head, tail)) = self.0.split_at_checked(count) else {
            return Err(WireError::Short {
                missing: count - self.0.len(),
            });
        };
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let Some((head, tail)) = self.0.split_first_chunk() else {
            return Err(WireError::Short {
                missing: N - self.0.len(),
            });
        };
        self.0 = tail;
        Ok(*head)
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_be_bytes)
    }

    /// Four bytes of length and as many bytes of text.
    pub fn string(&mut self) -> Result<&'a str, WireError> {
        let length = self.u32()?;
        if length > STRING_BYTES_MAX {
            return Err(WireError::TooLarge {
                what: "a string",
                found: length.into(),
                max: STRING_BYTES_MAX.into(),
            });
        }
        std::str::from_utf8(self.bytes(length as usize)?).map_err(|_| WireError::Text)
    }

    /// What is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// Checks that nothing is left.
    pub fn end(&self) -> Result<(), WireError> {
        match self.0.len() {
            0 => Ok(()),
            surplus => Err(WireError::Long { surplus }),
        }
    }
}

fn expect_magic(expected: u64, found: u64) -> Result<(), WireError> {
    if expected == found {
        Ok(())
    } else {
        Err(WireError::Magic { expected, found })
    }
}

/// The server's greeting; decodes to its handshake flags.
pub fn decode_greeting(message: &[u8; 18]) -> Result<u16, WireError> {
    let mut fields = Fields::new(message);
    expect_magic(INIT_MAGIC, fields.u64()?)?;
    expect_magic(OPTION_MAGIC, fields.u64()?)?;
    fields.u16()
}

/// The server's greeting.
pub fn encode_greeting(flags: u16) -> Vec<u8> {
    let mut message = Vec::with_capacity(18);
    message.extend_from_slice(&INIT_MAGIC.to_be_bytes());
    message.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    message.extend_from_slice(&flags.to_be_bytes());
    message
}

/// The head of an option: number and payload length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHead {
    /// One of [`option`].
    pub option: u32,
    /// Bytes that follow.
    pub length: u32,
}

impl OptionHead {
    /// Bytes of an option's head.
    pub const BYTES: usize = 16;

    /// Reads the head of an option.
    pub fn decode(message: &[u8; Self::BYTES]) -> Result<Self, WireError> {
        let mut fields = Fields::new(message);
        expect_magic(OPTION_MAGIC, fields.u64()?)?;
        Ok(Self {
            option: fields.u32()?,
            length: fields.u32()?,
        })
    }
}

/// An option with its payload.
pub fn encode_option(option: u32, payload: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(OptionHead::BYTES + payload.len());
    message.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    message.extend_from_slice(&option.to_be_bytes());
    push_length(&mut message, payload.len());
    message.extend_from_slice(payload);
    message
}

/// The head of an answer to an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionReplyHead {
    /// The option that is answered.
    pub option: u32,
    /// One of [`reply`].
    pub kind: u32,
    /// Bytes that follow.
    pub length: u32,
}

impl OptionReplyHead {
    /// Bytes of the head of an answer.
    pub const BYTES: usize = 20;

    /// Reads the head of an answer.
    pub fn decode(message: &[u8; Self::BYTES]) -> Result<Self, WireError> {
        let mut fields = Fields::new(message);
        expect_magic(OPTION_REPLY_MAGIC, fields.u64()?)?;
        Ok(Self {
            option: fields.u32()?,
            kind: fields.u32()?,
            length: fields.u32()?,
        })
    }
}

/// An answer to an option with its payload.
pub fn encode_option_reply(option: u32, kind: u32, payload: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(OptionReplyHead::BYTES + payload.len());
    message.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    message.extend_from_slice(&option.to_be_bytes());
    message.extend_from_slice(&kind.to_be_bytes());
    push_length(&mut message, payload.len());
    message.extend_from_slice(payload);
    message
}

/// The payload of [`option::GO`] and [`option::INFO`]: which export, which facts are wanted.
#[derive(Debug, PartialEq, Eq)]
pub struct Go<'a> {
    /// The export.
    pub name: &'a str,
    /// Facts wanted beyond [`info::EXPORT`].
    pub infos: Vec<u16>,
}

impl<'a> Go<'a> {
    /// Reads the payload.
    pub fn decode(payload: &'a [u8]) -> Result<Self, WireError> {
        let mut fields = Fields::new(payload);
        let name = fields.string()?;
        let count = fields.u16()?;
        let infos = (0..count).map(|_| fields.u16()).collect::<Result<_, _>>()?;
        fields.end()?;
        Ok(Self { name, infos })
    }

    /// Writes the payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        push_string(&mut payload, self.name);
        // A caller that wants 65,536 facts does not exist.
        let count = u16::try_from(self.infos.len()).unwrap_or(u16::MAX);
        payload.extend_from_slice(&count.to_be_bytes());
        for info in self.infos.iter().take(count.into()) {
            payload.extend_from_slice(&info.to_be_bytes());
        }
        payload
    }
}

/// One fact about an export, in an [`reply::INFO`] answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Info {
    /// Size and flags.
    Export {
        /// Bytes.
        size_bytes: u64,
        /// Of [`transmission`].
        flags: u16,
    },
    /// Constraints on requests, in bytes.
    BlockSize {
        /// Offsets and lengths are multiples of it.
        min: u32,
        /// Works best.
        preferred: u32,
        /// The largest read.
        max: u32,
    },
    /// Something that we do not know.
    Other(u16),
}

impl Info {
    /// Reads the payload.
    pub fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields::new(payload);
        let info = match fields.u16()? {
            info::EXPORT => Self::Export {
                size_bytes: fields.u64()?,
                flags: fields.u16()?,
            },
            info::BLOCK_SIZE => Self::BlockSize {
                min: fields.u32()?,
                preferred: fields.u32()?,
                max: fields.u32()?,
            },
            other => {
                fields.rest();
                Self::Other(other)
            }
        };
        fields.end()?;
        Ok(info)
    }

    /// Writes the payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::with_capacity(14);
        match self {
            Self::Export { size_bytes, flags } => {
                payload.extend_from_slice(&info::EXPORT.to_be_bytes());
                payload.extend_from_slice(&size_bytes.to_be_bytes());
                payload.extend_from_slice(&flags.to_be_bytes());
            }
            Self::BlockSize {
                min,
                preferred,
                max,
            } => {
                payload.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
                for size in [min, preferred, max] {
                    payload.extend_from_slice(&size.to_be_bytes());
                }
            }
            Self::Other(other) => payload.extend_from_slice(&other.to_be_bytes()),
        }
        payload
    }
}

/// The payload of the two options about metadata contexts.
#[derive(Debug, PartialEq, Eq)]
pub struct ContextQuery<'a> {
    /// The export.
    pub name: &'a str,
    /// Contexts wanted; none in a list request means all.
    pub queries: Vec<&'a str>,
}

impl<'a> ContextQuery<'a> {
    /// Reads the payload.
    pub fn decode(payload: &'a [u8]) -> Result<Self, WireError> {
        let mut fields = Fields::new(payload);
        let name = fields.string()?;
        let count = fields.u32()?;
        // Nothing is reserved for the count: each query costs the sender four bytes at least.
        let mut queries = Vec::new();
        for _ in 0..count {
            queries.push(fields.string()?);
        }
        fields.end()?;
        Ok(Self { name, queries })
    }

    /// Writes the payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        push_string(&mut payload, self.name);
        push_length(&mut payload, self.queries.len());
        for query in &self.queries {
            push_string(&mut payload, query);
        }
        payload
    }
}

/// The payload of [`reply::META_CONTEXT`]: id and name.
pub fn decode_context(payload: &[u8]) -> Result<(u32, &str), WireError> {
    let mut fields = Fields::new(payload);
    let id = fields.u32()?;
    let name = std::str::from_utf8(fields.rest()).map_err(|_| WireError::Text)?;
    Ok((id, name))
}

/// The payload of [`reply::META_CONTEXT`].
pub fn encode_context(id: u32, name: &str) -> Vec<u8> {
    let mut payload = id.to_be_bytes().to_vec();
    payload.extend_from_slice(name.as_bytes());
    payload
}

/// A request while transmitting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Of [`command`].
    pub flags: u16,
    /// One of [`command`].
    pub kind: u16,
    /// Comes back in the reply.
    pub cookie: u64,
    /// In bytes.
    pub offset: u64,
    /// In bytes.
    pub length: u32,
}

impl Request {
    /// Bytes of a request.
    pub const BYTES: usize = 28;

    /// Reads a request.
    pub fn decode(message: &[u8; Self::BYTES]) -> Result<Self, WireError> {
        let mut fields = Fields::new(message);
        expect_magic(REQUEST_MAGIC.into(), fields.u32()?.into())?;
        Ok(Self {
            flags: fields.u16()?,
            kind: fields.u16()?,
            cookie: fields.u64()?,
            offset: fields.u64()?,
            length: fields.u32()?,
        })
    }

    /// Writes a request.
    pub fn encode(&self) -> Vec<u8> {
        let mut message = Vec::with_capacity(Self::BYTES);
        message.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        message.extend_from_slice(&self.flags.to_be_bytes());
        message.extend_from_slice(&self.kind.to_be_bytes());
        message.extend_from_slice(&self.cookie.to_be_bytes());
        message.extend_from_slice(&self.offset.to_be_bytes());
        message.extend_from_slice(&self.length.to_be_bytes());
        message
    }
}

/// The head of a reply; which kind it is, its first four bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyHead {
    /// The whole reply; the bytes of a successful read follow.
    Simple {
        /// Of [`errno`], 0 is success.
        error: u32,
        /// Of the request.
        cookie: u64,
    },
    /// One chunk of a reply.
    Chunk {
        /// Of [`chunk`].
        flags: u16,
        /// One of [`chunk`].
        kind: u16,
        /// Of the request.
        cookie: u64,
        /// Bytes that follow.
        length: u32,
    },
}

impl ReplyHead {
    /// Bytes of a simple reply's head, and so the least that a reply has.
    pub const SIMPLE_BYTES: usize = 16;
    /// Bytes of a chunk's head.
    pub const CHUNK_BYTES: usize = 20;

    /// How many bytes a head has that begins with `magic`.
    pub fn bytes(magic: [u8; 4]) -> Result<usize, WireError> {
        match u32::from_be_bytes(magic) {
            SIMPLE_REPLY_MAGIC => Ok(Self::SIMPLE_BYTES),
            CHUNK_MAGIC => Ok(Self::CHUNK_BYTES),
            found => Err(WireError::Magic {
                expected: CHUNK_MAGIC.into(),
                found: found.into(),
            }),
        }
    }

    /// Reads a head.
    pub fn decode(message: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields::new(message);
        let head = match fields.u32()? {
            SIMPLE_REPLY_MAGIC => Self::Simple {
                error: fields.u32()?,
                cookie: fields.u64()?,
            },
            CHUNK_MAGIC => Self::Chunk {
                flags: fields.u16()?,
                kind: fields.u16()?,
                cookie: fields.u64()?,
                length: fields.u32()?,
            },
            found => {
                return Err(WireError::Magic {
                    expected: CHUNK_MAGIC.into(),
                    found: found.into(),
                });
            }
        };
        fields.end()?;
        Ok(head)
    }

    /// Writes a head.
    pub fn encode(&self) -> Vec<u8> {
        let mut message = Vec::with_capacity(Self::CHUNK_BYTES);
        match self {
            Self::Simple { error, cookie } => {
                message.extend_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
                message.extend_from_slice(&error.to_be_bytes());
                message.extend_from_slice(&cookie.to_be_bytes());
            }
            Self::Chunk {
                flags,
                kind,
                cookie,
                length,
            } => {
                message.extend_from_slice(&CHUNK_MAGIC.to_be_bytes());
                message.extend_from_slice(&flags.to_be_bytes());
                message.extend_from_slice(&kind.to_be_bytes());
                message.extend_from_slice(&cookie.to_be_bytes());
                message.extend_from_slice(&length.to_be_bytes());
            }
        }
        message
    }
}

/// The payload of an error chunk: error number and text. An offset behind them is dropped.
pub fn decode_error(payload: &[u8]) -> Result<(u32, String), WireError> {
    let mut fields = Fields::new(payload);
    let error = fields.u32()?;
    let length = fields.u16()?;
    let text = String::from_utf8_lossy(fields.bytes(length.into())?).into_owned();
    Ok((error, text))
}

/// The payload of a [`chunk::ERROR`].
pub fn encode_error(error: u32, text: &str) -> Vec<u8> {
    let mut cut = text.len().min(STRING_BYTES_MAX as usize);
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    let text = &text.as_bytes()[..cut];
    let mut payload = Vec::with_capacity(6 + text.len());
    payload.extend_from_slice(&error.to_be_bytes());
    // At most STRING_BYTES_MAX, which fits.
    payload.extend_from_slice(&u16::try_from(text.len()).unwrap_or(0).to_be_bytes());
    payload.extend_from_slice(text);
    payload
}

/// The payload of a [`chunk::BLOCK_STATUS`]: the context's id and its extents, each with its length
/// in bytes and its state.
pub fn decode_status(payload: &[u8]) -> Result<(u32, Vec<(u32, u32)>), WireError> {
    let mut fields = Fields::new(payload);
    let context = fields.u32()?;
    let (extents, surplus) = fields.rest().as_chunks::<8>();
    if !surplus.is_empty() {
        return Err(WireError::Short {
            missing: 8 - surplus.len(),
        });
    }
    let extents = extents
        .iter()
        .map(|extent| {
            let mut fields = Fields::new(extent);
            Ok((fields.u32()?, fields.u32()?))
        })
        .collect::<Result<_, WireError>>()?;
    Ok((context, extents))
}

/// The payload of a [`chunk::BLOCK_STATUS`].
pub fn encode_status(context: u32, extents: &[(u32, u32)]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(4 + 8 * extents.len());
    payload.extend_from_slice(&context.to_be_bytes());
    for (length, state) in extents {
        payload.extend_from_slice(&length.to_be_bytes());
        payload.extend_from_slice(&state.to_be_bytes());
    }
    payload
}

fn push_string(message: &mut Vec<u8>, text: &str) {
    push_length(message, text.len());
    message.extend_from_slice(text.as_bytes());
}

/// Lengths of what we write ourselves are far below 4 GiB; one that is not makes the message
/// malformed, never wrong memory.
fn push_length(message: &mut Vec<u8>, length: usize) {
    message.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
}
