//! `connect`.
//!
//! The broker accepts the program's own Unix socket as the end of the connection. A blocking call is answered
//! when that has happened. For a non-blocking one, the Unix socket is connected at once and made not
//! writable; when the broker has established the connection, it becomes writable, and when it refuses, it
//! hangs up. So `poll` and epoll need no help, also if the program watched the socket before.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use hvsock::{Refusal, SockAddrHv};
use hvsock_address::{SockAddrVm, VmId};
use hvsock_endpoint::{
    BrokerMessage, ClientMessage, Connect, Flags, LookupKind, SocketOption, Transports,
};
use hvsock_sys::foreign_socket;
use hvsock_sys::seccomp::Notification;

use super::core::{Core, inode_of, refusal_in, unreachable};
use super::exchange::{Connecting, Exchange, Phase, Purpose};
use super::prepared::Attached;
use super::waiting::WaitKind;
use crate::broker::Message;
use crate::model::{Address, ConnectStep, Errno, Family, local_of};

/// What a socket has in its send buffer while it connects.
const FILLER: [u8; 1024] = [0; 1024];
/// How long the broker may take beyond the time of the connect itself.
pub(crate) const GRACE: Duration = Duration::from_secs(3);
/// The time of a connect where the broker decides: a guest gets at most this much.
const DEFAULT: Duration = Duration::from_secs(30);
/// The most that the broker takes.
const MAX_TIMEOUT_MS: u32 = 300_000;

impl Core {
    /// Answers `connect`.
    pub(crate) fn connect(&mut self, call: &Notification, inode: u64, data: OwnedFd) {
        let answer = match self.begin_connect(call, inode, data) {
            Ok(()) => return,
            Err(errno @ (Errno::EALREADY | Errno::EISCONN)) => {
                match self.begin_again(call, inode, errno) {
                    Some(answer) => answer,
                    None => return,
                }
            }
            Err(errno) => Err(errno),
        };
        self.program.answer(call, answer);
    }

    /// What a call gets that a signal has ended and that starts again, as it does without the flag by which only a
    /// kill ends a received call: what the first one would have got. `None` if the answer comes later.
    fn begin_again(
        &mut self,
        call: &Notification,
        inode: u64,
        errno: Errno,
    ) -> Option<Result<i64, Errno>> {
        let entry = self.sockets.get_mut(&inode)?;
        if std::mem::take(&mut entry.is_unanswered) {
            return Some(match entry.socket.is_connecting() {
                true => Err(Errno::EINPROGRESS),
                false => Ok(0),
            });
        }
        let exchange = entry.attempt.and_then(|it| self.exchanges.get_mut(&it));
        if let Some(Purpose::Connect(connecting)) = exchange.map(|it| &mut it.purpose)
            && let Phase::Beginning { call: first } = &mut connecting.phase
            && !self.program.is_valid(first)
        {
            *first = *call;
            return None;
        }
        Some(Err(errno))
    }

    /// A call that is about to be answered was ended by a signal.
    fn set_unanswered(&mut self, inode: u64) {
        if let Some(entry) = self.sockets.get_mut(&inode) {
            entry.is_unanswered = true;
        }
    }

    fn begin_connect(
        &mut self,
        call: &Notification,
        inode: u64,
        data: OwnedFd,
    ) -> Result<(), Errno> {
        let bytes = self.read_address(call)?;
        let nonblocking = foreign_socket::is_nonblocking(&data);
        let nonblocking = nonblocking.map_err(|error| Errno::of(&error))?;
        let entry = self.sockets.get_mut(&inode).ok_or(Errno::EBADF)?;
        let address = match entry.socket.connect(&bytes, nonblocking)? {
            ConnectStep::Start(address) => address,
            ConnectStep::Wait => {
                let exchange = entry.attempt.ok_or(Errno::EALREADY)?;
                self.wait(*call, WaitKind::Joined { exchange });
                return Ok(());
            }
        };
        let (inode, data) = match entry.is_used_up {
            false => (inode, data),
            true => match self.renew(call, inode, nonblocking) {
                Ok(new) => new,
                Err(errno) => {
                    self.connect_ended(inode, Err(errno), true);
                    return Err(errno);
                }
            },
        };
        let started = self.start_connect(call, inode, data, address, nonblocking);
        if let Err(errno) = started {
            self.connect_ended(inode, Err(errno), true);
            return Err(errno);
        }
        Ok(())
    }

