//! A writer that uses another part of its ring.

use super::*;

/// Reads until it has read `count` bytes, each from where it was written.
fn read_all(mut reader: Reader, count: u8) {
    while reader.next < count {
        match reader.available() {
            0 if reader.arm() => {
                reader.shared.reader.wait_and_drain();
            }
            0 => {}
            available => {
                reader.disarm();
                reader.read(available);
            }
        }
    }
}

#[test]
fn every_byte_is_read_in_the_part_of_the_ring_that_it_was_written_in() {
    explore_pair(
        BOUND,
        |mut writer| {
            // At offsets 3, 0 and 1; the next one would be at 2, or at 0 of a window of 2 bytes.
            writer.write(3);
            writer.producer.use_window(2);
            loop {
                let changed = writer.producer.change_window(writer.shared.words());
                changed.unwrap();
                if !writer.producer.is_changing_window() {
                    break;
                }
                if writer.arm(CAPACITY) {
                    writer.shared.writer.wait_and_drain();
                }
            }
            writer.write(2);
        },
        |reader| read_all(reader, 5),
    );
}

#[test]
fn a_writer_that_returns_to_the_whole_ring_overwrites_no_unread_byte() {
    explore_pair(
        BOUND,
        |mut writer| {
            writer.producer.use_window(2);
            writer
                .producer
                .change_window(writer.shared.words())
                .unwrap();
            writer.write(2);
            writer.producer.use_whole();
            loop {
                let changed = writer.producer.change_window(writer.shared.words());
                changed.unwrap();
                if !writer.producer.is_changing_window() {
                    break;
                }
                if writer.arm(CAPACITY) {
                    writer.shared.writer.wait_and_drain();
                }
            }
            writer.write(3);
        },
        |reader| read_all(reader, 5),
    );
}
