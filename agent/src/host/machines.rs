//! Which machines there are, by the configuration and by what stands on the disks, and runs, now.
//!
//! Looks at names only: no image is opened. Where libvirt does not answer, its domains are those that it
//! had when it answered last: a machine does not lose its protection because a daemon is started
//! again. Invariant: an image belongs to one machine, and a machine
//! to one group; what is not so is remarked, and the first to claim it keeps it.

use super::config::{Find, Group, Origin, Pattern, Policy, RepositorySettings, Settings};
use super::glob;
use crate::error::{Error, Kind, Result};
use crate::live::libvirt::{DomainName, Libvirt};
use crate::name;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// A machine and all that is to be done with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Selected {
    /// Where it is; images are sorted by path where a pattern found them.
    pub origin: Origin,
    /// Its group.
    pub group: Arc<Group>,
    /// Its policy.
    pub policy: Arc<Policy>,
    /// Where its points go.
    pub repository: Arc<RepositorySettings>,
}

impl Selected {
    /// The group that it is frozen together with. Disks that nothing writes to need no freezing.
    pub fn together(&self) -> Option<&str> {
        let is_live = !matches!(self.origin, Origin::Images { .. });
        (self.group.together_within.is_some() && is_live).then_some(self.group.name.as_str())
    }
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
    /// Somebody who knows machines did not answer: what was not found may be there all the same.
    pub is_partial: bool,
}

/// How long libvirt may take for one look.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// For how long a domain's tags are believed: each has to be asked for by itself.
const TAGS_AGE_MAX: Duration = Duration::from_secs(60);

/// The domains of each libvirt that was asked, when it answered last.
#[derive(Debug, Default)]
pub struct Domains(Mutex<Answers>);

#[derive(Debug, Default)]
struct Answers {
    domains: HashMap<Option<String>, Vec<DomainName>>,
    /// By libvirt and UUID.
    tags: HashMap<(Option<String>, String), (Instant, Vec<String>)>,
}

impl Domains {
    /// The domains there are; those of before, and why, where libvirt does not answer. Blocks.
    fn list(&self, connect: &Option<String>) -> (Vec<DomainName>, Option<Error>) {
        let asked = ask(Libvirt::new(connect.clone()).domains());
        let mut known = self.lock();
        match asked {
            Ok(domains) => {
                known.tags.retain(|(of, uuid), _| {
                    of != connect || domains.iter().any(|domain| domain.uuid == *uuid)
                });
                known.domains.insert(connect.clone(), domains.clone());
                (domains, None)
            }
            Err(error) => {
                let before = known.domains.get(connect).cloned();
                (before.unwrap_or_default(), Some(error))
            }
        }
    }

    /// Of these domains those with a tag that fits; and why, where some could not be asked for theirs,
    /// and nobody knows. Blocks.
    fn tagged(
        &self,
        connect: &Option<String>,
        domains: Vec<DomainName>,
        pattern: &str,
    ) -> (Vec<DomainName>, Option<Error>) {
        let libvirt = Libvirt::new(connect.clone());
        let mut failure = None;
        let mut tagged = Vec::new();
        for domain in domains {
            let key = (connect.clone(), domain.uuid.clone());
            let known = self.lock().tags.get(&key).cloned();
            let is_fresh = |(asked, _): &(Instant, _)| asked.elapsed() < TAGS_AGE_MAX;
            let tags = match known {
                Some(known) if failure.is_some() || is_fresh(&known) => known.1,
                None if failure.is_some() => continue,
                known => match ask(libvirt.tags(&domain)) {
                    Ok(tags) => {
                        let answer = (Instant::now(), tags.clone());
                        self.lock().tags.insert(key, answer);
                        tags
                    }
                    // Gone since it was listed.
                    Err(error) if error.kind() == Kind::Missing => continue,
                    // Who does not answer for one is not asked for the others.
                    Err(error) => {
                        failure = Some(error);
                        known.map(|(_, tags)| tags).unwrap_or_default()
                    }
                },
            };
            if tags.iter().any(|tag| glob::matches(pattern, tag)) {
                tagged.push(domain);
            }
        }
        (tagged, failure)
    }

