//! Streams that transfer in both directions all the time, and see each byte that is lost, doubled or wrong. Tests do
//! something to the broker meanwhile.
//!
//! Each [`End`] writes and reads in threads of its own, until it is [stopped](End::stop). Then it ends its data, and
//! reads what the other end has written.

pub mod pattern;
pub mod process;

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hvsock::HvStream;
use hvsock_testkit::guest::GuestStream;
use pattern::Pattern;

/// The longest that a read or write may take.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The most bytes of one write or message.
const CHUNK: usize = 64 << 10;
/// Bytes of a steady write at most, and the time between two.
const STEADY_CHUNK: u64 = 4096;
const STEADY_PAUSE: Duration = Duration::from_millis(3);
/// The time between two reads of a stream that is full.
const FULL_PAUSE: Duration = Duration::from_millis(100);

/// How fast a stream's ends write and read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Little at a time, which arrives at once.
    Steady,
    /// All buffers are full at all times: both ends write faster than they read.
    Full,
}

impl Pace {
    /// A half of the streams each.
    pub fn of(number: u64) -> Self {
        match number.is_multiple_of(2) {
            true => Self::Steady,
            false => Self::Full,
        }
    }
}

/// How a process's connections transfer their bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Memory of one connection.
    Ring,
    /// The broker relays them.
    Relay,
    /// The same, and the process uses the socket without the library.
    Raw,
    /// What the broker chooses.
    Default,
}

impl Way {
    pub const ALL: [(Way, &'static str); 4] = [
        (Way::Ring, "ring"),
        (Way::Relay, "relay"),
        (Way::Raw, "raw"),
        (Way::Default, "default"),
    ];

    pub fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(way, _)| *way == self);
        found.expect("all are there").1
    }
}

/// One end of a connection.
pub trait Duplex: Send + Sync {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize>;
    fn write(&self, bytes: &[u8]) -> io::Result<usize>;
    /// Ends the data of this end.
    fn finish(&self) -> io::Result<()>;
}

impl Duplex for HvStream {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&mut &*self).read(buffer)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        (&mut &*self).write(bytes)
    }

    fn finish(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Duplex for UnixStream {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&mut &*self).read(buffer)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        (&mut &*self).write(bytes)
    }

    fn finish(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Duplex for GuestStream {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&mut &*self).read(buffer)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        (&mut &*self).write(bytes)
    }

    fn finish(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// A guest's connection of messages. Each has its length at its front.
pub struct Messages(pub GuestStream);

impl Duplex for Messages {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some((message, _)) = self.0.receive_message()? else {
            return Ok(0);
        };
        let (length, bytes) = message
            .split_at_checked(4)
            .ok_or(ErrorKind::UnexpectedEof)?;
        if length != (bytes.len() as u32).to_le_bytes() {
            let text = format!("a message of {length:?} has {} bytes", bytes.len());
            return Err(io::Error::other(text));
        }
        buffer[..bytes.len()].copy_from_slice(bytes);
        Ok(bytes.len())
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let length = (bytes.len() as u32).to_le_bytes();
        self.0.send_message(&[&length, bytes].concat(), false)?;
        Ok(bytes.len())
    }

    fn finish(&self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Write)
    }
}

/// What an end has sent and received, all of it right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Totals {
    pub id: u64,
    pub sent: u64,
    pub received: u64,
    /// What went wrong, if anything did.
    pub error: Option<String>,
}

/// An end whose threads run.
pub struct End {
    id: u64,
    pace: Pace,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    started: Instant,
    stopped: AtomicBool,
    sent: AtomicU64,
    received: AtomicU64,
    /// When something has last arrived, and the longest time in which nothing has. In microseconds.
    last: AtomicU64,
    longest: AtomicU64,
    /// The peer has ended its data.
    ended: AtomicBool,
    error: Mutex<Option<String>>,
}

/// What both ends of a connection agree on.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub pace: Pace,
    /// The seed of what the connecting end writes. The other end's is its complement.
    pub seed: u64,
    /// The connecting end writes nothing, and has ended its data.
    pub half: bool,
}

