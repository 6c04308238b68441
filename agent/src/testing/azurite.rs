//! Azurite: Microsoft's own server of Azure Blob Storage for tests.
//!
//! Not for crash tests: killed, it loses blobs it acknowledged.

use super::process::{Server, lab};
use super::test_settings;
use super::weed::speaks_http;
use crate::store::{Environment, Store};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The account and the key every Azurite has; published by Microsoft.
const ACCOUNT: &str = "devstoreaccount1";
const ACCOUNT_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A real Azure Blob server with an empty container.
pub struct AzureServer {
    server: Server,
}

impl AzureServer {
    /// The container that is there.
    pub const CONTAINER: &'static str = "tidegate";

    /// Starts a server of one's own.
    ///
    /// # Panics
    /// Where Azurite or node is not installed, or it does not come up.
    pub fn start() -> Self {
        let server = Server::start("azurite", &[], command, speaks_http);
        create_container(server.port);
        Self { server }
    }

    /// The variables an operator would set.
    pub fn environment(&self) -> Environment {
        Environment::empty()
            .with("AZURE_STORAGE_ACCOUNT", ACCOUNT)
            .with("AZURE_STORAGE_KEY", ACCOUNT_KEY)
            .with(
                "AZURE_STORAGE_ENDPOINT",
                format!("http://127.0.0.1:{}/{ACCOUNT}", self.server.port),
            )
    }

    /// The port it answers on.
    pub fn port(&self) -> u16 {
        self.server.port
    }

    /// The variables for a proxy in front of it.
    pub fn environment_at(&self, proxy: &str) -> Environment {
        self.environment()
            .with("AZURE_STORAGE_ENDPOINT", format!("{proxy}/{ACCOUNT}"))
    }

    /// The location of a prefix in the container.
    pub fn location(&self, prefix: &str) -> String {
        format!("az://{}/{prefix}", Self::CONTAINER)
    }

    /// A store at a prefix in the container.
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
    let mut command = Command::new("node");
    command
        .arg(lab("azurite/node_modules/azurite/dist/src/blob/main.js"))
        .args(["--blobHost", "127.0.0.1", "--blobPort"])
        .arg(port.to_string())
        .arg("--location")
        .arg(folder.join("data"))
        .args(["--skipApiVersionCheck", "--silent", "--disableTelemetry"]);
    command
}

/// Makes the container, which the engine itself never does: a request signed by hand.
fn create_container(port: u16) {
    let container = AzureServer::CONTAINER;
    // Azurite looks at the signature, not at the age of the date in it.
    let headers = "x-ms-date:Mon, 01 Jan 2024 00:00:00 GMT\nx-ms-version:2023-11-03\n";
    let to_sign = format!(
        "PUT\n\n\n\n\n\n\n\n\n\n\n\n{headers}/{ACCOUNT}/{ACCOUNT}/{container}\nrestype:container"
    );
    let key = BASE64.decode(ACCOUNT_KEY).expect("the key is base64");
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let signature = BASE64.encode(hmac::sign(&key, to_sign.as_bytes()));
    let request = format!(
        "PUT /{ACCOUNT}/{container}?restype=container HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\
         {}Authorization: SharedKey {ACCOUNT}:{signature}\r\nContent-Length: 0\r\n\
         Connection: close\r\n\r\n",
        headers.replace('\n', "\r\n")
    );
    let mut connection = TcpStream::connect(("127.0.0.1", port)).expect("Azurite answers");
    connection
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("a socket takes a time-out");
    connection
        .write_all(request.as_bytes())
        .expect("Azurite reads a request");
    let mut answer = String::new();
    connection
        .read_to_string(&mut answer)
        .expect("Azurite answers in time");
    assert!(
        answer.starts_with("HTTP/1.1 201"),
        "Azurite made no container: {answer}"
    );
}
