//! A guest whose software is still for the moment: asked to be by its agent, and let go again.
//!
//! Not the moment itself: [`freeze`](super::freeze) and [`libvirt`](super::libvirt) take it between the
//! two. The invariants: a guest is frozen only while a [`Guard`] watches; a moment is called
//! application-consistent only where the guest was certainly frozen from before it until after it.

use super::freeze::Quiesce;
use super::guard::Guard;
use super::guest_agent::GuestAgent;
use super::libvirt::Libvirt;
use crate::error::{Error, Kind, Result};
use std::path::Path;
use std::time::{Duration, Instant};

/// A guest whose file systems are frozen. Dropped, it is thawed.
pub(super) struct Still {
    since: Instant,
    agent: Agent,
    guard: Guard,
}

/// How long a guest was held, and whether its software was still the whole time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stillness {
    pub(super) held: Duration,
    pub(super) lasted: bool,
}

/// The way to the software in the guest.
enum Agent {
    Connected(GuestAgent),
    /// A domain, by its UUID.
    Libvirt(Libvirt, String),
}

impl Still {
    /// By the agent at this socket.
    pub(super) async fn by_agent(socket: Option<&Path>, notes: Option<&Path>) -> Result<Self> {
        let socket = socket.ok_or_else(|| {
            Error::new(
                Kind::Unavailable,
                "QEMU has no channel to a guest agent (org.qemu.guest_agent.0) on a unix socket",
            )
        })?;
        let mut agent = GuestAgent::connect(socket).await?;
        if agent.is_frozen().await? {
            tracing::warn!("the guest was found frozen, and is thawed first");
            agent.thaw().await?;
        }
        let guard = Guard::over_agent(&agent, socket, notes).await?;
        Self::freeze(Agent::Connected(agent), guard).await
    }

    /// By libvirt, which holds the connection to the agent.
    pub(super) async fn by_libvirt(
        libvirt: &Libvirt,
        uuid: &str,
        notes: Option<&Path>,
    ) -> Result<Self> {
        if let Err(error) = libvirt.time_of(uuid).await {
            // The agent is not there, or its guest is frozen, when it answers little else.
            let Ok(thawed) = libvirt.thaw(uuid).await else {
                return Err(error);
            };
            if thawed > 0 {
                tracing::warn!("the guest was found frozen, and is thawed first");
            }
        }
        let guard = Guard::over_libvirt(libvirt, uuid, notes).await?;
        Self::freeze(Agent::Libvirt(libvirt.clone(), uuid.to_owned()), guard).await
    }

    async fn freeze(mut agent: Agent, guard: Guard) -> Result<Self> {
        let since = Instant::now();
        let error = match agent.freeze().await {
            Ok(1..) => {
                return Ok(Self {
                    since,
                    agent,
                    guard,
                });
            }
            Ok(0) => Error::new(Kind::Unavailable, "the guest has no file system to freeze"),
            Err(error) => error,
        };
        // It may have frozen some, or all and told us too late.
        if agent.thaw().await.is_ok() {
            guard.dismiss().await;
        }
        Err(error)
    }

    /// Ends the stillness.
    pub(super) async fn thaw(mut self, machine: &str) -> Stillness {
        let was_still = self.agent.may_be_frozen().await;
        let thawed = self.agent.thaw().await;
        let held = self.since.elapsed();
        let lasted = match thawed {
            Ok(count) => {
                self.guard.dismiss().await;
                if !was_still || count == 0 {
                    tracing::warn!(
                        machine,
                        "the guest was thawed before the moment: the point is as after a power cut"
                    );
                }
                was_still && count > 0
            }
            Err(error) => {
                tracing::error!(
                    machine,
                    error = error.chain(),
                    "the guest's file systems could not be thawed; their guard goes on trying"
                );
                false
            }
        };
        Stillness { held, lasted }
    }
}

impl Agent {
    async fn freeze(&mut self) -> Result<u64> {
        match self {
            Self::Connected(agent) => agent.freeze().await,
            Self::Libvirt(libvirt, uuid) => libvirt.freeze_file_systems(uuid).await,
        }
    }

    async fn thaw(&mut self) -> Result<u64> {
        match self {
            Self::Connected(agent) => agent.thaw().await,
            Self::Libvirt(libvirt, uuid) => libvirt.thaw(uuid).await,
        }
    }

    /// Whether it says so itself. libvirt does not ask it: there, how many are thawed tells.
    async fn may_be_frozen(&mut self) -> bool {
        match self {
            Self::Connected(agent) => agent.is_frozen().await.unwrap_or(false),
            Self::Libvirt(..) => true,
        }
    }
}

/// Has the software in a machine be still, as far as the policy wants it: `begin` is how.
///
/// # Errors
/// [`Kind::Unavailable`] where it must be and cannot.
pub(super) async fn quiesce(
    how: Quiesce,
    machine: &str,
    begin: impl Future<Output = Result<Still>>,
) -> Result<Option<Still>> {
    if how == Quiesce::Off {
        return Ok(None);
    }
    match begin.await {
        Ok(still) => Ok(Some(still)),
        Err(error) if how == Quiesce::Require => Err(not_still(machine).caused_by(error)),
        Err(error) => {
            tracing::warn!(
                machine,
                error = error.chain(),
                "the guest agent does not answer: the point is as after a power cut"
            );
            Ok(None)
        }
    }
}

/// The software in a machine had to be still at the moment, and was not.
pub(super) fn not_still(machine: &str) -> Error {
    Error::new(
        Kind::Unavailable,
        format!("the software in machine {machine:?} could not be frozen for the moment"),
    )
    .advise("look whether qemu-guest-agent runs in it and has its channel")
}
