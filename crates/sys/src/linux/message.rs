//! Messages over a `SOCK_SEQPACKET` socket, with descriptors (`SCM_RIGHTS`).
//!
//! No call blocks, whatever the socket's mode: it fails with `WouldBlock`, and [`poll`](super::poll)
//! waits with a deadline.
//!
//! The peer is not trusted. A message longer than the buffer is an error, not a truncated message, and
//! no more descriptors enter this process than requested.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, RecvMsg, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

/// Maximum number of descriptors in one message.
pub const MAX_DESCRIPTORS: usize = 5;

/// Maximum number of descriptors in one message of [`send_batch`]. The kernel's own limit is 253 (`SCM_MAX_FD`).
pub const MAX_BATCH: usize = 128;

const CONTROL_LEN: usize = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS));
const BATCH_LEN: usize = rustix::cmsg_space!(ScmRights(MAX_BATCH));

/// A received message without descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Received {
    /// Its length in the buffer in bytes; 0 when the peer has closed the connection.
    pub len: usize,
    /// Whether the sender attached descriptors. They did not enter this process.
    pub dropped_descriptors: bool,
}

/// A received message with its descriptors.
#[derive(Debug)]
#[must_use]
pub struct ReceivedWithDescriptors {
    /// Its length in the buffer in bytes; 0 when the peer has closed the connection.
    pub len: usize,
    /// At most [`MAX_DESCRIPTORS`], or [`MAX_BATCH`] in a batch, in the sender's order, owned by the caller.
    pub descriptors: Vec<OwnedFd>,
    /// Whether the sender attached more. They are closed.
    pub dropped_descriptors: bool,
}

/// Sends `bytes` as one message, with at most [`MAX_DESCRIPTORS`] descriptors. On an error nothing is
/// sent.
///
/// # Errors
///
/// `WouldBlock` if the socket's buffer is full; `BrokenPipe` if the peer is gone; `InvalidInput` if there
/// are too many descriptors.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    if descriptors.is_empty() {
        super::retry(|| rustix::net::send(&socket, bytes, flags))?;
        return Ok(());
    }
    let space = &mut [MaybeUninit::uninit(); CONTROL_LEN];
    send_rights(socket, bytes, descriptors, MAX_DESCRIPTORS, space)
}

/// Sends `bytes` as one message, with at most [`MAX_BATCH`] descriptors, to a process that this one trusts.
/// On an error nothing is sent.
///
/// # Errors
///
/// As [`send`], and `ETOOMANYREFS` while the user has too many descriptors in flight (`unix(7)`).
pub fn send_batch(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let space = &mut [MaybeUninit::uninit(); BATCH_LEN];
    send_rights(socket, bytes, descriptors, MAX_BATCH, space)
}

fn send_rights(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    most: usize,
    space: &mut [MaybeUninit<u8>],
) -> io::Result<()> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let mut control = SendAncillaryBuffer::new(space);
    if descriptors.len() > most || !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        let message = "too many descriptors for one message";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let bytes = [IoSlice::new(bytes)];
    super::retry(|| rustix::net::sendmsg(&socket, &bytes, &mut control, flags))?;
    Ok(())
}

/// Receives one message, without its descriptors.
///
/// # Errors
///
/// `WouldBlock` if no message waits; `InvalidData` if the message is empty or longer than `buffer`. Such
/// a message is consumed.
pub fn recv(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let message = receive(socket, buffer, &mut RecvAncillaryBuffer::default())?;
    check_not_truncated(message.flags)?;
    Ok(Received {
        len: message.bytes,
        dropped_descriptors: message.flags.contains(ReturnFlags::CTRUNC),
    })
}

/// Receives one message and at most [`MAX_DESCRIPTORS`] descriptors, close-on-exec.
///
/// # Errors
///
/// `WouldBlock` if no message waits; `InvalidData` if the message is empty or longer than `buffer`. Such
/// a message is consumed and its descriptors are closed.
pub fn recv_with_descriptors(
    socket: impl AsFd,
    buffer: &mut [u8],
) -> io::Result<ReceivedWithDescriptors> {
    let space = &mut [MaybeUninit::uninit(); CONTROL_LEN];
    recv_rights(socket, buffer, MAX_DESCRIPTORS, space)
}

/// Receives one message and at most [`MAX_BATCH`] descriptors, close-on-exec, from a process that this one
/// trusts with that many.
///
/// # Errors
///
/// As [`recv_with_descriptors`]. Descriptors for which this process has no room are dropped, which the
/// result says.
pub fn recv_batch(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<ReceivedWithDescriptors> {
    let space = &mut [MaybeUninit::uninit(); BATCH_LEN];
    recv_rights(socket, buffer, MAX_BATCH, space)
}

fn recv_rights(
    socket: impl AsFd,
    buffer: &mut [u8],
    most: usize,
    space: &mut [MaybeUninit<u8>],
) -> io::Result<ReceivedWithDescriptors> {
    let mut control = RecvAncillaryBuffer::new(space);
    let message = receive(socket, buffer, &mut control)?;
    let mut descriptors = Vec::new();
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = ancillary {
            descriptors.extend(received);
        }
    }
    check_not_truncated(message.flags)?;
    // Alignment may make the control buffer larger than requested.
    let extra = descriptors.len() > most;
    descriptors.truncate(most);
    Ok(ReceivedWithDescriptors {
        len: message.bytes,
        descriptors,
        dropped_descriptors: extra || message.flags.contains(ReturnFlags::CTRUNC),
    })
}

