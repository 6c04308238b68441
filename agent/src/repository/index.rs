//! The chunk index: which chunks the repository has, and where they lie.
//!
//! The engine asks one question, [`IndexReader::known`]. It is answered by a filter in memory, which
//! says "no" to nearly all new chunks, then by a table in the local SQLite file. Rows are keyed by
//! 16 bytes of the chunk's id, eight of them as SQLite's own integer key. A chunk that lies in several
//! packs keeps its other places in a second table. All of it can be rebuilt from the index segments.

use super::catalogue::{self, Catalogue};
use crate::error::{Error, Result};
use fastbloom::AtomicBloomFilter;
use rusqlite::{Connection, OptionalExtension, Row, params};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};
use tidegate_protocol::ids::{ChunkId, PackId, SegmentId};
use tidegate_protocol::pack::Location;
use tidegate_protocol::segment::Segment;

/// Share of new chunks for which the filter is wrong and the table is asked in vain.
const FILTER_FALSE_POSITIVES: f64 = 0.01;

/// Chunks that the filter has room for beyond those known when it is made, and an eighth of them.
/// With more it errs more often, which costs look-ups.
const FILTER_HEADROOM: usize = 1 << 20;

/// Stands in the place of the segment of a pack that a gateway has told of: some segment names it, so
/// nobody has to look for one.
const TOLD: SegmentId = SegmentId([0; 32]);

/// What the readers of one process share.
pub struct Index {
    catalogue: Arc<Catalogue>,
    filter: AtomicBloomFilter,
    unusable: RwLock<Arc<HashSet<PackId>>>,
}

