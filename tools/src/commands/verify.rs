//! `tidegate verify`: is what is stored what it claims to be, and what does damage touch?

use crate::args::{Global, Verify};
use crate::context::Context;
use crate::exit::Outcome;
use crate::parse::VerifyWhat;
use crate::progress::{self, Job};
use crate::settings::Settings;
use crate::text;
use serde::Serialize;
use std::sync::Arc;
use tidegate_agent::clock;
use tidegate_agent::progress::Progress;
use tidegate_agent::recover::{self, Damage, RestoreSettings, VerifyReport, VerifySettings};
use tidegate_agent::repository::{Point, Repository};
use tidegate_agent::{Error, Kind, Result};
use tidegate_protocol::ids::SegmentId;
use tidegate_protocol::keys::Level;

/// Disk ranges shown for each damaged object; `--json` has them all.
const TOUCHED_SHOWN: usize = 12;

#[derive(Serialize)]
struct Answer {
    /// False where only the structure was checked.
    content: bool,
    /// The share of the content that was drawn, and by which number.
    sample: Option<f64>,
    seed: Option<u64>,
    /// Damaged packs and index segments that the log learnt of just now.
    noted_objects: u64,
    #[serde(flatten)]
    report: VerifyReport,
}

pub(super) async fn run(global: &Global, args: Verify, context: &Context) -> Result<Outcome> {
    let settings = Settings::load(global, &args.access.repository, &args.access.key)?;
    let repository = context.open(&settings).await?;
    let points = points(&repository, args.what.as_ref())?;
    let content = repository.keys().level() == Level::Restore;
    if !content {
        context.output.warn(&format!(
            "a {} key cannot read disk content: only the structure is checked",
            repository.keys().level()
        ));
    }
    let defaults = RestoreSettings::default();
    let seed = match (args.sample, args.seed) {
        (Some(_), None) => u64::from_le_bytes(clock::random()?),
        (_, seed) => seed.unwrap_or(0),
    };
    let how = VerifySettings {
        sample: args.sample,
        seed,
        fetches_in_flight: settings
            .fetches_in_flight
            .unwrap_or(defaults.fetches_in_flight),
    };
    let counters = Arc::new(Progress::default());
    let shown = progress::show(&context.output, Job::Verify, "verify", &counters);
    let done = recover::verify(&repository, &points, &how, counters, context.stop.clone()).await;
    drop(shown);
    let report = done?;
    let damaged = !report.damages.is_empty();
    let noted_objects = match recover::note_damage(&repository, &report).await {
        Ok(objects) => objects,
        Err(error) => {
            context.output.warn(&format!(
                "the damage could not be noted in the log: {}",
                error.chain()
            ));
            0
        }
    };
    let answer = Answer {
        content,
        sample: args.sample,
        seed: args.sample.map(|_| seed),
        noted_objects,
        report,
    };
    context.output.result(&answer, || answer.describe())?;
    Ok(if damaged {
        Outcome::Damaged
    } else {
        Outcome::Done
    })
}

fn points(repository: &Repository, what: Option<&VerifyWhat>) -> Result<Vec<Point>> {
    let found = match what {
        Some(VerifyWhat::Point(spec)) => {
            vec![repository.resolve(&spec.machine, &spec.selector)?]
        }
        Some(VerifyWhat::Machine(machine)) => repository.points(Some(machine))?,
        None => return repository.points(None),
    };
    match (found.is_empty(), what) {
        (true, Some(VerifyWhat::Machine(machine))) => Err(Error::new(
            Kind::Missing,
            format!("there are no recovery points of {machine}"),
        )
        .advise("`tidegate points` lists what there is")),
        _ => Ok(found),
    }
}

impl Answer {
    fn describe(&self) -> String {
        let report = &self.report;
        let mut out = format!(
            "checked {}: {}, {}, {} of {}; {} of disk content, fetched {}, in {}\n",
            text::count(report.points, "point"),
            text::count(report.leaves, "tree page"),
            text::count(report.packs, "pack"),
            report.checked_chunks,
            text::count(report.chunks, "chunk"),
            text::size(report.checked_bytes),
            text::size(report.fetched_bytes),
            text::seconds(report.seconds),
        );
        if !self.content {
            out.push_str("structure only: disk content was not opened\n");
        } else if let (Some(share), Some(seed)) = (self.sample, self.seed) {
            out.push_str(&format!(
                "a sample of {:.1} % of the content (--seed {seed} draws it again)\n",
                share * 100.0
            ));
        }
        if report.damages.is_empty() {
            out.push_str("no damage found\n");
            return out;
        }
        out.push_str(&format!(
            "\n{} damaged\n",
            text::count(report.damages.len() as u64, "object")
        ));
        for damage in &report.damages {
            out.push_str(&describe_damage(damage));
        }
        let is_segment = |damage: &&Damage| SegmentId::from_object_key(&damage.object).is_some();
        let segments = report.damages.iter().filter(is_segment).count();
        if segments < report.damages.len() {
            out.push_str(
                "\nWhat to do: back the machines named up again. The damage stands in the log, so what of \
                 it is still on their disks is stored anew, and these points are whole again. What is not \
                 on a disk any more comes back only with the object itself: from a replica, or an older \
                 version in the bucket.\n",
            );
        }
        if segments > 0 {
            out.push_str(
                "\nWhat to do about index segments: back any machine up. That writes anew what they said, \
                 from the packs. What is not named above restores without them.\n",
            );
        }
        out
    }
}

fn describe_damage(damage: &Damage) -> String {
    let mut out = format!("\n{}: {}\n", damage.object, damage.found);
    for touched in damage.touches.iter().take(TOUCHED_SHOWN) {
        out.push_str(&format!(
            "  {}@{} {}: {} at byte {}\n",
            touched.machine,
            touched.point.to_string().get(..8).unwrap_or_default(),
            touched.disk,
            text::size(touched.length),
            touched.start,
        ));
    }
    if damage.touches.len() > TOUCHED_SHOWN {
        out.push_str(&format!(
            "  and {} more: --json lists all\n",
            damage.touches.len() - TOUCHED_SHOWN
        ));
    }
    if damage.touches.is_empty() {
        out.push_str("  touches no disk content\n");
    }
    out
}
