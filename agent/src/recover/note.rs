//! What a verify found damaged, noted in the log, so that the repository can heal.
//!
//! Not a repair: nothing is deleted or rewritten. The invariant: after the record no new point refers
//! to the packs it names, so the next backup that meets their chunks stores them again; and since a
//! location is only a hint, older points then find chunks and pages in their new place. Nor is a
//! segment read that it names: the next backup names its packs anew.

use super::VerifyReport;
use crate::error::Result;
use crate::repository::Repository;
use std::sync::Arc;
use tidegate_protocol::ids::{PackId, SegmentId};

/// Notes the damaged packs of `report`, data and tree alike, and its damaged index segments. Returns how
/// many the log did not know of before; where there are none, nothing is appended.
pub async fn note_damage(repository: &Arc<Repository>, report: &VerifyReport) -> Result<u64> {
    let objects = || report.damages.iter().map(|damage| damage.object.as_str());
    let packs = objects().filter_map(PackId::from_object_key);
    let segments = objects().filter_map(SegmentId::from_object_key);
    repository.note_bad(packs, segments, "verify").await
}
