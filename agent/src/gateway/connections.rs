//! Connections of hosts: who may have one, how many there are, and when they end.
//!
//! Whoever connects is nobody until TLS is done and the authority has said what it may do. A connection
//! ends when its host is revoked, its certificate expires or the gateway stops; what a gateway holds for
//! each is bounded, and for all together.

use super::requests::{self, Refusal};
use super::room::{self, IDLE_WINDOW_BYTES, Room};
use super::served::Served;
use super::{Authority, Limits, metrics};
use crate::buffers::Buffers;
use crate::clock;
use crate::error::{Error, Kind as ErrorKind, Result};
use crate::gateway::authority::{Refused, Standing};
use crate::link::LinkError;
use crate::link::frames::{Receiving, Sending, code};
use crate::link::identity::{HostCertificate, Peer, peer_of};
use quinn::{Connection, Incoming, VarInt};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tidegate_protocol::ids::EnrolmentId;
use tidegate_protocol::keys::Secret;
use tidegate_protocol::rights::{Right, Rights};
use tidegate_protocol::wire::{
    Close, HelloAnswer, HelloRequest, JoinAnswer, JoinRequest, Kind, Problem, RequestHead, Status,
    encode_answer,
};
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a handshake, a hello or a join may take.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// With so many handshakes under way, who connects has to show first that its address is its own: a
/// flood from made-up addresses gets no further.
const HANDSHAKES_UNPROVEN_MAX: usize = 32;

/// Handshakes under way at once, all in all.
const HANDSHAKES_MAX: usize = 512;

/// How often windows are shared out anew.
const SHARE_EVERY: Duration = Duration::from_millis(250);

/// What all connections of a gateway share.
pub(super) struct Shared {
    pub(super) authority: Authority,
    pub(super) repositories: HashMap<String, Arc<Served>>,
    pub(super) limits: Limits,
    /// For what hosts send.
    pub(super) room_in: Room,
    /// For what is read for them.
    pub(super) room_out: Room,
    /// Memory of large bodies, used again: some of what there is room for.
    pub(super) bodies: Buffers,
    started: Instant,
    leaving: CancellationToken,
    tasks: TaskTracker,
    handshakes: AtomicUsize,
    requests: AtomicU32,
    guests: Mutex<HashMap<usize, Arc<Guest>>>,
}

/// A host that has been let in.
pub(super) struct Guest {
    connection: Connection,
    enrolment: EnrolmentId,
    /// Until when its certificate holds, Unix time in nanoseconds.
    expires_unix_ns: u64,
    pub(super) host: String,
    pub(super) rights: Rights,
    pub(super) served: Arc<Served>,
    requests: AtomicU32,
    window_bytes: AtomicU64,
}

impl Shared {
    pub(super) fn new(
        authority: Authority,
        repositories: HashMap<String, Arc<Served>>,
        limits: Limits,
    ) -> Self {
        Self {
            authority,
            repositories,
            room_in: Room::new(limits.memory_bytes / 2),
            room_out: Room::new(limits.memory_bytes / 4),
            bodies: room::bodies(limits.memory_bytes / 2),
            limits,
            started: Instant::now(),
            leaving: CancellationToken::new(),
            tasks: TaskTracker::new(),
            handshakes: AtomicUsize::new(0),
            requests: AtomicU32::new(0),
            guests: Mutex::default(),
        }
    }

    /// Takes connections until the gateway leaves.
    pub(super) async fn accept(self: &Arc<Self>, endpoint: &quinn::Endpoint) {
        loop {
            let incoming = tokio::select! {
                incoming = endpoint.accept() => incoming,
                () = self.leaving.cancelled() => return,
            };
            let Some(incoming) = incoming else {
                return;
            };
            self.admit(incoming);
        }
    }

