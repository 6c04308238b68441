//! `tidegated`: the service, in one of its roles.
//!
//! Arguments → configuration → role. What it is not: an operator's tool; that is `tidegate`, which
//! speaks to this program over its control socket. The log goes to standard error, one line an event,
//! for journald to take.

use clap::{CommandFactory, Parser, Subcommand, ValueEnum, ValueHint};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tidegate_agent::gateway::{self, GatewayConfig};
use tidegate_agent::host::config::{DEFAULT_FILE, Settings};
use tidegate_agent::host::service;
use tidegate_agent::live::guard;
use tidegate_agent::{Error, Kind, Result, metrics};
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The tidegate service.
///
/// Started by systemd. `tidegate status` shows what it does.
#[derive(Debug, Parser)]
#[command(
    name = "tidegated",
    version,
    propagate_version = true,
    max_term_width = 100,
    after_help = "Environment:\n  TIDEGATE_LOG  what to log, such as debug or tidegate_agent=trace [default: info]"
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Back up the machines of this host by their policies.
    ///
    /// SIGHUP reads the configuration again; one that is not valid is refused, and the old one stays
    /// in force. SIGTERM stops: runs under way end cleanly and are taken up again at the next start.
    Host {
        /// The configuration file
        #[arg(long, value_name = "FILE", default_value = DEFAULT_FILE, value_hint = ValueHint::FilePath)]
        config: PathBuf,
    },
    /// Serve hosts over QUIC, beside the bucket.
    ///
    /// SIGTERM stops: hosts are told to go on with another gateway, and what is under way is answered
    /// first. SIGHUP reads the configuration again and says what a restart would change.
    Gateway {
        /// The configuration file
        #[arg(long, value_name = "FILE", default_value = gateway::config::DEFAULT_FILE, value_hint = ValueHint::FilePath)]
        config: PathBuf,
    },
    /// Thaw guests that the host service left frozen when it was killed. For when it has ended: the unit does it.
    ///
    /// While the service runs nothing is left frozen: a guest is thawed after 10 s at the latest.
    Thaw {
        /// The configuration file of the host service
        #[arg(long, value_name = "FILE", default_value = DEFAULT_FILE, value_hint = ValueHint::FilePath)]
        config: PathBuf,
    },
    /// Look at configuration files.
    #[command(subcommand)]
    Config(Config),
    /// Write man pages into a folder.
    Man {
        /// The folder; made where it is missing
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum Config {
    /// Check a configuration file, and print the settings in effect: a file that means the same, with
    /// everything said that was left out.
    ///
    /// Nothing is opened but the file itself: whether keys, images and repositories are there is not
    /// looked at.
    Check {
        /// Whose file it is
        #[arg(long, default_value = "host")]
        role: Role,
        /// The file [default: the role's in /etc/tidegate]
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: Option<PathBuf>,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    Host,
    Gateway,
}

fn main() -> ExitCode {
    if let Some(code) = guard::be_one_if_asked() {
        return code;
    }
    tidegate_agent::allocator::give_back_large_buffers();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Where stdout or stderr is closed there is nobody left to tell.
            let _ = error.print();
            return match error.use_stderr() {
                true => ExitCode::from(Kind::Config.exit_code()),
                false => ExitCode::SUCCESS,
            };
        }
    };
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = format!("error: {}\n", error.chain());
            if let Some(advice) = error.advice() {
                text.push_str(&format!("hint: {advice}\n"));
            }
            // As above.
            let _ = io::stderr().write_all(text.as_bytes());
            ExitCode::from(error.kind().exit_code())
        }
    }
}

fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Config(Config::Check { role, file }) => check(role, file),
        Command::Man { dir } => man(&dir),
        Command::Host { config } => {
            start_log();
            let handle = metrics::install()?;
            let options = service::Options {
                file: config,
                credentials: credentials(),
            };
            serve(HOST_THREADS, service::run(options, handle))
        }
        Command::Thaw { config } => {
            start_log();
            serve(1, service::thaw_left(config))
        }
        Command::Gateway { config } => {
            start_log();
            let handle = metrics::install()?;
            let run = gateway::service::run(config, credentials(), handle);
            serve(gateway::runtime_threads(), run)
        }
    }
}

/// What threads get to end when the service has stopped.
const SHUTDOWN_TIME_MAX: Duration = Duration::from_secs(1);

/// The folder of the keys that systemd hands to the service.
fn credentials() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

/// The engine has worker threads of its own: what is left for the runtime of a host is waiting.
const HOST_THREADS: usize = 2;

/// Runs a service to its end.
fn serve(threads: usize, service: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("tidegate-io")
        .enable_all()
        .build()
        .map_err(|error| Error::io("cannot start the runtime", error))?;
    let ended = runtime.block_on(service);
    // A thread that looks at a share which hangs would be waited for, for ever.
    runtime.shutdown_timeout(SHUTDOWN_TIME_MAX);
    ended
}

fn check(role: Role, file: Option<PathBuf>) -> Result<()> {
    let (text, remarks) = match role {
        Role::Host => {
            let settings = Settings::load(&file.unwrap_or_else(|| DEFAULT_FILE.into()))?;
            let mut remarks = settings.remarks();
            for remark in &mut remarks {
                remark.insert_str(0, "warning: ");
            }
            let note = "note: recovery points are kept for good: this version deletes none";
            remarks.push(note.to_owned());
            (settings.effective()?, remarks)
        }
        Role::Gateway => {
            let file = file.unwrap_or_else(|| gateway::config::DEFAULT_FILE.into());
            (GatewayConfig::read(&file)?.effective()?, Vec::new())
        }
    };
    let said: String = remarks.iter().map(|remark| format!("{remark}\n")).collect();
    // Whoever reads only one of the two may close the other.
    let _ = io::stderr().write_all(said.as_bytes());
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Error::io("cannot write to standard output", error))
}

/// Made from the very definitions that are parsed.
fn man(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(Args::command(), dir))
        .map_err(|error| {
            Error::io(
                format!("cannot write man pages into {}", dir.display()),
                error,
            )
        })
}

/// One line an event, to standard error. Under systemd each has its priority before it, and no time:
/// journald takes both from there.
fn start_log() {
    let text = std::env::var("TIDEGATE_LOG").unwrap_or_default();
    let filter = match text.trim() {
        "" => None,
        text => EnvFilter::try_new(text).ok(),
    };
    let not_understood = filter.is_none() && !text.trim().is_empty();
    let filter = filter.unwrap_or_else(|| EnvFilter::new("info"));
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(!journal && io::stderr().is_terminal())
        .with_writer(Stderr { journal });
    match journal {
        true => log.without_time().with_level(false).init(),
        false => log.init(),
    }
    if not_understood {
        tracing::warn!("TIDEGATE_LOG={text:?} is not understood");
    }
}

struct Stderr {
    journal: bool,
}

/// Writes `<4>` and the like before a line.
struct Prefixed(Option<&'static [u8]>);

impl Write for Prefixed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stderr = io::stderr().lock();
        if let Some(prefix) = self.0.take() {
            // One call a line: lines of other threads do not come between.
            let mut line = prefix.to_vec();
            line.extend_from_slice(bytes);
            stderr.write_all(&line)?;
            return Ok(bytes.len());
        }
        stderr.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Prefixed;

    fn make_writer(&'a self) -> Prefixed {
        Prefixed(None)
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Prefixed {
        let prefix: &[u8] = match *meta.level() {
            Level::ERROR => b"<3>",
            Level::WARN => b"<4>",
            Level::INFO => b"<6>",
            Level::DEBUG | Level::TRACE => b"<7>",
        };
        Prefixed(self.journal.then_some(prefix))
    }
}
