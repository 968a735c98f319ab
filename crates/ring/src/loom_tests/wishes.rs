//! Wake-ups for data and for room, and what becomes of a wish.

use super::*;

/// Reads so many bytes one by one, asleep where there are none.
fn read_all(reader: &mut Reader, count: u8) {
    while reader.next < count {
        match reader.available() {
            0 if reader.arm() => {
                reader.shared.reader.hear();
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
fn a_reader_does_not_sleep_through_data() {
    try_all(
        BOUND,
        |mut writer| {
            writer.write(1);
            writer.write(1);
        },
        |mut reader| read_all(&mut reader, 2),
    );
}

#[test]
fn a_writer_does_not_sleep_through_room() {
    try_all(
        None,
        |mut writer| {
            writer.write(CAPACITY);
            while writer.room(2) < 2 {
                if writer.arm(2) {
                    writer.shared.writer.hear();
                }
            }
            writer.write(2);
        },
        |mut reader| {
            // A reader that does not sleep: there is as much as it takes before it stops.
            while reader.available() < CAPACITY {
                thread::yield_now();
            }
            reader.read(1);
            reader.read(1);
        },
    );
}

#[test]
fn a_writer_and_a_reader_that_both_sleep_go_on() {
    bounded(BOUND, || {
        let (mut writer, mut reader) = ends();
        let writes = thread::spawn(move || {
            for count in [3, 2] {
                while writer.room(count) < count {
                    if writer.arm(count) {
                        writer.shared.writer.hear();
                    }
                }
                writer.write(count);
            }
        });
        read_all(&mut reader, 5);
        writes.join().unwrap();
    });
}

/// Every ring answers one wish, and who takes the wish back knows of the ring.
#[test]
fn a_bell_is_rung_once_for_a_wish_and_never_behind_its_back() {
    bounded(None, || {
        let (mut writer, mut reader) = ends();
        let writes = thread::spawn(move || {
            writer.write(1);
            writer.write(1);
            writer.write(1);
        });
        // A new reader's wish stands.
        let mut known = usize::from(reader.disarm() == Some(true));
        for _ in 0..2 {
            reader.arm();
            known += usize::from(reader.disarm() == Some(true));
        }
        assert_eq!(reader.disarm(), None);
        // Nothing is wished now, so what is known is all that there is to come.
        writes.join().unwrap();
        assert_eq!(reader.shared.reader.ever(), known);
    });
}

/// Likewise for room.
#[test]
fn a_writers_bell_is_rung_once_for_a_wish() {
    bounded(None, || {
        let (mut writer, mut reader) = ends();
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
        assert_eq!(writer.shared.writer.ever(), known);
    });
}

/// Taking rings that nobody needs to hear off the bell takes none that is to be heard, and leaves
/// none for ever: `End::tidy_bell`.
#[test]
fn a_ring_for_a_wish_that_stands_stays() {
    try_all(
        None,
        |mut writer| {
            // For nothing.
            writer.shared.reader.ring();
            writer.write(1);
        },
        |mut reader| {
            let shared = Arc::clone(&reader.shared);
            let tidy = |reader: &Reader| {
                let rings = shared.reader.now();
                let stay = reader.consumer.is_rung_for(shared.words());
                shared.reader.take(rings.saturating_sub(usize::from(stay)));
            };
            while reader.arm() {
                tidy(&reader);
                shared.reader.wait();
                if reader.available() == 0 {
                    tidy(&reader);
                }
            }
            assert_eq!(reader.available(), 1);
        },
    );
}
