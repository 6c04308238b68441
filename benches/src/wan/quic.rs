//! An endless upload over QUIC through a path, with any congestion controller.

use crate::relay::{LEFT, RIGHT, Relay};
use anyhow::{Context as _, Result};
use bytes::Bytes;
use quinn::congestion::{BbrConfig, CubicConfig};
use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig, ServerConfig, TokioRuntime};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tidegate_agent::link::congestion::Congestion;
use tidegate_agent::link::transport::{bind, transport_config};

/// Streams at once, as a host that uploads packs.
const STREAMS: usize = 4;
const CHUNK_BYTES: usize = 256 << 10;

/// Who decides how much is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Controller {
    Ours(Congestion),
    QuinnCubic,
    QuinnBbr,
}

/// Both ends of a connection; dropping it ends them.
pub(super) struct Upload {
    _server: Endpoint,
    client: Endpoint,
    connection: Connection,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Upload {
    /// Connects; nothing is sent yet. What arrives is counted in `arrived`.
    pub(super) async fn connect(
        relay: &Relay,
        controller: Controller,
        port: u16,
        arrived: Arc<AtomicU64>,
    ) -> Result<Self> {
        let there = SocketAddr::from((RIGHT, port));
        let listening = relay.right.run(move || bind(there))??;
        let dialling = relay.left.run(|| bind(SocketAddr::from((LEFT, 0))))??;
        let (server_config, client_config) = configs(controller)?;
        let runtime = Arc::new(TokioRuntime);
        let server = Endpoint::new(
            EndpointConfig::default(),
            Some(server_config),
            listening,
            Arc::clone(&runtime) as _,
        )?;
        let client = Endpoint::new(EndpointConfig::default(), None, dialling, runtime)?;
        let accepting = server.clone();
        let receive = tokio::spawn(async move {
            // Whatever ends the connection ends the upload; the figures say how far it came.
            let _ = receive(&accepting, &arrived).await;
        });
        let connection = client
            .connect_with(client_config, there, "gateway")?
            .await?;
        Ok(Self {
            _server: server,
            client,
            connection,
            tasks: vec![receive],
        })
    }

    /// Begins to send all it can.
    pub(super) fn begin(&mut self) {
        let chunk = Bytes::from(vec![0x5a; CHUNK_BYTES]);
        for _ in 0..STREAMS {
            let (connection, chunk) = (self.connection.clone(), chunk.clone());
            self.tasks.push(tokio::spawn(async move {
                let Ok(mut stream) = connection.open_uni().await else {
                    return;
                };
                while stream.write_chunk(chunk.clone()).await.is_ok() {}
            }));
        }
    }

    pub(super) async fn end(self) {
        if let Some(reason) = self.connection.close_reason() {
            eprintln!("the connection was lost under way: {reason}");
        }
        self.connection.close(0_u32.into(), b"");
        self.client.close(0_u32.into(), b"");
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
    }
}

async fn receive(server: &Endpoint, arrived: &Arc<AtomicU64>) -> Result<()> {
    let connection = server.accept().await.context("no connection")?.await?;
    loop {
        let mut stream = connection.accept_uni().await?;
        let arrived = Arc::clone(arrived);
        tokio::spawn(async move {
            while let Ok(Some(chunk)) = stream.read_chunk(CHUNK_BYTES, false).await {
                arrived.fetch_add(chunk.bytes.len() as u64, Ordering::Relaxed);
            }
        });
    }
}

fn configs(controller: Controller) -> Result<(ServerConfig, ClientConfig)> {
    let mut transport = match controller {
        Controller::Ours(mode) => transport_config(mode),
        Controller::QuinnCubic | Controller::QuinnBbr => transport_config(Congestion::default()),
    };
    match controller {
        Controller::Ours(_) => {}
        Controller::QuinnCubic => {
            transport.congestion_controller_factory(Arc::new(CubicConfig::default()));
        }
        Controller::QuinnBbr => {
            transport.congestion_controller_factory(Arc::new(BbrConfig::default()));
        }
    }
    let transport = Arc::new(transport);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let identity = rcgen::generate_simple_self_signed(["gateway".to_owned()])?;
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(identity.signing_key.serialize_der());
    let tls = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![identity.cert.der().clone()], key.into())?;
    let tls = quinn::crypto::rustls::QuicServerConfig::try_from(tls)?;
    let mut server = ServerConfig::with_crypto(Arc::new(tls));
    server.transport_config(Arc::clone(&transport));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(identity.cert.der().clone())?;
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls)?;
    let mut client = ClientConfig::new(Arc::new(tls));
    client.transport_config(transport);
    Ok((server, client))
}
