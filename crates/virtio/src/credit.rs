//! Credit (section 5.10.6.3): how many bytes each side of a connection may still send.
//!
//! All counters are free-running modulo 2^32, so only their differences have a meaning. The guest's
//! `fwd_cnt` is validated against the bytes in flight. No header can make the device send more than
//! the guest has advertised, or corrupt the count.
//!
//! Credit counts bytes, but each unread packet costs the guest memory as well. Linux resets a
//! connection whose packet overhead exceeds its `buf_alloc`, however few bytes the packets hold. The
//! protocol does not express that, so [`Outgoing`] limits the packets in flight, too.

use crate::Header;

/// Maximum bytes in flight to the guest on one connection, whatever `buf_alloc` it advertises. Half of
/// the counters' range, so that a counter that runs backwards is always detected.
const MAX_IN_FLIGHT: u32 = i32::MAX as u32;

/// Assumed memory cost of a packet in flight to the guest, in bytes. Linux charges 576 on x86-64
/// (`SKB_TRUESIZE(0)`), and more in debug builds.
const PACKET_COST: u32 = 1024;

/// The guest's `fwd_cnt` covers bytes that were never sent, or goes backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProtocolViolation;

/// The guest sent more bytes than the receive buffer has free space for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overrun;

/// Credit for sending to the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing {
    /// The guest's `buf_alloc`. It may shrink, even below the bytes in flight.
    pub(crate) alloc: u32,
    /// The guest's `fwd_cnt`.
    pub(crate) fwd_cnt: u32,
    /// Bytes ever sent, modulo 2^32.
    pub(crate) sent: u32,
    /// A position in the stream, not before `fwd_cnt`, that splits the packets in flight.
    pub(crate) mark: u32,
    /// Packets up to the mark, some of which may have been read, and packets after it.
    pub(crate) packets: (u32, u32),
    /// A message is incomplete. The guest cannot read any of it, so the packet limit must not stop it.
    pub(crate) within_message: bool,
}

impl Outgoing {
    pub(crate) fn new(first: u32) -> Self {
        Self {
            alloc: 0,
            fwd_cnt: first,
            sent: first,
            mark: first,
            packets: (0, 0),
            within_message: false,
        }
    }

    /// Applies the credit in a header from the guest.
    pub(crate) fn update(&mut self, header: &Header) -> Result<(), ProtocolViolation> {
        if header.fwd_cnt.wrapping_sub(self.fwd_cnt) > self.in_flight() {
            return Err(ProtocolViolation);
        }
        self.fwd_cnt = header.fwd_cnt;
        self.alloc = header.buf_alloc;
        let to_mark = self.mark.wrapping_sub(self.fwd_cnt);
        if self.in_flight() == 0 {
            self.packets = (0, 0);
            self.mark = self.sent;
        } else if to_mark == 0 || to_mark > self.in_flight() {
            // Everything before the mark has been read.
            self.packets = (self.packets.1, 0);
            self.mark = self.sent;
        }
        Ok(())
    }

    /// Bytes sent that the guest has not read.
    pub(crate) fn in_flight(&self) -> u32 {
        self.sent.wrapping_sub(self.fwd_cnt)
    }

    /// Whether the counters could have come about by packets: no more in flight than the maximum, and
    /// the mark within the bytes in flight.
    pub(crate) fn is_consistent(&self) -> bool {
        let in_flight = self.in_flight();
        in_flight <= MAX_IN_FLIGHT && self.mark.wrapping_sub(self.fwd_cnt) <= in_flight
    }

    /// Credit: bytes that may be sent now.
    pub(crate) fn available(&self) -> u32 {
        let packets = self.packets.0.saturating_add(self.packets.1);
        if packets >= (self.alloc / PACKET_COST).max(1) && !self.within_message {
            return 0;
        }
        self.alloc
            .min(MAX_IN_FLIGHT)
            .saturating_sub(self.in_flight())
    }

    /// Whether the packet limit (or [`MAX_IN_FLIGHT`]), and not the guest's buffer, stops the
    /// connection.
    pub(crate) fn is_limited_by_packets(&self) -> bool {
        self.available() == 0 && self.in_flight() < self.alloc
    }

    /// Whether credit is above the low watermark, a quarter of the guest's buffer.
    pub(crate) fn is_above_low_watermark(&self) -> bool {
        let available = self.available();
        available > 0 && (self.in_flight() == 0 || available >= self.alloc / 4)
    }

    /// Counts a sent packet. `within_message`: the message continues in the next packet.
    pub(crate) fn sent(&mut self, bytes: u32, within_message: bool) {
        self.within_message = within_message;
        self.sent = self.sent.wrapping_add(bytes);
        self.packets.1 = self.packets.1.saturating_add(1);
    }
}

