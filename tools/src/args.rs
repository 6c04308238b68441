//! Options as written on the command line. What they mean together with the environment and the
//! configuration file is in [`crate::settings`]; help, man pages and completions come from here.

mod gateway;

pub(crate) use gateway::{
    FleetOptions, Gateway, GatewayInit, GatewayInvite, GatewayList, GatewayRevoke, GatewayStatus,
    Host, HostJoin, HostShow,
};

use crate::exit;
use crate::parse::{self, Spec, VerifyWhat};
use crate::settings::KeySource;
use clap::{ArgAction, ArgGroup, Parser, Subcommand, ValueHint};
use std::path::PathBuf;
use std::time::Duration;
use tidegate_agent::config::COMPRESSION_LEVELS;
use tidegate_agent::format::Format;
use tidegate_agent::host::config::DEFAULT_SOCKET;
use tidegate_protocol::descriptor::ChunkerParams;
use tidegate_protocol::keys::{Level, SealPublicKey};

/// Headings in the help.
const GENERAL: &str = "General options";
const REPOSITORY: &str = "Repository and key";

const ENVIRONMENT: &str = "\
Environment:
  TIDEGATE_REPO, TIDEGATE_KEY, TIDEGATE_PASSPHRASE_FILE, TIDEGATE_CACHE_DIR, TIDEGATE_IDENTITY,
  TIDEGATE_CONFIG
             like the options of the same names, which outrank them
  TIDEGATE_SOCKET
             where the host service listens, like --socket
  TIDEGATE_LOG
             what to log on stderr, such as debug or tidegate_agent=trace
  Credentials of S3, Azure and Google come from the variables and files that those clouds use.

Configuration file: --config, else ~/.config/tidegate/config.toml, else /etc/tidegate/config.toml
";

/// Backs up VM disk images to object storage, deduplicated and sealed, and restores them.
#[derive(Debug, Parser)]
#[command(
    name = "tidegate",
    version,
    propagate_version = true,
    max_term_width = 100,
    after_help = format!("{ENVIRONMENT}\n{}", exit::CODES),
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Global {
    /// Read this configuration file and no other
    #[arg(help_heading = GENERAL, long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) config: Option<PathBuf>,
    /// Print the result as one JSON value; errors too
    #[arg(help_heading = GENERAL, long, global = true)]
    pub(crate) json: bool,
    /// Show no progress and no notes
    #[arg(help_heading = GENERAL, long, short, global = true)]
    pub(crate) quiet: bool,
    /// Log more (-vv: still more)
    #[arg(help_heading = GENERAL, long, short, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// Where the repository is.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct RepositoryOptions {
    /// The repository: ./folder, s3://bucket/prefix, az://…, gs://… or quic://gateway,gateway/name
    #[arg(help_heading = REPOSITORY, long, value_name = "PLACE")]
    pub(crate) repo: Option<String>,
    /// Where to keep what is known of the repository; may be deleted at any time
    #[arg(help_heading = REPOSITORY, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) cache_dir: Option<PathBuf>,
    /// This host's key and certificates, for gateways [default: /var/lib/tidegate/identity]
    #[arg(help_heading = REPOSITORY, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) identity: Option<PathBuf>,
}

/// Where the key in use comes from.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(group(ArgGroup::new("key source")))]
pub(crate) struct KeyOptions {
    /// The key file
    #[arg(help_heading = REPOSITORY, long, value_name = "FILE", group = "key source", value_hint = ValueHint::FilePath)]
    pub(crate) key: Option<PathBuf>,
    /// Open a key slot with the passphrase in FILE
    #[arg(help_heading = REPOSITORY, long, value_name = "FILE", group = "key source", value_hint = ValueHint::FilePath)]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Open a key slot with the content of FILE
    #[arg(help_heading = REPOSITORY, long, value_name = "FILE", group = "key source", value_hint = ValueHint::FilePath)]
    pub(crate) wrapping_file: Option<PathBuf>,
    /// Open a key slot with the escrow key in FILE
    #[arg(help_heading = REPOSITORY, long, value_name = "FILE", group = "key source", value_hint = ValueHint::FilePath)]
    pub(crate) escrow_key: Option<PathBuf>,
    /// Open this slot only: digits of its id
    #[arg(help_heading = REPOSITORY, long, value_name = "ID")]
    pub(crate) slot: Option<String>,
}

