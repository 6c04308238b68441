//! A domain that is off, and what may happen to it meanwhile.

use crate::daemon::Host;
use crate::site::{Site, text};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::process::Stdio;

/// A domain that does nothing, so that its image does not tell that it runs.
fn define(site: &Site, host: &Host) {
    let xml = format!(
        "<domain type='qemu'><name>spare</name><memory unit='MiB'>64</memory>
         <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
         <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
           <disk type='file' device='disk'><driver name='qemu' type='raw'/>
             <source file='{}'/><target dev='vda' bus='virtio'/></disk>
           <controller type='usb' model='none'/><memballoon model='none'/>
         </devices></domain>",
        text(&site.path("spare.raw")),
    );
    std::fs::write(site.path("spare.xml"), xml).unwrap();
    host.virsh(&["define", text(&site.path("spare.xml"))]);
}

fn has_open(process: Pid, image: &Path) -> bool {
    // Between two looks it may close one, or end.
    let files = std::fs::read_dir(format!("/proc/{process}/fd"));
    files.is_ok_and(|files| {
        let mut files = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
        files.any(|file| file == image)
    })
}

#[test]
fn a_domain_that_is_started_while_its_images_are_read_gets_no_point() {
    let site = Site::with_repository();
    let image = site.image("spare.raw", 64 << 20, &[(0, 8 << 20)]);
    let host = Host::start(&site, "host-a");
    define(&site, &host);
    let backup = ["backup", "--vm", "spare", "--json"];
    let mut running = host.command(&site, &backup);
    let running = running.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut running = running.spawn().unwrap();
    let process = Pid::from_raw(running.id().try_into().unwrap());
    while !has_open(process, &image) {
        assert!(running.try_wait().unwrap().is_none(), "it has ended");
    }
    kill(process, Signal::SIGSTOP).unwrap();
    host.virsh(&["start", "spare"]);
    kill(process, Signal::SIGCONT).unwrap();
    let done = running.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(9), "{said}");
    assert!(said.contains("spare was started"), "{said}");
    let points = ["points", "--json"];
    let told = site.tidegate(&points).succeeds().json();
    assert_eq!(told.as_array().unwrap().len(), 0, "{told}");

    host.virsh(&["destroy", "spare"]);
    let told = host.tidegate(&site, &backup).succeeds().json();
    assert_eq!(told["consistency"], "offline", "{told}");
}