    fn lock(&self) -> MutexGuard<'_, Answers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer of libvirt's, in time. Blocks.
fn ask<T>(question: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = Handle::try_current()
        .map_err(|error| Error::new(Kind::Bug, "no runtime to ask libvirt").caused_by(error))?;
    runtime.block_on(async {
        let answer = tokio::time::timeout(ANSWER_TIME_MAX, question);
        answer.await.unwrap_or_else(|_| {
            Err(Error::new(
                Kind::Unavailable,
                format!(
                    "libvirt did not answer within {} s",
                    ANSWER_TIME_MAX.as_secs()
                ),
            ))
        })
    })
}

/// Looks which machines there are. Blocks: it reads folders and asks libvirt, where one is named.
pub fn select(settings: &Settings, domains: &Domains) -> Selection {
    let mut selection = Selection::default();
    let mut found: BTreeMap<String, Origin> = settings.machines.clone();
    let mut claimed = Claimed::default();
    for origin in settings.machines.values() {
        claimed.claim(origin);
    }
    // Each libvirt is asked once in a look.
    let mut answers: HashMap<&Option<String>, Vec<DomainName>> = HashMap::new();
    for pattern in &settings.patterns {
        let here = match &pattern.find {
            Find::Images {
                pattern: paths,
                reading,
            } => images(paths, pattern, &mut claimed, &mut selection)
                .into_iter()
                .map(|(name, images)| {
                    let reading = reading.clone();
                    (name, Origin::Images { images, reading })
                })
                .collect(),
            Find::Domains {
                pattern: names,
                tag,
                connect,
            } => {
                let all = answers.entry(connect).or_insert_with(|| {
                    let (all, failure) = domains.list(connect);
                    if let Some(error) = failure {
                        selection.is_partial = true;
                        selection.remarks.push(format!(
                            "libvirt's machines are those of before: {}",
                            with_advice(&error)
                        ));
                    }
                    all
                });
                let mut all = all.clone();
                all.retain(|domain| glob::matches(names, &domain.name));
                if let Some(tag) = tag {
                    let (tagged, failure) = domains.tagged(connect, all, tag);
                    if let Some(error) = failure {
                        selection.is_partial = true;
                        selection.remarks.push(format!(
                            "what machines are tagged with is known of before only: {}",
                            with_advice(&error)
                        ));
                    }
                    all = tagged;
                }
                domains_by(connect, pattern, &all, &mut claimed, &mut selection.remarks)
            }
        };
        for (name, origin) in here {
            if found.contains_key(&name) {
                selection.remarks.push(format!(
                    "{} would be machine {name} too, which is another one: it is left out",
                    origin.first()
                ));
                continue;
            }
            found.insert(name, origin);
        }
    }
    for (name, origin) in found {
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
            origin,
            group: Arc::clone(group),
            policy: Arc::clone(policy),
            repository: Arc::clone(repository),
        };
        selection.machines.insert(name, selected);
    }
    selection
}

/// What machines have laid claim to.
#[derive(Default)]
struct Claimed {
    images: HashSet<PathBuf>,
    domains: HashSet<(Option<String>, String)>,
}

impl Claimed {
    fn claim(&mut self, origin: &Origin) {
        match origin {
            Origin::Images { images, .. } => self.images.extend(images.iter().cloned()),
            Origin::Domain { domain, connect } => {
                self.domains.insert((connect.clone(), domain.clone()));
            }
            Origin::Monitor(_) => {}
        }
    }
}

/// Images that a pattern finds, by the machines that they make.
fn images(
    paths: &str,
    pattern: &Pattern,
    claimed: &mut Claimed,
    selection: &mut Selection,
) -> BTreeMap<String, Vec<PathBuf>> {
    let mut here: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    let images = glob::expand(paths);
    if images.len() >= glob::MATCHES_MAX {
        selection.remarks.push(format!(
            "{paths} finds more than {} images: the rest is left out",
            glob::MATCHES_MAX
        ));
    }
    for image in images {
        let text = image.to_string_lossy();
        let left_out = pattern.exclude.iter().any(|out| matches_path(out, &text));
        if left_out || !is_image(&image) || !claimed.images.insert(image.clone()) {
            continue;
        }
        match name_by(&pattern.name, &image) {
            Some(name) => here.entry(name).or_default().push(image),
            None => selection
                .remarks
                .push(format!("no name can be made from {}", image.display())),
        }
    }
    here
}