impl KeyOptions {
    /// The source that was named, if one was.
    pub(crate) fn source(&self) -> Option<KeySource> {
        let file =
            |path: &Option<PathBuf>, source: fn(PathBuf) -> KeySource| path.clone().map(source);
        file(&self.key, KeySource::File)
            .or_else(|| file(&self.passphrase_file, KeySource::PassphraseFile))
            .or_else(|| file(&self.wrapping_file, KeySource::WrappingFile))
            .or_else(|| file(&self.escrow_key, KeySource::EscrowKey))
    }
}

/// Which repository, and with which key.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Access {
    #[command(flatten)]
    pub(crate) repository: RepositoryOptions,
    #[command(flatten)]
    pub(crate) key: KeyOptions,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Init(Init),
    Backup(Backup),
    Points(Points),
    Expire(Expire),
    Diff(Diff),
    Restore(Restore),
    Verify(Verify),
    Machines(Machines),
    Status(Status),
    Run(Run),
    Cancel(Cancel),
    #[command(subcommand)]
    Key(Key),
    #[command(subcommand)]
    Repo(Repo),
    #[command(subcommand)]
    Gateway(Gateway),
    #[command(subcommand)]
    Host(Host),
    Demo(Demo),
    Soak(Soak),
    Completions(Completions),
    Man(Man),
}

/// Make a repository and its three key files.
///
/// Tries whether the place keeps its promises, writes host.key, maintenance.key and restore.key into
/// a folder, and only then makes the repository. Put restore.key away from the hosts: without it
/// nothing can be restored.
#[derive(Debug, clap::Args)]
pub(crate) struct Init {
    #[command(flatten)]
    pub(crate) repository: RepositoryOptions,
    /// Where to write the key files
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) keys: PathBuf,
    /// How to cut disks into chunks, for good: block-aligned, block-aligned:MIN/AVG/MAX[/EOF] or
    /// fixed:SIZE
    #[arg(long, value_name = "CHUNKER", default_value = "block-aligned", value_parser = parse::chunker)]
    pub(crate) chunker: ChunkerParams,
}

/// Back up a machine, as one recovery point: by its disk images, or while it runs.
///
/// Only what the repository does not hold yet is uploaded. An interrupted run loses nothing: the next
/// one goes on from what has landed. Images must not change while they are read; a running machine is
/// frozen at one moment, goes on, and tells what changed since the point before.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(false).args(["images", "vm", "qmp"])))]
pub(crate) struct Backup {
    /// Disk images or block devices
    #[arg(value_name = "IMAGE", value_hint = ValueHint::FilePath)]
    pub(crate) images: Vec<PathBuf>,
    /// A domain of libvirt, by name or UUID, running or off
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) vm: Option<String>,
    /// A running QEMU, by the socket of its monitor (QMP)
    #[arg(long, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    pub(crate) qmp: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) live: Live,
    /// What to call the machine [default: as its hypervisor does; the file name without suffix, where
    /// there is one image]
    #[arg(long, value_name = "NAME", value_parser = parse::name)]
    pub(crate) machine: Option<String>,
    /// The images' format: raw, qcow2, vmdk, vhd or vhdx [default: by suffix and content]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
    /// Let images name backing files and extents below this folder too, besides their own
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) backing_folder: Vec<PathBuf>,
    /// The images are snapshots that nobody writes to any more: remember which point each is, and
    /// read only what stands in the images above one that is remembered
    #[arg(long, conflicts_with_all = ["vm", "qmp"])]
    pub(crate) snapshot: bool,
    /// Do not check first that the images' tables are whole, which reads all of them
    #[arg(long)]
    pub(crate) skip_check: bool,
    /// How long to keep this recovery point: 12h, 30d, 8w or 1y [default: without an end]
    #[arg(long, value_name = "TIME", value_parser = parse::keep)]
    pub(crate) keep: Option<Duration>,
    /// Of what is called unchanged, compare so many millionths all the same, at most 256 MiB
    #[arg(long, value_name = "MILLIONTHS", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub(crate) audit_ppm: u32,
    /// Read and compare, but store nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Threads that chunk, compress and seal
    #[arg(long, value_name = "N", value_parser = workers())]
    pub(crate) workers: Option<u16>,
    /// zstd level; 3 stores about 3 % less than 1 and takes half as long again [default: 1]
    #[arg(long, value_name = "LEVEL", allow_negative_numbers = true, value_parser = compression_level())]
    pub(crate) compression_level: Option<i32>,
    #[command(flatten)]
    pub(crate) access: Access,
}

