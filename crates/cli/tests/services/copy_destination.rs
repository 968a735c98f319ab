//! What `hvsock cp` does with what is at the destination, and standard input and output.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use hvsock_testkit::require;

use crate::copy::{copy_fixture, local, remote};
use crate::fixture::Fixture;
use crate::util::Completed;

/// Copies a file of this content to `path`, to the guest and from it. `check` is called after each.
fn both_ways(fixture: &Fixture, folder: &Path, content: &[u8], path: &Path, check: &dyn Fn()) {
    let from = folder.join("from");
    fs::write(&from, content).unwrap();
    for paths in [[local(&from), &remote(path)], [&remote(&from), local(path)]] {
        let done = fixture.run(["cp", paths[0], paths[1]]);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        check();
    }
    fs::remove_file(from).unwrap();
}

#[test]
fn devices_pipes_and_links_are_written_to_in_both_directions() {
    let Some((fixture, folder)) = copy_fixture() else {
        return;
    };
    let at = |name: &str| folder.path().join(name);
    symlink("/dev/null", at("null")).unwrap();
    for path in [Path::new("/dev/null"), &at("null")] {
        both_ways(&fixture, folder.path(), b"x", path, &|| {
            assert!(fs::metadata(path).unwrap().file_type().is_char_device());
        });
    }
    assert!(fs::symlink_metadata(at("null")).unwrap().is_symlink());

    fs::write(at("file"), "old").unwrap();
    symlink("file", at("link")).unwrap();
    both_ways(&fixture, folder.path(), b"new", &at("link"), &|| {
        assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
        assert_eq!(fs::read(at("file")).unwrap(), b"new");
        fs::write(at("file"), "old").unwrap();
    });

    rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::RWXU).unwrap();
    let pipe = at("pipe");
    let reader = thread::spawn(move || (fs::read(&pipe).unwrap(), fs::read(&pipe).unwrap()));
    both_ways(&fixture, folder.path(), b"through", &at("pipe"), &|| {});
    let (one, two) = reader.join().unwrap();
    assert_eq!([&one[..], &two], [b"through", b"through"]);
    assert!(fs::metadata(at("pipe")).unwrap().file_type().is_fifo());

    let full = fixture.run(["cp", "/etc/passwd", &remote(Path::new("/dev/full"))]);
    let error = full.failed();
    assert!(
        error.contains("/dev/full: No space left on device"),
        "{error}"
    );
    let own = fixture.run(["cp", "/etc/passwd", &remote(Path::new("/dev/stdout"))]);
    let error = own.failed();
    assert!(
        error.contains("/dev/stdout: this is a descriptor of the agent's own process"),
        "{error}"
    );
}

#[test]
fn an_overwritten_file_keeps_its_mode_and_owner_in_both_directions() {
    let Some((fixture, folder)) = copy_fixture() else {
        return;
    };
    let Some(()) = require::root() else { return };
    let path = folder.path().join("secret");
    for content in [&b"new"[..], &[7; 3 << 20]] {
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        chown(&path, Some(1000), Some(1001)).unwrap();
        both_ways(&fixture, folder.path(), content, &path, &|| {
            let meta = fs::metadata(&path).unwrap();
            assert!(fs::read(&path).unwrap() == content);
            let found = (meta.mode() & 0o7777, meta.uid(), meta.gid());
            assert_eq!(found, (0o600, 1000, 1001));
        });
        fs::remove_file(&path).unwrap();
    }
}

/// Runs a shell script in which `hvsock` is the command.
fn shell(fixture: &Fixture, folder: &Path, script: &str) -> Completed {
    let hvsock = fixture.world.command::<&str>([]);
    let mut command = Command::new("sh");
    let function = r#"hvsock() { "$HVSOCK" --dir "$DIR" "$@"; }"#;
    command.args(["-c", &format!("{function}\n{script}")]);
    for (name, value) in hvsock.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env("HVSOCK", hvsock.get_program());
    command.env("DIR", fixture.world.dir()).current_dir(folder);
    Completed::from(command.stdin(Stdio::null()).output().unwrap())
}

