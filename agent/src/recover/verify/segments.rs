//! Whether the index segments that the log names say together what they should.
//!
//! No point needs one to be restored, unless packs were lost before: then the index is where readers
//! find what was stored anew. Without them other hosts upload again what they could have referred to.
//!
//! A lost segment is damage only as far as others do not make up for it: while a pack that points need is
//! named by no segment that can be read, or while something is missing that could be found by it. Once a
//! backup has named those packs anew, nothing is left of the damage but a line in the log.

use super::super::restore::stop_here;
use super::Damage;
use super::found::Found;
use super::worklist::Worklist;
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result};
use crate::repository::Repository;
use std::collections::HashSet;
use std::sync::Arc;
use tidegate_protocol::ids::PackId;
use tokio_util::sync::CancellationToken;

/// Reads every segment. Returns how many there are.
pub(super) async fn check(
    repository: &Arc<Repository>,
    list: &Arc<Worklist>,
    stop: &CancellationToken,
    damage: &mut Found,
) -> Result<u64> {
    // As they are by now: what was found in another place than expected has moved in the list.
    let listed = Arc::clone(list);
    let mut unnamed: HashSet<PackId> = blocking(move || listed.packs())
        .await?
        .into_keys()
        .collect();
    let segments = repository.catalogue().segments()?;
    let mut lost: Vec<(_, Option<Error>)> = Vec::new();
    for id in &segments {
        stop_here(stop)?;
        match repository.read_segment(*id).await {
            Ok(segment) => {
                for (pack, _) in segment.packs {
                    unnamed.remove(&pack);
                }
            }
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Missing) => {
                lost.push((*id, Some(error)));
            }
            Err(error) => return Err(error),
        }
    }
    // Packs that nobody may refer to any more are damage of their own, or none.
    let unusable = repository.catalogue().unusable_packs()?;
    unnamed.retain(|pack| !unusable.contains(pack) && !damage.packs.contains_key(pack));
    // Which of those noted before have been made good since, nobody can tell.
    if lost.is_empty() && !unnamed.is_empty() {
        let noted = repository.catalogue().bad_segments()?;
        lost.extend(noted.into_iter().map(|id| (id, None)));
    }
    let is_missed = !unnamed.is_empty() || !damage.pages.is_empty() || !damage.packs.is_empty();
    for (id, error) in lost {
        let found = match &error {
            Some(error) => error.chain(),
            None => "it was found damaged before, and noted in the log".to_owned(),
        };
        if !is_missed {
            tracing::info!(segment = %id, found, "an index segment cannot be read, and others name all that points need of it");
            continue;
        }
        damage.segments.push(Damage {
            object: id.object_key(),
            found: match unnamed.len() {
                0 => found,
                packs => {
                    format!("{found}; packs that points need and no index segment names: {packs}")
                }
            },
            touches: Vec::new(),
        });
    }
    Ok(segments.len() as u64)
}
