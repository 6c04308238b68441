//! The host's end of the link: requests to whichever gateway is there.
//!
//! A [`Link`] belongs to one repository and knows the addresses of several gateways, which are equal:
//! what one has acknowledged is in the store for all. Requests share a few connections, each a `Line`
//! that dials anew when it has lost its gateway. What it is not: a loop that tries a request again; that
//! is [`crate::store`]'s, which alone knows what may be repeated.
//!
//! Invariant: an answer is what a gateway said in full. Whatever breaks off is an error.

mod join;
mod line;

pub use join::join;

use super::LinkError;
use super::cap::RateCap;
use super::congestion::Congestion;
use super::frames::{Receiving, Sending, cut_off};
use super::transport::CONNECTION_WINDOW_BYTES;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use line::{Line, Live};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tidegate_protocol::ids::ChunkId;
use tidegate_protocol::pack::Location;
use tidegate_protocol::wire::{
    self, AppendRequest, DeleteRequest, FollowPart, FollowRequest, GetAnswer, GetRequest,
    HaveAnswer, HaveRequest, Kind, ListEntry, ListPart, ListRequest, Nothing, Priority, PutRequest,
    RenewAnswer, RenewRequest, SizeAnswer, SizeRequest, Status, StatusAnswer, StatusRequest,
    WireMessage, decode_known, encode_request,
};

/// What of a long answer may wait for what was lost before it: as much as quinn itself would keep for all
/// of a connection.
const EARLY_BYTES_MAX: usize = CONNECTION_WINDOW_BYTES as usize;

/// How a host speaks to its gateways.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkSettings {
    /// The folder with the host's key and certificates.
    pub identity: PathBuf,
    /// Whose requests go first where several want the line.
    pub priority: Priority,
    /// How fast to send.
    pub congestion: Congestion,
    /// Most bytes a second to send, over all connections; may be changed while it is in use.
    pub rate: Arc<RateCap>,
    /// Connections to a gateway. One is bound to a core for its encryption, about 1 GB/s; more of them
    /// take more than their share of a crowded line.
    pub connections: usize,
    /// How long to wait for a gateway before the next one is tried as well.
    pub next_gateway_after: Duration,
    /// How long all gateways together may take to be reached.
    pub connect_timeout: Duration,
}

impl Default for LinkSettings {
    fn default() -> Self {
        Self {
            identity: PathBuf::from(super::DEFAULT_IDENTITY),
            priority: Priority::Backup,
            congestion: Congestion::default(),
            rate: Arc::default(),
            connections: 1,
            next_gateway_after: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(10),
        }
    }
}

/// A repository behind gateways. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

struct Shared {
    priority: Priority,
    lines: Vec<Line>,
    next_line: AtomicUsize,
}

/// What an object is found to be: its size, the range that follows, and the bytes of that range.
pub struct Got {
    /// The object's size and the range.
    pub answer: GetAnswer,
    /// As many bytes as the range has, or an error.
    pub body: BoxStream<'static, Result<Bytes, LinkError>>,
}

impl Link {
    /// A link to `repository`, as the gateways call it, by gateways at `addresses` (`host:port`). Sends
    /// nothing before it is used.
    pub fn new(addresses: Vec<String>, repository: String, settings: &LinkSettings) -> Self {
        let dialling = Arc::new(line::Dialling::new(addresses, repository, settings.clone()));
        let lines = (0..settings.connections.max(1))
            .map(|_| Line::new(Arc::clone(&dialling)))
            .collect();
        Self {
            shared: Arc::new(Shared {
                priority: settings.priority,
                lines,
                next_line: AtomicUsize::new(0),
            }),
        }
    }

    /// Where each of these chunks lies, as far as the gateway knows. At most
    /// [`wire::HAVE_IDS_MAX`] of them.
    pub async fn have(&self, chunks: &[ChunkId]) -> Result<Vec<Option<Location>>, LinkError> {
        let request = HaveRequest::new(chunks.iter().copied());
        let answer: HaveAnswer = self.ask(Kind::Have, &request, None).await?;
        Ok(decode_known(&answer, chunks.len())?)
    }

