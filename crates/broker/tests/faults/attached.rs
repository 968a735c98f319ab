//! Processes that bring their own socket. Covers the order of connecting it, filler, refusals, the ends of data,
//! processes that do not connect it or are killed, violations and leaks.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use hvsock::{HvStream, VmId};
use hvsock_endpoint::{BrokerMessage, ClientMessage, Transports};
use hvsock_fabric::Refusal;
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_testkit::TempFolder;
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{PartitionEndpoint, World, accept};

use crate::child::BrokerProcess;
use crate::raw::{self, Raw};

const PORT: u32 = 930;
/// The descriptors of what a broker makes ahead: two sockets for the next processes, each with what its process connects
/// to, and the socket pairs of two connections.
const AHEAD: usize = 2 * 2 + 2 * 4;
const HANG_UP: PollFlags = PollFlags::HUP;

/// What of `wanted` and of a hang-up a socket shows now.
fn shows(socket: impl AsFd, wanted: PollFlags) -> PollFlags {
    let mut fds = [PollFd::new(&socket, wanted)];
    poll::wait(&mut fds, Some(Instant::now())).expect("a socket");
    fds[0].revents()
}

#[track_caller]
fn hangs_up(socket: impl AsFd) {
    eventually("the socket does not hang up", || {
        shows(&socket, PollFlags::IN).contains(HANG_UP)
    });
}

#[track_caller]
fn reads(mut from: impl Read, wanted: &[u8]) {
    let mut bytes = vec![0; wanted.len()];
    from.read_exact(&mut bytes).expect("the bytes");
    assert_eq!(bytes, wanted);
}

/// A listener, and an established connection to it whose process has connected its socket.
struct Pair {
    control: Raw,
    program: UnixStream,
    peer: HvStream,
}

/// Connects a program's socket, before the request or after the answer.
#[track_caller]
fn pair(from: &PartitionEndpoint, vm: VmId, listener: &hvsock::HvListener, before: bool) -> Pair {
    let control = Raw::new(from);
    let attached = control.attach(0);
    let early = before.then(|| attached.connect().expect("connected"));
    control.send_attached(vm, PORT);
    control.recv_attached();
    let program = early.unwrap_or_else(|| attached.connect().expect("connected"));
    program.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    let peer = accept(listener);
    Pair {
        control,
        program,
        peer,
    }
}

#[test]
fn a_program_keeps_its_own_socket_whether_it_is_connected_before_the_request_or_after_the_answer() {
    let world = World::new();
    let (host, web) = (world.host(), world.container("web", None));
    world.register(PORT);
    let inner = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let outer = host.listen(VmId::CHILDREN, PORT).unwrap();
    for (from, vm, listener) in [
        (&host, VmId::LOOPBACK, &inner),
        (&web, VmId::PARENT, &outer),
    ] {
        for before in [true, false] {
            let mut pair = pair(from, vm, listener, before);
            assert_eq!(pair.peer.transport(), hvsock::Transport::Descriptor);
            assert_eq!(world.connection().transport, "attached");
            // More than any buffer holds, each way.
            let whole: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
            std::thread::scope(|scope| {
                let mut one = pair.program.try_clone().unwrap();
                scope.spawn({
                    let whole = &whole;
                    move || one.write_all(whole).unwrap()
                });
                reads(&mut pair.peer, &whole);
            });
            pair.peer.write_all(b"answer").unwrap();
            reads(&pair.program, b"answer");
            drop(pair);
            world.has_connections(0);
        }
    }
}

#[test]
fn a_nonblocking_program_finds_its_socket_writable_once_it_is_connected_and_filler_is_no_data() {
    let world = World::new();
    let host = world.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    for filler in [1, 1024, 4096] {
        let control = Raw::new(&host);
        let mut program = control.attach(filler).connect().unwrap();
        program.set_nonblocking(true).unwrap();
        hvsock_sys::stream::set_send_buffer(&program, 1).unwrap();
        let bytes = vec![0x5a; filler as usize];
        if program.write(&bytes).unwrap_or(0) < bytes.len() {
            // Not even a small one fits into the smallest buffer of some kernels.
            hvsock_sys::stream::set_send_buffer(&program, 64 * 1024).unwrap();
            continue;
        }
        let was_writable = shows(&program, PollFlags::OUT).contains(PollFlags::OUT);
        control.send_attached(VmId::LOOPBACK, PORT);
        control.recv_attached();
        let mut peer = accept(&listener);
        eventually("the socket is not writable", || {
            shows(&program, PollFlags::OUT).contains(PollFlags::OUT)
        });
        assert!(filler < 1024 || !was_writable, "{filler}");
        program.write_all(b"data").unwrap();
        program.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        peer.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"data");
    }
}

