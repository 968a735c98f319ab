//! Time limits, readiness, and a writer that is held back while nobody reads.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::util::{
    either_end, expect_end, fill, fresh, is_timeout, receive, receive_pattern, send,
};
use super::{Case, LONGEST_WAIT, MOST_BUFFERED, Ready, Stream, Transport, pattern};

const SHORT: Duration = Duration::from_millis(200);
/// A clock and a timer of the kernel may differ by a tick.
const TICK: Duration = Duration::from_millis(20);

pub(super) fn cases<T: Transport>() -> Vec<Case<T>> {
    vec![
        Case::new(
            "a_read_ends_at_its_time_limit_and_nothing_is_lost",
            read_deadline,
        ),
        Case::new(
            "a_write_ends_at_its_time_limit_and_says_what_it_took",
            write_deadline,
        ),
        Case::new("a_read_that_would_wait_says_so", nonblocking_read),
        Case::new("a_writer_is_held_back_while_nobody_reads", back_pressure),
        Case::new("readiness_follows_what_happens", readiness),
        Case::new("who_waits_for_data_wakes_when_it_comes", wakes_for_data),
        Case::new(
            "who_waits_for_room_wakes_when_there_is_some",
            wakes_for_room,
        ),
        Case::new(
            "a_connection_that_is_stuck_holds_up_no_other",
            stuck_neighbour,
        ),
    ]
}

fn read_deadline<T: Transport>(transport: &T) {
    either_end(transport, |near, far| {
        near.set_read_timeout(SHORT).expect("a time limit");
        let start = Instant::now();
        let error = near.read(&mut [0; 8]).expect_err("nothing was sent");
        let took = start.elapsed();
        assert!(is_timeout(error.kind()), "{error}");
        assert!(
            took + TICK >= SHORT && took < LONGEST_WAIT,
            "it took {took:?}"
        );
        near.set_read_timeout(LONGEST_WAIT).expect("a time limit");
        send(&far, b"later");
        assert_eq!(receive(&near, 5), b"later");
        send(&near, b"still");
        assert_eq!(receive(&far, 5), b"still");
    });
}

fn write_deadline<T: Transport>(transport: &T) {
    either_end(transport, |near, far| {
        near.set_write_timeout(SHORT).expect("a time limit");
        let mut sent = 0;
        let error = loop {
            assert!(
                sent < MOST_BUFFERED,
                "{sent} bytes were accepted and none was read"
            );
            match near.write(&pattern::bytes(1, sent as u64, 65_536)) {
                Ok(count) => sent += count,
                Err(error) => break error,
            }
        };
        assert!(is_timeout(error.kind()), "{error}");
        // Every byte that a write said it took arrives, and not one more.
        receive_pattern(&far, 1, sent, 65_536);
        far.set_read_timeout(SHORT).expect("a time limit");
        let error = far
            .read(&mut [0; 8])
            .expect_err("bytes beyond what was accepted");
        assert!(is_timeout(error.kind()), "{error}");
    });
}

fn nonblocking_read<T: Transport>(transport: &T) {
    either_end(transport, |near, far| {
        near.set_nonblocking(true).expect("nonblocking");
        let error = near.read(&mut [0; 8]).expect_err("nothing was sent");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        near.set_nonblocking(false).expect("blocking");
        send(&far, b"x");
        assert_eq!(receive(&near, 1), b"x");
    });
}

fn back_pressure<T: Transport>(transport: &T) {
    either_end(transport, |near, far| {
        let sent = fill(&near, 2);
        assert!(sent > 0, "not one byte was accepted");
        receive_pattern(&far, 2, sent, 65_536);
        let ready = near.wait(Ready::WRITE, LONGEST_WAIT).expect("a wait");
        assert!(ready.write, "no room after everything was read");
        near.set_nonblocking(false).expect("blocking");
        send(&near, b"more");
        near.shutdown_write().expect("half-close");
        assert_eq!(receive(&far, 4), b"more");
        expect_end(&far);
    });
}

fn readiness<T: Transport>(transport: &T) {
    either_end(transport, |near, far| {
        let now = |stream: &T::Stream| stream.wait(Ready::BOTH, SHORT).expect("a wait");
        let soon = |interest| near.wait(interest, LONGEST_WAIT).expect("a wait");
        assert_eq!(now(&near), Ready::WRITE, "a new connection");
        send(&far, b"xy");
        assert!(soon(Ready::READ).read, "data came");
        assert_eq!(receive(&near, 1), b"x");
        assert!(soon(Ready::READ).read, "some data is left");
        assert_eq!(receive(&near, 1), b"y");
        assert_eq!(
            near.wait(Ready::READ, SHORT).expect("a wait"),
            Ready::NONE,
            "no data is left"
        );

        let sent = fill(&near, 3);
        assert_eq!(
            near.wait(Ready::WRITE, SHORT).expect("a wait"),
            Ready::NONE,
            "no room is left"
        );
        assert!(far.wait(Ready::READ, LONGEST_WAIT).expect("a wait").read);
        receive_pattern(&far, 3, sent, 65_536);
        assert!(soon(Ready::WRITE).write, "there is room again");

        far.shutdown_write().expect("half-close");
        assert!(soon(Ready::READ).read, "an end counts as readable");
        near.set_nonblocking(false).expect("blocking");
        expect_end(&near);
        assert!(soon(Ready::WRITE).write, "the own direction is still open");
    });
}

fn wakes_for_data<T: Transport>(transport: &T) {
    either_end(transport, |near, far| {
        // Several rounds: a wake-up is lost, if at all, in a race.
        for _ in 0..50 {
            thread::scope(|scope| {
                scope.spawn(|| send(&far, b"!"));
                let ready = near.wait(Ready::READ, LONGEST_WAIT).expect("a wait");
                assert!(ready.read, "data came and the wait went on");
            });
            assert_eq!(receive(&near, 1), b"!");
        }
    });
}

fn wakes_for_room<T: Transport>(transport: &T) {
    either_end(transport, |near, far| {
        let sent = fill(&near, 4);
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(SHORT);
                receive_pattern(&far, 4, sent, 4096);
            });
            let ready = near.wait(Ready::WRITE, LONGEST_WAIT).expect("a wait");
            assert!(ready.write, "the peer read and the wait went on");
        });
    });
}

fn stuck_neighbour<T: Transport>(transport: &T) {
    let (stuck, unread) = fresh(transport);
    let sent = fill(&stuck, 5);
    either_end(transport, |near, far| {
        for _ in 0..100 {
            send(&near, b"ping");
            assert_eq!(receive(&far, 4), b"ping");
            send(&far, b"pong");
            assert_eq!(receive(&near, 4), b"pong");
        }
    });
    receive_pattern(&unread, 5, sent, 65_536);
}
