//! The SQLite file itself.

use super::{Fault, HOURS_KEPT, Hour, Outcome, RUNS_KEPT, Remembered, Row, RunRow};
use crate::durable;
use crate::error::{Error, Kind, Result};
use rusqlite::{Connection, ErrorCode, Transaction, params};
use rusqlite_migration::{M, Migrations};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const FILE: &str = "host.sqlite";

const MIGRATION: &str = "
CREATE TABLE machine (
    name TEXT PRIMARY KEY, first_seen_unix_ns INTEGER NOT NULL, gone_unix_ns INTEGER
) WITHOUT ROWID;
CREATE TABLE run (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
    machine TEXT NOT NULL, repository TEXT NOT NULL,
    started_unix_ns INTEGER NOT NULL, ended_unix_ns INTEGER, outcome TEXT,
    point TEXT, point_unix_ns INTEGER,
    read_bytes INTEGER NOT NULL, new_bytes INTEGER NOT NULL, stored_bytes INTEGER NOT NULL,
    error_kind TEXT, error TEXT, advice TEXT, warning TEXT
);
CREATE INDEX run_by_machine ON run (machine, number);
CREATE INDEX run_under_way ON run (number) WHERE outcome IS NULL;
";

/// What freezing and tracking came to, as JSON; and what runs came to by hours, for longer than runs are
/// kept.
const MIGRATION_FROZEN: &str = "
ALTER TABLE run ADD COLUMN frozen TEXT;
CREATE TABLE hour (
    machine TEXT NOT NULL, hour INTEGER NOT NULL, runs INTEGER NOT NULL, requests INTEGER NOT NULL,
    audited_blocks INTEGER NOT NULL, false_chunks INTEGER NOT NULL, held_ns_max INTEGER NOT NULL,
    PRIMARY KEY (machine, hour)
) WITHOUT ROWID;
";

pub(super) struct StateFile {
    path: PathBuf,
    connection: Connection,
}

impl StateFile {
    /// Opens the file, or makes it. One that is damaged, or that a newer program made, is put aside.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        durable::create_folder(folder, 0o700).map_err(|error| {
            Error::io(
                format!("cannot make the folder {}", folder.display()),
                error,
            )
        })?;
        let path = folder.join(FILE);
        match Self::try_open(&path) {
            Err(error) if error.kind() == Kind::Corrupt => {
                let aside = path.with_extension("sqlite.damaged");
                tracing::error!(file = %path.display(), aside = %aside.display(), error = error.chain(), "the history of runs is damaged: it is put aside, and a new one begins");
                std::fs::rename(&path, &aside).map_err(|error| {
                    Error::io(format!("cannot put {} aside", path.display()), error)
                })?;
                // They belong to the file that was put aside.
                for suffix in ["sqlite-wal", "sqlite-shm"] {
                    let _ = std::fs::remove_file(path.with_extension(suffix));
                }
                Self::try_open(&path)
            }
            opened => opened,
        }
    }

    fn try_open(path: &Path) -> Result<Self> {
        let fault = |error| sqlite(path, error);
        let mut connection = Connection::open(path).map_err(fault)?;
        // Full: a run that was acknowledged to the operator is not lost by a power cut. Rows are few.
        connection
            .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")
            .map_err(fault)?;
        Migrations::new(vec![M::up(MIGRATION), M::up(MIGRATION_FROZEN)])
            .to_latest(&mut connection)
            .map_err(|error| match error {
                rusqlite_migration::Error::RusqliteError { err, .. } => sqlite(path, err),
                other => Error::new(
                    Kind::Corrupt,
                    format!("the history of runs {} has another layout", path.display()),
                )
                .caused_by(other),
            })?;
        Ok(Self {
            path: path.to_owned(),
            connection,
        })
    }

    /// Ends runs that have no end. Says how many.
    pub(super) fn interrupt(&self, now_unix_ns: u64) -> Result<usize> {
        self.connection
            .execute(
                "UPDATE run SET outcome = ?1, ended_unix_ns = max(?2, started_unix_ns),
                 error_kind = ?3, error = 'the service ended while it ran' WHERE outcome IS NULL",
                params![
                    Outcome::Interrupted.as_str(),
                    signed(now_unix_ns),
                    Kind::Interrupted.as_str()
                ],
            )
            .map_err(|error| sqlite(&self.path, error))
    }

    pub(super) fn load(&self) -> Result<BTreeMap<String, Remembered>> {
        self.try_load().map_err(|error| sqlite(&self.path, error))
    }

    fn try_load(&self) -> rusqlite::Result<BTreeMap<String, Remembered>> {
        let mut all = BTreeMap::new();
        let mut machines = self
            .connection
            .prepare("SELECT name, first_seen_unix_ns, gone_unix_ns FROM machine")?;
        let mut rows = machines.query([])?;
        while let Some(row) = rows.next()? {
            let mut remembered = Remembered::default();
            remembered.history.first_seen_unix_ns = unsigned(row.get(1)?);
            remembered.gone_unix_ns = row.get::<_, Option<i64>>(2)?.map(unsigned);
            all.insert(row.get(0)?, remembered);
        }
        let mut runs = self.connection.prepare(
            "SELECT id, machine, repository, started_unix_ns, ended_unix_ns, outcome, point,
             point_unix_ns, read_bytes, new_bytes, stored_bytes, error_kind, error, advice, warning,
             frozen FROM run ORDER BY number",
        )?;
        let mut rows = runs.query([])?;
        while let Some(row) = rows.next()? {
            let run = RunRow {
                run: row.get(0)?,
                machine: row.get(1)?,
                repository: row.get(2)?,
                started_unix_ns: unsigned(row.get(3)?),
                ended_unix_ns: row.get::<_, Option<i64>>(4)?.map(unsigned),
                outcome: row
                    .get::<_, Option<String>>(5)?
                    .and_then(|text| Outcome::from_str(&text)),
                point: row.get(6)?,
                point_unix_ns: row.get::<_, Option<i64>>(7)?.map(unsigned),
                read_bytes: unsigned(row.get(8)?),
                new_bytes: unsigned(row.get(9)?),
                stored_bytes: unsigned(row.get(10)?),
                error: match row.get::<_, Option<String>>(11)? {
                    None => None,
                    Some(kind) => Some(Fault {
                        kind,
                        message: row.get::<_, Option<String>>(12)?.unwrap_or_default(),
                        advice: row.get(13)?,
                    }),
                },
                warning: row.get(14)?,
                // What another version wrote is for people, and may be lacking.
                frozen: row
                    .get::<_, Option<String>>(15)?
                    .and_then(|text| serde_json::from_str(&text).ok()),
            };
            if let Some(remembered) = all.get_mut(&run.machine) {
                remembered.add(run);
            }
        }
        let mut hours = self.connection.prepare(
            "SELECT machine, hour, runs, requests, audited_blocks, false_chunks, held_ns_max FROM hour",
        )?;
        let mut rows = hours.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(remembered) = all.get_mut(&row.get::<_, String>(0)?) {
                let hour = Hour {
                    runs: unsigned(row.get(2)?),
                    requests: unsigned(row.get(3)?),
                    audited_blocks: unsigned(row.get(4)?),
                    false_chunks: unsigned(row.get(5)?),
                    held_ns_max: unsigned(row.get(6)?),
                };
                remembered.hours.insert(unsigned(row.get(1)?), hour);
            }
        }
        Ok(all)
    }

    /// Saves rows in one transaction.
    pub(super) fn save(&mut self, rows: &[Row]) -> Result<()> {
        let path = self.path.clone();
        self.try_save(rows).map_err(|error| sqlite(&path, error))
    }

    fn try_save(&mut self, rows: &[Row]) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        for row in rows {
            match row {
                Row::Run(run) => save_run(&transaction, run)?,
                Row::Hour(machine, number, hour) => {
                    save_hour(&transaction, machine, *number, hour)?;
                }
                Row::Machine(machine) => {
                    transaction.execute(
                        "INSERT INTO machine VALUES (?1, ?2, ?3)
                         ON CONFLICT (name) DO UPDATE SET gone_unix_ns = ?3",
                        params![
                            machine.machine,
                            signed(machine.first_seen_unix_ns),
                            machine.gone_unix_ns.map(signed)
                        ],
                    )?;
                }
                Row::Forget(name) => {
                    transaction.execute("DELETE FROM machine WHERE name = ?1", [name])?;
                    transaction.execute("DELETE FROM run WHERE machine = ?1", [name])?;
                    transaction.execute("DELETE FROM hour WHERE machine = ?1", [name])?;
                }
            }
        }
        transaction.commit()
    }
}

