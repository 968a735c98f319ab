//! A hostile VMM, and others who may write to its folder. The broker stays bounded and serves everybody else.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use hvsock::Refusal;
use hvsock_testkit::wait::TIMEOUT;
use hvsock_testkit::world::{accept, refused};

use crate::vm::{PORT, Vm};

/// A VMM that does `script` with each connection on which a request comes.
fn vmm(path: &Path, script: impl Fn(UnixStream) + Send + 'static) {
    let listener = UnixListener::bind(path).expect("a socket");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connect");
            let mut line = [0; 64];
            if stream.read(&mut line).is_ok() && line.starts_with(b"CONNECT") {
                script(stream);
            }
        }
    });
}

/// The cause of the reset that a connect ends with.
#[track_caller]
fn reset(vm: &Vm) -> String {
    match refused(vm.world.connect_to("web", PORT)) {
        Refusal::Reset { cause } => cause,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_endless_line_and_another_protocol_end_the_connect() {
    for (answer, words) in [
        (&[b'1'; 4096][..], "neither `OK` nor `ERR`"),
        (b"HTTP/1.1 400 Bad Request\r\n", "neither `OK` nor `ERR`"),
        (b"OK \x1b[2J\n", "neither `OK` nor `ERR`"),
        (&[b' '; 1], "neither `OK` nor `ERR`"),
        (
            b"ERR no listener\n",
            "its VMM's socket answered: no listener",
        ),
    ] {
        let vm = Vm::new("firecracker");
        vmm(&vm.path(), move |mut stream| {
            let _ = stream.write_all(answer);
            // Held open: the link does not wait for the end.
            let _ = stream.read(&mut [0]);
        });
        vm.is_up();
        let cause = reset(&vm);
        assert!(cause.contains(words), "{cause}");
        vm.world.has_connections(0);
    }
    let vm = Vm::new("firecracker");
    vmm(&vm.path(), |mut stream| {
        let _ = stream.write_all(b"OK ");
        while stream.write_all(&[b'7'; 4096]).is_ok() {}
    });
    vm.is_up();
    let cause = reset(&vm);
    assert!(cause.contains("has no newline"), "{cause}");
}

#[test]
fn an_answer_before_the_request_is_not_taken_for_one() {
    let vm = Vm::new("firecracker");
    let listener = UnixListener::bind(vm.path()).expect("a socket");
    vm.is_up();
    // The kernel has accepted the connection that the link makes next; this end speaks at once.
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connect");
            let _ = stream.write_all(b"OK 1\n");
            held.push(stream);
        }
    });
    // Whether the bytes are there before the request is a race, so either outcome is right, and none hangs.
    for _ in 0..20 {
        match vm.world.connect_to("web", PORT) {
            Ok(_) => {}
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("before the request"), "{text}");
            }
        }
    }
}

#[test]
fn a_vmm_that_hangs_delays_neither_its_other_connections_nor_other_vms() {
    let vm = Vm::new("firecracker");
    let _listener = UnixListener::bind(vm.path()).expect("a socket");
    vm.is_up();
    let hanging: Vec<_> = (0..20)
        .map(|_| {
            let host = vm.world.host();
            std::thread::spawn(move || {
                let options = host.options();
                let options = options.timeout(std::time::Duration::from_secs(2));
                options.connect(("web", PORT)).is_err()
            })
        })
        .collect();
    let listener = vm.world.listen_on(PORT);
    vm.has_socket(PORT);
    let _inside = UnixStream::connect(vm.socket(PORT)).expect("connected");
    let _outside = accept(&listener);
    vm.world.later_exchange();
    for connect in hanging {
        assert!(connect.join().expect("no panic"));
    }
    vm.world.has_connections(1);
}

#[test]
fn a_symbolic_link_is_neither_connected_to_nor_removed() {
    let vm = Vm::new("firecracker");
    let elsewhere = vm.folder.join("another");
    let other = UnixListener::bind(&elsewhere).expect("a socket");
    symlink(&elsewhere, vm.path()).expect("a link");
    vm.has_problem("symbolic link");
    let refusal = refused(vm.world.connect_to("web", PORT));
    assert_eq!(refusal, Refusal::PartitionOff);
    other.set_nonblocking(true).expect("a mode");
    assert!(other.accept().is_err(), "nobody has connected");
    // The same at the place of a host's socket.
    fs::remove_file(vm.path()).expect("removed");
    let victim = vm.folder.join("victim");
    fs::write(&victim, "precious").expect("a file");
    symlink(&victim, vm.socket(PORT)).expect("a link");
    fs::write(vm.socket(PORT + 1), "precious").expect("a file");
    vm.world.register(PORT + 1);
    vmm(&vm.path(), drop);
    vm.is_up();
    let _listeners = [vm.world.listen_on(PORT), vm.world.listen_on(PORT + 1)];
    vm.has_problem("(and 1 more)");
    assert_eq!(fs::read_to_string(&victim).expect("a file"), "precious");
    assert!(vm.socket(PORT).symlink_metadata().expect("it").is_symlink());
    assert!(vm.socket(PORT + 1).is_file());
    fs::remove_file(vm.socket(PORT)).expect("removed");
    fs::remove_file(vm.socket(PORT + 1)).expect("removed");
    vm.has_socket(PORT);
    vm.has_no_problem();
}

#[test]
fn a_folder_behind_a_symbolic_link_is_a_problem() {
    let vm = Vm::new("firecracker");
    fs::create_dir(vm.folder.join("real")).expect("a folder");
    symlink(vm.folder.join("real"), vm.folder.join("link")).expect("a link");
    let path = vm.folder.join("link/v.sock");
    let handle = vm.world.handle();
    let added = handle.add_vm(crate::vm::new_vm("other", "firecracker", &path, None));
    added.expect("added");
    vm.has_problem("leads through a symbolic link");
}

#[test]
fn a_flood_of_connects_is_answered_and_leaves_nothing_behind() {
    const CONNECTS: usize = 3000;
    let vm = Vm::new("firecracker");
    vmm(&vm.path(), drop);
    vm.is_up();
    let listener = vm.world.listen_on(PORT);
    vm.has_socket(PORT);
    let socket = vm.socket(PORT);
    let flood = std::thread::spawn(move || {
        for _ in 0..CONNECTS {
            // Each is refused or waits in the backlog of the host's listener.
            let _ = UnixStream::connect(&socket);
        }
    });
    flood.join().expect("no panic");
    vm.world.later_exchange();
    drop(listener);
    vm.world.has_connections(0);
    let listener = vm.world.listen_on(PORT);
    vm.has_socket(PORT);
    let _inside = UnixStream::connect(vm.socket(PORT)).expect("connected");
    accept(&listener);
}

#[test]
fn a_closed_connect_is_forgotten_and_a_late_answer_harms_nobody() {
    let vm = Vm::new("firecracker");
    let (accepted, streams) = std::sync::mpsc::channel();
    vmm(&vm.path(), move |stream| drop(accepted.send(stream)));
    vm.is_up();
    let options = vm.world.host().options();
    let options = options.timeout(std::time::Duration::from_millis(200));
    assert!(options.connect(("web", PORT)).is_err());
    let mut late = streams.recv_timeout(TIMEOUT).expect("a line");
    late.set_read_timeout(Some(TIMEOUT)).expect("a bound");
    assert_eq!(late.read(&mut [0]).expect("an end"), 0);
    assert!(late.write_all(b"OK 1\n").is_err() || late.write_all(b"x").is_err());
    vm.world.later_exchange();
}
