//! The broker's interface for integration services: liveness of guests, and commands to them.
//!
//! The broker runs no integration service. The embedding program does, with the crate
//! hvsock-services (as the command `hvsock broker` does) or with its own.

use hvsock_address::PartitionRef;
use hvsock_fabric::Fix;

use crate::handle::{ControlError, Handle};
use crate::model::{GuestCommand, GuestNotice, GuestReport};

impl Handle {
    /// Reports a heartbeat of a guest's agent. The agent counts as lost if no other follows within
    /// 3.5 s.
    ///
    /// `guest` must be the partition that the heartbeat's connection came from. Does not block, and
    /// has no effect if the partition is gone or the broker has stopped.
    #[doc(alias = "liveness")]
    pub fn guest_heartbeat(&self, guest: &PartitionRef, report: GuestReport) {
        let guest = guest.clone();
        self.post(move |core| {
            if let Some(guest) = core.find(&guest) {
                core.guest_heartbeat(guest, report);
            }
        });
    }

    /// Reports a notice of a guest's service manager (`sd_notify`). `update` changes the accumulated
    /// notice since the guest started. Does not block, as [`guest_heartbeat`](Self::guest_heartbeat).
    pub fn guest_notice(
        &self,
        guest: &PartitionRef,
        update: impl FnOnce(&mut GuestNotice) + Send + 'static,
    ) {
        let guest = guest.clone();
        self.post(move |core| {
            if let Some(guest) = core.find(&guest) {
                core.guest_notice(guest, update);
            }
        });
    }

    /// Sets the handler for commands to a guest's agent, which replaces the previous one.
    ///
    /// The handler runs on the core thread and must not block. It returns `false` if it cannot queue
    /// the command.
    pub fn on_guest_command(
        &self,
        guest: &PartitionRef,
        handler: impl Fn(GuestCommand) -> bool + Send + 'static,
    ) {
        let guest = guest.clone();
        self.post(move |core| {
            if let Some(guest) = core.find(&guest) {
                core.set_guest_handler(guest, Box::new(handler));
            }
        });
    }

    /// Sends a command to a guest's agent. Success means that the command was queued, not that it was
    /// executed.
    ///
    /// # Errors
    ///
    /// [`ControlError::NotFound`] for an unknown partition, [`ControlError::Invalid`] if no live agent
    /// accepts commands there.
    pub fn send_guest_command(
        &self,
        guest: &PartitionRef,
        command: GuestCommand,
    ) -> Result<(), ControlError> {
        let name = self.partition(guest)?.name;
        let queued = self.on_partition(guest, move |core, key| {
            core.send_guest_command(key, command)
        })?;
        if queued {
            return Ok(());
        }
        Err(ControlError::NotNow {
            what: format!("no agent in {name} accepts commands"),
            fix: Box::new(Fix::StartAgent { partition: name }),
        })
    }
}
