//! The block nodes of a snapshot inside QEMU, and how they go away again.
//!
//! ```text
//!   before          while it is prepared          frozen
//!
//!   device          device                        device
//!     │               │                             │
//!     │             pass ┄┄┄┄┄┄┄┄┄┄┐              pass
//!     │               │            ┆                │
//!     │               │          cbw ──► scratch  cbw ──► scratch ──► limit ──► file
//!     │               │            │                │  ╲
//!   disk            disk ◄─────────┘              disk   snap ──► NBD
//! ```
//!
//! `cbw` is QEMU's `copy-before-write`: before the guest's write it copies what was there to the
//! scratch image; `snap` (`snapshot-access`) reads what was copied from there and the rest from the
//! disk. All disks begin at one instant: one `blockdev-reopen` moves each `pass`, which does nothing,
//! from its disk to its `cbw`. A machine with one disk needs no `pass`: its device is given `cbw` itself.
//!
//! Why not a backup job: up to QEMU 10.0 a job whose scratch image fails, fails the *guest's* write,
//! and one whose scratch image hangs, hangs the guest. `cbw` can be told to break the snapshot
//! (`on-cbw-error`) and to wait only so long (`cbw-timeout`), from 7.1 on. The price: the reopening
//! flushes the disks, and writes wait meanwhile. It is measured and reported.
//!
//! Names are the only memory: whoever finds nodes of these names knows what they are, and to which
//! disk they belong, from QEMU alone. The invariant: at any step [`clear`] brings the machine back to
//! where it was, called once or again.

use super::machine::BlockDevice;
use super::qmp::Qmp;
use crate::error::{Error, Kind, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

/// What all our names in QEMU begin with.
pub(super) const PREFIX: &str = "tidegate-";
/// How long a guest's write may wait for the scratch image, in seconds, before the snapshot is
/// broken; well below what guests take for a dead disk (30 s on Linux).
const CBW_TIMEOUT_S: u32 = 10;
/// How often something that QEMU does in the background is looked at, and how long.
const POLL_PERIOD: Duration = Duration::from_millis(5);
const POLLS_MAX: u32 = 6000;

/// The nodes of one disk, in the order in which they can be made; they go in the reverse order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    File,
    Limit,
    Scratch,
    CopyBeforeWrite,
    Pass,
    Snapshot,
}

impl Node {
    const ALL: [Self; 6] = [
        Self::File,
        Self::Limit,
        Self::Scratch,
        Self::CopyBeforeWrite,
        Self::Pass,
        Self::Snapshot,
    ];

    /// The node's name for the disk of this number. QEMU allows 31 characters.
    pub(super) fn of(self, disk: usize) -> String {
        format!("{PREFIX}{self}-{disk}")
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Limit => "limit",
            Self::Scratch => "scratch",
            Self::CopyBeforeWrite => "cbw",
            Self::Pass => "pass",
            Self::Snapshot => "snap",
        })
    }
}

/// The id of a disk's export.
pub(super) fn export_id(disk: usize) -> String {
    format!("{PREFIX}export-{disk}")
}

fn create_job(disk: usize) -> String {
    format!("{PREFIX}create-{disk}")
}

/// What a handed-over scratch file is remembered by inside QEMU: of which disk's node it is.
fn label(disk: usize, node: &str) -> String {
    format!("{PREFIX}scratch-{disk} {node}")
}

fn of_label(label: &str) -> Option<(usize, &str)> {
    let (disk, node) = label
        .strip_prefix(PREFIX)?
        .strip_prefix("scratch-")?
        .split_once(' ')?;
    Some((disk.parse().ok()?, node))
}

