//! What the link costs where the line costs nothing: on the loopback of one machine.
//!
//! Incompressible packs are sent over bare quinn into nothing, as quinn and as the link would, and put through
//! the link into a gateway whose store forgets them, and into a real one; a real image is backed up straight
//! into a folder, and through a gateway into one. Repositories lie in memory, so that no disk is measured, and are new for every run. Runs are repeated, so a
//! busy minute of the machine hits all alike; medians are shown.
//!
//! Not the link over a real line: that is [`crate::wan`]. Sender and receiver share the machine's cores here,
//! as they never do elsewhere. Writes `benches/LINK.md`.

pub(crate) mod bare;
pub(crate) mod forgetful;
mod page;
mod site;

use crate::image::Image;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use site::{Gateway, Site};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tidegate_agent::link::client::{Link, LinkSettings};
use tidegate_protocol::ids::PackId;

/// A pack of the default size.
const PACK_BYTES: usize = 32 << 20;
/// What is under way at once: streams of bare QUIC, packs of a host.
const UNDER_WAY: usize = 4;
/// The part of an image that is made where none is named.
const MADE_BYTES: usize = 1 << 30;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A raw image to back up, such as generations/1.raw of `benches/images`; without one, 1 GiB of
    /// noise is made
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Packs of 32 MiB that are sent
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(4..))]
    packs: u32,
    /// Runs of everything
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// The folder of the binaries tidegate and tidegated; this program's, if not named
    #[arg(long, value_name = "FOLDER")]
    programs: Option<PathBuf>,
    /// Where repositories lie for the time of the bench: in memory
    #[arg(long, value_name = "FOLDER", default_value = "/dev/shm")]
    memory: PathBuf,
    /// The results, as a page of Markdown
    #[arg(long, value_name = "FILE", default_value = "benches/LINK.md")]
    out: PathBuf,
}

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Figure {
    Bare,
    /// Bare QUIC with the link's settings.
    BareAsLink,
    /// Packs into a gateway that forgets them.
    LinkIntoNothing,
    Link,
    BackupDirect,
    BackupThrough,
}

/// A run of one of them.
#[derive(Debug, Clone, Copy)]
struct Sample {
    wall: Duration,
    /// User and system time of the gateway or receiver, and of the sender.
    cpu: Duration,
    bytes: u64,
}

/// What is sent or backed up, and by which programs.
struct Bench {
    packs: Vec<(String, Bytes)>,
    image: Image,
    is_made: bool,
    programs: PathBuf,
    work: tempfile::TempDir,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let bench = Bench::prepare(arguments)?;
    let mut samples = Vec::new();
    for run in 1..=arguments.runs {
        for (figure, taken) in [
            (Figure::Bare, bare::send(&bench, false)),
            (Figure::BareAsLink, bare::send(&bench, true)),
            (Figure::LinkIntoNothing, put(&bench, Gateway::Forgetful)),
            (Figure::Link, put(&bench, Gateway::Real)),
            (Figure::BackupDirect, back_up(&bench, None)),
            (Figure::BackupThrough, back_up(&bench, Some(Gateway::Real))),
        ] {
            let sample = taken.with_context(|| format!("run {run} of {figure:?}"))?;
            eprintln!("run {run}: {figure:?}: {sample:.2?}");
            samples.push((figure, sample));
        }
    }
    let page = page::write(&bench, &samples, arguments.runs)?;
    std::fs::write(&arguments.out, &page)
        .with_context(|| format!("write {}", arguments.out.display()))?;
    print!("{page}");
    Ok(())
}

impl Bench {
    fn prepare(arguments: &Arguments) -> Result<Self> {
        let programs = match &arguments.programs {
            Some(folder) => std::path::absolute(folder)?,
            None => std::env::current_exe()?
                .parent()
                .context("this program lies in no folder")?
                .to_owned(),
        };
        for name in ["tidegate", "tidegated"] {
            ensure!(
                programs.join(name).is_file(),
                "{} is not there: build it by cargo build --release -p tidegate-tools -p tidegate-agent",
                programs.join(name).display()
            );
        }
        let work = tempfile::Builder::new()
            .prefix("tidegate-benches-")
            .tempdir_in(&arguments.memory)
            .with_context(|| format!("make a folder in {}", arguments.memory.display()))?;
        let packs = (0..u64::from(arguments.packs))
            .map(|seed| {
                let pack = noise(seed, PACK_BYTES);
                (PackId::of(&pack).object_key(), pack)
            })
            .collect();
        let image = match &arguments.image {
            Some(image) => std::path::absolute(image)?,
            None => {
                let path = work.path().join("noise.raw");
                let mut file = std::fs::File::create_new(&path)?;
                file.write_all(&noise(1 << 32, MADE_BYTES))?;
                path
            }
        };
        let image = Image::open(&image)?;
        image.warm()?;
        Ok(Self {
            packs,
            image,
            is_made: arguments.image.is_none(),
            programs,
            work,
        })
    }

    /// A repository of its own, with a gateway before it where one is named.
    fn site(&self, gateway: Option<Gateway>) -> Result<Site> {
        Site::new(&self.programs, self.work.path(), gateway)
    }

    fn packs_bytes(&self) -> u64 {
        self.packs.iter().map(|(_, pack)| pack.len() as u64).sum()
    }
}

/// Bytes that do not compress.
pub(crate) fn noise(seed: u64, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes.into()
}

/// All packs through the link, as a backup sends them.
fn put(bench: &Bench, gateway: Gateway) -> Result<Sample> {
    let site = bench.site(Some(gateway))?;
    let settings = LinkSettings {
        identity: site.identity(),
        ..LinkSettings::default()
    };
    let (sample, ()) = timed(bench, async {
        let link = Link::new(vec![site.address()?], site::NAME.to_owned(), &settings);
        link.status().await?;
        let begin = Instant::now();
        stream::iter(&bench.packs)
            .map(|(key, pack)| link.put(key, pack.len() as u64, [pack.clone()]))
            .buffer_unordered(UNDER_WAY)
            .try_collect::<()>()
            .await?;
        Ok((begin.elapsed(), ()))
    })?;
    Ok(Sample {
        cpu: sample.cpu + site.stop()?,
        ..sample
    })
}

/// Runs what sends the packs from this process: it says how long they took.
fn timed<T>(
    bench: &Bench,
    sends: impl Future<Output = Result<(Duration, T)>>,
) -> Result<(Sample, T)> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let before = own_cpu()?;
    let (wall, with) = runtime.block_on(sends)?;
    let cpu = own_cpu()?.saturating_sub(before);
    runtime.shutdown_timeout(Duration::from_secs(1));
    let bytes = bench.packs_bytes();
    Ok((Sample { wall, cpu, bytes }, with))
}

/// The image into a new repository, by the real program.
fn back_up(bench: &Bench, through: Option<Gateway>) -> Result<Sample> {
    let site = bench.site(through)?;
    let (cost, _) = crate::speed::child::run(site.backup(bench.image.path()))?;
    let bytes = stored_bytes(&site.repository().join("packs"))?;
    Ok(Sample {
        wall: cost.wall,
        cpu: cost.cpu + site.stop()?,
        bytes,
    })
}

/// What lies below a folder.
fn stored_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let found = entry.metadata()?;
        bytes += match found.is_dir() {
            true => stored_bytes(&entry.path())?,
            false => found.len(),
        };
    }
    Ok(bytes)
}

/// User and system time of this process.
fn own_cpu() -> Result<Duration> {
    Ok(Duration::try_from(rustix::time::clock_gettime(
        rustix::time::ClockId::ProcessCPUTime,
    ))?)
}
