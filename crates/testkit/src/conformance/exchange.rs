//! All bytes arrive, in order.

use std::thread;

use super::case::Case;
use super::pattern;
use super::stream::{LONGEST_WAIT, Ready, Stream};
use super::transport::Transport;
use super::util::{
    either_end, expect_end, fresh, receive, receive_pattern, send, send_pattern, with_timeouts,
};

const LARGE: usize = 8 << 20;

pub(super) fn cases<T: Transport>() -> Vec<Case<T>> {
    vec![
        Case::new("an_echo_returns_every_message", echo),
        Case::new("one_large_write_arrives_whole", large_write),
        Case::new("one_byte_writes_arrive", one_byte_writes),
        Case::new("one_byte_reads_receive_everything", one_byte_reads),
        Case::new("an_empty_write_is_not_end_of_file", empty_write),
        Case::new("both_directions_at_once", |transport: &T| {
            both_directions(fresh(transport), 4 << 20);
        }),
        Case::needs(
            "both_directions_at_once_with_small_buffers",
            |transport: &T| transport.small_pair().is_some(),
            |transport: &T| {
                let make = transport.small_pair().expect("checked before");
                let (connector, acceptor) = make(transport).expect("a new connection");
                both_directions((with_timeouts(connector), with_timeouts(acceptor)), 1 << 20);
            },
        ),
        Case::new(
            "one_thread_drives_both_directions_by_readiness",
            by_readiness,
        ),
    ]
}

fn echo<T: Transport>(transport: &T) {
    either_end(transport, |local, peer| {
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut buffer = [0; 4096];
                loop {
                    match peer.read(&mut buffer).expect("the echo reads") {
                        0 => break,
                        count => send(&peer, &buffer[..count]),
                    }
                }
                peer.shutdown_write().expect("half-close");
            });
            // No message exceeds the smallest buffer of any transport.
            for size in [1, 2, 44, 63, 64, 65, 1000, 4095, 4096] {
                let message = pattern::bytes(1, 0, size);
                send(&local, &message);
                assert!(
                    receive(&local, size) == message,
                    "a wrong echo of {size} bytes"
                );
            }
            local.shutdown_write().expect("half-close");
            expect_end(&local);
        });
    });
}

fn large_write<T: Transport>(transport: &T) {
    either_end(transport, |local, peer| {
        let all = pattern::bytes(2, 0, LARGE);
        thread::scope(|scope| {
            scope.spawn(|| {
                send(&local, &all);
                local.shutdown_write().expect("half-close");
            });
            // A prime, so that reads never align with the transport's blocks.
            receive_pattern(&peer, 2, LARGE, 7919);
            expect_end(&peer);
        });
    });
}

fn one_byte_writes<T: Transport>(transport: &T) {
    either_end(transport, |local, peer| {
        thread::scope(|scope| {
            scope.spawn(|| {
                send_pattern(&local, 3, 20_000, 1);
                local.shutdown_write().expect("half-close");
            });
            receive_pattern(&peer, 3, 20_000, 4096);
            expect_end(&peer);
        });
    });
}

fn one_byte_reads<T: Transport>(transport: &T) {
    either_end(transport, |local, peer| {
        thread::scope(|scope| {
            scope.spawn(|| {
                send_pattern(&local, 4, 20_000, 4096);
                local.shutdown_write().expect("half-close");
            });
            receive_pattern(&peer, 4, 20_000, 1);
            expect_end(&peer);
        });
    });
}

fn empty_write<T: Transport>(transport: &T) {
    either_end(transport, |local, peer| {
        assert_eq!(local.write(&[]).expect("an empty write"), 0);
        send(&local, b"x");
        assert_eq!(local.write(&[]).expect("an empty write"), 0);
        assert_eq!(receive(&peer, 1), b"x");
        send(&local, b"y");
        assert_eq!(receive(&peer, 1), b"y");
    });
}

fn both_directions<S: Stream>((connector, acceptor): (S, S), total: usize) {
    thread::scope(|scope| {
        for (seed, from, to) in [(5, &connector, &acceptor), (6, &acceptor, &connector)] {
            scope.spawn(move || {
                send_pattern(from, seed, total, 1021);
                from.shutdown_write().expect("half-close");
            });
            scope.spawn(move || {
                receive_pattern(to, seed, total, 997);
                expect_end(to);
            });
        }
    });
}

fn by_readiness<T: Transport>(transport: &T) {
    let (connector, acceptor) = fresh(transport);
    thread::scope(|scope| {
        scope.spawn(|| drive(&connector, 7, 8, 2 << 20));
        scope.spawn(|| drive(&acceptor, 8, 7, 2 << 20));
    });
}

/// Sends `total` bytes of one pattern and receives as many of the other, in one thread. The thread
/// blocks only in `wait`, so a lost wakeup is a hang.
fn drive<S: Stream>(stream: &S, outgoing: u64, incoming: u64, total: usize) {
    stream.set_nonblocking(true).expect("nonblocking");
    let (mut sent, mut received, mut ended) = (0, 0, false);
    let mut buffer = vec![0; 10_007];
    while sent < total || !ended {
        let interest = Ready {
            read: !ended,
            write: sent < total,
        };
        let ready = stream.wait(interest, LONGEST_WAIT).expect("a wait");
        assert_ne!(
            ready,
            Ready::NONE,
            "no readiness after {sent} bytes sent and {received} received"
        );
        if interest.read && ready.read {
            match stream.read(&mut buffer) {
                Ok(0) => {
                    assert_eq!(received, total, "end of file came early");
                    ended = true;
                }
                Ok(count) => {
                    pattern::check(incoming, received as u64, &buffer[..count]);
                    received += count;
                }
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
        if interest.write && ready.write {
            let count = (total - sent).min(9973);
            match stream.write(&pattern::bytes(outgoing, sent as u64, count)) {
                Ok(count) => sent += count,
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
            if sent == total {
                stream.shutdown_write().expect("half-close");
            }
        }
    }
}
