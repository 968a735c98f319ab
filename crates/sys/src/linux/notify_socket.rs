//! The socket of a service manager, at which its services say how they are (`sd_notify(3)`). `service_manager` is the
//! other side.
//!
//! Who may reach the socket is who may reach its folder: messages are not asked for their sender.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags};

/// The kernel's limit of descriptors in one message, `SCM_MAX_FD`.
const MAX_DESCRIPTORS: usize = 253;
/// As systemd's.
const MAX_STATE: usize = 4096;
const CONTROL_LEN: usize = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS));

/// A service manager's socket.
#[derive(Debug)]
pub struct NotifySocket {
    socket: UnixDatagram,
    path: PathBuf,
}

/// What a process has said.
#[derive(Debug)]
pub struct Notification {
    /// Lines of the form `NAME=value`.
    pub state: String,
    /// What came with it, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
}

impl NotifySocket {
    /// A socket at a new path, in a folder that only those can enter who may say something.
    ///
    /// # Errors
    ///
    /// Those of `bind`.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::bind(path)?;
        socket.set_nonblocking(true)?;
        let path = path.to_owned();
        Ok(Self { socket, path })
    }

    /// Its address, as in `NOTIFY_SOCKET`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next message. `None` if there is none.
    ///
    /// # Errors
    ///
    /// `InvalidData` for a message that is too long, or no text: it is dropped, with its descriptors. Those of
    /// `recvmsg`.
    pub fn recv(&self) -> io::Result<Option<Notification>> {
        let mut buffer = [0; MAX_STATE];
        let mut space = [MaybeUninit::uninit(); CONTROL_LEN];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = super::retry(|| {
            let mut slices = [IoSliceMut::new(&mut buffer)];
            rustix::net::recvmsg(&self.socket, &mut slices, &mut control, flags)
        });
        let received = match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            result => result?,
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                descriptors.extend(fds);
            }
        }
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(invalid("a message is too long"));
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(invalid(
                "this process has no room for all descriptors of a message",
            ));
        }
        let text = buffer.get(..received.bytes).unwrap_or_default().to_vec();
        let state = String::from_utf8(text).map_err(|_| invalid("a message is no text"))?;
        Ok(Some(Notification { state, descriptors }))
    }
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for NotifySocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
