//! Random operations at both ends, each compared with what queues and flags say.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};

use hvsock_ring::{End, Interest, Monitor, Parts, RingSize, Side, Stop};
use proptest::collection::vec;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum What {
    Write(Vec<usize>),
    Read(Vec<usize>),
    Peek(usize),
    Reserve { wanted: usize, commit: usize },
    Fill { consume: usize },
    ShutdownWrite,
    ShutdownRead,
    Drop,
    Cut,
    Suspend(bool),
    MonitorCut,
    Hear,
}

fn what() -> impl Strategy<Value = What> {
    let len = || prop_oneof![1..100usize, 1..9000usize];
    let lens = move || vec(len(), 1..4);
    prop_oneof![
        30 => lens().prop_map(What::Write),
        30 => lens().prop_map(What::Read),
        8 => len().prop_map(What::Peek),
        10 => (len(), len()).prop_map(|(wanted, commit)| What::Reserve { wanted, commit }),
        10 => len().prop_map(|consume| What::Fill { consume }),
        4 => Just(What::Hear),
        1 => Just(What::ShutdownWrite),
        1 => Just(What::ShutdownRead),
        1 => Just(What::Drop),
        1 => prop_oneof![Just(What::Cut), Just(What::MonitorCut)],
        3 => any::<bool>().prop_map(What::Suspend),
    ]
}

/// One end, and what it is to know.
#[derive(Default)]
struct Half {
    end: Option<End>,
    /// What it has written and the other end has not read.
    sent: VecDeque<u8>,
    has_ended: bool,
    reads_no_more: bool,
}

struct World {
    halves: [Half; 2],
    monitor: Monitor,
    capacity: usize,
    cut: bool,
    suspended: bool,
    next: u8,
}

impl World {
    fn new(size: RingSize, starts: [u64; 2]) -> Self {
        let Parts {
            memory,
            first,
            second,
        } = Parts::new(size).unwrap();
        let monitor = Monitor::new(&memory).unwrap();
        let end = |side, bells| Half {
            end: Some(End::open_at(side, &memory, bells, starts).unwrap()),
            ..Half::default()
        };
        Self {
            halves: [end(Side::First, first), end(Side::Second, second)],
            monitor,
            capacity: size.bytes() as usize,
            cut: false,
            suspended: false,
            next: 0,
        }
    }

    /// Why reading comes to nothing at this end, if it does.
    fn read_stop(&self, at: usize) -> Option<Stop> {
        let (mine, other) = (&self.halves[at], &self.halves[1 - at]);
        let gone = other.end.is_none();
        if mine.reads_no_more {
            Some(Stop::End)
        } else if self.suspended && !self.cut {
            Some(Stop::WouldBlock)
        } else if !other.sent.is_empty() {
            None
        } else if other.has_ended {
            let unread = gone && !mine.sent.is_empty();
            Some(if unread { Stop::Unread } else { Stop::End })
        } else if self.cut {
            Some(Stop::Cut)
        } else {
            Some(if gone { Stop::Gone } else { Stop::WouldBlock })
        }
    }

    fn write_stop(&self, at: usize) -> Option<Stop> {
        let (mine, other) = (&self.halves[at], &self.halves[1 - at]);
        if mine.has_ended {
            Some(Stop::Ended)
        } else if self.cut {
            Some(Stop::Cut)
        } else if other.reads_no_more || other.end.is_none() {
            Some(Stop::Closed)
        } else {
            (mine.sent.len() == self.capacity).then_some(Stop::WouldBlock)
        }
    }

