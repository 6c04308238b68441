//! Who gets through a handshake between hosts and gateways, and as whom: over QUIC on this machine,
//! with real certificates of real authorities, and a clock that the test sets.
//!
//! Not what a host may do then; and the files of a host are looked at here, since they are made of
//! what a gateway answers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, HandshakeKind, ServerConfig};
use std::sync::Arc;
use std::time::Duration;
use tidegate_agent::Kind;
use tidegate_agent::gateway::authority::{Authority, NewInvite};
use tidegate_agent::link::identity::{
    Clock, GatewayCertificate, GatewayCertificates, HostCertificate, Identity, JoinInProgress,
    Peer, PrivateKey, client_config, join_config, peer_of, server_config,
};
use tidegate_agent::store::Store;
use tidegate_protocol::enrolment::{Fingerprint, GATEWAY_NAME, Grant, Token};
use tidegate_protocol::ids::EnrolmentId;
use tidegate_protocol::rights::{Right, Rights};
use tidegate_protocol::wire::{ALPN, ALPN_JOIN};

const DAY_NS: u64 = 24 * 3600 * 1_000_000_000;
/// Some day in 2027.
const NOW: u64 = 20_800 * DAY_NS;

#[derive(Debug)]
struct SetClock(u64);

impl TimeProvider for SetClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_nanos(self.0)))
    }
}

fn at(now_unix_ns: u64) -> Clock {
    Arc::new(SetClock(now_unix_ns))
}

async fn fleet() -> Authority {
    fleet_by(Authority::new_key().unwrap()).await
}

async fn fleet_by(key: PrivateKey) -> Authority {
    Authority::create(key, Store::memory(), NOW).await.unwrap()
}

async fn invite(authority: &Authority) -> Token {
    let new = NewInvite {
        host: "hv1".to_owned(),
        grants: vec![Grant {
            repository: "main".to_owned(),
            rights: Rights::of(Right::Backup),
        }],
        expires_unix_ns: NOW + 1000 * DAY_NS,
        gateways: vec!["127.0.0.1:4433".to_owned()],
    };
    authority.fleet().invite(new, NOW).await.unwrap()
}

/// A host that has joined: its key, its certificate, and which enrolment it is.
struct Host {
    key: PrivateKey,
    certificate: CertificateDer<'static>,
    enrolment: EnrolmentId,
}

/// A host that joins at `now`.
async fn host(authority: &Authority, now: u64) -> Host {
    let token = invite(authority).await;
    let key = PrivateKey::generate().unwrap();
    let request = key.request().unwrap();
    let issued = authority
        .join(token.enrolment, &token.secret, &request, now)
        .await
        .unwrap();
    Host {
        key,
        certificate: issued.certificates[0].clone(),
        enrolment: token.enrolment,
    }
}

impl Host {
    fn config(&self, trusts: Fingerprint) -> ClientConfig {
        client_config(trusts, vec![self.certificate.clone()], &self.key, at(NOW)).unwrap()
    }
}

fn copy(key: &PrivateKey) -> PrivateKey {
    PrivateKey::from_pem("copy", &key.to_pem()).unwrap()
}

fn gateway_showing(authority: &Authority, shown: &GatewayCertificate, now: u64) -> ServerConfig {
    let certificates = GatewayCertificates::new(shown).unwrap();
    server_config(authority.certificate(), certificates, at(now)).unwrap()
}

/// A gateway as it should be.
fn gateway(authority: &Authority) -> ServerConfig {
    let shown = authority.server_certificate(NOW).unwrap();
    gateway_showing(authority, &shown, NOW)
}

/// What came of a handshake: what the gateway makes of the host, and what the host sees.
struct Met {
    gateway: Result<Peer, String>,
    host: Result<(), String>,
}

impl Met {
    #[track_caller]
    fn gateway_refused(&self, why: &str) {
        let error = self.gateway.as_ref().unwrap_err();
        assert!(error.contains(why), "{error}");
    }

