//! Every metric that the service tells of itself: its name, unit and meaning, once.
//!
//! Local state only: no metric costs a request to a store. Names are Prometheus's: base units, and a
//! suffix that says which; what only grows ends in `_total`.

pub mod listen;

use crate::error::{Error, Kind, Result};
use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use metrics_util::MetricKindMask;
use std::time::Duration;

pub use metrics_exporter_prometheus::PrometheusHandle;

/// Gauges of machines that are no more disappear after this time without being set.
const GAUGE_LIFE: Duration = Duration::from_secs(120);

/// How long runs take, in seconds: from a machine where nothing changed to a first backup of days.
const RUN_SECONDS: [f64; 12] = [
    1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14_400.0, 43_200.0, 86_400.0,
];

/// How long guests are held, in seconds: from one command to QEMU to a frozen file system.
const HELD_SECONDS: [f64; 12] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];

/// How long requests take, in seconds: from an answer out of memory to a pack over a slow line.
const REQUEST_SECONDS: [f64; 12] = [
    0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0,
];

/// What a metric counts or measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How often a value was how large.
    Histogram,
}

/// A metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    sort: Sort,
    unit: Unit,
    meaning: &'static str,
}

macro_rules! metrics {
    ($($constant:ident: $sort:ident $unit:ident $name:literal, $meaning:literal;)+) => {
        $(
            #[doc = $meaning]
            pub const $constant: Metric = Metric {
                name: $name,
                sort: Sort::$sort,
                unit: Unit::$unit,
                meaning: $meaning,
            };
        )+

        /// All of them.
        pub const ALL: &[Metric] = &[$($constant),+];
    };
}

metrics! {
    HOST_RUNS: Counter Count "tidegate_host_runs_total",
        "Runs that ended, by machine and result: ok, failed, interrupted, cancelled";
    HOST_RUN_SECONDS: Histogram Seconds "tidegate_host_run_seconds",
        "How long runs took, by result";
    HOST_READ_BYTES: Counter Bytes "tidegate_host_read_bytes_total",
        "Bytes read from disks by runs that ended, by repository";
    HOST_STORED_BYTES: Counter Bytes "tidegate_host_stored_bytes_total",
        "Bytes uploaded by runs that ended, by repository";
    HOST_REQUESTS: Counter Count "tidegate_host_store_requests_total",
        "Requests to the store by runs that made a point, by repository";
    HOST_UNTRACKED: Counter Count "tidegate_host_untracked_disks_total",
        "Disks that were read whole though their changes were to be tracked, first backups left out, by machine";
    HOST_AUDITED_BLOCKS: Counter Count "tidegate_host_audited_blocks_total",
        "Blocks of 4 KiB that a tracker called unchanged and that were compared all the same, by machine";
    HOST_FALSE_CHUNKS: Counter Count "tidegate_host_false_chunks_total",
        "Chunks among them that had changed: a tracker is wrong, by machine";
    HOST_CAUGHT: Gauge Count "tidegate_host_tracker_caught_probability",
        "The chance that a tracker which keeps quiet about one block in a thousand would have been caught in the last 7 days, by machine";
    HOST_HELD_SECONDS: Histogram Seconds "tidegate_host_held_seconds",
        "How long writes of a guest may have waited for a snapshot, by machine";
    HOST_RUNNING: Gauge Count "tidegate_host_running",
        "Runs under way";
    HOST_WAITING: Gauge Count "tidegate_host_waiting",
        "Machines that are due and wait for room";
    HOST_UNPROTECTED: Gauge Count "tidegate_host_unprotected_machines",
        "Machines that were found and are in no group";
    HOST_GONE: Gauge Count "tidegate_host_gone_machines",
        "Machines whose images a pattern found earlier and finds no longer";
    HOST_POINT_TIME: Gauge Seconds "tidegate_host_machine_newest_point_timestamp_seconds",
        "The moment that a machine's newest point holds, Unix time; not there before the first point";
    HOST_RPO_ACHIEVED: Gauge Seconds "tidegate_host_machine_rpo_achieved_seconds",
        "Age of a machine's newest point, or of its first sight where it has none";
    HOST_RPO_PROMISED: Gauge Seconds "tidegate_host_machine_rpo_promised_seconds",
        "The promise of a machine's policy, where it makes one";
    HOST_FAILURES: Gauge Count "tidegate_host_machine_failures",
        "Runs of a machine that failed since the last one that did not";
    HOST_HISTORY_TROUBLE: Gauge Count "tidegate_host_history_trouble",
        "1 where the history of runs cannot be written";
    HOST_RELOAD_TROUBLE: Gauge Count "tidegate_host_reload_trouble",
        "1 where the configuration file was refused at the last reload";
    GATEWAY_CONNECTIONS: Counter Count "tidegate_gateway_connections_total",
        "Connections, by what became of them: accepted, refused, joined";
    GATEWAY_HOSTS: Gauge Count "tidegate_gateway_hosts",
        "Hosts that are connected";
    GATEWAY_REQUESTS: Counter Count "tidegate_gateway_requests_total",
        "Requests answered, by kind and status";
    GATEWAY_REQUEST_SECONDS: Histogram Seconds "tidegate_gateway_request_seconds",
        "How long requests took, from their first byte to the last of the answer, by kind";
    GATEWAY_UNDER_WAY: Gauge Count "tidegate_gateway_requests_under_way",
        "Requests under way";
    GATEWAY_ROOM: Gauge Bytes "tidegate_gateway_room_taken_bytes",
        "Memory taken by bodies, by direction: in, out";
    GATEWAY_STORE_ANSWERS: Gauge Count "tidegate_gateway_store_answers",
        "1 where a repository's store answered when it was last asked, else 0";
    GATEWAY_EXPIRED: Counter Count "tidegate_gateway_expired_points_total",
        "Recovery points that this gateway gave up because their time had passed, by repository";
    GATEWAY_BUNDLED: Counter Count "tidegate_gateway_bundled_packs_total",
        "Small packs that this gateway put together, by repository";
    GATEWAY_LOG_HEAD: Gauge Count "tidegate_gateway_log_head",
        "The number of a repository's last log record";
}

