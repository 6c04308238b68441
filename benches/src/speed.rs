//! The speed of backup, unchanged re-run and restore, beside peers and physical limits.
//!
//! Everything runs as a child process, so that time, CPU and peak memory are taken alike. A run is:
//! every contender once, each with a repository of its own; runs are repeated, so contenders are
//! interleaved and a busy minute of the machine hits all of them. The table shows medians. Every
//! restore is compared with the image, bit for bit; a difference ends the bench.
//!
//! The image stays in the page cache throughout, for all alike: disks of test machines say little
//! about disks of hypervisor hosts, and what is compared is the software.

mod child;
mod contender;
pub(crate) mod limit;
mod machine;

use crate::image::Image;
use crate::table::{Table, grouped, mib};
use anyhow::{Context, Result};
use child::Cost;
use contender::{Contender, Step};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The raw image to back up
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    /// The tidegate binary; beside this program, if not named
    #[arg(long, value_name = "FILE")]
    tidegate: Option<PathBuf>,
    /// The restic binary; left out, if not named (benches/peers fetches one)
    #[arg(long, value_name = "FILE")]
    restic: Option<PathBuf>,
    /// Where repositories and restored images go, for the time of the bench; needs about three
    /// times the image's allocated size
    #[arg(long, value_name = "FOLDER", default_value_os_t = std::env::temp_dir())]
    work: PathBuf,
    /// Runs of every contender
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// The results, as a page of Markdown
    #[arg(long, value_name = "FILE", default_value = "benches/RESULTS.md")]
    out: PathBuf,
}

const MIB: f64 = 1048576.0;

/// One step of one contender in one run.
struct Sample {
    cost: Cost,
    /// What lies in the repository afterwards, where there is one.
    stored: Option<Stored>,
}

#[derive(Clone, Copy)]
struct Stored {
    bytes: u64,
    objects: u64,
}

/// What is to be backed up.
struct Workload {
    image: Image,
    path: PathBuf,
    /// The image's blocks that are not zero, one behind the other: what a compressor is given.
    compact: PathBuf,
    nonzero_bytes: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let folder = std::path::absolute(&arguments.work)?;
    let work = tempfile::Builder::new()
        .prefix("tidegate-benches-")
        .tempdir_in(folder)
        .with_context(|| format!("make a folder in {}", arguments.work.display()))?;
    let workload = Workload::prepare(&arguments.image, work.path())?;
    let contenders = Contender::all(arguments.tidegate.as_deref(), arguments.restic.as_deref())?;

    let mut samples: BTreeMap<(usize, Step), Vec<Sample>> = BTreeMap::new();
    for run in 1..=arguments.runs {
        for (index, contender) in contenders.iter().enumerate() {
            let folder = work.path().join("run");
            std::fs::create_dir(&folder)?;
            for (step, sample) in once(contender, &workload, &folder)
                .with_context(|| format!("run {run} of {}", contender.name()))?
            {
                eprintln!(
                    "run {run}: {} {}: {:.2} s",
                    contender.name(),
                    step.name(),
                    sample.cost.wall.as_secs_f64()
                );
                samples.entry((index, step)).or_default().push(sample);
            }
            std::fs::remove_dir_all(&folder)?;
        }
    }

    let page = page(&workload, &contenders, &samples, arguments)?;
    std::fs::write(&arguments.out, &page)
        .with_context(|| format!("write {}", arguments.out.display()))?;
    print!("{page}");
    Ok(())
}

/// All steps of one contender, in an empty folder.
fn once(contender: &Contender, workload: &Workload, folder: &Path) -> Result<Vec<(Step, Sample)>> {
    let mut place = contender.prepare(workload, folder)?;
    let mut samples = Vec::new();
    for &step in contender.steps() {
        // What the step before wrote would otherwise be written out at this step's cost.
        rustix::fs::sync();
        let command = contender.command(step, workload, &place)?;
        let (cost, output) = child::run(command)?;
        place.learn(contender, &output)?;
        if let Some(restored) = place.restored_by(step) {
            workload
                .image
                .ensure_equal(&restored)
                .with_context(|| format!("{} restored a different image", contender.name()))?;
            std::fs::remove_file(&restored)?;
        }
        let stored = match place.repository() {
            Some(repository) => Some(Stored::of(repository)?),
            None => None,
        };
        samples.push((step, Sample { cost, stored }));
    }
    Ok(samples)
}

