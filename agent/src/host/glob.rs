//! Patterns of names and paths: `*` is any text, `?` one character, neither across a `/`.
//!
//! Not a shell: no braces, classes or `**`, which [`check_path`] refuses, so that a pattern never
//! walks a whole file system. Matching takes time in proportion to text × pattern at the worst.

use std::path::{Path, PathBuf};

/// Most images that one pattern may find: more is a pattern that went wrong.
pub const MATCHES_MAX: usize = 10_000;

/// True where `text` holds a wildcard.
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// True where all of `text` matches.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where the last `*` stands, and how much of the text it takes.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if p < pattern.len() && pattern[p] == '*' {
            star = Some((p, t));
            p += 1;
        } else if p < pattern.len() && (pattern[p] == '?' || pattern[p] == text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            (p, t) = (at + 1, taken + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Whether `pattern` can be a pattern of paths.
///
/// # Errors
/// What was expected, in words.
pub fn check_path(pattern: &str) -> Result<(), String> {
    if !pattern.starts_with('/') {
        return Err(format!(
            "expected a path that starts at /, found {pattern:?}"
        ));
    }
    if pattern.ends_with('/') || pattern.split('/').any(|part| part == ".." || part == ".") {
        return Err(format!(
            "expected a path of files without . and .., found {pattern:?}"
        ));
    }
    if pattern.contains("**") {
        return Err(format!(
            "** is not supported: write one * for each level of folders, found {pattern:?}"
        ));
    }
    Ok(())
}

/// The paths that match, sorted; hidden files only where the pattern's part starts with a dot.
/// Folders that are not there or may not be read match nothing.
pub fn expand(pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        found = match is_pattern(part) {
            true => found
                .iter()
                .flat_map(|folder| children(folder, part))
                .collect(),
            false => found.into_iter().map(|folder| folder.join(part)).collect(),
        };
        found.truncate(MATCHES_MAX);
    }
    found.retain(|path| path.exists());
    found.sort();
    found
}

fn children(folder: &Path, pattern: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            matches(pattern, &name) && (pattern.starts_with('.') || !name.starts_with('.'))
        })
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn stars_and_question_marks() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("db*", "db", true),
            ("db*", "web", false),
            ("*.qcow2", "a.qcow2", true),
            ("*.qcow2", "a.qcow2.bak", false),
            ("web0?", "web01", true),
            ("web0?", "web0", false),
            ("a*b*c", "axxbxbxc", true),
            ("a*b*c", "axxbxbx", false),
            ("?", "ä", true),
            ("", "", true),
            ("", "x", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
        // Who tried every way would not come back.
        assert!(!matches(
            &format!("{}b", "a*".repeat(50)),
            &"a".repeat(2000)
        ));
    }

    #[test]
    fn paths_are_found_level_by_level() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for name in ["a/1.raw", "a/2.raw", "a/.3.raw", "b/1.raw", "b/1.txt"] {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let found = |pattern: &str| {
            let pattern = format!("{}/{pattern}", root.display());
            let found = expand(&pattern);
            found
                .iter()
                .map(|path| path.strip_prefix(root).unwrap().display().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(found("*/*.raw"), ["a/1.raw", "a/2.raw", "b/1.raw"]);
        assert_eq!(found("b/1.raw"), ["b/1.raw"]);
        assert_eq!(found("a/.*.raw"), ["a/.3.raw"]);
        assert!(found("c/*.raw").is_empty());
        assert!(found("b/2.raw").is_empty());
    }

    #[test]
    fn patterns_that_walk_everything_are_refused() {
        assert!(check_path("/srv/*/*.raw").is_ok());
        for wrong in ["srv/*", "/srv/**/x", "/srv/../x", "/srv/"] {
            assert!(check_path(wrong).is_err(), "{wrong}");
        }
    }
}