    /// Gives a socket a new Unix socket, after a non-blocking connect has failed for which the old one was
    /// connected. Only the descriptor that is used has it; duplicates and sets of epoll keep the old one.
    fn renew(
        &mut self,
        call: &Notification,
        inode: u64,
        nonblocking: bool,
    ) -> Result<(u64, OwnedFd), Errno> {
        let data = foreign_socket::create(nonblocking).map_err(|error| Errno::of(&error))?;
        let new = inode_of(&data)?;
        self.program
            .replace(call, call.args[0] as i32, data.as_fd())?;
        let mut entry = self.sockets.remove(&inode).ok_or(Errno::EBADF)?;
        let bound = self.ports.of(inode);
        self.ports.release(inode);
        self.ends.forget(entry.watch.take());
        (entry.is_used_up, entry.name) = (false, None);
        self.insert(new, entry)?;
        if let Some(address) = bound {
            self.ports.claim(new, address)?;
        }
        Ok((new, data))
    }

    fn start_connect(
        &mut self,
        call: &Notification,
        inode: u64,
        data: OwnedFd,
        address: Address,
        nonblocking: bool,
    ) -> Result<(), Errno> {
        let entry = self.sockets.get(&inode).ok_or(Errno::EBADF)?;
        let suspend = entry.socket.options().connected_suspend;
        let timeout = connect_timeout(entry.socket.connect_timeout(), address, &data);
        // The default of AF_VSOCK is short for one that waits behind others only since the supervisor does not keep up.
        let chosen = entry.socket.options().chosen_connect_timeout();
        let most = connect_timeout(chosen, address, &data).unwrap_or(DEFAULT);
        let vm = match address {
            Address::HyperV(address) => Some(address.vm),
            Address::Vsock(address) => self.own.well_known(address.cid),
        };
        if vm == Some(VmId::LOOPBACK) {
            // A listener that the program has closed accepts nothing more.
            let listeners = self.ports.at_service(address.service());
            self.remove_closed(&listeners);
        }
        let credentials = self.credentials(call)?;
        let filler = match nonblocking {
            true => FILLER.len() as u32,
            false => 0,
        };
        let mut connecting = Connecting {
            inode,
            data,
            address,
            vm,
            timeout_ms: timeout.map_or(0, milliseconds),
            messages: Vec::new(),
            is_held: false,
            until: Instant::now() + most,
            phase: Phase::Beginning { call: *call },
            attachable: None,
            deferred: Vec::new(),
        };
        let is_full = |target| self.is_backlog_full(&target);
        let must_wait = !nonblocking && connecting.target().is_some_and(is_full);
        let prepared = match must_wait {
            true => None,
            false => self
                .prepared
                .take(credentials.as_ref(), filler, Instant::now()),
        };
        let mut messages = Vec::with_capacity(4);
        if let (Address::Vsock(address), None) = (address, vm) {
            messages.push(ClientMessage::Lookup {
                kind: LookupKind::Cid,
                name: address.cid.to_string(),
            });
        }
        let passthru = matches!(address, Address::HyperV(address) if address.flags != 0);
        for (option, is_set) in [
            (SocketOption::ContainerPassthru, passthru),
            (SocketOption::ConnectedSuspend, suspend),
        ] {
            if is_set {
                let value = 1;
                messages.push(ClientMessage::SetOption { option, value });
            }
        }
        messages.push(ClientMessage::Attach { filler });
        if !nonblocking {
            // The Unix socket is connected afterwards, so both can be asked for at once.
            messages.extend(request(&connecting));
            connecting.messages.clone_from(&messages);
        }
        let wait = match nonblocking {
            true => None,
            false => Some(self.wait(*call, WaitKind::Connect { exchange: 0 })),
        };
        if let Some(wait) = wait {
            connecting.phase = Phase::Blocking { wait };
        }
        let time = timeout.unwrap_or(DEFAULT) + GRACE;
        let purpose = Purpose::Connect(connecting);
        let (started, attachable) = match prepared {
            Some(Attached {
                connection,
                attachable,
            }) => {
                let started =
                    self.start_on(connection, purpose, messages, credentials.clone(), time);
                (started, attachable)
            }
            None if must_wait => {
                let started = self.start_held(purpose, messages, credentials.clone(), time);
                (started, None)
            }
            None => {
                let started = self.start(purpose, messages, credentials.clone(), time);
                (started, None)
            }
        };
        let number = match started {
            Ok(number) => number,
            Err(error) => {
                if let Some(wait) = wait {
                    self.waits.remove(&wait);
                }
                return Err(unreachable(&error));
            }
        };
        if let Some(wait) = wait.and_then(|wait| self.waits.get_mut(&wait)) {
            wait.kind = WaitKind::Connect { exchange: number };
        }
        self.set_attempt(inode, number);
        if attachable.is_some()
            && let Some(exchange) = self.exchanges.remove(&number)
            && let Some(exchange) = self.attachable(number, exchange, attachable)
        {
            self.exchanges.insert(number, exchange);
        }
        let endpoint = &self.settings.endpoint;
        self.prepared
            .follow(endpoint, credentials, filler, Instant::now());
        Ok(())
    }

