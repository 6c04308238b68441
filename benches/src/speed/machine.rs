//! On what, and with what versions, figures were taken. No date, no names, no paths.

use super::Contender;
use anyhow::Result;
use std::fmt::Write as _;

pub(super) fn describe(contenders: &[Contender]) -> Result<String> {
    let mut text = String::new();
    let cpus = std::thread::available_parallelism()?;
    let processor = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned());
    let memory_kib: u64 = field("/proc/meminfo", "MemTotal")
        .and_then(|text| text.split(' ').next()?.parse().ok())
        .unwrap_or(0);
    let kernel = rustix::system::uname();
    writeln!(
        text,
        "Machine: {processor}, {cpus} CPUs, {} GiB of memory, Linux {}.",
        (memory_kib + (1 << 19)) >> 20,
        kernel.release().to_string_lossy()
    )?;
    let mut versions = Vec::new();
    for contender in contenders {
        versions.extend(contender.version()?);
    }
    write!(text, "Versions: {}.", versions.join("; "))?;
    Ok(text)
}

/// The first `name: value` line of a file of /proc.
fn field(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