impl Index {
    /// Reads the local table into a filter.
    pub fn open(catalogue: Arc<Catalogue>) -> Result<Arc<Self>> {
        let (chunks, _) = catalogue.chunk_totals()?;
        let chunks = usize::try_from(chunks).unwrap_or(usize::MAX / 4);
        let expected = chunks + chunks / 8 + FILTER_HEADROOM;
        let filter =
            AtomicBloomFilter::with_false_pos(FILTER_FALSE_POSITIVES).expected_items(expected);
        catalogue.read(|connection| {
            let mut statement = connection.prepare("SELECT front FROM chunk")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                filter.insert(&row.get::<_, i64>(0)?);
            }
            Ok(())
        })?;
        let unusable = RwLock::new(Arc::new(catalogue.unusable_packs()?));
        Ok(Arc::new(Self {
            catalogue,
            filter,
            unusable,
        }))
    }

    /// A reader for one thread.
    pub fn reader(self: &Arc<Self>) -> Result<IndexReader> {
        Ok(IndexReader {
            connection: catalogue::connect(self.catalogue.path())?,
            index: Arc::clone(self),
            packs: HashMap::new(),
        })
    }

    /// Takes note of packs that the log has meanwhile condemned, swept or found bad.
    pub fn refresh_unusable(&self) -> Result<()> {
        let fresh = Arc::new(self.catalogue.unusable_packs()?);
        *self
            .unusable
            .write()
            .unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// Packs whose chunks must be stored anew rather than referred to.
    pub fn unusable(&self) -> Arc<HashSet<PackId>> {
        Arc::clone(&self.unusable.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Enters a pack that has just landed in the store. It has no segment yet.
    pub fn add_landed(
        &self,
        pack: PackId,
        bytes: u64,
        chunks: &[(ChunkId, Location)],
    ) -> Result<()> {
        let error = |error| self.catalogue.error(error);
        self.catalogue.write(|transaction| {
            let number = pack_number(transaction, pack, bytes).map_err(error)?;
            for (chunk, location) in chunks {
                insert_chunk(transaction, number, chunk, location, true).map_err(error)?;
            }
            Ok(())
        })?;
        self.note(chunks.iter());
        Ok(())
    }

    /// Enters a segment read from the store. Segments come in any order: a place in a pack that may
    /// not be referred to never replaces another.
    pub fn add_segment(&self, id: SegmentId, segment: &Segment) -> Result<()> {
        let error = |error| self.catalogue.error(error);
        let unusable = self.unusable();
        self.catalogue.write(|transaction| {
            let mut numbers = HashMap::new();
            for (pack, bytes) in &segment.packs {
                let number = pack_number(transaction, *pack, u64::from(*bytes)).map_err(error)?;
                numbers.insert(*pack, (number, !unusable.contains(pack)));
                assign(transaction, number, id).map_err(error)?;
            }
            for (chunk, location) in &segment.entries {
                if let Some((number, replace)) = numbers.get(&location.pack) {
                    insert_chunk(transaction, *number, chunk, location, *replace).map_err(error)?;
                }
            }
            mark_loaded(transaction, id).map_err(error)
        })?;
        self.note(segment.entries.iter());
        Ok(())
    }

    /// Enters places that a gateway has told: those of segments that this machine has not read.
    pub fn add_told(&self, chunks: &[(ChunkId, Location)]) -> Result<()> {
        if chunks.is_empty() {
            return Ok(());
        }
        let error = |error| self.catalogue.error(error);
        self.catalogue.write(|transaction| {
            let mut numbers = HashMap::new();
            for (chunk, location) in chunks {
                let number = match numbers.get(&location.pack) {
                    Some(number) => *number,
                    None => {
                        let number = pack_number(transaction, location.pack, 0).map_err(error)?;
                        transaction
                            .prepare_cached(
                                "UPDATE pack SET segment = ?2 WHERE number = ?1 AND segment IS NULL",
                            )
                            .and_then(|mut update| update.execute(params![number, TOLD.0]))
                            .map_err(error)?;
                        numbers.insert(location.pack, number);
                        number
                    }
                };
                insert_chunk(transaction, number, chunk, location, false).map_err(error)?;
            }
            Ok(())
        })?;
        self.note(chunks.iter());
        Ok(())
    }

    /// Notes that packs which had landed are indexed by `segment`, which the log names by now.
    pub fn assign_segment(&self, packs: &[PackId], segment: SegmentId) -> Result<()> {
        let error = |error| self.catalogue.error(error);
        self.catalogue.write(|transaction| {
            for pack in packs {
                let number = pack_number(transaction, *pack, 0).map_err(error)?;
                assign(transaction, number, segment).map_err(error)?;
            }
            mark_loaded(transaction, segment).map_err(error)
        })
    }

    /// Enters what is in a pack that no segment names. It never replaces another place: nobody has vouched
    /// for this one yet.
    pub fn add_unnamed(&self, pack: &LandedPack, chunks: &[(ChunkId, Location)]) -> Result<()> {
        let error = |error| self.catalogue.error(error);
        self.catalogue.write(|transaction| {
            for (chunk, location) in chunks {
                insert_chunk(transaction, pack.number, chunk, location, false).map_err(error)?;
            }
            Ok(())
        })?;
        self.note(chunks.iter());
        Ok(())
    }

    /// Packs in the store that no segment names: those that this host uploaded in a run that did not come
    /// to publish one, which the next run goes on from; and those whose segment was lost.
    pub fn orphans(&self) -> Result<Vec<LandedPack>> {
        self.catalogue.read(|connection| {
            let mut packs = connection.prepare(
                "SELECT number, id, bytes FROM pack WHERE segment IS NULL ORDER BY number",
            )?;
            let packs = packs
                .query_map([], |row| {
                    Ok((
                        row.get::<_, i64>(0)?,
                        PackId(row.get(1)?),
                        catalogue::unsigned(row.get(2)?),
                    ))
                })?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            Ok(packs
                .into_iter()
                .map(|(number, id, bytes)| LandedPack { number, id, bytes })
                .collect())
        })
    }

    /// Forgets a pack and its chunks.
    pub fn forget(&self, pack: &LandedPack) -> Result<()> {
        let error = |error| self.catalogue.error(error);
        self.catalogue.write(|transaction| {
            transaction
                .execute("DELETE FROM chunk WHERE pack = ?1", [pack.number])
                .map_err(error)?;
            transaction
                .execute("DELETE FROM spare WHERE pack = ?1", [pack.number])
                .map_err(error)?;
            restore_spares(transaction).map_err(error)?;
            transaction
                .execute("DELETE FROM pack WHERE number = ?1", [pack.number])
                .map(drop)
                .map_err(error)
        })
    }

    fn note<'a>(&self, chunks: impl Iterator<Item = &'a (ChunkId, Location)>) {
        for (chunk, _) in chunks {
            self.filter.insert(&front(chunk));
        }
    }
}

/// A pack in the local index.
#[derive(Debug, Clone, Copy)]
pub struct LandedPack {
    number: i64,
    /// Its name.
    pub id: PackId,
    /// Its size in bytes.
    pub bytes: u64,
}

/// One thread's way to ask.
pub struct IndexReader {
    connection: Connection,
    index: Arc<Index>,
    /// Names of packs by their numbers, which are this connection's file's own.
    packs: HashMap<i64, PackId>,
}

impl IndexReader {
    /// Where the chunk lies, if the repository has it in a pack that may be referred to.
    pub fn known(&mut self, chunk: &ChunkId) -> Result<Option<Location>> {
        let unusable = self.index.unusable();
        match self.anywhere(chunk)? {
            Some(location) if !unusable.contains(&location.pack) => Ok(Some(location)),
            None => Ok(None),
            Some(_) => {
                let mut places = self.places(chunk)?.into_iter();
                Ok(places.find(|location| !unusable.contains(&location.pack)))
            }
        }
    }

    /// All places where the chunk lies, also in packs that are condemned or worse: a reader tries
    /// those that may be referred to first, and no other than swept ones is beyond hope.
    pub fn places(&mut self, chunk: &ChunkId) -> Result<Vec<Location>> {
        let Some(first) = self.anywhere(chunk)? else {
            return Ok(Vec::new());
        };
        let mut places = vec![first];
        let spare = self
            .spare(chunk)
            .map_err(|error| self.index.catalogue.error(error))?;
        places.extend(spare.into_iter().filter(|location| *location != first));
        let unusable = self.index.unusable();
        places.sort_by_key(|location| unusable.contains(&location.pack));
        Ok(places)
    }

    /// Where the chunk lies, even if its pack is condemned or worse.
    pub fn anywhere(&mut self, chunk: &ChunkId) -> Result<Option<Location>> {
        let front = front(chunk);
        if !self.index.filter.contains(&front) {
            return Ok(None);
        }
        self.look_up(front, chunk)
            .map_err(|error| self.index.catalogue.error(error))
    }

    fn spare(&mut self, chunk: &ChunkId) -> rusqlite::Result<Vec<Location>> {
        let rows = self
            .connection
            .prepare_cached(
                "SELECT pack, frame_offset, frame_bytes, offset_in_frame, length
                 FROM spare WHERE front = ?1 AND back = ?2 ORDER BY pack DESC",
            )?
            .query_map([front(chunk), back(chunk)], place)?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let mut places = Vec::with_capacity(rows.len());
        for (number, location) in rows {
            let pack = self.pack_id(number)?;
            places.extend(pack.map(|pack| Location { pack, ..location }));
        }
        Ok(places)
    }

    fn look_up(&mut self, front: i64, chunk: &ChunkId) -> rusqlite::Result<Option<Location>> {
        let row = self
            .connection
            .prepare_cached(
                "SELECT pack, frame_offset, frame_bytes, offset_in_frame, length
                 FROM chunk WHERE front = ?1 AND back = ?2",
            )?
            .query_row([front, back(chunk)], place)
            .optional()?;
        let Some((number, location)) = row else {
            return Ok(None);
        };
        let pack = self.pack_id(number)?;
        Ok(pack.map(|pack| Location { pack, ..location }))
    }

    fn pack_id(&mut self, number: i64) -> rusqlite::Result<Option<PackId>> {
        if let Some(id) = self.packs.get(&number) {
            return Ok(Some(*id));
        }
        let id = self
            .connection
            .prepare_cached("SELECT id FROM pack WHERE number = ?1")?
            .query_row([number], |row| row.get::<_, [u8; 32]>(0))
            .optional()?
            .map(PackId);
        if let Some(id) = id {
            self.packs.insert(number, id);
        }
        Ok(id)
    }
}

/// A pack's number, and a place whose pack is still to be named.
fn place(row: &Row<'_>) -> rusqlite::Result<(i64, Location)> {
    let location = Location {
        pack: PackId::OWN,
        frame_offset: row.get(1)?,
        frame_bytes: row.get(2)?,
        offset_in_frame: row.get(3)?,
        length: row.get(4)?,
    };
    Ok((row.get(0)?, location))
}

fn pack_number(connection: &Connection, pack: PackId, bytes: u64) -> rusqlite::Result<i64> {
    connection
        .prepare_cached("INSERT OR IGNORE INTO pack (id, bytes) VALUES (?1, ?2)")?
        .execute(params![pack.0, bytes.cast_signed()])?;
    connection
        .prepare_cached("SELECT number FROM pack WHERE id = ?1")?
        .query_row([pack.0], |row| row.get(0))
}

/// Nothing is assigned to a segment that was found bad meanwhile.
fn assign(connection: &Connection, number: i64, segment: SegmentId) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "UPDATE pack SET segment = ?2 WHERE number = ?1
             AND NOT EXISTS (SELECT 1 FROM segment WHERE id = ?2 AND bad)",
        )?
        .execute(params![number, segment.0])
        .map(drop)
}

