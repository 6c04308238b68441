//! Options of `tidegate gateway` and `tidegate host`, as written.

use super::RepositoryOptions;
use crate::parse::{self, WrittenGrant};
use clap::{Subcommand, ValueHint};
use std::path::PathBuf;
use std::time::Duration;
use tidegate_protocol::rights::Rights;

/// Say which hosts may connect to gateways, and what they may do.
///
/// Gateways that belong together are a fleet. What they share is in one place, apart from the
/// repositories: invites, who has joined, who was revoked. Whoever may write there can let hosts in.
#[derive(Debug, Subcommand)]
pub(crate) enum Gateway {
    Init(GatewayInit),
    Invite(GatewayInvite),
    List(GatewayList),
    Revoke(GatewayRevoke),
    Status(GatewayStatus),
}

/// Where the fleet is.
#[derive(Debug, clap::Args)]
pub(crate) struct FleetOptions {
    /// The fleet's place: ./folder, s3://bucket/prefix, az://container/prefix or gs://bucket/prefix
    #[arg(long, value_name = "PLACE")]
    pub(crate) fleet: String,
}

/// Make a fleet and the key of its authority.
///
/// Writes authority.key into a folder, and only then makes the fleet. Copy the key to each of its
/// gateways and to nobody else: who has it can be any gateway and any host. Run again after an
/// interruption, it finishes what was begun.
#[derive(Debug, clap::Args)]
pub(crate) struct GatewayInit {
    #[command(flatten)]
    pub(crate) fleet: FleetOptions,
    /// Where to write the key
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) keys: PathBuf,
}

/// Invite a host: print the token by which it joins, once.
///
/// Rights: backup (make recovery points), restore (read them back), maintenance (keep the repository
/// in order), monitor (see how things stand). A host that is invited again gets another enrolment;
/// the one before lives on until it is revoked.
#[derive(Debug, clap::Args)]
pub(crate) struct GatewayInvite {
    #[command(flatten)]
    pub(crate) fleet: FleetOptions,
    /// What to call the host
    #[arg(long, value_name = "NAME", value_parser = parse::name)]
    pub(crate) host: String,
    /// A repository of the gateways, by itself or with rights of its own: main, archive:monitor
    #[arg(long = "repo", value_name = "NAME[:RIGHTS]", required = true, value_parser = parse::grant)]
    pub(crate) repositories: Vec<WrittenGrant>,
    /// Rights in those named by themselves, with commas: backup,restore
    #[arg(long, value_name = "RIGHTS", default_value = "backup", value_parser = parse::rights)]
    pub(crate) rights: Rights,
    /// How long the token can be used: 90s, 30m or 24h
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse::duration)]
    pub(crate) expires: Duration,
    /// Where a gateway is, to be told to the host; may be given several times
    #[arg(long = "gateway", value_name = "HOST:PORT", value_parser = parse::gateway)]
    pub(crate) gateways: Vec<String>,
    /// Write the token into a new file that only its owner may read, instead of printing it
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) out: Option<PathBuf>,
}

/// List hosts: who was invited, who has joined, who was revoked.
#[derive(Debug, clap::Args)]
pub(crate) struct GatewayList {
    #[command(flatten)]
    pub(crate) fleet: FleetOptions,
}

/// End a host's enrolments for ever.
///
/// Gateways close its connections as soon as they have read of it, and give it no new certificate.
/// To let the host in again, invite it again.
#[derive(Debug, clap::Args)]
pub(crate) struct GatewayRevoke {
    /// The host's name, for all its enrolments, or at least four digits of the id of one
    #[arg(value_name = "HOST|ID")]
    pub(crate) which: String,
    #[command(flatten)]
    pub(crate) fleet: FleetOptions,
}

/// Ask a gateway how it is.
///
/// Any host that has joined may ask, about a repository in which it has a right.
#[derive(Debug, clap::Args)]
pub(crate) struct GatewayStatus {
    #[command(flatten)]
    pub(crate) repository: RepositoryOptions,
}

/// Make this machine a host of a fleet of gateways.
#[derive(Debug, Subcommand)]
pub(crate) enum Host {
    Join(HostJoin),
    Show(HostShow),
}

/// Join a fleet with the token of an invite.
///
/// Makes a key, which never leaves this machine, and gets a certificate for it; both are kept in the
/// identity's folder, and the certificate is renewed by itself from then on. Run again after an
/// interruption, it goes on with the same key.
#[derive(Debug, clap::Args)]
pub(crate) struct HostJoin {
    /// The file with the token; - for standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) token_file: PathBuf,
    /// Where a gateway is, instead of where the token says; may be given several times
    #[arg(long = "gateway", value_name = "HOST:PORT", value_parser = parse::gateway)]
    pub(crate) gateways: Vec<String>,
    /// Where to keep key and certificates [default: /var/lib/tidegate/identity]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) identity: Option<PathBuf>,
}

/// Show which enrolment this host has, and how long its certificate holds.
#[derive(Debug, clap::Args)]
pub(crate) struct HostShow {
    /// Where key and certificates are [default: /var/lib/tidegate/identity]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) identity: Option<PathBuf>,
}