/// How a running machine is frozen.
#[derive(Debug, clap::Args)]
pub(crate) struct Live {
    /// The libvirt that is meant [default: $LIBVIRT_DEFAULT_URI, else qemu:///system]
    #[arg(long, value_name = "URI", requires = "vm")]
    pub(crate) connect: Option<String>,
    /// Ask the software in the guest to be still for the moment: off, prefer or require
    #[arg(
        long,
        value_name = "HOW",
        default_value = "off",
        conflicts_with = "images"
    )]
    pub(crate) quiesce: QuiesceArg,
    /// Where to keep what the guest overwrites while its disks are read
    #[arg(long, value_name = "DIR", default_value = "/var/tmp", value_hint = ValueHint::DirPath, conflicts_with = "images")]
    pub(crate) scratch: PathBuf,
    /// How much of it there may be; where it is more, the backup is given up and the guest goes on
    #[arg(long, value_name = "SIZE", default_value = "10GiB", value_parser = parse::size, conflicts_with = "images")]
    pub(crate) scratch_max: u64,
    /// What must stay free in that folder
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse::size, conflicts_with = "images")]
    pub(crate) scratch_reserve: u64,
}

/// Whether a guest's software is asked to be still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum QuiesceArg {
    /// No: the point is as after a power cut
    Off,
    /// Where its agent answers
    Prefer,
    /// Yes, or there is no point
    Require,
}

/// List recovery points, oldest first.
#[derive(Debug, clap::Args)]
pub(crate) struct Points {
    /// Only those of this machine
    #[arg(long, value_name = "NAME", value_parser = parse::name)]
    pub(crate) machine: Option<String>,
    #[command(flatten)]
    pub(crate) access: Access,
}

/// Give up the recovery points whose time has passed. Needs a maintenance or restore key.
///
/// How long a point is kept was said when it was made: by its policy, or by backup --keep. Points on hold
/// stay, and so does each machine's newest one. A point that was given up cannot be restored any more; the
/// space of its data is not freed by this version.
#[derive(Debug, clap::Args)]
pub(crate) struct Expire {
    /// Only those of this machine
    #[arg(long, value_name = "NAME", value_parser = parse::name)]
    pub(crate) machine: Option<String>,
    /// Show what would go; give up nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Believe this machine's clock even where it is more than 31 days past the newest backup
    #[arg(long)]
    pub(crate) trust_clock: bool,
    #[command(flatten)]
    pub(crate) access: Access,
}

/// Show what changed between two points, by extent and size.
///
/// A point is written MACHINE@latest, MACHINE@ID (at least four digits) or MACHINE@TIME.
#[derive(Debug, clap::Args)]
pub(crate) struct Diff {
    /// The earlier point
    #[arg(value_name = "MACHINE@A")]
    pub(crate) from: Spec,
    /// The later point
    #[arg(value_name = "MACHINE@B")]
    pub(crate) to: Spec,
    /// How many of the largest extents to show
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) largest: usize,
    #[command(flatten)]
    pub(crate) access: Access,
}

