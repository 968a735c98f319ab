//! The kernel's receive buffer.

use std::io;
use std::os::fd::OwnedFd;

use hvsock_sys::vsock;

use crate::backend::Request;

/// Sets the requested buffer size, within the limits of a ring. Accepted connections inherit it
/// from the listener.
pub(super) fn size_buffer(socket: &OwnedFd, request: &Request) -> io::Result<()> {
    match request.settings.ring_size {
        0 => Ok(()),
        bytes => vsock::set_buffer_size(socket, bytes.clamp(4096, 16 << 20).into()),
    }
}
