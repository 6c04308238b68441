//! A store that fails on demand, for tests.
//!
//! [`FaultStore`] wraps any [`ObjectStore`], records every call, and asks a script what shall go
//! wrong with it. It sits below [`Store`](super::Store)'s retries, where a network or a server
//! would fail. Tests of the whole engine use it to fail each operation in turn, to lose answers,
//! and to stop the world after the nth operation.
//!
//! ```
//! # use std::sync::Arc;
//! # use tidegate_agent::store::{Store, StoreSettings};
//! use object_store::memory::InMemory;
//! use tidegate_agent::store::fault::{Fault, FaultStore, Operation};
//!
//! let faults = Arc::new(FaultStore::new(Arc::new(InMemory::new())));
//! let store = Store::from_object_store(faults.clone(), "", "test", &StoreSettings::default());
//! // The first PUT takes effect, but its answer is lost.
//! faults.script(|call| (call.operation == Operation::Put && call.ordinal == 0).then_some(Fault::LoseAnswer));
//! ```

use crate::clock;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryFutureExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetRange, GetResult, GetResultPayload,
    ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, RenameOptions,
};
use std::error::Error as StdError;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a call asks of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A PUT, of whatever mode.
    Put,
    /// A GET, whole or ranged.
    Get,
    /// A HEAD.
    Head,
    /// A listing: one call for the whole stream.
    List,
    /// A DELETE of one object.
    Delete,
}

/// A recorded call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// How many calls, of any kind, came before it.
    pub ordinal: u64,
    /// What it asks.
    pub operation: Operation,
    /// The object's full path, or the listed folder.
    pub key: String,
    /// Bytes sent with it.
    pub bytes: u64,
    /// The bytes asked for, where it asks for a range.
    pub range: Option<Range<u64>>,
}

/// What shall go wrong with a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It fails without an effect, as if the request had been lost.
    Lose,
    /// It takes effect, and fails, as if the answer had been lost.
    LoseAnswer,
    /// It is refused for good, as if a right were lacking.
    Refuse,
    /// It never returns, and has no effect.
    Stall,
    /// It takes effect, and never returns.
    StallAnswer,
    /// It happens after a pause.
    Delay(Duration),
    /// The body breaks off after that many bytes, though the whole length was announced. For a
    /// listing: after that many keys, with an error. No effect on calls without a body.
    CutOff(u64),
    /// It is refused for now: come back after that pause.
    Throttle(Duration),
    /// For a PUT: it is delivered twice, and the answer is the second delivery's.
    Repeat,
    /// For a PUT: the answer is the first delivery's, and it is delivered again that much later.
    RepeatLate(Duration),
    /// For a PUT: it is answered as if it had taken effect, and has none.
    Forget,
    /// The body comes at so many bytes a second.
    Slow(u64),
    /// For a listing: it does not show yet what was made within the last while.
    Lag(Duration),
    /// The lowest bit of the body's byte at this position is flipped: on the way back for a GET,
    /// on the way in for a PUT.
    Flip(u64),
    /// It and all later calls fail without an effect, as if the process had died before it.
    Crash,
    /// It takes effect; it and all later calls fail, as if the process had died just after it.
    CrashAfter,
}

/// Decides what goes wrong with each call.
type Script = Box<dyn FnMut(&Call) -> Option<Fault> + Send>;

/// An [`ObjectStore`] that records its calls and fails as its script says.
pub struct FaultStore {
    inner: Arc<dyn ObjectStore>,
    state: Arc<Mutex<State>>,
}

struct State {
    calls: Vec<Call>,
    calls_total: u64,
    script: Script,
    is_down: bool,
}

/// The cause of every failure made here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InjectedFault {
    fault: Fault,
}

impl InjectedFault {
    /// The fault that was asked for.
    pub const fn fault(&self) -> &Fault {
        &self.fault
    }
}

impl fmt::Display for InjectedFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "injected fault {:?}", self.fault)
    }
}

impl StdError for InjectedFault {}

