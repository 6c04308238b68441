//! `tidegate restore --define`: the whole machine, as a domain of libvirt again.
//!
//! What would stand in the way is looked for before the first byte is written; the domain is defined when
//! all of it is there.

use super::Work;
use crate::args::Define;
use crate::context::blocking;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tidegate_agent::durable;
use tidegate_agent::live::libvirt::{Libvirt, PlacedDisk, Redefinition, place_tpm, redefine};
use tidegate_agent::progress::Progress;
use tidegate_agent::recover::{self, RestoreMode};
use tidegate_agent::replicate::QMP_DEFINITION;
use tidegate_agent::repository::Point;
use tidegate_agent::target::{BytesTarget, Target};
use tidegate_agent::{Error, Kind, Result};
use tidegate_protocol::record::Role;

/// What became of the machine.
#[derive(Debug, Serialize)]
pub(super) struct Defined {
    /// The domain's name.
    pub(super) domain: String,
    /// Its definition, as libvirt was given it.
    pub(super) definition: PathBuf,
    /// Disks of the definition that the point does not hold: they are not in the domain.
    pub(super) without: Vec<String>,
    /// Whether it runs.
    pub(super) started: bool,
}

/// A machine that is to be defined.
pub(super) struct Machine {
    libvirt: Libvirt,
    definition: String,
    nvram: Option<Vec<u8>>,
    tpm: Option<Vec<u8>>,
    name: String,
    changes: Redefinition,
    start: bool,
}

impl Machine {
    /// Reads the machine's definition, and looks that nothing stands in its way.
    pub(super) async fn new(work: &Work<'_>, point: &Point, how: &Define) -> Result<Self> {
        let format = |role| {
            let file = point.files.iter().find(|file| file.role == Some(role));
            file.map(|file| file.content.source_format.as_str())
        };
        if format(Role::Definition) == Some(QMP_DEFINITION) {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "{}@{} is of a QEMU without libvirt: what QEMU told of the machine is no domain",
                    point.machine,
                    point.id.short()
                ),
            )
            .advise("restore its disks, and read about the machine: --disk definition"));
        }
        let definition = content(work, point, Role::Definition).await?;
        let definition = definition.and_then(|bytes| String::from_utf8(bytes).ok());
        let Some(definition) = definition else {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "{}@{} holds no definition of a domain: it was not made of one",
                    point.machine,
                    point.id.short()
                ),
            )
            .advise("restore its disks, and define a domain for them by hand"));
        };
        let nvram = content(work, point, Role::Nvram).await?;
        let tpm = content(work, point, Role::Tpm).await?;
        let name = how.as_name.clone().unwrap_or_else(|| point.machine.clone());
        let libvirt = Libvirt::new(how.connect.clone());
        let domains = libvirt.domains().await?;
        if domains.iter().any(|domain| domain.name == name) {
            return Err(Error::new(
                Kind::Conflict,
                format!("libvirt has a domain {name:?} already"),
            )
            .advise(
                "give the restored one another name, --as NAME; or undefine the one that is there",
            ));
        }
        let is_copy = how.as_name.is_some();
        let changes = Redefinition {
            name: Some(name.clone()),
            new_uuid: is_copy,
            new_macs: is_copy && !how.keep_macs,
            networks: how.network.iter().cloned().collect(),
            ..Redefinition::default()
        };
        // Whether it can be read shows now.
        redefine(&definition, &changes)?;
        Ok(Self {
            libvirt,
            definition,
            nvram,
            tpm,
            name,
            changes,
            start: how.start,
        })
    }

    /// Defines it, when its disks are at `disks`; what it needs besides is put into `folder`.
    pub(super) async fn define(
        mut self,
        folder: &Path,
        disks: BTreeMap<String, PlacedDisk>,
    ) -> Result<Defined> {
        self.changes.disks = disks;
        if let Some(nvram) = self.nvram.take() {
            let path = folder.join("nvram.fd");
            self.changes.nvram = Some(whole(&path)?);
            blocking(move || write(&path, &nvram)).await?;
        }
        let made = redefine(&self.definition, &self.changes)?;
        let path = folder.join("domain.xml");
        let (written, xml) = (path.clone(), made.xml);
        blocking(move || write(&written, xml.as_bytes())).await?;
        self.libvirt.define(&path).await?;
        if let Some(tpm) = self.tpm.take() {
            self.place(tpm).await?;
        }
        if self.start {
            self.libvirt.start(&self.name).await?;
        }
        Ok(Defined {
            domain: self.name,
            definition: path,
            without: made.without,
            started: self.start,
        })
    }

    /// Gives the domain's TPM what it remembers: a machine that starts without it gets an empty one.
    async fn place(&self, tpm: Vec<u8>) -> Result<()> {
        let domain = self.libvirt.domain(&self.name).await?;
        let Some(place) = domain.tpm else {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "domain {:?} is defined and has no emulated TPM: the point holds what one remembers",
                    self.name
                ),
            )
            .advise("read it where it is needed: restore --disk tpm --to FILE"));
        };
        let shown = place.display().to_string();
        blocking(move || place_tpm(&place, &tpm))
            .await
            .map_err(|error| {
                error.advise(format!(
                    "domain {:?} is defined, and lacks what its TPM remembers: before its first start, \
                     `restore --disk tpm --to {shown}`, readable by swtpm's user alone",
                    self.name
                ))
            })
    }
}

/// A file that the machine needs besides its disks.
async fn content(work: &Work<'_>, point: &Point, role: Role) -> Result<Option<Vec<u8>>> {
    let Some(file) = point.files.iter().find(|file| file.role == Some(role)) else {
        return Ok(None);
    };
    let target = Arc::new(BytesTarget::new(file.content.size_bytes)?);
    recover::restore_disk(
        work.repository,
        &file.content,
        Arc::clone(&target) as Arc<dyn Target>,
        RestoreMode::New,
        &work.settings,
        Arc::new(Progress::default()),
        work.context.stop.clone(),
    )
    .await?;
    Ok(Some(target.to_bytes()))
}

/// As libvirt needs a path: from the root on.
pub(super) fn whole(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path)
        .map_err(|error| Error::io(format!("cannot tell where {} is", path.display()), error))
}

/// A run that was interrupted after it, and is repeated, finds its own.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    durable::replace_file(path, 0o600, |file| file.write_all(bytes))
        .map_err(|error| Error::io(format!("cannot write {}", path.display()), error))
}
