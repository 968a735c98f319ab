//! Credit: how many bytes each side of a connection may still send to the other.
//!
//! All counters run freely modulo 2^32 and only their differences mean anything. What the guest
//! says is believed within what was really sent to it, so that no header of its can make the
//! device send more than the guest once had room for, or stop counting.
//!
//! Credit counts bytes, but a guest also pays for each packet that waits to be read. Linux resets a
//! connection whose packets' own cost is more than its `buf_alloc`, however little is in them. The
//! protocol has no word for that, so [`Outgoing`] keeps the packets under way few, too.

use crate::Header;

/// Bytes that are ever under way to the guest on one connection, whatever room it claims to have.
/// Half of what the counters can tell apart, so that one that runs backwards is always noticed.
const MAX_UNDER_WAY: u32 = i32::MAX as u32;

/// Bytes that a packet under way is taken to cost the guest. Linux reckons with 576 on x86-64
/// (`SKB_TRUESIZE(0)`), and with more where it is built to debug.
const PACKET_COST: u32 = 1024;

/// The guest says it has passed on bytes that it never got, or takes back what it said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lie;

/// The guest sends more than there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overrun;

/// What may be sent to the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing {
    /// The guest's `buf_alloc`. It may shrink, below what is under way, too.
    alloc: u32,
    /// The guest's `fwd_cnt`.
    passed_on: u32,
    /// Bytes sent.
    sent: u32,
    /// A place in the stream, not before `passed_on`, that splits the packets under way.
    mark: u32,
    /// Packets up to the mark, of which some may have been passed on, and packets after it.
    packets: (u32, u32),
    /// A message has begun and not ended. The guest can read none of it, so it must not wait for
    /// packets to be read.
    within_message: bool,
}

impl Outgoing {
    pub(crate) fn new(first: u32) -> Self {
        Self {
            alloc: 0,
            passed_on: first,
            sent: first,
            mark: first,
            packets: (0, 0),
            within_message: false,
        }
    }

    /// Takes what the guest says in a header.
    pub(crate) fn heard(&mut self, header: &Header) -> Result<(), Lie> {
        if header.fwd_cnt.wrapping_sub(self.passed_on) > self.under_way() {
            return Err(Lie);
        }
        self.passed_on = header.fwd_cnt;
        self.alloc = header.buf_alloc;
        let to_mark = self.mark.wrapping_sub(self.passed_on);
        if self.under_way() == 0 {
            self.packets = (0, 0);
            self.mark = self.sent;
        } else if to_mark == 0 || to_mark > self.under_way() {
            // Everything before the mark is passed on.
            self.packets = (self.packets.1, 0);
            self.mark = self.sent;
        }
        Ok(())
    }

    /// Bytes sent that the guest has not passed on.
    pub(crate) fn under_way(&self) -> u32 {
        self.sent.wrapping_sub(self.passed_on)
    }

    /// Bytes that may be sent now.
    pub(crate) fn available(&self) -> u32 {
        let packets = self.packets.0.saturating_add(self.packets.1);
        if packets >= (self.alloc / PACKET_COST).max(1) && !self.within_message {
            return 0;
        }
        self.alloc
            .min(MAX_UNDER_WAY)
            .saturating_sub(self.under_way())
    }

    /// Is there so much room that asking for more would be importunate?
    pub(crate) fn is_plenty(&self) -> bool {
        let available = self.available();
        available > 0 && (self.under_way() == 0 || available >= self.alloc / 4)
    }

    /// Counts a packet. Does it leave a message unfinished?
    pub(crate) fn sent(&mut self, bytes: u32, within_message: bool) {
        self.within_message = within_message;
        self.sent = self.sent.wrapping_add(bytes);
        self.packets.1 = self.packets.1.saturating_add(1);
    }
}

/// What the guest may send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incoming {
    alloc: u32,
    received: u32,
    /// Bytes that the reader has taken: the `fwd_cnt` to tell.
    freed: u32,
    /// The `fwd_cnt` that the guest was told last.
    told: u32,
}

impl Incoming {
    pub(crate) fn new(first: u32, alloc: u32) -> Self {
        Self {
            alloc,
            received: first,
            freed: first,
            told: first,
        }
    }

    pub(crate) fn alloc(&self) -> u32 {
        self.alloc
    }

    pub(crate) fn set_alloc(&mut self, alloc: u32) {
        self.alloc = alloc;
    }

    /// Bytes that the guest has sent and nobody has taken.
    fn waiting(&self) -> u32 {
        self.received.wrapping_sub(self.freed)
    }

    /// Counts bytes that came. The measure is the room that there is, not the room that the guest
    /// knows of: what fits does no harm.
    pub(crate) fn received(&mut self, bytes: u32) -> Result<(), Overrun> {
        if bytes > self.alloc.saturating_sub(self.waiting()) {
            return Err(Overrun);
        }
        self.received = self.received.wrapping_add(bytes);
        Ok(())
    }

    /// Counts bytes that were taken.
    pub(crate) fn freed(&mut self, bytes: u32) {
        debug_assert!(bytes <= self.waiting(), "more bytes freed than came");
        self.freed = self.freed.wrapping_add(bytes.min(self.waiting()));
    }

    /// Bytes that the guest believes it may send.
    pub(crate) fn believed_free(&self) -> u32 {
        self.alloc
            .saturating_sub(self.received.wrapping_sub(self.told))
    }

    /// Is a packet of its own worth what it would tell? It is when the guest believes that it has
    /// less than half the room and would learn of a quarter: then it never stops for lack of news,
    /// and hears at most four times per room's worth of bytes.
    pub(crate) fn is_worth_telling(&self) -> bool {
        let news = self.freed.wrapping_sub(self.told);
        let alloc = u64::from(self.alloc);
        news > 0 && u64::from(self.believed_free()) * 2 < alloc && u64::from(news) * 4 >= alloc
    }

    /// Writes what the guest is to know into a header that is on its way to it.
    pub(crate) fn tell(&mut self, header: &mut Header) {
        self.told = self.freed;
        header.buf_alloc = self.alloc;
        header.fwd_cnt = self.freed;
    }
}
