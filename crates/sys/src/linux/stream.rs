//! Unix stream sockets: the data sockets of connections, and the sockets that VMMs connect to.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// Creates a connected pair of blocking sockets.
///
/// # Errors
///
/// Those of `socketpair`.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok(pair)
}

/// Listens at `path` with the file mode `mode` and, if given, the owner `owner`, as
/// [`seqpacket::listen`](super::seqpacket::listen).
///
/// # Errors
///
/// As [`seqpacket::listen`](super::seqpacket::listen); `EPERM` if the owner cannot be changed.
pub fn listen(path: &Path, mode: u32, owner: Option<u32>, backlog: u32) -> io::Result<OwnedFd> {
    super::listening::listen(SocketType::STREAM, path, mode, owner, backlog)
}

/// Listens at `path`, where no file is yet, with the file mode `mode`, whatever the umask is. Returns the
/// non-blocking listener.
///
/// # Errors
///
/// As [`listen`]; `AddrInUse` if there is a file.
pub fn listen_at_new(path: &Path, mode: u32, backlog: u32) -> io::Result<OwnedFd> {
    super::listening::listen_at_new(SocketType::STREAM, path, mode, None, backlog)
}

/// Listens in `folder`, to which no other user may write, at a path that is gone when this returns. `name` is one
/// that no other call of the same time uses. Returns the non-blocking listener, for which one client may wait, and a descriptor
/// (`O_PATH`) by which whoever has it connects: at `/proc/self/fd/N`.
///
/// # Errors
///
/// As [`listen`].
pub fn listen_unnamed(folder: &Path, name: &str) -> io::Result<(OwnedFd, OwnedFd)> {
    super::listening::listen_unnamed(SocketType::STREAM, folder, name)
}

/// Opens the Unix socket at `path`, whose last component is no symbolic link, to
/// [connect to it](connect_by_descriptor). `None` if there is none that belongs to `owner`.
pub fn find_owned(path: &Path, owner: u32) -> Option<OwnedFd> {
    super::listening::find_owned(path, owner)
}

/// Connects to the socket of a descriptor (`O_PATH`), without waiting. Returns the non-blocking socket.
///
/// # Errors
///
/// `ConnectionRefused` if nobody listens; `WouldBlock` if the listener's backlog is full; `EPROTOTYPE` if it is
/// no stream socket.
pub fn connect_by_descriptor(socket: impl AsFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", socket.as_fd().as_raw_fd());
    let address = super::listening::address(Path::new(&path))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = SocketType::STREAM;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    super::retry(|| rustix::net::connect(&socket, &address))?;
    Ok(socket)
}

/// Accepts one waiting client as a non-blocking socket; `None` if none waits.
///
/// # Errors
///
/// As [`seqpacket::accept`](super::seqpacket::accept).
pub fn accept(listener: impl AsFd) -> io::Result<Option<OwnedFd>> {
    super::seqpacket::accept(listener)
}

/// Sends `bytes`, or the first part of them. Returns the number of bytes sent.
///
/// # Errors
///
/// `WouldBlock` if a non-blocking socket is full or the send timeout has passed; `BrokenPipe` if the peer
/// or this side has closed the direction.
pub fn send(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    super::retry(|| rustix::net::send(&socket, bytes, SendFlags::NOSIGNAL))
}

/// Sends the bytes of `slices`, in order, or the first part of them. Returns the number of bytes sent.
///
/// # Errors
///
/// `WouldBlock` if a non-blocking socket is full or the send timeout has passed; `BrokenPipe` if the peer
/// or this side has closed the direction.
pub fn send_vectored(socket: impl AsFd, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let slices = &slices[..slices.len().min(MAX_SLICES)];
    let mut control = SendAncillaryBuffer::default();
    super::retry(|| rustix::net::sendmsg(&socket, slices, &mut control, SendFlags::NOSIGNAL))
}

