//! The token: what an invited host needs, as one line of text. Whoever has it may join, once.
//!
//! ```text
//! tidegate-join-1.<base64url of: enrolment (16), secret (32), fingerprint of the authority (32),
//!                  number of gateways (1), for each its length (1) and address, check (4)>
//! ```
//!
//! The check, the first bytes of a BLAKE3 of all before, tells a line that was not copied whole
//! from one that is refused.

use super::{Fingerprint, GATEWAYS_MAX, SecretHash, check_gateway};
use crate::codec::Reader;
use crate::error::FormatError;
use crate::ids::EnrolmentId;
use crate::keys::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

const OBJECT: &str = "join token";
const PREFIX: &str = "tidegate-join-";
const VERSION: &str = "1.";
const CHECK_BYTES: usize = 4;
/// Longest text: every gateway that may be named, with the longest address.
const TEXT_BYTES_MAX: usize = 8 << 10;

/// What an invited host is given. Secret, but for the printing of it with `{:?}`.
#[derive(Debug)]
pub struct Token {
    /// The enrolment that it is for.
    pub enrolment: EnrolmentId,
    /// What proves that its holder was invited.
    pub secret: Secret,
    /// Whose gateways to believe.
    pub authority: Fingerprint,
    /// Where gateways are, `host:port`; may be empty.
    pub gateways: Vec<String>,
}

impl Token {
    /// What the fleet's place holds of the secret.
    pub fn secret_hash(&self) -> SecretHash {
        SecretHash::of(self.enrolment, &self.secret)
    }

    /// The text, without a line end. Refuses what [`Token::decode`] would refuse.
    pub fn encode(&self) -> Result<Zeroizing<String>, FormatError> {
        check_gateways(&self.gateways)?;
        let gateways_bytes: usize = self.gateways.iter().map(|text| 1 + text.len()).sum();
        // Room for all of it: a vector that grows leaves copies of the secret behind.
        let capacity = 16 + 32 + 32 + 1 + gateways_bytes + CHECK_BYTES;
        let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
        bytes.extend_from_slice(&self.enrolment.0);
        bytes.extend_from_slice(&self.secret.0);
        bytes.extend_from_slice(&self.authority.0);
        bytes.push(byte_of(self.gateways.len())?);
        for gateway in &self.gateways {
            bytes.push(byte_of(gateway.len())?);
            bytes.extend_from_slice(gateway.as_bytes());
        }
        let check = check_of(&bytes);
        bytes.extend_from_slice(&check);
        let mut text = Zeroizing::new(String::with_capacity(
            PREFIX.len() + VERSION.len() + capacity.div_ceil(3) * 4,
        ));
        text.push_str(PREFIX);
        text.push_str(VERSION);
        URL_SAFE_NO_PAD.encode_string(&*bytes, &mut text);
        Ok(text)
    }

    /// Reads a token. Blanks and line ends around it are no part of it.
    pub fn decode(text: &str) -> Result<Self, FormatError> {
        let text = text.trim();
        let wrong = |detail: &str| FormatError::Message {
            object: OBJECT,
            detail: detail.to_owned(),
        };
        let Some(rest) = text.strip_prefix(PREFIX) else {
            return Err(wrong("it does not begin with tidegate-join-"));
        };
        let Some(body) = rest.strip_prefix(VERSION) else {
            let digits = rest.split('.').next().unwrap_or_default();
            return Err(match digits.parse() {
                Ok(found) if found > 1 => FormatError::Version {
                    object: OBJECT,
                    found,
                    supported: 1,
                },
                _ => wrong("its version is not readable"),
            });
        };
        if body.len() > TEXT_BYTES_MAX {
            return Err(wrong("it is too long"));
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(body.len()));
        URL_SAFE_NO_PAD
            .decode_vec(body, &mut bytes)
            .map_err(|_| wrong("it was not copied whole, or changed"))?;
        let (bytes, check) = bytes
            .split_last_chunk::<CHECK_BYTES>()
            .ok_or_else(|| wrong("it was not copied whole"))?;
        if check_of(bytes) != *check {
            return Err(wrong("it was not copied whole, or changed"));
        }
        let mut reader = Reader::new(OBJECT, bytes);
        let enrolment = EnrolmentId(reader.array()?);
        let secret = Secret(reader.array()?);
        let authority = Fingerprint(reader.array()?);
        let count = reader.u8()?;
        let gateways = (0..count)
            .map(|_| {
                let length = reader.u8()?.into();
                let text = std::str::from_utf8(reader.take(length)?);
                text.map(str::to_owned)
                    .map_err(|_| wrong("a gateway's address is not text"))
            })
            .collect::<Result<Vec<_>, _>>()?;
        reader.end()?;
        check_gateways(&gateways)?;
        Ok(Self {
            enrolment,
            secret,
            authority,
            gateways,
        })
    }
}

fn check_gateways(gateways: &[String]) -> Result<(), FormatError> {
    if gateways.len() > GATEWAYS_MAX {
        return Err(FormatError::Range {
            object: OBJECT,
            field: "gateways",
            found: gateways.len() as u64,
        });
    }
    gateways.iter().try_for_each(|text| check_gateway(text))
}

fn byte_of(length: usize) -> Result<u8, FormatError> {
    u8::try_from(length).map_err(|_| FormatError::Range {
        object: OBJECT,
        field: "length",
        found: length as u64,
    })
}

fn check_of(bytes: &[u8]) -> [u8; CHECK_BYTES] {
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&blake3::hash(bytes).as_bytes()[..CHECK_BYTES]);
    check
}
