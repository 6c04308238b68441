//! Where machines are found, as written → as valid.

use super::at;
use crate::config::{from_folder, place_from_folder};
use crate::error::{Error, Result};
use crate::host::config::written;
use crate::host::config::{Find, Origin, Pattern, Reading, Settings};
use crate::host::glob;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const NAME_TEMPLATE: &str = "{stem}";
const NAME_TEMPLATE_OF_DOMAINS: &str = "{name}";

pub(super) fn machine(key: &str, written: &written::Machine, folder: &Path) -> Result<Origin> {
    let of_images = || {
        reading(
            key,
            written.format.as_deref(),
            &written.backing_folders,
            written.skip_check,
            folder,
        )
    };
    if written.connect.is_some() && written.vm.is_none() {
        return Err(at(
            &format!("{key}.connect"),
            "expected only beside vm, found without",
        ));
    }
    if written.vm.is_some() || written.qmp.is_some() {
        only_of_images(
            key,
            &written.format,
            &written.backing_folders,
            written.skip_check,
        )?;
    }
    match (written.images.as_slice(), &written.vm, &written.qmp) {
        ([], None, None) => Err(at(
            &format!("{key}.images"),
            "expected at least one image, or vm or qmp in place of it, found none",
        )),
        ([], Some(domain), None) => Ok(Origin::Domain {
            domain: not_empty(&format!("{key}.vm"), domain)?,
            connect: written.connect.clone(),
        }),
        ([], None, Some(socket)) => Ok(Origin::Monitor(from_folder(folder, socket))),
        (images, None, None) => Ok(Origin::Images {
            images: images
                .iter()
                .map(|path| from_folder(folder, path))
                .collect(),
            reading: of_images()?,
        }),
        _ => Err(at(key, "expected one of images, vm and qmp, found several")),
    }
}

fn not_empty(key: &str, text: &str) -> Result<String> {
    match text.trim() {
        "" => Err(at(key, "expected a name, found nothing")),
        text => Ok(text.to_owned()),
    }
}

pub(super) fn pattern(key: &str, written: &written::Pattern, folder: &Path) -> Result<Pattern> {
    let paths = |field: &str, pattern: &str| -> Result<String> {
        let pattern = place_from_folder(folder, pattern);
        glob::check_path(&pattern).map_err(|fault| at(&format!("{key}.{field}"), fault))?;
        Ok(pattern)
    };
    let is_of_domains = written.vm.is_some() || written.tag.is_some();
    if is_of_domains {
        only_of_images(
            key,
            &written.format,
            &written.backing_folders,
            written.skip_check,
        )?;
    } else if written.connect.is_some() {
        return Err(at(
            &format!("{key}.connect"),
            "expected only beside vm or tag, found without",
        ));
    }
    let (parts, default, find, exclude) = match (&written.pattern, is_of_domains) {
        (Some(pattern), false) => {
            let reading = reading(
                key,
                written.format.as_deref(),
                &written.backing_folders,
                written.skip_check,
                folder,
            )?;
            let pattern = paths("pattern", pattern)?;
            let exclude = written.exclude.iter();
            let exclude = exclude.map(|pattern| paths("exclude", pattern));
            (
                &["{stem}", "{folder}"][..],
                NAME_TEMPLATE,
                Find::Images { pattern, reading },
                exclude.collect::<Result<_>>()?,
            )
        }
        (None, true) => (
            &["{name}"][..],
            NAME_TEMPLATE_OF_DOMAINS,
            Find::Domains {
                pattern: not_empty(&format!("{key}.vm"), written.vm.as_deref().unwrap_or("*"))?,
                tag: match &written.tag {
                    Some(tag) => Some(not_empty(&format!("{key}.tag"), tag)?),
                    None => None,
                },
                connect: written.connect.clone(),
            },
            written.exclude.clone(),
        ),
        _ => return Err(at(key, "expected one of pattern, and vm or tag")),
    };
    let name = written.name.as_deref().unwrap_or(default);
    let mut left = name.to_owned();
    for part in parts {
        left = left.replace(part, "");
    }
    if left == name || left.contains(['{', '}']) {
        return Err(at(
            &format!("{key}.name"),
            format!(
                "expected a text with {} in it, found {name:?}",
                parts.join(" or ")
            ),
        ));
    }
    Ok(Pattern {
        find,
        name: name.to_owned(),
        exclude,
    })
}

fn reading(
    key: &str,
    format: Option<&str>,
    backing_folders: &[PathBuf],
    skip_check: bool,
    folder: &Path,
) -> Result<Reading> {
    let format = format.map(|text| {
        text.parse()
            .map_err(|error: Error| at(&format!("{key}.format"), error.to_string()))
    });
    Ok(Reading {
        format: format.transpose()?,
        backing_folders: backing_folders
            .iter()
            .map(|path| from_folder(folder, path))
            .collect(),
        skip_check,
    })
}

/// A machine that runs has one name here, and a policy that it can follow.
pub(super) fn machines_are_one_each(settings: &Settings) -> Result<()> {
    let mut names: BTreeMap<String, &str> = BTreeMap::new();
    for (name, origin) in &settings.machines {
        let (key, what) = match origin {
            Origin::Images { .. } => continue,
            Origin::Domain { domain, connect } => {
                let connect = connect.as_deref().unwrap_or_default();
                ("vm", format!("{domain} {connect}"))
            }
            Origin::Monitor(socket) => ("qmp", socket.display().to_string()),
        };
        let key = format!("machine.{name}.{key}");
        if let Some(other) = names.insert(what, name) {
            return Err(at(
                &key,
                format!("expected another one than machine.{other} has, found the same"),
            ));
        }
    }
    Ok(())
}

/// Keys that speak of images, where there are none.
fn only_of_images(
    key: &str,
    format: &Option<String>,
    backing_folders: &[PathBuf],
    skip_check: bool,
) -> Result<()> {
    let named = [
        ("format", format.is_some()),
        ("backing_folders", !backing_folders.is_empty()),
        ("skip_check", skip_check),
    ];
    match named.iter().find(|(_, is_named)| *is_named) {
        None => Ok(()),
        Some((field, _)) => Err(at(
            &format!("{key}.{field}"),
            "expected only beside images, found without",
        )),
    }
}
