//! The real `tidegated host`, started in a site, and what it says of itself.

use crate::site::{PATIENCE, Run, Site, text, tidegated, until};
use serde_json::Value;
use std::fs::File;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

/// A schedule that is not due while a test runs, unless it runs over New Year.
pub(crate) const NEVER: &str = "schedule = '0 0 1 1 *'";

/// A configuration with one policy `p`, one group of all machines, and `more`.
pub(crate) fn configure(site: &Site, policy: &str, more: &str) {
    let text = format!(
        "[service]
         state_dir = 'state'
         socket = 'host.sock'
         time_zone = 'UTC'
         stop_grace = '60s'
         {service}
         [repository.main]
         location = 'repo'
         key = 'keys/host.key'
         cache_dir = 'cache'
         pack_mib = 1
         workers = 1
         [policy.p]
         {policy}
         [group.all]
         machines = ['*']
         policy = 'p'
         repository = 'main'
         {more}",
        service = more
            .lines()
            .filter_map(|line| line.trim().strip_prefix("#service "))
            .collect::<Vec<_>>()
            .join("\n"),
    );
    std::fs::write(site.path("host.toml"), text).unwrap();
}

pub(crate) struct Service<'a> {
    site: &'a Site,
    child: Child,
    /// All that systemd has been told, and how much of it was heard.
    told: Arc<Mutex<Vec<String>>>,
    heard: usize,
}

impl<'a> Service<'a> {
    /// Starts the service as systemd would, and waits until it says that it is ready.
    #[track_caller]
    pub(crate) fn start(site: &'a Site) -> Self {
        let mut service = Self::begin(site);
        service.hears("READY=1");
        service
    }

    /// Starts it and does not wait.
    #[track_caller]
    pub(crate) fn begin(site: &'a Site) -> Self {
        Self::begin_with(site, &[])
    }

    /// Starts it with more in its environment, and does not wait.
    #[track_caller]
    pub(crate) fn begin_with(site: &'a Site, environment: &[(&str, &str)]) -> Self {
        let notify = site.path("notify");
        let _ = std::fs::remove_file(&notify);
        let told = UnixDatagram::bind(&notify).unwrap();
        let log = File::options()
            .create(true)
            .append(true)
            .open(site.path("log"))
            .unwrap();
        let child = Command::new(tidegated())
            .args(["host", "--config", text(&site.path("host.toml"))])
            .env_clear()
            .env("NOTIFY_SOCKET", &notify)
            .env("WATCHDOG_USEC", "3000000")
            .envs(environment.iter().copied())
            .stderr(log)
            .spawn()
            .unwrap();
        let all: Arc<Mutex<Vec<String>>> = Arc::default();
        let gathered = Arc::clone(&all);
        // Ends with the test's process.
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length) = told.recv(&mut bytes) {
                let said = String::from_utf8_lossy(&bytes[..length]).into_owned();
                gathered.lock().unwrap().push(said);
            }
        });
        Self {
            site,
            child,
            told: all,
            heard: 0,
        }
    }

    /// Waits until the service tells systemd this.
    #[track_caller]
    pub(crate) fn hears(&mut self, word: &str) -> String {
        until(word, || {
            let ended = self.child.try_wait().unwrap();
            let told = self.told.lock().unwrap().clone();
            let fresh = &told[self.heard..];
            let at = fresh
                .iter()
                .position(|said| said.lines().any(|line| line == word));
            if let Some(at) = at {
                self.heard += at + 1;
                return Some(fresh[at].clone());
            }
            if let Some(status) = ended {
                panic!("the service ended ({status}): {}", self.log());
            }
            None
        })
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.site.path("log")).unwrap()
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = self.site.process();
        command.env("TIDEGATE_SOCKET", self.site.path("host.sock"));
        command
    }

    /// Runs the command line against this service.
    pub(crate) fn run(&self, args: &[&str]) -> Run {
        Run::from(self.command().args(args).output().unwrap())
    }

    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        self.run(&["status", "--json"]).succeeds().json()
    }

    /// A machine's part of the status.
    #[track_caller]
    pub(crate) fn machine(&self, name: &str) -> Option<Value> {
        let status = self.status();
        let machines = status["machines"].as_array().unwrap();
        machines
            .iter()
            .find(|machine| machine["machine"] == name)
            .cloned()
    }

    /// Waits until a machine's status is so.
    #[track_caller]
    pub(crate) fn machine_until(&self, name: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        until(&format!("{name} as expected"), || {
            self.machine(name).filter(|machine| is_so(machine))
        })
    }

    pub(crate) fn socket(&self) -> UnixStream {
        let stream = UnixStream::connect(self.site.path("host.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop, as systemd does, and waits until it has.
    #[track_caller]
    pub(crate) fn stop(mut self) {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        let status = until("the end of the service", || self.child.try_wait().unwrap());
        assert!(status.success(), "{status}: {}", self.log());
    }

    /// Waits for its end; its exit code.
    #[track_caller]
    pub(crate) fn ends(mut self) -> i32 {
        let status = until("the end of the service", || self.child.try_wait().unwrap());
        status.code().unwrap_or(-1)
    }
}

impl Drop for Service<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the service's log:\n{}", self.log());
        }
    }
}
