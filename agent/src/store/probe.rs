//! Whether a store keeps the promise everything rests on: a create-only PUT never overwrites.
//!
//! Documentation and version strings do not tell; some servers answer such a PUT with success and
//! overwrite. So it is tried, in the very bucket that will be used.

use super::{Created, Store};
use crate::error::{Error, Kind, Result};
use bytes::Bytes;

/// Writers of one key at the same moment; more find a race more surely, and cost more requests.
const RACERS: usize = 6;

const PROBE_BYTES_MAX: u64 = 64;

pub(super) async fn create_only(store: &Store) -> Result<()> {
    let nonce = nonce()?;
    let keys = [
        format!("probe/{nonce}-twice"),
        format!("probe/{nonce}-race"),
    ];
    let [twice, race] = &keys;
    let outcome = match one_after_the_other(store, twice).await {
        Ok(()) => at_the_same_time(store, race).await,
        Err(error) => Err(error),
    };
    for key in &keys {
        // Append-only credentials cannot delete; the repository works without.
        if let Err(error) = store.delete(key).await {
            tracing::warn!("could not remove the probe object: {error:?}");
        }
    }
    outcome
}

/// The second writer of a key must lose, and the object must stay what it was.
async fn one_after_the_other(store: &Store, key: &str) -> Result<()> {
    let (first, second) = (Bytes::from_static(b"first"), Bytes::from_static(b"second"));
    let created = store.create(key, first.clone()).await?;
    if created == Created::Exists && store.get(key, PROBE_BYTES_MAX).await? != first {
        return Err(refused(store, "a key that nobody wrote is said to exist"));
    }
    if store.create(key, second.clone()).await? == Created::New {
        return Err(refused(store, "a second create of the same key succeeded"));
    }
    let found = store.get(key, PROBE_BYTES_MAX).await?;
    if found == first {
        Ok(())
    } else if found == second {
        Err(refused(
            store,
            "a refused create replaced the object all the same",
        ))
    } else {
        Err(refused(
            store,
            "an object reads back other than it was written",
        ))
    }
}

/// Of several writers of a key at most one may win, and the object must be the winner's.
async fn at_the_same_time(store: &Store, key: &str) -> Result<()> {
    let bodies: Vec<Bytes> = (0..RACERS)
        .map(|racer| Bytes::from(format!("racer {racer}")))
        .collect();
    let outcomes =
        futures::future::join_all(bodies.iter().map(|body| store.create(key, body.clone()))).await;
    let found = store.get(key, PROBE_BYTES_MAX).await?;
    let mut winners = 0;
    for (body, outcome) in bodies.iter().zip(outcomes) {
        if outcome? == Created::New {
            winners += 1;
            if *body != found {
                return Err(refused(
                    store,
                    "an acknowledged object was replaced by another",
                ));
            }
        }
    }
    // None at all is possible: the winner's answer may have been lost and its retry refused.
    if winners > 1 {
        return Err(refused(store, "several creates of the same key succeeded"));
    }
    Ok(())
}

fn refused(store: &Store, found: &str) -> Error {
    Error::new(
        Kind::Unsupported,
        format!(
            "{} cannot hold a repository: expected that a create-only PUT (If-None-Match: *) never \
             overwrites, found that {found}",
            store.label()
        ),
    )
    .advise(
        "use a store that honours conditional writes (Amazon S3, Azure Blob Storage, Google Cloud \
         Storage, SeaweedFS, a local folder), or a newer version of this one",
    )
}

/// A name nobody else uses.
fn nonce() -> Result<String> {
    let mut bytes = [0; 12];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| Error::new(Kind::Io, "the operating system gave no random bytes"))?;
    Ok(hex::encode(bytes))
}