    fn set_attempt(&mut self, inode: u64, number: u64) {
        if let Some(entry) = self.sockets.get_mut(&inode) {
            entry.attempt = Some(number);
        }
    }

    /// The broker has sent a message. Returns the exchange if it goes on.
    pub(crate) fn connect_answer(
        &mut self,
        number: u64,
        mut exchange: Exchange,
        message: Message,
    ) -> Option<Exchange> {
        let (Purpose::Connect(connecting), Some(connection)) =
            (&mut exchange.purpose, &exchange.connection)
        else {
            return None;
        };
        match message.message {
            BrokerMessage::Found { guid } => {
                connecting.vm = Some(VmId::from_guid_bytes(guid));
                let can_ask = match connecting.phase {
                    Phase::Blocking { .. } => true,
                    Phase::InProgress { .. } => true,
                    Phase::Beginning { .. } => false,
                };
                if can_ask && let Some(request) = request(connecting) {
                    connection.send(&request);
                }
            }
            BrokerMessage::Attachable => {
                return self.attachable(number, exchange, message.descriptors.into_iter().next());
            }
            BrokerMessage::Connected(connected) => {
                let result = complete(connecting).map(|()| (connected.local, connected.peer));
                self.finish_connect(exchange, result);
                return None;
            }
            BrokerMessage::Refused(refused) | BrokerMessage::Reset(refused) => {
                let refusal = refusal_in(&refused);
                if matches!(refusal, Refusal::LimitReached { .. }) && begin_anew(&mut exchange) {
                    return Some(exchange);
                }
                if self.hold_refused(number, &mut exchange, &refusal) {
                    return Some(exchange);
                }
                let Purpose::Connect(connecting) = &exchange.purpose else {
                    return None;
                };
                let family = connecting.address.family();
                self.finish_connect(exchange, Err(Errno::of_connect(family, &refusal)));
                return None;
            }
            _ => {}
        }
        Some(exchange)
    }

    /// The broker has sent what the socket is connected to. A non-blocking connect begins. Returns the exchange if it
    /// goes on.
    fn attachable(
        &mut self,
        number: u64,
        mut exchange: Exchange,
        listener: Option<OwnedFd>,
    ) -> Option<Exchange> {
        let Purpose::Connect(connecting) = &mut exchange.purpose else {
            return None;
        };
        connecting.attachable = listener;
        let Phase::Beginning { call } = connecting.phase else {
            return Some(exchange);
        };
        let answered = match begin(connecting) {
            Ok(()) => self.program.try_answer(&call, Err(Errno::EINPROGRESS)),
            Err(errno) => {
                self.finish_connect(exchange, Err(errno));
                return None;
            }
        };
        if let Some(entry) = self.sockets.get_mut(&connecting.inode) {
            entry.is_used_up = true;
            entry.is_unanswered = !answered;
        }
        let (request, target) = (request(connecting), connecting.target());
        if target.is_some_and(|it| self.is_backlog_full(&it)) && self.hold(number, &mut exchange) {
            return Some(exchange);
        }
        if let (Some(connection), Some(request)) = (&exchange.connection, request) {
            connection.send(&request);
        }
        Some(exchange)
    }

