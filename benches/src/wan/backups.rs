//! Whole backups and small changes through a path: what an operator waits for.
//!
//! Not the controllers alone: here are chunking, sealing, the store's answers and every round trip that a
//! program takes before its first byte and after its last. An upload that is not done when its time is over
//! is killed, and only what crossed the path by then is said of it.

use super::site::{Programs, Site, Upload};
use super::{Arguments, shape};
use crate::relay::Shape;
use anyhow::{Result, ensure};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// A disk that changes: so large, of which so much is allocated.
pub(super) const DISK_BYTES: u64 = 4 << 30;
pub(super) const ALLOCATED_BYTES: u64 = 2 << 30;
/// In how many places a hundredth of it changes, and by how much each.
pub(super) const CHANGED_PLACES: u64 = DISK_BYTES / 100 / CHANGE_BYTES;
pub(super) const CHANGE_BYTES: u64 = 64 << 10;
/// Changes begin where file systems begin their blocks.
const BLOCK_BYTES: u64 = 4096;
/// For the changed disk: enough for those who send 1.5 GiB for it over a path without loss.
pub(super) const CHANGED_TIME_MAX: Duration = Duration::from_secs(90);
/// For what is not measured.
const UNMEASURED_TIME_MAX: Duration = Duration::from_secs(600);

/// What sends an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    Gateway,
    Direct,
    Restic,
    Https,
}

impl Sender {
    const ALL: [Self; 4] = [Self::Gateway, Self::Direct, Self::Restic, Self::Https];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gateway => "tidegate, gateway",
            Self::Direct => "tidegate, S3",
            Self::Restic => "restic, S3",
            Self::Https => "one PUT, HTTPS",
        }
    }
}

/// An upload of a table.
pub(super) struct Row {
    pub(super) loss: f64,
    pub(super) sender: Sender,
    pub(super) bytes: u64,
    pub(super) upload: Upload,
}

impl Row {
    /// Of the link's rate: of all bytes of the image, or of what crossed where it did not get through.
    pub(super) fn share(&self) -> f64 {
        let bytes = match self.upload.finished {
            true => self.bytes,
            false => self.upload.crossed_bytes[0],
        };
        #[expect(clippy::cast_precision_loss, reason = "a figure")]
        let bytes = bytes as f64;
        bytes / self.upload.took.as_secs_f64() / path(0.0).rate
    }
}

fn path(loss: f64) -> Shape {
    Shape {
        loss,
        ..shape(200.0, 150, 1.0)
    }
}

/// Whole backups of images that nobody has seen before; each row is handed to `done`.
pub(super) fn whole(
    programs: Programs,
    work: &Path,
    arguments: &Arguments,
    mut done: impl FnMut(Row) -> Result<()>,
) -> Result<()> {
    let site = Site::start(programs, work, arguments.seed)?;
    let bytes = arguments.backup_mib * MIB;
    let mut images = 0;
    for loss in [0.0, 0.001, 0.01] {
        for sender in wanted(&site, &Sender::ALL, arguments) {
            images += 1;
            let name = format!("image{images}.raw");
            fill(&site.path(&name), bytes, bytes, arguments.seed + images)?;
            site.reshape(path(loss));
            let time_max = Duration::from_secs(arguments.backup_seconds);
            let upload = site.upload(sender, &name, time_max)?;
            site.unshape();
            std::fs::remove_file(site.path(&name))?;
            done(Row {
                loss,
                sender,
                bytes,
                upload,
            })?;
        }
    }
    site.end()
}

/// Backups of a disk of which a hundredth has changed since the last one.
pub(super) fn changed(
    programs: Programs,
    work: &Path,
    arguments: &Arguments,
    mut done: impl FnMut(Row) -> Result<()>,
) -> Result<()> {
    let site = Site::start(programs, work, arguments.seed)?;
    let name = "disk.raw";
    let disk = site.path(name);
    fill(&disk, ALLOCATED_BYTES, DISK_BYTES, arguments.seed)?;
    let senders = wanted(&site, &[Sender::Gateway, Sender::Restic], arguments);
    for &sender in &senders {
        let first = site.upload(sender, name, UNMEASURED_TIME_MAX)?;
        ensure!(first.finished, "{}: no first backup", sender.name());
        eprintln!("changed disk: {}: first backup: {first:?}", sender.name());
    }
    for (turn, loss) in (1..).zip([0.0, 0.01]) {
        change(&disk, arguments.seed + turn)?;
        for &sender in &senders {
            site.reshape(path(loss));
            let upload = site.upload(sender, name, CHANGED_TIME_MAX)?;
            site.unshape();
            if !upload.finished {
                // The next turn is to find one change, not two.
                let rest = site.upload(sender, name, UNMEASURED_TIME_MAX)?;
                ensure!(rest.finished, "{}: no backup", sender.name());
            }
            done(Row {
                loss,
                sender,
                bytes: CHANGED_PLACES * CHANGE_BYTES,
                upload,
            })?;
        }
    }
    site.end()
}

fn wanted(site: &Site, senders: &[Sender], arguments: &Arguments) -> Vec<Sender> {
    let named = |sender: &Sender| sender.name().contains(&arguments.contender);
    let mut wanted = senders.to_vec();
    wanted.retain(|sender| named(sender) && site.has(*sender));
    wanted
}

/// Bytes that no two seeds share and nothing compresses; zeros without a place on the disk behind them.
fn fill(path: &Path, data_bytes: u64, bytes: u64, seed: u64) -> Result<()> {
    let file = File::create(path)?;
    file.set_len(bytes)?;
    let mut random = random(seed);
    let mut buffer = vec![0; usize::try_from(MIB)?];
    for at in (0..data_bytes).step_by(buffer.len()) {
        random.fill(&mut buffer);
        file.write_all_at(&buffer, at)?;
    }
    // Nobody pays for the writing of it.
    file.sync_all()?;
    Ok(())
}

/// Other bytes in places all over what is allocated: one in each of equal stretches.
fn change(path: &Path, seed: u64) -> Result<()> {
    let file = File::options().write(true).open(path)?;
    let mut random = random(seed);
    let mut buffer = vec![0; usize::try_from(CHANGE_BYTES)?];
    for offset in places(seed) {
        random.fill(&mut buffer);
        file.write_all_at(&buffer, offset)?;
    }
    file.sync_all()?;
    Ok(())
}

fn places(seed: u64) -> impl Iterator<Item = u64> {
    let stretch = ALLOCATED_BYTES / CHANGED_PLACES;
    let mut random = random(!seed);
    (0..CHANGED_PLACES).map(move |number| {
        let mut bytes = [0; 8];
        random.fill(&mut bytes);
        let within = u64::from_le_bytes(bytes) % (stretch - CHANGE_BYTES - BLOCK_BYTES);
        (number * stretch + within).next_multiple_of(BLOCK_BYTES)
    })
}

fn random(seed: u64) -> blake3::OutputReader {
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::{ALLOCATED_BYTES, BLOCK_BYTES, CHANGE_BYTES, places};

    #[test]
    fn changes_are_apart_and_within_what_is_allocated() {
        for seed in 0..20 {
            let places: Vec<u64> = places(seed).collect();
            assert!(places.is_sorted_by(|a, b| a + CHANGE_BYTES <= *b), "{seed}");
            assert!(places.iter().all(|place| place % BLOCK_BYTES == 0));
            assert!(places.last().unwrap() + CHANGE_BYTES <= ALLOCATED_BYTES);
        }
    }
}
