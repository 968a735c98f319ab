//! Guest memory and a model of the driver, as in section 2.7.13 of the specification.

use std::cell::RefCell;

use hvsock_virtio::queue::{GuestMemory, Layout, Segment};
use proptest::prelude::*;

pub const TABLE: u64 = 0x1000;
pub const AVAILABLE: u64 = 0x3000;
pub const USED: u64 = 0x4000;
pub const INDIRECT_TABLES: u64 = 0x8000;

pub struct Memory(RefCell<Vec<u8>>);

impl Memory {
    pub fn new() -> Self {
        Self(RefCell::new(vec![0; 0x40000]))
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.0.borrow().clone()
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        assert!(self.write(at, bytes));
    }

    pub fn word(&self, at: u64) -> u16 {
        self.load(at).unwrap()
    }
}

impl GuestMemory for Memory {
    fn read(&self, address: u64, to: &mut [u8]) -> bool {
        let memory = self.0.borrow();
        let Ok(at) = usize::try_from(address) else {
            return false;
        };
        let end = at.checked_add(to.len());
        let Some(bytes) = end.and_then(|end| memory.get(at..end)) else {
            return false;
        };
        to.copy_from_slice(bytes);
        true
    }

    fn write(&self, address: u64, from: &[u8]) -> bool {
        let mut memory = self.0.borrow_mut();
        let Ok(at) = usize::try_from(address) else {
            return false;
        };
        let end = at.checked_add(from.len());
        let Some(bytes) = end.and_then(|end| memory.get_mut(at..end)) else {
            return false;
        };
        bytes.copy_from_slice(from);
        true
    }

    fn load(&self, address: u64) -> Option<u16> {
        let mut word = [0; 2];
        self.read(address, &mut word)
            .then(|| u16::from_le_bytes(word))
    }

    fn store(&self, address: u64, value: u16) -> Option<()> {
        self.write(address, &value.to_le_bytes()).then_some(())
    }

    fn fence(&self) {}
}

pub fn layout(size: u16, event_idx: bool) -> Layout {
    Layout {
        size,
        descriptors: TABLE,
        available: AVAILABLE,
        used: USED,
        event_idx,
        indirect: true,
    }
}

/// A descriptor: address, length, flags, next.
pub type Raw = (u64, u32, u16, u16);

pub fn descriptor(memory: &Memory, table: u64, index: u16, (address, len, flags, next): Raw) {
    let at = table + u64::from(index) * 16;
    memory.put(at, &address.to_le_bytes());
    memory.put(at + 8, &len.to_le_bytes());
    memory.put(at + 12, &flags.to_le_bytes());
    memory.put(at + 14, &next.to_le_bytes());
}

/// The driver's side, as in section 2.7.13 of the specification.
pub struct Driver<'m> {
    memory: &'m Memory,
    layout: Layout,
    free: Vec<u16>,
    made: u16,
    notified_at: u16,
    seen: u16,
    /// Head and descriptors of the chains that are available and not used yet.
    pending: Vec<(u16, Vec<u16>)>,
}

impl<'m> Driver<'m> {
    pub fn new(memory: &'m Memory, layout: Layout, base: u16) -> Self {
        memory.store(AVAILABLE + 2, base).unwrap();
        memory.store(USED + 2, base).unwrap();
        Self {
            memory,
            layout,
            free: (0..layout.size).collect(),
            made: base,
            notified_at: base,
            seen: base,
            pending: Vec::new(),
        }
    }

