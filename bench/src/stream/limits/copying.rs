//! One processor's copy, with the copy routine that the rings of hvsock use.

use std::io;
use std::time::{Duration, Instant};

use hvsock_sys::shared_memory::{self, Mapping};

/// Memory for one processor's copy.
#[derive(Debug)]
pub struct Copies {
    small: [Mapping; 2],
    large: [Mapping; 2],
}

/// Size of a copy: both buffers fit into a core's own cache.
const IN_CACHE: usize = 64 * 1024;
/// Larger than the part of the last cache that one core gets, and with the other buffer than most such caches.
const IN_MEMORY: usize = 64 << 20;

impl Copies {
    /// Allocates the memory.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            small: [touched(IN_CACHE)?, touched(IN_CACHE)?],
            large: [touched(IN_MEMORY)?, touched(IN_MEMORY)?],
        })
    }

    /// Copies for `time`. Returns bytes per second.
    pub fn rate(&self, in_cache: bool, time: Duration) -> f64 {
        let [from, to] = if in_cache { &self.small } else { &self.large };
        let start = Instant::now();
        let mut bytes = 0;
        loop {
            for _ in 0..4 {
                let at = bytes % from.len();
                let range = at..at + IN_CACHE;
                let [from, to] = [from, to].map(|memory| memory.bytes(range.clone()));
                bytes += from.copy_to(to);
            }
            let elapsed = start.elapsed();
            if elapsed >= time {
                return bytes as f64 / elapsed.as_secs_f64();
            }
        }
    }
}

/// Shared memory whose pages exist.
pub(super) fn touched(len: usize) -> io::Result<Mapping> {
    let memory = Mapping::new(shared_memory::create(len as u64)?, len)?;
    let page = [1];
    for at in (0..len).step_by(4096) {
        memory.bytes(at..at + 1).put(0, &page);
    }
    Ok(memory)
}
