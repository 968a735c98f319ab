//! `hvsock cp`.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::fixture::{self, BOX, Fixture};
use crate::util::{World, eventually};

/// A fixture whose agent offers the copy service, and a folder for the files.
pub fn copy_fixture() -> Option<(Fixture, tempfile::TempDir)> {
    let fixture = Fixture::new()?;
    eventually("the copy service is offered", || {
        let why = fixture.run(["why", BOX, "hvsock copy"]);
        why.stdout.contains("would succeed")
    });
    Some((fixture, tempfile::tempdir().unwrap()))
}

/// The argument for a path in the container, whose agent is a process of this machine.
pub fn remote(path: &Path) -> String {
    format!("{BOX}:{}", path.display())
}

/// The argument for a local path.
pub fn local(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_file_is_copied_to_a_folder_to_a_new_name_and_back() {
    let Some((fixture, folder)) = copy_fixture() else {
        return;
    };
    let at = |name: &str| folder.path().join(name);
    let content: Vec<u8> = (0..3_000_000u32)
        .map(|at| (at.wrapping_mul(at) >> 7) as u8)
        .collect();
    fs::write(at("one"), &content).unwrap();
    fs::create_dir(at("folder")).unwrap();
    fixture
        .world
        .ok(["cp", local(&at("one")), &remote(&at("folder"))]);
    fixture
        .world
        .ok(["cp", local(&at("one")), &remote(&at("two"))]);
    fixture
        .world
        .ok(["cp", &remote(&at("two")), local(&at("three"))]);
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
fn a_tree_is_copied_with_modes_times_links_and_holes_and_back() {
    let Some((fixture, folder)) = copy_fixture() else {
        return;
    };
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("tree/deep/er")).unwrap();
    fs::write(at("tree/deep/er/file"), "content").unwrap();
    fs::set_permissions(at("tree/deep/er/file"), Permissions::from_mode(0o640)).unwrap();
    let holes = File::create(at("tree/holes")).unwrap();
    holes.set_len(1 << 30).unwrap();
    holes.set_modified(std::time::UNIX_EPOCH).unwrap();
    symlink("deep/er/file", at("tree/link")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, at("tree/pipe"), rustix::fs::Mode::RWXU).unwrap();

    let refused = fixture.run(["cp", local(&at("tree")), &remote(&at("not"))]);
    assert!(refused.failed().contains("only with -r"));
    let archived = fixture.run(["cp", "-a", local(&at("tree")), &remote(&at("copy"))]);
    assert_eq!(archived.code, Some(0), "{}", archived.stderr);
    assert!(
        archived.stderr.contains("a pipe is not copied"),
        "{}",
        archived.stderr
    );
    fs::create_dir(at("back")).unwrap();
    fixture
        .world
        .ok(["cp", "-a", &remote(&at("copy/.")), local(&at("back"))]);
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
            "the sparse file has {} blocks",
            holes.blocks()
        );
    }
}

#[test]
fn files_that_cannot_be_copied_are_reported_and_the_others_copied() {
    let Some((fixture, folder)) = copy_fixture() else {
        return;
    };
    let at = |name: &str| folder.path().join(name);
    fs::write(at("one"), "1").unwrap();
    fs::create_dir(at("to")).unwrap();
    let some = fixture.run([
        "cp",
        local(&at("none")),
        local(&at("one")),
        &remote(&at("to")),
    ]);
    assert_eq!(some.code, Some(1));
    assert!(
        some.stderr.contains("none: No such file"),
        "{}",
        some.stderr
    );
    assert_eq!(fs::read(at("to/one")).unwrap(), b"1");

    let nowhere = fixture.run(["cp", local(&at("one")), &remote(&at("no/such/place"))]);
    assert!(nowhere.failed().contains("No such file"));
    let nothing = fixture.run(["cp", &remote(&at("none")), local(&at("to"))]);
    assert!(
        nothing.stderr.contains("none: No such file"),
        "{}",
        nothing.stderr
    );
    assert_eq!(nothing.code, Some(1));
    for (paths, message) in [
        (["a", "b"], "neither side is in a guest"),
        (["box:a", "box:b"], "both sides are in guests"),
    ] {
        let wrong = fixture.run(["cp", paths[0], paths[1]]);
        assert_eq!(wrong.code, Some(2));
        assert!(wrong.stderr.contains(message), "{}", wrong.stderr);
    }
    let unknown = fixture.run(["cp", "a", "unknown:b"]);
    assert!(unknown.failed().contains("cannot connect"));
}