#[test]
fn what_the_peer_sends_before_the_program_connects_its_socket_arrives() {
    let world = World::new();
    let host = world.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let control = Raw::new(&host);
    let attached = control.attach(0);
    control.send_attached(VmId::LOOPBACK, PORT);
    control.recv_attached();
    let mut peer = accept(&listener);
    peer.write_all(b"early").unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    // A program that was told may go on alone.
    let mut program = attached.connect().unwrap();
    drop((attached, control));
    let mut all = Vec::new();
    program.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"early");
    program.write_all(b"late").unwrap();
    reads(&mut peer, b"late");
}

#[test]
fn a_connection_whose_program_never_connects_its_socket_is_reset_at_both_ends() {
    let world = World::new();
    let host = world.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    for is_killed in [false, true] {
        let mut control = Some(Raw::new(&host));
        let raw = control.as_ref().unwrap();
        let attached = raw.attach(0);
        raw.send_attached(VmId::LOOPBACK, PORT);
        raw.recv_attached();
        let mut peer = accept(&listener);
        let started = Instant::now();
        if is_killed {
            control = None;
        }
        let error = peer.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert!(
            error.to_string().contains("did not connect its socket"),
            "{error}"
        );
        assert!(started.elapsed() < TIMEOUT);
        if let Some(control) = control {
            let refusal = control.recv_reset();
            assert!(matches!(refusal, Refusal::Reset { .. }), "{refusal}");
        }
        let error = attached.connect().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        world.has_connections(0);
    }
}

#[test]
fn an_operator_closes_a_connection_whose_program_has_not_connected_its_socket() {
    let world = World::new();
    let host = world.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let control = Raw::new(&host);
    let _attached = control.attach(0);
    control.send_attached(VmId::LOOPBACK, PORT);
    control.recv_attached();
    let mut peer = accept(&listener);
    world
        .handle()
        .close_connection(world.connection().id)
        .unwrap();
    let error = peer.read(&mut [0]).unwrap_err();
    assert!(error.to_string().contains("an operator closed"), "{error}");
    assert!(
        control
            .recv_reset()
            .to_string()
            .contains("an operator closed")
    );
    world.has_connections(0);
}

#[test]
fn a_refusal_comes_before_the_programs_socket_hangs_up() {
    let world = World::new();
    let host = world.host();
    let control = Raw::new(&host);
    let program = control.attach(0).connect().unwrap();
    control.send_attached(VmId::LOOPBACK, PORT);
    hangs_up(&program);
    assert!(!control.is_silent());
    assert_eq!(control.recv_refused(), Refusal::NoListener);
    // One that blocks has not connected its socket, and can try again.
    let control = Raw::new(&host);
    let attached = control.attach(0);
    control.send_attached(VmId::LOOPBACK, PORT);
    assert_eq!(control.recv_refused(), Refusal::NoListener);
    // The refusal comes first, so its socket may still be there for a moment.
    match attached.connect() {
        Ok(program) => hangs_up(&program),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionRefused),
    }
}

#[test]
fn a_program_whose_client_ends_before_the_answer_hangs_up() {
    let world = World::new();
    let control = Raw::new(&world.host());
    let attached = control.attach(0);
    let program = attached.connect().unwrap();
    assert!(!shows(&program, PollFlags::IN).contains(HANG_UP));
    drop(control);
    hangs_up(&program);
    match attached.connect() {
        Ok(program) => hangs_up(&program),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionRefused),
    }
}

#[test]
fn only_one_of_the_sockets_that_connect_is_taken() {
    let world = World::new();
    let host = world.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let control = Raw::new(&host);
    let attached = control.attach(0);
    let mut program = attached.connect().unwrap();
    let second = std::thread::spawn(move || attached.connect());
    control.send_attached(VmId::LOOPBACK, PORT);
    control.recv_attached();
    let mut peer = accept(&listener);
    // It waits for its turn, which never comes, or finds the socket gone.
    if let Ok(second) = second.join().unwrap() {
        hangs_up(&second);
    }
    program.write_all(b"mine").unwrap();
    reads(&mut peer, b"mine");
}