/// Begins to count, for this whole process; the handle renders what was counted.
///
/// # Errors
/// [`Kind::Bug`] where it was begun before.
pub fn install() -> Result<PrometheusHandle> {
    let broken = |error: metrics_exporter_prometheus::BuildError| {
        Error::new(Kind::Bug, "cannot set up the metrics").caused_by(error)
    };
    let handle = PrometheusBuilder::new()
        .idle_timeout(MetricKindMask::GAUGE, Some(GAUGE_LIFE))
        .set_buckets_for_metric(
            Matcher::Full(HOST_RUN_SECONDS.name.to_owned()),
            &RUN_SECONDS,
        )
        .map_err(broken)?
        .set_buckets_for_metric(
            Matcher::Full(HOST_HELD_SECONDS.name.to_owned()),
            &HELD_SECONDS,
        )
        .map_err(broken)?
        .set_buckets_for_metric(
            Matcher::Full(GATEWAY_REQUEST_SECONDS.name.to_owned()),
            &REQUEST_SECONDS,
        )
        .map_err(broken)?
        .install_recorder()
        .map_err(broken)?;
    for metric in ALL {
        match metric.sort {
            Sort::Counter => describe_counter!(metric.name, metric.unit, metric.meaning),
            Sort::Gauge => describe_gauge!(metric.name, metric.unit, metric.meaning),
            Sort::Histogram => describe_histogram!(metric.name, metric.unit, metric.meaning),
        }
    }
    Ok(handle)
}

/// Adds to a counter.
pub fn count(metric: Metric, labels: &[(&'static str, &str)], by: u64) {
    metrics::counter!(metric.name, owned(labels)).increment(by);
}

/// Sets a gauge.
pub fn set(metric: Metric, labels: &[(&'static str, &str)], to: f64) {
    metrics::gauge!(metric.name, owned(labels)).set(to);
}

/// Adds a value to a histogram.
pub fn observe(metric: Metric, labels: &[(&'static str, &str)], value: f64) {
    metrics::histogram!(metric.name, owned(labels)).record(value);
}

fn owned(labels: &[(&'static str, &str)]) -> Vec<metrics::Label> {
    labels
        .iter()
        .map(|(name, value)| metrics::Label::new(*name, (*value).to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_say_their_sort_and_unit() {
        let mut names = HashSet::new();
        for metric in ALL {
            let name = metric.name;
            assert!(names.insert(name), "{name} is there twice");
            assert!(name.starts_with("tidegate_"), "{name}");
            assert_eq!(
                metric.sort == Sort::Counter,
                name.ends_with("_total"),
                "{name}"
            );
            let unit = match metric.unit {
                Unit::Seconds => "seconds",
                Unit::Bytes => "bytes",
                _ => "",
            };
            assert!(name.contains(unit), "{name} does not say {unit}");
        }
    }
}
