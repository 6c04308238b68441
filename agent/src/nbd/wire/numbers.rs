//! The protocol's numbers, under its names, and our bounds.
//!
//! Nothing is computed here, and no number stands anywhere else.

/// The server's first eight bytes.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943; // "NBDMAGIC"
/// Opens the newstyle negotiation, and each option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054; // "IHAVEOPT"
/// Opens each answer to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Opens each request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Opens a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Opens a chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags, the same for server and client.
pub mod handshake {
    /// Options may be answered with errors.
    pub const FIXED_NEWSTYLE: u16 = 1;
    /// The answer to `EXPORT_NAME` does not end with 124 zeros.
    pub const NO_ZEROES: u16 = 2;
}

/// What a client can ask for before it transmits.
pub mod option {
    /// Choose an export; cannot be refused but by hanging up.
    pub const EXPORT_NAME: u32 = 1;
    /// Good-bye.
    pub const ABORT: u32 = 2;
    /// List the exports.
    pub const LIST: u32 = 3;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and start transmitting.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// What a server answers to an option.
pub mod reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// One fact about an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// Set in all errors.
    pub const ERROR_BIT: u32 = 1 << 31;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = ERROR_BIT | 1;
    /// The option is malformed, or comes at the wrong time.
    pub const ERR_INVALID: u32 = ERROR_BIT | 3;
    /// There is no such export.
    pub const ERR_UNKNOWN: u32 = ERROR_BIT | 6;
    /// The option is too long.
    pub const ERR_TOO_BIG: u32 = ERROR_BIT | 9;
}

/// Facts about an export.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// Block sizes.
    pub const BLOCK_SIZE: u16 = 3;
}

/// What holds of an export while transmitting.
pub mod transmission {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 2;
    /// "Do not fragment" is understood.
    pub const SEND_DF: u16 = 1 << 7;
    /// Several connections see the same bytes.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// Requests.
pub mod command {
    /// Read bytes.
    pub const READ: u16 = 0;
    /// Write bytes.
    pub const WRITE: u16 = 1;
    /// Disconnect.
    pub const DISCONNECT: u16 = 2;
    /// Make what was written durable.
    pub const FLUSH: u16 = 3;
    /// Describe extents by the chosen metadata contexts.
    pub const BLOCK_STATUS: u16 = 7;
    /// Flag of a block status request: one extent is enough.
    pub const FLAG_REQ_ONE: u16 = 1 << 3;
    /// Flag of a read: do not fragment the reply.
    pub const FLAG_DF: u16 = 1 << 2;
}

/// Chunks of a structured reply.
pub mod chunk {
    /// Flag: the last chunk of this reply.
    pub const FLAG_DONE: u16 = 1;
    /// Nothing.
    pub const NONE: u16 = 0;
    /// Bytes at an offset.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeros at an offset.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents.
    pub const BLOCK_STATUS: u16 = 5;
    /// Set in all errors.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// An error of the whole request.
    pub const ERROR: u16 = ERROR_BIT | 1;
    /// An error at an offset.
    pub const ERROR_OFFSET: u16 = ERROR_BIT | 2;
}

/// Error numbers of the protocol: those of Linux, but fixed.
pub mod errno {
    /// Not allowed.
    pub const EPERM: u32 = 1;
    /// Input or output failed.
    pub const EIO: u32 = 5;
    /// Malformed request.
    pub const EINVAL: u32 = 22;
    /// Too long for an unfragmented reply.
    pub const EOVERFLOW: u32 = 75;
    /// Not supported.
    pub const ENOTSUP: u32 = 95;
    /// The server is ending.
    pub const ESHUTDOWN: u32 = 108;
}

/// The metadata context that tells holes and zeros.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// `base:allocation`: no space is allocated; says nothing of what reads give.
pub const STATE_HOLE: u32 = 1;
/// `base:allocation`: reads as zeros.
pub const STATE_ZERO: u32 = 2;

/// The metadata context of a dirty bitmap of QEMU's is this and the bitmap's name.
pub const DIRTY_BITMAP_PREFIX: &str = "qemu:dirty-bitmap:";
/// The context of QEMU that tells in which image of a chain data stands: 1 is the topmost, 0 none.
pub const ALLOCATION_DEPTH: &str = "qemu:allocation-depth";
/// `qemu:dirty-bitmap:NAME`: was written to.
pub const STATE_DIRTY: u32 = 1;

/// The longest string that the protocol allows.
pub const STRING_BYTES_MAX: u32 = 4096;
/// The longest option payload that we read: two strings and some numbers, generously.
pub const OPTION_BYTES_MAX: u32 = 16 << 10;
/// The longest payload of an error chunk that we read.
pub const ERROR_BYTES_MAX: u32 = 4 + 2 + STRING_BYTES_MAX + 8;
/// The largest read that a server must serve unless it names another figure.
pub const READ_BYTES_MAX: u32 = 32 << 20;
/// The most extents that we read or send in one block status chunk.
pub const EXTENTS_MAX: u32 = 128 << 10;
/// The longest block status payload that follows.
pub const STATUS_BYTES_MAX: u32 = 4 + 8 * EXTENTS_MAX;
