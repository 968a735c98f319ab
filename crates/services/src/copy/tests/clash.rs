//! A copy replaces neither its own source nor what it has written itself.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::whole::look;
use super::*;

#[test]
fn sources_with_the_same_name_are_found() {
    for (paths, clash) in [
        (&["a/x", "b/x"][..], Some("b/x")),
        (&["a/x", "a/x"], Some("a/x")),
        (&["a/x", "b/y", "c/x/"], Some("c/x/")),
        (&["a/.", "b/"], None),
        (&["a/.", "b/."], Some("b/.")),
        (&["a/..", "/"], Some("/")),
        (&["x", "X"], None),
    ] {
        let sources: Vec<_> = paths.iter().map(Source::new).collect();
        let found = Source::find_clash(&sources).map(Source::path);
        assert_eq!(found, clash.map(Path::new), "{paths:?}");
    }
}

#[test]
fn an_entry_does_not_replace_another_one_of_the_same_copy() {
    let (from, to) = (folder(), folder());
    for (path, content) in [
        ("a/x", "first"),
        ("a/sub/y", "first"),
        ("b/x", "second"),
        ("b/sub/y", "2"),
    ] {
        let path = from.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let old = to.path().join("x");
    fs::write(&old, "old").unwrap();
    let (all, one, tree) = (
        from.path().join("a/."),
        from.path().join("b/x"),
        from.path().join("b/sub"),
    );
    let mut record = Record::default();
    let sent = send(&[&all, &one, &tree], to.path(), &mut record, true).unwrap();
    assert_eq!(sent.failed, 2, "{:?}", record.notes);
    assert!(
        record
            .notes
            .iter()
            .all(|note| note.why.contains("another entry of this copy")),
        "{:?}",
        record.notes
    );
    assert_eq!(
        fs::read(&old).unwrap(),
        b"first",
        "what was there before is replaced"
    );
    assert_eq!(fs::read(to.path().join("sub/y")).unwrap(), b"first");
}

#[test]
fn a_file_is_not_copied_onto_itself_under_any_name() {
    let at = folder();
    let path = |name: &str| at.path().join(name);
    fs::create_dir(path("folder")).unwrap();
    fs::write(path("file"), "content").unwrap();
    fs::hard_link(path("file"), path("hard")).unwrap();
    symlink("file", path("link")).unwrap();
    symlink("../file", path("folder/file")).unwrap();
    let before = look(at.path());
    for to in ["file", "hard", "link", "", "folder", "folder/../file"] {
        let mut record = Record::default();
        let sent = send(&[&path("file")], &path(to), &mut record, false).unwrap();
        assert_eq!(sent.failed, 1, "{to}");
        assert_eq!(
            record.notes[0].why, "source and destination are the same",
            "{to}"
        );
        assert!(look(at.path()) == before, "{to}: nothing has changed");
    }
}

#[test]
fn a_folder_is_not_copied_into_itself() {
    let at = folder();
    let path = |name: &str| at.path().join(name);
    fs::create_dir_all(path("tree/deep/er")).unwrap();
    fs::write(path("tree/file"), "content").unwrap();
    symlink("tree/deep", path("way")).unwrap();
    let before = look(at.path());
    for (from, to) in [
        ("tree", "tree"),
        ("tree", "tree/new"),
        ("tree", "tree/deep/er"),
        ("tree", "way"),
        ("tree", ""),
        ("tree/.", "tree"),
        ("tree/.", "tree/deep"),
        ("tree/deep/..", "tree/deep/er/new"),
    ] {
        let mut record = Record::default();
        let sent = send(&[&path(from)], &path(to), &mut record, true).unwrap();
        assert_eq!(sent.failed, 1, "{from} to {to}: {:?}", record.notes);
        assert!(
            look(at.path()) == before,
            "{from} to {to}: nothing has changed"
        );
    }
}
