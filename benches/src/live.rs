//! What the protection of a running machine costs: the machine, and the store.
//!
//! A real guest in QEMU (without hardware support: guest, QEMU and backup share the machine's cores)
//! whose disk is dirtied at random, by itself and as a domain of libvirt, where a peer backs up the same
//! blocks; and a guest that writes and syncs without an end, with and without a recovery point each 15 s,
//! in turn. Backups are runs of `tidegate backup --qmp` and `--vm`, as an operator's.
//!
//! Not a measurement of QEMU: how fast the guest writes is told as a ratio only. Writes
//! `benches/LIVE.md`.

mod domain;
mod page;
mod peer;
mod repository;

use anyhow::{Context, Result, bail, ensure};
use repository::{Increment, Repository};
use serde_json::Value;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use tidegate_agent::live::qmp::Qmp;
use tidegate_agent::source::{NbdSource, Source as _};
use tidegate_agent::testing::{Guest, GuestDisk, Libvirt};

const MIB: u64 = 1 << 20;
const BLOCK_BYTES: u64 = 4096;
/// A disk is filled by so much noise at a time, none of which occurs twice: a piece that is stored must
/// have been paid for.
const NOISE_BYTES: u64 = 256 * MIB;
/// The clusters of a qcow2 unless asked otherwise.
const CLUSTER_BYTES: u64 = 64 << 10;
/// The clusters with which domains of libvirt are tried: the usual ones, and the least that make the bits
/// of QEMU's bitmaps finer.
const CLUSTERS_TRIED: [u64; 2] = [CLUSTER_BYTES, 4 << 10];
/// The disk that is written to while points are taken.
const BUSY_BYTES: u64 = 1 << 30;
/// The distance of points.
const EVERY: Duration = Duration::from_secs(15);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The size of the disk whose blocks are dirtied, in GiB
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=64))]
    disk_gib: u64,
    /// Spans of 45 s with a point each 15 s, and as many without
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    spans: u32,
    /// The folder of the binary tidegate; this program's, if not named
    #[arg(long, value_name = "FOLDER")]
    programs: Option<PathBuf>,
    /// Where disks and repository lie for the time of the bench: three times the disk
    #[arg(long, value_name = "FOLDER", default_value = "/var/tmp")]
    work: PathBuf,
    /// The results, as a page of Markdown
    #[arg(long, value_name = "FILE", default_value = "benches/LIVE.md")]
    out: PathBuf,
}

/// A backup of a disk of which blocks were dirtied at random, and what it is measured by.
struct Cost {
    disk_bytes: u64,
    dirty_bytes: u64,
    /// By QEMU's monitor.
    monitor: Increment,
    /// Reading as many blocks over NBD, one after another.
    read_wall: Duration,
    libvirt: Vec<domain::Cost>,
    peer_version: String,
}

/// A span of the writing guest.
struct Span {
    is_protected: bool,
    writes_per_second: f64,
    /// Of a write and its sync.
    p99: Duration,
    /// How long the guest's writes were held, for each point.
    held: Vec<Duration>,
}

