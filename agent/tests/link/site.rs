//! A site: a repository, a fleet of gateways beside it, and hosts that have joined.

use crate::lab::{CHUNKER, copy, copy_all};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tidegate_agent::config::KeyPlace;
use tidegate_agent::gateway::authority::{Authority, NewInvite};
use tidegate_agent::gateway::{Gateway, GatewayConfig, Limits, ServedSettings};
use tidegate_agent::link::client::{LinkSettings, join};
use tidegate_agent::link::identity::PrivateKey;
use tidegate_agent::repository::{NewKeys, Repository, write_key_file};
use tidegate_agent::store::{Store, StoreSettings};
use tidegate_agent::{Result, clock};
use tidegate_protocol::enrolment::{Grant, Token};
use tidegate_protocol::keys::Keys;
use tidegate_protocol::rights::{Right, Rights};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What hosts call the repository.
pub const NAME: &str = "main";

pub struct Site {
    pub folder: tempfile::TempDir,
    /// The repository's own place.
    pub location: String,
    pub store: Store,
    pub keys: NewKeys,
    pub authority: Authority,
}

/// A gateway in this process.
pub struct Running {
    pub address: SocketAddr,
    pub gateway: Arc<Gateway>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Site {
    /// With the repository in a folder.
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let location = folder.path().join("repo").display().to_string();
        Self::at(folder, location).await
    }

    /// With the repository at a place of its own.
    pub async fn at(folder: tempfile::TempDir, location: String) -> Self {
        let store = Store::open(&location, &StoreSettings::default()).unwrap();
        Self::over(folder, location, store).await
    }

    /// With the repository at a place that takes more than its name to open.
    pub async fn over(folder: tempfile::TempDir, location: String, store: Store) -> Self {
        let mut keys = None;
        Repository::init(&store, CHUNKER, |new| {
            write_key_file(&folder.path().join("maintenance.key"), &new.maintenance)?;
            keys = Some(copy_all(new));
            Ok(())
        })
        .await
        .unwrap();
        let fleet = folder.path().join("fleet").display().to_string();
        let fleet = Store::open(&fleet, &StoreSettings::default()).unwrap();
        let key = Authority::new_key().unwrap();
        let pem = key.to_pem();
        std::fs::write(folder.path().join("authority.key"), pem.as_bytes()).unwrap();
        let authority = Authority::create(key, fleet, clock::now_unix_ns())
            .await
            .unwrap();
        Self {
            folder,
            location,
            store,
            keys: keys.unwrap(),
            authority,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn config(&self, listen: SocketAddr) -> GatewayConfig {
        GatewayConfig {
            listen: vec![listen],
            fleet: self.path("fleet").display().to_string(),
            authority_key: KeyPlace::File(self.path("authority.key")),
            metrics: None,
            limits: Limits {
                revocations_every: Duration::from_millis(100),
                ..Limits::default()
            },
            repositories: vec![ServedSettings {
                name: NAME.to_owned(),
                location: self.location.clone(),
                key: KeyPlace::File(self.path("maintenance.key")),
                cache_dir: self.path(&format!("gateway-{}", clock::now_unix_ns())),
                expire: true,
                bundle: true,
            }],
            store: StoreSettings::default(),
        }
    }

    pub async fn gateway(&self) -> Running {
        self.gateway_with(|_| {}).await
    }

    pub async fn gateway_with(&self, change: impl FnOnce(&mut GatewayConfig)) -> Running {
        let mut config = self.config("127.0.0.1:0".parse().unwrap());
        change(&mut config);
        Running::start(config).await
    }

    /// A token for a host.
    pub async fn invite(&self, host: &str, rights: &[Right]) -> Token {
        let rights = rights
            .iter()
            .fold(Rights::NONE, |all, right| all.and(Rights::of(*right)));
        let now = clock::now_unix_ns();
        let invite = NewInvite {
            host: host.to_owned(),
            grants: vec![Grant {
                repository: NAME.to_owned(),
                rights,
            }],
            expires_unix_ns: now + 60_000_000_000,
            gateways: Vec::new(),
        };
        self.authority.fleet().invite(invite, now).await.unwrap()
    }

    /// The identity of a host that has joined at a gateway.
    pub async fn host(&self, host: &str, rights: &[Right], gateway: &Running) -> PathBuf {
        let token = self.invite(host, rights).await;
        let identity = self.path(host);
        let gateways = [gateway.address.to_string()];
        let (_, name) = join(&identity, token, &gateways).await.unwrap();
        assert_eq!(name, host);
        identity
    }

    /// The repository as that host reaches it.
    pub fn store_of(&self, identity: &Path, gateways: &[&Running]) -> Store {
        self.try_store_of(identity, gateways, NAME).unwrap()
    }

    pub fn try_store_of(
        &self,
        identity: &Path,
        gateways: &[&Running],
        repository: &str,
    ) -> Result<Store> {
        let addresses: Vec<_> = gateways
            .iter()
            .map(|gateway| gateway.address.to_string())
            .collect();
        let settings = StoreSettings {
            operation_deadline: Duration::from_secs(30),
            link: LinkSettings {
                identity: identity.to_owned(),
                ..LinkSettings::default()
            },
            ..StoreSettings::default()
        };
        Store::open(
            &format!("quic://{}/{repository}", addresses.join(",")),
            &settings,
        )
    }

    /// The repository as that host opens it, with an empty cache of its own.
    pub async fn open(
        &self,
        keys: &Keys,
        identity: &Path,
        gateways: &[&Running],
    ) -> Arc<Repository> {
        let store = self.store_of(identity, gateways);
        let cache = self.path(&format!("cache-{}", clock::now_unix_ns()));
        Arc::new(Repository::open(store, copy(keys), &cache).await.unwrap())
    }

    /// The repository beside the bucket, as if there were no gateway.
    pub async fn beside(&self) -> Arc<Repository> {
        let cache = self.path(&format!("beside-{}", clock::now_unix_ns()));
        let keys = copy(&self.keys.restore);
        Arc::new(
            Repository::open(self.store.clone(), keys, &cache)
                .await
                .unwrap(),
        )
    }
}

impl Running {
    pub async fn start(config: GatewayConfig) -> Self {
        let gateway = Arc::new(Gateway::start(config, None).await.unwrap());
        let stop = CancellationToken::new();
        let task = tokio::spawn({
            let (gateway, stop) = (Arc::clone(&gateway), stop.clone());
            async move { gateway.run(stop).await }
        });
        Self {
            address: gateway.addresses()[0],
            gateway,
            stop,
            task,
        }
    }

    /// In order: what is under way is answered first.
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// The authority of somebody else.
pub fn foreign_key() -> PrivateKey {
    Authority::new_key().unwrap()
}
