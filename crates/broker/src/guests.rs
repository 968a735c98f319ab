//! What the integration services of the host tell the broker of its guests, and what operators ask
//! of those.
//!
//! The broker runs no such service itself: whoever embeds it does, as the command does, with the
//! crate hvsock-services or with one of their own.

use hvsock_address::PartitionRef;

use crate::handle::{ControlError, Handle};
use crate::model::{GuestNotice, GuestOrder, GuestReport};

impl Handle {
    /// A guest's agent was heard. It is lost if it is not heard again within 3.5 seconds.
    ///
    /// The partition must be the one that the connection came from. This does not wait: a broker
    /// that has stopped and a partition that is gone have nobody to tell.
    pub fn guest_beat(&self, guest: &PartitionRef, report: GuestReport) {
        let guest = guest.clone();
        self.post(move |core| {
            if let Some(guest) = core.find(&guest) {
                core.guest_beat(guest, report);
            }
        });
    }

    /// A guest's service manager was heard: `said` is taken into what it said since the guest
    /// started. This does not wait, either.
    pub fn guest_notice(
        &self,
        guest: &PartitionRef,
        said: impl FnOnce(&mut GuestNotice) + Send + 'static,
    ) {
        let guest = guest.clone();
        self.post(move |core| {
            if let Some(guest) = core.find(&guest) {
                core.guest_notice(guest, said);
            }
        });
    }

    /// Orders to a guest's agent go to `orders` from now on, which must not wait, and says whether
    /// there was room for the order.
    pub fn attend_guest(
        &self,
        guest: &PartitionRef,
        orders: impl Fn(GuestOrder) -> bool + Send + 'static,
    ) {
        let guest = guest.clone();
        self.post(move |core| {
            if let Some(guest) = core.find(&guest) {
                core.attend_guest(guest, Box::new(orders));
            }
        });
    }

    /// Asks a guest's agent for something. That it was asked is all that this says.
    pub fn order_guest(&self, guest: &PartitionRef, order: GuestOrder) -> Result<(), ControlError> {
        let name = self.partition(guest)?.name;
        let taken = self.on_partition(guest, move |core, key| core.order_guest(key, order))?;
        if taken {
            return Ok(());
        }
        let what = format!("no agent in {name} takes orders now; is `hvsock-agent` running there?");
        Err(ControlError::Invalid(what))
    }
}
