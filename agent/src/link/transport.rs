//! The transport settings of the link, with the reason for each, and its UDP sockets.
//!
//! Made for long fat paths: by default one connection fills 1 Gbit/s at a round trip of 200 ms.
//! Not the identities, not the times after which a peer is gone, and not what is said over the link.
//! Invariant: both ends begin with these settings; who shares memory among many peers opens less, and
//! those are as slow as that is little.

use super::cap::{CappedSocket, RateCap};
use super::congestion::{Congestion, CongestionFactory};
use crate::error::{Error, Kind, Result};
use quinn::{AckFrequencyConfig, TransportConfig, VarInt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

/// What is under way on 1 Gbit/s at 200 ms.
const PRODUCT_BYTES: u32 = 25_000_000;
/// What one stream may have under way, or wait to be read: a lost datagram comes a round trip later,
/// and until then all behind it waits.
pub const STREAM_WINDOW_BYTES: u32 = 32 << 20;
const _: () = assert!(STREAM_WINDOW_BYTES > PRODUCT_BYTES);
/// The same for all streams of a connection; bounds what a peer can make this end hold.
pub const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
const _: () = assert!(CONNECTION_WINDOW_BYTES >= 2 * PRODUCT_BYTES);

/// An acknowledgement for so many datagrams and one: half the packets of the way back, at no cost to
/// the sender, which counts bytes, not acknowledgements.
const ACK_THRESHOLD: u32 = 7;
/// ... or after so long, so that a slow link's round trips are not measured longer than they are.
const ACK_DELAY_MAX: Duration = Duration::from_millis(5);

/// A datagram counts as lost when one that was sent so many later has arrived: quinn's default of 3 takes
/// every reordering for loss. Time decides instead, as in RACK (RFC 8985); the number is only a bound for
/// what has to be remembered.
const REORDERED_PACKETS_MAX: u32 = 1024;
/// ... or when it is so many round trips old and a later one has arrived.
const REORDERED_RTT_MAX: f32 = 1.25;

/// Socket buffers that are asked for: 60 ms of 1 Gbit/s, in which this process may not be scheduled.
pub const SOCKET_BUFFER_BYTES: usize = 8 << 20;

/// Settings for both ends of the link.
///
/// What is left at quinn's default and why: GSO on (worth a factor of three); MTU discovery
/// on, from 1200 up to 1452 bytes, with its detection of black holes; three probe
/// time-outs until a loss counts as persistent; streams of one priority take turns. Without turns a stream
/// that was begun is finished before any other is looked at, and that holds up what others have
/// lost, and streams of a higher priority, too: measured at 1 % loss, a tenth of the goodput was missing.
pub fn transport_config(congestion: Congestion) -> TransportConfig {
    let mut ack = AckFrequencyConfig::default();
    ack.ack_eliciting_threshold(VarInt::from_u32(ACK_THRESHOLD))
        .max_ack_delay(Some(ACK_DELAY_MAX))
        .reordering_threshold(VarInt::from_u32(ACK_THRESHOLD));
    let mut config = TransportConfig::default();
    config
        .congestion_controller_factory(Arc::new(CongestionFactory(congestion)))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        .packet_threshold(REORDERED_PACKETS_MAX)
        .time_threshold(REORDERED_RTT_MAX)
        .ack_frequency_config(Some(ack))
        // The link has streams only.
        .datagram_receive_buffer_size(None);
    config
}

/// A UDP socket for an endpoint, bound to `address`, with large buffers. An IPv6 wildcard
/// serves IPv4 too.
///
/// # Errors
///
/// `Kind::Config`, `Denied` or `Io` when the address cannot be bound.
pub fn bind(address: SocketAddr) -> Result<UdpSocket> {
    let named = |error| Error::io(format!("UDP address {address}"), error);
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )
    .map_err(named)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false).map_err(named)?;
    }
    enlarge_buffers(&socket, address);
    socket.set_nonblocking(true).map_err(named)?;
    socket.bind(&address.into()).map_err(|error| {
        use std::io::ErrorKind as K;
        let in_use = matches!(error.kind(), K::AddrInUse | K::AddrNotAvailable);
        let named = Error::io(format!("UDP address {address}"), error);
        if in_use {
            Error::new(Kind::Config, format!("cannot listen on UDP {address}"))
                .caused_by(named)
                .advise("see who has it with `ss -ulpn`, or name another address")
        } else {
            named
        }
    })?;
    Ok(socket.into())
}

/// The endpoint's socket: `socket`, which sends no faster than `cap` says.
///
/// # Errors
///
/// `Kind::Io` when the runtime does not take the socket. Outside of a tokio runtime it panics.
pub fn capped(socket: UdpSocket, cap: &Arc<RateCap>) -> Result<Arc<CappedSocket>> {
    let wrapped = quinn::Runtime::wrap_udp_socket(&quinn::TokioRuntime, socket)
        .map_err(|error| Error::io("a UDP socket", error))?;
    Ok(Arc::new(CappedSocket::new(wrapped, Arc::clone(cap))))
}

fn enlarge_buffers(socket: &Socket, address: SocketAddr) {
    let socket = SockRef::from(socket);
    // The kernel grants what it may and does not say when that is less; what it answers is twice
    // what it counts for data.
    let receive = socket
        .set_recv_buffer_size(SOCKET_BUFFER_BYTES)
        .and_then(|()| socket.recv_buffer_size());
    let send = socket
        .set_send_buffer_size(SOCKET_BUFFER_BYTES)
        .and_then(|()| socket.send_buffer_size());
    for (buffer, sysctl) in [(receive, "net.core.rmem_max"), (send, "net.core.wmem_max")] {
        let granted = buffer.unwrap_or(0) / 2;
        if granted < SOCKET_BUFFER_BYTES {
            tracing::warn!(
                %address,
                granted_bytes = granted,
                wanted_bytes = SOCKET_BUFFER_BYTES,
                "socket buffer is small: fast links may lose datagrams at this host; raise it with `sysctl -w {sysctl}={SOCKET_BUFFER_BYTES}`"
            );
        }
    }
}

#[cfg(test)]
mod tests;
