//! Whether the index segments that the log names are what they should be.
//!
//! No point needs one to be restored, unless packs were lost before: then the index is where readers
//! find what was stored anew. Without them other hosts upload again what they could have referred to.

use super::super::restore::stop_here;
use super::Damage;
use super::found::Found;
use crate::error::{Kind, Result};
use crate::repository::Repository;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Reads every segment. Returns how many there are.
pub(super) async fn check(
    repository: &Arc<Repository>,
    stop: &CancellationToken,
    damage: &mut Found,
) -> Result<u64> {
    let segments = repository.catalogue().segments()?;
    for segment in &segments {
        stop_here(stop)?;
        match repository.read_segment(*segment).await {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Missing) => {
                damage.segments.push(Damage {
                    object: segment.object_key(),
                    found: error.chain(),
                    touches: Vec::new(),
                });
            }
            Err(error) => return Err(error),
        }
    }
    Ok(segments.len() as u64)
}
