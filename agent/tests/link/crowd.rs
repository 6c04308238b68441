//! A gateway as a process of its own, with the memory it takes by default, and a crowd of hosts: most of
//! them only connected, some putting packs without end, first into a store that answers, then into one that
//! takes everything and never answers, when all that is bounded fills up.
//!
//! Peak memory is the kernel's own count. Not a measurement of speed.

use crate::lab::MIB;
use crate::process::Process;
use crate::site::{NAME, Site};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tidegate_agent::link::LinkError;
use tidegate_agent::link::client::{Link, LinkSettings, join};
use tidegate_agent::testing::{FaultyProxy, HttpFault, S3Server};
use tidegate_protocol::ids::PackId;
use tidegate_protocol::rights::Right;
use tidegate_protocol::wire::Status;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// What a gateway may take, whoever comes.
const PEAK_BYTES_MAX: u64 = 512 * MIB;

const IDLE: usize = 500;
const ACTIVE: usize = 20;

/// A host's packs under way at once, as a backup sends them.
const PUTS_OF_A_HOST: usize = 4;

/// A pack of the default size.
const PACK_BYTES: usize = 32 << 20;

/// Packs that the store answers before it falls silent: twice as many as a gateway has room for.
const ANSWERED_MIN: usize = 12;

/// How long to wait for what must come about, on a machine with much else to do.
const PATIENCE: Duration = Duration::from_secs(60);

fn link(gateway: &Process, identity: &Path, connections: usize) -> Link {
    let settings = LinkSettings {
        identity: identity.to_owned(),
        connections,
        connect_timeout: PATIENCE,
        ..LinkSettings::default()
    };
    Link::new(
        vec![gateway.address.to_string()],
        NAME.to_owned(),
        &settings,
    )
}

/// Packs that nobody can open, and their names: what a gateway knows of a pack is its hash.
fn packs() -> Vec<(String, Bytes)> {
    (0..PUTS_OF_A_HOST as u64)
        .map(|seed| {
            let key = *blake3::hash(&seed.to_le_bytes()).as_bytes();
            let mut pack = vec![0; PACK_BYTES];
            blake3::Hasher::new_keyed(&key)
                .finalize_xof()
                .fill(&mut pack);
            (PackId::of(&pack).object_key(), pack.into())
        })
        .collect()
}

/// Puts packs until it is dropped, several at once; what was there already was sent all the same.
async fn put_without_end(link: Link, packs: Arc<Vec<(String, Bytes)>>, done: Arc<AtomicUsize>) {
    let mut puts = JoinSet::new();
    for turn in 0..PUTS_OF_A_HOST {
        let (link, packs, done) = (link.clone(), Arc::clone(&packs), Arc::clone(&done));
        puts.spawn(async move {
            for (key, pack) in packs.iter().cycle().skip(turn) {
                match link.put(key, pack.len() as u64, [pack.clone()]).await {
                    Ok(()) => {}
                    Err(LinkError::Answered {
                        status: Status::Exists,
                        ..
                    }) => {}
                    Err(error) => panic!("{key}: {error}"),
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    while let Some(ended) = puts.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_with_a_crowd_of_hosts_keeps_within_its_memory() {
    let server = S3Server::start();
    let proxy = FaultyProxy::before(server.port());
    let folder = tempfile::tempdir().unwrap();
    let site = Site::over(folder, server.location("repo"), server.open("repo")).await;
    let environment = server.environment().with("AWS_ENDPOINT_URL", proxy.url());
    let gateway = Process::start(&site, "gateway", &environment).await;

    let token = site.invite("hv1", &[Right::Backup]).await;
    let identity = site.folder.path().join("hv1");
    join(&identity, token, &[gateway.address.to_string()])
        .await
        .unwrap();
    let idle = link(&gateway, &identity, IDLE);
    stream::iter(0..IDLE)
        .map(|_| idle.status())
        .buffer_unordered(32)
        .try_for_each(|_| async { Ok(()) })
        .await
        .unwrap();
    let with_idle = gateway.peak_bytes();

    let done = Arc::new(AtomicUsize::new(0));
    let packs = Arc::new(packs());
    let mut active = JoinSet::new();
    for _ in 0..ACTIVE {
        let link = link(&gateway, &identity, 1);
        active.spawn(put_without_end(link, Arc::clone(&packs), Arc::clone(&done)));
    }
    let deadline = Instant::now() + PATIENCE;
    while done.load(Ordering::Relaxed) < ANSWERED_MIN {
        let answered = done.load(Ordering::Relaxed);
        assert!(Instant::now() < deadline, "{answered} packs were answered");
        sleep(Duration::from_millis(50)).await;
    }
    let while_it_answers = gateway.peak_bytes();

    // From now on what is put stays where it is.
    let stalled = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&stalled);
    proxy.script(move |call| {
        (call.method == "PUT").then(|| {
            counted.fetch_add(1, Ordering::Relaxed);
            HttpFault::StallBefore
        })
    });
    // All that a gateway has room for arrives, and then nothing more.
    let deadline = Instant::now() + PATIENCE;
    let mut before = 0;
    let filled = loop {
        sleep(Duration::from_secs(1)).await;
        let peak = gateway.peak_bytes();
        if stalled.load(Ordering::Relaxed) >= 6 && peak < before + MIB {
            break peak;
        }
        before = peak;
        assert!(
            Instant::now() < deadline,
            "it is not full, with {peak} bytes"
        );
    };
    while let Some(ended) = active.try_join_next() {
        ended.unwrap();
    }
    let status = idle.status().await.unwrap();
    assert_eq!(status.connections as usize, IDLE + ACTIVE);
    println!(
        "peak memory of the gateway: {} MiB with {IDLE} idle hosts, {} MiB with {ACTIVE} active ones as well, \
         {} MiB when the store had fallen silent",
        with_idle / MIB,
        while_it_answers / MIB,
        filled / MIB
    );
    assert!(filled <= PEAK_BYTES_MAX, "{} MiB", filled / MIB);
}
