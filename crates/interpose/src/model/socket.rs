//! One emulated socket: what each call on it answers, and what has to be done first.
//!
//! The families of methods, in their order of use:
//!
//! - `bind`, `listen` and `connect` check a call and return what its caller has to do, or an error;
//! - `bound`, `listening`, `connected`, `connect_failed` and `connect_cancelled` report what came of it;
//! - the others answer from what is known.
//!
//! The errors are those of the kernel's `net/vmw_vsock/af_vsock.c`; `AF_HYPERV` has the same where WinSock has
//! no other.

mod words;

use std::mem;
use std::time::Duration;

use hvsock_address::{SockAddrHv, SockAddrVm, VmId};

use super::ports::LAST_RESERVED_PORT;
use super::{Address, Errno, Family, OptionAnswer, Options, OwnCid};

pub use words::{ADDRESS_WORDS, SOCKET_WORDS, address_from_words, address_to_words};

/// An emulated socket.
#[derive(Clone, Debug)]
pub struct Socket {
    family: Family,
    state: State,
    /// What it is bound to, by `bind` or by a connect.
    local: Option<Address>,
    /// What `SO_ERROR` returns next.
    error: Option<Errno>,
    options: Options,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Listening,
    Connecting,
    Connected { peer: Address },
}

/// What to do for a `listen`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenStep {
    /// Listen at this address.
    Start(Address),
    /// It listens already: only the backlog may be another one.
    Again,
}

/// What to do for a `connect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectStep {
    /// Connect to this address, then call [`Socket::connected`] or [`Socket::connect_failed`].
    Start(Address),
    /// A blocking call while a connect is in progress: wait for its result.
    Wait,
}

impl Socket {
    /// A new socket.
    pub fn new(family: Family) -> Self {
        Self {
            family,
            state: State::Idle,
            local: None,
            error: None,
            options: Options::default(),
        }
    }

    /// A socket that `accept` returns. It has the options of its listener.
    pub fn accepted(listener: &Self, local: Address, peer: Address) -> Self {
        Self {
            family: listener.family,
            state: State::Connected { peer },
            local: Some(local),
            error: None,
            options: listener.options,
        }
    }

    /// Its family.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Its options.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// How long a connect may take; see [`Options::connect_timeout`].
    pub fn connect_timeout(&self) -> Option<Duration> {
        self.options.connect_timeout(self.family)
    }

    /// What it is bound to.
    pub fn local(&self) -> Option<Address> {
        self.local
    }

    /// Whether it listens.
    pub fn is_listening(&self) -> bool {
        self.state == State::Listening
    }

    /// Whether a connect is in progress.
    pub fn is_connecting(&self) -> bool {
        self.state == State::Connecting
    }

    /// Whether it is connected.
    pub fn is_connected(&self) -> bool {
        matches!(self.state, State::Connected { .. })
    }

    /// Checks a `bind` to the address in `bytes`. Returns the address to claim.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the bytes are no address or it is bound; `EADDRNOTAVAIL` for a context id of others;
    /// `EACCES` for a port up to [`LAST_RESERVED_PORT`] without `privileged` (`CAP_NET_BIND_SERVICE`).
    pub fn bind(
        &self,
        bytes: &[u8],
        own: OwnCid,
        privileged: impl FnOnce() -> bool,
    ) -> Result<Address, Errno> {
        let address = Address::parse(self.family, bytes)?;
        if self.local.is_some() {
            return Err(Errno::EINVAL);
        }
        if let Address::Vsock(SockAddrVm { cid, port, .. }) = address {
            if own.accepts_from(cid).is_none() {
                return Err(Errno::EADDRNOTAVAIL);
            }
            if port <= LAST_RESERVED_PORT && !privileged() {
                return Err(Errno::EACCES);
            }
        }
        Ok(address)
    }

    /// It is bound to this address now.
    pub fn bound(&mut self, address: Address) {
        self.local = Some(address);
    }