/// Credit for receiving from the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incoming {
    pub(crate) alloc: u32,
    /// The guest's own `buf_alloc`. Linux limits its bytes in flight to that, whatever the peer
    /// advertises (since the releases of early 2026).
    pub(crate) peer_alloc: u32,
    pub(crate) received: u32,
    /// Bytes that the reader has consumed: the `fwd_cnt` to advertise.
    pub(crate) fwd_cnt: u32,
    /// The `fwd_cnt` last advertised to the guest.
    pub(crate) advertised: u32,
}

impl Incoming {
    pub(crate) fn new(first: u32, alloc: u32) -> Self {
        Self {
            alloc,
            peer_alloc: u32::MAX,
            received: first,
            fwd_cnt: first,
            advertised: first,
        }
    }

    pub(crate) fn alloc(&self) -> u32 {
        self.alloc
    }

    pub(crate) fn set_alloc(&mut self, alloc: u32) {
        self.alloc = alloc;
    }

    /// Records the guest's own buffer size.
    pub(crate) fn update(&mut self, header: &Header) {
        self.peer_alloc = header.buf_alloc;
    }

    /// Bytes that the guest sends before it waits for a credit update.
    pub(crate) fn window(&self) -> u32 {
        // A guest that advertises no buffer at all still gets credit updates.
        self.alloc.min(self.peer_alloc.max(PACKET_COST))
    }

    /// Bytes received and not consumed.
    fn unread(&self) -> u32 {
        self.received.wrapping_sub(self.fwd_cnt)
    }

    /// Whether the counters could have come about by packets: no more unread than the buffer holds.
    pub(crate) fn is_consistent(&self) -> bool {
        self.unread() <= self.alloc
    }

    /// Counts received bytes. Checks them against the free space that exists, not against what was
    /// advertised: bytes that fit do no harm.
    pub(crate) fn received(&mut self, bytes: u32) -> Result<(), Overrun> {
        if bytes > self.alloc.saturating_sub(self.unread()) {
            return Err(Overrun);
        }
        self.received = self.received.wrapping_add(bytes);
        Ok(())
    }

    /// Counts consumed bytes.
    pub(crate) fn freed(&mut self, bytes: u32) {
        debug_assert!(bytes <= self.unread(), "more bytes freed than received");
        self.fwd_cnt = self.fwd_cnt.wrapping_add(bytes.min(self.unread()));
    }

    /// Credit that the guest has, as last advertised, in bytes.
    pub(crate) fn advertised_free(&self) -> u32 {
        self.window()
            .saturating_sub(self.received.wrapping_sub(self.advertised))
    }

    /// Whether to send a CREDIT_UPDATE. It is due when the guest has credit for less than half of its
    /// window, and the update adds at least a quarter. So the guest never stalls for lack of an update,
    /// and gets at most four per window of bytes.
    pub(crate) fn needs_update(&self) -> bool {
        let added = self.fwd_cnt.wrapping_sub(self.advertised);
        let window = u64::from(self.window());
        added > 0
            && u64::from(self.advertised_free()) * 2 < window
            && u64::from(added) * 4 >= window
    }

