//! SeaweedFS: an S3 server that keeps every promise we need.

use super::process::{Server, block_on_own_thread, lab};
use super::test_settings;
use crate::store::{Environment, Store, StoreSettings};
use bytes::Bytes;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const ACCESS_KEY: &str = "tidegate-tests";

/// What each of its parts adds to its port for internal calls.
const INTERNAL: u16 = 10_000;

/// A real S3 server with an empty bucket.
pub struct S3Server {
    server: Server,
}

impl S3Server {
    /// The bucket that is there.
    pub const BUCKET: &'static str = "tidegate";

    /// Starts a server of one's own.
    ///
    /// # Panics
    /// Where SeaweedFS is not installed, or does not come up.
    pub fn start() -> Self {
        let distances: Vec<u16> = (0..4).flat_map(|part| [part, INTERNAL + part]).collect();
        Self {
            server: Server::start("weed", &distances, command, can_write),
        }
    }

    /// The variables an operator would set.
    pub fn environment(&self) -> Environment {
        environment(self.server.port)
    }

    /// The port it answers on.
    pub fn port(&self) -> u16 {
        self.server.port
    }

    /// The location of a prefix in the bucket.
    pub fn location(&self, prefix: &str) -> String {
        format!("s3://{}/{prefix}", Self::BUCKET)
    }

    /// A store at a prefix in the bucket.
    pub fn open(&self, prefix: &str) -> Store {
        Store::open_in(
            &self.location(prefix),
            &test_settings(),
            &self.environment(),
        )
        .expect("settings of tests are valid")
    }

    /// Kills the server, as a power cut would.
    pub fn kill(&mut self) {
        self.server.kill();
    }

    /// Starts the server again with what it had.
    pub fn restart(&mut self) {
        let command = command(self.server.folder.path(), self.server.port);
        self.server.restart(&command, can_write);
    }
}

fn command(folder: &Path, port: u16) -> Command {
    let mut command = Command::new(lab("venv/bin/weed"));
    command
        .arg("mini")
        .arg(format!("-dir={}", folder.display()))
        .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1"])
        .arg(format!("-s3.port={port}"))
        .arg(format!("-master.port={}", port + 1))
        .arg(format!("-volume.port={}", port + 2))
        .arg(format!("-filer.port={}", port + 3))
        .arg(format!(
            "-filer.localSocket={}",
            folder.join("filer.sock").display()
        ))
        .arg(format!("-bucket={}", S3Server::BUCKET))
        .args([
            "-s3.autoCreateBucket=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-admin.ui=false",
            "-webdav=false",
            "-master.telemetry=false",
        ])
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", secret_key(port));
    command
}

/// Each server has a key of its own, so that none is taken for another that has its port.
pub(super) fn secret_key(port: u16) -> String {
    format!("secret-{}-{port}", std::process::id())
}

fn environment(port: u16) -> Environment {
    Environment::empty()
        .with("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}"))
        .with("AWS_REGION", "us-east-1")
        .with("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .with("AWS_SECRET_ACCESS_KEY", secret_key(port))
}

/// Whether the bucket can be written, which comes later than its existence.
fn can_write(port: u16) -> bool {
    if !speaks_http(port) {
        return false;
    }
    let settings = StoreSettings {
        operation_deadline: Duration::from_secs(1),
        ..test_settings()
    };
    let location = format!("s3://{}", S3Server::BUCKET);
    let store = Store::open_in(&location, &settings, &environment(port))
        .expect("settings of tests are valid");
    block_on_own_thread(async move {
        store.create("up", Bytes::new()).await.is_ok() && store.delete("up").await.is_ok()
    })
}

/// Whether something answers HTTP at all.
pub(super) fn speaks_http(port: u16) -> bool {
    let Ok(mut connection) = TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    let mut answer = [0; 5];
    connection
        .set_read_timeout(Some(Duration::from_secs(5)))
        .is_ok()
        && connection
            .write_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            .is_ok()
        && connection.read_exact(&mut answer).is_ok()
        && answer == *b"HTTP/"
}
