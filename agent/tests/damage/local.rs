//! Files of the local cache, damaged in every way: mended without a word, but for a page of the
//! catalogue that opens and is not sound, which is named.

use crate::world::{Cache, VERBS, World, copy_folder, files};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is done to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Harm {
    Delete,
    Truncate,
    Flip,
    /// It is as it was in that file.
    Older(PathBuf),
    /// It and that file hold what the other held.
    Swap(PathBuf),
}

impl Harm {
    fn to(&self, path: &Path) {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        match self {
            Self::Delete => return std::fs::remove_file(path).unwrap(),
            Self::Truncate => bytes.truncate(middle),
            Self::Flip => bytes[middle] ^= 1,
            Self::Older(older) => {
                let older = std::fs::read(older).unwrap();
                assert_ne!(bytes, older);
                bytes = older;
            }
            Self::Swap(other) => {
                let other = path.parent().unwrap().join(other);
                let theirs = std::fs::read(&other).unwrap();
                assert_ne!(bytes, theirs);
                std::fs::write(&other, &bytes).unwrap();
                bytes = theirs;
            }
        }
        std::fs::write(path, bytes).unwrap();
    }
}

/// All files below `template`, each harmed in each way, before each verb.
async fn harmed(world: &World, template: &Path, earlier: &Path) {
    let all = files(template);
    let names: Vec<String> = all
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .chain(["log/".to_owned()])
        .collect();
    let trees: Vec<&PathBuf> = all
        .iter()
        .filter(|path| path.parent().unwrap().ends_with("tree"))
        .collect();
    assert!(names.contains(&"catalogue.sqlite".to_owned()), "{names:?}");
    assert!(trees.len() >= 2, "{names:?}");
    let mut outcomes = BTreeMap::new();
    for path in &all {
        if path.metadata().unwrap().len() == 0 {
            continue;
        }
        let relative = path.strip_prefix(template).unwrap();
        let mut harms = vec![Harm::Delete, Harm::Truncate, Harm::Flip];
        let older = earlier.join(relative);
        if older.exists() && std::fs::read(&older).unwrap() != std::fs::read(path).unwrap() {
            harms.push(Harm::Older(older));
        }
        if let Some(at) = trees.iter().position(|tree| *tree == path) {
            let other = trees[(at + 1) % trees.len()];
            harms.push(Harm::Swap(other.file_name().unwrap().into()));
        }
        for harm in harms {
            for verb in VERBS {
                let folder = tempfile::tempdir().unwrap();
                copy_folder(template, folder.path());
                harm.to(&folder.path().join(relative));
                let bucket = Arc::new(world.bucket.fork());
                let outcome = world.outcome(verb, bucket, folder.path(), &names).await;
                let file = relative.file_name().unwrap().to_str().unwrap();
                let file = if file.len() == 64 { "tree pack" } else { file };
                let harm = format!("{harm:?}");
                let harm = harm.split('(').next().unwrap().to_owned();
                let line = format!("{file} {harm} {verb:?}: {outcome}");
                *outcomes.entry(line).or_insert(0) += 1;
            }
        }
    }
    for (line, times) in &outcomes {
        println!("{line} ×{times}");
    }
    for line in outcomes.keys() {
        let may_fail =
            line.starts_with("catalogue.sqlite Flip") || line.starts_with("catalogue.sqlite Older");
        assert!(
            line.ends_with(": works") || may_fail && line.ends_with(": corrupt"),
            "{line}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_the_local_cache_is_mended_or_named() {
    let world = World::new().await;
    let [earlier, _] = &world.crashed;
    harmed(&world, world.lab.cache.path(), earlier.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_what_a_crash_left_of_the_local_cache_is_mended_or_named() {
    let world = World::new().await;
    let [earlier, later] = &world.crashed;
    let wal = files(later.path())
        .into_iter()
        .find(|path| path.to_str().unwrap().ends_with("-wal"));
    assert!(wal.unwrap().metadata().unwrap().len() > 0);
    harmed(&world, later.path(), earlier.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_anywhere_in_the_local_catalogue_does_no_harm() {
    let world = World::new().await;
    let template = world.lab.cache_folder().join("catalogue.sqlite");
    let length = std::fs::metadata(&template).unwrap().len() as usize;
    let names = ["catalogue.sqlite", "log/"].map(str::to_owned);
    // Places spread over all pages, and those around what points say of their machine.
    let bytes = std::fs::read(&template).unwrap();
    let mut places: Vec<usize> = (0..80)
        .map(|number| (number * 102_947 + 24) % length)
        .collect();
    let bodies = (0..length).filter(|at| bytes[*at..].starts_with(b"web"));
    places.extend(bodies.flat_map(|at| (at.saturating_sub(40)..length.min(at + 120)).step_by(12)));
    let mut outcomes = BTreeMap::new();
    for (number, place) in places.into_iter().enumerate() {
        let folder = world.cache(Cache::Warm);
        let repository = world.lab.keys.restore.repository().to_string();
        let path = folder.path().join(repository).join("catalogue.sqlite");
        let mut bytes = bytes.clone();
        bytes[place] ^= 1 << (number % 8);
        let verb = VERBS[number % VERBS.len()];
        std::fs::write(&path, bytes).unwrap();
        let bucket = Arc::new(world.bucket.fork());
        let outcome = world.outcome(verb, bucket, folder.path(), &names).await;
        println!(
            "byte {place} of {length}, bit {}, {verb:?}: {outcome}",
            number % 8
        );
        *outcomes.entry(outcome).or_insert(0) += 1;
    }
    println!("{outcomes:?}");
    for outcome in outcomes.keys() {
        assert!(
            ["works", "corrupt"].contains(&outcome.as_str()),
            "{outcomes:?}"
        );
    }
}
