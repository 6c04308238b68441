//! The objects of a fleet's place and the token, at the edges of what they may hold.
//!
//! That nothing opens which was changed is shown with the other objects, in `hostile`; that the bytes
//! stay as they are, in `golden`.

use crate::support::enrolment::{
    ENROLMENT, SECRET, authority, grant, invite, joined, revoked, token,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use tidegate_protocol::FormatError;
use tidegate_protocol::enrolment::{
    Authority, CERTIFICATE_BYTES_MAX, Fingerprint, GATEWAYS_MAX, GRANTS_MAX, Grant, INVITES,
    Invite, JOINED, Joined, REVOKED, Revoked, SecretHash, Token, check_gateway,
};
use tidegate_protocol::ids::EnrolmentId;
use tidegate_protocol::keys::Secret;
use tidegate_protocol::rights::{Right, Rights};

const OTHER: EnrolmentId = EnrolmentId([0x5f; 16]);

#[test]
fn an_object_is_read_at_its_own_place_only() {
    let objects = [
        invite().encode().unwrap(),
        joined().encode().unwrap(),
        revoked().encode().unwrap(),
    ];
    for (number, bytes) in objects.iter().enumerate() {
        let open = |id| {
            [
                Invite::decode(bytes, id).map(drop),
                Joined::decode(bytes, id).map(drop),
                Revoked::decode(bytes, id).map(drop),
            ]
        };
        for (reader, read) in open(ENROLMENT).into_iter().enumerate() {
            assert_eq!(read.is_ok(), reader == number);
        }
        assert!(open(OTHER).into_iter().all(|read| read.is_err()));
    }
}

#[test]
fn places_have_one_spelling() {
    for (folder, key) in [
        (INVITES, Invite::object_key(ENROLMENT)),
        (JOINED, Joined::object_key(ENROLMENT)),
        (REVOKED, Revoked::object_key(ENROLMENT)),
    ] {
        assert_eq!(EnrolmentId::from_object_key(folder, &key), Some(ENROLMENT));
        for other in [INVITES, JOINED, REVOKED] {
            let found = EnrolmentId::from_object_key(other, &key);
            assert_eq!(found.is_some(), other == folder);
        }
        for wrong in [
            key.to_uppercase(),
            key.replace("5e", "5E"),
            format!("{key}0"),
            key[..key.len() - 1].to_owned(),
            format!("x{key}"),
            key.replace('/', ""),
        ] {
            assert_eq!(
                EnrolmentId::from_object_key(folder, &wrong),
                None,
                "{wrong}"
            );
        }
    }
}

#[test]
fn a_secrets_hash_belongs_to_one_enrolment() {
    let hash = SecretHash::of(ENROLMENT, &Secret(SECRET));
    assert_eq!(hash, token().secret_hash());
    assert_ne!(hash, SecretHash::of(OTHER, &Secret(SECRET)));
    let mut secret = SECRET;
    secret[31] ^= 1;
    assert_ne!(hash, SecretHash::of(ENROLMENT, &Secret(secret)));
    assert!(!format!("{:?} {hash:?}", token()).contains("77777777"));
}

#[test]
fn what_a_reader_would_refuse_is_not_written() {
    let sound = invite();
    let many = |count: usize| -> Vec<Grant> {
        (0..count)
            .map(|number| grant(&format!("r{number:03}"), "backup"))
            .collect()
    };
    for (what, invite, expected) in [
        (
            "most grants",
            Invite {
                grants: many(GRANTS_MAX),
                ..sound.clone()
            },
            true,
        ),
        (
            "one more",
            Invite {
                grants: many(GRANTS_MAX + 1),
                ..sound.clone()
            },
            false,
        ),
        (
            "none",
            Invite {
                grants: vec![],
                ..sound.clone()
            },
            false,
        ),
        (
            "longest name",
            Invite {
                host: "x".repeat(255),
                ..sound.clone()
            },
            true,
        ),
        (
            "longer name",
            Invite {
                host: "x".repeat(256),
                ..sound.clone()
            },
            false,
        ),
        (
            "no name",
            Invite {
                host: String::new(),
                ..sound.clone()
            },
            false,
        ),
        (
            "terminal's",
            Invite {
                host: "a\u{1b}[2J".to_owned(),
                ..sound.clone()
            },
            false,
        ),
        (
            "line end",
            Invite {
                host: "a\nb".to_owned(),
                ..sound.clone()
            },
            false,
        ),
        (
            "order",
            Invite {
                grants: vec![grant("b", "backup"), grant("a", "backup")],
                ..sound.clone()
            },
            false,
        ),
        (
            "twice",
            Invite {
                grants: vec![grant("a", "backup"), grant("a", "backup")],
                ..sound.clone()
            },
            false,
        ),
        (
            "no right",
            Invite {
                grants: vec![grant("a", "")],
                ..sound.clone()
            },
            false,
        ),
        (
            "path",
            Invite {
                grants: vec![grant("..", "backup")],
                ..sound.clone()
            },
            false,
        ),
        (
            "folder",
            Invite {
                grants: vec![grant("a/b", "backup")],
                ..sound.clone()
            },
            false,
        ),
    ] {
        assert_eq!(invite.encode().is_ok(), expected, "{what}");
        if expected {
            let bytes = invite.encode().unwrap();
            assert_eq!(Invite::decode(&bytes, ENROLMENT).unwrap(), invite);
        }
    }
    for (length, expected) in [
        (0, false),
        (1, true),
        (CERTIFICATE_BYTES_MAX, true),
        (CERTIFICATE_BYTES_MAX + 1, false),
    ] {
        let object = Authority {
            certificate_der: vec![7; length],
            ..authority()
        };
        assert_eq!(object.encode().is_ok(), expected, "{length}");
    }
}

#[test]
fn a_newer_programs_objects_are_told_from_damaged_ones() {
    let reseal = |mut bytes: Vec<u8>| {
        let body = bytes.len() - 32;
        let check = blake3::hash(&bytes[..body]);
        bytes[body..].copy_from_slice(check.as_bytes());
        bytes
    };
    let mut bytes = invite().encode().unwrap();
    bytes[4] = 2;
    let error = Invite::decode(&reseal(bytes.clone()), ENROLMENT).unwrap_err();
    assert!(error.needs_newer_program(), "{error}");
    // A right that this program does not know must not be passed over in silence.
    let mut bytes = invite().encode().unwrap();
    let at = bytes
        .windows(2)
        .position(|pair| pair == [0x10, 0x08])
        .unwrap();
    bytes[at + 1] = 0x18;
    let error = Invite::decode(&reseal(bytes), ENROLMENT).unwrap_err();
    assert!(
        matches!(error, FormatError::Tag { found: 0x18, .. }),
        "{error}"
    );
}

#[test]
fn tokens_are_text_that_survives_a_mail() {
    let text = token().encode().unwrap();
    let read = |text: &str| {
        let read = Token::decode(text).unwrap();
        let expected = token();
        assert_eq!(read.enrolment, expected.enrolment);
        assert_eq!(read.secret, expected.secret);
        assert_eq!(read.authority, expected.authority);
        assert_eq!(read.gateways, expected.gateways);
    };
    read(&text);
    read(&format!("{}\n", *text));
    read(&format!("\r\n  {}\t\r\n", *text));
    for wrong in [
        String::new(),
        "tidegate-join-".to_owned(),
        "tidegate-join-1".to_owned(),
        "tidegate-join-1.".to_owned(),
        text.replace("tidegate-join-1.", ""),
        text.to_uppercase(),
        format!("{}=", *text),
        format!("{} {}", &text[..40], &text[40..]),
        format!("tidegate-join-1.{}", "A".repeat(100_000)),
    ] {
        assert!(Token::decode(&wrong).is_err(), "{wrong}");
    }
    let newer = text.replace("join-1.", "join-2.");
    assert!(Token::decode(&newer).err().unwrap().needs_newer_program());

    let with = |gateways: Vec<String>| {
        Token {
            gateways,
            ..token()
        }
        .encode()
    };
    let longest = format!("{}:65535", "x".repeat(249));
    let most = with(vec![longest.clone(); GATEWAYS_MAX]).unwrap();
    assert_eq!(Token::decode(&most).unwrap().gateways.len(), GATEWAYS_MAX);
    assert!(with(vec!["gw:1".to_owned(); GATEWAYS_MAX + 1]).is_err());
    assert!(with(vec![format!("x{longest}")]).is_err());
    assert!(with(vec![String::new()]).is_err());
    assert!(
        Token::decode(&with(vec![]).unwrap())
            .unwrap()
            .gateways
            .is_empty()
    );
}

/// Whoever makes a token can also make its check.
#[test]
fn a_token_of_any_making_names_gateways_by_address() {
    let made = |gateways: &[&[u8]]| {
        let mut bytes = [&[0x5e; 16][..], &SECRET, &[0; 32]].concat();
        bytes.push(u8::try_from(gateways.len()).unwrap());
        for gateway in gateways {
            bytes.push(u8::try_from(gateway.len()).unwrap());
            bytes.extend_from_slice(gateway);
        }
        let check = blake3::hash(&bytes);
        bytes.extend_from_slice(&check.as_bytes()[..4]);
        Token::decode(&format!(
            "tidegate-join-1.{}",
            URL_SAFE_NO_PAD.encode(bytes)
        ))
    };
    assert_eq!(made(&[b"gw1:1"]).unwrap().gateways, ["gw1:1"]);
    assert!(made(&[b"gw1"]).is_err());
    assert!(made(&[b"gw1:1", b"\x1b[2J:1"]).is_err());
    assert!(made(&[b"\xff:1"]).is_err());
    assert!(made(&[&b"gw1:1"[..]; 17]).is_err());
}

#[test]
fn addresses_are_host_and_port() {
    for sound in [
        "gw1:4433",
        "10.0.0.1:1",
        "[::1]:65535",
        "[fe80::1%eth0]:4433",
        "gw-1.example.com:4433",
    ] {
        check_gateway(sound).unwrap();
    }
    for wrong in [
        "",
        ":",
        "gw1",
        "gw1:",
        ":4433",
        "gw1:0",
        "gw1:65536",
        "gw1:+1",
        "gw1:44 33",
        "::1:4433",
        "[]:1",
        "[::1]",
        "gw 1:1",
        "gw1:4433\n",
        "quic://gw1:4433",
        "a/b:1",
        "ä:1",
    ] {
        assert!(check_gateway(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn rights_are_what_they_say() {
    for bits in 0..16 {
        let rights = Rights::from_bits(bits).unwrap();
        assert_eq!(rights.bits(), bits);
        assert_eq!(rights.is_empty(), bits == 0);
        for right in Right::ALL {
            assert_eq!(rights.has(right), bits & right.bit() != 0);
        }
        let text = rights.to_string();
        match bits {
            0 => assert!(text.is_empty() && text.parse::<Rights>().is_err()),
            _ => assert_eq!(text.parse::<Rights>().unwrap(), rights),
        }
    }
    for bits in [16, 31, 1 << 31, u32::MAX] {
        assert!(Rights::from_bits(bits).is_err());
    }
    // For ever.
    let named = Right::ALL.map(|right| (right.as_str(), right.bit()));
    assert_eq!(
        named,
        [
            ("backup", 1),
            ("restore", 2),
            ("maintenance", 4),
            ("monitor", 8)
        ]
    );
    let spaced: Rights = "restore, backup,restore".parse().unwrap();
    assert_eq!(spaced.to_string(), "backup,restore");
    for wrong in ["", ",", "backup,", "Backup", "all", "backup restore"] {
        assert!(wrong.parse::<Rights>().is_err(), "{wrong:?}");
    }
}

fn any_invite() -> impl Strategy<Value = Invite> {
    let grants = btree_map(
        "[A-Za-z0-9_-][A-Za-z0-9._-]{0,40}",
        1_u32..16,
        1..=GRANTS_MAX,
    );
    (
        "[a-zA-Zäß0-9.@:-]{1,60}",
        grants,
        any::<([u8; 32], u64, u64)>(),
    )
        .prop_map(|(host, grants, (hash, created, expires))| Invite {
            enrolment: ENROLMENT,
            secret_hash: SecretHash(hash),
            host,
            grants: grants
                .into_iter()
                .map(|(repository, bits)| Grant {
                    repository,
                    rights: Rights::from_bits(bits).unwrap(),
                })
                .collect(),
            created_unix_ns: created,
            expires_unix_ns: expires,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn invites_come_back_as_they_were(invite in any_invite()) {
        let bytes = invite.encode().unwrap();
        prop_assert_eq!(Invite::decode(&bytes, ENROLMENT).unwrap(), invite);
    }

    #[test]
    fn tokens_come_back_as_they_were(id in any::<[u8; 16]>(), secret in any::<[u8; 32]>(), authority in any::<[u8; 32]>(), gateways in vec("[a-z0-9.-]{1,80}:[1-9][0-9]{0,3}", 0..=GATEWAYS_MAX)) {
        let token = Token { enrolment: EnrolmentId(id), secret: Secret(secret), authority: Fingerprint(authority), gateways: gateways.clone() };
        let read = Token::decode(&token.encode().unwrap()).unwrap();
        prop_assert_eq!(read.enrolment.0, id);
        prop_assert_eq!(read.secret.0, secret);
        prop_assert_eq!(read.authority.0, authority);
        prop_assert_eq!(read.gateways, gateways);
    }

    #[test]
    fn made_up_tokens_are_refused(body in "[A-Za-z0-9_-]{0,400}") {
        let text = format!("tidegate-join-1.{body}");
        prop_assert!(Token::decode(&text).is_err());
    }
}
