//! The two sides of NBD, each against a peer that sends whatever the fuzzer says.
//!
//! Not a test of speed or of real peers: everything that the peer will ever say is in the socket
//! before our side begins, and then comes its end.

use crate::Target;
use async_trait::async_trait;
use bytes::Bytes;
use std::io::Write as _;
use std::net::Shutdown;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock};
use tidegate_agent::Result;
use tidegate_agent::nbd::client::{ChangeMap, Client};
use tidegate_agent::nbd::server::{Export, Limits, serve_connection};
use tidegate_agent::nbd::wire::{
    self, ContextQuery, Go, Info, ReplyHead, Request, chunk, command, handshake, info, option,
    reply,
};

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "nbd_client",
        run: client,
        seeds: client_seeds,
        // Its reads, and the largest status answer, as bytes and as numbers.
        held_bytes_max: 4 << 20,
    },
    Target {
        name: "nbd_change_map",
        run: change_map,
        seeds: change_map_seeds,
        held_bytes_max: 4 << 20,
    },
    Target {
        name: "nbd_server",
        run: server,
        seeds: server_seeds,
        held_bytes_max: 16 << 20,
    },
];

/// What fits into a socket without anybody reading: more than libFuzzer makes up.
const SOCKET_BYTES: usize = 64 << 10;

/// A client of ours asks for the map and reads, some at a time, in and out of order.
fn client(bytes: &[u8]) {
    let (ours, peer) = saying(bytes);
    let Ok(mut client) = Client::negotiate(ours, "", "the fuzzed disk") else {
        return;
    };
    let size_bytes = client.size_bytes();
    check_allocation(&mut client, 0..size_bytes);
    let mut read = |at: u64, length: u64| {
        let range = client.aligned(at.min(size_bytes)..at.saturating_add(length).min(size_bytes));
        let length = (range.end - range.start)
            .min(client.read_bytes_max().into())
            .min(64 << 10);
        let buffer = vec![0xaa; usize::try_from(length).unwrap()];
        let pending = client.start_read(range.start, buffer).ok();
        pending.map(|pending| (pending, length))
    };
    let first = read(0, 4096);
    let given_up = read(size_bytes / 2, 512);
    let second = read(4096, 8192);
    if let Some((pending, _)) = &given_up {
        client.forget_read(pending);
    }
    for (pending, length) in [second, first].into_iter().flatten() {
        if let Ok(buffer) = client.finish_read(pending) {
            assert_eq!(buffer.len() as u64, length);
        }
    }
    check_allocation(&mut client, size_bytes / 3..size_bytes);
    drop(client);
    drop(peer);
}

/// A client of ours asks for what changed, and for what is there.
fn change_map(bytes: &[u8]) {
    let (ours, peer) = saying(bytes);
    let map = ChangeMap::Layers(2);
    let Ok(mut client) = Client::negotiate_with_changes(ours, "", map, "the fuzzed disk") else {
        return;
    };
    let size_bytes = client.size_bytes();
    check_map(&mut client, 0..size_bytes, Client::changes);
    check_allocation(&mut client, 0..size_bytes);
    check_map(&mut client, size_bytes / 3..size_bytes, Client::changes);
    drop(peer);
}

/// Our end of a connection, and a peer that has said it all.
fn saying(bytes: &[u8]) -> (UnixStream, UnixStream) {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    peer.write_all(&bytes[..bytes.len().min(SOCKET_BYTES)])
        .unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    (ours, peer)
}

fn check_allocation(client: &mut Client, range: Range<u64>) {
    check_map(client, range, Client::allocation);
}

/// One of the client's maps.
type Map = fn(&mut Client, Range<u64>) -> Result<Vec<Range<u64>>>;

fn check_map(client: &mut Client, range: Range<u64>, map: Map) {
    let range = range.start..range.end.min(range.start.saturating_add(8 << 30));
    if let Ok(extents) = map(client, range.clone()) {
        let mut at = range.start;
        for extent in extents {
            assert!(extent.start >= at && extent.start < extent.end);
            at = extent.end;
        }
        assert!(at <= range.end);
    }
}

