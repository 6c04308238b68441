//! What the catalogue knows of index segments: which there are, which of them this machine has read, and
//! which were found bad.
//!
//! A bad segment is read by nobody any more, and no pack is assigned to one: packs that a bad segment named
//! are without one until another names them, like those of an interrupted run. A machine that had read it
//! still knows which ones these are. Any other *searches* the store for packs that no segment names to it.

use super::Catalogue;
use super::packs::ExpectedPack;
use crate::error::Result;
use rusqlite::params;
use std::collections::HashSet;
use tidegate_protocol::ids::SegmentId;
use tidegate_protocol::record::RunAnnounced;

impl Catalogue {
    /// Index segments that the log names, but for bad ones.
    pub fn segments(&self) -> Result<Vec<SegmentId>> {
        self.ids(
            "SELECT id FROM segment WHERE NOT bad",
            SegmentId::from_slice,
        )
    }

    /// How many they are.
    pub fn segment_count(&self) -> Result<u64> {
        self.count("SELECT count(*) FROM segment WHERE NOT bad")
    }

    /// Those whose chunks are not in the local index yet.
    pub fn segments_to_load(&self) -> Result<Vec<SegmentId>> {
        self.ids(
            "SELECT id FROM segment WHERE loaded = 0 AND NOT bad",
            SegmentId::from_slice,
        )
    }

    /// Segments that were found bad.
    pub fn bad_segments(&self) -> Result<Vec<SegmentId>> {
        self.ids("SELECT id FROM segment WHERE bad", SegmentId::from_slice)
    }

    /// Bad segments that this machine has neither read nor searched the store for: it cannot know which
    /// packs they named.
    pub fn segments_to_search_for(&self) -> Result<Vec<SegmentId>> {
        self.ids(
            "SELECT id FROM segment WHERE bad AND loaded = 0",
            SegmentId::from_slice,
        )
    }

    /// Notes that the store was searched for what those segments named.
    pub fn set_searched_for(&self, segments: &[SegmentId]) -> Result<()> {
        self.write(|transaction| {
            for segment in segments {
                transaction
                    .prepare_cached("UPDATE segment SET loaded = 1 WHERE id = ?1")
                    .and_then(|mut statement| statement.execute([segment.0]))
                    .map_err(|error| self.error(error))?;
            }
            Ok(())
        })
    }

    /// Segments that others may stand for: those of runs under way are named again when their point is
    /// committed.
    pub fn mergeable_segments(&self) -> Result<HashSet<SegmentId>> {
        let mut segments: HashSet<SegmentId> = self.segments()?.into_iter().collect();
        for run in self.decode_all::<RunAnnounced>("SELECT body FROM run")? {
            for segment in &run.segments {
                if let Some(id) = SegmentId::from_slice(segment) {
                    segments.remove(&id);
                }
            }
        }
        Ok(segments)
    }

    /// Segments that others stand for since before that time (Unix time in nanoseconds), and whose objects
    /// may still be there.
    pub fn merged_with_object(&self, before_unix_ns: u64) -> Result<Vec<SegmentId>> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT segment FROM merged
                     WHERE since_unix_ns < ?1 AND segment NOT IN (SELECT id FROM segment)",
                )?
                .query_map([before_unix_ns.cast_signed()], |row| {
                    Ok(SegmentId(row.get(0)?))
                })?
                .collect()
        })
    }

    /// Whether the log says that the segment may be deleted: others stand for it.
    pub fn is_merged(&self, segment: SegmentId) -> Result<bool> {
        self.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT 1 FROM merged
                     WHERE segment = ?1 AND segment NOT IN (SELECT id FROM segment)",
                )?
                .exists([segment.0])
        })
    }

    /// Forgets merged segments whose objects are gone.
    pub fn forget_merged(&self, segments: &[SegmentId]) -> Result<()> {
        self.write(|transaction| {
            for segment in segments {
                transaction
                    .prepare_cached("DELETE FROM merged WHERE segment = ?1")
                    .and_then(|mut statement| statement.execute([segment.0]))
                    .map_err(|error| self.error(error))?;
            }
            Ok(())
        })
    }

    /// Enters those of the packs in the store that nothing names to this machine: the next backup looks into
    /// them. Tree packs that the log names are among them only while there are bad ones, since their pages may
    /// be the lost ones'.
    pub fn add_unnamed_packs(&self, listed: &[ExpectedPack]) -> Result<()> {
        let with_trees = !self.bad_tree_packs()?.is_empty();
        self.write(|transaction| {
            for pack in listed {
                transaction
                    .prepare_cached(
                        "INSERT OR IGNORE INTO pack (id, bytes) SELECT ?1, ?2
                         WHERE (?3 OR NOT EXISTS (SELECT 1 FROM tree_pack WHERE id = ?1))
                           AND NOT EXISTS (SELECT 1 FROM bundle WHERE id = ?1)",
                    )
                    .and_then(|mut statement| {
                        statement.execute(params![pack.id.0, pack.bytes.cast_signed(), with_trees])
                    })
                    .map_err(|error| self.error(error))?;
            }
            Ok(())
        })
    }

    /// The same of packs in bundles, which no listing shows.
    pub fn add_unnamed_bundled(&self) -> Result<()> {
        let with_trees = !self.bad_tree_packs()?.is_empty();
        self.write(|transaction| {
            transaction
                .execute(
                    "INSERT OR IGNORE INTO pack (id, bytes) SELECT pack, bytes FROM bundled
                     WHERE ?1 OR NOT EXISTS (SELECT 1 FROM tree_pack WHERE id = bundled.pack)",
                    [with_trees],
                )
                .map(drop)
                .map_err(|error| self.error(error))
        })
    }
}
