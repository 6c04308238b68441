//! What comes back out of the repository, compared with what the model knows: lists of points,
//! restores, exports, diffs, verifies.

use super::super::disk::{Disk, Onto as Memory};
use super::super::history::{Fill, Onto, Random};
use super::{FILE_BYTES_MAX, Outcome, Trouble, VAULT, World, index, name_of, wrong};
use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use tidegate_agent::Error;
use tidegate_agent::progress::Progress;
use tidegate_agent::recover::{
    DiffKind, RestoreMode, RestoreSettings, VerifySettings, diff, export, restore_disk, verify,
};
use tidegate_agent::repository::{Point, PointDisk, Repository};
use tidegate_agent::target::{self, Target};
use tidegate_protocol::ids::PointId;

impl World {
    /// What a host lists is what was committed.
    pub(super) async fn check_points(&mut self, host: usize) -> Outcome {
        let repository = self.repository(host).await?;
        let listed: HashSet<PointId> = repository
            .points(None)?
            .iter()
            .map(|point| point.id)
            .collect();
        let known: HashSet<PointId> = self.points.iter().map(|point| point.id).collect();
        match listed == known {
            true => Ok(()),
            false => wrong(format!(
                "host {host} lists {} points, {} were committed, {} are in both",
                listed.len(),
                known.len(),
                listed.intersection(&known).count()
            )),
        }
    }

    /// One of the points, as the repository and as the model have it, and one of its disks.
    async fn find(
        &mut self,
        repository: &Repository,
        point: u64,
        disk: u64,
    ) -> Outcome<Option<(PointDisk, Disk)>> {
        if self.points.is_empty() {
            return Ok(None);
        }
        let committed = &self.points[index(point, self.points.len())];
        let machine = name_of(committed.machine);
        let (name, content) = &committed.disks[index(disk, committed.disks.len())];
        let point: Option<Point> = repository
            .points(Some(&machine))?
            .into_iter()
            .find(|point| point.id == committed.id);
        let Some(point) = point else {
            return wrong(format!("{machine} lacks point {}", committed.id.short()));
        };
        let found = point.disk(Some(name))?.clone();
        if point.disks.len() != committed.disks.len() || found.size_bytes != content.size_bytes() {
            return wrong(format!(
                "{machine}@{} has other disks than were backed up",
                committed.id.short()
            ));
        }
        Ok(Some((found, content.clone())))
    }

    pub(super) async fn restore(
        &mut self,
        point: u64,
        disk: u64,
        onto: Onto,
        draw: u64,
    ) -> Outcome {
        let repository = self.repository(VAULT).await?;
        let Some((disk, content)) = self.find(&repository, point, disk).await? else {
            return Ok(());
        };
        let (before, mode) = self.before(onto, &content);
        let to_file = matches!(onto, Onto::File | Onto::FileInPlace(_))
            && content.size_bytes() <= FILE_BYTES_MAX;
        let mut random = Random::new(draw);
        let settings = RestoreSettings {
            fetches_in_flight: 1 + usize::try_from(random.below(4)).unwrap_or(0),
            verify: random.one_in(4),
        };
        let memory = Memory::holding(before.clone());
        let path = self.folder.path().join("restored.raw");
        let target: Arc<dyn Target> = match to_file {
            false => Arc::clone(&memory) as Arc<dyn Target>,
            true => file_target(&path, &before, mode, content.size_bytes()).await?,
        };
        let progress = Arc::new(Progress::default());
        let stop = self.stop.clone();
        let work = Arc::clone(&target);
        let restored =
            restore_disk(&repository, &disk, work, mode, &settings, progress, stop).await;
        if self.stop.is_cancelled() {
            return Err(Trouble::Stopped);
        }
        let summary = restored?;
        let found = match to_file {
            false => memory.disk(),
            true => finished_file(target, &path, content.size_bytes()).await?,
        };
        self.done.restores += 1;
        self.done.restored_bytes += summary.data_bytes;
        match content.first_difference(&found, &(0..content.size_bytes())) {
            Some(at) => wrong(format!(
                "byte {at} of the restored disk is wrong ({mode:?})"
            )),
            None => Ok(()),
        }
    }

    /// What a target holds before the restore.
    fn before(&self, onto: Onto, content: &Disk) -> (Disk, RestoreMode) {
        let size = content.size_bytes();
        let spoilt = |mut disk: Disk, draw| {
            let mut random = Random::new(draw);
            disk.resize(size);
            for _ in 0..random.below(5) {
                let length = usize::try_from(random.below(30_000)).unwrap_or(0);
                let at = random.below(size);
                match random.one_in(3) {
                    true => disk.zero(at..at + length as u64),
                    false => disk.write(at, &Fill::Noise(random.next()).bytes(length)),
                }
            }
            disk
        };
        match onto {
            Onto::New | Onto::File => (Disk::new(size), RestoreMode::New),
            Onto::Dirty => {
                let mut disk = Disk::new(size);
                let bytes = size.min(1 << 20);
                let noise = Fill::Byte(0xd1).bytes(usize::try_from(bytes).unwrap_or(0));
                disk.write(0, &noise);
                disk.write(size - bytes, &noise);
                (disk, RestoreMode::New)
            }
            Onto::OtherPoint(number) => {
                let other = &self.points[index(number, self.points.len())];
                let (_, disk) = &other.disks[index(number / 100, other.disks.len())];
                (spoilt(disk.clone(), 0), RestoreMode::InPlace)
            }
            Onto::Spoilt(draw) | Onto::FileInPlace(draw) => {
                (spoilt(content.clone(), draw), RestoreMode::InPlace)
            }
        }
    }

