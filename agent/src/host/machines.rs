//! Which machines there are, by the configuration and by what stands on the disks now.
//!
//! Looks at names only: no image is opened. Invariant: an image belongs to one machine, and a machine
//! to one group; what is not so is remarked, and the first to claim it keeps it.

use super::config::{Group, Policy, Reading, RepositorySettings, Settings};
use super::glob;
use crate::name;
use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A machine and all that is to be done with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Selected {
    /// Its disks, sorted by path where a pattern found them.
    pub images: Vec<PathBuf>,
    /// How to read them.
    pub reading: Reading,
    /// Its group.
    pub group: Arc<Group>,
    /// Its policy.
    pub policy: Arc<Policy>,
    /// Where its points go.
    pub repository: Arc<RepositorySettings>,
}

/// The machines that there are.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Selection {
    /// Those that are backed up, by name.
    pub machines: BTreeMap<String, Selected>,
    /// Those that are in no group.
    pub unprotected: Vec<String>,
    /// What looks like an oversight, for people.
    pub remarks: Vec<String>,
}

/// Looks which machines there are. Blocks: it reads folders.
pub fn select(settings: &Settings) -> Selection {
    let mut selection = Selection::default();
    let mut found: BTreeMap<String, (Vec<PathBuf>, Reading)> = BTreeMap::new();
    let mut claimed: HashSet<PathBuf> = HashSet::new();
    for (name, machine) in &settings.machines {
        claimed.extend(machine.images.iter().cloned());
        found.insert(
            name.clone(),
            (machine.images.clone(), machine.reading.clone()),
        );
    }
    for pattern in &settings.patterns {
        let mut here: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
        let images = glob::expand(&pattern.pattern);
        if images.len() >= glob::MATCHES_MAX {
            selection.remarks.push(format!(
                "{} finds more than {} images: the rest is left out",
                pattern.pattern,
                glob::MATCHES_MAX
            ));
        }
        for image in images {
            let text = image.to_string_lossy();
            let left_out = pattern.exclude.iter().any(|out| matches_path(out, &text));
            if left_out || !is_image(&image) || !claimed.insert(image.clone()) {
                continue;
            }
            match name_by(&pattern.name, &image) {
                Some(name) => here.entry(name).or_default().push(image),
                None => selection
                    .remarks
                    .push(format!("no name can be made from {}", image.display())),
            }
        }
        for (name, images) in here {
            if found.contains_key(&name) {
                selection.remarks.push(format!(
                    "{} would be machine {name} too, which has other images: it is left out",
                    images[0].display()
                ));
                continue;
            }
            found.insert(name, (images, pattern.reading.clone()));
        }
    }
    for (name, (images, reading)) in found {
        let all = settings.group_of(&name).and_then(|group| {
            let policy = settings.policies.get(&group.policy)?;
            let repository = settings.repositories.get(&group.repository)?;
            Some((group, policy, repository))
        });
        let Some((group, policy, repository)) = all else {
            selection.unprotected.push(name);
            continue;
        };
        let selected = Selected {
            images,
            reading,
            group: Arc::clone(group),
            policy: Arc::clone(policy),
            repository: Arc::clone(repository),
        };
        selection.machines.insert(name, selected);
    }
    selection
}

/// Part by part: no wildcard reaches over a `/`.
fn matches_path(pattern: &str, path: &str) -> bool {
    let (mut patterns, mut parts) = (pattern.split('/'), path.split('/'));
    loop {
        match (patterns.next(), parts.next()) {
            (None, None) => return true,
            (Some(pattern), Some(part)) if glob::matches(pattern, part) => {}
            _ => return false,
        }
    }
}

fn is_image(path: &Path) -> bool {
    std::fs::metadata(path)
        .is_ok_and(|found| found.is_file() || found.file_type().is_block_device())
}

fn name_by(template: &str, image: &Path) -> Option<String> {
    let part = |part: Option<&std::ffi::OsStr>| Some(part?.to_string_lossy().into_owned());
    let stem = part(image.file_stem())?;
    let folder = part(image.parent().and_then(Path::file_name)).unwrap_or_default();
    name::fit(
        &template
            .replace("{stem}", &stem)
            .replace("{folder}", &folder),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn machines_are_named_or_found() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for image in [
            "web01.raw",
            "pool/db1/a.raw",
            "pool/db1/b.raw",
            "pool/db1/x-scratch.raw",
            "pool/mail/a.raw",
            "pool/web01/a.raw",
            "pool/folder.raw/inside",
        ] {
            let path = root.join(image);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let text = "
            [repository.main]
            location = 'repo'
            key = 'host.key'
            [policy.p]
            every = '1h'
            [machine.web01]
            images = ['web01.raw', 'pool/mail/a.raw']
            [machine.unseen]
            images = ['unseen.raw']
            [[machines]]
            pattern = 'pool/*/*.raw'
            name = '{folder}'
            exclude = ['pool/*/*-scratch.raw']
            [group.g]
            machines = ['web*', 'db*']
            policy = 'p'
            repository = 'main'
        ";
        let settings = Settings::parse(text, root).unwrap();
        let selection = select(&settings);
        let images: Vec<(String, Vec<PathBuf>)> = selection
            .machines
            .into_iter()
            .map(|(name, machine)| (name, machine.images))
            .collect();
        let at = |path: &str| root.join(path);
        assert_eq!(
            images,
            [
                (
                    "db1".to_owned(),
                    vec![at("pool/db1/a.raw"), at("pool/db1/b.raw")]
                ),
                (
                    "web01".to_owned(),
                    vec![at("web01.raw"), at("pool/mail/a.raw")]
                ),
            ]
        );
        assert_eq!(selection.unprotected, ["unseen"]);
        assert_eq!(selection.remarks.len(), 1, "{:?}", selection.remarks);
        assert!(selection.remarks[0].contains("pool/web01/a.raw"));
    }
}
