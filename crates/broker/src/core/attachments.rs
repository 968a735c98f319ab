//! The socket to which a process connects its own one, as the end of one connection.
//!
//! It has no name: whoever has the descriptor that the process was sent connects to it, and nobody else.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hvsock_fabric::Refusal;
use hvsock_sys::stream;

use super::limits::descriptor_limit;
use crate::budget::Charge;
use crate::data_path::protocol_violation;

/// A socket that waits for its process.
#[derive(Debug)]
pub(crate) struct Attachment {
    listener: OwnedFd,
    filler: u32,
    /// For its descriptors.
    charge: Charge,
}

impl Attachment {
    /// The broker's descriptors of one: the listener, and the process's socket.
    pub(crate) const DESCRIPTORS: u64 = 2;

    /// Waits at `listener`. The process writes `filler` bytes to its socket before its request.
    pub(crate) fn new(listener: OwnedFd, filler: u32, charge: Charge) -> Self {
        Self {
            listener,
            filler,
            charge,
        }
    }

    /// The bytes of filler, and the charge for its descriptors.
    pub(crate) fn terms(&self) -> (u32, &Charge) {
        (self.filler, &self.charge)
    }

    /// The process's socket without its filler, non-blocking; `None` if the process has not connected it.
    ///
    /// # Errors
    ///
    /// If it cannot be accepted; a protocol violation if there is less filler than announced.
    pub(crate) fn accept(&self) -> Result<Option<OwnedFd>, Refusal> {
        let accepted = stream::accept(&self.listener).map_err(|error| descriptor_limit(&error))?;
        if let Some(socket) = &accepted {
            self.drop_filler(socket)?;
        }
        Ok(accepted)
    }

    fn drop_filler(&self, socket: &OwnedFd) -> Result<(), Refusal> {
        let mut bytes = [0; hvsock_endpoint::MAX_FILLER as usize];
        let mut left = (self.filler as usize).min(bytes.len());
        while left > 0 {
            match stream::recv(socket, &mut bytes[..left]) {
                Ok(count) if count > 0 => left -= count,
                _ => {
                    let what = format!("an attached socket without {left} bytes of its filler");
                    return Err(protocol_violation(&what));
                }
            }
        }
        Ok(())
    }
}

/// Readable when the process has connected its socket.
impl AsFd for Attachment {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
