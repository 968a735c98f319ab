//! A connect that nobody waits for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::conversation::Conversation;
use super::request::Outcome;
use super::{Stream, open};
use crate::backend::Request;
use crate::{Endpoint, options};

/// A connect on its way.
#[derive(Debug)]
pub(crate) struct Dial {
    conversation: Conversation,
    request: Mutex<Request>,
}

/// How long the start may wait for a broker whose queue of clients is full.
const START_BOUND: Duration = Duration::from_millis(100);

impl Dial {
    /// Asks for the connection and returns at once.
    pub(crate) fn start(endpoint: &Endpoint, request: Request) -> io::Result<Self> {
        let conversation = open(endpoint, START_BOUND)?;
        for option in request.options() {
            conversation.ask(&option)?;
        }
        conversation.ask(&request.next())?;
        Ok(Self {
            conversation,
            request: Mutex::new(request),
        })
    }

    /// The connection, once it stands; `WouldBlock` before.
    pub(crate) fn progress(&self) -> io::Result<Stream> {
        loop {
            let mut request = self.request.lock().unwrap_or_else(PoisonError::into_inner);
            let answer = self.conversation.answer()?;
            match request.advance(&self.conversation, answer)? {
                Some(Outcome::Connected(stream)) => return Ok(stream),
                Some(_) => return Err(options::odd()),
                None => self.conversation.ask(&request.next())?,
            }
        }
    }

    /// The error for a broker that says nothing in time.
    pub(crate) fn silent(&self) -> io::Error {
        self.conversation.silent()
    }
}

impl AsFd for Dial {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.conversation.as_fd()
    }
}