    #[track_caller]
    fn host_refused(&self, why: &str) {
        assert!(self.gateway.is_err());
        let error = self.host.as_ref().unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

/// One handshake over QUIC, to its very end on both sides.
async fn meet(gateway: ServerConfig, host: ClientConfig) -> Met {
    let crypto = Arc::new(QuicServerConfig::try_from(gateway).unwrap());
    let address = "127.0.0.1:0".parse().unwrap();
    let listening =
        quinn::Endpoint::server(quinn::ServerConfig::with_crypto(crypto), address).unwrap();
    let crypto = Arc::new(QuicClientConfig::try_from(host).unwrap());
    let dialling = quinn::Endpoint::client(address).unwrap();
    let to = listening.local_addr().unwrap();
    let accept = async {
        let accepted = listening.accept().await.unwrap().await;
        let connection = accepted.map_err(|error| error.to_string())?;
        let peer = peer_of(&connection).map_err(|error| error.to_string());
        connection.close(7_u8.into(), b"seen");
        peer
    };
    let connect = async {
        let config = quinn::ClientConfig::new(crypto);
        let connection = dialling
            // The name is the verifier's business.
            .connect_with(config, to, "any.name.at.all")
            .unwrap()
            .await
            .map_err(|error| error.to_string())?;
        // The host is done first: whether the gateway was content, it learns by the connection's end.
        match connection.closed().await {
            quinn::ConnectionError::ApplicationClosed(_) => Ok(()),
            error => Err(error.to_string()),
        }
    };
    let (gateway, host) = tokio::join!(accept, connect);
    Met { gateway, host }
}

#[tokio::test]
async fn a_host_with_its_certificate_is_known_by_its_enrolment() {
    let authority = fleet().await;
    let host = host(&authority, NOW).await;
    let met = meet(gateway(&authority), host.config(authority.fingerprint())).await;
    let expected = HostCertificate {
        enrolment: host.enrolment,
        expires_unix_ns: NOW + 30 * DAY_NS,
    };
    assert_eq!(met.gateway, Ok(Peer::Host(expected)));
    assert_eq!(met.host, Ok(()));
}

#[tokio::test]
async fn a_host_without_a_certificate_may_join_and_nothing_else() {
    let authority = fleet().await;
    let joining = join_config(authority.fingerprint(), at(NOW)).unwrap();
    let met = meet(gateway(&authority), joining.clone()).await;
    assert_eq!(met.gateway, Ok(Peer::Joining));

    let mut bold = joining;
    bold.alpn_protocols = vec![ALPN.to_vec()];
    let met = meet(gateway(&authority), bold).await;
    met.gateway_refused("shows no certificate");

    let mut again = host(&authority, NOW).await.config(authority.fingerprint());
    again.alpn_protocols = vec![ALPN_JOIN.to_vec()];
    let met = meet(gateway(&authority), again).await;
    met.gateway_refused("does not join");
}

#[tokio::test]
async fn strangers_are_refused_on_either_side() {
    let [authority, other] = [fleet().await, fleet().await];
    // A host of another fleet, which has been told to believe this one.
    let host = host(&other, NOW).await;
    let met = meet(gateway(&authority), host.config(authority.fingerprint())).await;
    met.gateway_refused("BadSignature");
    // A gateway of another fleet.
    let met = meet(gateway(&authority), host.config(other.fingerprint())).await;
    met.host_refused("UnknownIssuer");
    let joining = join_config(other.fingerprint(), at(NOW)).unwrap();
    let met = meet(gateway(&authority), joining).await;
    met.host_refused("UnknownIssuer");
}

/// The authority's certificate is no secret, and who shows it has not shown that it signed anything.
#[tokio::test]
async fn a_stranger_who_shows_the_authoritys_certificate_too_is_refused() {
    let [authority, other] = [fleet().await, fleet().await];
    let mut shown = other.server_certificate(NOW).unwrap();
    shown.chain[1] = authority.certificate().clone();
    let joining = join_config(authority.fingerprint(), at(NOW)).unwrap();
    let met = meet(gateway_showing(&other, &shown, NOW), joining.clone()).await;
    met.host_refused("BadSignature");
    // As one more link of its own chain.
    let mut shown = other.server_certificate(NOW).unwrap();
    shown.chain.push(authority.certificate().clone());
    let met = meet(gateway_showing(&other, &shown, NOW), joining).await;
    met.host_refused("BadSignature");
    // A host likewise.
    let host = host(&other, NOW).await;
    let chain = vec![host.certificate.clone(), authority.certificate().clone()];
    let config = client_config(authority.fingerprint(), chain, &host.key, at(NOW)).unwrap();
    let met = meet(gateway(&authority), config).await;
    met.gateway_refused("BadSignature");
}

#[tokio::test]
async fn certificates_hold_for_their_time() {
    let authority = fleet().await;
    let trusts = authority.fingerprint();
    for (joined, why) in [
        (NOW - 31 * DAY_NS, "certificate expired"),
        (NOW - 30 * DAY_NS - 1_000_000_000, "certificate expired"),
        (NOW + DAY_NS / 24 + 1_000_000_000, "not valid yet"),
    ] {
        let host = host(&authority, joined).await;
        let met = meet(gateway(&authority), host.config(trusts)).await;
        met.gateway_refused(why);
        let shown = authority.server_certificate(joined).unwrap();
        let joining = join_config(trusts, at(NOW)).unwrap();
        let met = meet(gateway_showing(&authority, &shown, NOW), joining).await;
        met.host_refused(why);
    }
    // An hour of difference between two clocks is none, and the last day is as good as the first.
    for joined in [NOW + DAY_NS / 24, NOW - 30 * DAY_NS] {
        let host = host(&authority, joined).await;
        let shown = authority.server_certificate(joined).unwrap();
        let met = meet(
            gateway_showing(&authority, &shown, NOW),
            host.config(trusts),
        )
        .await;
        assert!(
            matches!(met.gateway, Ok(Peer::Host(_))),
            "{:?}",
            met.gateway
        );
    }
}

#[tokio::test]
async fn a_certificate_serves_its_own_purpose_only() {
    let authority = fleet().await;
    let trusts = authority.fingerprint();
    // A gateway's, shown by a host.
    let own = authority.server_certificate(NOW).unwrap();
    let config = client_config(trusts, own.chain.clone(), &own.key, at(NOW)).unwrap();
    let met = meet(gateway(&authority), config).await;
    met.gateway_refused("does not allow extended key usage for client authentication");
    // A host's, shown by a gateway.
    let host = host(&authority, NOW).await;
    let shown = GatewayCertificate {
        chain: vec![host.certificate.clone(), authority.certificate().clone()],
        key: copy(&host.key),
        not_before_unix_ns: 0,
        not_after_unix_ns: 0,
    };
    let joining = join_config(trusts, at(NOW)).unwrap();
    let met = meet(gateway_showing(&authority, &shown, NOW), joining).await;
    met.host_refused("does not allow extended key usage for server authentication");
    // The authority's own, by somebody who has its key.
    let key = Authority::new_key().unwrap();
    let authority = fleet_by(copy(&key)).await;
    let chain = vec![authority.certificate().clone()];
    let config = client_config(authority.fingerprint(), chain, &key, at(NOW)).unwrap();
    let met = meet(gateway(&authority), config).await;
    met.gateway_refused("CaUsedAsEndEntity");
}

#[tokio::test]
async fn what_speaks_no_protocol_of_ours_is_refused() {
    let authority = fleet().await;
    for protocol in [&b"h3"[..], b"tidegate/2", b"tidegate"] {
        let mut config = host(&authority, NOW).await.config(authority.fingerprint());
        config.alpn_protocols = vec![protocol.to_vec()];
        let met = meet(gateway(&authority), config).await;
        met.gateway_refused("doesn't support any known protocol");
        assert!(met.host.is_err());
    }
}

#[tokio::test]
async fn a_gateways_next_certificate_is_shown_at_once() {
    let authority = fleet().await;
    let first = authority.server_certificate(NOW - 40 * DAY_NS).unwrap();
    let certificates = GatewayCertificates::new(&first).unwrap();
    let config = server_config(authority.certificate(), certificates.clone(), at(NOW)).unwrap();
    let joining = join_config(authority.fingerprint(), at(NOW)).unwrap();
    meet(config.clone(), joining.clone())
        .await
        .host_refused("certificate expired");
    certificates
        .replace(&authority.server_certificate(NOW).unwrap())
        .unwrap();
    assert_eq!(meet(config, joining).await.gateway, Ok(Peer::Joining));
}

/// One handshake of TLS without QUIC, in memory; what the host's side says of it.
fn meet_in_memory(
    gateway: &Arc<ServerConfig>,
    host: &Arc<ClientConfig>,
) -> Result<HandshakeKind, rustls::Error> {
    let name = GATEWAY_NAME.try_into().unwrap();
    let mut host = rustls::ClientConnection::new(host.clone(), name).unwrap();
    let mut gateway = rustls::ServerConnection::new(gateway.clone()).unwrap();
    // Some rounds more than there are, so that tickets would have come.
    for _ in 0..8 {
        let mut wire = Vec::new();
        while host.wants_write() {
            host.write_tls(&mut wire).unwrap();
        }
        gateway.read_tls(&mut &wire[..]).unwrap();
        gateway.process_new_packets()?;
        let mut wire = Vec::new();
        while gateway.wants_write() {
            gateway.write_tls(&mut wire).unwrap();
        }
        host.read_tls(&mut &wire[..]).unwrap();
        host.process_new_packets()?;
    }
    assert!(!host.is_handshaking() && !gateway.is_handshaking());
    Ok(host.handshake_kind().unwrap())
}

/// A ticket would carry a host past the expiry of its certificate.
#[tokio::test]
async fn no_session_is_resumed_however_much_the_host_would_like_to() {
    let authority = fleet().await;
    let gateway = Arc::new(gateway(&authority));
    let mut config = host(&authority, NOW).await.config(authority.fingerprint());
    config.resumption = Resumption::in_memory_sessions(8);
    config.enable_early_data = true;
    let host = Arc::new(config);
    for _ in 0..3 {
        assert_eq!(meet_in_memory(&gateway, &host), Ok(HandshakeKind::Full));
    }
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let authority = fleet().await;
    let roots = {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.certificate().clone()).unwrap();
        roots
    };
    let gateway = Arc::new(gateway(&authority));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    for (versions, expected) in [
        (&[&rustls::version::TLS12][..], false),
        (&[&rustls::version::TLS13][..], true),
    ] {
        let mut config = ClientConfig::builder_with_details(provider.clone(), at(NOW))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
        let met = meet_in_memory(&gateway, &Arc::new(config));
        assert_eq!(met.is_ok(), expected, "{met:?}");
    }
}

/// The answer to a host that joins, as it comes over the wire.
async fn answer(authority: &Authority, joining: &JoinInProgress, now: u64) -> Vec<Vec<u8>> {
    let token = joining.token();
    let request = joining.request().unwrap();
    let issued = authority
        .join(token.enrolment, &token.secret, &request, now)
        .await
        .unwrap();
    issued.certificates.iter().map(|der| der.to_vec()).collect()
}

/// A certificate of any name, by whoever has the authority's key.
fn leaf(authority: &Authority, by: &PrivateKey, subject: &PrivateKey, name: &str) -> Vec<u8> {
    let pair = rcgen::KeyPair::from_pem(&by.to_pem()).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_der(authority.certificate(), pair).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    let public = rcgen::SubjectPublicKeyInfo::from_der(&subject.public_der()).unwrap();
    params.signed_by(&public, &issuer).unwrap().der().to_vec()
}

fn again(token: &Token) -> Token {
    Token::decode(&token.encode().unwrap()).unwrap()
}

#[tokio::test]
async fn a_host_joins_connects_and_renews() {
    let authority = fleet().await;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("identity");
    let token = invite(&authority).await;
    let gateways = token.gateways.clone();

    let joining = JoinInProgress::begin(&folder, again(&token)).unwrap();
    assert_eq!(Identity::open(&folder).unwrap_err().kind(), Kind::Missing);
    let met = meet(gateway(&authority), joining.config(at(NOW)).unwrap()).await;
    assert_eq!(met.gateway, Ok(Peer::Joining));
    // The answer is lost, the host's service dies, and another one goes on with the same key.
    let request = joining.request().unwrap();
    let _lost = answer(&authority, &joining, NOW).await;
    drop(joining);
    let joining = JoinInProgress::begin(&folder, again(&token)).unwrap();
    assert_eq!(joining.request().unwrap(), request);
    let chain = answer(&authority, &joining, NOW).await;
    let joined = joining.finish(&chain, &gateways, NOW).unwrap();
    assert_eq!(joined.enrolment(), token.enrolment);

    let mode = |name: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        let found = folder.join(name).metadata().unwrap();
        found.permissions().mode() & 0o777
    };
    assert_eq!((mode("."), mode("host.key")), (0o700, 0o600));

