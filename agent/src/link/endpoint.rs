//! Endpoints of the two ends: what each changes of [`transport`]'s settings, and why.

use super::cap::RateCap;
use super::congestion::Congestion;
use super::transport::{self, transport_config};
use crate::error::{Error, Result};
use quinn::{
    Endpoint, EndpointConfig, IdleTimeout, ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How often a host sends something where it has nothing to say: a gateway that does not answer is found
/// out to be gone in two of them.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_millis(1500);

/// After how long without a sign a connection is gone. Longer than most cuts of a network: what was
/// under way then goes on where it stopped.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// A host's connections: all of the windows is for its one gateway.
pub(crate) fn host_transport(congestion: Congestion) -> TransportConfig {
    let mut transport = common(congestion);
    transport
        .keep_alive_interval(Some(KEEP_ALIVE))
        // A gateway opens none.
        .max_concurrent_bidi_streams(VarInt::from_u32(0));
    transport
}

/// A gateway's connections, as they begin: windows are shared out among the hosts that want something.
pub(crate) fn gateway_transport(requests_max: u32, idle_window_bytes: u32) -> TransportConfig {
    let mut transport = common(Congestion::Throughput);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(requests_max))
        .receive_window(VarInt::from_u32(idle_window_bytes))
        .send_window(idle_window_bytes.into());
    transport
}

fn common(congestion: Congestion) -> TransportConfig {
    let mut transport = transport_config(congestion);
    transport
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .max_concurrent_uni_streams(VarInt::from_u32(0));
    transport
}

/// An endpoint that dials, and sends no faster than `cap`.
pub(crate) fn client_endpoint(address: SocketAddr, cap: &Arc<RateCap>) -> Result<Endpoint> {
    let socket = transport::capped(transport::bind(address)?, cap)?;
    Endpoint::new_with_abstract_socket(
        EndpointConfig::default(),
        None,
        socket,
        Arc::new(TokioRuntime),
    )
    .map_err(|error| Error::io("a UDP endpoint", error))
}

/// An endpoint that listens.
pub(crate) fn server_endpoint(address: SocketAddr, config: ServerConfig) -> Result<Endpoint> {
    Endpoint::new(
        EndpointConfig::default(),
        Some(config),
        transport::bind(address)?,
        Arc::new(TokioRuntime),
    )
    .map_err(|error| Error::io(format!("a UDP endpoint at {address}"), error))
}
