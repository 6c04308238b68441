//! The console of a guest that does what it is told: a command a line, and after each one its exit code.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the guest may take to boot, or for one command, on a machine with much else to do.
const TIME_MAX: Duration = Duration::from_secs(120);

/// A connection to the guest's first serial port.
pub struct Console {
    stream: UnixStream,
    said: Vec<u8>,
}

impl Console {
    /// Connects to the console of a QEMU that starts.
    pub fn connect(socket: &Path) -> Self {
        let begun = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(
                    begun.elapsed() < TIME_MAX,
                    "no console at {}: {error}",
                    socket.display()
                ),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        stream
            .set_read_timeout(Some(Duration::from_secs(1)))
            .expect("a socket can be given a timeout");
        Self {
            stream,
            said: Vec::new(),
        }
    }

    /// Connects, and waits until the guest is ready.
    pub fn of_booting(socket: &Path) -> Self {
        let mut console = Self::connect(socket);
        console.await_ready();
        console
    }

    /// Waits until the guest has booted.
    pub fn await_ready(&mut self) {
        self.hear("GUEST-READY");
    }

    /// Runs a command of one line in the guest, and hands back what it says.
    ///
    /// # Panics
    /// Where it fails.
    pub fn run(&mut self, command: &str) -> String {
        self.tell(command);
        let said = self.hear("RC=");
        let code = self.hear("\n");
        assert_eq!(code, "0", "{command}: {said}");
        said
    }

    /// Says a line, and waits for nothing.
    pub fn tell(&mut self, line: &str) {
        writeln!(self.stream, "{line}").expect("the console takes a line");
    }

    /// What the guest says up to `mark`, which is dropped.
    pub fn hear(&mut self, mark: &str) -> String {
        let begun = Instant::now();
        loop {
            let text = String::from_utf8_lossy(&self.said).replace('\r', "");
            if let Some((before, behind)) = text.split_once(mark) {
                let heard = before.to_owned();
                self.said = behind.as_bytes().to_vec();
                return heard;
            }
            assert!(
                begun.elapsed() < TIME_MAX,
                "the guest does not say {mark:?}: {text}"
            );
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => panic!("QEMU has ended: {text}"),
                Ok(count) => self.said.extend_from_slice(&bytes[..count]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => panic!("the console is gone: {error}"),
            }
        }
    }
}
