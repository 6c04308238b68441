//! What a running machine is, as its QEMU tells: name, disks, and what is left out and why.
//!
//! Read-only, but for [`super::nodes::clear`], which takes away what a killed run has left: whoever
//! holds the monitor is alone with everything of ours on that machine.

use super::bitmap::Found;
use super::nodes;
use super::qmp::{Qmp, Version};
use crate::error::{Error, Kind, Result};
use crate::name;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The oldest QEMU whose `copy-before-write` can break the snapshot in place of the guest's write.
const VERSION_MIN: Version = Version {
    major: 7,
    minor: 1,
    micro: 0,
};

/// What is asked for a machine's definition.
const FACTS: &[&str] = &[
    "query-version",
    "query-name",
    "query-uuid",
    "query-memory-size-summary",
    "query-memory-devices",
    "query-cpus-fast",
    "query-iothreads",
    "query-block",
    "query-pci",
    "query-rx-filter",
    "query-tpm",
];
/// What changes without the machine being another: counters, processes, what a guest listens to.
const PASSING: &[&str] = &[
    "actual-size",
    "allocated-clusters",
    "broadcast-allowed",
    "dirty-bitmaps",
    "io-status",
    "multicast",
    "multicast-overflow",
    "multicast-table",
    "promiscuous",
    "snapshots",
    "thread-id",
    "throttle-group",
    "tray_open",
    "unicast",
    "unicast-overflow",
    "unicast-table",
    "vlan-table",
];

/// The channel that a guest's agent listens at.
const AGENT_CHANNEL: &str = "org.qemu.guest_agent.0";

/// A running machine, and the connection to its monitor.
#[derive(Debug)]
pub struct Machine {
    pub(super) qmp: Qmp,
    /// As its QEMU was named (`-name`), else after the monitor's socket.
    pub name: String,
    /// Its UUID, where it has one.
    pub uuid: Option<String>,
    /// In the order of its QEMU.
    pub disks: Vec<Disk>,
    /// What looks like a disk and is not protected.
    pub left_out: Vec<LeftOut>,
    /// The socket of the channel to the guest's agent, where it has one.
    pub agent: Option<PathBuf>,
}

/// A disk of a running machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Stable over restarts: the device's id, else the block node's name, else the backend's, else
    /// the device's place.
    pub name: String,
    /// The block node that the guest writes to.
    pub node: String,
    /// `qcow2`, `raw` and the like.
    pub format: String,
    /// Its size for the guest, in bytes.
    pub size_bytes: u64,
    /// Whether what changes is remembered when the machine is off: a qcow2 of version 3.
    pub remembers: bool,
    pub(super) qom_path: String,
    pub(super) bitmaps: Vec<Found>,
}

/// A block device that is not protected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// What the operator may know it by.
    pub name: String,
    /// In words.
    pub why: String,
}

