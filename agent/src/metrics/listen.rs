//! `/metrics` and `/health` over HTTP, for monitoring.
//!
//! Reads only, tells local state only, and needs no credentials: bind it to an address that only
//! monitoring reaches. Connections are bounded in number and in time.

use super::PrometheusHandle;
use crate::error::{Error, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Connections at the same time; more are closed at once.
const CONNECTIONS_MAX: usize = 32;
/// How long a request's head may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may last.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// After a failure to accept: there may be no file numbers left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What `/health` says: whether all is well, and a JSON value.
pub type Health = Arc<dyn Fn() -> (bool, serde_json::Value) + Send + Sync>;

/// Listens at the address.
///
/// # Errors
/// Where that is not possible, such as where the port is taken.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| Error::io(format!("cannot listen at {address} for /metrics"), error))
}

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, metrics: PrometheusHandle, health: Health) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a monitoring connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
            tracing::warn!("too many monitoring connections: one was closed");
            continue;
        };
        let (metrics, health) = (metrics.clone(), Arc::clone(&health));
        tokio::spawn(async move {
            let served = connection(stream, metrics, health);
            // That a peer went away is nothing to tell.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, served).await;
            drop(place);
        });
    }
}

async fn connection(stream: TcpStream, metrics: PrometheusHandle, health: Health) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(&request, &metrics, &health);
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a monitoring connection ended early");
    }
}

fn answer(
    request: &Request<Incoming>,
    metrics: &PrometheusHandle,
    health: &Health,
) -> Response<Full<Bytes>> {
    let (status, sort, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => {
            metrics.run_upkeep();
            let text = metrics.render();
            (
                StatusCode::OK,
                "text/plain; version=0.0.4; charset=utf-8",
                text,
            )
        }
        (&Method::GET, "/health") => {
            let (well, value) = health();
            let status = match well {
                true => StatusCode::OK,
                false => StatusCode::SERVICE_UNAVAILABLE,
            };
            (status, "application/json", format!("{value}\n"))
        }
        (&Method::GET, _) => (
            StatusCode::NOT_FOUND,
            "text/plain",
            "there is /metrics and /health\n".to_owned(),
        ),
        _ => (
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            "GET only\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let sort = hyper::header::HeaderValue::from_static(sort);
    response.headers_mut().insert(CONTENT_TYPE, sort);
    response
}
