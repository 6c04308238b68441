//! One request, and the loop around it.
//!
//! The only place where requests are sent, counted, timed and tried again. An attempt is one
//! request of the underlying store; [`Wire`]'s public verbs are attempts in a loop that ends with
//! success, with a failure that trying again cannot cure, or at the operation's deadline.

use super::failure::{Failure, Reason};
use super::{RequestCounts, StoreSettings, gateway};
use crate::link::client::Link;
use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, GetResult, GetResultPayload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutOptions, PutPayload,
};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tidegate_protocol::ids::ChunkId;
use tidegate_protocol::pack::Location;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Bodies that end early are asked for again this many times; then the object, or something on
/// the way to it, is broken.
pub(super) const CUT_OFF_ATTEMPTS_MAX: u32 = 3;

/// The longest pause that is made because a store asks for it: whatever it says, it is asked again
/// several times before the operation is given up.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// The keys a page of a listing holds on the clouds; used for counting only.
const LIST_PAGE_KEYS: u64 = 1000;

/// What is wanted of an object.
#[derive(Debug, Clone)]
pub(super) enum Wanted {
    /// All of it, and nothing where that is more.
    All { bytes_max: u64 },
    /// These bytes, neither more nor fewer.
    Exactly(Range<u64>),
    /// What there is of these bytes.
    Within(Range<u64>),
}

impl Wanted {
    fn range(&self) -> Option<Range<u64>> {
        match self {
            Self::All { .. } => None,
            Self::Exactly(range) | Self::Within(range) => Some(range.clone()),
        }
    }
}

/// The underlying store, its time-outs and its counts.
pub(super) struct Wire {
    inner: Arc<dyn ObjectStore>,
    settings: StoreSettings,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Counters {
    puts: AtomicU64,
    gets: AtomicU64,
    heads: AtomicU64,
    lists: AtomicU64,
    deletes: AtomicU64,
    haves: AtomicU64,
    retries: AtomicU64,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
}

impl Wire {
    pub(super) fn new(inner: Arc<dyn ObjectStore>, settings: StoreSettings) -> Self {
        Self {
            inner,
            settings,
            counters: Arc::default(),
        }
    }

    /// The store below, without retries and counts.
    pub(super) fn inner(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.inner)
    }

    pub(super) fn counts(&self) -> RequestCounts {
        let counters = &self.counters;
        RequestCounts {
            puts: counters.puts.load(Relaxed),
            gets: counters.gets.load(Relaxed),
            heads: counters.heads.load(Relaxed),
            lists: counters.lists.load(Relaxed),
            deletes: counters.deletes.load(Relaxed),
            haves: counters.haves.load(Relaxed),
            retries: counters.retries.load(Relaxed),
            bytes_up: counters.bytes_up.load(Relaxed),
            bytes_down: counters.bytes_down.load(Relaxed),
        }
    }

    pub(super) async fn create(&self, path: &Path, bytes: Bytes) -> Result<(), Failure> {
        let allowance = self.settings.transfer_allowance(bytes.len() as u64);
        // Twice: a first attempt that uses up its time shall not be the last one.
        self.until_deadline("create", path, 2 * allowance, |deadline| {
            self.create_once(path, bytes.clone(), allowance, deadline)
        })
        .await
    }

    /// What is wanted of an object, and the object's size.
    pub(super) async fn get(&self, path: &Path, wanted: Wanted) -> Result<(Bytes, u64), Failure> {
        self.until_deadline("get", path, Duration::ZERO, |deadline| {
            self.get_once(path, wanted.clone(), deadline)
        })
        .await
    }

    pub(super) async fn size(&self, path: &Path) -> Result<u64, Failure> {
        self.until_deadline("head", path, Duration::ZERO, |deadline| {
            self.size_once(path, deadline)
        })
        .await
    }

    pub(super) async fn delete(&self, path: &Path) -> Result<(), Failure> {
        self.until_deadline("delete", path, Duration::ZERO, |deadline| {
            self.delete_once(path, deadline)
        })
        .await
    }

    /// Where the chunks lie, as far as the gateway knows.
    pub(super) async fn have(
        &self,
        link: &Link,
        chunks: &[ChunkId],
    ) -> Result<Vec<Option<Location>>, Failure> {
        let path = Path::default();
        self.until_deadline("have", &path, Duration::ZERO, |deadline| {
            self.have_once(link, chunks, deadline)
        })
        .await
    }

