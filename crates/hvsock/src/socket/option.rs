//! The options of a socket, with their values as WinSock has them.

use std::time::Duration;

/// An option of a [`HvSocket`](crate::HvSocket). Every value is a `u32`, as on Windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SocketOption {
    /// `HVSOCKET_CONNECT_TIMEOUT`: milliseconds that connecting may take, at most 300000; 0 stands
    /// for the 2000 that it is without this option.
    ConnectTimeout,
    /// `HVSOCKET_CONTAINER_PASSTHRU`: not 0 reaches through a container to its host. To be set
    /// before connecting.
    ContainerPassthru,
    /// `HVSOCKET_CONNECTED_SUSPEND`: not 0 keeps the connection while its partition is paused.
    /// Accepted sockets have what the listening one had.
    ConnectedSuspend,
    /// `HVSOCKET_HIGH_VTL`: not 0 reaches the guest's VTL2. To be set before connecting.
    HighVtl,
    /// `SO_RCVTIMEO`: milliseconds that receiving may wait; 0 stands for no limit.
    RecvTimeout,
    /// `SO_SNDTIMEO`: milliseconds that sending may wait; 0 stands for no limit.
    SendTimeout,
}

/// What the options are set to.
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

/// A time limit in milliseconds, where 0 stands for `none`.
pub(super) fn limit(milliseconds: u32) -> Option<Duration> {
    (milliseconds != 0).then(|| Duration::from_millis(milliseconds.into()))
}