    /// Creates an object: durable when this returns.
    pub async fn put(
        &self,
        key: &str,
        length: u64,
        body: impl IntoIterator<Item = Bytes, IntoIter: Send>,
    ) -> Result<(), LinkError> {
        let mut body = body.into_iter();
        let Nothing {} = match wire::Object::at(key) {
            Some(wire::Object::Record(number)) => {
                let length = u32::try_from(length).unwrap_or(u32::MAX);
                let request = AppendRequest { number, length };
                self.ask(Kind::Append, &request, Some(&mut body)).await?
            }
            _ => {
                let key = key.to_owned();
                let request = PutRequest { key, length };
                self.ask(Kind::Put, &request, Some(&mut body)).await?
            }
        };
        Ok(())
    }

    /// Reads an object from `start` on, to `end` or to its own.
    pub async fn get(&self, key: &str, start: u64, end: Option<u64>) -> Result<Got, LinkError> {
        let key = key.to_owned();
        let asked = Asked::send(
            &self.live().await?,
            self.shared.priority,
            Kind::Get,
            &GetRequest { key, start, end },
            None,
        )
        .await?;
        let (answer, mut asked): (GetAnswer, Asked) = asked.answer().await?;
        let length = answer.end - answer.start;
        let early_max = usize::try_from(length).unwrap_or(usize::MAX);
        asked.receiving.take_early(early_max.min(EARLY_BYTES_MAX));
        let body = stream::try_unfold((asked, 0), move |(mut asked, mut got)| async move {
            if got == length {
                asked.receiving.end().await?;
                return Ok(None);
            }
            let most = usize::try_from(length - got).unwrap_or(usize::MAX);
            let Some(bytes) = asked.receiving.next(most).await? else {
                return Err(cut_off(length, got));
            };
            got += bytes.len() as u64;
            Ok(Some((bytes, (asked, got))))
        });
        Ok(Got {
            answer,
            body: body.boxed(),
        })
    }

    /// An object's size in bytes.
    pub async fn size(&self, key: &str) -> Result<u64, LinkError> {
        let key = key.to_owned();
        let answer: SizeAnswer = self.ask(Kind::Size, &SizeRequest { key }, None).await?;
        Ok(answer.size)
    }