    pub(super) async fn diff(&mut self, host: u64, from: u64, to: u64, disk: u64) -> Outcome {
        let host = index(host, self.hosts.len());
        let repository = self.repository(host).await?;
        let a = self.find(&repository, from, disk).await?;
        let b = self.find(&repository, to, disk).await?;
        let (Some((from, was)), Some((to, is))) = (a, b) else {
            return Ok(());
        };
        let found = diff(&repository, &from, &to).await?;
        self.done.diffs += 1;
        let common = was.size_bytes().min(is.size_bytes());
        let longer = was.size_bytes().max(is.size_bytes());
        let mut at = 0;
        for extent in &found {
            let range = extent.start..extent.start + extent.length;
            if range.start < at || range.is_empty() || range.end > longer {
                return wrong(format!(
                    "the diff's {range:?} overlaps, is empty or lies outside"
                ));
            }
            equal(&was, &is, at..range.start.min(common))?;
            let fits = match extent.kind {
                DiffKind::Changed => range.end <= common,
                DiffKind::Zeroed => range.end <= common && is.is_zero(&range),
                DiffKind::Added => range == (common..longer) && is.size_bytes() == longer,
                DiffKind::Removed => range == (common..longer) && was.size_bytes() == longer,
            };
            if !fits {
                return wrong(format!("the diff calls {range:?} {:?}", extent.kind));
            }
            at = range.end;
        }
        equal(&was, &is, at..common)?;
        if at < longer && common < longer {
            return wrong("the diff does not say that the sizes differ");
        }
        if was == is && !found.is_empty() {
            return wrong(format!(
                "the diff of equal disks has {} extents",
                found.len()
            ));
        }
        Ok(())
    }

    pub(super) async fn export(&mut self, point: u64, disk: u64, draw: u64) -> Outcome {
        let repository = self.repository(VAULT).await?;
        let Some((disk, content)) = self.find(&repository, point, disk).await? else {
            return Ok(());
        };
        let export = export(&repository, &disk)?;
        if export.size_bytes() != content.size_bytes() {
            return wrong("the export has another size than the disk");
        }
        let mut random = Random::new(draw);
        for _ in 0..1 + random.below(6) {
            let offset = random.below(content.size_bytes());
            let length = random.below(300_000).min(content.size_bytes() - offset);
            let read = export
                .read(offset, u32::try_from(length).unwrap_or(0))
                .await?;
            let mut expected = vec![0; read.len()];
            content.read(offset, &mut expected);
            if read.len() as u64 != length || *read != *expected {
                return wrong(format!(
                    "{length} bytes at {offset} of the export are wrong"
                ));
            }
            let allocation = export.allocation(offset..offset + length).await?;
            let sound = allocation.iter().try_fold(offset, |at, (range, is_data)| {
                let sound = *is_data || content.is_zero(range);
                (range.start >= at && sound).then_some(range.end)
            });
            if sound.is_none_or(|end| end > offset + length) {
                return wrong(format!(
                    "the export tells of data at {allocation:?}, asked for {length} bytes at {offset}"
                ));
            }
        }
        Ok(())
    }

    /// Verifies the newest points.
    pub(super) async fn verify(&mut self, points: u64) -> Outcome {
        let repository = self.repository(VAULT).await?;
        let all = repository.points(None)?;
        let skip = all
            .len()
            .saturating_sub(usize::try_from(points).unwrap_or(usize::MAX));
        let settings = VerifySettings::default();
        let (progress, stop) = (Arc::default(), self.stop.clone());
        let verified = verify(&repository, &all[skip..], &settings, progress, stop).await;
        if self.stop.is_cancelled() {
            return Err(Trouble::Stopped);
        }
        let report = verified?;
        self.done.verifies += 1;
        match report.damages.first() {
            Some(damage) => wrong(format!(
                "verify finds {} damaged: {}",
                damage.object, damage.found
            )),
            None if !report.complete => wrong("the verify was not complete"),
            None => Ok(()),
        }
    }
}

fn equal(was: &Disk, is: &Disk, range: Range<u64>) -> Outcome {
    match was.first_difference(is, &range) {
        Some(at) => wrong(format!("the diff does not name byte {at}, which differs")),
        None => Ok(()),
    }
}

async fn file_target(
    path: &Path,
    before: &Disk,
    mode: RestoreMode,
    size_bytes: u64,
) -> Outcome<Arc<dyn Target>> {
    let (path, before) = (path.to_owned(), before.clone());
    let made = crate::context::blocking(move || match mode {
        RestoreMode::New => target::create_file(&path, size_bytes, true),
        RestoreMode::InPlace => {
            let mut bytes = vec![0; usize::try_from(size_bytes).unwrap_or(0)];
            before.read(0, &mut bytes);
            std::fs::write(&path, bytes)
                .map_err(|error| Error::io("cannot write a file to restore onto", error))?;
            target::open_in_place(&path, size_bytes)
        }
    });
    Ok(Arc::from(made.await?))
}

async fn finished_file(target: Arc<dyn Target>, path: &Path, size_bytes: u64) -> Outcome<Disk> {
    let path = path.to_owned();
    let bytes = crate::context::blocking(move || {
        target.finish()?;
        std::fs::read(&path).map_err(|error| Error::io("cannot read the restored file", error))
    })
    .await?;
    if bytes.len() as u64 != size_bytes {
        return wrong(format!("the restored file has {} bytes", bytes.len()));
    }
    let mut disk = Disk::new(size_bytes);
    disk.write(0, &bytes);
    Ok(disk)
}
