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
use tidegate_protocol::ids::SegmentId;

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
