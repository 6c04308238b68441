//! The folder that libvirt's QEMU shares with us for the time of a snapshot: a socket, and what the
//! guest overwrites.
//!
//! QEMU runs as a user of its own, which has to make files there; we may be another. So the folder is
//! open to all and protected by its name, which nobody can list and nobody guess.

use crate::error::{Error, Kind, Result};
use crate::live::scratch::{NEEDED, SCRATCH_BYTES_MIN, ScratchSettings, lacking, no_space};
use std::fs::File;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use tempfile::TempDir;

/// Characters of a name that nobody guesses.
const NAME_CHARACTERS: usize = 32;
/// The folder of all snapshots' folders, inside the scratch folder.
const PARENT: &str = "tidegate-snapshots";

/// The socket in a snapshot's folder.
const SOCKET: &str = "nbd";
/// Longest path of a socket, in bytes: unix(7), `sun_path` without the zero at its end.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The folder of one snapshot; it goes when dropped.
#[derive(Debug)]
pub(super) struct Shared {
    folder: TempDir,
    settings: ScratchSettings,
    disks: usize,
}

impl Shared {
    /// Makes the folder. Blocking.
    pub(super) fn new(settings: ScratchSettings, disks: usize) -> Result<Self> {
        if settings.bytes_max < SCRATCH_BYTES_MIN {
            return Err(Error::new(
                Kind::Config,
                format!(
                    "{} bytes of scratch space are too few: {SCRATCH_BYTES_MIN} at least",
                    settings.bytes_max
                ),
            ));
        }
        let parent = settings.folder.join(PARENT);
        let socket_bytes = parent.as_os_str().len() + NAME_CHARACTERS + SOCKET.len() + 2;
        if socket_bytes > SOCKET_PATH_BYTES_MAX {
            return Err(Error::new(
                Kind::Config,
                format!(
                    "the scratch folder {} makes the path of QEMU's socket {socket_bytes} bytes long, \
                     {SOCKET_PATH_BYTES_MAX} at most",
                    settings.folder.display(),
                ),
            )
            .advise("name a folder with a shorter path: --scratch DIR, or service.scratch_dir"));
        }
        let cannot =
            |error| Error::io(format!("cannot make {}", parent.display()), error).advise(NEEDED);
        match std::fs::create_dir(&parent) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(cannot(error));
            }
            _ => {}
        }
        // Others pass through it, and see nothing in it.
        let pass = std::fs::Permissions::from_mode(0o711);
        std::fs::set_permissions(&parent, pass).map_err(cannot)?;
        let folder = tempfile::Builder::new()
            .prefix("")
            .rand_bytes(NAME_CHARACTERS)
            .tempdir_in(&parent)
            .map_err(cannot)?;
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(folder.path(), open).map_err(cannot)?;
        let shared = Self {
            folder,
            settings,
            disks,
        };
        match shared.lacking()? {
            None => Ok(shared),
            Some(why) => Err(no_space(why)),
        }
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path().join(SOCKET)
    }

    /// Where libvirt keeps what the guest overwrites on the disk with that number.
    pub(super) fn file(&self, disk: usize) -> PathBuf {
        self.folder.path().join(format!("{disk}.qcow2"))
    }

    /// True of a socket in a folder of ours, whichever run it was of.
    pub(super) fn is_ours(socket: &str) -> bool {
        socket.contains(&format!("/{PARENT}/"))
    }

    /// Why the snapshot has to be given up, where it has to. Blocking.
    pub(super) fn exceeded(&self) -> Result<Option<String>> {
        let used_bytes: u64 = (0..self.disks)
            .filter_map(|disk| std::fs::metadata(self.file(disk)).ok())
            .map(|file| file.blocks().saturating_mul(512))
            .sum();
        if used_bytes > self.settings.bytes_max {
            return Ok(Some(format!(
                "the snapshot takes {used_bytes} bytes of scratch space, of {} allowed",
                self.settings.bytes_max
            )));
        }
        self.lacking()
    }

    fn lacking(&self) -> Result<Option<String>> {
        let folder = self.folder.path();
        let there = File::open(folder).map_err(|error| {
            Error::io(
                format!("cannot open the scratch folder {}", folder.display()),
                error,
            )
        })?;
        lacking(&self.settings, &there)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_path_that_is_too_long_for_a_socket_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = ScratchSettings {
            folder: folder.path().to_owned(),
            reserve_bytes: 0,
            bytes_max: SCRATCH_BYTES_MIN,
        };
        let shared = Shared::new(settings.clone(), 1).unwrap();
        std::os::unix::net::UnixListener::bind(shared.socket()).unwrap();
        let used = shared.socket().as_os_str().len();
        // The longest that a socket fits into.
        let longest = folder
            .path()
            .join("x".repeat(SOCKET_PATH_BYTES_MAX - used - 1));
        std::fs::create_dir(&longest).unwrap();
        settings.folder.clone_from(&longest);
        let shared = Shared::new(settings.clone(), 1).unwrap();
        std::os::unix::net::UnixListener::bind(shared.socket()).unwrap();
        settings.folder = longest.with_file_name("x".repeat(SOCKET_PATH_BYTES_MAX - used));
        std::fs::create_dir(&settings.folder).unwrap();
        let error = Shared::new(settings, 1).unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
        assert!(error.to_string().contains("108 bytes"), "{error}");
    }
}
