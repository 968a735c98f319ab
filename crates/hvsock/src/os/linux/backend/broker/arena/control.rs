//! The control connection of an arena: the broker's messages about the arena and the connections in it.
//!
//! Whoever receives the messages keeps the reasons for all. The broker sends a reason before it resets the
//! connection in the shared memory, so an end that sees the reset finds the reason here or in the socket.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use hvsock_endpoint::{BrokerMessage, ClientMessage, MAX_MESSAGE};
use hvsock_fabric::Refusal;
use hvsock_ring::SlotId;
use hvsock_sys::sync::lock;
use hvsock_sys::{message, stream};

use super::super::control::ResetReason;
use super::super::endpoint_connection::is_gone;
use super::super::errors;

/// The most reasons that are kept. A connection takes its own with it when it is dropped.
const MAX_REASONS: usize = 1024;

/// The control connection of an arena.
#[derive(Debug)]
pub(super) struct ArenaControl {
    socket: Arc<OwnedFd>,
    state: Mutex<State>,
    /// `state` has a reason: connections look there.
    has_reasons: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// Why all connections of the arena were reset.
    reset: Option<ResetReason>,
    /// Why a connection was reset, by its slot, with its number.
    reasons: HashMap<u32, (u32, ResetReason)>,
}

/// What messages have changed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct News {
    /// There was a message.
    pub(super) any: bool,
    /// The arena and all its connections are reset, and no message follows.
    pub(super) reset: bool,
    /// The other process has closed its end of the arena.
    pub(super) peer_closed: bool,
}

impl ArenaControl {
    pub(super) fn new(socket: Arc<OwnedFd>) -> Self {
        Self {
            socket,
            state: Mutex::default(),
            has_reasons: AtomicBool::new(false),
        }
    }

    /// Receives all pending messages.
    pub(super) fn receive(&self) -> News {
        let mut news = News::default();
        let mut state = lock(&self.state);
        while state.reset.is_none() && self.receive_one(&mut state, &mut news) {
            news.any = true;
        }
        news.reset = state.reset.is_some();
        if news.reset || !state.reasons.is_empty() {
            self.has_reasons.store(true, Ordering::Release);
        }
        news
    }

    /// Receives one message. Returns false if there is none.
    fn receive_one(&self, state: &mut State, news: &mut News) -> bool {
        let mut buffer = [0; MAX_MESSAGE];
        let received = match message::recv(&self.socket, &mut buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) => {
                state.reset = Some(match is_gone(&error) {
                    true => ResetReason::BrokerGone,
                    false => ResetReason::Protocol(error.to_string()),
                });
                return true;
            }
        };
        if received.len == 0 {
            state.reset = Some(ResetReason::BrokerGone);
            return true;
        }
        match BrokerMessage::decode(&buffer[..received.len]) {
            Ok(BrokerMessage::StreamReset(reset)) => {
                let reason = ResetReason::Refused(errors::refusal(&reset.reason));
                if state.reasons.len() < MAX_REASONS || state.reasons.contains_key(&reset.slot) {
                    state.reasons.insert(reset.slot, (reset.seq, reason));
                }
            }
            Ok(BrokerMessage::Reset(refused) | BrokerMessage::Refused(refused)) => {
                state.reset = Some(ResetReason::Refused(errors::refusal(&refused)));
            }
            Ok(BrokerMessage::Shutdown) => news.peer_closed = true,
            // The words in the memory have changed.
            Ok(BrokerMessage::Suspended { .. }) => {}
            Ok(_) => state.reset = Some(ResetReason::Protocol("unexpected message".into())),
            Err(fault) => state.reset = Some(ResetReason::Protocol(fault.to_string())),
        }
        true
    }

    /// Why a connection was reset, as far as messages were received.
    pub(super) fn reason(&self, id: SlotId) -> Option<ResetReason> {
        if !self.has_reasons.load(Ordering::Acquire) {
            return None;
        }
        let state = lock(&self.state);
        let own = state
            .reasons
            .get(&id.slot)
            .filter(|(seq, _)| *seq == id.seq);
        own.map(|(_, reason)| reason.clone())
            .or_else(|| state.reset.clone())
    }

    /// Forgets the reason of a connection that is dropped.
    pub(super) fn forget(&self, id: SlotId) {
        if self.has_reasons.load(Ordering::Acquire) {
            let mut state = lock(&self.state);
            if state
                .reasons
                .get(&id.slot)
                .is_some_and(|(seq, _)| *seq == id.seq)
            {
                state.reasons.remove(&id.slot);
            }
        }
    }

    /// Resets the arena, because the other process violates its protocol. The broker sees the end of this
    /// connection, and resets what the other process has.
    pub(super) fn abandon(&self) {
        let cause = "the peer has violated the protocol of the shared memory".into();
        let reason = ResetReason::Refused(Refusal::Reset { cause });
        lock(&self.state).reset.get_or_insert(reason);
        self.has_reasons.store(true, Ordering::Release);
        // It fails only if the broker has closed it already.
        let _ = stream::shutdown(&self.socket, Shutdown::Both);
    }

    /// Sends a message without waiting.
    ///
    /// It is not repeated if the socket is full: the broker then has unread messages of this arena, and
    /// looks at the arena when it reads them.
    pub(super) fn send(&self, message: &ClientMessage) {
        let mut bytes = Vec::with_capacity(16);
        message.encode(&mut bytes);
        let _ = message::send(&self.socket, &bytes, &[]);
    }
}

impl AsFd for ArenaControl {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
