//! The gateway as a system service: signals, systemd, metrics.
//!
//! SIGTERM stops it in order: it takes nothing more, tells its hosts to go elsewhere, and answers what is
//! under way. SIGHUP reads the configuration again; as repositories and bounds belong to live
//! connections, what changed is told, and takes a restart, which costs a gateway's hosts nothing: they
//! go on with another one, or wait.

use super::{Gateway, GatewayConfig};
use crate::blocking::blocking;
use crate::error::{Error, Result};
use crate::metrics::{PrometheusHandle, listen};
use crate::systemd::Systemd;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Runs until SIGTERM or SIGINT. `credentials` is the folder of systemd's, where there is one.
///
/// # Errors
/// Where the gateway cannot start.
pub async fn run(
    file: PathBuf,
    credentials: Option<PathBuf>,
    metrics: PrometheusHandle,
) -> Result<()> {
    let listening =
        |kind| signal(kind).map_err(|error| Error::io("cannot listen for signals", error));
    let mut terminate = listening(SignalKind::terminate())?;
    let mut interrupt = listening(SignalKind::interrupt())?;
    let mut hang_up = listening(SignalKind::hangup())?;
    let mut systemd = Systemd::new();
    let path = file.clone();
    let config = blocking(move || GatewayConfig::read(&path)).await?;
    let metrics_address = config.metrics;
    let in_force = config.clone();
    let gateway = Arc::new(Gateway::start(config, credentials).await?);
    let mut servers = JoinSet::new();
    if let Some(address) = metrics_address {
        let listener = listen::bind(address).await?;
        let shown = Arc::clone(&gateway);
        let health = Arc::new(move || health(&shown));
        servers.spawn(listen::serve(listener, metrics, health));
        tracing::info!(%address, "serving /metrics and /health");
    }
    for address in gateway.addresses() {
        tracing::info!(%address, "the gateway listens");
    }
    let stop = CancellationToken::new();
    let mut serving = tokio::spawn({
        let (gateway, stop) = (Arc::clone(&gateway), stop.clone());
        async move { gateway.run(stop).await }
    });
    systemd.ready("");
    loop {
        let wake = systemd.alive();
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hang_up.recv() => reload(&file, &in_force, &systemd).await,
            () = sleep(wake) => {}
            ended = &mut serving => {
                return ended.map_err(|cause| {
                    Error::new(crate::Kind::Bug, "the gateway broke down").caused_by(cause)
                });
            }
        }
    }
    tracing::info!("the gateway is leaving");
    systemd.stopping();
    stop.cancel();
    loop {
        let wake = systemd.alive();
        tokio::select! {
            ended = &mut serving => {
                ended.map_err(|cause| {
                    Error::new(crate::Kind::Bug, "the gateway broke down").caused_by(cause)
                })?;
                break;
            }
            () = sleep(wake) => {}
        }
    }
    servers.shutdown().await;
    blocking(move || {
        systemd.close();
        Ok(())
    })
    .await?;
    tracing::info!("the gateway has stopped");
    Ok(())
}

async fn reload(file: &std::path::Path, in_force: &GatewayConfig, systemd: &Systemd) {
    systemd.reloading();
    let path = file.to_owned();
    let status = match blocking(move || GatewayConfig::read(&path)).await {
        Ok(config) if config == *in_force => {
            tracing::info!("the configuration was read again: nothing has changed");
            ""
        }
        Ok(_) => {
            tracing::warn!(
                "the configuration has changed: restart the gateway, its hosts go on with another one or wait"
            );
            "the configuration has changed: a restart brings it into force"
        }
        Err(error) => {
            tracing::error!(
                error = error.chain(),
                "the new configuration is not valid: the old one stays in force"
            );
            "the configuration file is not valid: the old one is in force"
        }
    };
    systemd.ready(status);
}

/// Well while the stores of all repositories answer.
fn health(gateway: &Gateway) -> (bool, serde_json::Value) {
    let silent = gateway.silent_repositories();
    let well = silent.is_empty();
    let word = if well { "ok" } else { "store" };
    let value = serde_json::json!({ "role": "gateway", "status": word, "silent": silent });
    (well, value)
}
