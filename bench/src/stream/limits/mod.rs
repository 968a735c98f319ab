//! The limits of the machine: what it can move from one buffer to another at the moment of the run.
//!
//! A stream through shared memory copies each byte twice: into the memory and out of it. It does so on two
//! processors at once, where the bytes cross from one cache to the other ([`Limit::BareRing`]), or in turns on
//! one, where they stay in its cache and a switch between the ends costs time ([`Limit::Alternation`]). Both are
//! measured without anything that a connection needs besides: no checks of a hostile peer's counters, no
//! wakeup requests, no descriptor to watch. So the best of them is what a connection can reach. One processor's
//! copy ([`Limit::Copy`]) bounds both from above: no end can be faster than it copies.

mod copying;
mod moving;
mod workers;

use std::sync::Arc;
use std::time::Duration;

use hvsock_sys::processor;
use serde::Serialize;

use super::{SIZES, protocol};
use crate::figures::size_in_words as size;
pub use copying::Copies;
use moving::Ring;
use workers::Worker;

/// A limit of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "limit", rename_all = "snake_case")]
pub enum Limit {
    /// Two threads spin at a ring of this many bytes in shared memory.
    BareRing {
        /// The ring's size.
        ring: usize,
        /// Whether each is pinned to a processor of its own. Otherwise the scheduler decides.
        pinned: bool,
    },
    /// Two threads on one processor: one fills a ring of this many bytes, wakes the other and sleeps until it
    /// has emptied the ring.
    Alternation {
        /// The ring's size.
        ring: usize,
    },
    /// One thread copies, from buffer to buffer.
    Copy {
        /// Whether both buffers fit into the processor's own cache. Otherwise they fit into no cache.
        in_cache: bool,
    },
}

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

impl Limit {
    /// Those that a connection can reach, by size of writes.
    pub const STREAMS: [Self; 8] = [
        Self::bare_ring(256 * KIB, true),
        Self::bare_ring(256 * KIB, false),
        Self::bare_ring(MIB, true),
        Self::bare_ring(MIB, false),
        Self::bare_ring(4 * MIB, true),
        Self::bare_ring(4 * MIB, false),
        Self::Alternation { ring: 256 * KIB },
        Self::Alternation { ring: MIB },
    ];
    /// One processor's copy.
    pub const COPIES: [Self; 2] = [
        Self::Copy { in_cache: true },
        Self::Copy { in_cache: false },
    ];

    const fn bare_ring(ring: usize, pinned: bool) -> Self {
        Self::BareRing { ring, pinned }
    }

    /// The name in tables.
    pub fn name(self) -> String {
        match self {
            Self::BareRing { ring, pinned: true } => format!("bare ring {}, pinned", size(ring)),
            Self::BareRing { ring, .. } => format!("bare ring {}", size(ring)),
            Self::Alternation { ring } => format!("one core in turns, {}", size(ring)),
            Self::Copy { in_cache: true } => "one core's copy, in cache".to_owned(),
            Self::Copy { .. } => "one core's copy, in memory".to_owned(),
        }
    }
}

/// The rates of one limit in bytes per second.
#[derive(Clone, Debug, PartialEq)]
pub struct LimitRates {
    /// The limit.
    pub limit: Limit,
    /// Index in [`SIZES`] of the size of writes; `None` for a copy, which does not depend on it.
    pub size: Option<usize>,
    /// By turn.
    pub rates: Vec<f64>,
}

/// Measures the limits, in turns like the lanes.
#[derive(Debug)]
pub struct Limits {
    /// Two threads for the whole run: the CPU time of a thread that has exited counts as that of others.
    workers: [Worker; 2],
    processors: Vec<usize>,
    rings: Vec<Arc<Ring>>,
    copies: Arc<Copies>,
    results: Vec<LimitRates>,
}

impl Limits {
    /// Prepares the memory and two threads, which may use the processors that the calling thread may use now.
    pub fn new() -> anyhow::Result<Self> {
        let processors = processor::affinity()?;
        let mut rings: Vec<Arc<Ring>> = Vec::new();
        for limit in Limit::STREAMS {
            let (Limit::BareRing { ring, .. } | Limit::Alternation { ring }) = limit else {
                continue;
            };
            if rings.iter().all(|known| known.size() != ring) {
                rings.push(Arc::new(Ring::new(ring)?));
            }
        }
        Ok(Self {
            workers: [Worker::start(), Worker::start()],
            processors,
            rings,
            copies: Arc::new(Copies::new()?),
            results: Vec::new(),
        })
    }