/// Makes a disk's scratch image of at most `limit_bytes` from an empty file without a name, and the
/// filter over the disk, which does nothing yet.
pub(super) async fn prepare(
    qmp: &mut Qmp,
    disk: usize,
    node: &str,
    size_bytes: u64,
    limit_bytes: u64,
    file: std::os::fd::BorrowedFd<'_>,
) -> Result<()> {
    let handed: FdSet = {
        let arguments = json!({ "opaque": label(disk, node) });
        let answer = qmp.execute_with_file("add-fd", arguments, file).await?;
        serde_json::from_value(answer).map_err(misunderstood)?
    };
    let file_node = Node::File.of(disk);
    // The scratch image is worth nothing after a crash: it is never flushed.
    let cache = json!({ "no-flush": true });
    qmp.execute(
        "blockdev-add",
        json!({
            "driver": "file", "node-name": file_node, "cache": cache, "discard": "unmap",
            "filename": format!("/dev/fdset/{}", handed.fdset_id),
        }),
    )
    .await?;
    create_image(qmp, disk, &file_node, size_bytes).await?;
    // A hard limit inside QEMU: it holds also when we are killed.
    qmp.execute(
        "block_resize",
        json!({ "node-name": file_node, "size": limit_bytes }),
    )
    .await?;
    qmp.execute(
        "blockdev-add",
        json!({
            "driver": "raw", "node-name": Node::Limit.of(disk), "file": file_node,
            "size": limit_bytes, "cache": cache, "discard": "unmap",
        }),
    )
    .await?;
    qmp.execute(
        "blockdev-add",
        json!({
            "driver": "qcow2", "node-name": Node::Scratch.of(disk), "file": Node::Limit.of(disk),
            "cache": cache, "discard": "unmap", "detect-zeroes": "unmap",
        }),
    )
    .await?;
    qmp.execute(
        "blockdev-add",
        json!({
            "driver": "copy-before-write", "node-name": Node::CopyBeforeWrite.of(disk),
            "file": node, "target": Node::Scratch.of(disk), "discard": "unmap",
            "on-cbw-error": "break-snapshot", "cbw-timeout": CBW_TIMEOUT_S,
        }),
    )
    .await?;
    Ok(())
}

async fn create_image(qmp: &mut Qmp, disk: usize, file_node: &str, size_bytes: u64) -> Result<()> {
    let id = create_job(disk);
    qmp.execute(
        "blockdev-create",
        json!({
            "job-id": id,
            "options": { "driver": "qcow2", "file": file_node, "size": size_bytes },
        }),
    )
    .await?;
    match dismiss(qmp, &id).await? {
        None => Ok(()),
        Some(why) => Err(Error::new(
            Kind::Io,
            format!("QEMU cannot make a scratch image: {}", why.escape_debug()),
        )),
    }
}

/// Waits for the end of a job and takes it away; why it failed, where it did.
async fn dismiss(qmp: &mut Qmp, id: &str) -> Result<Option<String>> {
    for _ in 0..POLLS_MAX {
        let jobs: Vec<Job> = qmp.query("query-jobs", Value::Null).await?;
        let Some(job) = jobs.into_iter().find(|job| job.id == id) else {
            return Err(Error::new(
                Kind::Conflict,
                format!("somebody has dismissed the job {id}"),
            ));
        };
        if job.status == "concluded" {
            qmp.execute("job-dismiss", json!({ "id": id })).await?;
            return Ok(job.error);
        }
        tokio::time::sleep(POLL_PERIOD).await;
    }
    Err(Error::new(
        Kind::Unavailable,
        format!("QEMU does not finish the job {id}"),
    ))
}

/// Puts the node that does nothing between a device and its disk.
pub(super) async fn interpose(
    qmp: &mut Qmp,
    disk: usize,
    node: &str,
    qom_path: &str,
) -> Result<()> {
    let pass = Node::Pass.of(disk);
    qmp.execute(
        "blockdev-add",
        json!({ "driver": "raw", "node-name": pass, "file": node, "discard": "unmap" }),
    )
    .await?;
    give(qmp, qom_path, &pass).await
}

/// Gives a device another node to write to. **Never the one that it has**: QEMU ends by an
/// assertion.
pub(super) async fn give(qmp: &mut Qmp, qom_path: &str, node: &str) -> Result<()> {
    qmp.execute(
        "qom-set",
        json!({ "path": qom_path, "property": "drive", "value": node }),
    )
    .await
    .map(drop)
}

/// The arguments that make the filters of so many disks work at one instant.
pub(super) fn reopening(disks: usize) -> Value {
    let options: Vec<Value> = (0..disks)
        .map(|disk| {
            json!({
                "driver": "raw", "node-name": Node::Pass.of(disk), "discard": "unmap",
                "file": Node::CopyBeforeWrite.of(disk),
            })
        })
        .collect();
    json!({ "options": options })
}

/// Whether QEMU's NBD server may be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    /// Another's: it stays.
    NotOurs,
    /// It is, where there is anything of ours and no export of somebody else.
    MayBeOurs,
}