struct Bench {
    tidegate: PathBuf,
    work: tempfile::TempDir,
    peer_version: String,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let bench = Bench::prepare(arguments)?;
    let cost = bench.cost(arguments.disk_gib << 30)?;
    let spans = bench.impact(arguments.spans)?;
    let page = page::write(&cost, &spans)?;
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
        let tidegate = programs.join("tidegate");
        ensure!(
            tidegate.is_file(),
            "{} is not there: build it by cargo build --release -p tidegate-tools",
            tidegate.display()
        );
        // Before anything that takes minutes.
        let peer_version = peer::version()?;
        let parent = std::path::absolute(&arguments.work)?;
        let work = tempfile::Builder::new()
            .prefix("tidegate-benches-")
            .tempdir_in(&parent)
            .with_context(|| format!("make a folder in {}", parent.display()))?;
        Ok(Self {
            tidegate,
            work,
            peer_version,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    /// One block in a hundred is dirtied, at random.
    fn cost(&self, disk_bytes: u64) -> Result<Cost> {
        let blocks = disk_bytes / BLOCK_BYTES / 100;
        let (monitor, read_wall) = self.cost_by_monitor(disk_bytes, blocks)?;
        let host = Libvirt::start(self.work.path(), "libvirt");
        let mut libvirt = Vec::new();
        for cluster_bytes in CLUSTERS_TRIED {
            let cost = domain::cost(self, &host, disk_bytes, cluster_bytes, blocks)?;
            libvirt.push(cost);
        }
        Ok(Cost {
            disk_bytes,
            dirty_bytes: blocks * BLOCK_BYTES,
            monitor,
            read_wall,
            libvirt,
            peer_version: self.peer_version.clone(),
        })
    }

    fn cost_by_monitor(&self, disk_bytes: u64, blocks: u64) -> Result<(Increment, Duration)> {
        let disk = self.disk("cost.qcow2", disk_bytes, CLUSTER_BYTES)?;
        let mut guest = self.guest(&disk)?;
        let repository = Repository::make(self)?;
        repository.back_up_by(&guest.monitor())?;
        dirty(|command| guest.run(command), disk_bytes, blocks)?;
        let increment = Increment::of(|| repository.back_up_by(&guest.monitor()))?;
        let read_wall = read_blocks(&guest, disk_bytes, blocks)?;
        eprintln!("by the monitor: {increment:?}; the blocks are read in {read_wall:.2?}");
        drop(guest);
        std::fs::remove_file(disk)?;
        Ok((increment, read_wall))
    }

    fn impact(&self, spans: u32) -> Result<Vec<Span>> {
        let disk = self.disk("busy.qcow2", BUSY_BYTES, CLUSTER_BYTES)?;
        let mut guest = self.guest(&disk)?;
        let repository = Repository::make(self)?;
        repository.back_up_by(&guest.monitor())?;
        let mut all = Vec::new();
        for number in 0..2 * spans {
            let is_protected = number % 2 == 1;
            let span = self.span(&repository, &mut guest, is_protected)?;
            eprintln!(
                "span {number}: protected {is_protected}, {:.0} writes a second, held {:.1?}",
                span.writes_per_second, span.held
            );
            all.push(span);
        }
        Ok(all)
    }

    fn span(&self, repository: &Repository, guest: &mut Guest, is_protected: bool) -> Result<Span> {
        let seconds = 3 * EVERY.as_secs();
        let write = format!(
            "--filename=/dev/vda --ioengine=sync --fsync=1 --size={BUSY_BYTES} --time_based \
             --runtime={seconds} --refill_buffers"
        );
        let monitor = guest.monitor();
        let mut held = Vec::new();
        let told = std::thread::scope(|scope| {
            let points = scope.spawn(|| -> Result<Vec<Duration>> {
                let mut held = Vec::new();
                let begun = Instant::now();
                for number in 0..3 {
                    let due = EVERY * number + EVERY / 3;
                    std::thread::sleep(due.saturating_sub(begun.elapsed()));
                    if is_protected {
                        let told = repository.back_up_by(&monitor)?;
                        let seconds = told["held_seconds"].as_f64().context("no figure")?;
                        held.push(Duration::from_secs_f64(seconds));
                    }
                }
                Ok(held)
            });
            let told = fio(|command| guest.run(command), &write)?;
            held = points
                .join()
                .map_err(|_| anyhow::anyhow!("a thread broke down"))??;
            anyhow::Ok(told)
        })?;
        let job = &told["jobs"][0];
        let write = &job["write"];
        let p99_ns = job["sync"]["lat_ns"]["percentile"]["99.000000"]
            .as_u64()
            .context("fio tells no latency of syncs")?;
        Ok(Span {
            is_protected,
            writes_per_second: write["iops"].as_f64().context("fio tells no rate")?,
            p99: Duration::from_nanos(p99_ns),
            held,
        })
    }

    /// Boots a guest with this qcow2, and with fio on another disk.
    fn guest(&self, image: &Path) -> Result<Guest> {
        let disk = |path: PathBuf, format, id: &str| GuestDisk {
            path,
            format,
            id: Some(id.to_owned()),
        };
        Ok(Guest::start(vec![
            disk(image.to_owned(), "qcow2", "data"),
            disk(self.tools()?, "raw", "tools"),
        ]))
    }

    /// A qcow2 that is full of incompressible data.
    fn disk(&self, name: &str, size_bytes: u64, cluster_bytes: u64) -> Result<PathBuf> {
        let raw = self.path("filling.raw");
        let mut file = std::fs::File::create(&raw)?;
        for number in 0..size_bytes / NOISE_BYTES {
            let noise = crate::link::noise(number, usize::try_from(NOISE_BYTES)?);
            file.write_all(&noise)?;
        }
        drop(file);
        let path = self.path(name);
        let converted = Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "qcow2", "-o"])
            .arg(format!("cluster_size={cluster_bytes}"))
            .args([&raw, &path])
            .status()?;
        ensure!(converted.success(), "qemu-img convert failed");
        std::fs::remove_file(raw)?;
        Ok(path)
    }

