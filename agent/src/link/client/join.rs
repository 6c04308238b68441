//! Joining: a first certificate for a token.

use super::line::{Sockets, first_request, quic};
use crate::blocking::blocking;
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::link::LinkError;
use crate::link::congestion::Congestion;
use crate::link::frames::code;
use crate::link::identity::{Identity, JoinInProgress, WallClock};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tidegate_protocol::enrolment::Token;
use tidegate_protocol::wire::{Close, JoinAnswer, JoinRequest, Kind as Request, Status};
use tokio::time::timeout;

/// How long a gateway may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// Joins by `token`, at one of `gateways` (`host:port`; where there are none, at those that the token
/// names), and keeps key and certificates in `folder`. Returns what the host is called.
///
/// Done again after an answer was lost, it goes on with the same key.
///
/// # Errors
/// [`Kind::Denied`] where the token is not valid, [`Kind::Unavailable`] where no gateway answers, and
/// what [`JoinInProgress`] says.
pub async fn join(folder: &Path, token: Token, gateways: &[String]) -> Result<(Identity, String)> {
    let gateways = match gateways {
        [] => token.gateways.clone(),
        given => given.to_vec(),
    };
    if gateways.is_empty() {
        return Err(Error::new(
            Kind::Config,
            "the token names no gateway, and none was given",
        )
        .advise("give --gateway HOST:PORT"));
    }
    let into = folder.to_owned();
    let joining = blocking(move || JoinInProgress::begin(&into, token)).await?;
    let mut failures = Vec::new();
    for gateway in &gateways {
        match timeout(PATIENCE, ask(&joining, gateway)).await {
            Ok(Ok(answer)) => {
                let now = clock::now_unix_ns();
                let identity =
                    blocking(move || joining.finish(&answer.certificates, &gateways, now)).await?;
                return Ok((identity, answer.host));
            }
            Ok(Err(
                error @ LinkError::Answered {
                    status: Status::Denied,
                    ..
                },
            )) => {
                return Err(
                    Error::new(Kind::Denied, format!("{gateway} refuses the token"))
                        .advise("it was used, has expired or was revoked: ask for another invite")
                        .caused_by(error),
                );
            }
            Ok(Err(error)) => failures.push(format!("{gateway}: {error}")),
            Err(_) => failures.push(format!("{gateway}: no answer")),
        }
    }
    Err(Error::new(
        Kind::Unavailable,
        format!("no gateway let this host join: {}", failures.join("; ")),
    )
    .advise("check the addresses and that UDP gets through, then run the command again"))
}

async fn ask(
    joining: &JoinInProgress,
    gateway: &str,
) -> std::result::Result<JoinAnswer, LinkError> {
    let refused = |error: Error| LinkError::Denied(error.chain());
    let tls = joining.config(Arc::new(WallClock)).map_err(refused)?;
    let request = JoinRequest {
        id: joining.token().enrolment.0.to_vec(),
        secret: joining.token().secret.0.to_vec(),
        request: joining.request().map_err(refused)?.to_vec(),
    };
    let sockets = Sockets::default();
    let connection = sockets
        .connect(gateway, quic(tls, Congestion::default())?)
        .await?;
    let answer = first_request(&connection, Request::Join, &request).await;
    connection.close(code(Close::Done), b"");
    // The gateway is told before the socket is gone.
    let _ = timeout(Duration::from_secs(1), sockets.idle()).await;
    answer
}
