//! Passes listeners their connections, and has connects wait until processes read what they were sent.

use std::os::fd::AsFd;
use std::time::Instant;

use hvsock_endpoint::{BrokerMessage, Connect, Incoming, Transport};
use hvsock_fabric::{ListenerId, PartitionKey, Refusal, Route};
use hvsock_sys::message;

use super::in_flight::MessageKind;
use super::labels::partition_label;
use super::limits::in_flight_limit;
use super::offers::Offer;
use super::pending::ParkedConnect;
use super::session_io::{is_disconnected, is_gone};
use super::sessions::Session;
use super::share_refusals::in_flight_share;
use super::state::Core;
use crate::budget::{Charge, Owner};
use crate::callers::Caller;
use crate::data_path::ProcessSocket;

/// Most connections in the socket of one listener, even if its process confirms what it has not read.
const MAX_UNREAD: u64 = 8;

/// Why a connection cannot be established now.
pub(super) enum NotNow {
    Refused(Refusal),
    /// Processes of this owner leave too many messages unread. If that lasts, it is a refusal.
    Unread(Owner, Refusal),
}

/// What happens to an offer.
#[derive(Debug)]
pub(super) enum Placement {
    /// It is passed at once, with this charge for the message.
    Pass(Charge),
    /// It is held until the listener's process has read the one before it.
    Hold,
}

impl From<Refusal> for NotNow {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl NotNow {
    /// The refusal for a requester that cannot wait.
    pub(super) fn into_refusal(self) -> Refusal {
        match self {
            Self::Refused(refusal) | Self::Unread(_, refusal) => refusal,
        }
    }
}

impl Core {
    /// Charges a process for the reply with descriptors that it is going to get.
    pub(super) fn reserve_reply(
        &mut self,
        partition: PartitionKey,
        caller: Caller,
    ) -> Result<Charge, NotNow> {
        let owner = self.owner(partition, caller);
        let reserved = self.in_flight.reserve(owner, MessageKind::Reply);
        reserved.map_err(|shortage| {
            let refusal = in_flight_share(&self.fabric, partition, true, shortage);
            NotNow::Unread(owner, refusal)
        })
    }

    /// Decides where the next offer to a listener goes. `from` is the partition that connects.
    pub(super) fn place_offer(
        &mut self,
        listener: ListenerId,
        from: PartitionKey,
        kind: MessageKind,
    ) -> Result<Placement, NotNow> {
        let record = self.listeners.get(listener).ok_or(Refusal::NoListener)?;
        let (partition, caller, backlog) = (record.partition, record.caller, record.backlog);
        let session = record.session.and_then(|index| self.sessions.get(index));
        let socket = &session.ok_or(Refusal::NoListener)?.socket;
        let held = self.offers.held(listener);
        if held > 0 {
            return self.hold_behind(listener, backlog).map_err(Into::into);
        }
        let owner = Owner::of(self.broker_uid, self.fabric.root(), partition, caller.uid);
        if self.offers.passed(listener) >= self.in_flight.window(owner)
            || socket.in_flight() >= MAX_UNREAD
        {
            if message::has_unread(socket) {
                return Ok(Placement::Hold);
            }
            socket.settle();
            self.offers.all_read(listener);
        }
        match self.in_flight.reserve(owner, kind) {
            Ok(charge) => Ok(Placement::Pass(charge)),
            Err(_) if socket.in_flight() > 0 => Ok(Placement::Hold),
            Err(shortage) => {
                let of_own = from == partition;
                let refusal = in_flight_share(&self.fabric, from, of_own, shortage);
                Err(NotNow::Unread(owner, refusal))
            }
        }
    }

    /// Checks that one more offer may be held. Those whose connections have ended make room.
    fn hold_behind(&mut self, listener: ListenerId, backlog: u32) -> Result<Placement, Refusal> {
        let is_full = |held: usize| u32::try_from(held).is_ok_and(|held| held >= backlog);
        if is_full(self.offers.held(listener)) {
            let fabric = &self.fabric;
            self.offers.retain(listener, |connection| {
                fabric.connection(connection).is_some()
            });
        }
        match is_full(self.offers.held(listener)) {
            true => Err(Refusal::BacklogFull),
            false => Ok(Placement::Hold),
        }
    }

    /// The message that offers a connection from `from` to a listener.
    pub(super) fn incoming(
        &self,
        route: &Route,
        transport: Transport,
        from: PartitionKey,
        caller: Caller,
    ) -> Result<Vec<u8>, Refusal> {
        let listener = self.listener_of(route).ok_or(Refusal::NoListener)?;
        // A container may have its own PID and user namespaces, even for its own processes.
        let same_numbers = listener.partition == self.fabric.root();
        let caller = match same_numbers {
            true => caller,
            false => Caller::UNKNOWN,
        };
        let incoming = BrokerMessage::Incoming(Incoming {
            transport,
            connection: route.connection.as_u64(),
            local: listener.address,
            peer: route.client,
            pid: caller.pid,
            uid: caller.uid,
            gid: caller.gid,
            partition: partition_label(&self.fabric, from),
        });
        let mut bytes = Vec::with_capacity(128);
        incoming.encode(&mut bytes);
        Ok(bytes)
    }

