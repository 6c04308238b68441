//! What each request does to a repository, and how it is answered.
//!
//! A request is answered once: with its message and body, or with a status and a problem. What breaks off
//! in the middle of a body is reset, so that nobody takes a part for the whole. Nothing is acknowledged
//! before the store has acknowledged it.

use super::connections::{Guest, Shared};
use super::room::Taken;
use super::rules;
use super::served::{self, Served};
use crate::error::{Error, Kind as ErrorKind};
use crate::link::LinkError;
use crate::link::frames::{Receiving, Sending};
use crate::repository::log::Foreign;
use crate::store::{Created, Store};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use std::sync::Arc;
use std::time::Duration;
use tidegate_protocol::ids::{PackId, SegmentId};
use tidegate_protocol::limits::RECORD_BYTES_MAX;
use tidegate_protocol::record;
use tidegate_protocol::wire::{
    AppendRequest, DeleteRequest, FollowPart, FollowRequest, GetAnswer, GetRequest, HaveRequest,
    Kind, LIST_ENTRIES_MAX, ListEntry, ListPart, ListRequest, Nothing, Object, Problem, PutRequest,
    RenewAnswer, RenewRequest, RequestHead, SizeAnswer, SizeRequest, Status, StatusAnswer,
    StatusRequest, WireMessage, chunk_ids, encode_answer, encode_known, encode_part,
};
use tokio::time::{Instant, timeout, timeout_at};

/// How long a request's head and message may take from the stream's first byte on.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a body may stand still.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// The slowest body that is taken: it holds room in memory.
const BODY_BYTES_PER_SECOND_MIN: u64 = 64 << 10;

/// When to come back where the store does not answer.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// What is read from the store at once for an answer.
const READ_BYTES_MAX: u64 = 16 << 20;

/// Why a request is answered with something other than `ok`, or not at all.
pub(super) enum Refusal {
    /// Answered so.
    Status(Status, String, Duration),
    /// There is nobody to answer.
    Gone(LinkError),
}

/// Bodies that are longer than this lie in memory that is used again.
const POOLED_BYTES_MIN: usize = 1 << 20;

/// What of a body is hashed at once: a power of two, so that the hash runs at its full width.
const HASHED_BYTES: usize = 256 << 10;

/// What a host has sent.
struct Body {
    bytes: Bytes,
    /// BLAKE3 of them all.
    hash: [u8; 32],
    _room: Taken,
}

type Answered = Result<(), Refusal>;

/// Serves one stream. Returns the kind and what was answered.
pub(super) async fn serve(
    shared: &Shared,
    guest: &Guest,
    sending: quinn::SendStream,
    receiving: quinn::RecvStream,
) -> (&'static str, Status) {
    let mut receiving = Receiving::new(receiving);
    let started = Instant::now() + HEAD_TIMEOUT;
    let head = match timeout_at(started, receiving.request_head()).await {
        Ok(Ok(head)) => head,
        Ok(Err(LinkError::Malformed(text))) => {
            let mut sending = Sending::new(sending, Default::default());
            let refusal = Refusal::Status(Status::Malformed, text, Duration::ZERO);
            answer_refusal(&mut sending, &refusal).await;
            sending.finish();
            return ("unreadable", Status::Malformed);
        }
        // Too slow, or gone: dropping the streams resets them.
        Ok(Err(_)) | Err(_) => return ("unreadable", Status::Malformed),
    };
    let mut request = Request {
        shared,
        guest,
        head,
        started,
        receiving,
        sending: Sending::new(sending, head.priority),
    };
    let word = head.kind().map_or("unknown", Kind::as_str);
    match request.answer().await {
        Ok(()) => {
            request.sending.finish();
            (word, Status::Ok)
        }
        Err(Refusal::Gone(error)) => {
            tracing::debug!(host = guest.host, request = word, %error, "a request broke off");
            (word, Status::Malformed)
        }
        Err(refusal) => {
            let Refusal::Status(status, text, _) = &refusal else {
                return (word, Status::Malformed);
            };
            // What is there already is everyday life.
            match status {
                Status::Exists | Status::Missing => {}
                _ => tracing::warn!(
                    host = guest.host,
                    repository = guest.served.name(),
                    request = word,
                    status = status.as_str(),
                    "{text}"
                ),
            }
            let status = *status;
            answer_refusal(&mut request.sending, &refusal).await;
            request.sending.finish();
            (word, status)
        }
    }
}

