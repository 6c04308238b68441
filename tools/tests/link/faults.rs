//! Gateways, hosts, networks and stores that fail in the middle of a run. Nothing that was acknowledged is
//! lost; the run goes on, or fails and says why; and what was committed is whole.

use crate::site::until;
use crate::{World, ends};
use std::process::Child;
use std::time::Duration;
use tidegate_agent::testing::HttpFault;

fn refuse(status: &'static str, code: &'static str) -> HttpFault {
    HttpFault::Refuse {
        status,
        code,
        retry_after: None,
    }
}

/// A run that takes some ten seconds.
const MBIT: u32 = 100;
const MIB_OF_RUN: u64 = 96;

/// A backup of the first host over a slow line, of which so many MiB have been sent.
fn under_way(world: &World, args: &[&str], mib: u64) -> Child {
    world.net.limit("hv1", MBIT);
    let before = world.net.sent_bytes("hv1");
    let run = world.begin("hv1", args);
    world.in_the_middle("hv1", before, mib);
    run
}

/// The gateway in use is killed in the middle, then comes back, and the other one is killed: one run.
#[test]
fn killed_gateways_cost_what_was_not_acknowledged() {
    let mut world = World::new();
    let image = world.image("web01.raw", MIB_OF_RUN);
    let before = world.net.sent_bytes("hv1");
    let run = under_way(&world, &["backup", "web01.raw", "--json"], 30);
    let first = world.busy();
    world.kill(first);
    world.in_the_middle("hv1", before, 60);
    world.start(first);
    let second = if first == "gw1" { "gw2" } else { "gw1" };
    world.kill(second);
    let summary = ends(run).succeeds().json();
    let sent = world.net.sent_bytes("hv1") - before;
    // Packs under way are sent again: three of 32 MiB, for each of the two.
    assert!(
        sent < (MIB_OF_RUN + 2 * 3 * 32 + 20) << 20,
        "{sent}: {summary}"
    );
    world.start(second);
    world.assert_whole("web01", &image);
}

/// The cable of a host is out for half a minute.
#[test]
fn a_cut_network_only_takes_its_time() {
    let world = World::new();
    let image = world.image("web01.raw", MIB_OF_RUN);
    let run = under_way(&world, &["backup", "web01.raw"], 20);
    world.net.set_cable("hv1", false);
    std::thread::sleep(Duration::from_secs(30));
    world.net.set_cable("hv1", true);
    ends(run).succeeds();
    world.assert_whole("web01", &image);
}

/// A host moves to another address: its connection moves along.
#[test]
fn a_host_with_another_address_goes_on() {
    let world = World::new();
    let image = world.image("web01.raw", MIB_OF_RUN);
    let run = under_way(&world, &["backup", "web01.raw"], 20);
    world.net.readdress("hv1", 77);
    ends(run).succeeds();
    world.assert_whole("web01", &image);
}

/// A host is killed in the middle: the next run goes on from what was acknowledged.
#[test]
fn a_killed_host_goes_on_from_what_was_acknowledged() {
    let world = World::new();
    let image = world.image("web01.raw", MIB_OF_RUN);
    let mut run = under_way(&world, &["backup", "web01.raw"], 70);
    run.kill().unwrap();
    run.wait().unwrap();
    let before = world.net.sent_bytes("hv1");
    let summary = world
        .on("hv1", &["backup", "web01.raw", "--json"])
        .succeeds();
    let sent = world.net.sent_bytes("hv1") - before;
    assert!(sent < (MIB_OF_RUN - 20) << 20, "{sent}: {}", summary.stdout);
    world.assert_whole("web01", &image);
}

/// A host is revoked in the middle: it is cut off and says so, and so is its next run.
#[test]
fn a_revoked_host_is_cut_off_and_says_so() {
    let world = World::new();
    let image = world.image("web01.raw", 8);
    world.on("hv1", &["backup", "web01.raw"]).succeeds();
    world.image("web02.raw", MIB_OF_RUN);
    let run = under_way(&world, &["backup", "web02.raw"], 20);
    let fleet = world.fleet();
    world
        .beside(&["gateway", "revoke", "hv1", "--fleet", &fleet])
        .succeeds();
    ends(run).ends_with(5).says(&["revoked"]);
    world
        .on("hv1", &["backup", "web01.raw"])
        .ends_with(5)
        .says(&["revoked"]);
    world.assert_whole("web01", &image);
}

/// The store behind the gateways answers 500 and 503, breaks off, stalls and loses answers.
#[test]
fn a_failing_store_behind_the_gateways_is_ridden_out() {
    let world = World::new();
    let image = world.image("web01.raw", 64);
    let mut calls = 0_u32;
    world.proxy.script(move |call| {
        calls += 1;
        let is_put = call.method == "PUT";
        match calls % 9 {
            _ if calls == 13 => Some(HttpFault::StallBefore),
            0 => Some(refuse("503 Slow Down", "SlowDown")),
            1 => Some(refuse("500 Internal Server Error", "InternalError")),
            2 if is_put => Some(HttpFault::ResetAfter),
            3 if is_put => Some(HttpFault::ResetBefore),
            _ => None,
        }
    });
    let run = world.begin("hv1", &["backup", "web01.raw"]);
    let run = ends(run).succeeds();
    world.proxy.heal();
    let calls = world.proxy.calls().len();
    assert!(calls > 20, "{calls} calls: {}", run.stderr);
    world.assert_whole("web01", &image);

    // It does not answer at all for a while: the run waits.
    world.image("web02.raw", 32);
    world
        .proxy
        .script(|_| Some(refuse("503 Slow Down", "SlowDown")));
    let run = world.begin("hv1", &["backup", "web02.raw"]);
    until("a run that waits", || {
        (world.proxy.calls().len() > calls + 30).then_some(())
    });
    world.proxy.heal();
    ends(run).succeeds();
    world.assert_whole("web02", &world.site.path("web02.raw"));
}