    /// A disk with fio and all that it needs.
    fn tools(&self) -> Result<PathBuf> {
        let path = self.path("tools.raw");
        if !path.exists() {
            let folder = self.path("tools");
            let script = "mkdir -p \"$1\"; f=$(command -v fio); cp \"$f\" \"$1/fio\"; \
                for l in $(ldd \"$f\" | grep -o '/[^ ]*'); do cp -L \"$l\" \"$1/\"; done; \
                truncate -s 256M \"$2\"; mkfs.ext4 -q -F -d \"$1\" \"$2\"";
            let made = Command::new("sh")
                .args(["-ec", script, "sh"])
                .args([&folder, &path])
                .status()?;
            ensure!(
                made.success(),
                "no disk with fio: is it installed (Debian: fio)?"
            );
        }
        Ok(path)
    }
}

/// Dirties blocks, the same ones each time for a disk of one size. Says how many a second.
fn dirty(run: impl FnOnce(&str) -> String, disk_bytes: u64, blocks: u64) -> Result<f64> {
    // Each block once at most: fio keeps a map. It heeds a seed only where it need not repeat itself.
    let how = format!(
        "--filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=16 --size={disk_bytes} \
         --io_size={} --refill_buffers --randrepeat=0 --randseed=7",
        blocks * BLOCK_BYTES
    );
    let told = fio(run, &how)?;
    let rate = told["jobs"][0]["write"]["iops"].as_f64();
    rate.context("fio tells no rate")
}

/// Random writes of blocks, by what runs a command in a guest; what fio says.
fn fio(run: impl FnOnce(&str) -> String, how: &str) -> Result<Value> {
    let said = run(&format!(
        "mkdir -p /fio; mountpoint -q /fio || mount -t ext4 -o ro /dev/vdb /fio; \
         LD_LIBRARY_PATH=/fio /fio/ld-linux-x86-64.so.2 /fio/fio --name=w --thread --rw=randwrite --bs=4k \
         --output-format=json {how}"
    ));
    let (begin, end) = (said.find('{'), said.rfind('}'));
    let (Some(begin), Some(end)) = (begin, end) else {
        bail!("fio says {said}");
    };
    serde_json::from_str(&said[begin..=end]).context("fio's figures")
}

/// Reads so many blocks of the guest's disk over NBD, spread evenly, front to back.
fn read_blocks(guest: &Guest, disk_bytes: u64, blocks: u64) -> Result<Duration> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("nbd");
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let mut qmp = Qmp::connect(&guest.operators_monitor()).await?;
        let path = socket.to_str().unwrap_or_default();
        let address = serde_json::json!({ "type": "unix", "data": { "path": path } });
        let start = serde_json::json!({ "addr": address });
        qmp.execute("nbd-server-start", start).await?;
        let export = serde_json::json!({
            "type": "nbd", "id": "limit", "node-name": "disk0", "name": "limit", "writable": false,
        });
        qmp.execute("block-export-add", export).await
    })?;
    let source = NbdSource::connect(&socket, "limit", "the disk".to_owned(), Box::new(()))?;
    let mut reader = source.reader()?;
    let step = disk_bytes / blocks / BLOCK_BYTES * BLOCK_BYTES;
    let mut block = vec![0; usize::try_from(BLOCK_BYTES)?];
    let mut wall = Duration::MAX;
    // From memory the second time, where blocks that were just dirtied are too.
    for _ in 0..2 {
        let begun = Instant::now();
        for number in 0..blocks {
            reader.read_at(number * step, &mut block)?;
        }
        wall = wall.min(begun.elapsed());
    }
    Ok(wall)
}

fn finish(child: Child) -> Result<Value> {
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "tidegate failed: {said}");
    serde_json::from_str(&said).context("what tidegate says")
}
