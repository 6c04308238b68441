//! The gateway as a system service: signals, systemd, metrics.
//!
//! SIGTERM stops it in order: it takes nothing more, tells its hosts to go elsewhere, and answers what is
//! under way. SIGHUP reads the configuration again; as repositories and bounds belong to live
//! connections, what changed is told, and takes a restart, which costs a gateway's hosts nothing: they
//! go on with another one, or wait.

use super::{Gateway, GatewayConfig};
use crate::error::{Error, Result};
use crate::metrics::{PrometheusHandle, listen};
use crate::repository::blocking;
use sd_notify::NotifyState;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
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
    notify(&[NotifyState::Ready]);
    let mut watchdog = tokio::time::interval(watchdog_pause());
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hang_up.recv() => reload(&file, &in_force).await,
            _ = watchdog.tick() => notify(&[NotifyState::Watchdog]),
            ended = &mut serving => {
                return ended.map_err(|cause| {
                    Error::new(crate::Kind::Bug, "the gateway broke down").caused_by(cause)
                });
            }
        }
    }
    tracing::info!("the gateway is leaving");
    notify(&[NotifyState::Stopping]);
    stop.cancel();
    loop {
        tokio::select! {
            ended = &mut serving => {
                ended.map_err(|cause| {
                    Error::new(crate::Kind::Bug, "the gateway broke down").caused_by(cause)
                })?;
                break;
            }
            _ = watchdog.tick() => notify(&[NotifyState::Watchdog]),
        }
    }
    servers.shutdown().await;
    tracing::info!("the gateway has stopped");
    Ok(())
}

async fn reload(file: &std::path::Path, in_force: &GatewayConfig) {
    let mut state = vec![NotifyState::Reloading];
    state.extend(NotifyState::monotonic_usec_now().ok());
    notify(&state);
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
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Well while the stores of all repositories answer.
fn health(gateway: &Gateway) -> (bool, serde_json::Value) {
    let silent = gateway.silent_repositories();
    let well = silent.is_empty();
    let word = if well { "ok" } else { "store" };
    let value = serde_json::json!({ "role": "gateway", "status": word, "silent": silent });
    (well, value)
}

/// Tells systemd, where it started us.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot tell systemd how the service is");
    }
}

/// How often the watchdog wants to hear of us: thrice in its time.
fn watchdog_pause() -> Duration {
    sd_notify::watchdog_enabled().map_or(Duration::from_secs(3600), |time| time / 3)
}