async fn answer_refusal(sending: &mut Sending, refusal: &Refusal) {
    if let Refusal::Status(status, text, retry_after) = refusal {
        let retry_after_ms = u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX);
        let problem = Problem::new(text, retry_after_ms);
        if let Ok(answer) = encode_answer(*status, &problem) {
            // Who does not listen any more does not miss it.
            let _ = timeout(HEAD_TIMEOUT, sending.send(answer.into())).await;
        }
    }
}

struct Request<'a> {
    shared: &'a Shared,
    guest: &'a Guest,
    head: RequestHead,
    /// When head and message have to be there.
    started: Instant,
    receiving: Receiving,
    sending: Sending,
}

impl Request<'_> {
    async fn answer(&mut self) -> Answered {
        let Some(kind) = self.head.kind() else {
            return refuse(
                Status::Unknown,
                format!(
                    "this gateway knows no request of tag {}",
                    self.head.kind_tag
                ),
            );
        };
        if self.shared.is_leaving() {
            return Err(Refusal::Status(
                Status::Leaving,
                "the gateway is being stopped".to_owned(),
                Duration::from_millis(1),
            ));
        }
        match kind {
            Kind::Have => self.have().await,
            Kind::Put => self.put().await,
            Kind::Get => self.get().await,
            Kind::Size => self.size().await,
            Kind::List => self.list().await,
            Kind::Append => self.append().await,
            Kind::Follow => self.follow().await,
            Kind::Delete => self.delete().await,
            Kind::Status => self.status().await,
            Kind::Renew => self.renew().await,
            Kind::Hello => refuse(Status::Malformed, "hello was said already".to_owned()),
            Kind::Join => refuse(
                Status::Denied,
                "a host with a certificate has joined already".to_owned(),
            ),
        }
    }

    async fn have(&mut self) -> Answered {
        let request: HaveRequest = self.whole_message().await?;
        self.check(Kind::Have, None)?;
        let repository = self.served().repository().await?;
        let chunks: Vec<_> = chunk_ids(&request).collect();
        let index = match repository.index_as_it_is() {
            Some(index) => index,
            None => repository.index().await?,
        };
        let known = served::known(index, chunks).await?;
        self.say(&encode_known(&known)).await
    }

    async fn put(&mut self) -> Answered {
        let request: PutRequest = self.message().await?;
        let object = Object::at(&request.key);
        self.check(Kind::Put, object)?;
        let Some(object) = object else {
            return refuse(Status::Malformed, format!("{:?} is no key", request.key));
        };
        if request.length > object.bytes_max() {
            return refuse(
                Status::Large,
                format!(
                    "{} has {} bytes: expected at most {}",
                    request.key,
                    request.length,
                    object.bytes_max()
                ),
            );
        }
        let body = self.body(request.length).await?;
        let is_named_so = match object {
            Object::Pack(id) => PackId(body.hash) == id,
            Object::Segment(id) => SegmentId(body.hash) == id,
            _ => true,
        };
        if !is_named_so {
            return refuse(
                Status::Hash,
                format!(
                    "{} does not hash to its name: it was damaged before it was sent",
                    request.key
                ),
            );
        }
        match self.store().create(&request.key, body.bytes).await? {
            Created::New => self.say(&Nothing {}).await,
            Created::Exists => refuse(Status::Exists, format!("{} is there", request.key)),
        }
    }

    async fn get(&mut self) -> Answered {
        let request: GetRequest = self.whole_message().await?;
        let object = Object::at(&request.key);
        self.check(Kind::Get, object)?;
        let mut at = request.start;
        let mut end = request.end.unwrap_or(u64::MAX);
        let mut said = false;
        while at < end {
            let next = end.min(at.saturating_add(READ_BYTES_MAX));
            let _room = self.shared.room_out.take(next - at).await;
            let (bytes, size) = match self.store().get_within(&request.key, at..next).await {
                Ok(got) => got,
                // A half-sent body can only be broken off.
                Err(error) if said => return Err(Refusal::Gone(LinkError::Lost(error.chain()))),
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    return refuse(Status::Range, error.chain());
                }
                Err(error) => return Err(error.into()),
            };
            if !said {
                end = end.min(size);
                let start = request.start;
                self.say(&GetAnswer { size, start, end }).await?;
                said = true;
            }
            at += bytes.len() as u64;
            if bytes.is_empty() {
                let text = format!("{} became shorter", request.key);
                return Err(Refusal::Gone(LinkError::Lost(text)));
            }
            self.send(bytes).await?;
        }
        Ok(())
    }

    async fn size(&mut self) -> Answered {
        let request: SizeRequest = self.whole_message().await?;
        self.check(Kind::Size, Object::at(&request.key))?;
        let size = self.size_of(&request.key).await?;
        self.say(&SizeAnswer { size }).await
    }

    async fn list(&mut self) -> Answered {
        let request: ListRequest = self.whole_message().await?;
        self.check(Kind::List, None)?;
        let after = (!request.after.is_empty()).then_some(request.after.as_str());
        let mut pages = self
            .store()
            .list(&request.prefix, after)
            .try_chunks(LIST_ENTRIES_MAX);
        let mut said = false;
        let mut newest = None;
        loop {
            let page = match pages.next().await {
                None => break,
                Some(Ok(page)) => page,
                Some(Err(error)) if said => {
                    return Err(Refusal::Gone(LinkError::Lost(error.1.chain())));
                }
                Some(Err(error)) => return Err(error.1.into()),
            };
            if !said {
                self.say(&Nothing {}).await?;
                said = true;
            }
            newest = page
                .iter()
                .rev()
                .find_map(|entry| record::number_of(&entry.key))
                .or(newest);
            let entries = page.into_iter().map(|entry| ListEntry {
                key: entry.key,
                size: entry.size_bytes,
            });
            let part = ListPart {
                entries: entries.collect(),
            };
            self.send(encode_part(&part).map_err(own)?.into()).await?;
        }
        if !said {
            self.say(&Nothing {}).await?;
        }
        // Before the host knows of a record, so does this gateway: what the host asks for next is answered
        // with all that the record has brought.
        if let Some(number) = newest {
            self.served().catch_up(number).await;
        }
        Ok(())
    }

    async fn append(&mut self) -> Answered {
        let request: AppendRequest = self.message().await?;
        self.check(Kind::Append, Some(Object::Record(request.number)))?;
        let body = self.body(request.length.into()).await?;
        let repository = self.served().repository().await?;
        let rights = self.guest.rights;
        let may = |kind| rules::check_record(rights, kind);
        let appended = repository
            .append_foreign(request.number, body.bytes, may)
            .await;
        let number = request.number;
        match appended? {
            Foreign::Appended => {
                // The segments that it names: the next host asks for what is in them.
                if let Err(error) = repository.index().await {
                    tracing::warn!(error = error.chain(), "the index lags behind the log");
                }
                self.served().note_head(repository)?;
                self.say(&Nothing {}).await
            }
            Foreign::Exists => refuse(Status::Exists, format!("there is a record {number}")),
            Foreign::Behind { head } => refuse(
                Status::Behind,
                format!("the log ends at record {head}, and {number} does not follow it"),
            ),
            Foreign::Void(why) => refuse(Status::Hash, why),
            Foreign::Denied(why) => refuse(Status::Denied, why),
        }
    }

    async fn follow(&mut self) -> Answered {
        let request: FollowRequest = self.whole_message().await?;
        self.check(Kind::Follow, None)?;
        let repository = Arc::clone(self.served().repository().await?);
        let mut head = self.served().head();
        // What others have appended since it was last looked at.
        repository.refresh().await?;
        self.served().note_head(&repository)?;
        self.say(&Nothing {}).await?;
        let mut next = request.after.saturating_add(1).max(record::FIRST_NUMBER);
        loop {
            let last = *head.borrow_and_update();
            while next <= last {
                // Readers hash no more of an object than this.
                let key = record::object_key(next);
                let bytes = repository.record_bytes(next).await;
                let bytes = bytes.map_err(|error| {
                    Refusal::Gone(LinkError::Lost(format!("{key}: {}", error.chain())))
                })?;
                let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                debug_assert!(length <= RECORD_BYTES_MAX + 1, "as record_bytes promises");
                let part = FollowPart {
                    number: next,
                    length,
                };
                self.send(encode_part(&part).map_err(own)?.into()).await?;
                self.send(bytes).await?;
                next += 1;
            }
            if !request.wait {
                return Ok(());
            }
            tokio::select! {
                changed = head.changed() => if changed.is_err() { return Ok(()) },
                () = self.shared.leaving() => return Ok(()),
            }
        }
    }

    async fn delete(&mut self) -> Answered {
        let request: DeleteRequest = self.whole_message().await?;
        let object = Object::at(&request.key);
        self.check(Kind::Delete, object)?;
        if let Some(Object::Pack(_) | Object::Segment(_)) = object {
            let repository = self.served().repository().await?;
            repository.refresh().await?;
            let catalogue = repository.catalogue();
            let may_go = match object {
                Some(Object::Pack(pack)) => catalogue.may_be_deleted(pack)?,
                Some(Object::Segment(segment)) => catalogue.is_merged(segment)?,
                _ => false,
            };
            if !may_go {
                return refuse(
                    Status::Denied,
                    format!("the log has not given {} up", request.key),
                );
            }
        }
        self.store().delete(&request.key).await?;
        self.say(&Nothing {}).await
    }

    async fn status(&mut self) -> Answered {
        let _: StatusRequest = self.whole_message().await?;
        let served = self.served();
        let answer = StatusAnswer {
            program: crate::PROGRAM.to_owned(),
            up_seconds: self.shared.up().as_secs(),
            connections: self.shared.connections(),
            requests: self.shared.requests(),
            head: *served.head().borrow(),
            store_answers: served.store_answers(),
        };
        self.say(&answer).await
    }

    async fn renew(&mut self) -> Answered {
        let request: RenewRequest = self.whole_message().await?;
        let certificates = self.shared.renew(self.guest, request.request).await?;
        self.say(&RenewAnswer { certificates }).await
    }

    fn served(&self) -> &Served {
        &self.guest.served
    }

    fn store(&self) -> &Store {
        self.guest.served.store()
    }

    fn check(&self, kind: Kind, object: Option<Object>) -> Answered {
        match rules::check(self.guest.rights, kind, object) {
            Ok(()) => Ok(()),
            Err(why) => refuse(Status::Denied, why),
        }
    }

    async fn size_of(&self, key: &str) -> Result<u64, Refusal> {
        match self.store().size(key).await? {
            Some(size) => Ok(size),
            None => refuse(Status::Missing, format!("{key} is not there")),
        }
    }

    /// The request's message; a body may follow.
    async fn message<M: WireMessage>(&mut self) -> Result<M, Refusal> {
        let read = self.receiving.message(self.head.message_bytes);
        match timeout_at(self.started, read).await {
            Ok(message) => Ok(message?),
            Err(_) => Err(too_slow(HEAD_TIMEOUT)),
        }
    }

    /// The request's message, behind which nothing may follow.
    async fn whole_message<M: WireMessage>(&mut self) -> Result<M, Refusal> {
        let message = self.message().await?;
        match timeout_at(self.started, self.receiving.end()).await {
            Ok(ended) => ended?,
            Err(_) => return Err(too_slow(HEAD_TIMEOUT)),
        }
        Ok(message)
    }

    /// The request's body, of the length that its message announced: asked for when there is room for it.
    async fn body(&mut self, length: u64) -> Result<Body, Refusal> {
        let room = self.shared.room_in.take(length).await;
        let ready = encode_answer(Status::Ready, &Nothing {}).map_err(own)?;
        self.send(ready.into()).await?;
        let allowance = Duration::from_secs(length / BODY_BYTES_PER_SECOND_MIN);
        let deadline = Instant::now() + BODY_TIMEOUT + allowance;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.receiving.take_early(length);
        let mut body = match length > POOLED_BYTES_MIN {
            true => self.shared.bodies.take(length),
            false => Vec::new(),
        };
        body.clear();
        body.reserve_exact(length);
        // Hashed as it comes, while it is in the CPU's cache, a moment at a time.
        let (mut hasher, mut hashed) = (blake3::Hasher::new(), 0);
        while body.len() < length {
            let still = deadline.min(Instant::now() + BODY_TIMEOUT);
            let next = timeout_at(still, self.receiving.next(length - body.len())).await;
            match next.map_err(|_| too_slow(BODY_TIMEOUT))?? {
                Some(bytes) => {
                    body.extend_from_slice(&bytes);
                    while let Some(step) = body.get(hashed..hashed + HASHED_BYTES) {
                        hasher.update(step);
                        hashed += HASHED_BYTES;
                    }
                }
                None => {
                    return Err(
                        crate::link::frames::cut_off(length as u64, body.len() as u64).into(),
                    );
                }
            }
        }
        match timeout(BODY_TIMEOUT, self.receiving.end()).await {
            Ok(ended) => ended?,
            Err(_) => return Err(too_slow(BODY_TIMEOUT)),
        }
        hasher.update(body.get(hashed..).unwrap_or_default());
        let bytes = match length > POOLED_BYTES_MIN {
            true => self.shared.bodies.share(body),
            false => body.into(),
        };
        Ok(Body {
            bytes,
            hash: *hasher.finalize().as_bytes(),
            _room: room,
        })
    }

    /// Begins the answer: `ok`, and its message.
    async fn say<M: WireMessage>(&mut self, message: &M) -> Answered {
        let answer = encode_answer(Status::Ok, message).map_err(own)?;
        self.send(answer.into()).await
    }

    /// Sends more of the answer; who takes nothing for long is given up.
    async fn send(&mut self, bytes: Bytes) -> Answered {
        match timeout(BODY_TIMEOUT, self.sending.send(bytes)).await {
            Ok(sent) => Ok(sent?),
            Err(_) => Err(Refusal::Gone(LinkError::Lost(format!(
                "nothing was taken for {} s",
                BODY_TIMEOUT.as_secs()
            )))),
        }
    }
}

fn refuse<T>(status: Status, text: String) -> Result<T, Refusal> {
    Err(Refusal::Status(status, text, Duration::ZERO))
}

fn too_slow(waited: Duration) -> Refusal {
    let text = format!("nothing came for {} s", waited.as_secs());
    Refusal::Status(Status::Malformed, text, Duration::ZERO)
}

/// Our own answer breaks a rule of the wire.
fn own(error: tidegate_protocol::FormatError) -> Refusal {
    Refusal::Status(Status::Refused, error.to_string(), Duration::ZERO)
}

impl From<LinkError> for Refusal {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Malformed(text) => Self::Status(Status::Malformed, text, Duration::ZERO),
            other => Self::Gone(other),
        }
    }
}

/// What the store or the repository says, for the host.
impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let (status, retry_after) = match error.kind() {
            ErrorKind::Unavailable | ErrorKind::Conflict => (Status::Store, RETRY_AFTER),
            ErrorKind::Missing => (Status::Missing, Duration::ZERO),
            _ => (Status::Refused, Duration::ZERO),
        };
        Self::Status(status, error.chain(), retry_after)
    }
}
