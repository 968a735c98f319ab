//! How a direction ends: after its data, by its reader, or by a reset.

use super::*;
use crate::layout::{READER_GONE, RESET};
use crate::sync::{Ordering, fence};

#[test]
fn a_parked_reader_sees_the_end_of_the_stream_after_all_data() {
    explore_pair(
        BOUND,
        |mut writer| {
            writer.write(1);
            writer.write(1);
            writer.end();
        },
        |mut reader| {
            loop {
                let available = reader.available();
                if available > 0 {
                    reader.disarm();
                    reader.read(available);
                } else if reader.has_ended() {
                    break;
                } else if reader.arm() {
                    reader.shared.reader.wait_and_drain();
                }
            }
            assert_eq!(reader.next, 2);
        },
    );
}

#[test]
fn a_reader_that_closes_wakes_a_parked_writer() {
    explore_pair(
        None,
        |mut writer| {
            writer.write(CAPACITY);
            while !writer.is_closed() {
                if writer.arm(1) {
                    writer.shared.writer.wait_and_drain();
                }
            }
        },
        |reader| reader.close(),
    );
}

#[test]
fn a_reset_wakes_parked_threads() {
    explore(None, || {
        let (mut writer, mut reader) = sides();
        let shared = Arc::clone(&writer.shared);
        writer.write(CAPACITY);
        reader.available();
        reader.read(0);
        let resets = thread::spawn(move || {
            shared.state().fetch_or(RESET, Ordering::Release);
            shared.writer.notify();
        });
        let shared = Arc::clone(&writer.shared);
        while shared.state().load(Ordering::Acquire) & RESET == 0 {
            if writer.arm(1) {
                shared.writer.wait_and_drain();
            }
        }
        resets.join().unwrap();
    });
    explore(None, || {
        let (_writer, mut reader) = sides();
        let shared = Arc::clone(&reader.shared);
        let resets = thread::spawn(move || {
            shared.state().fetch_or(RESET, Ordering::Release);
            shared.reader.notify();
        });
        let shared = Arc::clone(&reader.shared);
        while shared.state().load(Ordering::Acquire) & RESET == 0 {
            if reader.arm() {
                shared.reader.wait_and_drain();
            }
        }
        resets.join().unwrap();
    });
}

#[test]
fn a_reset_stream_never_ends_cleanly_without_all_its_data() {
    explore_pair(
        None,
        |mut writer| {
            // It loaded the state before the reset.
            writer.write(1);
            writer.write(1);
            writer.end();
        },
        |mut reader| {
            let shared = Arc::clone(&reader.shared);
            reader.consumer.limit(shared.words()).unwrap();
            let available = reader.available();
            reader.read(available);
            assert_eq!(reader.available(), 0);
            if reader.has_ended() {
                assert_eq!(reader.next, 2);
            }
        },
    );
}

/// No data is lost silently.
#[test]
fn a_closing_reader_or_the_writer_detects_unread_data() {
    unread_data_is_detected(Reader::close);
}

/// The reader's process is gone without closing, and the broker closes on its behalf with
/// `Monitor::close`.
#[test]
fn the_broker_or_the_writer_detects_data_left_unread_by_a_killed_reader() {
    unread_data_is_detected(|reader| {
        let close = &reader.shared.words().close.0;
        close.closed.store(READER_GONE, Ordering::Release);
        fence(Ordering::SeqCst);
    });
}

fn unread_data_is_detected(close: fn(&Reader)) {
    explore(None, move || {
        let (mut writer, reader) = sides();
        let writes = thread::spawn(move || {
            writer.write(1);
            writer.is_closed()
        });
        close(&reader);
        let words = reader.shared.words();
        let leaves = words.head.0.load(Ordering::Acquire) != words.tail.0.load(Ordering::Acquire);
        assert!(writes.join().unwrap() || leaves);
    });
}

/// Whoever sees the end of a close sees the close as well, and with it what was left unread.
#[test]
fn the_end_of_a_closed_end_is_never_seen_without_its_close() {
    explore(None, || {
        let shared = sides().0.shared;
        let other = Arc::clone(&shared);
        // As `RingEnd::finish` does: the end reads direction 0 and writes direction 1.
        let closes = thread::spawn(move || {
            let [read, written] = &other.header.directions;
            let _ = Consumer::close(read, READER_GONE);
            let _ = Producer::new(CAPACITY, START).end(written);
        });
        let [written, read] = &shared.header.directions;
        if read.close.0.ended.load(Ordering::Acquire) != 0 {
            assert!(crate::producer::is_reader_gone(written));
        }
        closes.join().unwrap();
    });
}
