//! `bind`: the address is claimed among the program's sockets, and the broker is asked whether it is free.

use std::time::{Duration, Instant};

use hvsock::Refusal;
use hvsock_address::{SockAddrHv, SockAddrVm};
use hvsock_endpoint::{BrokerMessage, ClientMessage, Flags, Listen, Transports};
use hvsock_sys::foreign_socket::Name;
use hvsock_sys::remote;
use hvsock_sys::seccomp::Notification;

use super::core::{Core, refusal_in};
use super::exchange::{Binding, Exchange, Purpose};
use crate::broker::Message;
use crate::model::{Address, Errno, listen_target, narrower_target};

/// `CAP_NET_BIND_SERVICE` of linux/capability.h.
const CAP_NET_BIND_SERVICE: u8 = 10;

/// How long the broker may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long an address may be in use after the program has closed the socket that had it. The broker learns of
/// that by another connection, and may do so after it has judged the new socket.
const CLOSING: Duration = Duration::from_millis(200);
/// How often it is asked meanwhile.
const CLOSING_RETRY: Duration = Duration::from_millis(2);

impl Core {
    /// Answers `bind`.
    pub(crate) fn bind(&mut self, call: &Notification, inode: u64) {
        match self.begin_bind(call, inode) {
            Ok(true) => {}
            Ok(false) => self.program.answer(call, Ok(0)),
            Err(errno) => self.program.answer(call, Err(errno)),
        }
    }

    /// Returns whether the broker is asked, which answers the call.
    fn begin_bind(&mut self, call: &Notification, inode: u64) -> Result<bool, Errno> {
        let bytes = self.read_address(call)?;
        let entry = self.sockets.get(&inode).ok_or(Errno::EBADF)?;
        let privileged =
            || remote::has_capability(call.thread, CAP_NET_BIND_SERVICE).unwrap_or(false);
        let wanted = entry.socket.bind(&bytes, self.own, privileged)?;
        let data = self.program.duplicate(call, inode)?;
        let address = self.claim(inode, wanted)?;
        let is_ephemeral = matches!(wanted, Address::Vsock(it) if it.port == SockAddrVm::PORT_ANY);
        let target = listen_target(address, self.own);
        let binding = Binding {
            call: *call,
            inode,
            data,
            address,
            target,
            since: Instant::now(),
        };
        if !is_ephemeral {
            let credentials = self.credentials(call)?;
            let purpose = Purpose::Bind(binding);
            // Without a broker the address is free, and listening fails.
            return match self.start(purpose, vec![request(target)], credentials, TIMEOUT) {
                Ok(_) => Ok(true),
                Err(_) => self.finish_bind(inode, call, address).map(|()| false),
            };
        }
        self.name_socket(inode, &binding)?;
        Ok(false)
    }

    /// Claims an address, after those sockets that have it were checked.
    ///
    /// # Errors
    ///
    /// As [`Ports::claim`](crate::model::Ports::claim); `ENOBUFS` if too many sockets have one.
    pub(crate) fn claim(&mut self, inode: u64, address: Address) -> Result<Address, Errno> {
        if self.ports.count() >= self.max_bound {
            return Err(Errno::ENOBUFS);
        }
        let conflicts = self.ports.conflicts(&address);
        self.remove_closed(&conflicts);
        self.ports.claim(inode, address)
    }

    fn finish_bind(
        &mut self,
        inode: u64,
        call: &Notification,
        address: Address,
    ) -> Result<(), Errno> {
        let data = self.program.duplicate(call, inode)?;
        let name = Name::bind(&data).map_err(|error| Errno::of(&error));
        self.set_name(inode, address, name)
    }

    fn name_socket(&mut self, inode: u64, binding: &Binding) -> Result<(), Errno> {
        let name = Name::bind(&binding.data).map_err(|error| Errno::of(&error));
        self.set_name(inode, binding.address, name)
    }

    fn set_name(
        &mut self,
        inode: u64,
        address: Address,
        name: Result<Name, Errno>,
    ) -> Result<(), Errno> {
        match name {
            Ok(name) => {
                self.named(inode, name)?;
                let entry = self.sockets.get_mut(&inode).ok_or(Errno::EBADF)?;
                entry.socket.bound(address);
                Ok(())
            }
            Err(errno) => {
                self.ports.release(inode);
                Err(errno)
            }
        }
    }

    /// Whether an address may be in use only because the broker has not noticed yet that it is free. `since` is
    /// when it was first asked.
    pub(crate) fn may_be_closing(&self, since: Instant) -> bool {
        let closed = self.listener_closed;
        closed.is_some_and(|closed| closed + CLOSING > since) && since.elapsed() < CLOSING
    }

    /// Asks once more, soon.
    pub(crate) fn ask_again(&mut self, mut exchange: Exchange, request: ClientMessage) -> Exchange {
        exchange.connection = None;
        exchange.outbox = vec![request];
        exchange.retry_at = Some(Instant::now() + CLOSING_RETRY);
        exchange
    }

    /// The broker has answered. Returns the exchange if it goes on.
    pub(crate) fn bind_answer(
        &mut self,
        mut exchange: Exchange,
        message: &Message,
    ) -> Option<Exchange> {
        let Purpose::Bind(binding) = &mut exchange.purpose else {
            return None;
        };
        let refusal = match &message.message {
            BrokerMessage::Explained(refused) | BrokerMessage::Refused(refused) => {
                (refused.code != 0).then(|| refusal_in(refused))
            }
            _ => None,
        };
        let narrower = refusal.as_ref().and_then(|refusal| {
            narrower_target(binding.address, self.own, binding.target, refusal)
        });
        if let Some(target) = narrower {
            // There `listen` would ask next.
            binding.target = target;
            return Some(self.ask_again(exchange, request(target)));
        }
        let in_use = refusal == Some(Refusal::AddressInUse);
        let (target, since) = (binding.target, binding.since);
        if in_use && self.may_be_closing(since) {
            return Some(self.ask_again(exchange, request(target)));
        }
        self.end_bind(binding, in_use);
        None
    }

    /// Answers the call. Without an answer of the broker the address counts as free.
    pub(crate) fn end_bind(&mut self, binding: &Binding, in_use: bool) {
        let done = match in_use {
            true => {
                self.ports.release(binding.inode);
                Err(Errno::EADDRINUSE)
            }
            false => self.name_socket(binding.inode, binding),
        };
        self.program.answer(&binding.call, done.map(|()| 0));
    }
}

/// Asks what a listener would get.
fn request(target: SockAddrHv) -> ClientMessage {
    ClientMessage::Listen(Listen {
        flags: Flags {
            dry_run: true,
            ..Flags::default()
        },
        backlog: 1,
        transports: Transports::DESCRIPTOR,
        address: target,
    })
}
