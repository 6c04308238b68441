//! New files and folders that survive a power cut once the call that made them has returned.
//!
//! Not for files that are changed in place, and not for caches. The invariants: a file appears under
//! its name whole or not at all, and replaces another by [`replace_file`] only; when the call
//! returns, its bytes, its name and every folder that was made for it are on disk. The order:
//!
//! 1. the bytes go to a file without a name (`O_TMPFILE`), which is fsynced;
//! 2. the file is linked to its name: atomic, and refused where the name is taken;
//! 3. the folder is fsynced, also when the name was taken: the other's link may be fresh.
//!
//! A kill at any point leaves either the whole file or nothing. Where the file system knows no
//! files without names (NFS, some FUSE file systems), step 1 uses a file whose name starts with a
//! dot; such a file can be left behind by a kill.

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Makes the file `path` of what `write` puts into it. `mode` is what its owner and others may do,
/// before the process's mask.
///
/// # Errors
/// Of kind `AlreadyExists` where the name is taken: what is there is left alone.
pub fn create_file(
    path: &Path,
    mode: u32,
    write: impl Fn(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let folder = folder_of(path);
    let write_and_sync = |file: &mut File| {
        write(file)?;
        file.sync_all()
    };
    let created = match unnamed(folder, mode)? {
        Some(mut file) => write_and_sync(&mut file).and_then(|()| link_unnamed(&file, path)),
        None => create_by_name(path, mode, write_and_sync),
    };
    match created {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        created => fsync_folder(folder).and(created),
    }
}

/// Puts a new file in the place of `path`, whether there was one or not: whoever opens it finds the
/// old one or the new one, whole, also after a power cut.
///
/// A kill can leave a file whose name starts with a dot.
pub fn replace_file(
    path: &Path,
    mode: u32,
    write: impl Fn(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let folder = folder_of(path);
    let staged = folder.join(staging_name());
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&staged)?;
    let replaced = write(&mut file)
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&staged, path));
    if replaced.is_err() {
        remove_staged(&staged);
    }
    replaced.and_then(|()| fsync_folder(folder))
}

/// Makes the folder `path` and those above it that are missing, `mode` applying to the last one,
/// and their names durable. Says whether the folder is new.
pub fn create_folder(path: &Path, mode: u32) -> io::Result<bool> {
    if path.is_dir() {
        return Ok(false);
    }
    let above = folder_of(path);
    if !above.is_dir() {
        create_folder(above, 0o777)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {}
        // Another process was faster; its fsync may be to come.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {
            fsync_folder_if_readable(above)?;
            return Ok(false);
        }
        Err(error) => return Err(error),
    }
    fsync_folder_if_readable(above)?;
    Ok(true)
}

/// Makes the names in a folder durable.
pub fn fsync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The same, for a folder that may be somebody else's: one in which we may make names, and which we
/// may not read.
pub fn fsync_folder_if_readable(folder: &Path) -> io::Result<()> {
    match fsync_folder(folder) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        synced => synced,
    }
}

/// The folder that `path` is in, or shall be.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// A file without a name; `None` where the file system has no such files.
fn unnamed(folder: &Path, mode: u32) -> io::Result<Option<File>> {
    use rustix::io::Errno;
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::open(folder, flags, Mode::from_raw_mode(mode)) {
        Ok(file) => Ok(Some(File::from(file))),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn link_unnamed(file: &File, path: &Path) -> io::Result<()> {
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(
        CWD,
        source,
        CWD,
        path,
        AtFlags::SYMLINK_FOLLOW,
    )?)
}

/// The same with a file that has a name until it is linked to its own.
fn create_by_name(
    path: &Path,
    mode: u32,
    write: impl Fn(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let staged = folder_of(path).join(staging_name());
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&staged)?;
    let outcome = write(&mut file).and_then(|()| name_once(&staged, path));
    remove_staged(&staged);
    outcome
}

/// Removes a staged file; it is gone already where it was renamed.
fn remove_staged(staged: &Path) {
    match std::fs::remove_file(staged) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %staged.display(), "could not remove a temporary file: {error}");
        }
        _ => {}
    }
}

