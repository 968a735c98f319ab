//! A hostile peer that follows a script of bytes, against an end that is used in every way. The
//! peer attacks the shared memory and the doorbells. It writes the memory through its descriptor,
//! which needs no pointer and changes the same pages.
//!
//! `fuzz/fuzz_targets/ring.rs` runs the fuzzer's scripts, and `main.rs` runs random ones.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

use hvsock_ring::{
    Bytes, Doorbells, Interest, Parts, RingEnd, RingError, RingSide, RingSize, pair,
};
use hvsock_sys::doorbell;

/// The offsets of the header words, from the table in docs/endpoint.md.
pub const STATE: u64 = 0;
/// The words of the direction from the first end to the second.
pub const HEAD: u64 = 128;
pub const TAIL: u64 = 256;
pub const AWAKE: u64 = 384;
pub const SPACE: u64 = 512;
pub const ENDED: u64 = 640;
pub const CLOSED: u64 = 644;
pub const WINDOW: u64 = 648;
/// The distance to the words of the other direction.
pub const BACK: u64 = 640;
pub const BYTES: u64 = 4096;

const CAPACITY: u64 = 4096;
/// A bound for hangs: no script takes this long, even on a loaded machine.
const LONG: Duration = Duration::from_secs(60);

/// The remaining bytes of a script, followed by zeros.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    fn count(&mut self) -> usize {
        usize::from(self.byte()) * usize::from(self.byte())
    }

    fn word(&mut self) -> u64 {
        (0..8).fold(0, |word, _| word << 8 | u64::from(self.byte()))
    }

    fn interest(&mut self) -> Interest {
        [Interest::READ, Interest::WRITE, Interest::EITHER][usize::from(self.byte() % 3)]
    }
}

/// One store of the peer.
#[derive(Clone, Copy, Debug)]
struct HostileStore {
    at: u64,
    /// Stored as it is, or added to the old value.
    value: u64,
    adds: bool,
    len: usize,
}

impl HostileStore {
    fn next(script: &mut Script<'_>) -> Self {
        let choice = script.byte();
        let words = [HEAD, TAIL, AWAKE, SPACE, ENDED, CLOSED];
        let at = match choice % 16 {
            0 => STATE,
            which @ 1..=12 => {
                let which = usize::from(which) - 1;
                words[which % 6] + BACK * (which as u64 / 6)
            }
            13 => WINDOW + BACK * u64::from(script.byte() & 1),
            14 => u64::from(script.byte()) * 16,
            _ => BYTES + script.count() as u64 % (2 * CAPACITY - 8),
        };
        let (value, adds) = match script.byte() % 12 {
            0 => (0, false),
            1 => (1, false),
            2 => (2, false),
            3 => (u64::MAX, false),
            4 => (1, true),
            5 => (u64::MAX, true),
            6 => (CAPACITY, true),
            7 => (CAPACITY + 1, true),
            8 => (1 << 32, true),
            9 => (1 << 63, true),
            10 => (script.byte().into(), true),
            _ => (script.word(), false),
        };
        let len = if choice & 0x80 == 0 { 8 } else { 4 };
        Self {
            at,
            value,
            adds,
            len,
        }
    }

    fn write(self, memory: &File) {
        let mut was = [0; 8];
        if self.adds {
            memory.read_exact_at(&mut was[..self.len], self.at).unwrap();
        }
        let value = u64::from_ne_bytes(was).wrapping_add(self.value);
        let bytes = value.to_ne_bytes();
        memory.write_all_at(&bytes[..self.len], self.at).unwrap();
    }
}

/// The end under attack, and the invariants that hold whatever the peer does.
struct Victim {
    end: RingEnd,
    is_violated: bool,
    buffer: Vec<u8>,
}

