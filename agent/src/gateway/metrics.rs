//! What a gateway counts, each name once.

use ::metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use std::time::Duration;

const CONNECTIONS: &str = "tidegate_gateway_connections_total";
const HOSTS: &str = "tidegate_gateway_hosts";
const REQUESTS: &str = "tidegate_gateway_requests_total";
const REQUEST_SECONDS: &str = "tidegate_gateway_request_seconds";
const UNDER_WAY: &str = "tidegate_gateway_requests_under_way";
const ROOM: &str = "tidegate_gateway_room_taken_bytes";
const STORE_ANSWERS: &str = "tidegate_gateway_store_answers";
const HEAD: &str = "tidegate_gateway_log_head";

/// Says what each of them means.
pub(super) fn describe() {
    describe_counter!(
        CONNECTIONS,
        "Connections, by what became of them: accepted, refused, joined."
    );
    describe_gauge!(HOSTS, "Hosts that are connected.");
    describe_counter!(REQUESTS, "Requests answered, by kind and status.");
    describe_histogram!(
        REQUEST_SECONDS,
        "How long requests took, from their first byte to the last of the answer, in seconds."
    );
    describe_gauge!(UNDER_WAY, "Requests under way.");
    describe_gauge!(
        ROOM,
        "Memory taken by bodies, in bytes, by direction: in, out."
    );
    describe_gauge!(
        STORE_ANSWERS,
        "1 where the store of a repository answered when it was last asked, else 0."
    );
    describe_gauge!(HEAD, "The number of the last log record, by repository.");
}

/// A connection came to something.
pub(super) fn connection(outcome: &'static str) {
    counter!(CONNECTIONS, "outcome" => outcome).increment(1);
}

/// A request was answered.
pub(super) fn request(kind: &'static str, status: &'static str, took: Duration) {
    counter!(REQUESTS, "kind" => kind, "status" => status).increment(1);
    histogram!(REQUEST_SECONDS, "kind" => kind).record(took);
}

/// What is the case now.
#[allow(clippy::cast_precision_loss, reason = "metrics are floats")]
pub(super) fn present(hosts: u32, requests: u32, room_in_bytes: u64, room_out_bytes: u64) {
    gauge!(HOSTS).set(f64::from(hosts));
    gauge!(UNDER_WAY).set(f64::from(requests));
    gauge!(ROOM, "direction" => "in").set(room_in_bytes as f64);
    gauge!(ROOM, "direction" => "out").set(room_out_bytes as f64);
}

/// How a repository is now.
#[allow(clippy::cast_precision_loss, reason = "metrics are floats")]
pub(super) fn repository(name: &str, head: u64, store_answers: bool) {
    let name = name.to_owned();
    gauge!(HEAD, "repository" => name.clone()).set(head as f64);
    gauge!(STORE_ANSWERS, "repository" => name).set(f64::from(u8::from(store_answers)));
}
