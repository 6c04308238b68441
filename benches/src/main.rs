//! `tidegate-benches`: measurements that decide something, each by one command, each printing the
//! table that goes into the documents.
//!
//! Not a test suite: nothing here passes or fails, except that a restore which is not bit-exact ends
//! a run. Figures stand beside a peer's or a physical limit's from the same run, never alone.
#![allow(clippy::print_stdout, reason = "a command-line program")]
#![allow(clippy::print_stderr, reason = "a command-line program")]

mod chunking;
mod compression;
mod image;
mod link;
mod live;
mod machine;
mod relay;
mod speed;
mod table;
mod wan;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// What each way of chunking leaves to store, and how fast it cuts
    Chunking(chunking::Arguments),
    /// What each way of compressing leaves to store, and how fast it is
    Compression(compression::Arguments),
    /// Backups and restores of real images, beside peers and limits
    Speed(speed::Arguments),
    /// The link on one machine, beside bare QUIC and backups that need none
    Link(link::Arguments),
    /// What the protection of a running machine costs: the machine, and the store
    Live(live::Arguments),
    /// The link over long, lossy and shared paths, beside other congestion controls (root)
    Wan(wan::Arguments),
    /// Receives what `link` sends over bare QUIC (its child)
    #[command(hide = true)]
    BareReceiver(link::bare::ReceiverArguments),
    /// A gateway that forgets what `link` puts through it (its child)
    #[command(hide = true)]
    ForgetfulGateway(link::forgetful::GatewayArguments),
    /// Reads and hashes an image (a child of `speed`)
    #[command(hide = true)]
    LimitHash(speed::limit::HashArguments),
    /// Copies an image (a child of `speed`)
    #[command(hide = true)]
    LimitCopy(speed::limit::CopyArguments),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().bench {
        Bench::Chunking(arguments) => chunking::run(&arguments),
        Bench::Compression(arguments) => compression::run(&arguments),
        Bench::Speed(arguments) => speed::run(&arguments),
        Bench::Link(arguments) => link::run(&arguments),
        Bench::Live(arguments) => live::run(&arguments),
        Bench::Wan(arguments) => wan::run(&arguments),
        Bench::BareReceiver(arguments) => link::bare::receive(&arguments),
        Bench::ForgetfulGateway(arguments) => link::forgetful::serve(&arguments),
        Bench::LimitHash(arguments) => speed::limit::hash(&arguments),
        Bench::LimitCopy(arguments) => speed::limit::copy(&arguments),
    }
}
