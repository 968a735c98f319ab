//! The next request in the VMM's socket, before anything of it is read.
//!
//! A request is read only when all of it has arrived. So a VMM that stops in the middle of one does not block the
//! thread, and what has arrived stays in the socket, also if another process goes on with that.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use hvsock_sys::stream;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, RecvFlags, SocketType};
use vhost::vhost_user::message::FrontendReq;
use vhost::vhost_user::{Error, Result};

use super::mem_table::{
    HEADER, MAX_BODY, NEED_REPLY, REPLY, VERSION, VERSION_MASK, acknowledge_request,
    receive_header, word,
};

const MEM_TABLE: u32 = FrontendReq::SET_MEM_TABLE as u32;
const CHANNEL: u32 = FrontendReq::SET_BACKEND_REQ_FD as u32;

/// What is in the VMM's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextRequest {
    /// A part of a request. The rest may still arrive.
    Part,
    /// SET_MEM_TABLE.
    MemTable,
    /// SET_BACKEND_REQ_FD.
    Channel,
    /// Another request, or the end of the connection.
    Other,
}

impl NextRequest {
    /// Looks at a socket that is readable.
    pub(super) fn of(socket: &UnixStream) -> io::Result<Self> {
        let mut header = [0; HEADER];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peeked =
            rustix::io::retry_on_intr(|| rustix::net::recv(socket, &mut header[..], flags));
        let peeked = match peeked {
            Ok((_, peeked)) => peeked,
            Err(rustix::io::Errno::AGAIN) => return Ok(Self::Part),
            Err(error) => return Err(error.into()),
        };
        let arrived = stream::unread(socket)?;
        let size = match (peeked, word(&header, 8)) {
            // A look ends behind a byte that came with descriptors. A request of that shape is read as it comes.
            (HEADER, Some(size)) => size,
            _ if arrived >= HEADER as u64 => return Ok(Self::Other),
            _ => 0,
        };
        let len = HEADER as u64 + u64::from(size);
        if arrived < len && size as usize <= MAX_BODY && !ends(socket) {
            return Ok(Self::Part);
        }
        Ok(match word(&header, 0) {
            Some(MEM_TABLE) if peeked == HEADER => Self::MemTable,
            Some(CHANNEL) if peeked == HEADER => Self::Channel,
            _ => Self::Other,
        })
    }
}

/// Whether the VMM sends nothing more.
fn ends(socket: &UnixStream) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::RDHUP)];
    let none = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    rustix::event::poll(&mut polled, Some(&none)).is_ok_and(|count| count > 0)
}

/// Whether a descriptor is a Unix stream socket.
fn is_stream(file: impl AsFd) -> bool {
    let domain = rustix::net::sockopt::socket_domain(&file);
    let kind = rustix::net::sockopt::socket_type(&file);
    domain == Ok(AddressFamily::UNIX) && kind == Ok(SocketType::STREAM)
}

/// The channel for requests to the VMM, as the VMM has sent it (SET_BACKEND_REQ_FD).
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) socket: OwnedFd,
    need_reply: bool,
}

impl Channel {
    /// Reads the request.
    ///
    /// # Errors
    /// [`Error::InvalidMessage`] if it is malformed or has not one Unix stream socket; a socket's error.
    pub(super) fn receive(socket: &UnixStream) -> Result<Self> {
        let mut header = [0; HEADER];
        let (count, mut files) = receive_header(socket, &mut header).map_err(Error::SocketError)?;
        let (flags, size) = (word(&header, 4), word(&header, 8));
        let (Some(flags), Some(size)) = (flags, size) else {
            return Err(Error::InvalidMessage);
        };
        let is_valid = count == HEADER && flags & VERSION_MASK == VERSION && flags & REPLY == 0;
        if !is_valid || size as usize > MAX_BODY {
            return Err(Error::InvalidMessage);
        }
        let mut body = vec![0; size as usize];
        io::Read::read_exact(&mut &*socket, &mut body).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::PartialMessage,
            _ => Error::SocketError(error),
        })?;
        match (files.pop(), files.is_empty()) {
            (Some(file), true) if is_stream(&file) => Ok(Self {
                socket: file.into(),
                need_reply: flags & NEED_REPLY != 0,
            }),
            _ => Err(Error::InvalidMessage),
        }
    }

    /// Acknowledges it, if the VMM asks for that.
    pub(super) fn acknowledge(&self, socket: &UnixStream) -> Result<()> {
        match self.need_reply {
            true => acknowledge_request(socket, CHANNEL, true).map_err(Error::SocketError),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn message(request: u32, size: usize) -> Vec<u8> {
        let mut message = Vec::new();
        for word in [request, VERSION, size as u32] {
            message.extend(word.to_ne_bytes());
        }
        message.resize(HEADER + size, 0);
        message
    }

    #[test]
    fn a_request_is_read_once_all_of_it_has_arrived() {
        for (request, expected) in [
            (MEM_TABLE, NextRequest::MemTable),
            (CHANNEL, NextRequest::Channel),
            (1, NextRequest::Other),
        ] {
            let (mut vmm, broker) = UnixStream::pair().unwrap();
            let message = message(request, 40);
            for byte in &message[..message.len() - 1] {
                vmm.write_all(&[*byte]).unwrap();
                assert_eq!(NextRequest::of(&broker).unwrap(), NextRequest::Part);
            }
            vmm.write_all(&message[message.len() - 1..]).unwrap();
            assert_eq!(NextRequest::of(&broker).unwrap(), expected);
            // More behind it changes nothing.
            vmm.write_all(&message).unwrap();
            assert_eq!(NextRequest::of(&broker).unwrap(), expected);
        }
    }

    #[test]
    fn the_end_of_the_connection_and_a_request_that_is_too_long_are_not_waited_for() {
        for sent in [0, 5, 12, 20] {
            let (mut vmm, broker) = UnixStream::pair().unwrap();
            vmm.write_all(&message(1, 40)[..sent]).unwrap();
            drop(vmm);
            assert_ne!(NextRequest::of(&broker).unwrap(), NextRequest::Part);
        }
        let (mut vmm, broker) = UnixStream::pair().unwrap();
        vmm.write_all(&message(1, MAX_BODY + 1)[..HEADER]).unwrap();
        assert_eq!(NextRequest::of(&broker).unwrap(), NextRequest::Other);
    }
}
