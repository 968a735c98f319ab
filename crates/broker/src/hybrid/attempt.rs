//! One connect to the guest: through the VMM's socket, without blocking.
//!
//! The socket is connected, a line is sent, the answer is read. What the VMM says beyond the answer's line is
//! the connection's data and stays in the socket.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hvsock_endpoint::{HybridReply, HybridReplyReader, HybridService, MAX_HYBRID_REPLY};
use hvsock_fabric::Refusal;
use hvsock_sys::socket_folder::{FileId, SocketFolder};
use hvsock_sys::stream;
use mio::Token;

use super::style::Connects;
use super::trust::Trust;
use crate::backoff::Backoff;

/// How often to try again while the backlog of the VMM's socket is full: nothing says when it is not.
const BACKLOG_RETRY: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(100)];

/// A connect that the guest has not answered.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) deadline: Instant,
    connects: Connects,
    /// Under which names the service is still to be requested, the current one first.
    names: VecDeque<HybridService>,
    backlog: Backoff,
    open: Option<Open>,
}

/// A connected socket, on which a line was sent.
#[derive(Debug)]
struct Open {
    socket: OwnedFd,
    reader: HybridReplyReader,
    /// The socket's token, once it is registered.
    token: Option<Token>,
}

/// What has become of a connect.
#[derive(Debug)]
pub(super) enum Step {
    /// It waits for the answer, on its socket.
    Waiting,
    /// It is to be tried again at this time.
    Later(Instant),
    /// The guest has accepted.
    Connected(OwnedFd),
    /// The VMM accepted the connection; whether the guest has, nobody says.
    Handed(OwnedFd),
    /// It has failed.
    Failed(Failure),
}

/// Why a connect has failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The VMM has closed the connection without an answer.
    Closed,
    /// There is no VMM: no socket, or nobody listens at it.
    NoVmm,
    /// Any other reason.
    Refused(Refusal),
    /// The VMM, or whoever is in its place, has done what it must not.
    Violation(String),
}

impl Attempt {
    /// `names` are those under which to request the service; there is one at least.
    pub(super) fn new(connects: Connects, names: Vec<HybridService>, deadline: Instant) -> Self {
        Self {
            deadline,
            connects,
            names: names.into(),
            backlog: Backoff::new(BACKLOG_RETRY),
            open: None,
        }
    }

    /// The socket whose readiness it waits for.
    pub(super) fn socket(&self) -> Option<&OwnedFd> {
        self.open.as_ref().map(|open| &open.socket)
    }

    /// The token of that socket, if it is registered.
    pub(super) fn token(&self) -> Option<Token> {
        self.open.as_ref()?.token
    }

    pub(super) fn set_token(&mut self, token: Token) {
        if let Some(open) = &mut self.open {
            open.token = Some(token);
        }
    }

    /// The name of the socket to connect to. `base` is that of the VMM's.
    pub(super) fn target(&self, base: &OsStr) -> OsString {
        let mut name = base.to_owned();
        if let (Connects::ByPath, Some(service)) = (self.connects, self.names.front()) {
            name.push(service.suffix());
        }
        name
    }

    /// Connects to the VMM's socket and sends the line. Also returns the socket's file, if somebody listens.
    pub(super) fn start(
        &mut self,
        folder: &SocketFolder,
        base: &OsStr,
        trust: Trust,
        now: Instant,
    ) -> (Step, Option<FileId>) {
        let target = self.target(base);
        let connected = folder.connect(&target, |uid| trust.allows(uid));
        let (socket, file) = match connected {
            Ok(connected) => connected,
            Err(error) => return (self.not_connected(&error, now), None),
        };
        if let Err(error) = trust.check(&socket) {
            return (Step::Failed(Failure::Violation(error.to_string())), None);
        }
        if self.connects == Connects::ByPath {
            return (Step::Handed(socket), Some(file));
        }
        (self.request(socket), Some(file))
    }

    fn not_connected(&mut self, error: &io::Error, now: Instant) -> Step {
        match error.kind() {
            ErrorKind::WouldBlock => {
                self.backlog.failed(now);
                Step::Later(self.backlog.at().unwrap_or(now))
            }
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => Step::Failed(Failure::NoVmm),
            ErrorKind::InvalidInput | ErrorKind::PermissionDenied => {
                Step::Failed(Failure::Violation(error.to_string()))
            }
            _ => Step::Failed(Failure::Refused(Refusal::LimitReached {
                which: format!("broker descriptors ({error})"),
            })),
        }
    }

    fn request(&mut self, socket: OwnedFd) -> Step {
        let Some(service) = self.names.front() else {
            return Step::Failed(Failure::Closed);
        };
        // An answer before the request is one to somebody else.
        if stream::peek(&socket, &mut [0]).is_ok_and(|count| count > 0) {
            let what = "it sent bytes before the request".to_owned();
            return Step::Failed(Failure::Violation(what));
        }
        let line = service.connect_line();
        match stream::try_send(&socket, &[IoSlice::new(line.as_bytes())]) {
            Ok(count) if count == line.len() => {}
            // A new socket has room for a line; the VMM has closed it.
            _ => return self.closed(),
        }
        self.open = Some(Open {
            socket,
            reader: HybridReplyReader::default(),
            token: None,
        });
        Step::Waiting
    }

    /// Reads what has arrived of the answer.
    pub(super) fn proceed(&mut self) -> Step {
        let Some(open) = &mut self.open else {
            return Step::Waiting;
        };
        let mut buffer = [0; MAX_HYBRID_REPLY];
        loop {
            let wanted = open.reader.wanted();
            let count = match stream::peek(&open.socket, &mut buffer[..wanted]) {
                Ok(0) => return self.closed(),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Step::Waiting,
                Err(_) => return self.closed(),
            };
            let read = match open.reader.read(&buffer[..count]) {
                Ok(read) => read,
                Err(error) => return Step::Failed(Failure::Violation(error.to_string())),
            };
            let (line, reply) = read;
            match stream::recv(&open.socket, &mut buffer[..line]) {
                Ok(taken) if taken == line => {}
                _ => return self.closed(),
            }
            match reply {
                None => {}
                Some(HybridReply::Connected(_)) => {
                    return match self.open.take() {
                        Some(open) => Step::Connected(open.socket),
                        None => Step::Waiting,
                    };
                }
                Some(HybridReply::Refused(reason)) => {
                    let cause = format!("its VMM's socket answered: {reason}");
                    return Step::Failed(Failure::Refused(Refusal::Reset { cause }));
                }
            }
        }
    }

    /// The VMM has closed: the service is not known by this name. It may be by another.
    fn closed(&mut self) -> Step {
        self.open = None;
        self.names.pop_front();
        match self.names.is_empty() {
            true => Step::Failed(Failure::Closed),
            false => Step::Later(Instant::now()),
        }
    }
}
