//! The packaged service on a hypervisor host as Debian makes it: libvirt lets in whom polkit lets in, QEMU runs
//! as a user of its own, and each sees what its unit lets it see.

use super::{FROM_THE_STORE, HOST, STORE, drop_in, machine, package};
use crate::container::Container;
use crate::site::{MIB, Site, assert_same, program, text};
use serde_json::Value;

const IMAGES: &str = "/var/lib/libvirt/images";

const HOST_TOML: &str = r#"
[repository.main]
location = "/srv/store/main"
key = "credential:host.key"
[policy.often]
every = "2s"
rpo = "1h"
[[machines]]
vm = "*"
[group.all]
machines = ["*"]
policy = "often"
repository = "main"
"#;

/// In the words of the README.
const MORE: &str = "[Service]\n\
    CapabilityBoundingSet=CAP_DAC_OVERRIDE\n\
    AmbientCapabilities=CAP_DAC_OVERRIDE\n";
const MEMBER: [&str; 5] = ["usermod", "--append", "--groups", "libvirt", "tidegate"];

#[test]
fn machines_of_libvirt_on_a_real_host() {
    let site = Site::new();
    std::fs::create_dir(site.path("store")).unwrap();
    let package = package(&site);
    let container = Container::boot("hypervisor", &site.path(""), &[]);
    container.says(&["dpkg", "--install", &package]);
    let raw = start_domains(&container, &site);
    for command in [
        &[
            "tidegate",
            "init",
            "--repo",
            "/srv/store/main",
            "--keys",
            "/srv/keys",
        ][..],
        &[
            "install",
            "--mode=600",
            "/srv/keys/host.key",
            "/etc/tidegate",
        ],
        &["chown", "-R", "tidegate:", "/srv/store"],
        &["chmod", "711", "/srv"],
    ] {
        container.says(command);
    }
    container.write(&drop_in(HOST, "store"), STORE);
    container.write("/etc/tidegate/host.toml", HOST_TOML);
    container.says(&["systemctl", "daemon-reload"]);

    // Nobody has let it in: it says so, and what to do.
    container.says(&["systemctl", "start", HOST]);
    container.until("a refusal", || {
        said(&container, "the group libvirt").then_some(())
    });

    container.says(&MEMBER);
    container.write(&drop_in(HOST, "libvirt"), MORE);
    container.says(&["systemctl", "daemon-reload"]);
    container.says(&["systemctl", "restart", HOST]);
    for (domain, consistency) in [("runs", "crash"), ("rests", "offline")] {
        let done = container.until("a second point", || {
            let last = machine(&container, domain)?["last_ok"].clone();
            (last["frozen"]["tracking"][0]["tracked"] == true).then_some(last)
        });
        assert_eq!(done["frozen"]["consistency"], consistency, "{done}");
        let restore = [
            "tidegate",
            "restore",
            &format!("{domain}@latest"),
            "--disk",
            "vda",
            "--overwrite",
            "--to",
            "/srv/restored",
        ];
        container.says(&[&restore[..], &FROM_THE_STORE].concat());
        assert_same(&raw, &site.path("restored"));
    }
    let left = container.says(&["find", "/var/lib/tidegate-scratch", "-type", "f"]);
    assert!(left.is_empty(), "{left}");
}

/// One that runs and one that is off, of images that nobody else may read. Nothing in them boots, so that they stay
/// as they are.
fn start_domains(container: &Container, site: &Site) -> std::path::PathBuf {
    let raw = site.image("disk.raw", 32 * MIB, &[(MIB, 4 * MIB), (20 * MIB, MIB)]);
    let image = site.path("disk.qcow2");
    program(
        "qemu-img",
        &["convert", "-O", "qcow2", text(&raw), text(&image)],
    );
    // libvirt makes control groups, for which a container may have no leave.
    let settings = "printf 'cgroup_controllers = []\\n' >>/etc/libvirt/qemu.conf";
    container.says(&["sh", "-c", settings]);
    container.says(&["systemctl", "restart", "libvirtd"]);
    for domain in ["runs", "rests"] {
        let xml = format!(
            "<domain type='qemu'><name>{domain}</name><memory unit='MiB'>64</memory>
             <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
             <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
               <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
                 <source file='{IMAGES}/{domain}.qcow2'/><target dev='vda' bus='virtio'/></disk>
               <controller type='usb' model='none'/><memballoon model='none'/>
             </devices></domain>"
        );
        container.write(&format!("/root/{domain}.xml"), &xml);
        let place = format!("{IMAGES}/{domain}.qcow2");
        container.says(&["install", "--mode=600", "/srv/disk.qcow2", &place]);
        container.says(&["virsh", "define", &format!("/root/{domain}.xml")]);
    }
    container.says(&["virsh", "start", "runs"]);
    raw
}

fn said(container: &Container, words: &str) -> bool {
    let says = |line: &Value| {
        line["MESSAGE"]
            .as_str()
            .is_some_and(|said| said.contains(words))
    };
    container.journal(HOST).iter().any(says)
}