/// Receives the available bytes. Returns their number; 0 at the end of the stream.
///
/// # Errors
///
/// `WouldBlock` if a non-blocking socket has no data or the receive timeout has passed; `ConnectionReset`
/// after a reset.
pub fn recv(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    super::retry(|| rustix::net::recv(&socket, &mut *buffer, RecvFlags::empty())).map(|(n, _)| n)
}

/// Receives the available bytes into several buffers, in order, as [`recv`].
///
/// # Errors
///
/// `WouldBlock` if a non-blocking socket has no data or the receive timeout has passed; `ConnectionReset`
/// after a reset.
pub fn recv_vectored(socket: impl AsFd, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    let count = slices.len().min(MAX_SLICES);
    let mut control = RecvAncillaryBuffer::default();
    super::retry(|| {
        rustix::net::recvmsg(
            &socket,
            &mut slices[..count],
            &mut control,
            RecvFlags::empty(),
        )
    })
    .map(|message| message.bytes)
}

/// Sends `bytes`, or the first part of them, with a descriptor, which arrives with the first byte. Returns the
/// number of bytes sent.
///
/// # Errors
///
/// As [`send`].
pub fn send_with_descriptor(
    socket: impl AsFd,
    bytes: &[u8],
    descriptor: BorrowedFd<'_>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let slices = [IoSlice::new(bytes)];
    super::retry(|| rustix::net::sendmsg(&socket, &slices, &mut control, SendFlags::NOSIGNAL))
}

/// Receives the available bytes, as [`recv`], and at most one descriptor, close-on-exec. Others that the
/// sender attached are closed.
///
/// # Errors
///
/// As [`recv`].
pub fn recv_with_descriptor(
    socket: impl AsFd,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = super::retry(|| {
        let mut slices = [IoSliceMut::new(buffer)];
        rustix::net::recvmsg(&socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut first = None;
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = ancillary {
            for descriptor in descriptors {
                first.get_or_insert(descriptor);
            }
        }
    }
    Ok((message.bytes, first))
}

/// Copies the available bytes without consuming them (`MSG_PEEK`).
///
/// # Errors
///
/// `WouldBlock` if a non-blocking socket has no data or the receive timeout has passed; `ConnectionReset`
/// after a reset.
pub fn peek(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    super::retry(|| rustix::net::recv(&socket, &mut *buffer, RecvFlags::PEEK)).map(|(n, _)| n)
}

/// Sends as many bytes of `slices` as there is space for, in any mode of the socket. Returns their
/// number.
///
/// # Errors
///
/// `WouldBlock` if the socket is full; `BrokenPipe` if the peer or this side has closed the direction.
pub fn try_send(socket: impl AsFd, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let slices = &slices[..slices.len().min(MAX_SLICES)];
    let mut control = SendAncillaryBuffer::default();
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    super::retry(|| rustix::net::sendmsg(&socket, slices, &mut control, flags))
}

/// Receives the available bytes into several buffers, in order, in any mode of the socket. Returns their
/// number; 0 at the end of the stream.
///
/// # Errors
///
/// `WouldBlock` if there are none; `ConnectionReset` after a reset.
pub fn try_recv(socket: impl AsFd, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    let count = slices.len().min(MAX_SLICES);
    let mut control = RecvAncillaryBuffer::default();
    let flags = RecvFlags::DONTWAIT;
    super::retry(|| rustix::net::recvmsg(&socket, &mut slices[..count], &mut control, flags))
        .map(|message| message.bytes)
}

/// Shuts down one or both directions, for all duplicates of the descriptor.
///
/// # Errors
///
/// `NotConnected` if the socket is not connected.
#[doc(alias = "half-close")]
pub fn shutdown(socket: impl AsFd, how: Shutdown) -> io::Result<()> {
    let how = match how {
        Shutdown::Read => rustix::net::Shutdown::Read,
        Shutdown::Write => rustix::net::Shutdown::Write,
        Shutdown::Both => rustix::net::Shutdown::Both,
    };
    rustix::net::shutdown(socket, how).map_err(Into::into)
}

/// Sets the receive timeout of the socket and its duplicates (`SO_RCVTIMEO`); after it a receive fails
/// with `WouldBlock`. `None` waits for ever.
///
/// # Errors
///
/// `InvalidInput` if the timeout is zero.
pub fn set_recv_timeout(socket: impl AsFd, timeout: Option<Duration>) -> io::Result<()> {
    sockopt::set_socket_timeout(socket, Timeout::Recv, timeout).map_err(Into::into)
}

/// Sets the send timeout (`SO_SNDTIMEO`), as [`set_recv_timeout`].
///
/// # Errors
///
/// `InvalidInput` if the timeout is zero.
pub fn set_send_timeout(socket: impl AsFd, timeout: Option<Duration>) -> io::Result<()> {
    sockopt::set_socket_timeout(socket, Timeout::Send, timeout).map_err(Into::into)
}

/// Sets the approximate maximum of bytes in flight from this socket to its peer (`SO_SNDBUF`).
///
/// # Errors
///
/// Those of `setsockopt`.
pub fn set_send_buffer(socket: impl AsFd, bytes: usize) -> io::Result<()> {
    sockopt::set_socket_send_buffer_size(socket, bytes).map_err(Into::into)
}

/// The size of the send buffer (`SO_SNDBUF`) in bytes of kernel memory. Linux reports twice what was set.
///
/// # Errors
///
/// Those of `getsockopt`.
pub fn send_buffer(socket: impl AsFd) -> io::Result<usize> {
    sockopt::socket_send_buffer_size(socket).map_err(Into::into)
}

/// How many bytes of kernel memory of the send buffer are used (`SIOCOUTQ`): what the peer has not read
/// yet, and the bookkeeping of it.
///
/// # Errors
///
/// Those of `SIOCOUTQ`.
pub fn send_buffer_used(socket: impl AsFd) -> io::Result<usize> {
    super::unsent(socket).map(|bytes| bytes as usize)
}

/// Whether no bytes can move in either direction any more (`POLLHUP`): the peer has closed, or each
/// direction was shut down on one side.
pub fn is_hung_up(socket: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&socket, PollFlags::empty())];
    let polled = super::poll::wait(&mut fds, Some(Instant::now()));
    polled.is_ok_and(|ready| ready && fds[0].revents().contains(PollFlags::HUP))
}

