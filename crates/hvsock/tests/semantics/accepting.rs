//! How a listener accepts connections of arenas, beside those of its endpoint.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use hvsock::{HvListener, HvStream};
use hvsock_ring::RingSize;
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_testkit::wait::eventually;

use crate::arena_broker::{ADDRESS, Arena, Control, Endpoints, FIRST_ID, LONG, Pair};

const SHORT: Duration = Duration::from_millis(50);

/// Whether a descriptor is readable within `time`.
fn readable(fd: impl AsFd, time: Duration) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll::wait(&mut fds, Some(Instant::now() + time)).unwrap()
}

#[test]
fn the_descriptor_of_a_listener_is_the_same_and_signals_connections_in_arenas() {
    let pair = Pair::new(64, 64);
    let listener = &pair.listener;
    listener.set_nonblocking(true).unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(listener);
    let would_block = || listener.accept().unwrap_err().kind() == ErrorKind::WouldBlock;
    assert!(!readable(listener, Duration::ZERO));
    // Level-triggered: it stays readable while connections wait.
    let waiting: Vec<_> = (0..3).map(|_| pair.connect().unwrap()).collect();
    for _ in 0..3 {
        assert!(readable(listener, LONG));
        drop(listener.accept().unwrap());
    }
    assert!(would_block());
    assert!(!readable(listener, SHORT));
    // Edge-triggered: a program accepts until nothing is left, and each later connection wakes it.
    for _ in 0..3 {
        let _stream = pair.connect().unwrap();
        assert!(readable(listener, LONG));
        drop(listener.accept().unwrap());
        assert!(would_block());
        assert!(!readable(listener, Duration::ZERO));
    }
    assert_eq!(std::os::fd::AsRawFd::as_raw_fd(listener), number);
    drop(waiting);
}

#[test]
fn a_listener_with_watched_connections_misses_no_connect() {
    let pair = Pair::new(64, 64);
    let (near, far) = pair.pair();
    for end in [&near, &far] {
        end.set_nonblocking(true).unwrap();
        assert!(!readable(end, Duration::ZERO));
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..200 {
                let stream = pair.connect().unwrap();
                (&stream).write_all(b"x").unwrap();
                (&near).write_all(b"y").unwrap();
                assert_eq!((&stream).read(&mut [0]).unwrap(), 0);
            }
        });
        for _ in 0..200 {
            let accepted = pair.accept();
            (&accepted).read_exact(&mut [0]).unwrap();
            let mut buffer = [0; 8];
            while (&far).read(&mut buffer).is_err() {
                assert!(readable(&far, LONG));
            }
        }
    });
}

#[test]
fn several_threads_accept_and_none_keeps_a_connection_from_another() {
    let pair = Pair::new(64, 64);
    thread::scope(|scope| {
        let acceptors: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    // Serving takes long: what else has arrived is for the others.
                    let accepted = pair.accept();
                    (&accepted).read_exact(&mut [0]).unwrap();
                })
            })
            .collect();
        thread::sleep(SHORT);
        let streams: Vec<_> = (0..3).map(|_| pair.connect().unwrap()).collect();
        eventually("each thread has accepted one", || {
            pair.arena.monitor.pending() == 0
        });
        for stream in &streams {
            (&*stream).write_all(b"x").unwrap();
        }
        for acceptor in acceptors {
            acceptor.join().unwrap();
        }
    });
}

#[test]
fn connections_at_the_endpoint_do_not_wait_for_a_busy_arena() {
    let pair = Pair::new(128, 128);
    let waiting: Vec<_> = (0..100).map(|_| pair.connect().unwrap()).collect();
    let options = pair.endpoints.options().own_memory(true);
    let connect = || options.connect(ADDRESS).unwrap();
    let (_own, ()) = pair.endpoints.with_client(connect, || {
        let (client, _) = pair.endpoints.connecting();
        let _server = pair.endpoints.give_own_memory(&client, &pair.listening, 5);
    });
    let accepted: Vec<_> = (0..40).map(|_| pair.accept()).collect();
    assert!(accepted.iter().any(|stream| stream.connection_id() == 5));
    drop(waiting);
}

