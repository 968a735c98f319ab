//! Threads and event loops that stream data; every byte is checked.

use std::io::{Read, Write};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use hvsock_ring::{Interest, Parts, RingEnd, RingError, RingSide, RingSize, pair};
use hvsock_sys::poll::{self, PollFd, PollFlags};
use rustix::event::{Timespec, epoll};

/// A bound for hangs, far above the time of any test.
const LONG: Duration = Duration::from_secs(60);

/// Reduces the work under a sanitizer or valgrind, which are slow.
fn scaled(usual: usize) -> usize {
    match std::env::var_os("HVSOCK_RING_SLOW") {
        Some(_) => usual / 20,
        None => usual,
    }
}

/// The byte at a position of the test stream.
fn byte_at(position: usize) -> u8 {
    ((position as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

fn bytes_at(position: usize, count: usize) -> Vec<u8> {
    (position..position + count).map(byte_at).collect()
}

/// A deterministic xorshift generator.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    /// Sometimes sleeps or yields.
    fn delay(&mut self) {
        match self.below(400) {
            0 => thread::sleep(Duration::from_micros(300)),
            1..10 => thread::yield_now(),
            _ => {}
        }
    }
}

fn write_stream(mut end: &RingEnd, total: usize, seed: u64) {
    let (mut random, mut position) = (Random(seed), 0);
    while position < total {
        let count = (1 + random.below(6000)).min(total - position);
        end.write_all(&bytes_at(position, count)).unwrap();
        position += count;
        random.delay();
    }
    end.shutdown_write();
}

fn read_stream(mut end: &RingEnd, total: usize, seed: u64) {
    let (mut random, mut position, mut buffer) = (Random(seed), 0, vec![0; 6000]);
    loop {
        let count = 1 + random.below(6000);
        let read = end.read(&mut buffer[..count]).unwrap();
        if read == 0 {
            break;
        }
        assert_eq!(buffer[..read], bytes_at(position, read), "at {position}");
        position += read;
        random.delay();
    }
    assert_eq!(position, total);
}

fn open_at(size: RingSize, starts: [u64; 2]) -> (RingEnd, RingEnd) {
    let Parts {
        memory,
        first,
        second,
    } = Parts::new(size).unwrap();
    let a = RingEnd::open_at(RingSide::First, &memory, first, starts).unwrap();
    let b = RingEnd::open_at(RingSide::Second, &memory, second, starts).unwrap();
    (a, b)
}

/// The counters pass 2^32 and 2^64, as in a stream of many TiB.
#[test]
fn streams_continue_across_counter_wraparound() {
    let total = scaled(8 << 20);
    for (size, spin) in [(RingSize::MIN, 0), (RingSize::DEFAULT, 20)] {
        let half = total as u64 / 2;
        let (a, b) = open_at(size, [(1 << 32) - half, 0u64.wrapping_sub(half)]);
        for end in [&a, &b] {
            end.set_spin(Duration::from_micros(spin));
        }
        let (a, b) = (&a, &b);
        thread::scope(|scope| {
            scope.spawn(move || write_stream(a, total, 1));
            scope.spawn(move || write_stream(b, total, 2));
            scope.spawn(move || read_stream(a, total, 3));
            scope.spawn(move || read_stream(b, total, 4));
        });
    }
}

/// The size of a message whose content shows whether it is contiguous.
const MESSAGE: usize = 64;

fn message(writer: usize, number: usize) -> [u8; MESSAGE] {
    let mut bytes = [0; MESSAGE];
    bytes[..8].copy_from_slice(&(writer as u64).to_ne_bytes());
    bytes[8..16].copy_from_slice(&(number as u64).to_ne_bytes());
    for (position, byte) in bytes.iter_mut().enumerate().skip(16) {
        *byte = byte_at(position * 131 + writer * 7 + number);
    }
    bytes
}

#[test]
fn threads_that_share_an_end_keep_the_bytes_of_each_call_contiguous() {
    let (writers, each) = (3, scaled(20_000));
    let (a, b) = pair(RingSize::MIN).unwrap();
    let seen = Mutex::new(vec![vec![false; each]; writers]);
    let (a, b, seen) = (&a, &b, &seen);
    thread::scope(|scope| {
        let writing: Vec<_> = (0..writers)
            .map(|writer| {
                scope.spawn(move || {
                    let mut random = Random(writer as u64 + 1);
                    for number in 0..each {
                        let mut end = a;
                        assert_eq!(end.write(&message(writer, number)).unwrap(), MESSAGE);
                        random.delay();
                    }
                })
            })
            .collect();
        for reader in 0..3 {
            scope.spawn(move || {
                let (mut random, mut last) = (Random(reader + 77), vec![None; writers]);
                let mut bytes = [0; MESSAGE];
                loop {
                    let mut end = b;
                    let read = end.read(&mut bytes).unwrap();
                    if read == 0 {
                        break;
                    }
                    assert_eq!(read, MESSAGE);
                    let [writer, number] = [0, 8].map(|at| {
                        u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
                    });
                    assert_eq!(bytes, message(writer, number));
                    // One reader sees the messages of one writer in order.
                    assert!(last[writer] < Some(number));
                    last[writer] = Some(number);
                    assert!(!std::mem::replace(
                        &mut seen.lock().unwrap()[writer][number],
                        true
                    ));
                    random.delay();
                }
            });
        }
        writing
            .into_iter()
            .for_each(|writer| writer.join().unwrap());
        a.shutdown_write();
    });
    assert!(seen.lock().unwrap().iter().flatten().all(|seen| *seen));
}

/// How an event loop polls the doorbell.
#[derive(Clone, Copy, Debug)]
enum Loop {
    /// Level-triggered `poll`, without draining.
    Level,
    /// Level-triggered `poll`, draining.
    LevelDrains,
    /// Edge-triggered `epoll`, draining.
    Edge,
}

/// Sends and receives `total` bytes on one thread. Returns the number of wakeups.
fn run_loop(end: &RingEnd, total: usize, how: Loop) -> u64 {
    let (mut sent, mut got, mut wakes) = (0, 0, 0);
    let (mut random, mut buffer) = (Random(5), vec![0; 3000]);
    let edges = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&edges, end.doorbell(), epoll::EventData::new_u64(0), flags).unwrap();
    let mut is_over = false;
    while !is_over || sent < total {
        let mut waits_to_read = is_over;
        while !is_over {
            match end.try_read(&mut buffer) {
                Ok(count) => {
                    assert_eq!(buffer[..count], bytes_at(got, count), "at {got}");
                    got += count;
                }
                Err(RingError::WouldBlock) => {
                    if end.arm(Interest::READ) {
                        waits_to_read = true;
                        break;
                    }
                }
                Err(RingError::EndOfStream) => is_over = true,
                Err(stop) => panic!("{stop}"),
            }
        }
        let mut waits_to_write = sent == total;
        while sent < total {
            let count = (1 + random.below(3000)).min(total - sent);
            match end.try_write(&bytes_at(sent, count)) {
                Ok(count) => sent += count,
                Err(RingError::WouldBlock) => {
                    if end.arm(Interest::WRITE) {
                        waits_to_write = true;
                        break;
                    }
                }
                Err(stop) => panic!("{stop}"),
            }
            if sent == total {
                end.shutdown_write();
                waits_to_write = true;
            }
        }
        if is_over && sent == total {
            break;
        }
        assert!(waits_to_read && waits_to_write || is_over);
        wakes += 1;
        match how {
            Loop::Level | Loop::LevelDrains => {
                let mut fds = [PollFd::from_borrowed_fd(end.doorbell(), PollFlags::IN)];
                let deadline = Instant::now() + LONG;
                assert!(poll::wait(&mut fds, Some(deadline)).unwrap(), "no wakeup");
            }
            Loop::Edge => {
                let mut events = Vec::with_capacity(1);
                let limit = Timespec::try_from(LONG).unwrap();
                let spare = rustix::buffer::spare_capacity(&mut events);
                assert_eq!(
                    epoll::wait(&edges, spare, Some(&limit)).unwrap(),
                    1,
                    "no wakeup"
                );
            }
        }
        if !matches!(how, Loop::Level) {
            end.drain_notifications();
        }
    }
    assert_eq!(got, total);
    wakes
}

#[test]
fn event_loops_lose_no_wakeup_and_have_few_spurious_ones() {
    let total = scaled(2 << 20);
    for how in [Loop::Level, Loop::LevelDrains, Loop::Edge] {
        let (a, b) = pair(RingSize::MIN).unwrap();
        let (a, b) = (&a, &b);
        thread::scope(|scope| {
            scope.spawn(move || write_stream(b, total, 8));
            scope.spawn(move || read_stream(b, total, 9));
            let wakes = run_loop(a, total, how);
            let sent = b.stats().notifications;
            // A notification that comes while the loop is awake may wake it once more.
            assert!(wakes <= sent + sent / 4 + 16, "{how:?} {wakes} {sent}");
        });
    }
}

#[test]
fn two_event_loops_stream_to_each_other() {
    let total = scaled(2 << 20);
    for (one, other) in [(Loop::Level, Loop::Edge), (Loop::Edge, Loop::LevelDrains)] {
        let (a, b) = pair(RingSize::MIN).unwrap();
        let (a, b) = (&a, &b);
        thread::scope(|scope| {
            scope.spawn(move || run_loop(a, total, one));
            run_loop(b, total, other);
        });
    }
}

/// Small messages back and forth, with and without parking. Each one waits for the one before.
#[test]
fn request_and_response_lose_no_wakeup_and_each_notification_answers_a_request() {
    for spin in [0, 5, 50] {
        let (a, b) = pair(RingSize::MIN).unwrap();
        for end in [&a, &b] {
            end.set_spin(Duration::from_micros(spin));
        }
        let (mut a, mut b) = (&a, &b);
        let rounds = scaled(20_000);
        let start = Instant::now();
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut got = [0; 64];
                for _ in 0..rounds {
                    b.read_exact(&mut got).unwrap();
                    b.write_all(&got).unwrap();
                }
            });
            for round in 0..rounds {
                let message = message(1, round);
                a.write_all(&message).unwrap();
                let mut got = [0; 64];
                a.read_exact(&mut got).unwrap();
                assert_eq!(got, message);
            }
        });
        assert!(start.elapsed() < LONG);
        // A notification takes a wakeup request: only the thread whose swap clears the request
        // notifies, and the request must be made again before another notification. So there are
        // never more notifications than requests. A new connection starts with one request. The
        // number of parks is no bound: a request may be answered and, before the park, found to be
        // unnecessary.
        for (from, to) in [(a.stats(), b.stats()), (b.stats(), a.stats())] {
            assert!(
                from.notifications <= to.wakeup_requests + 1,
                "{from:?} {to:?}"
            );
            assert!(to.parks <= to.wakeup_requests, "{to:?}");
        }
    }
}
