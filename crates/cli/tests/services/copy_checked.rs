//! `hvsock cp` does what was asked for, or says what it did not do.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::process::{Child, Stdio};

use crate::fixture::{BOX, Fixture};
use crate::util::{Completed, World, eventually};

fn copy_fixture() -> Option<(Fixture, tempfile::TempDir)> {
    let fixture = Fixture::new()?;
    eventually("the copy service is offered", || {
        let why = fixture.run(["why", BOX, "hvsock copy"]);
        why.stdout.contains("would succeed")
    });
    Some((fixture, tempfile::tempdir().unwrap()))
}

fn remote(path: &Path) -> String {
    format!("{BOX}:{}", path.display())
}

fn local(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn files_of_the_kernel_arrive_whole() {
    let Some((fixture, folder)) = copy_fixture() else {
        return;
    };
    let to = folder.path().join("version");
    fixture
        .world
        .ok(["cp", &remote(Path::new("/proc/version")), local(&to)]);
    assert_eq!(fs::read(&to).unwrap(), fs::read("/proc/version").unwrap());
    fixture.world.ok([
        "cp",
        "/proc/filesystems",
        &remote(&folder.path().join("filesystems")),
    ]);
    assert_eq!(
        fs::read(folder.path().join("filesystems")).unwrap(),
        fs::read("/proc/filesystems").unwrap()
    );
}

#[test]
fn two_sources_of_one_name_are_refused_in_both_directions() {
    let Some((fixture, folder)) = copy_fixture() else {
        return;
    };
    let at = |name: &str| folder.path().join(name);
    for name in ["a", "b", "to"] {
        fs::create_dir(at(name)).unwrap();
    }
    fs::write(at("a/x"), "1").unwrap();
    fs::write(at("b/x"), "2").unwrap();
    let (one, two, to) = (at("a/x"), at("b/x"), at("to"));
    for refused in [
        fixture.run(["cp", local(&one), local(&two), &remote(&to)]),
        fixture.run(["cp", &remote(&one), &remote(&two), local(&to)]),
        fixture.run(["cp", "-r", local(&one), local(&at("b/./x")), &remote(&to)]),
    ] {
        let error = refused.failed();
        assert!(
            error.contains("another source has the same name"),
            "{error}"
        );
    }
    assert_eq!(fs::read_dir(&to).unwrap().count(), 0);
}

#[test]
fn nothing_is_copied_onto_itself_through_a_folder_that_both_ends_share() {
    let Some((fixture, folder)) = copy_fixture() else {
        return;
    };
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("tree/sub")).unwrap();
    fs::write(at("tree/file"), "content").unwrap();
    symlink("file", at("tree/link")).unwrap();
    let inode = fs::metadata(at("tree/file")).unwrap().ino();
    let (file, link, tree, sub) = (at("tree/file"), at("tree/link"), at("tree"), at("tree/sub"));
    for (arguments, why) in [
        (["cp", "-p", local(&file), &remote(&file)], "are the same"),
        (["cp", "-p", &remote(&file), local(&file)], "are the same"),
        (["cp", "-p", local(&link), &remote(&tree)], "are the same"),
        (["cp", "-p", &remote(&link), local(&tree)], "are the same"),
        (
            ["cp", "-r", local(&tree), &remote(&sub)],
            "within this folder",
        ),
        (
            ["cp", "-r", &remote(&tree), local(&sub)],
            "within this folder",
        ),
    ] {
        let refused = fixture.run(arguments);
        assert_eq!(refused.code, Some(1), "{arguments:?}");
        assert!(refused.stderr.contains(why), "{}", refused.stderr);
    }
    assert_eq!(fs::read(&file).unwrap(), b"content");
    assert_eq!(fs::metadata(&file).unwrap().ino(), inode);
    assert_eq!(fs::read_dir(&sub).unwrap().count(), 0);
}

/// A field of a message: a number below 16, and bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [
        &[number << 3 | 2, u8::try_from(bytes.len()).unwrap()],
        bytes,
    ]
    .concat()
}

/// A `SenderMessage` with this message.
fn message(number: u8, bytes: &[u8]) -> Vec<u8> {
    let message = field(number, bytes);
    let length = u32::try_from(message.len()).unwrap();
    [&length.to_le_bytes()[..], &message].concat()
}

