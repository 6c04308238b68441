//! What befalls machines: power, operators, and scratch space that ends.

use crate::disks::{MIB, run, text};
use crate::site::{DISK_BYTES, REPOSITORY, Site, assert_one_moment, settings, tracking};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tidegate_agent::Kind;
use tidegate_agent::live::bitmap;
use tidegate_agent::source::Tracking;

/// How long anything may take on a machine with much else to do.
const TIME_MAX: Duration = Duration::from_secs(120);

/// One guest, many checks: booting it costs more than any of them.
#[test]
fn whatever_befalls_a_machine_the_next_point_is_right() {
    let mut site = Site::new();
    site.guest
        .run("dd if=/dev/urandom of=/dev/vda bs=1M count=8 conv=fsync 2>/dev/null");
    site.write_without_end();
    site.back_up();
    a_full_scratch_folder_costs_the_snapshot_not_the_guest(&mut site);
    a_watch_ends_the_snapshot_before_the_folder_is_full(&mut site);
    a_connection_that_ends_costs_the_run(&mut site);
    somebody_elses_nbd_server_stays(&mut site);
    a_bitmap_removed_by_hand_is_missed(&mut site);
    a_disk_grows_and_another_comes(&mut site);
    a_reboot_keeps_what_qcow2_remembers(&mut site);
    a_killed_qemu_is_noticed(&mut site);
    a_qemu_killed_under_a_snapshot_is_noticed(&mut site);
    a_machine_that_moves_to_another_host(&mut site);
}

/// Why each disk has no bitmap to continue; empty where it has one that continues the last point.
fn lost(site: &mut Site) -> Vec<String> {
    let since = Tracking::Since(site.last());
    let tracking = site.back_up();
    tracking
        .into_iter()
        .map(|tracking| match tracking {
            Tracking::Lost(why) => why,
            other => {
                assert_eq!(other, since);
                String::new()
            }
        })
        .collect()
}

/// A file system of its own size, unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn at(path: &Path, bytes: u64) -> Self {
        std::fs::create_dir(path).unwrap();
        let size = format!("size={bytes}");
        run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", text(path)]);
        Self(path.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Files without a name in a QEMU that runs must not keep it.
        run("umount", &["--lazy", text(&self.0)]);
    }
}

fn a_full_scratch_folder_costs_the_snapshot_not_the_guest(site: &mut Site) {
    let small = Small::at(&site.folder.path().join("small"), 3 * MIB);
    let freeze = |site: &Site, settings| {
        let machine = site.connect().unwrap();
        let last = site.last();
        let standing = |id| (id == last).then_some(1);
        let freezing = machine.freeze(settings, REPOSITORY, site.point_id(), standing, None);
        site.runtime.block_on(freezing)
    };
    // Nothing is begun where there is no room.
    let mut tight = settings(&small.0, 256 * MIB);
    tight.scratch.reserve_bytes = 4 * MIB;
    let error = freeze(site, tight).err().unwrap();
    assert_eq!(error.kind(), Kind::NoSpace, "{error:?}");
    assert_eq!(site.left_in_qemu(), [] as [String; 0]);

    // It ends while the guest writes, faster than anybody could look.
    let mut full = settings(&small.0, 256 * MIB);
    full.scratch.reserve_bytes = 0;
    let frozen = freeze(site, full).unwrap();
    let since = Tracking::Since(site.last());
    assert_eq!(tracking(&frozen), [since.clone(), since]);
    site.guest
        .run("dd if=/dev/urandom of=/dev/vda bs=1M seek=1 count=7 conv=fsync,notrunc 2>/dev/null");
    let mut reader = frozen.disks[0].source.reader();
    let read = reader
        .as_mut()
        .map(|reader| reader.read_at(4 * MIB, &mut [0; 4096]));
    let error = match read {
        Ok(read) => read.unwrap_err(),
        Err(_) => reader.err().unwrap(),
    };
    assert_eq!(error.kind(), Kind::NoSpace, "{error:?}");
    assert!(error.to_string().contains("small"), "{error:?}");
    site.runtime.block_on(frozen.give_up()).unwrap();
    assert_eq!(site.left_in_qemu(), [] as [String; 0]);
    let kernel = site.guest.run("dmesg | grep -i 'error' || true");
    assert_eq!(kernel, "", "the guest has seen an error");
    assert_eq!(lost(site), ["", ""]);
}

