//! Points of a guest that goes on writing.

use crate::disks::{run, text};
use crate::site::{DISK_BYTES, Site, changes, tracking};
use std::fs;
use std::time::Duration;
use tidegate_agent::Kind;
use tidegate_agent::live::qmp::Handicap;
use tidegate_agent::source::Tracking;

fn is_lost(tracking: &Tracking) -> bool {
    matches!(tracking, Tracking::Lost(_))
}

/// One guest, many checks: booting it costs more than any of them.
#[test]
fn a_point_is_a_moment_and_the_next_costs_what_changed() {
    let mut site = Site::new();
    site.write_without_end();
    names_and_facts(&site);
    the_first_point_is_whole_and_stays_at_its_moment(&mut site);
    later_points_continue(&mut site);
    what_is_given_up_is_continued(&mut site);
    kills_at_each_command_are_recovered_from(&mut site);
    the_content_is_what_qemu_itself_reads(&mut site);
}

fn names_and_facts(site: &Site) {
    let mut machine = site.connect().unwrap();
    assert_eq!(machine.name, "writer");
    let facts: Vec<_> = machine
        .disks
        .iter()
        .map(|disk| (disk.name.as_str(), disk.format.as_str(), disk.remembers))
        .collect();
    assert_eq!(facts, [("system", "qcow2", true), ("disk1", "raw", false)]);
    assert!(machine.left_out.is_empty(), "{:?}", machine.left_out);
    // What is told of the machine stays the same while it writes: it costs nothing each time.
    let told = site.runtime.block_on(machine.definition()).unwrap();
    let facts: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert!(facts["machine"].as_str().unwrap().contains("pc"), "{told}");
    assert_eq!(facts["query-cpus-fast"].as_array().unwrap().len(), 1);
    assert!(
        told.contains("system.qcow2") && told.contains("virtual-size"),
        "{told}"
    );
    std::thread::sleep(Duration::from_secs(1));
    let again = site.runtime.block_on(machine.definition()).unwrap();
    assert_eq!(told, again);
    // QEMU talks to one program.
    let error = site.connect().unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.to_string().contains("another program"), "{error:?}");
}

fn the_first_point_is_whole_and_stays_at_its_moment(site: &mut Site) {
    let id = site.point_id();
    let frozen = site.freeze(id).unwrap();
    assert!(tracking(&frozen).iter().all(is_lost));
    let point = site.read(id, &frozen);
    crate::site::assert_one_moment(&point);
    site.guest.run("sleep 1");
    assert!(site.read(id, &frozen).disks == point.disks);
    site.log.push(point);
    site.runtime.block_on(frozen.retire()).unwrap();
    assert_eq!(site.left_in_qemu(), [] as [String; 0]);
}

fn later_points_continue(site: &mut Site) {
    for slow in [true, true, false, false] {
        site.guest.run("sleep 0.3");
        // The guest writes between any two commands.
        let slowed = Handicap {
            pause: Duration::from_millis(if slow { 80 } else { 0 }),
            ..Handicap::default()
        };
        let since = Tracking::Since(site.last());
        let before = site.log.last().unwrap().clone();
        let id = site.point_id();
        let frozen = site.freeze_with(id, slowed).unwrap();
        assert_eq!(tracking(&frozen), [since.clone(), since.clone()]);
        for disk in &frozen.disks {
            let changed: u64 = changes(disk.source.as_ref())
                .iter()
                .map(|range| range.end - range.start)
                .sum();
            assert!(changed > 0 && changed < DISK_BYTES / 4, "{changed}");
        }
        let point = site.read(id, &frozen);
        assert!(point.disks != before.disks, "the guest writes");
        crate::site::assert_one_moment(&point);
        site.log.push(point);
        site.runtime.block_on(frozen.retire()).unwrap();
    }
}

fn what_is_given_up_is_continued(site: &mut Site) {
    let since = Tracking::Since(site.last());
    for dropped in [false, true] {
        let frozen = site.freeze(site.point_id()).unwrap();
        site.guest.run("sleep 0.3");
        if dropped {
            drop(frozen);
        } else {
            site.runtime.block_on(frozen.give_up()).unwrap();
        }
    }
    assert_eq!(site.back_up(), [since.clone(), since]);
    assert_eq!(site.left_in_qemu(), [] as [String; 0]);
}

/// This program is killed after one command, after two, and so on, until it gets through.
fn kills_at_each_command_are_recovered_from(site: &mut Site) {
    for commands in 0_u64.. {
        let since = site.last();
        let id = site.point_id();
        let killed = Handicap {
            dies_after: Some(commands),
            ..Handicap::default()
        };
        let ended = match site.freeze_with(id, killed) {
            Err(error) => {
                assert_eq!(error.kind(), Kind::Interrupted, "{commands}: {error:?}");
                false
            }
            Ok(frozen) => {
                let point = site.read(id, &frozen);
                // Every other one was committed before the kill.
                if commands % 2 == 0 {
                    site.log.push(point);
                    site.runtime.block_on(frozen.retire()).is_ok()
                } else {
                    site.runtime.block_on(frozen.give_up()).is_ok()
                }
            }
        };
        site.guest.run("sleep 0.1");
        let last = site.last();
        assert!(ended || last == since || commands % 2 == 0);
        let expected = Tracking::Since(last);
        assert_eq!(site.back_up(), [expected.clone(), expected], "{commands}");
        if ended {
            assert!(commands > 30, "{commands}");
            break;
        }
    }
    assert_eq!(site.left_in_qemu(), [] as [String; 0]);
}

fn the_content_is_what_qemu_itself_reads(site: &mut Site) {
    site.stop_writing();
    site.back_up();
    let point = site.log.last().unwrap();
    for (disk, (name, content)) in site.guest.disks().iter().zip(&point.disks) {
        let copy = site.folder.path().join("copy");
        let (from, to) = (text(&disk.path), text(&copy));
        run(
            "qemu-img",
            &["convert", "-U", "-f", disk.format, "-O", "raw", from, to],
        );
        assert!(fs::read(&copy).unwrap() == *content, "{name}");
    }
}
