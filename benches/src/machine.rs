//! On what figures were taken. No date, no names, no paths.

use anyhow::Result;

/// Processor, memory and kernel, in a sentence.
pub(crate) fn describe() -> Result<String> {
    let cpus = std::thread::available_parallelism()?;
    let processor = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned());
    let memory_kib: u64 = field("/proc/meminfo", "MemTotal")
        .and_then(|text| text.split(' ').next()?.parse().ok())
        .unwrap_or(0);
    let kernel = rustix::system::uname();
    Ok(format!(
        "Machine: {processor}, {cpus} CPUs, {} GiB of memory, Linux {}.",
        (memory_kib + (1 << 19)) >> 20,
        kernel.release().to_string_lossy()
    ))
}

/// The first `name: value` line of a file of /proc.
fn field(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