/// Receives one message. If the peer closed with unread messages, the kernel reports `ECONNRESET` once
/// before the messages that the peer had sent. Those matter more, so this retries once.
fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    control: &mut RecvAncillaryBuffer<'_>,
) -> io::Result<RecvMsg> {
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let mut receive_once = || {
        super::retry(|| {
            let mut buffers = [IoSliceMut::new(buffer)];
            rustix::net::recvmsg(&socket, &mut buffers, control, flags)
        })
    };
    let message = match receive_once() {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => receive_once()?,
        result => result?,
    };
    if message.bytes == 0 && !is_closed(&socket) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the message is empty",
        ));
    }
    Ok(message)
}

/// Whether the peer has closed the connection. A receive of 0 bytes can also be an empty message.
fn is_closed(socket: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&socket, PollFlags::RDHUP)];
    let ready = rustix::event::poll(&mut fds, Some(&Timespec::default()));
    ready != Ok(0)
}

/// Whether the peer has yet to read a message that was sent on this socket (`SIOCOUTQ`). `false` after
/// the peer has closed its end: its unread messages are gone then.
///
/// Descriptors in a message stop being in flight when it is read, or discarded.
pub fn has_unread(socket: impl AsFd) -> bool {
    // A message that is being freed counts as a byte for a moment (`sock_wfree`); one in the queue as
    // more than the kernel's own 200 bytes for it.
    const MESSAGE: u32 = 128;
    super::unsent(socket).is_ok_and(|bytes| bytes >= MESSAGE)
}

/// Whether the peer has closed its end of the connection.
pub fn is_peer_closed(socket: impl AsFd) -> bool {
    is_closed(socket)
}

fn check_not_truncated(flags: ReturnFlags) -> io::Result<()> {
    if flags.contains(ReturnFlags::TRUNC) {
        let message = "the message exceeds the maximum length of the endpoint protocol";
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{seqpacket, stream};

    #[test]
    fn a_message_arrives_with_its_boundaries_and_descriptors() {
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
    fn a_message_is_unread_until_the_peer_reads_it_or_closes() {
        let (a, b) = seqpacket::pair().unwrap();
        assert!(!has_unread(&a));
        send(&a, b"x", &[b.as_fd()]).unwrap();
        send(&a, b"y", &[]).unwrap();
        assert!(has_unread(&a) && !has_unread(&b));
        assert_eq!(recv(&b, &mut [0; 16]).unwrap().len, 1);
        assert!(has_unread(&a));
        assert_eq!(recv(&b, &mut [0; 16]).unwrap().len, 1);
        assert!(!has_unread(&a));
        send(&a, b"x", &[a.as_fd()]).unwrap();
        assert!(has_unread(&a) && !is_peer_closed(&a));
        drop(b);
        assert!(!has_unread(&a) && is_peer_closed(&a));
    }

    #[test]
    fn unrequested_descriptors_do_not_enter_the_process() {
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
        // The descriptor in flight was the last one of its end.
        assert_eq!(stream::recv(&other, &mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn descriptors_beyond_the_maximum_are_closed() {
        let (a, b) = seqpacket::pair().unwrap();
        let (data, other) = stream::pair().unwrap();
        let too_many = send(&a, b"x", &[data.as_fd(); MAX_DESCRIPTORS + 1]).unwrap_err();
        assert_eq!(too_many.kind(), io::ErrorKind::InvalidInput);
        // A hostile client can send more than `send` allows.
        let eight = [data.as_fd(); 8];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&eight)));
        let bytes = [IoSlice::new(b"x")];
        rustix::net::sendmsg(&a, &bytes, &mut control, SendFlags::empty()).unwrap();
        let got = recv_with_descriptors(&b, &mut [0; 16]).unwrap();
        assert!(got.dropped_descriptors);
        assert_eq!(got.descriptors.len(), MAX_DESCRIPTORS);
        drop((got, data));
        // If one of the eight were still open, this would block.
        assert_eq!(stream::recv(&other, &mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn a_batch_has_up_to_128_descriptors_in_their_order() {
        let (a, b) = seqpacket::pair().unwrap();
        let memories: Vec<_> = (1..=MAX_BATCH as u64 + 1)
            .map(|len| crate::shared_memory::create(len).unwrap())
            .collect();
        let all: Vec<_> = memories.iter().map(AsFd::as_fd).collect();
        let too_many = send_batch(&a, b"x", &all).unwrap_err();
        assert_eq!(too_many.kind(), io::ErrorKind::InvalidInput);
        send_batch(&a, b"batch", &all[..MAX_BATCH]).unwrap();
        let mut buffer = [0; 16];
        let got = recv_batch(&b, &mut buffer).unwrap();
        assert_eq!((got.len, got.dropped_descriptors), (5, false));
        let lens = got
            .descriptors
            .iter()
            .map(|one| rustix::fs::fstat(one).unwrap().st_size);
        assert!(lens.eq(1..=MAX_BATCH as i64));
    }

    #[test]
    fn an_oversized_message_is_an_error_and_the_next_one_arrives() {
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
    fn no_call_blocks_on_a_blocking_socket() {
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
    fn messages_of_a_peer_that_closed_with_unread_messages_arrive() {
        let (a, b) = seqpacket::pair().unwrap();
        send(&a, b"never read", &[]).unwrap();
        send(&b, b"because", &[]).unwrap();
        drop(b);
        let mut buffer = [0; 16];
        assert_eq!(recv(&a, &mut buffer).unwrap().len, 7);
        assert_eq!(recv(&a, &mut buffer).unwrap().len, 0);
    }

    #[test]
    fn sending_to_a_closed_peer_is_a_broken_pipe_without_a_signal() {
        let (a, b) = seqpacket::pair().unwrap();
        drop(b);
        let error = send(&a, b"x", &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
