//! One connection at a time to one of several gateways, dialled anew when it is lost.
//!
//! Gateways are tried in turn from the one last used on; the next one is tried as well when one is slow
//! to answer, and the first to answer is taken. A gateway that dies says nothing: while something is
//! under way and nothing arrives any more, another gateway is dialled, and the silent one given up when
//! that one answers. Where there is no other, or the network itself is gone, QUIC's own time-out decides,
//! and a connection that comes back goes on.

use super::{LinkError, LinkSettings, renew};
use crate::blocking::blocking;
use crate::clock;
use crate::link::cap::RateCap;
use crate::link::congestion::Congestion;
use crate::link::endpoint;
use crate::link::frames::{Receiving, Sending, code};
use crate::link::identity::{Identity, WallClock};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tidegate_protocol::enrolment::GATEWAY_NAME;
use tidegate_protocol::wire::{
    Close, HelloAnswer, HelloRequest, Kind, Priority, WireMessage, encode_request,
};
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout};

/// With nothing heard for so long while something is under way, another gateway is dialled. Twice
/// [`endpoint::KEEP_ALIVE`] and a long round trip: a gateway that lives has answered by then.
const SILENCE_MAX: Duration = Duration::from_secs(4);

/// Codes by which QUIC closes for a reason of TLS (RFC 9001, 4.8): a certificate that is not believed,
/// no protocol in common.
const TLS_ALERTS: std::ops::RangeInclusive<u64> = 0x100..=0x1ff;

/// How often silence is looked for.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// Where the gateways are, and how to speak to them; what all lines of a link share.
pub(super) struct Dialling {
    addresses: Vec<String>,
    repository: String,
    settings: LinkSettings,
    sockets: Sockets,
    /// The gateway to try first.
    first: AtomicUsize,
}

/// A socket for each family of addresses, made when it is first used; one of them may be lacking.
#[derive(Default)]
pub(super) struct Sockets {
    cap: Arc<RateCap>,
    v4: OnceCell<Endpoint>,
    v6: OnceCell<Endpoint>,
}

/// A place for one connection.
pub(super) struct Line {
    dialling: Arc<Dialling>,
    current: Arc<Current>,
}

#[derive(Default)]
struct Current {
    /// Held while it is dialled: those who come meanwhile wait for the same connection.
    dialled: tokio::sync::Mutex<()>,
    live: Mutex<Option<Arc<Live>>>,
}

/// A connection with its hello behind it.
pub(super) struct Live {
    connection: Connection,
    gateway: usize,
    requests: AtomicUsize,
    leaving: AtomicBool,
}

/// A request under way.
pub(super) struct UnderWay(Arc<Live>);

impl Line {
    pub(super) fn new(dialling: Arc<Dialling>) -> Self {
        Self {
            dialling,
            current: Arc::default(),
        }
    }

    /// A connection that is open as far as is known.
    pub(super) async fn live(&self) -> Result<Arc<Live>, LinkError> {
        if let Some(live) = self.current.usable() {
            return Ok(live);
        }
        let _dialled = self.current.dialled.lock().await;
        if let Some(live) = self.current.usable() {
            return Ok(live);
        }
        let lost = self.current.take();
        let avoid = lost.map(|live| live.gateway);
        let live = self.dialling.dial(avoid).await?;
        self.current.put(Arc::clone(&live));
        watch(&self.dialling, &self.current, &live);
        Ok(live)
    }
}

impl Current {
    fn usable(&self) -> Option<Arc<Live>> {
        self.lock()
            .as_ref()
            .filter(|live| live.is_usable())
            .cloned()
    }

    fn take(&self) -> Option<Arc<Live>> {
        self.lock().take()
    }

    fn put(&self, live: Arc<Live>) {
        *self.lock() = Some(live);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    fn is_usable(&self) -> bool {
        !self.leaving.load(Ordering::Relaxed) && self.connection.close_reason().is_none()
    }

    /// The gateway takes nothing more: the next request goes elsewhere, those under way end here.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    pub(super) fn under_way(self: &Arc<Self>) -> UnderWay {
        self.requests.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(self))
    }

    pub(super) async fn open(&self) -> Result<(SendStream, RecvStream), LinkError> {
        self.connection.open_bi().await.map_err(lost)
    }

    fn datagrams_received(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }
}

impl UnderWay {
    pub(super) fn live(&self) -> &Live {
        &self.0
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.connection.close(code(Close::Done), b"");
    }
}

impl Sockets {
    /// Sockets that together send no faster than `cap`.
    pub(super) fn new(cap: Arc<RateCap>) -> Self {
        Self {
            cap,
            ..Self::default()
        }
    }

