//! A socket with the calls of WinSock.

mod connecting;
mod option;

use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hvsock_address::{
    AF_HYPERV, HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT_MAX, SOCK_STREAM, SockAddrHv,
};
use hvsock_sys::errno;
use hvsock_sys::sync::lock;

use crate::backend::{self, PendingConnect, ReadInto, Settings, WriteFrom};
use crate::options::DEFAULT_CONNECT_TIMEOUT;
use crate::os::Descriptor;
use crate::{
    ConnectOptions, Endpoint, HvListener, HvStream, Interest, ListenOptions, Peer, Readiness,
};
use connecting::{Connecting, Progress};
use option::Values;

pub use option::SocketOption;

/// A socket with the calls of WinSock, one to one, for ported programs.
///
/// New programs should use [`HvStream`] and [`HvListener`]; a socket converts to both.
///
/// | WinSock | here |
/// |---|---|
/// | `socket(AF_HYPERV, SOCK_STREAM, HV_PROTOCOL_RAW)` | [`HvSocket::new`] |
/// | `bind`, `listen`, `accept` | [`bind`](Self::bind), [`listen`](Self::listen), [`accept`](Self::accept) |
/// | `connect` | [`connect`](Self::connect) |
/// | `send`, `recv`, `shutdown` | [`send`](Self::send), [`recv`](Self::recv), [`shutdown`](Self::shutdown) |
/// | `setsockopt`, `getsockopt` | [`set_option`](Self::set_option), [`option`](Self::option) |
/// | `getsockopt(SO_ERROR)` | [`take_error`](Self::take_error) |
/// | `getsockname`, `getpeername` | [`local_addr`](Self::local_addr), [`peer_addr`](Self::peer_addr) |
/// | `ioctlsocket(FIONBIO)` | [`set_nonblocking`](Self::set_nonblocking) |
/// | `WSAPoll` | [`poll`](Self::poll) |
/// | `closesocket` | drop |
///
/// A call that the state of the socket does not permit fails with the error number of the system:
/// `EINVAL`, `ENOTCONN` or `EISCONN` (see [`io::Error::raw_os_error`]). Sending after a shutdown of
/// this end fails with `BrokenPipe`.
///
/// ```no_run
/// use hvsock::{AF_HYPERV, HV_PROTOCOL_RAW, SOCK_STREAM};
/// use hvsock::{HvSocket, ServiceId, SockAddrHv, VmId};
///
/// # fn main() -> std::io::Result<()> {
/// let address = SockAddrHv::new(VmId::PARENT, ServiceId::from_port(2761));
/// let mut socket = HvSocket::new(AF_HYPERV, SOCK_STREAM, HV_PROTOCOL_RAW)?;
/// socket.connect(address)?;
/// socket.send(b"hello")?;
/// let mut buffer = [0; 512];
/// let count = socket.recv(&mut buffer)?;
/// # Ok(())
/// # }
/// ```
#[doc(alias = "SOCKET")]
#[doc(alias = "AF_HYPERV")]
#[doc(alias = "hvsocket")]
#[doc(alias = "winsock")]
#[derive(Debug)]
pub struct HvSocket {
    endpoint: Endpoint,
    state: State,
    nonblocking: AtomicBool,
    values: Mutex<Values>,
}

#[derive(Debug)]
enum State {
    Idle { bound: Option<SockAddrHv> },
    Listening(Arc<backend::Listener>),
    Connecting(Connecting),
    Connected(Arc<backend::Stream>),
}

