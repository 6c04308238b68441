//! The results as a page of Markdown.

use super::{Bench, Figure, Sample, UNDER_WAY};
use crate::machine;
use crate::table::{Table, mib};
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::time::Duration;

/// What is promised of the link's settings and of the link without its store, beside bare QUIC, and of
/// backups, beside those that need no gateway.
const SHARE_LEAST: f64 = 0.7;

/// The medians of one figure.
struct Median {
    wall: f64,
    cpu: f64,
    bytes: u64,
}

pub(super) fn write(bench: &Bench, samples: &[(Figure, Sample)], runs: u32) -> Result<String> {
    let median = |figure| median(samples, figure);
    let (bare, link) = (median(Figure::Bare)?, median(Figure::Link)?);
    let as_link = median(Figure::BareAsLink)?;
    let into_nothing = median(Figure::LinkIntoNothing)?;
    let (direct, through) = (
        median(Figure::BackupDirect)?,
        median(Figure::BackupThrough)?,
    );
    let mut page = String::new();
    writeln!(page, "# The link on one machine\n")?;
    writeln!(
        page,
        "Written by `tidegate-benches link`: medians of {runs} runs over the loopback, where sender and receiver share the \
         cores, with repositories in memory, new for each run. CPU time is that of all processes together.\n"
    )?;
    writeln!(page, "## {} MiB of packs\n", mib(bare.bytes))?;
    writeln!(
        page,
        "Bare quinn: {UNDER_WAY} streams into a process that forgets them, quinn's own settings, the same TLS. The same with the \
         link's settings: its congestion control, windows, sockets and way to read. Packs put through the link: 32 MiB each, \
         {UNDER_WAY} under way, into a gateway that hashes each; its store forgets them, which leaves what the link costs, \
         or is a folder, where each is written whole before the gateway says so.\n"
    )?;
    let mut table = Table::new(&["", "seconds", "MB/s", "CPU seconds", "of bare quinn"]);
    table.row(row("bare quinn", &bare, bare.bytes, &bare));
    table.row(row(
        "with the link's settings",
        &as_link,
        as_link.bytes,
        &bare,
    ));
    for (name, put) in [
        ("packs put through the link, forgotten", &into_nothing),
        ("packs put through the link, into a folder", &link),
    ] {
        table.row(row(name, put, put.bytes, &bare));
    }
    writeln!(page, "{table}")?;
    let data: u64 = bench.image.allocation.iter().map(|r| r.end - r.start).sum();
    writeln!(page, "## Backup of {} MiB\n", mib(data))?;
    let what = match bench.is_made {
        true => "noise, which neither compresses nor repeats",
        false => "what is allocated of a real image",
    };
    writeln!(
        page,
        "Of {what}; {} MiB of packs came of it. Both times the real program, with its default settings and an empty cache.\n",
        mib(through.bytes)
    )?;
    let mut table = Table::new(&["", "seconds", "MB/s", "CPU seconds", "of the direct one"]);
    table.row(row("into the folder", &direct, data, &direct));
    table.row(row("through a gateway", &through, data, &direct));
    writeln!(page, "{table}")?;
    let shares = [
        ("the link's settings", bare.wall / as_link.wall),
        ("the link without its store", bare.wall / into_nothing.wall),
        ("backups through a gateway", direct.wall / through.wall),
    ];
    let missed: Vec<String> = shares
        .iter()
        .filter(|(_, share)| *share < SHARE_LEAST)
        .map(|(name, share)| format!("{name}: {}", percent(*share)))
        .collect();
    let verdict = match missed.is_empty() {
        true => "Kept.".to_owned(),
        false => format!("Not kept: {}.", missed.join("; ")),
    };
    writeln!(
        page,
        "Promised: {} with the link's settings, through the link into a store that forgets, and of a backup through a \
         gateway. {verdict}\n",
        percent(SHARE_LEAST)
    )?;
    writeln!(page, "{}", machine::describe()?)?;
    Ok(page)
}

fn median(samples: &[(Figure, Sample)], figure: Figure) -> Result<Median> {
    let of = samples.iter().filter(|(of, _)| *of == figure);
    let of: Vec<Sample> = of.map(|(_, sample)| *sample).collect();
    let middle = |value: fn(&Sample) -> Duration| {
        let mut values: Vec<Duration> = of.iter().map(value).collect();
        values.sort_unstable();
        values.get(values.len() / 2).map(Duration::as_secs_f64)
    };
    let none = || format!("no run of {figure:?}");
    Ok(Median {
        wall: middle(|sample| sample.wall).with_context(none)?,
        cpu: middle(|sample| sample.cpu).with_context(none)?,
        bytes: of.first().with_context(none)?.bytes,
    })
}

fn row(name: &str, median: &Median, bytes: u64, beside: &Median) -> Vec<String> {
    #[expect(clippy::cast_precision_loss, reason = "a figure")]
    let rate = bytes as f64 / 1e6 / median.wall;
    vec![
        name.to_owned(),
        format!("{:.2}", median.wall),
        format!("{rate:.0}"),
        format!("{:.2}", median.cpu),
        percent(beside.wall / median.wall),
    ]
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}
