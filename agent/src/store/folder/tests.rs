//! Folders made durable, and ranges. Kills and races of whole processes are in
//! `tests/store_folder.rs`.

use super::*;

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}

#[test]
fn folders_are_made_durable_once() {
    let parent = tempfile::tempdir().unwrap();
    let folder = Folder::open(&parent.path().join("a/root")).unwrap();
    let pack = Key::from("packs/ab/1");
    folder.shared.create(&pack, &PutPayload::new()).unwrap();
    let root = parent.path().join("a/root");
    let durable = folder.shared.durable.lock().unwrap().clone();
    let expected = [root.clone(), root.join("packs"), root.join("packs/ab")];
    assert_eq!(durable.into_iter().collect::<Vec<_>>(), expected);
    // Removed behind our back, they are made again.
    std::fs::remove_dir_all(&root).unwrap();
    folder.shared.create(&pack, &PutPayload::new()).unwrap();
    assert_eq!(names(&root.join("packs/ab")), ["1"]);
}

#[test]
fn ranges_are_clipped_to_the_object() {
    assert_eq!(clip(&GetRange::Bounded(2..5), 10), Some(2..5));
    assert_eq!(clip(&GetRange::Bounded(8..15), 10), Some(8..10));
    assert_eq!(clip(&GetRange::Bounded(10..15), 10), None);
    assert_eq!(clip(&GetRange::Offset(4), 10), Some(4..10));
    assert_eq!(clip(&GetRange::Suffix(4), 10), Some(6..10));
    assert_eq!(clip(&GetRange::Suffix(40), 10), Some(0..10));
    assert_eq!(clip(&GetRange::Bounded(0..1), 0), None);
}