    /// The objects in `folder` after `after`, in the byte order of their keys.
    pub fn list(
        &self,
        folder: String,
        after: String,
    ) -> BoxStream<'static, Result<ListEntry, LinkError>> {
        let link = self.clone();
        let parts = stream::once(async move {
            let prefix = folder;
            let request = ListRequest { prefix, after };
            let live = link.live().await?;
            let asked =
                Asked::send(&live, link.shared.priority, Kind::List, &request, None).await?;
            let (Nothing {}, asked) = asked.answer().await?;
            Ok::<_, LinkError>(stream::try_unfold(asked, |mut asked| async move {
                let part = asked.receiving.part::<ListPart>().await?;
                Ok::<_, LinkError>(part.map(|part| (part, asked)))
            }))
        });
        futures::TryStreamExt::try_flatten(parts)
            .map(|part| match part {
                Ok(part) => stream::iter(part.entries.into_iter().map(Ok).collect::<Vec<_>>()),
                Err(error) => stream::iter(vec![Err(error)]),
            })
            .flatten()
            .boxed()
    }

    /// The log's records after number `after`: those that are there; with `wait` also those that come.
    pub async fn follow(
        &self,
        after: u64,
        wait: bool,
    ) -> Result<BoxStream<'static, Result<(u64, Bytes), LinkError>>, LinkError> {
        let request = FollowRequest { after, wait };
        let live = self.live().await?;
        let asked = Asked::send(&live, self.shared.priority, Kind::Follow, &request, None).await?;
        let (Nothing {}, mut asked) = asked.answer().await?;
        asked.receiving.take_early(EARLY_BYTES_MAX);
        let records = stream::try_unfold(asked, |mut asked| async move {
            let Some(part) = asked.receiving.part::<FollowPart>().await? else {
                return Ok(None);
            };
            let record = asked.receiving.bytes(part.length as usize).await?;
            Ok(Some(((part.number, record), asked)))
        });
        Ok(records.boxed())
    }

    /// Deletes an object that the log has given up.
    pub async fn delete(&self, key: &str) -> Result<(), LinkError> {
        let key = key.to_owned();
        let Nothing {} = self.ask(Kind::Delete, &DeleteRequest { key }, None).await?;
        Ok(())
    }

    /// How the gateway is.
    pub async fn status(&self) -> Result<StatusAnswer, LinkError> {
        self.ask(Kind::Status, &StatusRequest {}, None).await
    }

    /// A request whose answer is one message.
    async fn ask<Q: WireMessage, A: WireMessage>(
        &self,
        kind: Kind,
        request: &Q,
        body: Option<&mut (dyn Iterator<Item = Bytes> + Send)>,
    ) -> Result<A, LinkError> {
        let live = self.live().await?;
        let asked = Asked::send(&live, self.shared.priority, kind, request, body).await?;
        let (answer, mut asked) = asked.answer().await?;
        asked.receiving.end().await?;
        Ok(answer)
    }

    /// The next connection in turn, dialled if need be.
    async fn live(&self) -> Result<Arc<Live>, LinkError> {
        let next = self.shared.next_line.fetch_add(1, Ordering::Relaxed);
        let lines = &self.shared.lines;
        lines[next % lines.len()].live().await
    }
}

/// A request that was sent.
struct Asked {
    receiving: Receiving,
    /// Counts as under way until it is dropped.
    under_way: line::UnderWay,
}

impl Asked {
    async fn send<Q: WireMessage>(
        live: &Arc<Live>,
        priority: Priority,
        kind: Kind,
        request: &Q,
        body: Option<&mut (dyn Iterator<Item = Bytes> + Send)>,
    ) -> Result<Self, LinkError> {
        let under_way = live.under_way();
        let (sending, receiving) = live.open().await?;
        let mut sending = Sending::new(sending, priority);
        let mut receiving = Receiving::new(receiving);
        let sent = async {
            sending
                .send(encode_request(kind, priority, request)?.into())
                .await?;
            let Some(body) = body else {
                return Ok(());
            };
            // A body on its way that nobody reads would hold up those that are read.
            if !receiving.ready().await? {
                return Err(LinkError::Stopped);
            }
            for bytes in body {
                sending.send(bytes).await?;
            }
            Ok(())
        };
        match sent.await {
            Ok(()) => sending.finish(),
            // It was answered before its end: the answer says why.
            Err(LinkError::Stopped) => drop(sending),
            Err(error) => return Err(error),
        }
        Ok(Self {
            receiving,
            under_way,
        })
    }

    /// The answer's message, or what the gateway said instead.
    async fn answer<A: WireMessage>(mut self) -> Result<(A, Self), LinkError> {
        let answer = self.receiving.answer().await;
        if let Err(LinkError::Answered {
            status: Status::Leaving,
            ..
        }) = &answer
        {
            self.under_way.live().leave();
        }
        Ok((answer?, self))
    }
}

/// A request for a new certificate, over a connection that still has the old one.
async fn renew(live: &Arc<Live>, request: Vec<u8>) -> Result<Vec<Vec<u8>>, LinkError> {
    let request = RenewRequest { request };
    let asked = Asked::send(live, Priority::Backup, Kind::Renew, &request, None).await?;
    let (answer, _): (RenewAnswer, Asked) = asked.answer().await?;
    Ok(answer.certificates)
}
