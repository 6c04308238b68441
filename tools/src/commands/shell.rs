//! `tidegate completions` and `tidegate man`: made from the very definitions that are parsed.

use crate::args::{Args, Completions, Man};
use crate::context::Context;
use crate::exit::Outcome;
use clap::CommandFactory;
use tidegate_agent::{Error, Kind, Result};

pub(super) fn completions(args: &Completions, context: &Context) -> Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "tidegate", &mut script);
    let script = String::from_utf8(script).map_err(|error| {
        Error::new(Kind::Bug, "the completion script is not text").caused_by(error)
    })?;
    context.output.stdout(&script)?;
    Ok(Outcome::Done)
}

pub(super) fn man(args: &Man, context: &Context) -> Result<Outcome> {
    let cannot = |error| {
        Error::io(
            format!("cannot write man pages into {}", args.dir.display()),
            error,
        )
    };
    std::fs::create_dir_all(&args.dir).map_err(cannot)?;
    clap_mangen::generate_to(Args::command(), &args.dir).map_err(cannot)?;
    context
        .output
        .note(&format!("man pages are in {}", args.dir.display()));
    Ok(Outcome::Done)
}