    /// Makes a chain of segments available. `None` if too few descriptors are free.
    pub fn add_available(&mut self, segments: &[(Segment, bool)], indirect: bool) -> Option<u16> {
        let needed = if indirect { 1 } else { segments.len() };
        if needed == 0 || self.free.len() < needed {
            return None;
        }
        let mine = self.free.split_off(self.free.len() - needed);
        let head = mine[0];
        if indirect {
            let table = INDIRECT_TABLES + u64::from(head) * 0x400;
            for (index, (segment, writes)) in segments.iter().enumerate() {
                let last = index + 1 == segments.len();
                let flags = u16::from(!last) | u16::from(*writes) << 1;
                let raw = (segment.address, segment.len, flags, index as u16 + 1);
                descriptor(self.memory, table, index as u16, raw);
            }
            let len = segments.len() as u32 * 16;
            descriptor(self.memory, TABLE, head, (table, len, 4, 0));
        } else {
            for (index, (segment, writes)) in segments.iter().enumerate() {
                let next = mine.get(index + 1);
                let flags = u16::from(next.is_some()) | u16::from(*writes) << 1;
                let next = next.copied().unwrap_or(0);
                let raw = (segment.address, segment.len, flags, next);
                descriptor(self.memory, TABLE, mine[index], raw);
            }
        }
        let entry = u64::from(self.made & (self.layout.size - 1));
        self.memory.store(AVAILABLE + 4 + entry * 2, head).unwrap();
        self.made = self.made.wrapping_add(1);
        self.memory.store(AVAILABLE + 2, self.made).unwrap();
        self.pending.push((head, mine));
        Some(head)
    }

    /// Whether the driver must notify the device of the chains added since the last call.
    pub fn needs_notification(&mut self) -> bool {
        let old = std::mem::replace(&mut self.notified_at, self.made);
        if old == self.made {
            return false;
        }
        if !self.layout.event_idx {
            return self.memory.word(USED) & 1 == 0;
        }
        let event = self.memory.word(USED + 4 + u64::from(self.layout.size) * 8);
        need_event(event, self.made, old)
    }

    /// Takes the new entries of the used ring: head and bytes written.
    pub fn take_used(&mut self) -> Vec<(u16, u32)> {
        let mut collected = Vec::new();
        while self.seen != self.memory.word(USED + 2) {
            let entry = u64::from(self.seen & (self.layout.size - 1));
            let mut raw = [0; 8];
            assert!(self.memory.read(USED + 4 + entry * 8, &mut raw));
            let head = u16::from_le_bytes([raw[0], raw[1]]);
            let written = u32::from_le_bytes([raw[4], raw[5], raw[6], raw[7]]);
            let index = self.pending.iter().position(|(h, _)| *h == head);
            let (_, mine) = self
                .pending
                .remove(index.expect("used twice or never available"));
            self.free.extend(mine);
            self.seen = self.seen.wrapping_add(1);
            collected.push((head, written));
        }
        collected
    }

    pub fn enable_interrupts(&self, enable: bool) {
        if self.layout.event_idx {
            let event = if enable {
                self.seen
            } else {
                self.seen.wrapping_sub(1)
            };
            let at = AVAILABLE + 4 + u64::from(self.layout.size) * 2;
            self.memory.store(at, event).unwrap();
        } else {
            self.memory.store(AVAILABLE, u16::from(!enable)).unwrap();
        }
    }
}

/// `vring_need_event` of the specification.
pub fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[derive(Clone, Debug)]
pub enum Op {
    AddAvailable {
        segments: Vec<(u64, u32, bool)>,
        indirect: bool,
    },
    Notify,
    Park,
    Poll,
    Peek,
    Take {
        written: u32,
    },
    Publish,
    TakeUsed,
    Interrupts(bool),
}

pub fn op() -> impl Strategy<Value = Op> {
    let segment = (
        any::<u32>().prop_map(u64::from),
        0..70_000u32,
        any::<bool>(),
    );
    let segments = prop::collection::vec(segment, 1..5);
    prop_oneof![
        4 => (segments, any::<bool>()).prop_map(|(segments, indirect)| Op::AddAvailable { segments, indirect }),
        2 => Just(Op::Notify),
        2 => Just(Op::Park),
        1 => Just(Op::Poll),
        2 => Just(Op::Peek),
        4 => any::<u32>().prop_map(|written| Op::Take { written }),
        2 => Just(Op::Publish),
        2 => Just(Op::TakeUsed),
        1 => any::<bool>().prop_map(Op::Interrupts),
    ]
}
