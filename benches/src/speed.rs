//! The speed of backups and restores, beside peers and physical limits.
//!
//! Everything runs as a child process, so that time, CPU and peak memory are taken alike. A run is
//! every contender once, each with a repository of its own: four generations of a server one after the
//! other, the last once more unchanged, and its restore. Runs are repeated, so contenders are interleaved
//! and a busy minute of the machine hits all of them; the table shows medians. Every restore is compared
//! with the image, bit for bit; a difference ends the bench. What does not depend on the machine is
//! taken once: what three independent installs come to, and what all of it asks of an S3 server.
//!
//! What a program reads is read once before it starts, so that it comes out of the page cache for all
//! alike: disks of test machines say little about disks of hypervisor hosts, and what is compared is the
//! software.

pub(crate) mod child;
mod contender;
pub(crate) mod limit;
mod machine;
mod page;
mod requests;

use crate::image::Image;
use anyhow::{Context, Result, ensure};
use child::Cost;
use contender::{Contender, Place};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What `benches/images` has made: generations/*.raw and installs/*.raw. Repositories and restored
    /// images go there too, for the time of the bench: about 12 GiB
    #[arg(value_name = "IMAGES")]
    images: PathBuf,
    /// The peers that `benches/peers` has fetched; those that are not there are left out
    #[arg(long, value_name = "FOLDER")]
    peers: Option<PathBuf>,
    /// The tidegate binary; beside this program, if not named
    #[arg(long, value_name = "FILE")]
    tidegate: Option<PathBuf>,
    /// Runs of every contender
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Leave out what is asked of an S3 server (`tools/test --install` installs one)
    #[arg(long)]
    no_s3: bool,
    /// The results, as a page of Markdown
    #[arg(long, value_name = "FILE", default_value = "benches/RESULTS.md")]
    out: PathBuf,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Figure {
    /// The first generation into a new repository.
    First,
    /// All generations, one after the other; the first is among them.
    Generations,
    /// The last generation once more, read in full.
    Unchanged,
    /// The last generation into a new sparse file.
    Restore,
    /// Independent installs into one new repository.
    Installs,
}

/// What one contender took for a figure in one run.
#[derive(Clone, Copy)]
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

type Samples = BTreeMap<(Figure, usize), Vec<Sample>>;

/// What is backed up.
struct Workload {
    generations: Vec<Image>,
    installs: Vec<Image>,
    /// The first generation's blocks that are not zero, one behind the other: what a compressor is
    /// given.
    first_nonzero: PathBuf,
    /// The same of the last, compressed: what a decompressor is given.
    last_nonzero_zst: PathBuf,
    nonzero_bytes: BTreeMap<Figure, u64>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let folder = std::path::absolute(&arguments.images)?;
    let work = tempfile::Builder::new()
        .prefix(".tidegate-benches-")
        .tempdir_in(&folder)
        .with_context(|| format!("make a folder in {}", folder.display()))?;
    let workload = Workload::prepare(&folder, work.path())?;
    let contenders = Contender::all(arguments.tidegate.as_deref(), arguments.peers.as_deref())?;

    let mut samples = Samples::new();
    for run in 1..=arguments.runs {
        for (index, contender) in contenders.iter().enumerate() {
            let during = || format!("run {run} of {}", contender.name());
            let folder = fresh(work.path())?;
            let mut taken = generations(contender, &workload, &folder).with_context(during)?;
            if run == 1 && contender.keeps_a_repository() {
                let folder = fresh(work.path())?;
                taken.push(installs(contender, &workload, &folder).with_context(during)?);
            }
            for (figure, sample) in taken {
                let seconds = sample.cost.wall.as_secs_f64();
                eprintln!(
                    "run {run}: {}: {}: {seconds:.2} s",
                    contender.name(),
                    figure.name()
                );
                samples.entry((figure, index)).or_default().push(sample);
            }
        }
    }
    let requests = match arguments.no_s3 {
        true => Vec::new(),
        false => requests::count(&contenders, &workload, || fresh(work.path()))?,
    };

    let page = page::write(&workload, &contenders, &samples, &requests, arguments.runs)?;
    std::fs::write(&arguments.out, &page)
        .with_context(|| format!("write {}", arguments.out.display()))?;
    print!("{page}");
    Ok(())
}

/// An empty folder; what the one before held is gone.
fn fresh(work: &Path) -> Result<PathBuf> {
    let folder = work.join("run");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir(&folder)?;
    Ok(folder)
}

/// Everything about the generations.
fn generations(
    contender: &Contender,
    workload: &Workload,
    folder: &Path,
) -> Result<Vec<(Figure, Sample)>> {
    let place = Place::in_folder(folder);
    let last = workload.generations.last().context("no generations")?;
    if !contender.keeps_a_repository() {
        return limits(contender, workload, &place);
    }
    contender.init(&place)?;
    let mut samples = Vec::new();
    let mut sum: Option<Sample> = None;
    for image in &workload.generations {
        let machine = place.machine("server", image)?;
        image.warm()?;
        let sample = timed(
            contender,
            &place,
            contender.backup(&place, &machine, false)?,
        )?;
        let so_far = match sum {
            None => {
                samples.push((Figure::First, sample));
                sample
            }
            Some(before) => before.and_then(sample),
        };
        sum = Some(so_far);
    }
    samples.extend(sum.map(|sum| (Figure::Generations, sum)));
    let machine = place.machine("server", last)?;
    let again = contender.backup(&place, &machine, true)?;
    last.warm()?;
    samples.push((Figure::Unchanged, timed(contender, &place, again)?));
    let (restore, restored) = contender.restore(&place, &machine)?;
    warm(&place.repository_folder())?;
    samples.push((Figure::Restore, timed(contender, &place, restore)?));
    last.ensure_equal(&restored)
        .with_context(|| format!("{} restored a different image", contender.name()))?;
    Ok(samples)
}

fn limits(
    contender: &Contender,
    workload: &Workload,
    place: &Place,
) -> Result<Vec<(Figure, Sample)>> {
    let (figure, command, result) = contender.limit(workload, place)?;
    match figure {
        Figure::First => warm(&workload.first_nonzero)?,
        Figure::Restore => warm(&workload.last_nonzero_zst)?,
        _ => {}
    }
    if let Some(last) = workload.generations.last() {
        last.warm()?;
    }
    let mut sample = timed(contender, place, command)?;
    if figure == Figure::First {
        sample.stored = Some(Stored::of(&result)?);
    }
    Ok(vec![(figure, sample)])
}

/// Reads a file, or all below a folder, so that it is in the page cache.
fn warm(path: &Path) -> Result<()> {
    if path.is_dir() {
        for entry in std::fs::read_dir(path)? {
            warm(&entry?.path())?;
        }
        return Ok(());
    }
    std::io::copy(&mut File::open(path)?, &mut std::io::sink())?;
    Ok(())
}

/// Three machines that have nothing to do with each other, into one repository.
fn installs(contender: &Contender, workload: &Workload, folder: &Path) -> Result<(Figure, Sample)> {
    let place = Place::in_folder(folder);
    contender.init(&place)?;
    let mut sum: Option<Sample> = None;
    for (number, image) in workload.installs.iter().enumerate() {
        let machine = place.machine(&format!("install{number}"), image)?;
        image.warm()?;
        let sample = timed(
            contender,
            &place,
            contender.backup(&place, &machine, false)?,
        )?;
        sum = Some(sum.map_or(sample, |before| before.and_then(sample)));
    }
    let sum = sum.context("no installs")?;
    Ok((Figure::Installs, sum))
}

/// Runs a command; what was written before is not written out at its cost.
fn timed(contender: &Contender, place: &Place, command: std::process::Command) -> Result<Sample> {
    rustix::fs::sync();
    let (cost, _) = child::run(command)?;
    let stored = match contender.keeps_a_repository() {
        true => Some(Stored::of(&place.repository_folder())?),
        false => None,
    };
    Ok(Sample { cost, stored })
}

impl Figure {
    const ALL: [Self; 5] = [
        Self::First,
        Self::Generations,
        Self::Unchanged,
        Self::Restore,
        Self::Installs,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::First => "first backup",
            Self::Generations => "all generations",
            Self::Unchanged => "unchanged re-run",
            Self::Restore => "restore",
            Self::Installs => "three installs",
        }
    }
}

impl Sample {
    /// This and then another one.
    fn and_then(self, next: Self) -> Self {
        Self {
            cost: Cost {
                wall: self.cost.wall + next.cost.wall,
                cpu: self.cost.cpu + next.cost.cpu,
                rss_bytes_peak: self.cost.rss_bytes_peak.max(next.cost.rss_bytes_peak),
            },
            stored: next.stored,
        }
    }
}

impl Workload {
    fn prepare(images: &Path, work: &Path) -> Result<Self> {
        let generations = Image::open_folder(&images.join("generations"))?;
        let installs = Image::open_folder(&images.join("installs"))?;
        let first_nonzero = work.join("first");
        let last_nonzero_zst = work.join("last.zst");
        let mut bytes = Vec::new();
        for (number, image) in generations.iter().enumerate() {
            let last = work.join("last");
            let mut out = match number {
                0 => Some(File::create(&first_nonzero)?),
                _ if number + 1 == generations.len() => Some(File::create(&last)?),
                _ => None,
            };
            bytes.push(nonzero(image, &mut out)?);
        }
        let mut zstd = std::process::Command::new("zstd");
        zstd.args(["-1", "-T2", "-q", "--rm", "-o"])
            .arg(&last_nonzero_zst)
            .arg(work.join("last"));
        child::run(zstd)?;
        let installs_bytes = installs
            .iter()
            .map(|image| nonzero(image, &mut None))
            .sum::<Result<u64>>()?;
        let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
            anyhow::bail!("no generations");
        };
        ensure!(bytes.len() > 1, "one generation is not enough");
        Ok(Self {
            generations,
            installs,
            first_nonzero,
            last_nonzero_zst,
            nonzero_bytes: BTreeMap::from([
                (Figure::First, first),
                (Figure::Generations, bytes.iter().sum()),
                (Figure::Unchanged, last),
                (Figure::Restore, last),
                (Figure::Installs, installs_bytes),
            ]),
        })
    }
}

/// Counts the bytes of blocks that are not zero, and writes them out where somebody wants them.
fn nonzero(image: &Image, out: &mut Option<File>) -> Result<u64> {
    let mut bytes = 0;
    image.each_block(&mut |block| {
        bytes += block.len() as u64;
        match out {
            Some(out) => Ok(out.write_all(block)?),
            None => Ok(()),
        }
    })?;
    Ok(bytes)
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

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