    /// Writes `buf_alloc` and `fwd_cnt` into the header of a packet to the guest.
    pub(crate) fn advertise(&mut self, header: &mut Header) {
        self.advertised = self.fwd_cnt;
        header.buf_alloc = self.alloc;
        header.fwd_cnt = self.fwd_cnt;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STARTS: [u32; 4] = [0, 1, u32::MAX - 100, u32::MAX];

    fn credit(buf_alloc: u32, fwd_cnt: u32) -> Header {
        Header {
            buf_alloc,
            fwd_cnt,
            ..Header::default()
        }
    }

    #[test]
    fn credit_is_the_buffer_less_the_bytes_in_flight_across_the_wraparound() {
        for first in STARTS {
            let mut it = Outgoing::new(first);
            assert_eq!(it.available(), 0);
            it.update(&credit(100_000, first)).unwrap();
            it.sent(60_000, false);
            assert_eq!((it.available(), it.in_flight()), (40_000, 60_000));
            it.update(&credit(100_000, first.wrapping_add(50_000)))
                .unwrap();
            assert_eq!((it.available(), it.in_flight()), (90_000, 10_000));
        }
    }

    #[test]
    fn a_buffer_that_shrinks_below_the_bytes_in_flight_gives_no_credit() {
        let mut it = Outgoing::new(5);
        it.update(&credit(100_000, 5)).unwrap();
        it.sent(60_000, false);
        it.update(&credit(50_000, 5)).unwrap();
        assert_eq!(it.available(), 0);
        it.update(&credit(50_000, 20_005)).unwrap();
        assert_eq!(it.available(), 10_000);
    }

    #[test]
    fn a_fwd_cnt_beyond_the_bytes_sent_or_backwards_is_a_violation() {
        for first in STARTS {
            let mut it = Outgoing::new(first);
            it.update(&credit(u32::MAX, first)).unwrap();
            it.sent(1000, false);
            let at = |bytes: u32| credit(u32::MAX, first.wrapping_add(bytes));
            it.update(&at(600)).unwrap();
            for invalid in [599, 0, 1001, u32::MAX, 1 << 31] {
                assert_eq!(it.update(&at(invalid)), Err(ProtocolViolation), "{invalid}");
            }
            assert_eq!(it.in_flight(), 400, "a violation changes nothing");
            it.update(&at(600)).unwrap();
            it.update(&at(1000)).unwrap();
        }
    }

    #[test]
    fn small_packets_stop_before_their_cost_exceeds_the_guests_buffer() {
        let mut it = Outgoing::new(0);
        it.update(&credit(8192, 0)).unwrap();
        let mut sent = 0;
        while it.available() > 0 {
            it.sent(1, false);
            sent += 1;
        }
        assert_eq!(sent, 8);
        // A partial read may not free any packet; a read up to the mark frees all of them.
        it.update(&credit(8192, 3)).unwrap();
        assert_eq!(it.available(), 0);
        it.update(&credit(8192, 8)).unwrap();
        assert_eq!(it.available(), 8192);
    }

    #[test]
    fn packets_in_flight_are_never_undercounted() {
        for first in STARTS {
            let mut it = Outgoing::new(first);
            it.update(&credit(64 * 1024, first)).unwrap();
            // Sizes of the packets in flight, oldest first.
            let mut in_flight = std::collections::VecDeque::new();
            let (mut fwd_cnt, mut most) = (first, 0);
            for step in 0..10_000_u32 {
                if it.available() > 0 && step % 7 < 5 {
                    let len = (step * 37 % 300 + 1).min(it.available());
                    it.sent(len, false);
                    in_flight.push_back(len);
                }
                if step % 3 == 0
                    && let Some(read) = in_flight.pop_front()
                {
                    fwd_cnt = fwd_cnt.wrapping_add(read);
                    it.update(&credit(64 * 1024, fwd_cnt)).unwrap();
                }
                most = most.max(in_flight.len());
                assert!(most <= 64);
                assert!((it.packets.0 + it.packets.1) as usize >= in_flight.len());
            }
            assert!(most > 32, "at least half of the packet limit: {most}");
        }
    }

    #[test]
    fn an_incomplete_message_is_limited_by_bytes_only() {
        let mut it = Outgoing::new(0);
        it.update(&credit(4096, 0)).unwrap();
        for _ in 0..10 {
            it.sent(10, true);
            assert!(it.available() > 0);
        }
        it.sent(10, false);
        assert_eq!(it.available(), 0);
    }

    #[test]
    fn received_bytes_must_fit_and_consumed_bytes_free_space() {
        for first in STARTS {
            let mut it = Incoming::new(first, 1000);
            assert_eq!(it.received(1001), Err(Overrun));
            it.received(1000).unwrap();
            assert_eq!(it.received(1), Err(Overrun));
            it.freed(400);
            it.received(400).unwrap();
            assert_eq!(it.received(1), Err(Overrun));
            assert_eq!(it.advertised_free(), 0);
            let mut header = Header::default();
            it.advertise(&mut header);
            assert_eq!(header.buf_alloc, 1000);
            assert_eq!(header.fwd_cnt, first.wrapping_add(400));
            assert_eq!(it.advertised_free(), 0);
            it.freed(1000);
            it.advertise(&mut header);
            assert_eq!(it.advertised_free(), 1000);
        }
    }

    #[test]
    fn a_credit_update_is_due_below_half_of_the_window_if_it_adds_a_quarter() {
        let mut it = Incoming::new(0, 1000);
        it.received(400).unwrap();
        it.freed(400);
        assert!(!it.needs_update(), "the guest has credit for 600");
        it.received(200).unwrap();
        assert!(it.needs_update());
        it.advertise(&mut Header::default());
        assert!(!it.needs_update(), "nothing to add");
        it.received(700).unwrap();
        it.freed(200);
        assert!(!it.needs_update(), "200 is less than a quarter");
        it.freed(50);
        assert!(it.needs_update());
        // Even a buffer of one byte is advertised again.
        let mut it = Incoming::new(0, 1);
        it.received(1).unwrap();
        it.freed(1);
        assert!(it.needs_update());
    }

    #[test]
    fn a_guest_that_limits_itself_to_its_own_buffer_gets_updates_in_time() {
        let mut it = Incoming::new(0, 1 << 20);
        it.update(&credit(256 << 10, 0));
        it.received(256 << 10).unwrap();
        assert_eq!(it.advertised_free(), 0);
        it.freed(64 << 10);
        assert!(it.needs_update());
        it.advertise(&mut Header::default());
        assert_eq!(it.advertised_free(), 64 << 10);
        // A guest that does not limit itself may use all free space.
        it.received(768 << 10).unwrap();
        // A guest that advertises no buffer still gets updates.
        it.update(&credit(0, 0));
        it.freed(960 << 10);
        assert!(it.needs_update());
    }
}
