//! Children in QEMU's place that try what a taken-over one would, and QEMU itself with images that
//! ask it to.
//!
//! Every attempt is also made unconfined, where it must succeed: a wall is only shown by something
//! that would otherwise pass.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

use super::*;
use crate::error::Kind;
use crate::qemu::{self, Finished, Tool};
use std::fs;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What the child tries, and on what.
const ATTEMPT: &str = "TIDEGATE_TEST_ATTEMPT";
/// In front of the child's answer: 0 or the number of the system's error.
const ANSWER: &str = "THE ATTEMPT ENDS WITH ";
const TIME_MAX: Duration = Duration::from_secs(60);

/// The child: makes one attempt.
#[test]
#[ignore = "a part that the other tests of this file start"]
fn attempt() {
    let attempt = std::env::var(ATTEMPT).expect("started by another test");
    let (what, on) = attempt.rsplit_once(' ').unwrap();
    let ended = try_it(what, on);
    let number = ended
        .err()
        .map_or(0, |error| error.raw_os_error().unwrap_or(-1));
    println!("\n{ANSWER}{number}");
}

fn try_it(what: &str, on: &str) -> io::Result<()> {
    let system_call = |number: libc::c_long, arguments: [u64; 5]| {
        let [a, b, c, d, e] = arguments;
        // SAFETY: none of the calls that are tried takes a pointer, but for null.
        match unsafe { libc::syscall(number, a, b, c, d, e) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    match what {
        "read" => fs::read(on).map(drop),
        "list" => fs::read_dir(on).map(drop),
        "open for writing" => fs::OpenOptions::new().write(true).open(on).map(drop),
        "create" => fs::File::create(on).map(drop),
        "create and fill" => {
            let mut file = fs::File::create(on)?;
            io::Write::write_all(&mut file, &[1; 100_000])
        }
        "remove" => fs::remove_file(on),
        "rename" => fs::rename(on, format!("{on}.renamed")),
        "make readable by all" => {
            fs::set_permissions(on, std::os::unix::fs::PermissionsExt::from_mode(0o644))
        }
        "listen" => UnixListener::bind(on).map(drop),
        "connect" => UnixStream::connect(on).map(drop),
        "tcp" => TcpStream::connect(on).map(drop),
        "udp" => UdpSocket::bind(on).map(drop),
        "any unix socket" => UnixDatagram::unbound().map(drop),
        "netlink" => system_call(libc::SYS_socket, [16, 3, 0, 0, 0]),
        "start" => Command::new(on).status().map(drop),
        "become" => Err(Command::new(on).exec()),
        "signal" => system_call(libc::SYS_kill, [on.parse().unwrap(), 0, 0, 0, 0]),
        "namespace" => system_call(libc::SYS_unshare, [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0]),
        // Neither is told what it is asked: EFAULT says that it would have listened.
        "ring" => system_call(libc::SYS_io_uring_setup, [1, 0, 0, 0, 0]),
        "program in the kernel" => system_call(libc::SYS_bpf, [0, 0, 72, 0, 0]),
        "keys" => system_call(libc::SYS_keyctl, [0, u64::MAX - 2, 1, 0, 0]),
        "newest call" => system_call(libc::SYS_mseal + 6, [0, 0, 0, 0, 0]),
        "thread" => std::thread::Builder::new()
            .spawn(|| ())
            .map(|thread| thread.join().unwrap()),
        "memory" => {
            let mut bytes = Vec::<u8>::new();
            bytes
                .try_reserve_exact(on.parse().unwrap())
                .map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))
        }
        "handles" => {
            let count = on.parse().unwrap();
            let handles: io::Result<Vec<_>> =
                (0..count).map(|_| fs::File::open("/dev/null")).collect();
            handles.map(drop)
        }
        "more memory" => rustix::process::setrlimit(
            Resource::Data,
            Rlimit {
                current: None,
                maximum: None,
            },
        )
        .map_err(Into::into),
        "sleep" => {
            std::thread::sleep(Duration::from_secs(on.parse().unwrap()));
            Ok(())
        }
        _ => panic!("no such attempt: {what}"),
    }
}

/// What keeps the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Walls {
    None,
    /// What is left on a kernel without Landlock.
    WithoutLandlock,
    All,
}

