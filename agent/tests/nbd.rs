//! The NBD server against our client, libnbd and QEMU, and against clients that mean harm.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::single_range_in_vec_init,
    reason = "tests"
)]

mod disks;

use disks::memory::Memory;
use disks::{MIB, pattern, read_whole, run, text};
use proptest::prelude::*;
use std::fs;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tidegate_agent::Kind;
use tidegate_agent::nbd::client::Client;
use tidegate_agent::nbd::server::{Export, Limits, Server};
use tidegate_agent::nbd::wire;
use tidegate_agent::source::{NbdSource, Source};
use tokio_util::sync::CancellationToken;

/// A server on a thread of its own, as long as the value lives.
struct Serving {
    folder: TempDir,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Serving {
    fn of(export: Arc<dyn Export>) -> Self {
        let folder = TempDir::new().unwrap();
        let stop = CancellationToken::new();
        let (path, stopped) = (folder.path().join("nbd"), stop.clone());
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let server = Server::bind(&path).unwrap();
                ready.send(()).unwrap();
                server.run(export, Limits::default(), stopped).await;
            });
        });
        is_ready.recv().unwrap();
        Self {
            folder,
            stop,
            thread: Some(thread),
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("nbd")
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", text(&self.socket()))
    }

    fn source(&self) -> NbdSource {
        NbdSource::connect(&self.socket(), "", "the disk".to_owned(), Box::new(())).unwrap()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.cancel();
        let ended = self.thread.take().unwrap().join();
        assert!(
            std::thread::panicking() || ended.is_ok(),
            "the server panicked"
        );
        assert!(!self.socket().exists(), "the socket goes with the server");
    }
}

fn disks() -> impl Strategy<Value = (u64, Vec<Range<u64>>)> {
    let cuts = proptest::collection::btree_set(0u64..3_000_000, 0..12);
    (0u64..3_000_000, cuts).prop_map(|(size, cuts)| {
        let cuts: Vec<_> = cuts.into_iter().filter(|&cut| cut <= size).collect();
        let data = cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect();
        (size, data)
    })
}

/// Data as the server tells it: widened to blocks, so that holes are whole blocks.
fn in_blocks(data: &[Range<u64>], size: u64) -> Vec<Range<u64>> {
    let mut blocks: Vec<Range<u64>> = Vec::new();
    for extent in data {
        let wide = extent.start / 4096 * 4096..extent.end.next_multiple_of(4096).min(size);
        match blocks.last_mut() {
            Some(last) if last.end >= wide.start => last.end = wide.end,
            _ => blocks.push(wide),
        }
    }
    blocks
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Whatever is read in whatever order, with and without announcing it, equals the disk.
    #[test]
    fn our_client_reads_what_our_server_shows(
        (size, data) in disks(),
        steps in proptest::collection::vec((0u64..3_000_000, 1u64..2_500_000, any::<u8>()), 1..12),
    ) {
        let disk = Arc::new(Memory::new(size, &data));
        let serving = Serving::of(disk.clone());
        let source = serving.source();
        prop_assert_eq!(source.size_bytes(), size);
        let mut reader = source.reader().unwrap();
        prop_assert_eq!(reader.allocation(0..size).unwrap(), in_blocks(&data, size));
        prop_assert!(read_whole(&source) == disk.bytes);
        for (offset, length, choice) in steps {
            if size == 0 { break }
            let offset = offset % size;
            let end = size.min(offset + length);
            if choice & 1 != 0 { reader.prefetch(offset..end); }
            if choice & 2 != 0 { reader.prefetch(end..size); }
            if choice & 4 != 0 {
                let mapped = reader.allocation(offset..end).unwrap();
                prop_assert!(mapped.iter().all(|part| part.start >= offset && part.end <= end));
            }
            let mut buffer = vec![0xee; usize::try_from(end - offset).unwrap()];
            reader.read_at(offset, &mut buffer).unwrap();
            let place = usize::try_from(offset).unwrap()..usize::try_from(end).unwrap();
            prop_assert!(buffer == disk.bytes[place]);
        }
        prop_assert!(reader.read_at(size, &mut [0]).is_err());
    }
}

fn odd_disk() -> Memory {
    let size = 40 * MIB + 77;
    Memory::new(
        size,
        &[
            0..1,
            5 * MIB..6 * MIB + 3,
            9 * MIB..30 * MIB,
            size - 5000..size,
        ],
    )
}

