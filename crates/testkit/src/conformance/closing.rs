//! Every way in which a connection ends, and what each end sees of it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::case::Case;
use super::stream::{LONGEST_WAIT, MOST_BUFFERED, Ready, Stream};
use super::transport::Transport;
use super::util::{
    StreamEnd, either_end, expect_end, is_gone, read_to_end, receive, receive_pattern, send,
    send_pattern, write_until_error,
};

/// Fits into the buffers of any transport.
const SMALL: usize = 1000;
const LARGE: usize = 1 << 20;

pub(super) fn cases<T: Transport>() -> Vec<Case<T>> {
    vec![
        Case::new("end_of_file_comes_after_all_data", end_after_data),
        Case::new("a_half_closed_stream_still_receives", half_close),
        Case::new("both_ends_half_close_at_once", both_half_close),
        Case::new("a_write_after_shutdown_is_a_broken_pipe", write_after_end),
        Case::new("data_written_before_a_close_arrives", close_after_write),
        Case::new(
            "a_close_with_unread_data_is_detected",
            close_with_unread_data,
        ),
        Case::new("a_close_wakes_a_reader", close_wakes_reader),
        Case::new("a_close_wakes_a_writer", close_wakes_writer),
        Case::new("a_close_wakes_a_readiness_wait", close_wakes_waiter),
        Case::needs("a_reset_is_not_end_of_file", resets, reset_is_seen),
        Case::needs("a_reset_wakes_a_writer", resets, reset_wakes_writer),
    ]
}

fn resets<T: Transport>(transport: &T) -> bool {
    transport.reset().is_some()
}

fn end_after_data<T: Transport>(transport: &T) {
    either_end(transport, |local, peer| {
        thread::scope(|scope| {
            scope.spawn(|| {
                send_pattern(&local, 1, LARGE, 65_536);
                local.shutdown_write().expect("half-close");
            });
            // Gives the buffers time to fill, so that the half-close queues behind the data.
            thread::sleep(Duration::from_millis(100));
            receive_pattern(&peer, 1, LARGE, 8192);
            expect_end(&peer);
        });
    });
}

fn half_close<T: Transport>(transport: &T) {
    either_end(transport, |local, peer| {
        send(&local, b"question");
        local.shutdown_write().expect("half-close");
        assert_eq!(receive(&peer, 8), b"question");
        expect_end(&peer);
        thread::scope(|scope| {
            scope.spawn(|| {
                send_pattern(&peer, 2, LARGE, 10_000);
                peer.shutdown_write().expect("half-close");
            });
            receive_pattern(&local, 2, LARGE, 10_000);
            expect_end(&local);
        });
        expect_end(&peer);
    });
}

fn both_half_close<T: Transport>(transport: &T) {
    either_end(transport, |local, peer| {
        thread::scope(|scope| {
            for end in [&local, &peer] {
                scope.spawn(move || {
                    send_pattern(end, 3, SMALL, SMALL);
                    end.shutdown_write().expect("half-close");
                    receive_pattern(end, 3, SMALL, SMALL);
                    expect_end(end);
                });
            }
        });
    });
}

fn write_after_end<T: Transport>(transport: &T) {
    either_end(transport, |local, peer| {
        local.shutdown_write().expect("half-close");
        let error = local
            .write(b"late")
            .expect_err("a write after its shutdown");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe, "{error}");
        expect_end(&peer);
    });
}

fn close_after_write<T: Transport>(transport: &T) {
    either_end(transport, |local, peer| {
        send_pattern(&local, 4, SMALL, SMALL);
        drop(local);
        receive_pattern(&peer, 4, SMALL, SMALL);
        expect_end(&peer);
    });
    either_end(transport, |local, peer| {
        thread::scope(|scope| {
            scope.spawn(move || send_pattern(&local, 5, LARGE, 65_536));
            receive_pattern(&peer, 5, LARGE, 8192);
            expect_end(&peer);
        });
    });
}

/// A close discards unread data. The other end may then read an error or end of file. End of file must
/// not hide data that was sent to it, and its writes must fail.
fn close_with_unread_data<T: Transport>(transport: &T) {
    either_end(transport, |local, peer| {
        send_pattern(&local, 6, SMALL, SMALL);
        send_pattern(&peer, 7, SMALL, SMALL);
        assert_eq!(receive(&local, 1).len(), 1, "the data has arrived");
        drop(readable(peer));
        match read_to_end(&local, 7, 1) {
            (received, StreamEnd::EndOfFile) => {
                assert_eq!(received, SMALL, "end of file hides lost data");
            }
            (_, StreamEnd::Error(kind)) => assert!(is_gone(kind), "{kind}"),
        }
        write_until_error(&local, 6, MOST_BUFFERED);
    });
}

/// Waits until a stream is readable and leaves its data unread.
fn readable<S: Stream>(stream: S) -> S {
    let ready = stream.wait(Ready::READ, LONGEST_WAIT).expect("a wait");
    assert!(ready.read, "the data did not arrive");
    stream
}

fn close_wakes_reader<T: Transport>(transport: &T) {
    either_end(transport, |local, peer| {
        close_later(peer, || expect_end(&local));
    });
}

fn close_wakes_writer<T: Transport>(transport: &T) {
    either_end(transport, |local, peer| {
        close_later(peer, || write_until_error(&local, 8, MOST_BUFFERED));
    });
}

fn close_wakes_waiter<T: Transport>(transport: &T) {
    either_end(transport, |local, peer| {
        close_later(peer, || {
            let ready = local.wait(Ready::READ, LONGEST_WAIT).expect("a wait");
            assert!(ready.read, "end of file counts as readable");
            expect_end(&local);
        });
    });
}

/// Closes a stream while `blocked` waits. The close must end the wait, not a timeout.
fn close_later<S: Stream>(stream: S, blocked: impl FnOnce()) {
    end_later(move || drop(stream), blocked);
}

fn end_later(end: impl FnOnce() + Send, blocked: impl FnOnce()) {
    let start = Instant::now();
    let ending = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // Gives the other thread time to block.
            thread::sleep(Duration::from_millis(200));
            ending.store(true, Ordering::SeqCst);
            end();
        });
        blocked();
        assert!(ending.load(Ordering::SeqCst), "woken before the end");
    });
    assert!(start.elapsed() < LONGEST_WAIT, "woken only by its timeout");
}

fn reset_is_seen<T: Transport>(transport: &T) {
    let reset = transport.reset().expect("checked before");
    either_end(transport, |local, peer| {
        send_pattern(&local, 9, SMALL, SMALL);
        reset(transport, local).expect("a reset");
        let (received, ending) = read_to_end(&peer, 9, 0);
        assert!(received <= SMALL);
        assert_eq!(ending, StreamEnd::Error(io::ErrorKind::ConnectionReset));
        write_until_error(&peer, 9, MOST_BUFFERED);
    });
}

fn reset_wakes_writer<T: Transport>(transport: &T) {
    let reset = transport.reset().expect("checked before");
    either_end(transport, |local, peer| {
        end_later(
            move || reset(transport, local).expect("a reset"),
            || write_until_error(&peer, 10, MOST_BUFFERED),
        );
    });
}
