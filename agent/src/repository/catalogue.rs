//! The catalogue: what the log amounts to, replayed into a local SQLite file.
//!
//! Everything in it can be thrown away and replayed from the bucket. Several processes share one
//! file; each replay is one transaction that starts from the head it finds there, and numbers of
//! packs are never used twice, also when the cache is emptied under running processes. What it is
//! not: a place for anything that exists nowhere else.

mod bundles;
mod images;
mod packs;
mod references;
mod retention;
mod segments;
mod state;

pub use packs::ExpectedPack;
pub use retention::ExpiredPoint;

use crate::error::{Error, Kind, Result};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};
use rusqlite_migration::{M, Migrations};
use state::{apply, head_of, is_revoked, load_block, release_packs_of_bad_segments, set_head};
use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tidegate_protocol::ids::{KeyId, PointId, RecordHash, SlotId};
use tidegate_protocol::keys::Level;
use tidegate_protocol::limits::CHECKPOINT_BLOCK_BYTES_MAX;
use tidegate_protocol::record::{Body, Head, Header, KeyChanged, PackSize, PointCommitted};
use tidegate_protocol::{checkpoint, record};

/// How long one process waits for another that writes to the same file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);

const MIGRATION: &str = "
CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL, hash BLOB NOT NULL);
INSERT INTO head VALUES (1, 0, zeroblob(32));
CREATE TABLE point (
    id BLOB PRIMARY KEY, number INTEGER NOT NULL, time_unix_ns INTEGER NOT NULL,
    machine TEXT NOT NULL, taken_unix_ns INTEGER NOT NULL, body BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX point_by_machine ON point (machine, taken_unix_ns, number);
CREATE TABLE segment (id BLOB PRIMARY KEY, loaded INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE run (id BLOB NOT NULL, body BLOB NOT NULL);
CREATE TABLE hold (id BLOB PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE condemned (pack BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE swept (pack BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE bad (pack BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE signer (
    id BLOB PRIMARY KEY, level INTEGER NOT NULL, label TEXT NOT NULL, slot BLOB NOT NULL,
    created_unix_ns INTEGER NOT NULL, revoked INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE volume (id BLOB PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE tree_pack (id BLOB PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE pack (number INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE, bytes INTEGER NOT NULL, segment BLOB);
CREATE INDEX pack_without_segment ON pack (number) WHERE segment IS NULL;
CREATE TABLE chunk (
    front INTEGER PRIMARY KEY, back INTEGER NOT NULL, pack INTEGER NOT NULL,
    frame_offset INTEGER NOT NULL, frame_bytes INTEGER NOT NULL,
    offset_in_frame INTEGER NOT NULL, length INTEGER NOT NULL
);
";

/// Further places of chunks that lie in several packs.
const MIGRATION_SPARE_PLACES: &str = "
CREATE TABLE spare (
    front INTEGER NOT NULL, back INTEGER NOT NULL, pack INTEGER NOT NULL,
    frame_offset INTEGER NOT NULL, frame_bytes INTEGER NOT NULL,
    offset_in_frame INTEGER NOT NULL, length INTEGER NOT NULL,
    PRIMARY KEY (front, back, pack)
) WITHOUT ROWID;
";

/// When this machine last compared the store's packs with what it knows; see [`packs`].
const MIGRATION_LISTING: &str = "
CREATE TABLE listing (one INTEGER PRIMARY KEY CHECK (one = 1), time_unix_ns INTEGER NOT NULL);
INSERT INTO listing VALUES (1, 0);
";

/// Segments that were found bad; see [`segments`].
const MIGRATION_BAD_SEGMENTS: &str =
    "ALTER TABLE segment ADD COLUMN bad INTEGER NOT NULL DEFAULT 0;";

/// What each machine's newest point refers to; see [`references`].
const MIGRATION_REFERENCES: &str = "
CREATE TABLE refers (machine TEXT PRIMARY KEY, point BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX refers_by_point ON refers (point);
CREATE TABLE refers_to (machine TEXT NOT NULL, pack BLOB NOT NULL, PRIMARY KEY (machine, pack)) WITHOUT ROWID;
";

/// How long points are kept, and which ones were given up; see [`retention`].
const MIGRATION_RETENTION: &str = "
ALTER TABLE point ADD COLUMN keep_until_unix_ns INTEGER NOT NULL DEFAULT 0;
CREATE TABLE expired (
    id BLOB PRIMARY KEY, machine TEXT NOT NULL, time_unix_ns INTEGER NOT NULL, reason TEXT NOT NULL
) WITHOUT ROWID;
";

/// Which packs lie in which bundle, see [`bundles`]; and which segments others stand for, see [`segments`].
const MIGRATION_BUNDLES: &str = "
CREATE TABLE bundle (number INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE, body BLOB NOT NULL);
CREATE TABLE bundled (
    pack BLOB PRIMARY KEY, bundle BLOB NOT NULL, start INTEGER NOT NULL, bytes INTEGER NOT NULL,
    since_unix_ns INTEGER NOT NULL, gone INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX bundled_by_bundle ON bundled (bundle);
CREATE INDEX bundled_with_object ON bundled (since_unix_ns) WHERE NOT gone;
CREATE TABLE merged (segment BLOB PRIMARY KEY, since_unix_ns INTEGER NOT NULL) WITHOUT ROWID;
";

/// What this host's images are the content of; see [`images`].
const MIGRATION_IMAGES: &str = "CREATE TABLE image (path BLOB PRIMARY KEY, disk TEXT NOT NULL, point BLOB NOT NULL, seal BLOB NOT NULL) WITHOUT ROWID;";

/// All that a checkpoint says anew.
const EMPTY_STATE: &str = "
DELETE FROM point; DELETE FROM run; DELETE FROM hold; DELETE FROM condemned; DELETE FROM swept;
DELETE FROM bad; DELETE FROM signer; DELETE FROM volume; DELETE FROM tree_pack;
";

/// The writing side of the local file. One for each process; readers open connections of their own.
pub struct Catalogue {
    path: PathBuf,
    connection: Mutex<Connection>,
}

/// What a log record turned out to be.
pub enum Replayed {
    /// Sound: its header and content.
    Sound(Box<(Header, Body)>),
    /// Void, and why: skipped by every reader, but part of the chain.
    Void(String),
}

/// A record as the replay takes it.
pub struct RecordToReplay {
    /// Its number.
    pub number: u64,
    /// The hash of its stored bytes.
    pub hash: RecordHash,
    /// What it is.
    pub content: Replayed,
}

/// A signing key that the log knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// Its short name.
    pub key: KeyId,
    /// What it may do.
    pub level: Option<Level>,
    /// What the operator calls it.
    pub label: String,
    /// The slot that holds it, if it is not in a file.
    pub slot: Option<SlotId>,
    /// When the log learnt of it, Unix time in nanoseconds.
    pub created_unix_ns: u64,
    /// True when its records are void from the revocation on.
    pub revoked: bool,
}

impl Catalogue {
    /// Opens the file, or makes it. A file that SQLite finds damaged, or that a newer program made,
    /// is put aside and made anew: nothing in it is needed.
    pub fn open(path: &Path) -> Result<Self> {
        // Processes that make or mend the file do so one after the other.
        let _turn = take_turn(path)?;
        match Self::try_open(path) {
            Ok(catalogue) => Ok(catalogue),
            Err(error) if error.kind() == Kind::Corrupt => {
                tracing::warn!(file = %path.display(), error = error.chain(), "the local cache is damaged: building it anew");
                remove(path)?;
                Self::try_open(path)
            }
            Err(error) => Err(error),
        }
    }

    fn try_open(path: &Path) -> Result<Self> {
        let mut connection = connect(path)?;
        let migrations = [
            MIGRATION,
            MIGRATION_LISTING,
            MIGRATION_SPARE_PLACES,
            MIGRATION_BAD_SEGMENTS,
            MIGRATION_REFERENCES,
            MIGRATION_RETENTION,
            MIGRATION_BUNDLES,
            MIGRATION_IMAGES,
        ];
        Migrations::new(migrations.map(M::up).to_vec())
            .to_latest(&mut connection)
            .map_err(|error| match error {
                rusqlite_migration::Error::RusqliteError { err, .. } => sqlite(path, err),
                other => Error::new(
                    Kind::Corrupt,
                    format!("the local cache {} has another layout", path.display()),
                )
                .caused_by(other),
            })?;
        connection
            .query_row("SELECT number FROM head", [], |row| row.get::<_, i64>(0))
            .map_err(|error| sqlite(path, error))?;
        Ok(Self {
            path: path.to_owned(),
            connection: Mutex::new(connection),
        })
    }

    /// Empties the file, so that it is replayed from the first record. Other processes may be using
    /// it: unlinking it would pull its write-ahead log from under them.
    pub fn empty(&self) -> Result<()> {
        let (number, hash) = (Head::EMPTY.number, Head::EMPTY.hash);
        self.write(|transaction| {
            transaction
                .execute_batch(EMPTY_STATE)
                .and_then(|()| {
                    transaction
                        .execute_batch("DELETE FROM segment; DELETE FROM chunk; DELETE FROM spare; DELETE FROM pack; DELETE FROM refers; DELETE FROM refers_to; DELETE FROM expired; DELETE FROM bundle; DELETE FROM bundled; DELETE FROM merged; UPDATE listing SET time_unix_ns = 0;")
                })
                .and_then(|()| set_head(transaction, number, hash))
                .map_err(|error| self.error(error))
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last record replayed.
    pub fn head(&self) -> Result<Head> {
        self.read(head_of)
    }

    /// Replaces everything by the state of a checkpoint that `writer` signed.
    pub fn load_checkpoint(
        &self,
        number: u64,
        hash: RecordHash,
        writer: KeyId,
        blocks: impl Iterator<Item = Result<checkpoint::Block>>,
    ) -> Result<()> {
        self.write(|transaction| {
            let sql = |error| self.error(error);
            if head_of(transaction).map_err(sql)?.number >= number {
                return Ok(());
            }
            // Chunks stay: their segments are known by name, and a name is a hash.
            transaction
                .execute_batch(EMPTY_STATE)
                .and_then(|()| {
                    transaction.execute_batch("UPDATE segment SET loaded = loaded + 2, bad = 0;")
                })
                .map_err(sql)?;
            for block in blocks {
                load_block(transaction, &block?).map_err(sql)?;
            }
            if is_revoked(transaction, writer).map_err(sql)? {
                return Err(Error::new(
                    Kind::Corrupt,
                    format!("the checkpoint of record {number} is signed by key {writer}, which it calls revoked"),
                ));
            }
            // Segments that the checkpoint does not name are gone.
            transaction
                .execute("DELETE FROM segment WHERE loaded >= 2", [])
                .map_err(sql)?;
            release_packs_of_bad_segments(transaction).map_err(sql)?;
            set_head(transaction, number, hash).map_err(sql)
        })
    }

    /// Replays records in order. Those at or before the head are skipped: another process may have
    /// been faster. The chain was checked by the caller.
    ///
    /// # Errors
    /// [`Kind::Conflict`] where the first of the rest does not follow the head.
    pub fn replay(&self, records: &[RecordToReplay]) -> Result<()> {
        self.write(|transaction| {
            let sql = |error| self.error(error);
            let mut head = head_of(transaction).map_err(sql)?.number;
            for record in records {
                if record.number <= head {
                    continue;
                }
                if record.number != head + 1 {
                    return Err(Error::new(
                        Kind::Conflict,
                        format!(
                            "the local cache {} was emptied meanwhile",
                            self.path.display()
                        ),
                    )
                    .advise("run the command again"));
                }
                match &record.content {
                    Replayed::Sound(sound) => {
                        let (header, body) = &**sound;
                        apply(transaction, header, body).map_err(sql)?;
                    }
                    Replayed::Void(reason) => {
                        tracing::warn!(record = record.number, reason, "a log record is void");
                    }
                }
                head = record.number;
                set_head(transaction, head, record.hash).map_err(sql)?;
            }
            Ok(())
        })
    }

    /// Recovery points, oldest first; of one machine or of all.
    pub fn points(&self, machine: Option<&str>) -> Result<Vec<(u64, PointCommitted)>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT number, body FROM point WHERE ?1 IS NULL OR machine = ?1
                 ORDER BY taken_unix_ns, number",
            )?;
            let rows = statement.query_map([machine], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?
        .into_iter()
        .map(|(number, body)| Ok((number.cast_unsigned(), self.decode(&body)?)))
        .collect()
    }

    /// The newest recovery point of a machine.
    pub fn newest_point(&self, machine: &str) -> Result<Option<(u64, PointCommitted)>> {
        self.one_point(
            "SELECT number, body FROM point WHERE machine = ?1
             ORDER BY taken_unix_ns DESC, number DESC LIMIT 1",
            [machine],
        )
    }

    /// The recovery point of that name.
    pub fn point(&self, point: PointId) -> Result<Option<(u64, PointCommitted)>> {
        self.one_point("SELECT number, body FROM point WHERE id = ?1", [point.0])
    }

    fn one_point(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
    ) -> Result<Option<(u64, PointCommitted)>> {
        let found = self.read(|connection| {
            connection
                .prepare_cached(sql)?
                .query_row(parameters, |row| {
                    Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?))
                })
                .optional()
        })?;
        found
            .map(|(number, body)| Ok((number.cast_unsigned(), self.decode(&body)?)))
            .transpose()
    }

    /// How many chunks the local index holds, and their bytes.
    pub fn chunk_totals(&self) -> Result<(u64, u64)> {
        self.read(|connection| {
            connection.query_row(
                "SELECT count(*), coalesce(sum(length), 0) FROM chunk",
                [],
                |row| Ok((unsigned(row.get(0)?), unsigned(row.get(1)?))),
            )
        })
    }

    /// Keys that the log knows, oldest first.
    pub fn signers(&self) -> Result<Vec<Signer>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT id, level, label, slot, created_unix_ns, revoked FROM signer
                 ORDER BY created_unix_ns, id",
            )?;
            let rows = statement.query_map([], |row| {
                Ok(Signer {
                    key: KeyId(row.get(0)?),
                    level: Level::from_tag(row.get(1)?),
                    label: row.get(2)?,
                    slot: SlotId::from_slice(&row.get::<_, Vec<u8>>(3)?),
                    created_unix_ns: unsigned(row.get(4)?),
                    revoked: row.get(5)?,
                })
            })?;
            rows.collect()
        })
    }

    /// True when the log has revoked that key.
    pub fn is_revoked(&self, key: KeyId) -> Result<bool> {
        self.read(|connection| is_revoked(connection, key))
    }

    /// Keys that the log has revoked.
    pub fn revoked_keys(&self) -> Result<HashSet<KeyId>> {
        let ids = self.ids("SELECT id FROM signer WHERE revoked", KeyId::from_slice)?;
        Ok(ids.into_iter().collect())
    }

    /// The state as blocks of a checkpoint, with the head they belong to.
    pub fn checkpoint_blocks(&self) -> Result<(Head, Vec<checkpoint::Block>)> {
        let head = self.head()?;
        let mut blocks = Blocks::default();
        let mut of_points = HashSet::new();
        for (number, time_unix_ns, body) in self.point_rows()? {
            let point: PointCommitted = self.decode(&body)?;
            of_points.extend(point.tree_packs.iter().map(|pack| pack.pack.clone()));
            blocks
                .room_for(body.len() + 32)
                .points
                .push(checkpoint::NumberedPoint {
                    number,
                    time_unix_ns,
                    point: Some(point),
                });
        }
        let blobs = |sql: &str| self.ids(sql, |bytes| Some(bytes.to_vec()));
        for id in blobs("SELECT id FROM segment WHERE NOT bad")? {
            blocks.room_for(id.len()).segments.push(id);
        }
        for id in blobs("SELECT id FROM segment WHERE bad")? {
            blocks.room_for(id.len()).bad_segments.push(id);
        }
        for run in self.decode_all::<record::RunAnnounced>("SELECT body FROM run")? {
            blocks
                .room_for(prost::Message::encoded_len(&run))
                .runs
                .push(run);
        }
        for hold in self.decode_all::<record::HoldSet>("SELECT body FROM hold")? {
            blocks
                .room_for(prost::Message::encoded_len(&hold))
                .holds
                .push(hold);
        }
        for volume in self.decode_all::<record::VolumeOpened>("SELECT body FROM volume")? {
            blocks
                .room_for(prost::Message::encoded_len(&volume))
                .volumes
                .push(volume);
        }
        for id in blobs("SELECT pack FROM condemned")? {
            blocks.room_for(id.len()).condemned.push(id);
        }
        for id in blobs("SELECT pack FROM bad")? {
            blocks.room_for(id.len()).bad.push(id);
        }
        for id in blobs("SELECT pack FROM swept")? {
            blocks.room_for(id.len()).swept.push(id);
        }
        for bundle in self.bundles()? {
            blocks
                .room_for(prost::Message::encoded_len(&bundle))
                .bundles
                .push(bundle);
        }
        for pack in self.tree_packs()? {
            // Those of live points stand with their points.
            if !of_points.contains(&pack.pack) {
                blocks.room_for(pack.pack.len() + 16).tree_packs.push(pack);
            }
        }
        for signer in self.signers()? {
            let key = KeyChanged {
                key: signer.key.0.to_vec(),
                level: signer.level.map_or(0, |level| level.tag().into()),
                label: signer.label,
                revoked: signer.revoked,
                slot: signer.slot.map_or_else(Vec::new, |slot| slot.0.to_vec()),
            };
            blocks
                .room_for(prost::Message::encoded_len(&key))
                .keys
                .push(key);
        }
        if self.head()? != head {
            return Err(Error::new(Kind::Conflict, "the log moved on meanwhile"));
        }
        Ok((head, blocks.done))
    }

    /// Tree packs that were written and not swept.
    fn tree_packs(&self) -> Result<Vec<PackSize>> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT id, bytes FROM tree_pack")?
                .query_map([], |row| {
                    Ok(PackSize {
                        pack: row.get(0)?,
                        bytes: unsigned(row.get(1)?),
                    })
                })?
                .collect()
        })
    }

    fn point_rows(&self) -> Result<Vec<(u64, u64, Vec<u8>)>> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT number, time_unix_ns, body FROM point ORDER BY number")?
                .query_map([], |row| {
                    Ok((unsigned(row.get(0)?), unsigned(row.get(1)?), row.get(2)?))
                })?
                .collect()
        })
    }

    /// Runs a reading closure.
    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        work(&self.lock()).map_err(|error| self.error(error))
    }

    /// Runs a closure within one writing transaction.
    pub(super) fn write<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut connection = self.lock();
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|error| self.error(error))?;
        let done = work(&transaction)?;
        transaction.commit().map_err(|error| self.error(error))?;
        Ok(done)
    }

    pub(super) fn error(&self, error: rusqlite::Error) -> Error {
        sqlite(&self.path, error)
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic elsewhere leaves no half-done transaction: it was rolled back.
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ids<T>(&self, sql: &str, take: impl Fn(&[u8]) -> Option<T>) -> Result<Vec<T>> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached(sql)?;
            let rows = statement.query_map([], |row| row.get::<_, Vec<u8>>(0))?;
            rows.map(|row| row.map(|bytes| take(&bytes)))
                .filter_map(Result::transpose)
                .collect()
        })
    }

    fn count(&self, sql: &str) -> Result<u64> {
        self.read(|connection| connection.query_row(sql, [], |row| Ok(unsigned(row.get(0)?))))
    }

    fn decode_all<M: prost::Message + Default>(&self, sql: &str) -> Result<Vec<M>> {
        self.ids(sql, |bytes| Some(bytes.to_vec()))?
            .iter()
            .map(|bytes| self.decode(bytes))
            .collect()
    }

    fn decode<M: prost::Message + Default>(&self, checked: &[u8]) -> Result<M> {
        let damaged = |what| {
            Error::new(
                Kind::Corrupt,
                format!("the local cache {} {what}", self.path.display()),
            )
            .advise("run `tidegate repo rebuild-cache`")
        };
        match checked.split_at_checked(BODY_HASH_BYTES) {
            Some((hash, body)) if body_hash(body) == *hash => {
                M::decode(body).map_err(|error| damaged("does not decode").caused_by(error))
            }
            _ => Err(damaged("is damaged: a row has other content than its hash")),
        }
    }
}

