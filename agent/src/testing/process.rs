//! A server's process: found, started on free ports, waited for, killed.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a server may take until it answers, on a machine with much else to do.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A port that was free may be taken by another test before the server binds it.
const START_ATTEMPTS_MAX: u32 = 5;

/// The file `relative` in the folder of test servers.
///
/// # Panics
/// Where it is not there.
pub fn lab(relative: &str) -> PathBuf {
    let folder = match std::env::var_os("TIDEGATE_LAB") {
        Some(folder) => PathBuf::from(folder),
        None => target_folder().join("lab"),
    };
    let path = folder.join(relative);
    assert!(
        path.exists(),
        "{} is not there: run tools/test, which installs the servers that tests need",
        path.display()
    );
    path
}

/// Test programs run from `<target folder>/<profile>/deps`.
fn target_folder() -> PathBuf {
    let program = std::env::current_exe().expect("the running program has a path");
    program
        .ancestors()
        .find(|at| at.join("CACHEDIR.TAG").exists())
        .map(Path::to_path_buf)
        .expect("test programs lie in a target folder of cargo's")
}

/// A running server, killed when dropped.
pub(super) struct Server {
    child: Option<Child>,
    /// Its data; removed with it.
    pub(super) folder: TempDir,
    /// The first of the ports it was given.
    pub(super) port: u16,
}

impl Server {
    /// Starts a server and waits until `answers` says that it does.
    ///
    /// `command` is given an empty folder and a port; this port and those at the given distances
    /// from it are free.
    pub(super) fn start(
        name: &str,
        port_distances: &[u16],
        command: impl Fn(&Path, u16) -> Command,
        answers: impl Fn(u16) -> bool,
    ) -> Self {
        for _ in 0..START_ATTEMPTS_MAX {
            let folder = tempfile::Builder::new()
                .prefix(&format!("tidegate-{name}-"))
                .tempdir()
                .expect("a temporary folder can be made");
            let port = free_port(port_distances);
            let mut server = Self {
                child: Some(spawn(&command(folder.path(), port), folder.path())),
                folder,
                port,
            };
            if server.wait_until(&answers) {
                return server;
            }
            eprintln!("{name} ended at once; its output:\n{}", server.output());
        }
        panic!("{name} did not start in {START_ATTEMPTS_MAX} attempts");
    }

    /// Starts it again after [`kill`](Self::kill), on the same port with the same data.
    pub(super) fn restart(&mut self, command: &Command, answers: impl Fn(u16) -> bool) {
        self.kill();
        self.child = Some(spawn(command, self.folder.path()));
        assert!(self.wait_until(&answers), "{}", self.output());
    }

    /// Kills it, as a power cut would.
    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Whether it answers in time; false where it ended instead.
    fn wait_until(&mut self, answers: &impl Fn(u16) -> bool) -> bool {
        let started = Instant::now();
        while started.elapsed() < START_TIMEOUT {
            if answers(self.port) {
                return true;
            }
            if let Some(child) = &mut self.child
                && matches!(child.try_wait(), Ok(Some(_)))
            {
                return false;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!(
            "the server does not answer after {} s; its output:\n{}",
            START_TIMEOUT.as_secs(),
            self.output()
        );
    }

    fn output(&self) -> String {
        std::fs::read(self.folder.path().join("output"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs the command so that it dies with the thread that started it, even if that is killed.
pub(super) fn spawn(command: &Command, folder: &Path) -> Child {
    let output = File::options()
        .create(true)
        .append(true)
        .open(folder.join("output"))
        .expect("a file can be made in the server's folder");
    let mut guarded = Command::new("setpriv");
    guarded
        .args(["--pdeathsig", "KILL", "--"])
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(output.try_clone().expect("a file handle can be copied"))
        .stderr(output);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => guarded.env(name, value),
            None => guarded.env_remove(name),
        };
    }
    guarded.spawn().expect("setpriv (util-linux) can be run")
}

/// A port that is free together with those at the given distances, below those that the system
/// gives to outgoing connections.
fn free_port(distances: &[u16]) -> u16 {
    let mut random = [0; 2];
    for _ in 0..1000 {
        aws_lc_rs::rand::fill(&mut random).expect("the system gives random bytes");
        let port = 12_000 + u16::from_le_bytes(random) % 10_000;
        let is_free = |distance: &u16| TcpListener::bind(("127.0.0.1", port + distance)).is_ok();
        if is_free(&0) && distances.iter().all(is_free) {
            return port;
        }
    }
    panic!("no free ports on 127.0.0.1");
}

/// Runs a future to its end, also for callers that are inside a runtime themselves.
pub(super) fn block_on_own_thread<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> T {
    std::thread::spawn(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be made")
            .block_on(future)
    })
    .join()
    .expect("the future does not panic")
}
