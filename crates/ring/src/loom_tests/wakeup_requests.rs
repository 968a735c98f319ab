//! Wakeups for data and for free space, and how a wakeup request ends.

use super::*;

/// Reads `count` bytes one by one, and parks when there are none.
fn read_all(reader: &mut Reader, count: u8) {
    while reader.next < count {
        match reader.available() {
            0 if reader.arm() => {
                reader.shared.reader.wait_and_drain();
            }
            0 => {}
            _ => {
                reader.disarm();
                reader.read(1);
            }
        }
    }
}

#[test]
fn data_wakes_a_parked_reader() {
    explore_pair(
        BOUND,
        |mut writer| {
            writer.write(1);
            writer.write(1);
        },
        |mut reader| read_all(&mut reader, 2),
    );
}

#[test]
fn free_space_wakes_a_parked_writer() {
    explore_pair(
        None,
        |mut writer| {
            writer.write(CAPACITY);
            while writer.free_space(2) < 2 {
                if writer.arm(2) {
                    writer.shared.writer.wait_and_drain();
                }
            }
            writer.write(2);
        },
        |mut reader| {
            // This reader does not park: it waits for a full ring.
            while reader.available() < CAPACITY {
                thread::yield_now();
            }
            reader.read(1);
            reader.read(1);
        },
    );
}

#[test]
fn a_writer_and_a_reader_that_both_park_make_progress() {
    explore(BOUND, || {
        let (mut writer, mut reader) = sides();
        let writes = thread::spawn(move || {
            for count in [3, 2] {
                while writer.free_space(count) < count {
                    if writer.arm(count) {
                        writer.shared.writer.wait_and_drain();
                    }
                }
                writer.write(count);
            }
        });
        read_all(&mut reader, 5);
        writes.join().unwrap();
    });
}

/// Each notification answers one request, and withdrawing a request reports its notification.
#[test]
fn a_reader_gets_one_notification_per_request_and_counts_each() {
    explore(None, || {
        let (mut writer, mut reader) = sides();
        let writes = thread::spawn(move || {
            writer.write(1);
            writer.write(1);
            writer.write(1);
        });
        // A new connection starts with a request of the reader.
        let mut known = usize::from(reader.disarm() == Some(true));
        for _ in 0..2 {
            reader.arm();
            known += usize::from(reader.disarm() == Some(true));
        }
        assert_eq!(reader.disarm(), None);
        // There is no request now, so no further notification can come.
        writes.join().unwrap();
        assert_eq!(reader.shared.reader.total(), known);
    });
}

/// The same for free space.
#[test]
fn a_writer_gets_one_notification_per_request() {
    explore(None, || {
        let (mut writer, mut reader) = sides();
        writer.write(CAPACITY);
        let reads = thread::spawn(move || {
            reader.available();
            reader.read(1);
            reader.read(1);
            reader.read(1);
        });
        let mut known = 0;
        for _ in 0..2 {
            writer.arm(1);
            let words = writer.shared.words();
            known += usize::from(writer.producer.disarm(words) == Some(true));
        }
        reads.join().unwrap();
        assert_eq!(writer.shared.writer.total(), known);
    });
}

/// Draining stale notifications keeps one that answers an open request, and leaves no stale one for
/// ever: `RingEnd::drain_stale`.
#[test]
fn a_notification_for_an_open_request_is_not_drained_as_stale() {
    explore_pair(
        None,
        |mut writer| {
            // A spurious notification.
            writer.shared.reader.notify();
            writer.write(1);
        },
        |mut reader| {
            let shared = Arc::clone(&reader.shared);
            let drain_stale = |reader: &Reader| {
                let pending = shared.reader.pending();
                let keep = reader.consumer.is_notified(shared.words());
                shared
                    .reader
                    .drain(pending.saturating_sub(usize::from(keep)));
            };
            while reader.arm() {
                drain_stale(&reader);
                shared.reader.wait();
                if reader.available() == 0 {
                    drain_stale(&reader);
                }
            }
            assert_eq!(reader.available(), 1);
        },
    );
}