    /// Passes an offer to a listener's process if its placement says so. Returns whether it has been
    /// passed; otherwise [`hold_offer`](Self::hold_offer) must follow.
    pub(super) fn pass_offer(
        &mut self,
        listener: ListenerId,
        offer: &Offer,
        placement: Placement,
    ) -> Result<bool, Refusal> {
        let Placement::Pass(charge) = placement else {
            return Ok(false);
        };
        let index = self
            .listeners
            .get(listener)
            .and_then(|record| record.session);
        let session = index.and_then(|index| self.sessions.get(index));
        let socket = &session.ok_or(Refusal::NoListener)?.socket;
        match send(socket, offer) {
            Ok(()) => {
                self.in_flight.sent(socket, charge);
                self.offers.pass(listener, offer.connection);
                Ok(true)
            }
            // Its buffer is full of other messages.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                self.in_flight.sent(socket, charge);
                Ok(false)
            }
            Err(error) if is_disconnected(&error) => Err(Refusal::NoListener),
            Err(error) => Err(in_flight_limit(&error)),
        }
    }

    /// Holds an offer until the listener's process has read the one before it.
    pub(super) fn hold_offer(&mut self, listener: ListenerId, offer: Offer) {
        let index = self
            .listeners
            .get(listener)
            .and_then(|record| record.session);
        let session = index.and_then(|index| self.sessions.get(index));
        let (Some(index), Some(session)) = (index, session) else {
            return;
        };
        session.socket.keep_in_flight(true);
        let is_first = self.offers.held(listener) == 0;
        self.offers.hold(listener, offer);
        if is_first {
            // An error means that the process's next message is what wakes the broker.
            let _ = self.session_io.watch_reading(&session.socket, index, true);
        }
    }

    /// Passes on what listeners of a broker that was taken over can receive.
    pub(super) fn pass_held(&mut self) {
        for listener in self.offers.listeners() {
            self.watch_held(listener);
            self.pass_offers(listener);
        }
    }

    /// Has a listener's process report that it has read what was passed to it, since more is held.
    fn watch_held(&self, listener: ListenerId) {
        let index = self
            .listeners
            .get(listener)
            .and_then(|record| record.session);
        if let Some(index) = index
            && let Some(session) = self.sessions.get(index)
        {
            session.socket.keep_in_flight(true);
            let _ = self.session_io.watch_reading(&session.socket, index, true);
        }
    }

    /// Passes a listener the offers that it is ready for.
    pub(super) fn pass_offers(&mut self, listener: ListenerId) {
        if self.offers.held(listener) == 0 {
            return;
        }
        let Some(record) = self.listeners.get(listener) else {
            return;
        };
        let (partition, caller, index) = (record.partition, record.caller, record.session);
        let owner = self.owner(partition, caller);
        let session = index.and_then(|index| self.sessions.get(index));
        let (Some(index), Some(session)) = (index, session) else {
            return;
        };
        let socket = &session.socket;
        loop {
            // The charge for a message that was read pays for the next one, so an owner whose other
            // listeners read nothing does not stop this one.
            let kept = socket.take_in_flight();
            if kept.is_some() || !message::has_unread(socket) {
                self.offers.all_read(listener);
            } else if self.offers.passed(listener) >= self.in_flight.window(owner)
                || socket.in_flight() >= MAX_UNREAD
            {
                break;
            }
            let Some(kind) = self.offers.next_kind(listener) else {
                break;
            };
            let charge = kept.map(|mut kept| kept.split(kind.messages()));
            let charge = charge.or_else(|| {
                let reserved = self.in_flight.reserve(owner, kind);
                reserved.ok()
            });
            let Some(charge) = charge else { break };
            let Some(offer) = self.offers.next(listener) else {
                break;
            };
            let sent = send(socket, &offer);
            self.in_flight.sent(socket, charge);
            match sent {
                Ok(()) => self.offers.pass(listener, offer.connection),
                // The listener's session ends as well, and its offers with it.
                Err(error) if is_disconnected(&error) => break,
                Err(_) => {
                    self.offers.put_back(listener, offer);
                    break;
                }
            }
        }
        let are_left = self.offers.held(listener) > 0;
        socket.keep_in_flight(are_left);
        if !are_left {
            let _ = self.session_io.watch_reading(socket, index, false);
        }
    }

    /// Has a connect wait until the processes of `owner` have read what was sent to them.
    pub(super) fn park(
        &mut self,
        session: Session<ProcessSocket>,
        connect: &Connect,
        owner: Owner,
        refusal: &Refusal,
    ) {
        let parked = ParkedConnect {
            session,
            connect: *connect,
        };
        if let Err(parked) = self.parked.add(owner, parked, Instant::now()) {
            self.reject(&parked.session, "connect", parked.connect.address, refusal);
        }
    }

    /// Tries the connects again that wait.
    pub(super) fn retry_parked(&mut self, now: Instant) {
        if self.parked.next_try().is_none_or(|at| now < at) {
            return;
        }
        let mut some_left = false;
        for owner in self.parked.start_round(now) {
            while let Some((deadline, parked)) = self.parked.next(owner) {
                let ParkedConnect { session, connect } = parked;
                if is_gone(&session) {
                    some_left = true;
                    continue;
                }
                let Err((session, owner_now, refusal)) = self.try_connect(session, &connect) else {
                    some_left = true;
                    continue;
                };
                if now >= deadline {
                    some_left = true;
                    self.reject(&session, "connect", connect.address, &refusal);
                    continue;
                }
                let parked = ParkedConnect { session, connect };
                self.parked.put_back(owner_now, deadline, parked);
                if owner_now == owner {
                    break;
                }
            }
        }
        self.parked.end_round(now, some_left);
        self.apply_effects();
    }
}

fn send(socket: &ProcessSocket, offer: &Offer) -> std::io::Result<()> {
    let descriptors: Vec<_> = offer.descriptors.iter().map(AsFd::as_fd).collect();
    message::send(socket, &offer.message, &descriptors)
}
