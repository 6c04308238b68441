//! Machines that libvirt runs, through `virsh` as a child.
//!
//! Not a binding of libvirt: what is asked and told goes through the operator's own tool, in the words
//! that its manual has. Domains are addressed by UUID, so that no name is ever taken for an option.
//! The invariants: every call ends within its time; what it says is bounded; a child that we no longer
//! wait for is killed.

mod checkpoint;
mod definition;
mod domain;
mod freeze;
mod scratch;
mod tpm;
mod xml;

pub use definition::{PlacedDisk, Redefined, Redefinition, redefine};
pub use domain::{Domain, DomainDisk};
pub use tpm::place_tpm;

use crate::error::{Error, Kind, Result};
use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// How long a call may take. libvirt waits 30 s itself for a domain that somebody else is changing.
const CALL_TIME_MAX: Duration = Duration::from_secs(60);
/// The daemon that runs a host's machines.
const HOST: &str = "qemu:///system";
/// What is read of an answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// A libvirt daemon.
#[derive(Debug, Clone)]
pub struct Libvirt {
    uri: Option<String>,
}

/// A domain by its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainName {
    /// By which it is addressed.
    pub uuid: String,
    /// As the operator knows it.
    pub name: String,
}

impl Libvirt {
    /// The daemon at `uri`, or that which `LIBVIRT_DEFAULT_URI` names, or the host's: never one of the
    /// user's own, though `virsh` takes that by itself for those who are not root.
    pub fn new(uri: Option<String>) -> Self {
        let is_named = std::env::var_os("LIBVIRT_DEFAULT_URI").is_some();
        let host = (!is_named).then(|| HOST.to_owned());
        Self { uri: uri.or(host) }
    }

    /// The daemon that was named.
    pub(super) fn uri(&self) -> Option<&str> {
        self.uri.as_deref()
    }

    /// What time a domain's agent says it is: whether it answers.
    pub(super) async fn time_of(&self, uuid: &str) -> Result<()> {
        self.virsh(&["domtime", "--domain", uuid]).await.map(drop)
    }

    /// Freezes a domain's file systems by its agent. Says how many.
    pub(super) async fn freeze_file_systems(&self, uuid: &str) -> Result<u64> {
        let told = self
            .chatty_virsh(&["domfsfreeze", "--domain", uuid])
            .await?;
        // "Froze 2 filesystem(s)"
        count_in(&told)
    }

    /// Thaws a domain's file systems by its agent. Says how many were frozen: none of a domain that is
    /// off.
    pub(super) async fn thaw(&self, uuid: &str) -> Result<u64> {
        match self.chatty_virsh(&["domfsthaw", "--domain", uuid]).await {
            Err(error) if error.to_string().contains("domain is not running") => Ok(0),
            // "Thawed 2 filesystem(s)"
            told => told.and_then(|told| count_in(&told)),
        }
    }

    /// Every domain, running or not.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] where `virsh` is not installed, [`Kind::Unavailable`] where no daemon
    /// answers.
    pub async fn domains(&self) -> Result<Vec<DomainName>> {
        let told = self.virsh(&["list", "--all", "--uuid", "--name"]).await?;
        Ok(told.lines().filter_map(DomainName::parse).collect())
    }

    /// What the operator tagged a domain with; see [`Domain::tags`].
    ///
    /// # Errors
    /// [`Kind::Missing`] where it is gone.
    pub async fn tags(&self, domain: &DomainName) -> Result<Vec<String>> {
        let told = self.virsh(&["dumpxml", "--domain", &domain.uuid]).await?;
        domain::tags_of(domain, &told)
    }

    /// The domain of that name or UUID, as it is now.
    ///
    /// # Errors
    /// [`Kind::Missing`] where there is none.
    pub async fn domain(&self, name: &str) -> Result<Domain> {
        let domains = self.domains().await?;
        let found = domains
            .into_iter()
            .find(|domain| domain.name == name || domain.uuid == name);
        let Some(found) = found else {
            return Err(
                Error::new(Kind::Missing, format!("libvirt knows no domain {name:?}"))
                    .advise("`virsh list --all` names them; --connect says which libvirt is meant"),
            );
        };
        self.describe(found).await
    }

    /// Whether a domain has a QEMU.
    ///
    /// # Errors
    /// [`Kind::Missing`] where it is gone.
    pub async fn is_active(&self, uuid: &str) -> Result<bool> {
        let state = self.virsh(&["domstate", "--domain", uuid]).await?;
        Ok(!matches!(state.trim(), "shut off" | "crashed"))
    }

    /// A domain as it is now.
    ///
    /// # Errors
    /// [`Kind::Missing`] where it is gone.
    pub async fn describe(&self, domain: DomainName) -> Result<Domain> {
        let is_active = self.is_active(&domain.uuid).await?;
        let kept = ["dumpxml", "--domain", &domain.uuid, "--inactive"];
        // A transient domain has no other definition than that of now.
        let definition = match self.virsh(&kept).await {
            Ok(definition) => definition,
            Err(error) if is_active => {
                tracing::debug!(error = error.chain(), "a transient domain");
                self.virsh(&["dumpxml", "--domain", &domain.uuid]).await?
            }
            Err(error) => return Err(error),
        };
        let now = match is_active {
            true => self.virsh(&["dumpxml", "--domain", &domain.uuid]).await?,
            false => definition.clone(),
        };
        Domain::parse(domain, is_active, &now, definition)
    }