/// The number of bytes that the socket has received and nobody has read (`FIONREAD`).
///
/// # Errors
///
/// Those of `FIONREAD`.
pub fn unread(socket: impl AsFd) -> io::Result<u64> {
    rustix::io::ioctl_fionread(socket).map_err(Into::into)
}

/// Whether the socket has received bytes that nobody has read. Of a socket without `FIONREAD`, such as the kernel's
/// `AF_VSOCK` before Linux 6.17, an error that is pending is taken.
pub fn has_unread(socket: impl AsFd) -> bool {
    match unread(&socket) {
        Ok(count) => count > 0,
        Err(_) => super::retry(|| {
            rustix::net::recv(&socket, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT)
        })
        .is_ok_and(|(count, _)| count > 0),
    }
}

/// Discards what has been received, all but one byte, without waiting: for a socket that was shut down for reading. A
/// writer that waits for free space is woken by free space only. The byte that stays makes a later close a reset for it.
pub fn discard_all_but_one(socket: impl AsFd) {
    let mut discarded = [0; 4096];
    while let Ok(count @ 2..) = unread(&socket) {
        let most =
            usize::try_from(count - 1).map_or(discarded.len(), |most| most.min(discarded.len()));
        let received = super::retry(|| {
            rustix::net::recv(&socket, &mut discarded[..most], RecvFlags::DONTWAIT)
        });
        if !received.is_ok_and(|(count, _)| count > 0) {
            return;
        }
    }
}

/// Discards everything that has been received, without waiting, as [`discard_all_but_one`].
pub fn discard_all(socket: impl AsFd) {
    let mut discarded = [0; 4096];
    let mut receive =
        || super::retry(|| rustix::net::recv(&socket, &mut discarded, RecvFlags::DONTWAIT));
    while receive().is_ok_and(|(count, _)| count > 0) {}
}

