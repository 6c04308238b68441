//! What a child of ours may still do: read the files that it is given, and little else.
//!
//! Not a virtual machine: a hole in the kernel remains one. QEMU parses what strangers wrote, so we
//! expect it to be taken over, and leave it nothing to take. The invariants, each by a means of its
//! own, so that a kernel that lacks one keeps the others:
//!
//! | A child | by |
//! |---|---|
//! | gains no privilege, is never swapped for another program, is killed with us | `no_new_privs`, Landlock, parent's death signal |
//! | opens the granted files and the system's libraries, nothing else; writes only where it must | Landlock, [`RLIMIT_FSIZE`](Resource::Fsize), no capability but to read |
//! | reaches no network and no other process | [`filter`], a network namespace of its own, Landlock |
//! | asks little of the kernel | [`filter`] |
//! | takes bounded memory and few handles, and inherits none | limits, `close_range` |
//!
//! All that allocates is prepared before the fork; between fork and exec there are system calls only.

mod filter;

use crate::error::{Error, Kind, Result};
use filter::Filter;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, Scope, make_bitflags,
};
use rustix::process::{Pid, Resource, Rlimit, Signal};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

/// What a child may allocate, in bytes: the tables of a disk of 64 TiB fit, absurd ones do not.
const DATA_BYTES_MAX: u64 = 2 << 30;
/// What a child may map, in bytes: also the stacks and heaps that its threads reserve and never use.
const ADDRESS_SPACE_BYTES_MAX: u64 = 8 << 30;
/// Files and sockets that a child may hold: long chains of backing files, VMDKs of many extents.
const HANDLES_MAX: u64 = 4096;
/// The one capability that stays where we have it: machines' images belong to many users.
const CAP_DAC_READ_SEARCH: libc::c_int = 2;
/// More than the kernel has; it refuses those that it does not know.
const CAPABILITIES_MAX: libc::c_int = 64;

/// Where programs, their libraries and data stand. There are no secrets in these.
const SYSTEM_FOLDERS: [&str; 11] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/gnu/store",
    // What processors, memory and block devices there are.
    "/sys/devices",
    "/sys/dev",
    "/etc/crypto-policies",
];
/// What libraries look into when they start.
const SYSTEM_FILES: [&str; 14] = [
    "/dev/null",
    "/dev/zero",
    "/dev/random",
    "/dev/urandom",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/localtime",
    "/etc/gnutls/config",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/openssl.cnf",
    "/proc/cpuinfo",
    "/proc/filesystems",
    "/proc/meminfo",
    "/proc/sys/vm",
];