    /// A connection to the gateway at `address` (`host:port`), by the first of its addresses that answers.
    pub(super) async fn connect(
        &self,
        address: &str,
        config: quinn::ClientConfig,
    ) -> Result<Connection, LinkError> {
        let unreachable = |why: String| LinkError::Unreachable(format!("{address}: {why}"));
        let resolved = tokio::net::lookup_host(address)
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        let mut last = unreachable("the name has no address".to_owned());
        for to in resolved {
            let connected = async {
                let endpoint = self
                    .of(to)
                    .await
                    .map_err(|error| unreachable(error.chain()))?;
                let connecting = endpoint
                    .connect_with(config.clone(), to, GATEWAY_NAME)
                    .map_err(|error| unreachable(error.to_string()))?;
                connecting.await.map_err(lost)
            };
            match connected.await {
                Ok(connection) => return Ok(connection),
                // The other end is there, and does not want this host: another address is no other end.
                Err(error @ LinkError::Denied(_)) => return Err(error),
                Err(error) => last = unreachable(error.to_string()),
            }
        }
        Err(last)
    }

    /// Until all connections have ended.
    pub(super) async fn idle(&self) {
        for endpoint in [&self.v4, &self.v6].into_iter().filter_map(OnceCell::get) {
            endpoint.wait_idle().await;
        }
    }

    async fn of(&self, to: SocketAddr) -> crate::error::Result<&Endpoint> {
        let (cell, any): (_, SocketAddr) = match to.is_ipv4() {
            true => (&self.v4, (Ipv4Addr::UNSPECIFIED, 0).into()),
            false => (&self.v6, (Ipv6Addr::UNSPECIFIED, 0).into()),
        };
        cell.get_or_try_init(async || endpoint::client_endpoint(any, &self.cap))
            .await
    }
}

impl Dialling {
    pub(super) fn new(addresses: Vec<String>, repository: String, settings: LinkSettings) -> Self {
        // Hosts spread over their gateways by chance.
        let first = clock::random().map_or(0, u32::from_le_bytes) as usize;
        let first = AtomicUsize::new(first % addresses.len().max(1));
        Self {
            addresses,
            repository,
            sockets: Sockets::new(Arc::clone(&settings.rate)),
            settings,
            first,
        }
    }

    /// The first gateway to answer, in turn from the one last used on; `avoid` is tried last.
    async fn dial(&self, avoid: Option<usize>) -> Result<Arc<Live>, LinkError> {
        let folder = self.settings.identity.clone();
        let identity = blocking(move || Identity::open(&folder))
            .await
            .map_err(denied)?;
        let config = self.client_config(&identity)?;
        let count = self.addresses.len();
        let first = match avoid {
            Some(gateway) => gateway + 1,
            None => self.first.load(Ordering::Relaxed),
        };
        let order: Vec<usize> = (0..count).map(|turn| (first + turn) % count).collect();
        let mut attempts: FuturesUnordered<_> = (0_u32..)
            .zip(order)
            .map(|(turn, gateway)| {
                let config = config.clone();
                async move {
                    sleep(self.settings.next_gateway_after * turn).await;
                    self.dial_one(gateway, config).await
                }
            })
            .collect();
        let mut refusal = None;
        let mut failures = Vec::new();
        let all = async {
            while let Some(attempt) = attempts.next().await {
                match attempt {
                    Ok(live) => return Some(live),
                    Err(LinkError::Unreachable(text) | LinkError::Lost(text)) => {
                        failures.push(text);
                    }
                    // What one of them says of the host holds for all.
                    Err(error) => {
                        failures.push(error.to_string());
                        refusal = Some(error);
                    }
                }
            }
            None
        };
        match timeout(self.settings.connect_timeout, all).await {
            Ok(Some(live)) => {
                self.first.store(live.gateway, Ordering::Relaxed);
                let live = Arc::new(live);
                renew_if_due(identity, &live);
                return Ok(live);
            }
            Ok(None) => {}
            Err(_) => failures.push(format!(
                "no answer within {:.0} s",
                self.settings.connect_timeout.as_secs_f64()
            )),
        }
        Err(refusal.unwrap_or_else(|| LinkError::Unreachable(failures.join("; "))))
    }

    async fn dial_one(
        &self,
        gateway: usize,
        config: quinn::ClientConfig,
    ) -> Result<Live, LinkError> {
        let address = &self.addresses[gateway];
        let connection = self.sockets.connect(address, config).await?;
        let hello = self.greet(&connection).await?;
        tracing::debug!(gateway = %address, host = hello.host, "connected");
        Ok(Live {
            connection,
            gateway,
            requests: AtomicUsize::new(0),
            leaving: AtomicBool::new(false),
        })
    }

    async fn greet(&self, connection: &Connection) -> Result<HelloAnswer, LinkError> {
        let hello = HelloRequest {
            program: crate::PROGRAM.to_owned(),
            features: Vec::new(),
            repository: self.repository.clone(),
        };
        let answer = first_request(connection, Kind::Hello, &hello).await;
        answer.map_err(|error| match error {
            // The reason of a close says more than the stream it took along.
            LinkError::Lost(_) => connection.close_reason().map_or(error, lost),
            error => error,
        })
    }