#[derive(Deserialize)]
pub(super) struct BlockDevice {
    #[serde(default)]
    pub(super) device: String,
    pub(super) qdev: Option<String>,
    #[serde(default)]
    removable: bool,
    pub(super) inserted: Option<Inserted>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Inserted {
    #[serde(default)]
    pub(super) node_name: String,
    drv: String,
    ro: bool,
    image: Image,
    #[serde(default)]
    dirty_bitmaps: Vec<DirtyBitmap>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    virtual_size: u64,
    format_specific: Option<Value>,
}

#[derive(Deserialize)]
struct QomChild {
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct CharacterDevice {
    label: String,
    filename: String,
}

#[derive(Deserialize)]
struct DirtyBitmap {
    #[serde(default)]
    name: String,
    recording: bool,
    busy: bool,
    #[serde(default)]
    inconsistent: bool,
}

impl Machine {
    /// Takes over the machine whose monitor is at `socket`: whatever a killed run has left of its
    /// snapshot is taken away, and the machine is looked at.
    ///
    /// # Errors
    /// [`Kind::Conflict`] where another program holds the monitor, [`Kind::Missing`] where no machine
    /// runs, [`Kind::Unsupported`] where its QEMU is too old.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let mut qmp = Qmp::connect(socket).await?;
        let version = qmp.version();
        let known: Value = qmp.execute("query-name", Value::Null).await?;
        let name = known["name"]
            .as_str()
            .and_then(name::fit)
            .or_else(|| name::from_path(socket))
            .unwrap_or_else(|| "machine".to_owned());
        qmp.rename(format!("machine {name:?}"));
        if version < VERSION_MIN {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "machine {name:?} runs in QEMU {}.{}; running machines are read from {}.{} on",
                    version.major, version.minor, VERSION_MIN.major, VERSION_MIN.minor
                ),
            )
            .advise(
                "restart the machine with a newer QEMU, or back its disks up while it is off",
            ));
        }
        let known: Value = qmp.execute("query-uuid", Value::Null).await?;
        let uuid = known["UUID"]
            .as_str()
            .filter(|uuid| uuid.contains(|c| c != '0' && c != '-'))
            .map(str::to_owned);
        nodes::clear(&mut qmp, nodes::Server::MayBeOurs).await?;
        let mut machine = Self {
            qmp,
            name,
            uuid,
            disks: Vec::new(),
            left_out: Vec::new(),
            agent: None,
        };
        machine.look().await?;
        machine.agent = machine.find_agent().await?;
        Ok(machine)
    }

    /// For tests.
    #[cfg(feature = "testing")]
    pub fn handicap(&mut self, handicap: super::qmp::Handicap) {
        self.qmp.handicap(handicap);
    }

    /// Finds its disks anew.
    async fn look(&mut self) -> Result<()> {
        let devices: Vec<BlockDevice> = self.qmp.query("query-block", Value::Null).await?;
        let mut taken = BTreeSet::new();
        self.disks.clear();
        self.left_out.clear();
        for device in devices {
            let name = device.name(&mut taken);
            match self.disk(name.clone(), device).await? {
                Ok(disk) => self.disks.push(disk),
                Err(why) => self.left_out.push(LeftOut { name, why }),
            }
        }
        Ok(())
    }

    /// What QEMU tells of the machine, as JSON: what somebody needs to put such a one together. The same
    /// as long as the machine stays the same.
    ///
    /// # Errors
    /// Where QEMU does not answer. What it does not know is left out.
    pub async fn definition(&mut self) -> Result<String> {
        let mut told = serde_json::Map::new();
        for command in FACTS {
            match self.qmp.execute(command, Value::Null).await {
                Ok(answer) => {
                    told.insert((*command).to_owned(), lasting(answer));
                }
                Err(error) if error.kind() == Kind::Unavailable => return Err(error),
                // An older QEMU, or a machine without such a part.
                Err(error) => tracing::debug!(command, error = error.chain(), "not told"),
            }
        }
        let kind = self.text_property("/machine", "type").await?;
        told.insert("machine".to_owned(), kind.into());
        serde_json::to_string_pretty(&told)
            .map_err(|error| Error::new(Kind::Bug, "JSON that is none").caused_by(error))
    }

    /// Finds the channel to the guest's agent, by the name that agents look for.
    async fn find_agent(&mut self) -> Result<Option<PathBuf>> {
        for parent in ["/machine/peripheral", "/machine/peripheral-anon"] {
            let children: Vec<QomChild> = self
                .qmp
                .query("qom-list", json!({ "path": parent }))
                .await?;
            for child in children {
                if child.kind != "child<virtserialport>" {
                    continue;
                }
                let path = format!("{parent}/{}", child.name);
                if self.text_property(&path, "name").await? != AGENT_CHANNEL {
                    continue;
                }
                let channel = self.text_property(&path, "chardev").await?;
                let backends: Vec<CharacterDevice> =
                    self.qmp.query("query-chardev", Value::Null).await?;
                let backend = backends.into_iter().find(|it| it.label == channel);
                return Ok(backend.and_then(|it| socket_of(&it.filename)));
            }
        }
        Ok(None)
    }

    async fn text_property(&mut self, path: &str, property: &str) -> Result<String> {
        let value: Value = self
            .qmp
            .execute("qom-get", json!({ "path": path, "property": property }))
            .await?;
        Ok(value.as_str().unwrap_or_default().to_owned())
    }

    /// A device as a disk, or why it is none.
    async fn disk(
        &mut self,
        name: String,
        device: BlockDevice,
    ) -> Result<std::result::Result<Disk, String>> {
        let because = |why: &str| Ok(Err(why.to_owned()));
        let Some(qom_path) = device.qom_path() else {
            return because("no device of the guest uses it");
        };
        let Some(inserted) = device.inserted else {
            return because("there is no medium in it");
        };
        if device.removable {
            return because("it is a removable medium");
        }
        if inserted.ro {
            return because("it is read-only");
        }
        if inserted.image.virtual_size == 0 {
            return because("its size is 0");
        }
        let kind: Value = self
            .qmp
            .execute("qom-get", json!({ "path": qom_path, "property": "type" }))
            .await?;
        match kind.as_str().unwrap_or_default() {
            "scsi-block" | "scsi-generic" => {
                return because("the guest speaks to the device itself, past QEMU's block layer");
            }
            "cfi.pflash01" | "cfi.pflash02" => return because("it holds the firmware's variables"),
            _ => {}
        }
        Ok(Ok(Disk {
            name,
            node: inserted.node_name,
            remembers: inserted.drv == "qcow2"
                && inserted.image.format_specific.is_some_and(|specific| {
                    specific["data"]["compat"]
                        .as_str()
                        .is_some_and(|compat| compat != "0.10")
                }),
            format: inserted.drv,
            size_bytes: inserted.image.virtual_size,
            qom_path,
            bitmaps: inserted
                .dirty_bitmaps
                .into_iter()
                .map(|bitmap| Found {
                    name: bitmap.name,
                    recording: bitmap.recording,
                    busy: bitmap.busy,
                    inconsistent: bitmap.inconsistent,
                })
                .collect(),
        }))
    }
}

