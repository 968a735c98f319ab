//! Every way in which a connection ends, and who sees what of it.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::util::{
    Ending, either_end, expect_end, is_gone, read_to_ending, receive, receive_pattern, send,
    send_pattern, write_until_refused,
};
use super::{Case, LONGEST_WAIT, MOST_BUFFERED, Ready, Stream, Transport};

/// Fits into the buffers of any transport.
const LITTLE: usize = 1000;
const MUCH: usize = 1 << 20;

pub(super) fn cases<T: Transport>() -> Vec<Case<T>> {
    vec![
        Case::new("the_end_comes_after_all_data", end_after_data),
        Case::new("data_arrives_after_the_other_direction_ended", half_close),
        Case::new("both_ends_may_end_at_once", both_end),
        Case::new(
            "a_write_after_its_own_end_is_a_broken_pipe",
            write_after_end,
        ),
        Case::new("what_was_written_before_a_close_arrives", close_after_write),
        Case::new("a_close_with_unread_data_is_seen", close_with_unread_data),
        Case::new("a_close_wakes_a_reader", close_wakes_reader),
        Case::new("a_close_wakes_a_writer", close_wakes_writer),
        Case::new("a_close_wakes_who_waits_for_readiness", close_wakes_waiter),
        Case::needs("a_reset_is_no_clean_end", resets, reset_is_seen),
        Case::needs("a_reset_wakes_a_writer", resets, reset_wakes_writer),
    ]
}

fn resets<T: Transport>(transport: &T) -> bool {
    transport.reset().is_some()
}

fn end_after_data<T: Transport>(transport: &T) {
    either_end(transport, |near, far| {
        thread::scope(|scope| {
            scope.spawn(|| {
                send_pattern(&near, 1, MUCH, 65_536);
                near.shutdown_write().expect("half-close");
            });
            // Let the buffers fill, and the end queue up behind them.
            thread::sleep(Duration::from_millis(100));
            receive_pattern(&far, 1, MUCH, 8192);
            expect_end(&far);
        });
    });
}

fn half_close<T: Transport>(transport: &T) {
    either_end(transport, |near, far| {
        send(&near, b"question");
        near.shutdown_write().expect("half-close");
        assert_eq!(receive(&far, 8), b"question");
        expect_end(&far);
        thread::scope(|scope| {
            scope.spawn(|| {
                send_pattern(&far, 2, MUCH, 10_000);
                far.shutdown_write().expect("half-close");
            });
            receive_pattern(&near, 2, MUCH, 10_000);
            expect_end(&near);
        });
        expect_end(&far);
    });
}

fn both_end<T: Transport>(transport: &T) {
    either_end(transport, |near, far| {
        thread::scope(|scope| {
            for end in [&near, &far] {
                scope.spawn(move || {
                    send_pattern(end, 3, LITTLE, LITTLE);
                    end.shutdown_write().expect("half-close");
                    receive_pattern(end, 3, LITTLE, LITTLE);
                    expect_end(end);
                });
            }
        });
    });
}

fn write_after_end<T: Transport>(transport: &T) {
    either_end(transport, |near, far| {
        near.shutdown_write().expect("half-close");
        let error = near.write(b"late").expect_err("a write after the own end");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe, "{error}");
        expect_end(&far);
    });
}

fn close_after_write<T: Transport>(transport: &T) {
    either_end(transport, |near, far| {
        send_pattern(&near, 4, LITTLE, LITTLE);
        drop(near);
        receive_pattern(&far, 4, LITTLE, LITTLE);
        expect_end(&far);
    });
    either_end(transport, |near, far| {
        thread::scope(|scope| {
            scope.spawn(move || send_pattern(&near, 5, MUCH, 65_536));
            receive_pattern(&far, 5, MUCH, 8192);
            expect_end(&far);
        });
    });
}

/// The closer threw data away. Its peer may see an error or a clean end, but not a clean end that
/// hides data sent to it, and its writes must come to an error.
fn close_with_unread_data<T: Transport>(transport: &T) {
    either_end(transport, |near, far| {
        send_pattern(&near, 6, LITTLE, LITTLE);
        send_pattern(&far, 7, LITTLE, LITTLE);
        assert_eq!(
            receive(&near, 1).len(),
            1,
            "so that the data is surely there"
        );
        drop(left_unread(far));
        match read_to_ending(&near, 7, 1) {
            (received, Ending::Clean) => assert_eq!(received, LITTLE, "an end that hides a loss"),
            (_, Ending::Error(kind)) => assert!(is_gone(kind), "{kind}"),
        }
        write_until_refused(&near, 6, MOST_BUFFERED);
    });
}

/// Waits until a stream has something to read, which is then left unread.
fn left_unread<S: Stream>(stream: S) -> S {
    let ready = stream.wait(Ready::READ, LONGEST_WAIT).expect("a wait");
    assert!(ready.read, "the data did not come");
    stream
}

fn close_wakes_reader<T: Transport>(transport: &T) {
    either_end(transport, |near, far| {
        close_later(far, || expect_end(&near));
    });
}

fn close_wakes_writer<T: Transport>(transport: &T) {
    either_end(transport, |near, far| {
        close_later(far, || write_until_refused(&near, 8, MOST_BUFFERED));
    });
}

fn close_wakes_waiter<T: Transport>(transport: &T) {
    either_end(transport, |near, far| {
        close_later(far, || {
            let ready = near.wait(Ready::READ, LONGEST_WAIT).expect("a wait");
            assert!(ready.read, "an end counts as readable");
            expect_end(&near);
        });
    });
}

/// Closes a stream while `blocked` waits; the close must end the wait, not its time limit.
fn close_later<S: Stream>(stream: S, blocked: impl FnOnce()) {
    end_later(move || drop(stream), blocked);
}

fn end_later(end: impl FnOnce() + Send, blocked: impl FnOnce()) {
    let start = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(200));
            end();
        });
        blocked();
    });
    assert!(
        start.elapsed() < LONGEST_WAIT,
        "it woke only by its time limit"
    );
}

fn reset_is_seen<T: Transport>(transport: &T) {
    let reset = transport.reset().expect("checked before");
    either_end(transport, |near, far| {
        send_pattern(&near, 9, LITTLE, LITTLE);
        reset(transport, near).expect("a reset");
        let (received, ending) = read_to_ending(&far, 9, 0);
        assert!(received <= LITTLE);
        assert_eq!(ending, Ending::Error(io::ErrorKind::ConnectionReset));
        write_until_refused(&far, 9, MOST_BUFFERED);
    });
}

fn reset_wakes_writer<T: Transport>(transport: &T) {
    let reset = transport.reset().expect("checked before");
    either_end(transport, |near, far| {
        end_later(
            move || reset(transport, near).expect("a reset"),
            || write_until_refused(&far, 10, MOST_BUFFERED),
        );
    });
}
