//! The results as a page of Markdown.

use super::{BLOCK_BYTES, Cost, EVERY, Span};
use crate::machine;
use crate::table::{Table, grouped, mib};
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::time::Duration;

/// What is promised: bytes uploaded for each dirty one, and time for each second of reading those blocks.
const STORED_MOST: f64 = 1.15;
const TIME_MOST: f64 = 3.0;
/// The fixed chunks of Proxmox Backup Server.
const PBS_CHUNK_BYTES: u64 = 4 << 20;
/// The clusters by which libvirt tracks a qcow2.
const CLUSTER_BYTES: u64 = 64 << 10;

pub(super) fn write(cost: &Cost, spans: &[Span]) -> Result<String> {
    let mut page = String::new();
    writeln!(page, "# What the protection of a running machine costs\n")?;
    writeln!(
        page,
        "Written by `tidegate-benches live`: a guest in QEMU without hardware support, so guest, QEMU and backup share the \
         cores; backups are runs of `tidegate backup --qmp` into a folder.\n"
    )?;
    write_cost(&mut page, cost)?;
    write_impact(&mut page, spans)?;
    writeln!(page, "{}", machine::describe()?)?;
    Ok(page)
}

fn write_cost(page: &mut String, cost: &Cost) -> Result<()> {
    let blocks = cost.dirty_bytes / BLOCK_BYTES;
    writeln!(
        page,
        "## {} blocks of 4 KiB, dirtied at random in {} MiB\n",
        grouped(blocks),
        mib(cost.disk_bytes)
    )?;
    writeln!(
        page,
        "A disk full of incompressible data, and incompressible data written to it. *Of dirty* is beside the {} MiB that \
         were written. By libvirt, whose bitmaps have a bit for each 64 KiB, so that a block dirties fifteen more, and with \
         fixed chunks of 4 MiB, as Proxmox Backup Server has them: by calculation, how many of those are touched.\n",
        mib(cost.dirty_bytes)
    )?;
    let mut table = Table::new(&["", "read MiB", "of dirty", "stored MiB", "of dirty"]);
    let of_dirty = |bytes: u64| format!("{:.2}", ratio(bytes, cost.dirty_bytes));
    table.row(vec![
        "tidegate, by QEMU's monitor".to_owned(),
        mib(cost.read_bytes),
        of_dirty(cost.read_bytes),
        mib(cost.stored_bytes),
        of_dirty(cost.stored_bytes),
    ]);
    let clusters = touched(cost, CLUSTER_BYTES);
    table.row(vec![
        "by libvirt (calculated)".to_owned(),
        mib(clusters),
        of_dirty(clusters),
        mib(clusters),
        of_dirty(clusters),
    ]);
    let chunks = touched(cost, PBS_CHUNK_BYTES);
    table.row(vec![
        "chunks of 4 MiB (calculated)".to_owned(),
        mib(chunks),
        of_dirty(chunks),
        mib(chunks),
        of_dirty(chunks),
    ]);
    writeln!(page, "{table}")?;
    let stored = ratio(cost.stored_bytes, cost.dirty_bytes);
    let times = cost.wall.as_secs_f64() / cost.read_wall.as_secs_f64();
    writeln!(
        page,
        "The backup took {:.2} s, {:.2} × the {:.2} s that reading as many blocks takes over NBD, one after another; {} MiB of \
         it were new. Promised: {STORED_MOST} × and {TIME_MOST} ×. {}\n",
        cost.wall.as_secs_f64(),
        times,
        cost.read_wall.as_secs_f64(),
        mib(cost.new_bytes),
        match stored <= STORED_MOST && times <= TIME_MOST {
            true => "Kept.",
            false => "**Not kept.**",
        }
    )?;
    Ok(())
}

fn write_impact(page: &mut String, spans: &[Span]) -> Result<()> {
    let of = |is_protected: bool| {
        spans
            .iter()
            .filter(move |it| it.is_protected == is_protected)
    };
    let median = |is_protected, figure: fn(&Span) -> f64| {
        median(of(is_protected).map(figure).collect()).context("no span")
    };
    let rate: fn(&Span) -> f64 = |span| span.writes_per_second;
    let p99: fn(&Span) -> f64 = |span| span.p99.as_secs_f64() * 1000.0;
    let (rate_without, rate_with) = (median(false, rate)?, median(true, rate)?);
    let (p99_without, p99_with) = (median(false, p99)?, median(true, p99)?);
    writeln!(
        page,
        "## A guest that writes and syncs 4 KiB at random, with a point each {} s\n",
        EVERY.as_secs()
    )?;
    writeln!(
        page,
        "fio in the guest; medians of {} spans of {} s with points and as many without, in turn. Every write is synced.\n",
        of(true).count(),
        3 * EVERY.as_secs()
    )?;
    let mut table = Table::new(&["", "writes a second", "syncs, 99th percentile in ms"]);
    let row = |name: &str, rate: f64, p99: f64| {
        vec![name.to_owned(), format!("{rate:.0}"), format!("{p99:.2}")]
    };
    table.row(row("without", rate_without, p99_without));
    table.row(row("with points", rate_with, p99_with));
    table.row(vec![
        "with, of without".to_owned(),
        format!("{:.0} %", 100.0 * rate_with / rate_without),
        format!("{:.0} %", 100.0 * p99_with / p99_without),
    ]);
    writeln!(page, "{table}")?;
    let held: Vec<f64> = of(true)
        .flat_map(|span| span.held.iter().map(Duration::as_secs_f64))
        .collect();
    let most = held.iter().copied().fold(0.0, f64::max);
    writeln!(
        page,
        "The guest's writes were held for {:.1} ms at the median of {} points, {:.1} ms at most.\n",
        1000.0 * median_of(&held).context("no point")?,
        held.len(),
        1000.0 * most
    )?;
    Ok(())
}

/// What pieces of that size amount to that have at least one dirty block: each piece is spared with
/// the chance that all blocks fall elsewhere.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an expectation"
)]
fn touched(cost: &Cost, piece_bytes: u64) -> u64 {
    let all = (cost.disk_bytes / BLOCK_BYTES) as f64;
    let dirty = (cost.dirty_bytes / BLOCK_BYTES) as f64;
    let in_piece = (piece_bytes / BLOCK_BYTES) as i32;
    let spared = (1.0 - dirty / all).powi(in_piece);
    (cost.disk_bytes as f64 * (1.0 - spared)) as u64
}

#[expect(clippy::cast_precision_loss, reason = "a ratio")]
fn ratio(bytes: u64, of: u64) -> f64 {
    bytes as f64 / of as f64
}

fn median_of(values: &[f64]) -> Option<f64> {
    median(values.to_vec())
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
