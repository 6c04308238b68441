//! The results as a page of Markdown.

use super::{Arguments, Contender, Figures, OURS, Shared};
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

pub(super) fn write(rows: &[Row], pairs: &[Shared], arguments: &Arguments) -> Result<String> {
    let mut page = String::new();
    writeln!(page, "# Long, lossy and shared paths\n")?;
    writeln!(
        page,
        "Written by `tidegate-benches wan`: uploads of {} s, one after the other, each through a path of its own: \
         two network namespaces and a relay between them that gives every IP packet rate, queue, delay, loss and jitter. \
         Paths are 200 Mbit/s with a round trip of 150 ms and a queue of 1 × their product, where nothing else is said; \
         loss and jitter are in both directions. All QUIC rows have the same settings but for the controller. \
         TCP has windows large enough for every path, and no TLS. Where QUIC moves nothing at all once started, its connection \
         was closed under way, or stands still: quinn gives a connection up when more than 1,024 gaps are open in one stream.\n",
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
    writeln!(page, "{}", shares(pairs))?;
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

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}
