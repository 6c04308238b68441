//! The log in the bucket: reading it into the catalogue, and appending to it.
//!
//! This is the commit protocol, and all of it. A record is appended by a create-only PUT of the next
//! number; who loses the race reads what came in between, decides again, and tries the next number;
//! after a lost answer, the record is read back and compared. Publication order and what a crash
//! leaves behind at each step:
//!
//! | Step | After a crash here |
//! |---|---|
//! | packs | unreferenced packs; the same host's next run finds them in its local index |
//! | index segment | an unreferenced segment |
//! | record «run announced» (long runs) | chunks that every host finds and prune leaves alone |
//! | tree packs | unreferenced packs |
//! | record «point committed» | the point exists |

use super::catalogue::{RecordToReplay, Replayed};
use super::{Repository, refused};
use crate::blocking::blocking;
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::store::{Created, SentRecords};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use std::collections::{BTreeMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use tidegate_protocol::FormatError;
use tidegate_protocol::checkpoint::{self, Checkpoint};
use tidegate_protocol::ids::{KeyId, RecordHash};
use tidegate_protocol::limits::RECORD_BYTES_MAX;
use tidegate_protocol::record::{self, Body, Head, Header};

/// Records fetched at the same time.
const FETCHES_IN_FLIGHT: usize = 16;

/// Records replayed in one transaction.
const REPLAY_BATCH: u64 = 256;

/// How often an append decides anew before it gives up: far more than racing writers can cause,
/// few enough to end when something is wrong with the store.
const APPEND_ATTEMPTS_MAX: usize = 256;

/// Records between two checkpoints.
const CHECKPOINT_EVERY: u64 = 512;

/// Largest checkpoint that is read.
const CHECKPOINT_BYTES_MAX: u64 = 1 << 30;

/// The records of these numbers, as far as they come one after the other. They are not believed for having
/// come: each must continue the one before it.
async fn take_sent(sent: &mut SentRecords, numbers: RangeInclusive<u64>) -> Vec<Bytes> {
    let mut records = Vec::new();
    for number in numbers {
        match sent.next().await {
            Some(Ok((at, record))) if at == number => records.push(record),
            other => {
                if let Some(Err(error)) = other {
                    tracing::debug!(
                        error = error.chain(),
                        "the log broke off: asking for the rest"
                    );
                }
                break;
            }
        }
    }
    records
}

/// What became of a record that somebody else has made.
pub(crate) enum Foreign {
    /// It is in the log.
    Appended,
    /// There is a record of that number.
    Exists,
    /// The log ends before the number that it would follow.
    Behind {
        /// The last record's number.
        head: u64,
    },
    /// Every reader would pass it over, for this reason.
    Void(String),
    /// The caller does not want it, for this reason.
    Denied(String),
}

impl Repository {
    /// Replays what the log has got since the last time.
    pub async fn refresh(&self) -> Result<()> {
        self.refresh_to(0).await
    }

    /// Replays what the log has got since the last time: at least up to record `least`, which is known
    /// to be there, whatever a listing shows.
    pub(super) async fn refresh_to(&self, least: u64) -> Result<()> {
        let mut head = self.catalogue.head()?;
        if head.number == 0 {
            self.start_from_checkpoint().await?;
            head = self.catalogue.head()?;
        }
        // The head's own record is listed again: if it is not there, the log was cut short.
        let after = match head.number {
            0 => record::LOG_PREFIX.to_owned(),
            number => record::object_key(number - 1),
        };
        let mut listed = BTreeMap::new();
        let mut entries = self.store.list(record::LOG_PREFIX, Some(&after));
        while let Some(entry) = entries.try_next().await? {
            if let Some(number) = record::number_of(&entry.key) {
                listed.insert(number, entry.size_bytes);
            }
        }
        if head.number > 0 && !listed.contains_key(&head.number) {
            let key = record::object_key(head.number);
            if self.store.size(&key).await?.is_none() {
                return Err(Error::new(
                    Kind::Corrupt,
                    format!("{}: {key} was there before and is gone: the log was cut short or replaced", self.store.label()),
                )
                .advise("find out who deleted it; restore the bucket's log from its versions, or run `tidegate repo rebuild-cache` to accept the log as it is"));
            }
        }
        let newest = listed.keys().next_back().copied().unwrap_or(0).max(least);
        // A gateway sends them all in one answer; without one, or where that breaks off, each is asked for.
        let mut sent = match head.number < newest {
            true => self.store.records_after(head.number).await,
            false => None,
        };
        // In batches from the head on: whoever writes to the bucket can make up any number.
        while head.number < newest {
            let first = head.number + 1;
            let last = newest.min(head.number.saturating_add(REPLAY_BATCH));
            let mut records = match &mut sent {
                Some(sent) => take_sent(sent, first..=last).await,
                None => Vec::new(),
            };
            let missing = first + records.len() as u64;
            if missing <= last {
                sent = None;
                let read: Vec<Bytes> = stream::iter(missing..=last)
                    .map(|number| self.read_record(number))
                    .buffered(FETCHES_IN_FLIGHT)
                    .try_collect()
                    .await?;
                records.extend(read);
            }
            head = self.replay(head, &records).await?;
        }
        self.index_follows().await
    }

    /// Appends the record that `decide` makes of the repository's present state. It is called again
    /// whenever somebody else's record came first, after that record has been replayed. Once the
    /// record is in the log, the append has succeeded, whatever becomes of the local cache.
    pub async fn append(&self, decide: impl Fn(&Self) -> Result<Body>) -> Result<u64> {
        let level = self.keys.level();
        let own = self.keys.identity().certificate.public.id();
        for _ in 0..APPEND_ATTEMPTS_MAX {
            // The head first: another process may replay into the same cache at any moment, and the
            // decision must have seen all that stands before the number that is tried.
            let head = self.catalogue.head()?;
            let body = decide(self)?;
            if !body.kind().may_be_signed_by(level) {
                return Err(Error::new(
                    Kind::Denied,
                    format!(
                        "a key of level {level} may not append the record «{}»",
                        body.kind().as_str()
                    ),
                )
                .advise("use a key of a level that may"));
            }
            if self.catalogue.is_revoked(own)? {
                return Err(Error::new(Kind::Denied, format!("key {own} was revoked"))
                    .advise("use another key; `tidegate key list` shows which ones stand"));
            }
            let number = head.number.saturating_add(1);
            let bytes = Bytes::from(
                record::encode(
                    &body,
                    &head,
                    clock::now_unix_ns(),
                    clock::random()?,
                    &self.keys,
                )
                .map_err(refused)?,
            );
            let key = record::object_key(number);
            let won = match self.store.create(&key, bytes.clone()).await? {
                Created::New => true,
                // Perhaps our own, and only its answer was lost.
                Created::Exists => self.read_record(number).await? == bytes,
            };
            if won {
                self.follow(head, bytes).await;
                self.checkpoint_if_due(number).await;
                return Ok(number);
            }
            // A listing may still lag behind what has just been met.
            self.refresh_to(number).await?;
        }
        Err(Error::new(
            Kind::Conflict,
            format!(
                "{}: lost the race for the next log record {APPEND_ATTEMPTS_MAX} times",
                self.store.label()
            ),
        )
        .advise("see which writers append without end, then try again"))
    }

    /// Appends a record that somebody else has made, if every reader would take it for sound and `may`
    /// says nothing against its kind.
    pub(crate) async fn append_foreign(
        &self,
        number: u64,
        bytes: Bytes,
        may: impl Fn(record::Kind) -> std::result::Result<(), String>,
    ) -> Result<Foreign> {
        let mut head = self.catalogue.head()?;
        if number > head.number.saturating_add(1) {
            // Somebody else's gateway, or the bucket itself, has shown its writer more than is known here.
            self.refresh().await?;
            head = self.catalogue.head()?;
        }
        if number <= head.number {
            return Ok(Foreign::Exists);
        }
        if number != head.number + 1 {
            return Ok(Foreign::Behind { head: head.number });
        }
        let revoked = self.catalogue.revoked_keys()?;
        match self.decode_record(head, &bytes, &revoked) {
            Ok(Ok((_, body))) => {
                if let Err(why) = may(body.kind()) {
                    return Ok(Foreign::Denied(why));
                }
            }
            Ok(Err(why)) => return Ok(Foreign::Void(why)),
            Err(error) => return Ok(Foreign::Void(error.chain())),
        }
        let key = record::object_key(number);
        match self.store.create(&key, bytes.clone()).await? {
            Created::New => self.follow(head, bytes).await,
            Created::Exists => {
                self.refresh_to(number).await?;
                return Ok(Foreign::Exists);
            }
        }
        self.checkpoint_if_due(number).await;
        Ok(Foreign::Appended)
    }

    /// A record's bytes as they stand in the log: at most as many as its hash covers.
    pub(crate) async fn record_bytes(&self, number: u64) -> Result<Bytes> {
        self.read_record(number).await
    }

    /// Replays a record of our own. It stands in the log already: where this machine's cache cannot
    /// take it now, the next refresh will.
    async fn follow(&self, head: Head, record: Bytes) {
        let followed = match self.replay(head, &[record]).await {
            Ok(_) => self.index_follows().await,
            Err(error) => Err(error),
        };
        if let Err(error) = followed {
            tracing::warn!(
                error = error.chain(),
                "the local cache did not take a record that is in the log"
            );
        }
    }

    /// Writes a checkpoint of the present state. Maintenance and restore level.
    pub async fn write_checkpoint(&self) -> Result<u64> {
        let catalogue = Arc::clone(&self.catalogue);
        let (head, blocks) = blocking(move || catalogue.checkpoint_blocks()).await?;
        let bytes = checkpoint::encode(
            head.number,
            head.hash,
            &blocks,
            clock::random()?,
            &self.keys,
        )
        .map_err(|error| {
            Error::new(Kind::Denied, "the checkpoint was not written").caused_by(error)
        })?;
        let key = checkpoint::object_key(head.number);
        // Somebody else's checkpoint of the same record says the same.
        let _ = self.store.create(&key, bytes.into()).await?;
        Ok(head.number)
    }

    async fn checkpoint_if_due(&self, number: u64) {
        let may = self.keys.level() != tidegate_protocol::keys::Level::Host;
        if may && number.is_multiple_of(CHECKPOINT_EVERY) {
            // The log is complete without it.
            if let Err(error) = self.write_checkpoint().await {
                tracing::warn!(
                    error = error.chain(),
                    "the log's checkpoint was not written"
                );
            }
        }
    }

    async fn start_from_checkpoint(&self) -> Result<()> {
        let first = checkpoint::object_key(0);
        let mut numbers = Vec::new();
        let mut entries = self.store.list(record::LOG_PREFIX, Some(&first));
        while let Some(entry) = entries.try_next().await? {
            numbers.extend(checkpoint::number_of(&entry.key));
        }
        numbers.sort_unstable();
        while let Some(number) = numbers.pop() {
            match self.load_checkpoint(number).await {
                Ok(()) => return Ok(()),
                // An older one, or the whole log, serves as well.
                Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Missing) => {
                    tracing::warn!(
                        error = error.chain(),
                        "a log checkpoint cannot be used: replaying from an older one"
                    );
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn load_checkpoint(&self, number: u64) -> Result<()> {
        let key = checkpoint::object_key(number);
        let bytes = self.store.get(&key, CHECKPOINT_BYTES_MAX).await?;
        let decoded =
            Checkpoint::decode(&bytes, &self.keys).map_err(|error| self.damaged(&key, error))?;
        if decoded.number != number {
            let error = Error::new(
                Kind::Corrupt,
                format!("it speaks of record {}", decoded.number),
            );
            return Err(self.damaged(&key, error));
        }
        // It continues at the very record whose hash it names, or not at all.
        let hash = RecordHash::of(&self.read_record(number).await?);
        if hash != decoded.hash {
            let error = Error::new(Kind::Corrupt, "it names another hash for its record");
            return Err(self.damaged(&key, error));
        }
        let blocks = decoded
            .blocks(&self.keys)
            .map(|block| block.map_err(|error| self.damaged(&key, error)));
        let writer = decoded.front.writer.public.id();
        self.catalogue.load_checkpoint(number, hash, writer, blocks)
    }

    /// A record's bytes; of an object that is larger than a record can be, as many as its hash
    /// covers. It is void, but the records after it are chained to it.
    async fn read_record(&self, number: u64) -> Result<Bytes> {
        let key = record::object_key(number);
        let mut read = self.store.get(&key, RECORD_BYTES_MAX.into()).await;
        if matches!(&read, Err(error) if error.kind() == Kind::Corrupt)
            && let Some(bytes) = self.store.size(&key).await?
            && bytes > RECORD_BYTES_MAX.into()
        {
            let hashed = u64::from(RECORD_BYTES_MAX) + 1;
            read = self.store.get_range(&key, 0..hashed).await;
        }
        read.map_err(|error| match error.kind() {
                Kind::Missing => Error::new(
                    Kind::Corrupt,
                    format!("{}: {key} is missing from the middle of the log", self.store.label()),
                )
                .advise("bring it back from the bucket's versions or a copy: nothing after it can be trusted without it")
                .caused_by(error),
                _ => error,
            })
    }

    async fn replay(&self, mut head: Head, records: &[Bytes]) -> Result<Head> {
        let mut revoked = self.catalogue.revoked_keys()?;
        let mut batch = Vec::with_capacity(records.len());
        for bytes in records {
            let number = head.number.saturating_add(1);
            let hash = RecordHash::of(bytes);
            let content = match self.decode_record(head, bytes, &revoked)? {
                Ok(sound) => {
                    if let Body::KeyChanged(key) = &sound.1
                        && key.revoked
                    {
                        revoked.extend(KeyId::from_slice(&key.key));
                    }
                    Replayed::Sound(Box::new(sound))
                }
                Err(reason) => Replayed::Void(reason),
            };
            batch.push(RecordToReplay {
                number,
                hash,
                content,
            });
            head = Head { number, hash };
        }
        // SQLite may wait for other processes: not on a thread of the runtime.
        let catalogue = Arc::clone(&self.catalogue);
        blocking(move || catalogue.replay(&batch)).await?;
        Ok(head)
    }

    /// `Ok(Err(reason))` is a void record; an error is a record that must not be passed over: one of
    /// a newer program, which may mean what this one would undo, or one that does not continue the
    /// log. A revoked key can write neither.
    fn decode_record(
        &self,
        head: Head,
        bytes: &[u8],
        revoked: &HashSet<KeyId>,
    ) -> Result<Result<(Header, Body), String>> {
        let number = head.number.saturating_add(1);
        let key = record::object_key(number);
        let (root, repository) = (self.keys.root_public(), self.keys.repository());
        if let Ok(writer) = Header::writer_of(bytes, root, repository)
            && revoked.contains(&writer.public.id())
        {
            let writer = writer.public.id();
            return Ok(Err(format!("{key}: key {writer} was revoked before")));
        }
        let newer_or_void = |error: FormatError| match error.needs_newer_program() {
            true => Err(self.damaged(&key, error)),
            false => Ok(Err(format!("{key}: {error}"))),
        };
        let header = match Header::decode(bytes, root, repository) {
            Ok(header) => header,
            Err(error) => return newer_or_void(error),
        };
        if header.number != number {
            return Ok(Err(format!(
                "{key}: it says that it is record {}",
                header.number
            )));
        }
        if header.previous != head.hash {
            return Err(Error::new(
                Kind::Corrupt,
                format!("{}: {key} does not continue the record before it: one of the two was replaced", self.store.label()),
            )
            .advise("bring the log back from the bucket's versions; if only this machine's cache is from another history, run `tidegate repo rebuild-cache`"));
        }
        match header.open_body(bytes, &self.keys) {
            Ok(body) => Ok(Ok((header, body))),
            Err(error) => newer_or_void(error),
        }
    }
}
