//! A pair in two processes, of which one is killed: the other one's parked threads end within a second, after
//! every byte that was written.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use hvsock_ring::{
    ArenaClient, ArenaLimits, ArenaMonitor, ArenaParts, ArenaServer, Doorbells, ResetCause,
    RingEnd, RingSide, RingSize,
};
use hvsock_sys::message;
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_testkit::process::Running;

use super::{retry, send_next, start, wait_for_next};

const SLOTS: u32 = 40;

fn tell() -> Arc<dyn Fn() + Send + Sync> {
    Arc::new(|| {})
}

/// Starts the other process of an arena, and opens this one's end by `open`.
fn pair<T>(
    role: &str,
    own_side: RingSide,
    open: impl FnOnce(&OwnedFd, &OwnedFd, Doorbells) -> T,
) -> (Running, OwnedFd, T, ArenaMonitor) {
    let (child, socket) = start(role);
    let ring = RingSize::MIN;
    let limits = ArenaLimits { slots: SLOTS, ring };
    let parts = ArenaParts::new(limits, SLOTS, SLOTS).unwrap();
    let (own, theirs) = match own_side {
        RingSide::First => (parts.client, parts.server),
        RingSide::Second => (parts.server, parts.client),
    };
    let descriptors = [
        parts.memory.as_fd(),
        parts.grant.as_fd(),
        theirs.own.as_fd(),
        theirs.peer.as_fd(),
    ];
    retry(&socket, PollFlags::OUT, || {
        message::send(&socket, b"arena", &descriptors)
    });
    let end = open(&parts.memory, &parts.grant, own);
    (child, socket, end, parts.monitor)
}

/// Receives an arena, in the other process.
fn recv(socket: &impl AsFd) -> (OwnedFd, OwnedFd, Doorbells) {
    let received = retry(socket, PollFlags::IN, || {
        message::recv_with_descriptors(socket, &mut [0; 17])
    });
    let mut descriptors = received.descriptors.into_iter();
    let mut next = || descriptors.next().unwrap();
    let (memory, grant) = (next(), next());
    let (own, peer) = (next(), next());
    (memory, grant, Doorbells { own, peer })
}

fn accept(server: &ArenaServer) -> RingEnd {
    loop {
        if let Some(accepted) = server.accept().unwrap() {
            return accepted.end;
        }
        if server.arm_accept() {
            let mut fds = [PollFd::from_borrowed_fd(server.doorbell(), PollFlags::IN)];
            poll::wait(&mut fds, None).unwrap();
            server.drain_accept();
        }
    }
}

/// The server's process: echoes on every connection, in a thread of each, until it is killed.
pub(super) fn echo_until_killed(socket: &impl AsFd) {
    let (memory, grant, doorbells) = recv(socket);
    let server = ArenaServer::open(memory, grant, doorbells, tell()).unwrap();
    loop {
        let end = accept(&server);
        thread::spawn(move || {
            let mut buffer = [0; 1000];
            loop {
                match (&end).read(&mut buffer).unwrap() {
                    0 => break end.shutdown_write(),
                    count => (&end).write_all(&buffer[..count]).unwrap(),
                }
            }
        });
    }
}

/// The client's process: opens connections, writes to each and leaves one parked, until it is killed.
pub(super) fn connect_until_killed(socket: &impl AsFd) {
    let (memory, grant, doorbells) = recv(socket);
    let client = ArenaClient::open(memory, grant, doorbells, tell()).unwrap();
    let ends: Vec<_> = (0..3).map(|_| client.connect().unwrap().end).collect();
    for (at, end) in ends.iter().enumerate() {
        (&*end).write_all(&[at as u8; 100]).unwrap();
    }
    // This one is closed by then.
    ends[0].shutdown_write();
    send_next(socket);
    let _ = (&ends[1]).read(&mut [0; 9]);
}

fn round_trip(end: &RingEnd, byte: u8) {
    let mut end = end;
    end.write_all(&[byte; 300]).unwrap();
    let mut back = [0; 300];
    end.read_exact(&mut back).unwrap();
    assert_eq!(back, [byte; 300]);
}

#[test]
fn a_server_that_is_killed_resets_its_connections_in_the_arena() {
    let (mut child, _socket, client, monitor) = pair("arena-echo", RingSide::First, |m, g, own| {
        ArenaClient::open(m, g, own, tell()).unwrap()
    });
    for round in 0..50 {
        let end = client.connect().unwrap().end;
        round_trip(&end, round);
        end.shutdown_write();
        assert_eq!((&end).read(&mut [0; 9]).unwrap(), 0);
    }
    let ends: Vec<_> = (0..20).map(|_| client.connect().unwrap().end).collect();
    ends.iter().for_each(|end| round_trip(end, 7));
    assert_eq!(monitor.scan().iter().filter(|it| it.accepted).count(), 20);
    thread::scope(|scope| {
        let reads: Vec<_> = ends
            .iter()
            .map(|end| scope.spawn(move || (&*end).read(&mut [0; 9]).unwrap_err()))
            .collect();
        for end in &ends {
            hvsock_testkit::wait::eventually("the reader parks", || end.stats().parks > 0);
        }
        child.kill().unwrap();
        let killed = Instant::now();
        monitor.close_end(RingSide::Second);
        for read in reads {
            assert_eq!(read.join().unwrap().kind(), ErrorKind::ConnectionReset);
        }
        assert!(
            killed.elapsed() < Duration::from_secs(1),
            "{:?}",
            killed.elapsed()
        );
    });
    assert!(
        ends.iter()
            .all(|end| end.reset_cause() == ResetCause::PeerGone)
    );
    assert_eq!(monitor.scan().len(), 20);
    drop(ends);
    assert_eq!(monitor.scan(), []);
    assert!(!client.drain_ready(|_| {}));
}

#[test]
fn what_a_killed_client_wrote_is_read_before_the_reset() {
    let (mut child, socket, server, monitor) =
        pair("arena-connect", RingSide::Second, |m, g, own| {
            ArenaServer::open(m, g, own, tell()).unwrap()
        });
    wait_for_next(&socket);
    child.kill().unwrap();
    monitor.close_end(RingSide::First);
    // None was accepted before, and all are in the queue.
    for at in 0..3 {
        let end = accept(&server);
        let mut all = Vec::new();
        let read = (&end).read_to_end(&mut all);
        assert_eq!(all, [at; 100]);
        match at {
            0 => assert_eq!(read.unwrap(), 100),
            _ => assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset),
        }
        end.shutdown_write();
    }
    assert_eq!(monitor.scan(), []);
    assert!(server.accept().unwrap().is_none());
}