/// Without what changes by itself.
fn lasting(told: Value) -> Value {
    match told {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(name, _)| !PASSING.contains(&name.as_str()))
            .map(|(name, value)| (name, lasting(value)))
            .collect(),
        Value::Array(items) => items.into_iter().map(lasting).collect(),
        other => other,
    }
}

/// The path of a listening socket in QEMU's words: `disconnected:unix:/run/web01.qga,server=on`.
fn socket_of(described: &str) -> Option<PathBuf> {
    let described = described.strip_prefix("disconnected:").unwrap_or(described);
    let (path, _) = described.strip_prefix("unix:")?.rsplit_once(",server=on")?;
    Some(path.into())
}

impl BlockDevice {
    /// Where the guest's device stands in QEMU's tree of objects.
    pub(super) fn qom_path(&self) -> Option<String> {
        let qdev = self.qdev.as_deref()?;
        Some(match qdev.starts_with('/') {
            true => qdev.to_owned(),
            false => format!("/machine/peripheral/{qdev}"),
        })
    }

    /// The most lasting name that nobody has yet.
    fn name(&self, taken: &mut BTreeSet<String>) -> String {
        let qdev = self.qdev.as_deref().unwrap_or_default();
        let id = qdev
            .strip_prefix("/machine/peripheral/")
            .and_then(|rest| rest.split('/').next());
        // A device with an id is told by it alone where it is not a path of the object tree.
        let id = id.or((!qdev.starts_with('/')).then_some(qdev));
        let node = self
            .inserted
            .as_ref()
            .map(|inserted| inserted.node_name.as_str())
            // Names that QEMU makes are other ones at the next start.
            .filter(|node| !node.starts_with('#'));
        let place = qdev.trim_start_matches("/machine/").replace('/', "-");
        let candidates = [id, node, Some(&self.device), Some(&place)];
        let mut names = candidates.into_iter().flatten().filter_map(name::fit);
        let mut chosen = names
            .find(|name| !taken.contains(name))
            .unwrap_or_else(|| "disk".to_owned());
        while !taken.insert(chosen.clone()) {
            chosen.push('_');
        }
        chosen
    }
}
