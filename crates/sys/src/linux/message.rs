//! Whole messages over a `SOCK_SEQPACKET` socket, with descriptors beside them.
//!
//! No call here waits, whatever mode the socket is in: what would wait is `WouldBlock`, and
//! [`poll`](super::poll) waits with a bound.
//!
//! What comes from the other side is not trusted: a message longer than the buffer is an error
//! and not a shorter message, and no more descriptors enter this process than it asked for.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, RecvMsg, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

/// The most descriptors that one message carries.
pub const MAX_DESCRIPTORS: usize = 4;

const ROOM: usize = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS));

/// A message without descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Received {
    /// Its bytes in the buffer; 0 when the other side is gone.
    pub len: usize,
    /// Whether the sender put descriptors beside it; they did not enter this process.
    pub dropped_descriptors: bool,
}

/// A message with the descriptors that came beside it.
#[derive(Debug)]
#[must_use]
pub struct ReceivedWithDescriptors {
    /// Its bytes in the buffer; 0 when the other side is gone.
    pub len: usize,
    /// At most [`MAX_DESCRIPTORS`], in the sender's order.
    pub descriptors: Vec<OwnedFd>,
    /// Whether there were more; they are closed.
    pub dropped_descriptors: bool,
}

/// Sends `bytes` as one message, with at most [`MAX_DESCRIPTORS`] descriptors beside it; all of
/// it or, with an error such as `WouldBlock`, nothing.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    if descriptors.is_empty() {
        super::retry(|| rustix::net::send(&socket, bytes, flags))?;
        return Ok(());
    }
    let mut room = [MaybeUninit::uninit(); ROOM];
    let mut control = SendAncillaryBuffer::new(&mut room);
    if descriptors.len() > MAX_DESCRIPTORS
        || !control.push(SendAncillaryMessage::ScmRights(descriptors))
    {
        let message = "too many descriptors for one message";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let bytes = [IoSlice::new(bytes)];
    super::retry(|| rustix::net::sendmsg(&socket, &bytes, &mut control, flags))?;
    Ok(())
}

/// Receives one message and lets no descriptor into this process.
///
/// A message longer than `buffer` is consumed and is an error of kind `InvalidData`, as is one
/// without any bytes.
pub fn recv(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let message = receive(socket, buffer, &mut RecvAncillaryBuffer::default())?;
    whole(message.flags)?;
    Ok(Received {
        len: message.bytes,
        dropped_descriptors: message.flags.contains(ReturnFlags::CTRUNC),
    })
}

/// Receives one message and at most [`MAX_DESCRIPTORS`] descriptors, close-on-exec.
///
/// A message longer than `buffer` or without any bytes is consumed, its descriptors are closed,
/// and it is an error of kind `InvalidData`.
pub fn recv_with_descriptors(
    socket: impl AsFd,
    buffer: &mut [u8],
) -> io::Result<ReceivedWithDescriptors> {
    let mut room = [MaybeUninit::uninit(); ROOM];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let message = receive(socket, buffer, &mut control)?;
    let mut descriptors = Vec::new();
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = ancillary {
            descriptors.extend(received);
        }
    }
    whole(message.flags)?;
    // The alignment of the control buffer may leave room for more than was asked for.
    let extra = descriptors.len() > MAX_DESCRIPTORS;
    descriptors.truncate(MAX_DESCRIPTORS);
    Ok(ReceivedWithDescriptors {
        len: message.bytes,
        descriptors,
        dropped_descriptors: extra || message.flags.contains(ReturnFlags::CTRUNC),
    })
}

/// Receives one message. Where the other side closed with messages from here unread, the kernel
/// says so once before it gives what that side had sent: its last words, which are worth more.
fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    control: &mut RecvAncillaryBuffer<'_>,
) -> io::Result<RecvMsg> {
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let mut ask = || {
        super::retry(|| {
            let mut buffers = [IoSliceMut::new(buffer)];
            rustix::net::recvmsg(&socket, &mut buffers, control, flags)
        })
    };
    let message = match ask() {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => ask()?,
        result => result?,
    };
    if message.bytes == 0 && !is_over(&socket) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the message is empty",
        ));
    }
    Ok(message)
}

/// Whether the other side is gone, which looks like an empty message.
fn is_over(socket: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&socket, PollFlags::RDHUP)];
    let asked = rustix::event::poll(&mut fds, Some(&Timespec::default()));
    asked != Ok(0)
}

