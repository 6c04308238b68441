//! What a gateway counts; names and meanings are in [`crate::metrics`].

use crate::metrics::{
    GATEWAY_BUNDLED, GATEWAY_CONNECTIONS, GATEWAY_EXPIRED, GATEWAY_HOSTS, GATEWAY_LOG_HEAD,
    GATEWAY_REQUEST_SECONDS, GATEWAY_REQUESTS, GATEWAY_ROOM, GATEWAY_STORE_ANSWERS,
    GATEWAY_UNDER_WAY, count, observe, set,
};
use std::time::Duration;

/// A connection came to something.
pub(super) fn connection(outcome: &'static str) {
    count(GATEWAY_CONNECTIONS, &[("outcome", outcome)], 1);
}

/// Points were given up.
pub(super) fn expired(repository: &str, points: u64) {
    count(GATEWAY_EXPIRED, &[("repository", repository)], points);
}

/// Packs were put together.
pub(super) fn bundled(repository: &str, packs: u64) {
    count(GATEWAY_BUNDLED, &[("repository", repository)], packs);
}

/// A request was answered.
pub(super) fn request(kind: &'static str, status: &'static str, took: Duration) {
    count(GATEWAY_REQUESTS, &[("kind", kind), ("status", status)], 1);
    observe(
        GATEWAY_REQUEST_SECONDS,
        &[("kind", kind)],
        took.as_secs_f64(),
    );
}

/// What is the case now.
#[allow(clippy::cast_precision_loss, reason = "metrics are floats")]
pub(super) fn present(hosts: u32, requests: u32, room_in_bytes: u64, room_out_bytes: u64) {
    set(GATEWAY_HOSTS, &[], f64::from(hosts));
    set(GATEWAY_UNDER_WAY, &[], f64::from(requests));
    set(GATEWAY_ROOM, &[("direction", "in")], room_in_bytes as f64);
    set(GATEWAY_ROOM, &[("direction", "out")], room_out_bytes as f64);
}

/// How a repository is now.
#[allow(clippy::cast_precision_loss, reason = "metrics are floats")]
pub(super) fn repository(name: &str, head: u64, store_answers: bool) {
    let labels = [("repository", name)];
    set(GATEWAY_LOG_HEAD, &labels, head as f64);
    set(
        GATEWAY_STORE_ANSWERS,
        &labels,
        f64::from(u8::from(store_answers)),
    );
}
