//! Golden bytes, round trips, arbitrary input.

#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use proptest::prelude::*;

/// As the protocol's document gives them, byte for byte.
#[test]
fn golden_bytes() {
    let request = Request {
        flags: command::FLAG_REQ_ONE,
        kind: command::BLOCK_STATUS,
        cookie: 0x0102_0304_0506_0708,
        offset: 0x1000,
        length: 0x200,
    };
    let expected = b"\x25\x60\x95\x13\0\x08\0\x07\x01\x02\x03\x04\x05\x06\x07\x08\
                     \0\0\0\0\0\0\x10\0\0\0\x02\0";
    assert_eq!(request.encode(), expected);
    assert_eq!(encode_greeting(3), b"NBDMAGICIHAVEOPT\0\x03");
    assert_eq!(
        encode_option(
            option::GO,
            &Go {
                name: "a",
                infos: vec![3]
            }
            .encode()
        ),
        b"IHAVEOPT\0\0\0\x07\0\0\0\x09\0\0\0\x01a\0\x01\0\x03"
    );
    assert_eq!(
        encode_option_reply(option::STRUCTURED_REPLY, reply::ACK, b""),
        b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x08\0\0\0\x01\0\0\0\0"
    );
}

proptest! {
    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Go::decode(&bytes);
        let _ = ContextQuery::decode(&bytes);
        let _ = Info::decode(&bytes);
        let _ = decode_context(&bytes);
        let _ = decode_error(&bytes);
        let _ = decode_status(&bytes);
        let _ = ReplyHead::decode(&bytes);
        if let Some(head) = bytes.first_chunk() { let _ = Request::decode(head); }
        if let Some(head) = bytes.first_chunk() { let _ = OptionHead::decode(head); }
        if let Some(head) = bytes.first_chunk() { let _ = OptionReplyHead::decode(head); }
        if let Some(head) = bytes.first_chunk() { let _ = decode_greeting(head); }
    }

    #[test]
    fn what_is_written_reads_back(
        name in ".{0,40}", infos in proptest::collection::vec(any::<u16>(), 0..5),
        numbers: (u16, u16, u64, u64, u32),
        extents in proptest::collection::vec(any::<(u32, u32)>(), 0..20),
    ) {
        let (flags, kind, cookie, offset, length) = numbers;
        let go = Go { name: &name, infos };
        let payload = go.encode();
        prop_assert_eq!(Go::decode(&payload), Ok(go));
        let query = ContextQuery { name: &name, queries: vec![&name, BASE_ALLOCATION] };
        let payload = query.encode();
        prop_assert_eq!(ContextQuery::decode(&payload), Ok(query));
        let request = Request { flags, kind, cookie, offset, length };
        prop_assert_eq!(Request::decode(request.encode().first_chunk().unwrap()), Ok(request));
        for head in [
            ReplyHead::Simple { error: length, cookie },
            ReplyHead::Chunk { flags, kind, cookie, length },
        ] {
            prop_assert_eq!(ReplyHead::decode(&head.encode()), Ok(head));
        }
        for info in [
            Info::Export { size_bytes: offset, flags },
            Info::BlockSize { min: 1, preferred: length, max: length },
        ] {
            prop_assert_eq!(Info::decode(&info.encode()), Ok(info));
        }
        let payload = encode_context(length, &name);
        prop_assert_eq!(decode_context(&payload), Ok((length, &*name)));
        prop_assert_eq!(decode_error(&encode_error(length, &name)), Ok((length, name)));
        prop_assert_eq!(decode_status(&encode_status(length, &extents)), Ok((length, extents)));
    }
}
