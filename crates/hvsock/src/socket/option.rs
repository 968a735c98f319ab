//! The socket options, with the values that WinSock uses.

use std::time::Duration;

/// An option of a [`HvSocket`](crate::HvSocket). Every value is a `u32`, as on Windows.
#[doc(alias = "setsockopt")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SocketOption {
    /// `HVSOCKET_CONNECT_TIMEOUT`: the timeout of a connect in milliseconds, at most 300000; 0
    /// selects the default of 2000.
    ConnectTimeout,
    /// `HVSOCKET_CONTAINER_PASSTHRU`: a value other than 0 connects through a container to its
    /// host. Set it before connecting.
    ContainerPassthru,
    /// `HVSOCKET_CONNECTED_SUSPEND`: a value other than 0 keeps the connection while its partition
    /// is paused. Accepted sockets inherit the value of the listening socket.
    ConnectedSuspend,
    /// `HVSOCKET_HIGH_VTL`: a value other than 0 connects to the VTL2 of the guest. Set it before
    /// connecting.
    HighVtl,
    /// `SO_RCVTIMEO`: the timeout of a receive in milliseconds; 0 is no limit.
    RecvTimeout,
    /// `SO_SNDTIMEO`: the timeout of a send in milliseconds; 0 is no limit.
    SendTimeout,
}

/// The values of the options.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Values {
    pub(super) connect_timeout: u32,
    pub(super) container_passthru: u32,
    pub(super) connected_suspend: u32,
    pub(super) high_vtl: u32,
    pub(super) recv_timeout: u32,
    pub(super) send_timeout: u32,
}

impl Values {
    pub(super) fn slot(&mut self, option: SocketOption) -> &mut u32 {
        match option {
            SocketOption::ConnectTimeout => &mut self.connect_timeout,
            SocketOption::ContainerPassthru => &mut self.container_passthru,
            SocketOption::ConnectedSuspend => &mut self.connected_suspend,
            SocketOption::HighVtl => &mut self.high_vtl,
            SocketOption::RecvTimeout => &mut self.recv_timeout,
            SocketOption::SendTimeout => &mut self.send_timeout,
        }
    }
}

/// Converts a timeout in milliseconds; 0 is `None`.
pub(super) fn limit(milliseconds: u32) -> Option<Duration> {
    (milliseconds != 0).then(|| Duration::from_millis(milliseconds.into()))
}