#[test]
fn a_half_close_and_a_full_close_are_told_apart_each_way() {
    let world = World::new();
    let host = world.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let reading = PollFlags::IN | PollFlags::RDHUP;

    // The program half-closes: its peer sends on.
    let raw_peer = |control: &Raw| {
        let raw = Raw::new(&host);
        raw.send(&raw::listen_by(
            VmId::LOOPBACK,
            PORT + 1,
            4,
            Transports::DESCRIPTOR,
            true,
        ));
        raw.recv();
        control.send_attached(VmId::LOOPBACK, PORT + 1);
        control.recv_attached();
        let (_, data, peer_control) = raw.recv_incoming();
        (raw, UnixStream::from(data), peer_control)
    };
    let control = Raw::new(&host);
    let mut program = control.attach(0).connect().unwrap();
    let (_listening, mut peer, _peer_control) = raw_peer(&control);
    program.shutdown(Shutdown::Write).unwrap();
    eventually("the half-close does not arrive", || {
        shows(&peer, reading).contains(PollFlags::RDHUP)
    });
    assert!(!shows(&peer, reading).contains(HANG_UP));
    peer.write_all(b"more").unwrap();
    reads(&mut program, b"more");
    // It closes.
    drop(program);
    hangs_up(&peer);

    // The peer half-closes, then closes.
    let mut both = pair(&host, VmId::LOOPBACK, &listener, true);
    both.peer.shutdown(Shutdown::Write).unwrap();
    eventually("the half-close does not arrive", || {
        shows(&both.program, reading).contains(PollFlags::RDHUP)
    });
    assert!(!shows(&both.program, reading).contains(HANG_UP));
    both.program.write_all(b"more").unwrap();
    reads(&mut both.peer, b"more");
    drop(both.peer);
    hangs_up(&both.program);
    let error = both.program.write_all(b"nobody").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    drop(both.control);

    // Each closes at once.
    let both = pair(&host, VmId::LOOPBACK, &listener, false);
    drop(both.peer);
    hangs_up(&both.program);
    let mut both = pair(&host, VmId::LOOPBACK, &listener, false);
    drop((both.control, both.program));
    assert_eq!(both.peer.read(&mut [0]).unwrap(), 0);
    world.has_connections(0);
}

#[test]
fn a_reset_reaches_the_control_connection_before_the_program_sees_its_socket_close() {
    let world = World::new();
    let host = world.host();
    let listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let both = pair(&host, VmId::LOOPBACK, &listener, true);
    world
        .handle()
        .close_connection(world.connection().id)
        .unwrap();
    hangs_up(&both.program);
    assert!(!both.control.is_silent());
    assert!(
        both.control
            .recv_reset()
            .to_string()
            .contains("an operator closed")
    );
}

#[test]
fn a_listener_with_rings_and_arenas_gets_a_descriptor_and_one_without_descriptors_no_connection() {
    let world = World::new();
    let host = world.host();
    let raw = Raw::new(&host);
    let offered =
        Transports::RING | Transports::DESCRIPTOR | Transports::ARENA | Transports::DIRECT;
    raw.send(&raw::listen_by(VmId::LOOPBACK, PORT, 4, offered, false));
    raw.recv();
    let control = Raw::new(&host);
    let mut program = control.attach(0).connect().unwrap();
    control.send_attached(VmId::LOOPBACK, PORT);
    control.recv_attached();
    let (incoming, data, _control) = raw.recv_incoming();
    assert_eq!(incoming.transport, hvsock_endpoint::Transport::Descriptor);
    program.write_all(b"whole").unwrap();
    reads(UnixStream::from(data), b"whole");

    for offered in [Transports::RING, Transports::ATTACHED] {
        let raw = Raw::new(&host);
        raw.send(&raw::listen_by(VmId::LOOPBACK, PORT + 1, 4, offered, false));
        raw.recv();
        let control = Raw::new(&host);
        let program = control.attach(0).connect().unwrap();
        control.send_attached(VmId::LOOPBACK, PORT + 1);
        assert_eq!(control.recv_refused(), Refusal::NotSupported);
        hangs_up(&program);
        assert!(raw.is_silent());
    }
}

