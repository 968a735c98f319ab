//! A connection whose ends share memory: they move their bytes without the broker, which hears
//! both processes, looks at what they say of themselves in the memory, and can stop and cut.
//!
//! Each process keeps its control connection open for as long as its end lives, so the kernel
//! tells when one is gone. What that means is in the memory: an end that was closed has said there
//! that it writes no more, and one that was killed has not.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use hvsock_endpoint::BrokerMessage;
use hvsock_fabric::Refusal;
use hvsock_ring::{Monitor, Side};

use super::connection::Turn;
use super::control::{Control, unread_data, went_away};

/// A connection that the broker looks on.
pub(crate) struct Ring {
    /// Of the process that connected, then of the one that accepted.
    pub(super) controls: [Control; 2],
    monitor: Arc<Monitor>,
    /// The sides whose end has been dealt with.
    gone: [bool; 2],
    suspended: bool,
}

impl Ring {
    pub(super) fn new(controls: [OwnedFd; 2], monitor: Arc<Monitor>) -> Self {
        Self {
            controls: controls.map(Control::new),
            monitor,
            gone: [false; 2],
            suspended: false,
        }
    }

    /// Lets data move or stand still.
    pub(super) fn suspend(&mut self, suspended: bool) {
        self.suspended = suspended;
        self.monitor.suspend(suspended);
        // The word is the truth. This wakes who sleeps, and an end whose process leaves so much
        // unread that it does not fit has that to wake it.
        for control in &self.controls {
            control.tell(&BrokerMessage::Suspended { on: suspended });
        }
    }

    /// Ends the connection for both ends, which have been told why.
    pub(super) fn cut(&self) {
        self.monitor.cut();
    }

    /// Hears both processes and deals with the end of each.
    pub(super) fn turn(&mut self) -> Turn {
        for control in &mut self.controls {
            if control.readable
                && let Err(refusal) = control.read()
            {
                return Turn::Over(Some(refusal));
            }
        }
        // While a connection stands still nobody hears what became of the other end.
        let settled = if self.suspended { 0 } else { 2 };
        for (index, side) in Side::BOTH.into_iter().enumerate().take(settled) {
            if self.controls[index].closed && !self.gone[index] {
                self.gone[index] = true;
                let survivor = Some(&self.controls[1 - index]).filter(|other| !other.closed);
                if let Err(refusal) = settle(&self.monitor, side, survivor) {
                    return Turn::Over(Some(refusal));
                }
            }
        }
        if self.gone == [true; 2] {
            Turn::Over(None)
        } else if self.controls.iter().any(|control| control.readable) {
            Turn::Again
        } else {
            Turn::Waiting
        }
    }
}

/// Deals with a side whose process is gone, for the one that is still there.
fn settle(monitor: &Monitor, side: Side, survivor: Option<&Control>) -> Result<(), Refusal> {
    if !monitor.has_ended(side) {
        return Err(went_away());
    }
    let Some(survivor) = survivor else {
        return Ok(());
    };
    if monitor.leaves_unread(side) {
        return Err(unread_data());
    }
    // What is written from here on, its writer sees that nobody reads; what was written in between
    // is seen here.
    monitor.close(side);
    if monitor.leaves_unread(side) {
        return Err(unread_data());
    }
    survivor.tell(&BrokerMessage::Shutdown);
    Ok(())
}
