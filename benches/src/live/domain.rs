//! The cost by libvirt: tidegate and a peer in turn, on the same running domain, for the same blocks.

use super::repository::{Increment, Repository};
use super::{BLOCK_BYTES, Bench, MIB, dirty, peer};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tidegate_agent::testing::{Console, Libvirt, lab};

const NAME: &str = "bench";
/// What tidegate reads beside the disk.
const DEFINITION_BYTES_MAX: u64 = 64 << 10;
/// What is written to an empty image, in pieces of one MiB.
pub(super) const FIRST_WRITES_BYTES: u64 = 1 << 30;
/// How often; the least time counts.
const FIRST_WRITES_TRIES: u32 = 3;

/// What a domain costs whose disk has clusters of one size.
pub(super) struct Cost {
    pub(super) cluster_bytes: u64,
    /// What a bit of the checkpoint's bitmap stands for.
    pub(super) bit_bytes: u64,
    /// What the image needs beside the disk's bytes.
    pub(super) metadata_bytes: u64,
    /// In the guest, of single blocks at random.
    pub(super) writes_per_second: f64,
    /// Of the first writes to an empty image, from front to back.
    pub(super) first_writes: Duration,
    pub(super) tidegate: Increment,
    pub(super) peer: Increment,
}

/// Backs up a domain, dirties blocks and backs up those; by tidegate, and then by the peer.
pub(super) fn cost(
    bench: &Bench,
    libvirt: &Libvirt,
    disk_bytes: u64,
    cluster_bytes: u64,
    blocks: u64,
) -> Result<Cost> {
    let disk = bench.disk("domain.qcow2", disk_bytes, cluster_bytes)?;
    let metadata_bytes = (disk.metadata()?.blocks() * 512).saturating_sub(disk_bytes);
    let mut console = start(bench, libvirt, &disk)?;

    let repository = Repository::make(bench)?;
    let back_up = || repository.back_up_domain(|program| libvirt.inside(program), NAME);
    back_up()?;
    let bit_bytes = bit_bytes(libvirt)?;
    let first = dirty(|command| console.run(command), disk_bytes, blocks)?;
    let tidegate = Increment::of(back_up)?;
    drop(repository);
    // The peer refuses domains with checkpoints of others.
    let checkpoints = libvirt.virsh(&["checkpoint-list", NAME, "--name"]);
    for checkpoint in checkpoints.split_whitespace() {
        libvirt.virsh(&["checkpoint-delete", NAME, checkpoint]);
    }

    let folder = bench.path("peer");
    peer::full(libvirt, NAME, &folder)?;
    let second = dirty(|command| console.run(command), disk_bytes, blocks)?;
    let peer = peer::increment(libvirt, NAME, &folder)?;
    std::fs::remove_dir_all(folder)?;
    libvirt.virsh(&["destroy", NAME]);
    libvirt.virsh(&["undefine", NAME, "--checkpoints-metadata"]);
    std::fs::remove_file(disk)?;
    eprintln!("by libvirt, clusters of {cluster_bytes}: {tidegate:?}, peer {peer:?}");
    ensure!(
        peer.read_bytes >= blocks * BLOCK_BYTES,
        "{blocks} blocks were dirtied, and {} bytes read",
        peer.read_bytes
    );
    let definition_bytes = tidegate.read_bytes.checked_sub(peer.read_bytes);
    ensure!(
        definition_bytes.is_some_and(|bytes| bytes <= DEFINITION_BYTES_MAX),
        "the same blocks were to be dirtied twice, but {} and {} bytes were read",
        tidegate.read_bytes,
        peer.read_bytes
    );
    Ok(Cost {
        cluster_bytes,
        bit_bytes,
        metadata_bytes,
        writes_per_second: f64::midpoint(first, second),
        first_writes: first_writes(bench, cluster_bytes)?,
        tidegate,
        peer,
    })
}

/// How long QEMU takes to write to an image that has no clusters yet.
fn first_writes(bench: &Bench, cluster_bytes: u64) -> Result<Duration> {
    let image = bench.path("empty.qcow2");
    let mut least = Duration::MAX;
    for _ in 0..FIRST_WRITES_TRIES {
        let created = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-o"])
            .arg(format!("cluster_size={cluster_bytes}"))
            .arg(&image)
            .arg(FIRST_WRITES_BYTES.to_string())
            .status()?;
        ensure!(created.success(), "qemu-img create failed");
        let begun = Instant::now();
        let written = Command::new("qemu-img")
            .args(["bench", "-w", "-f", "qcow2", "-t", "none", "-s", "1M", "-c"])
            .arg((FIRST_WRITES_BYTES / MIB).to_string())
            .arg(&image)
            .stdout(Stdio::null())
            .status()?;
        ensure!(written.success(), "qemu-img bench failed");
        least = least.min(begun.elapsed());
        std::fs::remove_file(&image)?;
    }
    Ok(least)
}

fn start(bench: &Bench, libvirt: &Libvirt, disk: &Path) -> Result<Console> {
    let socket = bench.path("console");
    // Read-only disks are nobody's to back up.
    let xml = format!(
        "<domain type='qemu'><name>{NAME}</name>
         <memory unit='MiB'>192</memory><vcpu>1</vcpu>
         <os><type arch='x86_64' machine='pc'>hvm</type>
           <kernel>{kernel}</kernel><initrd>{initramfs}</initrd>
           <cmdline>console=ttyS0 quiet panic=-1</cmdline></os>
         <features><acpi/></features>
         <devices>
           <emulator>/usr/bin/qemu-system-x86_64</emulator>
           <disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/>
             <source file='{disk}'/><target dev='vda' bus='virtio'/></disk>
           <disk type='file' device='disk'><driver name='qemu' type='raw'/>
             <source file='{tools}'/><target dev='vdb' bus='virtio'/><readonly/></disk>
           <controller type='usb' model='none'/>
           <serial type='unix'><source mode='bind' path='{socket}'/></serial>
           <memballoon model='none'/>
         </devices></domain>",
        kernel = lab("guest/vmlinuz").display(),
        initramfs = lab("guest/initramfs").display(),
        disk = disk.display(),
        tools = bench.tools()?.display(),
        socket = socket.display(),
    );
    let file = bench.path("domain.xml");
    std::fs::write(&file, xml)?;
    let file = file.to_str().context("a path that is no text")?;
    libvirt.virsh(&["define", file]);
    libvirt.virsh(&["start", NAME]);
    Ok(Console::of_booting(&socket))
}

/// What QEMU says of the only bitmap that there is.
fn bit_bytes(libvirt: &Libvirt) -> Result<u64> {
    let ask = r#"{"execute":"query-named-block-nodes","arguments":{"flat":true}}"#;
    let told = libvirt.virsh(&["qemu-monitor-command", NAME, ask]);
    let told: Value = serde_json::from_str(&told).context("what QEMU says of its disks")?;
    let nodes = told["return"].as_array().context("QEMU names no disks")?;
    let mut bitmaps = nodes
        .iter()
        .filter_map(|node| node["dirty-bitmaps"].as_array())
        .flatten();
    let bit_bytes = bitmaps
        .next()
        .and_then(|bitmap| bitmap["granularity"].as_u64());
    bit_bytes.with_context(|| format!("QEMU tells of no bitmap: {told}"))
}
