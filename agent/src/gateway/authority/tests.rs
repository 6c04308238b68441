//! Tokens and what becomes of them: who is admitted, by which of several gateways, and what a store
//! that fails in between leaves behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use super::*;
use crate::store::StoreSettings;
use crate::store::fault::{Call, Fault, FaultStore, Operation};
use bytes::Bytes;
use rcgen::{CertificateParams, KeyPair};
use std::time::Duration;
use tidegate_protocol::enrolment::{Grant, Revoked, Token};
use tidegate_protocol::rights::{Right, Rights};

const HOUR_NS: u64 = 3600 * 1_000_000_000;
const DAY_NS: u64 = 24 * HOUR_NS;
/// Some day in 2027.
const NOW: u64 = 20_800 * DAY_NS;

/// Soon at their end when a store is down.
fn settings() -> StoreSettings {
    StoreSettings {
        operation_deadline: Duration::from_millis(200),
        backoff_first: Duration::from_millis(1),
        backoff_max: Duration::from_millis(2),
        ..StoreSettings::default()
    }
}

fn grant(repository: &str, rights: &str) -> Grant {
    Grant {
        repository: repository.to_owned(),
        rights: rights.parse().unwrap(),
    }
}

fn new_invite(host: &str) -> NewInvite {
    NewInvite {
        host: host.to_owned(),
        grants: vec![grant("main", "backup,restore"), grant("archive", "monitor")],
        expires_unix_ns: NOW + DAY_NS,
        gateways: vec!["gw1:4433".to_owned()],
    }
}

async fn fleet() -> (Authority, PrivateKey, Store) {
    let store = Store::memory();
    let key = Authority::new_key().unwrap();
    let authority = Authority::create(copy(&key), store.clone(), NOW).await;
    (authority.unwrap(), key, store)
}

fn copy(key: &PrivateKey) -> PrivateKey {
    PrivateKey::from_pem("copy", &key.to_pem()).unwrap()
}

async fn invite(authority: &Authority) -> Token {
    let new = new_invite("hv1");
    authority.fleet().invite(new, NOW).await.unwrap()
}

async fn join(
    authority: &Authority,
    token: &Token,
    key: &PrivateKey,
    now_unix_ns: u64,
) -> Result<IssuedChain, Refused> {
    let request = key.request().unwrap();
    authority
        .join(token.enrolment, &token.secret, &request, now_unix_ns)
        .await
}

#[tokio::test]
async fn what_is_issued_says_who_and_nothing_else() {
    let (authority, _, _) = fleet().await;
    let token = invite(&authority).await;
    let key = PrivateKey::generate().unwrap();
    let issued = join(&authority, &token, &key, NOW).await.unwrap();
    assert_eq!(issued.host, "hv1");
    assert_eq!(issued.certificates[1], *authority.certificate());
    let facts = CertificateFacts::read("test", &issued.certificates[0]).unwrap();
    let ca = CertificateFacts::read("test", authority.certificate()).unwrap();
    facts.check_signed_by(&ca).unwrap();
    assert!(ca.check_signed_by(&facts).is_err());
    assert_eq!(facts.enrolment, Some(token.enrolment));
    assert_eq!(facts.public_der, key.public_der());
    assert_eq!(facts.not_before_unix_ns, NOW - HOUR_NS);
    assert_eq!(facts.not_after_unix_ns, NOW + 30 * DAY_NS);
    assert!(!facts.is_authority && ca.is_authority && ca.enrolment.is_none());

    let shown = authority.server_certificate(NOW).unwrap();
    let gateway = CertificateFacts::read("test", &shown.chain[0]).unwrap();
    assert_eq!(gateway.enrolment, None);
    assert_eq!(gateway.public_der, shown.key.public_der());
    assert_eq!(
        (shown.not_before_unix_ns, shown.not_after_unix_ns),
        (NOW - HOUR_NS, NOW + 30 * DAY_NS)
    );
    // The same once more is not the same certificate.
    let again = join(&authority, &token, &key, NOW).await.unwrap();
    assert_ne!(again.certificates[0], issued.certificates[0]);

    // No certificate outlives the authority's.
    let late = ca.not_after_unix_ns - DAY_NS;
    let last = authority.server_certificate(late).unwrap();
    assert_eq!(last.not_after_unix_ns, ca.not_after_unix_ns);
}