fn child(attempt: &str, walls: Walls, task: Task<'_>, readable: &Readable) -> Command {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(program);
    command
        .args(["--exact", "qemu::confine::tests::attempt", "--ignored"])
        .args(["--nocapture", "--test-threads=1"])
        .env(ATTEMPT, attempt);
    match walls {
        Walls::None => {}
        Walls::All => confine(&mut command, task, readable).unwrap(),
        Walls::WithoutLandlock => {
            let confinement = Confinement {
                parent: rustix::process::getpid(),
                landlock: None,
                filter: Filter::for_task(task).unwrap(),
                writes: matches!(task, Task::Write(_)),
            };
            // SAFETY: as in `confine`.
            unsafe { command.pre_exec(move || confinement.enter()) };
        }
    }
    command
}

/// How the attempt ends: 0, the number of the system's error, or less than nothing, when the child
/// was killed for it.
fn ends(attempt: &str, walls: Walls, task: Task<'_>, readable: &Readable) -> i32 {
    let command = child(attempt, walls, task, readable);
    let Finished {
        stdout,
        messages,
        status,
    } = qemu::run(command, attempt, TIME_MAX).unwrap();
    if let Some(signal) = status.signal() {
        return -signal;
    }
    let said = String::from_utf8(stdout).unwrap();
    let answer = said.lines().find_map(|line| line.strip_prefix(ANSWER));
    answer
        .unwrap_or_else(|| panic!("{attempt}: {said} {messages}"))
        .parse()
        .unwrap()
}

/// A folder with a file that is granted, one that is not, and folders for a server and a writer.
struct Lab {
    folder: TempDir,
}

