//! Which packs lie in bundles, and which of those may still have an object of their own.
//!
//! What the log says of bundles is never taken back, so these rows outlive a checkpoint.

use super::state::checked_body;
use super::{Catalogue, ExpectedPack, unsigned};
use crate::error::Result;
use rusqlite::{Connection, OptionalExtension, params};
use std::ops::Range;
use tidegate_protocol::ids::PackId;
use tidegate_protocol::limits::PACK_BYTES_MAX;
use tidegate_protocol::record::PacksBundled;

/// Packs that may go into a bundle: the log or a segment that it names knows them, and nothing is wrong
/// with them.
const BUNDLEABLE: &str = "
    (SELECT id, bytes FROM pack WHERE segment IS NOT NULL UNION SELECT id, bytes FROM tree_pack)
    WHERE bytes BETWEEN 1 AND ?1
      AND id NOT IN (SELECT pack FROM bundled) AND id NOT IN (SELECT id FROM bundle)
      AND id NOT IN (SELECT pack FROM condemned) AND id NOT IN (SELECT pack FROM swept)
      AND id NOT IN (SELECT pack FROM bad)";

impl Catalogue {
    /// The bundle that the pack lies in, and where in it.
    pub fn bundled(&self, pack: PackId) -> Result<Option<(PackId, Range<u64>)>> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT bundle, start, bytes FROM bundled WHERE pack = ?1")?
                .query_row([pack.0], |row| {
                    let start = unsigned(row.get(1)?);
                    let end = start.saturating_add(unsigned(row.get(2)?));
                    Ok((PackId(row.get(0)?), start..end))
                })
                .optional()
        })
    }

    /// Whether the object of that name is a bundle.
    pub fn is_bundle(&self, object: PackId) -> Result<bool> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT 1 FROM bundle WHERE id = ?1")?
                .exists([object.0])
        })
    }

    /// Packs of at most so many bytes that may go into a bundle, in the order of their names.
    pub fn bundleable(&self, bytes_max: u64) -> Result<Vec<ExpectedPack>> {
        self.read(|connection| {
            connection
                .prepare_cached(&format!(
                    "SELECT id, max(bytes) FROM {BUNDLEABLE} GROUP BY id ORDER BY id"
                ))?
                .query_map([bytes_max.cast_signed()], |row| {
                    Ok(ExpectedPack {
                        id: PackId(row.get(0)?),
                        bytes: unsigned(row.get(1)?),
                    })
                })?
                .collect()
        })
    }

    /// Whether each of these packs may still go into a bundle.
    pub fn are_bundleable(&self, packs: &[PackId]) -> Result<bool> {
        self.read(|connection| {
            let mut statement =
                connection.prepare_cached(&format!("SELECT 1 FROM {BUNDLEABLE} AND id = ?2"))?;
            for pack in packs {
                if !statement.exists(params![PACK_BYTES_MAX, pack.0])? {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// Packs of bundles whose own objects may still be there, of records from before that time (Unix time
    /// in nanoseconds), and that nothing is known to be wrong with: each with its bundle, a bundle's
    /// together.
    pub fn bundled_with_object(&self, before_unix_ns: u64) -> Result<Vec<(PackId, PackId)>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT bundle, pack FROM bundled WHERE NOT gone AND since_unix_ns < ?1
                       AND pack NOT IN (SELECT pack FROM bad) ORDER BY bundle",
                )?
                .query_map([before_unix_ns.cast_signed()], |row| {
                    Ok((PackId(row.get(0)?), PackId(row.get(1)?)))
                })?
                .collect()
        })
    }

    /// Notes that the own objects of these packs are gone.
    pub fn set_gone(&self, packs: &[PackId]) -> Result<()> {
        self.write(|transaction| {
            for pack in packs {
                transaction
                    .prepare_cached("UPDATE bundled SET gone = 1 WHERE pack = ?1")
                    .and_then(|mut statement| statement.execute([pack.0]))
                    .map_err(|error| self.error(error))?;
            }
            Ok(())
        })
    }

    /// The packs of a bundle that end behind its first `bytes`, and that nothing is known to be wrong with.
    pub fn bundled_behind(&self, bundle: PackId, bytes: u64) -> Result<Vec<PackId>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT pack FROM bundled WHERE bundle = ?1 AND start + bytes > ?2
                       AND pack NOT IN (SELECT pack FROM bad) AND pack NOT IN (SELECT pack FROM swept)",
                )?
                .query_map(params![bundle.0, bytes.cast_signed()], |row| Ok(PackId(row.get(0)?)))?
                .collect()
        })
    }

    /// What records said of bundles, in the order of the records.
    pub(super) fn bundles(&self) -> Result<Vec<PacksBundled>> {
        self.decode_all("SELECT body FROM bundle ORDER BY number")
    }
}

/// Of a bundle that is named twice, and of a pack in two bundles, the first record counts.
pub(super) fn add_bundle(
    connection: &Connection,
    bundled: &PacksBundled,
    time_unix_ns: u64,
) -> rusqlite::Result<()> {
    let is_new = connection
        .prepare_cached("INSERT OR IGNORE INTO bundle (id, body) VALUES (?1, ?2)")?
        .execute(params![bundled.bundle, checked_body(bundled)])?
        > 0;
    if !is_new {
        return Ok(());
    }
    let mut insert = connection.prepare_cached(
        "INSERT OR IGNORE INTO bundled (pack, bundle, start, bytes, since_unix_ns)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for (start, pack) in bundled.places() {
        insert.execute(params![
            pack.pack,
            bundled.bundle,
            start.cast_signed(),
            pack.bytes.cast_signed(),
            time_unix_ns.cast_signed(),
        ])?;
    }
    Ok(())
}
