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

    /// Is it for the packets under way, and not for their bytes, that nothing may be sent?
    pub(crate) fn is_held_by_packets(&self) -> bool {
        self.available() == 0 && self.under_way() < self.alloc
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
    /// The guest's own `buf_alloc`. Linux sends no further ahead than that, whatever room it is
    /// told of (since the releases of early 2026).
    own: u32,
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
            own: u32::MAX,
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

    /// Takes what the guest says of its own room.
    pub(crate) fn heard(&mut self, header: &Header) {
        self.own = header.buf_alloc;
    }

    /// Bytes that the guest sends before it waits to hear that some were taken.
    pub(crate) fn window(&self) -> u32 {
        // One that says to have no room at all hears of ours as if it had a little.
        self.alloc.min(self.own.max(PACKET_COST))
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
        self.window()
            .saturating_sub(self.received.wrapping_sub(self.told))
    }

    /// Is a packet of its own worth what it would tell? It is when the guest believes that it has
    /// less than half the room and would learn of a quarter: then it never stops for lack of news,
    /// and hears at most four times per room's worth of bytes.
    pub(crate) fn is_worth_telling(&self) -> bool {
        let news = self.freed.wrapping_sub(self.told);
        let window = u64::from(self.window());
        news > 0 && u64::from(self.believed_free()) * 2 < window && u64::from(news) * 4 >= window
    }

    /// Writes what the guest is to know into a header that is on its way to it.
    pub(crate) fn tell(&mut self, header: &mut Header) {
        self.told = self.freed;
        header.buf_alloc = self.alloc;
        header.fwd_cnt = self.freed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STARTS: [u32; 4] = [0, 1, u32::MAX - 100, u32::MAX];

    fn says(buf_alloc: u32, fwd_cnt: u32) -> Header {
        Header {
            buf_alloc,
            fwd_cnt,
            ..Header::default()
        }
    }

    #[test]
    fn room_is_what_the_guest_has_less_what_is_under_way_across_the_wrap() {
        for first in STARTS {
            let mut it = Outgoing::new(first);
            assert_eq!(it.available(), 0);
            it.heard(&says(100_000, first)).unwrap();
            it.sent(60_000, false);
            assert_eq!((it.available(), it.under_way()), (40_000, 60_000));
            it.heard(&says(100_000, first.wrapping_add(50_000)))
                .unwrap();
            assert_eq!((it.available(), it.under_way()), (90_000, 10_000));
        }
    }

    #[test]
    fn room_that_shrinks_below_what_is_under_way_is_none() {
        let mut it = Outgoing::new(5);
        it.heard(&says(100_000, 5)).unwrap();
        it.sent(60_000, false);
        it.heard(&says(50_000, 5)).unwrap();
        assert_eq!(it.available(), 0);
        it.heard(&says(50_000, 20_005)).unwrap();
        assert_eq!(it.available(), 10_000);
    }

    #[test]
    fn a_count_of_more_than_was_sent_or_less_than_before_is_a_lie() {
        for first in STARTS {
            let mut it = Outgoing::new(first);
            it.heard(&says(u32::MAX, first)).unwrap();
            it.sent(1000, false);
            let at = |bytes: u32| says(u32::MAX, first.wrapping_add(bytes));
            it.heard(&at(600)).unwrap();
            for lie in [599, 0, 1001, u32::MAX, 1 << 31] {
                assert_eq!(it.heard(&at(lie)), Err(Lie), "{lie}");
            }
            assert_eq!(it.under_way(), 400, "a lie changes nothing");
            it.heard(&at(600)).unwrap();
            it.heard(&at(1000)).unwrap();
        }
    }

    #[test]
    fn small_packets_are_held_back_before_they_cost_the_guest_its_buffer() {
        let mut it = Outgoing::new(0);
        it.heard(&says(8192, 0)).unwrap();
        let mut sent = 0;
        while it.available() > 0 {
            it.sent(1, false);
            sent += 1;
        }
        assert_eq!(sent, 8);
        // Read in part, it may be that few packets are gone; read up to a mark, they are.
        it.heard(&says(8192, 3)).unwrap();
        assert_eq!(it.available(), 0);
        it.heard(&says(8192, 8)).unwrap();
        assert_eq!(it.available(), 8192);
    }

    #[test]
    fn the_packets_under_way_are_never_counted_as_fewer_than_they_are() {
        for first in STARTS {
            let mut it = Outgoing::new(first);
            it.heard(&says(64 * 1024, first)).unwrap();
            // Sizes of the packets under way, oldest first.
            let mut under_way = std::collections::VecDeque::new();
            let (mut fwd_cnt, mut most) = (first, 0);
            for step in 0..10_000_u32 {
                if it.available() > 0 && step % 7 < 5 {
                    let len = (step * 37 % 300 + 1).min(it.available());
                    it.sent(len, false);
                    under_way.push_back(len);
                }
                if step % 3 == 0
                    && let Some(read) = under_way.pop_front()
                {
                    fwd_cnt = fwd_cnt.wrapping_add(read);
                    it.heard(&says(64 * 1024, fwd_cnt)).unwrap();
                }
                most = most.max(under_way.len());
                assert!(most <= 64);
                assert!((it.packets.0 + it.packets.1) as usize >= under_way.len());
            }
            assert!(most > 32, "half of what may be, at least: {most}");
        }
    }

    #[test]
    fn a_message_that_has_begun_waits_for_bytes_only() {
        let mut it = Outgoing::new(0);
        it.heard(&says(4096, 0)).unwrap();
        for _ in 0..10 {
            it.sent(10, true);
            assert!(it.available() > 0);
        }
        it.sent(10, false);
        assert_eq!(it.available(), 0);
    }

    #[test]
    fn what_comes_in_must_fit_and_what_is_freed_makes_room() {
        for first in STARTS {
            let mut it = Incoming::new(first, 1000);
            assert_eq!(it.received(1001), Err(Overrun));
            it.received(1000).unwrap();
            assert_eq!(it.received(1), Err(Overrun));
            it.freed(400);
            it.received(400).unwrap();
            assert_eq!(it.received(1), Err(Overrun));
            assert_eq!(it.believed_free(), 0);
            let mut header = Header::default();
            it.tell(&mut header);
            assert_eq!(header.buf_alloc, 1000);
            assert_eq!(header.fwd_cnt, first.wrapping_add(400));
            assert_eq!(it.believed_free(), 0);
            it.freed(1000);
            it.tell(&mut header);
            assert_eq!(it.believed_free(), 1000);
        }
    }

    #[test]
    fn news_are_told_when_the_guest_would_soon_stop_and_they_are_worth_it() {
        let mut it = Incoming::new(0, 1000);
        it.received(400).unwrap();
        it.freed(400);
        assert!(!it.is_worth_telling(), "it believes to have 600");
        it.received(200).unwrap();
        assert!(it.is_worth_telling());
        it.tell(&mut Header::default());
        assert!(!it.is_worth_telling(), "there are no news");
        it.received(700).unwrap();
        it.freed(200);
        assert!(!it.is_worth_telling(), "200 is little");
        it.freed(50);
        assert!(it.is_worth_telling());
        // However small the room is, all of it comes back.
        let mut it = Incoming::new(0, 1);
        it.received(1).unwrap();
        it.freed(1);
        assert!(it.is_worth_telling());
    }

    #[test]
    fn a_guest_that_holds_to_its_own_room_hears_before_that_is_used_up() {
        let mut it = Incoming::new(0, 1 << 20);
        it.heard(&says(256 << 10, 0));
        it.received(256 << 10).unwrap();
        assert_eq!(it.believed_free(), 0);
        it.freed(64 << 10);
        assert!(it.is_worth_telling());
        it.tell(&mut Header::default());
        assert_eq!(it.believed_free(), 64 << 10);
        // What fits does no harm, from one that does not.
        it.received(768 << 10).unwrap();
        // And one without any is not forgotten.
        it.heard(&says(0, 0));
        it.freed(960 << 10);
        assert!(it.is_worth_telling());
    }
}
