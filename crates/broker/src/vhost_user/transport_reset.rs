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
/// establishes would be reset as well, and Linux shows a reset by packet as an end of file.
#[derive(Debug, Default)]
pub(super) struct TransportReset {
    state: State,
    chain: Chain,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    None,
    /// It waits for its queue or for a buffer. `hold`: when to stop holding packets back; `None` if that has passed.
    Due { hold: Option<Instant> },
    /// It was sent when the driver's available index was this. The driver makes the buffer available again
    /// when it has handled the event. `is_late`: packets were sent before that, at one time or another.
    Sent {
        driver_index: u16,
        hold: Option<Instant>,
        is_late: bool,
    },
}

/// What has come of the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing new.
    Waits,
    /// The driver takes too long. Packets may be sent that had to wait.
    Released,
    /// The driver has reset its connections, before any packet was sent. Those that had to wait may be sent.
    Handled,
    /// The driver has reset its connections, and also those that were made since packets may be sent.
    HandledLate,
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
        self.timeout().is_some()
    }

    /// When to call [`process`](Self::process) at the latest.
    pub(super) fn timeout(&self) -> Option<Instant> {
        match self.state {
            State::None => None,
            State::Due { hold } | State::Sent { hold, .. } => hold,
        }
    }

    /// Sends the event if it is due, or looks whether the driver has handled it.
    ///
    /// A VMM may start the event queue late, or never (QEMU). Then the event stays due: without it, connections on
    /// which the guest only waits would never end.
    pub(super) fn process(
        &mut self,
        queues: &mut Queues,
        now: Instant,
    ) -> Result<Progress, QueueFault> {
        let is_over = |hold: Option<Instant>| hold.is_some_and(|at| at <= now);
        match self.state {
            State::None => {}
            State::Due { hold } => {
                if let Some(driver_index) = send(queues, &mut self.chain)? {
                    self.state = State::Sent {
                        driver_index,
                        hold: Some(now + DRIVER_TIMEOUT),
                        is_late: hold.is_none(),
                    };
                } else if is_over(hold) {
                    self.state = State::Due { hold: None };
                    return Ok(Progress::Released);
                }
            }
            State::Sent {
                driver_index,
                hold,
                is_late,
            } => {
                if queues.driver_index(EVENT) != Some(driver_index) {
                    self.state = State::None;
                    return Ok(match is_late {
                        true => Progress::HandledLate,
                        false => Progress::Handled,
                    });
                }
                if is_over(hold) {
                    self.state = State::Sent {
                        driver_index,
                        hold: None,
                        is_late: true,
                    };
                    return Ok(Progress::Released);
                }
            }
        }
        Ok(Progress::Waits)
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