    /// The log's records after number `after`: one request, which is not tried again.
    pub(super) async fn follow(
        &self,
        link: &Link,
        after: u64,
    ) -> Result<BoxStream<'static, Result<(u64, Bytes), Failure>>, Failure> {
        self.counters.gets.fetch_add(1, Relaxed);
        let explain = |error| gateway::explain(&Path::from("log"), error);
        let patience = self.settings.request_timeout;
        let sent = async {
            let records = link.follow(after, false).await.map_err(explain)?;
            Ok(records.map(move |record| record.map_err(explain)).boxed())
        };
        let sent = answered_within(patience, Instant::now() + patience, sent).await?;
        let counters = Arc::clone(&self.counters);
        let records = futures::stream::unfold(sent, move |mut sent| async move {
            let next = next_within(patience, &mut sent).await;
            next.transpose().map(|record| (record, sent))
        });
        Ok(records
            .inspect(move |record| {
                if let Ok((_, bytes)) = record {
                    counters.bytes_down.fetch_add(bytes.len() as u64, Relaxed);
                }
            })
            .boxed())
    }

    /// The objects in `folder` after `after`. The deadline starts anew with each key that arrives.
    pub(super) fn list(
        &self,
        folder: Path,
        after: Option<Path>,
    ) -> impl Stream<Item = Result<ObjectMeta, Failure>> + Send + 'static {
        let listing = Listing {
            inner: Arc::clone(&self.inner),
            settings: self.settings.clone(),
            counters: Arc::clone(&self.counters),
            folder,
            after,
            pages: None,
            keys_listed: 0,
            patience: None,
        };
        futures::stream::try_unfold(listing, |mut listing| async move {
            Ok(listing.next().await?.map(|meta| (meta, listing)))
        })
    }

    /// Repeats `attempt` until it succeeds, cannot succeed, or the deadline comes.
    ///
    /// An attempt is told the deadline, and waits for an answer no longer. A body that is arriving
    /// by then is read to its end, within bounds of its own.
    async fn until_deadline<T, Attempt, Running>(
        &self,
        verb: &'static str,
        path: &Path,
        allowance: Duration,
        mut attempt: Attempt,
    ) -> Result<T, Failure>
    where
        Attempt: FnMut(Instant) -> Running,
        Running: Future<Output = Result<T, Failure>>,
    {
        let mut patience = Patience::new(&self.settings, allowance);
        loop {
            match attempt(patience.deadline).await {
                Ok(value) => return Ok(value),
                Err(failure) => patience.pause_after(failure, verb, path).await?,
            }
            self.counters.retries.fetch_add(1, Relaxed);
        }
    }

    async fn create_once(
        &self,
        path: &Path,
        bytes: Bytes,
        allowance: Duration,
        deadline: Instant,
    ) -> Result<(), Failure> {
        self.counters.puts.fetch_add(1, Relaxed);
        self.counters
            .bytes_up
            .fetch_add(bytes.len() as u64, Relaxed);
        let options = PutOptions::from(PutMode::Create);
        let request = self
            .inner
            .put_opts(path, PutPayload::from_bytes(bytes), options);
        answered_within(self.settings.request_timeout + allowance, deadline, request).await?;
        Ok(())
    }

    async fn size_once(&self, path: &Path, deadline: Instant) -> Result<u64, Failure> {
        self.counters.heads.fetch_add(1, Relaxed);
        let request = self.inner.head(path);
        let meta = answered_within(self.settings.request_timeout, deadline, request).await?;
        Ok(meta.size)
    }

    async fn delete_once(&self, path: &Path, deadline: Instant) -> Result<(), Failure> {
        self.counters.deletes.fetch_add(1, Relaxed);
        let request = self.inner.delete(path);
        answered_within(self.settings.request_timeout, deadline, request).await
    }

    async fn have_once(
        &self,
        link: &Link,
        chunks: &[ChunkId],
        deadline: Instant,
    ) -> Result<Vec<Option<Location>>, Failure> {
        self.counters.haves.fetch_add(1, Relaxed);
        let request = async {
            let answer = link.have(chunks).await;
            answer.map_err(|error| gateway::explain(&Path::default(), error))
        };
        answered_within(self.settings.request_timeout, deadline, request).await
    }

    async fn get_once(
        &self,
        path: &Path,
        wanted: Wanted,
        deadline: Instant,
    ) -> Result<(Bytes, u64), Failure> {
        self.counters.gets.fetch_add(1, Relaxed);
        let options = GetOptions {
            range: wanted.range().map(GetRange::Bounded),
            ..GetOptions::default()
        };
        let request = self.inner.get_opts(path, options);
        let answer = answered_within(self.settings.request_timeout, deadline, request).await?;
        let size_bytes = answer.meta.size;
        match wanted {
            Wanted::Exactly(range) if answer.range != range => {
                return Err(Failure::new(Reason::TooShort {
                    expected_bytes: range.end,
                    found_bytes: size_bytes,
                }));
            }
            Wanted::Within(range)
                if answer.range.start != range.start || answer.range.end > range.end =>
            {
                return Err(Failure::new(Reason::OutOfRange));
            }
            Wanted::All { bytes_max } if size_bytes > bytes_max => {
                return Err(Failure::new(Reason::TooLarge {
                    found_bytes: size_bytes,
                    bytes_max,
                }));
            }
            _ => {}
        }
        let expected_bytes = answer.range.end.saturating_sub(answer.range.start);
        let limit =
            self.settings.request_timeout + self.settings.transfer_allowance(expected_bytes);
        let body = match timeout(limit, self.body(answer, expected_bytes)).await {
            Ok(body) => body?,
            Err(_) => return Err(Failure::timed_out(limit)),
        };
        self.counters
            .bytes_down
            .fetch_add(body.len() as u64, Relaxed);
        if body.len() as u64 == expected_bytes {
            Ok((body, size_bytes))
        } else {
            Err(Failure::new(Reason::CutOff {
                expected_bytes,
                found_bytes: body.len() as u64,
            }))
        }
    }

    /// The body of an answer; stops reading soon after more than `expected_bytes` came.
    async fn body(&self, answer: GetResult, expected_bytes: u64) -> Result<Bytes, Failure> {
        let patience = self.settings.request_timeout;
        let GetResultPayload::Stream(mut parts) = answer.payload;
        let Some(first) = next_within(patience, &mut parts).await? else {
            return Ok(Bytes::new());
        };
        if first.len() as u64 >= expected_bytes {
            return Ok(first);
        }
        let capacity = usize::try_from(expected_bytes).unwrap_or(first.len());
        let mut body = BytesMut::with_capacity(capacity);
        body.extend_from_slice(&first);
        while let Some(part) = next_within(patience, &mut parts).await? {
            body.extend_from_slice(&part);
            if body.len() as u64 > expected_bytes {
                break;
            }
        }
        Ok(body.freeze())
    }
}