/// Bytes of the hash before each body: against accidents, not against attackers.
const BODY_HASH_BYTES: usize = 16;

/// See [`BODY_HASH_BYTES`].
fn body_hash(body: &[u8]) -> [u8; BODY_HASH_BYTES] {
    let mut hash = [0; BODY_HASH_BYTES];
    hash.copy_from_slice(&blake3::hash(body).as_bytes()[..BODY_HASH_BYTES]);
    hash
}

/// Blocks of a checkpoint, each below its bound.
#[derive(Default)]
struct Blocks {
    done: Vec<checkpoint::Block>,
    last_bytes: usize,
}

impl Blocks {
    /// The block that takes an entry of about `bytes`.
    fn room_for(&mut self, bytes: usize) -> &mut checkpoint::Block {
        // A field's tag and length take a few bytes more. One record fits into a block always.
        const ENOUGH: usize = CHECKPOINT_BLOCK_BYTES_MAX as usize / 4;
        if self.done.is_empty() || self.last_bytes > ENOUGH {
            self.done.push(checkpoint::Block::default());
            self.last_bytes = 0;
        }
        self.last_bytes += bytes + 16;
        let last = self.done.len() - 1;
        &mut self.done[last]
    }
}

/// Waits until no other process makes or mends the file. The turn ends when the value is dropped.
fn take_turn(path: &Path) -> Result<File> {
    let name = path.with_extension("lock");
    let context = |error| Error::io(format!("cannot lock {}", name.display()), error);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&name)
        .map_err(context)?;
    file.lock().map_err(context)?;
    Ok(file)
}

