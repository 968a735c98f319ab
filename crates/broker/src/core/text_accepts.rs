//! LISTEN and ACCEPT of the text protocol.

use std::net::Shutdown;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;

use hvsock_endpoint::{
    BrokerMessage, ClientMessage, Flags, Incoming, ListenNamed, ListenerToken, MAX_MESSAGE,
    TextListen, TextReply, Transports,
};
use hvsock_fabric::{ConnectionId, Refusal};
use hvsock_sys::unix_diag::{self, Fault};
use hvsock_sys::{message, peer, seqpacket, set_nonblocking, stream};
use mio::Interest;
use mio::unix::SourceFd;

use super::limits::{descriptor_limit, watch_limit};
use super::requests::SessionState;
use super::sessions::{Entry, Session};
use super::state::Core;
use super::text_answers::{send_bound, send_incoming, send_refused, send_reset, send_text_refusal};
use super::text_listeners::{LISTENER, MAX_WAITING, RELAY, TextListener, TextListeners};
use super::tokens::text_token;
use crate::data_path::{ByteCounters, ProcessSocket};
use crate::pump::{Adopted, Connection, RelayEnd};

/// The backlog of a listener that asks for none.
const BACKLOG: u32 = 128;

/// What a listener's program is told before it ends.
const LISTENER_ENDED: &str = "the listener has ended";

impl Core {
    /// Makes a listener, which lives as long as the client's connection.
    pub(super) fn text_listen(
        &mut self,
        session: Session<ProcessSocket>,
        listen: TextListen,
        index: Option<usize>,
    ) {
        let callback = match &listen.callback {
            None => None,
            Some(path) => match self.callback(&session, path) {
                Ok(found) => Some(found),
                Err((label, reason)) => return send_refused(&session.socket, label, &reason),
            },
        };
        let address = match self.text_address(&session, listen.from, listen.service) {
            Ok(address) => address,
            Err(refusal) => return drop(self.refuse_name(&session, &refusal)),
        };
        if index.is_some() {
            self.session_io.unwatch(&session.socket);
        }
        let (number, own) = match self.open_text_listener(&session, callback) {
            Ok(made) => made,
            Err(refusal) => return self.send_refusal(&session, &refusal),
        };
        let (partition, caller) = (session.partition, session.caller);
        let mut inner = self.sessions.open(own, partition, caller, Entry::Endpoint);
        inner.on_behalf_of = Some(session.socket);
        let request = ClientMessage::ListenNamed(ListenNamed {
            // The end of a program's data is a clean end.
            flags: Flags {
                raw_fd: true,
                ..Flags::default()
            },
            backlog: match listen.backlog {
                0 => BACKLOG,
                backlog => backlog,
            },
            transports: Transports::DESCRIPTOR,
            address,
        });
        if let SessionState::Open(inner) = self.handle_message(inner, request, None) {
            self.watch_session(inner);
        }
        self.text_listener_event(number);
    }

    /// The socket that a listener's program wants to be called at.
    ///
    /// The broker connects with its own rights and in its own mount namespace. So the socket must be the
    /// program's user's, and the program must find that very socket at the path.
    fn callback(
        &self,
        session: &Session<ProcessSocket>,
        path: &std::path::Path,
    ) -> Result<OwnedFd, (&'static str, String)> {
        let means_nothing = || {
            let reason = "a path means nothing to the broker unless the process is on the host, \
                          and finds the same socket there as the broker does; use ACCEPT";
            (Refusal::NotSupported.label(), reason.into())
        };
        if session.partition != self.fabric.root() {
            return Err(means_nothing());
        }
        let uid = session.caller.uid;
        // The same error whatever is there: the broker may see what the user may not.
        let found = stream::find_owned(path, uid).ok_or_else(|| {
            let path = path.display();
            let reason = format!("there is no Unix socket of the user {uid} at {path}");
            ("denied", reason)
        })?;
        if !peer::finds_at(&session.socket, path, &found) {
            return Err(means_nothing());
        }
        // Now, and not when the first connection is lost.
        let Some(fault) = unix_diag::fault(&found) else {
            return Ok(found);
        };
        let path = path.display();
        let reason = match fault {
            Fault::Left => format!("no process has the Unix socket at {path}"),
            Fault::NotListening => format!("the Unix socket at {path} does not listen"),
            Fault::NotStream => format!("the Unix socket at {path} is no stream socket"),
        };
        Err((Refusal::NoListener.label(), reason))
    }

