//! A machine that runs, protected every second by the service, which is killed in between.

use crate::service::{Service, configure};
use crate::site::{MIB, Site, program, text, until};
use serde_json::Value;
use tidegate_agent::testing::{Guest, GuestDisk};

#[test]
fn a_running_machine_is_protected_every_second() {
    let site = Site::with_repository();
    let image = site.path("system.qcow2");
    let size = (32 * MIB).to_string();
    program(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", text(&image), &size],
    );
    let mut guest = Guest::start(vec![GuestDisk {
        path: image,
        format: "qcow2",
        id: Some("system".to_owned()),
    }]);
    guest.run("dd if=/dev/urandom of=/dev/vda bs=1M count=16 conv=fsync 2>/dev/null");
    guest.run(
        "(while :; do dd if=/dev/urandom of=/dev/vda bs=4k count=2 conv=fsync,notrunc \
         seek=$((RANDOM%8000)); sleep 1; done) >/dev/null 2>&1 &",
    );
    let monitor = guest.monitor();
    let machine = format!(
        "#service scratch_dir = '.'
         #service scratch_reserve_mib = 1
         [machine.router]
         qmp = '{}'",
        text(&monitor)
    );
    configure(
        &site,
        "every = '1s'\nrpo = '30s'\naudit_ppm = 200_000",
        &machine,
    );
    let points = || -> Vec<Value> {
        let told = site.tidegate(&["points", "--json"]).succeeds().json();
        told.as_array().cloned().unwrap_or_default()
    };
    let at_least = |count: usize| {
        until("more points", || {
            let points = points();
            (points.len() >= count).then_some(points)
        })
    };

    let service = Service::start(&site);
    at_least(4);
    let told = service.status().to_string();
    assert!(told.contains("monitor "), "{told}");
    let told = service.status();
    let machine = &told["machines"][0];
    let frozen = &machine["last_ok"]["frozen"];
    assert_eq!(frozen["consistency"], "crash", "{told}");
    assert!(frozen["held_ns"].as_u64().unwrap() > 0, "{told}");
    assert_eq!(frozen["tracking"][0]["tracked"], true, "{told}");
    assert!(machine["audit"]["blocks"].as_u64().unwrap() > 0, "{told}");
    assert_eq!(machine["audit"]["false_chunks"], 0, "{told}");
    let caught = machine["audit"]["caught_probability"].as_f64().unwrap();
    assert!(caught > 0.0 && caught < 1.0, "{told}");
    assert!(
        machine["requests_per_hour"].as_f64().unwrap() > 1.0,
        "{told}"
    );
    assert!(
        machine["held_seconds_max"].as_f64().unwrap() > 0.0,
        "{told}"
    );
    service.kill();
    let before = points().len();
    // What the killed one has left in QEMU, the next one takes away, and goes on where it was.
    let service = Service::start(&site);
    let all = at_least(before + 3);
    let again = service.status();
    let machine = &again["machines"][0];
    // What was counted before the kill is remembered.
    let blocks = |status: &Value| status["machines"][0]["audit"]["blocks"].as_u64().unwrap();
    assert!(blocks(&again) > blocks(&told), "{machine}");
    service.stop();
    for (number, point) in all.iter().enumerate() {
        let disk = &point["disks"][0];
        assert_eq!(disk["name"], "system");
        assert_eq!(point["consistency"], "crash");
        let believed = &disk["tracking"]["believed"];
        assert_eq!(*believed, Value::Bool(number > 0), "{number}: {point}");
    }
    // What QEMU told of the machine travels too, for whoever has to put such a one together.
    let definition = site.path("definition.json");
    let to = text(&definition);
    site.tidegate(&[
        "restore",
        "router@latest",
        "--disk",
        "definition",
        "--to",
        to,
    ])
    .succeeds();
    let told: Value = serde_json::from_slice(&std::fs::read(&definition).unwrap()).unwrap();
    assert!(
        told["query-block"].to_string().contains("system.qcow2"),
        "{told}"
    );
    site.tidegate(&["restore", "router@latest", "--to", "copy", "--define"])
        .ends_with(10)
        .says(&["no domain", "--disk definition"]);
    assert!(guest.is_running());
    site.tidegate(&["verify", "--all"]).succeeds();
}