/// Takes away exports, nodes and files of ours, and gives the devices their disks back. Bitmaps
/// stay.
pub(super) async fn clear(qmp: &mut Qmp, server: Server) -> Result<()> {
    let exports: Vec<Export> = qmp.query("query-block-exports", Value::Null).await?;
    let (ours, foreign): (Vec<_>, Vec<_>) = exports
        .into_iter()
        .partition(|export| export.id.starts_with(PREFIX));
    for export in &ours {
        qmp.execute(
            "block-export-del",
            json!({ "id": export.id, "mode": "hard" }),
        )
        .await?;
    }
    let mut present = our_nodes(qmp).await?;
    let found_ours = !ours.is_empty() || !present.is_empty();
    let foreign_nbd = foreign.iter().any(|export| export.kind == "nbd");
    if server == Server::MayBeOurs && found_ours && !foreign_nbd {
        // It may not run, or not run any more.
        let _ = qmp.execute("nbd-server-stop", Value::Null).await;
    }
    exports_gone(qmp).await?;
    let jobs: Vec<Job> = qmp.query("query-jobs", Value::Null).await?;
    for job in jobs.iter().filter(|job| job.id.starts_with(PREFIX)) {
        dismiss(qmp, &job.id).await?;
    }
    let files: Vec<FdSet> = qmp.query("query-fdsets", Value::Null).await?;
    for file in &files {
        for (disk, node) in file.labels().filter_map(of_label) {
            give_back(qmp, disk, node, &mut present).await?;
        }
    }
    for node in Node::ALL.into_iter().rev() {
        let prefix = format!("{PREFIX}{node}-");
        for name in present.iter().filter(|name| name.starts_with(&prefix)) {
            delete(qmp, name).await?;
        }
    }
    for file in files {
        if file.labels().any(|label| of_label(label).is_some()) {
            // QEMU itself drops a file that nobody uses.
            let _ = qmp
                .execute("remove-fd", json!({ "fdset-id": file.fdset_id }))
                .await;
        }
    }
    Ok(())
}

/// Gives the device that uses nodes of ours the disk `node` back.
async fn give_back(
    qmp: &mut Qmp,
    disk: usize,
    node: &str,
    present: &mut BTreeSet<String>,
) -> Result<()> {
    let (pass, cbw) = (Node::Pass.of(disk), Node::CopyBeforeWrite.of(disk));
    // It reads from `cbw`, which must let go of the disk.
    let snapshot = Node::Snapshot.of(disk);
    if present.remove(&snapshot) {
        delete(qmp, &snapshot).await?;
    }
    let devices: Vec<BlockDevice> = qmp.query("query-block", Value::Null).await?;
    let uses = |device: &BlockDevice| {
        let used = device.inserted.as_ref()?.node_name.clone();
        (used == pass || used == cbw).then(|| Some((device.qom_path()?, used)))?
    };
    let Some((qom_path, mut used)) = devices.iter().find_map(uses) else {
        return Ok(());
    };
    if used == pass && present.contains(&cbw) {
        // Past `pass`, wherever it leads.
        give(qmp, &qom_path, &cbw).await?;
        used = cbw.clone();
    }
    if used == cbw && present.remove(&pass) {
        // It may hold `cbw`, which then would not let go of the disk.
        delete(qmp, &pass).await?;
    }
    give(qmp, &qom_path, node).await
}

async fn delete(qmp: &mut Qmp, node: &str) -> Result<()> {
    qmp.execute("blockdev-del", json!({ "node-name": node }))
        .await
        .map(drop)
}

async fn our_nodes(qmp: &mut Qmp) -> Result<BTreeSet<String>> {
    let nodes: Vec<NamedNode> = qmp
        .query("query-named-block-nodes", json!({ "flat": true }))
        .await?;
    Ok(nodes
        .into_iter()
        .map(|node| node.node_name)
        .filter(|name| name.starts_with(PREFIX))
        .collect())
}

/// Exports go when their last request is answered.
async fn exports_gone(qmp: &mut Qmp) -> Result<()> {
    for _ in 0..POLLS_MAX {
        let exports: Vec<Export> = qmp.query("query-block-exports", Value::Null).await?;
        if !exports.iter().any(|export| export.id.starts_with(PREFIX)) {
            return Ok(());
        }
        tokio::time::sleep(POLL_PERIOD).await;
    }
    Err(Error::new(
        Kind::Unavailable,
        "QEMU does not end the export of a snapshot",
    ))
}

fn misunderstood(error: serde_json::Error) -> Error {
    Error::new(Kind::Unsupported, "QEMU's answer is not understood").caused_by(error)
}

#[derive(Deserialize)]
struct Export {
    id: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Job {
    id: String,
    status: String,
    error: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct NamedNode {
    node_name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FdSet {
    fdset_id: u64,
    #[serde(default)]
    fds: Vec<Fd>,
}

#[derive(Deserialize)]
struct Fd {
    opaque: Option<String>,
}

impl FdSet {
    fn labels(&self) -> impl Iterator<Item = &str> {
        self.fds.iter().filter_map(|fd| fd.opaque.as_deref())
    }
}