/// Slowly enough to be seen, and with room left that others need.
fn a_watch_ends_the_snapshot_before_the_folder_is_full(site: &mut Site) {
    let small = Small::at(&site.folder.path().join("watched"), 6 * MIB);
    let machine = site.connect().unwrap();
    let last = site.last();
    let mut watched = settings(&small.0, 256 * MIB);
    watched.scratch.reserve_bytes = 4 * MIB;
    let standing = |id| (id == last).then_some(1);
    let freezing = machine.freeze(watched, REPOSITORY, site.point_id(), standing, None);
    let frozen = site.runtime.block_on(freezing).unwrap();
    site.guest.run(
        "for n in 1 2 3; do dd if=/dev/urandom of=/dev/vda bs=1M seek=$n count=1 \
         conv=fsync,notrunc 2>/dev/null; sleep 0.2; done",
    );
    let read = frozen.disks[0]
        .source
        .reader()
        .and_then(|mut reader| reader.read_at(4 * MIB, &mut [0; 4096]));
    let error = read.unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace, "{error:?}");
    assert!(error.to_string().contains("watched"), "{error:?}");
    // QEMU holds nothing of it any more.
    assert_eq!(site.left_in_qemu(), [] as [String; 0]);
    site.runtime.block_on(frozen.give_up()).unwrap();
    assert_eq!(lost(site), ["", ""]);
}

fn a_connection_that_ends_costs_the_run(site: &mut Site) {
    let frozen = site.freeze(site.point_id()).unwrap();
    let mut reader = frozen.disks[0].source.reader().unwrap();
    reader.read_at(0, &mut [0; 4096]).unwrap();
    site.by_hand("nbd-server-stop", json!({}));
    let error = reader.read_at(MIB, &mut [0; 4096]).unwrap_err();
    assert!(
        matches!(error.kind(), Kind::Unavailable | Kind::Io),
        "{error:?}"
    );
    drop(reader);
    // Whatever is said of that: the next one is right.
    let _ = site.runtime.block_on(frozen.give_up());
    assert_eq!(lost(site), ["", ""]);
    assert_eq!(site.left_in_qemu(), [] as [String; 0]);
}

fn somebody_elses_nbd_server_stays(site: &mut Site) {
    let address = json!({ "type": "unix", "data": { "path": "theirs" } });
    site.by_hand("nbd-server-start", json!({ "addr": address }));
    let error = site.freeze(site.point_id()).err().unwrap();
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.to_string().contains("for somebody else"), "{error:?}");
    assert_eq!(site.left_in_qemu(), [] as [String; 0]);
    // It still runs.
    site.by_hand("nbd-server-stop", json!({}));
    assert_eq!(lost(site), ["", ""]);
}

fn a_bitmap_removed_by_hand_is_missed(site: &mut Site) {
    let name = bitmap::name(REPOSITORY, site.last());
    site.by_hand(
        "block-dirty-bitmap-remove",
        json!({ "node": "disk0", "name": name }),
    );
    let lost_now = lost(site);
    assert!(
        lost_now[0].contains("has recorded no changes"),
        "{lost_now:?}"
    );
    assert_eq!(lost_now[1], "");
    assert_eq!(lost(site), ["", ""]);
}