#[test]
fn libnbd_reads_and_maps_it() {
    let disk = Arc::new(odd_disk());
    let serving = Serving::of(disk.clone());
    let size = run("nbdinfo", &["--size", &serving.uri()]);
    assert_eq!(size.trim(), disk.bytes.len().to_string());
    let info = run("nbdinfo", &["--json", &serving.uri()]);
    for fact in [
        "\"is_read_only\": true",
        "\"can_multi_conn\": true",
        "base:allocation",
    ] {
        assert!(info.contains(fact), "{info}");
    }
    run("nbdinfo", &["--list", &serving.uri()]);
    let map = run("nbdinfo", &["--map", &serving.uri()]);
    let map: Vec<Vec<u64>> = map
        .lines()
        .map(|line| {
            line.split_whitespace()
                .take(3)
                .map(|word| word.parse().unwrap())
                .collect()
        })
        .collect();
    let found: Vec<_> = map
        .iter()
        .filter(|part| part[2] == 0)
        .map(|part| part[0]..part[0] + part[1])
        .collect();
    assert_eq!(found, in_blocks(&disk.data, disk.bytes.len() as u64));
    assert!(
        map.iter().all(|part| part[2] == 0 || part[2] == 3),
        "hole and zero: {map:?}"
    );
    for options in [
        &["--connections=4", "--requests=64"][..],
        &["--synchronous"],
    ] {
        let copy = serving.folder.path().join("copy");
        let uri = serving.uri();
        let mut arguments = options.to_vec();
        arguments.extend([uri.as_str(), text(&copy)]);
        run("nbdcopy", &arguments);
        assert!(fs::read(&copy).unwrap() == disk.bytes);
        fs::remove_file(copy).unwrap();
    }
}

#[test]
fn qemu_reads_maps_and_compares_it() {
    let disk = Arc::new(odd_disk());
    let serving = Serving::of(disk.clone());
    let raw = serving.folder.path().join("raw");
    fs::write(&raw, &disk.bytes).unwrap();
    run(
        "qemu-img",
        &[
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            &serving.uri(),
            text(&raw),
        ],
    );
    let copy = serving.folder.path().join("copy.qcow2");
    run(
        "qemu-img",
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            &serving.uri(),
            text(&copy),
        ],
    );
    run(
        "qemu-img",
        &[
            "compare",
            "-f",
            "qcow2",
            "-F",
            "raw",
            text(&copy),
            text(&raw),
        ],
    );
    let map = run(
        "qemu-img",
        &["map", "--output=json", "-f", "raw", &serving.uri()],
    );
    assert!(map.matches("\"zero\": true").count() >= 3, "{map}");
    let written = disks::run_anyhow(
        "qemu-io",
        &["-f", "raw", "-c", "write 0 512", &serving.uri()],
    );
    assert!(!written.status.success());
}

/// A server may be older and poorer than ours: nbdkit-like features switched off one by one are not
/// at hand, but QEMU's own server is another implementation with another block size.
#[test]
fn our_client_reads_a_foreign_server() {
    let folder = TempDir::new().unwrap();
    let (raw, socket) = (folder.path().join("disk.raw"), folder.path().join("socket"));
    disks::sample_disk(&raw, 10 * MIB + 1024, 5);
    let mut server = std::process::Command::new("qemu-nbd")
        .args([
            "-f",
            "raw",
            "-r",
            "-t",
            "-e",
            "0",
            "-x",
            "named",
            "-k",
            text(&socket),
            text(&raw),
        ])
        .spawn()
        .expect("run tools/test, which installs qemu-nbd");
    while UnixStream::connect(&socket).is_err() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let source = NbdSource::connect(&socket, "named", "a disk".to_owned(), Box::new(())).unwrap();
    let read = read_whole(&source);
    let mut reader = source.reader().unwrap();
    let error = Client::connect(&socket, "other", "a disk").unwrap_err();
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(read == fs::read(&raw).unwrap());
    assert!(error.chain().contains("no such export"), "{error:?}");
    // A server that dies is an error that comes at once.
    let error = reader.read_at(0, &mut [0; 512]).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
    assert!(source.reader().is_err());
}