    fn client_config(&self, identity: &Identity) -> Result<quinn::ClientConfig, LinkError> {
        let tls = identity.config(Arc::new(WallClock)).map_err(denied)?;
        quic(tls, self.settings.congestion)
    }
}

/// What a connection begins with: one request and its answer.
pub(super) async fn first_request<Q: WireMessage, A: WireMessage>(
    connection: &Connection,
    kind: Kind,
    request: &Q,
) -> Result<A, LinkError> {
    let (sending, receiving) = connection.open_bi().await.map_err(lost)?;
    let mut sending = Sending::new(sending, Priority::Restore);
    let request = encode_request(kind, Priority::Restore, request)?;
    sending.send(request.into()).await?;
    sending.finish();
    Receiving::new(receiving).answer().await
}

/// A host's side of QUIC over that TLS.
pub(super) fn quic(
    tls: rustls::ClientConfig,
    congestion: Congestion,
) -> Result<quinn::ClientConfig, LinkError> {
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls)
        .map_err(|error| LinkError::Denied(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(endpoint::host_transport(congestion)));
    Ok(config)
}

fn denied(error: crate::error::Error) -> LinkError {
    LinkError::Denied(error.chain())
}

/// Looks after a connection: where it falls silent with something under way, and another gateway
/// answers, it is given up.
fn watch(dialling: &Arc<Dialling>, current: &Arc<Current>, live: &Arc<Live>) {
    if dialling.addresses.len() < 2 {
        return;
    }
    let (dialling, current) = (Arc::downgrade(dialling), Arc::downgrade(current));
    let live = Arc::downgrade(live);
    tokio::spawn(async move {
        let mut heard = (0, Instant::now());
        loop {
            sleep(WATCH_EVERY).await;
            let Some(watched) = live
                .upgrade()
                .filter(|live| live.connection.close_reason().is_none())
            else {
                return;
            };
            let received = watched.datagrams_received();
            if received != heard.0 || watched.requests.load(Ordering::Relaxed) == 0 {
                heard = (received, Instant::now());
            } else if heard.1.elapsed() > SILENCE_MAX + 2 * watched.connection.rtt() {
                replace(&dialling, &current, &watched, received).await;
            }
        }
    });
}

async fn replace(
    dialling: &Weak<Dialling>,
    current: &Weak<Current>,
    silent: &Arc<Live>,
    received: u64,
) {
    let (Some(dialling), Some(current)) = (dialling.upgrade(), current.upgrade()) else {
        return;
    };
    let _dialled = current.dialled.lock().await;
    let Ok(other) = dialling.dial(Some(silent.gateway)).await else {
        return;
    };
    // It came back meanwhile, or the one that answered is the silent one's own address.
    if silent.datagrams_received() != received {
        return;
    }
    tracing::warn!(
        silent = dialling.addresses[silent.gateway],
        other = dialling.addresses[other.gateway],
        "a gateway fell silent: going on with another"
    );
    current.put(Arc::clone(&other));
    silent.connection.close(code(Close::Stopped), b"silent");
    watch(&dialling, &current, &other);
}

/// Asks for a new certificate where two thirds of the present one's time are over.
fn renew_if_due(mut identity: Identity, live: &Arc<Live>) {
    if clock::now_unix_ns() < identity.renew_from_unix_ns() {
        return;
    }
    let live = Arc::clone(live);
    tokio::spawn(async move {
        let renewed = async {
            let request = identity.request().map_err(denied)?;
            let certificates = renew(&live, request.to_vec()).await?;
            let stored = move || identity.renew(&certificates, clock::now_unix_ns());
            blocking(stored).await.map_err(denied)
        };
        match renewed.await {
            Ok(()) => tracing::info!("the certificate of this host was renewed"),
            Err(error) => tracing::warn!(%error, "the certificate of this host was not renewed"),
        }
    });
}

/// What a connection's end means.
pub(super) fn lost(error: ConnectionError) -> LinkError {
    let alert = match &error {
        ConnectionError::ApplicationClosed(close) => {
            let why = String::from_utf8_lossy(&close.reason);
            return match Close::from_code(close.error_code.into_inner()) {
                Some(Close::Revoked | Close::Denied) => {
                    LinkError::Denied(format!("the gateway closed the connection: {why}"))
                }
                _ => LinkError::Lost(error.to_string()),
            };
        }
        ConnectionError::TransportError(cause) => u64::from(cause.code),
        ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
        _ => 0,
    };
    match TLS_ALERTS.contains(&alert) {
        true => LinkError::Denied(format!(
            "the gateway and this host do not believe each other: {error}"
        )),
        false => LinkError::Lost(error.to_string()),
    }
}
