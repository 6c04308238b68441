//! What a verify found damaged, noted in the log, so that the repository can heal.
//!
//! Not a repair: nothing is deleted or rewritten. The invariant: after the record no new point refers
//! to the packs it names, so the next backup that meets their chunks stores them again; and since a
//! location is only a hint, older points then find those chunks in their new place.

use super::VerifyReport;
use crate::error::Result;
use crate::repository::Repository;
use std::collections::HashSet;
use std::sync::Arc;
use tidegate_protocol::ids::PackId;
use tidegate_protocol::record::{Body, PacksFoundBad};

/// Notes the damaged packs of `report`, data and tree alike. Returns how many the log did not know of before; where
/// there are none, nothing is appended.
pub async fn note_damage(repository: &Arc<Repository>, report: &VerifyReport) -> Result<u64> {
    let known = repository.catalogue().lost_packs()?;
    let packs: HashSet<PackId> = report
        .damages
        .iter()
        .filter_map(|damage| PackId::from_object_key(&damage.object))
        .filter(|pack| !known.contains(pack))
        .collect();
    if packs.is_empty() {
        return Ok(0);
    }
    repository
        .append(|_| {
            Ok(Body::PacksFoundBad(PacksFoundBad {
                packs: packs.iter().map(|pack| pack.0.to_vec()).collect(),
                reason: "verify".to_owned(),
            }))
        })
        .await?;
    Ok(packs.len() as u64)
}
