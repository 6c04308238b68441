//! The results as a page of Markdown.

use super::contender::Contender;
use super::requests::Requests;
use super::{Figure, Sample, Samples, Workload, machine, median};
use crate::table::{Table, grouped, mib};
use anyhow::Result;
use std::collections::BTreeMap;
use std::fmt::Write as _;

const MIB: f64 = 1048576.0;

pub(super) fn write(
    workload: &Workload,
    contenders: &[Contender],
    samples: &Samples,
    requests: &[Requests],
    runs: u32,
) -> Result<String> {
    let mut page = String::new();
    let data = |figure| workload.nonzero_bytes.get(&figure).copied().unwrap_or(0);
    writeln!(page, "# Speed\n")?;
    writeln!(
        page,
        "Written by `tidegate-benches speed`: medians of {runs} interleaved runs (three installs: one run); \
         peak RSS is the highest of all runs. \
         {} generations of a Debian server, changed in place, {} MiB of them not zero (\"data\"), the first {}, the \
         last {}; {} servers installed independently, {} MiB of data. Images, and repositories to restore from, are in the page cache for all alike; \
         repositories are folders on the same disk. Every restore was compared with the image, bit for bit.\n",
        workload.generations.len(),
        mib(data(Figure::Generations)),
        mib(data(Figure::First)),
        mib(data(Figure::Restore)),
        workload.installs.len(),
        mib(data(Figure::Installs)),
    )?;
    writeln!(page, "{}", comparison(contenders, samples))?;
    writeln!(
        page,
        "Times faster: the peer's median over tidegate's. Share of the limit: the limit's median over tidegate's.\n"
    )?;
    writeln!(page, "{}", all(workload, contenders, samples))?;
    if !requests.is_empty() {
        writeln!(
            page,
            "Asked of a real S3 server (SeaweedFS), counted by a proxy in front of it: all generations, the last once \
             more unchanged, then its restore. borg does not speak S3.\n"
        )?;
        writeln!(page, "{}", asked(requests))?;
    }
    writeln!(page, "What is measured:\n")?;
    for contender in contenders {
        writeln!(page, "- **{}**: {}", contender.name(), contender.explain())?;
    }
    writeln!(
        page,
        "\nOf the programs only tidegate makes a restored image durable before it ends.\n\n{}",
        machine::describe(contenders)?
    )?;
    Ok(page)
}

/// tidegate beside the best peer and the limits.
fn comparison(contenders: &[Contender], samples: &Samples) -> Table {
    let mut table = Table::new(&[
        "Figure",
        "tidegate",
        "best peer",
        "times faster",
        "limit",
        "share of the limit",
    ]);
    let of = |figure: Figure, value: &dyn Fn(&[Sample]) -> Option<f64>| {
        contenders
            .iter()
            .enumerate()
            .filter_map(|(index, contender)| {
                Some((contender, value(samples.get(&(figure, index))?)?))
            })
            .collect::<Vec<_>>()
    };
    for figure in Figure::ALL {
        let walls = of(figure, &|samples| Some(wall(samples)));
        let Some(ours) = ours(&walls) else { continue };
        let peer = least(walls.iter().filter(|(contender, _)| contender.is_peer()));
        let limits = walls
            .iter()
            .filter(|(contender, _)| !contender.keeps_a_repository());
        let mut limits: Vec<String> = limits
            .map(|(contender, seconds)| {
                format!(
                    "{}: {seconds:.2} s | {:.2}",
                    contender.name(),
                    seconds / ours
                )
            })
            .collect();
        if limits.is_empty() {
            limits.push(" | ".to_owned());
        }
        for limit in limits {
            let (limit, share) = limit.split_once(" | ").unwrap_or_default();
            table.row(vec![
                figure.name().to_owned(),
                format!("{ours:.2} s"),
                peer.map_or_else(String::new, |(peer, seconds)| {
                    format!("{}: {seconds:.2} s", peer.name())
                }),
                peer.map_or_else(String::new, |(_, seconds)| format!("{:.1}", seconds / ours)),
                limit.to_owned(),
                share.to_owned(),
            ]);
        }
    }
    for figure in [Figure::Generations, Figure::Installs] {
        let stored = of(figure, &stored_mib);
        let Some(ours) = ours(&stored) else { continue };
        let peer = least(stored.iter().filter(|(contender, _)| contender.is_peer()));
        table.row(vec![
            format!("stored, {}", figure.name()),
            format!("{ours:.0} MiB"),
            peer.map_or_else(String::new, |(peer, mib)| {
                format!("{}: {mib:.0} MiB", peer.name())
            }),
            peer.map_or_else(String::new, |(_, mib)| format!("{:.2} of it", ours / mib)),
            String::new(),
            String::new(),
        ]);
    }
    table
}

