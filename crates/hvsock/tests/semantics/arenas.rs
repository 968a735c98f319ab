//! Connections in an arena.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use hvsock::{HvStream, Interest, Refusal, Transport, refusal_of};
use hvsock_endpoint::{BrokerMessage, ClientMessage, Refused, StreamReset, Transport as Wire};
use hvsock_ring::{Grant, RingSide, RingSize};
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_testkit::alone;
use hvsock_testkit::wait::eventually;

use crate::arena_broker::{ADDRESS, Endpoints, FIRST_ID, LONG, Pair};

const SHORT: Duration = Duration::from_millis(50);

/// Whether a descriptor is readable within `time`.
fn readable(fd: impl AsFd, time: Duration) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll::wait(&mut fds, Some(Instant::now() + time)).unwrap()
}

fn closed_by_operator() -> Refused {
    Refused {
        code: 2,
        errno: 1,
        detail: "enabled = false".into(),
    }
}

/// The error of reading, which is a reset.
fn reset(stream: &HvStream) -> std::io::Error {
    let mut stream = stream;
    let error = stream.read(&mut [0; 8]).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    error
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn the_second_connect_takes_an_arena_and_later_ones_need_no_broker() {
    if !alone() {
        return;
    }
    let pair = Pair::new(64, 16);
    assert_eq!(pair.arena.client.recv_all(), []);
    let before = descriptors();
    let streams: Vec<_> = (0..20).map(|_| pair.pair()).collect();
    assert_eq!(descriptors(), before, "a connection has no descriptor");
    for (number, (stream, accepted)) in (2..).zip(&streams) {
        assert_eq!(stream.transport(), Transport::Ring);
        for end in [stream, accepted] {
            assert_eq!(end.connection_id(), FIRST_ID + number);
            assert_eq!(end.local_addr().unwrap(), ADDRESS);
            assert_eq!(end.peer_addr().unwrap(), ADDRESS);
            assert!(end.ring_stats().is_some());
        }
        assert!(stream.peer().is_none());
        let peer = accepted.peer().unwrap();
        assert_eq!((peer.partition(), peer.uid()), ("web", Some(1000)));
        (&*stream).write_all(&[number as u8]).unwrap();
    }
    for (number, (_, accepted)) in (2..).zip(&streams) {
        let mut byte = [0];
        (&*accepted).read_exact(&mut byte).unwrap();
        assert_eq!(byte, [number as u8]);
    }
    assert!(!pair.endpoints.has_client());
}

#[test]
fn other_connects_go_to_the_broker() {
    let pair = Pair::new(8, 8);
    let special = [
        pair.endpoints.options().shared_memory(false),
        pair.endpoints.options().raw_fd(true),
        pair.endpoints.options().own_memory(true),
        pair.endpoints.options().describe("exec", "true"),
        pair.endpoints.options().connected_suspend(true),
        pair.endpoints.options().ring_size(8192),
        pair.endpoints.options().container_passthru(true),
        pair.endpoints.options().high_vtl(true),
    ];
    for options in special {
        let connect = || options.connect(ADDRESS);
        let (result, ()) = pair.endpoints.with_client(connect, || {
            let client = pair.endpoints.client();
            let request = loop {
                match client.recv() {
                    ClientMessage::Connect(request) => break request,
                    ClientMessage::SetOption { .. } | ClientMessage::Describe(_) => {}
                    message => panic!("{message:?}"),
                }
            };
            assert!(!request.transports.contains(Wire::Arena));
            client.send(&BrokerMessage::Refused(closed_by_operator()), &[]);
        });
        assert!(refusal_of(&result.unwrap_err()).is_some());
    }
    // Explaining is no connect.
    let options = pair.endpoints.options();
    let explain = || options.explain(ADDRESS).unwrap();
    let (explanation, ()) = pair.endpoints.with_client(explain, || {
        let (client, transports) = pair.endpoints.connecting();
        assert!(!transports.contains(Wire::Arena));
        client.send(&BrokerMessage::Explained(closed_by_operator()), &[]);
    });
    assert!(!explanation.would_succeed());
    drop(pair.pair());
}

#[test]
fn a_peer_that_clears_the_reset_bit_does_not_keep_a_connection_that_the_broker_closes() {
    let pair = Pair::new(8, 8);
    let (stream, accepted) = pair.pair();
    let id = pair.arena.find(stream.connection_id());
    let message = BrokerMessage::StreamReset(StreamReset {
        slot: id.slot,
        seq: id.seq,
        reason: closed_by_operator(),
    });
    // The bit is cleared before anybody has seen it.
    pair.arena.server.send(&message, &[]);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut byte = [0];
            loop {
                if let Err(error) = (&accepted).read_exact(&mut byte) {
                    return error;
                }
            }
        });
        while !reader.is_finished() {
            let _ = (&stream).write(b"x");
            thread::sleep(Duration::from_millis(1));
        }
        let error = reader.join().unwrap();
        assert!(
            matches!(refusal_of(&error), Some(Refusal::Disabled { .. })),
            "{error}"
        );
    });
}

