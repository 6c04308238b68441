//! The results as a page of Markdown.

use super::{Arguments, Contender, Figures, OURS, Results, Shared, backups};
use crate::machine;
use crate::table::Table;
use anyhow::Result;
use std::fmt::Write as _;
use std::time::Duration;

/// What is promised of our controller.
const STARTED_LEAST: f64 = 0.90;
const EARLY_LEAST: f64 = 0.75;
const INFLATION_MOST: f64 = 0.25;

pub(super) type Row = (String, Vec<(Contender, Figures)>);

pub(super) fn write(results: &Results, arguments: &Arguments) -> Result<String> {
    let rows = results.paths.as_slice();
    let mut page = String::new();
    writeln!(page, "# Long, lossy and shared paths\n")?;
    writeln!(
        page,
        "Written by `tidegate-benches wan`: uploads of {} s, one after the other, each through a path of its own: \
         two network namespaces and a relay between them that gives every IP packet rate, queue, delay, loss and jitter. \
         Paths are 200 Mbit/s with a round trip of 150 ms and a queue of 1 × their product, where nothing else is said; \
         loss and jitter are in both directions. All QUIC rows have the same settings but for the controller. \
         TCP has windows large enough for every path, and no TLS.\n",
        arguments.seconds
    )?;
    writeln!(
        page,
        "## Goodput once started\n\nAs a share of the link's bits a second, headers and all; from the fifth second on.\n"
    )?;
    writeln!(page, "{}", table(rows, &|f| percent(f.started)))?;
    writeln!(page, "## Goodput over the first ten seconds\n")?;
    writeln!(page, "{}", table(rows, &|f| percent(f.early)))?;
    writeln!(
        page,
        "## How much the round trip is inflated\n\nThe time packets waited in the queue, median / 95th percentile, as a share \
         of the round trip without it; from the fifth second on.\n"
    )?;
    writeln!(
        page,
        "{}",
        table(rows, &|f| format!(
            "{} / {}",
            percent(f.median),
            percent(f.p95)
        ))
    )?;
    writeln!(
        page,
        "## Packets that found the queue full\n\nOver the whole upload.\n"
    )?;
    writeln!(
        page,
        "{}",
        table(rows, &|f| crate::table::grouped(f.overflowed))
    )?;
    writeln!(page, "{}", verdict(rows)?)?;
    writeln!(
        page,
        "## Shares of a bottleneck\n\nTwo uploads of {} s through 100 Mbit/s at 50 ms, the second three seconds after the \
         first; shares over the last two thirds. `fair` and `throughput` are what a policy sets.\n",
        arguments.shared_seconds
    )?;
    writeln!(page, "{}", shares(&results.pairs))?;
    writeln!(page, "{}", whole_backups(&results.whole, arguments))?;
    writeln!(page, "{}", changed_disk(&results.changed))?;
    let late = rows
        .iter()
        .flat_map(|(_, figures)| figures.iter().map(|(_, f)| f.late))
        .max();
    writeln!(
        page,
        "The relay let a packet leave {:.0} ms late at worst.\n",
        late.unwrap_or(Duration::ZERO).as_secs_f64() * 1e3
    )?;
    writeln!(page, "{}", machine::describe()?)?;
    Ok(page)
}

fn table(rows: &[Row], cell: &dyn Fn(&Figures) -> String) -> Table {
    let mut header = vec!["Path"];
    if let Some((_, figures)) = rows.first() {
        header.extend(figures.iter().map(|(contender, _)| contender.name()));
    }
    let mut table = Table::new(&header);
    for (name, figures) in rows {
        let cells = figures.iter().map(|(_, figures)| cell(figures));
        table.row(std::iter::once(name.clone()).chain(cells).collect());
    }
    table
}

