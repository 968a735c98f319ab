//! A connection whose data the program has, and the options with which it is made.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hvsock::{ConnectOptions, Endpoint, HvStream, SockAddrHv};

use super::control::Control;
use crate::last_error::{LastError, Result};
use crate::numbers;

/// The options at the level `HV_PROTOCOL_RAW`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HvOptions {
    /// In milliseconds; 0 is the default.
    pub(crate) connect_timeout: u32,
    pub(crate) connected_suspend: bool,
    pub(crate) container_passthru: bool,
    pub(crate) high_vtl: bool,
}

impl HvOptions {
    /// How long a connect may take.
    pub(crate) fn timeout(&self) -> Duration {
        match self.connect_timeout {
            0 => Duration::from_secs(2),
            ms => Duration::from_millis(ms.into()),
        }
    }

    /// The options of a connect by the library.
    pub(crate) fn to_connect(self) -> ConnectOptions {
        HvStream::options()
            .raw_fd(true)
            .timeout(self.timeout())
            .connected_suspend(self.connected_suspend)
            .container_passthru(self.container_passthru)
            .high_vtl(self.high_vtl)
    }
}

/// What the library knows of a connection; the program has its data.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) control: Control,
    pub(crate) local: SockAddrHv,
    pub(crate) peer: SockAddrHv,
    /// The program has shut down this end for sending.
    ended: AtomicBool,
}

impl Connection {
    pub(crate) fn new(control: Control, local: SockAddrHv, peer: SockAddrHv) -> Self {
        Self {
            control,
            local,
            peer,
            ended: AtomicBool::new(false),
        }
    }

    /// The descriptor of a stream, for the program, and what the library keeps.
    pub(crate) fn of(stream: HvStream) -> Result<(OwnedFd, Self)> {
        let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
        let has_control =
            stream.transport() != hvsock::Transport::Vsock || !Endpoint::from_env().uses_vsock();
        let fds = stream.into_owned_fds()?;
        let control = match has_control {
            true => Control::new(fds.control),
            false => Control::none(),
        };
        Ok((fds.data, Self::new(control, local, peer)))
    }

    /// Notes that the program sends no more.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// The error of a send that the kernel refused because nobody reads.
    pub(crate) fn send_error(&self, errno: i32) -> LastError {
        if self.ended.load(Ordering::Relaxed) {
            return LastError::of_errno(errno).with_wsa(numbers::WSAESHUTDOWN);
        }
        match self.control.reset_reason() {
            Some(reason) => LastError::of(&reason),
            None => LastError::of_errno(errno),
        }
    }
}