/// Maximum number of slices in one call (`UIO_MAXIOV`).
const MAX_SLICES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_has_the_given_owner_and_mode() {
        use std::os::unix::fs::MetadataExt;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let is_root = rustix::process::geteuid().is_root();
        let owner = is_root.then_some(12_345);
        let _listener = listen(&path, 0o600, owner, 1).unwrap();
        let found = std::fs::metadata(&path).unwrap();
        let uid = owner.unwrap_or_else(|| rustix::process::geteuid().as_raw());
        assert_eq!((found.uid(), found.mode() & 0o777), (uid, 0o600));
        std::os::unix::net::UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn bytes_flow_both_ways_and_one_way_is_half_closed() {
        let (a, b) = pair().unwrap();
        let out = [IoSlice::new(b"ab"), IoSlice::new(b"cd")];
        assert_eq!(send_vectored(&a, &out).unwrap(), 4);
        shutdown(&a, Shutdown::Write).unwrap();
        let mut two = [0; 2];
        assert_eq!(peek(&b, &mut two).unwrap(), 2);
        let (mut x, mut y) = ([0; 1], [0; 8]);
        let mut into = [IoSliceMut::new(&mut x), IoSliceMut::new(&mut y)];
        assert_eq!(recv_vectored(&b, &mut into).unwrap(), 4);
        assert_eq!((&x, &y[..3]), (b"a", &b"bcd"[..]));
        assert_eq!(recv(&b, &mut y).unwrap(), 0);
        assert_eq!(send(&b, b"back").unwrap(), 4);
        assert_eq!(recv(&a, &mut y).unwrap(), 4);
        assert_eq!(
            send(&a, b"x").unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    }

    #[test]
    fn at_most_one_descriptor_comes_with_the_bytes() {
        let (a, b) = pair().unwrap();
        let (sent, _kept) = pair().unwrap();
        assert_eq!(send_with_descriptor(&a, b"one", sent.as_fd()).unwrap(), 3);
        send(&a, b"two").unwrap();
        let mut buffer = [0; 8];
        let (len, got) = recv_with_descriptor(&b, &mut buffer).unwrap();
        // What was sent without it is received by itself.
        assert_eq!(&buffer[..len], b"one");
        let got = got.expect("it was sent");
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(inode(&got), inode(&sent));
        let (len, got) = recv_with_descriptor(&b, &mut buffer).unwrap();
        assert!(len == 3 && got.is_none());
        let three = [sent.as_fd(); 3];
        super::super::message::send(&a, b"many", &three).unwrap();
        let before = std::fs::read_dir("/proc/self/fd").unwrap().count();
        let (len, got) = recv_with_descriptor(&b, &mut buffer).unwrap();
        assert!(len == 4 && got.is_some());
        drop(got);
        assert!(std::fs::read_dir("/proc/self/fd").unwrap().count() <= before);
    }

    #[test]
    fn a_socket_is_hung_up_once_both_directions_have_ended() {
        let (a, b) = pair().unwrap();
        shutdown(&a, Shutdown::Write).unwrap();
        assert!(!is_hung_up(&a) && !is_hung_up(&b));
        shutdown(&b, Shutdown::Write).unwrap();
        assert!(is_hung_up(&a) && is_hung_up(&b));
        let (a, b) = pair().unwrap();
        drop(a);
        assert!(is_hung_up(&b));
    }

    #[test]
    fn slices_beyond_the_kernels_limit_are_not_sent() {
        let (a, b) = pair().unwrap();
        let out = vec![IoSlice::new(b"x"); 2000];
        assert_eq!(send_vectored(&a, &out).unwrap(), MAX_SLICES);
        assert_eq!(recv(&b, &mut [0; 4096]).unwrap(), MAX_SLICES);
    }

    #[test]
    fn a_receive_times_out() {
        let (a, _b) = pair().unwrap();
        set_recv_timeout(&a, Some(Duration::from_millis(5))).unwrap();
        let error = recv(&a, &mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(set_recv_timeout(&a, Some(Duration::ZERO)).is_err());
    }
}