    /// Checks a `listen`.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it is not bound, or connects or is connected.
    pub fn listen(&self) -> Result<ListenStep, Errno> {
        match (self.state, self.local) {
            (State::Listening, _) => Ok(ListenStep::Again),
            (State::Idle, Some(address)) => Ok(ListenStep::Start(address)),
            _ => Err(Errno::EINVAL),
        }
    }

    /// It listens now.
    pub fn listening(&mut self) {
        self.state = State::Listening;
    }

    /// It no longer listens, since the broker ended the listener.
    pub fn listening_ended(&mut self) {
        self.state = State::Idle;
    }

    /// Checks a `connect` to the address in `bytes`. After [`ConnectStep::Start`] it is connecting; a
    /// non-blocking call answers `EINPROGRESS`.
    ///
    /// # Errors
    ///
    /// `EISCONN` if it is connected; `EALREADY` for a non-blocking call while it connects; `EINVAL` if it
    /// listens or the bytes are no address.
    pub fn connect(&mut self, bytes: &[u8], nonblocking: bool) -> Result<ConnectStep, Errno> {
        match self.state {
            State::Connected { .. } => Err(Errno::EISCONN),
            State::Connecting if nonblocking => Err(Errno::EALREADY),
            State::Connecting => Ok(ConnectStep::Wait),
            State::Listening => Err(Errno::EINVAL),
            State::Idle => {
                let address = Address::parse(self.family, bytes)?;
                self.state = State::Connecting;
                self.error = None;
                Ok(ConnectStep::Start(address))
            }
        }
    }

    /// The connect has succeeded.
    pub fn connected(&mut self, local: Address, peer: Address) {
        self.local = Some(local);
        self.state = State::Connected { peer };
    }

    /// The connect has failed. If no call waits for the result, `SO_ERROR` returns it.
    pub fn connect_failed(&mut self, errno: Errno, is_awaited: bool) {
        self.state = State::Idle;
        self.error = (!is_awaited).then_some(errno);
    }

    /// The connect was interrupted by a signal, which fails with `EINTR`.
    pub fn connect_cancelled(&mut self) {
        self.state = State::Idle;
    }

