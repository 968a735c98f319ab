//! Questions to the broker of the host, which has the names and the rules.
//!
//! The broker answers any process of its guests at one vsock port. A host may have none, or another program may
//! answer there, so nothing that arrives is trusted and each question has a deadline of its caller.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use hvsock_address::SockAddrVm;
use hvsock_endpoint::uplink::{FrameReader, GuestFrame, HostFrame, UPLINK_PORT};
use hvsock_sys::poll::PollFlags;
use hvsock_sys::{errno, stream, vsock};

use crate::os::ready;

/// Bytes received at once.
const READ: usize = 4096;

/// Questions that have been asked and are not all answered.
#[derive(Debug)]
pub(super) struct HostQuery {
    socket: OwnedFd,
    is_connected: bool,
    /// The questions' bytes that have not been sent.
    unsent: Vec<u8>,
    reader: FrameReader,
    answers: Vec<HostFrame>,
    /// The number of questions.
    questions: usize,
}

/// Why the host gave no answer.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// It refused the connection.
    Refused,
    /// It did not answer in time.
    Silent,
    /// It closed the connection without an answer.
    Closed,
    /// What it sent is no answer.
    Invalid(String),
    /// A system call failed.
    System(io::Error),
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = UPLINK_PORT;
        match self {
            Self::Refused => write!(
                f,
                "the host refused a connection to vsock port {port}, so no broker of hvsock serves this \
                 machine there, or an older one"
            ),
            Self::Silent => write!(f, "the host did not answer in time at vsock port {port}"),
            Self::Closed => write!(
                f,
                "the host closed the connection to vsock port {port} without an answer"
            ),
            Self::Invalid(what) => write!(
                f,
                "what answers at vsock port {port} of the host is no broker of hvsock: {what}"
            ),
            Self::System(error) => write!(
                f,
                "cannot connect to vsock port {port} of the host: {error}"
            ),
        }
    }
}

impl HostQuery {
    /// Connects to the host and asks. Does not wait.
    pub(super) fn start(questions: &[GuestFrame], timeout: Duration) -> Result<Self, NoAnswer> {
        let socket = vsock::socket().map_err(NoAnswer::System)?;
        vsock::set_connect_timeout(&socket, timeout).map_err(NoAnswer::System)?;
        let host = SockAddrVm::new(SockAddrVm::CID_HOST, UPLINK_PORT);
        vsock::connect(&socket, &host.to_bytes()).map_err(of_system)?;
        Ok(Self::on(socket, questions))
    }

    /// Asks on a non-blocking socket that connects.
    fn on(socket: OwnedFd, questions: &[GuestFrame]) -> Self {
        let mut unsent = Vec::new();
        for question in questions {
            question.append(&mut unsent);
        }
        Self {
            socket,
            is_connected: false,
            unsent,
            reader: FrameReader::new(),
            answers: Vec::new(),
            questions: questions.len(),
        }
    }

    /// Waits for the answers until `deadline`.
    pub(super) fn wait(mut self, deadline: Instant) -> Result<Vec<HostFrame>, NoAnswer> {
        loop {
            if let Some(answers) = self.progress()? {
                return Ok(answers);
            }
            let is_ready = ready(&self.socket, self.waits_for(), Some(deadline));
            if !is_ready.map_err(NoAnswer::System)? {
                return Err(NoAnswer::Silent);
            }
        }
    }

