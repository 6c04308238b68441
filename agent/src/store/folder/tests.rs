//! The steps of a durable create, one by one. Kills and races of whole processes are in
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

/// The way of file systems without nameless files.
#[test]
fn creating_by_name_creates_once_and_leaves_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("object");
    let first = PutPayload::from_static(b"first");
    create_by_name(folder.path(), &path, &first).unwrap();
    let again = create_by_name(folder.path(), &path, &PutPayload::from_static(b"second"));
    assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&path).unwrap(), b"first");
    assert_eq!(names(folder.path()), ["object"]);
}

/// The way of file systems without hard links.
#[test]
fn renaming_never_replaces() {
    let folder = tempfile::tempdir().unwrap();
    let [staged, path] = ["staged", "object"].map(|name| folder.path().join(name));
    std::fs::write(&staged, b"first").unwrap();
    rename_unless_taken(&staged, &path).unwrap();
    std::fs::write(&staged, b"second").unwrap();
    let again = rename_unless_taken(&staged, &path);
    assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&path).unwrap(), b"first");
}

#[test]
fn a_nameless_file_appears_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let payload = PutPayload::from_static(b"bytes");
    let file = write_unnamed(folder.path(), &payload)
        .unwrap()
        .expect("temporary folders lie on file systems that have nameless files");
    assert_eq!(names(folder.path()), [""; 0]);
    link_unnamed(&file, &folder.path().join("object")).unwrap();
    assert_eq!(names(folder.path()), ["object"]);
    let taken = link_unnamed(&file, &folder.path().join("object"));
    assert_eq!(taken.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
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
