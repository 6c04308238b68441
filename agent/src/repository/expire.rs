//! Giving recovery points up, when their time has passed.
//!
//! What may go is decided by [`retention::decide`]; here are the facts for it, and the record. Invariant:
//! what a record names was decided at the very head that it is appended to, so that a hold which comes in
//! between is seen (rules R2 and R3 of the format). Several gateways, and an operator besides, may do it at
//! once: who loses the race reads on and decides again.
//!
//! What it is not: a prune. The points are gone from the log's state; their chunks stay in the store.

use super::Repository;
use crate::blocking::blocking;
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::retention::{self, Decision, Facts};
use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use tidegate_protocol::ids::{PackId, PointId};
use tidegate_protocol::record::{self, Body, PointExpired};

/// Points that one record names: some 900 KB of the 4 MiB that a record may have.
const EXPIRED_MAX: usize = 50_000;

/// Which points are looked at, and how far the clock is believed.
#[derive(Debug, Clone, Default)]
pub struct ExpireScope {
    /// Only those of this machine.
    pub machine: Option<String>,
    /// Believe this machine's clock however far it is ahead of the newest point.
    pub trust_clock: bool,
}

impl Repository {
    /// Which points would be given up now, and which stay though their time has passed; by what is known
    /// of the log here.
    pub fn plan_expiry(&self, scope: &ExpireScope) -> Result<Decision> {
        let catalogue = &self.catalogue;
        let points = catalogue.kept(scope.machine.as_deref())?;
        let clock_unix_ns = clock::now_unix_ns();
        let facts = Facts {
            held: catalogue.held_points()?,
            damaged: self.damaged_points(&points, clock_unix_ns)?,
            // Of all machines: how busy one of them is says little about the clock.
            newest_record_unix_ns: catalogue.newest_record_unix_ns()?,
            points,
            clock_unix_ns,
            trust_clock: scope.trust_clock,
        };
        Ok(retention::decide(&facts))
    }

    /// Gives up the points whose time has passed. Says which went, and which stay for another reason.
    ///
    /// # Errors
    /// [`Kind::Denied`] where the key may not; as the store's.
    pub async fn expire(self: &Arc<Self>, scope: &ExpireScope) -> Result<Decision> {
        let level = self.keys.level();
        if !record::Kind::PointExpired.may_be_signed_by(level) {
            // Before anything is due: a timer with the wrong key should not wait for that to fail.
            return Err(Error::new(
                Kind::Denied,
                format!("a key of level {level} may not give up recovery points"),
            )
            .advise("use a maintenance or restore key"));
        }
        self.refresh().await?;
        let mut done = Decision::default();
        loop {
            let plan = self.planned(scope).await?;
            if plan.goes.is_empty() {
                done.stays = plan.stays;
                return Ok(done);
            }
            let named = Mutex::new(Vec::new());
            let appended = self
                .append(|repository| {
                    let mut plan = repository.plan_expiry(scope)?;
                    plan.goes.truncate(EXPIRED_MAX);
                    let points = plan.goes.iter().map(|kept| kept.point.0.to_vec());
                    let points: Vec<_> = points.collect();
                    let nothing_left = points.is_empty();
                    *named.lock().unwrap_or_else(PoisonError::into_inner) = plan.goes;
                    if nothing_left {
                        return Err(Error::new(Kind::Conflict, "nothing is left to expire"));
                    }
                    Ok(Body::PointExpired(PointExpired {
                        points,
                        reason: "past its time".to_owned(),
                    }))
                })
                .await;
            let named = named.into_inner().unwrap_or_else(PoisonError::into_inner);
            match appended {
                // Somebody else was first, or a hold has come.
                Err(error) if error.kind() == Kind::Conflict && named.is_empty() => {
                    done.stays = self.planned(scope).await?.stays;
                    return Ok(done);
                }
                Err(error) => return Err(error),
                Ok(_) => done.goes.extend(named),
            }
            // The cache may not have taken the record: without this the same points would go again.
            self.refresh().await?;
        }
    }

    async fn planned(self: &Arc<Self>, scope: &ExpireScope) -> Result<Decision> {
        let (repository, scope) = (Arc::clone(self), scope.clone());
        blocking(move || repository.plan_expiry(&scope)).await
    }

    /// Points whose own pages lie in packs that are known to be lost, of machines that have a point which
    /// is past its time. Of chunks and of pages that were taken over from older points this says nothing:
    /// to know that, whole trees are read, which is what verify does.
    fn damaged_points(
        &self,
        points: &[retention::Kept],
        now_unix_ns: u64,
    ) -> Result<HashSet<PointId>> {
        let lost = self.catalogue.lost_packs()?;
        let mut damaged = HashSet::new();
        if lost.is_empty() {
            return Ok(damaged);
        }
        let past = |point: &&retention::Kept| {
            point.keep_until_unix_ns != 0 && point.keep_until_unix_ns <= now_unix_ns
        };
        let machines: BTreeSet<&str> = points
            .iter()
            .filter(past)
            .map(|point| point.machine.as_str())
            .collect();
        for machine in machines {
            for (_, body) in self.catalogue.points(Some(machine))? {
                let pages = body
                    .disks
                    .iter()
                    .flat_map(|disk| disk.root.iter().chain(&disk.deltas));
                let packs = pages.map(|page| &page.pack);
                let mut packs = packs.chain(body.tree_packs.iter().map(|pack| &pack.pack));
                if packs.any(|id| PackId::from_slice(id).is_some_and(|id| lost.contains(&id))) {
                    damaged.extend(record::point_id(&body.point).ok());
                }
            }
        }
        Ok(damaged)
    }
}