/// Domains that a pattern finds, by the machines that they make.
fn domains_by(
    connect: &Option<String>,
    pattern: &Pattern,
    all: &[DomainName],
    claimed: &mut Claimed,
    remarks: &mut Vec<String>,
) -> BTreeMap<String, Origin> {
    let mut here = BTreeMap::new();
    for domain in all {
        let claim = |name: &str| (connect.clone(), name.to_owned());
        let is_claimed = claimed.domains.contains(&claim(&domain.uuid));
        let left_out = pattern
            .exclude
            .iter()
            .any(|out| glob::matches(out, &domain.name));
        if left_out || is_claimed || !claimed.domains.insert(claim(&domain.name)) {
            continue;
        }
        let Some(name) = name::fit(&pattern.name.replace("{name}", &domain.name)) else {
            remarks.push(format!("no name can be made from domain {:?}", domain.name));
            continue;
        };
        if here.contains_key(&name) {
            remarks.push(format!(
                "domain {:?} would be machine {name} too, which is another one: it is left out",
                domain.name
            ));
            continue;
        }
        let origin = Origin::Domain {
            domain: domain.uuid.clone(),
            connect: connect.clone(),
        };
        here.insert(name, origin);
    }
    here
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

fn with_advice(error: &Error) -> String {
    match error.advice() {
        Some(advice) => format!("{}; {advice}", error.chain()),
        None => error.chain(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
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
        let selection = select(&settings, &Domains::default());
        let images: Vec<(String, Vec<PathBuf>)> = selection
            .machines
            .into_iter()
            .map(|(name, machine)| match machine.origin {
                Origin::Images { images, .. } => (name, images),
                other => panic!("{name}: {other:?}"),
            })
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

    #[test]
    fn domains_are_named_or_found_and_belong_to_one_machine() {
        let text = "
            [repository.main]
            location = 'repo'
            key = 'host.key'
            [policy.p]
            every = '15s'
            [machine.db]
            vm = 'db01'
            [machine.router]
            qmp = '/run/router.qmp'
            [[machines]]
            vm = '*'
            name = 'vm-{name}'
            exclude = ['*-scratch']
            [group.g]
            machines = ['*']
            policy = 'p'
            repository = 'main'
        ";
        let settings = Settings::parse(text, Path::new("/etc")).unwrap();
        let domain = |name: &str| DomainName {
            uuid: format!("uuid of {name}"),
            name: name.to_owned(),
        };
        let Find::Domains { connect, .. } = &settings.patterns[0].find else {
            panic!("{:?}", settings.patterns);
        };
        let all = ["db01", "web 01", "web_01", "web01", "web01-scratch"].map(domain);
        let mut claimed = Claimed::default();
        settings
            .machines
            .values()
            .for_each(|origin| claimed.claim(origin));
        let mut remarks = Vec::new();
        let found = domains_by(
            connect,
            &settings.patterns[0],
            &all,
            &mut claimed,
            &mut remarks,
        );
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(names, ["vm-web01", "vm-web_01"]);
        // Two domains are never one machine, and none goes without a word.
        assert_eq!(remarks.len(), 1, "{remarks:?}");
        assert!(remarks[0].contains("\"web_01\""), "{remarks:?}");
        assert_eq!(
            found["vm-web01"],
            Origin::Domain {
                domain: "uuid of web01".to_owned(),
                connect: None
            }
        );
        // Without a runtime nobody can be asked: it is said, and named machines stay.
        let selection = select(&settings, &Domains::default());
        let names: Vec<&str> = selection.machines.keys().map(String::as_str).collect();
        assert_eq!(names, ["db", "router"]);
        assert_eq!(selection.remarks.len(), 1, "{:?}", selection.remarks);
        assert!(selection.is_partial);
        let written = Settings::parse(&settings.effective().unwrap(), Path::new("/")).unwrap();
        assert_eq!(written.machines, settings.machines);
        assert_eq!(written.patterns, settings.patterns);
    }
}
