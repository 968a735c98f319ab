//! Whether a VM whose rings are stopped is paused, or runs without the driver.
//!
//! Most VMMs stop the rings by the same requests when they pause the VM, when the guest's driver goes away, and
//! when the guest is reset. (QEMU sends RESET_DEVICE for the last two since 9.1.) But the memory of a paused VM
//! does not change, while a driver that goes away takes its buffers back at once, and a guest that boots again
//! overwrites the first MiB: its firmware or VMM puts tables, the time and the kernel's parameters there. So
//! the device compares those parts of the memory for as long as the VM counts as paused, soon at first and less
//! and less often. A VM that its VMM resumes before the first look was never paused, as far as anybody is told.

pub(super) mod snapshot;

use std::time::{Duration, Instant};

use super::memory::Ram;
use super::queues::Queues;

/// The time until the first look. Each later one takes twice as long.
const FIRST: Duration = Duration::from_millis(30);
/// The time until the next look while the VMM's requests are not all known.
const PUT_OFF: Duration = Duration::from_millis(5);
/// A VMM that sends requests for longer than that without starting the rings counts as one that has paused.
const MAX_PUT_OFFS: u32 = 100;
/// The longest time between two looks.
const LONGEST: Duration = Duration::from_secs(10);
/// Bytes at the start of the guest's memory that are compared.
const LOWEST: usize = 1 << 20;
/// The most bytes of a descriptor table that are compared.
const DESCRIPTORS: usize = 64 << 10;
/// Bytes that are read at once.
const BLOCK: usize = 16 << 10;

/// The memory of a VM that counts as paused, at the time when it was stopped.
#[derive(Debug)]
pub(super) struct PauseCheck {
    fingerprint: u64,
    next: Instant,
    interval: Duration,
    put_offs: u32,
}

impl PauseCheck {
    /// Records the memory of a VM whose rings are stopped.
    pub(super) fn new(queues: &Queues, now: Instant) -> Self {
        Self {
            fingerprint: fingerprint(queues),
            next: now + FIRST,
            interval: FIRST,
            put_offs: 0,
        }
    }

    /// When to look next.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Puts off a verdict about memory that has changed: the VMM has sent requests that the device does not know
    /// yet, and which may have started the rings again. Returns whether that is so for long already.
    pub(super) fn put_off(&mut self, now: Instant) -> bool {
        self.put_offs += 1;
        self.next = now + PUT_OFF;
        self.put_offs > MAX_PUT_OFFS
    }

    /// Looks whether the memory has changed, so that the VM is not paused.
    pub(super) fn has_changed(&mut self, queues: &Queues, now: Instant) -> bool {
        self.interval = (self.interval * 2).min(LONGEST);
        self.next = now + self.interval;
        // The driver may have been faster than the recording of the memory.
        !queues.used_indexes_are_ours() || fingerprint(queues) != self.fingerprint
    }
}

/// A hash of the parts of the guest's memory that tell a pause from a driver that is gone. It need not resist a
/// guest that forges it: that guest would only have its own state reported as paused.
fn fingerprint(queues: &Queues) -> u64 {
    let mut hash = Hash::default();
    hash.add(&queues.ram, queues.ram.lowest(), LOWEST);
    for layout in queues.layouts() {
        let size = usize::from(layout.size);
        let descriptors = (size * 16).min(DESCRIPTORS);
        hash.add(&queues.ram, Some(layout.descriptors), descriptors);
        hash.add(&queues.ram, Some(layout.available), 6 + size * 2);
        hash.add(&queues.ram, Some(layout.used), 4);
    }
    hash.0
}

/// A fast hash of words.
struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Hash {
    /// Adds up to `len` bytes of one region from an address on.
    fn add(&mut self, ram: &Ram, address: Option<u64>, len: usize) {
        let Some(bytes) = address.and_then(|address| ram.bytes(address, len)) else {
            return;
        };
        let mut block = [0; BLOCK];
        let mut at = 0;
        while at < bytes.len() {
            let count = bytes.get(at, &mut block);
            block[count..].fill(0);
            for word in block[..count.next_multiple_of(8)].chunks_exact(8) {
                let word = word.try_into().map_or(0, u64::from_le_bytes);
                self.0 = (self.0 ^ word)
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                    .rotate_left(23);
            }
            at += count;
        }
    }
}
