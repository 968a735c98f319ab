//! Random operations at both ends, each compared with a reference model of queues and flags.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;

use hvsock_ring::{Interest, Monitor, Parts, RingEnd, RingError, RingSide, RingSize};
use proptest::collection::vec;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Write(Vec<usize>),
    Read(Vec<usize>),
    Peek(usize),
    Reserve {
        wanted: usize,
        commit: usize,
    },
    Fill {
        consume: usize,
    },
    ShutdownWrite,
    ShutdownRead,
    Drop,
    Reset,
    Suspend(bool),
    MonitorReset,
    /// Replaces the monitor by one made from its snapshot.
    RestoreMonitor,
    Drain,
}

fn op() -> impl Strategy<Value = Op> {
    let len = || prop_oneof![1..100usize, 1..9000usize];
    let lens = move || vec(len(), 1..4);
    prop_oneof![
        30 => lens().prop_map(Op::Write),
        30 => lens().prop_map(Op::Read),
        8 => len().prop_map(Op::Peek),
        10 => (len(), len()).prop_map(|(wanted, commit)| Op::Reserve { wanted, commit }),
        10 => len().prop_map(|consume| Op::Fill { consume }),
        4 => Just(Op::Drain),
        1 => Just(Op::ShutdownWrite),
        1 => Just(Op::ShutdownRead),
        1 => Just(Op::Drop),
        1 => prop_oneof![Just(Op::Reset), Just(Op::MonitorReset)],
        3 => any::<bool>().prop_map(Op::Suspend),
        4 => Just(Op::RestoreMonitor),
    ]
}

/// One end, and its expected state.
#[derive(Default)]
struct Half {
    end: Option<RingEnd>,
    /// Bytes written by this end and not read by the peer.
    sent: VecDeque<u8>,
    /// Bytes ever written by this end, from the first value of its counter on.
    written: u64,
    has_ended: bool,
    read_shut: bool,
}

impl Half {
    fn send(&mut self, bytes: &[u8]) {
        self.sent.extend(bytes);
        self.written = self.written.wrapping_add(bytes.len() as u64);
    }
}

struct Model {
    halves: [Half; 2],
    monitor: Monitor,
    memory: OwnedFd,
    capacity: usize,
    is_reset: bool,
    suspended: bool,
    next: u8,
}

impl Model {
    fn new(size: RingSize, starts: [u64; 2]) -> Self {
        let Parts {
            memory,
            first,
            second,
        } = Parts::new(size).unwrap();
        let end = |side: RingSide, doorbells| Half {
            end: Some(RingEnd::open_at(side, &memory, doorbells, starts).unwrap()),
            written: starts[usize::from(side == RingSide::Second)],
            ..Half::default()
        };
        let halves = [end(RingSide::First, first), end(RingSide::Second, second)];
        Self {
            halves,
            monitor: Monitor::new(&memory).unwrap(),
            memory,
            capacity: size.bytes() as usize,
            is_reset: false,
            suspended: false,
            next: 0,
        }
    }

    /// The error that a read at this end must return, if any.
    fn read_error(&self, at: usize) -> Option<RingError> {
        let (mine, other) = (&self.halves[at], &self.halves[1 - at]);
        let gone = other.end.is_none();
        if mine.read_shut {
            Some(RingError::EndOfStream)
        } else if self.suspended && !self.is_reset {
            Some(RingError::WouldBlock)
        } else if !other.sent.is_empty() {
            None
        } else if other.has_ended {
            let unread = gone && !mine.sent.is_empty();
            Some(if unread {
                RingError::UnreadData
            } else {
                RingError::EndOfStream
            })
        } else if self.is_reset {
            Some(RingError::Reset)
        } else {
            Some(if gone {
                RingError::PeerGone
            } else {
                RingError::WouldBlock
            })
        }
    }

    /// The error that a write at this end must return, if any.
    fn write_error(&self, at: usize) -> Option<RingError> {
        let (mine, other) = (&self.halves[at], &self.halves[1 - at]);
        if mine.has_ended {
            Some(RingError::WriteShutdown)
        } else if self.is_reset {
            Some(RingError::Reset)
        } else if other.read_shut || other.end.is_none() {
            Some(RingError::PeerClosed)
        } else {
            (mine.sent.len() == self.capacity).then_some(RingError::WouldBlock)
        }
    }

