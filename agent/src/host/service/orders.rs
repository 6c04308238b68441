//! How connections give orders to the loop, and hear of runs.

use crate::error::{Error, Kind, Result};
use crate::host::control::{Reply, Request};
use crate::host::state::{Fault, RunRow};
use crate::progress::Progress;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// Orders that wait for the loop.
const ORDERS_WAITING: usize = 64;

type Order = (Request, oneshot::Sender<Result<Answer>>);

/// The way to the loop. Cheap to clone.
#[derive(Clone)]
pub(in crate::host) struct Orders(mpsc::Sender<Order>);

/// What the loop answers.
pub(in crate::host) enum Answer {
    /// This, and that is all.
    Reply(Box<Reply>),
    /// A run that can be watched to its end.
    Watch(watch::Receiver<Seen>),
}

/// A requested run, as it is now.
#[derive(Clone)]
pub(in crate::host) enum Seen {
    Waiting,
    Running {
        run: String,
        progress: Arc<Progress>,
    },
    Ended(Box<RunRow>),
    Refused(Fault),
}

impl Orders {
    pub(super) fn new() -> (Self, mpsc::Receiver<Order>) {
        let (give, take) = mpsc::channel(ORDERS_WAITING);
        (Self(give), take)
    }

    pub(in crate::host) async fn give(&self, request: Request) -> Result<Answer> {
        let stopping = || Error::new(Kind::Unavailable, "the host service is stopping");
        let (answer, answered) = oneshot::channel();
        self.0
            .send((request, answer))
            .await
            .map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())?
    }
}

impl Answer {
    pub(super) fn done(message: impl Into<String>) -> Self {
        let message = message.into();
        Self::Reply(Box::new(Reply::Done { message }))
    }
}
