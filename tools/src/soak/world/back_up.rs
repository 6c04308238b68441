//! Backups of the model's disks: to their end, stopped by the operator, or cut short by the death of the
//! process at any call to the store. What is committed is what the log says, whatever the run was told.

use super::super::disk::{Allocation, Disk, Frozen};
use super::super::history::{End, Random};
use super::{
    Committed, FILE_BYTES_MAX, Outcome, SABOTAGED, Sabotage, World, index, name_of, wrong,
};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tidegate_agent::Kind;
use tidegate_agent::replicate::{
    BackupRequest, BackupSettings, BackupSummary, DiskToBackUp, backup,
};
use tidegate_agent::store::StoreSettings;
use tidegate_protocol::ids::PointId;
use tokio_util::sync::CancellationToken;

impl World {
    pub(super) async fn back_up(
        &mut self,
        machine: u64,
        host: u64,
        end: End,
        draw: u64,
    ) -> Outcome {
        let machine = index(machine, self.machines.len());
        let host = index(host, self.hosts.len());
        if self.machines[machine].is_empty() {
            return Ok(());
        }
        let stop = CancellationToken::new();
        let request = self.request(machine, end, draw, &stop);
        let disks = self.machines[machine].clone();
        let repository = match end {
            End::Own | End::Stopped { .. } => self.repository(host).await?,
            // Another process with the same cache.
            End::Dies {
                calls,
                after_effect,
            } => {
                let settings = StoreSettings {
                    request_timeout: Duration::from_millis(100),
                    operation_deadline: Duration::from_millis(4),
                    backoff_first: Duration::from_millis(2),
                    backoff_max: Duration::from_millis(2),
                    ..StoreSettings::default()
                };
                let (store, script) = self.store.with_faults(&settings);
                let repository = self.open(host, store).await?;
                self.faults.fetch_add(1, Ordering::Relaxed);
                match after_effect {
                    true => script.crash_after_effect(calls),
                    false => script.crash_after(calls),
                }
                repository
            }
        };
        let outcome = backup(&repository, request, Arc::default(), stop).await;
        self.done.backups += 1;
        let committed = match outcome {
            Ok(summary) => Some(point_of(&summary)?),
            Err(error) => {
                let expected = match end {
                    End::Own => false,
                    End::Dies { .. } => matches!(error.kind(), Kind::Unavailable | Kind::Io),
                    End::Stopped { .. } => error.kind() == Kind::Interrupted,
                };
                if !expected {
                    return Err(error.into());
                }
                self.done.interrupted += 1;
                // Its last record may stand, and only the answer be lost.
                drop(repository);
                let repository = self.repository(host).await?;
                let known: HashSet<PointId> = self.points.iter().map(|point| point.id).collect();
                let points = repository.points(None)?;
                let mut new = points.iter().filter(|point| !known.contains(&point.id));
                let found = new.next().map(|point| point.id);
                if new.next().is_some() {
                    return wrong("an interrupted backup left two points");
                }
                found
            }
        };
        self.points
            .extend(committed.map(|id| Committed { id, machine, disks }));
        Ok(())
    }

    fn request(
        &self,
        machine: usize,
        end: End,
        draw: u64,
        stop: &CancellationToken,
    ) -> BackupRequest {
        let mut random = Random::new(draw);
        let reads = AtomicU64::new(0);
        let stop = stop.clone();
        let on_read: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
            if let End::Stopped { reads: after } = end
                && reads.fetch_add(1, Ordering::Relaxed) == after
            {
                stop.cancel();
            }
        });
        let allocation = match random.below(3) {
            0 => Allocation::Exact,
            1 => Allocation::Coarse,
            _ => Allocation::All,
        };
        let disks = self.machines[machine].iter().map(|(name, disk)| {
            let mut disk = disk.clone();
            if self.sabotage == Some(Sabotage::Source) {
                sabotage(&mut disk);
            }
            // Reading every hole of a large disk says nothing new.
            let allocation = match disk.size_bytes() > FILE_BYTES_MAX {
                true => Allocation::Exact,
                false => allocation,
            };
            DiskToBackUp {
                name: name.clone(),
                source: Arc::new(Frozen {
                    disk,
                    allocation,
                    on_read: Arc::clone(&on_read),
                }),
                format: "raw".to_owned(),
            }
        });
        BackupRequest {
            machine: name_of(machine),
            disks: disks.collect(),
            host: "soak".to_owned(),
            dry_run: false,
            settings: BackupSettings {
                workers: 1 + usize::try_from(random.below(3)).unwrap_or(0),
                compression_level: 1,
                pack_bytes: (64 << 10) << random.below(5),
                uploads_in_flight: 1 + usize::try_from(random.below(3)).unwrap_or(0),
                listing_age_max: match random.one_in(3) {
                    true => Duration::ZERO,
                    false => BackupSettings::default().listing_age_max,
                },
            },
        }
    }
}

fn point_of(summary: &BackupSummary) -> Outcome<PointId> {
    match summary.point {
        Some(point) => Ok(point),
        None => wrong("a backup that is no dry run made no point"),
    }
}

fn sabotage(disk: &mut Disk) {
    for data in disk.data(&(0..disk.size_bytes())) {
        let mut byte = [0];
        disk.read(data.start, &mut byte);
        if byte[0] == SABOTAGED {
            disk.write(data.start, &[!SABOTAGED]);
        }
    }
}