fn ours(values: &[(&Contender, f64)]) -> Option<f64> {
    let ours = values
        .iter()
        .find(|(contender, _)| matches!(contender, Contender::Tidegate { .. }));
    ours.map(|(_, value)| *value)
}

fn least<'a>(
    values: impl Iterator<Item = &'a (&'a Contender, f64)>,
) -> Option<&'a (&'a Contender, f64)> {
    values.min_by(|a, b| a.1.total_cmp(&b.1))
}

fn wall(samples: &[Sample]) -> f64 {
    median(samples.iter().map(|s| s.cost.wall.as_secs_f64()).collect())
}

#[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
fn stored_mib(samples: &[Sample]) -> Option<f64> {
    Some(samples.last()?.stored?.bytes as f64 / MIB)
}

/// Everything.
#[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
fn all(workload: &Workload, contenders: &[Contender], samples: &Samples) -> Table {
    let mut table = Table::new(&[
        "Step",
        "seconds",
        "least–most",
        "MiB/s of data",
        "CPU seconds",
        "peak RSS MiB",
        "stored MiB",
        "files",
    ]);
    for figure in Figure::ALL {
        for (index, contender) in contenders.iter().enumerate() {
            let Some(samples) = samples.get(&(figure, index)) else {
                continue;
            };
            let walls = samples.iter().map(|s| s.cost.wall.as_secs_f64());
            let seconds = wall(samples);
            let cpu = median(samples.iter().map(|s| s.cost.cpu.as_secs_f64()).collect());
            let rss = samples.iter().map(|s| s.cost.rss_bytes_peak).max();
            let stored = samples.last().and_then(|s| s.stored);
            let data = workload.nonzero_bytes.get(&figure).copied().unwrap_or(0);
            table.row(vec![
                format!("{}: {}", figure.name(), contender.name()),
                format!("{seconds:.2}"),
                format!(
                    "{:.2}–{:.2}",
                    walls.clone().fold(f64::INFINITY, f64::min),
                    walls.fold(0.0, f64::max)
                ),
                format!("{:.0}", data as f64 / MIB / seconds),
                format!("{cpu:.1}"),
                mib(rss.unwrap_or(0)),
                stored.map_or_else(String::new, |stored| mib(stored.bytes)),
                stored.map_or_else(String::new, |stored| grouped(stored.objects)),
            ]);
        }
    }
    table
}

fn asked(requests: &[Requests]) -> Table {
    let mut table = Table::new(&[
        "To S3",
        "objects",
        "requests of the backups",
        "requests of the restore",
        "requests in all",
    ]);
    let total = |counts: &BTreeMap<String, u64>| counts.values().sum::<u64>();
    let said = |counts: &BTreeMap<String, u64>| {
        let each: Vec<String> = counts
            .iter()
            .map(|(method, count)| format!("{} {method}", grouped(*count)))
            .collect();
        each.join(", ")
    };
    for of in requests {
        table.row(vec![
            of.contender.to_owned(),
            grouped(of.objects),
            said(&of.backups),
            said(&of.restore),
            grouped(total(&of.backups) + total(&of.restore)),
        ]);
    }
    table
}