#[test]
fn a_dash_is_standard_input_and_standard_output_and_never_a_file() {
    let Some((fixture, folder)) = copy_fixture() else {
        return;
    };
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("folder")).unwrap();
    let run = |script: &str| {
        let here = local(folder.path()).to_owned();
        shell(
            &fixture,
            folder.path(),
            &script.replace("HERE", &format!("box:{here}")),
        )
    };
    let done = run("echo hello | hvsock cp - HERE/file && hvsock cp HERE/file -");
    assert_eq!(
        (done.code, &*done.stdout),
        (Some(0), "hello\n"),
        "{}",
        done.stderr
    );
    assert_eq!(done.stderr, "");
    // From the current position on, and to it.
    let done = run(
        "printf 'one\ntwo\n' > in; { read line; hvsock cp - HERE/file; } < in
        { echo first; hvsock cp HERE/file -; hvsock cp HERE/file /dev/stdout; } > out; cat out",
    );
    assert_eq!(done.stdout, "first\ntwo\ntwo\n", "{}", done.stderr);
    // A name in front of a slash is a file.
    let done = run("cp out ./-; hvsock cp ./- HERE/copy && cat copy");
    assert_eq!(done.stdout, "first\ntwo\ntwo\n", "{}", done.stderr);
    fs::remove_file(at("-")).unwrap();
    // Large, slow and empty input, and process substitution by hand.
    let done = run(
        "head -c 5000000 /dev/zero | tr '\\0' x | hvsock cp - HERE/large; wc -c < large
        mkfifo pipe; { printf a; cat pipe; } | hvsock cp - HERE/slow & echo z > pipe; wait; cat slow
        : | hvsock cp - HERE/empty; wc -c < empty",
    );
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(done.stdout, "5000000\naz\n0\n");
    for (script, status, message) in [
        (
            "hvsock cp - HERE/folder < in",
            1,
            "this is a folder, and the standard input has no name",
        ),
        (
            "hvsock cp - HERE/file < folder",
            1,
            "standard input: Is a directory",
        ),
        (
            "hvsock cp - box:- < in",
            2,
            "- is standard input or output of this command",
        ),
        (
            "hvsock cp box:- out",
            2,
            "write box:/- for a file of this name",
        ),
        (
            "hvsock cp - in HERE/folder < in",
            2,
            "- takes or gives the content of one file only",
        ),
        (
            "hvsock cp HERE/in HERE/out -",
            2,
            "- takes or gives the content of one file only",
        ),
        (
            "hvsock cp -r HERE/folder -",
            2,
            "- is the content of one file",
        ),
        (
            "hvsock cp -p - HERE/file < in",
            2,
            "- is the content of one file",
        ),
        (
            "hvsock cp HERE/folder -",
            1,
            "a folder is copied only with -r",
        ),
        ("hvsock cp - -", 2, "neither side is in a guest"),
        (
            "hvsock cp HERE/in /dev/full",
            1,
            "/dev/full: No space left on device",
        ),
        (
            "hvsock cp HERE/in - > /dev/full",
            1,
            "standard output: No space left on device",
        ),
    ] {
        let done = run(script);
        assert_eq!(done.code, Some(status), "{script}: {}", done.stderr);
        assert!(done.stderr.contains(message), "{script}: {}", done.stderr);
        assert!(!at("-").exists() && !at("folder/-").exists(), "{script}");
    }
    // A reader that has enough ends the command, as with other commands.
    let done = run("hvsock cp HERE/large - | head -c 3; hvsock cp HERE/none -; echo $?");
    assert_eq!(done.stdout, "xxx1\n", "{}", done.stderr);
}

#[test]
fn a_mounted_file_of_a_real_container_is_overwritten() {
    let world = crate::util::World::new();
    let Some(mut bundle) = crate::fixture::bundle(&world, "cage") else {
        return;
    };
    let data = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::write(data.path().join("hosts"), "127.0.0.1 localhost\n").unwrap();
    bundle.bind(&data.path().join("hosts"), "/etc/hosts");
    let _container = bundle.start(&[]).unwrap();
    crate::fixture::wait_until_offered(&world, "cage");
    let mut command = world.command(["cp", "-", "cage:/etc/hosts"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut copy = command.spawn().unwrap();
    copy.stdin
        .take()
        .unwrap()
        .write_all(b"10.0.0.1 web\n")
        .unwrap();
    let done = Completed::from(copy.wait_with_output().unwrap());
    assert_eq!((done.code, &*done.stderr), (Some(0), ""));
    assert_eq!(
        fs::read_to_string(data.path().join("hosts")).unwrap(),
        "10.0.0.1 web\n"
    );
    assert_eq!(world.ok(["cp", "cage:/etc/hosts", "-"]), "10.0.0.1 web\n");
}