fn a_disk_grows_and_another_comes(site: &mut Site) {
    site.by_hand(
        "block_resize",
        json!({ "node-name": "disk0", "size": DISK_BYTES + MIB }),
    );
    let path = site.folder.path().join("more.raw");
    run("truncate", &["-s", "4M", text(&path)]);
    site.by_hand(
        "blockdev-add",
        json!({ "driver": "file", "filename": path, "node-name": "more" }),
    );
    site.by_hand(
        "device_add",
        json!({ "driver": "virtio-blk-pci", "drive": "more", "id": "more" }),
    );
    let lost_now = lost(site);
    assert_eq!(lost_now[..2], ["", ""]);
    assert!(
        lost_now[2].contains("has recorded no changes"),
        "{lost_now:?}"
    );
    let disks: Vec<_> = site.log.last().unwrap().disks.iter().collect();
    assert_eq!(disks[0].1.len() as u64, DISK_BYTES + MIB);
    assert_eq!(disks[2].0, "more");
    assert_eq!(lost(site), ["", "", ""]);
}

fn a_reboot_keeps_what_qcow2_remembers(site: &mut Site) {
    // Also when it comes in the middle of a snapshot.
    let frozen = site.freeze(site.point_id()).unwrap();
    site.guest.power_off();
    site.runtime.block_on(frozen.give_up()).unwrap_err();
    site.guest.boot();
    site.write_without_end();
    let lost_now = lost(site);
    assert_eq!(lost_now[0], "");
    assert!(
        lost_now[1].contains("has recorded no changes"),
        "{lost_now:?}"
    );
    assert_eq!(lost(site), ["", ""]);
}

fn a_killed_qemu_is_noticed(site: &mut Site) {
    // In order, so that the bitmap is in the image, and then not.
    site.guest.power_off();
    site.guest.boot();
    site.guest.kill();
    site.guest.boot();
    site.write_without_end();
    let lost_now = lost(site);
    assert!(lost_now[0].contains("inconsistent"), "{lost_now:?}");
    assert!(
        lost_now[1].contains("has recorded no changes"),
        "{lost_now:?}"
    );
    assert_one_moment(site.log.last().unwrap());
    assert_eq!(lost(site), ["", ""]);
}

fn a_qemu_killed_under_a_snapshot_is_noticed(site: &mut Site) {
    // In order, so that the bitmap is in the image.
    site.guest.power_off();
    site.guest.boot();
    let frozen = site.freeze(site.point_id()).unwrap();
    let mut reader = frozen.disks[0].source.reader().unwrap();
    reader.read_at(0, &mut [0; 4096]).unwrap();
    site.guest.kill();
    reader.read_at(MIB, &mut [0; 4096]).unwrap_err();
    drop(reader);
    let _ = site.runtime.block_on(frozen.give_up());
    site.guest.boot();
    site.write_without_end();
    let lost_now = lost(site);
    assert!(lost_now[0].contains("inconsistent"), "{lost_now:?}");
    assert_one_moment(site.log.last().unwrap());
    assert_eq!(lost(site), ["", ""]);
}

/// Its disks stay where both hosts see them.
fn a_machine_that_moves_to_another_host(site: &mut Site) {
    let socket = site.folder.path().join("migration");
    let arriving = site.guest.expect_at(&socket);
    let uri = format!("unix:{}", text(&socket));
    site.by_hand("migrate", json!({ "uri": uri }));
    let begun = Instant::now();
    loop {
        let state = site.by_hand("query-migrate", json!({}));
        if state["status"] == "completed" {
            break;
        }
        assert!(state["status"] != "failed", "{state}");
        assert!(begun.elapsed() < TIME_MAX, "{state}");
        std::thread::sleep(Duration::from_millis(50));
    }
    site.guest.kill();
    site.guest.arrive(arriving);
    // Where a bitmap has come along it is right, and the other one is missed.
    let lost_now = lost(site);
    assert!(
        lost_now[1].contains("has recorded no changes"),
        "{lost_now:?}"
    );
    assert_one_moment(site.log.last().unwrap());
    assert_eq!(lost(site), ["", ""]);
}