    /// Checks an `accept`.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it does not listen.
    pub fn accept(&self) -> Result<(), Errno> {
        match self.state {
            State::Listening => Ok(()),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Checks a `shutdown`, which the kernel does on the Unix socket. Without a peer it must not: the Unix socket would
    /// stay shut down, and a listening one would get no more connections.
    ///
    /// # Errors
    ///
    /// `EINVAL` for another `how` than `SHUT_RD`, `SHUT_WR` and `SHUT_RDWR`; `ENOTCONN` if it has no peer.
    pub fn shutdown(&self, how: i32) -> Result<(), Errno> {
        match (how, self.state) {
            (libc::SHUT_RD | libc::SHUT_WR | libc::SHUT_RDWR, State::Idle | State::Listening) => {
                Err(Errno::ENOTCONN)
            }
            (libc::SHUT_RD | libc::SHUT_WR | libc::SHUT_RDWR, _) => Ok(()),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Answers `getsockname`.
    ///
    /// # Errors
    ///
    /// `EINVAL` on an unbound socket of `AF_HYPERV`, as in WinSock. One of `AF_VSOCK` has an address of which
    /// all is any.
    pub fn name(&self) -> Result<Address, Errno> {
        let unbound = SockAddrVm::new(SockAddrVm::CID_ANY, SockAddrVm::PORT_ANY);
        match (self.local, self.family) {
            (Some(address), _) => Ok(address),
            (None, Family::Vsock) => Ok(Address::Vsock(unbound)),
            (None, Family::HyperV) => Err(Errno::EINVAL),
        }
    }

    /// Answers `getpeername`.
    ///
    /// # Errors
    ///
    /// `ENOTCONN` if it is not connected.
    pub fn peer(&self) -> Result<Address, Errno> {
        match self.state {
            State::Connected { peer } => Ok(peer),
            _ => Err(Errno::ENOTCONN),
        }
    }

    /// Answers `getsockopt` for a buffer of `space` bytes. `SO_ERROR` is returned once.
    ///
    /// Only a connected socket may have an error of the Unix socket. One whose connect was refused gets another
    /// `ECONNRESET` there when the broker closes its end, which may be after the program has read the refusal.
    pub fn option(&mut self, level: i32, name: i32, space: usize) -> OptionAnswer {
        if (level, name) == (libc::SOL_SOCKET, libc::SO_ERROR) {
            let number = match mem::take(&mut self.error) {
                Some(errno) => errno.number(),
                None if self.is_connected() => return OptionAnswer::Native,
                None => 0,
            };
            let mut bytes = number.to_ne_bytes().to_vec();
            bytes.truncate(space);
            return OptionAnswer::Value(bytes);
        }
        self.options.get(self.family, level, name, space)
    }

    /// Answers `setsockopt`.
    pub fn set_option(&mut self, level: i32, name: i32, value: &[u8]) -> OptionAnswer {
        self.options.set(self.family, level, name, value)
    }
}

/// Where the broker is asked to listen for a socket that is bound to `address`.
pub fn listen_target(address: Address, own: OwnCid) -> SockAddrHv {
    match address {
        Address::HyperV(address) => address,
        Address::Vsock(SockAddrVm { cid, .. }) => {
            let from = own.accepts_from(cid).unwrap_or(VmId::LOOPBACK);
            SockAddrHv::new(from, address.service())
        }
    }
}

/// The address that a connected socket of this family has in its own partition.
pub fn local_of(family: Family, local: SockAddrHv, own: OwnCid, port: u32) -> Address {
    match family {
        Family::HyperV => Address::HyperV(local),
        Family::Vsock => Address::Vsock(SockAddrVm::new(own.0, port)),
    }
}

#[cfg(test)]
mod tests {
    use hvsock_address::ServiceId;

    use super::*;

    const OWN: OwnCid = OwnCid(2);
    const ANY: u32 = u32::MAX;

    fn vsock(cid: u32, port: u32) -> Address {
        Address::Vsock(SockAddrVm::new(cid, port))
    }

    fn bind(socket: &mut Socket, cid: u32, port: u32, privileged: bool) -> Result<Address, Errno> {
        let address = socket.bind(&vsock(cid, port).to_bytes(), OWN, || privileged)?;
        socket.bound(address);
        Ok(address)
    }

    #[test]
    fn a_bind_is_refused_as_by_the_kernel() {
        let mut socket = Socket::new(Family::Vsock);
        assert_eq!(bind(&mut socket, 7, 5000, true), Err(Errno::EADDRNOTAVAIL));
        assert_eq!(bind(&mut socket, ANY, 1023, false), Err(Errno::EACCES));
        assert_eq!(bind(&mut socket, ANY, 1024, false), Ok(vsock(ANY, 1024)));
        assert_eq!(bind(&mut socket, ANY, 1025, false), Err(Errno::EINVAL));
        let mut other = Socket::new(Family::Vsock);
        assert_eq!(bind(&mut other, 1, 1, true), Ok(vsock(1, 1)));
        assert_eq!(other.bind(&[40], OWN, || true), Err(Errno::EINVAL));
    }

    #[test]
    fn only_a_bound_socket_listens() {
        let mut socket = Socket::new(Family::Vsock);
        assert_eq!(socket.listen(), Err(Errno::EINVAL));
        assert_eq!(socket.accept(), Err(Errno::EINVAL));
        bind(&mut socket, ANY, 5000, false).unwrap();
        assert_eq!(socket.listen(), Ok(ListenStep::Start(vsock(ANY, 5000))));
        socket.listening();
        assert_eq!(socket.listen(), Ok(ListenStep::Again));
        assert_eq!(socket.accept(), Ok(()));
        let connect = socket.connect(&vsock(2, 1).to_bytes(), false);
        assert_eq!(connect, Err(Errno::EINVAL));
        assert_eq!(socket.peer(), Err(Errno::ENOTCONN));
    }

    #[test]
    fn a_socket_without_a_peer_is_not_shut_down() {
        let mut socket = Socket::new(Family::Vsock);
        let all = [libc::SHUT_RD, libc::SHUT_WR, libc::SHUT_RDWR];
        let refused =
            |socket: &Socket| all.map(|how| socket.shutdown(how)) == [Err(Errno::ENOTCONN); 3];
        assert!(refused(&socket));
        socket.listening();
        assert!(refused(&socket));
        let mut client = Socket::new(Family::HyperV);
        client.connected(vsock(2, 1025), vsock(2, 99));
        assert_eq!(all.map(|how| client.shutdown(how)), [Ok(()); 3]);
        for how in [-1, 3, i32::MAX] {
            assert_eq!(client.shutdown(how), Err(Errno::EINVAL));
            assert_eq!(socket.shutdown(how), Err(Errno::EINVAL));
        }
    }

    #[test]
    fn a_connect_in_progress_is_already_or_waits() {
        let mut socket = Socket::new(Family::Vsock);
        let to = vsock(2, 99).to_bytes();
        assert_eq!(
            socket.connect(&to, true),
            Ok(ConnectStep::Start(vsock(2, 99)))
        );
        assert_eq!(socket.connect(&to, true), Err(Errno::EALREADY));
        assert_eq!(socket.connect(&to, false), Ok(ConnectStep::Wait));
        assert_eq!(socket.listen(), Err(Errno::EINVAL));
        socket.connect_failed(Errno::ECONNRESET, false);
        let error = socket.option(libc::SOL_SOCKET, libc::SO_ERROR, 4);
        let number = libc::ECONNRESET.to_ne_bytes().to_vec();
        assert_eq!(error, OptionAnswer::Value(number));
        let again = socket.option(libc::SOL_SOCKET, libc::SO_ERROR, 4);
        assert_eq!(again, OptionAnswer::Value(vec![0; 4]));
        assert!(socket.connect(&to, false).is_ok());
        socket.connected(vsock(2, 1025), vsock(2, 99));
        let connected = socket.option(libc::SOL_SOCKET, libc::SO_ERROR, 4);
        assert_eq!(connected, OptionAnswer::Native);
        assert_eq!(socket.connect(&to, false), Err(Errno::EISCONN));
        assert_eq!(socket.connect(&to, true), Err(Errno::EISCONN));
        assert_eq!(socket.listen(), Err(Errno::EINVAL));
        assert_eq!(socket.name(), Ok(vsock(2, 1025)));
        assert_eq!(socket.peer(), Ok(vsock(2, 99)));
    }

    #[test]
    fn an_unbound_name_is_any_for_vsock_and_an_error_for_hyperv() {
        assert_eq!(Socket::new(Family::Vsock).name(), Ok(vsock(ANY, ANY)));
        assert_eq!(Socket::new(Family::HyperV).name(), Err(Errno::EINVAL));
    }

    #[test]
    fn a_socket_at_the_own_context_id_accepts_from_everywhere_and_at_local_from_itself() {
        let target = |cid, own| listen_target(vsock(cid, 5000), OwnCid(own)).vm;
        assert_eq!(target(ANY, 2), VmId::WILDCARD);
        assert_eq!(target(2, 2), VmId::WILDCARD);
        assert_eq!(target(1, 2), VmId::LOOPBACK);
        assert_eq!(target(9, 9), VmId::WILDCARD);
        let exact = SockAddrHv::new(VmId::CHILDREN, ServiceId::random());
        assert_eq!(listen_target(Address::HyperV(exact), OWN), exact);
    }
}
