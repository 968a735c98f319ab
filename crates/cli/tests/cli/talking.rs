//! `hvsock listen` and `hvsock connect`: bytes from a shell to a shell.

use std::fs;
use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Instant;

use rustix::process::Signal;

use crate::util::{DEMO, Done, PATIENCE, Running, World, eventually};

#[test]
fn what_is_said_to_an_echo_service_comes_back() {
    let world = World::new();
    world.register(DEMO);
    let _cat = world.listen([DEMO, "--from", "loopback", "--keep", "--", "cat"]);
    for input in ["hi\n", "", "no newline"] {
        let mut connect = world.command(["connect", "loopback", DEMO]);
        let done = Done::with_input(&mut connect, input.as_bytes());
        assert_eq!(done.stderr, "");
        assert_eq!(done.ok(), input);
    }
    let mut connect = world.command(["connect", "hvsock://loopback/HV%20Socket%20Demo"]);
    assert_eq!(
        Done::with_input(&mut connect, b"by address").ok(),
        "by address"
    );
}

#[test]
fn megabytes_pass_through_pipes_unharmed() {
    let world = World::new();
    let mut sink = world.listen(["2761", "--from", "loopback"]);
    sink.end_input();
    let reader = std::thread::spawn(move || (sink.rest(), sink.end().code()));
    let bytes: Vec<u8> = (0..20_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut connect = world.command(["connect", "loopback", "2761"]);
    Done::with_input(&mut connect, &bytes).ok();
    let (received, code) = reader.join().unwrap();
    assert!(
        received == bytes,
        "{} bytes of {}",
        received.len(),
        bytes.len()
    );
    assert_eq!(code, Some(0));
}

#[test]
fn each_half_ends_in_its_own_time() {
    let world = World::new();
    let mut near = world.listen(["2761", "--from", "loopback"]);
    let mut command = world.command(["connect", "loopback", "2761"]);
    let mut far = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    far.write(b"question\n");
    far.end_input();
    assert_eq!(near.line(), "question");
    assert_eq!(near.rest(), b"", "the end of the question");
    near.write(b"answer\n");
    assert_eq!(far.line(), "answer");
    assert!(
        far.child.try_wait().unwrap().is_none(),
        "the answer has not ended"
    );
    near.end_input();
    assert_eq!((far.end().code(), near.end().code()), (Some(0), Some(0)));
}

#[test]
fn connecting_ends_with_the_other_end_though_input_may_still_come() {
    let world = World::new();
    let _true = world.listen(["2761", "--from", "loopback", "--", "true"]);
    let mut command = world.command(["connect", "loopback", "2761"]);
    let mut connect = Running::start(command.stdin(Stdio::piped()));
    assert_eq!(connect.end().code(), Some(0), "with its input still open");
}

#[test]
fn input_goes_on_after_the_other_end_has_said_all_it_has_to_say() {
    let world = World::new();
    let got = world.dir().join("got");
    let script = format!("exec >/dev/null; cat > {}", got.display());
    let mut sink = world.listen(["2761", "--from", "loopback", "--", "sh", "-c", &script]);
    let mut command = world.command(["connect", "loopback", "2761"]);
    let mut connect = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    connect.write(b"early ");
    eventually("the first part arrives", || {
        fs::read(&got).is_ok_and(|got| got == b"early ")
    });
    connect.write(b"late");
    connect.end_input();
    assert_eq!(connect.end().code(), Some(0));
    assert_eq!(sink.end().code(), Some(0));
    assert_eq!(fs::read_to_string(got).unwrap(), "early late");
}

#[test]
fn a_command_for_each_connection_and_its_exit_status() {
    let world = World::new();
    let mut command = world.command([
        "listen", "2761", "--from", "loopback", "--", "sh", "-c", "exit 3",
    ]);
    let mut once = world.listening(command.stderr(Stdio::piped()));
    world.ok(["connect", "loopback", "2761"]);
    assert_eq!(once.end().code(), Some(1));
    assert!(once.rest_of_stderr().contains("exit status: 3"));

    let mut keep = world.listen([
        "2762", "--from", "loopback", "--keep", "--", "sh", "-c", "exit 3",
    ]);
    for _ in 0..3 {
        world.ok(["connect", "loopback", "2762"]);
    }
    assert!(keep.child.try_wait().unwrap().is_none(), "it goes on");

    let mut command = world.command(["listen", "2763", "--from", "loopback", "--", "/nonexistent"]);
    let mut missing = world.listening(command.stderr(Stdio::piped()));
    let _ = world.run(["connect", "loopback", "2763"]);
    assert_eq!(missing.end().code(), Some(1));
    assert!(missing.rest_of_stderr().contains("cannot run /nonexistent"));
}

#[test]
fn connecting_can_run_a_command_too() {
    let world = World::new();
    let mut cat = world.listen(["2761", "--from", "loopback", "--keep", "--", "cat"]);
    let script = "echo ping; read line; echo got $line >&2; test \"$line\" = ping";
    let command = ["connect", "loopback", "2761", "--", "sh", "-c", script];
    let done = world.run(command);
    assert_eq!((done.code, done.stderr.as_str()), (Some(0), "got ping\n"));
    let done = world.run(["connect", "loopback", "2761", "--", "sh", "-c", "exit 9"]);
    assert!(done.failed().contains("exit status: 9"));
    cat.signal(Signal::TERM);
    cat.end();
}

#[test]
fn so_many_commands_run_at_once_and_no_more() {
    let world = World::new();
    let listen = [
        "2761",
        "--from",
        "loopback",
        "--keep",
        "--at-once",
        "2",
        "--",
        "cat",
    ];
    let _cat = world.listen(listen);
    let start = || {
        let mut command = world.command(["connect", "loopback", "2761", "--timeout", "30"]);
        Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()))
    };
    let talks = |running: &mut Running| {
        running.write(b"x\n");
        assert_eq!(running.line(), "x");
    };
    let (mut first, mut second) = (start(), start());
    talks(&mut first);
    talks(&mut second);
    let mut third = start();
    third.write(b"x\n");
    let open = || {
        world
            .connections()
            .iter()
            .filter(|c| c["state"] == "open")
            .count()
    };
    assert_eq!(open(), 2);
    first.end_input();
    assert_eq!(first.end().code(), Some(0));
    assert_eq!(third.line(), "x", "its turn has come");
    second.end_input();
    third.end_input();
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let world = World::new();
    let _yes = world.listen(["2761", "--from", "loopback", "--keep", "--", "yes"]);
    let mut command = world.command(["connect", "loopback", "2761"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut connect = Running::start(&mut command);
    assert_eq!(connect.line(), "y");
    drop(connect.child.stdout.take());
    assert_eq!(connect.end().code(), Some(0));
    assert_eq!(connect.rest_of_stderr(), "", "and says nothing");
    for arguments in [&["service", "list"][..], &["man"], &["completions", "bash"]] {
        let mut command = world.command(arguments);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let done = Done::from(child.wait_with_output().unwrap());
        assert_eq!(
            (done.code, done.stderr.as_str()),
            (Some(0), ""),
            "{arguments:?}"
        );
    }
}

#[test]
fn a_connection_that_is_cut_says_why_with_exit_status_one() {
    let world = World::new();
    let _cat = world.listen(["2761", "--from", "loopback", "--keep", "--", "cat"]);
    let mut command = world.command(["connect", "loopback", "2761"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut connect = Running::start(&mut command);
    connect.write(b"x\n");
    assert_eq!(connect.line(), "x");
    let id = world.connections()[0]["id"].to_string();
    world.ok(["connections", "close", &id]);
    assert_eq!(connect.end().code(), Some(1));
    let error = connect.rest_of_stderr();
    assert!(
        error.contains("the connection was closed") && error.contains("operator"),
        "{error}"
    );
    let error = world.run(["connections", "close", &id]).failed();
    assert!(error.contains(&id), "{error}");
}

#[test]
fn a_broker_that_is_killed_ends_both_sides_with_an_error() {
    let mut world = World::new();
    let mut command = world.command(["listen", "2761", "--from", "loopback"]);
    let mut near = world.listening(command.stderr(Stdio::piped()));
    let mut command = world.command(["connect", "loopback", "2761"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut far = Running::start(&mut command);
    far.write(b"x\n");
    assert_eq!(near.line(), "x");
    world.broker().child.kill().unwrap();
    let began = Instant::now();
    assert_eq!((near.end().code(), far.end().code()), (Some(1), Some(1)));
    assert!(began.elapsed() < PATIENCE);
    for side in [&mut near, &mut far] {
        assert!(side.rest_of_stderr().contains("error: the connection"));
    }
}

#[test]
fn a_peer_that_is_killed_is_an_error_and_not_an_end() {
    let world = World::new();
    let mut near = world.listen(["2761", "--from", "loopback"]);
    let mut command = world.command(["connect", "loopback", "2761"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut far = Running::start(&mut command);
    near.write(b"half of ");
    let mut bytes = [0; 8];
    far.child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut bytes)
        .unwrap();
    near.child.kill().unwrap();
    assert_eq!(far.end().code(), Some(1));
    assert!(far.rest_of_stderr().contains("error: the connection"));
}

#[test]
fn wrong_usage_of_connect_and_listen_has_exit_status_two() {
    let world = World::new();
    for arguments in [
        &["connect"][..],
        &["connect", "parent"],
        &["connect", "a b", "x"],
        &["connect", "http://parent/x"],
        &["connect", "hvsock://parent/x", "y"],
        &["connect", "parent", "x", "--timeout", "0"],
        &["connect", "parent", "x", "--timeout", "301"],
        &["connect", "parent", "x", "--timeout", "nan"],
        &["listen"],
        &["listen", "x", "--keep"],
        &["listen", "x", "--from", "a/b"],
        &["listen", "x", "--keep", "--at-once", "0", "--", "cat"],
        &["why", "parent"],
    ] {
        let error = world.run(arguments).misused();
        assert!(!error.is_empty(), "{arguments:?}");
    }
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let world = World::new();
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let mut command = world.command(["service", "list"]);
    command.stdout(full).stderr(Stdio::piped());
    let done = Done::from(command.spawn().unwrap().wait_with_output().unwrap());
    assert!(done.failed().contains("cannot write the output"));
    std::io::stderr().flush().unwrap();
}
