//! Servers that always have something more to say, and so are never silent.

#![allow(clippy::unwrap_used, reason = "tests")]

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

fn assert_silent(error: &Error) {
    assert_eq!(error.kind(), Kind::Unavailable);
    let text = error.to_string();
    assert!(text.contains("the disk does not answer"), "{text}");
}

#[test]
fn a_negotiation_in_drops_ends() {
    let head = encode_option_reply(option::STRUCTURED_REPLY, reply::ACK, &[0; 9000]);
    let begun = [encode_greeting(3), head[..20].to_vec()].concat();
    let error = Client::negotiate_within(serve(begun, vec![0]), "", "the disk", IMPATIENT);
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
    let mut client = Client::negotiate_within(slow, "", "the disk", IMPATIENT).unwrap();
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
    let mut client = Client::negotiate_within(endless, "", "the disk", IMPATIENT).unwrap();
    let pending = client.start_read(0, vec![0; 512]).unwrap();
    assert_silent(&client.finish_read(pending).unwrap_err());
}
