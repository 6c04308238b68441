//! How long a server may take, however it spends that time.
//!
//! Not the time-outs of the socket, which it has as well: those begin anew with every byte, and a
//! server that sends one a minute would keep us for ever. The invariant: nothing is read after the
//! deadline of what is being waited for.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// What a client puts up with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Patience {
    /// Without a word from a server that owes us something.
    pub(super) silence_max: Duration,
    /// For the whole negotiation, which costs a server nothing.
    pub(super) negotiation_max: Duration,
    /// For the answer to one request, once somebody waits for it: at most a few MiB.
    pub(super) answer_max: Duration,
}

impl Patience {
    /// A disk that is much slower than this is of no use to a machine either.
    pub(super) const DEFAULT: Self = Self {
        silence_max: Duration::from_secs(120),
        negotiation_max: Duration::from_secs(15),
        answer_max: Duration::from_secs(10 * 60),
    };
}

/// A socket that is read until a deadline.
#[derive(Debug)]
pub(super) struct TimedSocket {
    socket: UnixStream,
    deadline: Instant,
}

impl TimedSocket {
    /// A socket to be read within `time`.
    pub(super) fn new(socket: UnixStream, time: Duration) -> io::Result<Self> {
        let timed = Self {
            socket,
            deadline: Instant::now() + time,
        };
        timed.allow_silence(time)?;
        Ok(timed)
    }

    /// Gives it so much time from now on.
    pub(super) fn allow(&mut self, time: Duration) {
        self.deadline = Instant::now() + time;
    }

    /// Sets how long it may be silent.
    pub(super) fn allow_silence(&self, silence_max: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(silence_max))?;
        self.socket.set_write_timeout(Some(silence_max))
    }
}

impl Read for TimedSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if Instant::now() >= self.deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.socket.read(buffer)
    }
}

impl Write for TimedSocket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}
