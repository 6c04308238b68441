//! What a verify has to look at: every chunk that the points need, once, in pack order, in a
//! temporary file. Blocking.

use crate::error::{Error, Kind, Result};
use crate::repository::fetch::Want;
use rusqlite::{Connection, params};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use tidegate_protocol::ids::{ChunkId, PackId};
use tidegate_protocol::pack::Location;

const INSERT: &str = "INSERT OR IGNORE INTO wanted VALUES (?1, ?2, ?3, ?4, ?5, ?6)";

/// What the points need, each chunk once, in pack order, in a temporary file.
pub(super) struct Worklist {
    connection: Mutex<Connection>,
}

impl Worklist {
    pub(super) fn new() -> Result<Self> {
        let open = || -> rusqlite::Result<Connection> {
            // An empty name: SQLite makes a temporary file and removes it when it is closed.
            let connection = Connection::open("")?;
            connection.execute_batch(
                "PRAGMA cache_size = -32768;
                 CREATE TABLE wanted (
                     pack BLOB NOT NULL, frame_offset INTEGER NOT NULL, offset_in_frame INTEGER NOT NULL,
                     frame_bytes INTEGER NOT NULL, length INTEGER NOT NULL, chunk BLOB NOT NULL,
                     PRIMARY KEY (pack, frame_offset, offset_in_frame, chunk)
                 ) WITHOUT ROWID;",
            )?;
            Ok(connection)
        };
        let connection = open().map_err(worklist_error)?;
        Ok(Self {
            connection: Mutex::new(connection),
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T> {
        let mut connection = self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        work(&mut connection).map_err(worklist_error)
    }

    pub(super) fn add(&self, chunks: &[(ChunkId, Location)]) -> Result<()> {
        self.with(|connection| {
            let transaction = connection.transaction()?;
            {
                let mut insert = transaction.prepare_cached(INSERT)?;
                for (chunk, location) in chunks {
                    insert.execute(params![
                        location.pack.0,
                        location.frame_offset,
                        location.offset_in_frame,
                        location.frame_bytes,
                        location.length,
                        chunk.0
                    ])?;
                }
            }
            transaction.commit()
        })
    }

    /// Has chunks looked at in other places than they were entered with.
    pub(super) fn relocate(&self, moved: &[(Place, Want)]) -> Result<()> {
        self.with(|connection| {
            let transaction = connection.transaction()?;
            for (place, want) in moved {
                let location = &want.location;
                transaction
                    .prepare_cached(
                        "DELETE FROM wanted WHERE pack = ?1 AND frame_offset = ?2
                         AND offset_in_frame = ?3 AND chunk = ?4",
                    )?
                    .execute(params![
                        place.pack,
                        place.frame_offset,
                        place.offset_in_frame,
                        place.chunk
                    ])?;
                transaction.prepare_cached(INSERT)?.execute(params![
                    location.pack.0,
                    location.frame_offset,
                    location.offset_in_frame,
                    location.frame_bytes,
                    location.length,
                    want.chunk.0
                ])?;
            }
            transaction.commit()
        })
    }

    /// Packs, and how many bytes each must have at least.
    pub(super) fn packs(&self) -> Result<HashMap<PackId, u64>> {
        self.with(|connection| {
            connection
                .prepare("SELECT pack, max(frame_offset + frame_bytes) FROM wanted GROUP BY pack")?
                .query_map([], |row| {
                    Ok((PackId(row.get(0)?), row.get::<_, i64>(1)?.cast_unsigned()))
                })?
                .collect()
        })
    }

    pub(super) fn count(&self) -> Result<u64> {
        self.number("SELECT count(*) FROM wanted")
    }

    pub(super) fn bytes(&self) -> Result<u64> {
        self.number("SELECT coalesce(sum(length), 0) FROM wanted")
    }

    fn number(&self, sql: &str) -> Result<u64> {
        self.with(|connection| {
            connection.query_row(sql, [], |row| Ok(row.get::<_, i64>(0)?.cast_unsigned()))
        })
    }

    /// The next chunks in pack order, each with its place in that order.
    pub(super) fn batch(&self, after: Option<Place>, count: u32) -> Result<Vec<(Place, Want)>> {
        let after = after.unwrap_or_default();
        self.with(|connection| {
            connection
                .prepare_cached(
                    "SELECT pack, frame_offset, offset_in_frame, frame_bytes, length, chunk FROM wanted
                     WHERE (pack, frame_offset, offset_in_frame, chunk) > (?1, ?2, ?3, ?4)
                     ORDER BY pack, frame_offset, offset_in_frame, chunk LIMIT ?5",
                )?
                .query_map(
                    params![after.pack, after.frame_offset, after.offset_in_frame, after.chunk, count],
                    |row| {
                        let location = Location {
                            pack: PackId(row.get(0)?),
                            frame_offset: row.get(1)?,
                            offset_in_frame: row.get(2)?,
                            frame_bytes: row.get(3)?,
                            length: row.get(4)?,
                        };
                        let chunk = ChunkId(row.get(5)?);
                        let place = Place {
                            pack: location.pack.0,
                            frame_offset: location.frame_offset,
                            offset_in_frame: location.offset_in_frame,
                            chunk: chunk.0,
                        };
                        let want = Want {
                            disk_offset: 0,
                            length: location.length,
                            chunk,
                            offset: 0,
                            location,
                        };
                        Ok((place, want))
                    },
                )?
                .collect()
        })
    }
}

fn worklist_error(error: rusqlite::Error) -> Error {
    let kind = match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => Kind::NoSpace,
        _ => Kind::Io,
    };
    Error::new(kind, "the temporary work list of a verify")
        .advise("free some space in the folder for temporary files, or set SQLITE_TMPDIR")
        .caused_by(error)
}

/// A chunk's place in the order of the list.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Place {
    pack: [u8; 32],
    frame_offset: u32,
    offset_in_frame: u32,
    chunk: [u8; 32],
}

impl Place {
    /// Before all of a pack's chunks: no frame begins where the pack does.
    pub(super) fn before(pack: PackId) -> Self {
        Self {
            pack: pack.0,
            ..Self::default()
        }
    }
}
