//! `listen`: a listener of the broker, and the Unix socket's queue in front of it.

use std::collections::VecDeque;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use hvsock::Refusal;
use hvsock_address::ServiceId;
use hvsock_endpoint::{
    BrokerMessage, ClientMessage, Flags, Listen, Register, SocketOption, Transports,
};
use hvsock_sys::foreign_socket::{self, Name};
use hvsock_sys::remote::Credentials;
use hvsock_sys::seccomp::Notification;

use super::core::{Core, refusal_in, unreachable};
use super::exchange::{Exchange, Opening, Purpose, Registering};
use super::settings::Event;
use super::table::Listening;
use crate::broker::{Connection, Message};
use crate::model::{Errno, ListenStep, listen_target, narrower_target};

/// How long the broker may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long until a listener that has ended is opened again.
const REOPEN: Duration = Duration::from_millis(500);
/// The most connections that the broker lets wait.
const MAX_BACKLOG: u32 = 4096;

impl Core {
    /// Answers `listen`.
    pub(crate) fn listen(&mut self, call: &Notification, inode: u64) {
        match self.begin_listen(call, inode) {
            Ok(true) => {}
            Ok(false) => self.program.answer(call, Ok(0)),
            Err(errno) => self.program.answer(call, Err(errno)),
        }
    }

    /// Returns whether the broker is asked, which answers the call.
    fn begin_listen(&mut self, call: &Notification, inode: u64) -> Result<bool, Errno> {
        let entry = self.sockets.get(&inode).ok_or(Errno::EBADF)?;
        let address = match entry.socket.listen()? {
            ListenStep::Again => return Ok(false),
            ListenStep::Start(address) => address,
        };
        let has_name = entry.name.is_some();
        let data = self.program.duplicate(call, inode)?;
        if self.ports.of(inode).is_none() {
            // A connect that failed has bound it.
            self.claim(inode, address)?;
        }
        if !has_name {
            let name = Name::bind(&data).map_err(|error| Errno::of(&error))?;
            self.named(inode, name)?;
        }
        // As in the kernel, a negative number is a large one, and one more than the backlog may wait.
        let backlog = (call.args[1] as u32).saturating_add(1).min(MAX_BACKLOG);
        let opening = Opening {
            call: Some(*call),
            inode,
            data: Some(data),
            address,
            target: listen_target(address, self.own),
            backlog,
            since: Instant::now(),
            refused: None,
        };
        let (request, credentials) = (request(&opening), self.credentials(call)?);
        let purpose = Purpose::Listen(opening);
        let started = self.start(purpose, vec![request], credentials, TIMEOUT);
        started.map(|_| true).map_err(|error| unreachable(&error))
    }

    /// The broker has answered. Returns the exchange if it goes on.
    pub(crate) fn listen_answer(
        &mut self,
        number: u64,
        mut exchange: Exchange,
        message: Message,
    ) -> Option<Exchange> {
        let Purpose::Listen(opening) = &mut exchange.purpose else {
            return None;
        };
        let refusal = match message.message {
            BrokerMessage::Listening(_) => {
                let connection = exchange.connection.take()?;
                if let Purpose::Listen(opening) = exchange.purpose {
                    self.opened(number, opening, connection, exchange.credentials);
                }
                return None;
            }
            BrokerMessage::Refused(refused) | BrokerMessage::Reset(refused) => refusal_in(&refused),
            _ => Refusal::Reset {
                cause: String::new(),
            },
        };
        if refusal == Refusal::AddressInUse && self.may_be_closing(opening.since) {
            let request = request(opening);
            return Some(self.ask_again(exchange, request));
        }
        if refusal == Refusal::Unregistered && !self.settings.register.is_empty() {
            return self.register(exchange);
        }
        if let Some(target) = narrower_target(opening.address, self.own, opening.target, &refusal) {
            opening.refused.get_or_insert(refusal);
            opening.target = target;
            let request = request(opening);
            return Some(self.ask_again(exchange, request));
        }
        self.listen_failed(exchange, Errno::of_listen(&refusal))
    }

    /// The broker does not listen. A program that listens already tries for ever.
    pub(crate) fn listen_failed(
        &mut self,
        mut exchange: Exchange,
        errno: Errno,
    ) -> Option<Exchange> {
        let (Purpose::Listen(opening) | Purpose::Register(Registering { opening, .. })) =
            &mut exchange.purpose
        else {
            return None;
        };
        match opening.call {
            Some(call) => {
                self.program.answer(&call, Err(errno));
                None
            }
            None => {
                let now = Instant::now();
                opening.target = listen_target(opening.address, self.own);
                exchange.outbox = vec![request(opening)];
                exchange.connection = None;
                exchange.retry_at = Some(now + REOPEN);
                exchange.deadline = now + REOPEN + TIMEOUT;
                self.sockets
                    .contains_key(&opening.inode)
                    .then_some(exchange)
            }
        }
    }