#[test]
fn a_revoked_arena_leaves_the_answer_to_the_broker() {
    let pair = Pair::new(8, 8);
    let established = pair.pair();
    pair.arena.monitor.set_grant(Grant::Revoked);
    let (result, ()) = pair.endpoints.with_client(
        || pair.connect(),
        || {
            let (client, transports) = pair.endpoints.connecting();
            assert!(transports.contains(Wire::Arena));
            client.send(&BrokerMessage::Refused(closed_by_operator()), &[]);
        },
    );
    let error = result.unwrap_err();
    assert!(
        matches!(refusal_of(&error), Some(Refusal::Disabled { .. })),
        "{error}"
    );
    // What is established stays.
    (&established.0).write_all(b"still").unwrap();
    (&established.1).read_exact(&mut [0; 5]).unwrap();
    pair.arena.monitor.set_grant(Grant::Granted);
    drop(pair.pair());
    assert!(!pair.endpoints.has_client());
}

#[test]
fn an_arena_that_is_revoked_when_it_arrives_is_no_answer() {
    let endpoints = Endpoints::new();
    let (listener, listening) = endpoints.listen(8);
    let options = endpoints.options();
    drop(endpoints.connect_with_own_memory(&options, &listener, &listening));
    let connect = || options.connect(ADDRESS);
    let (result, arena) = endpoints.with_client(connect, || {
        let (client, _) = endpoints.connecting();
        // The process finds the grant as it is when it opens the connection.
        let limits = (4, 0, RingSize::MIN);
        let arena = endpoints.grant_to(client, &listening, 8, limits);
        let (client, transports) = endpoints.connecting();
        assert!(!transports.contains(Wire::Arena));
        client.send(&BrokerMessage::Refused(closed_by_operator()), &[]);
        arena
    });
    assert!(refusal_of(&result.unwrap_err()).is_some());
    drop(arena);
}

#[test]
fn a_full_backlog_is_refused_without_the_broker() {
    let pair = Pair::new(16, 2);
    let waiting: Vec<_> = (0..2).map(|_| pair.connect().unwrap()).collect();
    let error = pair.connect().unwrap_err();
    assert_eq!(refusal_of(&error), Some(&Refusal::BacklogFull), "{error}");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    drop(pair.accept());
    drop(pair.connect().unwrap());
    assert!(!pair.endpoints.has_client());
    drop(waiting);
}

