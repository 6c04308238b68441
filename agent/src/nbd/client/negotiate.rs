//! The client's half of the negotiation, up to the first request.
//!
//! Fixed newstyle with `GO`, as every server of the last ten years speaks it. The invariant: what
//! leaves here are facts that later arithmetic can trust (a block size that is a power of two, a
//! largest read that is a multiple of it).

use super::patience::TimedSocket;
use super::{Contexts, ExportFacts, Violation, read_payload};
use crate::nbd::wire::{
    self, ContextQuery, Go, Info, OptionReplyHead, handshake, info, option, reply,
};
use std::io::{BufReader, Read, Write};

/// The most answers that a server may give to one option.
const ANSWERS_MAX: usize = 64;
/// The largest block size that a server may ask for, which the protocol sets.
const BLOCK_BYTES_MAX: u32 = 64 << 10;

/// Greets, chooses structured replies and `base:allocation` where the server has them, and goes.
/// `changes` is the context of a map of changes, which it must have.
pub(super) fn negotiate(
    stream: &mut BufReader<TimedSocket>,
    export: &str,
    changes: Option<&str>,
) -> Result<ExportFacts, Violation> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    let offered = wire::decode_greeting(&greeting)?;
    if offered & handshake::FIXED_NEWSTYLE == 0 {
        return Err(Violation::Negotiation(
            "it does not speak the fixed newstyle negotiation".to_owned(),
        ));
    }
    let chosen = offered & (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
    stream
        .get_mut()
        .write_all(&u32::from(chosen).to_be_bytes())?;

    let structured = ask(stream, option::STRUCTURED_REPLY, b"", |_, _| Ok(()))?.is_ok();
    let contexts = if structured {
        choose_contexts(stream, export, changes)?
    } else {
        Contexts::default()
    };
    if let (Some(changes), None) = (changes, contexts.changes) {
        return Err(Violation::Negotiation(format!(
            "it does not show the map {changes:?} of the export {export:?}"
        )));
    }
    go(stream, export, contexts)
}

/// Asks for `base:allocation` and the map of changes; their ids, where the server has them.
fn choose_contexts(
    stream: &mut BufReader<TimedSocket>,
    export: &str,
    changes: Option<&str>,
) -> Result<Contexts, Violation> {
    let query = ContextQuery {
        name: export,
        queries: std::iter::once(wire::BASE_ALLOCATION)
            .chain(changes)
            .collect(),
    };
    let mut contexts = Contexts::default();
    let answer = ask(
        stream,
        option::SET_META_CONTEXT,
        &query.encode(),
        |kind, payload| {
            if kind == reply::META_CONTEXT {
                let (said, name) = wire::decode_context(payload)?;
                if name == wire::BASE_ALLOCATION {
                    contexts.allocation = Some(said);
                } else if Some(name) == changes {
                    contexts.changes = Some(said);
                }
            }
            Ok(())
        },
    )?;
    if contexts.allocation.is_some() && contexts.allocation == contexts.changes {
        return Err(Violation::Negotiation(
            "it tells two maps under one id".to_owned(),
        ));
    }
    Ok(answer.map_or_else(|_| Contexts::default(), |()| contexts))
}

fn go(
    stream: &mut BufReader<TimedSocket>,
    export: &str,
    contexts: Contexts,
) -> Result<ExportFacts, Violation> {
    let request = Go {
        name: export,
        infos: vec![info::BLOCK_SIZE],
    };
    let mut size_bytes = None;
    let mut block_bytes = 1;
    let mut read_bytes_max = wire::READ_BYTES_MAX;
    let answer = ask(stream, option::GO, &request.encode(), |kind, payload| {
        if kind != reply::INFO {
            return Ok(());
        }
        match Info::decode(payload)? {
            Info::Export {
                size_bytes: said, ..
            } => size_bytes = Some(said),
            Info::BlockSize { min, max, .. } => {
                if !min.is_power_of_two() || min > BLOCK_BYTES_MAX || max < min {
                    return Err(Violation::Negotiation(format!(
                        "it names impossible block sizes: least {min}, largest {max}"
                    )));
                }
                block_bytes = min;
                read_bytes_max = max.min(wire::READ_BYTES_MAX);
            }
            Info::Other(_) => {}
        }
        Ok(())
    })?;
    if let Err(refusal) = answer {
        return Err(Violation::Negotiation(format!(
            "it refuses the export {export:?}: {refusal}"
        )));
    }
    let Some(size_bytes) = size_bytes else {
        return Err(Violation::Negotiation(
            "it does not tell the size of its export".to_owned(),
        ));
    };
    Ok(ExportFacts {
        size_bytes,
        block_bytes,
        read_bytes_max: read_bytes_max - read_bytes_max % block_bytes,
        contexts,
    })
}

/// Sends one option and hears its answers until the last, which is either an acknowledgement or an
/// error, whose text is given back.
fn ask(
    stream: &mut BufReader<TimedSocket>,
    option: u32,
    payload: &[u8],
    mut hear: impl FnMut(u32, &[u8]) -> Result<(), Violation>,
) -> Result<Result<(), String>, Violation> {
    stream
        .get_mut()
        .write_all(&wire::encode_option(option, payload))?;
    for _ in 0..ANSWERS_MAX {
        let mut head = [0; OptionReplyHead::BYTES];
        stream.read_exact(&mut head)?;
        let head = OptionReplyHead::decode(&head)?;
        if head.option != option || head.length > wire::OPTION_BYTES_MAX {
            return Err(Violation::Negotiation(format!(
                "its answer to option {option} is one to {} of {} bytes",
                head.option, head.length
            )));
        }
        let payload = read_payload(stream, head.length)?;
        match head.kind {
            reply::ACK => return Ok(Ok(())),
            kind if kind & reply::ERROR_BIT != 0 => {
                let reason = match kind {
                    reply::ERR_UNKNOWN => "there is no such export",
                    reply::ERR_UNSUP => "it does not know the option",
                    _ => "it refuses",
                };
                let text = String::from_utf8_lossy(&payload);
                return Ok(Err(format!("{reason} ({})", text.escape_debug())));
            }
            kind => hear(kind, &payload)?,
        }
    }
    Err(Violation::Negotiation(format!(
        "it answers option {option} without end"
    )))
}