    let mut identity = Identity::open(&folder).unwrap();
    assert_eq!(identity.gateways(), gateways);
    assert_eq!(identity.enrolment(), token.enrolment);
    assert_eq!(identity.authority(), authority.fingerprint());
    let met = meet(gateway(&authority), identity.config(at(NOW)).unwrap()).await;
    assert!(matches!(met.gateway, Ok(Peer::Host(host)) if host.enrolment == token.enrolment));

    let error = JoinInProgress::begin(&folder, again(&token)).err().unwrap();
    assert_eq!(error.kind(), Kind::Conflict);

    // Two thirds of thirty days and the hour before.
    let renew_from = identity.renew_from_unix_ns();
    assert!((NOW + 19 * DAY_NS..NOW + 20 * DAY_NS).contains(&renew_from));
    let request = identity.request().unwrap();
    let issued = authority
        .renew(identity.enrolment(), &request, renew_from)
        .await
        .unwrap();
    let chain: Vec<_> = issued.certificates.iter().map(|der| der.to_vec()).collect();
    identity.renew(&chain, renew_from).unwrap();
    let renewed = Identity::open(&folder).unwrap();
    for identity in [&identity, &renewed] {
        let until = identity.certificate().not_after_unix_ns;
        assert_eq!(
            until,
            renew_from / 1_000_000_000 * 1_000_000_000 + 30 * DAY_NS
        );
    }
    let later = gateway_showing(
        &authority,
        &authority.server_certificate(NOW + 45 * DAY_NS).unwrap(),
        NOW + 45 * DAY_NS,
    );
    let met = meet(later, renewed.config(at(NOW + 45 * DAY_NS)).unwrap()).await;
    assert!(
        matches!(met.gateway, Ok(Peer::Host(_))),
        "{:?}",
        met.gateway
    );
}

