//! The gateway's role: beside the bucket, for hosts that reach it over the [`crate::link`].
//!
//! | Part | Purpose |
//! |---|---|
//! | [`authority`] | who may connect, and what they may do |
//! | [`config`] | the configuration file |
//! | `connections` | hosts from their first packet to their last |
//! | `requests` | what each request does to a repository |
//! | `rules` | which request which right allows |
//! | `served` | a repository, kept at the head of its log |
//! | `room` | memory that is shared out before it is taken |
//! | `metrics` | what is counted |
//! | [`service`] | signals, systemd, monitoring |
//!
//! A gateway keeps no state that the bucket does not hold, so several may serve one repository, and any
//! of them may die at any moment. The invariants: what was acknowledged is durable in the store; nothing
//! is overwritten, and nothing deleted that the log has not given up; memory is bounded whatever the
//! number of hosts and whatever they send.

pub mod authority;
pub mod config;
mod connections;
mod metrics;
mod requests;
mod room;
mod rules;
mod served;
pub mod service;

pub use config::GatewayConfig;
pub use served::{Served, ServedSettings};

use crate::blocking::blocking;
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::link::endpoint;
use crate::link::identity::{GatewayCertificates, PrivateKey, WallClock, server_config};
use crate::store::{Store, StoreSettings};
use authority::Authority;
use connections::Shared;
use quinn::crypto::rustls::QuicServerConfig;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long requests under way may take when the gateway is stopped.
const LEAVE_PATIENCE: Duration = Duration::from_secs(60);

/// How often the gateway looks whether its own certificate needs replacing.
const CERTIFICATE_EVERY: Duration = Duration::from_secs(3600);

/// How often the present state is shown in the metrics.
const PRESENT_EVERY: Duration = Duration::from_secs(1);

/// Bounds of a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Memory for what hosts send and read, in bytes: half of it for bodies and windows of what they
    /// send, a quarter for what is read for them.
    pub memory_bytes: u64,
    /// Hosts connected at once.
    pub connections_max: usize,
    /// Requests of a host side by side.
    pub requests_max: u32,
    /// How often the list of revocations is read: how long a revoked host may go on.
    pub revocations_every: Duration,
    /// How often points whose time has passed are given up, and small packs put together, where that is wanted.
    pub expire_every: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 384 << 20,
            connections_max: 10_000,
            requests_max: 64,
            revocations_every: Duration::from_secs(5),
            expire_every: Duration::from_secs(3600),
        }
    }
}

/// Threads that a gateway's runtime needs: half of the cores, at least one.
///
/// What a datagram brings passes through three tasks (socket, connection, request), which wake each other
/// and share the connection's lock: on 2 cores, one thread instead of two saved 8 to 16 % of the CPU time of
/// sender and gateway together. The other half is for threads that block: the store's, the index's.
pub fn runtime_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2))
}

/// A gateway that listens.
pub struct Gateway {
    shared: Arc<Shared>,
    endpoints: Vec<quinn::Endpoint>,
    certificates: Arc<GatewayCertificates>,
}

impl Gateway {
    /// Opens the fleet and listens. The repositories are opened when they are first needed. `credentials`
    /// is the folder of systemd's credentials, where there is one.
    ///
    /// # Errors
    /// [`Kind::Config`] for an address that cannot be listened on, and what [`Authority::load`] says.
    pub async fn start(config: GatewayConfig, credentials: Option<PathBuf>) -> Result<Self> {
        Self::start_over(config, credentials, Store::open).await
    }

