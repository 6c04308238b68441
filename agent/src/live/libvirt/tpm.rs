//! What an emulated TPM remembers: libvirt runs swtpm for it, which keeps it in a file of its own.
//!
//! libvirt has no call for that file; where it lies has been the same since libvirt 4.5
//! (<https://libvirt.org/formatdomain.html#tpm-device>), and swtpm puts a new one in its place with
//! each change, so that it can be read at any time.

use crate::durable;
use crate::error::{Error, Kind, Result};
use std::fs::{self, DirBuilder};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, chown};
use std::path::{Path, PathBuf};

/// Where the system's libvirt keeps what TPMs remember, in a folder for each domain.
const FOLDER: &str = "/var/lib/libvirt/swtpm";
/// Says as whom swtpm runs, where that is not as libvirt was built.
const SETTINGS: &str = "/etc/libvirt/qemu.conf";
/// Whom libvirt is built to run swtpm as, by distribution.
const USERS: [&str; 2] = ["swtpm", "tss"];

/// The folder and the file of a TPM of this version.
fn names(version: &str) -> (&'static str, &'static str) {
    match version {
        "1.2" => ("tpm1.2", "tpm-00.permall"),
        _ => ("tpm2", "tpm2-00.permall"),
    }
}

/// The file of a TPM of this version that a domain has.
pub(super) fn file(uuid: &str, version: &str) -> PathBuf {
    let (folder, file) = names(version);
    [FOLDER, uuid, folder, file].iter().collect()
}

/// The file in a folder that the definition names.
pub(super) fn file_in(folder: &Path, version: &str) -> PathBuf {
    folder.join(names(version).1)
}

/// Puts what a TPM remembers where the domain's swtpm finds it, and makes it swtpm's.
///
/// # Errors
/// [`Kind::Conflict`] where another TPM's memory lies there, [`Kind::Denied`] for those who may not.
pub fn place_tpm(place: &Path, memory: &[u8]) -> Result<()> {
    let cannot = |error| Error::io(format!("cannot write {}", place.display()), error);
    match fs::read(place) {
        Ok(found) if found == memory => return Ok(()),
        Ok(_) => {
            return Err(Error::new(
                Kind::Conflict,
                format!("{} is what another TPM remembers", place.display()),
            )
            .advise("move it away where it is not needed any more"));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(cannot(error)),
    }
    let folder = place.parent().unwrap_or(place);
    let owner = owner(Path::new(FOLDER), Path::new(SETTINGS));
    for (folder, mode) in [(folder.parent(), 0o711), (Some(folder), 0o700)] {
        let Some(folder) = folder else { continue };
        let mut make = DirBuilder::new();
        make.recursive(true)
            .mode(mode)
            .create(folder)
            .map_err(cannot)?;
    }
    durable::replace_file(place, 0o600, |file| file.write_all(memory)).map_err(cannot)?;
    if let Some((user, group)) = owner {
        for made in [place, folder] {
            chown(made, Some(user), Some(group)).map_err(cannot)?;
        }
    }
    Ok(())
}

/// As whom swtpm runs: whose other TPMs are, whom libvirt's settings name, or a user of that kind.
fn owner(folder: &Path, settings: &Path) -> Option<(u32, u32)> {
    let others = fs::read_dir(folder).ok().into_iter().flatten().flatten();
    for other in others {
        for version in ["2.0", "1.2"] {
            let (folder, file) = names(version);
            if let Ok(found) = other.path().join(folder).join(file).metadata() {
                return Some((found.uid(), found.gid()));
            }
        }
    }
    let settings = fs::read_to_string(settings).unwrap_or_default();
    let named = setting(&settings, "swtpm_user");
    let mut users = named.into_iter().chain(USERS);
    let user = users.find_map(|name| nix::unistd::User::from_name(name).ok().flatten())?;
    let group = setting(&settings, "swtpm_group")
        .and_then(|name| nix::unistd::Group::from_name(name).ok().flatten())
        .map_or(user.gid, |group| group.gid);
    Some((user.uid.as_raw(), group.as_raw()))
}

/// The value of `name = "value"`, the last one.
fn setting<'s>(settings: &'s str, name: &str) -> Option<&'s str> {
    let mut values = settings.lines().filter_map(|line| {
        let value = line
            .trim()
            .strip_prefix(name)?
            .trim_start()
            .strip_prefix('=')?;
        value.trim().strip_prefix('"')?.strip_suffix('"')
    });
    values.next_back()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn whose_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let settings = folder.path().join("qemu.conf");
        let all = folder.path().join("swtpm");
        fs::write(&settings, "#swtpm_user = \"tss\"\n").unwrap();
        let as_built = owner(&all, &settings);
        fs::write(
            &settings,
            "swtpm_user = \"daemon\"\n swtpm_user=\"root\" \n",
        )
        .unwrap();
        assert_eq!(owner(&all, &settings), Some((0, 0)));
        assert_ne!(as_built, Some((0, 0)));
        // Whose they really are counts more than what is written.
        let other = all.join("u/tpm2/tpm2-00.permall");
        fs::create_dir_all(other.parent().unwrap()).unwrap();
        fs::write(&other, "").unwrap();
        let own = other.metadata().unwrap();
        fs::write(&settings, "swtpm_user = \"daemon\"\n").unwrap();
        assert_eq!(owner(&all, &settings), Some((own.uid(), own.gid())));
    }

    #[test]
    fn anothers_memory_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("tpm2-00.permall");
        fs::write(&place, "mine").unwrap();
        place_tpm(&place, b"mine").unwrap();
        let error = place_tpm(&place, b"yours").unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict);
        assert_eq!(fs::read(&place).unwrap(), b"mine");
    }
}
