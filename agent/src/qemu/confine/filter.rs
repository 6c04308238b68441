//! Which system calls a child may make.
//!
//! Not a list of what QEMU needs: such a list would break with the next QEMU, C library or
//! allocator, on the worst day. It is a list of what no reader of images needs and a taken-over one
//! would want: sockets but for unix ones, other processes, other programs, changes to the system,
//! and the parts of the kernel that most holes were found in. It closes by itself in one direction:
//! **system calls that are newer than this list do not exist** for a child, which every program
//! copes with, since older kernels lack them too. Refusals are errors, not signals, so that a QEMU
//! that only tries goes on.

use super::Task;
use crate::error::{Error, Kind, Result};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, sock_filter,
};
use std::collections::BTreeMap;
use std::io;

/// The newest system call that the lists below were made with. Also far below those of x86-64's
/// other calling convention, which so are none.
const NEWEST: libc::c_long = libc::SYS_mseal;

/// Answered as if the kernel did not have them: whoever calls them has another way.
const ABSENT: &[libc::c_long] = &[
    // A ring makes calls that no filter sees.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // Its flags are behind a pointer; `clone` follows, whose flags are not.
    libc::SYS_clone3,
];

/// Refused to every child.
const REFUSED: &[libc::c_long] = &[
    // Other processes.
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
    libc::SYS_kcmp,
    libc::SYS_execveat,
    // Other users, sessions and limits.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_setsid,
    libc::SYS_setpgid,
    libc::SYS_setrlimit,
    libc::SYS_personality,
    // Other views of the system.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    // The system itself.
    libc::SYS_acct,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_settimeofday,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    // Wide doors into the kernel.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
];

/// The same, where the processor has them.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[libc::c_long] = &[
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_kexec_file_load,
    libc::SYS_uselib,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[libc::c_long] = &[];

/// Refused to those that write nothing, so that they change no file also where there is no Landlock.
const CHANGES: &[libc::c_long] = &[
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_renameat2,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
];
#[cfg(target_arch = "x86_64")]
const CHANGES_HERE: &[libc::c_long] = &[
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_mknod,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_creat,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
];
#[cfg(not(target_arch = "x86_64"))]
const CHANGES_HERE: &[libc::c_long] = &[];

/// The removal of files, which a server needs for its own socket.
#[cfg(target_arch = "x86_64")]
const REMOVALS: &[libc::c_long] = &[libc::SYS_unlinkat, libc::SYS_unlink];
#[cfg(not(target_arch = "x86_64"))]
const REMOVALS: &[libc::c_long] = &[libc::SYS_unlinkat];

/// Filters that were compiled for this processor.
pub(super) struct Filter {
    programs: Vec<BpfProgram>,
}

impl Filter {
    /// Compiles what a child of that task may do.
    pub(super) fn for_task(task: Task<'_>) -> Result<Self> {
        let mut absent = BTreeMap::new();
        absent.extend(ABSENT.iter().map(|&call| (call, Vec::new())));
        let mut refused = BTreeMap::new();
        let mut refuse = |calls: &[libc::c_long]| {
            refused.extend(calls.iter().map(|&call| (call, Vec::new())));
        };
        refuse(REFUSED);
        refuse(REFUSED_HERE);
        match task {
            Task::Look => {
                refuse(CHANGES);
                refuse(CHANGES_HERE);
                refuse(REMOVALS);
                refuse(&[libc::SYS_socket, libc::SYS_socketpair]);
                refuse(&[libc::SYS_bind, libc::SYS_connect]);
            }
            Task::Serve(_) => {
                refuse(CHANGES);
                refuse(CHANGES_HERE);
                refuse(&[libc::SYS_connect]);
            }
            Task::Write(_) => refuse(&[libc::SYS_bind, libc::SYS_listen]),
        }
        let unix = u64::try_from(libc::AF_UNIX).unwrap_or_default();
        let thread = u64::try_from(libc::CLONE_THREAD).unwrap_or_default();
        let conditional = [
            // A socket of any other kind.
            (libc::SYS_socket, 0, SeccompCmpOp::Ne, unix),
            (libc::SYS_socketpair, 0, SeccompCmpOp::Ne, unix),
            // A process, not a thread.
            (libc::SYS_clone, 0, SeccompCmpOp::MaskedEq(thread), 0),
            // Another limit, not a look at one.
            (libc::SYS_prlimit64, 2, SeccompCmpOp::Ne, 0),
        ];
        for (call, argument, operator, value) in conditional {
            let length = SeccompCmpArgLen::Qword;
            let condition = SeccompCondition::new(argument, length, operator, value);
            let rule = condition.and_then(|condition| SeccompRule::new(vec![condition]));
            // Those that are refused whatever they say stay so.
            refused
                .entry(call)
                .or_insert(vec![rule.map_err(|error| bug(error.into()))?]);
        }
        let mut absent = compile(absent, libc::ENOSYS)?;
        absent.splice(0..0, newer_calls_are_absent());
        // The last one to be entered is asked first; where both refuse, its answer counts.
        let programs = vec![compile(refused, libc::EPERM)?, absent];
        Ok(Self { programs })
    }

    /// Runs in the child, between fork and exec.
    pub(super) fn enter(&self) -> io::Result<()> {
        for program in &self.programs {
            seccompiler::apply_filter(program).map_err(|error| match error {
                seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
                _ => io::ErrorKind::Other.into(),
            })?;
        }
        Ok(())
    }
}

fn compile(
    rules: BTreeMap<libc::c_long, Vec<SeccompRule>>,
    answer: libc::c_int,
) -> Result<BpfProgram> {
    let arch = std::env::consts::ARCH
        .try_into()
        .map_err(|error: seccompiler::BackendError| bug(error.into()))?;
    let answer = SeccompAction::Errno(answer.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, answer, arch)
        .and_then(BpfProgram::try_from)
        .map_err(|error| bug(error.into()))
}

/// In front of a program: what is above [`NEWEST`] does not exist.
fn newer_calls_are_absent() -> [sock_filter; 3] {
    let newest = u32::try_from(NEWEST).unwrap_or_default();
    let instruction = |code: u32, jt, jf, k| sock_filter {
        code: u16::try_from(code).unwrap_or_default(),
        jt,
        jf,
        k,
    };
    [
        // The call's number stands first in what a filter sees.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, 0, 1, newest),
        instruction(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs(),
        ),
    ]
}

fn bug(error: Box<dyn std::error::Error + Send + Sync>) -> Error {
    Error::new(Kind::Unsupported, "cannot confine a child by seccomp")
        .caused_by(error)
        .advise("use tidegate on x86-64, ARM64 or RISC-V")
}