/// Opens a connection with the settings that all of them share.
pub(super) fn connect(path: &Path) -> Result<Connection> {
    let open = || -> rusqlite::Result<Connection> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        // A power cut may lose the last transactions, never the file's integrity: it is a cache.
        connection.pragma_update(None, "synchronous", "normal")?;
        connection.pragma_update(None, "cache_size", -16 * 1024)?;
        connection.set_prepared_statement_cache_capacity(64);
        Ok(connection)
    };
    open().map_err(|error| sqlite(path, error))
}

/// Removes the local file and its companions.
fn remove(path: &Path) -> Result<()> {
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match std::fs::remove_file(&name) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                let name = name.to_string_lossy().into_owned();
                return Err(Error::io(
                    format!("cannot remove the local cache {name}"),
                    error,
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn sqlite(path: &Path, error: rusqlite::Error) -> Error {
    use rusqlite::ErrorCode as Code;
    let kind = match error.sqlite_error_code() {
        Some(Code::DatabaseCorrupt | Code::NotADatabase) => Kind::Corrupt,
        // A column of another type, a table that is gone, a name that is there twice: the file is
        // not what this program wrote.
        Some(Code::Unknown | Code::ConstraintViolation | Code::TypeMismatch) | None => {
            Kind::Corrupt
        }
        Some(Code::DiskFull) => Kind::NoSpace,
        Some(Code::CannotOpen | Code::PermissionDenied | Code::ReadOnly) => Kind::Denied,
        Some(Code::DatabaseBusy | Code::DatabaseLocked) => Kind::Unavailable,
        _ => Kind::Io,
    };
    let advice = match kind {
        Kind::Corrupt => "run `tidegate repo rebuild-cache`",
        Kind::NoSpace => "free some space there, or name another folder with --cache-dir",
        Kind::Denied => "make it writable, or name another folder with --cache-dir",
        _ => "name another folder with --cache-dir if this one is on an unsuitable file system",
    };
    Error::new(kind, format!("the local cache {}", path.display()))
        .advise(advice)
        .caused_by(error)
}

/// SQLite's integers are signed; what we store in them never is.
pub(super) fn unsigned(value: i64) -> u64 {
    value.cast_unsigned()
}