#[test]
fn requests_that_do_not_fit_an_attached_socket_are_violations() {
    let world = World::new();
    let host = world.host();
    let _listener = host.listen(VmId::LOOPBACK, PORT).unwrap();
    let is_violation = |refusal: Refusal, what: &str| {
        let text = refusal.to_string();
        assert!(
            text.contains("endpoint protocol") && text.contains(what),
            "{text}"
        );
    };
    let with = |transports| raw::connect_by(VmId::LOOPBACK, PORT, transports, false);
    let raw = Raw::new(&host);
    raw.send(&with(Transports::ATTACHED));
    is_violation(raw.recv_refused(), "without ATTACH");
    let raw = Raw::new(&host);
    let _first = raw.attach(0);
    raw.send(&ClientMessage::Attach { filler: 0 });
    is_violation(raw.recv_refused(), "second ATTACH");
    for transports in [
        Transports::DESCRIPTOR,
        Transports::ATTACHED | Transports::DESCRIPTOR,
        Transports::ATTACHED | Transports::RING,
    ] {
        let raw = Raw::new(&host);
        let program = raw.attach(0).connect().unwrap();
        raw.send(&with(transports));
        is_violation(raw.recv_refused(), "attached socket");
        hangs_up(&program);
    }
    // Less filler than announced.
    let raw = Raw::new(&host);
    let mut program = raw.attach(8).connect().unwrap();
    program.write_all(b"seven--").unwrap();
    raw.send_attached(VmId::LOOPBACK, PORT);
    raw.recv_attached();
    is_violation(raw.recv_reset(), "filler");
    hangs_up(&program);
    world.has_connections(0);
}

#[test]
fn nobody_else_reaches_the_sockets_and_nothing_of_them_is_left() {
    let folder = TempFolder::new();
    let broker = BrokerProcess::start(folder.path(), None);
    let host = broker.host();
    let attached = folder.path().join("attached");
    let mode = std::fs::metadata(&attached).unwrap().mode();
    assert_eq!(mode & 0o777, 0o700);
    let listener = host
        .listen_without_arenas(VmId::LOOPBACK, PORT, 128)
        .unwrap();
    drop(pair(&host, VmId::LOOPBACK, &listener, true));
    let before = broker.descriptors();
    for round in 0..40 {
        match round % 4 {
            0 => drop(pair(&host, VmId::LOOPBACK, &listener, round % 8 == 0)),
            1 => drop(Raw::new(&host).attach(0)),
            2 => {
                let control = Raw::new(&host);
                let program = control.attach(0).connect().unwrap();
                control.send_attached(VmId::LOOPBACK, PORT + 1);
                assert_eq!(control.recv_refused(), Refusal::NoListener);
                hangs_up(&program);
            }
            _ => {
                let control = Raw::new(&host);
                let path = control.attach(0);
                control.send_attached(VmId::LOOPBACK, PORT);
                control.recv_attached();
                drop((control, path, accept(&listener)));
            }
        }
        // A socket that is made ahead has a name for a moment.
        eventually("a name stays", || {
            std::fs::read_dir(&attached).unwrap().count() == 0
        });
    }
    eventually("descriptors have leaked", || {
        broker.descriptors() <= before + AHEAD
    });
}

#[test]
fn sockets_that_nobody_connects_leave_descriptors_for_others() {
    let folder = TempFolder::new();
    let broker = BrokerProcess::start(folder.path(), Some(160));
    let host = broker.host();
    let listener = host
        .listen_without_arenas(VmId::LOOPBACK, PORT, 128)
        .unwrap();
    let before = broker.descriptors();
    let mut held = Vec::new();
    for _ in 0..300 {
        let raw = Raw::new(&host);
        raw.send(&ClientMessage::Attach { filler: 0 });
        match raw.recv() {
            BrokerMessage::Attachable => {}
            BrokerMessage::Refused(refused) => {
                let refusal = Refusal::from_wire(refused.code, &refused.detail);
                assert!(matches!(refusal, Refusal::LimitReached { .. }), "{refusal}");
            }
            other => panic!("{other:?}"),
        }
        held.push(raw);
    }
    // The oldest have made place.
    held.truncate(150);
    drop(pair(&host, VmId::LOOPBACK, &listener, false));
    drop(held);
    eventually("descriptors are not given back", || {
        broker.descriptors() <= before + 4 + AHEAD
    });
    drop(pair(&host, VmId::LOOPBACK, &listener, true));
}