    /// The rates so far.
    pub fn results(&self) -> &[LimitRates] {
        &self.results
    }

    /// Measures what a connection can reach with writes of size `SIZES[at]`, each limit for `slice`. Keeps the
    /// rates if `keep`.
    pub fn streams(&mut self, at: usize, slice: Duration, keep: bool) -> anyhow::Result<()> {
        for limit in Limit::STREAMS {
            if let Some(rate) = self.stream(limit, SIZES[at], slice)?.filter(|_| keep) {
                self.add(limit, Some(at), rate);
            }
        }
        Ok(())
    }

    /// Measures one processor's copy.
    pub fn copies(&mut self, slice: Duration, keep: bool) -> anyhow::Result<()> {
        for limit in Limit::COPIES {
            let Limit::Copy { in_cache } = limit else {
                continue;
            };
            let copies = Arc::clone(&self.copies);
            let processors = self.processors.first().copied().into_iter().collect();
            let rate = self.workers[0].call(processors, move || copies.rate(in_cache, slice));
            let rate = rate.wait()?;
            if keep {
                self.add(limit, None, rate);
            }
        }
        Ok(())
    }

    /// Bytes per second; `None` for two processors where there is only one.
    fn stream(&self, limit: Limit, write: usize, slice: Duration) -> anyhow::Result<Option<f64>> {
        let one = |place: usize| self.processors.get(place).map(|number| vec![*number]);
        let all = || Some(self.processors.clone()).filter(|all| all.len() > 1);
        let (size, takes_turns, places) = match limit {
            Limit::BareRing { ring, pinned: true } => (ring, false, one(0).zip(one(1))),
            Limit::BareRing { ring, .. } => (ring, false, all().zip(all())),
            Limit::Alternation { ring } => (ring, true, one(0).zip(one(0))),
            Limit::Copy { .. } => return Ok(None),
        };
        let ring = self.rings.iter().find(|ring| ring.size() == size);
        let Some((ring, (first, second))) = ring.zip(places) else {
            return Ok(None);
        };
        ring.reset();
        let (from, to) = (Arc::clone(ring), Arc::clone(ring));
        let [writer, reader] = &self.workers;
        let (writing, reading) = (writer.thread(), reader.thread());
        let payload = protocol::payload(write);
        let read = reader.call(second, move || {
            to.read(write, takes_turns.then_some(&writing))
        });
        let written = writer.call(first, move || {
            from.write(&payload, slice, takes_turns.then_some(&reading));
        });
        written.wait()?;
        let (checker, seconds) = read.wait()?;
        let bytes = ring.written();
        checker.reply(None).check(bytes)?;
        Ok(Some(bytes as f64 / seconds))
    }

    fn add(&mut self, limit: Limit, size: Option<usize>, rate: f64) {
        let mut known = self.results.iter_mut();
        match known.find(|known| known.limit == limit && known.size == size) {
            Some(known) => known.rates.push(rate),
            None => self.results.push(LimitRates {
                limit,
                size,
                rates: vec![rate],
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_moves_every_byte_at_every_size_of_writes() {
        let mut limits = Limits::new().unwrap();
        let slice = Duration::from_micros(500);
        for turn in 0..3 {
            for at in 0..SIZES.len() {
                limits.streams(at, slice, turn > 0).unwrap();
            }
            limits.copies(slice, turn > 0).unwrap();
        }
        let many = processor::affinity().unwrap().len() > 1;
        let streams = if many { 8 } else { 2 };
        assert_eq!(limits.results().len(), streams * SIZES.len() + 2);
        for result in limits.results() {
            assert_eq!(result.rates.len(), 2, "{result:?}");
            assert!(result.rates.iter().all(|rate| *rate > 0.0), "{result:?}");
        }
    }

    #[test]
    fn limits_have_different_names() {
        let limits = || Limit::STREAMS.into_iter().chain(Limit::COPIES);
        let mut names: Vec<String> = limits().map(Limit::name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), limits().count());
    }
}
