//! A non-blocking connect.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;
use std::time::Duration;

use super::endpoint_connection::EndpointConnection;
use super::request::Outcome;
use super::{Stream, open};
use crate::backend::Request;
use crate::lock::lock;
use crate::{Endpoint, options};

/// A connect in progress.
#[derive(Debug)]
pub(crate) struct PendingConnect {
    connection: EndpointConnection,
    request: Mutex<Request>,
}

/// How long the start may wait if the broker's queue of clients is full.
const START_TIMEOUT: Duration = Duration::from_millis(100);

impl PendingConnect {
    /// Starts a connect and returns at once.
    pub(crate) fn start(endpoint: &Endpoint, request: Request) -> io::Result<Self> {
        let connection = open(endpoint, START_TIMEOUT)?;
        for option in request.options() {
            connection.send_request(&option)?;
        }
        connection.send_request(&request.next())?;
        Ok(Self {
            connection,
            request: Mutex::new(request),
        })
    }

    /// Returns the connection once it is established, `WouldBlock` before.
    pub(crate) fn progress(&self) -> io::Result<Stream> {
        loop {
            let mut request = lock(&self.request);
            let reply = self.connection.try_recv_reply()?;
            match request.advance(&self.connection, reply)? {
                Some(Outcome::Connected(stream)) => return Ok(stream),
                Some(_) => return Err(options::unexpected_reply()),
                None => self.connection.send_request(&request.next())?,
            }
        }
    }

    /// The error for a broker that does not reply in time.
    pub(crate) fn no_reply_error(&self) -> io::Error {
        self.connection.no_reply_error()
    }
}

impl AsFd for PendingConnect {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}