    /// The answers, in the order of the questions, once all have arrived. Must not be called again then.
    pub(super) fn progress(&mut self) -> Result<Option<Vec<HostFrame>>, NoAnswer> {
        if !self.is_connected {
            let writable = ready(&self.socket, PollFlags::OUT, Some(Instant::now()));
            if !writable.map_err(NoAnswer::System)? {
                return Ok(None);
            }
            self.is_connected = vsock::connected(&self.socket).map_err(of_system)?;
        }
        while !self.unsent.is_empty() {
            match stream::send(&self.socket, &self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(of_system(error)),
            }
        }
        loop {
            while let Some(message) = self.reader.next().map_err(invalid)? {
                self.answers
                    .push(HostFrame::decode(message).map_err(invalid)?);
                if self.answers.len() == self.questions {
                    return Ok(Some(std::mem::take(&mut self.answers)));
                }
            }
            let mut bytes = [0; READ];
            match stream::recv(&self.socket, &mut bytes) {
                Ok(0) => return Err(NoAnswer::Closed),
                Ok(count) => self.reader.add(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.raw_os_error() == Some(errno::ECONNRESET) => {
                    return Err(NoAnswer::Closed);
                }
                Err(error) => return Err(NoAnswer::System(error)),
            }
        }
    }

    /// What to wait for before the next [`progress`](Self::progress).
    pub(super) fn waits_for(&self) -> PollFlags {
        match self.is_connected && self.unsent.is_empty() {
            true => PollFlags::IN,
            false => PollFlags::OUT,
        }
    }
}

impl AsFd for HostQuery {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn of_system(error: io::Error) -> NoAnswer {
    match error.raw_os_error() {
        Some(errno::ECONNRESET | errno::ECONNREFUSED) => NoAnswer::Refused,
        Some(errno::ETIMEDOUT) => NoAnswer::Silent,
        _ => NoAnswer::System(error),
    }
}

fn invalid(error: impl fmt::Display) -> NoAnswer {
    NoAnswer::Invalid(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use hvsock_endpoint::{LookupKind, Refused};

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn lookup(name: &str) -> GuestFrame {
        GuestFrame::Lookup {
            kind: LookupKind::Service,
            name: name.to_owned(),
        }
    }

    /// Asks on a socket that is connected already.
    fn ask(own: OwnedFd, questions: &[GuestFrame]) -> HostQuery {
        hvsock_sys::set_nonblocking(&own, true).unwrap();
        HostQuery {
            is_connected: true,
            ..HostQuery::on(own, questions)
        }
    }

    /// Asks two questions of a host that sends `bytes` and closes.
    fn answered(bytes: &[u8]) -> Result<Vec<HostFrame>, NoAnswer> {
        let (own, host) = stream::pair().unwrap();
        let query = ask(own, &[lookup("one"), lookup("two")]);
        let bytes = bytes.to_owned();
        let host = thread::spawn(move || {
            // In pieces, since a stream has no boundaries.
            for piece in bytes.chunks(7) {
                if stream::send(&host, piece).is_err() {
                    return;
                }
            }
            // It has read nothing, and the connection is closed all the same.
            let _ = stream::shutdown(&host, std::net::Shutdown::Write);
            let mut all = [0; 512];
            while stream::recv(&host, &mut all).is_ok_and(|count| count > 0) {}
        });
        let outcome = query.wait(Instant::now() + LONG);
        host.join().unwrap();
        outcome
    }

    fn bytes(frames: &[HostFrame]) -> Vec<u8> {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.append(&mut bytes));
        bytes
    }

    #[test]
    fn the_answers_have_the_order_of_the_questions() {
        let answers = [
            HostFrame::Found { guid: [7; 16] },
            HostFrame::Refused(Refused {
                code: 1,
                errno: 111,
                detail: "x".repeat(4000),
            }),
        ];
        assert_eq!(answered(&bytes(&answers)).unwrap(), answers);
    }

    #[test]
    fn what_is_no_answer_is_told_and_ends_the_question() {
        let one = bytes(&[HostFrame::Found { guid: [7; 16] }]);
        let closed = |outcome: Result<_, NoAnswer>| matches!(outcome, Err(NoAnswer::Closed));
        assert!(closed(answered(&[])));
        assert!(closed(answered(&one)));
        assert!(closed(answered(&one[..9])));
        for foreign in [
            &b"SSH-2.0-OpenSSH_9.9\r\n"[..],
            &[0xff; 600],
            &u32::MAX.to_le_bytes(),
            &[0; 64],
        ] {
            let outcome = answered(foreign);
            assert!(matches!(outcome, Err(NoAnswer::Invalid(_))), "{outcome:?}");
        }
        // A guest's frame.
        let mut own = Vec::new();
        lookup("mine").append(&mut own);
        assert!(matches!(answered(&own), Err(NoAnswer::Invalid(_))));
    }

    #[test]
    fn a_silent_host_is_given_up_at_the_deadline() {
        let (own, _host) = stream::pair().unwrap();
        let query = ask(own, &[lookup("one")]);
        let outcome = query.wait(Instant::now() + Duration::from_millis(20));
        assert!(matches!(outcome, Err(NoAnswer::Silent)), "{outcome:?}");
    }
}
