//! The kept corpus: inputs that between them reach all that was ever reached.
//!
//! Not where libFuzzer works: that is a folder of files, a few hundred for each target. Here they
//! are one text for each target, an input a line in base64, so that the tree stays readable and
//! a change shows what came and went.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::path::{Path, PathBuf};

/// Longer ones fill the tree, and the seeds are long.
const INPUT_BYTES_MAX: usize = 512;

fn file_of(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target)
}

/// The inputs that are kept for a target.
pub(crate) fn kept(target: &str) -> Vec<Vec<u8>> {
    let text = std::fs::read_to_string(file_of(target)).unwrap_or_default();
    text.lines()
        .map(|line| STANDARD.decode(line).expect("base64"))
        .collect()
}

/// Keeps the files of `folder`, shortest first, instead of what was kept.
pub(crate) fn keep(target: &str, folder: &Path) {
    let files = std::fs::read_dir(folder).expect("a folder of inputs");
    let mut inputs: Vec<Vec<u8>> = files
        .map(|file| std::fs::read(file.unwrap().path()).unwrap())
        .filter(|input| !input.is_empty() && input.len() <= INPUT_BYTES_MAX)
        .collect();
    inputs.sort_by(|one, other| (one.len(), one).cmp(&(other.len(), other)));
    inputs.dedup();
    let lines = inputs.iter().map(|input| STANDARD.encode(input) + "\n");
    let text: String = lines.collect();
    std::fs::create_dir_all(file_of(target).parent().unwrap()).unwrap();
    std::fs::write(file_of(target), text).expect("the corpus can be written");
}
