//! The settings, the socket, the cap and the controller under a real quinn connection on loopback.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig, ServerConfig, TokioRuntime};
use rustls::pki_types::PrivatePkcs8KeyDer;
use std::time::Instant;

/// A client whose socket is capped, connected to a server that discards what it receives.
async fn pair(congestion: Congestion, cap: &Arc<RateCap>) -> (Endpoint, Endpoint, Connection) {
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let identity = rcgen::generate_simple_self_signed(["gateway".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(identity.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let transport = Arc::new(transport_config(congestion));

    let tls = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![identity.cert.der().clone()], key.into())
        .unwrap();
    let tls = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
    let mut server_config = ServerConfig::with_crypto(Arc::new(tls));
    server_config.transport_config(Arc::clone(&transport));
    let server = Endpoint::new(
        EndpointConfig::default(),
        Some(server_config),
        bind(local).unwrap(),
        Arc::new(TokioRuntime),
    )
    .unwrap();

    let mut roots = rustls::RootCertStore::empty();
    roots.add(identity.cert.der().clone()).unwrap();
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let mut client_config = ClientConfig::new(Arc::new(tls));
    client_config.transport_config(transport);
    let client = Endpoint::new_with_abstract_socket(
        EndpointConfig::default(),
        None,
        capped(bind(local).unwrap(), cap).unwrap(),
        Arc::new(TokioRuntime),
    )
    .unwrap();
    let connecting = client
        .connect_with(client_config, server.local_addr().unwrap(), "gateway")
        .unwrap();
    let incoming = server.accept().await.unwrap();
    tokio::spawn(async move {
        let connection = incoming.await.unwrap();
        while let Ok((mut send, mut receive)) = connection.accept_bi().await {
            let mut bytes = 0_u64;
            while let Some(chunk) = receive.read_chunk(usize::MAX, false).await.unwrap() {
                bytes += chunk.bytes.len() as u64;
            }
            send.write_all(&bytes.to_le_bytes()).await.unwrap();
            send.finish().unwrap();
        }
    });
    (server, client, connecting.await.unwrap())
}

/// Sends so much in one request; what the other end has counted, and how long it took.
async fn upload(connection: &Connection, bytes: usize) -> (u64, Duration) {
    let started = Instant::now();
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(&vec![7; bytes]).await.unwrap();
    send.finish().unwrap();
    let counted = receive.read_to_end(8).await.unwrap();
    let counted = u64::from_le_bytes(counted.try_into().unwrap());
    (counted, started.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_modes_carry_a_stream_larger_than_every_window() {
    for mode in [Congestion::Throughput, Congestion::Fair] {
        let cap = Arc::new(RateCap::default());
        let (_server, _client, connection) = pair(mode, &cap).await;
        let bytes = CONNECTION_WINDOW_BYTES as usize + (16 << 20);
        let (counted, _) = upload(&connection, bytes).await;
        assert_eq!(counted, bytes as u64, "{mode:?}");
        assert!(connection.stats().path.cwnd >= 4 * 1200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cap_holds_on_a_path_without_delay_and_can_be_changed() {
    let cap = Arc::new(RateCap::default());
    let (_server, _client, connection) = pair(Congestion::Throughput, &cap).await;
    upload(&connection, 1 << 20).await;
    for rate in [4 << 20, 1 << 20] {
        cap.set(rate);
        let before = connection.stats().udp_tx.bytes;
        let (_, took) = upload(&connection, 2 << 20).await;
        let sent = connection.stats().udp_tx.bytes - before;
        let most = took.as_secs_f64().mul_add(rate as f64, 64_000.0);
        assert!(sent as f64 <= most, "{sent} bytes in {took:?} at {rate}");
    }
    cap.set(0);
    let (counted, _) = upload(&connection, 8 << 20).await;
    assert_eq!(counted, 8 << 20);
}

#[tokio::test]
async fn an_address_in_use_is_a_matter_of_settings() {
    let first = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let error = bind(first.local_addr().unwrap()).unwrap_err();
    assert_eq!(error.kind(), Kind::Config, "{error:?}");
    assert!(error.advice().is_some());
}