impl End {
    /// Starts the threads of an end.
    pub fn start(id: u64, stream: impl Duplex + 'static, terms: Terms, connects: bool) -> Self {
        let shared = Arc::new(Shared {
            started: Instant::now(),
            stopped: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            last: AtomicU64::new(0),
            longest: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            error: Mutex::default(),
        });
        let stream = Arc::new(stream);
        let (own, other) = match connects {
            true => (terms.seed, !terms.seed),
            false => (!terms.seed, terms.seed),
        };
        let writes = !(terms.half && connects);
        let (of_writer, written) = (Arc::clone(&shared), Arc::clone(&stream));
        let writer = thread::spawn(move || {
            let result = match writes {
                true => of_writer.write(&*written, own, terms.pace),
                false => Ok(()),
            };
            of_writer.record(
                "write",
                result.and_then(|()| written.finish().map_err(|error| text(&error))),
            );
        });
        let of_reader = Arc::clone(&shared);
        let reader = thread::spawn(move || {
            let result = of_reader.read(&*stream, other, terms.pace);
            of_reader.record("read", result);
            of_reader.ended.store(true, Ordering::Relaxed);
        });
        Self {
            id,
            pace: terms.pace,
            shared,
            threads: vec![writer, reader],
        }
    }

    /// Bytes that have arrived so far.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// Microseconds of the longest time in which nothing has arrived, since the last call. `None` if the stream is not
    /// steady, or nothing can arrive any more.
    pub fn longest_standstill(&self) -> Option<u64> {
        let shared = &self.shared;
        let is_steady = self.pace == Pace::Steady && !shared.ended.load(Ordering::Relaxed);
        let now = shared.now();
        let since = now.saturating_sub(shared.last.load(Ordering::Relaxed));
        let longest = shared.longest.swap(0, Ordering::Relaxed);
        is_steady.then_some(longest.max(since))
    }

    /// Ends its data soon.
    pub fn stop(&self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
    }

    /// Waits until the other end has ended its data as well.
    pub fn totals(self) -> Totals {
        self.stop();
        for thread in self.threads {
            thread.join().expect("no panic");
        }
        let mut error = self.shared.error.lock().expect("no panic");
        Totals {
            id: self.id,
            sent: self.shared.sent.load(Ordering::Relaxed),
            received: self.shared.received.load(Ordering::Relaxed),
            error: error.take(),
        }
    }
}

impl Shared {
    fn now(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    fn record(&self, what: &str, result: Result<(), String>) {
        if let Err(why) = result {
            let mut error = self.error.lock().expect("no panic");
            error.get_or_insert(format!("{what}: {why}"));
        }
    }

    fn write(&self, stream: &dyn Duplex, seed: u64, pace: Pace) -> Result<(), String> {
        let mut pattern = Pattern::new(seed);
        let mut buffer = vec![0; CHUNK];
        let mut random = seed;
        while !self.stopped.load(Ordering::Relaxed) {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let most = match pace {
                Pace::Steady => STEADY_CHUNK,
                Pace::Full => CHUNK as u64 - 4,
            };
            let count = 1 + ((random >> 33) % most) as usize;
            pattern.fill(&mut buffer[..count]);
            let mut rest = &buffer[..count];
            while !rest.is_empty() {
                let written = stream.write(rest).map_err(|error| text(&error))?;
                rest = &rest[written..];
                self.sent.fetch_add(written as u64, Ordering::Relaxed);
            }
            pattern.take(count);
            if pace == Pace::Steady {
                thread::sleep(STEADY_PAUSE);
            }
        }
        Ok(())
    }

    fn read(&self, stream: &dyn Duplex, seed: u64, pace: Pace) -> Result<(), String> {
        let mut pattern = Pattern::new(seed);
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = stream.read(&mut buffer).map_err(|error| text(&error))?;
            if count == 0 {
                return Ok(());
            }
            let now = self.now();
            let since = now.saturating_sub(self.last.swap(now, Ordering::Relaxed));
            self.longest.fetch_max(since, Ordering::Relaxed);
            pattern.check(&buffer[..count])?;
            self.received.store(pattern.at(), Ordering::Relaxed);
            // What is left at the end is read at once.
            if pace == Pace::Full && !self.stopped.load(Ordering::Relaxed) {
                thread::sleep(FULL_PAUSE);
            }
        }
    }
}

fn text(error: &io::Error) -> String {
    format!("{error} ({:?})", error.kind())
}
