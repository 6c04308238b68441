//! The catalogue: what the log amounts to, replayed into a local SQLite file.
//!
//! Everything in it can be thrown away and replayed from the bucket. Several processes share one
//! file; each replay is one transaction that starts from the head it finds there. What it is not:
//! a place for anything that exists nowhere else.

use crate::error::{Error, Kind, Result};
use prost::Message;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use rusqlite_migration::{M, Migrations};
use rustix::fs::FlockOperation;
use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tidegate_protocol::ids::{KeyId, PackId, PointId, RecordHash, SegmentId, SlotId};
use tidegate_protocol::limits::CHECKPOINT_BLOCK_BYTES_MAX;
use tidegate_protocol::record::{self, Body, Head, Header, KeyChanged, PointCommitted};
use tidegate_protocol::{checkpoint, keys::Level};

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

CREATE TABLE pack (number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, bytes INTEGER NOT NULL, segment BLOB);
CREATE INDEX pack_without_segment ON pack (number) WHERE segment IS NULL;
CREATE TABLE chunk (
    front INTEGER PRIMARY KEY, back INTEGER NOT NULL, pack INTEGER NOT NULL,
    frame_offset INTEGER NOT NULL, frame_bytes INTEGER NOT NULL,
    offset_in_frame INTEGER NOT NULL, length INTEGER NOT NULL
);
";

/// The writing side of the local file. One for each process; readers open connections of their own.
pub struct Catalogue {
    path: PathBuf,
    connection: Mutex<Connection>,
}

/// What a log record turned out to be.
pub enum Replayed<'a> {
    /// Sound: its header and content.
    Sound(&'a Header, &'a Body),
    /// Void, and why: skipped by every reader, but part of the chain.
    Void(String),
}

