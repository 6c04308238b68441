//! Which packs each machine's newest point of this host refers to.
//!
//! A run that reads only what changed takes the rest over from that point, unseen. Before it commits it
//! must know whether all packs behind it are sound; looking at its whole tree would cost more than the
//! run. What stands here may be more than the point needs, never less.

use super::Catalogue;
use crate::error::Result;
use rusqlite::params;
use std::collections::HashSet;
use tidegate_protocol::ids::{PackId, PointId};

impl Catalogue {
    /// True where the packs of that point are known.
    pub fn has_references(&self, point: PointId) -> Result<bool> {
        self.read(|connection| {
            connection
                .prepare_cached("SELECT 1 FROM refers WHERE point = ?1")?
                .exists([point.0])
        })
    }

    /// Notes that `point` of `machine` refers to `packs`, and to all that `base` referred to.
    pub fn set_references(
        &self,
        machine: &str,
        point: PointId,
        base: Option<PointId>,
        packs: &HashSet<PackId>,
    ) -> Result<()> {
        self.write(|transaction| {
            let work = || -> rusqlite::Result<()> {
                let before: Option<Vec<u8>> = transaction
                    .prepare_cached("SELECT point FROM refers WHERE machine = ?1")?
                    .query_row([machine], |row| row.get(0))
                    .ok();
                let goes_on = match (base, before) {
                    (Some(base), Some(before)) => before == base.0,
                    _ => false,
                };
                if !goes_on {
                    transaction.execute("DELETE FROM refers_to WHERE machine = ?1", [machine])?;
                    transaction.execute("DELETE FROM refers WHERE machine = ?1", [machine])?;
                    if base.is_some() {
                        // Another process has been here: less than all is worth nothing.
                        return Ok(());
                    }
                }
                transaction.execute(
                    "INSERT OR REPLACE INTO refers VALUES (?1, ?2)",
                    params![machine, point.0],
                )?;
                let mut insert = transaction
                    .prepare_cached("INSERT OR IGNORE INTO refers_to VALUES (?1, ?2)")?;
                for pack in packs {
                    insert.execute(params![machine, pack.0])?;
                }
                Ok(())
            };
            work().map_err(|error| self.error(error))
        })
    }

    /// True where a pack that the point refers to was swept or found bad.
    pub fn refers_to_lost(&self, point: PointId) -> Result<bool> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT 1 FROM refers JOIN refers_to ON refers_to.machine = refers.machine
                     WHERE refers.point = ?1
                       AND (EXISTS (SELECT 1 FROM swept WHERE swept.pack = refers_to.pack)
                         OR EXISTS (SELECT 1 FROM bad WHERE bad.pack = refers_to.pack))
                     LIMIT 1",
                )?
                .exists([point.0])
        })
    }
}
