//! Holds connects while the backlog of their listener is full, and tries them again.

use std::time::{Duration, Instant};

use hvsock::{Refusal, SockAddrHv};
use hvsock_address::VmId;

use super::connects::{GRACE, request};
use super::core::Core;
use super::exchange::{Connecting, Exchange, Phase, Purpose};
use super::table::Listening;
use crate::model::Errno;

/// How long after the last connection none is on its way from the broker to its listener.
const QUIET: Duration = Duration::from_secs(2);

impl Connecting {
    /// What is connected to; `None` until the partition is known.
    pub(crate) fn target(&self) -> Option<SockAddrHv> {
        Some(SockAddrHv::new(self.vm?, self.address.service()))
    }
}

impl Core {
    /// Whether a connect to this target is to be held: behind others, or since programs of this supervisor have filled
    /// the backlog of its listener.
    pub(crate) fn is_backlog_full(&mut self, target: &SockAddrHv) -> bool {
        if self.backlogs.has_held(target) {
            return true;
        }
        self.free(target) == Some(0)
    }

    /// How many connections more the backlog of a listener of this supervisor can have, as far as is known. `None`: it is
    /// of others.
    fn free(&mut self, target: &SockAddrHv) -> Option<usize> {
        let listening = self.own_listener(target)?;
        // Others have withdrawn theirs, or were accepted before this was told.
        if listening.incoming.is_empty() && listening.last_arrival.elapsed() >= QUIET {
            listening.unaccepted = 0;
        }
        let unaccepted = usize::try_from(listening.unaccepted).unwrap_or(0);
        let free = (listening.backlog as usize).saturating_sub(unaccepted);
        if free == 0 || self.exchanges.len() < free {
            return Some(free);
        }
        let is_asked = |exchange: &&Exchange| match &exchange.purpose {
            Purpose::Connect(other) => !other.is_held && other.target().as_ref() == Some(target),
            _ => false,
        };
        let asked = self.exchanges.values().filter(is_asked).count();
        Some(free.saturating_sub(asked))
    }

    /// Holds a connect whose request has to wait. Returns whether it is held.
    pub(crate) fn hold(&mut self, number: u64, exchange: &mut Exchange) -> bool {
        let Purpose::Connect(connecting) = &mut exchange.purpose else {
            return false;
        };
        let Some(target) = connecting.target() else {
            return false;
        };
        connecting.is_held = self.backlogs.hold(target, number, Instant::now());
        if connecting.is_held {
            exchange.deadline = connecting.until;
        }
        connecting.is_held
    }

    /// Holds a blocking connect that the broker has refused for want of space. Returns whether it is held.
    pub(crate) fn hold_refused(
        &mut self,
        number: u64,
        exchange: &mut Exchange,
        refusal: &Refusal,
    ) -> bool {
        let Purpose::Connect(connecting) = &exchange.purpose else {
            return false;
        };
        // The Unix socket of another one has hung up.
        let is_blocking = matches!(connecting.phase, Phase::Blocking { .. });
        if *refusal != Refusal::BacklogFull || !is_blocking || !self.hold(number, exchange) {
            return false;
        }
        if let Purpose::Connect(connecting) = &mut exchange.purpose {
            connecting.attachable = None;
            exchange.outbox.clone_from(&connecting.messages);
        }
        (exchange.connection, exchange.again) = (None, None);
        true
    }

    /// The listener has admitted a connect.
    pub(crate) fn admitted(&mut self, target: &SockAddrHv) {
        self.backlogs.admitted(target, Instant::now());
        if let Some(listening) = self.own_listener(target) {
            listening.unaccepted = (listening.unaccepted + 1).min(listening.backlog.into());
        }
    }

    /// The program has accepted a connection of a listening socket.
    pub(crate) fn accepted(&mut self, inode: u64) {
        // Connections of others are not counted when they come.
        let least = i64::try_from(self.exchanges.len()).map_or(0, |count| -count);
        let Some(entry) = self.sockets.get_mut(&inode) else {
            return;
        };
        if let Some(listening) = &mut entry.listening {
            listening.unaccepted = (listening.unaccepted - 1).max(least);
        }
        if let Some(address) = entry.socket.local() {
            self.backlogs.accepted(address.service(), Instant::now());
        }
    }

    /// Tries connects again whose time has come, and refuses those to programs that accept nothing.
    pub(crate) fn check_held(&mut self, now: Instant) {
        if self.backlogs.next().is_none_or(|next| next > now) {
            return;
        }
        for number in self.backlogs.take_refused(now) {
            let exchange = self.exchanges.remove(&number);
            if let Some(exchange) = exchange
                && let Purpose::Connect(connecting) = &exchange.purpose
            {
                let family = connecting.address.family();
                let errno = Errno::of_connect(family, &Refusal::BacklogFull);
                self.finish_connect(exchange, Err(errno));
            }
        }
        for target in self.backlogs.take_due(now) {
            let free = self.free(&target);
            for number in self.backlogs.release(&target, free) {
                self.try_again(number, now);
            }
        }
    }

    fn try_again(&mut self, number: u64, now: Instant) {
        let Some(exchange) = self.exchanges.get_mut(&number) else {
            return;
        };
        let Purpose::Connect(connecting) = &mut exchange.purpose else {
            return;
        };
        connecting.is_held = false;
        exchange.deadline = connecting.until.max(now) + GRACE;
        match (&exchange.connection, request(connecting)) {
            (Some(connection), Some(request)) => connection.send(&request),
            _ => exchange.retry_at = Some(now),
        }
    }

    /// The listener of this supervisor's programs for a target, if it is one of the own partition.
    fn own_listener(&mut self, target: &SockAddrHv) -> Option<&mut Listening> {
        if target.vm != VmId::LOOPBACK {
            return None;
        }
        if self.listeners.is_empty() {
            return None;
        }
        let inodes = self.ports.at_service(target.service);
        let listens = |inode: &u64| {
            let entry = self.sockets.get(inode);
            entry.is_some_and(|entry| entry.listening.is_some())
        };
        let inode = inodes.into_iter().find(listens)?;
        self.sockets.get_mut(&inode)?.listening.as_mut()
    }
}