/// A gateway that lies, or errs, gets nothing written.
#[tokio::test]
async fn a_host_takes_no_certificate_but_its_own() {
    let authority_key = Authority::new_key().unwrap();
    let authority = fleet_by(copy(&authority_key)).await;
    let other = fleet().await;
    let root = tempfile::tempdir().unwrap();
    let token = invite(&authority).await;
    let begin = |name: &str| JoinInProgress::begin(&root.path().join(name), again(&token)).unwrap();
    let gateways = token.gateways.clone();
    let stranger = host(&authority, NOW).await;
    let foreign = host(&other, NOW).await;
    let ca = authority.certificate().to_vec();

    let good = answer(&authority, &begin("host"), NOW).await;
    let own = authority.server_certificate(NOW).unwrap();
    let mut flipped = good.clone();
    *flipped[0].last_mut().unwrap() ^= 1;
    let wrong: [(&str, Vec<Vec<u8>>, u64, Kind); 9] = [
        ("nothing", vec![], NOW, Kind::Denied),
        ("no authority", good[..1].to_vec(), NOW, Kind::Denied),
        (
            "another authority",
            vec![foreign.certificate.to_vec(), other.certificate().to_vec()],
            NOW,
            Kind::Denied,
        ),
        (
            "signed by another",
            vec![foreign.certificate.to_vec(), ca.clone()],
            NOW,
            Kind::Denied,
        ),
        (
            "another host's",
            vec![stranger.certificate.to_vec(), ca.clone()],
            NOW,
            Kind::Denied,
        ),
        (
            "a gateway's",
            own.chain.iter().map(|der| der.to_vec()).collect(),
            NOW,
            Kind::Denied,
        ),
        (
            "the authority's",
            vec![ca.clone(), ca.clone()],
            NOW,
            Kind::Denied,
        ),
        ("a flipped bit", flipped, NOW, Kind::Denied),
        ("too late", good.clone(), NOW + 31 * DAY_NS, Kind::Config),
    ];
    for (what, chain, now, kind) in wrong {
        let error = begin("host").finish(&chain, &gateways, now).unwrap_err();
        assert_eq!(error.kind(), kind, "{what}: {error:?}");
        assert!(Identity::open(&root.path().join("host")).is_err(), "{what}");
    }
    // By the right authority, for the right key, and still not what was asked for.
    let own_key = std::fs::read_to_string(root.path().join("host/host.key")).unwrap();
    let own_key = PrivateKey::from_pem("host.key", &own_key).unwrap();
    let request = own_key.request().unwrap();
    let other_enrolment = authority.renew(stranger.enrolment, &request, NOW).await;
    let other_enrolment = other_enrolment.unwrap().certificates[0].to_vec();
    let nobodys = leaf(&authority, &authority_key, &own_key, "tidegate gateway");
    for certificate in [other_enrolment, nobodys] {
        let chain = [certificate, ca.clone()];
        let error = begin("host").finish(&chain, &gateways, NOW).unwrap_err();
        assert_eq!(error.kind(), Kind::Denied);
        assert!(Identity::open(&root.path().join("host")).is_err());
    }
    for gateways in [vec![], vec!["gw1".to_owned()], vec!["gw1:0".to_owned()]] {
        let error = begin("host").finish(&good, &gateways, NOW).unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
    }
    let mut identity = begin("host").finish(&good, &gateways, NOW).unwrap();
    let kept = std::fs::read(root.path().join("host/host.pem")).unwrap();

    // Renewal: for the same enrolment and the same key, by the same authority.
    let renewed = async |key: &PrivateKey, enrolment| {
        let request = key.request().unwrap();
        let issued = authority.renew(enrolment, &request, NOW).await.unwrap();
        vec![issued.certificates[0].to_vec()]
    };
    let key = std::fs::read_to_string(root.path().join("host/host.key")).unwrap();
    let key = PrivateKey::from_pem("host.key", &key).unwrap();
    for (chain, now, kind) in [
        (renewed(&key, stranger.enrolment).await, NOW, Kind::Denied),
        (
            renewed(&stranger.key, token.enrolment).await,
            NOW,
            Kind::Denied,
        ),
        (vec![foreign.certificate.to_vec()], NOW, Kind::Denied),
        (
            renewed(&key, token.enrolment).await,
            NOW - DAY_NS,
            Kind::Config,
        ),
        (vec![b"nonsense".to_vec()], NOW, Kind::Corrupt),
        (vec![], NOW, Kind::Corrupt),
    ] {
        assert_eq!(identity.renew(&chain, now).unwrap_err().kind(), kind);
        assert_eq!(
            std::fs::read(root.path().join("host/host.pem")).unwrap(),
            kept
        );
    }
    identity
        .renew(&renewed(&key, token.enrolment).await, NOW)
        .unwrap();
}