fn os(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl HvSocket {
    /// Creates a socket. The arguments are [`AF_HYPERV`], [`SOCK_STREAM`] and [`HV_PROTOCOL_RAW`].
    /// It uses the broker of [`Endpoint::from_env`].
    ///
    /// # Errors
    ///
    /// `EAFNOSUPPORT`, `ESOCKTNOSUPPORT` or `EPROTONOSUPPORT` for other arguments.
    #[doc(alias = "WSASocket")]
    pub fn new(family: u16, kind: i32, protocol: i32) -> io::Result<Self> {
        if family != AF_HYPERV {
            return Err(os(errno::EAFNOSUPPORT));
        }
        if kind != SOCK_STREAM {
            return Err(os(errno::ESOCKTNOSUPPORT));
        }
        if protocol != HV_PROTOCOL_RAW {
            return Err(os(errno::EPROTONOSUPPORT));
        }
        Ok(Self::in_state(State::Idle { bound: None }))
    }

    fn in_state(state: State) -> Self {
        Self {
            endpoint: Endpoint::from_env(),
            state,
            nonblocking: AtomicBool::new(false),
            values: Mutex::default(),
        }
    }

    /// Sets the endpoint of the broker for later calls.
    pub fn set_endpoint(&mut self, endpoint: impl Into<Endpoint>) {
        self.endpoint = endpoint.into();
    }

    /// Sets the address of the socket. [`HvSocket::listen`] checks whether the process may listen
    /// there.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the socket has an address, or listens, connects or is connected.
    pub fn bind(&mut self, address: SockAddrHv) -> io::Result<()> {
        match &mut self.state {
            State::Idle {
                bound: bound @ None,
            } => {
                *bound = Some(address);
                Ok(())
            }
            _ => Err(os(errno::EINVAL)),
        }
    }

    /// Listens at the address of the socket. A second call has no effect. Blocks up to 5 seconds
    /// for the broker, also in non-blocking mode.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the socket has no address; `EISCONN` if it connects or is connected; otherwise
    /// as [`ListenOptions::listen`].
    pub fn listen(&mut self, backlog: u32) -> io::Result<()> {
        let address = match &self.state {
            State::Idle {
                bound: Some(address),
            } => *address,
            State::Listening(_) => return Ok(()),
            State::Idle { bound: None } => return Err(os(errno::EINVAL)),
            State::Connecting(_) | State::Connected(_) => return Err(os(errno::EISCONN)),
        };
        let listener = ListenOptions::new()
            .endpoint(&self.endpoint)
            .backlog(backlog)
            .with_settings(self.settings())
            .listen(address)?
            .into_inner();
        listener.set_nonblocking(self.is_nonblocking());
        self.state = State::Listening(listener);
        Ok(())
    }

    /// Accepts a connection and returns it with the address of the peer. Blocks until there is one,
    /// unless the socket is in non-blocking mode.
    ///
    /// The accepted socket has the options of this one.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the socket does not listen; otherwise as [`HvListener::accept`].
    pub fn accept(&self) -> io::Result<(Self, SockAddrHv)> {
        let State::Listening(listener) = &self.state else {
            return Err(os(errno::EINVAL));
        };
        let stream = listener.accept(None)?;
        let peer = stream.end().info().peer;
        let socket = Self {
            endpoint: self.endpoint.clone(),
            state: State::Connected(Arc::new(stream)),
            nonblocking: AtomicBool::new(false),
            values: Mutex::new(*self.values()),
        };
        socket.apply(socket.stream()?)?;
        Ok((socket, peer))
    }

    /// Connects to a service. Blocks up to the time of [`SocketOption::ConnectTimeout`].
    ///
    /// In non-blocking mode it fails with `WouldBlock` while the connect is in progress. Wait for
    /// [`Interest::WRITABLE`], then call [`HvSocket::take_error`], or connect again, which returns
    /// the result.
    ///
    /// # Errors
    ///
    /// `EISCONN` if the socket is connected; `EINVAL` if it listens; otherwise as
    /// [`ConnectOptions::connect`].
    #[doc(alias = "WSAEWOULDBLOCK")]
    #[doc(alias = "EINPROGRESS")]
    pub fn connect(&mut self, address: SockAddrHv) -> io::Result<()> {
        if let State::Connecting(connecting) = &self.state {
            match connecting.progress(|stream| self.apply(stream)) {
                Progress::Pending => return Err(io::ErrorKind::WouldBlock.into()),
                Progress::Connected(stream) => {
                    self.state = State::Connected(Arc::clone(stream));
                    return Ok(());
                }
                Progress::Failed => {
                    let error = connecting.take_failure();
                    self.state = State::Idle { bound: None };
                    if let Some(error) = error {
                        return Err(error);
                    }
                }
            }
        }
        match &self.state {
            State::Idle { .. } => {}
            State::Listening(_) => return Err(os(errno::EINVAL)),
            State::Connecting(_) | State::Connected(_) => return Err(os(errno::EISCONN)),
        }
        let timeout = option::limit(self.values().connect_timeout);
        let timeout = timeout.unwrap_or(DEFAULT_CONNECT_TIMEOUT);
        let options = ConnectOptions::new()
            .endpoint(&self.endpoint)
            .timeout(timeout)
            .with_settings(self.settings());
        if self.is_nonblocking() {
            let pending = PendingConnect::start(&self.endpoint, options.request(&address, false)?)?;
            self.state = State::Connecting(Connecting::new(pending, Instant::now() + timeout));
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let stream = options.connect(address)?.into_inner();
        self.apply(&stream)?;
        self.state = State::Connected(stream);
        Ok(())
    }

    /// Sends bytes and returns how many. Blocks while there is no free space, unless the socket is
    /// in non-blocking mode.
    ///
    /// # Errors
    ///
    /// `ENOTCONN` if the socket is not connected; otherwise as [writing to a
    /// stream](HvStream#errors-of-reading-and-writing).
    #[doc(alias = "backpressure")]
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.stream()?.send(WriteFrom::One(bytes))
    }

    /// Receives bytes and returns how many, or 0 at the end of the data. Blocks while there are
    /// none, unless the socket is in non-blocking mode.
    ///
    /// # Errors
    ///
    /// `ENOTCONN` if the socket is not connected; otherwise as [reading from a
    /// stream](HvStream#errors-of-reading-and-writing).
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream()?.recv(ReadInto::One(buffer))
    }

    /// Shuts down one or both directions; see [`HvStream::shutdown`].
    ///
    /// # Errors
    ///
    /// `ENOTCONN` if the socket is not connected; otherwise as [`HvStream::shutdown`].
    #[doc(alias = "half-close")]
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.stream()?.shutdown(how, true)
    }

    /// Sets an option.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the option does not permit the value, or cannot be changed in this state. For
    /// [`SocketOption::ConnectedSuspend`] of a connected socket also as
    /// [`HvStream::set_connected_suspend`].
    #[doc(alias = "setsockopt")]
    pub fn set_option(&self, option: SocketOption, value: u32) -> io::Result<()> {
        let idle = matches!(self.state, State::Idle { .. });
        match option {
            SocketOption::ConnectTimeout if value > HVSOCKET_CONNECT_TIMEOUT_MAX => {
                return Err(os(errno::EINVAL));
            }
            SocketOption::ContainerPassthru | SocketOption::HighVtl if !idle => {
                return Err(os(errno::EINVAL));
            }
            _ => {}
        }
        *self.values().slot(option) = value;
        match (&self.state, option) {
            (State::Listening(listener), SocketOption::ConnectedSuspend) => {
                listener.set_connected_suspend(value != 0)
            }
            (State::Connecting(_) | State::Connected(_), _) => match (self.stream(), option) {
                (Ok(stream), SocketOption::ConnectedSuspend) => {
                    stream.set_connected_suspend(value != 0)
                }
                (Ok(stream), SocketOption::RecvTimeout) => {
                    stream.set_read_timeout(option::limit(value))
                }
                (Ok(stream), SocketOption::SendTimeout) => {
                    stream.set_write_timeout(option::limit(value))
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Returns the value of an option.
    #[doc(alias = "getsockopt")]
    pub fn option(&self, option: SocketOption) -> u32 {
        *self.values().slot(option)
    }

    /// Returns the address of the socket.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it has none; `ENOTCONN` while it connects.
    #[doc(alias = "getsockname")]
    pub fn local_addr(&self) -> io::Result<SockAddrHv> {
        match &self.state {
            State::Idle { bound } => bound.ok_or_else(|| os(errno::EINVAL)),
            State::Listening(listener) => Ok(listener.local()),
            State::Connecting(_) | State::Connected(_) => Ok(self.stream()?.end().info().local),
        }
    }

    /// Returns the address of the peer.
    ///
    /// # Errors
    ///
    /// `ENOTCONN` if the socket is not connected.
    #[doc(alias = "getpeername")]
    pub fn peer_addr(&self) -> io::Result<SockAddrHv> {
        Ok(self.stream()?.end().info().peer)
    }

    /// Returns the process that connected, or `None` if this is not an accepted socket.
    pub fn peer(&self) -> Option<&Peer> {
        self.stream().ok()?.end().info().peer_process.as_deref()
    }

    /// Sets non-blocking mode: calls fail with `WouldBlock` instead of blocking.
    ///
    /// # Errors
    ///
    /// The error of the system call; none is expected.
    #[doc(alias = "FIONBIO")]
    #[doc(alias = "ioctlsocket")]
    #[doc(alias = "O_NONBLOCK")]
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.nonblocking.store(nonblocking, Ordering::Relaxed);
        match (&self.state, self.stream()) {
            (State::Listening(listener), _) => listener.set_nonblocking(nonblocking),
            (_, Ok(stream)) => stream.set_nonblocking(nonblocking)?,
            _ => {}
        }
        Ok(())
    }

    /// Blocks until the socket is ready for `interest`, or until `timeout` has elapsed. `None`
    /// waits without a limit.
    ///
    /// Returns an empty [`Readiness`] after the timeout.
    ///
    /// # Errors
    ///
    /// `ENOTCONN` if the socket neither listens nor connects nor is connected.
    #[doc(alias = "WSAPoll")]
    #[doc(alias = "select")]
    pub fn poll(&self, interest: Interest, timeout: Option<Duration>) -> io::Result<Readiness> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        match &self.state {
            State::Idle { .. } => Err(os(errno::ENOTCONN)),
            State::Listening(listener) => {
                let ready = listener.wait(deadline)? && interest.is_readable();
                Ok(Readiness::new(ready, false))
            }
            State::Connected(stream) => stream.poll(interest, deadline),
            State::Connecting(connecting) => loop {
                match connecting.progress(|stream| self.apply(stream)) {
                    Progress::Connected(stream) => return stream.poll(interest, deadline),
                    Progress::Failed => {
                        let (r, w) = (interest.is_readable(), interest.is_writable());
                        return Ok(Readiness::new(r, w));
                    }
                    Progress::Pending if deadline.is_some_and(|at| at <= Instant::now()) => {
                        return Ok(Readiness::default());
                    }
                    Progress::Pending => connecting.wait(deadline)?,
                }
            },
        }
    }

    /// Takes the pending error: why a non-blocking connect failed (returned once), or why the
    /// connection was reset.
    ///
    /// # Errors
    ///
    /// None at present.
    #[doc(alias = "SO_ERROR")]
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        match &self.state {
            State::Idle { .. } | State::Listening(_) => Ok(None),
            State::Connected(stream) => Ok(stream.reset_reason()),
            State::Connecting(connecting) => {
                Ok(match connecting.progress(|stream| self.apply(stream)) {
                    Progress::Pending => None,
                    Progress::Connected(stream) => stream.reset_reason(),
                    Progress::Failed => connecting.take_failure(),
                })
            }
        }
    }

    /// The descriptor to watch in the current state.
    pub(crate) fn descriptor(&self) -> io::Result<Descriptor<'_>> {
        match &self.state {
            State::Idle { .. } => Err(os(errno::ENOTCONN)),
            State::Listening(listener) => Ok(listener.descriptor()),
            State::Connected(stream) => Ok(stream.descriptor()),
            State::Connecting(connecting) => {
                match connecting.progress(|stream| self.apply(stream)) {
                    Progress::Connected(stream) => Ok(stream.descriptor()),
                    _ => Ok(connecting.descriptor()),
                }
            }
        }
    }

    /// Converts a connected socket to a [`HvStream`].
    ///
    /// # Errors
    ///
    /// `ENOTCONN` if it is not connected.
    pub fn into_stream(self) -> io::Result<HvStream> {
        self.stream()?;
        let stream = match self.state {
            State::Connected(stream) => Some(stream),
            State::Connecting(connecting) => connecting.into_stream(),
            _ => None,
        };
        stream.map(HvStream::new).ok_or_else(|| os(errno::ENOTCONN))
    }

    /// Converts a listening socket to a [`HvListener`].
    ///
    /// # Errors
    ///
    /// `EINVAL` if it does not listen.
    pub fn into_listener(self) -> io::Result<HvListener> {
        match self.state {
            State::Listening(listener) => Ok(HvListener::new(listener)),
            _ => Err(os(errno::EINVAL)),
        }
    }

    fn stream(&self) -> io::Result<&Arc<backend::Stream>> {
        match &self.state {
            State::Connected(stream) => Ok(stream),
            State::Connecting(connecting) => {
                match connecting.progress(|stream| self.apply(stream)) {
                    Progress::Connected(stream) => Ok(stream),
                    _ => Err(os(errno::ENOTCONN)),
                }
            }
            _ => Err(os(errno::ENOTCONN)),
        }
    }

    /// Applies the options that were set before the connection existed.
    fn apply(&self, stream: &backend::Stream) -> io::Result<()> {
        let values = *self.values();
        stream.set_read_timeout(option::limit(values.recv_timeout))?;
        stream.set_write_timeout(option::limit(values.send_timeout))?;
        stream.set_nonblocking(self.is_nonblocking())
    }

    fn settings(&self) -> Settings {
        let values = *self.values();
        Settings {
            container_passthru: values.container_passthru != 0,
            connected_suspend: values.connected_suspend != 0,
            high_vtl: values.high_vtl != 0,
            ..Settings::default()
        }
    }

    fn is_nonblocking(&self) -> bool {
        self.nonblocking.load(Ordering::Relaxed)
    }

    fn values(&self) -> MutexGuard<'_, Values> {
        lock(&self.values)
    }
}

impl From<HvStream> for HvSocket {
    fn from(stream: HvStream) -> Self {
        Self::in_state(State::Connected(stream.into_inner()))
    }
}

impl From<HvListener> for HvSocket {
    fn from(listener: HvListener) -> Self {
        Self::in_state(State::Listening(listener.into_inner()))
    }
}
