//! Machines of a group, frozen together by the service, and what it says when one is missing.

use crate::service::{Service, configure};
use crate::site::{MIB, Site, program, text, until};
use serde_json::Value;
use std::collections::BTreeMap;
use tidegate_agent::testing::{Guest, GuestDisk};

/// A machine whose guest writes without an end.
fn machine(site: &Site, name: &str) -> Guest {
    let image = site.path(&format!("{name}.qcow2"));
    let size = (16 * MIB).to_string();
    program(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", text(&image), &size],
    );
    let mut guest = Guest::start(vec![GuestDisk {
        path: image,
        format: "qcow2",
        id: Some("system".to_owned()),
    }]);
    guest.run(
        "(while :; do dd if=/dev/urandom of=/dev/vda bs=4k count=2 conv=fsync,notrunc \
         seek=$((RANDOM%4000)); sleep 1; done) >/dev/null 2>&1 &",
    );
    guest
}

/// The moments of the group, the oldest first: the machines of each, and what its points say of it.
fn moments(site: &Site) -> Vec<(Vec<String>, Value)> {
    let told = site.tidegate(&["points", "--json"]).succeeds().json();
    let mut moments: BTreeMap<String, (u64, Vec<String>, Value)> = BTreeMap::new();
    for point in told.as_array().unwrap() {
        let together = &point["together"];
        let Some(moment) = together["moment"].as_str() else {
            continue;
        };
        let taken = point["taken_unix_ns"].as_u64().unwrap();
        let entry = moments
            .entry(moment.to_owned())
            .or_insert_with(|| (taken, Vec::new(), together.clone()));
        entry.1.push(point["machine"].as_str().unwrap().to_owned());
        assert_eq!(
            entry.2, *together,
            "points of one moment say the same of it"
        );
        // The host's clock is no measure, but not that wrong.
        let skew = together["skew_ns"].as_u64().unwrap();
        assert!(entry.0.abs_diff(taken) <= skew + 1_000_000_000, "{point}");
    }
    let mut moments: Vec<_> = moments.into_values().collect();
    moments.sort_by_key(|(taken, ..)| *taken);
    for (_, machines, _) in &mut moments {
        machines.sort();
    }
    moments
        .into_iter()
        .map(|(_, machines, told)| (machines, told))
        .collect()
}

#[test]
fn machines_of_a_group_are_frozen_together() {
    let site = Site::with_repository();
    let web = machine(&site, "web");
    let mut db = machine(&site, "db");
    let more = format!(
        "together_within = '10s'
         #service scratch_dir = '.'
         #service scratch_reserve_mib = 1
         [machine.web]
         qmp = '{}'
         [machine.db]
         qmp = '{}'",
        text(&web.monitor()),
        text(&db.monitor())
    );
    configure(&site, "every = '2s'\nrpo = '30s'", &more);
    let service = Service::start(&site);
    let both = |moments: &[(Vec<String>, Value)]| {
        moments
            .iter()
            .filter(|(machines, told)| {
                machines == &["db", "web"]
                    && told["machines"] == 2
                    && told["expected"] == 2
                    && told["group"] == "all"
            })
            .count()
    };
    until("three moments of both machines", || {
        (both(&moments(&site)) >= 3).then_some(())
    });
    db.kill();
    let alone = until("a moment without the one that is gone", || {
        moments(&site)
            .into_iter()
            .find(|(machines, told)| machines == &["web"] && told["machines"] == 1)
    });
    assert_eq!(
        (&alone.1["expected"], &alone.1["skew_ns"]),
        (&2.into(), &0.into())
    );
    until("a word about it", || {
        let told = service.status().to_string();
        told.contains("only 1 of 2 machines of group all")
            .then_some(())
    });
    service.stop();
    let shown = site.tidegate(&["points"]).succeeds();
    assert!(
        shown.stdout.contains("with all, 2 of 2"),
        "{}",
        shown.stdout
    );
    site.tidegate(&["verify", "--all"]).succeeds();
}
