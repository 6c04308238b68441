//! Backups of the model's disks: to their end, stopped by the operator, or cut short by the death of the
//! process at any call to the store. What is committed is what the log says, whatever the run was told.

use super::super::disk::{Allocation, Disk, Frozen};
use super::super::history::{End, Random};
use super::{
    Committed, FILE_BYTES_MAX, Outcome, SABOTAGED, Sabotage, Trouble, World, index, name_of, wrong,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tidegate_agent::Kind;
use tidegate_agent::replicate::{
    BackupRequest, BackupSettings, BackupSummary, DiskToBackUp, backup,
};
use tidegate_agent::repository::Repository;
use tidegate_agent::retention::Keep;
use tidegate_agent::store::StoreSettings;
use tidegate_protocol::ids::PointId;
use tidegate_protocol::record::Role;
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
        let name = format!("run-{}", self.done.backups);
        let request = self.request(machine, name.clone(), end, draw, &stop);
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
                let repository = match self.open(host, store).await {
                    Ok(repository) => repository,
                    // A machine too busy for such a short deadline: it died early.
                    Err(Trouble::Wrong(what)) if what.starts_with("Unavailable") => return Ok(()),
                    Err(trouble) => return Err(trouble),
                };
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
        match outcome {
            Ok(summary) => {
                let id = point_of(&summary)?;
                self.points.push(Committed { id, machine, disks });
            }
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
                self.unknown.insert(name, (machine, disks));
            }
        }
        Ok(())
    }

    /// Takes up points of interrupted backups: the answer to their last record was lost, or the record
    /// itself was late. The run's name says which one it was.
    pub(super) fn adopt(&mut self, repository: &Repository) -> Outcome {
        if self.unknown.is_empty() {
            return Ok(());
        }
        for point in repository.points(None)? {
            if let Some((machine, disks)) = self.unknown.remove(&point.host) {
                let id = point.id;
                self.points.push(Committed { id, machine, disks });
            }
        }
        Ok(())
    }

    fn request(
        &self,
        machine: usize,
        name: String,
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
                role: Role::Disk,
            }
        });
        BackupRequest {
            machine: name_of(machine),
            disks: disks.collect(),
            host: name,
            moment: None,
            keep: Keep::WithoutEnd,
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
                ..BackupSettings::default()
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
