//! The event TRANSPORT_RESET: the guest's connections have ended, all at once.
//!
//! It is due when the device begins to serve a guest that another device has served before: the VMM has
//! connected again to a new broker, or has restored a snapshot. The guest may hold connections that this
//! device does not know. Its driver resets them when it reads the event, and reads its context id again;
//! listening sockets stay. (virtio 1.2 §5.10.6.6)
//!
//! If the event queue is the VMM's own (QEMU), nothing can be sent. Such a connection gets an RST for its next
//! packet, as every packet of an unknown connection does.

pub(super) mod snapshot;

use std::time::{Duration, Instant};

use hvsock_virtio::queue::{Chain, QueueFault};

use super::queues::{EVENT, EVENT_LEN, Queues};

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (0), little-endian.
const TRANSPORT_RESET: [u8; EVENT_LEN] = 0_u32.to_le_bytes();
/// How long packets wait for the VMM to start the event queue after the others, or for a buffer in it.
const QUEUE_TIMEOUT: Duration = Duration::from_millis(100);
/// How long packets wait for the driver to handle the event.
const DRIVER_TIMEOUT: Duration = Duration::from_secs(1);

/// The progress of the event. Until the driver has handled it, no packet is sent: a connection that the packet
/// establishes would be reset as well.
#[derive(Debug, Default)]
pub(super) struct TransportReset {
    state: State,
    chain: Chain,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    None,
    /// It waits for a buffer. `hold`: when to stop holding packets back; `None` if that has passed.
    Due { hold: Option<Instant> },
    /// It was sent when the driver's available index was this. The driver makes the buffer available again
    /// when it has handled the event.
    Sent { driver_index: u16, hold: Instant },
}

impl TransportReset {
    /// The guest may have connections of another device.
    pub(super) fn begin(&mut self, now: Instant) {
        let hold = Some(now + QUEUE_TIMEOUT);
        self.state = State::Due { hold };
    }

    /// The guest has no connections.
    pub(super) fn cancel(&mut self) {
        self.state = State::None;
    }

    /// Whether no packet may be sent.
    pub(super) fn holds_packets(&self) -> bool {
        matches!(
            self.state,
            State::Due { hold: Some(_) } | State::Sent { .. }
        )
    }

    /// When to call [`process`](Self::process) at the latest.
    pub(super) fn timeout(&self) -> Option<Instant> {
        match self.state {
            State::None => None,
            State::Due { hold } => hold,
            State::Sent { hold, .. } => Some(hold),
        }
    }

    /// Sends the event if it is due, or looks whether the driver has handled it. Returns whether packets may
    /// be sent that had to wait.
    pub(super) fn process(
        &mut self,
        queues: &mut Queues,
        now: Instant,
    ) -> Result<bool, QueueFault> {
        let held = self.holds_packets();
        match self.state {
            State::None => {}
            State::Due { hold } => {
                if let Some(driver_index) = send(queues, &mut self.chain)? {
                    let hold = now + DRIVER_TIMEOUT;
                    self.state = State::Sent { driver_index, hold };
                } else if hold.is_some_and(|at| at <= now) {
                    self.state = match queues.has_events() {
                        true => State::Due { hold: None },
                        false => State::None,
                    };
                }
            }
            State::Sent { driver_index, hold } => {
                let is_handled = queues.driver_index(EVENT) != Some(driver_index);
                if is_handled || hold <= now {
                    self.state = State::None;
                }
            }
        }
        Ok(held && !self.holds_packets())
    }

    /// Requests a kick for when [`process`](Self::process) can continue. Returns `false` if it can already.
    pub(super) fn arm(&self, queues: &mut Queues) -> Result<bool, QueueFault> {
        Ok(match self.state {
            State::None => true,
            State::Due { .. } => !queues.enable_notification(EVENT)?,
            State::Sent { driver_index, .. } => {
                queues.enable_notification(EVENT)?;
                queues.driver_index(EVENT) == Some(driver_index)
            }
        })
    }
}

/// Sends the event, if there is a buffer for it. Returns the driver's available index before.
fn send(queues: &mut Queues, chain: &mut Chain) -> Result<Option<u16>, QueueFault> {
    let Some(driver_index) = queues.driver_index(EVENT) else {
        return Ok(None);
    };
    if !queues.peek(EVENT, chain)? {
        // Invalid buffers may have been returned.
        queues.publish(EVENT)?;
        return Ok(None);
    }
    let is_written = queues
        .ram
        .write_segments(chain.writable(), &TRANSPORT_RESET);
    let written = if is_written { EVENT_LEN as u32 } else { 0 };
    queues.add_used(EVENT, chain, written)?;
    queues.publish(EVENT)?;
    Ok(is_written.then_some(driver_index))
}
