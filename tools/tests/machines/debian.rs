//! A guest that is a whole Debian, with systemd, its own agent and SQLite; and what a point of it holds.

use crate::daemon::Host;
use crate::site::{Site, program, text};
use std::path::PathBuf;
use std::process::Command;
use tidegate_agent::testing::{Console, lab};

/// What the guest is called, in libvirt and in the repository.
pub(crate) const DOMAIN: &str = "db01";

/// Has the agent run what lies in `/etc/qemu/fsfreeze-hook.d`, Debian's place for hooks.
pub(crate) const RUN_HOOKS: &str = "mkdir -p /etc/systemd/system/qemu-guest-agent.service.d; \
    printf '[Service]\\nExecStart=\\nExecStart=/usr/sbin/qemu-ga --fsfreeze-hook\\n' \
    >/etc/systemd/system/qemu-guest-agent.service.d/hook.conf; \
    systemctl daemon-reload; systemctl restart qemu-guest-agent";

/// Its disk, an image of its own over the one that `tools/test` has made.
pub(crate) fn disk(site: &Site) -> PathBuf {
    let disk = site.path("system.qcow2");
    let create = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"];
    let (base, to) = (lab("debian.ext4"), text(&disk));
    program("qemu-img", &[&create[..], &[text(&base), to]].concat());
    disk
}

/// Boots it as a domain.
pub(crate) fn start(site: &Site, host: &Host) -> Console {
    let system = disk(site);
    let console = site.path("console");
    let xml = format!(
        "<domain type='qemu'><name>{DOMAIN}</name>
         <memory unit='MiB'>256</memory><vcpu>1</vcpu>
         <os><type arch='x86_64' machine='pc'>hvm</type>
           <kernel>{kernel}</kernel><initrd>{initramfs}</initrd>
           <cmdline>console=ttyS0 quiet panic=-1 root=/dev/vda systemd.show_status=0</cmdline></os>
         <features><acpi/></features>
         <devices>
           <emulator>/usr/bin/qemu-system-x86_64</emulator>
           <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
             <source file='{system}'/><target dev='vda' bus='virtio'/></disk>
           <controller type='usb' model='none'/>
           <serial type='unix'><source mode='bind' path='{console}'/></serial>
           <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
           <memballoon model='none'/>
         </devices></domain>",
        kernel = lab("guest/vmlinuz").display(),
        initramfs = lab("guest/initramfs").display(),
        system = text(&system),
        console = text(&console),
    );
    std::fs::write(site.path("domain.xml"), xml).unwrap();
    host.virsh(&["define", text(&site.path("domain.xml"))]);
    host.virsh(&["start", DOMAIN]);
    Console::of_booting(&console)
}

/// What a point holds of the guest's data.
pub(crate) struct Restored {
    /// Whether the journal of the file system had to be replayed.
    pub(crate) needed_replay: bool,
    /// A copy of `/srv/data`.
    pub(crate) data: PathBuf,
}

/// Restores the disk of that name, whose file system has to be sound once its journal is replayed.
pub(crate) fn restore(site: &Site, point: &str, disk: &str) -> Restored {
    let image = site.path("judged.raw");
    let spec = format!("{DOMAIN}@{point}");
    let restore = ["restore", &spec, "--disk", disk, "--to", text(&image)];
    site.tidegate(&[&restore[..], &["--overwrite"]].concat())
        .succeeds();
    let features = program("dumpe2fs", &["-h", text(&image)]);
    assert!(features.contains("Filesystem features"), "{features}");
    let needed_replay = features.contains("needs_recovery");
    if needed_replay {
        // 1 says that something was mended, as after a power cut.
        let replayed = Command::new("e2fsck")
            .args(["-p", text(&image)])
            .output()
            .unwrap();
        let done = replayed.status.code().is_some_and(|code| code <= 1);
        assert!(done, "{replayed:?}");
    }
    program("e2fsck", &["-fn", text(&image)]);
    let out = site.path("judged");
    let _ = std::fs::remove_dir_all(&out);
    std::fs::create_dir(&out).unwrap();
    let dump = format!("rdump /srv/data {}", text(&out));
    program("debugfs", &["-R", &dump, text(&image)]);
    Restored {
        needed_replay,
        data: out.join("data"),
    }
}