#[test]
fn whatever_a_lying_agent_sends_cp_does_not_succeed_without_the_file() {
    let world = World::new();
    let listener = hvsock::HvListener::options()
        .endpoint(world.container(BOX))
        .listen(("parent", "hvsock copy"))
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let end = message(11, &[]);
    let link = message(
        8,
        &[field(1, b"app.conf"), field(2, b"/etc/shadow")].concat(),
    );
    let tree = [message(2, &field(1, b"app.conf")), message(3, &[])].concat();
    let note = message(9, &[field(1, b"app.conf"), field(2, b"later")].concat());
    let skipped = [field(1, b"app.conf"), vec![3 << 3, 1]].concat();
    let broken = [message(4, &field(1, b"app.conf")), message(7, &[3 << 3, 1])].concat();
    let cases = [
        ("only an end", end.clone()),
        ("a symbolic link", link),
        ("a folder", tree),
        (
            "a failure that is not counted",
            [note, end.clone()].concat(),
        ),
        ("a note", [message(9, &skipped), end.clone()].concat()),
        ("a broken file", [broken, end].concat()),
        ("nothing", Vec::new()),
    ];
    for (name, sent) in cases {
        let mut command = world.command(["cp", "box:/etc/app.conf", local(folder.path())]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let copy = command.spawn().unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&sent).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let done = Completed::from(copy.wait_with_output().unwrap());
        assert_eq!(done.code, Some(1), "{name}: {}", done.stderr);
        assert!(done.stderr.contains("error"), "{name}: {}", done.stderr);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{name}");
        // The command has sent its request and does not wait for more.
        drop(stream.read_to_end(&mut Vec::new()));
    }
}

/// Starts a copy, and returns it with the first line that it prints on stderr.
fn start(fixture: &Fixture, arguments: [&str; 3]) -> (Child, String) {
    let mut command = fixture.world.command(arguments);
    let mut copy = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let stderr = copy.stderr.take().unwrap();
    BufReader::new(stderr).read_line(&mut line).unwrap();
    (copy, line)
}

#[test]
fn a_copy_above_the_limit_says_that_it_waits_and_is_done_if_it_still_runs() {
    let Some((fixture, folder)) = copy_fixture() else {
        return;
    };
    let at = |name: &str| folder.path().join(name);
    fs::write(at("file"), "content").unwrap();
    let pipes: Vec<_> = (0..16).map(|number| at(&format!("pipe{number}"))).collect();
    let mut running = Vec::new();
    for pipe in &pipes {
        rustix::fs::mkfifoat(rustix::fs::CWD, pipe, rustix::fs::Mode::RWXU).unwrap();
        let to = pipe.with_extension("copy");
        let (copy, line) = start(&fixture, ["cp", &remote(pipe), local(&to)]);
        assert!(line.contains("waiting for a process that writes"), "{line}");
        running.push(copy);
    }
    let waits = "waiting for one of the 16 copies to end that run in the guest";
    let (mut put, line) = start(&fixture, ["cp", local(&at("file")), &remote(&at("put"))]);
    assert!(line.contains(waits), "{line}");
    let (mut get, line) = start(&fixture, ["cp", &remote(&at("file")), local(&at("got"))]);
    assert!(line.contains(waits), "{line}");
    let (mut gone, line) = start(&fixture, ["cp", local(&at("file")), &remote(&at("gone"))]);
    assert!(line.contains(waits), "{line}");
    gone.kill().unwrap();
    gone.wait().unwrap();
    assert!(!at("put").exists() && !at("got").exists());

    for pipe in &pipes {
        let mut pipe = File::options().write(true).open(pipe).unwrap();
        pipe.write_all(b"written").unwrap();
    }
    for mut copy in running {
        assert!(copy.wait().unwrap().success());
    }
    assert!(put.wait().unwrap().success());
    assert!(get.wait().unwrap().success());
    assert_eq!(fs::read(at("put")).unwrap(), b"content");
    assert_eq!(fs::read(at("got")).unwrap(), b"content");
    assert_eq!(fs::read(at("pipe3.copy")).unwrap(), b"written");
    assert!(!at("gone").exists(), "its client did not wait");
}
