//! The server's half of the negotiation.
//!
//! There is one export, under the empty name, and so under any: refusing names would tell a client
//! nothing that it could use. The invariant: a client gets a bounded number of options of bounded
//! length.

use super::{ALLOCATION_CONTEXT, Session};
use crate::nbd::wire::{
    self, ContextQuery, Go, Info, OptionHead, WireError, handshake, info, option, reply,
    transmission,
};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The most options that a client may try.
const OPTIONS_MAX: usize = 64;
/// The block size at which reads work best, in bytes: about a frame of the repository.
const BLOCK_BYTES_PREFERRED: u32 = 256 << 10;

/// What holds of every export.
const FLAGS: u16 = transmission::HAS_FLAGS
    | transmission::READ_ONLY
    | transmission::SEND_DF
    | transmission::CAN_MULTI_CONN;

/// Negotiates until transmission; nothing when the client says good-bye instead.
pub(super) async fn negotiate(
    stream: &mut UnixStream,
    size_bytes: u64,
) -> io::Result<Option<Session>> {
    let greeting = wire::encode_greeting(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
    stream.write_all(&greeting).await?;
    let chosen = stream.read_u32().await?;
    let known = u32::from(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
    if chosen & !known != 0 {
        return Err(malformed("unknown client flags"));
    }
    let omit_zeroes = chosen & u32::from(handshake::NO_ZEROES) != 0;

    let mut session = Session::default();
    for _ in 0..OPTIONS_MAX {
        let mut head = [0; OptionHead::BYTES];
        stream.read_exact(&mut head).await?;
        let head = OptionHead::decode(&head).map_err(malformed)?;
        if head.length > wire::OPTION_BYTES_MAX {
            return Err(malformed("an option that is too long"));
        }
        let mut payload = vec![0; head.length as usize];
        stream.read_exact(&mut payload).await?;
        if head.option == option::EXPORT_NAME {
            stream
                .write_all(&export_name_reply(size_bytes, omit_zeroes))
                .await?;
            return Ok(Some(session));
        }
        let answer = answer(head.option, &payload, size_bytes, &mut session);
        stream.write_all(&answer.bytes).await?;
        match answer.then {
            Then::Negotiate => {}
            Then::Transmit => return Ok(Some(session)),
            Then::HangUp => return Ok(None),
        }
    }
    Err(malformed("options without end"))
}

/// The old way to choose an export: size and flags, without a head.
fn export_name_reply(size_bytes: u64, omit_zeroes: bool) -> Vec<u8> {
    let mut message = size_bytes.to_be_bytes().to_vec();
    message.extend_from_slice(&FLAGS.to_be_bytes());
    if !omit_zeroes {
        message.extend_from_slice(&[0; 124]);
    }
    message
}

struct Answer {
    bytes: Vec<u8>,
    then: Then,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Negotiate,
    Transmit,
    HangUp,
}

/// Answers one option: a function of bytes and state.
fn answer(option: u32, payload: &[u8], size_bytes: u64, session: &mut Session) -> Answer {
    let mut bytes = Vec::new();
    let outcome = match option {
        option::ABORT => Ok(Then::HangUp),
        option::LIST if payload.is_empty() => {
            // One export with an empty name: four bytes of length.
            let name = 0u32.to_be_bytes();
            bytes.extend(wire::encode_option_reply(option, reply::SERVER, &name));
            Ok(Then::Negotiate)
        }
        option::STRUCTURED_REPLY if payload.is_empty() => {
            session.structured = true;
            Ok(Then::Negotiate)
        }
        option::LIST | option::STRUCTURED_REPLY => Err(reply::ERR_INVALID),
        option::INFO | option::GO => describe(option, payload, size_bytes, &mut bytes),
        option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
            contexts(option, payload, session, &mut bytes)
        }
        _ => Err(reply::ERR_UNSUP),
    };
    match outcome {
        Ok(then) => {
            bytes.extend(wire::encode_option_reply(option, reply::ACK, b""));
            Answer { bytes, then }
        }
        Err(error) => Answer {
            bytes: wire::encode_option_reply(option, error, b""),
            then: Then::Negotiate,
        },
    }
}

fn describe(
    option: u32,
    payload: &[u8],
    size_bytes: u64,
    bytes: &mut Vec<u8>,
) -> Result<Then, u32> {
    let wanted = Go::decode(payload).map_err(|_| reply::ERR_INVALID)?;
    let mut infos = vec![Info::Export {
        size_bytes,
        flags: FLAGS,
    }];
    if wanted.infos.contains(&info::BLOCK_SIZE) {
        infos.push(Info::BlockSize {
            min: 1,
            preferred: BLOCK_BYTES_PREFERRED,
            max: wire::READ_BYTES_MAX,
        });
    }
    for info in infos {
        bytes.extend(wire::encode_option_reply(
            option,
            reply::INFO,
            &info.encode(),
        ));
    }
    Ok(if option == option::GO {
        Then::Transmit
    } else {
        Then::Negotiate
    })
}

fn contexts(
    option: u32,
    payload: &[u8],
    session: &mut Session,
    bytes: &mut Vec<u8>,
) -> Result<Then, u32> {
    if !session.structured {
        return Err(reply::ERR_INVALID);
    }
    let wanted = ContextQuery::decode(payload).map_err(|_| reply::ERR_INVALID)?;
    let lists = option == option::LIST_META_CONTEXT;
    let names_it = wanted.queries.contains(&wire::BASE_ALLOCATION);
    let lists_all = wanted.queries.is_empty() || wanted.queries.contains(&"base:");
    if names_it || lists && lists_all {
        // The id of a list's answer means nothing.
        let context = wire::encode_context(ALLOCATION_CONTEXT, wire::BASE_ALLOCATION);
        bytes.extend(wire::encode_option_reply(
            option,
            reply::META_CONTEXT,
            &context,
        ));
    }
    if !lists {
        session.allocation = names_it;
    }
    Ok(Then::Negotiate)
}

fn malformed(what: impl Into<Malformed>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

#[derive(Debug, thiserror::Error)]
enum Malformed {
    #[error("the client sends {0}")]
    Said(&'static str),
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl From<&'static str> for Malformed {
    fn from(said: &'static str) -> Self {
        Self::Said(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn arbitrary_options_do_not_panic(
            option in 0u32..12, structured: bool,
            payload in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut session = Session { structured, allocation: false };
            let answer = answer(option, &payload, 1 << 40, &mut session);
            prop_assert!(answer.bytes.len() < 1000);
            prop_assert!(session.structured || !session.allocation);
        }
    }
}
