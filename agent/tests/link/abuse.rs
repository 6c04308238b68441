//! Whoever reaches the gateway's port: strangers, hosts that keep to nothing, and floods of both. Each is
//! answered with a status or cut off, and the gateway serves its hosts all the while.

use crate::everyday::{assert_clean, disk};
use crate::lab::back_up;
use crate::raw::{PATIENCE, answer, ask, config_of, connect, greeted, hello, say};
use crate::site::{Running, Site, foreign_key};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tidegate_agent::gateway::authority::{Authority, NewInvite};
use tidegate_agent::link::client::join;
use tidegate_agent::store::Store;
use tidegate_agent::{Kind as ErrorKind, clock};
use tidegate_protocol::enrolment::{Grant, Token};
use tidegate_protocol::keys::Secret;
use tidegate_protocol::rights::{Right, Rights};
use tidegate_protocol::wire::{
    Kind, MESSAGE_BYTES_MAX, Priority, RequestHead, Status, StatusRequest,
};
use tokio::time::timeout;

/// The gateway still does its work for those who may.
async fn assert_serves(site: &Site, identity: &Path, gateway: &Running) {
    let repository = site.open(&site.keys.host, identity, &[gateway]).await;
    back_up(
        &repository,
        Arc::new(disk(8, clock::now_unix_ns() % 1_000_000)),
    )
    .await;
}