/// Restore a point's disks to files or devices.
///
/// A point is written MACHINE@latest, MACHINE@ID (at least four digits) or MACHINE@TIME, where TIME
/// is YYYY-MM-DD, YYYY-MM-DDTHH:MM or YYYY-MM-DDTHH:MM:SS in local time, or RFC 3339; it names the
/// newest point taken by the end of that day, minute or second.
///
/// A new image gets its name when it is complete; until then it is called
/// NAME.tidegate-partial. If a restore is interrupted, the same command goes on from there.
#[derive(Debug, clap::Args)]
pub(crate) struct Restore {
    /// The point
    #[arg(value_name = "MACHINE@POINT")]
    pub(crate) spec: Spec,
    /// The file or device to write; for several disks, the folder
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub(crate) to: PathBuf,
    /// Only this disk
    #[arg(long, value_name = "NAME")]
    pub(crate) disk: Option<String>,
    /// Write this format: raw, qcow2, vmdk, vhd or vhdx [default: by suffix, else raw]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
    /// A variant of the format, such as streamOptimized (vmdk), fixed (vhd)
    #[arg(long, value_name = "NAME")]
    pub(crate) subformat: Option<String>,
    /// Compress the clusters of a qcow2 image
    #[arg(long)]
    pub(crate) compress: bool,
    /// Make an existing raw image or device equal to the point: fetch only what differs
    #[arg(long, conflicts_with = "overwrite")]
    pub(crate) in_place: bool,
    /// Replace an existing image, or write onto a device
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Read back what was written, and compare
    #[arg(long)]
    pub(crate) verify: bool,
    /// Show what would be fetched; write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) machine: Define,
    #[command(flatten)]
    pub(crate) access: Access,
}

/// The whole machine, as a domain of libvirt.
#[derive(Debug, clap::Args)]
pub(crate) struct Define {
    /// Define the machine in libvirt again, from the definition that the point holds; --to is the
    /// folder of its disks
    #[arg(long, conflicts_with_all = ["disk", "in_place"])]
    pub(crate) define: bool,
    /// Give it this name, a UUID and network addresses of its own: a copy
    #[arg(long = "as", value_name = "NAME", value_parser = parse::name, requires = "define")]
    pub(crate) as_name: Option<String>,
    /// Put this disk here, rather than into the folder
    #[arg(long, value_name = "DISK=PATH", value_parser = parse::placed, requires = "define")]
    pub(crate) place: Vec<(String, PathBuf)>,
    /// Let a copy have the network addresses of the original
    #[arg(long, requires = "as_name")]
    pub(crate) keep_macs: bool,
    /// Connect it to another network or bridge than the definition says
    #[arg(long, value_name = "OLD=NEW", value_parser = parse::renamed, requires = "define")]
    pub(crate) network: Vec<(String, String)>,
    /// Start it
    #[arg(long, requires = "define")]
    pub(crate) start: bool,
    /// The libvirt that is meant [default: $LIBVIRT_DEFAULT_URI, else qemu:///system]
    #[arg(long, value_name = "URI", requires = "define")]
    pub(crate) connect: Option<String>,
}

/// Check that what is stored can be restored.
///
/// Reads every object that the points need: structure with any key, disk content with a restore key.
/// Damage ends with exit code 4 and names the machines, points and disk ranges that it touches.
#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("points").required(true)))]
pub(crate) struct Verify {
    /// One point, or all points of a machine
    #[arg(value_name = "MACHINE[@POINT]", group = "points")]
    pub(crate) what: Option<VerifyWhat>,
    /// All points of all machines
    #[arg(long, group = "points")]
    pub(crate) all: bool,
    /// Check a random share of the disk content only, such as 5%
    #[arg(long, value_name = "SHARE", value_parser = parse::sample)]
    pub(crate) sample: Option<f64>,
    /// Draw the sample by this number, to repeat one [default: random]
    #[arg(long, value_name = "N", requires = "sample")]
    pub(crate) seed: Option<u64>,
    #[command(flatten)]
    pub(crate) access: Access,
}

/// Where the host service listens.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Service {
    /// The host service's control socket
    #[arg(help_heading = GENERAL, long, value_name = "PATH", env = "TIDEGATE_SOCKET", default_value = DEFAULT_SOCKET, value_hint = ValueHint::FilePath)]
    pub(crate) socket: PathBuf,
}

/// List the machines of this host, and how each is protected.
///
/// What the host service backs up, how, and what nothing takes: machines in no group, domains of libvirt
/// that no line of the configuration names. It looks for itself and needs no service; without a host.toml
/// it lists libvirt's domains.
#[derive(Debug, clap::Args)]
pub(crate) struct Machines {
    /// The host service's configuration [default: /etc/tidegate/host.toml, where there is one]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) host_config: Option<PathBuf>,
    /// Look at this libvirt too [default: those of the configuration]
    #[arg(long, value_name = "URI")]
    pub(crate) connect: Option<String>,
}

