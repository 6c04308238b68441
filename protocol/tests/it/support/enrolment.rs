//! An example of every object in a fleet's place, and of a token.

use tidegate_protocol::enrolment::{
    Authority, Fingerprint, Grant, Invite, Joined, Revoked, SecretHash, Token,
};
use tidegate_protocol::ids::EnrolmentId;
use tidegate_protocol::keys::Secret;
use tidegate_protocol::rights::Rights;

pub(crate) const ENROLMENT: EnrolmentId = EnrolmentId([0x5e; 16]);
pub(crate) const SECRET: [u8; 32] = [0x77; 32];

pub(crate) fn authority() -> Authority {
    Authority {
        // Whether it is a certificate, the gateway finds out.
        certificate_der: (0..=255).collect(),
        created_unix_ns: super::TIME,
    }
}

pub(crate) fn grant(repository: &str, rights: &str) -> Grant {
    Grant {
        repository: repository.to_owned(),
        rights: rights.parse().unwrap_or(Rights::NONE),
    }
}

pub(crate) fn invite() -> Invite {
    Invite {
        enrolment: ENROLMENT,
        secret_hash: SecretHash::of(ENROLMENT, &Secret(SECRET)),
        host: "hv1.example.com".to_owned(),
        grants: vec![grant("archive", "monitor"), grant("main", "backup,restore")],
        created_unix_ns: super::TIME,
        expires_unix_ns: super::TIME + 86_400_000_000_000,
    }
}

pub(crate) fn joined() -> Joined {
    Joined {
        enrolment: ENROLMENT,
        key_hash: [0x88; 32],
        joined_unix_ns: super::TIME + 1,
    }
}

pub(crate) fn revoked() -> Revoked {
    Revoked {
        enrolment: ENROLMENT,
        revoked_unix_ns: super::TIME + 2,
    }
}

pub(crate) fn token() -> Token {
    Token {
        enrolment: ENROLMENT,
        secret: Secret(SECRET),
        authority: Fingerprint::of(&authority().certificate_der),
        gateways: vec![
            "gw1.example.com:4433".to_owned(),
            "[2001:db8::1]:4433".to_owned(),
        ],
    }
}
