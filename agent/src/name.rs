//! Names of machines and disks: what the operator may write, and what is made from a file's name.
//!
//! Stricter than the repository's format, which takes whatever does no harm: a name given here fits
//! into a file name, a command line and `machine@point`. Not an identity: two hosts may use one name.

use std::path::Path;

/// Longest name of a machine or disk, in bytes: it must fit into a file name.
const NAME_BYTES_MAX: usize = 200;

/// Checks the name of a machine or a disk.
///
/// # Errors
/// Why it cannot be a name, in words.
pub fn check(text: &str) -> Result<(), String> {
    let fault = if text.is_empty() {
        "it is empty"
    } else if text.len() > NAME_BYTES_MAX {
        "it is longer than 200 bytes"
    } else if text.starts_with(['.', '-']) {
        "it starts with a dot or a dash"
    } else if text.contains(['@', '/', '\\']) {
        "it contains @, / or \\"
    } else if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        "it contains blanks or control characters"
    } else {
        return Ok(());
    };
    Err(format!("{text:?} cannot be a name: {fault}"))
}

/// A name made from a file's stem; what a name may not contain becomes `_`. None where the path has
/// no stem.
pub fn from_path(path: &Path) -> Option<String> {
    fit(&path.file_stem()?.to_string_lossy())
}

/// A name made from any text; what a name may not contain becomes `_`. None of empty text.
pub fn fit(text: &str) -> Option<String> {
    let mut made: String = text
        .chars()
        .map(|c| {
            let unfit = c.is_control() || c.is_whitespace() || "@/\\\u{fffd}".contains(c);
            if unfit { '_' } else { c }
        })
        .collect();
    if made.starts_with(['.', '-']) {
        made.insert(0, '_');
    }
    while made.len() > NAME_BYTES_MAX {
        made.pop();
    }
    check(&made).ok().map(|()| made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_file_stems() {
        for (path, expected) in [
            ("/images/web01.qcow2", Some("web01")),
            ("/dev/vg0/root", Some("root")),
            ("my disk.raw", Some("my_disk")),
            (".raw", Some("_.raw")),
            ("/", None),
        ] {
            assert_eq!(from_path(Path::new(path)).as_deref(), expected, "{path}");
        }
    }
}
