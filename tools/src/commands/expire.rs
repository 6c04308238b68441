//! `tidegate expire`: recovery points whose time has passed are given up.

use crate::args::{Expire, Global};
use crate::context::{Context, blocking};
use crate::exit::Outcome;
use crate::settings::Settings;
use crate::text;
use serde::Serialize;
use std::sync::Arc;
use tidegate_agent::repository::ExpireScope;
use tidegate_agent::retention::{Decision, Kept, Why};
use tidegate_agent::{Error, Kind, Result};

#[derive(Serialize)]
struct Answer {
    dry_run: bool,
    /// Given up; on a dry run, what would be.
    expired: Vec<Row>,
    /// Past their time, and there all the same.
    kept: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    machine: String,
    point: String,
    taken_unix_ns: u64,
    taken: Option<String>,
    keep_until_unix_ns: u64,
    keep_until: Option<String>,
    /// Why it stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    because: Option<String>,
}

pub(super) async fn run(global: &Global, args: Expire, context: &Context) -> Result<Outcome> {
    let settings = Settings::load(global, &args.access.repository, &args.access.key)?;
    let repository = context.open(&settings).await?;
    if let Some(machine) = &args.machine
        && repository.newest_point(machine)?.is_none()
    {
        return Err(Error::new(
            Kind::Missing,
            format!("there are no recovery points of {machine}"),
        )
        .advise("`tidegate points` lists what there is"));
    }
    let scope = ExpireScope {
        machine: args.machine,
        trust_clock: args.trust_clock,
    };
    let decision = match args.dry_run {
        true => {
            let repository = Arc::clone(&repository);
            blocking(move || repository.plan_expiry(&scope)).await?
        }
        false => repository.expire(&scope).await?,
    };
    let answer = Answer::new(args.dry_run, &decision);
    context.output.result(&answer, || answer.describe())?;
    Ok(Outcome::Done)
}

impl Answer {
    fn new(dry_run: bool, decision: &Decision) -> Self {
        let because = |why: Why| match why {
            Why::Held(0) => "on hold".to_owned(),
            Why::Held(until) => format!("on hold until {}", text::local_time(until)),
            Why::Newest => "the machine's newest".to_owned(),
            Why::NewestSound => "the machine's newest that is not known to be damaged".to_owned(),
            Why::Clock => "no backup for a month: is this clock right? (--trust-clock)".to_owned(),
        };
        Self {
            dry_run,
            expired: decision
                .goes
                .iter()
                .map(|kept| Row::new(kept, None))
                .collect(),
            kept: decision
                .stays
                .iter()
                .map(|(kept, why)| Row::new(kept, Some(because(*why))))
                .collect(),
        }
    }

    fn describe(&self) -> String {
        let mut told = match (self.expired.len() as u64, self.dry_run) {
            (0, _) => "no recovery point goes\n".to_owned(),
            (points, true) => format!("{} would go:\n", text::count(points, "recovery point")),
            (points, false) => format!("{} given up:\n", text::count(points, "recovery point")),
        };
        if !self.expired.is_empty() {
            told.push_str(&text::table(
                ["machine", "point", "taken", "kept until"],
                self.expired.iter().map(Row::columns),
            ));
        }
        if !self.kept.is_empty() {
            let points = text::count(self.kept.len() as u64, "recovery point");
            told.push_str(&format!("past their time, and kept: {points}\n"));
            told.push_str(&text::table(
                ["machine", "point", "taken", "kept until", "because"],
                self.kept.iter().map(|row| {
                    let [machine, point, taken, until] = row.columns();
                    [
                        machine,
                        point,
                        taken,
                        until,
                        row.because.clone().unwrap_or_default(),
                    ]
                }),
            ));
        }
        told
    }
}

impl Row {
    fn new(kept: &Kept, because: Option<String>) -> Self {
        Self {
            machine: kept.machine.clone(),
            point: kept.point.to_string(),
            taken_unix_ns: kept.taken_unix_ns,
            taken: text::utc_time(kept.taken_unix_ns),
            keep_until_unix_ns: kept.keep_until_unix_ns,
            keep_until: text::utc_time(kept.keep_until_unix_ns),
            because,
        }
    }

    fn columns(&self) -> [String; 4] {
        [
            self.machine.clone(),
            self.point.chars().take(8).collect(),
            text::local_time(self.taken_unix_ns),
            text::local_time(self.keep_until_unix_ns),
        ]
    }
}