    /// The broker listens.
    fn opened(
        &mut self,
        number: u64,
        opening: Opening,
        connection: Connection,
        credentials: Option<Credentials>,
    ) {
        let Some(entry) = self.sockets.get_mut(&opening.inode) else {
            if let Some(call) = opening.call {
                self.program.answer(&call, Err(Errno::EBADF));
            }
            return;
        };
        if let Some(data) = &opening.data
            && let Err(error) = foreign_socket::listen(data.as_fd())
        {
            if let Some(call) = opening.call {
                self.program.answer(&call, Err(Errno::of(&error)));
            }
            return;
        }
        entry.socket.listening();
        if entry.socket.options().connected_suspend {
            connection.send(&connected_suspend(true));
        }
        match &mut entry.listening {
            Some(listening) => {
                self.listeners.remove(&listening.number);
                (listening.connection, listening.number) = (connection, number);
                listening.is_watched = true;
            }
            None => {
                entry.listening = Some(Listening {
                    connection,
                    credentials,
                    backlog: opening.backlog,
                    unaccepted: 0,
                    last_arrival: Instant::now(),
                    number,
                    is_watched: true,
                    incoming: VecDeque::new(),
                    tokens: 0,
                    calls: VecDeque::new(),
                });
            }
        }
        self.listeners.insert(number, opening.inode);
        if let Some(call) = opening.call {
            self.program.answer(&call, Ok(0));
        }
        if let Some(refusal) = opening.refused {
            self.report(Event::Restricted {
                address: opening.address,
                target: listen_target(opening.address, self.own),
                accepts_from: opening.target.vm,
                refusal,
            });
        }
    }

    /// Registers the service of a listen that was refused for want of a registration.
    fn register(&mut self, mut exchange: Exchange) -> Option<Exchange> {
        let name = self.settings.register.pop_front()?;
        let Purpose::Listen(opening) = exchange.purpose else {
            return None;
        };
        let service: ServiceId = opening.address.service();
        exchange.connection = None;
        exchange.outbox = vec![ClientMessage::Register(Register {
            service,
            name: name.to_string(),
            purpose: String::new(),
        })];
        exchange.retry_at = Some(Instant::now());
        exchange.deadline = Instant::now() + TIMEOUT;
        exchange.purpose = Purpose::Register(Registering { name, opening });
        Some(exchange)
    }

    /// The broker has answered to a registration: the listen goes on, with or without it.
    pub(crate) fn register_answer(
        &mut self,
        mut exchange: Exchange,
        message: Message,
    ) -> Option<Exchange> {
        let Purpose::Register(Registering { name, mut opening }) = exchange.purpose else {
            return None;
        };
        match message.message {
            BrokerMessage::Registered => {
                self.leases.extend(exchange.connection.take());
                let address = opening.address;
                self.report(Event::Registered { name, address });
            }
            BrokerMessage::Refused(refused) => {
                let reason = refusal_in(&refused).to_string();
                self.report(Event::NotRegistered { name, reason });
            }
            _ => {}
        }
        opening.since = Instant::now();
        let request = request(&opening);
        exchange.purpose = Purpose::Listen(opening);
        exchange.deadline = Instant::now() + TIMEOUT;
        Some(self.ask_again(exchange, request))
    }

    /// A listener has ended. The program's socket stays, and the broker is asked again until it listens, by the rights
    /// of the thread that called `listen`: what this process may do itself is not the program's.
    pub(crate) fn listener_ended(&mut self, inode: u64, refusal: Option<Refusal>) {
        let Some(entry) = self.sockets.get_mut(&inode) else {
            return;
        };
        let (Some(listening), Some(address)) = (&entry.listening, entry.socket.local()) else {
            return;
        };
        self.listeners.remove(&listening.number);
        let _ = self.set.remove(&listening.connection);
        if entry.is_closed() {
            return self.remove(inode);
        }
        let opening = Opening {
            call: None,
            inode,
            data: None,
            address,
            target: listen_target(address, self.own),
            backlog: listening.backlog,
            since: Instant::now(),
            refused: None,
        };
        let credentials = listening.credentials.clone();
        let (now, number) = (Instant::now(), self.number());
        let exchange = Exchange {
            connection: None,
            outbox: vec![request(&opening)],
            again: None,
            credentials,
            deadline: now + REOPEN + TIMEOUT,
            retry_at: Some(now + REOPEN),
            purpose: Purpose::Listen(opening),
        };
        self.exchanges.insert(number, exchange);
        self.report(Event::ListenerEnded { address, refusal });
    }
}

/// Says whether connections of a listener are kept while a partition is paused.
pub(crate) fn connected_suspend(is_set: bool) -> ClientMessage {
    ClientMessage::SetOption {
        option: SocketOption::ConnectedSuspend,
        value: is_set.into(),
    }
}

/// The request for a listener. Its connections' data is used as it is, and their ends are full closes.
fn request(opening: &Opening) -> ClientMessage {
    ClientMessage::Listen(Listen {
        flags: Flags {
            raw_fd: true,
            ..Flags::default()
        },
        backlog: opening.backlog,
        transports: Transports::DESCRIPTOR | Transports::DIRECT,
        address: opening.target,
    })
}
