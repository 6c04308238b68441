//! Object storage behind one door.
//!
//! A [`Store`] is a repository's place: a local folder, or a prefix of an S3 bucket, an Azure
//! container or a GCS bucket. It offers the few operations the repository is built on, and no
//! others: create-only PUT, GET, ranged GET, HEAD, LIST, DELETE. What it is not: a cache, a
//! multi-part uploader, or a way to overwrite anything.
//!
//! The invariants it keeps:
//!
//! - **Nothing is overwritten.** Every PUT is create-only. Stores that do not hold that promise
//!   are found out by trying ([`Store::probe_create_only`]) and refused.
//! - **Acknowledged means durable**, as far as the store can promise it; for local folders see
//!   [`folder`].
//! - **Nothing is retried for ever, and nothing is retried in silence.** Retries happen in one
//!   place (`attempt`), back off with jitter, are counted, logged, and end at a deadline with an
//!   error that says what was tried. The libraries' own retries are off.
//! - **Nothing unbounded is read.** Objects larger than the caller expects are refused before
//!   their bytes are read into memory.
//! - **Secrets stay inside.** Credentials come from the environment and the clouds' usual files,
//!   and never appear in labels, logs or errors.
//!
//! | Part | Purpose |
//! |---|---|
//! | [`settings`] | time-outs and their reasons |
//! | [`environment`] | the variables that credentials and endpoints come from |
//! | `location` | `s3://bucket/prefix` as written → as valid |
//! | `clouds`, `aws_profile` | clients for S3, Azure and GCS |
//! | `answer` | what an HTTP server said, kept readable |
//! | `failure` | why an attempt failed, and whether trying again can help |
//! | `attempt` | one request, and the loop around it |
//! | [`folder`] | a local folder as an object store, durable |
//! | `gateway` | a repository behind gateways as an object store |
//! | [`fault`] | a store that fails on demand, for tests |

mod answer;
mod attempt;
pub(crate) mod aws_profile;
mod clouds;
pub mod environment;
mod failure;
pub mod fault;
pub mod folder;
mod gateway;
pub(crate) mod location;
mod probe;
pub mod settings;

pub use environment::Environment;
pub use settings::StoreSettings;

use crate::error::{Error, Kind, Result};
use crate::link::client::Link;
use attempt::{CUT_OFF_ATTEMPTS_MAX, Wanted, Wire};
use bytes::Bytes;
use clouds::Connected;
use failure::{Failure, Reason};
use fault::FaultStore;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use tidegate_protocol::ids::ChunkId;
use tidegate_protocol::pack::Location;
use tidegate_protocol::wire::{HAVE_IDS_MAX, StatusAnswer};

/// A repository's place in object storage. Cheap to clone; clones share connections and counts.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    wire: Wire,
    /// Where the repository's keys start; empty at the root of a folder or bucket.
    prefix: Path,
    label: String,
    backend: Backend,
    /// The way to the gateways, where the store is behind some.
    link: Option<Link>,
}

/// The sort of store, for advice in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backend {
    Folder,
    S3,
    Azure,
    Gcs,
    Gateway,
    Other,
}

/// Records of the log with their numbers.
pub(crate) type SentRecords = BoxStream<'static, Result<(u64, Bytes)>>;

/// What a create-only PUT came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Created {
    /// The object was not there and now holds the given bytes.
    New,
    /// An object of that name was there. It may be one's own: the answer to an earlier attempt
    /// may have been lost. Where that matters, read it back and compare.
    Exists,
}

/// One listed object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key, relative to the repository's root.
    pub key: String,
    /// The object's size in bytes.
    pub size_bytes: u64,
}

/// How many requests were sent, and how many bytes moved, since the store was opened.
///
/// Each attempt counts, also those that failed and were tried again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestCounts {
    /// Create-only PUTs.
    pub puts: u64,
    /// GETs, whole or ranged.
    pub gets: u64,
    /// HEADs.
    pub heads: u64,
    /// LIST pages, at the thousand keys a page that the clouds answer with.
    pub lists: u64,
    /// DELETEs.
    pub deletes: u64,
    /// Questions for chunks, to a gateway.
    pub haves: u64,
    /// How many of all of these repeated a failed attempt.
    pub retries: u64,
    /// Bytes of objects sent.
    pub bytes_up: u64,
    /// Bytes of objects received.
    pub bytes_down: u64,
}

