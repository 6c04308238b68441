//! A long line between a host and its gateway: delay, and a queue that overflows.

use crate::site::Site;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tidegate_agent::store::Created;
use tidegate_protocol::ids::PackId;
use tidegate_protocol::rights::Right;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

const ONE_WAY: Duration = Duration::from_millis(150);

/// UDP from one host to a gateway and back.
struct Line {
    address: SocketAddr,
    lost: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Line {
    /// Of the host's datagrams that are `crowded`, every other one is lost.
    async fn to(gateway: SocketAddr, crowded: Range<usize>) -> Self {
        let near = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let far = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        for socket in [&near, &far] {
            let socket = socket2::SockRef::from(socket.as_ref());
            socket.set_recv_buffer_size(8 << 20).unwrap();
        }
        let address = near.local_addr().unwrap();
        let lost = Arc::new(AtomicUsize::new(0));
        let host = Arc::new(OnceLock::new());
        let mut tasks = JoinSet::new();
        let (known, count) = (Arc::clone(&host), Arc::clone(&lost));
        let mut number = 0;
        let up = move |from| {
            let _ = known.set(from);
            number += 1;
            let is_lost = crowded.contains(&number) && number % 2 == 0;
            count.fetch_add(usize::from(is_lost), Ordering::Relaxed);
            (!is_lost).then_some(gateway)
        };
        tasks.spawn(carry(Arc::clone(&near), Arc::clone(&far), up));
        tasks.spawn(carry(far, near, move |_| host.get().copied()));
        Self {
            address,
            lost,
            _tasks: tasks,
        }
    }
}

/// Carries datagrams on to where `to` says, each after the delay of the line.
async fn carry(
    from: Arc<UdpSocket>,
    onto: Arc<UdpSocket>,
    mut to: impl FnMut(SocketAddr) -> Option<SocketAddr>,
) {
    let mut under_way: VecDeque<(Instant, SocketAddr, Vec<u8>)> = VecDeque::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let due = under_way.front().map(|(due, ..)| *due);
        tokio::select! {
            biased;
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                let (_, to, bytes) = under_way.pop_front().unwrap();
                let _ = onto.send_to(&bytes, to).await;
            }
            received = from.recv_from(&mut buffer) => {
                let Ok((bytes, sender)) = received else { continue };
                if let Some(to) = to(sender) {
                    let due = Instant::now() + ONE_WAY;
                    under_way.push_back((due, to, buffer[..bytes].to_vec()));
                }
            }
        }
    }
}

/// A stream with thousands of gaps is a stream all the same: quinn by itself would end the connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_overflows_ends_no_connection() {
    let site = Site::new().await;
    let mut gateway = site.gateway().await;
    let identity = site.host("hv1", &[Right::Backup], &gateway).await;
    let direct = gateway.address;
    let line = Line::to(direct, 5_000..12_000).await;
    gateway.address = line.address;
    let store = site.store_of(&identity, &[&gateway]);
    let mut pack = vec![0; 24 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut pack);
    let key = PackId::of(&pack).object_key();
    let created = store.create(&key, pack.into()).await.unwrap();
    assert_eq!(created, Created::New);
    assert_eq!(store.requests().retries, 0, "it went in one piece");
    let lost = line.lost.load(Ordering::Relaxed);
    assert!(lost > 2_000, "{lost} datagrams were lost");
}
