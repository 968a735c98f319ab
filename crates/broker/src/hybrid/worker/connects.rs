//! The attempts to connect to the guest.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use hvsock_endpoint::HybridService;
use hvsock_fabric::{ConnectionId, Refusal};
use hvsock_sys::socket_folder::SocketFolder;
use mio::unix::SourceFd;
use mio::{Interest, Token};

use super::super::attempt::{Attempt, Failure, Step};
use super::super::presence::Presence;
use super::super::style::Connects;
use super::{MAX_TIMEOUT, Source, Worker};
use crate::guest_link::LinkEvent;

impl Worker {
    pub(super) fn connect(
        &mut self,
        connection: ConnectionId,
        names: Vec<HybridService>,
        timeout: Duration,
    ) {
        self.add_attempt(connection, names, timeout);
        // The folder at the path may be another one by now.
        self.check_identity();
        self.start(connection);
    }

    pub(super) fn add_attempt(
        &mut self,
        connection: ConnectionId,
        names: Vec<HybridService>,
        timeout: Duration,
    ) {
        let deadline = Instant::now() + timeout.min(MAX_TIMEOUT);
        let attempt = Attempt::new(self.style.connects, names, deadline);
        self.timers.insert((deadline, connection));
        self.attempts.insert(connection, attempt);
    }

    /// Follows the folder if it was replaced.
    fn check_identity(&mut self) {
        let there = SocketFolder::open(&self.place.folder).map(|folder| folder.id());
        if self.folder.as_ref().map(SocketFolder::id) != there.ok() {
            self.check_folder(Instant::now());
        }
    }

    fn start(&mut self, connection: ConnectionId) {
        let now = Instant::now();
        let Some(attempt) = self.attempts.get_mut(&connection) else {
            return;
        };
        let Some(folder) = &self.folder else {
            return self.fail(connection, Refusal::PartitionOff);
        };
        let target = attempt.target(&self.place.name);
        if self.sockets.is_open(&target) {
            // The host's own socket: the port is the host's, not the guest's.
            return self.fail(connection, Refusal::NoListener);
        }
        let (step, file) = attempt.start(folder, &self.place.name, self.trust, now);
        if let (Some(file), Connects::ByLine) = (file, self.style.connects) {
            self.report_states(|presence| presence.listens(file));
        }
        self.take(connection, step);
    }

    pub(super) fn proceed(&mut self, connection: ConnectionId) {
        if let Some(attempt) = self.attempts.get_mut(&connection) {
            let step = attempt.proceed();
            self.take(connection, step);
        }
    }

    fn take(&mut self, connection: ConnectionId, step: Step) {
        match step {
            Step::Waiting => self.await_answer(connection),
            Step::Later(at) => {
                self.forget_token(connection);
                self.timers.insert((at, connection));
            }
            Step::Connected(socket) => {
                self.report_states(Presence::guest_spoke);
                self.hand_out(connection, socket);
            }
            Step::Handed(socket) => {
                self.found_vmm(&socket);
                self.hand_out(connection, socket);
            }
            Step::Failed(failure) => self.failed(connection, failure),
        }
    }

    /// Registers the socket of an attempt, if it is not yet.
    fn await_answer(&mut self, connection: ConnectionId) {
        let token = Token(self.next_token);
        let Some(attempt) = self.attempts.get_mut(&connection) else {
            return;
        };
        let (None, Some(socket)) = (attempt.token(), attempt.socket()) else {
            return;
        };
        let mut source = SourceFd(&socket.as_raw_fd());
        let registry = self.poll.registry();
        match registry.register(&mut source, token, Interest::READABLE) {
            Ok(()) => {
                attempt.set_token(token);
                self.next_token += 1;
                self.sources.insert(token, Source::Attempt(connection));
            }
            Err(error) => {
                let which = format!("descriptors watched by the broker ({error})");
                self.fail(connection, Refusal::LimitReached { which });
            }
        }
    }

    fn hand_out(&mut self, connection: ConnectionId, socket: OwnedFd) {
        let _ = self
            .poll
            .registry()
            .deregister(&mut SourceFd(&socket.as_raw_fd()));
        self.remove_attempt(connection);
        let connected = LinkEvent::Connected(connection, Some(socket));
        self.events.send(connected);
    }

    fn failed(&mut self, connection: ConnectionId, failure: Failure) {
        let refusal = match failure {
            Failure::Refused(refusal) => refusal,
            Failure::Closed if self.presence.has_guest() => Refusal::NoListener,
            Failure::Closed => Refusal::Reset {
                cause: "the VMM closed it without an answer: nothing listens there, or the \
                        guest's vsock driver has not started"
                    .to_owned(),
            },
            Failure::NoVmm if self.style.connects == Connects::ByPath => Refusal::NoListener,
            Failure::NoVmm => {
                // The process may live on and listen no more.
                self.vmm = None;
                self.vmm_retry.reset();
                self.check.now();
                Refusal::PartitionOff
            }
            Failure::Violation(what) => {
                let cause = format!("the VMM's socket cannot be used: {what}");
                self.fault(&cause);
                Refusal::Reset { cause }
            }
        };
        self.fail(connection, refusal);
    }

    pub(super) fn fail(&mut self, connection: ConnectionId, refusal: Refusal) {
        if self.remove_attempt(connection).is_some() {
            self.events.send(LinkEvent::Failed(connection, refusal));
        }
    }

    fn forget_token(&mut self, connection: ConnectionId) {
        self.sources
            .retain(|_, source| !matches!(source, Source::Attempt(id) if *id == connection));
    }

    pub(super) fn remove_attempt(&mut self, connection: ConnectionId) -> Option<Attempt> {
        let attempt = self.attempts.remove(&connection)?;
        self.timers.remove(&(attempt.deadline, connection));
        if let Some(token) = attempt.token() {
            self.sources.remove(&token);
        }
        Some(attempt)
    }

    /// Ends the attempts whose time is up, and tries those again whose time has come.
    pub(super) fn handle_timers(&mut self, now: Instant) {
        while let Some((at, connection)) = self.timers.first().copied()
            && at <= now
        {
            self.timers.pop_first();
            match self.attempts.get(&connection) {
                Some(attempt) if attempt.deadline <= now => {
                    self.fail(connection, Refusal::TimedOut);
                }
                Some(attempt) if attempt.socket().is_none() => self.start(connection),
                _ => {}
            }
        }
    }
}
