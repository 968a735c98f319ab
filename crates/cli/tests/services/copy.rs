//! `hvsock cp`.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use crate::scene::{BOX, Scene};
use crate::util::eventually;

/// The scene once copies are possible, and a folder for them.
fn scene() -> (Scene, tempfile::TempDir) {
    let scene = Scene::new();
    eventually("copies are possible", || {
        let why = scene.run(["why", BOX, "hvsock copy"]);
        why.stdout.contains("would succeed")
    });
    (scene, tempfile::tempdir().unwrap())
}

/// A place in the box, whose agent is a process of this machine.
fn there(path: &Path) -> String {
    format!("{BOX}:{}", path.display())
}

fn here(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_file_goes_to_a_folder_or_to_a_new_name_and_comes_back() {
    let (scene, folder) = scene();
    let at = |name: &str| folder.path().join(name);
    let content: Vec<u8> = (0..3_000_000u32)
        .map(|at| (at.wrapping_mul(at) >> 7) as u8)
        .collect();
    fs::write(at("one"), &content).unwrap();
    fs::create_dir(at("folder")).unwrap();
    scene
        .world
        .ok(["cp", here(&at("one")), &there(&at("folder"))]);
    scene.world.ok(["cp", here(&at("one")), &there(&at("two"))]);
    scene
        .world
        .ok(["cp", &there(&at("two")), here(&at("three"))]);
    for copy in ["folder/one", "two", "three"] {
        assert!(fs::read(at(copy)).unwrap() == content, "{copy} differs");
    }
    let mut all: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    all.sort();
    assert_eq!(all, ["folder", "one", "three", "two"]);
}

#[test]
fn a_tree_goes_and_comes_back_with_all_that_belongs_to_it() {
    let (scene, folder) = scene();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("tree/deep/er")).unwrap();
    fs::write(at("tree/deep/er/file"), "content").unwrap();
    fs::set_permissions(at("tree/deep/er/file"), Permissions::from_mode(0o640)).unwrap();
    let holes = File::create(at("tree/holes")).unwrap();
    holes.set_len(1 << 30).unwrap();
    holes.set_modified(std::time::UNIX_EPOCH).unwrap();
    symlink("deep/er/file", at("tree/link")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, at("tree/pipe"), rustix::fs::Mode::RWXU).unwrap();

    let refused = scene.run(["cp", here(&at("tree")), &there(&at("not"))]);
    assert!(refused.failed().contains("with -r only"));
    let put = scene.run(["cp", "-a", here(&at("tree")), &there(&at("copy"))]);
    assert_eq!(put.code, Some(0), "{}", put.stderr);
    assert!(
        put.stderr.contains("a pipe is not copied"),
        "{}",
        put.stderr
    );
    fs::create_dir(at("back")).unwrap();
    scene
        .world
        .ok(["cp", "-a", &there(&at("copy/.")), here(&at("back"))]);
    for copy in ["copy", "back"] {
        let file = at(copy).join("deep/er/file");
        assert_eq!(fs::read(&file).unwrap(), b"content");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(
            fs::read_link(at(copy).join("link")).unwrap(),
            Path::new("deep/er/file")
        );
        let holes = fs::metadata(at(copy).join("holes")).unwrap();
        assert_eq!((holes.len(), holes.mtime()), (1 << 30, 0));
        assert!(
            holes.blocks() < 100,
            "its hole takes {} blocks",
            holes.blocks()
        );
    }
}

#[test]
fn what_cannot_be_is_said_and_the_rest_is_copied() {
    let (scene, folder) = scene();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("one"), "1").unwrap();
    fs::create_dir(at("to")).unwrap();
    let some = scene.run(["cp", here(&at("none")), here(&at("one")), &there(&at("to"))]);
    assert_eq!(some.code, Some(1));
    assert!(
        some.stderr.contains("none: No such file"),
        "{}",
        some.stderr
    );
    assert_eq!(fs::read(at("to/one")).unwrap(), b"1");

    let nowhere = scene.run(["cp", here(&at("one")), &there(&at("no/such/place"))]);
    assert!(nowhere.failed().contains("No such file"));
    let nothing = scene.run(["cp", &there(&at("none")), here(&at("to"))]);
    assert!(
        nothing.stderr.contains("none: No such file"),
        "{}",
        nothing.stderr
    );
    assert_eq!(nothing.code, Some(1));
    for (paths, said) in [
        (["a", "b"], "neither end is a guest"),
        (["box:a", "box:b"], "both ends are guests"),
    ] {
        let wrong = scene.run(["cp", paths[0], paths[1]]);
        assert_eq!(wrong.code, Some(2));
        assert!(wrong.stderr.contains(said), "{}", wrong.stderr);
    }
    let nobody = scene.run(["cp", "a", "nobody:b"]);
    assert!(nobody.failed().contains("cannot connect"));
}