/// Where our controller keeps what is promised of it, and where it does not.
fn verdict(rows: &[Row]) -> Result<String> {
    let mut text = format!(
        "Promised of tidegate: {} of the link once started, {} over the first ten seconds, a round trip inflated by no \
         more than {}. ",
        percent(STARTED_LEAST),
        percent(EARLY_LEAST),
        percent(INFLATION_MOST)
    );
    let mut missed = Vec::new();
    for (name, figures) in rows {
        for (_, f) in figures.iter().filter(|(contender, _)| *contender == OURS) {
            if f.started < STARTED_LEAST {
                missed.push(format!("{name}: {} once started", percent(f.started)));
            }
            if f.early < EARLY_LEAST {
                missed.push(format!("{name}: {} at first", percent(f.early)));
            }
            if f.median > INFLATION_MOST {
                missed.push(format!("{name}: inflated by {}", percent(f.median)));
            } else if f.p95 > INFLATION_MOST {
                missed.push(format!(
                    "{name}: inflated by {} at the 95th percentile",
                    percent(f.p95)
                ));
            }
        }
    }
    if missed.is_empty() {
        write!(
            text,
            "Kept on every path, the last also at the 95th percentile."
        )?;
    } else {
        write!(text, "Not kept: {}.", missed.join("; "))?;
    }
    writeln!(text)?;
    Ok(text)
}

fn shares(pairs: &[Shared]) -> Table {
    let mut table = Table::new(&[
        "First, and second",
        "queue (products)",
        "first",
        "second",
        "round trip inflated",
    ]);
    for pair in pairs {
        let [first, second] = pair.contenders;
        table.row(vec![
            format!("{}, and {}", first.name(), second.name()),
            pair.queue_bdp.to_string(),
            percent(pair.shares[0]),
            percent(pair.shares[1]),
            percent(pair.median),
        ]);
    }
    table
}

fn whole_backups(rows: &[backups::Row], arguments: &Arguments) -> String {
    format!(
        "## Whole backups\n\nAn image of {} MiB that does not compress, from a host at one end of a path of 200 Mbit/s and 150 ms \
         to an S3 server (SeaweedFS) at its other end: by `tidegate backup` through a gateway that stands beside the server; by \
         `tidegate backup` and by `restic backup` straight to the server, without TLS; and as one object by one signed PUT over HTTPS \
         (`curl --http1.1`). Settings are the defaults, TCP is CUBIC with windows large enough for the path. From the start of the program to \
         its end, with everything that it asks first and awaits last. The share of the line is the image's bytes over time and \
         rate. An upload that was not done after {} s was broken off: its share is of what crossed the path, headers and what was \
         sent twice among it, so at most that much had arrived.\n\n{}",
        arguments.backup_mib,
        arguments.backup_seconds,
        uploads(rows, true)
    )
}

fn changed_disk(rows: &[backups::Row]) -> String {
    format!(
        "## A hundredth of a disk changed\n\nThe next backup of a disk of {} GiB, {} GiB of it allocated and nothing in it \
         compressible, after {} KiB were overwritten in each of {} places: {} MiB, 1 % of the disk. Nobody tracks changes: each \
         program reads the disk. What was not done after {} s was broken off, and finished unmeasured before the next change.\n\n{}",
        backups::DISK_BYTES >> 30,
        backups::ALLOCATED_BYTES >> 30,
        backups::CHANGE_BYTES >> 10,
        backups::CHANGED_PLACES,
        (backups::CHANGED_PLACES * backups::CHANGE_BYTES) >> 20,
        backups::CHANGED_TIME_MAX.as_secs(),
        uploads(rows, false)
    )
}

fn uploads(rows: &[backups::Row], with_share: bool) -> Table {
    let mut header = vec!["Who, and loss", "seconds", "MiB sent", "MiB received"];
    if with_share {
        header.push("of the line");
    }
    let mut table = Table::new(&header);
    for row in rows {
        let (seconds, share) = (row.upload.took.as_secs_f64(), percent(row.share()));
        let [sent, received] = row.upload.crossed_bytes;
        let mut cells = vec![
            format!("{}, {} %", row.sender.name(), row.loss * 100.0),
            match row.upload.finished {
                true => format!("{seconds:.1}"),
                false => format!("not in {seconds:.0}"),
            },
            crate::table::mib(sent),
            crate::table::mib(received),
        ];
        if with_share {
            cells.push(match row.upload.finished {
                true => share,
                false => format!("at most {share}"),
            });
        }
        table.row(cells);
    }
    table
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}
