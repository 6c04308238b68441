//! What a power cut would leave of the files that a traced process has touched.
//!
//! The worst case that POSIX allows: of a file only what was written before an `fsync` of it began
//! that has ended; a name only where its folder was fsynced after it was made, and so on upwards.
//! What stood there before the first call that was noted is durable. Names that were taken away are
//! taken to stay away: nothing here depends on that.

use super::{Call, FileId, Moment, What};
use std::collections::{BTreeMap, HashMap};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

/// The state of the disk below the kernel's cache, one call after the other. Lives as long as the
/// machine: several processes may be noted one after the other.
#[derive(Debug, Default)]
pub struct Disk {
    now: u64,
    files: HashMap<FileId, Content>,
    names: BTreeMap<PathBuf, Name>,
    syncs: HashMap<u64, Cover>,
}

/// A file's bytes.
#[derive(Debug, Default, Clone, Copy)]
struct Content {
    changed: u64,
    changes_under_way: u64,
    /// All changes that ended before this moment are durable.
    synced: u64,
}

/// A name that was made since the beginning.
#[derive(Debug)]
struct Name {
    /// None for folders, whose content is their names.
    file: Option<FileId>,
    made: u64,
    durable: bool,
}

/// What a sync that has begun makes durable when it ends.
#[derive(Debug)]
struct Cover {
    content: Option<(FileId, u64)>,
    names: Vec<(PathBuf, u64)>,
}

impl Disk {
    /// The process has ended. The next one numbers its calls anew.
    pub fn next_process(&mut self) {
        self.syncs.clear();
        for content in self.files.values_mut() {
            content.changes_under_way = 0;
        }
    }

    pub fn note(&mut self, call: &Call, moment: Moment) {
        self.now += 1;
        match moment {
            Moment::Begins => self.begins(call),
            Moment::Ends { result, opened } => self.ends(call, result, opened),
        }
    }

    fn begins(&mut self, call: &Call) {
        match &call.what {
            What::Write { file, .. } | What::Reshape { file, .. } => {
                let content = self.files.entry(*file).or_default();
                content.changed = self.now;
                content.changes_under_way += 1;
            }
            What::Sync { file, path } => {
                let content = match self.files.get(file) {
                    Some(content) if content.changes_under_way == 0 => Some((*file, self.now)),
                    _ => None,
                };
                let names = self.names.iter();
                let names = names.filter(|(name, _)| name.parent() == Some(path));
                let names = names.map(|(name, there)| (name.clone(), there.made));
                let names = names.collect();
                self.syncs.insert(call.number, Cover { content, names });
            }
            _ => {}
        }
    }

    fn ends(&mut self, call: &Call, result: i64, opened: Option<FileId>) {
        if let What::Write { file, .. } | What::Reshape { file, .. } = &call.what
            && let Some(content) = self.files.get_mut(file)
        {
            content.changes_under_way -= 1;
        }
        if result < 0 {
            return;
        }
        match &call.what {
            What::Create { path } => {
                self.fresh(opened);
                self.name(path, opened);
            }
            What::CreateUnnamed { .. } => self.fresh(opened),
            What::Link { file, to } => self.name(to, Some(*file)),
            What::Rename { from, to } => {
                let file = self.names.remove(from).and_then(|name| name.file);
                self.name(to, file);
            }
            What::Remove { path } => drop(self.names.remove(path)),
            What::MakeFolder { path } => self.name(path, None),
            What::Sync { .. } => {
                if let Some(cover) = self.syncs.remove(&call.number) {
                    self.synced(cover);
                }
            }
            What::Write { .. } | What::Reshape { .. } | What::Attributes { .. } => {}
        }
    }

    fn fresh(&mut self, file: Option<FileId>) {
        if let Some(file) = file {
            let changed = self.now;
            let content = Content {
                changed,
                ..Content::default()
            };
            self.files.insert(file, content);
        }
    }

    fn name(&mut self, path: &Path, file: Option<FileId>) {
        let name = Name {
            file,
            made: self.now,
            durable: false,
        };
        self.names.insert(path.to_owned(), name);
    }

    fn synced(&mut self, cover: Cover) {
        if let Some((file, moment)) = cover.content
            && let Some(content) = self.files.get_mut(&file)
        {
            content.synced = content.synced.max(moment);
        }
        for (path, made) in cover.names {
            if let Some(name) = self.names.get_mut(&path)
                && name.made == made
            {
                name.durable = true;
            }
        }
    }

    /// Whether the name is durable, and every folder's above it.
    fn is_named(&self, path: &Path) -> bool {
        path.ancestors()
            .filter_map(|at| self.names.get(at))
            .all(|name| name.durable)
    }

    fn is_whole(&self, file: FileId) -> bool {
        self.files.get(&file).is_none_or(|content| {
            content.changes_under_way == 0 && content.synced > content.changed
        })
    }

    /// Files and folders below `folder` that a power cut would take away or empty, by now.
    pub fn at_risk<'a>(&'a self, folder: &'a Path) -> impl Iterator<Item = &'a Path> {
        self.names
            .iter()
            .filter(move |(path, _)| path.starts_with(folder))
            .filter(|(path, name)| {
                !self.is_named(path) || name.file.is_some_and(|file| !self.is_whole(file))
            })
            .map(|(path, _)| path.as_path())
    }

    /// Whether all bytes of the file are durable, by whatever names it goes.
    pub fn holds(&self, path: &Path) -> bool {
        FileId::of(path).is_some_and(|file| self.is_whole(file))
    }

    /// Whether all bytes of the file that was made under this name are durable.
    pub fn holds_made(&self, path: &Path) -> bool {
        let name = self.names.get(path);
        name.is_some_and(|name| name.file.is_some_and(|file| self.is_whole(file)))
    }

    /// How many names below `folder` were made since the beginning, and still stand.
    pub fn names_made(&self, folder: &Path) -> usize {
        self.names
            .keys()
            .filter(|path| path.starts_with(folder))
            .count()
    }

    /// Does to the real files below `folder` what the power cut would: names that are not durable
    /// go, bytes that are not durable are gone. From now on, what is left is durable.
    pub fn cut(&mut self, folder: &Path) {
        let at_risk: Vec<PathBuf> = self.at_risk(folder).map(Path::to_path_buf).collect();
        for path in &at_risk {
            if !path.exists() {
                // It went with its folder.
            } else if !self.is_named(path) && path.is_dir() {
                std::fs::remove_dir_all(path).unwrap();
            } else if !self.is_named(path) {
                std::fs::remove_file(path).unwrap();
            } else {
                let file = OpenOptions::new().write(true).open(path).unwrap();
                file.set_len(0).unwrap();
            }
        }
        self.names.retain(|path, _| !path.starts_with(folder));
    }
}
