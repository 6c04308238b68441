//! What is read of hosts before anybody knows who they are, and of a fleet's place: objects and tokens
//! behind their checks, certificates and requests as strangers send them.

use crate::Target;
use crate::support::enrolment as example;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use tidegate_agent::link::identity::{CertificateFacts, RequestFacts};
use tidegate_protocol::enrolment::{Authority, Invite, Joined, Revoked, Token, check_gateway};

const MIB: usize = 1 << 20;

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "enrolment",
        run: object,
        seeds: object_seeds,
        held_bytes_max: MIB,
    },
    Target {
        name: "token",
        run: token,
        seeds: token_seeds,
        held_bytes_max: MIB,
    },
    Target {
        name: "certificate",
        run: certificate,
        seeds: certificate_seeds,
        held_bytes_max: MIB,
    },
];

const MAGICS: [&[u8; 4]; 4] = [b"TGEA", b"TGEI", b"TGEJ", b"TGER"];
/// Magic, version, length.
const FRONT_BYTES: usize = 9;
const CHECK_BYTES: usize = 32;

/// An object with any message, under a check that holds. The first byte chooses which.
fn object(bytes: &[u8]) {
    let Some((which, message)) = bytes.split_first() else {
        return;
    };
    let which = usize::from(which % 4);
    let length = u32::try_from(message.len()).unwrap().to_le_bytes();
    let mut object = [&MAGICS[which][..], &[1], &length, message].concat();
    object.extend_from_slice(blake3::hash(&object).as_bytes());
    let id = example::ENROLMENT;
    match which {
        0 => {
            if let Ok(read) = Authority::decode(&object) {
                assert_eq!(Authority::decode(&read.encode().unwrap()).unwrap(), read);
            }
        }
        1 => {
            if let Ok(read) = Invite::decode(&object, id) {
                assert_eq!(Invite::decode(&read.encode().unwrap(), id).unwrap(), read);
                assert!(!read.host.is_empty() && !read.grants.is_empty());
            }
        }
        2 => {
            if let Ok(read) = Joined::decode(&object, id) {
                assert_eq!(Joined::decode(&read.encode().unwrap(), id).unwrap(), read);
            }
        }
        _ => {
            if let Ok(read) = Revoked::decode(&object, id) {
                assert_eq!(Revoked::decode(&read.encode().unwrap(), id).unwrap(), read);
            }
        }
    }
}

fn object_seeds() -> Vec<Vec<u8>> {
    let objects = [
        example::authority().encode(),
        example::invite().encode(),
        example::joined().encode(),
        example::revoked().encode(),
    ];
    (0..)
        .zip(objects)
        .map(|(which, object)| {
            let object = object.unwrap();
            let message = &object[FRONT_BYTES..object.len() - CHECK_BYTES];
            [&[which], message].concat()
        })
        .collect()
}

/// A token of any content, under a check that holds; and the bytes as text.
fn token(bytes: &[u8]) {
    let check = blake3::hash(bytes);
    let body = URL_SAFE_NO_PAD.encode([bytes, &check.as_bytes()[..4]].concat());
    let text = format!("tidegate-join-1.{body}");
    if let Ok(read) = Token::decode(&text) {
        assert_eq!(*read.encode().unwrap(), text);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Token::decode(text);
        let _ = check_gateway(text);
    }
}

fn token_seeds() -> Vec<Vec<u8>> {
    let text = example::token().encode().unwrap();
    let body = text.strip_prefix("tidegate-join-1.").unwrap();
    let bytes = URL_SAFE_NO_PAD.decode(body).unwrap();
    vec![
        bytes[..bytes.len() - 4].to_vec(),
        text.as_bytes().to_vec(),
        b"[2001:db8::1]:4433".to_vec(),
    ]
}

/// A certificate or a request for one, as it comes.
fn certificate(bytes: &[u8]) {
    if let Ok(read) = CertificateFacts::read("certificate", bytes) {
        assert_eq!(read.public_der.len(), 44);
        let _ = read.check_signed_by(&read);
    }
    if let Ok(read) = RequestFacts::read(bytes) {
        assert_eq!(read.public_der.len(), 44);
    }
}

