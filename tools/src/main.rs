//! `tidegate`: the operator's command line.
//!
//! Thin: arguments become settings, a command runs against the engine, and what it returns becomes
//! output and an exit code. What it is not: an engine. Everything that reads, seals, stores or
//! restores is in `tidegate-agent`.
//!
//! | Part | Purpose |
//! |---|---|
//! | [`args`] | options as written |
//! | [`settings`] | configuration file < environment < options → valid settings |
//! | [`parse`] | what is written inside an option: points, sizes, samples, chunkers, recipients |
//! | [`context`] | what every command is given: settings, output, the token that says stop |
//! | [`keys`], [`escrow`] | where the key comes from |
//! | [`commands`] | one file a command |
//! | [`output`], [`progress`], [`text`] | results on stdout, all else on stderr |
//! | [`soak`] | generated histories against a model |
//! | [`exit`] | exit codes |
//! | [`signals`] | Ctrl-C: stop cleanly; twice: at once |

mod args;
mod commands;
mod context;
mod escrow;
mod exit;
mod keys;
mod output;
mod parse;
mod progress;
mod settings;
mod signals;
mod soak;
mod text;

use args::{Args, Command};
use clap::Parser;
use context::Context;
use output::Output;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use tidegate_agent::{Error, Kind, Result};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    if let Some(code) = tidegate_agent::live::guard::be_one_if_asked() {
        return code;
    }
    tidegate_agent::allocator::give_back_large_buffers();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return refuse(&error),
    };
    let output = Output::new(args.global.json, args.global.quiet);
    // A soak provokes what is warned of elsewhere.
    let usually = match args.command {
        Command::Soak(_) => "error",
        _ => "warn",
    };
    output.start_log(args.global.verbose, usually);
    // A panic has told on stderr what it was about; what is left is the documented exit code.
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| run(args, &output)));
    match outcome.unwrap_or_else(|_| Err(bug())) {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            output.error(&error);
            ExitCode::from(error.kind().exit_code())
        }
    }
}

fn bug() -> Error {
    Error::new(Kind::Bug, "tidegate broke one of its own promises")
        .advise("please report this, with the lines above")
}

/// Says what is wrong with the arguments; or shows the help or version that they ask for.
fn refuse(error: &clap::Error) -> ExitCode {
    // Where stdout or stderr is closed there is nobody left to tell.
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    if std::env::args_os().any(|arg| arg == "--json") {
        let text = error.to_string();
        let text = text.trim_start_matches("error: ").trim_end();
        Output::new(true, true).error_value(&Error::new(Kind::Config, text));
    }
    ExitCode::from(Kind::Config.exit_code())
}

fn run(args: Args, output: &Output) -> Result<exit::Outcome> {
    // The engine has worker threads of its own: what is left for the runtime is waiting.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("tidegate-io")
        .enable_all()
        .build()
        .map_err(|error| Error::io("cannot start the runtime", error))?;
    let outcome = runtime.block_on(async {
        let stop = CancellationToken::new();
        let killed = signals::watch(stop.clone(), output.clone())?;
        let context = Context::new(output.clone(), stop);
        tokio::select! {
            biased;
            outcome = commands::run(args, context) => outcome,
            () = killed => Err(Error::new(Kind::Interrupted, "stopped at once, as asked")),
        }
    });
    // Threads that still read or write end with the process.
    runtime.shutdown_background();
    outcome
}