    fn free_space(&self, at: usize) -> usize {
        self.capacity - self.halves[at].sent.len()
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count)
            .map(|_| {
                self.next = self.next.wrapping_mul(5).wrapping_add(3);
                self.next
            })
            .collect()
    }

    /// Checks the result of a read, and removes `consumed` bytes from the model.
    fn check_read(
        &mut self,
        at: usize,
        most: usize,
        got: &Result<Vec<u8>, RingError>,
        consumed: usize,
    ) {
        if let Some(stop) = self.read_error(at) {
            assert_eq!(got, &Err(stop));
            return;
        }
        let sent = &mut self.halves[1 - at].sent;
        let count = most.min(sent.len());
        let expected: Vec<u8> = sent.iter().take(count).copied().collect();
        assert_eq!(got, &Ok(expected));
        sent.drain(..consumed.min(count));
    }

    fn check_write(&mut self, at: usize, bytes: &[u8], wrote: Result<usize, RingError>) {
        if let Some(stop) = self.write_error(at) {
            assert_eq!(wrote, Err(stop));
            return;
        }
        let count = bytes.len().min(self.free_space(at));
        assert_eq!(wrote, Ok(count));
        self.halves[at].send(&bytes[..count]);
    }

    fn apply(&mut self, at: usize, op: Op) {
        let Some(end) = self.halves[at].end.take() else {
            return;
        };
        match op {
            Op::Write(lens) => {
                let bytes = self.bytes(lens.iter().sum());
                let mut rest = &bytes[..];
                let slices: Vec<_> = lens
                    .iter()
                    .map(|len| IoSlice::new(rest.split_off(..*len).unwrap()))
                    .collect();
                let wrote = match &slices[..] {
                    [one] => end.try_write(one),
                    _ => end.try_write_vectored(&slices),
                };
                self.check_write(at, &bytes, wrote);
            }
            Op::Read(lens) => {
                let mut buffers: Vec<_> = lens.iter().map(|len| vec![0; *len]).collect();
                let mut slices: Vec<_> = buffers.iter_mut().map(|b| IoSliceMut::new(b)).collect();
                let read = match &mut slices[..] {
                    [one] => end.try_read(one),
                    _ => end.try_read_vectored(&mut slices),
                };
                let got = read.map(|count| buffers.concat()[..count].to_vec());
                self.check_read(at, lens.iter().sum(), &got, usize::MAX);
            }
            Op::Peek(most) => {
                let mut buffer = vec![0; most];
                let peeked = end.try_peek(&mut buffer);
                let got = peeked.map(|count| buffer[..count].to_vec());
                self.check_read(at, most, &got, 0);
            }
            Op::Reserve { wanted, commit } => {
                let bytes = self.bytes(wanted);
                let wrote = end.try_reserve(wanted).map(|mut reserved| {
                    let count = reserved.len();
                    assert_eq!(count, wanted.min(self.free_space(at)));
                    reserved.put(0, &bytes[..count]).unwrap();
                    if commit <= count {
                        reserved.publish(commit / 2).unwrap();
                        assert_eq!(reserved.len(), count - commit / 2);
                        reserved.commit(commit - commit / 2).unwrap();
                        commit
                    } else {
                        assert!(reserved.commit(commit).is_err());
                        0
                    }
                });
                match wrote {
                    Ok(count) => self.halves[at].send(&bytes[..count]),
                    Err(stop) => assert_eq!(Some(stop), self.write_error(at)),
                }
            }
            Op::Fill { consume } => {
                let got = end.try_fill().map(|mut filled| {
                    let mut bytes = vec![0; filled.len()];
                    filled.get(0, &mut bytes).unwrap();
                    let (count, first) = (consume.min(bytes.len()), consume.min(bytes.len()) / 2);
                    filled.release(first).unwrap();
                    let mut rest = vec![0; filled.len()];
                    filled.get(0, &mut rest).unwrap();
                    assert!(rest == bytes[first..]);
                    filled.consume(count - first).unwrap();
                    bytes
                });
                self.check_read(at, usize::MAX, &got, consume);
            }
            Op::ShutdownWrite => {
                end.shutdown_write();
                // A connection that was reset has no clean end.
                self.halves[at].has_ended |= !self.is_reset;
            }
            Op::ShutdownRead => {
                end.shutdown_read();
                self.halves[at].read_shut = true;
            }
            Op::Drop => {
                drop(end);
                if let Some(other) = &self.halves[1 - at].end {
                    other.drain_notifications();
                }
                return;
            }
            Op::Reset => {
                end.reset();
                self.is_reset = true;
            }
            Op::MonitorReset => {
                self.monitor.reset();
                self.is_reset = true;
            }
            Op::RestoreMonitor => {
                let text = serde_json::to_vec(&self.monitor.snapshot()).unwrap();
                let snapshot = serde_json::from_slice(&text).unwrap();
                self.monitor = Monitor::restore(snapshot, &self.memory).unwrap();
            }
            Op::Suspend(suspended) => {
                self.monitor.suspend(suspended);
                self.suspended = suspended;
            }
            Op::Drain => end.drain_notifications(),
        }
        self.halves[at].end = Some(end);
    }

    fn check(&self) {
        for (at, side) in RingSide::BOTH.into_iter().enumerate() {
            let half = &self.halves[at];
            assert_eq!(self.monitor.has_ended(side), half.has_ended);
            assert_eq!(self.monitor.written(side), half.written);
            let unread = !self.halves[1 - at].sent.is_empty();
            assert_eq!(self.monitor.leaves_unread(side), unread);
            let Some(end) = &half.end else { continue };
            let waits = [self.read_error(at), self.write_error(at)]
                .map(|stop| stop == Some(RingError::WouldBlock));
            assert_eq!([!end.is_readable(), !end.is_writable()], waits);
            assert_eq!(end.arm(Interest::READ), waits[0]);
            assert_eq!(end.arm(Interest::WRITE), waits[1]);
            assert_eq!(end.arm(Interest::EITHER), waits == [true, true]);
        }
    }
}

proptest! {
    #[test]
    fn two_ends_behave_like_two_queues(
        size in prop_oneof![Just(4096u32), Just(8192), Just(65536)],
        starts in [0, 1].map(|_| prop_oneof![
            Just(0u64),
            (0..20_000u64).prop_map(|less| (1u64 << 32) - less),
            (0..20_000u64).prop_map(|less| u64::MAX - less),
            any::<u64>(),
        ]),
        ops in vec((0..2usize, op()), 0..120),
    ) {
        let mut model = Model::new(RingSize::exactly(size).unwrap(), starts);
        for (at, op) in ops {
            model.apply(at, op);
            model.check();
        }
    }
}
