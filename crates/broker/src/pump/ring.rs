//! A connection whose ends share memory and copy their bytes without the broker. The broker reads
//! both control connections, monitors the shared state, and can suspend or reset the connection.
//!
//! Each process keeps its control connection open for the lifetime of its end, so the kernel reports
//! when a process is gone. The shared state shows why: a closed end has set its write-shutdown flag,
//! a killed one has not.

pub(super) mod snapshot;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use hvsock_endpoint::BrokerMessage;
use hvsock_fabric::Refusal;
use hvsock_ring::{Monitor, RingSide};

use super::turn::Turn;
use crate::data_path::{ControlConnection, ProcessSocket, peer_died, unread_data};

/// A ring connection, as the broker monitors it.
pub(crate) struct MonitoredRing {
    /// Of the client, then of the server.
    pub(super) controls: [ControlConnection; 2],
    /// For the broker that takes the connection over.
    memory: OwnedFd,
    monitor: Arc<Monitor>,
    /// The sides whose process is gone, once that has been handled.
    gone: [bool; 2],
    suspended: bool,
}

impl MonitoredRing {
    pub(super) fn new(
        controls: [ProcessSocket; 2],
        memory: OwnedFd,
        monitor: Arc<Monitor>,
    ) -> Self {
        Self {
            controls: controls.map(ControlConnection::new),
            memory,
            monitor,
            gone: [false; 2],
            suspended: false,
        }
    }

    /// Suspends or resumes the data transfer.
    pub(super) fn suspend(&mut self, suspended: bool) {
        self.suspended = suspended;
        self.monitor.suspend(suspended);
        // The flag in shared memory is authoritative. The message only wakes a parked process. If
        // it does not fit, the unread messages wake the process.
        for control in &self.controls {
            control.send(&BrokerMessage::Suspended { on: suspended });
        }
    }

    /// Resets the ring for both ends, after the reason was sent.
    pub(super) fn reset(&self) {
        self.monitor.reset();
    }

    /// Reads both control connections and handles processes that are gone.
    pub(super) fn turn(&mut self) -> Turn {
        for control in &mut self.controls {
            if control.readable
                && let Err(refusal) = control.read()
            {
                return Turn::Closed(Some(refusal));
            }
        }
        // A suspended connection does not report the end of a peer until it is resumed.
        let handled = if self.suspended { 0 } else { 2 };
        for (index, side) in RingSide::BOTH.into_iter().enumerate().take(handled) {
            if self.controls[index].closed && !self.gone[index] {
                self.gone[index] = true;
                let survivor = Some(&self.controls[1 - index]).filter(|other| !other.closed);
                if let Err(refusal) = handle_gone(&self.monitor, side, survivor) {
                    return Turn::Closed(Some(refusal));
                }
            }
        }
        if self.gone == [true; 2] {
            Turn::Closed(None)
        } else if self.controls.iter().any(|control| control.readable) {
            Turn::Again
        } else {
            Turn::Waiting
        }
    }
}

/// Handles a side whose process is gone. Fails if the survivor must see a reset.
fn handle_gone(
    monitor: &Monitor,
    side: RingSide,
    survivor: Option<&ControlConnection>,
) -> Result<(), Refusal> {
    if !monitor.has_ended(side) {
        return Err(peer_died());
    }
    let Some(survivor) = survivor else {
        return Ok(());
    };
    if monitor.leaves_unread(side) {
        return Err(unread_data());
    }
    // Closing makes later writes fail. The second check finds bytes written since the first.
    monitor.close(side);
    if monitor.leaves_unread(side) {
        return Err(unread_data());
    }
    survivor.send(&BrokerMessage::Shutdown);
    Ok(())
}