impl Workload {
    /// Reads the image once: it is in the page cache from then on, as far as memory allows.
    fn prepare(path: &Path, work: &Path) -> Result<Self> {
        let image = Image::open(path)?;
        let compact = work.join("nonzero");
        let mut out = File::create(&compact)?;
        let mut nonzero_bytes = 0;
        image.each_block(&mut |block| {
            nonzero_bytes += block.len() as u64;
            Ok(out.write_all(block)?)
        })?;
        Ok(Self {
            image,
            path: std::path::absolute(path)?,
            compact,
            nonzero_bytes,
        })
    }
}

impl Stored {
    /// Everything below `path`, or the file that it is.
    fn of(path: &Path) -> Result<Self> {
        let metadata =
            std::fs::metadata(path).with_context(|| format!("look at {}", path.display()))?;
        if metadata.is_file() {
            return Ok(Self {
                bytes: metadata.len(),
                objects: 1,
            });
        }
        let mut total = Self {
            bytes: 0,
            objects: 0,
        };
        for entry in std::fs::read_dir(path)? {
            let inner = Self::of(&entry?.path())?;
            total.bytes += inner.bytes;
            total.objects += inner.objects;
        }
        Ok(total)
    }
}

/// The results as a page.
#[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
fn page(
    workload: &Workload,
    contenders: &[Contender],
    samples: &BTreeMap<(usize, Step), Vec<Sample>>,
    arguments: &Arguments,
) -> Result<String> {
    let mut table = Table::new(&[
        "Step",
        "seconds",
        "least–most",
        "MiB/s of data",
        "CPU seconds",
        "peak RSS MiB",
        "stored MiB",
        "objects",
    ]);
    for step in Step::ALL {
        for (index, contender) in contenders.iter().enumerate() {
            let Some(samples) = samples.get(&(index, step)) else {
                continue;
            };
            let walls: Vec<f64> = samples.iter().map(|s| s.cost.wall.as_secs_f64()).collect();
            let seconds = median(walls.clone());
            let cpu = median(samples.iter().map(|s| s.cost.cpu.as_secs_f64()).collect());
            let rss = samples
                .iter()
                .map(|s| s.cost.rss_bytes_peak)
                .max()
                .unwrap_or(0);
            let stored = samples.iter().rev().find_map(|s| s.stored);
            table.row(vec![
                format!("{}: {}", step.name(), contender.name()),
                format!("{seconds:.2}"),
                format!(
                    "{:.2}–{:.2}",
                    walls.iter().copied().fold(f64::INFINITY, f64::min),
                    walls.iter().copied().fold(0.0, f64::max)
                ),
                format!("{:.0}", workload.nonzero_bytes as f64 / MIB / seconds),
                format!("{cpu:.1}"),
                mib(rss),
                stored.map_or_else(String::new, |stored| mib(stored.bytes)),
                stored.map_or_else(String::new, |stored| grouped(stored.objects)),
            ]);
        }
    }
    let mut page = String::new();
    writeln!(page, "# Speed\n")?;
    writeln!(
        page,
        "Written by `tidegate-benches speed`: medians of {} interleaved runs; peak RSS is the highest of\n\
         all runs. One raw image of {} MiB, {} MiB of it not zero (\"data\"), in the page cache for all alike;\n\
         repositories are folders on the same disk. Every restore was compared with the image, bit for bit.\n",
        arguments.runs,
        mib(workload.image.bytes),
        mib(workload.nonzero_bytes),
    )?;
    writeln!(page, "{table}")?;
    writeln!(page, "What the steps are:\n")?;
    for contender in contenders {
        writeln!(page, "- **{}**: {}", contender.name(), contender.explain())?;
    }
    writeln!(page, "\n{}", machine::describe(contenders)?)?;
    Ok(page)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