/// Starts a copy of a large file to the container and waits until it has written 4 MiB. Returns `None` if the
/// copy ended before.
fn start_copy(fixture: &Fixture, from: &Path, to: &Path) -> Option<std::process::Child> {
    let part = to.join(".large.hvsock.part");
    let before = fs::metadata(&part).map_or(0, |meta| meta.len());
    let mut command = fixture.world.command(["cp", local(from), &remote(to)]);
    command.stderr(Stdio::piped());
    let mut copy = command.spawn().unwrap();
    loop {
        let now = fs::metadata(&part).map_or(0, |meta| meta.len());
        if now > before + (4 << 20) {
            return Some(copy);
        }
        if copy.try_wait().unwrap().is_some() {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_interrupted_copy_is_resumed_and_invisible_until_it_is_complete() {
    let Some((fixture, folder)) = copy_fixture() else {
        return;
    };
    let at = |name: &str| folder.path().join(name);
    let content: Vec<u8> = (0..64u32 << 20).flat_map(u32::to_le_bytes).collect();
    fs::write(at("large"), &content).unwrap();
    fs::create_dir(at("to")).unwrap();
    let part = at("to/.large.hvsock.part");

    // The first copy is killed.
    let mut copy = start_copy(&fixture, &at("large"), &at("to"))
        .expect("a copy of 256 MiB that is not done yet");
    copy.kill().unwrap();
    copy.wait().unwrap();
    assert!(!at("to/large").exists());
    let inode = fs::metadata(&part).unwrap().ino();

    // The second copy ends because the operator disables the service.
    eventually("the agent has unlocked the file", || {
        let file = File::open(&part).unwrap();
        let lock = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        rustix::fs::flock(&file, lock).is_ok()
    });
    let copy = start_copy(&fixture, &at("large"), &at("to"))
        .expect("a copy of 256 MiB that is not done yet");
    fixture
        .world
        .ok(["service", "disable", "hvsock copy", "--vm", BOX]);
    let closed = copy.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&closed.stderr);
    assert_eq!(closed.status.code(), Some(1), "{error}");
    assert!(
        error.contains("disabled") && error.contains("to resume the copy"),
        "{error}"
    );
    assert!(!at("to/large").exists());

    fixture
        .world
        .ok(["service", "enable", "hvsock copy", "--vm", BOX]);
    eventually("the copy succeeds", || {
        fixture
            .run(["cp", local(&at("large")), &remote(&at("to"))])
            .code
            == Some(0)
    });
    assert!(fs::read(at("to/large")).unwrap() == content);
    assert_eq!(fs::metadata(at("to/large")).unwrap().ino(), inode);
    assert!(!part.exists());
}

#[test]
fn permissions_are_copied_as_cp_copies_them() {
    let Some((fixture, folder)) = copy_fixture() else {
        return;
    };
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("from")).unwrap();
    for (name, mode) in [("program", 0o4777), ("secret", 0o600)] {
        fs::write(at("from").join(name), "x").unwrap();
        fs::set_permissions(at("from").join(name), Permissions::from_mode(mode)).unwrap();
    }
    fixture
        .world
        .ok(["cp", "-r", local(&at("from")), &remote(&at("plain"))]);
    fixture
        .world
        .ok(["cp", "-a", &remote(&at("from")), local(&at("back"))]);
    let mode = |name: &str| fs::metadata(at(name)).unwrap().mode() & 0o7777;
    assert_eq!(mode("plain/secret"), 0o600);
    assert_eq!(
        mode("plain/program") & 0o7700,
        0o700,
        "no setuid without -p"
    );
    assert_eq!(mode("back/program"), 0o777, "no setuid from a guest");
    assert_eq!(mode("back/secret"), 0o600);
}

#[test]
fn a_hostile_agent_that_sends_another_file_is_refused() {
    use std::io::{Read as _, Write as _};

    let world = World::new();
    let endpoint = world.container(BOX);
    let listener = hvsock::HvListener::options()
        .endpoint(endpoint)
        .listen(("parent", "hvsock copy"))
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    for name in ["other", "../this", "this/../../other"] {
        let mut command = world.command(["cp", "box:/etc/this", local(folder.path())]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let copy = command.spawn().unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut length = [0; 4];
        stream.read_exact(&mut length).unwrap();
        let mut open = vec![0; u32::from_le_bytes(length) as usize];
        stream.read_exact(&mut open).unwrap();
        // A `SenderMessage` with a `File` (field 4) that has this name (field 1).
        let file = [&[0x0a, name.len() as u8], name.as_bytes()].concat();
        let sent = [&[0x22, file.len() as u8], &file[..]].concat();
        stream
            .write_all(&(sent.len() as u32).to_le_bytes())
            .unwrap();
        stream.write_all(&sent).unwrap();
        let done = crate::util::Completed::from(copy.wait_with_output().unwrap());
        let error = done.failed();
        assert!(error.contains("protocol violation"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

/// Copies files to a folder of a partition and back. `run` runs a command in that folder.
fn copy_and_compare(
    world: &World,
    (name, below): (&str, &str),
    files: usize,
    run: &dyn Fn(&str) -> String,
) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let content: Vec<u8> = (0..4u32 << 20)
        .flat_map(|at| at.wrapping_mul(at).to_le_bytes())
        .collect();
    fs::write(at("large"), &content).unwrap();
    for number in 0..files {
        let below = at("tree").join((number / 100).to_string());
        fs::create_dir_all(&below).unwrap();
        fs::write(
            below.join(number.to_string()),
            vec![number as u8; number % 9000],
        )
        .unwrap();
    }
    symlink("0/1", at("tree/link")).unwrap();
    let target = |path: &str| format!("{name}:{below}/{path}");

    world.ok(["cp", local(&at("large")), &target("")]);
    let sha256 = |text: &str| {
        text.split_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let expected = Command::new("sha256sum").arg(at("large")).output().unwrap();
    let expected = sha256(&String::from_utf8_lossy(&expected.stdout));
    assert_eq!(expected.len(), 64);
    assert_eq!(sha256(&run("sha256sum large")), expected);
    world.ok(["cp", &target("large"), local(&at("back"))]);
    assert!(fs::read(at("back")).unwrap() == content);

    let began = Instant::now();
    world.ok(["cp", "-a", local(&at("tree")), &target("")]);
    let rate = files as f64 / began.elapsed().as_secs_f64();
    println!(
        "{name}: {files} small files at {rate:.0} per second, including the start of the program"
    );
    assert_eq!(run("find tree -type f | wc -l").trim(), files.to_string());
    assert_eq!(run("readlink tree/link").trim(), "0/1");
    assert_eq!(run("find . -name '*.part'").trim(), "");
    world.ok(["cp", "-a", &target("tree"), local(&at("again"))]);
    for number in 0..files {
        let name = format!("{}/{number}", number / 100);
        let (one, other) = (at("tree").join(&name), at("again").join(&name));
        assert!(
            fs::read(&one).unwrap() == fs::read(&other).unwrap(),
            "{name} differs"
        );
        let time = |path| fs::metadata(path).unwrap().modified().unwrap();
        assert_eq!(time(one), time(other));
    }
}

#[test]
fn files_are_copied_to_a_real_container_and_back() {
    let world = World::new();
    let Some(mut bundle) = fixture::bundle(&world, "cage") else {
        return;
    };
    let data = tempfile::tempdir_in("/dev/shm").unwrap();
    bundle.bind(data.path(), "/data");
    let _container = bundle.start(&[]).unwrap();
    fixture::wait_until_offered(&world, "cage");
    copy_and_compare(&world, ("cage", "/data"), 10_000, &|command| {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(command).current_dir(data.path());
        String::from_utf8(shell.output().unwrap().stdout).unwrap()
    });
}

#[test]
fn files_are_copied_to_a_real_guest_and_back() {
    let world = World::new();
    let Some(guest) = fixture::guest(&world, "web") else {
        return;
    };
    copy_and_compare(&world, ("web", "tmp"), 500, &|command| {
        let command = format!("cd /tmp && {command}");
        let done = guest.run(&command, Duration::from_secs(60)).unwrap();
        assert!(done.success(), "{command}: {}", done.stderr_text());
        done.text()
    });
    // The memory used by the copies is freed.
    let resident = "grep VmRSS /proc/$(pidof hvsock-agent)/status";
    let resident = guest.run(resident, Duration::from_secs(60)).unwrap().text();
    let kib: u64 = resident.split_whitespace().nth(1).unwrap().parse().unwrap();
    println!("hvsock-agent: {kib} KiB resident after copies");
    assert!(kib < 8 * 1024, "{kib} KiB");
}