impl FaultStore {
    /// Wraps `inner`; nothing fails until a script says so.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self {
            inner,
            state: Arc::new(Mutex::new(State {
                calls: Vec::new(),
                calls_total: 0,
                script: Box::new(|_| None),
                is_down: false,
            })),
        }
    }

    /// Replaces the script, and brings the store up again after a crash.
    pub fn script(&self, script: impl FnMut(&Call) -> Option<Fault> + Send + 'static) {
        let mut state = self.lock();
        state.script = Box::new(script);
        state.is_down = false;
    }

    /// Lets everything succeed again.
    pub fn heal(&self) {
        self.script(|_| None);
    }

    /// Lets the next `calls` calls succeed, and all after them fail as if the process had died.
    pub fn crash_after(&self, calls: u64) {
        let mut left = calls;
        self.script(move |_| {
            let is_over = left == 0;
            left = left.saturating_sub(1);
            is_over.then_some(Fault::Crash)
        });
    }

    /// As [`crash_after`](Self::crash_after), but the call that dies takes effect.
    pub fn crash_after_effect(&self, calls: u64) {
        let mut left = calls;
        self.script(move |_| {
            let is_over = left == 0;
            left = left.saturating_sub(1);
            is_over.then_some(Fault::CrashAfter)
        });
    }

    /// The calls since the last [`clear_calls`](Self::clear_calls), in the order they were made.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// How many of the recorded calls ask for `operation`.
    pub fn count(&self, operation: Operation) -> usize {
        let state = self.lock();
        state
            .calls
            .iter()
            .filter(|call| call.operation == operation)
            .count()
    }

    /// Forgets the recorded calls; ordinals go on.
    pub fn clear_calls(&self) {
        self.lock().calls.clear();
    }

    /// The store below, to look at or damage without being recorded.
    pub fn inner(&self) -> &Arc<dyn ObjectStore> {
        &self.inner
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn record(
        &self,
        operation: Operation,
        key: &str,
        bytes: u64,
        range: Option<Range<u64>>,
    ) -> Option<Fault> {
        record(&self.state, operation, key, bytes, range)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Records a call and looks up its fate.
fn record(
    state: &Mutex<State>,
    operation: Operation,
    key: &str,
    bytes: u64,
    range: Option<Range<u64>>,
) -> Option<Fault> {
    let mut state = lock(state);
    let call = Call {
        ordinal: state.calls_total,
        operation,
        key: key.to_owned(),
        bytes,
        range,
    };
    state.calls_total += 1;
    let fault = if state.is_down {
        Some(Fault::Crash)
    } else {
        (state.script)(&call)
    };
    state.calls.push(call);
    if matches!(fault, Some(Fault::Crash | Fault::CrashAfter)) {
        state.is_down = true;
    }
    fault
}

/// What happens before the call: nothing, a pause, a failure, or nothing ever again.
async fn before(fault: Option<&Fault>) -> object_store::Result<()> {
    match fault {
        Some(fault @ (Fault::Lose | Fault::Refuse | Fault::Throttle(_) | Fault::Crash)) => {
            Err(injected(fault))
        }
        Some(Fault::Stall) => std::future::pending().await,
        Some(Fault::Delay(pause)) => {
            tokio::time::sleep(*pause).await;
            Ok(())
        }
        _ => Ok(()),
    }
}

/// What happens between the effect and the answer.
async fn after(fault: Option<&Fault>) -> object_store::Result<()> {
    match fault {
        Some(fault @ (Fault::LoseAnswer | Fault::CrashAfter)) => Err(injected(fault)),
        Some(Fault::StallAnswer) => std::future::pending().await,
        _ => Ok(()),
    }
}

fn injected(fault: &Fault) -> StoreError {
    StoreError::Generic {
        store: "fault",
        source: Box::new(InjectedFault {
            fault: fault.clone(),
        }),
    }
}

fn flipped(bytes: &[u8], at: u64) -> Bytes {
    let mut bytes = bytes.to_vec();
    if let Some(byte) = usize::try_from(at).ok().and_then(|at| bytes.get_mut(at)) {
        *byte ^= 1;
    }
    bytes.into()
}

/// Twenty parts a second.
fn trickle(
    mut body: Bytes,
    bytes_per_second: u64,
) -> BoxStream<'static, object_store::Result<Bytes>> {
    let part_bytes = usize::try_from(bytes_per_second / 20)
        .unwrap_or(usize::MAX)
        .max(1);
    futures::stream::poll_fn(move |_| {
        let part = body.split_to(part_bytes.min(body.len()));
        std::task::Poll::Ready((!part.is_empty()).then_some(part))
    })
    .then(|part| async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok(part)
    })
    .boxed()
}

