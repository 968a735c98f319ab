//! A socket of the program: its state, and what each call does in it.

use std::any::Any;
use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, Once};

use hvsock::{Endpoint, HvListener, ListenOptions, Refusal, SockAddrHv, refusal_of};
use hvsock_sys::sync::lock;

use super::attach::{Attach, Attempt};
use super::calls;
use super::connection::{Connection, HvOptions};
use super::listening::Listening;
use super::table::{self, Table};
use crate::abi::system;
use crate::last_error::{LastError, Result, fail};
use crate::numbers;

/// The sockets of this process.
pub(crate) static SOCKETS: LazyLock<Table<Socket>> = LazyLock::new(Table::default);

/// A socket. Its descriptor belongs to the program.
#[derive(Debug)]
pub(crate) struct Socket {
    state: Mutex<State>,
    options: Mutex<HvOptions>,
    /// Non-blocking mode of a listener whose descriptor is always in it. Other sockets have it in the kernel.
    nonblocking: AtomicBool,
}

#[derive(Debug)]
enum State {
    Unconnected {
        bound: Option<SockAddrHv>,
    },
    /// A thread is in a blocking connect, or makes a listener.
    Busy,
    Connecting {
        attach: Box<Attach>,
        bound: Option<SockAddrHv>,
    },
    /// A connect in non-blocking mode has failed. Its error is returned once.
    Failed {
        error: Option<io::Error>,
        bound: Option<SockAddrHv>,
    },
    Connected(Arc<Connection>),
    Listening(Arc<Listening>),
}

impl Socket {
    fn in_state(state: State) -> Self {
        Self {
            state: Mutex::new(state),
            options: Mutex::default(),
            nonblocking: AtomicBool::new(false),
        }
    }

