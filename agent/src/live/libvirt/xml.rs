//! What libvirt is told, as XML. Pure.

use crate::error::{Error, Kind, Result};
use quick_xml::escape::escape;
use serde::Deserialize;
use std::collections::HashSet;
use std::fmt::Write;
use std::path::Path;

/// A disk as a backup takes it.
pub(super) struct BackupDisk<'a> {
    pub(super) name: &'a str,
    /// The checkpoint whose changes are shown, if it has one.
    pub(super) since: Option<&'a str>,
    /// Where what the guest overwrites meanwhile is kept.
    pub(super) scratch: &'a Path,
}

/// What a change map is called on the wire.
pub(super) const BITMAP: &str = "changes";

/// A backup in pull mode of those disks; all others are left out.
pub(super) fn backup(socket: &Path, disks: &[BackupDisk<'_>]) -> String {
    let mut xml = String::from("<domainbackup mode='pull'>");
    // A string takes what is written to it.
    let _ = write!(
        xml,
        "<server transport='unix' socket='{}'/><disks>",
        path(socket)
    );
    for disk in disks {
        let name = escape(disk.name);
        let mode = match disk.since {
            Some(since) => format!(
                "backupmode='incremental' incremental='{}' exportbitmap='{BITMAP}'",
                escape(since)
            ),
            None => "backupmode='full'".to_owned(),
        };
        let _ = write!(
            xml,
            "<disk name='{name}' backup='yes' type='file' exportname='{name}' {mode}>\
             <driver type='qcow2'/><scratch file='{}'/></disk>",
            path(disk.scratch)
        );
    }
    xml.push_str("</disks></domainbackup>");
    xml
}

/// A checkpoint that records changes to those disks from now on.
pub(super) fn checkpoint(name: &str, disks: &[String], others: &[String]) -> String {
    let name = escape(name);
    let mut xml = format!("<domaincheckpoint><name>{name}</name><disks>");
    for disk in disks {
        let disk = escape(disk.as_str());
        let _ = write!(
            xml,
            "<disk name='{disk}' checkpoint='bitmap' bitmap='{name}'/>"
        );
    }
    for disk in others {
        let _ = write!(
            xml,
            "<disk name='{}' checkpoint='no'/>",
            escape(disk.as_str())
        );
    }
    xml.push_str("</disks></domaincheckpoint>");
    xml
}

#[derive(Deserialize)]
struct WrittenCheckpoint {
    #[serde(default)]
    disks: WrittenDisks,
}

#[derive(Default, Deserialize)]
struct WrittenDisks {
    #[serde(default)]
    disk: Vec<WrittenDisk>,
}

#[derive(Deserialize)]
struct WrittenDisk {
    #[serde(rename = "@name")]
    name: String,
    #[serde(rename = "@checkpoint")]
    checkpoint: Option<String>,
}

/// The disks of which a checkpoint records changes, by its XML.
pub(super) fn recorded_disks(checkpoint: &str) -> Result<HashSet<String>> {
    let written: WrittenCheckpoint = quick_xml::de::from_str(checkpoint).map_err(|error| {
        Error::new(
            Kind::BadInput,
            format!("libvirt's description of a checkpoint cannot be read: {error}"),
        )
    })?;
    let disks = written.disks.disk.into_iter();
    Ok(disks
        .filter(|disk| disk.checkpoint.as_deref() == Some("bitmap"))
        .map(|disk| disk.name)
        .collect())
}

fn path(path: &Path) -> String {
    escape(path.to_string_lossy()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_named_breaks_out() {
        let disk = BackupDisk {
            name: "vd'a",
            since: Some("<p>"),
            scratch: Path::new("/s/&"),
        };
        let xml = backup(Path::new("/run/'x'"), &[disk]);
        assert!(!xml.contains("vd'a") && xml.contains("vd&apos;a"), "{xml}");
        assert!(!xml.contains("<p>") && xml.contains("/s/&amp;"), "{xml}");
        let xml = checkpoint("a<b", &["vda".to_owned()], &["sda".to_owned()]);
        assert!(xml.contains("a&lt;b") && !xml.contains("a<b"), "{xml}");
        let recorded = recorded_disks(&xml);
        assert!(recorded.is_ok_and(|disks| disks.len() == 1 && disks.contains("vda")));
    }
}