/// What a child is for, and so what it may do.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Task<'a> {
    /// Looks at the granted files and says on standard output what they are.
    Look,
    /// Shows them on a socket that it makes in this folder.
    Serve(&'a Path),
    /// Reads a disk from a socket of ours and writes files in this folder.
    Write(&'a Path),
}

/// The files, or folders of files, that a child may read, besides the system's own.
pub(crate) type Readable = Vec<PathBuf>;

/// Makes `command` confine itself before it becomes its program.
///
/// # Errors
/// [`Kind::Io`] when a granted file is not there any more; [`Kind::Bug`] when the kernel refuses
/// what it should know.
pub(super) fn confine(command: &mut Command, task: Task<'_>, readable: &Readable) -> Result<()> {
    let confinement = Confinement {
        parent: rustix::process::getpid(),
        landlock: landlock(Path::new(command.get_program()), task, readable)?,
        filter: Filter::for_task(task)?,
        writes: matches!(task, Task::Write(_)),
    };
    // A heap for each of many processors would be most of what a child takes.
    command.env("MALLOC_ARENA_MAX", "4");
    // SAFETY: `enter` only makes system calls, which are safe between fork and exec.
    unsafe { command.pre_exec(move || confinement.enter()) };
    Ok(())
}

/// Everything that the child needs to confine itself, made before the fork.
struct Confinement {
    parent: Pid,
    landlock: Option<OwnedFd>,
    filter: Filter,
    writes: bool,
}

impl Confinement {
    /// Runs in the child, between fork and exec.
    fn enter(&self) -> io::Result<()> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        if rustix::process::getppid() != Some(self.parent) {
            // We died before the child asked to be told.
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        rustix::thread::set_no_new_privs(true)?;
        // Handles that a library of ours forgot to mark. Before Linux 5.11 there is no such call.
        // SAFETY: closing on exec takes nothing away from what runs until then.
        unsafe {
            let first = 3_u32;
            libc::syscall(
                libc::SYS_close_range,
                first,
                u32::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            );
        }
        self.limit()?;
        drop_privileges();
        if let Some(ruleset) = &self.landlock {
            // SAFETY: takes a handle that is open and no flags.
            let entered = unsafe {
                libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0_u32)
            };
            if entered != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        self.filter.enter()
    }

    fn limit(&self) -> io::Result<()> {
        let limit = |resource, most| {
            // Where a stricter limit is in force, it stays.
            let hard = rustix::process::getrlimit(resource).maximum;
            let most = hard.map_or(most, |hard| hard.min(most));
            rustix::process::setrlimit(
                resource,
                Rlimit {
                    current: Some(most),
                    maximum: Some(most),
                },
            )
        };
        limit(Resource::Core, 0)?;
        limit(Resource::Data, DATA_BYTES_MAX)?;
        limit(Resource::As, ADDRESS_SPACE_BYTES_MAX)?;
        limit(Resource::Nofile, HANDLES_MAX)?;
        if !self.writes {
            limit(Resource::Fsize, 0)?;
        }
        Ok(())
    }
}

/// What only root can give up. Others have nothing to lose here, so failures do not count.
fn drop_privileges() {
    // SAFETY: plain system calls on this process alone, which is still of one thread.
    unsafe {
        // No interfaces, not even a loopback, and no other's abstract sockets.
        libc::unshare(libc::CLONE_NEWNET);
        for capability in (0..CAPABILITIES_MAX).filter(|&number| number != CAP_DAC_READ_SEARCH) {
            // From the bounding set: root's next program starts without.
            libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
        }
    }
}

/// The rights that are taken away but for grants, as far as this kernel knows them. Newer kernels
/// know more, which would be untested here.
const ABI_KNOWN: ABI = ABI::V6;

/// The rules of files, ports and signals; nothing where the kernel has no Landlock.
fn landlock(program: &Path, task: Task<'_>, readable: &Readable) -> Result<Option<OwnedFd>> {
    let refused = |error: landlock::RulesetError| {
        Error::new(Kind::Bug, "cannot confine a child by Landlock").caused_by(error)
    };
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI_KNOWN))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(ABI_KNOWN)))
        .and_then(|rules| rules.scope(Scope::from_all(ABI_KNOWN)))
        .and_then(Ruleset::create)
        .map_err(refused)?;
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    for path in SYSTEM_FOLDERS.iter().chain(&SYSTEM_FILES).map(Path::new) {
        rules = grant_if_there(rules, path, read)?;
    }
    // Locks are tried out on it.
    rules = grant_if_there(rules, Path::new("/dev/null"), AccessFs::WriteFile.into())?;
    rules = grant_program(rules, program)?;
    for path in readable {
        // A block device tells its size by a control call.
        let control = AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::IoctlDev;
        rules = grant(rules, path, control)?;
    }
    match task {
        Task::Look => {}
        Task::Serve(folder) => {
            let socket = make_bitflags!(AccessFs::{MakeSock | RemoveFile});
            rules = grant(rules, folder, socket)?;
        }
        Task::Write(folder) => {
            let write = make_bitflags!(AccessFs::{
                ReadFile | ReadDir | WriteFile | Truncate | MakeReg | RemoveFile
            });
            rules = grant(rules, folder, write)?;
        }
    }
    let ruleset: Option<OwnedFd> = rules.into();
    if ruleset.is_none() {
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            tracing::warn!(
                "this kernel has no Landlock, so QEMU's tools are not kept from reading other \
                 files; everything else is taken from them all the same"
            );
        });
    }
    Ok(ruleset)
}