/// How long an operation may still be tried, and how long to pause before the next attempt.
struct Patience {
    started: Instant,
    deadline: Instant,
    pauses: ExponentialBackoff,
    attempts: u32,
    /// How many of them ended with a body that broke off.
    cut_offs: u32,
    last: Option<Failure>,
}

impl Patience {
    fn new(settings: &StoreSettings, allowance: Duration) -> Self {
        let started = Instant::now();
        Self {
            started,
            deadline: started + settings.operation_deadline + allowance,
            pauses: ExponentialBuilder::new()
                .with_min_delay(settings.backoff_first)
                .with_max_delay(settings.backoff_max)
                .with_jitter()
                .without_max_times()
                .build(),
            attempts: 1,
            cut_offs: 0,
            last: None,
        }
    }

    /// Waits before the next attempt; returns the failure where there shall be none.
    async fn pause_after(
        &mut self,
        failure: Failure,
        verb: &'static str,
        path: &Path,
    ) -> Result<(), Failure> {
        let may_try_again = match failure.reason {
            Reason::Unavailable => true,
            Reason::CutOff { .. } => {
                self.cut_offs += 1;
                self.cut_offs < CUT_OFF_ATTEMPTS_MAX
            }
            _ => false,
        };
        if !may_try_again {
            return Err(self.sum_up(failure));
        }
        let own = self.pauses.next().unwrap_or(Duration::from_secs(1));
        // Later than asked for, and not all at the same moment.
        let asked = failure.retry_after.unwrap_or_default();
        let pause = own + asked.min(RETRY_AFTER_MAX);
        if Instant::now() + pause >= self.deadline {
            return Err(self.exhausted(failure));
        }
        tracing::warn!(
            %path,
            attempt = self.attempts,
            pause_seconds = pause.as_secs_f64(),
            "{verb} failed, trying again: {failure}"
        );
        self.last = Some(failure);
        self.attempts += 1;
        sleep(pause).await;
        Ok(())
    }

