//! The commands, one file each: arguments in, [`Outcome`] out.

mod backup;
mod demo;
mod diff;
mod expire;
mod gateway;
mod host;
mod init;
mod key;
mod machines;
mod points;
mod repo;
mod restore;
mod service;
mod shell;
mod soak;
mod verify;

use crate::args::{Args, Command};
use crate::context::Context;
use crate::exit::Outcome;
use tidegate_agent::Result;

/// Runs the command that `args` names.
pub(crate) async fn run(args: Args, context: Context) -> Result<Outcome> {
    let global = &args.global;
    match args.command {
        Command::Init(args) => init::run(global, args, &context).await,
        Command::Backup(args) => backup::run(global, args, &context).await,
        Command::Points(args) => points::run(global, args, &context).await,
        Command::Expire(args) => expire::run(global, args, &context).await,
        Command::Diff(args) => diff::run(global, args, &context).await,
        Command::Restore(args) => restore::run(global, args, &context).await,
        Command::Verify(args) => verify::run(global, args, &context).await,
        Command::Machines(args) => machines::run(args, &context).await,
        Command::Status(args) => service::status(args, &context).await,
        Command::Run(args) => service::run(args, &context).await,
        Command::Cancel(args) => service::cancel(args, &context).await,
        Command::Key(args) => key::run(global, args, &context).await,
        Command::Gateway(args) => gateway::run(global, args, &context).await,
        Command::Host(args) => host::run(global, args, &context).await,
        Command::Repo(args) => repo::run(global, args, &context).await,
        Command::Demo(args) => demo::run(args, &context).await,
        Command::Soak(args) => soak::run(args, &context).await,
        Command::Completions(args) => shell::completions(&args, &context),
        Command::Man(args) => shell::man(&args, &context),
    }
}
