//! A socket call by call, as in WinSock.

mod connecting;
mod option;

use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hvsock_address::{
    AF_HYPERV, HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT_MAX, SOCK_STREAM, SockAddrHv,
};
use hvsock_sys::errno;

use crate::backend::{self, Dial, ReadInto, Settings, WriteFrom};
use crate::options::DEFAULT_CONNECT_TIMEOUT;
use crate::os::Descriptor;
use crate::{
    ConnectOptions, Endpoint, HvListener, HvStream, Interest, ListenOptions, Peer, Readiness,
};
use connecting::{Connecting, Progress};
use option::Values;

pub use option::SocketOption;

/// A socket with the calls of WinSock, one to one, for programs that come from there; others are
/// better served by [`HvStream`] and [`HvListener`], which it can become.
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
/// | `closesocket` | dropping it |
///
/// A call that the socket's state does not allow fails as the system's would: `EINVAL`,
/// `ENOTCONN`, `EISCONN` (see [`io::Error::raw_os_error`]), and `BrokenPipe` for sending after
/// one's own shutdown.
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
    /// Makes a socket: `AF_HYPERV`, `SOCK_STREAM`, `HV_PROTOCOL_RAW`. It asks the broker of
    /// [`Endpoint::from_env`].
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

    /// Asks another broker, from the next call on.
    pub fn set_endpoint(&mut self, endpoint: impl Into<Endpoint>) {
        self.endpoint = endpoint.into();
    }

    /// Gives the socket its address. Whether one may listen there is judged by
    /// [`HvSocket::listen`].
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

    /// Listens at the address it is bound to. Waits a moment for the broker, also in
    /// non-blocking mode.
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

    /// Takes a connection, with the address of its other end.
    pub fn accept(&self) -> io::Result<(Self, SockAddrHv)> {
        let State::Listening(listener) = &self.state else {
            return Err(os(errno::EINVAL));
        };
        let stream = listener.accept(None)?;
        let peer = stream.ends().peer;
        let socket = Self {
            endpoint: self.endpoint.clone(),
            state: State::Connected(Arc::new(stream)),
            nonblocking: AtomicBool::new(false),
            values: Mutex::new(*self.values()),
        };
        socket.apply(socket.stream()?)?;
        Ok((socket, peer))
    }

    /// Connects to a service.
    ///
    /// In non-blocking mode this is `WouldBlock` while it goes on: wait for
    /// [`Interest::WRITABLE`], then ask [`HvSocket::take_error`] or connect again, which tells
    /// how it ended.
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
            let dial = Dial::start(&self.endpoint, options.request(&address, false)?)?;
            self.state = State::Connecting(Connecting::new(dial, Instant::now() + timeout));
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let stream = options.connect(address)?.into_inner();
        self.apply(&stream)?;
        self.state = State::Connected(stream);
        Ok(())
    }

    /// Sends some of `bytes`.
    pub fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        self.stream()?.send(WriteFrom::One(bytes))
    }

    /// Receives what is there; 0 at the end of what the other end sent.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream()?.recv(ReadInto::One(buffer))
    }

    /// Ends one or both directions.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.stream()?.shutdown(how, true)
    }

    /// Sets an option; `EINVAL` if it does not take the value, or not any more.
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

    /// What an option is set to.
    pub fn option(&self, option: SocketOption) -> u32 {
        *self.values().slot(option)
    }

    /// The socket's own address; `EINVAL` before it has one.
    pub fn local_addr(&self) -> io::Result<SockAddrHv> {
        match &self.state {
            State::Idle { bound } => bound.ok_or_else(|| os(errno::EINVAL)),
            State::Listening(listener) => Ok(listener.local()),
            State::Connecting(_) | State::Connected(_) => Ok(self.stream()?.ends().local),
        }
    }

    /// The other end's address.
    pub fn peer_addr(&self) -> io::Result<SockAddrHv> {
        Ok(self.stream()?.ends().peer)
    }

    /// Who connected, on an accepted socket.
    pub fn peer(&self) -> Option<&Peer> {
        self.stream().ok()?.ends().caller.as_ref()
    }

    /// Makes calls return `WouldBlock` where they would wait.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.nonblocking.store(nonblocking, Ordering::Relaxed);
        match (&self.state, self.stream()) {
            (State::Listening(listener), _) => listener.set_nonblocking(nonblocking),
            (_, Ok(stream)) => stream.set_nonblocking(nonblocking)?,
            _ => {}
        }
        Ok(())
    }

    /// Waits until the calls that `interest` stands for would not wait, or until `timeout` has
    /// passed; `None` waits for ever. A socket that neither listens nor connects is `ENOTCONN`.
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

    /// The error that the socket has pending: why a non-blocking connect failed (told once), or
    /// why the connection was cut.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        match &self.state {
            State::Idle { .. } | State::Listening(_) => Ok(None),
            State::Connected(stream) => Ok(stream.cut()),
            State::Connecting(connecting) => {
                Ok(match connecting.progress(|stream| self.apply(stream)) {
                    Progress::Pending => None,
                    Progress::Connected(stream) => stream.cut(),
                    Progress::Failed => connecting.take_failure(),
                })
            }
        }
    }

    /// What to watch in the state that it is in.
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

    /// The connection, as in `std::net`; `ENOTCONN` if it is none.
    pub fn into_stream(self) -> io::Result<HvStream> {
        self.stream()?;
        let stream = match self.state {
            State::Connected(stream) => Some(stream),
            State::Connecting(connecting) => connecting.into_stream(),
            _ => None,
        };
        stream.map(HvStream::new).ok_or_else(|| os(errno::ENOTCONN))
    }

    /// The listener, as in `std::net`; `EINVAL` if it is none.
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

    /// Gives a fresh connection what was set before it was one.
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
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
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
