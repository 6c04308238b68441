//! `tidegate diff`: what changed between two points.

use crate::args::{Diff, Global};
use crate::context::Context;
use crate::exit::Outcome;
use crate::settings::Settings;
use crate::text;
use serde::Serialize;
use std::cmp::Reverse;
use tidegate_agent::recover::{self, DiffExtent, DiffKind};
use tidegate_agent::repository::{Point, PointDisk};
use tidegate_agent::{Error, Kind, Result};

const KINDS: [DiffKind; 4] = [
    DiffKind::Changed,
    DiffKind::Zeroed,
    DiffKind::Added,
    DiffKind::Removed,
];

#[derive(Serialize)]
struct Answer {
    from: String,
    to: String,
    disks: Vec<DiskAnswer>,
}

#[derive(Serialize)]
struct DiskAnswer {
    disk: String,
    /// `None` where the disk is not in the earlier point.
    from_bytes: Option<u64>,
    /// `None` where the disk is not in the later point.
    to_bytes: Option<u64>,
    changed_bytes: u64,
    zeroed_bytes: u64,
    added_bytes: u64,
    removed_bytes: u64,
    /// In the order of the disk.
    extents: Vec<DiffExtent>,
}

pub(super) async fn run(global: &Global, args: Diff, context: &Context) -> Result<Outcome> {
    let settings = Settings::load(global, &args.access.repository, &args.access.key)?;
    let repository = context.open(&settings).await?;
    let from = repository.resolve(&args.from.machine, &args.from.selector)?;
    let to = repository.resolve(&args.to.machine, &args.to.selector)?;
    let mut disks = Vec::new();
    for (earlier, later) in pairs(&from, &to)? {
        let extents = match (earlier, later) {
            (Some(earlier), Some(later)) => {
                context
                    .or_stop(recover::diff(&repository, earlier, later))
                    .await?
            }
            _ => Vec::new(),
        };
        disks.push(DiskAnswer::new(earlier, later, extents));
    }
    let answer = Answer {
        from: format!("{}@{}", from.machine, from.id),
        to: format!("{}@{}", to.machine, to.id),
        disks,
    };
    context.output.result(&answer, || {
        let headline = format!(
            "from {}@{}, {}, to {}@{}, {}\n",
            from.machine,
            from.id.short(),
            text::local_time(from.taken_unix_ns),
            to.machine,
            to.id.short(),
            text::local_time(to.taken_unix_ns),
        );
        let disks = answer.disks.iter().map(|disk| disk.describe(args.largest));
        std::iter::once(headline).chain(disks).collect()
    })?;
    Ok(Outcome::Done)
}

/// The disks of two points side by side, by name.
fn pairs<'a>(
    from: &'a Point,
    to: &'a Point,
) -> Result<Vec<(Option<&'a PointDisk>, Option<&'a PointDisk>)>> {
    let find = |disks: &'a [PointDisk], name: &str| disks.iter().find(|disk| disk.name == name);
    // One disk each: there is no doubt which is meant, whatever the names.
    if let ([earlier], [later]) = (from.disks.as_slice(), to.disks.as_slice()) {
        return Ok(vec![(Some(earlier), Some(later))]);
    }
    let kept = from
        .disks
        .iter()
        .map(|disk| (Some(disk), find(&to.disks, &disk.name)));
    let new = to
        .disks
        .iter()
        .filter(|disk| find(&from.disks, &disk.name).is_none())
        .map(|disk| (None, Some(disk)));
    let pairs: Vec<_> = kept.chain(new).collect();
    if pairs
        .iter()
        .all(|(earlier, later)| earlier.is_none() || later.is_none())
    {
        return Err(Error::new(
            Kind::Config,
            format!(
                "{}@{} and {}@{} have no disk in common",
                from.machine,
                from.id.short(),
                to.machine,
                to.id.short()
            ),
        ));
    }
    Ok(pairs)
}

impl DiskAnswer {
    fn new(
        earlier: Option<&PointDisk>,
        later: Option<&PointDisk>,
        extents: Vec<DiffExtent>,
    ) -> Self {
        let sum = |kind| sum(&extents, kind);
        Self {
            disk: later
                .or(earlier)
                .map(|disk| disk.name.clone())
                .unwrap_or_default(),
            from_bytes: earlier.map(|disk| disk.size_bytes),
            to_bytes: later.map(|disk| disk.size_bytes),
            changed_bytes: sum(DiffKind::Changed),
            zeroed_bytes: sum(DiffKind::Zeroed),
            added_bytes: sum(DiffKind::Added),
            removed_bytes: sum(DiffKind::Removed),
            extents,
        }
    }

    fn describe(&self, largest: usize) -> String {
        let name = &self.disk;
        match (self.from_bytes, self.to_bytes) {
            (None, Some(bytes)) => return format!("\n{name}: new disk of {}\n", text::size(bytes)),
            (Some(bytes), None) => {
                return format!("\n{name}: no longer there; it had {}\n", text::size(bytes));
            }
            _ => {}
        }
        if self.extents.is_empty() {
            return format!("\n{name}: equal\n");
        }
        let totals: Vec<_> = KINDS
            .into_iter()
            .map(|kind| (kind, sum(&self.extents, kind)))
            .filter(|(_, bytes)| *bytes > 0)
            .map(|(kind, bytes)| format!("{} {}", text::size(bytes), word(kind)))
            .collect();
        let mut by_size: Vec<_> = self.extents.iter().collect();
        by_size.sort_by_key(|extent| (Reverse(extent.length), extent.start));
        let shown = &by_size[..by_size.len().min(largest)];
        let mut out = format!(
            "\n{name}: {} in {}\n",
            totals.join(", "),
            text::count(self.extents.len() as u64, "extent")
        );
        if !shown.is_empty() {
            out.push_str(&text::table(
                [">offset", ">length", ">size", "what"],
                shown.iter().map(|extent| {
                    [
                        extent.start.to_string(),
                        extent.length.to_string(),
                        text::size(extent.length),
                        word(extent.kind).to_owned(),
                    ]
                }),
            ));
        }
        let hidden = by_size.len() - shown.len();
        if hidden > 0 {
            out.push_str(&format!(
                "and {} smaller ones: --largest shows more, --json all\n",
                hidden
            ));
        }
        out
    }
}

fn sum(extents: &[DiffExtent], kind: DiffKind) -> u64 {
    extents
        .iter()
        .filter(|extent| extent.kind == kind)
        .map(|extent| extent.length)
        .sum()
}

fn word(kind: DiffKind) -> &'static str {
    match kind {
        DiffKind::Changed => "changed",
        DiffKind::Zeroed => "zeroed",
        DiffKind::Added => "added",
        DiffKind::Removed => "removed",
    }
}
