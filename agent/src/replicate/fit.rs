//! What can be backed up at all: told before anything is opened.

use super::{BackupRequest, PACK_BYTES_FULL_MAX};
use crate::error::{Error, Kind, Result};
use std::collections::HashSet;
use tidegate_protocol::limits::{DISK_BYTES_MAX, DISKS_MAX, NAME_BYTES_MAX};
use tidegate_protocol::page;

pub(super) fn check(request: &BackupRequest) -> Result<()> {
    let bad = |what: String| Err(Error::new(Kind::Config, what));
    if request.disks.is_empty() {
        return bad(format!("machine {:?} has no disks", request.machine));
    }
    let name_is_fit = |name: &str| {
        !name.is_empty()
            && name.len() <= NAME_BYTES_MAX
            && !name.contains(['@', '/'])
            && !name.contains(char::is_control)
    };
    if !name_is_fit(&request.machine) {
        return bad(format!(
            "{:?} is no name for a machine: 1 to 255 bytes without '@', '/' and control characters",
            request.machine
        ));
    }
    let text_is_fit = |text: &str| text.len() <= NAME_BYTES_MAX && !text.contains(char::is_control);
    if !text_is_fit(&request.host) {
        return bad(format!(
            "{:?} is no name for a host: at most {NAME_BYTES_MAX} bytes without control characters",
            request.host
        ));
    }
    if request.disks.len() > DISKS_MAX {
        return bad(format!(
            "machine {:?} has {} disks, at most {DISKS_MAX} are possible",
            request.machine,
            request.disks.len()
        ));
    }
    let mut names = HashSet::new();
    for disk in &request.disks {
        if !text_is_fit(&disk.format) {
            return bad(format!("{:?} is no name for a format", disk.format));
        }
        if !name_is_fit(&disk.name) || !names.insert(&disk.name) {
            return bad(format!(
                "{:?} is no name for a disk of {}: it must be unique, without '@', '/' and control characters",
                disk.name, request.machine
            ));
        }
        if page::tree_levels(disk.source.size_bytes()).is_none() {
            return bad(format!(
                "{} has {} bytes: a disk can have at most {DISK_BYTES_MAX}",
                disk.source.describe(),
                disk.source.size_bytes()
            ));
        }
    }
    if request.settings.pack_bytes > PACK_BYTES_FULL_MAX {
        return bad(format!(
            "packs of {} bytes are too large: at most {PACK_BYTES_FULL_MAX}",
            request.settings.pack_bytes
        ));
    }
    Ok(())
}
