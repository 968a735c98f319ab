//! The first question to a broker: which context id does this partition have?

use std::io;
use std::time::{Duration, Instant};

use hvsock::{Endpoint, VmId};
use hvsock_endpoint::{BrokerMessage, ClientMessage, VIOLATION};
use hvsock_sys::poll::{self, PollFd, PollFlags};

use super::{Connection, OpenError};
use crate::model::OwnCid;

/// How long the broker may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why the broker does not tell.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It cannot be reached.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It does not know the question, nor the messages that interposition needs.
    #[error("the broker is older than this command and cannot serve unmodified programs")]
    TooOld,
    /// It refuses to answer.
    #[error("the broker refuses to name this partition's context id: {0}")]
    Refused(hvsock::Refusal),
    /// It does not answer in time, or ends.
    #[error("the broker does not answer")]
    NoAnswer(#[source] io::Error),
}

/// Asks the broker for the context id of this process's partition. Blocks for up to 5 seconds.
///
/// # Errors
///
/// See [`AskError`].
pub fn own_cid(endpoint: &Endpoint) -> Result<OwnCid, AskError> {
    let deadline = Instant::now() + TIMEOUT;
    let connection = loop {
        match Connection::open(endpoint, None) {
            Err(OpenError::Busy) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => break opened?,
        }
    };
    let partition = VmId::LOOPBACK;
    connection.send(&ClientMessage::CidOf { partition });
    loop {
        let mut fds = [PollFd::new(&connection, PollFlags::IN)];
        match poll::wait(&mut fds, Some(deadline)) {
            Ok(true) => {}
            Ok(false) => return Err(AskError::NoAnswer(io::ErrorKind::TimedOut.into())),
            Err(error) => return Err(AskError::NoAnswer(error)),
        }
        let ended = || AskError::NoAnswer(io::ErrorKind::ConnectionReset.into());
        match connection.receive() {
            Ok(None) => {}
            Ok(Some(received)) => match received.message {
                BrokerMessage::Cid { cid } => return Ok(OwnCid(cid)),
                BrokerMessage::Refused(refused) if refused.detail.contains(VIOLATION) => {
                    return Err(AskError::TooOld);
                }
                BrokerMessage::Refused(refused) => {
                    let refusal = hvsock::Refusal::from_wire(refused.code, &refused.detail);
                    return Err(AskError::Refused(refusal));
                }
                _ => return Err(ended()),
            },
            Err(_) => return Err(ended()),
        }
    }
}