    /// The failure of an operation whose deadline came. Where the deadline cut the last attempt
    /// short, the one before it knows more.
    fn exhausted(&mut self, now: Failure) -> Failure {
        let failure = if now.has_cause() {
            now
        } else {
            let waited = self.started.elapsed();
            self.last
                .take()
                .unwrap_or_else(|| Failure::timed_out(waited))
        };
        self.sum_up(failure)
    }

    fn sum_up(&self, mut failure: Failure) -> Failure {
        failure.attempts = self.attempts;
        failure.elapsed = self.started.elapsed();
        failure
    }
}

/// A listing under way.
struct Listing {
    inner: Arc<dyn ObjectStore>,
    settings: StoreSettings,
    counters: Arc<Counters>,
    folder: Path,
    /// The last key returned, or where the caller wants to start; exclusive.
    after: Option<Path>,
    pages: Option<BoxStream<'static, object_store::Result<ObjectMeta>>>,
    /// By the request under way.
    keys_listed: u64,
    patience: Option<Patience>,
}

impl Listing {
    async fn next(&mut self) -> Result<Option<ObjectMeta>, Failure> {
        loop {
            let pages = match &mut self.pages {
                Some(pages) => pages,
                none => {
                    self.counters.lists.fetch_add(1, Relaxed);
                    self.keys_listed = 0;
                    // An empty prefix is "everything", which libraries spell `None`.
                    let folder = Some(&self.folder).filter(|folder| !folder.as_ref().is_empty());
                    none.insert(match &self.after {
                        Some(after) => self.inner.list_with_offset(folder, after),
                        None => self.inner.list(folder),
                    })
                }
            };
            match next_within(self.settings.request_timeout, pages).await {
                Ok(None) => return Ok(None),
                Ok(Some(meta)) => {
                    self.keys_listed += 1;
                    if self.keys_listed > 1 && self.keys_listed % LIST_PAGE_KEYS == 1 {
                        self.counters.lists.fetch_add(1, Relaxed);
                    }
                    self.patience = None;
                    // Azure's "start from" is inclusive, and servers may not know it at all.
                    if self
                        .after
                        .as_ref()
                        .is_some_and(|after| meta.location <= *after)
                    {
                        continue;
                    }
                    self.after = Some(meta.location.clone());
                    return Ok(Some(meta));
                }
                // A local folder that is not there holds nothing.
                Err(failure) if failure.reason == Reason::ObjectMissing => return Ok(None),
                Err(failure) => {
                    self.pages = None;
                    self.patience
                        .get_or_insert_with(|| Patience::new(&self.settings, Duration::ZERO))
                        .pause_after(failure, "list", &self.folder)
                        .await?;
                    self.counters.retries.fetch_add(1, Relaxed);
                }
            }
        }
    }
}

/// Waits for an answer no longer than `limit`, nor than until `deadline`.
async fn answered_within<T>(
    limit: Duration,
    deadline: Instant,
    request: impl Future<Output = object_store::Result<T>>,
) -> Result<T, Failure> {
    let give_up = Instant::now() + limit;
    match timeout_at(give_up.min(deadline), request).await {
        Ok(answer) => Ok(answer?),
        Err(_) if give_up < deadline => Err(Failure::timed_out(limit)),
        Err(_) => Err(Failure::new(Reason::Unavailable)),
    }
}

async fn next_within<T>(
    limit: Duration,
    parts: &mut BoxStream<'static, object_store::Result<T>>,
) -> Result<Option<T>, Failure> {
    match timeout(limit, parts.next()).await {
        Ok(part) => Ok(part.transpose()?),
        Err(_) => Err(Failure::timed_out(limit)),
    }
}
