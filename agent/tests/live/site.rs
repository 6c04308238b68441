//! A guest with two disks, and the points that are made of it.

use crate::disks::{MIB, read_whole, run, text};
use serde_json::Value;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use tempfile::TempDir;
use tidegate_agent::Result;
use tidegate_agent::live::qmp::{Handicap, Qmp};
use tidegate_agent::live::{FreezeSettings, Frozen, Machine, Quiesce, ScratchSettings};
use tidegate_agent::source::{Source, Tracking};
use tidegate_agent::testing::{Guest, GuestDisk};
use tidegate_protocol::ids::{PointId, RepositoryId};

pub const REPOSITORY: RepositoryId = RepositoryId([0x5a; 16]);
/// The sizes of the disks: each byte is read many times.
pub const DISK_BYTES: u64 = 8 * MIB;

pub struct Site {
    pub folder: TempDir,
    pub guest: Guest,
    pub runtime: tokio::runtime::Runtime,
    /// The log: what was committed, in order.
    pub log: Vec<Point>,
    drawn: AtomicU8,
}

/// A committed point: the content of its disks, in the order of their names.
#[derive(Clone)]
pub struct Point {
    pub id: PointId,
    pub disks: Vec<(String, Vec<u8>)>,
}

impl Site {
    /// A guest with a qcow2 of the id `system` and a raw disk without an id.
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let disk = |name: &str, format: &'static str, id: Option<&str>| {
            let path = folder.path().join(name);
            let size = DISK_BYTES.to_string();
            run(
                "qemu-img",
                &["create", "-q", "-f", format, text(&path), &size],
            );
            GuestDisk {
                path,
                format,
                id: id.map(str::to_owned),
            }
        };
        let disks = vec![
            disk("system.qcow2", "qcow2", Some("system")),
            disk("data.raw", "raw", None),
        ];
        Self {
            guest: Guest::start(disks),
            folder,
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap(),
            log: Vec::new(),
            drawn: AtomicU8::new(0),
        }
    }

    /// The guest writes counters to both disks in turn, first to the first, each durable before the
    /// next, and random blocks elsewhere.
    pub fn write_without_end(&mut self) {
        self.guest.run(
            "for d in b a; do printf 00000000 | dd of=/dev/vd$d bs=512 conv=fsync,notrunc 2>/dev/null; done; \
             (n=0; while :; do n=$((n+1)); \
             printf %08d $n | dd of=/dev/vda bs=512 conv=fsync,notrunc; \
             printf %08d $n | dd of=/dev/vdb bs=512 conv=fsync,notrunc; \
             for d in a b; do dd if=/dev/urandom of=/dev/vd$d bs=4k count=2 conv=fsync,notrunc seek=$((256+RANDOM%1700)); done; usleep 60000; \
             done) >/dev/null 2>&1 & echo $! >/pid",
        );
    }

    pub fn stop_writing(&mut self) {
        self.guest.run("kill $(cat /pid); sleep 0.3; sync");
    }

    pub fn point_id(&self) -> PointId {
        PointId([self.drawn.fetch_add(1, Ordering::Relaxed) + 1; 16])
    }

    pub fn settings(&self) -> FreezeSettings {
        settings(self.folder.path(), 256 * MIB)
    }

    pub fn connect(&self) -> Result<Machine> {
        self.runtime
            .block_on(Machine::connect(&self.guest.monitor()))
    }

    pub fn freeze(&self, id: PointId) -> Result<Frozen> {
        self.freeze_with(id, Handicap::default())
    }

    /// Freezes with a program that is killed, or slow.
    pub fn freeze_with(&self, id: PointId, handicap: Handicap) -> Result<Frozen> {
        let mut machine = self.connect()?;
        machine.handicap(handicap);
        let standing = |id| {
            let place = self.log.iter().position(|point| point.id == id);
            place.map(|place| place as u64)
        };
        self.runtime
            .block_on(machine.freeze(self.settings(), REPOSITORY, id, standing, None))
    }

    /// What an incremental backup would make of it: the content of the point before, with what is said
    /// to have changed.
    pub fn read(&self, id: PointId, frozen: &Frozen) -> Point {
        let disks = frozen.disks.iter().map(|disk| {
            let whole = read_whole(disk.source.as_ref());
            if let Tracking::Since(base) = disk.source.tracking() {
                let base = self.point(base).disk(&disk.name);
                let patched = patched(base, disk.source.as_ref());
                assert!(patched == whole, "{} has changed elsewhere", disk.name);
            }
            (disk.name.clone(), whole)
        });
        Point {
            id,
            disks: disks.collect(),
        }
    }

    /// A whole backup: frozen, read, committed, retired.
    pub fn back_up(&mut self) -> Vec<Tracking> {
        let id = self.point_id();
        let frozen = self.freeze(id).unwrap();
        let tracking = tracking(&frozen);
        let point = self.read(id, &frozen);
        assert_one_moment(&point);
        self.log.push(point);
        self.runtime.block_on(frozen.retire()).unwrap();
        tracking
    }

    pub fn point(&self, id: PointId) -> &Point {
        self.log.iter().find(|point| point.id == id).unwrap()
    }

    pub fn last(&self) -> PointId {
        self.log.last().unwrap().id
    }

    /// Executes a command as the operator would, past us.
    pub fn by_hand(&self, command: &str, arguments: Value) -> Value {
        self.runtime.block_on(async {
            let mut qmp = Qmp::connect(&self.guest.operators_monitor()).await.unwrap();
            qmp.execute(command, arguments).await.unwrap()
        })
    }

    /// The names of all nodes, exports, jobs and files of ours inside QEMU.
    pub fn left_in_qemu(&self) -> Vec<String> {
        self.runtime.block_on(async {
            let mut qmp = Qmp::connect(&self.guest.operators_monitor()).await.unwrap();
            let mut left = Vec::new();
            for command in [
                "query-named-block-nodes",
                "query-block-exports",
                "query-jobs",
                "query-fdsets",
            ] {
                let answer = qmp.execute(command, Value::Null).await.unwrap();
                for item in answer.as_array().unwrap() {
                    // A bitmap's name is no name of a node.
                    let mut item = item.clone();
                    item.as_object_mut().unwrap().remove("dirty-bitmaps");
                    let item = item.to_string();
                    if item.contains("tidegate-") {
                        left.push(item);
                    }
                }
            }
            left
        })
    }
}