    /// Adds a listener, whose request is not made yet. Returns its index, and the core's end of its channel.
    fn open_text_listener(
        &mut self,
        session: &Session<ProcessSocket>,
        callback: Option<OwnedFd>,
    ) -> Result<(usize, ProcessSocket), Refusal> {
        let owner = self.owner(session.partition, session.caller);
        let charge = self.descriptors.charge(owner, LISTENER);
        let charge = charge.map_err(|shortage| self.descriptor_share(shortage))?;
        let of_session = self.descriptors.charge(owner, 1);
        let of_session = of_session.map_err(|shortage| self.descriptor_share(shortage))?;
        let (own, channel) = seqpacket::pair().map_err(|error| descriptor_limit(&error))?;
        for end in [&own, &channel] {
            set_nonblocking(end, true).map_err(|error| descriptor_limit(&error))?;
        }
        let index = self.text_listeners.insert(TextListener {
            channel,
            client: session.socket.clone(),
            partition: session.partition,
            owner,
            token: TextListeners::new_token(),
            callback,
            waiting: Default::default(),
            answered: false,
            charge,
        });
        if let Some(listener) = self.text_listeners.get(index)
            && let Err(error) = self.watch_text_listener(index, listener)
        {
            self.text_listeners.remove(index);
            return Err(watch_limit(&error));
        }
        Ok((index, ProcessSocket::charged(own, of_session)))
    }

    fn watch_text_listener(&self, index: usize, listener: &TextListener) -> std::io::Result<()> {
        for fd in [
            listener.channel.as_raw_fd(),
            listener.client.as_fd().as_raw_fd(),
        ] {
            // Hang-ups are reported whatever the interest is.
            let (mut source, interest) = (SourceFd(&fd), Interest::READABLE);
            self.registry
                .register(&mut source, text_token(index), interest)?;
        }
        Ok(())
    }

    /// Watches the listeners of another process. Reads nothing.
    ///
    /// # Errors
    ///
    /// If a descriptor cannot be watched.
    pub(super) fn watch_text_listeners(&self) -> std::io::Result<()> {
        let mut all = self.text_listeners.iter();
        all.try_for_each(|(index, listener)| self.watch_text_listener(index, listener))
    }

    /// Handles what the listeners of another process have: no event follows for what had arrived.
    pub(super) fn begin_text_listeners(&mut self) {
        let all: Vec<usize> = self.text_listeners.iter().map(|(index, _)| index).collect();
        for index in all {
            self.text_listener_event(index);
        }
    }

    /// Has a client wait for the next connection of a listener.
    pub(super) fn text_accept(
        &mut self,
        session: Session<ProcessSocket>,
        token: ListenerToken,
        index: Option<usize>,
    ) {
        let found = self.text_listeners.find(session.partition, token);
        let listener = found.and_then(|number| self.text_listeners.get_mut(number));
        let (Some(number), Some(listener)) = (found, listener) else {
            let label = Refusal::NoListener.label();
            let reason = "no listener of this partition has the token";
            return send_refused(&session.socket, label, reason);
        };
        if listener.callback.is_some() {
            let label = TextReply::INVALID_REQUEST;
            let reason = "the listener is called back at its path";
            return send_refused(&session.socket, label, reason);
        }
        if index.is_some() {
            self.session_io.unwatch(&session.socket);
        }
        if let Err(socket) = listener.wait(session.socket) {
            let which = format!("{MAX_WAITING} waiting ACCEPTs of one listener");
            return send_text_refusal(&socket, &Refusal::LimitReached { which });
        }
        self.text_listener_event(number);
    }

