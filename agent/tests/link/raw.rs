//! A host that keeps to nothing: QUIC and frames by hand.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tidegate_agent::link::identity::{Identity, WallClock};
use tidegate_protocol::enrolment::GATEWAY_NAME;
use tidegate_protocol::wire::{
    AnswerHead, HelloRequest, Kind, Priority, Problem, Status, WireMessage, encode_request,
};
use tokio::time::timeout;

/// Longer than any limit of the gateway that is tried here.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A connection that the gateway has let in, without a hello.
pub async fn connect(
    config: rustls::ClientConfig,
    to: SocketAddr,
) -> Result<quinn::Connection, quinn::ConnectionError> {
    let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(tls)));
    endpoint.connect(to, GATEWAY_NAME).unwrap().await
}

pub fn config_of(identity: &Path) -> rustls::ClientConfig {
    let identity = Identity::open(identity).unwrap();
    identity.config(Arc::new(WallClock)).unwrap()
}

/// Let in, and greeted.
pub async fn greeted(identity: &Path, to: SocketAddr) -> quinn::Connection {
    let connection = connect(config_of(identity), to).await.unwrap();
    let (status, _) = ask(&connection, Kind::Hello, &hello()).await;
    assert_eq!(status, Status::Ok);
    connection
}

pub fn hello() -> HelloRequest {
    HelloRequest {
        program: "test".to_owned(),
        features: Vec::new(),
        repository: crate::site::NAME.to_owned(),
    }
}

/// A request, and what was said to it.
pub async fn ask<M: WireMessage>(
    connection: &quinn::Connection,
    kind: Kind,
    message: &M,
) -> (Status, String) {
    let request = encode_request(kind, Priority::Backup, message).unwrap();
    say(connection, &request).await.unwrap()
}

/// Bytes, and what was said to them; nothing where the gateway broke off.
pub async fn say(connection: &quinn::Connection, bytes: &[u8]) -> Option<(Status, String)> {
    let (mut sending, receiving) = connection.open_bi().await.ok()?;
    // It may be answered before it is all sent.
    let _ = sending.write_all(bytes).await;
    let _ = sending.finish();
    answer(receiving).await
}

pub async fn answer(mut receiving: quinn::RecvStream) -> Option<(Status, String)> {
    let head = loop {
        let mut head = [0; AnswerHead::BYTES];
        let read = timeout(PATIENCE, receiving.read_exact(&mut head)).await;
        read.expect("the gateway neither answered nor broke off")
            .ok()?;
        let head = AnswerHead::decode(&head).unwrap();
        // The body was not waited with.
        if head.status != Status::Ready {
            break head;
        }
    };
    let mut message = vec![0; head.message_bytes as usize];
    receiving.read_exact(&mut message).await.ok()?;
    let text = match head.status {
        Status::Ok => String::new(),
        _ => Problem::from_bytes(&message).unwrap().text,
    };
    Some((head.status, text))
}
