//! How a direction ends: after its data, by its reader, by a cut.

use super::*;
use crate::layout::{CUT, GONE};
use crate::sync::{Ordering, fence};

#[test]
fn the_end_is_seen_by_a_sleeper_and_after_all_data() {
    try_all(
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
                    reader.shared.reader.hear();
                }
            }
            assert_eq!(reader.next, 2);
        },
    );
}

#[test]
fn a_sleeping_writer_hears_that_nobody_reads() {
    try_all(
        None,
        |mut writer| {
            writer.write(CAPACITY);
            while !writer.is_closed() {
                if writer.arm(1) {
                    writer.shared.writer.hear();
                }
            }
        },
        |reader| reader.close(),
    );
}

#[test]
fn a_cut_wakes_who_sleeps() {
    bounded(None, || {
        let (mut writer, mut reader) = ends();
        let shared = Arc::clone(&writer.shared);
        writer.write(CAPACITY);
        reader.available();
        reader.read(0);
        let cuts = thread::spawn(move || {
            shared.state().fetch_or(CUT, Ordering::Release);
            shared.writer.ring();
        });
        let shared = Arc::clone(&writer.shared);
        while shared.state().load(Ordering::Acquire) & CUT == 0 {
            if writer.arm(1) {
                shared.writer.hear();
            }
        }
        cuts.join().unwrap();
    });
    bounded(None, || {
        let (_writer, mut reader) = ends();
        let shared = Arc::clone(&reader.shared);
        let cuts = thread::spawn(move || {
            shared.state().fetch_or(CUT, Ordering::Release);
            shared.reader.ring();
        });
        let shared = Arc::clone(&reader.shared);
        while shared.state().load(Ordering::Acquire) & CUT == 0 {
            if reader.arm() {
                shared.reader.hear();
            }
        }
        cuts.join().unwrap();
    });
}

#[test]
fn a_cut_stream_never_ends_well_without_all_its_data() {
    try_all(
        None,
        |mut writer| {
            // It has looked at the state before the cut.
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

/// Nothing is lost in silence.
#[test]
fn what_a_reader_leaves_unread_is_known_to_it_or_to_the_writer() {
    lost_is_known(Reader::close);
}

/// The broker's `settle`: the reader's process is gone and said nothing, and `Monitor::close`
/// speaks for it.
#[test]
fn what_is_lost_with_a_reader_that_went_is_known_to_the_broker_or_to_the_writer() {
    lost_is_known(|reader| {
        let ends = &reader.shared.words().ends.0;
        ends.closed.store(GONE, Ordering::Release);
        fence(Ordering::SeqCst);
    });
}

fn lost_is_known(close: fn(&Reader)) {
    bounded(None, move || {
        let (mut writer, reader) = ends();
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