/// Names and purposes in a request are not read: a host cannot write its own certificate.
#[tokio::test]
async fn a_request_chooses_nothing() {
    let (authority, _, _) = fleet().await;
    let token = invite(&authority).await;
    let pair = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let mut params = CertificateParams::new(vec!["gateway.tidegate.internal".to_owned()]).unwrap();
    let other = EnrolmentId([7; 16]).to_string();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, other);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let request = params.serialize_request(&pair).unwrap();
    let issued = authority
        .join(token.enrolment, &token.secret, request.der(), NOW)
        .await
        .unwrap();
    let (_, read) = x509_parser::parse_x509_certificate(&issued.certificates[0]).unwrap();
    assert!(!read.is_ca());
    assert!(read.subject_alternative_name().unwrap().is_none());
    let purposes = read.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.client_auth && !purposes.server_auth && !purposes.any);
    let name = read.subject().to_string();
    assert_eq!(name, format!("CN={}", token.enrolment));
}

#[tokio::test]
async fn a_token_admits_who_has_it_in_its_time() {
    let (authority, _, store) = fleet().await;
    let token = invite(&authority).await;
    let key = PrivateKey::generate().unwrap();
    let request = key.request().unwrap();
    let [unknown, other] = [EnrolmentId([9; 16]), invite(&authority).await.enrolment];
    for (id, secret, now) in [
        (unknown, &token.secret, NOW),
        (other, &token.secret, NOW),
        (token.enrolment, &Secret([0; 32]), NOW),
        (token.enrolment, &token.secret, NOW + DAY_NS),
    ] {
        let refused = authority.join(id, secret, &request, now).await.unwrap_err();
        match (id, now) {
            (id, _) if id == unknown => assert!(matches!(refused, Refused::Unknown(_))),
            (_, NOW) => assert!(matches!(refused, Refused::Secret(_)), "{refused}"),
            _ => assert!(matches!(refused, Refused::Expired(_)), "{refused}"),
        }
    }
    // A wrong secret learns nothing, whatever else is wrong.
    let late = authority
        .join(token.enrolment, &Secret([0; 32]), b"nonsense", NOW + DAY_NS)
        .await;
    assert!(matches!(late.unwrap_err(), Refused::Secret(_)));
    // None of that has used the token up.
    assert!(
        store
            .size(&Joined::object_key(token.enrolment))
            .await
            .unwrap()
            .is_none()
    );
    join(&authority, &token, &key, NOW + DAY_NS - 1)
        .await
        .unwrap();
    // The same key comes again: its answer was lost. Another one was too late.
    join(&authority, &token, &key, NOW).await.unwrap();
    let stranger = PrivateKey::generate().unwrap();
    let refused = join(&authority, &token, &stranger, NOW).await.unwrap_err();
    assert!(matches!(refused, Refused::Used(_)), "{refused}");
    // After its time it is worth nothing to anybody.
    let refused = join(&authority, &token, &key, NOW + DAY_NS)
        .await
        .unwrap_err();
    assert!(matches!(refused, Refused::Expired(_)), "{refused}");
}

#[tokio::test]
async fn requests_that_do_not_hold_are_refused() {
    let (authority, _, store) = fleet().await;
    let token = invite(&authority).await;
    let sound = PrivateKey::generate().unwrap().request().unwrap().to_vec();
    let mut wrong: Vec<Vec<u8>> = vec![
        vec![],
        b"nonsense".to_vec(),
        vec![0x30; 10_000],
        [&sound[..], b"\0"].concat(),
        // Of another kind of key.
        CertificateParams::default()
            .serialize_request(&KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap())
            .unwrap()
            .der()
            .to_vec(),
        // The key of somebody else, under one's own signature.
        {
            let other = PrivateKey::generate().unwrap().public_der();
            let mut bytes = sound.clone();
            let prefix = &other[..12];
            let at = bytes
                .windows(12)
                .position(|window| window == prefix)
                .unwrap();
            bytes[at..at + 44].copy_from_slice(&other);
            bytes
        },
    ];
    for length in 0..sound.len() {
        wrong.push(sound[..length].to_vec());
        let mut flipped = sound.clone();
        flipped[length] ^= 4;
        // The name of the signature's algorithm is not signed; what counts is which one it is.
        if RequestFacts::read(&flipped).is_err() {
            wrong.push(flipped);
        } else {
            assert_eq!(RequestFacts::read(&flipped), RequestFacts::read(&sound));
        }
    }
    for request in wrong {
        let refused = authority
            .join(token.enrolment, &token.secret, &request, NOW)
            .await
            .unwrap_err();
        assert!(matches!(refused, Refused::Request(..)), "{refused}");
    }
    assert!(
        store
            .size(&Joined::object_key(token.enrolment))
            .await
            .unwrap()
            .is_none()
    );
}