/// Show how the machines of this host are: a machine a line.
///
/// The age of each machine's newest point beside what its policy promises, what came of its last run,
/// when the next one is due, and how fast its disks are dealt with. Asks the host service, no store.
#[derive(Debug, clap::Args)]
pub(crate) struct Status {
    /// Show the runs to come instead, in their order
    #[arg(long)]
    pub(crate) plan: bool,
    #[command(flatten)]
    pub(crate) service: Service,
}

/// Have the host service back a machine up now.
///
/// It begins as soon as there is room, before all others. With --wait, Ctrl-C ends the waiting and
/// not the run; `tidegate cancel` ends the run.
#[derive(Debug, clap::Args)]
pub(crate) struct Run {
    /// The machine
    #[arg(value_name = "MACHINE", value_parser = parse::name)]
    pub(crate) machine: String,
    /// Show how it goes, and end as it ends
    #[arg(long)]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) service: Service,
}

/// Stop the run of a machine that the host service has under way.
///
/// What has landed in the store is kept. The next run is the one that the policy has next.
#[derive(Debug, clap::Args)]
pub(crate) struct Cancel {
    /// The machine
    #[arg(value_name = "MACHINE", value_parser = parse::name)]
    pub(crate) machine: String,
    #[command(flatten)]
    pub(crate) service: Service,
}

/// Manage keys.
///
/// Levels: a host key backs up and lists, and cannot read disk content; a maintenance key keeps the
/// repository in order; a restore key can do everything.
#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    Add(KeyAdd),
    List(KeyList),
    Remove(KeyRemove),
    Export(KeyExport),
    Recipient(KeyRecipient),
}

/// Issue another key, as a file or wrapped in a slot of the repository. Needs a restore key.
///
/// Here --passphrase-file and --wrapping-file are those of the new slot. The key in use comes from
/// --key, from TIDEGATE_KEY or TIDEGATE_PASSPHRASE_FILE, or from the configuration file.
#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("wrapping").required(true)))]
pub(crate) struct KeyAdd {
    /// What the key may do: host, maintenance or restore
    #[arg(long)]
    pub(crate) level: Level,
    /// Write a key file
    #[arg(long, value_name = "FILE", group = "wrapping", value_hint = ValueHint::FilePath)]
    pub(crate) out: Option<PathBuf>,
    /// Wrap it in a slot for the passphrase in FILE
    #[arg(long, value_name = "FILE", group = "wrapping", value_hint = ValueHint::FilePath)]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Wrap it in a slot for a passphrase asked for on the terminal
    #[arg(long, group = "wrapping")]
    pub(crate) prompt: bool,
    /// Wrap it in a slot for whoever holds this escrow key
    #[arg(long, value_name = "PUBLIC", group = "wrapping", value_parser = parse::recipient)]
    pub(crate) recipient: Option<SealPublicKey>,
    /// Wrap it in a slot for the content of FILE: at least 32 random bytes
    #[arg(long, value_name = "FILE", group = "wrapping", value_hint = ValueHint::FilePath)]
    pub(crate) wrapping_file: Option<PathBuf>,
    /// What to call it
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) label: String,
    #[command(flatten)]
    pub(crate) repository: RepositoryOptions,
    /// The key file in use
    #[arg(help_heading = REPOSITORY, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) key: Option<PathBuf>,
}

/// List keys and slots.
#[derive(Debug, clap::Args)]
pub(crate) struct KeyList {
    #[command(flatten)]
    pub(crate) access: Access,
}

/// Revoke a key, or delete a slot.
///
/// What a revoked key appends to the log from then on is void. It still opens what it could open
/// before: whoever held it may have kept a copy of the secrets inside.
#[derive(Debug, clap::Args)]
pub(crate) struct KeyRemove {
    /// Digits of the key's or slot's id, or its label
    #[arg(value_name = "KEY")]
    pub(crate) which: String,
    #[command(flatten)]
    pub(crate) access: Access,
}

/// Write the key in use into a key file: to get one back from a slot, or to issue a lower level.
#[derive(Debug, clap::Args)]
pub(crate) struct KeyExport {
    /// The file to write; it must not exist
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) out: PathBuf,
    /// Issue a new key of this level instead of writing the one in use
    #[arg(long)]
    pub(crate) level: Option<Level>,
    #[command(flatten)]
    pub(crate) access: Access,
}