fn whole(flags: ReturnFlags) -> io::Result<()> {
    if flags.contains(ReturnFlags::TRUNC) {
        let message = "the message is longer than any message of the endpoint protocol";
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{seqpacket, stream};

    #[test]
    fn a_message_keeps_its_bounds_and_brings_its_descriptors() {
        let (a, b) = seqpacket::pair().unwrap();
        let (data, other) = stream::pair().unwrap();
        send(&a, b"one", &[data.as_fd(), other.as_fd()]).unwrap();
        send(&a, b"two", &[]).unwrap();
        let mut buffer = [0; 16];
        let one = recv_with_descriptors(&b, &mut buffer).unwrap();
        assert_eq!(
            (&buffer[..one.len], one.descriptors.len()),
            (&b"one"[..], 2)
        );
        assert!(!one.dropped_descriptors);
        for descriptor in &one.descriptors {
            let flags = rustix::io::fcntl_getfd(descriptor).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
        let two = recv(&b, &mut buffer).unwrap();
        assert_eq!(
            two,
            Received {
                len: 3,
                dropped_descriptors: false
            }
        );
        drop(a);
        assert_eq!(recv(&b, &mut buffer).unwrap().len, 0);
    }

    #[test]
    fn descriptors_that_nobody_asked_for_stay_outside() {
        let (a, b) = seqpacket::pair().unwrap();
        let (data, other) = stream::pair().unwrap();
        send(&a, b"x", &[data.as_fd()]).unwrap();
        drop(data);
        let got = recv(&b, &mut [0; 16]).unwrap();
        assert_eq!(
            got,
            Received {
                len: 1,
                dropped_descriptors: true
            }
        );
        // The one in flight was the last of its end.
        assert_eq!(stream::recv(&other, &mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn descriptors_beyond_the_maximum_are_closed() {
        let (a, b) = seqpacket::pair().unwrap();
        let (data, other) = stream::pair().unwrap();
        let too_many = send(&a, b"x", &[data.as_fd(); MAX_DESCRIPTORS + 1]).unwrap_err();
        assert_eq!(too_many.kind(), io::ErrorKind::InvalidInput);
        // Sent past `send`, which refuses: a client may be anything.
        let eight = [data.as_fd(); 8];
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        assert!(control.push(SendAncillaryMessage::ScmRights(&eight)));
        let bytes = [IoSlice::new(b"x")];
        rustix::net::sendmsg(&a, &bytes, &mut control, SendFlags::empty()).unwrap();
        let got = recv_with_descriptors(&b, &mut [0; 16]).unwrap();
        assert!(got.dropped_descriptors);
        assert_eq!(got.descriptors.len(), MAX_DESCRIPTORS);
        drop((got, data));
        // None of the eight is left, or this would wait for ever.
        assert_eq!(stream::recv(&other, &mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn a_message_that_does_not_fit_is_an_error_and_the_next_one_is_whole() {
        let (a, b) = seqpacket::pair().unwrap();
        send(&a, &[7; 17], &[]).unwrap();
        send(&a, b"next", &[]).unwrap();
        let mut buffer = [0; 16];
        let error = recv(&b, &mut buffer).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let next = recv_with_descriptors(&b, &mut buffer).unwrap();
        assert_eq!(&buffer[..next.len], b"next");
    }

    #[test]
    fn nothing_waits_on_a_blocking_socket() {
        let (a, b) = seqpacket::pair().unwrap();
        assert_eq!(
            recv(&a, &mut [0; 16]).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        let full = loop {
            if let Err(error) = send(&b, &[0; 4096], &[]) {
                break error;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn an_empty_message_is_an_error_and_not_the_end() {
        let (a, b) = seqpacket::pair().unwrap();
        send(&a, b"", &[a.as_fd()]).unwrap();
        send(&a, b"", &[]).unwrap();
        send(&a, b"next", &[]).unwrap();
        let mut buffer = [0; 16];
        let error = recv(&b, &mut buffer).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let error = recv_with_descriptors(&b, &mut buffer).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(recv(&b, &mut buffer).unwrap().len, 4);
        drop(a);
        assert_eq!(recv(&b, &mut buffer).unwrap().len, 0);
    }

    #[test]
    fn the_last_words_of_a_peer_that_closes_with_unread_messages_are_heard() {
        let (a, b) = seqpacket::pair().unwrap();
        send(&a, b"never read", &[]).unwrap();
        send(&b, b"because", &[]).unwrap();
        drop(b);
        let mut buffer = [0; 16];
        assert_eq!(recv(&a, &mut buffer).unwrap().len, 7);
        assert_eq!(recv(&a, &mut buffer).unwrap().len, 0);
    }

    #[test]
    fn a_peer_that_is_gone_is_a_broken_pipe_and_no_signal() {
        let (a, b) = seqpacket::pair().unwrap();
        drop(b);
        let error = send(&a, b"x", &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
