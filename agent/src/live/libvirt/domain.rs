//! What a domain is, by its XML.
//!
//! Pure: text in, facts out. Only what tidegate needs is looked at; the definition itself travels as it
//! stands.

use super::{DomainName, tpm};
use crate::error::{Error, Kind, Result};
use crate::live::LeftOut;
use crate::name;
use quick_xml::NsReader;
use quick_xml::events::Event;
use quick_xml::name::ResolveResult;
use serde::Deserialize;
use std::path::PathBuf;

/// The XML namespace of what operators write into a domain's metadata for tidegate.
const NAMESPACE: &[u8] = b"https://github.com/tidegate/tidegate/domain/1";

/// What a TPM that stays behind is called.
const TPM: &str = "tpm";

/// A domain of libvirt, at the moment it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// Its names.
    pub name: DomainName,
    /// Whether there is a process that writes to its disks.
    pub is_active: bool,
    /// Its disks, in its own order.
    pub disks: Vec<DomainDisk>,
    /// What looks like a disk and is not protected.
    pub left_out: Vec<LeftOut>,
    /// What the operator tagged it with: `<tidegate:tag xmlns:tidegate="…">gold</tidegate:tag>`.
    pub tags: Vec<String>,
    /// Its definition, without secrets.
    pub definition: String,
    /// Where its firmware's variables are kept.
    pub nvram: Option<PathBuf>,
    /// Where its TPM keeps what it remembers.
    pub tpm: Option<PathBuf>,
}

/// A disk of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainDisk {
    /// The guest's device (`vda`): stable, and a name in a recovery point.
    pub name: String,
    /// `qcow2`, `raw` and the like.
    pub format: String,
    /// The image or device.
    pub source: PathBuf,
}

impl DomainDisk {
    /// Whether libvirt can record changes to it: it wants a place for them in the image.
    pub fn is_trackable(&self) -> bool {
        self.format == "qcow2"
    }
}

#[derive(Deserialize)]
struct WrittenDomain {
    os: Option<WrittenOs>,
    #[serde(default)]
    devices: WrittenDevices,
}

#[derive(Deserialize)]
struct WrittenOs {
    nvram: Option<WrittenNvram>,
}

#[derive(Deserialize)]
struct WrittenNvram {
    #[serde(rename = "$text")]
    path: Option<String>,
    source: Option<WrittenSource>,
}

#[derive(Default, Deserialize)]
struct WrittenDevices {
    #[serde(default)]
    disk: Vec<WrittenDisk>,
    tpm: Option<WrittenTpm>,
}

#[derive(Deserialize)]
struct WrittenTpm {
    backend: Option<WrittenTpmBackend>,
}

#[derive(Deserialize)]
struct WrittenTpmBackend {
    #[serde(rename = "@type")]
    kind: String,
    #[serde(rename = "@version")]
    version: Option<String>,
    source: Option<WrittenTpmSource>,
}

#[derive(Deserialize)]
struct WrittenTpmSource {
    #[serde(rename = "@type")]
    kind: Option<String>,
    #[serde(rename = "@path")]
    path: Option<PathBuf>,
}

#[derive(Deserialize)]
struct WrittenDisk {
    #[serde(rename = "@device")]
    device: Option<String>,
    driver: Option<WrittenDriver>,
    source: Option<WrittenSource>,
    target: WrittenTarget,
    readonly: Option<Empty>,
    shareable: Option<Empty>,
    transient: Option<Empty>,
}

#[derive(Deserialize)]
struct WrittenDriver {
    #[serde(rename = "@type")]
    format: Option<String>,
}

#[derive(Deserialize)]
struct WrittenSource {
    #[serde(rename = "@file")]
    file: Option<PathBuf>,
    #[serde(rename = "@dev")]
    device: Option<PathBuf>,
}

#[derive(Deserialize)]
struct WrittenTarget {
    #[serde(rename = "@dev")]
    name: String,
}

#[derive(Deserialize)]
struct Empty {}

