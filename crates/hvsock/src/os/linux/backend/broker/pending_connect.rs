//! A non-blocking connect.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::time::Duration;

use hvsock_sys::sync::lock;

use super::endpoint_connection::EndpointConnection;
use super::exchange::{Exchange, Outcome, Step};
use super::execute::open;
use super::stream::Stream;
use crate::Endpoint;
use crate::backend::Request;
use crate::backend::errors::unexpected_reply;

/// A connect in progress.
#[derive(Debug)]
pub(crate) struct PendingConnect {
    connection: EndpointConnection,
    exchange: Mutex<Exchange>,
}

/// How long the start may wait if the broker's queue of clients is full.
const START_TIMEOUT: Duration = Duration::from_millis(100);

impl PendingConnect {
    /// Starts a connect and returns at once.
    pub(crate) fn start(endpoint: &Endpoint, request: Request) -> io::Result<Self> {
        let connection = open(endpoint, START_TIMEOUT)?;
        // The program may watch the descriptor, so there cannot be another endpoint connection.
        let exchange = Exchange::basic(request);
        for option in exchange.options() {
            connection.send_request(&option)?;
        }
        connection.send_request(&exchange.next())?;
        Ok(Self {
            connection,
            exchange: Mutex::new(exchange),
        })
    }

    /// Returns the connection once it is established, `WouldBlock` before.
    pub(crate) fn progress(&self) -> io::Result<Stream> {
        loop {
            let mut exchange = lock(&self.exchange);
            let reply = self.connection.try_recv_reply()?;
            match exchange.advance(&self.connection, reply)? {
                Step::Done(Outcome::Connected(stream)) => return Ok(stream),
                Step::Send => self.connection.send_request(&exchange.next())?,
                Step::Done(_) | Step::Reopen => return Err(unexpected_reply()),
            }
        }
    }

    /// The error for a connect without a reply in time. The broker replies when the peer has accepted it.
    pub(crate) fn no_reply_error(&self) -> io::Error {
        let text = format!(
            "timed out: neither the peer nor the broker at {} has answered",
            self.connection.path().display()
        );
        io::Error::new(io::ErrorKind::TimedOut, text)
    }
}

impl AsFd for PendingConnect {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}
