//! Servers that always have something more to say, and so are never silent.

#![allow(
    clippy::unwrap_used,
    clippy::single_range_in_vec_init,
    reason = "tests"
)]

use super::patience::Patience;
use super::*;
use crate::nbd::wire::{Info, encode_greeting, encode_option_reply, option, reply};
use std::time::Duration;

const IMPATIENT: Patience = Patience {
    silence_max: Duration::from_secs(60),
    negotiation_max: Duration::from_millis(300),
    answer_max: Duration::from_millis(300),
};

/// A server that says `words`, then `drops` without end, a moment apart; it ends with its client.
fn serve(words: Vec<u8>, drops: Vec<u8>) -> UnixStream {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let mut said = theirs.write_all(&words);
        while said.is_ok() {
            std::thread::sleep(Duration::from_millis(5));
            said = theirs.write_all(&drops);
        }
    });
    ours
}

/// All that a server without structured replies says in a negotiation.
fn negotiation() -> Vec<u8> {
    let export = Info::Export {
        size_bytes: 1 << 20,
        flags: 3,
    };
    [
        encode_greeting(3),
        encode_option_reply(option::STRUCTURED_REPLY, reply::ERR_UNSUP, b""),
        encode_option_reply(option::GO, reply::INFO, &export.encode()),
        encode_option_reply(option::GO, reply::ACK, b""),
    ]
    .concat()
}

const BITMAP: &str = "of a point";

/// A server of 1 MiB that names its bitmap under the id `changes`, and goes on with `answer`.
fn tracked(changes: u32, answer: &[u8]) -> UnixStream {
    let context = |id, name: &str| {
        encode_option_reply(
            option::SET_META_CONTEXT,
            reply::META_CONTEXT,
            &wire::encode_context(id, name),
        )
    };
    let export = Info::Export {
        size_bytes: 1 << 20,
        flags: 3,
    };
    let words = [
        encode_greeting(3),
        encode_option_reply(option::STRUCTURED_REPLY, reply::ACK, b""),
        context(7, wire::BASE_ALLOCATION),
        context(changes, &format!("{}{BITMAP}", wire::DIRTY_BITMAP_PREFIX)),
        encode_option_reply(option::SET_META_CONTEXT, reply::ACK, b""),
        encode_option_reply(option::GO, reply::INFO, &export.encode()),
        encode_option_reply(option::GO, reply::ACK, b""),
        answer.to_vec(),
    ]
    .concat();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(&words).unwrap();
    theirs.shutdown(std::net::Shutdown::Write).unwrap();
    // Asked without anybody reading: the socket's buffer takes it.
    std::mem::forget(theirs);
    ours
}

fn bitmap(name: &str) -> ChangeMap {
    ChangeMap::Bitmap(name.to_owned())
}

/// The answer to the first request: one chunk for each context.
fn status(parts: &[(u32, &[(u32, u32)])]) -> Vec<u8> {
    let mut said = Vec::new();
    for (index, (context, extents)) in parts.iter().enumerate() {
        let payload = wire::encode_status(*context, extents);
        let head = ReplyHead::Chunk {
            flags: if index + 1 == parts.len() {
                chunk::FLAG_DONE
            } else {
                0
            },
            kind: chunk::BLOCK_STATUS,
            cookie: 0,
            length: u32::try_from(payload.len()).unwrap(),
        };
        said.extend([head.encode(), payload].concat());
    }
    said
}

fn map_of(answer: &[u8], map: Map) -> Result<Vec<Range<u64>>> {
    let stream = tracked(8, answer);
    let mut client =
        Client::negotiate_with_changes(stream, "", bitmap(BITMAP), "the disk").unwrap();
    client.map(0..1 << 20, map)
}