/// A record as the replay takes it.
pub struct RecordToReplay<'a> {
    /// Its number.
    pub number: u64,
    /// The hash of its stored bytes.
    pub hash: RecordHash,
    /// What it is.
    pub content: Replayed<'a>,
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
        let _alone = lock(path)?;
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
        Migrations::new(vec![M::up(MIGRATION)])
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

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last record replayed.
    pub fn head(&self) -> Result<Head> {
        self.read(head_of)
    }

    /// Replaces everything by a checkpoint's state.
    pub fn load_checkpoint(
        &self,
        number: u64,
        hash: RecordHash,
        blocks: impl Iterator<Item = Result<checkpoint::Block>>,
    ) -> Result<()> {
        self.write(|transaction| {
            if head_of(transaction)
                .map_err(|error| self.error(error))?
                .number
                >= number
            {
                return Ok(());
            }
            // Chunks stay: their segments are known by name, and a name is a hash.
            transaction
                .execute_batch(
                    "DELETE FROM point; DELETE FROM run; DELETE FROM hold; DELETE FROM condemned;
                     DELETE FROM swept; DELETE FROM bad; DELETE FROM signer; DELETE FROM volume;
                     DELETE FROM tree_pack; UPDATE segment SET loaded = loaded + 2;",
                )
                .map_err(|error| self.error(error))?;
            for block in blocks {
                let block = block?;
                load_block(transaction, &block).map_err(|error| self.error(error))?;
            }
            // Segments that the checkpoint does not name are gone.
            transaction
                .execute("DELETE FROM segment WHERE loaded >= 2", [])
                .map_err(|error| self.error(error))?;
            set_head(transaction, number, hash).map_err(|error| self.error(error))
        })
    }

    /// Replays records in order. Those at or before the head are skipped: another process may have
    /// been faster. The chain was checked by the caller.
    pub fn replay(&self, records: &[RecordToReplay<'_>]) -> Result<()> {
        self.write(|transaction| {
            let head = head_of(transaction).map_err(|error| self.error(error))?;
            for record in records.iter().filter(|record| record.number > head.number) {
                match &record.content {
                    Replayed::Sound(header, body) => {
                        apply(transaction, header, body).map_err(|error| self.error(error))?;
                    }
                    Replayed::Void(reason) => {
                        tracing::warn!(record = record.number, reason, "a log record is void");
                    }
                }
                set_head(transaction, record.number, record.hash)
                    .map_err(|error| self.error(error))?;
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

    /// Segments whose chunks are not in the local index yet.
    pub fn segments_to_load(&self) -> Result<Vec<SegmentId>> {
        self.ids(
            "SELECT id FROM segment WHERE loaded = 0",
            SegmentId::from_slice,
        )
    }

    /// How many segments the log names.
    pub fn segment_count(&self) -> Result<u64> {
        self.count("SELECT count(*) FROM segment")
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

    /// Packs whose chunks must not be referred to any more: condemned, swept or found bad.
    pub fn unusable_packs(&self) -> Result<HashSet<PackId>> {
        let ids = self.ids(
            "SELECT pack FROM condemned UNION SELECT pack FROM swept UNION SELECT pack FROM bad",
            PackId::from_slice,
        )?;
        Ok(ids.into_iter().collect())
    }

    /// Packs that are gone or damaged: no new point may be committed that needs one.
    pub fn lost_packs(&self) -> Result<HashSet<PackId>> {
        let ids = self.ids(
            "SELECT pack FROM swept UNION SELECT pack FROM bad",
            PackId::from_slice,
        )?;
        Ok(ids.into_iter().collect())
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
        let blobs = |sql: &str| self.ids(sql, |bytes| Some(bytes.to_vec()));
        let head = self.head()?;
        let mut blocks = BlockList::default();
        for (number, point) in self.points(None)? {
            let point = checkpoint::NumberedPoint {
                number,
                time_unix_ns: point.finished_unix_ns,
                point: Some(point),
            };
            blocks.add(point.encoded_len(), |block| block.points.push(point));
        }
        macro_rules! add_all {
            ($field:ident: $list:expr) => {
                for item in $list {
                    blocks.add(item.encoded_len(), |block| block.$field.push(item));
                }
            };
        }
        add_all!(segments: blobs("SELECT id FROM segment")?);
        add_all!(condemned: blobs("SELECT pack FROM condemned")?);
        add_all!(bad: blobs("SELECT pack FROM bad")?);
        add_all!(swept: blobs("SELECT pack FROM swept")?);
        add_all!(runs: self.decode_all::<record::RunAnnounced>("SELECT body FROM run")?);
        add_all!(holds: self.decode_all::<record::HoldSet>("SELECT body FROM hold")?);
        add_all!(volumes: self.decode_all::<record::VolumeOpened>("SELECT body FROM volume")?);
        add_all!(tree_packs: self.tree_packs()?);
        add_all!(keys: self.signers()?.into_iter().map(|signer| KeyChanged {
            key: signer.key.0.to_vec(),
            level: signer.level.map_or(0, |level| level.tag().into()),
            label: signer.label,
            revoked: signer.revoked,
            slot: signer.slot.map_or_else(Vec::new, |slot| slot.0.to_vec()),
        }));
        let all = blocks.done;
        if self.head()? != head {
            return Err(Error::new(Kind::Conflict, "the log moved on meanwhile"));
        }
        Ok((head, all))
    }

    fn tree_packs(&self) -> Result<Vec<record::PackSize>> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT id, bytes FROM tree_pack")?
                .query_map([], |row| {
                    Ok(record::PackSize {
                        pack: row.get(0)?,
                        bytes: unsigned(row.get(1)?),
                    })
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

    fn ids<T>(&self, sql: &str, take: impl Fn(&[u8]) -> Option<T>) -> Result<Vec<T>> {
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

    fn decode<M: prost::Message + Default>(&self, bytes: &[u8]) -> Result<M> {
        M::decode(bytes).map_err(|error| {
            Error::new(
                Kind::Corrupt,
                format!("the local cache {} does not decode", self.path.display()),
            )
            .advise("run `tidegate repo rebuild-cache`")
            .caused_by(error)
        })
    }
}

/// Fills blocks of a checkpoint up to half their bound; a record's body may be as long as the other
/// half.
#[derive(Default)]
struct BlockList {
    done: Vec<checkpoint::Block>,
    bytes: usize,
}

impl BlockList {
    fn add(&mut self, bytes: usize, put: impl FnOnce(&mut checkpoint::Block)) {
        /// Tag and length of an item.
        const ITEM_OVERHEAD_BYTES: usize = 8;
        if self.done.is_empty() || self.bytes > CHECKPOINT_BLOCK_BYTES_MAX as usize / 2 {
            self.done.push(checkpoint::Block::default());
            self.bytes = 0;
        }
        self.bytes += bytes + ITEM_OVERHEAD_BYTES;
        if let Some(block) = self.done.last_mut() {
            put(block);
        }
    }
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

/// Keeps other processes from opening the file until the value returned is dropped: the layout of a
/// new file must be made once, and a damaged one must not be put aside while another is opening it.
fn lock(path: &Path) -> Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let cannot = |error| Error::io(format!("cannot lock {}", name.display()), error);
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&name)
        .map_err(cannot)?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)
        .map_err(|error| cannot(error.into()))?;
    Ok(file)
}

/// Removes the local file and its companions.
pub(super) fn remove(path: &Path) -> Result<()> {
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

fn head_of(connection: &Connection) -> rusqlite::Result<Head> {
    connection.query_row("SELECT number, hash FROM head", [], |row| {
        Ok(Head {
            number: unsigned(row.get(0)?),
            hash: RecordHash(row.get(1)?),
        })
    })
}

fn is_revoked(connection: &Connection, key: KeyId) -> rusqlite::Result<bool> {
    Ok(connection
        .prepare_cached("SELECT revoked FROM signer WHERE id = ?1")?
        .query_row([key.0], |row| row.get::<_, bool>(0))
        .optional()?
        .unwrap_or(false))
}

fn set_head(connection: &Connection, number: u64, hash: RecordHash) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE head SET number = ?1, hash = ?2")?
        .execute(params![number.cast_signed(), hash.0])
        .map(drop)
}

fn load_block(connection: &Connection, block: &checkpoint::Block) -> rusqlite::Result<()> {
    for point in &block.points {
        if let Some(body) = &point.point {
            add_point(connection, point.number, point.time_unix_ns, body)?;
            for pack in &body.tree_packs {
                add_tree_pack(connection, pack)?;
            }
        }
    }
    for segment in &block.segments {
        // A segment whose chunks were loaded before keeps that state.
        connection
            .prepare_cached(
                "INSERT INTO segment (id) VALUES (?1)
                 ON CONFLICT (id) DO UPDATE SET loaded = loaded % 2",
            )?
            .execute([segment])?;
    }
    for run in &block.runs {
        add_run(connection, run)?;
    }
    for hold in &block.holds {
        put_body(
            connection,
            "INSERT OR REPLACE INTO hold VALUES (?1, ?2)",
            &hold.hold,
            hold,
        )?;
    }
    for (list, sql) in [
        (
            &block.condemned,
            "INSERT OR IGNORE INTO condemned VALUES (?1)",
        ),
        (&block.swept, "INSERT OR IGNORE INTO swept VALUES (?1)"),
        (&block.bad, "INSERT OR IGNORE INTO bad VALUES (?1)"),
    ] {
        each(connection, sql, list)?;
    }
    for key in &block.keys {
        change_key(connection, key, 0)?;
    }
    for volume in &block.volumes {
        let sql = "INSERT OR REPLACE INTO volume VALUES (?1, ?2)";
        put_body(connection, sql, &volume.volume, volume)?;
    }
    for pack in &block.tree_packs {
        add_tree_pack(connection, pack)?;
    }
    Ok(())
}

fn apply(connection: &Connection, header: &Header, body: &Body) -> rusqlite::Result<()> {
    match body {
        Body::PointCommitted(point) => {
            add_point(connection, header.number, header.time_unix_ns, point)?;
            add_segments(connection, &point.segments)?;
            connection
                .prepare_cached("DELETE FROM run WHERE id = ?1")?
                .execute([&point.run])?;
            point
                .tree_packs
                .iter()
                .try_for_each(|pack| add_tree_pack(connection, pack))
        }
        Body::PointExpired(expired) => each(
            connection,
            "DELETE FROM point WHERE id = ?1",
            &expired.points,
        ),
        Body::HoldSet(hold) => put_body(
            connection,
            "INSERT OR REPLACE INTO hold VALUES (?1, ?2)",
            &hold.hold,
            hold,
        ),
        Body::HoldLifted(hold) => connection
            .prepare_cached("DELETE FROM hold WHERE id = ?1")?
            .execute([&hold.hold])
            .map(drop),
        Body::PacksCondemned(condemned) => each(
            connection,
            "INSERT OR IGNORE INTO condemned VALUES (?1)",
            &condemned.packs,
        ),
        Body::PacksSwept(swept) => {
            for sql in [
                "INSERT OR IGNORE INTO swept VALUES (?1)",
                "DELETE FROM condemned WHERE pack = ?1",
                "DELETE FROM chunk WHERE pack = (SELECT number FROM pack WHERE id = ?1)",
                "DELETE FROM tree_pack WHERE id = ?1",
            ] {
                each(connection, sql, &swept.packs)?;
            }
            each(
                connection,
                "DELETE FROM condemned WHERE pack = ?1",
                &swept.rescued,
            )
        }
        Body::ChunksRelocated(relocated) => add_segments(connection, &relocated.segments),
        Body::PacksFoundBad(bad) => each(
            connection,
            "INSERT OR IGNORE INTO bad VALUES (?1)",
            &bad.packs,
        ),
        Body::IndexMerged(merged) => {
            each(
                connection,
                "DELETE FROM segment WHERE id = ?1",
                &merged.removed,
            )?;
            add_segments(connection, &merged.added)
        }
        Body::VolumeOpened(volume) => put_body(
            connection,
            "INSERT OR REPLACE INTO volume VALUES (?1, ?2)",
            &volume.volume,
            volume,
        ),
        Body::KeyChanged(key) => change_key(connection, key, header.time_unix_ns),
        // Kept in the log for the audit; it changes no state.
        Body::Evidence(_) => Ok(()),
        Body::RunAnnounced(run) => {
            add_segments(connection, &run.segments)?;
            if run.abandoned {
                connection
                    .prepare_cached("DELETE FROM run WHERE id = ?1")?
                    .execute([&run.run])
                    .map(drop)
            } else {
                add_run(connection, run)
            }
        }
    }
}

fn add_point(
    connection: &Connection,
    number: u64,
    time_unix_ns: u64,
    point: &PointCommitted,
) -> rusqlite::Result<()> {
    // A point without a proper name cannot be spoken of: it is left out.
    let Ok(id) = record::point_id(&point.point) else {
        return Ok(());
    };
    insert_point(connection, number, time_unix_ns, id, point)
}

fn insert_point(
    connection: &Connection,
    number: u64,
    time_unix_ns: u64,
    id: PointId,
    point: &PointCommitted,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR IGNORE INTO point VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
        .execute(params![
            id.0,
            number.cast_signed(),
            time_unix_ns.cast_signed(),
            point.machine,
            point.taken_unix_ns.cast_signed(),
            prost::Message::encode_to_vec(point),
        ])
        .map(drop)
}

fn add_segments(connection: &Connection, segments: &[Vec<u8>]) -> rusqlite::Result<()> {
    each(
        connection,
        "INSERT OR IGNORE INTO segment (id) VALUES (?1)",
        segments,
    )
}

fn add_run(connection: &Connection, run: &record::RunAnnounced) -> rusqlite::Result<()> {
    put_body(connection, "INSERT INTO run VALUES (?1, ?2)", &run.run, run)
}

fn add_tree_pack(connection: &Connection, pack: &record::PackSize) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO tree_pack VALUES (?1, ?2)")?
        .execute(params![pack.pack, pack.bytes.cast_signed()])
        .map(drop)
}

fn change_key(
    connection: &Connection,
    key: &KeyChanged,
    time_unix_ns: u64,
) -> rusqlite::Result<()> {
    let Ok(id) = <[u8; 16]>::try_from(key.key.as_slice()) else {
        return Ok(());
    };
    // A revocation is for ever.
    connection
        .prepare_cached(
            "INSERT INTO signer VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (id) DO UPDATE SET revoked = max(revoked, excluded.revoked)",
        )?
        .execute(params![
            id,
            key.level,
            key.label,
            key.slot,
            time_unix_ns.cast_signed(),
            key.revoked
        ])
        .map(drop)
}

fn put_body(
    connection: &Connection,
    sql: &str,
    id: &[u8],
    body: &impl prost::Message,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(sql)?
        .execute(params![id, body.encode_to_vec()])
        .map(drop)
}

fn each(connection: &Connection, sql: &str, list: &[Vec<u8>]) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(sql)?;
    for id in list {
        statement.execute([id])?;
    }
    Ok(())
}
