//! What is heard of guests, from the host's integration services: where it goes, and who is told.

use std::time::Instant;

use hvsock_fabric::PartitionKey;

use super::Core;
use super::labels::partition_label;
use super::vitals::{Orders, Sign};
use crate::model::{EventKind, GuestNotice, GuestOrder, GuestReport, PartitionState};

impl Core {
    /// A guest's agent was heard.
    pub(crate) fn guest_beat(&mut self, guest: PartitionKey, report: GuestReport) {
        let Some(state) = self.state_of(guest) else {
            return;
        };
        for sign in self.vitals.beat(guest, state, report, Instant::now()) {
            self.tell(guest, sign);
        }
    }

    /// A guest's service manager was heard.
    pub(crate) fn guest_notice(
        &mut self,
        guest: PartitionKey,
        said: impl FnOnce(&mut GuestNotice),
    ) {
        let Some(state) = self.state_of(guest) else {
            return;
        };
        if let Some(sign) = self.vitals.notice(guest, state, said) {
            self.tell(guest, sign);
        }
    }

    /// Orders to a guest's agent go this way from now on.
    pub(crate) fn attend_guest(&mut self, guest: PartitionKey, orders: Orders) {
        if self.state_of(guest) != Some(PartitionState::Off) {
            self.vitals.attend(guest, orders);
        }
    }

    /// Hands an order to a guest's agent, if that is there to take it.
    pub(crate) fn order_guest(&self, guest: PartitionKey, order: GuestOrder) -> bool {
        self.vitals.order(guest, order)
    }

    /// Tells of the guests whose time is up.
    pub(super) fn expire_vitals(&mut self, now: Instant) {
        for (guest, sign) in self.vitals.expire(now) {
            self.tell(guest, sign);
        }
    }

    fn state_of(&self, guest: PartitionKey) -> Option<PartitionState> {
        Some(self.fabric.partition(guest)?.state().into())
    }

    fn tell(&mut self, guest: PartitionKey, sign: Sign) {
        let partition = partition_label(&self.fabric, guest);
        let event = match sign {
            Sign::Contact => EventKind::GuestContact { partition },
            Sign::Ready => EventKind::GuestReady { partition },
            Sign::Lost(silent) => {
                tracing::warn!(
                    "contact with the guest {partition} is lost: nothing for {:.1} s",
                    silent.as_secs_f64()
                );
                let silent_ms = u64::try_from(silent.as_millis()).unwrap_or(u64::MAX);
                EventKind::GuestContactLost {
                    partition,
                    silent_ms,
                }
            }
        };
        self.events.publish(|| event);
    }
}