#[test]
fn slots_are_asked_for_before_they_run_out_and_then_another_arena() {
    let endpoints = Endpoints::new();
    let (listener, listening) = endpoints.listen(8);
    let options = endpoints.options();
    drop(endpoints.connect_with_own_memory(&options, &listener, &listening));
    let limits = (8, 4, RingSize::MIN);
    let (first, arena) = endpoints.grant(&options, &listener, &listening, limits);
    let connect = || {
        let stream = options.connect(ADDRESS).unwrap();
        (stream, listener.accept_timeout(LONG).unwrap().0)
    };
    let mut streams = vec![connect(), connect()];
    assert_eq!(arena.client.recv_all(), []);
    streams.push(connect());
    assert_eq!(arena.client.recv_all(), [ClientMessage::ArenaGrow]);
    arena.monitor.set_granted_slots(8);
    streams.extend((0..4).map(|_| connect()));
    assert_eq!(arena.client.recv_all(), []);
    assert!(!endpoints.has_client());
    let (second, other) = endpoints.grant(&options, &listener, &listening, limits);
    // A slot of the first one is free again.
    drop(streams.pop());
    streams.push(connect());
    assert_eq!(arena.monitor.scan().len(), 8);
    assert_eq!(other.monitor.scan().len(), 1);
    drop((first, second));
}

#[test]
fn the_broker_is_told_of_changes_once_for_each_request() {
    let pair = Pair::new(8, 8);
    let changed = [ClientMessage::ArenaChanged];
    let told = || {
        let mut all = pair.arena.client.recv_all();
        all.extend(pair.arena.server.recv_all());
        all
    };
    let request = || {
        eventually("nothing changes", || {
            pair.arena.monitor.scan();
            pair.arena.monitor.request_changes()
        });
    };
    assert_eq!(told(), []);
    request();
    let (stream, accepted) = pair.pair();
    assert_eq!(told(), changed);
    request();
    drop(stream);
    assert_eq!(told(), changed);
    request();
    drop(accepted);
    assert_eq!(told(), changed);
}

#[test]
fn one_connection_is_closed_with_its_reason_and_the_others_stay() {
    let pair = Pair::new(8, 8);
    let (closed, other) = (pair.pair(), pair.pair());
    closed.0.set_read_timeout(None).unwrap();
    thread::scope(|scope| {
        let parked = scope.spawn(|| reset(&closed.0));
        thread::sleep(SHORT);
        pair.arena
            .close(closed.0.connection_id(), closed_by_operator());
        for error in [parked.join().unwrap(), reset(&closed.1)] {
            let refusal = refusal_of(&error);
            assert!(matches!(refusal, Some(Refusal::Disabled { .. })), "{error}");
        }
    });
    for end in [&closed.0, &closed.1] {
        let error = end.take_error().unwrap().expect("an error");
        assert!(refusal_of(&error).is_some(), "{error}");
        let mut end = end;
        assert_eq!(
            end.write(b"x").unwrap_err().kind(),
            ErrorKind::ConnectionReset
        );
    }
    (&other.0).write_all(b"x").unwrap();
    (&other.1).read_exact(&mut [0]).unwrap();
    assert!(other.0.take_error().unwrap().is_none());
    // The slot's next connection is another one.
    drop(closed);
    let (next, accepted) = pair.pair();
    (&next).write_all(b"y").unwrap();
    (&accepted).read_exact(&mut [0]).unwrap();
    assert!(next.take_error().unwrap().is_none());
}

#[test]
fn a_dead_broker_resets_every_connection() {
    let pair = Pair::new(8, 8);
    let streams = [pair.pair(), pair.pair()];
    let watched = pair.pair();
    watched.0.set_nonblocking(true).unwrap();
    assert!(!readable(&watched.0, Duration::ZERO));
    thread::scope(|scope| {
        let ends = streams.iter().flat_map(|(a, b)| [a, b]);
        let parked: Vec<_> = ends
            .map(|end| {
                end.set_read_timeout(None).unwrap();
                scope.spawn(|| reset(end))
            })
            .collect();
        thread::sleep(SHORT);
        let Pair { arena, .. } = pair;
        drop(arena);
        for error in parked.into_iter().map(|thread| thread.join().unwrap()) {
            assert!(
                error.to_string().contains("the broker went away"),
                "{error}"
            );
        }
    });
    assert!(readable(&watched.0, LONG));
    reset(&watched.0);
}