fn head(kind: u8, message_bytes: u32) -> Vec<u8> {
    let mut head = vec![kind, Priority::Backup.tag()];
    head.extend_from_slice(&message_bytes.to_le_bytes());
    assert_eq!(head.len(), RequestHead::BYTES);
    head
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_no_further_than_the_handshake() {
    let site = Site::new().await;
    let gateway = site.gateway().await;
    let identity = site.host("hv1", &[Right::Backup], &gateway).await;

    // Speaks something else.
    let mut other = config_of(&identity);
    other.alpn_protocols = vec![b"h3".to_vec()];
    connect(other, gateway.address).await.unwrap_err();

    // Of another authority, whose certificate is as good as ours.
    let place = tempfile::tempdir().unwrap();
    let fleet = Store::open(&place.path().display().to_string(), &Default::default()).unwrap();
    let foreign = Authority::create(foreign_key(), fleet, clock::now_unix_ns())
        .await
        .unwrap();
    let now = clock::now_unix_ns();
    let token = foreign
        .fleet()
        .invite(
            NewInvite {
                host: "hv1".to_owned(),
                grants: vec![Grant {
                    repository: crate::site::NAME.to_owned(),
                    rights: Rights::of(Right::Backup),
                }],
                expires_unix_ns: now + 60_000_000_000,
                gateways: Vec::new(),
            },
            now,
        )
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let gateways = [gateway.address.to_string()];
    let error = join(&folder.path().join("a"), token, &gateways)
        .await
        .unwrap_err();
    // The host is the one that does not believe this gateway.
    assert!(error.chain().contains("believe"), "{error:?}");

    // Bytes that are no QUIC at all.
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut seed = blake3::Hasher::new().finalize_xof();
    for length in (1..1400).step_by(7) {
        let mut bytes = vec![0; length];
        seed.fill(&mut bytes);
        socket.send_to(&bytes, gateway.address).await.unwrap();
    }
    assert_serves(&site, &identity, &gateway).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hello_comes_first_and_once() {
    let site = Site::new().await;
    let gateway = site.gateway().await;
    let identity = site.host("hv1", &[Right::Backup], &gateway).await;
    let connection = connect(config_of(&identity), gateway.address)
        .await
        .unwrap();
    let (status, _) = ask(&connection, Kind::Status, &StatusRequest {}).await;
    assert_eq!(status, Status::Malformed);
    timeout(PATIENCE, connection.closed()).await.unwrap();

    let connection = greeted(&identity, gateway.address).await;
    assert_eq!(
        ask(&connection, Kind::Hello, &hello()).await.0,
        Status::Malformed
    );
    assert_eq!(
        ask(&connection, Kind::Status, &StatusRequest {}).await.0,
        Status::Ok
    );

    // Streams of one direction are not part of the protocol.
    let opened = timeout(Duration::from_millis(300), connection.open_uni()).await;
    assert!(
        opened.is_err(),
        "the gateway takes streams of one direction"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_answered_and_costs_only_its_stream() {
    let site = Site::new().await;
    let gateway = site.gateway().await;
    let identity = site.host("hv1", &[Right::Backup], &gateway).await;
    let connection = greeted(&identity, gateway.address).await;
    // A length beyond the limit, before a byte of it is read.
    let too_long = head(Kind::Have.tag(), MESSAGE_BYTES_MAX + 1);
    assert_eq!(
        say(&connection, &too_long).await.unwrap().0,
        Status::Malformed
    );
    let too_long = head(Kind::Have.tag(), u32::MAX);
    assert_eq!(
        say(&connection, &too_long).await.unwrap().0,
        Status::Malformed
    );
    // A kind that nobody knows.
    assert_eq!(
        say(&connection, &head(200, 0)).await.unwrap().0,
        Status::Unknown
    );
    // Shorter than it says, and a head that is none.
    let short = [head(Kind::Size.tag(), 50), vec![0; 10]].concat();
    assert_eq!(say(&connection, &short).await.unwrap().0, Status::Malformed);
    assert_eq!(
        say(&connection, &[1, 2]).await.unwrap().0,
        Status::Malformed
    );
    // Nonsense in the place of each message.
    for kind in Kind::ALL {
        for fill in [0x00, 0x0a, 0x7f, 0xff] {
            let nonsense = [head(kind.tag(), 64), vec![fill; 64]].concat();
            let (status, text) = say(&connection, &nonsense).await.unwrap();
            let refused = [Status::Malformed, Status::Denied, Status::Missing];
            let is_plain = matches!(kind, Kind::Status | Kind::List | Kind::Follow | Kind::Renew);
            assert!(
                refused.contains(&status) || is_plain,
                "{kind:?} of {fill}: {status:?} {text}"
            );
        }
    }
    assert_eq!(
        ask(&connection, Kind::Status, &StatusRequest {}).await.0,
        Status::Ok
    );
    assert_serves(&site, &identity, &gateway).await;
}

/// Streams that never come to their end are cut off in time, all of them, and hold nobody up.
#[tokio::test(flavor = "multi_thread")]
async fn slow_streams_are_cut_off() {
    let site = Site::new().await;
    let gateway = site.gateway().await;
    let identity = site.host("hv1", &[Right::Backup], &gateway).await;
    let connection = greeted(&identity, gateway.address).await;
    let mut open = Vec::new();
    // Nearly as many as the gateway takes side by side.
    for number in 0..60 {
        let (mut sending, receiving) = connection.open_bi().await.unwrap();
        let begun = head(Kind::Size.tag(), 40);
        let length = 1 + number % begun.len();
        sending.write_all(&begun[..length]).await.unwrap();
        open.push((sending, receiving));
    }
    assert_serves(&site, &identity, &gateway).await;
    for (_sending, receiving) in open {
        if let Some((status, _)) = answer(receiving).await {
            assert_eq!(status, Status::Malformed);
        }
    }
    // There is room again.
    assert_eq!(
        ask(&connection, Kind::Status, &StatusRequest {}).await.0,
        Status::Ok
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_connections_leave_room_for_hosts() {
    let site = Site::new().await;
    let gateway = site
        .gateway_with(|config| config.limits.connections_max = 40)
        .await;
    let identity = site.host("hv1", &[Right::Backup], &gateway).await;
    // First packets of thousands of handshakes that are never finished.
    let mut half = Vec::new();
    for _ in 0..8 {
        let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let tls = quinn::crypto::rustls::QuicClientConfig::try_from(config_of(&identity)).unwrap();
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(tls)));
        for _ in 0..400 {
            let name = tidegate_protocol::enrolment::GATEWAY_NAME;
            let connecting = endpoint.connect(gateway.address, name).unwrap();
            drop(connecting);
        }
        half.push(endpoint);
    }
    // Connections that say nothing, more than there is room for.
    let mut silent = Vec::new();
    for _ in 0..60 {
        if let Ok(connection) = connect(config_of(&identity), gateway.address).await {
            silent.push(connection);
        }
    }
    assert_serves(&site, &identity, &gateway).await;
    for connection in silent {
        timeout(PATIENCE, connection.closed()).await.unwrap();
    }
    assert_clean(&site.beside().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_lets_one_host_in_once() {
    let site = Site::new().await;
    let (one, two) = (site.gateway().await, site.gateway().await);
    let token = site.invite("hv1", &[Right::Backup]).await;
    let again = |secret: [u8; 32]| Token {
        enrolment: token.enrolment,
        secret: Secret(secret),
        authority: token.authority,
        gateways: Vec::new(),
    };
    let secret = token.secret.0;
    let folder = tempfile::tempdir().unwrap();
    let try_join = async |name: &str, secret, gateway: &Running| {
        let gateways = [gateway.address.to_string()];
        join(&folder.path().join(name), again(secret), &gateways)
            .await
            .map(|_| ())
            .map_err(|error| error.kind())
    };
    // Guessed, then used, then replayed at the other gateway and at the same one.
    assert_eq!(try_join("a", [9; 32], &one).await, Err(ErrorKind::Denied));
    assert_eq!(try_join("b", secret, &one).await, Ok(()));
    assert_eq!(try_join("c", secret, &two).await, Err(ErrorKind::Denied));
    assert_eq!(try_join("c", secret, &one).await, Err(ErrorKind::Denied));
    // Who has joined has joined.
    assert_eq!(try_join("b", secret, &one).await, Err(ErrorKind::Conflict));
}