impl Domain {
    /// Reads what libvirt tells of a domain: `now`, and its lasting `definition`.
    pub(super) fn parse(
        name: DomainName,
        is_active: bool,
        now: &str,
        definition: String,
    ) -> Result<Self> {
        let written: WrittenDomain =
            quick_xml::de::from_str(now).map_err(|error| unreadable(&name, &error))?;
        let tags = tags_of(&name, now)?;
        let (mut disks, mut left_out) = (Vec::new(), Vec::new());
        for disk in written.devices.disk {
            let name = name::fit(&disk.target.name).unwrap_or_else(|| "disk".to_owned());
            match disk.judge(name.clone()) {
                Ok(disk) => disks.push(disk),
                Err(why) => left_out.push(LeftOut {
                    name,
                    why: why.to_owned(),
                }),
            }
        }
        let nvram = written.os.and_then(|os| os.nvram).and_then(|nvram| {
            let source = nvram.source.and_then(|source| source.file);
            source.or_else(|| Some(nvram.path?.trim().into()))
        });
        let tpm = match written.devices.tpm.map(|tpm| tpm.place(&name.uuid)) {
            None => None,
            Some(Ok(place)) => Some(place),
            Some(Err(why)) => {
                left_out.push(LeftOut {
                    name: TPM.to_owned(),
                    why: why.to_owned(),
                });
                None
            }
        };
        Ok(Self {
            name,
            is_active,
            disks,
            left_out,
            tags,
            definition,
            nvram: nvram.filter(|path| path.is_absolute()),
            tpm,
        })
    }
}

impl WrittenTpm {
    /// Where the TPM of that domain keeps what it remembers.
    fn place(self, uuid: &str) -> std::result::Result<PathBuf, &'static str> {
        let backend = self.backend.filter(|backend| backend.kind == "emulator");
        let Some(backend) = backend else {
            return Err("the TPM is a device of this host, or another program's");
        };
        let version = backend.version.as_deref().unwrap_or_default();
        let source = backend.source.map(|source| (source.kind, source.path));
        let place = match source {
            Some((Some(kind), Some(path))) if kind == "dir" => tpm::file_in(&path, version),
            Some((_, Some(path))) => path,
            _ => tpm::file(uuid, version),
        };
        match place.is_absolute() {
            true => Ok(place),
            false => Err("where the TPM keeps what it remembers is not told"),
        }
    }
}

impl WrittenDisk {
    fn judge(self, name: String) -> std::result::Result<DomainDisk, &'static str> {
        match self.device.as_deref() {
            None | Some("disk") => {}
            Some(_) => return Err("it is no disk: a CD, a floppy or a device passed through"),
        }
        if self.readonly.is_some() {
            return Err("it is read-only");
        }
        if self.shareable.is_some() {
            return Err("other machines write to it too");
        }
        if self.transient.is_some() {
            return Err("what is written to it goes with the machine's power");
        }
        let source = self.source.and_then(|source| source.file.or(source.device));
        let Some(source) = source else {
            return Err("it is neither a file nor a block device of this host");
        };
        let format = self.driver.and_then(|driver| driver.format);
        Ok(DomainDisk {
            name,
            format: format.unwrap_or_else(|| "raw".to_owned()),
            source,
        })
    }
}

fn unreadable(name: &DomainName, error: &dyn std::fmt::Display) -> Error {
    Error::new(
        Kind::BadInput,
        format!(
            "the definition of domain {:?} cannot be read: {error}",
            name.name
        ),
    )
}

/// What the operator tagged a domain of this definition with.
pub(super) fn tags_of(name: &DomainName, xml: &str) -> Result<Vec<String>> {
    tags(xml).map_err(|error| unreadable(name, &error))
}