#[test]
fn a_failing_export_costs_one_reply() {
    let mut disk = odd_disk();
    disk.bad = Some(10 * MIB..11 * MIB);
    let serving = Serving::of(Arc::new(disk));
    let mut client = Client::connect(&serving.socket(), "", "the disk").unwrap();
    let bad = client.start_read(10 * MIB, vec![0; 512]).unwrap();
    let bug = client.start_read(10 * MIB, vec![0; 7]).unwrap();
    let good = client.start_read(9 * MIB, vec![0; 512]).unwrap();
    assert_eq!(client.finish_read(good).unwrap(), pattern(9 * MIB, 512));
    let error = client.finish_read(bad).unwrap_err();
    assert_eq!(error.kind(), Kind::BadInput);
    assert!(
        error.to_string().contains("pack 0123 is damaged"),
        "{error}"
    );
    assert_eq!(client.finish_read(bug).unwrap_err().kind(), Kind::BadInput);
    let again = client.start_read(9 * MIB, vec![0; 5]).unwrap();
    assert_eq!(client.finish_read(again).unwrap(), pattern(9 * MIB, 5));
}

#[test]
fn a_flood_of_large_reads_is_bounded() {
    let mut disk = Memory::new(64 * MIB, &[0..64 * MIB]);
    disk.delay = Duration::from_millis(20);
    let disk = Arc::new(disk);
    let serving = Serving::of(disk.clone());
    let mut stream = raw_session(&serving.socket());
    let request = |cookie, length| {
        wire::Request {
            flags: 0,
            kind: wire::command::READ,
            cookie,
            offset: 0,
            length,
        }
        .encode()
    };
    stream
        .set_write_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    // Asks without reading until the server reads no more.
    let mut asked = 0u64;
    while asked < 10_000 && stream.write_all(&request(asked, 8 << 20)).is_ok() {
        asked += 1;
    }
    std::thread::sleep(Duration::from_millis(300));
    let most = disk.reading_bytes_most.load(Ordering::SeqCst);
    assert!(
        asked > 4 && most <= 32 << 20,
        "{asked} asked for, {most} bytes in the making"
    );
    // The others are served meanwhile.
    let mut client = Client::connect(&serving.socket(), "", "the disk").unwrap();
    let pending = client.start_read(0, vec![0; 4096]).unwrap();
    client.finish_read(pending).unwrap();
}

/// A connection that has gone through the negotiation, without structured replies.
fn raw_session(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    stream.write_all(&3u32.to_be_bytes()).unwrap();
    stream
        .write_all(&wire::encode_option(wire::option::EXPORT_NAME, b""))
        .unwrap();
    let mut facts = [0; 10];
    stream.read_exact(&mut facts).unwrap();
    stream
}

