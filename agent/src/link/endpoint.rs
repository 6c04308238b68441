//! Sockets of the link, and the times and windows of its connections.
//!
//! Windows are what may be under way: less than the path's bandwidth × delay makes it slow, and what a
//! peer may send unread is memory. A host has one gateway and gives it all that 1 Gbit/s over 200 ms can
//! use; a gateway has many hosts, and shares its windows out among those that are active.

use super::congestion::{Congestion, CongestionFactory};
use quinn::{
    Endpoint, EndpointConfig, IdleTimeout, ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

/// How often a host sends something where it has nothing to say: a gateway that does not answer it is
/// found out to be gone in two of them.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_millis(1500);

/// After how long without a sign a connection is gone. Longer than most cuts of a network: what was
/// under way then goes on where it stopped.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// 1 Gbit/s × 200 ms, and as much again for what waits to be read.
const WINDOW_BYTES: u32 = 50 << 20;

/// Bytes that a socket's buffers hold: what arrives at 1 Gbit/s in the 30 ms for which a busy machine
/// may leave a thread waiting.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// A host's connections.
pub(crate) fn host_transport(congestion: Congestion) -> TransportConfig {
    let mut transport = common(congestion);
    transport
        .keep_alive_interval(Some(KEEP_ALIVE))
        // A gateway opens none.
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(WINDOW_BYTES))
        .stream_receive_window(VarInt::from_u32(WINDOW_BYTES))
        .send_window(WINDOW_BYTES.into());
    transport
}

/// A gateway's connections, as they begin.
pub(crate) fn gateway_transport(requests_max: u32, idle_window_bytes: u32) -> TransportConfig {
    let mut transport = common(Congestion::Throughput);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(requests_max))
        .receive_window(VarInt::from_u32(idle_window_bytes))
        // The connection's own window is what bounds a stream.
        .stream_receive_window(VarInt::from_u32(WINDOW_BYTES))
        .send_window(idle_window_bytes.into());
    transport
}

fn common(congestion: Congestion) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .congestion_controller_factory(Arc::new(CongestionFactory(congestion)));
    transport
}

/// A socket that dials.
pub(crate) fn client_endpoint(address: SocketAddr) -> io::Result<Endpoint> {
    endpoint(address, None)
}

/// A socket that listens.
pub(crate) fn server_endpoint(address: SocketAddr, config: ServerConfig) -> io::Result<Endpoint> {
    endpoint(address, Some(config))
}

fn endpoint(address: SocketAddr, config: Option<ServerConfig>) -> io::Result<Endpoint> {
    Endpoint::new(
        EndpointConfig::default(),
        config,
        socket(address)?,
        Arc::new(TokioRuntime),
    )
}

fn socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        // Each family has a socket of its own.
        socket.set_only_v6(true)?;
    }
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}