    /// The result of a connect: answers the calls that wait for it.
    pub(crate) fn finish_connect(
        &mut self,
        exchange: Exchange,
        result: Result<(SockAddrHv, SockAddrHv), Errno>,
    ) {
        let Purpose::Connect(connecting) = exchange.purpose else {
            return;
        };
        let Connecting { inode, address, .. } = connecting;
        if let (Ok(_), Some(target)) = (&result, connecting.target()) {
            self.admitted(&target);
        }
        let result = result.map(|(local, peer)| {
            let family = address.family();
            let port = match self.sockets.get(&inode).and_then(|it| it.socket.local()) {
                Some(Address::Vsock(SockAddrVm { port, .. })) => port,
                _ => self.ports.ephemeral(),
            };
            let local = local_of(family, local, self.own, port);
            let peer = match family {
                Family::Vsock => address,
                Family::HyperV => Address::HyperV(peer),
            };
            (local, peer)
        });
        let errno = result.as_ref().err().copied();
        let answer = errno.map_or(Ok(0), Err);
        let is_awaited = !matches!(connecting.phase, Phase::InProgress { .. });
        self.connect_ended(inode, result, is_awaited);
        match connecting.phase {
            Phase::Blocking { wait } => {
                if let Some(wait) = self.waits.remove(&wait)
                    && !self.program.try_answer(&wait.call, answer)
                    && answer.is_ok()
                {
                    self.set_unanswered(inode);
                }
            }
            Phase::Beginning { call } => {
                // It was refused before it began.
                let answer = answer.and(Err(Errno::EINPROGRESS));
                self.program.answer(&call, answer);
            }
            // One that was refused becomes ready by the hang-up, which the broker causes, and not before.
            Phase::InProgress { send_buffer } if answer.is_ok() => {
                let _ = foreign_socket::restore_send_buffer(&connecting.data, send_buffer);
            }
            Phase::InProgress { .. } => {}
        }
        self.again.extend(connecting.deferred);
    }

    /// Changes the state of the socket, and answers calls that joined the connect.
    fn connect_ended(
        &mut self,
        inode: u64,
        result: Result<(Address, Address), Errno>,
        is_awaited: bool,
    ) {
        let Some(entry) = self.sockets.get_mut(&inode) else {
            return;
        };
        let attempt = entry.attempt.take();
        let joined = self.waits.iter().find_map(|(number, wait)| {
            let same =
                matches!(wait.kind, WaitKind::Joined { exchange } if Some(exchange) == attempt);
            same.then_some(*number)
        });
        let is_awaited = is_awaited || joined.is_some();
        let answer = match result {
            Ok((local, peer)) => {
                entry.socket.connected(local, peer);
                Ok(0)
            }
            Err(errno) => {
                entry.socket.connect_failed(errno, is_awaited);
                Err(errno)
            }
        };
        let joined = |wait: &WaitKind| matches!(wait, WaitKind::Joined { exchange } if Some(*exchange) == attempt);
        let numbers: Vec<u64> = self
            .waits
            .iter()
            .filter(|(_, wait)| joined(&wait.kind))
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            if let Some(wait) = self.waits.remove(&number) {
                self.program.answer(&wait.call, answer);
            }
        }
    }

    /// A signal ends a blocking connect, unless another call waits for it, too, such as the same one that has
    /// started again.
    pub(crate) fn cancel_connect(&mut self, number: u64) {
        let joined =
            |wait: &WaitKind| matches!(wait, WaitKind::Joined { exchange } if *exchange == number);
        let mut others = self.waits.iter_mut().filter(|(_, wait)| joined(&wait.kind));
        if let Some((other, wait)) = others.next()
            && let Some(exchange) = self.exchanges.get_mut(&number)
            && let Purpose::Connect(connecting) = &mut exchange.purpose
        {
            wait.kind = WaitKind::Connect { exchange: number };
            connecting.phase = Phase::Blocking { wait: *other };
            return;
        }
        let Some(exchange) = self.exchanges.remove(&number) else {
            return;
        };
        let Purpose::Connect(connecting) = exchange.purpose else {
            return;
        };
        if let Some(entry) = self.sockets.get_mut(&connecting.inode) {
            entry.attempt = None;
            entry.socket.connect_cancelled();
        }
        self.again.extend(connecting.deferred);
    }

    /// Whether a connect in progress has its result, which the broker is about to tell: the program may have seen
    /// the socket become writable or hang up, so a call on it waits for the rest.
    pub(crate) fn defer_until_settled(&mut self, call: &Notification, inode: u64) -> bool {
        let attempt = self.sockets.get(&inode).and_then(|entry| entry.attempt);
        let exchange = attempt.and_then(|number| self.exchanges.get_mut(&number));
        let Some(Purpose::Connect(connecting)) = exchange.map(|it| &mut it.purpose) else {
            return false;
        };
        let is_in_progress = matches!(connecting.phase, Phase::InProgress { .. });
        if is_in_progress && foreign_socket::is_writable(&connecting.data).unwrap_or(false) {
            connecting.deferred.push(*call);
            return true;
        }
        false
    }
}