#[test]
fn the_end_of_the_peers_process_is_a_reset_and_a_clean_end_stays_one() {
    for side in RingSide::BOTH {
        let pair = Pair::new(8, 8);
        let (open, ended) = (pair.pair(), pair.pair());
        let [(survivor, gone), (reader, finished)] =
            [open, ended].map(|(client, server)| match side {
                RingSide::First => (server, client),
                RingSide::Second => (client, server),
            });
        (&finished).write_all(b"all").unwrap();
        finished.shutdown(Shutdown::Write).unwrap();
        survivor.set_read_timeout(None).unwrap();
        thread::scope(|scope| {
            let parked = scope.spawn(|| reset(&survivor));
            thread::sleep(SHORT);
            pair.arena.process_is_gone(side);
            let text = parked.join().unwrap().to_string();
            assert!(text.contains("the process at the other end"), "{text}");
        });
        let mut text = String::new();
        (&reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "all");
        // This process is not gone. Its own ends read what the broker has said of them.
        drop((gone, finished));
    }
}

#[test]
fn a_descriptor_is_made_for_those_who_ask_and_signals_what_happens() {
    if !alone() {
        return;
    }
    let pair = Pair::new(8, 8);
    let (near, far) = pair.pair();
    let other = pair.pair();
    near.set_nonblocking(true).unwrap();
    let would_block = || (&near).read(&mut [0; 8]).unwrap_err().kind() == ErrorKind::WouldBlock;
    // Before the first read, after one in vain, and after data.
    assert!(!readable(&near, Duration::ZERO));
    (&far).write_all(b"1").unwrap();
    assert!(readable(&near, LONG));
    assert_eq!((&near).read(&mut [0; 8]).unwrap(), 1);
    assert!(would_block());
    assert!(!readable(&near, SHORT));
    (&other.1).write_all(b"to another").unwrap();
    assert!(!readable(&near, SHORT));
    (&far).write_all(b"2").unwrap();
    assert!(readable(&near, LONG));
    assert_eq!((&near).read(&mut [0; 8]).unwrap(), 1);
    assert!(would_block());
    // The end.
    far.shutdown(Shutdown::Write).unwrap();
    assert!(readable(&near, LONG));
    assert_eq!((&near).read(&mut [0; 8]).unwrap(), 0);
    // Free space.
    let full = loop {
        match (&near).write(&[0; 8192]) {
            Ok(count) => assert!(count > 0),
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
    assert!(!readable(&near, SHORT));
    far.set_nonblocking(true).unwrap();
    while (&far).read(&mut [0; 65_536]).is_ok() {}
    assert!(readable(&near, LONG));
    assert!((&near).write(&[0; 8192]).is_ok());
    // The next connection of the slot has a descriptor of its own.
    let number = descriptors();
    drop((near, far));
    assert_eq!(descriptors(), number - 1);
    let (near, far) = pair.pair();
    near.set_nonblocking(true).unwrap();
    assert!(!readable(&near, Duration::ZERO));
    (&far).write_all(b"3").unwrap();
    assert!(readable(&near, LONG));
}

#[test]
fn a_slots_next_connection_is_not_readable_for_what_happened_to_the_previous_one() {
    let pair = Pair::new(8, 8);
    for _ in 0..2 {
        let (near, far) = pair.pair();
        near.set_nonblocking(true).unwrap();
        assert!(!readable(&near, SHORT));
        // The near end does not watch any more when the far one notifies it.
        drop(near);
        drop(far);
    }
}

#[test]
fn data_that_arrived_before_somebody_asked_for_the_descriptor_is_signalled() {
    let pair = Pair::new(8, 8);
    for tries in [0, 1] {
        let (near, far) = pair.pair();
        near.set_nonblocking(true).unwrap();
        for _ in 0..tries {
            assert!((&near).read(&mut [0]).is_err());
        }
        (&far).write_all(b"early").unwrap();
        assert!(readable(&near, Duration::ZERO), "{tries}");
        (&near).read_exact(&mut [0; 5]).unwrap();
        assert!((&near).read(&mut [0]).is_err());
        assert!(!readable(&near, Duration::ZERO), "{tries}");
    }
}

#[test]
fn a_thread_that_has_borrowed_bytes_can_wait_for_the_other_direction() {
    let pair = Pair::with_ring(8, 8, RingSize::MIN);
    let (near, far) = pair.pair();
    near.set_nonblocking(true).unwrap();
    assert!(!readable(&near, Duration::ZERO));
    (&far).write_all(b"borrowed").unwrap();
    assert!(readable(&near, LONG));
    let bytes = near.fill().unwrap().unwrap();
    let full = loop {
        match near.try_write(&[0; 1000]) {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
    assert_eq!(
        (&near).write(&[0]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    bytes.consume(8).unwrap();
}

#[test]
fn a_shutdown_wakes_the_threads_of_this_end() {
    let pair = Pair::new(8, 8);
    let (near, _far) = pair.pair();
    near.set_read_timeout(None).unwrap();
    thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (&near).read(&mut [0]).unwrap()))
            .collect();
        let poller = scope.spawn(|| near.poll(Interest::READABLE, Some(LONG)).unwrap());
        thread::sleep(SHORT);
        near.shutdown(Shutdown::Read).unwrap();
        for reader in readers {
            assert_eq!(reader.join().unwrap(), 0);
        }
        assert!(poller.join().unwrap().is_readable());
    });
}

#[test]
fn connected_suspend_is_told_by_the_memory() {
    let pair = Pair::new(8, 8);
    let (stream, accepted) = pair.pair();
    let keep = || {
        let id = pair.arena.find(stream.connection_id());
        let all = pair.arena.monitor.scan();
        all.iter().find(|view| view.id == id).unwrap().keep
    };
    assert_eq!(keep(), [false, false]);
    stream.set_connected_suspend(true).unwrap();
    assert_eq!(keep(), [true, false]);
    accepted.set_connected_suspend(true).unwrap();
    stream.set_connected_suspend(false).unwrap();
    assert_eq!(keep(), [false, true]);
    let socket = hvsock::HvSocket::from(pair.listener.try_clone().unwrap());
    socket
        .set_option(hvsock::SocketOption::ConnectedSuspend, 1)
        .unwrap();
    let (stream, _accepted) = pair.pair();
    let id = pair.arena.find(stream.connection_id());
    let all = pair.arena.monitor.scan();
    assert_eq!(
        all.iter().find(|view| view.id == id).unwrap().keep,
        [false, true]
    );
}

#[test]
fn nothing_is_accepted_while_the_arena_is_suspended() {
    let pair = Pair::new(8, 8);
    let waiting = pair.connect().unwrap();
    pair.arena.monitor.set_grant(Grant::Suspended);
    pair.arena.monitor.suspend_all(true);
    let start = hvsock_testkit_cpu();
    let error = pair.listener.accept_timeout(SHORT * 4).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(hvsock_testkit_cpu() - start < SHORT * 2, "it did not wait");
    thread::scope(|scope| {
        let accepting = scope.spawn(|| pair.accept());
        thread::sleep(SHORT);
        pair.arena.monitor.set_grant(Grant::Granted);
        pair.arena.monitor.suspend_all(false);
        pair.arena
            .send_both(&BrokerMessage::Suspended { on: false });
        let accepted = accepting.join().unwrap();
        (&waiting).write_all(b"x").unwrap();
        (&accepted).read_exact(&mut [0]).unwrap();
    });
}

/// The processor time of this thread.
fn hvsock_testkit_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanoseconds = stat.split(' ').next().unwrap().parse().unwrap();
    Duration::from_nanos(nanoseconds)
}

#[test]
fn a_connection_of_an_arena_converts_to_descriptors_and_serves_a_child() {
    let pair = Pair::new(8, 8);
    let (near, far) = pair.pair();
    let fds = far.into_owned_fds().unwrap();
    assert!(!readable(&fds.control, Duration::ZERO));
    let mut child = Command::new("cat")
        .stdin(Stdio::from(fds.data.try_clone().unwrap()))
        .stdout(Stdio::from(fds.data))
        .spawn()
        .unwrap();
    (&near).write_all(b"through a child").unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    (&near).read_to_string(&mut text).unwrap();
    assert_eq!(text, "through a child");
    assert!(child.wait().unwrap().success());
    // It hangs up when the connection is closed.
    assert!(readable(&fds.control, LONG));
    let (near, far) = pair.pair();
    let child = far.spawn(Command::new("cat")).unwrap();
    (&near).write_all(b"again").unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    (&near).read_to_string(&mut text).unwrap();
    assert_eq!(text, "again");
    assert!(child.wait().unwrap().success());
}

#[test]
fn an_end_may_be_dropped_in_any_order_and_its_arena_with_the_last_one() {
    let pair = Pair::new(8, 8);
    let (a, b) = pair.pair();
    let (c, d) = pair.pair();
    let clone = a.try_clone().unwrap();
    drop((b, c));
    assert_eq!((&clone).read(&mut [0]).unwrap(), 0);
    drop(a);
    assert_eq!((&d).read(&mut [0]).unwrap(), 0);
    let Pair {
        listener,
        listening,
        endpoints,
        arena,
    } = pair;
    drop(listener);
    assert!(listening.is_closed());
    // The connections keep the arena.
    assert_eq!(arena.server.recv_all(), []);
    drop(d);
    assert!(arena.server.is_closed());
    drop((clone, endpoints));
}

#[test]
fn a_listener_drops_an_arena_whose_client_is_gone_after_its_last_connection() {
    let pair = Pair::new(8, 8);
    let waiting = pair.connect().unwrap();
    (&waiting).write_all(b"left behind").unwrap();
    drop(waiting);
    pair.arena.process_is_gone(RingSide::First);
    let accepted = pair.accept();
    let mut text = String::new();
    (&accepted).read_to_string(&mut text).unwrap();
    assert_eq!(text, "left behind");
    drop(accepted);
    assert!(pair.listener.accept_timeout(SHORT).is_err());
    assert!(pair.arena.server.is_closed());
}

#[test]
fn many_threads_connect_in_one_arena() {
    let pair = Pair::new(128, 128);
    thread::scope(|scope| {
        for thread in 0..4u8 {
            let pair = &pair;
            scope.spawn(move || {
                for _ in 0..100 {
                    let stream = pair.connect().unwrap();
                    stream.set_read_timeout(Some(LONG)).unwrap();
                    (&stream).write_all(&[thread]).unwrap();
                    let mut byte = [0];
                    (&stream).read_exact(&mut byte).unwrap();
                    assert_eq!(byte, [!thread]);
                }
            });
        }
        for _ in 0..400 {
            let accepted = pair.accept();
            let mut byte = [0];
            (&accepted).read_exact(&mut byte).unwrap();
            (&accepted).write_all(&[!byte[0]]).unwrap();
        }
    });
    assert!(!pair.endpoints.has_client());
}

#[test]
fn a_replaced_endpoint_is_another_broker() {
    let pair = Pair::new(8, 8);
    drop(pair.pair());
    let path = pair.endpoints.endpoint().paths()[0].clone();
    let moved = path.with_extension("old");
    std::fs::rename(&path, &moved).unwrap();
    let other = hvsock_sys::seqpacket::listen(&path, 0o600, 4).unwrap();
    thread::scope(|scope| {
        let connecting = scope.spawn(|| pair.connect());
        let deadline = Instant::now() + LONG;
        let client = loop {
            match hvsock_sys::seqpacket::accept(&other).unwrap() {
                Some(client) => break client,
                None => assert!(Instant::now() < deadline, "it used the arena"),
            }
            thread::yield_now();
        };
        drop(client);
        assert!(connecting.join().unwrap().is_err());
    });
}
