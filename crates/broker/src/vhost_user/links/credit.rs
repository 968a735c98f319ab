//! The guest's credit: the space that each connection's peer has freed, and when to look for more.

use hvsock_virtio::{Muxer, Window};

use super::{Link, Links, MAX_WATCHED};

impl Link {
    /// Reports to the muxer how many more bytes the peer has consumed. The muxer sends the credit
    /// update.
    pub(super) fn report_consumed(&mut self, mux: &mut Muxer) {
        let Some(handle) = self.handle else { return };
        let consumed = self.peer.consumed();
        let fresh = consumed.wrapping_sub(self.consumed);
        if fresh > 0 && fresh <= self.delivered.wrapping_sub(self.consumed) {
            self.consumed = consumed;
            // Fits: it is at most what was delivered, and that is bounded by the credit.
            mux.freed(handle, fresh as u32);
        }
    }

    /// If the guest has low credit, requests a wakeup for when the peer has freed enough space for
    /// a credit update. Returns whether it already has.
    fn arm_credit(&self, mux: &Muxer) -> bool {
        let Some(handle) = self.handle else {
            return false;
        };
        let window = mux.receive_window(handle);
        if !is_low(window) {
            return false;
        }
        // Wake when free space is a quarter above the guest's credit, and not a byte earlier: below
        // that the muxer sends no credit update, and the link would be armed again at once.
        let quarter = window.size.div_ceil(4);
        let unread = u64::from(window.size - window.advertised_free - quarter);
        let consumed = self.delivered.saturating_sub(unread);
        !self
            .peer
            .arm_consumed(consumed, u64::from(window.alloc) - unread)
    }
}

impl Links {
    /// Polls a link for credit from now on if its guest has low credit.
    pub(in super::super) fn watch_credit(&mut self, slot: usize, mux: &Muxer) {
        let Some(link) = self.slab.get_mut(slot) else {
            return;
        };
        let Some(handle) = link.handle else { return };
        if !link.low_credit && is_low(mux.receive_window(handle)) {
            link.low_credit = true;
            self.low_credit.push(slot);
        }
    }

    /// Polls the links with low credit. Returns whether one has enough again.
    pub(in super::super) fn poll_credit(&mut self, mux: &mut Muxer) -> bool {
        let mut found = false;
        if self.low_credit.len() > MAX_WATCHED {
            found |= self.arm_credit(mux);
        }
        for index in (0..self.low_credit.len()).rev() {
            let slot = self.low_credit[index];
            let Some(link) = self.slab.get_mut(slot) else {
                self.low_credit.swap_remove(index);
                continue;
            };
            link.report_consumed(mux);
            let window = link.handle.map(|handle| mux.receive_window(handle));
            if window.is_none_or(|window| !is_low(window)) {
                link.low_credit = false;
                self.low_credit.swap_remove(index);
                found = true;
            }
        }
        found
    }

    /// Requests a wakeup from each link with low credit. Returns whether one has enough already.
    pub(in super::super) fn arm_credit(&mut self, mux: &mut Muxer) -> bool {
        let mut found = false;
        for slot in std::mem::take(&mut self.low_credit) {
            let Some(link) = self.slab.get_mut(slot) else {
                continue;
            };
            link.low_credit = false;
            link.report_consumed(mux);
            if link.arm_credit(mux) {
                link.low_credit = true;
                self.low_credit.push(slot);
                found = true;
            }
        }
        found
    }
}

/// Whether the guest's credit is below half of the window, so that its writes may soon block.
fn is_low(window: Window) -> bool {
    window.advertised_free < window.size / 2
}