/// Gives the staged file its name unless that is taken.
fn name_once(staged: &Path, path: &Path) -> io::Result<()> {
    use rustix::io::Errno;
    match rustix::fs::linkat(CWD, staged, CWD, path, AtFlags::empty()) {
        // No hard links here (FAT, some network file systems).
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK) => {
            rename_unless_taken(staged, path)
        }
        other => Ok(other?),
    }
}

fn rename_unless_taken(staged: &Path, path: &Path) -> io::Result<()> {
    Ok(rustix::fs::renameat_with(
        CWD,
        staged,
        CWD,
        path,
        RenameFlags::NOREPLACE,
    )?)
}

/// Starts with a dot, so that no listing of objects shows it.
fn staging_name() -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let unique = NEXT.fetch_add(1, Ordering::Relaxed);
    let pid = std::process::id();
    // Two hosts may share the folder: their process ids may be equal, their nonces are not.
    let mut nonce = [0; 8];
    let nonce = match aws_lc_rs::rand::fill(&mut nonce) {
        Ok(()) => hex::encode(nonce),
        Err(_) => String::from("0"),
    };
    PathBuf::from(format!(".put-{pid}-{unique}-{nonce}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_file_is_created_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        create_file(&path, 0o600, |file| file.write_all(b"first")).unwrap();
        let again = create_file(&path, 0o600, |file| file.write_all(b"second"));
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(folder.path()), ["key"]);
    }

    #[test]
    fn a_write_that_fails_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let fails = |file: &mut File| {
            file.write_all(b"half")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        };
        let path = folder.path().join("key");
        assert!(create_file(&path, 0o600, fails).is_err());
        assert!(create_by_name(&path, 0o600, fails).is_err());
        assert_eq!(names(folder.path()), [""; 0]);
    }

    #[test]
    fn a_replaced_file_is_the_old_one_or_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("certificate");
        replace_file(&path, 0o644, |file| file.write_all(b"first")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        // Whoever has the old one open keeps reading it: it was not written over.
        let mut old = File::open(&path).unwrap();
        replace_file(&path, 0o600, |file| file.write_all(b"second")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let mut text = String::new();
        io::Read::read_to_string(&mut old, &mut text).unwrap();
        assert_eq!(text, "first");
        let failed = replace_file(&path, 0o644, |file| {
            file.write_all(b"half")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(names(folder.path()), ["certificate"]);
    }

    /// The way of file systems without nameless files.
    #[test]
    fn creating_by_name_creates_once_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("object");
        create_by_name(&path, 0o666, |file| file.write_all(b"first")).unwrap();
        let again = create_by_name(&path, 0o666, |file| file.write_all(b"second"));
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        assert_eq!(names(folder.path()), ["object"]);
    }

    /// The way of file systems without hard links.
    #[test]
    fn renaming_never_replaces() {
        let folder = tempfile::tempdir().unwrap();
        let [staged, path] = ["staged", "object"].map(|name| folder.path().join(name));
        std::fs::write(&staged, b"first").unwrap();
        rename_unless_taken(&staged, &path).unwrap();
        std::fs::write(&staged, b"second").unwrap();
        let again = rename_unless_taken(&staged, &path);
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
    }

    #[test]
    fn a_nameless_file_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = unnamed(folder.path(), 0o666)
            .unwrap()
            .expect("temporary folders lie on file systems that have nameless files");
        file.write_all(b"bytes").unwrap();
        assert_eq!(names(folder.path()), [""; 0]);
        link_unnamed(&file, &folder.path().join("object")).unwrap();
        assert_eq!(names(folder.path()), ["object"]);
        let taken = link_unnamed(&file, &folder.path().join("object"));
        assert_eq!(taken.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn folders_are_made_with_those_above_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        assert!(create_folder(&path, 0o700).unwrap());
        assert!(!create_folder(&path, 0o700).unwrap());
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::write(folder.path().join("file"), b"").unwrap();
        assert!(create_folder(&folder.path().join("file"), 0o700).is_err());
    }
}