/// The texts of `<tag>` elements of our namespace.
fn tags(xml: &str) -> std::result::Result<Vec<String>, quick_xml::Error> {
    let mut reader = NsReader::from_str(xml);
    let mut tags = Vec::new();
    let mut inside = false;
    loop {
        match reader.read_resolved_event()? {
            (ResolveResult::Bound(namespace), Event::Start(element)) => {
                inside = namespace.as_ref() == NAMESPACE && element.local_name().as_ref() == b"tag";
            }
            (_, Event::Text(text)) if inside => {
                let text = text.decode()?;
                let text = text.trim();
                if !text.is_empty() {
                    tags.push(text.to_owned());
                }
            }
            (_, Event::End(_) | Event::Start(_)) => inside = false,
            (_, Event::Eof) => return Ok(tags),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::path::Path;

    const XML: &str = r#"<domain type='kvm' id='3'>
  <name>web01</name>
  <metadata>
    <tidegate:tag xmlns:tidegate="https://github.com/tidegate/tidegate/domain/1">gold</tidegate:tag>
    <other:tag xmlns:other="https://example.org">silver</other:tag>
  </metadata>
  <os firmware='efi'><type arch='x86_64'>hvm</type>
    <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/web01_VARS.fd</nvram></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/>
      <source file='/srv/web01.qcow2' index='1'/>
      <backingStore type='file'><source file='/srv/base.qcow2'/></backingStore>
      <target dev='vda' bus='virtio'/>
    </disk>
    <controller type='usb' model='none'/>
    <disk type='block' device='disk'><source dev='/dev/vg/db'/><target dev='vdb'/></disk>
    <disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>
    <disk type='network' device='disk'><source protocol='rbd' name='p/i'/><target dev='vdc'/></disk>
    <disk type='file'><source file='/srv/shared.raw'/><target dev='vdd'/><shareable/></disk>
  </devices>
</domain>"#;

    fn name() -> DomainName {
        DomainName {
            uuid: "u".to_owned(),
            name: "web01".to_owned(),
        }
    }

    #[test]
    fn a_definition_is_read() {
        let domain = Domain::parse(name(), true, XML, XML.to_owned()).unwrap();
        let disks: Vec<_> = domain
            .disks
            .iter()
            .map(|disk| {
                (
                    disk.name.as_str(),
                    disk.format.as_str(),
                    disk.source.to_str().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            disks,
            [
                ("vda", "qcow2", "/srv/web01.qcow2"),
                ("vdb", "raw", "/dev/vg/db")
            ]
        );
        let left_out: Vec<_> = domain
            .left_out
            .iter()
            .map(|out| out.name.as_str())
            .collect();
        assert_eq!(left_out, ["sda", "vdc", "vdd"]);
        assert_eq!(domain.tags, ["gold"]);
        assert_eq!(
            domain.nvram.unwrap().to_str(),
            Some("/var/lib/libvirt/qemu/nvram/web01_VARS.fd")
        );
        assert_eq!(domain.tpm, None);
    }

    #[test]
    fn where_a_tpm_keeps_what_it_remembers() {
        let of = |backend: &str| {
            let tpm = format!("<devices><tpm model='tpm-crb'>{backend}</tpm>");
            let xml = XML.replace("<devices>", &tpm);
            Domain::parse(name(), true, &xml, String::new()).unwrap()
        };
        for (backend, place) in [
            (
                "<backend type='emulator' version='2.0'/>",
                "/var/lib/libvirt/swtpm/u/tpm2/tpm2-00.permall",
            ),
            (
                "<backend type='emulator' version='1.2'/>",
                "/var/lib/libvirt/swtpm/u/tpm1.2/tpm-00.permall",
            ),
            (
                "<backend type='emulator'><source type='dir' path='/srv/tpm'/></backend>",
                "/srv/tpm/tpm2-00.permall",
            ),
            (
                "<backend type='emulator'><source type='file' path='/srv/tpm'/></backend>",
                "/srv/tpm",
            ),
        ] {
            let domain = of(backend);
            assert_eq!(domain.tpm.as_deref(), Some(Path::new(place)), "{backend}");
            assert!(
                domain.left_out.iter().all(|out| out.name != TPM),
                "{backend}"
            );
        }
        for backend in [
            "<backend type='passthrough'><device path='/dev/tpm0'/></backend>",
            "<backend type='external'><source type='unix' path='/run/tpm'/></backend>",
            "<backend type='emulator'><source type='file' path='tpm'/></backend>",
            "",
        ] {
            let domain = of(backend);
            assert_eq!(domain.tpm, None, "{backend}");
            assert!(
                domain.left_out.iter().any(|out| out.name == TPM),
                "{backend}"
            );
        }
    }

    #[test]
    fn what_is_no_definition_is_refused() {
        for xml in [
            "",
            "<domain>",
            "<domain><devices><disk/></devices></domain>",
        ] {
            let error = Domain::parse(name(), true, xml, String::new()).unwrap_err();
            assert_eq!(error.kind(), Kind::BadInput, "{xml:?}");
        }
    }
}
