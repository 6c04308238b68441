//! `tidegate points`: what can be restored.

use crate::args::{Global, Points};
use crate::context::Context;
use crate::exit::Outcome;
use crate::settings::Settings;
use crate::text;
use serde::Serialize;
use std::time::Duration;
use tidegate_agent::Result;
use tidegate_agent::repository::Point;

/// A point with its times as text, for programs that do not count nanoseconds.
#[derive(Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    point: &'a Point,
    taken: Option<String>,
    finished: Option<String>,
    /// None without an end.
    keep_until: Option<String>,
}

pub(super) async fn run(global: &Global, args: Points, context: &Context) -> Result<Outcome> {
    let settings = Settings::load(global, &args.access.repository, &args.access.key)?;
    let repository = context.open(&settings).await?;
    let points = repository.points(args.machine.as_deref())?;
    let rows: Vec<_> = points
        .iter()
        .map(|point| Row {
            point,
            taken: text::utc_time(point.taken_unix_ns),
            finished: text::utc_time(point.finished_unix_ns),
            keep_until: match point.keep_until_unix_ns {
                0 => None,
                until => text::utc_time(until),
            },
        })
        .collect();
    context.output.result(&rows, || {
        if points.is_empty() {
            return "no recovery points yet\n".to_owned();
        }
        table(&points)
    })?;
    Ok(Outcome::Done)
}

/// What the point is worth, and with whom it was taken.
fn consistency(point: &Point) -> String {
    let mut told = point.consistency.to_owned();
    if let Some(together) = &point.together {
        told.push_str(&format!(
            ", with {}, {} of {}, {:?} apart",
            together.group,
            together.machines,
            together.expected,
            Duration::from_millis(together.skew_ns.div_ceil(1_000_000))
        ));
    }
    told
}

fn table(points: &[Point]) -> String {
    text::table(
        [
            "machine",
            "point",
            "taken",
            ">age",
            ">disks",
            ">size",
            ">new",
            ">stored",
            "consistency",
            "kept until",
        ],
        points.iter().map(|point| {
            [
                point.machine.clone(),
                point.id.short(),
                text::local_time(point.taken_unix_ns),
                text::age(point.taken_unix_ns),
                point.disks.len().to_string(),
                text::size(point.totals.virtual_bytes),
                text::size(point.totals.new_bytes),
                text::size(point.totals.stored_bytes),
                consistency(point),
                text::keep_until(point.keep_until_unix_ns),
            ]
        }),
    )
}