/// The program itself may be executed, and what the kernel starts it by; nothing else, but for
/// scripts, which start others.
fn grant_program(mut rules: RulesetCreated, program: &Path) -> Result<RulesetCreated> {
    let run = AccessFs::Execute | AccessFs::ReadFile;
    let program = std::fs::canonicalize(program)
        .map_err(|error| Error::io(format!("cannot find {}", program.display()), error))?;
    rules = grant(rules, &program, run)?;
    match Loader::of(&program) {
        Some(Loader::Interpreter(interpreter)) => {
            rules = grant_if_there(rules, &interpreter, run)?;
        }
        Some(Loader::Script) => {
            for folder in SYSTEM_FOLDERS.iter().map(Path::new) {
                rules = grant_if_there(rules, folder, run)?;
            }
        }
        None => {}
    }
    // A program that was installed on its own has its libraries beside its folder.
    let prefix = program.parent().and_then(Path::parent);
    for folder in prefix
        .into_iter()
        .flat_map(|prefix| ["lib", "lib64", "libexec", "share"].map(|name| prefix.join(name)))
    {
        let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
        rules = grant_if_there(rules, &folder, read)?;
    }
    Ok(rules)
}

fn grant(rules: RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> Result<RulesetCreated> {
    let cannot = |error: io::Error| Error::io(format!("cannot find {}", path.display()), error);
    let is_folder = std::fs::metadata(path).map_err(cannot)?.is_dir();
    let refused = |error: Box<dyn std::error::Error + Send + Sync>| {
        Error::new(Kind::Bug, format!("cannot grant {}", path.display())).caused_by(error)
    };
    // Some rights make sense for folders alone, and are refused for files.
    let access = if is_folder {
        access
    } else {
        access & AccessFs::from_file(ABI_KNOWN)
    };
    let opened = PathFd::new(path).map_err(|error| refused(error.into()))?;
    rules
        .add_rule(PathBeneath::new(opened, access))
        .map_err(|error| refused(error.into()))
}

fn grant_if_there(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated> {
    if path.exists() {
        grant(rules, path, access)
    } else {
        Ok(rules)
    }
}

/// What the kernel starts a program by.
#[derive(Debug, PartialEq, Eq)]
enum Loader {
    Interpreter(PathBuf),
    Script,
}

impl Loader {
    /// Reads a 64-bit ELF program's wish; `None` for a static one, or one that cannot be read.
    fn of(program: &Path) -> Option<Self> {
        const INTERPRETER: u32 = 3;
        const SEGMENT_BYTES: usize = 56;
        const PATH_BYTES_MAX: usize = 4096;
        let file = File::open(program).ok()?;
        let mut head = vec![0; 4096];
        let length = file.read_at(&mut head, 0).ok()?;
        head.truncate(length);
        if head.starts_with(b"#!") {
            return Some(Self::Script);
        }
        let u64_at = |at: usize| Some(u64::from_ne_bytes(*head.get(at..)?.first_chunk()?));
        let count = u16::from_ne_bytes(*head.get(56..)?.first_chunk()?);
        let first = usize::try_from(u64_at(32)?).ok()?;
        let wish = (0..usize::from(count))
            .map(|number| first.saturating_add(number * SEGMENT_BYTES))
            .find(|&at| {
                let kind = head.get(at..).and_then(<[u8]>::first_chunk);
                kind.is_some_and(|kind| u32::from_ne_bytes(*kind) == INTERPRETER)
            })?;
        let mut path = vec![
            0;
            usize::try_from(u64_at(wish + 32)?)
                .ok()?
                .min(PATH_BYTES_MAX)
        ];
        file.read_exact_at(&mut path, u64_at(wish + 8)?).ok()?;
        let path = path.split(|&byte| byte == 0).next()?;
        Some(Self::Interpreter(std::str::from_utf8(path).ok()?.into()))
    }
}

#[cfg(test)]
mod tests;
