//! `hvsock listen` and `hvsock connect`: byte streams between stdin and stdout of two commands.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use rustix::process::Signal;

use crate::util::{Completed, DEMO, Running, World, eventually, redirected};

#[test]
fn an_echo_service_returns_its_input() {
    let world = World::new();
    world.register(DEMO);
    let _cat = world.listen([DEMO, "--from", "loopback", "--keep", "--", "cat"]);
    for input in ["hi\n", "", "no newline"] {
        let mut connect = world.command(["connect", "loopback", DEMO]);
        let done = Completed::with_input(&mut connect, input.as_bytes());
        assert_eq!(done.stderr, "");
        assert_eq!(done.ok(), input);
    }
    let mut connect = world.command(["connect", "hvsock://loopback/HV%20Socket%20Demo"]);
    assert_eq!(
        Completed::with_input(&mut connect, b"by address").ok(),
        "by address"
    );
}

#[test]
fn megabytes_are_transferred_unchanged() {
    let world = World::new();
    let mut sink = world.listen(["2761", "--from", "loopback"]);
    sink.end_input();
    let reader = std::thread::spawn(move || (sink.rest(), sink.end().code()));
    let bytes: Vec<u8> = (0..20_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut connect = world.command(["connect", "loopback", "2761"]);
    Completed::with_input(&mut connect, &bytes).ok();
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
fn input_that_cannot_be_read_is_a_reset_for_the_peer() {
    let world = World::new();
    let expected = "error: cannot read standard input: Is a directory (os error 21); the connection was reset\n";
    let folder = || fs::File::open("/").unwrap();
    // Of `connect`.
    let mut near = world.listen(["2761", "--from", "loopback"]);
    let mut connect = world.command(["connect", "loopback", "2761"]);
    let done = Completed::of(connect.stdin(folder()));
    assert_eq!((done.code, &*done.stderr), (Some(1), expected));
    assert_eq!(near.end().code(), Some(1));
    // Of `listen`.
    let mut listen = world.command(["listen", "2761", "--from", "loopback"]);
    let before = world.listeners();
    let mut near = Running::start(listen.stdin(folder()).stderr(Stdio::piped()));
    eventually("it listens", || world.listeners() > before);
    let mut connect = world.command(["connect", "loopback", "2761"]);
    let done = Completed::of(connect.stdin(Stdio::null()));
    assert_eq!(done.code, Some(1), "{done:?}");
    assert_eq!(near.end().code(), Some(1));
    let error = near.rest_of_stderr();
    assert!(error.ends_with(expected), "{error}");
}

#[test]
fn a_closed_stdin_is_no_empty_one() {
    let world = World::new();
    let closed = "Bad file descriptor (os error 9)";
    let mut near = world.listen(["2761", "--from", "loopback"]);
    let connect = world.command(["connect", "loopback", "2761"]);
    let error = Completed::of(&mut redirected(&connect, "<&-")).failed();
    let expected =
        format!("error: cannot read standard input: {closed}; the connection was reset\n");
    assert_eq!(error, expected);
    assert_eq!(near.end().code(), Some(1));
    let import = world.command(["service", "import", "-"]);
    let error = Completed::of(&mut redirected(&import, "<&-")).failed();
    assert_eq!(error, format!("error: cannot read -: {closed}\n"));
}

#[test]
fn bytes_that_the_other_end_could_not_store_are_no_success() {
    let world = World::new();
    let full = || {
        fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    let small = b"four".to_vec();
    let large = vec![b'x'; 5_000_000];
    // The end that cannot store keeps its own half open: after a half-close of both, nothing says whether what was
    // received is also stored.
    for input in [&small, &large] {
        // The input of `connect`.
        let before = world.listeners();
        let mut listen = world.command(["listen", "2761", "--from", "loopback"]);
        let (idle, _open) = std::io::pipe().unwrap();
        listen.stdin(idle);
        let mut near = Running::start(listen.stdout(full()).stderr(Stdio::piped()));
        eventually("it listens", || world.listeners() > before);
        let mut connect = world.command(["connect", "loopback", "2761"]);
        let error = Completed::with_input(&mut connect, input).failed();
        assert!(error.starts_with("error: "), "{error}");
        assert_eq!(near.end().code(), Some(1));
        // The input of `listen`.
        let file = world.dir().join("input");
        fs::write(&file, input).unwrap();
        let before = world.listeners();
        let mut listen = world.command(["listen", "2761", "--from", "loopback"]);
        listen.stdin(fs::File::open(&file).unwrap());
        let mut near = Running::start(listen.stderr(Stdio::piped()));
        eventually("it listens", || world.listeners() > before);
        let mut connect = world.command(["connect", "loopback", "2761"]);
        let (idle, _open) = std::io::pipe().unwrap();
        connect.stdin(idle).stdout(full()).stderr(Stdio::piped());
        let mut far = Running::start(&mut connect);
        assert_eq!(far.end().code(), Some(1));
        assert_eq!(near.end().code(), Some(1));
    }
}

#[test]
fn output_that_nobody_gets_is_a_failure() {
    let world = World::new();
    for arguments in [
        &["status", "--json"][..],
        &["service", "list"],
        &["service", "list", "--json"],
        &["vm", "list"],
        &["man"],
        &["completions", "bash"],
        &["--help"],
        &["--version"],
    ] {
        for (redirection, error) in [
            (">&-", "Bad file descriptor (os error 9)"),
            ("1</dev/null", "Bad file descriptor (os error 9)"),
            (">/dev/full", "No space left on device (os error 28)"),
        ] {
            let command = world.command(arguments);
            let done = Completed::of(&mut redirected(&command, redirection));
            let expected = format!("error: cannot write the output: {error}\n");
            assert_eq!(
                (done.code, done.stderr),
                (Some(1), expected),
                "{arguments:?}"
            );
        }
    }
}

#[test]
fn a_command_of_listen_ends_before_it_takes_a_broken_connection_for_the_end_of_its_input() {
    let world = World::new();
    let file = world.dir().join("backup");
    let script = format!("echo up; cat >/dev/null; : >{}", file.display());
    let mut listen = world.command(["-q", "listen", "2761", "--from", "loopback", "--"]);
    listen.args(["sh", "-c", &script]).stderr(Stdio::piped());
    let mut near = world.listening(&mut listen);
    let mut connect = world.command(["connect", "loopback", "2761"]);
    let mut far = Running::start(connect.stdin(Stdio::piped()).stdout(Stdio::piped()));
    assert_eq!(far.line(), "up");
    far.kill();
    assert_eq!(near.end().code(), Some(1));
    let error = near.rest_of_stderr();
    assert!(
        error.starts_with("error: the connection was closed: "),
        "{error}"
    );
    assert!(error.ends_with("; sh was told to end\n"), "{error}");
    assert!(!file.exists());
}

#[test]
fn each_direction_is_half_closed_separately() {
    let world = World::new();
    let mut near = world.listen(["2761", "--from", "loopback"]);
    let mut command = world.command(["connect", "loopback", "2761"]);
    let mut far = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    far.write(b"question\n");
    far.end_input();
    assert_eq!(near.line(), "question");
    assert_eq!(near.rest(), b"", "data after the question");
    near.write(b"answer\n");
    assert_eq!(far.line(), "answer");
    assert!(
        far.child.try_wait().unwrap().is_none(),
        "it ended before the half-close of the answer"
    );
    near.end_input();
    assert_eq!((far.end().code(), near.end().code()), (Some(0), Some(0)));
}

#[test]
fn connect_ends_with_the_peer_although_its_stdin_stays_open() {
    let world = World::new();
    let _true = world.listen(["2761", "--from", "loopback", "--", "true"]);
    let mut command = world.command(["connect", "loopback", "2761"]);
    let mut connect = Running::start(command.stdin(Stdio::piped()));
    assert_eq!(connect.end().code(), Some(0), "with an open stdin");
}

#[test]
fn connect_sends_its_input_after_the_peers_half_close() {
    let world = World::new();
    let got = world.dir().join("got");
    let script = format!("exec >/dev/null; cat > {}", got.display());
    let mut sink = world.listen(["2761", "--from", "loopback", "--", "sh", "-c", &script]);
    let mut command = world.command(["connect", "loopback", "2761"]);
    let mut connect = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    connect.write(b"early ");
    eventually("the first part is received", || {
        fs::read(&got).is_ok_and(|got| got == b"early ")
    });
    connect.write(b"late");
    connect.end_input();
    assert_eq!(connect.end().code(), Some(0));
    assert_eq!(sink.end().code(), Some(0));
    assert_eq!(fs::read_to_string(got).unwrap(), "early late");
}

#[test]
fn listen_runs_a_command_for_each_connection_and_reports_its_exit_status() {
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
    assert!(
        keep.child.try_wait().unwrap().is_none(),
        "it ended although it has --keep"
    );

    let mut command = world.command(["listen", "2763", "--from", "loopback", "--", "/nonexistent"]);
    let mut missing = world.listening(command.stderr(Stdio::piped()));
    let _ = world.run(["connect", "loopback", "2763"]);
    assert_eq!(missing.end().code(), Some(1));
    assert!(missing.rest_of_stderr().contains("cannot run /nonexistent"));
}

#[test]
fn connect_can_run_a_command() {
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
fn at_once_limits_the_number_of_concurrent_commands() {
    let world = World::new();
    let mut listen = world.command([
        "listen",
        "2761",
        "--from",
        "loopback",
        "--keep",
        "--at-once",
        "2",
        "--",
        "cat",
    ]);
    let mut cat = world.listening(listen.stderr(Stdio::piped()));
    let start = || {
        let mut command = world.command(["connect", "loopback", "2761", "--timeout", "30"]);
        Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()))
    };
    let expect_echo = |running: &mut Running| {
        running.write(b"x\n");
        assert_eq!(running.line(), "x");
    };
    let (mut first, mut second) = (start(), start());
    expect_echo(&mut first);
    expect_echo(&mut second);
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
    assert_eq!(third.line(), "x", "it got no free slot");
    second.end_input();
    third.end_input();
    cat.kill();
    let notes = cat.rest_of_stderr();
    let note = "the limit of 2 commands at once is reached; further connections wait";
    assert_eq!(notes.matches(note).count(), 1, "{notes}");
}

#[test]
fn a_closed_stdout_is_no_failure() {
    let world = World::new();
    let _yes = world.listen(["2761", "--from", "loopback", "--keep", "--", "yes"]);
    let mut command = world.command(["connect", "loopback", "2761"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut connect = Running::start(&mut command);
    assert_eq!(connect.line(), "y");
    drop(connect.child.stdout.take());
    assert_eq!(connect.end().code(), Some(0));
    assert_eq!(connect.rest_of_stderr(), "");
    for arguments in [&["service", "list"][..], &["man"], &["completions", "bash"]] {
        let mut command = world.command(arguments);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let done = Completed::from(child.wait_with_output().unwrap());
        assert_eq!(
            (done.code, done.stderr.as_str()),
            (Some(0), ""),
            "{arguments:?}"
        );
    }
}

#[test]
fn a_connection_closed_by_the_operator_fails_and_names_the_reason() {
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
fn a_killed_broker_fails_both_ends() {
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
    world.broker().kill();
    assert_eq!((near.end().code(), far.end().code()), (Some(1), Some(1)));
    for end in [&mut near, &mut far] {
        assert!(end.rest_of_stderr().contains("error: the connection"));
    }
}

#[test]
fn a_kept_listener_comes_back_after_the_broker_and_after_its_service_is_enabled() {
    let mut world = World::new();
    world.register(DEMO);
    let mut command = world.command(["listen", DEMO, "--keep", "--", "cat"]);
    let mut listen = world.listening(command.stderr(Stdio::piped()));
    let is_served = |world: &World| {
        let mut command = world.command(["connect", "loopback", DEMO]);
        let done = Completed::with_input(&mut command, b"echo");
        done.code == Some(0) && done.stdout == "echo"
    };
    assert!(is_served(&world));
    for killed in [true, false] {
        match killed {
            true => world.broker().kill(),
            false => {
                world.broker().signal(Signal::TERM);
                assert!(world.broker().end().success());
            }
        }
        world.start_broker();
        eventually("it listens again", || is_served(&world));
    }
    world.ok(["service", "disable", DEMO]);
    assert!(!is_served(&world));
    world.ok(["service", "enable", DEMO]);
    eventually("it listens again", || is_served(&world));
    world.ok(["service", "unregister", DEMO]);
    world.register(DEMO);
    assert!(listen.child.try_wait().unwrap().is_none());
    listen.kill();
    let notes = listen.rest_of_stderr();
    for note in [
        "the listener was closed: ",
        "; listening again when that is possible",
        "is disabled",
        "listening for `HV Socket Demo` again",
    ] {
        assert!(notes.contains(note), "{note}: {notes}");
    }
}

#[test]
fn events_are_followed_through_a_restart_of_the_broker() {
    let mut world = World::new();
    let mut command = world.command(["events", "--json"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut events = Running::start(&mut command);
    let notes = BufReader::new(events.child.stderr.take().unwrap());
    let mut notes = notes.lines().map(Result::unwrap);
    let mut told = |note: &str| assert!(notes.any(|line| line == note), "{note}");
    let mut seen = |world: &World, name: &str| {
        world.register(name);
        // Events of the broker's start may come before.
        while !events.line().contains(name) {}
    };
    told("following events; Ctrl-C ends");
    seen(&world, "first");
    world.broker().kill();
    told("the broker ended; events are missing until one runs again");
    world.start_broker();
    told("following events again");
    seen(&world, "second");
}

#[test]
fn a_killed_peer_is_an_error_and_no_end_of_data() {
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
    near.kill();
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
        &["listen", "x", "--from", "a/b/c"],
        &["listen", "x", "--keep", "--at-once", "0", "--", "cat"],
        &["why", "parent"],
    ] {
        let error = world.run(arguments).usage_error();
        assert!(!error.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_full_disk_on_stdout_is_a_failure() {
    let world = World::new();
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let mut command = world.command(["service", "list"]);
    command.stdout(full).stderr(Stdio::piped());
    let done = Completed::from(command.spawn().unwrap().wait_with_output().unwrap());
    assert!(done.failed().contains("cannot write the output"));
    std::io::stderr().flush().unwrap();
}
