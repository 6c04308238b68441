//! What the operator and their scripts get to read.
//!
//! Results go to stdout, as text or, with `--json`, as one JSON value; everything else (progress,
//! notes, errors, the log) goes to stderr. A reader who closes the pipe early is no error.

use indicatif::MultiProgress;
use serde::Serialize;
use serde_json::json;
use std::io::{self, ErrorKind, Write};
use tidegate_agent::{Error, Result};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Cheap to clone: clones write to the same place.
#[derive(Clone)]
pub(crate) struct Output {
    json: bool,
    quiet: bool,
    /// Progress bars, which make room for whatever else is written to stderr.
    bars: MultiProgress,
}

impl Output {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self {
            json,
            quiet,
            bars: MultiProgress::new(),
        }
    }

    /// True where nothing but results and errors is wanted.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// True where the result is read by a program.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Where progress bars stand.
    pub(crate) fn bars(&self) -> &MultiProgress {
        &self.bars
    }

    /// Writes a command's result: `value` with `--json`, else what `text` makes.
    pub(crate) fn result<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> Result<()> {
        if self.json {
            let json = serde_json::to_string_pretty(value).map_err(|error| {
                Error::new(tidegate_agent::Kind::Bug, "cannot write the result as JSON")
                    .caused_by(error)
            })?;
            self.stdout(&format!("{json}\n"))
        } else {
            self.stdout(&text())
        }
    }

    /// Writes to stdout, as it is.
    pub(crate) fn stdout(&self, text: &str) -> Result<()> {
        let written = self.bars.suspend(|| {
            let mut out = io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush())
        });
        match written {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                Err(Error::io("cannot write to standard output", error))
            }
            _ => Ok(()),
        }
    }

    /// Tells the operator something on stderr, unless they want it quiet.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            self.stderr(text);
        }
    }

    /// Tells the operator something that they must know, also when it is quiet.
    pub(crate) fn warn(&self, text: &str) {
        self.stderr(&format!("warning: {text}"));
    }

    /// Says why a command failed, and what to do.
    pub(crate) fn error(&self, error: &Error) {
        self.stderr(&format!("error: {}", error.chain()));
        if let Some(advice) = error.advice() {
            self.stderr(&format!("hint: {advice}"));
        }
        self.error_value(error);
    }

    /// With `--json`, writes the error to stdout too.
    pub(crate) fn error_value(&self, error: &Error) {
        if !self.json {
            return;
        }
        let object = json!({
            "error": {
                "kind": error.kind().as_str(),
                "message": error.chain(),
                "advice": error.advice(),
            }
        });
        // The error stands on stderr already; there is nobody left to tell.
        let _ = self.stdout(&format!("{object:#}\n"));
    }

    /// Sends the program's log to stderr: warnings, more with `-v`, or as `TIDEGATE_LOG` says.
    pub(crate) fn start_log(&self, verbose: u8, usually: &str) {
        let level = match verbose {
            0 => usually,
            1 => "warn,tidegate_agent=info,tidegate=info",
            2 => "info,tidegate_agent=debug,tidegate=debug",
            _ => "debug,tidegate_agent=trace,tidegate=trace",
        };
        let filter = match std::env::var("TIDEGATE_LOG") {
            Ok(text) if verbose == 0 && !text.trim().is_empty() => EnvFilter::try_new(&text)
                .unwrap_or_else(|_| {
                    self.warn(&format!("TIDEGATE_LOG={text:?} is not understood"));
                    EnvFilter::new(level)
                }),
            _ => EnvFilter::new(level),
        };
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_target(verbose > 1)
            .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
            .with_writer(LogWriter(self.bars.clone()));
        // Who did not ask for a log reads single lines, and knows what time it is.
        if verbose == 0 {
            log.without_time().init();
        } else {
            log.init();
        }
    }

    fn stderr(&self, text: &str) {
        self.bars.suspend(|| {
            // Where stderr is closed there is nobody left to tell.
            let _ = writeln!(io::stderr().lock(), "{text}");
        });
    }
}

/// Writes log lines above the progress bars.
struct LogWriter(MultiProgress);

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().lock().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self::Writer {
        Self(self.0.clone())
    }
}