#[test]
fn hostile_clients_are_cut_and_others_served() {
    let disk = Arc::new(odd_disk());
    let serving = Serving::of(disk.clone());
    let socket = serving.socket();
    let started = Instant::now();
    for seed in 0..60u64 {
        // Garbage from the first byte on.
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream
            .set_write_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        let _ = stream.write_all(&pattern(seed, 3000));
        // A sound negotiation, then garbage that begins like a request.
        let mut stream = raw_session(&socket);
        let mut bytes = pattern(seed, 28 * 20);
        for request in bytes.chunks_exact_mut(28) {
            request[..4].copy_from_slice(&wire::REQUEST_MAGIC.to_be_bytes());
            request[6..8].copy_from_slice(&(u16::try_from(seed).unwrap() % 9).to_be_bytes());
            // Small offsets make some of them valid.
            request[16..20].fill(0);
        }
        let _ = stream.write_all(&bytes);
        // An option that claims to be longer than it is.
        let mut stream = UnixStream::connect(&socket).unwrap();
        let _ = stream.write_all(&3u32.to_be_bytes());
        let mut option = wire::encode_option(7, b"");
        option[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
        let _ = stream.write_all(&option);
    }
    assert!(started.elapsed() < Duration::from_secs(30));
    assert!(read_whole(&serving.source()) == disk.bytes);
}

/// What must be refused, one request each: past the end, empty, too long, not known, a write.
#[test]
fn bad_requests_get_errors_and_the_connection_lives() {
    let disk = Arc::new(odd_disk());
    let size = disk.bytes.len() as u64;
    let serving = Serving::of(disk.clone());
    let mut stream = raw_session(&serving.socket());
    let mut ask = |kind, offset, length, payload: &[u8]| {
        let request = wire::Request {
            flags: 0,
            kind,
            cookie: 9,
            offset,
            length,
        };
        stream.write_all(&request.encode()).unwrap();
        stream.write_all(payload).unwrap();
        let mut head = [0; 16];
        stream.read_exact(&mut head).unwrap();
        match wire::ReplyHead::decode(&head).unwrap() {
            wire::ReplyHead::Simple { error, cookie: 9 } => error,
            other => panic!("{other:?}"),
        }
    };
    let einval = wire::errno::EINVAL;
    assert_eq!(ask(wire::command::READ, size, 1, b""), einval);
    assert_eq!(ask(wire::command::READ, u64::MAX, 1, b""), einval);
    assert_eq!(ask(wire::command::READ, size - 1, 2, b""), einval);
    assert_eq!(ask(wire::command::READ, 0, 0, b""), einval);
    assert_eq!(
        ask(wire::command::READ, 0, u32::MAX, b""),
        wire::errno::EOVERFLOW
    );
    assert_eq!(ask(wire::command::BLOCK_STATUS, 0, 512, b""), einval);
    assert_eq!(ask(wire::command::FLUSH, 0, 0, b""), einval);
    assert_eq!(ask(77, 0, 1, b""), einval);
    assert_eq!(
        ask(wire::command::WRITE, 0, 600, &[0; 600]),
        wire::errno::EPERM
    );
    assert_eq!(ask(wire::command::READ, 0, 1, b""), 0);
}

/// Servers that lie: each answer is wrong in one way, and each is an error, never zeros, never a
/// panic.
#[test]
fn our_client_believes_no_server() {
    use wire::{ReplyHead, chunk};
    let data = |flags, at: u64, bytes: &[u8]| {
        let mut chunk = ReplyHead::Chunk {
            flags,
            kind: chunk::OFFSET_DATA,
            cookie: 0,
            length: u32::try_from(8 + bytes.len()).unwrap(),
        }
        .encode();
        chunk.extend(at.to_be_bytes());
        chunk.extend(bytes);
        chunk
    };
    let head = |flags, kind, cookie, length| {
        ReplyHead::Chunk {
            flags,
            kind,
            cookie,
            length,
        }
        .encode()
    };
    let done = chunk::FLAG_DONE;
    let lies = [
        ("nothing at all", head(done, chunk::NONE, 0, 0)),
        ("half of it", data(done, 4096, &[1; 256])),
        (
            "one byte twice",
            [data(0, 4096, &[1; 256]), data(done, 4351, &[1; 256])].concat(),
        ),
        ("too much", data(done, 4096, &[1; 513])),
        ("what lies before", data(done, 4095, &[1; 512])),
        ("what lies behind", data(done, 4097, &[1; 512])),
        ("another offset", data(done, u64::MAX, &[1; 512])),
        ("an empty chunk", data(done, 4096, &[])),
        (
            "a chunk without its offset",
            head(done, chunk::OFFSET_DATA, 0, 4),
        ),
        (
            "a chunk of 4 GiB",
            head(done, chunk::OFFSET_DATA, 0, u32::MAX),
        ),
        ("an error of 4 GiB", head(done, chunk::ERROR, 0, u32::MAX)),
        (
            "a map",
            [head(done, chunk::BLOCK_STATUS, 0, 12), vec![0; 12]].concat(),
        ),
        ("an unknown chunk", head(done, 77, 0, 0)),
        ("somebody else's answer", head(done, chunk::NONE, 5, 0)),
        ("garbage", vec![0x55; 64]),
        ("half a head", vec![0x66, 0x8e]),
    ];
    for (what, answer) in lies {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || {
            serve_negotiation(&mut theirs);
            let mut request = [0; 28];
            theirs.read_exact(&mut request).unwrap();
            let _ = theirs.write_all(&answer);
        });
        let mut client = Client::negotiate(ours, "", "the disk").unwrap();
        let pending = client.start_read(4096, vec![0; 512]).unwrap();
        let error = client.finish_read(pending).unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable, "{what}: {error:?}");
        assert!(
            client.start_read(0, vec![0; 512]).is_err(),
            "{what}: the connection is dead"
        );
        server.join().unwrap();
    }
}

