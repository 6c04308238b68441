//! The results as a page of Markdown.

use super::domain::FIRST_WRITES_BYTES;
use super::repository::Increment;
use super::{BLOCK_BYTES, Cost, EVERY, MIB, Span};
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

pub(super) fn write(cost: &Cost, spans: &[Span]) -> Result<String> {
    let mut page = String::new();
    writeln!(page, "# What the protection of a running machine costs\n")?;
    writeln!(
        page,
        "Written by `tidegate-benches live`: a guest in QEMU without hardware support, so guest, QEMU and backup share the \
         cores; backups are runs of `tidegate backup`, by QEMU's monitor (`--qmp`) or of a domain of libvirt (`--vm`), into a \
         repository in a folder.\n"
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
         were written; *of reading* beside the {:.2} s that reading as many blocks takes over NBD, one after another and from memory. By \
         libvirt each row is one running domain, backed up by tidegate and then by virtnbdbackup {}, for the same blocks: the \
         incremental after a full backup, the whole command. The peer writes what it reads to a file, neither deduplicated \
         nor sealed, and uncompressed as it is by default, which this data makes no matter; counted is the file of the \
         disk. Fixed chunks of 4 MiB, as Proxmox Backup Server has them, are calculated: how many of those are touched.\n",
        mib(cost.dirty_bytes),
        cost.read_wall.as_secs_f64(),
        cost.peer_version,
    )?;
    let mut table = Table::new(&[
        "",
        "read MiB",
        "of dirty",
        "stored MiB",
        "of dirty",
        "seconds",
        "of reading",
    ]);
    table.row(row(cost, "tidegate, by QEMU's monitor", &cost.monitor));
    for domain in &cost.libvirt {
        let clusters = format!("by libvirt, clusters of {} KiB", domain.cluster_bytes >> 10);
        table.row(row(
            cost,
            &format!("tidegate, {clusters}"),
            &domain.tidegate,
        ));
        table.row(row(
            cost,
            &format!("virtnbdbackup, {clusters}"),
            &domain.peer,
        ));
    }
    let chunks = touched(cost, PBS_CHUNK_BYTES);
    let of_dirty = format!("{:.2}", ratio(chunks, cost.dirty_bytes));
    let mut calculated = vec!["chunks of 4 MiB (calculated)".to_owned()];
    calculated.extend([mib(chunks), of_dirty.clone(), mib(chunks), of_dirty]);
    calculated.extend([String::new(), String::new()]);
    table.row(calculated);
    writeln!(page, "{table}")?;
    write!(
        page,
        "Promised: {STORED_MOST} × stored and {TIME_MOST} × of reading. By QEMU's monitor: {}.",
        kept(cost, &cost.monitor)
    )?;
    for domain in &cost.libvirt {
        write!(
            page,
            " By libvirt, with clusters of {} KiB: {}.",
            domain.cluster_bytes >> 10,
            kept(cost, &domain.tidegate)
        )?;
    }
    writeln!(
        page,
        "\n\nWhat libvirt tracks by follows the clusters of the image, which are chosen when it is made. What smaller ones \
         cost: metadata, as what the full image takes beside the disk's bytes; blocks dirtied as above, by fio in the guest; \
         and {} MiB of first writes to an empty image, one MiB after another, by `qemu-img bench`.\n",
        mib(FIRST_WRITES_BYTES)
    )?;
    let mut table = Table::new(&[
        "clusters",
        "a bit of the bitmap",
        "metadata MiB",
        "of the disk",
        "blocks a second",
        "first writes, MiB a second",
    ]);
    for domain in &cost.libvirt {
        table.row(vec![
            format!("{} KiB", domain.cluster_bytes >> 10),
            format!("{} KiB", domain.bit_bytes >> 10),
            mib(domain.metadata_bytes),
            format!(
                "{:.2} %",
                100.0 * ratio(domain.metadata_bytes, cost.disk_bytes)
            ),
            grouped(whole(domain.writes_per_second)),
            grouped(whole(
                ratio(FIRST_WRITES_BYTES, MIB) / domain.first_writes.as_secs_f64(),
            )),
        ]);
    }
    writeln!(page, "{table}")?;
    Ok(())
}

fn row(cost: &Cost, name: &str, increment: &Increment) -> Vec<String> {
    let of_dirty = |bytes: u64| format!("{:.2}", ratio(bytes, cost.dirty_bytes));
    vec![
        name.to_owned(),
        mib(increment.read_bytes),
        of_dirty(increment.read_bytes),
        mib(increment.stored_bytes),
        of_dirty(increment.stored_bytes),
        format!("{:.2}", increment.wall.as_secs_f64()),
        format!("{:.2}", times(cost, increment)),
    ]
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate, rounded"
)]
fn whole(rate: f64) -> u64 {
    rate.round() as u64
}

fn times(cost: &Cost, increment: &Increment) -> f64 {
    increment.wall.as_secs_f64() / cost.read_wall.as_secs_f64()
}

fn kept(cost: &Cost, increment: &Increment) -> &'static str {
    let stored = ratio(increment.stored_bytes, cost.dirty_bytes);
    match stored <= STORED_MOST && times(cost, increment) <= TIME_MOST {
        true => "kept",
        false => "**not kept**",
    }
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
