//! What the catalogue knows of packs: which may not be referred to, and which should be in the store.
//!
//! Not a list of what is in the store. A pack that is expected here was named by a record of the log,
//! or by a segment that a record named, and has not been swept or found bad since.

use super::{Catalogue, unsigned};
use crate::error::Result;
use rusqlite::params;
use std::collections::HashSet;
use tidegate_protocol::ids::PackId;

/// A pack that should be in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpectedPack {
    /// Its name.
    pub id: PackId,
    /// Its size in bytes; 0 where it is not known.
    pub bytes: u64,
}

impl Catalogue {
    /// Packs whose chunks must not be referred to any more: condemned, swept or found bad.
    pub fn unusable_packs(&self) -> Result<HashSet<PackId>> {
        self.packs_of(
            "SELECT pack FROM condemned UNION SELECT pack FROM swept UNION SELECT pack FROM bad",
        )
    }

    /// Packs that are gone or damaged: no new point may be committed that needs one.
    pub fn lost_packs(&self) -> Result<HashSet<PackId>> {
        self.packs_of("SELECT pack FROM swept UNION SELECT pack FROM bad")
    }

    /// Whether the log says that the pack's own object may be deleted: it was swept, or lies in a bundle.
    pub fn may_be_deleted(&self, pack: PackId) -> Result<bool> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT 1 FROM swept WHERE pack = ?1 UNION SELECT 1 FROM bundled WHERE pack = ?1",
                )?
                .exists([pack.0])
        })
    }

    /// Tree packs that were found bad and not swept since.
    pub fn bad_tree_packs(&self) -> Result<HashSet<PackId>> {
        self.packs_of("SELECT pack FROM bad JOIN tree_pack ON tree_pack.id = bad.pack")
    }

    /// Packs that should be in the store, data and tree alike, and bundles in the place of those that lie
    /// in one, in the order of their names, after `after`; at most `count`. Packs that this machine has not
    /// told anybody of are not among them.
    pub fn expected_packs(&self, after: Option<PackId>, count: u32) -> Result<Vec<ExpectedPack>> {
        let after = after.map_or_else(Vec::new, |pack| pack.0.to_vec());
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT id, bytes FROM pack
                     WHERE segment IS NOT NULL AND id > ?1
                       AND id NOT IN (SELECT pack FROM bad) AND id NOT IN (SELECT pack FROM swept)
                       AND id NOT IN (SELECT pack FROM bundled)
                     UNION
                     SELECT id, bytes FROM tree_pack
                     WHERE id > ?1
                       AND id NOT IN (SELECT pack FROM bad) AND id NOT IN (SELECT pack FROM swept)
                       AND id NOT IN (SELECT pack FROM bundled)
                     UNION
                     SELECT bundle, max(start + bytes) FROM bundled WHERE bundle > ?1 GROUP BY bundle
                     HAVING max(pack NOT IN (SELECT pack FROM bad) AND pack NOT IN (SELECT pack FROM swept))
                     ORDER BY id LIMIT ?2",
                )?
                .query_map(params![after, count], |row| {
                    Ok(ExpectedPack {
                        id: PackId(row.get(0)?),
                        bytes: unsigned(row.get(1)?),
                    })
                })?
                .collect()
        })
    }

    /// When the store's packs were last compared with those expected, Unix time in nanoseconds; 0 is
    /// never.
    pub fn listed_unix_ns(&self) -> Result<u64> {
        self.read(|connection| {
            connection.query_row("SELECT time_unix_ns FROM listing", [], |row| {
                Ok(unsigned(row.get(0)?))
            })
        })
    }

    /// Notes that they were compared at that time.
    pub fn set_listed(&self, time_unix_ns: u64) -> Result<()> {
        self.write(|transaction| {
            transaction
                .execute(
                    "UPDATE listing SET time_unix_ns = ?1",
                    [time_unix_ns.cast_signed()],
                )
                .map(drop)
                .map_err(|error| self.error(error))
        })
    }

    fn packs_of(&self, sql: &str) -> Result<HashSet<PackId>> {
        Ok(self.ids(sql, PackId::from_slice)?.into_iter().collect())
    }
}
