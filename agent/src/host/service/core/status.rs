//! What there is to tell: for the operator, and for monitoring. Local state only.

use super::{Core, Known};
use crate::host::control::{AuditStatus, MachineStanding, MachineStatus, Running, Status};
use crate::host::plan::Upcoming;
use crate::host::state::{HOURS_KEPT, RunRow};
use crate::metrics;
use crate::replicate;
use std::collections::BTreeMap;
use std::time::Duration;

/// Over how many hours requests are told.
const DAY_HOURS: u64 = 24;

impl Core {
    pub(super) fn status(&self, now: u64) -> Status {
        let plan = self.plan(now);
        let due = plan.start.iter().chain(&plan.waiting);
        let due: BTreeMap<&str, &Upcoming> = due.map(|up| (up.machine.as_str(), up)).collect();
        let later = plan.later.iter().map(|up| (up.machine.as_str(), up));
        let later: BTreeMap<&str, &Upcoming> = later.collect();
        let machines = self.known.iter().filter_map(|(name, known)| {
            let is_gone = known.remembered.gone_unix_ns.is_some();
            if known.selected.is_none() && known.running.is_none() && !is_gone {
                return None;
            }
            let next = due.get(name.as_str()).or_else(|| later.get(name.as_str()));
            let standing = match &known.running {
                Some(_) => MachineStanding::Running,
                None if known.selected.is_none() => MachineStanding::Gone,
                None if due.contains_key(name.as_str()) => MachineStanding::Waiting,
                None => MachineStanding::Idle,
            };
            Some(machine_status(name, known, standing, next.copied(), now))
        });
        Status {
            tidegate: env!("CARGO_PKG_VERSION").to_owned(),
            host: self.host.clone(),
            configuration: self.options.file.display().to_string(),
            now_unix_ns: now,
            reload_trouble: self.reload_trouble.clone(),
            history_trouble: self.state.trouble(),
            machines: machines.collect(),
            unprotected: self.unprotected.clone(),
            remarks: self.remarks.clone(),
        }
    }

    pub(super) fn measure(&self, now: u64, waiting: usize) {
        let count = |number: usize| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
        let number_of =
            |of: fn(&Known) -> bool| count(self.known.values().filter(|known| of(known)).count());
        let flag = |set: bool| f64::from(u8::from(set));
        metrics::set(
            metrics::HOST_RUNNING,
            &[],
            number_of(|known| known.running.is_some()),
        );
        metrics::set(metrics::HOST_WAITING, &[], count(waiting));
        metrics::set(
            metrics::HOST_UNPROTECTED,
            &[],
            count(self.unprotected.len()),
        );
        metrics::set(
            metrics::HOST_GONE,
            &[],
            number_of(|known| known.remembered.gone_unix_ns.is_some()),
        );
        metrics::set(
            metrics::HOST_HISTORY_TROUBLE,
            &[],
            flag(self.state.trouble().is_some()),
        );
        metrics::set(
            metrics::HOST_RELOAD_TROUBLE,
            &[],
            flag(self.reload_trouble.is_some()),
        );
        for (name, known) in &self.known {
            let labels = [("machine", name.as_str())];
            let history = &known.remembered.history;
            let is_gone = known.remembered.gone_unix_ns.is_some();
            if known.selected.is_none() && !is_gone {
                continue;
            }
            let since = history.point_unix_ns.unwrap_or(history.first_seen_unix_ns);
            metrics::set(
                metrics::HOST_RPO_ACHIEVED,
                &labels,
                seconds_between(since, now),
            );
            let audited = known.remembered.within(now, HOURS_KEPT).audited_blocks;
            if audited > 0 {
                metrics::set(metrics::HOST_CAUGHT, &labels, replicate::caught(audited));
            }
            metrics::set(metrics::HOST_FAILURES, &labels, f64::from(history.failures));
            if let Some(point) = history.point_unix_ns {
                metrics::set(metrics::HOST_POINT_TIME, &labels, seconds_between(0, point));
            }
            let promised = known.selected.as_ref().and_then(|of| of.policy.rpo);
            if let Some(promised) = promised {
                metrics::set(metrics::HOST_RPO_PROMISED, &labels, promised.as_secs_f64());
            }
        }
    }
}

fn machine_status(
    name: &str,
    known: &Known,
    standing: MachineStanding,
    next: Option<&Upcoming>,
    now: u64,
) -> MachineStatus {
    let selected = known.selected.as_ref();
    let history = &known.remembered.history;
    let promised = selected.and_then(|selected| selected.policy.rpo);
    let achieved = history
        .point_unix_ns
        .map(|point| seconds_between(point, now));
    let age = achieved.unwrap_or_else(|| seconds_between(history.first_seen_unix_ns, now));
    let kept = promised.and_then(|promised| match age <= promised.as_secs_f64() {
        false => Some(false),
        // A machine without a point has time for its first.
        true => achieved.map(|_| true),
    });
    let week = known.remembered.within(now, HOURS_KEPT);
    let day = known.remembered.within(now, DAY_HOURS);
    MachineStatus {
        machine: name.to_owned(),
        group: selected.map_or_else(String::new, |of| of.group.name.clone()),
        policy: selected.map_or_else(String::new, |of| of.policy.name.clone()),
        repository: selected.map_or_else(String::new, |of| of.repository.name.clone()),
        images: selected.map_or_else(Vec::new, |of| of.origin.describe()),
        standing,
        rpo_promised_seconds: promised.as_ref().map(Duration::as_secs_f64),
        rpo_achieved_seconds: achieved,
        rpo_kept: kept,
        last: known.remembered.last.clone(),
        last_ok: known.remembered.last_ok.clone(),
        next_unix_ns: next.map(|next| next.due_unix_ns),
        next_why: next.map(|next| next.why),
        running: known.running.as_ref().map(|running| Running {
            run: running.row.run.clone(),
            started_unix_ns: running.row.started_unix_ns,
            progress: running.progress.snapshot(),
        }),
        audit: AuditStatus {
            blocks: week.audited_blocks,
            false_chunks: week.false_chunks,
            caught_probability: replicate::caught(week.audited_blocks),
        },
        requests_per_hour: per_hour(
            day.requests,
            seconds_between(history.first_seen_unix_ns, now),
        ),
        held_seconds_max: Duration::from_nanos(day.held_ns_max).as_secs_f64(),
        bytes_per_second: match &known.running {
            Some(running) => rate(
                running.progress.snapshot().read_bytes,
                running.began.elapsed().as_secs_f64(),
            ),
            None => known.remembered.last_ok.as_ref().and_then(rate_of),
        },
    }
}

/// Of a day, or of as much of it as there was.
#[expect(clippy::cast_precision_loss, reason = "for people and graphs")]
fn per_hour(count: u64, known_seconds: f64) -> f64 {
    let hours = (known_seconds / 3600.0).clamp(1.0, DAY_HOURS as f64);
    count as f64 / hours
}

fn rate_of(run: &RunRow) -> Option<f64> {
    rate(
        run.read_bytes,
        seconds_between(run.started_unix_ns, run.ended_unix_ns?),
    )
}

#[expect(clippy::cast_precision_loss, reason = "for people and graphs")]
fn rate(bytes: u64, seconds: f64) -> Option<f64> {
    (seconds > 0.0).then(|| bytes as f64 / seconds)
}

fn seconds_between(from_unix_ns: u64, to_unix_ns: u64) -> f64 {
    Duration::from_nanos(to_unix_ns.saturating_sub(from_unix_ns)).as_secs_f64()
}
