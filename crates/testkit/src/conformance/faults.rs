//! A killed peer or broker: the surviving ends detect it promptly and never read it as end of file.

use std::io;
use std::thread;
use std::time::Duration;

use super::case::Case;
use super::role::{FLOOD, Role};
use super::stream::{LONGEST_WAIT, Ready, Stream};
use super::transport::{ThroughBroker, Transport};
use super::util::{
    StreamEnd, is_gone, read_to_end, receive, receive_pattern, send, send_pattern, with_timeouts,
    write_until_error,
};
use crate::process::Running;

/// No bound on the bytes that a writer may send before it detects the kill.
const UNBOUNDED: usize = usize::MAX;
/// Bytes that are moved before a kill, so that it hits a busy connection.
const WARM_UP: usize = 1 << 20;

pub(super) fn cases<T: Transport>() -> Vec<Case<T>> {
    vec![
        Case::needs(
            "a_killed_peer_wakes_a_reader",
            kills,
            killed_peer_wakes_reader,
        ),
        Case::needs(
            "a_killed_peer_wakes_a_blocked_writer",
            kills,
            killed_peer_wakes_blocked_writer,
        ),
        Case::needs(
            "a_busy_writer_detects_a_killed_peer",
            kills,
            killed_peer_wakes_busy_writer,
        ),
        Case::needs(
            "a_killed_peer_wakes_a_readiness_wait",
            kills,
            killed_peer_is_ready,
        ),
        Case::needs(
            "a_killed_peer_is_a_reset_not_end_of_file",
            |transport: &T| kills(transport) && transport.distinguishes_death_from_eof(),
            killed_peer_is_reset,
        ),
        Case::needs(
            "a_killed_broker_resets_idle_connections",
            brokered,
            killed_broker_idle,
        ),
        Case::needs(
            "a_killed_broker_resets_busy_connections",
            brokered,
            killed_broker_busy,
        ),
    ]
}

fn kills<T: Transport>(transport: &T) -> bool {
    transport.pair_with_process().is_some()
}

fn brokered<T: Transport>(transport: &T) -> bool {
    transport.pair_through_broker().is_some()
}

fn with_process<T: Transport>(transport: &T, role: Role) -> (T::Stream, Running) {
    let make = transport.pair_with_process().expect("checked before");
    let (stream, peer) = make(transport, role).expect("a connection to a new process");
    (with_timeouts(stream), peer)
}

fn through_broker<T: Transport>(transport: &T) -> ThroughBroker<T::Stream> {
    let make = transport.pair_through_broker().expect("checked before");
    let through = make(transport).expect("a connection through a new broker");
    ThroughBroker {
        connector: with_timeouts(through.connector),
        acceptor: with_timeouts(through.acceptor),
        broker: through.broker,
    }
}

/// Kills a process while `blocked` runs.
fn kill_while<R>(victim: &mut Running, blocked: impl FnOnce() -> R) -> R {
    thread::scope(|scope| {
        scope.spawn(|| {
            // Gives the other thread time to block.
            thread::sleep(Duration::from_millis(200));
            victim.kill().expect("killed");
        });
        blocked()
    })
}

fn killed_peer_wakes_reader<T: Transport>(transport: &T) {
    let (stream, mut peer) = with_process(transport, Role::Hold);
    let (received, end) = kill_while(&mut peer, || read_to_end(&stream, FLOOD, 0));
    assert_eq!(received, 0);
    check_death(transport, end);
}

fn killed_peer_wakes_blocked_writer<T: Transport>(transport: &T) {
    let (stream, mut peer) = with_process(transport, Role::Hold);
    kill_while(&mut peer, || write_until_error(&stream, 1, UNBOUNDED));
}

fn killed_peer_wakes_busy_writer<T: Transport>(transport: &T) {
    let (stream, mut peer) = with_process(transport, Role::Drain);
    send_pattern(&stream, 2, WARM_UP, 65_536);
    kill_while(&mut peer, || write_until_error(&stream, 2, UNBOUNDED));
}

fn killed_peer_is_ready<T: Transport>(transport: &T) {
    let (stream, mut peer) = with_process(transport, Role::Hold);
    let ready = kill_while(&mut peer, || stream.wait(Ready::READ, LONGEST_WAIT));
    assert!(
        ready.expect("a wait").read,
        "a dead peer counts as readable"
    );
}

fn killed_peer_is_reset<T: Transport>(transport: &T) {
    let (stream, mut peer) = with_process(transport, Role::Flood);
    receive_pattern(&stream, FLOOD, WARM_UP, 8192);
    // Gives the peer time to fill the buffers again. Its death precedes the next read.
    thread::sleep(Duration::from_millis(200));
    peer.kill().expect("killed");
    let (received, end) = read_to_end(&stream, FLOOD, WARM_UP);
    assert!(received >= WARM_UP);
    assert_eq!(end, StreamEnd::Error(io::ErrorKind::ConnectionReset));
}

fn check_death<T: Transport>(transport: &T, end: StreamEnd) {
    match end {
        StreamEnd::EndOfFile => {
            assert!(
                !transport.distinguishes_death_from_eof(),
                "a killed peer was read as end of file"
            );
        }
        StreamEnd::Error(kind) => assert!(is_gone(kind), "{kind}"),
    }
}

fn killed_broker_idle<T: Transport>(transport: &T) {
    let ThroughBroker {
        connector,
        acceptor,
        mut broker,
    } = through_broker(transport);
    send(&connector, b"x");
    assert_eq!(receive(&acceptor, 1), b"x");
    let ends = kill_while(&mut broker, || {
        thread::scope(|scope| {
            let other = scope.spawn(|| read_to_end(&acceptor, 0, 0));
            [
                read_to_end(&connector, 0, 0),
                other.join().expect("the other reader"),
            ]
        })
    });
    assert_eq!(
        ends,
        [(0, StreamEnd::Error(io::ErrorKind::ConnectionReset)); 2]
    );
}

fn killed_broker_busy<T: Transport>(transport: &T) {
    let ThroughBroker {
        connector,
        acceptor,
        mut broker,
    } = through_broker(transport);
    let (_, end) = thread::scope(|scope| {
        scope.spawn(|| write_until_error(&connector, 3, UNBOUNDED));
        receive_pattern(&acceptor, 3, WARM_UP, 65_536);
        let reader = scope.spawn(|| read_to_end(&acceptor, 3, WARM_UP));
        broker.kill().expect("killed");
        reader.join().expect("the reader")
    });
    assert_eq!(end, StreamEnd::Error(io::ErrorKind::ConnectionReset));
}
