//! What there is to protect on this host, and how it is: machines of the configuration, and domains of
//! libvirt that nothing takes.
//!
//! Read-only, and without the service: it looks for itself. A QEMU is not asked by its monitor, which
//! serves one program: the service's runs may need it.

use super::config::{Find, Origin, Settings};
use super::machines::{Domains, Selection, select};
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result};
use crate::live::LeftOut;
use crate::live::libvirt::{Domain, Libvirt};
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A machine that there is.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// Its name here; a domain's own name where nothing takes it.
    pub machine: String,
    /// Its images, domain or monitor.
    pub origin: Vec<String>,
    /// How it is protected; none where it is not.
    pub protection: Option<Protection>,
    /// Whether it runs, where that is known.
    pub is_running: Option<bool>,
    /// Its disks, where they are known without disturbing anybody.
    pub disks: Vec<ListedDisk>,
    /// What looks like a disk and will not be in its points.
    pub left_out: Vec<LeftOut>,
    /// What the operator tagged it with.
    pub tags: Vec<String>,
    /// Why more is not known.
    pub trouble: Option<String>,
}

/// By what a machine is protected.
#[derive(Debug, Clone, Serialize)]
pub struct Protection {
    /// Its group.
    pub group: String,
    /// Its policy.
    pub policy: String,
    /// Its repository.
    pub repository: String,
}

/// A disk of a machine that there is.
#[derive(Debug, Clone, Serialize)]
pub struct ListedDisk {
    /// Its name within the machine, or its path.
    pub name: String,
    /// `qcow2`, `raw` and the like, where it is known.
    pub format: Option<String>,
    /// Whether changes to it can be tracked, so that it need not be read whole each time.
    pub is_trackable: bool,
}

/// All machines, by name, protected ones first; and what looks like an oversight. `more` are libvirts to
/// be looked at besides those of the configuration.
///
/// # Errors
/// Where a libvirt of `more` does not answer.
pub async fn list(
    settings: Arc<Settings>,
    more: &[Option<String>],
) -> Result<(Vec<Listed>, Vec<String>)> {
    let domains: Arc<Domains> = Arc::default();
    let look = (Arc::clone(&settings), Arc::clone(&domains));
    let selection = blocking(move || Ok(select(&look.0, &look.1))).await?;
    let mut remarks = settings.remarks();
    remarks.extend(selection.remarks.iter().cloned());
    let mut listed = Vec::new();
    // Which domains are taken, by libvirt and UUID.
    let mut taken = BTreeSet::new();
    for (name, selected) in &selection.machines {
        let protection = Protection {
            group: selected.group.name.clone(),
            policy: selected.policy.name.clone(),
            repository: selected.repository.name.clone(),
        };
        let it = machine(name, &selected.origin, Some(protection), &mut taken).await;
        listed.push(it);
    }
    for name in &selection.unprotected {
        listed.push(match settings.machines.get(name) {
            Some(origin) => machine(name, origin, None, &mut taken).await,
            // Found by a pattern.
            None => bare(name, Vec::new(), None),
        });
    }
    for connect in connects(&settings, &selection, more) {
        let libvirt = Libvirt::new(connect.clone());
        let all = match libvirt.domains().await {
            Ok(all) => all,
            Err(error) if more.contains(&connect) => return Err(error),
            Err(error) => {
                remarks.push(error.chain());
                continue;
            }
        };
        for domain in all {
            if !taken.contains(&(connect.clone(), domain.uuid.clone())) {
                let name = domain.name.clone();
                let described = libvirt.describe(domain).await;
                let mut it = bare(&name, vec![format!("domain {name}")], None);
                describe(&mut it, described);
                listed.push(it);
            }
        }
    }
    Ok((listed, remarks))
}

/// The libvirts that are looked at.
fn connects(
    settings: &Settings,
    selection: &Selection,
    more: &[Option<String>],
) -> BTreeSet<Option<String>> {
    let machines = selection.machines.values().map(|it| &it.origin);
    let of_machines =
        machines
            .chain(settings.machines.values())
            .filter_map(|origin| match origin {
                Origin::Domain { connect, .. } => Some(connect.clone()),
                _ => None,
            });
    let of_patterns = settings
        .patterns
        .iter()
        .filter_map(|pattern| match &pattern.find {
            Find::Domains { connect, .. } => Some(connect.clone()),
            Find::Images { .. } => None,
        });
    of_machines
        .chain(of_patterns)
        .chain(more.iter().cloned())
        .collect()
}

fn bare(name: &str, origin: Vec<String>, protection: Option<Protection>) -> Listed {
    Listed {
        machine: name.to_owned(),
        origin,
        protection,
        is_running: None,
        disks: Vec::new(),
        left_out: Vec::new(),
        tags: Vec::new(),
        trouble: None,
    }
}

async fn machine(
    name: &str,
    origin: &Origin,
    protection: Option<Protection>,
    taken: &mut BTreeSet<(Option<String>, String)>,
) -> Listed {
    let mut listed = bare(name, origin.describe(), protection);
    match origin {
        Origin::Domain { domain, connect } => {
            let described = Libvirt::new(connect.clone()).domain(domain).await;
            if let Ok(domain) = &described {
                taken.insert((connect.clone(), domain.name.uuid.clone()));
                listed.origin = vec![format!("domain {}", domain.name.name)];
            }
            describe(&mut listed, described);
        }
        Origin::Images { images, reading } => {
            listed.disks = images
                .iter()
                .map(|image| ListedDisk {
                    name: image.display().to_string(),
                    format: reading.format.map(|format| format.to_string()),
                    is_trackable: false,
                })
                .collect();
        }
        Origin::Monitor(socket) => {
            if !socket.exists() {
                let gone = Error::new(Kind::Missing, format!("{} is not there", socket.display()));
                listed.is_running = Some(false);
                listed.trouble = Some(gone.chain());
            }
        }
    }
    listed
}

fn describe(listed: &mut Listed, described: Result<Domain>) {
    match described {
        Ok(domain) => {
            listed.is_running = Some(domain.is_active);
            listed.disks = domain
                .disks
                .iter()
                .map(|disk| ListedDisk {
                    name: disk.name.clone(),
                    format: Some(disk.format.clone()),
                    is_trackable: disk.is_trackable(),
                })
                .collect();
            listed.left_out = domain.left_out;
            listed.tags = domain.tags;
        }
        Err(error) => listed.trouble = Some(error.chain()),
    }
}