/// A listener at whose endpoint an arena with a connection has arrived, and after it a connection with memory of its
/// own.
struct ArenaAndConnection {
    endpoints: Endpoints,
    listener: HvListener,
    streams: Vec<HvStream>,
    _broker: (Arena, [Control; 2]),
}

impl ArenaAndConnection {
    /// `watch` does what a program does before its first accept.
    fn new(watch: impl FnOnce(&HvListener)) -> Self {
        let endpoints = Endpoints::new();
        let (listener, listening) = endpoints.listen(8);
        let options = endpoints.options();
        drop(endpoints.connect_with_own_memory(&options, &listener, &listening));
        watch(&listener);
        let connect = || options.connect(ADDRESS).unwrap();
        let (in_arena, arena) = endpoints.with_client(connect, || {
            let (client, _) = endpoints.connecting();
            endpoints.grant_to(client, &listening, 8, (8, 8, RingSize::MIN))
        });
        let options = endpoints.options().own_memory(true);
        let connect = || options.connect(ADDRESS).unwrap();
        let (own, server) = endpoints.with_client(connect, || {
            let (client, _) = endpoints.connecting();
            endpoints.give_own_memory(&client, &listening, 5)
        });
        assert!(in_arena.is_in_arena() && !own.is_in_arena());
        Self {
            endpoints,
            listener,
            streams: vec![in_arena, own],
            _broker: (arena, [listening, server]),
        }
    }
}

#[test]
fn a_program_that_polls_before_each_accept_gets_every_connection() {
    let mut all = ArenaAndConnection::new(|listener| {
        listener.set_nonblocking(true).unwrap();
        assert!(!readable(listener, Duration::ZERO));
    });
    // The accept that takes the arena returns the other connection.
    for id in [5, FIRST_ID + 1] {
        assert!(readable(&all.listener, LONG), "{id}");
        let (accepted, _) = all.listener.accept().unwrap();
        assert_eq!(accepted.connection_id(), id);
    }
    // Without an accept that finds nothing, each later one is signalled, too.
    for _ in 0..20 {
        all.streams
            .push(all.endpoints.options().connect(ADDRESS).unwrap());
        assert!(readable(&all.listener, LONG));
        drop(all.listener.accept().unwrap());
        all.streams.pop();
    }
}

/// A client looks for the acceptors' request after it has published a connection, which may have been accepted and the
/// queue armed again by then. Its one notification then stands for both requests.
#[test]
fn a_client_that_is_late_to_look_for_the_request_leaves_the_next_connection_signalled() {
    let pair = Pair::new(8, 8);
    let listener = &pair.listener;
    listener.set_nonblocking(true).unwrap();
    assert!(!readable(listener, Duration::ZERO));
    let accept = |_: &HvStream| {
        let error = listener.accept().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    };
    let watch_connection = |accepted: &HvStream| assert!(!readable(accepted, Duration::ZERO));
    let accept_another = |_: &HvStream| {
        listener.set_nonblocking(false).unwrap();
        let (endpoints, options) = (&pair.endpoints, pair.endpoints.options().own_memory(true));
        drop(endpoints.connect_with_own_memory(&options, listener, &pair.listening));
        listener.set_nonblocking(true).unwrap();
    };
    let drain = [
        (
            "an accept that finds nothing",
            &accept as &dyn Fn(&HvStream),
        ),
        ("a program that watches a connection", &watch_connection),
        ("an accept of a connection at the endpoint", &accept_another),
    ];
    for (who, drain_doorbell) in drain {
        let stream = pair.connect().unwrap();
        assert!(readable(listener, LONG));
        let (accepted, _) = listener.accept().unwrap();
        assert!(pair.arena.take_accept_request());
        drain_doorbell(&accepted);
        let next = pair.connect().unwrap();
        assert!(readable(listener, LONG), "{who} drained the doorbell");
        drop(listener.accept().unwrap());
        drop((stream, next));
        // The doorbell is drained, and a notification of the next connection requested.
        accept(&accepted);
    }
}
