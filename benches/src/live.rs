//! What the protection of a running machine costs: the machine, and the store.
//!
//! A real guest in QEMU (without hardware support: guest, QEMU and backup share the machine's cores)
//! whose disk is dirtied at random, and one that writes and syncs without an end, with and without a
//! recovery point each 15 s, in turn. Backups are runs of `tidegate backup --qmp`, as an operator's.
//!
//! Not a measurement of QEMU: how fast the guest writes is told as a ratio only. Writes
//! `benches/LIVE.md`.

mod page;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tidegate_agent::live::qmp::Qmp;
use tidegate_agent::source::{NbdSource, Source as _};
use tidegate_agent::testing::{Guest, GuestDisk};

const MIB: u64 = 1 << 20;
const BLOCK_BYTES: u64 = 4096;
/// The part of the disk that is noise of its own; the rest repeats it.
const NOISE_BYTES: u64 = 256 * MIB;
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
    read_bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
    wall: Duration,
    /// Reading as many blocks over NBD, one after another.
    read_wall: Duration,
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
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let bench = Bench::prepare(arguments)?;
    let cost = bench.cost(arguments.disk_gib << 30)?;
    eprintln!(
        "stored {} of {} dirty bytes",
        cost.stored_bytes, cost.dirty_bytes
    );
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
        let work = tempfile::Builder::new()
            .prefix("tidegate-benches-")
            .tempdir_in(&arguments.work)
            .with_context(|| format!("make a folder in {}", arguments.work.display()))?;
        let bench = Self { tidegate, work };
        bench.tidegate(&["init", "--keys", bench.text("keys")?])?;
        Ok(bench)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    /// A path of ours, kept for as long as the program runs.
    fn text(&self, name: &str) -> Result<&'static str> {
        let path = self.path(name).into_os_string().into_string();
        let path = path.ok().context("a path that is no text")?;
        Ok(Box::leak(path.into_boxed_str()))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.tidegate);
        command
            .args(arguments)
            .arg("--json")
            .env("TIDEGATE_REPO", self.path("repo"))
            .env("TIDEGATE_KEY", self.path("keys/host.key"))
            .env("TIDEGATE_CACHE_DIR", self.path("cache"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        command
    }

    fn tidegate(&self, arguments: &[&str]) -> Result<Value> {
        finish(self.command(arguments).spawn()?)
    }

    fn back_up(&self, guest: &Guest) -> Result<Child> {
        let monitor = guest.monitor();
        let monitor = monitor.to_str().context("a path that is no text")?;
        let scratch = self
            .work
            .path()
            .to_str()
            .context("a path that is no text")?;
        let backup = [
            "backup",
            "--qmp",
            monitor,
            "--machine",
            "m",
            "--scratch",
            scratch,
        ];
        Ok(self.command(&backup).spawn()?)
    }

    /// One block in a hundred is dirtied, at random.
    fn cost(&self, disk_bytes: u64) -> Result<Cost> {
        let disk = self.disk("cost.qcow2", disk_bytes)?;
        let mut guest = Guest::start(vec![disk, self.tools()?]);
        finish(self.back_up(&guest)?)?;
        let blocks = disk_bytes / BLOCK_BYTES / 100;
        let dirty_bytes = blocks * BLOCK_BYTES;
        // Each block once at most: fio keeps a map.
        fio(
            &mut guest,
            &format!(
                "--filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=16 --size={disk_bytes} \
                 --io_size={dirty_bytes} --refill_buffers"
            ),
        )?;
        let begun = Instant::now();
        let told = finish(self.back_up(&guest)?)?;
        let wall = begun.elapsed();
        ensure!(
            told["tracking"][0]["tracked"] == true,
            "not tracked: {told}"
        );
        let read_wall = read_blocks(&guest, disk_bytes, blocks)?;
        let bytes = |name: &str| told[name].as_u64().context("no figure");
        Ok(Cost {
            disk_bytes,
            dirty_bytes,
            read_bytes: bytes("read_bytes")?,
            new_bytes: bytes("new_bytes")?,
            stored_bytes: bytes("stored_bytes")?,
            wall,
            read_wall,
        })
    }

    fn impact(&self, spans: u32) -> Result<Vec<Span>> {
        let disk = self.disk("busy.qcow2", BUSY_BYTES)?;
        let mut guest = Guest::start(vec![disk, self.tools()?]);
        finish(self.back_up(&guest)?)?;
        let mut all = Vec::new();
        for number in 0..2 * spans {
            let is_protected = number % 2 == 1;
            let span = self.span(&mut guest, is_protected)?;
            eprintln!(
                "span {number}: protected {is_protected}, {:.0} writes a second, held {:.1?}",
                span.writes_per_second, span.held
            );
            all.push(span);
        }
        Ok(all)
    }

    fn span(&self, guest: &mut Guest, is_protected: bool) -> Result<Span> {
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
                        let told = self.point(&monitor)?;
                        let seconds = told["held_seconds"].as_f64().context("no figure")?;
                        held.push(Duration::from_secs_f64(seconds));
                    }
                }
                Ok(held)
            });
            let told = fio(guest, &write)?;
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

    fn point(&self, monitor: &Path) -> Result<Value> {
        let monitor = monitor.to_str().context("a path that is no text")?;
        let scratch = self
            .work
            .path()
            .to_str()
            .context("a path that is no text")?;
        self.tidegate(&[
            "backup",
            "--qmp",
            monitor,
            "--machine",
            "m",
            "--scratch",
            scratch,
        ])
    }

    /// A qcow2 that is full of incompressible data.
    fn disk(&self, name: &str, size_bytes: u64) -> Result<GuestDisk> {
        let raw = self.path("filling.raw");
        let mut file = std::fs::File::create(&raw)?;
        let noise = crate::link::noise(7, usize::try_from(NOISE_BYTES.min(size_bytes))?);
        let mut left = size_bytes;
        while left > 0 {
            let part = usize::try_from(left.min(noise.len() as u64))?;
            file.write_all(&noise[..part])?;
            left -= part as u64;
        }
        drop(file);
        let path = self.path(name);
        let converted = Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "qcow2"])
            .args([&raw, &path])
            .status()?;
        ensure!(converted.success(), "qemu-img convert failed");
        std::fs::remove_file(raw)?;
        Ok(GuestDisk {
            path,
            format: "qcow2",
            id: Some("data".to_owned()),
        })
    }

    /// A disk with fio and all that it needs.
    fn tools(&self) -> Result<GuestDisk> {
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
        Ok(GuestDisk {
            path,
            format: "raw",
            id: Some("tools".to_owned()),
        })
    }
}

/// Random writes of blocks in the guest; what fio says.
fn fio(guest: &mut Guest, how: &str) -> Result<Value> {
    let said = guest.run(&format!(
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
    let begun = Instant::now();
    for number in 0..blocks {
        reader.read_at(number * step, &mut block)?;
    }
    Ok(begun.elapsed())
}

fn finish(child: Child) -> Result<Value> {
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "tidegate failed: {said}");
    serde_json::from_str(&said).context("what tidegate says")
}
