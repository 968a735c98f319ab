//! Timeouts, readiness and backpressure.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::case::Case;
use super::pattern;
use super::stream::{LONGEST_WAIT, MOST_BUFFERED, Ready, Stream};
use super::transport::Transport;
use super::util::{
    either_end, expect_end, fill, fresh, is_timeout, receive, receive_pattern, send,
};

const SHORT: Duration = Duration::from_millis(200);
/// How far the kernel's clocks and timers may differ.
const TICK: Duration = Duration::from_millis(20);

pub(super) fn cases<T: Transport>() -> Vec<Case<T>> {
    vec![
        Case::new("a_read_times_out_without_losing_data", read_deadline),
        Case::new(
            "a_write_times_out_and_reports_the_accepted_bytes",
            write_deadline,
        ),
        Case::new("a_nonblocking_read_reports_would_block", nonblocking_read),
        Case::new("an_unread_stream_applies_backpressure", backpressure),
        Case::new("readiness_follows_the_state_of_the_stream", readiness),
        Case::new("data_wakes_a_waiting_reader", wakes_for_data),
        Case::new("free_space_wakes_a_waiting_writer", wakes_for_free_space),
        Case::new(
            "a_stalled_connection_does_not_block_others",
            stalled_neighbour,
        ),
    ]
}

fn read_deadline<T: Transport>(transport: &T) {
    either_end(transport, |local, peer| {
        local.set_read_timeout(SHORT).expect("a timeout");
        let start = Instant::now();
        let error = local.read(&mut [0; 8]).expect_err("nothing was sent");
        let took = start.elapsed();
        assert!(is_timeout(error.kind()), "{error}");
        assert!(
            took + TICK >= SHORT && took < LONGEST_WAIT,
            "it took {took:?}"
        );
        local.set_read_timeout(LONGEST_WAIT).expect("a timeout");
        send(&peer, b"later");
        assert_eq!(receive(&local, 5), b"later");
        send(&local, b"still");
        assert_eq!(receive(&peer, 5), b"still");
    });
}

fn write_deadline<T: Transport>(transport: &T) {
    either_end(transport, |local, peer| {
        local.set_write_timeout(SHORT).expect("a timeout");
        let mut sent = 0;
        let error = loop {
            assert!(
                sent < MOST_BUFFERED,
                "{sent} bytes were accepted and none was read"
            );
            match local.write(&pattern::bytes(1, sent as u64, 65_536)) {
                Ok(count) => sent += count,
                Err(error) => break error,
            }
        };
        assert!(is_timeout(error.kind()), "{error}");
        // Every accepted byte arrives, and not one more: end of file follows the last one.
        receive_pattern(&peer, 1, sent, 65_536);
        local.shutdown_write().expect("half-close");
        let extra = peer.read(&mut [0; 8]).expect("end of file");
        assert_eq!(extra, 0, "bytes beyond what was accepted");
    });
}

fn nonblocking_read<T: Transport>(transport: &T) {
    either_end(transport, |local, peer| {
        local.set_nonblocking(true).expect("nonblocking");
        let error = local.read(&mut [0; 8]).expect_err("nothing was sent");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        local.set_nonblocking(false).expect("blocking");
        send(&peer, b"x");
        assert_eq!(receive(&local, 1), b"x");
    });
}

fn backpressure<T: Transport>(transport: &T) {
    either_end(transport, |local, peer| {
        let sent = fill(&local, 2);
        assert!(sent > 0, "not one byte was accepted");
        receive_pattern(&peer, 2, sent, 65_536);
        let ready = local.wait(Ready::WRITE, LONGEST_WAIT).expect("a wait");
        assert!(ready.write, "no free space after everything was read");
        local.set_nonblocking(false).expect("blocking");
        send(&local, b"more");
        local.shutdown_write().expect("half-close");
        assert_eq!(receive(&peer, 4), b"more");
        expect_end(&peer);
    });
}

fn readiness<T: Transport>(transport: &T) {
    either_end(transport, |local, peer| {
        let now = |stream: &T::Stream| stream.wait(Ready::BOTH, SHORT).expect("a wait");
        let soon = |interest| local.wait(interest, LONGEST_WAIT).expect("a wait");
        assert_eq!(now(&local), Ready::WRITE, "a new connection");
        send(&peer, b"xy");
        assert!(soon(Ready::READ).read, "data arrived");
        assert_eq!(receive(&local, 1), b"x");
        assert!(soon(Ready::READ).read, "some data is left");
        assert_eq!(receive(&local, 1), b"y");
        assert_eq!(
            local.wait(Ready::READ, SHORT).expect("a wait"),
            Ready::NONE,
            "no data is left"
        );

        // `fill` returns once a wait for free space has timed out.
        let sent = fill(&local, 3);
        assert!(peer.wait(Ready::READ, LONGEST_WAIT).expect("a wait").read);
        receive_pattern(&peer, 3, sent, 65_536);
        assert!(soon(Ready::WRITE).write, "there is free space again");

        peer.shutdown_write().expect("half-close");
        assert!(soon(Ready::READ).read, "end of file counts as readable");
        local.set_nonblocking(false).expect("blocking");
        expect_end(&local);
        assert!(soon(Ready::WRITE).write, "writing is still open");
    });
}

fn wakes_for_data<T: Transport>(transport: &T) {
    either_end(transport, |local, peer| {
        // Many rounds, because only a race can lose a wakeup.
        for _ in 0..50 {
            thread::scope(|scope| {
                scope.spawn(|| send(&peer, b"!"));
                let ready = local.wait(Ready::READ, LONGEST_WAIT).expect("a wait");
                assert!(ready.read, "data arrived and the wait went on");
            });
            assert_eq!(receive(&local, 1), b"!");
        }
    });
}

fn wakes_for_free_space<T: Transport>(transport: &T) {
    either_end(transport, |local, peer| {
        let sent = fill(&local, 4);
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(SHORT);
                receive_pattern(&peer, 4, sent, 4096);
            });
            let ready = local.wait(Ready::WRITE, LONGEST_WAIT).expect("a wait");
            assert!(ready.write, "the peer read and the wait went on");
        });
    });
}

fn stalled_neighbour<T: Transport>(transport: &T) {
    let (stalled, unread) = fresh(transport);
    let sent = fill(&stalled, 5);
    either_end(transport, |local, peer| {
        for _ in 0..100 {
            send(&local, b"ping");
            assert_eq!(receive(&peer, 4), b"ping");
            send(&peer, b"pong");
            assert_eq!(receive(&local, 4), b"pong");
        }
    });
    receive_pattern(&unread, 5, sent, 65_536);
}