/// Many who are shown one token by several gateways at once: one key gets in, whoever it is.
#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_race_for_a_token_one_wins() {
    let (authority, key, store) = fleet().await;
    let authority = Arc::new(authority);
    let other = Arc::new(Authority::load(key, store, NOW).await.unwrap());
    for _ in 0..20 {
        let token = Arc::new(invite(&authority).await);
        let tries = (0..8).map(|number| {
            let gateway = Arc::clone(if number % 2 == 0 { &authority } else { &other });
            let token = Arc::clone(&token);
            tokio::spawn(async move {
                let key = PrivateKey::generate().unwrap();
                (join(&gateway, &token, &key, NOW).await, key)
            })
        });
        let ended = futures::future::join_all(tries).await;
        let (in_, out): (Vec<_>, Vec<_>) = ended
            .into_iter()
            .map(Result::unwrap)
            .partition(|(joined, _)| joined.is_ok());
        assert_eq!((in_.len(), out.len()), (1, 7));
        for (refused, _) in &out {
            assert!(matches!(refused, Err(Refused::Used(_))));
        }
        // And stays in, at either gateway.
        for gateway in [&authority, &other] {
            join(gateway, &token, &in_[0].1, NOW).await.unwrap();
        }
    }
}

/// The store fails at every call of a join in turn, without effect or with it; the host comes again
/// with the same key and gets in, and nobody else does.
#[tokio::test]
async fn a_join_that_breaks_off_anywhere_can_be_done_again() {
    let (_, key, store) = fleet().await;
    for fault in [Fault::Crash, Fault::CrashAfter, Fault::Refuse] {
        let mut steps = 0;
        loop {
            let healthy = Authority::load(copy(&key), store.clone(), NOW)
                .await
                .unwrap();
            let token = invite(&healthy).await;
            let (failing, faults) = store.with_faults(&settings());
            let gateway = Authority::load(copy(&key), failing, NOW).await.unwrap();
            let begun = faults.calls().len() as u64 + steps;
            let fails = fault.clone();
            faults.script(move |call| (call.ordinal == begun).then(|| fails.clone()));
            let host = PrivateKey::generate().unwrap();
            let joined = join(&gateway, &token, &host, NOW).await;
            if let Err(error) = &joined {
                assert!(
                    matches!(error, Refused::Failed(_)),
                    "{fault:?} {steps}: {error}"
                );
            }
            join(&healthy, &token, &host, NOW).await.unwrap();
            let stranger = PrivateKey::generate().unwrap();
            let refused = join(&healthy, &token, &stranger, NOW).await.unwrap_err();
            assert!(matches!(refused, Refused::Used(_)));
            if joined.is_ok() {
                break;
            }
            steps += 1;
        }
        // The invite, the revocation, the taking.
        assert_eq!(steps, 3, "{fault:?}");
    }
}

/// A PUT whose answer was lost is sent again, finds its own object, and is no stranger to it.
#[tokio::test]
async fn ones_own_object_is_no_rival() {
    let (authority, key, store) = fleet().await;
    let token = invite(&authority).await;
    let (store, faults) = store.with_faults(&settings());
    let gateway = Authority::load(key, store, NOW).await.unwrap();
    let mut puts = 0;
    faults.script(move |call| {
        puts += u32::from(call.operation == Operation::Put);
        (call.operation == Operation::Put && puts == 1).then_some(Fault::LoseAnswer)
    });
    let host = PrivateKey::generate().unwrap();
    join(&gateway, &token, &host, NOW).await.unwrap();
}

fn puts_of(faults: &FaultStore) -> Vec<String> {
    let puts = faults.calls().into_iter();
    let puts = puts.filter(|call: &Call| call.operation == Operation::Put);
    puts.map(|call| call.key).collect()
}