    /// Creates a socket and returns its descriptor.
    pub(crate) fn create(nonblocking: bool) -> Result<RawFd> {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| system::at_fork(hold, release, release_in_child));
        let fd = system::unix_socket(nonblocking)?;
        Ok(Self::hand_over(
            fd,
            Self::in_state(State::Unconnected { bound: None }),
        ))
    }

    /// Gives a descriptor to the program.
    fn hand_over(fd: OwnedFd, socket: Self) -> RawFd {
        let number = fd.into_raw_fd();
        SOCKETS.set_special(number, false);
        for stale in SOCKETS.insert(number, Arc::new(socket)) {
            stale.close();
        }
        number
    }

    pub(crate) fn options(&self) -> HvOptions {
        *lock(&self.options)
    }

    pub(crate) fn bind(&self, address: SockAddrHv) -> Result<()> {
        if !matches!(*lock(&self.state), State::Unconnected { bound: None }) {
            return fail(libc::EINVAL);
        }
        // Windows reports an address in use here. Everything else is reported by the call that needs the address.
        let is_in_use = retried(|| match self.listen_options().explain(address) {
            Ok(explanation) => match explanation.refusal() {
                Some(Refusal::AddressInUse) => Err(Refusal::AddressInUse.into()),
                _ => Ok(()),
            },
            Err(_) => Ok(()),
        });
        is_in_use.map_err(|error| LastError::of(&error))?;
        match &mut *lock(&self.state) {
            State::Unconnected { bound } if bound.is_none() => *bound = Some(address),
            _ => return fail(libc::EINVAL),
        }
        Ok(())
    }

    fn listen_options(&self) -> ListenOptions {
        HvListener::options()
            .raw_fd(true)
            .connected_suspend(self.options().connected_suspend)
    }

    pub(crate) fn listen(self: &Arc<Self>, number: RawFd, backlog: i32) -> Result<()> {
        let address = {
            let mut state = lock(&self.state);
            match &*state {
                State::Unconnected {
                    bound: Some(address),
                } => {
                    let address = *address;
                    *state = State::Busy;
                    address
                }
                State::Listening(_) => return Ok(()),
                State::Unconnected { bound: None } => return fail(libc::EINVAL),
                _ => return fail(libc::EISCONN),
            }
        };
        let made = self.make_listener(number, address, backlog);
        let bound = Some(address);
        let mut state = lock(&self.state);
        match made {
            Ok(listening) => {
                *state = State::Listening(listening);
                SOCKETS.set_special(number, true);
                Ok(())
            }
            Err(error) => {
                *state = State::Unconnected { bound };
                Err(error)
            }
        }
    }

    fn make_listener(
        self: &Arc<Self>,
        number: RawFd,
        address: SockAddrHv,
        backlog: i32,
    ) -> Result<Arc<Listening>> {
        // SOMAXCONN of Windows, and what a program means by a negative number.
        let backlog = u32::try_from(backlog).unwrap_or(u32::MAX).clamp(1, 4096);
        let options = self.listen_options().backlog(backlog);
        let listener = retried(|| options.listen(address)).map_err(|e| LastError::of(&e))?;
        let listening = Arc::new(Listening::new(listener)?);
        let nonblocking = system::is_nonblocking(number)?;
        if listening.keeps_options() {
            system::copy_options(number, listening.descriptor()?.as_fd())?;
        }
        self.replace(number, &listening.descriptor()?)?;
        self.nonblocking.store(nonblocking, Ordering::Relaxed);
        Ok(listening)
    }

    /// Puts another open file under the number of the program.
    fn replace(self: &Arc<Self>, number: RawFd, by: &OwnedFd) -> Result<()> {
        let old = system::lend(number, table::key)?;
        system::replace(number, by.as_fd())?;
        SOCKETS.rekey(old, number, self);
        Ok(())
    }

    /// Accepts a connection and returns its descriptor and the peer's address.
    pub(crate) fn accept(&self, number: RawFd) -> Result<(RawFd, SockAddrHv)> {
        let listening = match &*lock(&self.state) {
            State::Listening(listening) => Arc::clone(listening),
            _ => return fail(libc::EINVAL),
        };
        let keeps_options = listening.keeps_options();
        let nonblocking = match keeps_options {
            true => system::is_nonblocking(number)?,
            false => self.nonblocking.load(Ordering::Relaxed),
        };
        let stream = listening.accept(!nonblocking).map_err(|error| {
            let kind = error.kind();
            let error = LastError::from(error);
            match kind {
                // For Windows a reset of accept concerns one connection, and programs try again.
                io::ErrorKind::ConnectionReset => error.with_errno(libc::ENETDOWN),
                // It has waited for the time of SO_RCVTIMEO.
                io::ErrorKind::WouldBlock if !nonblocking => error.with_wsa(numbers::WSAETIMEDOUT),
                _ => error,
            }
        })?;
        let (fd, connection) = Connection::of(stream)?;
        let peer = connection.peer;
        // As on Windows, an accepted socket has the mode and the options of the listening one.
        match keeps_options {
            true => system::copy_options(number, fd.as_fd())?,
            false => system::set_nonblocking(fd.as_raw_fd(), nonblocking)?,
        }
        let socket = Self::in_state(State::Connected(Arc::new(connection)));
        *lock(&socket.options) = self.options();
        Ok((Self::hand_over(fd, socket), peer))
    }

    pub(crate) fn connect(self: &Arc<Self>, number: RawFd, address: SockAddrHv) -> Result<()> {
        let bound = {
            let mut state = lock(&self.state);
            self.progress(&mut state, number);
            let bound = match &mut *state {
                State::Unconnected { bound } => *bound,
                State::Failed { error, bound } => match error.take() {
                    // The result of the connect before, if nobody has asked for it.
                    Some(error) => return Err(LastError::of(&error)),
                    None => *bound,
                },
                State::Busy | State::Connecting { .. } => return fail(libc::EALREADY),
                State::Connected(_) => return fail(libc::EISCONN),
                State::Listening(_) => return fail(libc::EINVAL),
            };
            if let State::Failed { .. } = *state {
                // A connected Unix socket cannot be connected again.
                let nonblocking = system::is_nonblocking(number)?;
                let fresh = system::unix_socket(nonblocking)?;
                self.replace(number, &fresh)?;
            }
            *state = State::Busy;
            bound
        };
        let nonblocking = system::is_nonblocking(number);
        let started = nonblocking.and_then(|it| self.start(number, address, it));
        let mut state = lock(&self.state);
        match started {
            Ok(Attempt::Connected(connection)) => {
                *state = State::Connected(Arc::new(connection));
                Ok(())
            }
            Ok(Attempt::Pending(attach)) => {
                *state = State::Connecting { attach, bound };
                SOCKETS.set_special(number, true);
                fail(libc::EINPROGRESS)
            }
            Err(error) => {
                *state = State::Unconnected { bound };
                Err(error)
            }
        }
    }

    /// Connects, or begins to in non-blocking mode.
    fn start(
        self: &Arc<Self>,
        number: RawFd,
        address: SockAddrHv,
        nonblocking: bool,
    ) -> Result<Attempt> {
        let options = self.options();
        let endpoint = Endpoint::from_env();
        // The program may close its number meanwhile, and get it again for something else.
        let own = system::lend(number, |fd| fd.try_clone_to_owned())??;
        match Attach::connect(&endpoint, own, address, &options, nonblocking) {
            Ok(Some(attempt)) => return Ok(attempt),
            // A broker that does not know it, or none.
            Ok(None) => {}
            Err(error) => return Err(LastError::of(&error)),
        }
        let stream = options.to_connect().endpoint(&endpoint).connect(address);
        let stream = stream.map_err(|error| LastError::of(&error))?;
        let (fd, connection) = Connection::of(stream)?;
        system::copy_options(number, fd.as_fd())?;
        self.replace(number, &fd)?;
        Ok(Attempt::Connected(connection))
    }

    /// Looks whether a connect in non-blocking mode has its result.
    fn progress(&self, state: &mut State, number: RawFd) {
        let State::Connecting { attach, bound } = state else {
            return;
        };
        let bound = *bound;
        *state = match attach.progress() {
            None => return,
            Some(Ok(connection)) => State::Connected(Arc::new(connection)),
            Some(Err(error)) => State::Failed {
                error: Some(error),
                bound,
            },
        };
        SOCKETS.set_special(number, false);
    }

    /// Whether a connect in non-blocking mode has failed, and its error was not returned yet.
    pub(crate) fn has_failed(&self, number: RawFd) -> bool {
        let mut state = lock(&self.state);
        self.progress(&mut state, number);
        matches!(*state, State::Failed { error: Some(_), .. })
    }

    /// Whether a connect is under way or has just failed.
    pub(crate) fn is_connecting(&self) -> bool {
        matches!(
            *lock(&self.state),
            State::Connecting { .. } | State::Failed { .. }
        )
    }

    /// Takes the pending error: why a connect in non-blocking mode failed, or the connection was reset.
    pub(crate) fn take_error(&self, number: RawFd) -> Option<LastError> {
        let mut state = lock(&self.state);
        self.progress(&mut state, number);
        let error = match &mut *state {
            State::Failed { error, .. } => error.take(),
            State::Connected(connection) => connection.control.reset_reason(),
            _ => None,
        };
        error.map(|error| LastError::of(&error))
    }

    /// The connection, if there is one.
    pub(crate) fn connection(&self, number: RawFd) -> Result<Arc<Connection>> {
        let mut state = lock(&self.state);
        self.progress(&mut state, number);
        match &mut *state {
            State::Connected(connection) => Ok(Arc::clone(connection)),
            State::Failed { error, .. } => match error.take() {
                Some(error) => Err(LastError::of(&error)),
                None => fail(libc::ENOTCONN),
            },
            _ => fail(libc::ENOTCONN),
        }
    }

    /// What a call that sends or receives returns before the kernel is asked.
    pub(crate) fn check_data(&self, number: RawFd) -> Result<()> {
        let mut state = lock(&self.state);
        self.progress(&mut state, number);
        match &mut *state {
            State::Connected(_) => Ok(()),
            State::Connecting { .. } => fail(libc::EAGAIN),
            State::Failed { error, .. } => match error.take() {
                Some(error) => Err(LastError::of(&error)),
                None => fail(libc::ENOTCONN),
            },
            _ => fail(libc::ENOTCONN),
        }
    }

    pub(crate) fn is_listening(&self) -> bool {
        matches!(*lock(&self.state), State::Listening(_))
    }

    pub(crate) fn local(&self, number: RawFd) -> Result<SockAddrHv> {
        let mut state = lock(&self.state);
        self.progress(&mut state, number);
        match &*state {
            State::Connected(connection) => Ok(connection.local),
            State::Listening(listening) => Ok(listening.local()?),
            State::Unconnected { bound: Some(bound) }
            | State::Connecting {
                bound: Some(bound), ..
            }
            | State::Failed {
                bound: Some(bound), ..
            } => Ok(*bound),
            _ => fail(libc::EINVAL),
        }
    }

    pub(crate) fn peer(&self, number: RawFd) -> Result<SockAddrHv> {
        Ok(self.connection(number)?.peer)
    }

    /// Sets non-blocking mode. Returns false if the kernel keeps it.
    pub(crate) fn set_nonblocking(&self, on: bool) -> bool {
        self.nonblocking.store(on, Ordering::Relaxed);
        !self.keeps_options()
    }

    /// Whether the kernel has the mode and the timeouts of the descriptor.
    pub(crate) fn keeps_options(&self) -> bool {
        match &*lock(&self.state) {
            State::Listening(listening) => listening.keeps_options(),
            _ => true,
        }
    }

    /// Changes an option at the level `HV_PROTOCOL_RAW`.
    pub(crate) fn set_options(&self, change: impl FnOnce(&mut HvOptions)) {
        change(&mut lock(&self.options));
    }

    /// Tells the broker that an established connection survives a pause, or does not.
    pub(crate) fn set_connected_suspend(&self, number: RawFd, on: bool) {
        self.set_options(|options| options.connected_suspend = on);
        if let Ok(connection) = self.connection(number) {
            connection
                .control
                .send(&hvsock_endpoint::ClientMessage::SetOption {
                    option: hvsock_endpoint::SocketOption::ConnectedSuspend,
                    value: on.into(),
                });
        }
    }

    /// Ends what does not end with the descriptor: threads that wait in accept.
    pub(crate) fn close(&self) {
        if let State::Listening(listening) = &*lock(&self.state) {
            listening.close();
        }
    }
}

/// Makes a request for an address. If that is in use, looks for listeners that the program has closed by
/// `close`, and makes it once more.
fn retried<T>(request: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let first = request();
    let refusal = first.as_ref().err().and_then(refusal_of);
    if refusal != Some(&Refusal::AddressInUse) {
        return first;
    }
    sweep();
    request()
}

/// Ends listeners that the program has closed by `close`.
fn sweep() {
    for socket in SOCKETS.sweep() {
        socket.close();
    }
}

thread_local! {
    /// What a thread that forks holds meanwhile, so that no lock of another thread is left in the child.
    static HELD: RefCell<Option<Box<dyn Any>>> = const { RefCell::new(None) };
}

extern "C" fn hold() {
    let held = SOCKETS.hold();
    let _ = HELD.try_with(|to| to.replace(Some(held)));
}

extern "C" fn release() {
    let _ = HELD.try_with(|held| held.replace(None));
}

extern "C" fn release_in_child() {
    calls::forked();
    release();
}
