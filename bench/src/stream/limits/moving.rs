//! The loops that move bytes through a ring, with the copy routine that the rings of hvsock use.

use std::hint;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use hvsock_sys::shared_memory::Mapping;

use super::super::protocol::{Checker, buffer_for};
use super::copying::touched;

/// Each word that one side writes often has its own pair of cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded<T>(T);

/// A ring without requests to wake, checks of counters and locks.
#[derive(Debug)]
pub(super) struct Ring {
    memory: Mapping,
    /// Bytes ever written and read.
    head: Padded<AtomicU64>,
    tail: Padded<AtomicU64>,
    has_ended: Padded<AtomicBool>,
}

/// Bytes that are written between two readings of the clock.
const CLOCK_INTERVAL: u64 = 256 * 1024;

impl Ring {
    pub(super) fn new(size: usize) -> io::Result<Self> {
        Ok(Self {
            memory: touched(size)?,
            head: Padded::default(),
            tail: Padded::default(),
            has_ended: Padded::default(),
        })
    }

    pub(super) fn size(&self) -> usize {
        self.memory.len()
    }

    pub(super) fn written(&self) -> u64 {
        self.head.0.load(Ordering::Acquire)
    }

    pub(super) fn reset(&self) {
        self.head.0.store(0, Ordering::Release);
        self.tail.0.store(0, Ordering::Release);
        self.has_ended.0.store(false, Ordering::Release);
    }

    /// The number of bytes copied before they are published or freed, as in a ring of hvsock.
    fn chunk(&self) -> usize {
        (self.size() / 8).clamp(4096, 64 * 1024)
    }

    /// Writes `bytes` again and again for `time`. With `reader` it wakes that thread only when the ring is full,
    /// and sleeps until it is empty; otherwise it spins.
    pub(super) fn write(&self, bytes: &[u8], time: Duration, reader: Option<&Thread>) {
        let (size, chunk) = (self.size() as u64, self.chunk());
        let until = Instant::now() + time;
        let (mut head, mut free, mut clock_at) = (0_u64, size, CLOCK_INTERVAL);
        loop {
            for part in bytes.chunks(chunk) {
                let mut rest = part;
                while !rest.is_empty() {
                    while free == 0 {
                        free = size - (head - self.tail.0.load(Ordering::Acquire));
                        // Only a full ring: the reader waits for one.
                        if let Some(reader) = reader.filter(|_| free == 0) {
                            reader.unpark();
                            self.sleep_until(|| self.tail.0.load(Ordering::Acquire) == head);
                        }
                        hint::spin_loop();
                    }
                    let at = head as usize & (self.size() - 1);
                    let fits = rest.len().min(self.size() - at);
                    let count = fits.min(usize::try_from(free).unwrap_or(usize::MAX));
                    let (now, later) = rest.split_at(count);
                    self.memory.bytes(at..at + count).put(0, now);
                    head += count as u64;
                    free -= count as u64;
                    self.head.0.store(head, Ordering::Release);
                    rest = later;
                }
            }
            if head >= clock_at {
                clock_at = head + CLOCK_INTERVAL;
                if Instant::now() >= until {
                    break;
                }
            }
        }
        self.has_ended.0.store(true, Ordering::Release);
        if let Some(reader) = reader {
            reader.unpark();
        }
    }

    /// Reads to the end into a buffer for writes of size `write`. With `writer` it wakes that thread when the ring
    /// is empty and sleeps until it is full; otherwise it spins. Returns the bytes that it has read and the
    /// seconds since the first one.
    pub(super) fn read(&self, write: usize, writer: Option<&Thread>) -> (Checker, f64) {
        let mut checker = Checker::new(write);
        let mut buffer = vec![0; buffer_for(write)];
        let chunk = self.chunk();
        let (mut tail, mut known) = (0_u64, 0_usize);
        let mut start = None;
        loop {
            let mut done = 0;
            while done < buffer.len() {
                if known == 0 {
                    known = (self.written() - tail) as usize;
                    if known == 0 {
                        break;
                    }
                }
                let at = tail as usize & (self.size() - 1);
                let count = (buffer.len() - done)
                    .min(known)
                    .min(chunk)
                    .min(self.size() - at);
                let to = &mut buffer[done..done + count];
                self.memory.bytes(at..at + count).get(0, to);
                tail += count as u64;
                known -= count;
                done += count;
                self.tail.0.store(tail, Ordering::Release);
            }
            if done > 0 {
                start.get_or_insert_with(Instant::now);
                checker.check_read(&buffer[..done]);
                continue;
            }
            let has_ended = || self.has_ended.0.load(Ordering::Acquire);
            if has_ended() && self.written() == tail {
                let seconds = start.map_or(0.0, |start: Instant| start.elapsed().as_secs_f64());
                return (checker, seconds);
            }
            if let Some(writer) = writer {
                writer.unpark();
                let full = self.size() as u64;
                self.sleep_until(|| self.written() - tail == full || has_ended());
            }
            hint::spin_loop();
        }
    }

    fn sleep_until(&self, done: impl Fn() -> bool) {
        while !done() {
            thread::park();
        }
    }
}