#[tokio::test]
async fn a_fleet_is_made_once() {
    let (store, faults) = Store::memory().with_faults(&settings());
    assert_eq!(
        Fleet::open(store.clone()).await.err().unwrap().kind(),
        Kind::Missing
    );
    let key = Authority::new_key().unwrap();
    let first = Authority::create(copy(&key), store.clone(), NOW)
        .await
        .unwrap();
    // That the store keeps its word was tried before anything was written there.
    let puts = puts_of(&faults);
    assert!(puts[0].starts_with("probe/"), "{puts:?}");
    assert_eq!(puts.last().unwrap(), "authority");
    // The same again, by a command that was killed and run again.
    let again = Authority::create(copy(&key), store.clone(), NOW + 1)
        .await
        .unwrap();
    assert_eq!(again.fingerprint(), first.fingerprint());
    // By another key: not this fleet's, for either verb.
    let other = Authority::new_key().unwrap();
    let error = Authority::create(copy(&other), store.clone(), NOW)
        .await
        .err()
        .unwrap();
    assert_eq!(error.kind(), Kind::Conflict);
    let error = Authority::load(other, store.clone(), NOW)
        .await
        .err()
        .unwrap();
    assert_eq!(error.kind(), Kind::Conflict);
    // By a clock that is far off.
    for now in [NOW - DAY_NS, NOW + 20 * 365 * DAY_NS] {
        let error = Authority::load(copy(&key), store.clone(), now)
            .await
            .err()
            .unwrap();
        assert_eq!(error.kind(), Kind::Config);
    }
}