impl Lab {
    fn new() -> Self {
        // Not where temporary files of others lie, which a grant of the system's might cover.
        let folder = TempDir::new().unwrap();
        for name in ["serve", "write"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        for name in ["granted", "secret", "write/old"] {
            fs::write(folder.path().join(name), "something").unwrap();
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

const LOOK: Task<'_> = Task::Look;

/// Attempts that no child may succeed with, whatever its task, and the errors they end with.
#[test]
fn no_child_leaves_its_walls() {
    let lab = Lab::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = format!("tcp {}", listener.local_addr().unwrap());
    let ours = format!("signal {}", std::process::id());
    let secret = lab.path("secret").display().to_string();
    let folder = lab.folder.path().display().to_string();
    let readable = vec![lab.path("granted")];
    let (serve, write) = (lab.path("serve"), lab.path("write"));
    let (perm, access) = (libc::EPERM, libc::EACCES);
    let open = 0;
    // What, without walls, without Landlock, with all.
    let attempts = [
        (tcp.as_str(), open, perm, perm),
        ("udp 127.0.0.1:0", open, perm, perm),
        ("netlink x", open, perm, perm),
        (ours.as_str(), open, perm, perm),
        ("start /bin/true", open, perm, perm),
        // Of several threads, so it would be refused otherwise, for another reason.
        ("namespace x", libc::EINVAL, perm, perm),
        ("ring x", libc::EFAULT, libc::ENOSYS, libc::ENOSYS),
        ("program in the kernel x", libc::EFAULT, perm, perm),
        ("keys x", open, perm, perm),
        ("more memory x", open, perm, perm),
        ("newest call x", libc::EINVAL, libc::ENOSYS, libc::ENOSYS),
        ("memory 3221225472", open, libc::ENOMEM, libc::ENOMEM),
        ("handles 5000", libc::EMFILE, libc::EMFILE, libc::EMFILE),
        (&format!("read {secret}"), open, open, access),
        (&format!("list {folder}"), open, open, access),
        ("read /etc/passwd", open, open, access),
        ("read /proc/self/environ", open, open, access),
    ];
    let _ = rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(HANDLES_MAX),
            maximum: rustix::process::getrlimit(Resource::Nofile).maximum,
        },
    );
    for (attempt, without, without_landlock, with_all) in attempts {
        let free = ends(attempt, Walls::None, LOOK, &readable);
        assert!(
            free == without || attempt.starts_with("newest") && free != libc::EPERM,
            "{attempt}, unconfined: {free}"
        );
        for task in [LOOK, Task::Serve(&serve), Task::Write(&write)] {
            let ended = ends(attempt, Walls::WithoutLandlock, task, &readable);
            assert_eq!(ended, without_landlock, "{attempt}, {task:?}, no Landlock");
            let ended = ends(attempt, Walls::All, task, &readable);
            assert_eq!(ended, with_all, "{attempt}, {task:?}");
        }
    }
    // Swapping itself for another program needs Landlock: one swap, the first, is always needed.
    for task in [LOOK, Task::Serve(&serve), Task::Write(&write)] {
        let ended = ends("become /bin/true", Walls::All, task, &readable);
        assert_eq!(ended, access, "{task:?}");
    }
    // And what every child needs.
    for task in [LOOK, Task::Serve(&serve), Task::Write(&write)] {
        for attempt in [
            "thread x",
            "memory 1073741824",
            "open for writing /dev/null",
        ] {
            assert_eq!(ends(attempt, Walls::All, task, &readable), 0, "{attempt}");
        }
        let granted = format!("read {}", readable[0].display());
        assert_eq!(ends(&granted, Walls::All, task, &readable), 0, "{task:?}");
    }
}

#[test]
fn only_a_writer_writes_and_only_in_its_folder() {
    let lab = Lab::new();
    let readable = vec![lab.path("granted")];
    let (serve, write) = (lab.path("serve"), lab.path("write"));
    let tasks = [LOOK, Task::Serve(&serve), Task::Write(&write)];
    let granted = readable[0].display();
    for attempt in [
        format!("open for writing {granted}"),
        format!("create {granted}"),
        format!("remove {granted}"),
        format!("rename {granted}"),
        format!("create {}/new", serve.display()),
        format!("create {}", lab.path("new").display()),
    ] {
        for task in tasks {
            assert_ne!(ends(&attempt, Walls::All, task, &readable), 0, "{attempt}");
        }
    }
    // Not even without Landlock, for those that do not write.
    for task in [LOOK, Task::Serve(&serve)] {
        for attempt in [
            format!("create and fill {}", lab.path("filled").display()),
            format!("rename {granted}"),
            format!("make readable by all {granted}"),
        ] {
            let ended = ends(&attempt, Walls::WithoutLandlock, task, &readable);
            assert_ne!(ended, 0, "{attempt}, {task:?}");
        }
    }
    let remove = format!("remove {granted}");
    assert_ne!(ends(&remove, Walls::WithoutLandlock, LOOK, &readable), 0);
    assert_eq!(fs::read_to_string(&readable[0]).unwrap(), "something");

    let writer = Task::Write(&write);
    for attempt in [
        "create and fill new",
        "read old",
        "remove old",
        "create new",
    ] {
        let (what, name) = attempt.rsplit_once(' ').unwrap();
        let attempt = format!("{what} {}", write.join(name).display());
        assert_eq!(
            ends(&attempt, Walls::All, writer, &readable),
            0,
            "{attempt}"
        );
    }
}

#[test]
fn sockets_are_of_one_kind_and_one_direction() {
    let lab = Lab::new();
    let nothing = Readable::new();
    let (serve, write) = (lab.path("serve"), lab.path("write"));
    let _listener = UnixListener::bind(lab.path("ours")).unwrap();
    let connect = format!("connect {}", lab.path("ours").display());
    let listen = |name: &str| format!("listen {}", lab.path(name).display());
    for (attempt, look, server, writer) in [
        ("any unix socket x".to_owned(), libc::EPERM, 0, 0),
        (connect, libc::EPERM, libc::EPERM, 0),
        (listen("serve/socket"), libc::EPERM, 0, libc::EPERM),
        (listen("elsewhere"), libc::EPERM, libc::EACCES, libc::EPERM),
    ] {
        let tasks = [
            (LOOK, look),
            (Task::Serve(&serve), server),
            (Task::Write(&write), writer),
        ];
        for (task, expected) in tasks {
            let ended = ends(&attempt, Walls::All, task, &nothing);
            assert_eq!(ended, expected, "{attempt}, {task:?}");
        }
    }
}

/// What can be read of the child's own state, from outside.
#[test]
fn children_have_no_privileges_and_no_handles_of_ours() {
    let lab = Lab::new();
    // Handed on to every child, unless somebody sees to it.
    let leaked = fs::File::open(lab.path("secret")).unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let command = child("sleep 60", Walls::All, LOOK, &Readable::new());
    let running = qemu::Running::start(command, std::process::Stdio::null()).unwrap();
    let process = PathBuf::from(format!("/proc/{}", running.pid()));
    let status = fs::read_to_string(process.join("status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().to_owned()
    };
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    let allowed = u64::from_str_radix(&field("CapPrm:"), 16).unwrap();
    assert_eq!(allowed & !(1 << CAP_DAC_READ_SEARCH), 0, "{allowed:x}");
    for handle in fs::read_dir(process.join("fd")).unwrap() {
        let target = fs::read_link(handle.unwrap().path()).unwrap();
        assert!(!target.starts_with(lab.folder.path()), "{target:?}");
    }
    if rustix::process::geteuid().is_root() {
        let network = |of: &Path| fs::read_link(of.join("ns/net")).unwrap();
        assert_ne!(network(&process), network(Path::new("/proc/self")));
    }
}

#[test]
fn a_child_that_never_answers_is_killed() {
    let command = child("sleep 600", Walls::All, LOOK, &Readable::new());
    let started = Instant::now();
    let error = qemu::run(command, "the image", Duration::from_millis(300)).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("the image"), "{error}");
    assert!(
        started.elapsed() < Duration::from_secs(60),
        "it was waited for"
    );
}

/// Runs `qemu-img`, confined or not, on its own word: none of our checks of images stands before it.
fn qemu_img(args: &[&str], walls: Walls, task: Task<'_>, readable: &Readable) -> Finished {
    let mut command = match walls {
        Walls::None => Command::new("qemu-img"),
        _ => Tool::Img.command("a test", task, readable).unwrap(),
    };
    command.args(args);
    qemu::run(command, "a test", TIME_MAX).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn qemu_follows_no_name_in_an_image() {
    let lab = Lab::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let write = lab.path("write");
    let out = write.join("out.raw");
    let remote = format!("nbd://127.0.0.1:{port}/");
    let server = format!(r#"{{"type":"inet","host":"127.0.0.1","port":"{port}"}}"#);
    let by_options =
        format!(r#"json:{{"driver":"raw","file":{{"driver":"nbd","server":{server}}}}}"#);
    let secret = lab.path("secret");
    for backing in [remote.as_str(), &by_options, text(&secret)] {
        let image = lab.path("evil.qcow2");
        let create = ["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b"];
        let create = [&create[..], &[backing, text(&image), "512"]].concat();
        assert!(
            qemu_img(&create, Walls::None, LOOK, &vec![])
                .status
                .success()
        );
        let convert = [
            "convert",
            "-f",
            "qcow2",
            "-O",
            "raw",
            text(&image),
            text(&out),
        ];
        let readable = vec![image.clone()];
        for task in [LOOK, Task::Write(&write)] {
            let finished = qemu_img(&convert, Walls::All, task, &readable);
            assert!(!finished.status.success(), "{backing}: {finished:?}");
            let connected = listener.accept().map(drop).map_err(|error| error.kind());
            assert_eq!(connected, Err(io::ErrorKind::WouldBlock), "{backing}");
        }
        // The same without walls: it would have.
        let command = qemu_img_in_background(&convert);
        if backing == text(&secret) {
            assert!(command.wait_with_output().unwrap().status.success());
            assert!(fs::read(&out).unwrap().starts_with(b"something"));
        } else {
            let deadline = Instant::now() + TIME_MAX;
            while listener.accept().is_err() {
                assert!(Instant::now() < deadline, "qemu-img does not connect");
                std::thread::sleep(Duration::from_millis(5));
            }
            let mut command = command;
            command.kill().unwrap();
            command.wait().unwrap();
        }
    }
}

fn qemu_img_in_background(args: &[&str]) -> std::process::Child {
    Command::new("qemu-img")
        .args(args)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn qemu_changes_no_image_that_it_only_looks_at() {
    let lab = Lab::new();
    let image = lab.path("disk.qcow2");
    let create = ["create", "-q", "-f", "qcow2", text(&image), "1M"];
    assert!(
        qemu_img(&create, Walls::None, LOOK, &vec![])
            .status
            .success()
    );
    let before = fs::read(&image).unwrap();
    let snapshot = ["snapshot", "-c", "before", text(&image)];
    let finished = qemu_img(&snapshot, Walls::All, LOOK, &vec![image.clone()]);
    assert!(!finished.status.success(), "{finished:?}");
    assert!(fs::read(&image).unwrap() == before);
    assert!(
        qemu_img(&snapshot, Walls::None, LOOK, &vec![])
            .status
            .success()
    );
    assert!(fs::read(&image).unwrap() != before);
}

#[test]
fn a_programs_loader_is_found() {
    let loader = Loader::of(&std::env::current_exe().unwrap());
    let Some(Loader::Interpreter(path)) = loader else {
        panic!("{loader:?}");
    };
    assert!(path.exists(), "{path:?}");
    let folder = TempDir::new().unwrap();
    let program = folder.path().join("program");
    for (bytes, expected) in [
        (&b"#!/bin/sh\n"[..], Some(Loader::Script)),
        (b"", None),
        (&[0xff; 100], None),
        (&[0xff; 5000], None),
    ] {
        fs::write(&program, bytes).unwrap();
        assert_eq!(Loader::of(&program), expected);
    }
}
