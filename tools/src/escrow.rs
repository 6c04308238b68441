//! Escrow keys: an X25519 key pair for break-glass, kept away from the repository.
//!
//! `tidegate key recipient` makes one; its public half goes to `tidegate key add --recipient`, the
//! file into a safe. With file and bucket alone the repository's keys can be had back.
//!
//! ```text
//! tidegate escrow key 1
//! public: 8d4f…
//! <base64 of 32 random bytes, from which the pair is derived>
//! check: <first 16 hexadecimal digits of the BLAKE3 of all lines before>
//! ```

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tidegate_protocol::keys::{SealPrivateKey, Secret};
use zeroize::Zeroizing;

const FIRST_LINE: &str = "tidegate escrow key 1";

/// Writes the text of an escrow key file. Secret.
pub(crate) fn encode(material: &Secret) -> Zeroizing<String> {
    let public = SealPrivateKey::derive(material).public();
    let body = Zeroizing::new(STANDARD.encode(material.0));
    let mut text = Zeroizing::new(format!(
        "{FIRST_LINE}\npublic: {}\n{}\n",
        hex::encode(public.0),
        *body
    ));
    let check = check_of(&text);
    text.push_str(&format!("check: {check}\n"));
    text
}

/// Reads the text of an escrow key file; says what is wrong with it.
pub(crate) fn decode(text: &str) -> Result<SealPrivateKey, &'static str> {
    let mut lines = text.lines();
    if lines.next() != Some(FIRST_LINE) {
        return Err("its first line is not that of an escrow key file");
    }
    let (Some(public), Some(body), Some(check)) = (
        lines.next().and_then(|line| line.strip_prefix("public: ")),
        lines.next(),
        lines.next().and_then(|line| line.strip_prefix("check: ")),
    ) else {
        return Err("lines are missing");
    };
    let checked = Zeroizing::new(format!("{FIRST_LINE}\npublic: {public}\n{body}\n"));
    if check_of(&checked) != check {
        return Err("its lines do not match its check line");
    }
    let mut material = Secret([0; 32]);
    if STANDARD.decode_slice(body, &mut material.0) != Ok(32) {
        return Err("its body is not base64 of 32 bytes");
    }
    let private = SealPrivateKey::derive(&material);
    if hex::encode(private.public().0) != public {
        return Err("its public half does not belong to it");
    }
    Ok(private)
}

fn check_of(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().as_str()[..16].to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let material = Secret([42; 32]);
        let text = encode(&material);
        let expected = SealPrivateKey::derive(&material).public();
        assert_eq!(decode(&text).unwrap().public(), expected);
        assert_eq!(
            decode(&text.replace('\n', "\r\n")).unwrap().public(),
            expected
        );
    }

    #[test]
    fn no_changed_character_goes_unnoticed() {
        let text = encode(&Secret([42; 32]));
        for at in 0..text.len() - 1 {
            let mut bytes = text.as_bytes().to_vec();
            bytes[at] ^= 1;
            let changed = String::from_utf8_lossy(&bytes);
            assert!(decode(&changed).is_err(), "byte {at} changed: {changed}");
        }
        for length in 0..text.len() - 1 {
            assert!(decode(&text[..length]).is_err(), "cut to {length} bytes");
        }
    }
}
