//! Walks a folder in the order in which object stores list keys.
//!
//! Keys are ordered by their bytes as a whole, so `a-b` comes before `a/b`: a folder sorts as its
//! name with a slash. Holds one folder's names at a time for each level, not the whole tree.

use object_store::ObjectMeta;
use object_store::path::Path as Key;
use std::io;
use std::path::PathBuf;

/// Deeper folders are none of a repository's; also ends a cycle of symbolic links.
const DEPTH_MAX: usize = 8;

/// A walk under way.
pub(super) struct Walk {
    root: PathBuf,
    /// Keys up to and with this one are left out.
    after: String,
    /// Names still to be visited, the next one last; one level each, innermost last.
    levels: Vec<Vec<Name>>,
    /// Where to start, until the first step.
    start: Option<String>,
}

/// A file's key, or a folder's with a slash at its end.
struct Name {
    key: String,
}

impl Walk {
    pub(super) fn new(root: PathBuf, prefix: String, after: String) -> Self {
        Self {
            root,
            after,
            levels: Vec::new(),
            start: Some(prefix),
        }
    }

    /// The next keys, at most `keys_max`; none at the end.
    pub(super) fn take(&mut self, keys_max: usize) -> io::Result<Vec<ObjectMeta>> {
        if let Some(prefix) = self.start.take() {
            let folder = if prefix.is_empty() {
                prefix
            } else {
                format!("{prefix}/")
            };
            self.enter(&folder)?;
        }
        let mut batch = Vec::new();
        while batch.len() < keys_max {
            let Some(level) = self.levels.last_mut() else {
                break;
            };
            let Some(name) = level.pop() else {
                self.levels.pop();
                continue;
            };
            if name.key.ends_with('/') {
                if self.levels.len() < DEPTH_MAX {
                    self.enter(&name.key)?;
                }
            } else if let Some(meta) = self.meta(&name.key)? {
                batch.push(meta);
            }
        }
        Ok(batch)
    }

    /// Pushes the names in a folder (its key ends with a slash, or is empty for the root).
    fn enter(&mut self, folder: &str) -> io::Result<()> {
        let listing = match std::fs::read_dir(self.root.join(folder)) {
            Ok(listing) => listing,
            // Deleted while we walked, never there, or an object of that very name.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in listing {
            let entry = entry?;
            let file_name = entry.file_name();
            // Unfinished files start with a dot; names that are not UTF-8 are no keys.
            let Some(name) = file_name.to_str().filter(|name| !name.starts_with('.')) else {
                continue;
            };
            let mut file_type = entry.file_type()?;
            if file_type.is_symlink() {
                match std::fs::metadata(entry.path()) {
                    Ok(metadata) => file_type = metadata.file_type(),
                    Err(_) => continue,
                }
            }
            let key = if file_type.is_dir() {
                format!("{folder}{name}/")
            } else if file_type.is_file() {
                format!("{folder}{name}")
            } else {
                continue;
            };
            if self.is_wanted(&key) {
                names.push(Name { key });
            }
        }
        names.sort_unstable_by(|a, b| b.key.cmp(&a.key));
        self.levels.push(names);
        Ok(())
    }

    /// Whether the key, or for a folder some key in it, comes after the start.
    fn is_wanted(&self, key: &str) -> bool {
        key > self.after.as_str() || (key.ends_with('/') && self.after.starts_with(key))
    }

    fn meta(&self, key: &str) -> io::Result<Option<ObjectMeta>> {
        // A name that cannot be a key was not put here by us.
        let Ok(location) = Key::parse(key) else {
            return Ok(None);
        };
        match std::fs::metadata(self.root.join(key)) {
            Ok(metadata) => super::meta_of(location, &metadata).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
