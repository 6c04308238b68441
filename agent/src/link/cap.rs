//! A hard limit on what a link sends: a token bucket in front of the UDP socket.
//!
//! The congestion window could not do it. quinn paces at window over round trip and holds nothing
//! back while a window is open, so a cap by the window ends where one datagram a round trip is too
//! much: on a LAN at 12 MB/s. In front of the socket it holds on every path, counts
//! retransmissions, acknowledgements and headers, and is one for all connections of an endpoint. The
//! controller needs no word of it: it sees a path that delivers that much.
//!
//! Not fair between connections of one endpoint: who asks first sends first. Invariant: over any
//! stretch of time no more than rate × time, one burst of `BURST`, and one batch of datagrams leave.

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::time::{Sleep, sleep};

/// What may be made up for at once after a late wake-up.
const BURST: Duration = Duration::from_millis(5);
/// A sender looks at least so often whether the cap was changed.
const WAIT_MAX: Duration = Duration::from_millis(100);
/// A batch of datagrams is at most so much of the cap's time, as long as that is a datagram.
const BATCH: Duration = Duration::from_millis(2);
/// Bytes that each datagram costs beside its payload, at least: IPv4 and UDP headers.
const HEADERS_BYTES: usize = 28;

/// Bytes a second on the network, headers included; changeable at any time, shared by any number
/// of sockets.
#[derive(Debug, Default)]
pub struct RateCap {
    /// 0 = none.
    bytes_per_second: Arc<AtomicU64>,
    bucket: Mutex<Bucket>,
}

impl RateCap {
    /// A cap that reads `bytes_per_second` anew for each batch; 0 is none.
    pub fn new(bytes_per_second: Arc<AtomicU64>) -> Self {
        Self {
            bytes_per_second,
            bucket: Mutex::default(),
        }
    }

    /// Changes it; 0 takes it away.
    pub fn set(&self, bytes_per_second: u64) {
        self.bytes_per_second
            .store(bytes_per_second, Ordering::Relaxed);
    }

    /// The cap in force; 0 = none.
    pub fn bytes_per_second(&self) -> u64 {
        self.bytes_per_second.load(Ordering::Relaxed)
    }

    fn wait(&self) -> Option<Duration> {
        let rate = self.bytes_per_second();
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.wait(Instant::now(), rate)
    }

    fn take(&self, bytes: usize) {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.take(bytes);
    }
}

impl PartialEq for RateCap {
    fn eq(&self, other: &Self) -> bool {
        self.bytes_per_second() == other.bytes_per_second()
    }
}

/// Tokens are bytes; what was sent beyond them is owed.
#[derive(Debug, Default)]
struct Bucket {
    tokens: f64,
    filled_at: Option<Instant>,
}

impl Bucket {
    /// How long to wait before anything may be sent; none = now.
    #[expect(clippy::cast_precision_loss, reason = "rates are below 2^53")]
    fn wait(&mut self, now: Instant, rate: u64) -> Option<Duration> {
        let filled_at = self.filled_at.replace(now).unwrap_or(now);
        if rate == 0 {
            self.tokens = 0.0;
            return None;
        }
        let rate = rate as f64;
        let elapsed = now.saturating_duration_since(filled_at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * rate).min(rate * BURST.as_secs_f64());
        if self.tokens >= 0.0 {
            return None;
        }
        let wait = (-self.tokens / rate).min(WAIT_MAX.as_secs_f64());
        Some(Duration::from_secs_f64(wait).max(Duration::from_micros(1)))
    }

    #[expect(clippy::cast_precision_loss, reason = "a batch is small")]
    fn take(&mut self, bytes: usize) {
        self.tokens -= bytes as f64;
    }
}

/// A UDP socket that obeys a [`RateCap`].
#[derive(Debug)]
pub struct CappedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    cap: Arc<RateCap>,
}

impl CappedSocket {
    /// `inner`, sending no faster than `cap`.
    pub fn new(inner: Arc<dyn AsyncUdpSocket>, cap: Arc<RateCap>) -> Self {
        Self { inner, cap }
    }
}

#[deny(clippy::missing_trait_methods)]
impl AsyncUdpSocket for CappedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(CappedPoller {
            cap: Arc::clone(&self.cap),
            sleep: None,
            inner: Arc::clone(&self.inner).create_io_poller(),
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.cap.wait().is_some() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.inner.try_send(transmit)?;
        let bytes = transmit.contents.len();
        let datagrams = transmit
            .segment_size
            .map_or(1, |segment| bytes.div_ceil(segment.max(1)));
        self.cap.take(bytes + datagrams * HEADERS_BYTES);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        let granted = self.inner.max_transmit_segments();
        match self.cap.bytes_per_second() {
            0 => granted,
            rate => {
                // quinn holds a batch that may not leave; its datagrams count as sent meanwhile.
                let bytes = u128::from(rate) * BATCH.as_micros() / 1_000_000;
                usize::try_from(bytes / 1500).map_or(granted, |most| most.clamp(1, granted))
            }
        }
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// Waits for the cap, then for the socket.
struct CappedPoller {
    cap: Arc<RateCap>,
    sleep: Option<Pin<Box<Sleep>>>,
    inner: Pin<Box<dyn UdpPoller>>,
}

impl UdpPoller for CappedPoller {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while let Some(wait) = this.cap.wait() {
            let sleeping = this.sleep.get_or_insert_with(|| Box::pin(sleep(wait)));
            ready!(sleeping.as_mut().poll(cx));
            this.sleep = None;
        }
        this.inner.as_mut().poll_writable(cx)
    }
}

impl fmt::Debug for CappedPoller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CappedPoller")
            .field("cap", &self.cap)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