/// Greets, knows structured replies and `base:allocation`, and has a disk of 1 MiB.
fn serve_negotiation(stream: &mut UnixStream) {
    use wire::{option, reply};
    stream.write_all(&wire::encode_greeting(3)).unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    loop {
        let mut head = [0; 16];
        stream.read_exact(&mut head).unwrap();
        let head = wire::OptionHead::decode(&head).unwrap();
        let mut payload = vec![0; head.length as usize];
        stream.read_exact(&mut payload).unwrap();
        let fact = match head.option {
            option::SET_META_CONTEXT => Some((
                reply::META_CONTEXT,
                wire::encode_context(1, wire::BASE_ALLOCATION),
            )),
            option::GO => {
                let info = wire::Info::Export {
                    size_bytes: MIB,
                    flags: 3,
                };
                Some((reply::INFO, info.encode()))
            }
            _ => None,
        };
        if let Some((kind, payload)) = fact {
            stream
                .write_all(&wire::encode_option_reply(head.option, kind, &payload))
                .unwrap();
        }
        stream
            .write_all(&wire::encode_option_reply(head.option, reply::ACK, b""))
            .unwrap();
        if head.option == option::GO {
            return;
        }
    }
}

#[test]
fn lying_maps_are_errors() {
    let chunk = |extents: &[(u32, u32)], context| {
        let payload = wire::encode_status(context, extents);
        let mut bytes = wire::ReplyHead::Chunk {
            flags: wire::chunk::FLAG_DONE,
            kind: wire::chunk::BLOCK_STATUS,
            cookie: 0,
            length: u32::try_from(payload.len()).unwrap(),
        }
        .encode();
        bytes.extend(payload);
        bytes
    };
    let mib = u32::try_from(MIB).unwrap();
    for (answer, sound) in [
        (chunk(&[(mib, 3)], 1), true),
        // Further than was asked is allowed.
        (chunk(&[(u32::MAX, 3), (u32::MAX, 0)], 1), true),
        (chunk(&[], 1), false),
        (chunk(&[(0, 0)], 1), false),
        (chunk(&[(mib, 3)], 2), false),
    ] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || {
            serve_negotiation(&mut theirs);
            theirs.read_exact(&mut [0; 28]).unwrap();
            theirs.write_all(&answer).unwrap();
        });
        let mut client = Client::negotiate(ours, "", "the disk").unwrap();
        let map = client.allocation(0..MIB);
        server.join().unwrap();
        if sound {
            assert_eq!(map.unwrap(), []);
        } else {
            assert_eq!(map.unwrap_err().kind(), Kind::Unavailable);
        }
    }
}

/// Maps that name a million extents, or one byte at a time: neither takes memory or time without
/// bound, and what is not told counts as data.
#[test]
fn maps_in_crumbs_are_given_up() {
    let kib = 1 << 10;
    // Told at once: a block of data, then bytes of data and holes in turns.
    let extents: Vec<(u32, u32)> = std::iter::once((4 * kib, 0))
        .chain((0..60 * kib).map(|number| (1, 3 * (number % 2))))
        .chain([(1 << 20, 3)])
        .collect();
    // Told one by one: a hole of a block, then bytes of holes.
    let crumbs = [(4 * kib, 3), (1, 3)];
    for (answers, expected) in [
        (vec![extents], vec![0..64 * 1024 - 1]),
        (
            crumbs.map(|crumb| vec![crumb]).into(),
            vec![4096 + 64 + 255..MIB],
        ),
    ] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || {
            serve_negotiation(&mut theirs);
            let mut request = [0; 28];
            let mut answers = answers.into_iter();
            let mut answer = answers.next().unwrap();
            let mut asked = 0;
            while theirs.read_exact(&mut request).is_ok() {
                let request = wire::Request::decode(&request).unwrap();
                if request.kind == wire::command::DISCONNECT {
                    break;
                }
                let payload = wire::encode_status(1, &answer);
                let head = wire::ReplyHead::Chunk {
                    flags: wire::chunk::FLAG_DONE,
                    kind: wire::chunk::BLOCK_STATUS,
                    cookie: request.cookie,
                    length: u32::try_from(payload.len()).unwrap(),
                };
                theirs
                    .write_all(&[head.encode(), payload].concat())
                    .unwrap();
                answer = answers.next().unwrap_or(answer);
                asked += 1;
            }
            asked
        });
        let mut client = Client::negotiate(ours, "", "the disk").unwrap();
        assert_eq!(client.allocation(0..MIB).unwrap(), expected);
        drop(client);
        let asked = server.join().unwrap();
        assert!(asked <= MIB / 4096 + 64, "{asked} requests");
    }
}