/// Replaces the body of an answer, leaving what it announces.
async fn damaged(answer: GetResult, fault: &Fault) -> object_store::Result<GetResult> {
    let (meta, range) = (answer.meta.clone(), answer.range.clone());
    let (attributes, extensions) = (answer.attributes.clone(), answer.extensions.clone());
    let body = answer.bytes().await?;
    let body = match fault {
        Fault::CutOff(bytes) => {
            let length = usize::try_from(*bytes)
                .unwrap_or(usize::MAX)
                .min(body.len());
            body.slice(..length)
        }
        Fault::Flip(at) => flipped(&body, *at),
        _ => body,
    };
    let parts = match fault {
        Fault::Slow(bytes_per_second) => trickle(body, *bytes_per_second),
        _ => futures::stream::iter([Ok(body)]).boxed(),
    };
    Ok(GetResult {
        payload: GetResultPayload::Stream(parts),
        meta,
        range,
        attributes,
        extensions,
    })
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for FaultStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        let bytes = payload.content_length() as u64;
        let fault = self.record(Operation::Put, location.as_ref(), bytes, None);
        before(fault.as_ref()).await?;
        let payload = match fault {
            Some(Fault::Flip(at)) => PutPayload::from_bytes(flipped(&Bytes::from(payload), at)),
            _ => payload,
        };
        match &fault {
            // What the first delivery came to, nobody learns.
            Some(Fault::Repeat) => drop(
                self.inner
                    .put_opts(location, payload.clone(), opts.clone())
                    .await,
            ),
            Some(Fault::RepeatLate(pause)) => {
                let (inner, location, pause) = (Arc::clone(&self.inner), location.clone(), *pause);
                let (payload, opts) = (payload.clone(), opts.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(pause).await;
                    let _ = inner.put_opts(&location, payload, opts).await;
                });
            }
            Some(Fault::Forget) => {
                return Ok(PutResult {
                    e_tag: None,
                    version: None,
                    extensions: Default::default(),
                });
            }
            _ => {}
        }
        let answer = self.inner.put_opts(location, payload, opts).await;
        after(fault.as_ref()).await?;
        answer
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        let fault = self.record(Operation::Put, location.as_ref(), 0, None);
        before(fault.as_ref()).await?;
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(
        &self,
        location: &Path,
        options: GetOptions,
    ) -> object_store::Result<GetResult> {
        let operation = if options.head {
            Operation::Head
        } else {
            Operation::Get
        };
        let range = match &options.range {
            Some(GetRange::Bounded(range)) => Some(range.clone()),
            Some(GetRange::Offset(start)) => Some(*start..u64::MAX),
            Some(GetRange::Suffix(_)) | None => None,
        };
        let fault = self.record(operation, location.as_ref(), 0, range);
        before(fault.as_ref()).await?;
        let answer = self.inner.get_opts(location, options).await;
        after(fault.as_ref()).await?;
        match fault {
            Some(fault @ (Fault::CutOff(_) | Fault::Flip(_) | Fault::Slow(_)))
                if operation == Operation::Get =>
            {
                damaged(answer?, &fault).await
            }
            _ => answer,
        }
    }

    async fn get_ranges(
        &self,
        location: &Path,
        ranges: &[Range<u64>],
    ) -> object_store::Result<Vec<Bytes>> {
        let mut parts = Vec::with_capacity(ranges.len());
        for range in ranges {
            let options = GetOptions::new().with_range(Some(range.clone()));
            parts.push(self.get_opts(location, options).await?.bytes().await?);
        }
        Ok(parts)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        let (inner, state) = (Arc::clone(&self.inner), Arc::clone(&self.state));
        locations
            .then(move |location| {
                let (inner, state) = (Arc::clone(&inner), Arc::clone(&state));
                async move {
                    let location = location?;
                    let fault = record(&state, Operation::Delete, location.as_ref(), 0, None);
                    before(fault.as_ref()).await?;
                    let answer = inner.delete(&location).await;
                    after(fault.as_ref()).await?;
                    answer.map(|()| location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let key = prefix.map(Path::to_string).unwrap_or_default();
        let fault = self.record(Operation::List, &key, 0, None);
        faulty_listing(self.inner.list(prefix), fault)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let key = prefix.map(Path::to_string).unwrap_or_default();
        let fault = self.record(Operation::List, &key, 0, None);
        faulty_listing(self.inner.list_with_offset(prefix, offset), fault)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        let key = prefix.map(Path::to_string).unwrap_or_default();
        let fault = self.record(Operation::List, &key, 0, None);
        before(fault.as_ref()).await?;
        let answer = self.inner.list_with_delimiter(prefix).await;
        after(fault.as_ref()).await?;
        answer
    }

    async fn copy_opts(
        &self,
        from: &Path,
        to: &Path,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        let fault = self.record(Operation::Put, to.as_ref(), 0, None);
        before(fault.as_ref()).await?;
        let answer = self.inner.copy_opts(from, to, options).await;
        after(fault.as_ref()).await?;
        answer
    }

    async fn rename_opts(
        &self,
        from: &Path,
        to: &Path,
        options: RenameOptions,
    ) -> object_store::Result<()> {
        let fault = self.record(Operation::Put, to.as_ref(), 0, None);
        before(fault.as_ref()).await?;
        let answer = self.inner.rename_opts(from, to, options).await;
        after(fault.as_ref()).await?;
        answer
    }
}

/// A listing that fails at once, stalls, or breaks off after some keys.
fn faulty_listing(
    listing: BoxStream<'static, object_store::Result<ObjectMeta>>,
    fault: Option<Fault>,
) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
    if let Some(Fault::Lag(lag)) = fault {
        return listing
            .try_filter(move |meta| std::future::ready(is_older(meta, lag)))
            .boxed();
    }
    let keys_until_cut = match &fault {
        Some(Fault::CutOff(keys)) => usize::try_from(*keys).unwrap_or(usize::MAX),
        None => return listing,
        Some(_) => usize::MAX,
    };
    let cut = match &fault {
        Some(fault @ Fault::CutOff(_)) => Some(Err(injected(fault))),
        _ => None,
    };
    async move {
        before(fault.as_ref()).await?;
        after(fault.as_ref()).await?;
        Ok(listing
            .take(keys_until_cut)
            .chain(futures::stream::iter(cut)))
    }
    .try_flatten_stream()
    .boxed()
}

fn is_older(meta: &ObjectMeta, lag: Duration) -> bool {
    let made = meta.last_modified.timestamp_nanos_opt().unwrap_or(0);
    u128::from(clock::now_unix_ns()) > u128::from(made.cast_unsigned()) + lag.as_nanos()
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultStore({})", self.inner)
    }
}

impl fmt::Debug for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