#[tokio::test]
async fn files_that_do_not_fit_each_other_are_refused() {
    let authority = fleet().await;
    let root = tempfile::tempdir().unwrap();
    let mut folders = Vec::new();
    for name in ["one", "other"] {
        let token = invite(&authority).await;
        let gateways = token.gateways.clone();
        let folder = root.path().join(name);
        let joining = JoinInProgress::begin(&folder, token).unwrap();
        let chain = answer(&authority, &joining, NOW).await;
        joining.finish(&chain, &gateways, NOW).unwrap();
        folders.push(folder);
    }
    for name in ["host.key", "host.pem", "authority.pem", "gateways"] {
        let path = folders[0].join(name);
        let whole = std::fs::read(&path).unwrap();
        let strange = match name {
            "authority.pem" => std::fs::read(folders[1].join("host.pem")).unwrap(),
            "gateways" => b"gw1\n".to_vec(),
            _ => std::fs::read(folders[1].join(name)).unwrap(),
        };
        for bytes in [
            strange,
            whole[..whole.len() / 2].to_vec(),
            vec![],
            vec![0xff; 100],
        ] {
            // Half of a list of gateways may be one.
            if name == "gateways" && bytes == whole[..whole.len() / 2] {
                continue;
            }
            std::fs::write(&path, &bytes).unwrap();
            assert!(Identity::open(&folders[0]).is_err(), "{name}");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(
            Identity::open(&folders[0]).unwrap_err().kind(),
            Kind::Missing,
            "{name}"
        );
        std::fs::write(&path, &whole).unwrap();
        Identity::open(&folders[0]).unwrap();
    }
}
