//! rclone as an S3 server: answers create-only PUTs with success and overwrites.

use super::process::{Server, lab};
use super::test_settings;
use super::weed::{secret_key, speaks_http};
use crate::store::{Environment, Store};
use std::path::Path;
use std::process::Command;

const ACCESS_KEY: &str = "admin";
const BUCKET: &str = "bucket";

/// A server that does not keep the promise of a create-only PUT, and must be refused.
pub struct OverwritingServer {
    server: Server,
}

impl OverwritingServer {
    /// Starts a server of one's own.
    ///
    /// # Panics
    /// Where rclone is not installed, or does not come up.
    pub fn start() -> Self {
        Self {
            server: Server::start("rclone", &[], command, speaks_http),
        }
    }

    /// The variables an operator would set.
    pub fn environment(&self) -> Environment {
        Environment::empty()
            .with(
                "AWS_ENDPOINT_URL",
                format!("http://127.0.0.1:{}", self.server.port),
            )
            .with("AWS_REGION", "us-east-1")
            .with("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .with("AWS_SECRET_ACCESS_KEY", secret_key(self.server.port))
    }

    /// The location of a prefix in its bucket.
    pub fn location(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// A store at a prefix in its bucket.
    pub fn open(&self, prefix: &str) -> Store {
        Store::open_in(
            &self.location(prefix),
            &test_settings(),
            &self.environment(),
        )
        .expect("settings of tests are valid")
    }
}

fn command(folder: &Path, port: u16) -> Command {
    // Its buckets are folders.
    let data = folder.join("data");
    std::fs::create_dir_all(data.join(BUCKET)).expect("a folder can be made");
    let mut command = Command::new(lab("venv/bin/rclone"));
    command
        .args(["serve", "s3", "--addr"])
        .arg(format!("127.0.0.1:{port}"))
        .arg("--auth-key")
        .arg(format!("{ACCESS_KEY},{}", secret_key(port)))
        .arg(data)
        .env("RCLONE_CONFIG", folder.join("no-config"));
    command
}