fn save_run(transaction: &Transaction<'_>, run: &RunRow) -> rusqlite::Result<()> {
    let error = run.error.as_ref();
    transaction.execute(
        "INSERT INTO run (id, machine, repository, started_unix_ns, ended_unix_ns, outcome, point,
         point_unix_ns, read_bytes, new_bytes, stored_bytes, error_kind, error, advice, warning, frozen)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)
         ON CONFLICT (id) DO UPDATE SET ended_unix_ns = ?5, outcome = ?6, point = ?7,
         point_unix_ns = ?8, read_bytes = ?9, new_bytes = ?10, stored_bytes = ?11, error_kind = ?12,
         error = ?13, advice = ?14, warning = ?15, frozen = ?16",
        params![
            run.run,
            run.machine,
            run.repository,
            signed(run.started_unix_ns),
            run.ended_unix_ns.map(signed),
            run.outcome.map(Outcome::as_str),
            run.point,
            run.point_unix_ns.map(signed),
            signed(run.read_bytes),
            signed(run.new_bytes),
            signed(run.stored_bytes),
            error.map(|error| &error.kind),
            error.map(|error| &error.message),
            error.and_then(|error| error.advice.as_ref()),
            run.warning,
            run.frozen
                .as_ref()
                .and_then(|frozen| serde_json::to_string(frozen).ok()),
        ],
    )?;
    transaction.execute(
        "DELETE FROM run WHERE machine = ?1 AND number <=
         (SELECT number FROM run WHERE machine = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2)",
        params![run.machine, RUNS_KEPT],
    )?;
    Ok(())
}

fn save_hour(
    transaction: &Transaction<'_>,
    machine: &str,
    number: u64,
    hour: &Hour,
) -> rusqlite::Result<()> {
    // The whole hour so far: saved twice it is the same.
    transaction.execute(
        "INSERT OR REPLACE INTO hour VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            machine,
            signed(number),
            signed(hour.runs),
            signed(hour.requests),
            signed(hour.audited_blocks),
            signed(hour.false_chunks),
            signed(hour.held_ns_max),
        ],
    )?;
    transaction.execute(
        "DELETE FROM hour WHERE machine = ?1 AND abs(hour - ?2) >= ?3",
        params![machine, signed(number), signed(HOURS_KEPT)],
    )?;
    Ok(())
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn sqlite(path: &Path, error: rusqlite::Error) -> Error {
    let kind = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Kind::Corrupt,
        Some(ErrorCode::DiskFull) => Kind::NoSpace,
        Some(ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => Kind::Denied,
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Kind::Unavailable,
        _ => Kind::Io,
    };
    Error::new(kind, format!("the history of runs {}", path.display())).caused_by(error)
}