/// Has an exchange begin anew whose connection was prepared, and was closed before the broker had the request.
/// Returns whether it does: not if the program's socket is connected by now.
pub(crate) fn begin_anew(exchange: &mut Exchange) -> bool {
    let Purpose::Connect(connecting) = &mut exchange.purpose else {
        return false;
    };
    if matches!(connecting.phase, Phase::InProgress { .. }) {
        return false;
    }
    let Some(messages) = exchange.again.take() else {
        return false;
    };
    connecting.attachable = None;
    exchange.connection = None;
    exchange.outbox = messages;
    exchange.retry_at = Some(Instant::now());
    true
}

/// The request for the connection, once the partition is known.
pub(crate) fn request(connecting: &Connecting) -> Option<ClientMessage> {
    Some(ClientMessage::Connect(Connect {
        flags: Flags {
            raw_fd: true,
            ..Flags::default()
        },
        timeout_ms: connecting.timeout_ms,
        transports: Transports::ATTACHED,
        address: SockAddrHv::new(connecting.vm?, connecting.address.service()),
    }))
}

/// Non-blocking: connects the Unix socket, so that it is not writable.
fn begin(connecting: &mut Connecting) -> Result<(), Errno> {
    let attachable = connecting.attachable.take().ok_or(Errno::ECONNRESET)?;
    let filled =
        foreign_socket::connect_filled(connecting.data.as_fd(), attachable.as_fd(), &FILLER);
    let send_buffer = filled.map_err(|error| of_attach(&error))?;
    connecting.phase = Phase::InProgress { send_buffer };
    Ok(())
}

/// The broker has established the connection. Blocking: connects the Unix socket to it.
fn complete(connecting: &Connecting) -> Result<(), Errno> {
    let Phase::Blocking { .. } = connecting.phase else {
        return Ok(());
    };
    // It is closed once the program has its answer.
    let attachable = connecting.attachable.as_ref().ok_or(Errno::ECONNRESET)?;
    let connected = foreign_socket::connect(connecting.data.as_fd(), attachable.as_fd());
    connected.map_err(|error| of_attach(&error))
}

/// What a connect fails with if the program's socket cannot be connected to the broker's.
fn of_attach(error: &std::io::Error) -> Errno {
    match Errno::of(error) {
        // The peer has ended the connection meanwhile.
        Errno::ECONNREFUSED => Errno::ECONNRESET,
        errno => errno,
    }
}

/// How long a connect may take. `AF_HYPERV` also has the send timeout of the socket; the kernel's `AF_VSOCK` has not.
fn connect_timeout(option: Option<Duration>, address: Address, data: &OwnedFd) -> Option<Duration> {
    let of_socket = match address.family() {
        Family::Vsock => None,
        Family::HyperV => foreign_socket::send_timeout(data).ok().flatten(),
    };
    match (option, of_socket) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// In milliseconds, rounded up, since 0 is the broker's default.
fn milliseconds(timeout: Duration) -> u32 {
    let ms = timeout.as_micros().div_ceil(1000);
    u32::try_from(ms)
        .unwrap_or(u32::MAX)
        .clamp(1, MAX_TIMEOUT_MS)
}

/// What a connect fails with that the broker does not answer.
pub(crate) fn no_answer(family: Family) -> Errno {
    match family {
        Family::Vsock => Errno::ECONNRESET,
        Family::HyperV => {
            let ended = Refusal::Reset {
                cause: String::new(),
            };
            Errno::of_connect(family, &ended)
        }
    }
}
