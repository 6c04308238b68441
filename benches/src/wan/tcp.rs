//! An endless upload over the kernel's TCP with CUBIC: what HTTPS, and every tool that speaks it to a
//! bucket, gets of a path at best.

use crate::relay::{RIGHT, Relay};
use anyhow::{Context as _, Result};
use rustix::net::sockopt::set_tcp_congestion;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

/// Both ends of a connection.
pub(super) struct Upload {
    stream: TcpStream,
    threads: Vec<JoinHandle<()>>,
}

impl Upload {
    /// Connects; what arrives is counted in `arrived`.
    pub(super) fn connect(relay: &Relay, port: u16, arrived: Arc<AtomicU64>) -> Result<Self> {
        let there = SocketAddr::from((RIGHT, port));
        let listener = relay.right.run(move || TcpListener::bind(there))??;
        let receiving = std::thread::spawn(move || {
            let Ok((mut stream, _)) = listener.accept() else {
                return;
            };
            let mut buffer = vec![0; 256 << 10];
            while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
                arrived.fetch_add(bytes as u64, Ordering::Relaxed);
            }
        });
        let stream = relay.left.run(move || TcpStream::connect(there))??;
        // The system's choice may be another.
        set_tcp_congestion(&stream, "cubic").context("choosing CUBIC")?;
        Ok(Self {
            stream,
            threads: vec![receiving],
        })
    }

    /// Begins to send all it can.
    pub(super) fn begin(&mut self) -> Result<()> {
        let mut stream = self.stream.try_clone()?;
        self.threads.push(std::thread::spawn(move || {
            let chunk = vec![0x5a; 256 << 10];
            while stream.write_all(&chunk).is_ok() {}
        }));
        Ok(())
    }

    /// Breaks off. The threads end by themselves when the kernel has told them.
    pub(super) fn end(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