#[test]
fn two_maps_come_in_chunks_of_their_own() {
    const MIB: u32 = 1 << 20;
    let dirty: &[(u32, u32)] = &[(4096, 0), (8192, 1), (MIB - 12_288, 0)];
    let holes: &[(u32, u32)] = &[(MIB / 2, 0), (MIB / 2, 3)];
    for answer in [
        status(&[(7, holes), (8, dirty)]),
        status(&[(8, dirty), (7, holes)]),
    ] {
        assert_eq!(map_of(&answer, Map::Changes).unwrap(), [4096..12_288]);
        assert_eq!(map_of(&answer, Map::Allocation).unwrap(), [0..1 << 19]);
    }
    // One of them is lacking, twice there, of another context, or empty.
    for answer in [
        status(&[(7, holes)]),
        status(&[(8, dirty), (8, dirty)]),
        status(&[(8, dirty), (9, holes)]),
        status(&[(7, holes), (8, &[])]),
        status(&[(7, holes), (8, &[(0, 1)])]),
    ] {
        let error = map_of(&answer, Map::Changes).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
    }
}

#[test]
fn a_bitmap_that_is_not_shown_is_never_an_empty_one() {
    let refused = |stream, what: &str| {
        let error =
            Client::negotiate_with_changes(stream, "", bitmap(what), "the disk").unwrap_err();
        error.chain()
    };
    let text = refused(tracked(8, b""), "of another point");
    assert!(text.contains("does not show the map"), "{text}");
    let text = refused(serve(negotiation(), vec![]), BITMAP);
    assert!(text.contains("does not show the map"), "{text}");
    let text = refused(tracked(7, b""), BITMAP);
    assert!(text.contains("under one id"), "{text}");
}

fn assert_silent(error: &Error) {
    assert_eq!(error.kind(), Kind::Unavailable);
    let text = error.to_string();
    assert!(text.contains("the disk does not answer"), "{text}");
}

#[test]
fn a_server_that_has_ended_may_be_back_later() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("nbd");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let error = Client::connect(&socket, "", "the disk").unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    std::fs::remove_file(&socket).unwrap();
    let error = Client::connect(&socket, "", "the disk").unwrap_err();
    assert_eq!(error.kind(), Kind::Missing, "{error}");
}

#[test]
fn a_negotiation_in_drops_ends() {
    let head = encode_option_reply(option::STRUCTURED_REPLY, reply::ACK, &[0; 9000]);
    let begun = [encode_greeting(3), head[..20].to_vec()].concat();
    let error = Client::negotiate_within(serve(begun, vec![0]), "", None, "the disk", IMPATIENT);
    assert_silent(&error.unwrap_err());
}

#[test]
fn an_answer_in_drops_ends() {
    let head = ReplyHead::Simple {
        error: 0,
        cookie: 0,
    };
    let begun = [negotiation(), head.encode()].concat();
    let slow = serve(begun, vec![7]);
    let mut client = Client::negotiate_within(slow, "", None, "the disk", IMPATIENT).unwrap();
    let pending = client.start_read(0, vec![0; 1 << 20]).unwrap();
    assert_silent(&client.finish_read(pending).unwrap_err());

    // Chunks that say nothing, of an answer that never ends.
    let nothing = ReplyHead::Chunk {
        flags: 0,
        kind: chunk::NONE,
        cookie: 0,
        length: 0,
    };
    let endless = serve(negotiation(), nothing.encode());
    let mut client = Client::negotiate_within(endless, "", None, "the disk", IMPATIENT).unwrap();
    let pending = client.start_read(0, vec![0; 512]).unwrap();
    assert_silent(&client.finish_read(pending).unwrap_err());
}

#[test]
fn a_chain_tells_in_which_image_data_stands() {
    let in_one_of = |count| {
        let map = ChangeMap::Layers(count);
        [0, 1, 2, 3, u32::MAX].map(|depth| map.names(depth))
    };
    assert_eq!(in_one_of(0), [false; 5]);
    assert_eq!(in_one_of(1), [false, true, false, false, false]);
    assert_eq!(in_one_of(2), [false, true, true, false, false]);
}
