//! Notes of guests that are frozen, in files, for whoever comes after a program that was killed with its
//! guards.
//!
//! Not a record of anything else: a note is there from before a guest is frozen until it is thawed, for some
//! hundred milliseconds. None is flushed to the disk: with the host its guests end too.

use super::{Way, remove};
use crate::blocking::blocking;
use crate::durable;
use crate::error::{Error, Kind, Result};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::JoinSet;

/// The longest note that is read, in bytes.
const NOTE_BYTES_MAX: u64 = 64 << 10;
const SUFFIX: &str = ".frozen";

/// A note that a guest is frozen. It stays when it is dropped.
#[derive(Debug)]
pub(super) struct Note {
    path: PathBuf,
}

impl Note {
    /// Notes it in this folder, which is made where it is missing. Blocks.
    pub(super) fn write(folder: &Path, way: &Way) -> Result<Self> {
        let cannot = |error| {
            let text = format!("cannot note in {} that a guest is frozen", folder.display());
            Error::io(text, error)
        };
        durable::create_folder(folder, 0o700).map_err(cannot)?;
        let mut file = tempfile::Builder::new()
            .suffix(SUFFIX)
            .tempfile_in(folder)
            .map_err(cannot)?;
        serde_json::to_writer(&mut file, way).map_err(|error| cannot(error.into()))?;
        let path = file.into_temp_path().keep();
        Ok(Self {
            path: path.map_err(|error| cannot(error.error))?,
        })
    }

    pub(super) fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Takes it away; somebody else may have done so. Blocks.
    pub(super) fn remove(self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                let text = format!("cannot remove {}", self.path.display());
                Err(Error::io(text, error))
            }
            _ => Ok(()),
        }
    }

    /// None for one that was not written to its end: its guest was not frozen yet.
    fn read(&self) -> Result<Option<Way>> {
        use std::io::Read as _;
        let cannot = |error| Error::io(format!("cannot read {}", self.path.display()), error);
        let mut text = String::new();
        std::fs::File::open(&self.path)
            .and_then(|file| file.take(NOTE_BYTES_MAX).read_to_string(&mut text))
            .map_err(cannot)?;
        Ok(serde_json::from_str(&text).ok())
    }
}

/// Thaws the guests that the notes in this folder name, and takes the notes away. Each guest is tried for
/// that long, at least once. To be called when the program that has written them does not run.
///
/// # Errors
/// [`Kind::Unavailable`] where a guest may still be frozen; its note stays.
pub async fn thaw_left(folder: &Path, time_max: Duration) -> Result<()> {
    let folder = folder.to_owned();
    let notes = blocking(move || notes(&folder)).await?;
    let mut guests = JoinSet::new();
    for (note, way) in notes {
        guests.spawn(async move {
            let thawed = way.insist(time_max, || way.thaw()).await;
            if let Ok(count) = thawed {
                tracing::warn!(?way, count, "a guest that was left frozen was thawed");
                remove(Some(note)).await;
            }
            thawed.map_err(|error| {
                let text = format!("a guest may still be frozen: {way:?}");
                Error::new(Kind::Unavailable, text)
                    .caused_by(error)
                    .advise("thaw it by its agent (guest-fsfreeze-thaw, virsh domfsthaw); the next backup of it does so too")
            })
        });
    }
    let mut outcome = Ok(());
    for thawed in guests.join_all().await {
        outcome = outcome.and(thawed.map(drop));
    }
    outcome
}

/// The notes in a folder. Blocks.
fn notes(folder: &Path) -> Result<Vec<(Note, Way)>> {
    let cannot = |error| Error::io(format!("cannot read {}", folder.display()), error);
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(cannot)?,
    };
    let mut notes = Vec::new();
    for entry in entries {
        let entry = entry.map_err(cannot)?;
        if !entry.file_name().to_string_lossy().ends_with(SUFFIX) {
            continue;
        }
        let note = Note::at(&entry.path());
        match note.read()? {
            Some(way) => notes.push((note, way)),
            None => note.remove()?,
        }
    }
    Ok(notes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn notes_stay_until_their_guests_are_thawed_or_gone() {
        let folder = tempfile::tempdir().unwrap();
        let notes_of = || notes(folder.path()).unwrap();
        // No folder, no notes.
        thaw_left(&folder.path().join("none"), Duration::ZERO)
            .await
            .unwrap();
        // A machine that is off.
        let gone = Way::Agent(folder.path().join("gone"));
        Note::write(folder.path(), &gone).unwrap();
        std::fs::write(folder.path().join("torn.frozen"), "{\"agent\":").unwrap();
        assert_eq!(notes_of().len(), 1);
        thaw_left(folder.path(), Duration::ZERO).await.unwrap();
        assert!(notes_of().is_empty());
        assert!(!folder.path().join("torn.frozen").exists());
        // An agent that does not answer.
        let socket = folder.path().join("silent");
        let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let silent = Way::Agent(socket);
        Note::write(folder.path(), &silent).unwrap();
        let error = thaw_left(folder.path(), Duration::from_secs(60))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
        let left: Vec<_> = notes_of().into_iter().map(|(_, way)| way).collect();
        assert_eq!(left, [silent]);
    }
}