impl RequestCounts {
    /// All requests together.
    pub const fn total(&self) -> u64 {
        self.puts + self.gets + self.heads + self.lists + self.deletes + self.haves
    }
}

impl Store {
    /// Opens the store at `location`, with credentials from the process's environment.
    ///
    /// `location` is a folder (`dir`, `./dir`, `/dir`, `file:///dir`) or one of
    /// `s3://bucket/prefix`, `az://container/prefix`, `gs://bucket/prefix`, or
    /// `quic://gateway:port,…/repository`. No request is sent:
    /// whether the place is there and can be written is learnt by using it.
    ///
    /// # Errors
    /// [`Kind::Config`] where the location or the settings cannot be understood,
    /// [`Kind::Denied`] where credentials are named and cannot be read.
    pub fn open(location: &str, settings: &StoreSettings) -> Result<Self> {
        Self::open_in(location, settings, &Environment::of_process())
    }

    /// Opens the store at `location`, with credentials from the given variables and the files they
    /// name instead of the process's environment.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_in(
        location: &str,
        settings: &StoreSettings,
        environment: &Environment,
    ) -> Result<Self> {
        let location = location::Location::parse(location)?;
        let label = location.to_string();
        let connected = clouds::connect(&location, settings, environment)?;
        Ok(Self::new(connected, label, settings))
    }

    /// A store in this process's memory, gone with it. For tests.
    pub fn memory() -> Self {
        Self::from_object_store(
            Arc::new(InMemory::new()),
            "",
            "memory",
            &StoreSettings::default(),
        )
    }

    /// A store over any [`ObjectStore`]. `prefix` is where the repository starts in it (empty: at
    /// its root), `label` names it in messages and must hold no secret.
    ///
    /// Retries happen here: `inner` should not retry by itself.
    pub fn from_object_store(
        inner: Arc<dyn ObjectStore>,
        prefix: &str,
        label: &str,
        settings: &StoreSettings,
    ) -> Self {
        let connected = Connected {
            inner,
            prefix: Path::from(prefix),
            backend: Backend::Other,
            link: None,
        };
        Self::new(connected, label.to_owned(), settings)
    }

    /// The same place seen through faults, with retries and counts of its own. For tests.
    pub fn with_faults(&self, settings: &StoreSettings) -> (Self, Arc<FaultStore>) {
        let faults = Arc::new(FaultStore::new(self.shared.wire.inner()));
        let connected = Connected {
            inner: faults.clone(),
            prefix: self.shared.prefix.clone(),
            backend: self.shared.backend,
            link: self.shared.link.clone(),
        };
        let store = Self::new(connected, self.shared.label.clone(), settings);
        (store, faults)
    }

    fn new(connected: Connected, label: String, settings: &StoreSettings) -> Self {
        Self {
            shared: Arc::new(Shared {
                wire: Wire::new(connected.inner, settings.clone()),
                prefix: connected.prefix,
                label,
                backend: connected.backend,
                link: connected.link,
            }),
        }
    }

    /// Names the store in messages. Never holds secrets.
    pub fn label(&self) -> &str {
        &self.shared.label
    }

    /// What was sent so far, by all clones together.
    pub fn requests(&self) -> RequestCounts {
        self.shared.wire.counts()
    }

    /// Creates the object `key` unless one of that name is there: one PUT, durable when this
    /// returns [`Created::New`].
    ///
    /// # Errors
    /// [`Kind::Unavailable`] when the deadline passed (the object may or may not be there),
    /// [`Kind::Denied`], [`Kind::NoSpace`], [`Kind::Missing`] where the bucket is not there.
    pub async fn create(&self, key: &str, bytes: Bytes) -> Result<Created> {
        let path = self.path(key)?;
        match self.shared.wire.create(&path, bytes).await {
            Ok(()) => Ok(Created::New),
            Err(failure) if failure.reason == Reason::Exists => Ok(Created::Exists),
            Err(failure) => Err(self.explain("could not store", key, failure)),
        }
    }

    /// Creates an object whose key is derived from a hash of its bytes. That it is there already
    /// is as good.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub async fn create_named_by_content(&self, key: &str, bytes: Bytes) -> Result<()> {
        match self.create(key, bytes).await? {
            Created::New | Created::Exists => Ok(()),
        }
    }

    /// Reads the whole object, which must not be larger than `bytes_max`.
    ///
    /// # Errors
    /// [`Kind::Missing`] where it is not there, [`Kind::Corrupt`] where it is larger than
    /// `bytes_max` (its body is not read then), else as [`Store::create`].
    pub async fn get(&self, key: &str, bytes_max: u64) -> Result<Bytes> {
        let path = self.path(key)?;
        self.shared
            .wire
            .get(&path, Wanted::All { bytes_max })
            .await
            .map(|(bytes, _)| bytes)
            .map_err(|failure| self.explain("could not read", key, failure))
    }

    /// Reads exactly the bytes `range` of the object. An empty range costs no request.
    ///
    /// # Errors
    /// [`Kind::Missing`] where the object is not there, [`Kind::Corrupt`] where it ends before
    /// `range` does, else as [`Store::create`].
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let path = self.path(key)?;
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let failure = match self
            .shared
            .wire
            .get(&path, Wanted::Exactly(range.clone()))
            .await
        {
            Ok((bytes, _)) => return Ok(bytes),
            Err(failure) => failure,
        };
        // Stores say "range not satisfiable" in ways of their own: ask for the size instead.
        if matches!(failure.reason, Reason::OutOfRange | Reason::Other)
            && let Ok(size_bytes) = self.shared.wire.size(&path).await
            && size_bytes < range.end
        {
            return Err(self.too_short(key, &range, size_bytes));
        }
        Err(self.explain("could not read", key, failure))
    }

    /// Reads what there is of the bytes `range` of the object, which is not empty, and says how large
    /// the object is.
    ///
    /// # Errors
    /// [`Kind::Missing`] where the object is not there, [`Kind::Corrupt`] where `range` begins at its
    /// end or behind it, else as [`Store::create`].
    pub(crate) async fn get_within(&self, key: &str, range: Range<u64>) -> Result<(Bytes, u64)> {
        let path = self.path(key)?;
        let got = self.shared.wire.get(&path, Wanted::Within(range)).await;
        got.map_err(|failure| self.explain("could not read", key, failure))
    }

    /// The object's size in bytes, or `None` where it is not there.
    ///
    /// A bucket that is not there looks like an object that is not there, on stores that do not
    /// tell the two apart in the answer to a HEAD (S3 does not).
    ///
    /// # Errors
    /// As [`Store::create`].
    pub async fn size(&self, key: &str) -> Result<Option<u64>> {
        let path = self.path(key)?;
        match self.shared.wire.size(&path).await {
            Ok(size_bytes) => Ok(Some(size_bytes)),
            Err(failure) if failure.reason == Reason::ObjectMissing => Ok(None),
            Err(failure) => Err(self.explain("could not look up", key, failure)),
        }
    }

    /// Lists the objects in the folder `prefix` (`"log"`, `"packs/a7"`; empty: all) whose keys
    /// come after `after`, in the byte order of their keys, read in pages as the stream is polled.
    ///
    /// An interrupted listing goes on after the last key it returned. Objects that appear or
    /// vanish meanwhile may or may not be listed. A folder without objects lists as empty.
    pub fn list(&self, prefix: &str, after: Option<&str>) -> BoxStream<'static, Result<Entry>> {
        let folder = match self.folder_path(prefix) {
            Ok(folder) => folder,
            Err(error) => return futures::stream::iter([Err(error)]).boxed(),
        };
        let after = match after.map(|key| self.folder_path(key)).transpose() {
            Ok(after) => after,
            Err(error) => return futures::stream::iter([Err(error)]).boxed(),
        };
        let store = self.clone();
        let named = prefix.to_owned();
        self.shared
            .wire
            .list(folder, after)
            .map(move |item| match item {
                Ok(meta) => Ok(Entry {
                    key: store.key_of(&meta.location),
                    size_bytes: meta.size,
                }),
                Err(failure) => Err(store.explain("could not list", &named, failure)),
            })
            .boxed()
    }

    /// Whether there is a gateway that can be asked for chunks.
    pub fn knows_chunks(&self) -> bool {
        self.shared.link.is_some()
    }

    /// Where each of the chunks lies, as far as the store's gateway knows: one request for
    /// [`HAVE_IDS_MAX`] of them. Without a gateway nothing is known.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub async fn known_chunks(&self, chunks: &[ChunkId]) -> Result<Vec<Option<Location>>> {
        let Some(link) = &self.shared.link else {
            return Ok(vec![None; chunks.len()]);
        };
        let mut known = Vec::with_capacity(chunks.len());
        for chunks in chunks.chunks(HAVE_IDS_MAX) {
            let answer = self.shared.wire.have(link, chunks).await;
            known.extend(
                answer.map_err(|failure| self.explain("could not ask for chunks", "", failure))?,
            );
        }
        Ok(known)
    }

    /// The log's records after number `after`, one after the other, where a gateway sends them.
    pub(crate) async fn records_after(&self, after: u64) -> Option<SentRecords> {
        let link = self.shared.link.as_ref()?;
        let sent = self.shared.wire.follow(link, after).await;
        let store = self.clone();
        match sent {
            Ok(records) => {
                let explained = move |record: Result<(u64, Bytes), Failure>| {
                    record.map_err(|failure| store.explain("could not read", "log", failure))
                };
                Some(records.map(explained).boxed())
            }
            Err(failure) => {
                tracing::debug!("the gateway does not send the log: {failure}");
                None
            }
        }
    }

    /// How the gateway is that this host is connected to, or would be.
    ///
    /// # Errors
    /// [`Kind::Config`] where the store is behind no gateway, else as [`Store::create`].
    pub async fn gateway_status(&self) -> Result<StatusAnswer> {
        let Some(link) = &self.shared.link else {
            return Err(Error::new(
                Kind::Config,
                format!("{} is not behind a gateway", self.label()),
            )
            .advise("name it as quic://gateway:port/repository"));
        };
        link.status().await.map_err(|error| {
            let failure = Failure::from(gateway::explain(&Path::default(), error));
            self.explain("could not ask for the gateway's status", "", failure)
        })
    }

    /// Deletes the object; that it is not there is as good, on every backend.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub async fn delete(&self, key: &str) -> Result<()> {
        let path = self.path(key)?;
        match self.shared.wire.delete(&path).await {
            Ok(()) => Ok(()),
            Err(failure) if failure.reason == Reason::ObjectMissing => Ok(()),
            Err(failure) => Err(self.explain("could not delete", key, failure)),
        }
    }

    /// Finds out, by trying in this very place, whether a create-only PUT never overwrites.
    ///
    /// The objects it makes, below `probe/`, are removed again where the credentials allow it.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] where the store overwrote an object, or let two writers of the same
    /// key both win; else as [`Store::create`].
    pub async fn probe_create_only(&self) -> Result<()> {
        probe::create_only(self).await
    }

    /// The path of `key` in the underlying store.
    fn path(&self, key: &str) -> Result<Path> {
        if key.is_empty() || !key_is_plain(key) {
            return Err(Error::new(
                Kind::Bug,
                format!(
                    "{key:?} is not a key: expected segments of letters, digits, '-', '_' and '.', \
                     none of them starting with a dot, with '/' between them"
                ),
            ));
        }
        self.folder_path(key)
    }

    fn folder_path(&self, folder: &str) -> Result<Path> {
        let folder = folder.trim_end_matches('/');
        if !folder.is_empty() && !key_is_plain(folder) {
            return Err(Error::new(
                Kind::Bug,
                format!("{folder:?} is not a folder of the repository"),
            ));
        }
        let prefix = self.shared.prefix.as_ref();
        let joined = match (prefix.is_empty(), folder.is_empty()) {
            (_, true) => prefix.to_owned(),
            (true, false) => folder.to_owned(),
            (false, false) => format!("{prefix}/{folder}"),
        };
        Path::parse(&joined).map_err(|cause| {
            Error::new(Kind::Bug, format!("{joined:?} is not a path")).caused_by(cause)
        })
    }

    /// The key of a listed path: what follows the repository's prefix.
    fn key_of(&self, path: &Path) -> String {
        let full = path.as_ref();
        full.strip_prefix(self.shared.prefix.as_ref())
            .map_or(full, |rest| rest.trim_start_matches('/'))
            .to_owned()
    }

    fn too_short(&self, key: &str, range: &Range<u64>, size_bytes: u64) -> Error {
        let failure = Failure::new(Reason::TooShort {
            expected_bytes: range.end,
            found_bytes: size_bytes,
        });
        self.explain("could not read", key, failure)
    }

    /// Turns what went wrong with `key` into an error that says what to do.
    fn explain(&self, did: &str, key: &str, failure: Failure) -> Error {
        let label = self.label();
        let object = if key.is_empty() {
            label.to_owned()
        } else {
            format!("{key} in {label}")
        };
        let kind = failure.reason.kind();
        let what = match failure.reason {
            Reason::ObjectMissing => format!("object {object} is not there"),
            Reason::BucketMissing => {
                format!("{did} {object}: the bucket or container is not there")
            }
            Reason::TooLarge {
                found_bytes,
                bytes_max,
            } => format!(
                "object {object} is larger than it can be: expected at most {bytes_max} bytes, \
                 found {found_bytes}"
            ),
            Reason::TooShort {
                expected_bytes,
                found_bytes,
            } => format!(
                "object {object} is truncated: expected at least {expected_bytes} bytes, found \
                 {found_bytes}"
            ),
            Reason::CutOff {
                expected_bytes,
                found_bytes,
            } => format!(
                "object {object} is truncated: {} of {} answers ended early, the last after \
                 {found_bytes} of {expected_bytes} bytes",
                CUT_OFF_ATTEMPTS_MAX, failure.attempts
            ),
            _ => format!("{did} {object}"),
        };
        let error = Error::new(kind, what);
        let error = match self.advice(failure.reason) {
            Some(advice) => error.advise(advice),
            None => error,
        };
        match failure.into_cause() {
            Some(cause) => error.caused_by(cause),
            None => error,
        }
    }

    fn advice(&self, reason: Reason) -> Option<&'static str> {
        match (reason, self.shared.backend) {
            (Reason::Denied, backend) => backend.credentials_advice(),
            (Reason::BucketMissing, _) => {
                Some("create it with the cloud's own tools, or correct its name")
            }
            (Reason::NoSpace, Backend::Folder) => {
                Some("free some space there, then run the command again")
            }
            (Reason::NoSpace, _) => Some("raise the quota or free some space in the store"),
            (Reason::WrongRegion, _) => {
                Some("set AWS_REGION to the bucket's region, or correct AWS_ENDPOINT_URL")
            }
            (
                Reason::ObjectMissing
                | Reason::OutOfRange
                | Reason::TooLarge { .. }
                | Reason::TooShort { .. }
                | Reason::CutOff { .. },
                _,
            ) => Some(
                "`tidegate verify --all` shows what it touches; bring it back from a copy or the bucket's \
                 versions",
            ),
            (Reason::Unavailable, _) => {
                Some("check the endpoint and the network, then run the command again")
            }
            _ => None,
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.label())
    }
}

