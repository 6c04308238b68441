//! A system call that changes a file, read from the registers and the memory of a stopped thread.

use nix::sys::ptrace;
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

/// A file, whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// The file that is called so now.
    pub fn of(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
        })
    }
}

/// A call on a file below the root that is watched.
#[derive(Debug, Clone)]
pub struct Call {
    /// The how manieth one it is, by its beginning.
    pub number: u64,
    pub what: What,
    pub(super) halved: bool,
}

/// What the call does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Opens a file and makes it, if it is not there.
    Create { path: PathBuf },
    /// Opens a file without a name, in this folder.
    CreateUnnamed { folder: PathBuf },
    /// Writes bytes.
    Write {
        file: FileId,
        path: PathBuf,
        bytes: u64,
    },
    /// Changes a file's length or gives blocks back.
    Reshape { file: FileId, path: PathBuf },
    /// Makes a file, or the names in a folder, durable.
    Sync { file: FileId, path: PathBuf },
    /// Gives a file one more name.
    Link { file: FileId, to: PathBuf },
    /// Renames, which may replace.
    Rename { from: PathBuf, to: PathBuf },
    /// Takes a name away.
    Remove { path: PathBuf },
    /// Makes a folder.
    MakeFolder { path: PathBuf },
    /// Changes owner, mode or times.
    Attributes { path: PathBuf },
}

impl What {
    /// False for what only makes durable: a kill takes nothing from the page cache, so that to be
    /// killed before such a call and behind it is the same.
    pub fn changes(&self) -> bool {
        !matches!(self, Self::Sync { .. })
    }
}

const AT_FDCWD: i32 = libc::AT_FDCWD;

impl Call {
    /// What the thread, stopped before a call, is about to do; `None` where that changes nothing
    /// below `root`.
    pub(super) fn decode(thread: Pid, root: &Path, number: u64) -> Option<Self> {
        let registers = ptrace::getregs(thread).ok()?;
        let look = Look { thread, root };
        let which = registers.orig_rax.cast_signed();
        let args = [
            registers.rdi,
            registers.rsi,
            registers.rdx,
            registers.r10,
            registers.r8,
        ];
        let what = look.what(which, args)?;
        Some(Self {
            number,
            what,
            halved: false,
        })
    }

    /// What came of it: the result, and of an opened file which one it is.
    pub(super) fn outcome(&self, thread: Pid) -> (i64, Option<FileId>) {
        let Ok(registers) = ptrace::getregs(thread) else {
            return (-1, None);
        };
        let result = registers.rax.cast_signed();
        let opens = matches!(self.what, What::Create { .. } | What::CreateUnnamed { .. });
        let opened = (opens && result >= 0)
            .then(|| FileId::of(Path::new(&format!("/proc/{thread}/fd/{result}"))))
            .flatten();
        (result, opened)
    }
}

/// Halves the length of the write that the thread is about to begin.
pub(super) fn halve(thread: Pid) {
    let mut registers = ptrace::getregs(thread).unwrap();
    registers.rdx /= 2;
    ptrace::setregs(thread, registers).unwrap();
}

struct Look<'a> {
    thread: Pid,
    root: &'a Path,
}