    /// The same, where `open` makes the store of each repository of its location. For tests and
    /// measurements.
    ///
    /// # Errors
    /// As [`Gateway::start`], and what `open` says.
    pub async fn start_over(
        config: GatewayConfig,
        credentials: Option<PathBuf>,
        open: impl Fn(&str, &StoreSettings) -> Result<Store>,
    ) -> Result<Self> {
        let path = config.authority_key.path(credentials.as_deref())?;
        let key = blocking(move || {
            let pem = std::fs::read_to_string(&path).map_err(|error| {
                Error::io(
                    format!("cannot read the authority's key {}", path.display()),
                    error,
                )
            })?;
            PrivateKey::from_pem(&path.display().to_string(), &pem)
        })
        .await?;
        let fleet = Store::open(&config.fleet, &config.store)?;
        let now = clock::now_unix_ns();
        let authority = Authority::load(key, fleet, now).await?;
        let certificates = GatewayCertificates::new(&authority.server_certificate(now)?)?;
        let tls = server_config(
            authority.certificate(),
            Arc::clone(&certificates),
            Arc::new(WallClock),
        )?;
        let tls = QuicServerConfig::try_from(tls).map_err(|cause| {
            Error::new(Kind::Bug, "QUIC does not take the TLS configuration").caused_by(cause)
        })?;
        let mut quic = quinn::ServerConfig::with_crypto(Arc::new(tls));
        let transport = endpoint::gateway_transport(
            config.limits.requests_max,
            u32::try_from(room::IDLE_WINDOW_BYTES).unwrap_or(u32::MAX),
        );
        quic.transport_config(Arc::new(transport));
        let endpoints = config
            .listen
            .iter()
            .map(|address| endpoint::server_endpoint(*address, quic.clone()))
            .collect::<Result<Vec<_>>>()?;
        let repositories = config
            .repositories
            .into_iter()
            .map(|settings| {
                let store = config.store.clone();
                let served = Served::new(settings, credentials.clone(), store, &open)?;
                Ok((served.name().to_owned(), Arc::new(served)))
            })
            .collect::<Result<HashMap<_, _>>>()?;
        Ok(Self {
            shared: Arc::new(Shared::new(authority, repositories, config.limits)),
            endpoints,
            certificates,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let addresses = self.endpoints.iter().map(quinn::Endpoint::local_addr);
        addresses.filter_map(std::io::Result::ok).collect()
    }

    /// Whether each repository's store answers; none that does not: healthy.
    pub fn silent_repositories(&self) -> Vec<String> {
        let served = self.shared.repositories.values();
        let silent = served.filter(|served| !served.store_answers());
        silent.map(|served| served.name().to_owned()).collect()
    }

    /// Serves hosts until `stop`; then takes nothing more, finishes what is under way and returns.
    pub async fn run(&self, stop: CancellationToken) {
        let background = tokio_util::task::TaskTracker::new();
        for served in self.shared.repositories.values() {
            let (served, stop) = (Arc::clone(served), stop.clone());
            background.spawn(async move { served.keep_up(stop).await });
        }
        for served in self.shared.repositories.values() {
            let (served, stop) = (Arc::clone(served), stop.clone());
            let every = self.shared.limits.expire_every;
            background.spawn(async move { served.upkeep(every, stop).await });
        }
        for endpoint in &self.endpoints {
            let (shared, endpoint) = (Arc::clone(&self.shared), endpoint.clone());
            background.spawn(async move { shared.accept(&endpoint).await });
        }
        let shared = Arc::clone(&self.shared);
        background.spawn(async move { shared.look_after().await });
        let mut present = tokio::time::interval(PRESENT_EVERY);
        let mut certificate = tokio::time::interval(CERTIFICATE_EVERY);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = present.tick() => self.present(),
                _ = certificate.tick() => self.renew_own(),
            }
        }
        self.shared.leave(LEAVE_PATIENCE).await;
        for endpoint in &self.endpoints {
            let leaving = tidegate_protocol::wire::Close::Leaving;
            endpoint.close(
                crate::link::frames::code(leaving),
                b"the gateway is stopped",
            );
            // What was answered last must arrive.
            endpoint.wait_idle().await;
        }
        background.close();
        background.wait().await;
    }

    fn present(&self) {
        let shared = &self.shared;
        metrics::present(
            shared.connections(),
            shared.requests(),
            shared.room_in.taken_bytes(),
            shared.room_out.taken_bytes(),
        );
        for served in shared.repositories.values() {
            metrics::repository(
                served.name(),
                *served.head().borrow(),
                served.store_answers(),
            );
        }
    }

    /// Shows another certificate long before the present one ends.
    fn renew_own(&self) {
        let made = self
            .shared
            .authority
            .server_certificate(clock::now_unix_ns());
        let shown = made.and_then(|certificate| self.certificates.replace(&certificate));
        if let Err(error) = shown {
            tracing::error!(
                error = error.chain(),
                "the gateway's certificate was not replaced"
            );
        }
    }
}