impl Victim {
    fn check(&mut self, result: Result<usize, RingError>, most: usize) {
        match result {
            Ok(count) => {
                assert!(count <= most, "{count} of {most}");
                assert!(!self.is_violated, "used after a violation");
            }
            Err(RingError::ProtocolViolation(_)) => self.is_violated = true,
            Err(RingError::WouldBlock) => assert!(!self.is_violated),
            Err(_) => {}
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let op = script.byte();
        let count = script.count() % 9000;
        match op % 12 {
            0 => {
                let read = self.end.try_read(&mut self.buffer[..count]);
                self.check(read, count);
            }
            1 => {
                let written = self.end.try_write(&self.buffer[..count]);
                self.check(written, count);
            }
            2 => {
                let peeked = self.end.try_peek(&mut self.buffer[..count]);
                self.check(peeked, count);
            }
            3 => {
                let result = self.reserve(count, script);
                self.check(result, count);
            }
            4 => {
                let result = self.fill(count, script);
                self.check(result, CAPACITY as usize);
            }
            5 | 6 => {
                let spin = Duration::from_micros(u64::from(op / 12));
                self.end.set_spin(spin);
                let deadline = Instant::now() + Duration::from_micros(count as u64 / 8);
                self.end
                    .wait(script.interest(), None, Some(deadline))
                    .unwrap();
            }
            7 => {
                self.end.arm(script.interest());
            }
            8 => {
                let interest = [Interest::READ, Interest::WRITE][count % 2];
                self.end.drain_notifications_as_task(interest);
                self.end.arm_task(interest, Waker::noop());
            }
            9 => self.end.drain_notifications(),
            10 => {
                self.end.is_ready(script.interest());
            }
            _ => match count % 16 {
                0 => self.end.shutdown_write(),
                1 => self.end.shutdown_read(),
                2 => self.end.reset(),
                _ => {}
            },
        }
    }

    fn reserve(&self, count: usize, script: &mut Script<'_>) -> Result<usize, RingError> {
        let mut reserved = self.end.try_reserve(count)?;
        let len = reserved.len();
        let at = script.count() % (len + 1);
        reserved.put(at, &self.buffer[..len - at]).unwrap();
        assert!(reserved.put(at, &vec![0; len - at + 1]).is_err());
        let (from, to) = UnixStream::pair().unwrap();
        doorbell::notify(&from).unwrap();
        if at < len {
            assert_eq!(reserved.read_from(&to, at).unwrap(), 1);
        }
        if script.byte().is_multiple_of(2) {
            // The peer may close in between, and even undo that.
            if let Err(error) = reserved.commit(len) {
                assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
            }
        }
        Ok(len)
    }

    fn fill(&mut self, count: usize, script: &mut Script<'_>) -> Result<usize, RingError> {
        let filled = self.end.try_fill()?;
        let len = filled.len();
        assert!(0 < len && len <= CAPACITY as usize);
        let at = script.count() % len;
        filled.get(at, &mut self.buffer[..len - at]).unwrap();
        assert!(filled.get(at, &mut vec![0; len - at + 1]).is_err());
        assert_eq!(
            filled.segments().into_iter().map(Bytes::len).sum::<usize>(),
            len
        );
        let null = File::options().write(true).open("/dev/null").unwrap();
        assert_eq!(filled.write_to(&null, at).unwrap(), len - at);
        filled.consume(count.min(len)).unwrap();
        Ok(len)
    }
}

/// Runs a script. Panics if the end breaks an invariant or hangs.
pub fn run(script: &[u8]) {
    let start = Instant::now();
    let mut script = Script(script);
    let Parts {
        memory,
        first,
        second,
    } = Parts::new(RingSize::MIN).unwrap();
    let other = pair(RingSize::MIN).unwrap();
    let mut victim = Victim {
        end: RingEnd::open(RingSide::First, &memory, first).unwrap(),
        is_violated: false,
        buffer: vec![7; 9000],
    };
    // The peer also has an honest end.
    let Doorbells { own, peer } = second;
    let mut doorbell_of_victim = Some(peer.try_clone().unwrap());
    let second = Doorbells { own, peer };
    let mut honest = Some(RingEnd::open(RingSide::Second, &memory, second).unwrap());
    let memory = Arc::new(File::from(memory));
    let over = Arc::new(AtomicBool::new(false));
    let mut attacker = None;
    let mut steps = 0;
    while !script.0.is_empty() && steps < 200 {
        steps += 1;
        match script.byte() % 16 {
            0..4 => HostileStore::next(&mut script).write(&memory),
            4 => notify(doorbell_of_victim.as_ref(), script.byte()),
            5 => match script.byte() {
                0..8 => doorbell_of_victim = None,
                8..16 => honest = None,
                byte @ 16..80 if attacker.is_none() => {
                    let stores: Vec<_> = (0..=byte / 16)
                        .map(|_| HostileStore::next(&mut script))
                        .collect();
                    let (memory, over) = (Arc::clone(&memory), Arc::clone(&over));
                    attacker = Some(thread::spawn(move || attack(&stores, &memory, &over)));
                }
                _ => {}
            },
            6 => {
                if let Some(honest) = &honest {
                    let _ = honest.try_write(&vec![9; script.count() % 5000]);
                }
            }
            7 => {
                if let Some(honest) = &honest {
                    let _ = honest.try_read(&mut vec![0; script.count() % 5000]);
                }
            }
            _ => victim.step(&mut script),
        }
    }
    over.store(true, Ordering::Relaxed);
    if let Some(attacker) = attacker {
        attacker.join().unwrap();
    }
    // Other connections are not affected.
    assert_eq!(other.0.try_write(b"fine"), Ok(4));
    let mut got = [0; 9];
    assert_eq!(other.1.try_read(&mut got), Ok(4));
    assert_eq!(&got[..4], b"fine");
    assert!(start.elapsed() < LONG, "{:?}", start.elapsed());
}

fn notify(doorbell: Option<&OwnedFd>, times: u8) {
    for _ in 0..times {
        if let Some(doorbell) = doorbell {
            doorbell::notify(doorbell).unwrap();
        }
    }
}

fn attack(stores: &[HostileStore], memory: &File, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        stores.iter().for_each(|store| store.write(memory));
    }
}
