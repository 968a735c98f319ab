//! The uplink of one virtual machine's broker, without I/O and without a clock.
//!
//! Frames of the guest go in, and what the core has to say to it. Frames for the core and for the guest come out.
//! The guest is not trusted: it is read only while little waits to be sent to it and it changes its containers no
//! faster than it may. So a guest that floods waits for itself, and one that does not read is given up.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hvsock_endpoint::uplink::{GuestFrame, HostFrame, PING_MS, Request, SILENCE_MS, Service};

use super::mirror::Mirror;
use super::pace::Pace;

/// Frames that wait to be sent, up to which the guest is read.
const READ_BELOW: usize = 64;
/// Frames that wait to be sent, at most.
const MAX_QUEUED: usize = 1024;

const PING_AFTER: Duration = Duration::from_millis(PING_MS as u64);
const SILENCE: Duration = Duration::from_millis(SILENCE_MS as u64);

/// Why the host ends an uplink.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SessionEnd {
    /// The guest has broken a rule of the protocol.
    #[error("its broker has sent {0}")]
    Violation(String),
    /// Nothing has arrived for long.
    #[error("its broker has been silent for {} seconds", SILENCE.as_secs())]
    Silent,
    /// The guest does not read.
    #[error("its broker does not read what it is sent")]
    NotReading,
}

impl SessionEnd {
    /// The end of a session whose guest has sent `what`.
    pub(crate) fn violation(what: impl Into<String>) -> Self {
        Self::Violation(what.into())
    }
}

/// What is known of an uplink beside the frames that wait, for another process.
#[derive(Clone, Debug)]
pub(crate) struct SessionState {
    /// When all changes of the guest so far would be over.
    pub(crate) busy_until: Instant,
    pub(crate) last_received: Instant,
    pub(crate) is_pinged: bool,
    pub(crate) suspended: bool,
    /// The services of which the guest was told.
    pub(crate) told: Vec<Service>,
}

/// The state of one uplink.
#[derive(Clone, Debug)]
pub(crate) struct UplinkSession {
    changes: Pace,
    /// The host's services, as the guest may know them.
    pub(crate) mirror: Mirror,
    queue: VecDeque<HostFrame>,
    last_received: Instant,
    is_pinged: bool,
    /// Since when the stream has accepted no byte although some wait.
    stuck: Option<Instant>,
    /// The bytes that the stream had accepted then.
    accepted: u64,
    suspended: bool,
}