/// Nobody becomes the authority by writing a certificate of any kind into its place.
#[tokio::test]
async fn an_authority_that_is_none_is_refused() {
    let (authority, key, _) = fleet().await;
    let token = invite(&authority).await;
    let leaf = join(&authority, &token, &key, NOW)
        .await
        .unwrap()
        .certificates[0]
        .to_vec();
    let mut forged = authority.certificate().to_vec();
    *forged.last_mut().unwrap() ^= 1;
    for certificate_der in [leaf, forged, b"nonsense".to_vec()] {
        let store = Store::memory();
        let object = enrolment::Authority {
            certificate_der,
            created_unix_ns: NOW,
        };
        let bytes: Bytes = object.encode().unwrap().into();
        let _: Created = store.create("authority", bytes).await.unwrap();
        let error = Authority::load(copy(&key), store, NOW).await.err().unwrap();
        assert!(
            matches!(error.kind(), Kind::Corrupt | Kind::Denied),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn rights_are_those_of_the_invite_until_it_is_revoked() {
    let (authority, key, store) = fleet().await;
    let (other_store, faults) = store.with_faults(&settings());
    let other = Authority::load(key, other_store, NOW).await.unwrap();
    let token = invite(&authority).await;
    let id = token.enrolment;
    let host = PrivateKey::generate().unwrap();
    join(&authority, &token, &host, NOW).await.unwrap();

    let Standing::Enrolled(invite) = other.standing(id).await.unwrap() else {
        panic!("not enrolled");
    };
    let both = Rights::of(Right::Backup).and(Rights::of(Right::Restore));
    assert_eq!(invite.rights_in("main"), both);
    assert_eq!(invite.rights_in("archive"), Rights::of(Right::Monitor));
    assert_eq!(invite.rights_in("elsewhere"), Rights::NONE);
    assert_eq!(invite.rights_in("mai"), Rights::NONE);
    // Known now: no request more, however often it is asked, and whatever the store says.
    let calls = faults.calls().len();
    faults.script(|_| Some(Fault::Refuse));
    other.standing(id).await.unwrap();
    assert_eq!(faults.calls().len(), calls);
    faults.script(|_| None);
    assert_eq!(
        other.standing(EnrolmentId([1; 16])).await.unwrap(),
        Standing::Unknown
    );

    let revoked = authority.fleet().revoke("hv1", NOW).await.unwrap();
    assert_eq!(revoked.len(), 1);
    // No certificate from then on, although neither gateway has looked at the list.
    let request = host.request().unwrap();
    for gateway in [&authority, &other] {
        assert!(!gateway.is_revoked(id));
        let refused = gateway.renew(id, &request, NOW).await.unwrap_err();
        assert!(matches!(refused, Refused::Revoked(_)), "{refused}");
        let refused = join(gateway, &token, &host, NOW).await.unwrap_err();
        assert!(matches!(refused, Refused::Revoked(_)), "{refused}");
    }
    // Nor anything else once they have; each learns of it once.
    faults.script(|_| Some(Fault::Refuse));
    assert!(other.refresh_revocations().await.is_err());
    assert!(!other.is_revoked(id));
    faults.script(|_| None);
    assert_eq!(other.refresh_revocations().await.unwrap(), [id]);
    assert_eq!(other.refresh_revocations().await.unwrap(), []);
    assert!(other.is_revoked(id));
    assert_eq!(other.standing(id).await.unwrap(), Standing::Revoked);
    // What was revoked stays so, even if somebody deletes the object.
    store.delete(&Revoked::object_key(id)).await.unwrap();
    other.refresh_revocations().await.unwrap();
    assert!(other.is_revoked(id));
}

/// An object under the name revokes, whatever is in it: a damaged one must not let a host back in.
#[tokio::test]
async fn a_damaged_revocation_revokes() {
    let (authority, key, store) = fleet().await;
    let token = invite(&authority).await;
    let host = PrivateKey::generate().unwrap();
    join(&authority, &token, &host, NOW).await.unwrap();
    let place = Revoked::object_key(token.enrolment);
    let _: Created = store.create(&place, Bytes::new()).await.unwrap();
    let names = ["revoked/of-nobody", "revoked/00"];
    for name in names {
        let _: Created = store.create(name, Bytes::new()).await.unwrap();
    }
    let again = Authority::load(key, store, NOW).await.unwrap();
    assert!(again.is_revoked(token.enrolment));
    assert_eq!(
        authority.refresh_revocations().await.unwrap(),
        [token.enrolment]
    );
}

#[tokio::test]
async fn a_certificate_is_renewed_for_whom_it_was() {
    let (authority, _, _) = fleet().await;
    let token = invite(&authority).await;
    let host = PrivateKey::generate().unwrap();
    join(&authority, &token, &host, NOW).await.unwrap();
    // Long after the token's time; for the key of before, and for another.
    let later = NOW + 300 * DAY_NS;
    for key in [&host, &PrivateKey::generate().unwrap()] {
        let request = key.request().unwrap();
        let issued = authority
            .renew(token.enrolment, &request, later)
            .await
            .unwrap();
        let facts = CertificateFacts::read("test", &issued.certificates[0]).unwrap();
        assert_eq!(facts.enrolment, Some(token.enrolment));
        assert_eq!(facts.public_der, key.public_der());
        assert_eq!(facts.not_after_unix_ns, later + 30 * DAY_NS);
    }
    let refused = authority.renew(token.enrolment, b"nonsense", later).await;
    assert!(matches!(refused.unwrap_err(), Refused::Request(..)));
    let request = host.request().unwrap();
    let refused = authority.renew(EnrolmentId([1; 16]), &request, later).await;
    assert!(matches!(refused.unwrap_err(), Refused::Unknown(_)));
}

#[tokio::test]
async fn a_damaged_invite_lets_nobody_in_and_says_so() {
    let (authority, _, store) = fleet().await;
    let token = invite(&authority).await;
    let place = Invite::object_key(token.enrolment);
    let bytes = store.get(&place, 1 << 16).await.unwrap();
    // Another host's invite in its place, and one with a flipped bit.
    let other = invite(&authority).await.enrolment;
    let swapped = store
        .get(&Invite::object_key(other), 1 << 16)
        .await
        .unwrap();
    let mut flipped = bytes.to_vec();
    flipped[40] ^= 1;
    for wrong in [swapped, flipped.into(), bytes.slice(..20)] {
        store.delete(&place).await.unwrap();
        let _: Created = store.create(&place, wrong).await.unwrap();
        let host = PrivateKey::generate().unwrap();
        let Err(Refused::Failed(error)) = join(&authority, &token, &host, NOW).await else {
            panic!("let in by a damaged invite");
        };
        assert_eq!(error.kind(), Kind::Corrupt);
        let error = authority.standing(token.enrolment).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        // It is named, hides nobody else's, and can be revoked.
        let listing = authority.fleet().list(NOW).await.unwrap();
        let hosts: Vec<_> = listing
            .enrolments
            .iter()
            .map(|one| one.invite.enrolment)
            .collect();
        assert_eq!(hosts, [other]);
        assert_eq!(listing.damaged.len(), 1);
        assert_eq!(listing.damaged[0].enrolment, token.enrolment);
        let error = listing.damaged[0].error.to_string();
        assert!(error.contains(&place), "{error}");
        let id = token.enrolment.to_string();
        let named = Named {
            enrolment: token.enrolment,
            host: None,
        };
        assert_eq!(
            authority.fleet().revoke(&id[..8], NOW).await.unwrap(),
            [named]
        );
        store
            .delete(&Revoked::object_key(token.enrolment))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn the_list_tells_what_became_of_each() {
    let (authority, _, _) = fleet().await;
    let fleet = authority.fleet();
    let mut tokens = Vec::new();
    for (host, made) in [("hv3", 1), ("hv1", 3), ("hv1", 2), ("hv2", 4)] {
        let new = NewInvite {
            expires_unix_ns: NOW + made * DAY_NS,
            ..new_invite(host)
        };
        tokens.push(fleet.invite(new, NOW + made).await.unwrap());
    }
    let host = PrivateKey::generate().unwrap();
    join(&authority, &tokens[1], &host, NOW + 5).await.unwrap();
    let state = async |now| {
        let listed = fleet.list(now).await.unwrap().enrolments;
        let line = |one: Enrolment| (one.invite.enrolment, one.state.as_str(), one.joined_unix_ns);
        listed.into_iter().map(line).collect::<Vec<_>>()
    };
    let ids: Vec<_> = tokens.iter().map(|token| token.enrolment).collect();
    let expected = [
        (ids[2], "invited", None),
        (ids[1], "joined", Some(NOW + 5)),
        (ids[3], "invited", None),
        (ids[0], "invited", None),
    ];
    assert_eq!(state(NOW + 10).await, expected);
    let expected = [
        (ids[2], "expired", None),
        (ids[1], "joined", Some(NOW + 5)),
        (ids[3], "invited", None),
        (ids[0], "expired", None),
    ];
    assert_eq!(state(NOW + 2 * DAY_NS).await, expected);

    // By name: all that the host has. By digits: one.
    let revoked = fleet.revoke("hv1", NOW).await.unwrap();
    let revoked: Vec<_> = revoked.iter().map(|one| one.enrolment).collect();
    assert_eq!(revoked, [ids[2], ids[1]]);
    let digits = ids[3].to_string().to_uppercase();
    fleet.revoke(&digits[..8], NOW).await.unwrap();
    // Again: nothing changes, nothing fails.
    fleet.revoke("hv1", NOW + 1).await.unwrap();
    let expected = [
        (ids[2], "revoked", None),
        (ids[1], "revoked", Some(NOW + 5)),
        (ids[3], "revoked", None),
        (ids[0], "invited", None),
    ];
    assert_eq!(state(NOW + 10).await, expected);
    for which in ["hv", "hv9", "", &ids[0].to_string()[..3], "0123456789"] {
        let error = fleet.revoke(which, NOW).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Missing, "{which:?}");
    }
    assert_eq!(state(NOW + 10).await, expected);
}

#[tokio::test]
async fn invites_that_cannot_hold_are_not_made() {
    let (authority, _, store) = fleet().await;
    let sound = new_invite("hv1");
    let wrong = [
        new_invite(""),
        new_invite("two words"),
        new_invite(&"x".repeat(256)),
        NewInvite {
            grants: vec![],
            ..sound.clone()
        },
        NewInvite {
            grants: vec![grant("main", "backup"), grant("main", "restore")],
            ..sound.clone()
        },
        NewInvite {
            grants: vec![grant("a/b", "backup")],
            ..sound.clone()
        },
        NewInvite {
            grants: vec![grant(".", "backup")],
            ..sound.clone()
        },
        NewInvite {
            grants: vec![Grant {
                repository: "main".to_owned(),
                rights: Rights::NONE,
            }],
            ..sound.clone()
        },
        NewInvite {
            expires_unix_ns: NOW,
            ..sound.clone()
        },
        NewInvite {
            gateways: vec!["gw1".to_owned()],
            ..sound.clone()
        },
        NewInvite {
            gateways: vec!["gw1:1".to_owned(); 17],
            ..sound.clone()
        },
    ];
    for new in wrong {
        let error = authority
            .fleet()
            .invite(new.clone(), NOW)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Config, "{new:?}");
    }
    assert!(
        authority
            .fleet()
            .list(NOW)
            .await
            .unwrap()
            .enrolments
            .is_empty()
    );
    authority.fleet().invite(sound, NOW).await.unwrap();
    assert!(store.requests().puts > 0);
}
