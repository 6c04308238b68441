//! virtnbdbackup, the peer that backs up domains of libvirt by the same checkpoints.
//!
//! It writes what it reads to a file for each disk and level, in the order of the disk, and compresses
//! it only if told so.

use super::repository::Increment;
use anyhow::{Context, Result, bail, ensure};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;
use tidegate_agent::testing::Libvirt;

const PROGRAM: &str = "virtnbdbackup";
/// What it says of each disk before it reads.
const READS: &str = " bytes of data extents to backup";

/// Its version.
pub(super) fn version() -> Result<String> {
    let output = match Command::new(PROGRAM).arg("--version").output() {
        Ok(output) => output,
        Err(error) => bail!("{PROGRAM} cannot be run: {error} (Debian: virtnbdbackup)"),
    };
    ensure!(
        output.status.success(),
        "{PROGRAM} --version: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Backs up a whole domain into an empty folder.
pub(super) fn full(libvirt: &Libvirt, domain: &str, folder: &Path) -> Result<()> {
    back_up(libvirt, domain, folder, "full").map(drop)
}

/// Backs up what changed on a domain's disk `vda` since the backup before.
pub(super) fn increment(libvirt: &Libvirt, domain: &str, folder: &Path) -> Result<Increment> {
    let begun = Instant::now();
    let said = back_up(libvirt, domain, folder, "inc")?;
    let wall = begun.elapsed();
    let read_bytes = said
        .lines()
        .find_map(|line| line.strip_suffix(READS)?.rsplit(' ').next()?.parse().ok())
        .with_context(|| format!("{PROGRAM} does not tell what it reads: {said}"))?;
    // Beside it are definitions, and the kernel that the guest boots by.
    let data = folder.join("vda.inc.virtnbdbackup.1.data");
    let data = data
        .metadata()
        .with_context(|| format!("{PROGRAM} has not written {}", data.display()))?;
    Ok(Increment {
        read_bytes,
        stored_bytes: data.len(),
        wall,
    })
}

fn back_up(libvirt: &Libvirt, domain: &str, folder: &Path, level: &str) -> Result<String> {
    let output = libvirt
        .inside(PROGRAM)
        .args(["-U", "qemu:///system", "-d", domain, "-l", level, "-n"])
        .arg("-o")
        .arg(folder)
        .stdin(Stdio::null())
        .output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(output.status.success(), "{PROGRAM} failed: {said}");
    Ok(said)
}