    fn room(&self, at: usize) -> usize {
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

    /// Looks whether a read gave what it should have, and takes `consumed` of it away.
    fn check_read(&mut self, at: usize, most: usize, got: &Result<Vec<u8>, Stop>, consumed: usize) {
        if let Some(stop) = self.read_stop(at) {
            assert_eq!(got, &Err(stop));
            return;
        }
        let sent = &mut self.halves[1 - at].sent;
        let count = most.min(sent.len());
        let expected: Vec<u8> = sent.iter().take(count).copied().collect();
        assert_eq!(got, &Ok(expected));
        sent.drain(..consumed.min(count));
    }

    fn check_write(&mut self, at: usize, bytes: &[u8], wrote: Result<usize, Stop>) {
        if let Some(stop) = self.write_stop(at) {
            assert_eq!(wrote, Err(stop));
            return;
        }
        let count = bytes.len().min(self.room(at));
        assert_eq!(wrote, Ok(count));
        self.halves[at].sent.extend(&bytes[..count]);
    }

    fn step(&mut self, at: usize, what: What) {
        let Some(end) = self.halves[at].end.take() else {
            return;
        };
        match what {
            What::Write(lens) => {
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
            What::Read(lens) => {
                let mut buffers: Vec<_> = lens.iter().map(|len| vec![0; *len]).collect();
                let mut slices: Vec<_> = buffers.iter_mut().map(|b| IoSliceMut::new(b)).collect();
                let read = match &mut slices[..] {
                    [one] => end.try_read(one),
                    _ => end.try_read_vectored(&mut slices),
                };
                let got = read.map(|count| buffers.concat()[..count].to_vec());
                self.check_read(at, lens.iter().sum(), &got, usize::MAX);
            }
            What::Peek(most) => {
                let mut buffer = vec![0; most];
                let peeked = end.try_peek(&mut buffer);
                let got = peeked.map(|count| buffer[..count].to_vec());
                self.check_read(at, most, &got, 0);
            }
            What::Reserve { wanted, commit } => {
                let bytes = self.bytes(wanted);
                let wrote = end.try_reserve(wanted).map(|mut room| {
                    let count = room.len();
                    assert_eq!(count, wanted.min(self.room(at)));
                    room.put(0, &bytes[..count]).unwrap();
                    if commit <= count {
                        room.commit(commit).unwrap();
                        commit
                    } else {
                        assert!(room.commit(commit).is_err());
                        0
                    }
                });
                match wrote {
                    Ok(count) => self.halves[at].sent.extend(&bytes[..count]),
                    Err(stop) => assert_eq!(Some(stop), self.write_stop(at)),
                }
            }
            What::Fill { consume } => {
                let got = end.try_fill().map(|lent| {
                    let mut bytes = vec![0; lent.len()];
                    lent.get(0, &mut bytes).unwrap();
                    lent.consume(consume.min(bytes.len())).unwrap();
                    bytes
                });
                self.check_read(at, usize::MAX, &got, consume);
            }
            What::ShutdownWrite => {
                end.shutdown_write();
                // What is cut ends no more.
                self.halves[at].has_ended |= !self.cut;
            }
            What::ShutdownRead => {
                end.shutdown_read();
                self.halves[at].reads_no_more = true;
            }
            What::Drop => {
                drop(end);
                if let Some(other) = &self.halves[1 - at].end {
                    other.hear();
                }
                return;
            }
            What::Cut => {
                end.cut();
                self.cut = true;
            }
            What::MonitorCut => {
                self.monitor.cut();
                self.cut = true;
            }
            What::Suspend(suspended) => {
                self.monitor.suspend(suspended);
                self.suspended = suspended;
            }
            What::Hear => end.hear(),
        }
        self.halves[at].end = Some(end);
    }

    fn check(&self) {
        for (at, side) in Side::BOTH.into_iter().enumerate() {
            let half = &self.halves[at];
            assert_eq!(self.monitor.has_ended(side), half.has_ended);
            let unread = !self.halves[1 - at].sent.is_empty();
            assert_eq!(self.monitor.leaves_unread(side), unread);
            let Some(end) = &half.end else { continue };
            let waits = [self.read_stop(at), self.write_stop(at)]
                .map(|stop| stop == Some(Stop::WouldBlock));
            assert_eq!([!end.is_readable(), !end.is_writable()], waits);
            assert_eq!(end.arm(Interest::READ), waits[0]);
            assert_eq!(end.arm(Interest::WRITE), waits[1]);
            assert_eq!(end.arm(Interest::EITHER), waits == [true, true]);
        }
    }
}

proptest! {
    #[test]
    fn ends_do_what_queues_do(
        size in prop_oneof![Just(4096u32), Just(8192), Just(65536)],
        starts in [0, 1].map(|_| prop_oneof![
            Just(0u64),
            (0..20_000u64).prop_map(|less| (1u64 << 32) - less),
            (0..20_000u64).prop_map(|less| u64::MAX - less),
            any::<u64>(),
        ]),
        steps in vec((0..2usize, what()), 0..120),
    ) {
        let mut world = World::new(RingSize::exactly(size).unwrap(), starts);
        for (at, what) in steps {
            world.step(at, what);
            world.check();
        }
    }
}