impl Look<'_> {
    fn what(&self, which: i64, args: [u64; 5]) -> Option<What> {
        let cwd = args_fd(AT_FDCWD);
        match which {
            libc::SYS_open => self.opened(self.path(cwd, args[0])?, args[1]),
            libc::SYS_creat => self.opened(self.path(cwd, args[0])?, libc::O_CREAT as u64),
            libc::SYS_openat => self.opened(self.path(args[0], args[1])?, args[2]),
            libc::SYS_openat2 => panic!("openat2: not decoded here"),
            libc::SYS_io_uring_setup => {
                // QEMU's tools ask for it, to wait for their files; they write by calls.
                let program = std::fs::read_link(self.process("exe")).ok()?;
                let is_ours = program == Path::new(env!("CARGO_BIN_EXE_tidegate"));
                assert!(!is_ours, "io_uring: its writes cannot be seen");
                None
            }
            libc::SYS_write | libc::SYS_pwrite64 => {
                let (file, path) = self.file(args[0])?;
                let bytes = args[2];
                Some(What::Write { file, path, bytes })
            }
            // Vectors, whose length is not looked up: they are never halved.
            libc::SYS_writev | libc::SYS_pwritev | libc::SYS_pwritev2 => {
                let (file, path) = self.file(args[0])?;
                Some(What::Write {
                    file,
                    path,
                    bytes: 1,
                })
            }
            libc::SYS_sendfile | libc::SYS_ftruncate | libc::SYS_fallocate => self.reshape(args[0]),
            libc::SYS_copy_file_range | libc::SYS_splice => self.reshape(args[2]),
            libc::SYS_truncate => {
                let path = self.path(cwd, args[0])?;
                let file = FileId::of(&path)?;
                Some(What::Reshape { file, path })
            }
            libc::SYS_fsync | libc::SYS_fdatasync => {
                let (file, path) = self.file(args[0])?;
                Some(What::Sync { file, path })
            }
            libc::SYS_link => self.link(cwd, args[0], cwd, args[1]),
            libc::SYS_linkat => self.link(args[0], args[1], args[2], args[3]),
            libc::SYS_rename => self.rename(cwd, args[0], cwd, args[1]),
            libc::SYS_renameat | libc::SYS_renameat2 => {
                self.rename(args[0], args[1], args[2], args[3])
            }
            libc::SYS_unlink | libc::SYS_rmdir => {
                let path = self.path(cwd, args[0])?;
                Some(What::Remove { path })
            }
            libc::SYS_unlinkat => {
                let path = self.path(args[0], args[1])?;
                Some(What::Remove { path })
            }
            libc::SYS_mkdir => {
                let path = self.path(cwd, args[0])?;
                Some(What::MakeFolder { path })
            }
            libc::SYS_mkdirat => {
                let path = self.path(args[0], args[1])?;
                Some(What::MakeFolder { path })
            }
            libc::SYS_symlink | libc::SYS_symlinkat => panic!("symlink: not decoded here"),
            libc::SYS_fchmod | libc::SYS_fchown => {
                let (_, path) = self.file(args[0])?;
                Some(What::Attributes { path })
            }
            libc::SYS_chmod | libc::SYS_chown => {
                let path = self.path(cwd, args[0])?;
                Some(What::Attributes { path })
            }
            libc::SYS_fchmodat | libc::SYS_fchownat => {
                let path = self.path(args[0], args[1])?;
                Some(What::Attributes { path })
            }
            _ => None,
        }
    }

    fn opened(&self, path: PathBuf, flags: u64) -> Option<What> {
        let has =
            |flag: i32| flags & u64::from(flag.cast_unsigned()) == u64::from(flag.cast_unsigned());
        if has(libc::O_TMPFILE) {
            return Some(What::CreateUnnamed { folder: path });
        }
        if has(libc::O_TRUNC)
            && let Some(file) = FileId::of(&path)
        {
            return Some(What::Reshape { file, path });
        }
        // To open what is there changes nothing.
        (has(libc::O_CREAT) && !path.exists()).then_some(What::Create { path })
    }

    fn reshape(&self, descriptor: u64) -> Option<What> {
        let (file, path) = self.file(descriptor)?;
        Some(What::Reshape { file, path })
    }

    fn link(&self, old_at: u64, old: u64, new_at: u64, new: u64) -> Option<What> {
        let to = self.path(new_at, new)?;
        let text = self.text(old)?;
        let file = match text.strip_prefix("/proc/self/fd") {
            // A file without a name is linked by its descriptor.
            Ok(number) => FileId::of(&self.process("fd").join(number))?,
            Err(_) => FileId::of(&self.path(old_at, old)?)?,
        };
        Some(What::Link { file, to })
    }

    fn rename(&self, old_at: u64, old: u64, new_at: u64, new: u64) -> Option<What> {
        let (from, to) = (self.path(old_at, old)?, self.path(new_at, new)?);
        Some(What::Rename { from, to })
    }

    fn process(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.thread))
    }

    /// The file behind a descriptor, and its name below the root; files without a name have one
    /// that ends with ` (deleted)`.
    fn file(&self, descriptor: u64) -> Option<(FileId, PathBuf)> {
        let descriptor = fd(descriptor);
        let link = self.process("fd").join(descriptor.to_string());
        let path = std::fs::read_link(&link).ok()?;
        if !path.starts_with(self.root) {
            return None;
        }
        Some((FileId::of(&link)?, path))
    }

    /// A path among the arguments, below the root.
    fn path(&self, at: u64, address: u64) -> Option<PathBuf> {
        let text = self.text(address)?;
        let base = match fd(at) {
            _ if text.is_absolute() => PathBuf::new(),
            AT_FDCWD => std::fs::read_link(self.process("cwd")).ok()?,
            descriptor => {
                std::fs::read_link(self.process("fd").join(descriptor.to_string())).ok()?
            }
        };
        let mut path = PathBuf::new();
        for component in base.join(text).components() {
            match component {
                Component::CurDir => {}
                Component::ParentDir => drop(path.pop()),
                other => path.push(other),
            }
        }
        path.starts_with(self.root).then_some(path)
    }

    /// A string in the thread's memory.
    fn text(&self, address: u64) -> Option<PathBuf> {
        let memory = File::open(self.process("mem")).ok()?;
        let mut bytes = vec![0; 4096];
        let mut length = 0;
        // Up to the end of a page at a time: the next one may not be mapped.
        while length < bytes.len() {
            let at = address + length as u64;
            let room = usize::try_from(4096 - at % 4096).ok()?;
            let end = bytes.len().min(length + room);
            let read = memory.read_at(&mut bytes[length..end], at).ok()?;
            if let Some(zero) = bytes[length..length + read]
                .iter()
                .position(|byte| *byte == 0)
            {
                bytes.truncate(length + zero);
                return Some(PathBuf::from(OsString::from_vec(bytes)));
            }
            if read == 0 {
                return None;
            }
            length += read;
        }
        None
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the kernel takes the lower half"
)]
fn fd(argument: u64) -> i32 {
    argument as i32
}

fn args_fd(descriptor: i32) -> u64 {
    i64::from(descriptor).cast_unsigned()
}
