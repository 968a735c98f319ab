//! The part of a ring that a writer uses.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::thread;

use hvsock_ring::{Interest, Parts, RingEnd, RingError, RingSide, RingSize, Violation};
use proptest::collection::vec;
use proptest::prelude::*;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
/// The offset of the ring that the first end writes, and of its word.
const BYTES: usize = 4096;
const WINDOW: u64 = 648;

/// Both ends of a connection, and its memory.
struct Connection {
    memory: File,
    first: RingEnd,
    second: RingEnd,
}

impl Connection {
    fn new(size: usize) -> Self {
        let size = RingSize::exactly(size as u32).unwrap();
        let parts = Parts::new(size).unwrap();
        Self {
            first: RingEnd::open(RingSide::First, &parts.memory, parts.first).unwrap(),
            second: RingEnd::open(RingSide::Second, &parts.memory, parts.second).unwrap(),
            memory: parts.memory.into(),
        }
    }

    /// Makes the second end publish that it follows the window.
    fn follow(self) -> Self {
        assert!(!self.second.is_ready(Interest::READ));
        self
    }

    /// Whether the ring that the first end writes was ever used beyond `offset`.
    fn is_used_beyond(&self, offset: usize) -> bool {
        let size = self.first.size().bytes() as usize;
        let mut bytes = vec![0; size - offset];
        self.memory
            .read_exact_at(&mut bytes, (BYTES + offset) as u64)
            .unwrap();
        bytes.iter().any(|byte| *byte != 0)
    }

    /// Streams `total` bytes between two threads, and checks each.
    fn stream(&self, total: usize) {
        thread::scope(|scope| {
            scope.spawn(|| {
                for at in (0..total).step_by(32 * KIB) {
                    let byte = (at / (32 * KIB) % 250 + 1) as u8;
                    (&self.first).write_all(&[byte; 32 * KIB]).unwrap();
                }
            });
            let mut bytes = [0; 32 * KIB];
            for at in (0..total).step_by(32 * KIB) {
                (&self.second).read_exact(&mut bytes).unwrap();
                let byte = (at / (32 * KIB) % 250 + 1) as u8;
                assert!(bytes.iter().all(|found| *found == byte), "at {at}");
            }
        });
    }
}

#[test]
fn messages_use_only_the_window_however_many_they_are() {
    let connection = Connection::new(64 * KIB).follow();
    connection.first.set_window(4096);
    for _ in 0..2000 {
        assert_eq!(connection.first.try_write(&[1; 1000]), Ok(1000));
        assert_eq!(connection.second.try_read(&mut [0; 1000]), Ok(1000));
    }
    assert!(!connection.is_used_beyond(4096));
    assert_eq!(connection.first.try_write(&[1; 9000]), Ok(4096));
    assert_eq!(connection.first.try_write(&[1]), Err(RingError::WouldBlock));
    assert_eq!(connection.first.read_by_peer(), Ok(2000 * 1000));
}

#[test]
fn a_short_stream_uses_the_window_and_a_long_one_the_whole_ring() {
    let connection = Connection::new(256 * KIB).follow();
    connection.first.set_window(32 * 1024);
    connection.stream(MIB);
    assert!(!connection.is_used_beyond(32 * KIB));
    connection.stream(80 * MIB);
    assert!(connection.is_used_beyond(192 * KIB));
}

#[test]
fn the_window_of_a_writer_begins_when_its_reader_follows_and_has_read_all() {
    let connection = Connection::new(64 * KIB);
    connection.first.set_window(4096);
    // The reader has not begun. It may be of a release that knows no window.
    assert_eq!(connection.first.try_write(&[1; 9000]), Ok(9000));
    assert_eq!(connection.second.try_read(&mut [0; 8999]), Ok(8999));
    assert_eq!(connection.first.try_write(&[1; 5000]), Ok(5000));
    assert_eq!(connection.second.try_read(&mut [0; 9000]), Ok(5001));
    assert_eq!(connection.first.try_write(&[1; 5000]), Ok(4096));
}

#[test]
fn an_impossible_window_is_a_violation() {
    for window in [1_u32, 3, 4097, 128 * 1024, u32::MAX] {
        let connection = Connection::new(64 * KIB).follow();
        assert_eq!(connection.first.try_write(&[1; 100]), Ok(100));
        connection
            .memory
            .write_all_at(&window.to_le_bytes(), WINDOW)
            .unwrap();
        let read = connection.second.try_read(&mut [0; 100]);
        if window == 1 {
            // A part that is too small for the bytes that are there.
            assert_eq!(read, Err(RingError::ProtocolViolation(Violation::Head)));
        } else {
            assert_eq!(read, Err(RingError::ProtocolViolation(Violation::Window)));
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write(usize),
    Read(usize),
    Window(u32),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (1..20_000_usize).prop_map(Op::Write),
        6 => (1..20_000_usize).prop_map(Op::Read),
        1 => (11..18_u32).prop_map(|power| Op::Window(1 << power)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(hvsock_testkit::cases(200)))]

    #[test]
    fn any_sequence_of_windows_keeps_every_byte(ops in vec(op(), 1..200)) {
        let connection = Connection::new(64 * KIB).follow();
        let mut sent = VecDeque::new();
        let mut next = 0_u8;
        for op in ops {
            match op {
                Op::Window(bytes) => connection.first.set_window(bytes),
                Op::Write(count) => {
                    let bytes: Vec<u8> = (0..count)
                        .map(|_| {
                            next = next.wrapping_add(1);
                            next
                        })
                        .collect();
                    let written = connection.first.try_write(&bytes).unwrap_or(0);
                    prop_assert!(written > 0 || !sent.is_empty());
                    sent.extend(&bytes[..written]);
                    next = next.wrapping_sub((count - written) as u8);
                }
                Op::Read(count) => {
                    let mut bytes = vec![0; count];
                    let read = connection.second.try_read(&mut bytes).unwrap_or(0);
                    prop_assert_eq!(read, count.min(sent.len()));
                    let expected: Vec<u8> = sent.drain(..read).collect();
                    prop_assert_eq!(&bytes[..read], &expected[..]);
                }
            }
        }
    }
}