/// Make an escrow key: the file for a safe, its public half for `key add --recipient`.
#[derive(Debug, clap::Args)]
pub(crate) struct KeyRecipient {
    /// The file to write; it must not exist
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) out: PathBuf,
}

/// Look at the repository.
#[derive(Debug, Subcommand)]
pub(crate) enum Repo {
    /// What it is, and what is known of it
    Info(RepoCommand),
    /// What it holds: lists every object
    Stats(RepoCommand),
    /// Put small packs and index segments together, so that quick cycles do not litter the store
    ///
    /// Gateways do it each hour. Where there is none, run it by a timer, with a maintenance key and with
    /// the right to delete below packs/ and index/. What was put together goes by itself an hour later, with
    /// the next run.
    Bundle(RepoBundle),
    /// Throw away the local cache and build it again from the store
    RebuildCache(RepoCommand),
}

/// Options of `repo bundle`.
#[derive(Debug, clap::Args)]
pub(crate) struct RepoBundle {
    /// Show what would be put together; write and delete nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) access: Access,
}

/// Options of the commands that look at the repository.
#[derive(Debug, clap::Args)]
pub(crate) struct RepoCommand {
    #[command(flatten)]
    pub(crate) access: Access,
}

/// Back up a disk, restore it and compare, in a folder that is deleted afterwards.
///
/// Without an image it makes a sparse sample of 256 MiB, and also shows what a second backup costs
/// after a small change.
#[derive(Debug, clap::Args)]
pub(crate) struct Demo {
    /// A disk image of your own; it is only read
    #[arg(value_name = "IMAGE", value_hint = ValueHint::FilePath)]
    pub(crate) image: Option<PathBuf>,
    /// Work in this folder and keep it
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: Option<PathBuf>,
}

/// Try the engine: generated histories of disks, backups and restores against a model in memory.
///
/// Writes, trims, resizes, backups that are interrupted, restores of any point onto anything, diffs,
/// lost caches and faults of the store, in repositories of its own. What the engine does is compared
/// with what the model says. Where they differ it looks for the shortest history that shows it, and
/// ends with code 4.
#[derive(Debug, clap::Args)]
pub(crate) struct Soak {
    /// The first history's seed; each next one has the next [default: drawn]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// How many steps in all
    #[arg(long, value_name = "N", default_value_t = 2000)]
    pub(crate) steps: u64,
    /// How long instead: 90s, 30m or 2h
    #[arg(long = "for", value_name = "TIME", value_parser = parse::duration, conflicts_with = "steps")]
    pub(crate) lasts: Option<Duration>,
    /// Steps after which a history ends, and the next one begins with a new repository
    #[arg(long, value_name = "N", default_value_t = 250, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) history: u64,
    /// Only these steps of the first history
    #[arg(long, value_name = "N,N,…", value_delimiter = ',')]
    pub(crate) only: Vec<usize>,
    /// Make the repositories below this place instead of in memory; they are left there
    #[arg(long, value_name = "PLACE")]
    pub(crate) repo: Option<String>,
}

/// Print a completion script for a shell.
#[derive(Debug, clap::Args)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

/// Write the man pages of all commands.
#[derive(Debug, clap::Args)]
pub(crate) struct Man {
    /// Where to; made if it is not there
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
}

fn workers() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..=256)
}

fn compression_level() -> clap::builder::RangedI64ValueParser<i32> {
    clap::value_parser!(i32)
        .range(i64::from(*COMPRESSION_LEVELS.start())..=i64::from(*COMPRESSION_LEVELS.end()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_hold_together() {
        Args::command().debug_assert();
    }

    #[test]
    fn no_option_takes_a_secret() {
        fn visit(command: &clap::Command) {
            for option in command.get_arguments() {
                let name = option.get_long().unwrap_or_default();
                assert!(
                    !["passphrase", "password", "secret", "token"].contains(&name),
                    "--{name} of {} would take a secret from the command line",
                    command.get_name()
                );
            }
            command.get_subcommands().for_each(visit);
        }
        visit(&Args::command());
    }
}
