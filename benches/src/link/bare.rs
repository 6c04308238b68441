//! The same bytes over bare QUIC, from this process to another that forgets them: with quinn's own settings,
//! which is what QUIC does on this machine, and with the link's.

use super::{Bench, Sample, UNDER_WAY, timed};
use anyhow::{Context, Result};
use bytes::Bytes;
use futures::future::try_join_all;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig, ServerConfig, TokioRuntime};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;
use tidegate_agent::link::congestion::Congestion;
use tidegate_agent::link::transport::{bind, transport_config};

const NAME: &str = "receiver";
const READ_BYTES_MAX: usize = 256 << 10;

#[derive(clap::Args)]
pub(crate) struct ReceiverArguments {
    /// The folder with its certificate and key
    identity: PathBuf,
    /// With the link's settings
    #[arg(long)]
    as_link: bool,
}

/// Sends all packs on a few streams, and waits until the other end has read each of them.
pub(super) fn send(bench: &Bench, as_link: bool) -> Result<Sample> {
    let folder = tempfile::tempdir_in(bench.work.path())?;
    let identity = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
    let certificate = identity.cert.der().clone();
    std::fs::write(folder.path().join("certificate"), &certificate)?;
    let key = identity.signing_key.serialize_der();
    std::fs::write(folder.path().join("key"), key)?;
    let mut receiver = Command::new(std::env::current_exe()?)
        .arg("bare-receiver")
        .arg(folder.path())
        .args(as_link.then_some("--as-link"))
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = String::new();
    let stdout = receiver.stdout.take().context("its stdout is piped")?;
    BufReader::new(stdout).read_line(&mut said)?;
    let to = said.trim().parse().context("the receiver's address")?;
    let streams: Vec<Vec<Bytes>> = (0..UNDER_WAY)
        .map(|stream| {
            let packs = bench.packs.iter().skip(stream).step_by(UNDER_WAY);
            packs.map(|(_, pack)| pack.clone()).collect()
        })
        .collect();
    let (sample, ()) = timed(bench, async {
        let mut config = client(certificate)?;
        if as_link {
            config.transport_config(Arc::new(transport_config(Congestion::Throughput)));
        }
        let mut endpoint = endpoint((Ipv4Addr::UNSPECIFIED, 0).into(), None, as_link)?;
        endpoint.set_default_client_config(config);
        let connection = endpoint.connect(to, NAME)?.await?;
        let begin = Instant::now();
        try_join_all(streams.into_iter().map(|packs| upload(&connection, packs))).await?;
        let wall = begin.elapsed();
        connection.close(0_u32.into(), b"");
        endpoint.wait_idle().await;
        Ok((wall, ()))
    })?;
    let (_, usage) = crate::speed::child::wait4(receiver.id())?;
    Ok(Sample {
        cpu: sample.cpu + crate::speed::child::cpu(&usage),
        ..sample
    })
}

async fn upload(connection: &Connection, packs: Vec<Bytes>) -> Result<()> {
    let (mut sending, mut receiving) = connection.open_bi().await?;
    for pack in packs {
        sending.write_chunk(pack).await?;
    }
    sending.finish()?;
    // The other end says nothing, once it has read all.
    receiving.read_to_end(0).await?;
    Ok(())
}

/// Receives what one connection sends.
pub(crate) fn receive(arguments: &ReceiverArguments) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(async {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            let as_link = arguments.as_link;
            let mut config = server(&arguments.identity)?;
            if as_link {
                config.transport_config(Arc::new(transport_config(Congestion::Throughput)));
            }
            let endpoint = endpoint(address, Some(config), as_link)?;
            println!("{}", endpoint.local_addr()?);
            let connection = endpoint.accept().await.context("no connection")?.await?;
            // It ends when the sender has what it wanted.
            while let Ok((mut sending, mut receiving)) = connection.accept_bi().await {
                tokio::spawn(async move {
                    while let Ok(Some(_)) = receiving.read_chunk(READ_BYTES_MAX, !as_link).await {}
                    let _ = sending.finish();
                });
            }
            Ok(())
        })
}

/// With a socket as quinn or as the link makes it.
fn endpoint(address: SocketAddr, server: Option<ServerConfig>, as_link: bool) -> Result<Endpoint> {
    let socket = match as_link {
        true => bind(address)?,
        false => UdpSocket::bind(address)?,
    };
    let runtime = Arc::new(TokioRuntime);
    Ok(Endpoint::new(
        EndpointConfig::default(),
        server,
        socket,
        runtime,
    )?)
}

fn server(identity: &Path) -> Result<ServerConfig> {
    let certificate = CertificateDer::from(std::fs::read(identity.join("certificate"))?);
    let key = PrivatePkcs8KeyDer::from(std::fs::read(identity.join("key"))?);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key.into())?;
    Ok(ServerConfig::with_crypto(Arc::new(
        QuicServerConfig::try_from(tls)?,
    )))
}

fn client(certificate: CertificateDer<'static>) -> Result<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(ClientConfig::new(Arc::new(QuicClientConfig::try_from(
        tls,
    )?)))
}