fn mark_loaded(connection: &Connection, segment: SegmentId) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO segment (id, loaded) VALUES (?1, 1) ON CONFLICT (id) DO UPDATE SET loaded = 1",
        )?
        .execute([segment.0])
        .map(drop)
}

/// Enters a place. Where the chunk has another one already, `prefer` says which of the two is found
/// first; the other becomes a spare, which is what is left when the first one's pack is swept.
fn insert_chunk(
    connection: &Connection,
    pack: i64,
    chunk: &ChunkId,
    location: &Location,
    prefer: bool,
) -> rusqlite::Result<()> {
    let row = params![
        front(chunk),
        back(chunk),
        pack,
        location.frame_offset,
        location.frame_bytes,
        location.offset_in_frame,
        location.length,
    ];
    let insert = "INSERT OR IGNORE INTO chunk VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    if connection.prepare_cached(insert)?.execute(row)? > 0 {
        return Ok(());
    }
    if !prefer {
        let spare = "INSERT OR REPLACE INTO spare SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7
                     WHERE NOT EXISTS (SELECT 1 FROM chunk WHERE front = ?1 AND back = ?2 AND pack = ?3)";
        return connection.prepare_cached(spare)?.execute(row).map(drop);
    }
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO spare SELECT * FROM chunk WHERE front = ?1 AND pack <> ?2",
        )?
        .execute(params![front(chunk), pack])?;
    connection
        .prepare_cached("INSERT OR REPLACE INTO chunk VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
        .execute(row)
        .map(drop)
}

fn front(chunk: &ChunkId) -> i64 {
    part(chunk, 0)
}

fn back(chunk: &ChunkId) -> i64 {
    part(chunk, 8)
}

fn part(chunk: &ChunkId, at: usize) -> i64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&chunk.0[at..at + 8]);
    i64::from_be_bytes(bytes)
}

/// Lets spare places stand for chunks that have lost their first one. Spares are few: what several
/// writers have stored at the same time, and what was stored anew.
pub(super) fn restore_spares(connection: &Connection) -> rusqlite::Result<()> {
    connection
        .execute("INSERT OR IGNORE INTO chunk SELECT * FROM spare", [])
        .map(drop)
}

/// A segment that cannot be used: the next backup names its packs anew.
pub(super) fn unusable_segment(id: SegmentId, error: &Error) {
    tracing::warn!(
        object = id.object_key(),
        error = error.chain(),
        "an index segment cannot be read: the next backup writes anew what it said"
    );
}
