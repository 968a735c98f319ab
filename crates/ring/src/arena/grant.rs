//! The grant page: what the broker allows a pair. Only the broker can write it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use hvsock_sys::shared_memory::{self, Mapping, ReadOnlyMapping};

use super::layout::ArenaLimits;
use super::words::{GrantWords, SLOTS};
use crate::sync::{Ordering, fence};
use crate::{RingSize, copy};

/// Whether a pair may open connections in its arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// It may.
    Granted,
    /// Not until the partition is resumed.
    Suspended,
    /// No longer.
    Revoked,
}

impl Grant {
    const fn to_word(self) -> u32 {
        match self {
            Self::Granted => 1,
            Self::Suspended => 2,
            Self::Revoked => 3,
        }
    }

    /// Stores the grant, before the table is read.
    pub(crate) fn store(self, words: &GrantWords) {
        words.state.store(self.to_word(), Ordering::Release);
        fence(Ordering::SeqCst);
    }

    pub(crate) fn of(words: &GrantWords) -> Self {
        match words.state.load(Ordering::Acquire) {
            1 => Self::Granted,
            2 => Self::Suspended,
            _ => Self::Revoked,
        }
    }
}

/// The page in the broker that has created it.
#[derive(Debug)]
pub(crate) struct GrantWriter(Mapping);

/// What a page says while an arena is not handed over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) grant: Grant,
    left: u64,
}

impl Terms {
    /// As [`GrantWriter::set_left`].
    pub(crate) fn set_left(&mut self, published: u64) {
        if self.left == u64::MAX {
            self.left = published;
        }
    }

    /// As [`GrantWriter::withdraw_left`].
    pub(crate) fn withdraw_left(&mut self) {
        if self.left != u64::MAX {
            self.left = 0;
        }
    }
}

impl GrantWriter {
    /// Creates the page, and a descriptor by which it can be read.
    pub(crate) fn create(
        limits: ArenaLimits,
        granted: u32,
        backlog: u32,
    ) -> io::Result<(OwnedFd, Self)> {
        let (memory, mapping) = shared_memory::create_read_only(size_of::<GrantWords>())?;
        let writer = Self(mapping);
        let words = writer.words();
        words.ring.store(limits.ring.bytes(), Ordering::Relaxed);
        words.slots.store(limits.slots, Ordering::Relaxed);
        words
            .granted
            .store(granted.min(limits.slots), Ordering::Relaxed);
        words.backlog.store(backlog, Ordering::Relaxed);
        words.left.store(u64::MAX, Ordering::Relaxed);
        words
            .state
            .store(Grant::Granted.to_word(), Ordering::Release);
        Ok((memory, writer))
    }

    fn words(&self) -> &GrantWords {
        copy::grant(&self.0)
    }

    pub(crate) fn grant(&self) -> Grant {
        Grant::of(self.words())
    }

    /// As [`Grant::store`].
    pub(crate) fn set(&self, grant: Grant) {
        grant.store(self.words());
    }

    pub(crate) fn granted(&self) -> u32 {
        self.words().granted.load(Ordering::Relaxed)
    }

    /// Grants more slots. Never fewer: the client may have taken one at this moment.
    pub(crate) fn raise_granted(&self, granted: u32) {
        let words = self.words();
        let granted = granted.min(words.slots.load(Ordering::Relaxed));
        words.granted.fetch_max(granted, Ordering::Release);
    }

    /// Revokes, but lets the server accept the connections of the queue: `published` ever. Returns what the page
    /// said before.
    pub(crate) fn revoke_after(&self, published: impl FnOnce() -> u64) -> Terms {
        let left = self.words().left.load(Ordering::Relaxed);
        let grant = self.grant();
        self.set(Grant::Revoked);
        if grant != Grant::Revoked {
            // After the fence: a client that has published later gives up.
            self.set_left(published());
        }
        Terms { grant, left }
    }

    /// Makes the page say again what it said before [`revoke_after`](Self::revoke_after).
    pub(crate) fn restore(&self, terms: Terms) {
        self.words().left.store(terms.left, Ordering::Release);
        self.set(terms.grant);
    }

    /// Stores how many connections the client has left in the queue, once.
    pub(crate) fn set_left(&self, published: u64) {
        let words = self.words();
        if words.left.load(Ordering::Relaxed) == u64::MAX {
            words.left.store(published, Ordering::Release);
        }
    }

    /// Lets the server accept nothing more of what the client has left in the queue.
    pub(crate) fn withdraw_left(&self) {
        let left = &self.words().left;
        if left.load(Ordering::Relaxed) != u64::MAX {
            left.store(0, Ordering::Release);
            fence(Ordering::SeqCst);
        }
    }

    pub(crate) fn set_backlog(&self, backlog: u32) {
        self.words().backlog.store(backlog, Ordering::Release);
    }
}

/// The page in the client's or the server's process.
#[derive(Debug)]
pub(crate) struct GrantReader {
    mapping: ReadOnlyMapping,
    limits: ArenaLimits,
}

impl GrantReader {
    /// Maps a page that the broker has created.
    pub(crate) fn open(memory: impl AsFd) -> io::Result<Self> {
        let mapping = ReadOnlyMapping::new(memory, size_of::<GrantWords>())?;
        let words = copy::granted(&mapping);
        let ring = words.ring.load(Ordering::Acquire);
        let slots = words.slots.load(Ordering::Acquire);
        let limits = RingSize::exactly(ring)
            .filter(|_| 0 < slots && slots as usize <= SLOTS)
            .map(|ring| ArenaLimits { slots, ring });
        let limits = limits.ok_or_else(|| {
            let text = format!("no arena has {slots} slots with rings of {ring} bytes");
            io::Error::new(io::ErrorKind::InvalidData, text)
        })?;
        Ok(Self { mapping, limits })
    }

    pub(crate) fn words(&self) -> &GrantWords {
        copy::granted(&self.mapping)
    }

    pub(crate) fn limits(&self) -> ArenaLimits {
        self.limits
    }

    pub(crate) fn grant(&self) -> Grant {
        Grant::of(self.words())
    }

    pub(crate) fn granted(&self) -> u32 {
        let granted = self.words().granted.load(Ordering::Acquire);
        granted.min(self.limits.slots)
    }

    /// How many connections there were in the queue, ever, when the client's process ended; `None` before.
    pub(crate) fn left(&self) -> Option<u64> {
        let left = self.words().left.load(Ordering::Acquire);
        (left != u64::MAX).then_some(left)
    }

    pub(crate) fn backlog(&self) -> u64 {
        self.words().backlog.load(Ordering::Relaxed).into()
    }
}