impl UplinkSession {
    /// A new uplink, of which `HELLO` has been read.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            changes: Pace::new(now),
            mirror: Mirror::default(),
            queue: VecDeque::new(),
            last_received: now,
            is_pinged: false,
            stuck: None,
            accepted: 0,
            suspended: false,
        }
    }

    /// The frames that wait, and the state once they are sent.
    pub(crate) fn state(&self) -> (Vec<HostFrame>, SessionState) {
        let mut sent = self.clone();
        let frames = std::iter::from_fn(|| sent.next_frame()).collect();
        let Self {
            changes,
            mirror,
            queue: _,
            last_received,
            is_pinged,
            // A guest that does not read has its time again.
            stuck: _,
            accepted: _,
            suspended,
        } = sent;
        let state = SessionState {
            busy_until: changes.busy_until(),
            last_received,
            is_pinged,
            suspended,
            told: mirror.told().cloned().collect(),
        };
        (frames, state)
    }

    /// An uplink of another process, of which no frame waits. `None` if the guest knows more services than it may.
    pub(crate) fn resume(state: SessionState, now: Instant) -> Option<Self> {
        let SessionState {
            busy_until,
            last_received,
            is_pinged,
            suspended,
            told,
        } = state;
        Some(Self {
            changes: Pace::resume(busy_until),
            mirror: Mirror::resume(told)?,
            last_received,
            is_pinged,
            suspended,
            ..Self::new(now)
        })
    }

    /// Whether a frame of the guest may be read now.
    pub(crate) fn may_read(&self, now: Instant) -> bool {
        self.queue.len() < READ_BELOW && self.changes.is_due(now)
    }

    /// Takes a frame of the guest. Returns it if it is for the core.
    ///
    /// # Errors
    ///
    /// [`SessionEnd::Violation`] for a frame that an uplink does not have.
    pub(crate) fn receive(
        &mut self,
        frame: GuestFrame,
        now: Instant,
    ) -> Result<Option<GuestFrame>, SessionEnd> {
        self.last_received = now;
        self.is_pinged = false;
        match frame {
            GuestFrame::Ping => {
                self.queue.push_back(HostFrame::Pong);
                Ok(None)
            }
            GuestFrame::Pong => Ok(None),
            GuestFrame::Hello(_) => Err(SessionEnd::violation("HELLO twice")),
            GuestFrame::Lookup { .. } => Err(SessionEnd::violation("LOOKUP on its uplink")),
            // Each may have the core judge everything again.
            GuestFrame::Announce(_)
            | GuestFrame::ChildState { .. }
            | GuestFrame::Withdraw { .. } => {
                self.changes.take(now);
                Ok(Some(frame))
            }
            GuestFrame::Explain(_)
            | GuestFrame::Connect(_)
            | GuestFrame::IncomingPort { .. }
            | GuestFrame::IncomingRefused { .. }
            | GuestFrame::Cancel { .. }
            | GuestFrame::Sync { .. }
            | GuestFrame::Explained { .. } => Ok(Some(frame)),
        }
    }

    /// Queues a frame for the guest. A request that is cancelled before it was sent is not sent at all.
    ///
    /// # Errors
    ///
    /// [`SessionEnd::NotReading`] if too many wait.
    pub(crate) fn send(&mut self, frame: HostFrame) -> Result<(), SessionEnd> {
        if let HostFrame::Cancel { request } = frame
            && self.take_unsent(request)
        {
            return Ok(());
        }
        if self.queue.len() >= MAX_QUEUED {
            return Err(SessionEnd::NotReading);
        }
        self.queue.push_back(frame);
        Ok(())
    }

    /// Removes a request that has not been sent. Returns whether there was one.
    fn take_unsent(&mut self, wanted: Request) -> bool {
        let at = self.queue.iter().position(|frame| match frame {
            HostFrame::Incoming(incoming) | HostFrame::Explain(incoming) => {
                incoming.request == wanted
            }
            _ => false,
        });
        at.and_then(|at| self.queue.remove(at)).is_some()
    }

    /// The next frame to send. A change of the services goes before what the core has said after it.
    pub(crate) fn next_frame(&mut self) -> Option<HostFrame> {
        let is_welcome = matches!(self.queue.front(), Some(HostFrame::Welcome(_)));
        let service = (!is_welcome).then(|| self.mirror.next_frame()).flatten();
        service.or_else(|| self.queue.pop_front())
    }

    /// The stream has accepted so many bytes in sum, and so many wait in it.
    pub(crate) fn wrote(&mut self, accepted: u64, waiting: usize, now: Instant) {
        if waiting == 0 {
            self.stuck = None;
        } else if self.stuck.is_none() || accepted != self.accepted {
            self.stuck = Some(now);
        }
        self.accepted = accepted;
    }

    /// The machine is paused, so its silence means nothing, or is resumed.
    pub(crate) fn suspend(&mut self, suspended: bool, now: Instant) {
        if self.suspended != suspended {
            self.suspended = suspended;
            // The time of the pause does not count.
            self.last_received = now;
            self.is_pinged = false;
            self.stuck = self.stuck.map(|_| now);
        }
    }

    /// When the guest may be read again that has changed its containers too fast; `None` if it has not.
    pub(crate) fn reads_again_at(&self, now: Instant) -> Option<Instant> {
        (!self.changes.is_due(now)).then(|| self.changes.due_at())
    }

    /// When [`expire`](Self::expire) has something to do next, or the guest may be read again.
    pub(crate) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let silent = match self.is_pinged {
            true => self.last_received + SILENCE,
            false => self.last_received + PING_AFTER,
        };
        let stuck = self.stuck.map(|since| since + SILENCE);
        let watched = [Some(silent), stuck]
            .into_iter()
            .filter(|_| !self.suspended);
        watched.flatten().chain(self.reads_again_at(now)).min()
    }

    /// Sends a `PING` after some silence.
    ///
    /// # Errors
    ///
    /// [`SessionEnd`] after a long one, or if the guest has not read for as long.
    pub(crate) fn expire(&mut self, now: Instant) -> Result<(), SessionEnd> {
        if self.suspended {
            return Ok(());
        }
        if self.stuck.is_some_and(|since| now >= since + SILENCE) {
            return Err(SessionEnd::NotReading);
        }
        if !self.may_read(now) {
            // What is not read is no silence of the guest.
            self.last_received = now;
        }
        if now >= self.last_received + SILENCE {
            return Err(SessionEnd::Silent);
        }
        if now >= self.last_received + PING_AFTER && !self.is_pinged {
            self.is_pinged = true;
            return self.send(HostFrame::Ping);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
