//! What all of it asks of an S3 server: requests, as a proxy in front of a real one counts them, and
//! the objects that lie there in the end.

use super::Workload;
use super::child;
use super::contender::{Bucket, Contender, Place};
use anyhow::{Context, Result};
use futures::TryStreamExt;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tidegate_agent::testing::{FaultyProxy, S3Server};

/// What one contender asked.
pub(super) struct Requests {
    pub(super) contender: &'static str,
    /// By method, from the first backup to the last, without the making of the repository.
    pub(super) backups: BTreeMap<String, u64>,
    /// Of the restore of the last generation.
    pub(super) restore: BTreeMap<String, u64>,
    pub(super) objects: u64,
}

/// Backs all generations up to a real server, the last one twice, and restores it; for every contender
/// that can.
pub(super) fn count(
    contenders: &[Contender],
    workload: &Workload,
    fresh: impl Fn() -> Result<PathBuf>,
) -> Result<Vec<Requests>> {
    let mut all = Vec::new();
    for contender in contenders.iter().filter(|contender| contender.speaks_s3()) {
        let folder = fresh()?;
        let requests = of(contender, workload, folder)
            .with_context(|| format!("{} on an S3 server", contender.name()))?;
        eprintln!("S3: {}: {} objects", contender.name(), requests.objects);
        all.push(requests);
    }
    Ok(all)
}

fn of(contender: &Contender, workload: &Workload, folder: PathBuf) -> Result<Requests> {
    // A server each: nobody's objects are counted for another.
    let server = S3Server::start();
    let proxy = FaultyProxy::before(server.port());
    let environment = server.environment();
    let of_server = |name: &str| environment.get(name).unwrap_or_default().to_owned();
    let bucket = Bucket {
        endpoint: proxy.url(),
        name: S3Server::BUCKET.to_owned(),
        prefix: "repository".to_owned(),
        access_key: of_server("AWS_ACCESS_KEY_ID"),
        secret_key: of_server("AWS_SECRET_ACCESS_KEY"),
    };
    let place = Place::in_bucket(&folder, bucket);
    contender.init(&place)?;
    let at_init = proxy.calls().len();
    let last = workload.generations.last().context("no generations")?;
    let mut machine = PathBuf::new();
    let once = workload.generations.iter().map(|image| (image, false));
    for (image, in_full) in once.chain([(last, true)]) {
        machine = place.machine("server", image)?;
        child::run(contender.backup(&place, &machine, in_full)?)?;
    }
    let at_backups = proxy.calls().len();
    let (restore, restored) = contender.restore(&place, &machine)?;
    child::run(restore)?;
    last.ensure_equal(&restored)?;
    let calls = proxy.calls();
    let by_method = |range: std::ops::Range<usize>| {
        let mut counts = BTreeMap::new();
        for call in calls.get(range).unwrap_or_default() {
            *counts.entry(call.method.clone()).or_default() += 1;
        }
        counts
    };
    let store = server.open("repository");
    let objects = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(store.list("", None).try_collect::<Vec<_>>())
        .map_err(|error| anyhow::anyhow!(error.chain()))?
        .len();
    Ok(Requests {
        contender: contender.name(),
        backups: by_method(at_init..at_backups),
        restore: by_method(at_backups..calls.len()),
        objects: objects as u64,
    })
}