/// An authority's certificate, a gateway's, a host's, and a request, made once.
fn certificate_seeds() -> Vec<Vec<u8>> {
    let decode = |text: &str| STANDARD.decode(text).unwrap();
    CERTIFICATES.map(decode).into()
}

const CERTIFICATES: [&str; 4] = [
    "MIIBPDCB76ADAgECAhBAq0/Sm+VuDn+Z1+SXskyfMAUGAytlcDAdMRswGQYDVQQDDBJ0aWRlZ2F0ZSBhdXRob3Jp\
     dHkwHhcNMjYxMjEyMjMwMDAwWhcNNDYxMjA4MDAwMDAwWjAdMRswGQYDVQQDDBJ0aWRlZ2F0ZSBhdXRob3JpdHkw\
     KjAFBgMrZXADIQBPn3zi58S6QhNoGO8lOk/qcnq7DsVi+vK4rZ3a1Sgl7KNFMEMwDgYDVR0PAQH/BAQDAgIEMB0G\
     A1UdDgQWBBTMuAW2tgu5gDQ/3pom20SVn8u58TASBgNVHRMBAf8ECDAGAQH/AgEAMAUGAytlcANBAJk/fL0+7lVD\
     Mub/Y9IYxVsfBzN8dTUqxH/kshWWdHPihTJvwGv9Ghaos/yZflT+DHB5xWajuCx1lfpRNm/ougY=",
    "MIIBcDCCASKgAwIBAgIQS+2EcIvU7gFISIuaFngzUDAFBgMrZXAwHTEbMBkGA1UEAwwSdGlkZWdhdGUgYXV0aG9y\
     aXR5MB4XDTI2MTIxMjIzMDAwMFoXDTI3MDExMjAwMDAwMFowGzEZMBcGA1UEAwwQdGlkZWdhdGUgZ2F0ZXdheTAq\
     MAUGAytlcAMhAI713PAxdnp8Wo07kRhenS4lmXIG9hLa+BLQdmZEhKf9o3oweDAkBgNVHREEHTAbghlnYXRld2F5\
     LnRpZGVnYXRlLmludGVybmFsMA4GA1UdDwEB/wQEAwIHgDATBgNVHSUEDDAKBggrBgEFBQcDATAdBgNVHQ4EFgQU\
     8XH+OggW/vCt9c+L95q00LS5vI0wDAYDVR0TAQH/BAIwADAFBgMrZXADQQDxszq4G2IQnPupLZ8qohbyz2ej8+ML\
     cZEKrxqxRgWZTO198QwPYEvNI8hWi49t9rRTZg57Rnd0VdImusUxLrIP",
    "MIIBWjCCAQygAwIBAgIQTj17A0VnJqhiz/PpwzP+MzAFBgMrZXAwHTEbMBkGA1UEAwwSdGlkZWdhdGUgYXV0aG9y\
     aXR5MB4XDTI2MTIxMjIzMDAwMFoXDTI3MDExMjAwMDAwMFowKzEpMCcGA1UEAwwgZmJhM2U5ZTBiYWE2ZGFmY2Uy\
     NDA4YWE0MTU2NGViN2YwKjAFBgMrZXADIQC2zZuvDzOYuMxJYCJCczJAAO6hisCocwk+IYXzOEXyL6NUMFIwDgYD\
     VR0PAQH/BAQDAgeAMBMGA1UdJQQMMAoGCCsGAQUFBwMCMB0GA1UdDgQWBBR7yK40je29aQG14JASfK9jTSpPsjAM\
     BgNVHRMBAf8EAjAAMAUGAytlcANBABZm8LYj6XdD/9Dtd43bLHsxsXx/tp0cVuS7S6b22gRL0AaR5EvlNanyTUwo\
     FKZJ/mHgbKPEH3Ymc8BsuFH3PA4=",
    "MH8wMwIBADAAMCowBQYDK2VwAyEAts2brw8zmLjMSWAiQnMyQADuoYrAqHMJPiGF8zhF8i+gADAFBgMrZXADQQBt\
     cjzNaCxxHwSU70iJ/7Ua5NkXECfuso+QI7TpbKY+whUJ8IfFMOP92jM1nqE71tqJMx9NFbGYDZu3LRnqe5oE",
];
