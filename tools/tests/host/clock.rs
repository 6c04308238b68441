//! A clock that is set while the service runs: forward by days, and back.

use crate::ONE;
use crate::outcome;
use crate::service::{Service, configure};
use crate::site::{MIB, Site, text, until};
use std::path::PathBuf;

const HOUR_NS: u64 = 3600 * 1_000_000_000;

/// The library that shows a process another time of day.
fn libfaketime() -> PathBuf {
    std::fs::read_dir("/usr/lib")
        .unwrap()
        .map(|entry| entry.unwrap().path().join("faketime/libfaketimeMT.so.1"))
        .find(|path| path.exists())
        .expect("run tools/test, which installs libfaketime")
}

#[test]
fn a_clock_that_is_set_neither_stalls_nor_storms() {
    let site = Site::with_repository();
    site.image("web01.raw", 16 * MIB, &[(0, MIB)]);
    configure(&site, "every = '1h'\nrpo = '2h'", ONE);
    let offset = site.path("offset");
    let set = |to: &str| std::fs::write(&offset, to).unwrap();
    set("+0d");
    let library = libfaketime();
    let mut service = Service::begin_with(
        &site,
        &[
            ("LD_PRELOAD", text(&library)),
            ("FAKETIME_TIMESTAMP_FILE", text(&offset)),
            ("FAKETIME_NO_CACHE", "1"),
            // As with a real clock: timers count on.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ],
    );
    service.hears("READY=1");
    let points = || {
        let points = site.tidegate(&["points", "--json"]).succeeds().json();
        points.as_array().map_or(0, Vec::len)
    };
    let next_is_due_within_the_hour = |now_unix_ns: u64| {
        let machine = service.machine_until("web01", |machine| {
            outcome(machine) == "ok" && machine["running"].is_null()
        });
        let next = machine["next_unix_ns"].as_u64().unwrap();
        let after = next.checked_sub(now_unix_ns);
        assert!(
            after.is_some_and(|after| after <= HOUR_NS),
            "{machine} at {now_unix_ns}"
        );
        machine
    };
    let now = || tidegate_agent::clock::now_unix_ns();
    until("the first point", || (points() == 1).then_some(()));
    next_is_due_within_the_hour(now());

    // Seventy-two runs were missed: they are caught up by one.
    set("+3d");
    until("another point", || (points() == 2).then_some(()));
    next_is_due_within_the_hour(now() + 72 * HOUR_NS);

    // The last run lies three days ahead: nothing can be said of it, and nothing waits for that time.
    set("+0d");
    until("one more", || (points() == 3).then_some(()));
    let machine = next_is_due_within_the_hour(now());
    assert_eq!(machine["rpo_kept"], true, "{machine}");
    assert_eq!(points(), 3, "{}", service.log());
    service.stop();
    site.tidegate(&["verify", "--all"]).succeeds();
}