    /// Handles what a listener's channel has, as far as its program can take it, and the end of its client.
    pub(super) fn text_listener_event(&mut self, index: usize) {
        let mut bytes = [0; MAX_MESSAGE];
        while let Some(listener) = self.text_listeners.get_mut(index) {
            if stream::is_hung_up(&listener.client) {
                self.end_text_listener(index, None);
                break;
            }
            let is_ending = stream::is_hung_up(&listener.channel);
            if listener.answered && !is_ending && !listener.takes_connections() {
                break;
            }
            let received = match message::recv_with_descriptors(&listener.channel, &mut bytes) {
                Ok(received) if received.len > 0 => received,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                _ => {
                    self.end_text_listener(index, Some(("reset", LISTENER_ENDED.into())));
                    break;
                }
            };
            match BrokerMessage::decode(&bytes[..received.len]) {
                Ok(BrokerMessage::Bound(bound)) => {
                    listener.answered = true;
                    let _ = send_bound(&listener.client, &bound, listener.token);
                }
                Ok(BrokerMessage::Refused(refused) | BrokerMessage::Reset(refused)) => {
                    let refusal = Refusal::from_wire(refused.code, &refused.detail);
                    let why = (refusal.label(), refusal.to_string());
                    self.end_text_listener(index, Some(why));
                    break;
                }
                Ok(BrokerMessage::Incoming(incoming)) if !is_ending => {
                    self.text_incoming(index, &incoming, received.descriptors);
                }
                // The connections of a listener that ends are reset.
                Ok(_) | Err(_) => {}
            }
        }
        self.apply_effects();
    }

    /// Passes a connection on to a listener's program, or resets it.
    fn text_incoming(&mut self, index: usize, incoming: &Incoming, descriptors: Vec<OwnedFd>) {
        let id = ConnectionId::from_u64(incoming.connection);
        let Err(cause) = self.pass_text_incoming(index, incoming, descriptors) else {
            return;
        };
        if let Some(listener) = self.text_listeners.get(index)
            && listener.callback.is_some()
        {
            send_reset(&listener.client, incoming.connection, &cause);
        }
        self.reset_connection(id, Refusal::Reset { cause });
    }

    fn pass_text_incoming(
        &mut self,
        index: usize,
        incoming: &Incoming,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let gone = || "the program that waited for it is gone".to_owned();
        let listener = self.text_listeners.get_mut(index).ok_or_else(gone)?;
        let accepted = ClientMessage::Accepted {
            connection: incoming.connection,
        };
        let mut bytes = Vec::new();
        accepted.encode(&mut bytes);
        // An error means that the listener ends.
        let _ = message::send(&listener.channel, &bytes, &[]);
        // Control is closed: a program that does not speak the endpoint protocol has none.
        let data = descriptors.into_iter().next();
        let data = data.ok_or_else(|| "it has no socket".to_owned())?;
        set_nonblocking(&data, true).map_err(|error| descriptor_limit(&error).to_string())?;
        let charge = self.descriptors.charge(listener.owner, RELAY);
        let charge = match charge {
            Ok(charge) => charge,
            Err(shortage) => return Err(self.descriptor_share(shortage).to_string()),
        };
        let program = match &listener.callback {
            Some(callback) => stream::connect_by_descriptor(callback)
                .map_err(|error| format!("its program cannot be called back: {error}"))?,
            None => loop {
                let accept = listener.waiting.pop_front().ok_or_else(gone)?;
                if send_incoming(&accept, incoming).is_ok() {
                    let socket = accept.as_fd().try_clone_to_owned();
                    break socket.map_err(|error| descriptor_limit(&error).to_string())?;
                }
            },
        };
        let id = self.text_listeners.add_relay(charge);
        self.data_threads.adopt(Adopted {
            id,
            connection: Connection::relay(RelayEnd::plain(data), RelayEnd::plain(program)),
            counters: Arc::new(ByteCounters::default()),
        });
        Ok(())
    }

    /// Ends a listener, and tells its program and the ACCEPTs that wait why.
    fn end_text_listener(&mut self, index: usize, why: Option<(&str, String)>) {
        let Some(listener) = self.text_listeners.remove(index) else {
            return;
        };
        for fd in [
            listener.channel.as_raw_fd(),
            listener.client.as_fd().as_raw_fd(),
        ] {
            let _ = self.registry.deregister(&mut SourceFd(&fd));
        }
        // Its session ends even while another process has the channel as well, as during a handover.
        let _ = stream::shutdown(&listener.channel, Shutdown::Both);
        let (label, reason) = why.unwrap_or(("reset", LISTENER_ENDED.into()));
        send_refused(&listener.client, label, &reason);
        for waiting in &listener.waiting {
            send_refused(waiting, label, &reason);
        }
    }
}
