//! What a verify found damaged, noted in the log, so that the repository can heal.
//!
//! Not a repair: nothing is deleted or rewritten. The invariant: after the record no new point refers
//! to the packs it names, so the next backup that meets their chunks stores them again; and since a
//! location is only a hint, older points then find chunks and pages in their new place.

use super::VerifyReport;
use crate::error::Result;
use crate::repository::Repository;
use std::sync::Arc;
use tidegate_protocol::ids::PackId;

/// Notes the damaged packs of `report`, data and tree alike. Returns how many the log did not know of
/// before; where there are none, nothing is appended.
pub async fn note_damage(repository: &Arc<Repository>, report: &VerifyReport) -> Result<u64> {
    let packs = report
        .damages
        .iter()
        .filter_map(|damage| PackId::from_object_key(&damage.object))
        .collect();
    repository.note_bad_packs(packs, "verify").await
}
