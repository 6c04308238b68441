//! What the catalogue knows of how long points are kept: times, holds, and points that were given up.
//!
//! No decision is taken here. Of points that were given up it remembers those whose record was replayed on
//! this machine: for an error that says what became of one, not for anything that must be right.

use super::{Catalogue, unsigned};
use crate::error::Result;
use crate::retention::Kept;
use rusqlite::params;
use std::collections::HashMap;
use tidegate_protocol::ids::PointId;
use tidegate_protocol::record::{self, HoldSet};

/// A point that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpiredPoint {
    /// Its name.
    pub point: PointId,
    /// When, Unix time in nanoseconds.
    pub time_unix_ns: u64,
    /// Why, as its record says.
    pub reason: String,
}

impl Catalogue {
    /// How long live points are kept, of one machine or of all; without reading what else they say.
    pub fn kept(&self, machine: Option<&str>) -> Result<Vec<Kept>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT id, machine, number, taken_unix_ns, keep_until_unix_ns FROM point
                     WHERE ?1 IS NULL OR machine = ?1",
                )?
                .query_map([machine], |row| {
                    Ok(Kept {
                        point: PointId(row.get(0)?),
                        machine: row.get(1)?,
                        number: unsigned(row.get(2)?),
                        taken_unix_ns: unsigned(row.get(3)?),
                        keep_until_unix_ns: unsigned(row.get(4)?),
                    })
                })?
                .collect()
        })
    }

    /// The time of the newest record that committed a live point, Unix time in nanoseconds.
    pub fn newest_record_unix_ns(&self) -> Result<u64> {
        // As the numbers without a sign that they are: SQLite compares with one.
        let times: Vec<u64> = self.read(|connection| {
            connection
                .prepare_cached("SELECT max(time_unix_ns) FROM point UNION ALL SELECT min(time_unix_ns) FROM point")?
                .query_map([], |row| row.get::<_, Option<i64>>(0))?
                .filter_map(Result::transpose)
                .map(|time| time.map(unsigned))
                .collect()
        })?;
        Ok(times.into_iter().max().unwrap_or(0))
    }

    /// Points on hold, and until when, Unix time in nanoseconds; 0 without an end. Of several holds of a
    /// point the longest counts.
    pub fn held_points(&self) -> Result<HashMap<PointId, u64>> {
        let mut held: HashMap<PointId, u64> = HashMap::new();
        for hold in self.decode_all::<HoldSet>("SELECT body FROM hold")? {
            let until = hold.until_unix_ns;
            for point in hold
                .points
                .iter()
                .filter_map(|id| record::point_id(id).ok())
            {
                held.entry(point)
                    .and_modify(|known| match (*known, until) {
                        (0, _) | (_, 0) => *known = 0,
                        _ => *known = until.max(*known),
                    })
                    .or_insert(until);
            }
        }
        Ok(held)
    }

    /// Points of a machine that were given up, as far as is known here, the last one first.
    pub fn expired_points(&self, machine: &str) -> Result<Vec<ExpiredPoint>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT id, time_unix_ns, reason FROM expired WHERE machine = ?1
                     ORDER BY time_unix_ns DESC, id",
                )?
                .query_map(params![machine], |row| {
                    Ok(ExpiredPoint {
                        point: PointId(row.get(0)?),
                        time_unix_ns: unsigned(row.get(1)?),
                        reason: row.get(2)?,
                    })
                })?
                .collect()
        })
    }
}