    fn admit(self: &Arc<Self>, incoming: Incoming) {
        let handshakes = self.handshakes.load(Ordering::Relaxed);
        if handshakes >= HANDSHAKES_MAX || self.guests().len() >= self.limits.connections_max {
            metrics::connection("refused");
            return incoming.refuse();
        }
        if handshakes >= HANDSHAKES_UNPROVEN_MAX && !incoming.remote_address_validated() {
            // It fails only for an address that was proven meanwhile.
            let _ = incoming.retry();
            return;
        }
        self.handshakes.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            let from = incoming.remote_address();
            let greeted = timeout(GREETING_TIMEOUT, shared.greet(incoming)).await;
            shared.handshakes.fetch_sub(1, Ordering::Relaxed);
            match greeted {
                Ok(Ok(Some(guest))) => shared.host(guest).await,
                // It has joined.
                Ok(Ok(None)) => {}
                Ok(Err(error)) => {
                    metrics::connection("refused");
                    tracing::warn!(%from, error = error.chain(), "a connection was refused");
                }
                Err(_) => {
                    metrics::connection("refused");
                    tracing::warn!(%from, "a connection was given up: it said no hello in time");
                }
            }
        });
    }

    /// From a first packet to a host that has said hello, or to one that has joined.
    async fn greet(&self, incoming: Incoming) -> Result<Option<Arc<Guest>>> {
        let connection = incoming.await.map_err(|cause| {
            Error::new(ErrorKind::Denied, "the handshake failed").caused_by(cause)
        })?;
        let peer = peer_of(&connection);
        if let Err(error) = &peer {
            connection.close(code(Close::Denied), error.to_string().as_bytes());
        }
        match peer? {
            Peer::Joining => self.join(&connection).await.map(|()| None),
            Peer::Host(certificate) => self.hello(connection, certificate).await.map(Some),
        }
    }

    async fn hello(
        &self,
        connection: Connection,
        certificate: HostCertificate,
    ) -> Result<Arc<Guest>> {
        let (mut sending, mut receiving, head) = first_request(&connection).await?;
        let decided = match head.kind() {
            Some(Kind::Hello) => {
                let hello = receiving
                    .message(head.message_bytes)
                    .await
                    .map_err(broken_off)?;
                self.decide(&certificate, &hello).await
            }
            _ => Err((Status::Malformed, "hello comes first".to_owned())),
        };
        match decided {
            Ok((host, rights, served, repository_id)) => {
                let answer = HelloAnswer {
                    program: crate::PROGRAM.to_owned(),
                    features: Vec::new(),
                    repository_id,
                    host: host.clone(),
                    rights: rights.bits(),
                    requests_max: self.limits.requests_max,
                };
                let answer = encode_answer(Status::Ok, &answer).map_err(|cause| {
                    Error::new(ErrorKind::Bug, "hello's answer cannot be written").caused_by(cause)
                })?;
                sending.send(answer.into()).await.map_err(broken_off)?;
                sending.finish();
                Ok(Arc::new(Guest {
                    connection,
                    enrolment: certificate.enrolment,
                    expires_unix_ns: certificate.expires_unix_ns,
                    host,
                    rights,
                    served,
                    requests: AtomicU32::new(0),
                    window_bytes: AtomicU64::new(IDLE_WINDOW_BYTES),
                }))
            }
            Err((status, text)) => {
                let problem = Problem::new(&text, 0);
                if let Ok(answer) = encode_answer(status, &problem) {
                    let _ = sending.send(answer.into()).await;
                    sending.finish();
                }
                // Room for the answer to arrive before the connection ends.
                let _ = timeout(Duration::from_secs(1), connection.closed()).await;
                connection.close(code(Close::Denied), text.as_bytes());
                Err(Error::new(
                    ErrorKind::Denied,
                    format!("{}: {text}", certificate.enrolment),
                ))
            }
        }
    }

    /// What a host may do in the repository that it names.
    async fn decide(
        &self,
        certificate: &HostCertificate,
        hello: &HelloRequest,
    ) -> std::result::Result<(String, Rights, Arc<Served>, Vec<u8>), (Status, String)> {
        let invite = match self.authority.standing(certificate.enrolment).await {
            Ok(Standing::Enrolled(invite)) => invite,
            Ok(Standing::Revoked) => {
                return Err((Status::Revoked, "this host was revoked".to_owned()));
            }
            Ok(Standing::Unknown) => {
                return Err((Status::Denied, "nobody has invited this host".to_owned()));
            }
            Err(error) => return Err((Status::Store, error.chain())),
        };
        // Whether a repository is there is nothing that a host without rights in it learns.
        let grant = invite
            .grants
            .iter()
            .find(|grant| grant.repository == hello.repository);
        let served = self.repositories.get(&hello.repository);
        let (Some(grant), Some(served)) = (grant, served) else {
            return Err((
                Status::Denied,
                format!(
                    "{} has no rights in a repository {:?} here",
                    invite.host, hello.repository
                ),
            ));
        };
        let repository_id = match served.repository().await {
            Ok(repository) => repository.keys().repository().0.to_vec(),
            // Who only looks after the gateway may look all the same.
            Err(_) if grant.rights == Rights::of(Right::Monitor) => vec![0; 16],
            Err(error) => return Err((Status::Store, error.chain())),
        };
        Ok((
            invite.host.clone(),
            grant.rights,
            Arc::clone(served),
            repository_id,
        ))
    }

    async fn join(&self, connection: &Connection) -> Result<()> {
        let (mut sending, mut receiving, head) = first_request(connection).await?;
        let joined = match head.kind() {
            Some(Kind::Join) => {
                let join: JoinRequest = receiving
                    .message(head.message_bytes)
                    .await
                    .map_err(broken_off)?;
                self.join_by(&join).await
            }
            _ => Err(Error::new(
                ErrorKind::Denied,
                "a host without a certificate can only join",
            )),
        };
        let answer = match &joined {
            Ok(answer) => encode_answer(Status::Ok, answer),
            Err(error) if error.kind() == ErrorKind::Unavailable => encode_answer(
                Status::Store,
                &Problem::new("the store does not answer", 1000),
            ),
            Err(_) => encode_answer(Status::Denied, &Problem::new("the token is not valid", 0)),
        };
        if let Ok(answer) = answer {
            sending.send(answer.into()).await.map_err(broken_off)?;
            sending.finish();
        }
        // The host closes when it has its answer.
        let _ = timeout(Duration::from_secs(5), connection.closed()).await;
        let joined = joined?;
        tracing::info!(host = joined.host, "a host has joined");
        metrics::connection("joined");
        Ok(())
    }

    async fn join_by(&self, join: &JoinRequest) -> Result<JoinAnswer> {
        let denied = |text: String| Error::new(ErrorKind::Denied, text);
        let malformed = || denied("a token of wrong size".to_owned());
        let id = join.id.as_slice().try_into().map_err(|_| malformed())?;
        let secret = join.secret.as_slice().try_into().map_err(|_| malformed())?;
        let issued = self
            .authority
            .join(
                EnrolmentId(id),
                &Secret(secret),
                &join.request,
                clock::now_unix_ns(),
            )
            .await;
        match issued {
            Ok(issued) => Ok(JoinAnswer {
                certificates: chain(issued.certificates),
                host: issued.host,
            }),
            Err(Refused::Failed(error)) => Err(error),
            Err(refused) => Err(denied(refused.to_string())),
        }
    }

    /// A new certificate for a host that is here.
    pub(super) async fn renew(
        &self,
        guest: &Guest,
        request: Vec<u8>,
    ) -> std::result::Result<Vec<Vec<u8>>, Refusal> {
        let now = clock::now_unix_ns();
        match self.authority.renew(guest.enrolment, &request, now).await {
            Ok(issued) => {
                tracing::info!(host = guest.host, "a certificate was renewed");
                Ok(chain(issued.certificates))
            }
            Err(Refused::Failed(error)) => Err(error.into()),
            Err(refused) => {
                let status = match refused {
                    Refused::Revoked(_) => Status::Revoked,
                    _ => Status::Denied,
                };
                Err(Refusal::Status(status, refused.to_string(), Duration::ZERO))
            }
        }
    }

    /// Serves a host until one of the two goes.
    async fn host(self: &Arc<Self>, guest: Arc<Guest>) {
        metrics::connection("accepted");
        tracing::info!(
            host = guest.host,
            repository = guest.served.name(),
            from = %guest.connection.remote_address(),
            "a host has connected"
        );
        let id = guest.connection.stable_id();
        self.guests().insert(id, Arc::clone(&guest));
        let ended = self.streams(&guest).await;
        self.guests().remove(&id);
        tracing::info!(host = guest.host, reason = ended, "a host is gone");
    }

    async fn streams(self: &Arc<Self>, guest: &Arc<Guest>) -> String {
        let left = guest.expires_unix_ns.saturating_sub(clock::now_unix_ns());
        let expires = tokio::time::Instant::now() + Duration::from_nanos(left);
        loop {
            let stream = tokio::select! {
                stream = guest.connection.accept_bi() => stream,
                () = sleep_until(expires) => {
                    let why = "its certificate has expired";
                    guest.connection.close(code(Close::Denied), why.as_bytes());
                    return why.to_owned();
                }
            };
            let (sending, receiving) = match stream {
                Ok(stream) => stream,
                Err(error) => return error.to_string(),
            };
            let (shared, guest) = (Arc::clone(self), Arc::clone(guest));
            self.requests.fetch_add(1, Ordering::Relaxed);
            if guest.requests.fetch_add(1, Ordering::Relaxed) == 0 {
                shared.share_windows();
            }
            self.tasks.spawn(async move {
                let started = Instant::now();
                let (kind, status) = requests::serve(&shared, &guest, sending, receiving).await;
                guest.requests.fetch_sub(1, Ordering::Relaxed);
                shared.requests.fetch_sub(1, Ordering::Relaxed);
                metrics::request(kind, status.as_str(), started.elapsed());
            });
        }
    }

    /// Shares the windows out among the hosts that want something.
    fn share_windows(&self) {
        let guests = self.guests();
        let is_active = |guest: &Guest| guest.requests.load(Ordering::Relaxed) > 0;
        let active = guests.values().filter(|guest| is_active(guest)).count();
        let share = room::window_bytes(self.limits.memory_bytes / 2, active);
        for guest in guests.values() {
            let window = match is_active(guest) {
                true => share,
                false => IDLE_WINDOW_BYTES,
            };
            if guest.window_bytes.swap(window, Ordering::Relaxed) != window {
                let window = VarInt::from_u64(window).unwrap_or(VarInt::MAX);
                guest.connection.set_receive_window(window);
                guest.connection.set_send_window(window.into_inner());
            }
        }
    }

    /// Shares out windows, and closes the connections of revoked hosts, until the gateway leaves.
    pub(super) async fn look_after(self: &Arc<Self>) {
        let mut share = tokio::time::interval(SHARE_EVERY);
        let mut revocations = tokio::time::interval(self.limits.revocations_every);
        loop {
            tokio::select! {
                () = self.leaving.cancelled() => return,
                _ = share.tick() => self.share_windows(),
                _ = revocations.tick() => self.revoke().await,
            }
        }
    }

    async fn revoke(&self) {
        if let Err(error) = self.authority.refresh_revocations().await {
            tracing::warn!(
                error = error.chain(),
                "the list of revocations cannot be read: going on by the one at hand"
            );
            return;
        }
        let guests: Vec<_> = self.guests().values().cloned().collect();
        for guest in guests {
            if self.authority.is_revoked(guest.enrolment) {
                tracing::warn!(
                    host = guest.host,
                    "a host was revoked: its connection is closed"
                );
                let why = b"this host was revoked";
                guest.connection.close(code(Close::Revoked), why);
            }
        }
    }

    /// Takes nothing more, and waits until what is under way is answered, at most so long.
    pub(super) async fn leave(&self, patience: Duration) {
        self.leaving.cancel();
        let under_way = async {
            while self.requests.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(patience, under_way).await.is_err() {
            tracing::warn!(
                requests = self.requests(),
                "leaving with requests under way: their hosts send them again elsewhere"
            );
        }
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.is_cancelled()
    }

    pub(super) async fn leaving(&self) {
        self.leaving.cancelled().await;
    }

    pub(super) fn up(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn connections(&self) -> u32 {
        u32::try_from(self.guests().len()).unwrap_or(u32::MAX)
    }

    pub(super) fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }

    fn guests(&self) -> std::sync::MutexGuard<'_, HashMap<usize, Arc<Guest>>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a connection begins with, up to its message.
async fn first_request(connection: &Connection) -> Result<(Sending, Receiving, RequestHead)> {
    let (sending, receiving) = connection.accept_bi().await.map_err(|cause| {
        Error::new(ErrorKind::Unavailable, "the connection ended").caused_by(cause)
    })?;
    let sending = Sending::new(sending, Default::default());
    let mut receiving = Receiving::new(receiving);
    let head = receiving.request_head().await.map_err(broken_off)?;
    Ok((sending, receiving, head))
}

fn broken_off(error: LinkError) -> Error {
    Error::new(ErrorKind::Denied, "the first request broke off").caused_by(error)
}

fn chain(certificates: Vec<rustls::pki_types::CertificateDer<'static>>) -> Vec<Vec<u8>> {
    certificates
        .into_iter()
        .map(|certificate| certificate.to_vec())
        .collect()
}