impl Point {
    pub fn disk(&self, name: &str) -> &[u8] {
        &self.disks.iter().find(|disk| disk.0 == name).unwrap().1
    }
}

pub fn settings(folder: &Path, bytes_max: u64) -> FreezeSettings {
    FreezeSettings {
        quiesce: Quiesce::Off,
        scratch: ScratchSettings {
            folder: folder.to_owned(),
            bytes_max,
            reserve_bytes: MIB,
        },
        notes: None,
    }
}

pub fn tracking(frozen: &Frozen) -> Vec<Tracking> {
    frozen
        .disks
        .iter()
        .map(|disk| disk.source.tracking())
        .collect()
}

/// `base` with the extents that the source says have changed since.
pub fn patched(base: &[u8], source: &dyn Source) -> Vec<u8> {
    let mut disk = base.to_vec();
    disk.resize(source.size_bytes() as usize, 0);
    let mut reader = source.reader().unwrap();
    for range in changes(source) {
        let place = range.start as usize..range.end as usize;
        reader.read_at(range.start, &mut disk[place]).unwrap();
    }
    disk
}

pub fn changes(source: &dyn Source) -> Vec<Range<u64>> {
    let mut reader = source.reader().unwrap();
    reader.changes(0..source.size_bytes()).unwrap()
}

/// The counters that the guest writes in turn.
pub fn assert_one_moment(point: &Point) {
    let counter = |disk: usize| {
        let digits = String::from_utf8_lossy(&point.disks[disk].1[..8]).into_owned();
        digits.parse::<i64>().unwrap_or(0)
    };
    let (first, second) = (counter(0), counter(1));
    assert!(
        (0..=1).contains(&(first - second)),
        "the disks are of different moments: {first} and {second}"
    );
}