impl Backend {
    const fn credentials_advice(self) -> Option<&'static str> {
        match self {
            Self::Folder => Some("check the owner and the mode of the folder"),
            Self::S3 => Some(
                "credentials are read from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, else from \
                 the profile AWS_PROFILE in ~/.aws/credentials and ~/.aws/config, else from the \
                 machine's role; they must allow reading, writing and listing there",
            ),
            Self::Azure => Some(
                "credentials are read from AZURE_STORAGE_ACCOUNT_NAME with \
                 AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, else from \
                 AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET, else from the machine's \
                 identity; they must allow reading, writing and listing there",
            ),
            Self::Gcs => Some(
                "credentials are read from the file GOOGLE_APPLICATION_CREDENTIALS names, else \
                 from gcloud's application default credentials, else from the machine's service \
                 account; they must allow reading, writing and listing there",
            ),
            Self::Gateway => Some(
                "`tidegate gateway list` shows what this host may do there; an invite of \
                 `tidegate gateway invite` lets it join with other rights",
            ),
            Self::Other => None,
        }
    }
}

/// Whether every segment is of letters, digits, `-`, `_` and `.`, and starts with no dot.
fn key_is_plain(key: &str) -> bool {
    key.split('/').all(|segment| {
        !segment.is_empty()
            && !segment.starts_with('.')
            && segment
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    })
}

#[cfg(test)]
mod tests;