/// What a server says up to the first request, of a disk of that size with these maps; an old one
/// without any.
fn negotiation(size_bytes: u64, contexts: &[&str]) -> Vec<u8> {
    let answer = |option, kind, payload: &[u8]| wire::encode_option_reply(option, kind, payload);
    let mut said = wire::encode_greeting(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
    if contexts.is_empty() {
        said.extend(answer(option::STRUCTURED_REPLY, reply::ERR_UNSUP, b"old"));
    } else {
        said.extend(answer(option::STRUCTURED_REPLY, reply::ACK, b""));
        for (id, name) in (1..).zip(contexts) {
            let context = wire::encode_context(id, name);
            said.extend(answer(
                option::SET_META_CONTEXT,
                reply::META_CONTEXT,
                &context,
            ));
        }
        said.extend(answer(option::SET_META_CONTEXT, reply::ACK, b""));
    }
    let export = Info::Export {
        size_bytes,
        flags: 3,
    };
    let blocks = Info::BlockSize {
        min: 512,
        preferred: 4096,
        max: 1 << 20,
    };
    said.extend(answer(option::GO, reply::INFO, &export.encode()));
    said.extend(answer(option::GO, reply::INFO, &blocks.encode()));
    said.extend(answer(option::GO, reply::ACK, b""));
    said
}

fn piece(cookie: u64, kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
    let head = ReplyHead::Chunk {
        flags,
        kind,
        cookie,
        length: u32::try_from(payload.len()).unwrap(),
    };
    [head.encode(), payload.to_vec()].concat()
}

fn change_map_seeds() -> Vec<Vec<u8>> {
    let contexts = [wire::BASE_ALLOCATION, wire::ALLOCATION_DEPTH];
    let seeds = [100_000, 1 << 40].map(|size_bytes: u64| {
        let mut said = negotiation(size_bytes, &contexts);
        let whole = u32::try_from(size_bytes.min(1 << 30)).unwrap();
        let depths = [(4096, 1), (4096, 3), (8192, 2), (whole - 16_384, 0)];
        for cookie in 0..4 {
            let allocated = wire::encode_status(1, &[(whole, 0)]);
            let depths = wire::encode_status(2, &depths);
            said.extend(piece(cookie, chunk::BLOCK_STATUS, 0, &allocated));
            said.extend(piece(
                cookie,
                chunk::BLOCK_STATUS,
                chunk::FLAG_DONE,
                &depths,
            ));
        }
        said
    });
    seeds.to_vec()
}

fn client_seeds() -> Vec<Vec<u8>> {
    let sizes = [100_000, 8192, (1 << 63) - 1, u64::MAX];
    let mut seeds = Vec::new();
    for size_bytes in sizes {
        let mut said = negotiation(size_bytes, &[wire::BASE_ALLOCATION]);
        let whole = u32::try_from(size_bytes.min(1 << 30)).unwrap();
        let status = wire::encode_status(1, &[(4096, 0), (whole.saturating_sub(4096).max(1), 3)]);
        said.extend(piece(0, chunk::BLOCK_STATUS, chunk::FLAG_DONE, &status));
        let data =
            |offset: u64, count: usize| [&offset.to_be_bytes()[..], &vec![7; count]].concat();
        let hole = [&2048_u64.to_be_bytes()[..], &2048_u32.to_be_bytes()].concat();
        said.extend(piece(1, chunk::OFFSET_DATA, 0, &data(0, 2048)));
        said.extend(piece(1, chunk::OFFSET_HOLE, chunk::FLAG_DONE, &hole));
        let failed = wire::encode_error(5, "no such sector");
        said.extend(piece(2, chunk::ERROR, chunk::FLAG_DONE, &failed));
        said.extend(piece(
            3,
            chunk::OFFSET_DATA,
            chunk::FLAG_DONE,
            &data(4096, 4096),
        ));
        seeds.push(said);
        let mut simple = negotiation(size_bytes, &[]);
        for cookie in 0..3 {
            simple.extend(ReplyHead::Simple { error: 0, cookie }.encode());
            simple.extend([cookie.to_le_bytes()[0]; 512]);
        }
        seeds.push(simple);
    }
    seeds
}

/// A disk of zeros with a hole in the middle.
struct Disk;

#[async_trait]
impl Export for Disk {
    fn size_bytes(&self) -> u64 {
        100_001
    }

    async fn allocation(&self, range: Range<u64>) -> Result<Vec<(Range<u64>, bool)>> {
        let parts = [
            (0..20_000, true),
            (20_000..70_001, false),
            (70_001..100_001, true),
        ];
        let clip = |part: Range<u64>| part.start.max(range.start)..part.end.min(range.end);
        let clipped = parts.map(|(part, is_data)| (clip(part), is_data));
        Ok(clipped
            .into_iter()
            .filter(|(part, _)| !part.is_empty())
            .collect())
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes> {
        assert!(
            offset + u64::from(length) <= self.size_bytes(),
            "inside the disk"
        );
        Ok(vec![0; length as usize].into())
    }
}

/// A server of ours is asked whatever a client may send.
fn server(bytes: &[u8]) {
    static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    });
    RUNTIME.block_on(async {
        let (ours, mut peer) = tokio::net::UnixStream::pair().unwrap();
        let (mut answers, mut asks) = peer.split();
        let serving = serve_connection(ours, Arc::new(Disk), Limits::default());
        let asking = async {
            use tokio::io::AsyncWriteExt as _;
            // The server may hang up on us before we have said everything.
            let _ = asks.write_all(bytes).await;
            let _ = asks.shutdown().await;
        };
        let hearing = async { tokio::io::copy(&mut answers, &mut tokio::io::sink()).await };
        let _ = tokio::join!(serving, asking, hearing);
    });
}

fn server_seeds() -> Vec<Vec<u8>> {
    let flags = u32::from(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES).to_be_bytes();
    let go = Go {
        name: "",
        infos: vec![info::BLOCK_SIZE],
    };
    let context = ContextQuery {
        name: "disk",
        queries: vec![wire::BASE_ALLOCATION],
    };
    let request = |kind, cookie, offset, length| {
        Request {
            flags: 0,
            kind,
            cookie,
            offset,
            length,
        }
        .encode()
        .to_vec()
    };
    let requests = [
        request(command::READ, 1, 0, 4096),
        request(command::BLOCK_STATUS, 2, 0, 100_001),
        request(command::READ, 3, 99_999, 2),
        request(command::READ, 4, 99_999, 3),
        request(command::WRITE, 5, 0, 4),
        b"data".to_vec(),
        request(99, 6, 0, 0),
        request(command::DISCONNECT, 7, 0, 0),
    ]
    .concat();
    let options = [
        wire::encode_option(option::LIST, b""),
        wire::encode_option(option::STRUCTURED_REPLY, b""),
        wire::encode_option(option::LIST_META_CONTEXT, &context.encode()),
        wire::encode_option(option::SET_META_CONTEXT, &context.encode()),
        wire::encode_option(option::INFO, &go.encode()),
        wire::encode_option(option::GO, &go.encode()),
    ]
    .concat();
    vec![
        [&flags[..], &options, &requests].concat(),
        [
            &flags[..],
            &wire::encode_option(option::EXPORT_NAME, b"x"),
            &requests,
        ]
        .concat(),
        [&flags[..], &wire::encode_option(option::ABORT, b"")].concat(),
    ]
}
