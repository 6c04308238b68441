//! Key files: one holder's keys as a few lines of text.
//!
//! ```text
//! tidegate key 1
//! level: restore
//! repository: 6d2f…
//! key: 91ab…
//! <base64, 64 columns>
//! check: <first 16 hexadecimal digits of the BLAKE3 of all lines before>
//! ```
//!
//! The file is complete in itself: a restore needs it and the bucket, nothing else. Its first lines
//! tell a person what it is; the check line tells a damaged file from a wrong one.

use crate::codec::at_most;
use crate::error::FormatError;
use crate::keys::Keys;
use crate::limits::SMALL_OBJECT_BYTES_MAX;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

const OBJECT: &str = "key file";
const FIRST_LINE: &str = "tidegate key 1";
const COLUMNS: usize = 64;
const BLANKS: [char; 4] = [' ', '\t', '\r', '\n'];
const CHECK_LINE_BYTES: usize = 7 + 16 + 1;

/// Writes a key file's text. Secret.
pub fn encode(keys: &Keys) -> Zeroizing<String> {
    let body = Zeroizing::new(STANDARD.encode(keys.encode()));
    let head = format!(
        "{FIRST_LINE}\nlevel: {}\nrepository: {}\nkey: {}\n",
        keys.level(),
        keys.repository(),
        keys.identity().certificate.public.id(),
    );
    // Room for all of it: a string that grows leaves copies of the secret behind.
    let lines = body.len().div_ceil(COLUMNS);
    let capacity = head.len() + body.len() + lines + CHECK_LINE_BYTES;
    let mut text = Zeroizing::new(String::with_capacity(capacity));
    text.push_str(&head);
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(COLUMNS));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    let check = check_of(&text);
    text.push_str("check: ");
    text.push_str(&check);
    text.push('\n');
    text
}

/// Reads a key file's text. Line ends and blanks at the end may be those of any editor; all else
/// must be as [`encode`] writes it.
pub fn decode(text: &str) -> Result<Keys, FormatError> {
    at_most(OBJECT, text.as_bytes(), SMALL_OBJECT_BYTES_MAX.into())?;
    let text = Zeroizing::new(text.replace("\r\n", "\n"));
    if text.lines().next() != Some(FIRST_LINE) {
        return Err(FormatError::Magic {
            object: OBJECT,
            found: hex::encode(text.bytes().take(8).collect::<Vec<_>>()),
        });
    }
    let damaged = |detail: &str| FormatError::Message {
        object: OBJECT,
        detail: detail.to_owned(),
    };
    let at = text
        .rfind("check: ")
        .filter(|&at| at > 0)
        .ok_or_else(|| damaged("its check line is missing"))?;
    let (body, check) = text.split_at(at);
    if check.trim_end_matches(BLANKS).strip_prefix("check: ") != Some(check_of(body).as_str()) {
        return Err(damaged("its lines do not match its check line"));
    }
    let mut encoded = Zeroizing::new(String::with_capacity(body.len()));
    for line in body.lines().skip(1).filter(|line| !line.contains(':')) {
        encoded.push_str(line.trim());
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(encoded.len()));
    STANDARD
        .decode_vec(encoded.as_bytes(), &mut bytes)
        .map_err(|_| damaged("its body is not base64"))?;
    let keys = Keys::decode(&bytes)?;
    if self::encode(&keys).trim_end_matches(BLANKS) != text.trim_end_matches(BLANKS) {
        return Err(damaged("its lines contradict the key in it"));
    }
    Ok(keys)
}

fn check_of(text: &str) -> String {
    hex::encode(&blake3::hash(text.as_bytes()).as_bytes()[..8])
}