    /// Makes a domain by its definition, a file.
    ///
    /// # Errors
    /// What libvirt says of it.
    pub async fn define(&self, definition: &Path) -> Result<()> {
        let arguments = [
            OsStr::new("define"),
            OsStr::new("--file"),
            definition.as_os_str(),
        ];
        self.virsh(&arguments).await.map(drop)
    }

    /// Starts a domain.
    ///
    /// # Errors
    /// What libvirt says of it.
    pub async fn start(&self, domain: &str) -> Result<()> {
        self.virsh(&["start", "--domain", domain]).await.map(drop)
    }

    /// Runs `virsh` and returns what it says, without words for people.
    async fn virsh<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Result<String> {
        let mut command = Command::new("virsh");
        command.arg("--quiet");
        self.call(command, arguments).await
    }

    /// The same with such words: how many file systems there are stands nowhere else.
    async fn chatty_virsh<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Result<String> {
        self.call(Command::new("virsh"), arguments).await
    }

    async fn call<A: AsRef<OsStr>>(&self, mut command: Command, arguments: &[A]) -> Result<String> {
        if let Some(uri) = &self.uri {
            command.arg("--connect").arg(uri);
        }
        let what = arguments
            .first()
            .map(|verb| format!("virsh {}", verb.as_ref().display()))
            .unwrap_or_default();
        let mut child = command
            .args(arguments)
            // Messages are read by us: in one language.
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C is for us alone, so that we can end in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Error::new(
                    Kind::Unsupported,
                    "machines of libvirt need virsh, which is not installed",
                )
                .advise("install the package libvirt-clients (Debian, Ubuntu) or libvirt-client"),
                _ => Error::io(format!("cannot run {what}"), error),
            })?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let answered = async {
            let (said, complained) = tokio::join!(read(stdout), read(stderr));
            (child.wait().await, said, complained)
        };
        let Ok((status, said, complained)) = tokio::time::timeout(CALL_TIME_MAX, answered).await
        else {
            return Err(Error::new(
                Kind::Unavailable,
                format!("{what} did not end within {} s", CALL_TIME_MAX.as_secs()),
            )
            .advise("look whether libvirt's daemon answers: `virsh list`"));
        };
        let status = status.map_err(|error| Error::io(format!("cannot wait for {what}"), error))?;
        match status.success() {
            true => Ok(said),
            false => Err(refused(&what, complained.trim())),
        }
    }
}

impl DomainName {
    fn parse(line: &str) -> Option<Self> {
        let (uuid, name) = line.trim().split_once(' ')?;
        Some(Self {
            uuid: uuid.to_owned(),
            name: name.trim().to_owned(),
        })
    }
}

/// The number that stands in what virsh says.
fn count_in(told: &str) -> Result<u64> {
    let count = told.split_whitespace().find_map(|word| word.parse().ok());
    count.ok_or_else(|| {
        let told = told.trim().escape_debug();
        Error::new(Kind::Unavailable, format!("virsh says {told}"))
    })
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        // What could be read of it says more than why the rest could not.
        let _ = pipe.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What libvirt's message says about what to do.
fn refused(what: &str, complained: &str) -> Error {
    let said = complained.replace("error: ", "").replace('\n', "; ");
    // Of who is not let in it is said too that there is no connection.
    if complained.contains("authentication") || complained.contains("access denied") {
        return Error::new(Kind::Denied, format!("{what} failed: {said}")).advise(
            "libvirt must let this user in: make it a member of the group libvirt (`usermod --append --groups libvirt USER`), and start anew",
        );
    }
    let kind = if [
        "failed to connect",
        "Connection refused",
        "Cannot recv data",
    ]
    .iter()
    .any(|text| complained.contains(text))
    {
        Kind::Unavailable
    } else if complained.contains("no domain with matching") {
        Kind::Missing
    } else if complained.contains("Timed out during operation") {
        Kind::Conflict
    } else {
        Kind::Io
    };
    Error::new(kind, format!("{what} failed: {said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_told_apart_by_uuid() {
        let line = "f3a9e4c2-1111-4222-8333-444455556666 web 01 ";
        assert_eq!(
            DomainName::parse(line),
            Some(DomainName {
                uuid: "f3a9e4c2-1111-4222-8333-444455556666".to_owned(),
                name: "web 01".to_owned(),
            })
        );
        assert_eq!(DomainName::parse(""), None);
    }

    #[test]
    fn file_systems_are_counted() {
        assert_eq!(count_in("Thawed 2 filesystem(s)\n\n").unwrap(), 2);
        assert_eq!(count_in("").unwrap_err().kind(), Kind::Unavailable);
    }

    #[test]
    fn refusals_say_what_to_do() {
        let kind = |text: &str| refused("virsh x", text).kind();
        assert_eq!(
            kind("error: failed to connect to the hypervisor"),
            Kind::Unavailable
        );
        assert_eq!(
            kind("error: Domain not found: no domain with matching uuid 'x'"),
            Kind::Missing
        );
        assert_eq!(kind("error: internal error: something"), Kind::Io);
        let denied = "error: failed to connect to the hypervisor\nerror: authentication unavailable: \
                      no polkit agent available to authenticate action 'org.libvirt.unix.manage'";
        let denied = refused("virsh list", denied);
        assert_eq!(denied.kind(), Kind::Denied);
        assert!(denied.advice().unwrap().contains("group libvirt"));
    }
}
